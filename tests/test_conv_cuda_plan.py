"""Convolutions on a GPU whose columns exist a few images, or a few pixels of one, at a time."""

from collections.abc import Iterator

import numpy as np
import pytest

from cudakit import launch, layout, plan, product
from cudakit.deformable import conv_cuda_blocks, conv_ops

from .conftest import Arrays, devices, forget
from .deformable_problems import Geometry, call, check, draw
from .test_deformable import check_channels_last
from .tolerances import assert_close

pytestmark = pytest.mark.skipif("cuda" not in devices(), reason="there is no GPU")

# (geometry, bytes of a block of columns)
CASES = [
    (Geometry((13, 11), (3, 3), padding=1, offset_groups=2, batch=3, channels=8, out_channels=6), 1),
    (Geometry((13, 11), (3, 3), padding=1, groups=3, batch=5, channels=12, out_channels=9), 1 << 20),
    (Geometry((13, 11), (3, 3), padding=1, offset_groups=4, groups=3, batch=5, channels=12, out_channels=9), 150_000),
    (Geometry((13, 11), (1, 1), offset_groups=3, groups=2, channels=6), 1),
    (Geometry((13, 11), (2, 2), padding=1, channels=1, out_channels=1), 1),
    (Geometry((7, 5), (3, 3), padding=1, offset_groups=2, channels=192, out_channels=8), 1 << 21),
]
EVERY_CASE = pytest.mark.parametrize(("geometry", "size"), CASES, ids=lambda x: x if isinstance(x, int) else "")


@pytest.fixture(autouse=True)
def blocks(size: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plan with blocks of that size, and as few lanes as for large problems."""
    monkeypatch.setattr(conv_cuda_blocks, "COLUMN_BYTES", size)
    monkeypatch.setattr(layout, "CUDA_THREADS", 1)
    forget()
    yield
    forget()


@EVERY_CASE
@pytest.mark.parametrize("operator", ["deform_conv", "deform_conv_backward"])
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
def test_values(
    arrays: Arrays, rng: np.random.Generator, geometry: Geometry, size: int, last: bool, operator: str
) -> None:
    problem = draw(rng, geometry)
    if last:
        check_channels_last(arrays, operator, problem, lambda array: array)
    else:
        check(arrays, operator, problem.on(arrays))


@EVERY_CASE
@pytest.mark.parametrize("needs", [conv_ops.NAMES, ("input",), ("weight",), ("offset", "weight")], ids="+".join)
def test_needs(arrays: Arrays, rng: np.random.Generator, geometry: Geometry, size: int, needs: tuple[str, ...]) -> None:
    made = draw(rng, geometry).on(arrays)
    every, some = (call("deform_conv_backward", made, needs=names) for names in (conv_ops.NAMES, needs))
    assert {name for name, gradient in some.items() if gradient is not None} == set(needs)
    for name in needs:
        assert_close(arrays.back(some[name]), arrays.back(every[name]), "float32")


@pytest.fixture
def products(arrays: Arrays, monkeypatch: pytest.MonkeyPatch) -> list[product.Product]:
    """Return the products that are multiplied during the test."""
    if arrays.device == "cpu":
        pytest.skip("a CPU multiplies tile by tile")
    found: list[product.Product] = []

    def noted(one: product.Product, device: tuple[str, int]) -> launch.Multiply:
        found.append(one)
        return launch.Multiply(one, device)

    monkeypatch.setattr(plan, "Multiply", noted)
    return found


@pytest.mark.parametrize("size", [1 << 21])
def test_images_of_one_pixel_are_one_product(
    arrays: Arrays, rng: np.random.Generator, size: int, products: list[product.Product]
) -> None:
    problem = draw(rng, Geometry((3, 3), (3, 3), batch=5, channels=4, out_channels=9)).on(arrays)
    check(arrays, "deform_conv", problem)
    assert [(one.sizes, one.batch) for one in products] == [((5, 9, 36), 1)]


@pytest.mark.parametrize("size", [1 << 21])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("last", [False, True], ids=["channels_first", "channels_last"])
@pytest.mark.parametrize("operator", ["deform_conv", "deform_conv_backward"])
def test_all_images_and_groups_are_one_product(
    arrays: Arrays,
    rng: np.random.Generator,
    size: int,
    operator: str,
    last: bool,
    groups: int,
    products: list[product.Product],
) -> None:
    problem = draw(rng, Geometry((13, 11), (3, 3), padding=1, groups=groups, batch=5, channels=12, out_channels=9))
    if last:
        check_channels_last(arrays, operator, problem, lambda array: array)
    else:
        check(arrays, operator, problem.on(arrays))
    pixels, outputs, depth = 5 * 13 * 11, 9 // groups, 12 // groups * 9
    if "backward" in operator:
        expected = [(pixels, depth, outputs), (outputs, depth, pixels)]
    elif groups == 1 and not last:
        expected = [(pixels // 5, outputs, depth)]
    else:
        expected = [(pixels, outputs, depth)]
    assert [one.sizes for one in products] == expected
    assert {one.batch for one in products} == {groups if expected[0][0] == pixels else 5}
