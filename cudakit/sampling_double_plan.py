"""How the gradients of `grid_sample`'s gradients are launched."""

from math import prod

from cudakit.array import Spec
from cudakit.double_backward import Result, add_neighbours, choose_vector
from cudakit.launch import Launch, load
from cudakit.layout import Image, is_wide, packed
from cudakit.plan import NULL, Output, Plan, Target
from cudakit.sampling_plan import MODE_CONSTANTS, SAMPLE_FIELDS, Sampling
from cudakit.source import Kernel, type_constants
from cudakit.structs import pack_tail

KERNEL = Kernel(
    "grid_sample_double_backward.cu",
    "grid_sample_double_backward",
    "GridSampleDoubleParams",
    (("input_tangent", 1), ("grid_tangent", 1), *((f"call.{name}", count) for name, count in SAMPLE_FIELDS)),
    pointers=8,
)


def plan_double_backward(
    call: Sampling,
    images: tuple[Image | None, Image],
    specs: tuple[Spec | None, ...],
    needs: tuple[str, ...],
    target: Target,
    *,
    last: bool,
) -> Plan:
    """Plan the gradients of `grid_sample`'s gradients.

    `specs` are those of the operator's arrays; `images` are how the gradient by the gradient of the input lies, if
    there is one, and the gradient by the output.
    """
    (tangent, grad), (_, by_grid, grad_spec, input, grid) = images, specs
    assert grad_spec is not None and input is not None and grid is not None
    x = call.input
    empty = 0 in grad.shape or 0 in x.shape
    sample = Result.of(grad.shape, x.dtype, last=last, added=False)
    total = Result.of(x.shape, x.dtype, last=last, added=True)
    results = (
        sample.output(grad_spec.shape, empty=empty) if "grad_output" in needs else None,
        total.output(input.shape, empty=empty) if "input" in needs else None,
        Output(grid.shape, grid.dtype, zero=empty) if "grid" in needs else None,
    )
    plan = Plan(5, results)
    if empty or not needs:
        return plan
    made, sums = sample.begin(plan, target, plan.result(0)), total.begin(plan, target, plan.result(1))
    slots = (
        NULL if tangent is None else add_neighbours(plan, target, plan.input(0), tangent),
        NULL if by_grid is None else plan.input(1),
        add_neighbours(plan, target, plan.input(3), x),
        plan.input(4),
        made,
        NULL if needs == ("grad_output",) else add_neighbours(plan, target, plan.input(2), grad),  # unless it is read
        *(sums, plan.result(2)),
    )
    plan.launch(_launch(call, sample.made, target), *slots)
    sample.end(plan, target, made, plan.result(0))
    total.end(plan, target, sums, plan.result(1))
    return plan


def _launch(call: Sampling, output: Image, target: Target) -> Launch:
    x = packed(call.input.shape, call.input.dtype, channels_last=True)
    n, channels, items = len(x.space), x.shape[1], x.shape[0] * call.pixels
    lanes, vector = choose_vector(channels, x.dtype, items, target)
    layouts = (x.shape, x.strides), (output.shape, output.strides), ((items * max(lanes, n),), (1,))
    constants = type_constants(x.dtype, call.grid_dtype, is_wide(*layouts))
    constants |= {"NDIM": n, "MODE": MODE_CONSTANTS[call.mode], "PADDING": call.padding_mode.upper()}
    constants |= {"TILE": 1, "LANES": lanes, "VEC": vector, "WINDOW": 0, "SLABS": 0}
    tail = pack_tail(
        KERNEL,
        *(items, x.shape[0], channels, channels, 1, call.pixels, int(call.align_corners), 0),
        *(x.space, x.strides),
        *((*output.strides[:2], output.strides[-1]), x.strides),
    )
    kernel = load(KERNEL, tuple(constants.items()), target.device)
    return Launch(kernel, tail, items, call.pixels, prod(x.shape[:2]) * call.pixels * call.taps)
