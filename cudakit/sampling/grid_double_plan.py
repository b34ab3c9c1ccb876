"""How the gradients of `grid_sample`'s gradients are launched."""

from math import prod

from cudakit.arithmetic import ceil_div
from cudakit.array import CPU, Spec
from cudakit.double_backward import Result, add_packed, choose_vector
from cudakit.layout import Image, is_wide, packed
from cudakit.plan import NULL, Output, Plan, Slot, Target
from cudakit.rounding import add_anchors, one_row, rounded_parts
from cudakit.sampling.grid_form import HOST_TILE, MODE_CONSTANTS, even_group
from cudakit.sampling.grid_plan import SAMPLE_FIELDS, Pointers, Sampling, sample_values
from cudakit.source import Kernel, type_constants

FIELDS = (("input_tangent", 1), ("grid_tangent", 1), *((f"call.{name}", count) for name, count in SAMPLE_FIELDS))
KERNELS = {
    name: Kernel("grid_sample_double_backward.cu", name, "GridSampleDoubleParams", FIELDS, pointers=9)
    for name in ("grid_sample_planar_double_backward", "grid_sample_double_backward")
}
PLANAR_CHANNELS = 15  # up to here a CPU takes a tile of samples at a time rather than all channels of one


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
    (tangent, grad), x = images, call.input
    empty = 0 in grad.shape or 0 in x.shape
    planar = target.device == CPU and x.shape[1] <= PLANAR_CHANNELS
    neighbours = last or not planar
    sample = Result.written(grad.shape, x.dtype, last=last, neighbours=neighbours)
    total = Result.added(x.shape, x.dtype, target, _terms(call), last=last, neighbours=neighbours)
    plan = Plan(target, 5, _outputs(sample, total, specs, needs, empty=empty))
    if empty or not needs:
        return plan
    made, sums = sample.begin(plan, plan.result(0)), total.begin(plan, plan.result(1))
    read = NULL if needs == ("grad_output",) else plan.input(2)
    directions = (
        NULL if tangent is None else add_packed(plan, plan.input(0), tangent, last=neighbours),
        NULL if specs[1] is None else plan.input(1),
    )
    pointers = Pointers(
        input=add_packed(plan, plan.input(3), x, last=neighbours),
        grid=plan.input(4),
        output=made,
        grad_output=add_packed(plan, read, grad, last=neighbours),
        grad_input=sums,
        grad_grid=plan.result(2),
        anchors=NULL if sums == NULL else _add_anchors(plan, call, grad),
    )
    layout = packed(x.shape, x.dtype, channels_last=neighbours)
    turned, slots = call._replace(input=layout), (*directions, *pointers)
    _add_launch(plan, turned, sample.made, slots, planar=planar, added="input" in needs)
    sample.end(plan, made, plan.result(0))
    total.end(plan, sums, plan.result(1))
    return plan


def _outputs(
    sample: Result, total: Result, specs: tuple[Spec | None, ...], needs: tuple[str, ...], *, empty: bool
) -> tuple[Output | None, ...]:
    """Return what the results look like: the gradients by the output's gradient, by the input and by the grid."""
    _, _, grad, input, grid = specs
    assert grad is not None and input is not None and grid is not None
    return (
        sample.output(grad.shape, empty=empty) if "grad_output" in needs else None,
        total.output(input.shape, empty=empty) if "input" in needs else None,
        Output(grid.shape, grid.dtype, zero=empty) if "grid" in needs else None,
    )


def _terms(call: Sampling) -> int:
    """Return how many products are added to an element of the gradient by the input at most: see `_add_anchors`."""
    return call.terms * len(call.input.space)


def _add_anchors(plan: Plan, call: Sampling, grad: Image) -> Slot:
    """Append what finds the anchors of sums of (s_1 w_1 p_1' + ...) g, where w_i < 2, and scales s_i <= size / 2."""
    x = call.input
    velocities = one_row(x.shape[0] * call.pixels * len(x.space), call.grid_dtype)
    product = [(plan.input(1), velocities), (plan.input(2), grad)]
    return add_anchors(plan, [product], _terms(call), power=max(x.space).bit_length())


def _add_launch(
    plan: Plan,
    call: Sampling,
    output: Image,
    slots: tuple[Slot, ...],
    *,
    planar: bool,
    added: bool,
) -> None:
    """Append the kernel; `added`: it adds to the gradient by the input."""
    target = plan.target
    x, n = call.input, len(call.input.space)
    tile = HOST_TILE if planar else 1
    tiles = ceil_div(call.pixels, tile)
    items = x.shape[0] * tiles
    lanes, vector = (1, 1) if planar else choose_vector(x.shape[1], x.dtype, items, target)
    wide = is_wide((x.extent, output.extent), items * max(lanes, n) * tile)
    constants = type_constants(x.dtype, call.grid_dtype, wide)
    constants |= {"NDIM": n, "MODE": MODE_CONSTANTS[call.mode], "PADDING": call.padding_mode.upper()}
    constants |= {"TILE": tile, "LANES": lanes, "VEC": vector, "GROUP": even_group(x.shape[1]) if planar else 1}
    constants |= {"WINDOW": 0, "SLABS": 0, "NEAR": 0}
    if added and target.reproducible:
        constants["ROUNDED"] = rounded_parts(x.dtype, target, _terms(call))
    kernel = KERNELS["grid_sample_planar_double_backward" if planar else "grid_sample_double_backward"]
    values = sample_values(call, output, x, block=x.shape[1])
    work = prod(x.shape[:2]) * call.pixels * call.taps
    plan.launch(kernel, constants, slots, items, values, work=work, grain=tiles if added else 1)
