"""How a deformable convolution is planned on each device."""

from cudakit import conv_backward_plan, conv_cuda_plan, conv_plan, depthwise_plan
from cudakit.array import CPU
from cudakit.conv_cut import Convolution
from cudakit.conv_plan import Slots
from cudakit.plan import Plan, Slot, Target


def plan_forward(plan: Plan, target: Target, conv: Convolution, slots: Slots, output: Slot) -> None:
    """Append the convolution."""
    if target.device == CPU:
        conv_plan.plan_forward(plan, target, conv, slots, output)
    elif conv.depthwise:
        depthwise_plan.plan_forward(plan, target, conv, slots, output)
    else:
        conv_cuda_plan.plan_forward(plan, target, conv, slots, output)


def plan_backward(
    plan: Plan, target: Target, conv: Convolution, slots: Slots, grad_output: Slot, results: Slots
) -> None:
    """Append the gradients that `results` has slots for; that of the bias is not among them."""
    if target.device == CPU:
        conv_backward_plan.plan_backward(plan, target, conv, slots, grad_output, results)
    elif conv.depthwise:
        depthwise_plan.plan_backward(plan, target, conv, slots, grad_output, results)
    else:
        conv_cuda_plan.plan_backward(plan, target, conv, slots, grad_output, results)
