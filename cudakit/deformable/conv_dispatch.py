"""How a deformable convolution is planned on each device."""

from typing import Any

from cudakit.array import CPU
from cudakit.deformable import conv_cuda_depthwise, conv_cuda_plan, conv_host_backward_plan, conv_host_plan
from cudakit.deformable.conv_call import Convolution, Slots
from cudakit.plan import Plan, Slot


def plan_forward(plan: Plan, conv: Convolution, slots: Slots, output: Slot) -> None:
    """Append the convolution."""
    target = plan.target
    family = conv_host_plan if target.device == CPU else _on_gpu(conv)
    family.plan_forward(plan, conv, slots, output)


def plan_backward(plan: Plan, conv: Convolution, slots: Slots, grad_output: Slot, results: Slots) -> None:
    """Append the gradients that `results` has slots for; that of the bias is not among them."""
    target = plan.target
    family = conv_host_backward_plan if target.device == CPU else _on_gpu(conv)
    family.plan_backward(plan, conv, slots, grad_output, results)


def _on_gpu(conv: Convolution) -> Any:
    """Return the module that plans a call on a GPU."""
    return conv_cuda_depthwise if conv.depthwise else conv_cuda_plan
