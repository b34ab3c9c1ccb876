"""What is launched on a GPU, as its plans say it: there need be none; and how much memory calls take, on a CPU, too."""

import re
from typing import Any

import pytest

import cudakit
from cudakit import layout, rounding, staging
from cudakit.deformable import conv_ops
from cudakit.deformable.column_checks import DeformOptions
from cudakit.deformable.conv_cuda_depthwise import FEWEST_PIXELS
from cudakit.errors import InvalidArgument
from cudakit.launch import Launch
from cudakit.op import OPS
from cudakit.plan import NULL, Plan, Target
from cudakit.sampling.grid import GridSampleOptions

from .specialisations import (
    CALLS,
    CONVOLUTION,
    CUDA,
    HOST,
    PLAIN,
    REPRODUCIBLE,
    convolution_options,
    deformable_arrays,
    spec,
)


def launches(plan: Plan, name: str) -> list[Launch]:
    """Return the launches of a kernel."""
    steps = [step.launch for step in plan.steps if isinstance(step.launch, Launch)]
    return [launch for launch in steps if launch.kernel._kernel.name == name]


def convolution(
    operator: str,
    channels: int,
    data_format: str,
    dtype: str,
    *,
    weight: str = "weight",
    target: Target = CUDA,
    **options: Any,
) -> Plan:
    """Plan a convolution of images of 40x41 pixels; `weight` names its weights among the arrays."""
    arrays = deformable_arrays(dtype, dtype, (40, 41), (channels, data_format), 1)
    arrays["weight"] = arrays[weight]
    names = (*(("output",) if "backward" in operator else ()), *CONVOLUTION)
    given = convolution_options((40, 41), data_format)._replace(**options)
    return OPS[operator].prepare(tuple(arrays[name] for name in names), given, target)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("channels", [6, 16])
@pytest.mark.parametrize("needs", [conv_ops.NAMES, ("bias",), ("input", "weight"), ("bias", "offset")], ids="+".join)
@pytest.mark.parametrize("operator", ["deform_conv2d", "deform_conv2d_backward"])
@pytest.mark.parametrize("weight", ["weight", "depthwise"])
@pytest.mark.parametrize(
    "target",
    [CUDA, REPRODUCIBLE, *(HOST._replace(threads=threads) for threads in (1, 2, 16))],
    ids=["GPU", "reproducible", "1 thread", "2 threads", "16 threads"],
)
def test_no_plan_takes_more_than_the_workspace(
    target: Target, weight: str, operator: str, needs: tuple[str, ...], channels: int, data_format: str, dtype: str
) -> None:
    def plan(workspace: int) -> Plan:
        options = {"needs": needs, "workspace": workspace}
        return convolution(operator, channels, data_format, dtype, weight=weight, target=target, **options)

    least = 1
    if needs != ("bias",) or operator == "deform_conv2d":
        with pytest.raises(InvalidArgument, match="workspace") as refused:
            plan(1)
        least = int(re.findall(r"at least (\d+) bytes", str(refused.value))[0])
    for workspace in (least, least + 1, 2 * least + 77, 9 * least, 10**6, 10**8):
        assert plan(workspace).temporary <= workspace


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("channels", [4, 64])
def test_the_sum_of_a_bias_is_shared_out(channels: int, data_format: str) -> None:
    plan = convolution("deform_conv2d_backward", channels, data_format, "float32", needs=("bias",))
    (first,), (second,) = launches(plan, "sum_partial"), launches(plan, "sum_total")
    threads = first.items * int(first.kernel._constants["LANES"])
    numbers = 2 * channels * 40 * 41
    assert numbers / (2 * layout.CUDA_SUM_TERMS) <= threads <= numbers / layout.CUDA_SUM_TERMS * 2
    assert second.items == channels


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize(("kernel", "pixels"), [("deform_depthwise", 1), ("deform_depthwise_weights", FEWEST_PIXELS)])
def test_a_group_for_every_channel_takes_many_threads_and_no_columns(
    kernel: str, pixels: int, data_format: str
) -> None:
    operator = "deform_conv2d_backward" if "weights" in kernel else "deform_conv2d"
    plan = convolution(operator, 256, data_format, "float16", weight="depthwise")
    (launch,) = launches(plan, kernel)
    assert int(launch.kernel._constants["VEC"]) == 8
    threads = launch.items * int(launch.kernel._constants["LANES"])
    assert threads == 2 * 40 * 41 // pixels * 256 // 8
    assert not launches(plan, "deform_im2col")


@pytest.mark.parametrize(("side", "batch", "blocks"), [(16, 1, 64), (128, 1, 16), (128, 8, 2), (1024, 1, 1)])
@pytest.mark.parametrize("backward", [False, True])
def test_few_pixels_of_many_channels_are_shared_out(backward: bool, side: int, batch: int, blocks: int) -> None:
    x, grid = spec("float32", batch, 256, side, side), spec("float32", batch, side, side, 2)
    options = GridSampleOptions("bilinear", "zeros", False, "channels_first")
    if backward:
        plan = OPS["grid_sample_backward"].prepare((x, x, grid), options._replace(needs=("input",)), CUDA)
    else:
        plan = OPS["grid_sample"].prepare((x, grid), options, CUDA)
    (launch,) = launches(plan, f"grid_sample_planar{'_backward' * backward}")
    assert launch.items == batch * side * side * blocks


@pytest.mark.parametrize(
    ("dtype", "width", "pack"),
    [("float16", 8, 8), ("float16", 4, 4), ("float16", 6, 2), ("float32", 4, 4), ("float32", 3, 1)],
)
def test_the_channels_of_small_offset_groups_are_taken_in_one_pack(dtype: str, width: int, pack: int) -> None:
    groups, n = 16, 2
    channels = groups * width
    x, offset = spec(dtype, n, channels, 64, 64), spec(dtype, n, groups * 18, 64, 64)
    mask, weight = spec(dtype, n, groups * 9, 64, 64), spec(dtype, channels, channels, 3, 3)
    options = convolution_options((64, 64), "channels_first")
    options = options._replace(moves=options.moves._replace(padding=(1,)))
    plan = OPS["deform_conv2d"].prepare((x, offset, weight, None, mask), options, CUDA)
    sizes = [launch.kernel._constants for launch in launches(plan, "deform_im2col")]
    assert {(one["VEC"], one["LANES"]) for one in sizes} == {(pack, 2 if width == 6 else 1)}


@pytest.mark.parametrize("operator", ["deform_im2col", "deform_col2im"])
def test_few_pixels_have_their_channels_shared_out(operator: str) -> None:
    x, columns, offset = (
        spec("float32", 1, 256, 28, 28),
        spec("float32", 1, 256 * 9, 784),
        spec("float32", 1, 18, 28, 28),
    )
    moves = PLAIN._replace(padding=(1,))
    options = DeformOptions((3, 3), moves, "channels_first", (28, 28))
    plan = OPS[operator].prepare((x if operator == "deform_im2col" else columns, offset, None), options, CUDA)
    (launch,) = launches(plan, operator)
    assert launch.items > layout.CUDA_THREADS // 2
    assert int(launch.kernel._constants["LANES"]) == 1


def test_a_batch_is_copied_whatever_the_number_of_cpu_threads() -> None:
    x = layout.packed((100, 64, 64, 64), "float32", channels_last=False)
    targets = [Target(("cuda", 0), threads) for threads in (1, 7)]
    rounds = [
        staging.Staged(Plan(one, 1), x, None, staging.images_at_a_time(x, one)).rounds(NULL, 100) for one in targets
    ]
    found = [list(one) for one in rounds]
    assert found[0] == found[1]
    assert [count for _, count in found[0]] == [64, 36]


@pytest.mark.parametrize("needs", [("input",), ("grid",), ("input", "grid")], ids="+".join)
@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("channels", [2, 64])
def test_gradients_of_samples_vary_where_the_input_s_is_among_them(
    channels: int, mode: str, needs: tuple[str, ...]
) -> None:
    x, grid = spec("float32", 2, channels, 8, 8), spec("float32", 2, 8, 8, 2)
    options = GridSampleOptions(mode, "zeros", False, "channels_first", needs)
    assert OPS["grid_sample_backward"].prepare((x, x, grid), options, CUDA).varies == ("input" in needs)
    specs = None, grid, x, x, grid
    assert OPS["grid_sample_double_backward"].prepare(specs, options, CUDA).varies == ("input" in needs)
    assert not OPS["grid_sample"].prepare((x, grid), options, CUDA).varies
    assert not OPS["grid_sample_backward"].prepare((x, x, grid), options, REPRODUCIBLE).varies
    assert not OPS["grid_sample_double_backward"].prepare(specs, options, REPRODUCIBLE).varies


# 52 bits less those of the terms, as often as it takes for 30 digits, or 60.
@pytest.mark.parametrize(
    ("terms", "parts"),
    [(1, (1, 2)), (1 << 21, (1, 2)), ((1 << 21) + 1, (2, 3)), (1 << 36, (2, 4)), (1 << 44, (4, 8)), (1 << 60, (8, 8))],
)
def test_many_terms_take_more_parts(terms: int, parts: tuple[int, int]) -> None:
    found = tuple(rounding.rounded_parts(dtype, REPRODUCIBLE, terms) for dtype in ("float16", "float64"))
    assert found == parts
    assert rounding.rounded_parts("float32", CUDA, terms) == 0


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("weight", ["weight", "depthwise"])
def test_gradients_of_a_convolution_vary_where_the_input_s_is_among_them(weight: str, data_format: str) -> None:
    def varies(operator: str, *needs: str, target: Target = CUDA) -> bool:
        return convolution(operator, 16, data_format, "float16", weight=weight, target=target, needs=needs).varies

    assert not varies("deform_conv2d")
    assert not varies("deform_conv2d_backward", "offset", "weight", "bias", "mask")
    for needs in (("input",), conv_ops.NAMES):
        assert varies("deform_conv2d_backward", *needs)
        assert not varies("deform_conv2d_backward", *needs, target=REPRODUCIBLE)


@pytest.mark.parametrize("mode", [1, None, "yes"])
def test_a_mode_is_a_bool(mode: Any) -> None:
    with pytest.raises(TypeError, match=r"^use_deterministic_algorithms: mode must be a bool, got"):
        cudakit.use_deterministic_algorithms(mode)


SEVERAL = [name for name, op in OPS.items() if len(op.gradients_by) > 1]


@pytest.mark.parametrize("target", [CUDA, HOST], ids=["cuda", "cpu"])
@pytest.mark.parametrize("name", SEVERAL)
def test_nothing_is_launched_where_nothing_is_needed(name: str, target: Target) -> None:
    op = OPS[name]
    for specs, options in CALLS[name]():
        absent = [each for each, given in zip(op.arrays, specs, strict=True) if given is None]
        for needs in [(), *((each,) for each in absent if each in op.gradients_by)]:
            plan = op.prepare(specs, options._replace(needs=needs), target)
            assert not plan.steps, (needs, options)
            assert not any(plan.results)
