"""The records of the deformable convolutions: what they check and how they are planned."""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from cudakit import checks
from cudakit.array import CPU, Spec
from cudakit.deformable.column_double_plan import input_gradient
from cudakit.deformable.conv_call import Convolution, Slots
from cudakit.deformable.conv_dispatch import plan_backward, plan_forward
from cudakit.deformable.conv_double_plan import DoubleBackward
from cudakit.deformable.geometry import Window, deformation, window
from cudakit.double_backward import check_directions, wanting
from cudakit.errors import InvalidArgument
from cudakit.layout import DATA_FORMATS, Image, add_sum, checked_image, image, ordered, packed, unreadable
from cudakit.op import Op
from cudakit.plan import NULL, Output, Plan, Slot, Target
from cudakit.product import is_operand

NAMES = ("input", "offset", "weight", "bias", "mask")
DOUBLE_NAMES = tuple(f"grad_grad_{name}" for name in NAMES)
KERNEL_NAMES = {1: "k", 2: "k_h, k_w", 3: "k_d, k_h, k_w"}


class ConvOptions(NamedTuple):
    """What a convolution takes besides arrays."""

    moves: Window
    data_format: str
    workspace: int | None
    allow_tf32: bool
    needs: tuple[str, ...] = NAMES


def _options(
    stride: Any,
    padding: Any,
    dilation: Any,
    data_format: Any,
    workspace: Any,
    allow_tf32: Any,
    needs: Any = NAMES,
) -> ConvOptions:
    moves = window(stride, padding, dilation)
    checks.choice("data_format", data_format, DATA_FORMATS)
    if workspace is not None:
        rule = "be None or a number of bytes"
        (workspace,) = checks.integers("workspace", (workspace,), rule, length=(1,), minimum=0, instead=workspace)
    checks.boolean("allow_tf32", allow_tf32)
    return ConvOptions(moves, data_format, workspace, allow_tf32, checks.names("needs", needs, NAMES))


def _groups(weight: Spec, x: Image) -> int:
    """Check the shape of the weights and return the number of the convolution's groups."""
    n, channels = len(x.space), x.shape[1]
    shape = f"(C_out, C/groups, {KERNEL_NAMES[n]})"
    if len(weight.shape) != n + 2:
        raise InvalidArgument("weight", f"have shape {shape}", weight.shape)
    if 0 in weight.shape[1:]:
        raise InvalidArgument("weight", f"have shape {shape} with nothing but C_out being 0", weight.shape)
    if channels % weight.shape[1] or channels == 0:
        raise InvalidArgument("weight", f"have shape {shape} with a C/groups that divides C={channels}", weight.shape)
    groups = channels // weight.shape[1]
    if weight.shape[0] % groups:
        rule = f"have shape {shape} with C_out a multiple of groups={groups}"
        raise InvalidArgument("weight", rule, weight.shape)
    return groups


def _infer(specs: tuple[Any, ...], options: ConvOptions) -> tuple[Output]:
    input, offset, weight, *_ = specs
    last = options.data_format == "channels_last"
    out = offset.shape[1:-1] if last else offset.shape[2:]
    return (Output(ordered(input.shape[0], weight.shape[0], out, last), input.dtype),)


def _convolution(
    n: int, specs: tuple[Spec | None, ...], options: ConvOptions, grad_output: Spec | None = None
) -> tuple[Convolution, Output]:
    """Check the arrays of a call; return it and what its output is."""
    input, offset, weight, bias, mask = specs
    assert input is not None and offset is not None and weight is not None
    x = checked_image("input", input, options.data_format, (n,))
    checks.floating("weight", weight)
    checks.same_dtype("weight", weight, "input", x.dtype)
    groups = _groups(weight, x)
    d = deformation(x, offset, mask, weight.shape[2:], options.moves, options.data_format)
    count = weight.shape[0]
    if bias is not None:
        checks.same_dtype("bias", bias, "input", x.dtype)
        checks.shape("bias", bias, (f"C_out={count}",))
    output = packed((d.batch, count, *d.out), d.dtype, channels_last=d.channels_last)
    (result,) = _infer(specs, options)
    if grad_output is not None:
        checks.same_dtype("grad_output", grad_output, "input", x.dtype)
        checks.shape("grad_output", grad_output, result.shape)
        output = image(grad_output, d.channels_last)
    return Convolution(d, x, groups, count, output, options.workspace, options.allow_tf32), result


def _slots(plan: Plan, first: int, specs: tuple[Spec | None, ...]) -> Slots:
    """Return the slots of a plan's inputs from `first` on."""
    return Slots(*(plan.input(first + i) if spec is not None else NULL for i, spec in enumerate(specs)))


def _prepare(n: int, specs: tuple[Any, ...], options: ConvOptions, target: Target) -> Plan:
    conv, output = _convolution(n, specs, options)
    copies = unreadable(specs, {0: conv.input})
    if copies:
        return Plan(target, 5, copies=copies)
    plan = Plan(target, 5, (output,))
    if 0 in output.shape:
        return plan
    slots = _slots(plan, 0, specs)
    plan_forward(plan, conv, slots, plan.result(0))
    return plan


def _results(specs: tuple[Spec | None, ...], needs: tuple[str, ...], zero: bool) -> tuple[Output | None, ...]:
    """Return the gradients to allocate."""
    wanted = (spec if name in needs else None for name, spec in zip(NAMES, specs, strict=True))
    return tuple(None if spec is None else Output(spec.shape, spec.dtype, zero) for spec in wanted)


def _prepare_backward(n: int, specs: tuple[Any, ...], options: ConvOptions, target: Target) -> Plan:
    grad_output, *rest = specs
    arrays = tuple(rest)
    conv, output = _convolution(n, arrays, options, grad_output)
    read = (None, *specs[1:4], None, specs[5])  # not the bias; the output's gradient is a case of its own
    copies = (*(() if _readable(conv, target) else (0,)), *unreadable(read, {1: conv.input}))
    if copies:
        return Plan(target, 6, copies=copies)
    plan = Plan(target, 6, _results(arrays, options.needs, 0 in output.shape))
    results = Slots(*map(plan.result, range(5)))
    if 0 in output.shape:
        return plan
    if results.bias != NULL:
        _add_bias_gradient(plan, conv, results.bias)
        plan.free()
    if any(slot != NULL for slot in results._replace(bias=NULL)):
        slots = _slots(plan, 1, arrays)
        plan_backward(plan, conv, slots, plan.input(0), results)
    return plan


def _readable(conv: Convolution, target: Target) -> bool:
    """Whether the gradient of the output can be read as it is, on a GPU by cuBLAS."""
    if target.device == CPU or not conv.output.flat:
        return conv.output.flat
    batch, channel, pixel = conv.output.pixel_strides
    outputs = conv.out_channels // conv.groups
    apart = outputs * channel if conv.groups > 1 else batch if conv.d.batch > 1 else 0
    return is_operand((pixel, channel, apart), conv.d.pixels, outputs)


def _add_bias_gradient(plan: Plan, conv: Convolution, result: Slot) -> None:
    batch, channel, pixel = conv.output.pixel_strides
    sizes = (conv.out_channels, conv.d.batch, conv.d.pixels)
    dtype = conv.d.dtype
    strides = (channel, batch, pixel)
    add_sum(plan, (plan.input(0), dtype), (result, dtype), sizes, strides, room=conv.workspace)


def _prepare_double(n: int, specs: tuple[Any, ...], options: ConvOptions, target: Target) -> Plan:
    """Plan the gradients of the gradients."""
    directions, grad_output, arrays = specs[:5], specs[5], specs[6:]
    conv, output = _convolution(n, arrays, options, grad_output)
    check_directions(DOUBLE_NAMES, directions, arrays)
    tangent = None if directions[0] is None else image(directions[0], conv.d.channels_last)
    copies = unreadable(specs, {0: tangent, 6: conv.input})
    if copies:
        return Plan(target, 11, copies=copies)
    # The strides of dimensions of size 1 may be anything.
    contiguous = packed(conv.output.shape, conv.output.dtype, channels_last=conv.d.channels_last)
    conv = replace(conv, output=contiguous._replace(aligned=conv.output.aligned))
    empty = 0 in output.shape
    total = input_gradient(conv.d, conv.input, target)
    gradients = list(_results(arrays, options.needs, empty))
    gradients[0] = gradients[0] and total.output(arrays[0].shape, empty=empty)
    gradients[3] = gradients[3] and gradients[3]._replace(zero=True)  # no gradient depends on the bias
    first = output._replace(zero=empty) if "grad_output" in options.needs else None
    plan = Plan(target, 11, (first, *gradients))
    results = Slots(*(plan.result(1 + i) for i in range(5)))._replace(bias=NULL)
    if not empty and any(slot != NULL for slot in (plan.result(0), *results)):
        slots = _slots(plan, 6, arrays), _slots(plan, 0, directions), plan.input(5)
        DoubleBackward(plan, conv, *slots).run((conv.input, tangent), plan.result(0), results)
    return plan


def _make(n: int) -> Op:
    roles: Any = {"optional": ("bias", "mask"), "coordinates": ("offset", "mask"), "weights": ("weight", "bias")}
    arrays, saved = ("grad_output", *NAMES), tuple(range(len(NAMES)))
    both: Any = {role: (*names, *(f"grad_grad_{name}" for name in names)) for role, names in roles.items()}
    both["optional"] = ("bias", "mask", *DOUBLE_NAMES)
    double = Op(
        f"deform_conv{n}d_double_backward",
        (*DOUBLE_NAMES, *arrays),
        wanting(_options, arrays),
        partial(_prepare_double, n),
        saved=tuple(range(11)),
        **both,
    )
    backward = Op(
        f"deform_conv{n}d_backward",
        arrays,
        _options,
        partial(_prepare_backward, n),
        double,
        saved=(*saved, len(NAMES)),
        **roles,
    )
    return Op(
        f"deform_conv{n}d",
        NAMES,
        _options,
        partial(_prepare, n),
        backward,
        saved,
        nonlinear=("offset",),
        additive=("bias",),
        infer=_infer,
        **roles,
    )


DEFORM_CONV1D, DEFORM_CONV2D, DEFORM_CONV3D = map(_make, (1, 2, 3))
CONVOLUTIONS = {1: DEFORM_CONV1D, 2: DEFORM_CONV2D, 3: DEFORM_CONV3D}
