"""Gradients of fewer images than threads: pixels are shared out, and each share has sums of its own."""

from collections.abc import Iterator

import numpy as np
import pytest

import cudakit
from cudakit.deformable import column_gradient_plan, conv_host_backward_plan, conv_host_partition
from cudakit.deformable.conv_host import HostConvolution
from cudakit.deformable.conv_host_partition import Partition

from .conftest import Arrays, forget
from .deformable_problems import Geometry, call, check, draw
from .test_deformable import check_channels_last

IMAGE = Geometry((13, 17), (3, 3), padding=1, batch=1, channels=5, out_channels=7)
GEOMETRIES = [
    pytest.param(IMAGE, 2, id="an image"),
    pytest.param(IMAGE._replace(batch=3, channels=40, biased=False), 2, id="images"),
    pytest.param(IMAGE._replace(channels=6, groups=3, out_channels=9), 3, id="groups"),
    pytest.param(IMAGE._replace(channels=6, offset_groups=2, masked=False), 5, id="offset groups"),
    pytest.param(IMAGE._replace(channels=130), 4, id="chunks of channels, too"),
    pytest.param(Geometry((250,), (3,), padding=1, batch=1, channels=3, out_channels=4), 2, id="1-D"),
    pytest.param(Geometry((6, 7, 8), (2, 2, 2), batch=1, channels=3, out_channels=4), 2, id="3-D"),
]
DTYPES = ("float32", "float64", "float16", "bfloat16")
# An image in every dtype and format, the others in every dtype, half of them channels-last.
CASES = [
    pytest.param(*geometry.values, dtype, last, id="-".join([geometry.id, dtype, *["channels_last"][:last]]))
    for i, geometry in enumerate(GEOMETRIES)
    for last in (False, True)
    for dtype in (DTYPES if i == 0 else DTYPES[(i + last) % 2 :: 2])
]


@pytest.fixture
def shared(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Partition]]:
    """Return a list of how each plan shares out its work; put the number of threads back."""
    if arrays.device != "cpu":
        pytest.skip("a GPU's threads add to the same sums")
    before, choose = cudakit.get_num_threads(), conv_host_partition.choose_partition
    found: list[Partition] = []

    def noted(conv: HostConvolution, threads: int) -> Partition:
        found.append(choose(conv, threads))
        return found[-1]

    monkeypatch.setattr(conv_host_backward_plan, "choose_partition", noted)
    forget()
    yield found
    forget()
    cudakit.set_num_threads(before)


@pytest.mark.parametrize("operator", ["deform_conv_backward", "deform_col2im", "deform_im2col_backward"])
@pytest.mark.parametrize(("geometry", "threads", "dtype", "last"), CASES)
def test_against_the_oracle(
    arrays: Arrays,
    rng: np.random.Generator,
    shared: list[Partition],
    geometry: Geometry,
    threads: int,
    dtype: str,
    last: bool,
    operator: str,
) -> None:
    cudakit.set_num_threads(threads)
    problem = draw(rng, geometry, dtype)
    if last:
        check_channels_last(arrays, operator, problem, lambda array: array, dtype)
    else:
        check(arrays, operator, problem.on(arrays, dtype), dtype)
    assert [way.spans > 1 for way in shared] == [True] * ("conv" in operator)


@pytest.mark.parametrize("room", [1 << 10, 1 << 30])
def test_columns_of_large_images(
    arrays: Arrays, rng: np.random.Generator, shared: list[Partition], monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """Where there is no room for sums of their own, threads share out channels."""
    monkeypatch.setattr(column_gradient_plan, "MOST_SUMS_BYTES", room)
    cudakit.set_num_threads(3)
    for operator in ("deform_col2im", "deform_im2col_backward"):
        check(arrays, operator, draw(rng, IMAGE).on(arrays))


@pytest.mark.parametrize("needs", [("weight",), ("input",), ("offset",), ("input", "weight"), ("offset", "mask")])
def test_what_is_asked_for(
    arrays: Arrays, rng: np.random.Generator, shared: list[Partition], needs: tuple[str, ...]
) -> None:
    cudakit.set_num_threads(2)
    problem = draw(rng, IMAGE).on(arrays)
    whole, part = call("deform_conv_backward", problem), call("deform_conv_backward", problem, needs=needs)
    for name, values in part.items():
        assert (values is not None) == (name in needs)
        if values is not None:
            np.testing.assert_array_equal(arrays.back(values), arrays.back(whole[name]))


def test_every_run_gives_the_same_bits(arrays: Arrays, rng: np.random.Generator, shared: list[Partition]) -> None:
    cudakit.set_num_threads(3)
    problem = draw(rng, IMAGE).on(arrays)
    first, second = (call("deform_conv_backward", problem) for _ in range(2))
    for name, values in first.items():
        np.testing.assert_array_equal(arrays.back(values), arrays.back(second[name]))


def test_little_memory_means_no_sharing(
    arrays: Arrays, rng: np.random.Generator, shared: list[Partition], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, affordable = [], conv_host_backward_plan._Backward._affordable_partition

    def noted(self: conv_host_backward_plan._Backward) -> Partition:
        chosen.append(affordable(self))
        return chosen[-1]

    monkeypatch.setattr(conv_host_backward_plan._Backward, "_affordable_partition", noted)
    cudakit.set_num_threads(2)
    problem = draw(rng, IMAGE._replace(channels=32, out_channels=64))
    with pytest.raises(ValueError, match="at least") as refused:
        call("deform_conv_backward", problem.on(arrays), workspace=1)
    least = int(str(refused.value).split("at least ")[1].split()[0])
    found = call("deform_conv_backward", problem.on(arrays), workspace=least)
    whole = call("deform_conv_backward", problem.on(arrays))
    assert [way.spans for way in chosen[-2:]] == [1, 2]
    for name, values in whole.items():
        np.testing.assert_allclose(arrays.back(found[name]), arrays.back(values), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("batch", "channels", "threads", "expected"),
    [
        (1, 64, 2, (1, 1, 2)),  # chunks of channels, images at a time, spans
        (2, 64, 2, (1, 2, 1)),
        (3, 64, 2, (1, 1, 2)),  # two images for one thread would be too many
        (11, 64, 2, (1, 2, 1)),
        (1, 256, 8, (4, 1, 2)),
        (1, 16, 64, (1, 1, 9)),  # as many as there are tiles
    ],
)
def test_threads_have_the_same_to_do(
    arrays: Arrays,
    rng: np.random.Generator,
    shared: list[Partition],
    batch: int,
    channels: int,
    threads: int,
    expected: tuple[int, int, int],
) -> None:
    cudakit.set_num_threads(threads)
    geometry = IMAGE._replace(sizes=(28, 28), batch=batch, channels=channels)
    call("deform_conv_backward", draw(rng, geometry).on(arrays), needs=("input",))
    assert [(way.chunks, way.image_sets, way.spans) for way in shared] == [expected]


def test_large_images_are_not_multiplied(
    arrays: Arrays, rng: np.random.Generator, shared: list[Partition], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conv_host_partition, "MOST_SUMS_BYTES", 1 << 10)
    cudakit.set_num_threads(2)
    check(arrays, "deform_conv_backward", draw(rng, IMAGE._replace(channels=32)).on(arrays))
    assert [(way.chunks, way.spans) for way in shared] == [(2, 1)]
