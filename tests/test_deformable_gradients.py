"""What holds for the gradients of the deformable operators besides their values, which `test_deformable` compares."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit.deformable.column_ops import COLUMN_NAMES, DEFORM_COL2IM_BACKWARD
from cudakit.frameworks import framework_of

from .conftest import LAYOUTS, NEAR_BOUNDARIES, Arrays, require
from .deformable_problems import (
    COORDINATES,
    GEOMETRIES,
    OPERATORS,
    Geometry,
    Problem,
    call,
    channels_last,
    check,
    draw,
)
from .test_deformable import check_channels_last
from .tolerances import TOLERANCES, assert_close

ANY_GEOMETRY = pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
BACKWARD = pytest.mark.parametrize("operator", ["deform_im2col_backward", "deform_conv_backward"])
NAMES = {
    "deform_im2col_backward": ("input", "offset", "mask"),
    "deform_conv_backward": ("input", "offset", "weight", "bias", "mask"),
}
EVERY_NEED = [
    (operator, needs)
    for operator, names in NAMES.items()
    for count in range(len(names) + 1)
    for needs in itertools.combinations(names, count)
]


@pytest.mark.parametrize(("operator", "needs"), EVERY_NEED)
@pytest.mark.parametrize("name", ["2-D", "2-D of all sorts"])
def test_only_what_is_needed_is_computed(
    arrays: Arrays, rng: np.random.Generator, name: str, operator: str, needs: tuple[str, ...]
) -> None:
    made = draw(rng, GEOMETRIES[name]).on(arrays)
    every, some = call(operator, made), call(operator, made, needs=needs)
    assert tuple(some) == NAMES[operator]
    for key, gradient in some.items():
        assert (gradient is None) == (key not in needs)
        # What the weights' gradient is made of is sampled along with slopes, or alone: the same but for rounding. On a
        # GPU there are atomic additions, in no fixed order.
        alone = key == "weight" and not {"offset", "mask"} & set(needs)
        if gradient is not None and arrays.device == "cpu" and not alone:
            assert (arrays.back(gradient) == arrays.back(every[key])).all()
        elif gradient is not None:
            assert_close(arrays.back(gradient), arrays.back(every[key]), "float32")


@BACKWARD
def test_needs_may_be_any_collection_in_any_order(arrays: Arrays, rng: np.random.Generator, operator: str) -> None:
    made = draw(rng, GEOMETRIES["2-D"]).on(arrays)
    for needs in (["mask", "input"], {"mask", "input"}, ("mask", "input", "mask")):
        gradients = call(operator, made, needs=needs)
        assert {name for name, gradient in gradients.items() if gradient is not None} == {"input", "mask"}


@BACKWARD
@pytest.mark.parametrize("needs", [("mask",), ("bias", "mask"), ("offset", "bias", "mask")])
def test_what_was_not_given_has_no_gradient(
    arrays: Arrays, rng: np.random.Generator, operator: str, needs: tuple[str, ...]
) -> None:
    needs = tuple(name for name in needs if name in NAMES[operator])
    made = draw(rng, GEOMETRIES["2-D plain"]).on(arrays)
    gradients = call(operator, made, needs=needs)
    assert {name for name, gradient in gradients.items() if gradient is not None} == set(needs) - {"bias", "mask"}


# A gradient of the output as frameworks make them: of a sum, of a flipped or a strided picture.
CHANGES = {
    "of one number": lambda xp, x: xp.broadcast_to(x[:1, :1, :1, :1], x.shape),
    "of one channel": lambda xp, x: xp.broadcast_to(x[:, :1], x.shape),
    "of one pixel": lambda xp, x: xp.broadcast_to(x[:, :, :1, :1], x.shape),
    "of one image": lambda xp, x: xp.broadcast_to(x[:1], x.shape),
    "with images backwards": lambda xp, x: x[::-1].copy()[::-1],
    "with channels backwards": lambda xp, x: x[:, ::-1].copy()[:, ::-1],
    "with pixels backwards": lambda xp, x: x[:, :, ::-1, ::-1].copy()[:, :, ::-1, ::-1],
    "with everything backwards": lambda xp, x: x[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1],
    "with channels last, and pixels backwards": lambda xp, x: xp.moveaxis(
        xp.moveaxis(x, 1, -1)[:, ::-1, ::-1].copy(order="C")[:, ::-1, ::-1], -1, 1
    ),
    "with channels apart": lambda xp, x: xp.repeat(x, 2, axis=1)[:, ::2],
    "with gaps": LAYOUTS["sliced"],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    "geometry",
    [
        *(Geometry((3, 4), (2, 2), groups=groups, out_channels=count) for groups, count in ((1, 3), (2, 2), (2, 6))),
        *(Geometry((3, 3), (3, 3), groups=groups, out_channels=count) for groups, count in ((1, 1), (1, 3), (2, 2))),
        *(Geometry((4, 2), (2, 2), batch=1, out_channels=count) for count in (1, 3)),
        *(Geometry((3, 3), (3, 3), batch=1, out_channels=count) for count in (1, 3)),
    ],
    ids=lambda g: f"{g.batch}x{g.out_channels}x{g.out}, {g.groups} groups",
)
def test_an_outputs_gradient_with_any_strides(
    arrays: Arrays, rng: np.random.Generator, geometry: Geometry, change: Callable[[Any, Any], Any]
) -> None:
    made = draw(rng, geometry).on(arrays)
    changed = made._replace(output=change(arrays.xp, made.output))
    check(arrays, "deform_conv_backward", changed)
    alone = call("deform_conv_backward", changed, needs=("input",))["input"]
    assert_close(arrays.back(alone), arrays.back(call("deform_conv_backward", changed)["input"]), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", NEAR_BOUNDARIES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_channels_last_near_boundaries(
    arrays: Arrays, rng: np.random.Generator, operator: str, layout: str, dtype: str
) -> None:
    problem = draw(rng, GEOMETRIES["2-D"]._replace(channels=16, out_channels=8), dtype)
    move = partial(LAYOUTS[layout], arrays.xp)
    for name in ("input", "weight", "output", "columns", *COORDINATES):
        check_channels_last(arrays, operator, problem, move, dtype, changed=(name,))


@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_images_that_are_copied_one_at_a_time(
    arrays: Arrays, rng: np.random.Generator, one_image: None, operator: str, last: bool
) -> None:
    problem = draw(rng, GEOMETRIES["2-D"]._replace(channels=16, batch=5))
    if last:
        planes = LAYOUTS["transposed"]
        check_channels_last(arrays, operator, problem, partial(planes, arrays.xp), changed=("input", "output"))
    else:
        check(arrays, operator, problem.on(arrays))


@pytest.mark.parametrize("layout", NEAR_BOUNDARIES)
def test_gradients_of_col2im_near_boundaries(arrays: Arrays, rng: np.random.Generator, layout: str) -> None:
    geometry = GEOMETRIES["2-D"]._replace(channels=16)
    made = draw(rng, geometry).map(lambda name, array: channels_last(geometry, name, array)).on(arrays)
    names = ("input", *COLUMN_NAMES)  # like the input is the gradient of what columns are added up into
    options = DEFORM_COL2IM_BACKWARD.options((geometry.kernel, *geometry.places, "channels_last", geometry.sizes))

    def gradients(problem: Problem) -> list[np.ndarray]:
        given = tuple(getattr(problem, name) for name in names)
        framework = framework_of(given[0])
        found = DEFORM_COL2IM_BACKWARD.run(framework, given, options._replace(needs=COLUMN_NAMES))
        return [arrays.back(array) for array in found]

    expected = gradients(made)
    for name in names:
        moved = made._replace(**{name: LAYOUTS[layout](arrays.xp, getattr(made, name))})
        for one, other in zip(gradients(moved), expected, strict=True):
            assert_close(one, other, "float32")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["transposed", "part of the last axis"])
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize(("batch", "count", "side"), [(3, 1, 61), (2, 9, 67), (1, 5, 1), (40, 33, 3)])
def test_the_gradient_of_a_bias(
    arrays: Arrays, rng: np.random.Generator, batch: int, count: int, side: int, last: bool, layout: str, dtype: str
) -> None:
    geometry = Geometry((side, side), (1, 1), batch=batch, channels=1, out_channels=count, masked=False)
    made = draw(rng, geometry, dtype)
    expected = made.output.sum((0, 2, 3))
    if last:
        made = made.map(lambda name, array: channels_last(geometry, name, array))
    made = made.on(arrays, dtype)
    made = made._replace(output=LAYOUTS[layout](arrays.xp, made.output))
    options = {"needs": ("bias",), "data_format": f"channels_{'last' if last else 'first'}"}
    for workspace in (None, 1, 3000):
        found = [call("deform_conv_backward", made, workspace=workspace, **options)["bias"] for _ in range(2)]
        assert_close(arrays.back(found[0]), expected, dtype)
        np.testing.assert_array_equal(*map(arrays.back, found))  # sums come in a fixed order


@pytest.mark.parametrize("threads", [1, 2, 7])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((31, 37), (3, 3), padding=1, batch=1, channels=3),
        Geometry((31, 37), (3, 3), padding=1, batch=3, channels=32, offset_groups=2),
        Geometry((1, 1), (1, 1), batch=1),
    ],
    ids=str,
)
def test_any_number_of_threads(
    arrays: Arrays, rng: np.random.Generator, geometry: Geometry, operator: str, threads: int
) -> None:
    before = cudakit.get_num_threads()
    try:
        cudakit.set_num_threads(threads)
        check(arrays, operator, draw(rng, geometry).on(arrays), scale=max(geometry.sizes) / 8)
    finally:
        cudakit.set_num_threads(before)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("channels", [4, 32])
def test_repeated_runs_give_the_same_bits(
    arrays: Arrays, rng: np.random.Generator, channels: int, operator: str
) -> None:
    if arrays.device == "cuda":
        pytest.skip("a GPU's atomic additions come in no fixed order")
    made = draw(rng, Geometry((23, 29), (3, 3), padding=1, channels=channels)).on(arrays)
    first = call(operator, made)
    for _ in range(3):
        for name, again in call(operator, made).items():
            np.testing.assert_array_equal(first[name], again)


@ANY_GEOMETRY
def test_col2im_is_the_adjoint_of_im2col(arrays: Arrays, rng: np.random.Generator, geometry: Geometry) -> None:
    made = draw(rng, geometry, "float64").on(arrays, "float64")
    columns = arrays.back(call("deform_im2col", made)["columns"])
    image = arrays.back(call("deform_col2im", made)["input"])
    forth, back = np.sum(columns * arrays.back(made.columns)), np.sum(image * arrays.back(made.input))
    assert forth == pytest.approx(back, rel=1e-10)


@ANY_GEOMETRY
def test_the_convolution_is_bilinear_in_input_and_weight(
    arrays: Arrays, rng: np.random.Generator, geometry: Geometry
) -> None:
    # <output, g> = <input, grad_input> = <weight, grad_weight> = <mask, grad_mask>, without a bias
    made = draw(rng, geometry._replace(biased=False), "float64").on(arrays, "float64")
    output, gradients = call("deform_conv", made)["output"], call("deform_conv_backward", made)
    expected = np.sum(arrays.back(output) * arrays.back(made.output))
    for name in ("input", "weight", "mask"):
        if gradients[name] is not None:
            product = np.sum(arrays.back(gradients[name]) * arrays.back(getattr(made, name)))
            assert product == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("channels", "side"), [(4, 64), (4096, 1)])
def test_half_sums_are_kept_in_float32(arrays: Arrays, channels: int, side: int, operator: str, dtype: str) -> None:
    # 4096 additions of 1, over pixels or over channels: a sum kept in the half type would stop at 2048 or at 256.
    geometry = Geometry((side, side), (1, 1), batch=1, channels=channels)
    towards_one_pixel = side // 2 - np.indices((side, side))[None]
    problem = Problem(
        geometry,
        np.ones((1, channels, side, side)),
        towards_one_pixel,
        np.ones((4, channels, 1, 1)),
        np.ones(4),
        np.ones((1, 1, side, side)),
        np.ones((1, 4, side, side)),
        np.ones((1, channels, side * side)),
    )
    check(arrays, operator, problem.on(arrays, dtype), dtype)


@pytest.mark.usefixtures("torch_device")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["2-D", "2-D plain", "2-D of all sorts", "2-D of one channel a group"])
def test_values_and_gradients_are_torchvisions(rng: np.random.Generator, name: str, dtype: str) -> None:
    torch, torchvision = require("torch"), require("torchvision")
    problem = draw(rng, GEOMETRIES[name], dtype)
    names = [key for key in NAMES["deform_conv_backward"] if getattr(problem, key) is not None]

    def results(function: Any) -> list[Any]:
        tensors = problem.map(lambda _, array: torch.tensor(array, dtype=getattr(torch, dtype), requires_grad=True))
        output = function(*tensors.arguments("deform_conv"))
        wanted = [getattr(tensors, key) for key in names]
        return [output, *torch.autograd.grad(output, wanted, tensors.output.detach())]

    rtol, atol = TOLERANCES[dtype]
    for own, theirs in zip(results(cudakit.deform_conv2d), results(torchvision.ops.deform_conv2d), strict=True):
        torch.testing.assert_close(own, theirs, rtol=rtol, atol=atol * max(1.0, theirs.abs().max().item()))


def test_a_bias_of_many_pixels(arrays: Arrays) -> None:
    """A million terms of one sign, of whose sum float32 additions one after the other keep two digits."""
    shapes = {"input": (1, 1, 1024, 1024), "offset": (1, 2, 1024, 1024), "weight": (1, 1, 1, 1), "bias": (1,)}
    given = {name: arrays.make(np.zeros(shape), "float32") for name, shape in shapes.items()}
    grad = np.full(shapes["input"], 0.1, np.float32)
    found = cudakit.deform_conv2d_backward(arrays.make(grad, "float32"), **given, needs=("bias",))
    np.testing.assert_allclose(arrays.back(found.bias), [grad.sum(dtype=np.float64)], rtol=1e-7)
