"""The sums of `affine_grid`'s gradient over many pixels."""

import numpy as np
import pytest

import cudakit

from .conftest import Arrays

ULP = float(np.finfo(np.float32).eps)


@pytest.mark.parametrize("sizes", [(200_001, 4), (50_001, 1, 2)], ids=["2-D", "3-D"])
def test_sums_over_many_rows_are_as_exact_as_the_result(
    arrays: Arrays, rng: np.random.Generator, sizes: tuple[int, ...]
) -> None:
    """Of numbers of one sign, which float32 sums would lose digits of."""
    values = rng.uniform(0.1, 0.2, size=(1, *sizes, len(sizes))).astype(np.float32)
    grad_theta = arrays.back(cudakit.affine_grid_backward(arrays.make(values), (1, 1, *sizes)))
    pixels = tuple(range(1, len(sizes) + 1))
    expected = values.sum(axis=pixels, dtype=np.float64)
    np.testing.assert_allclose(grad_theta[:, :, -1], expected, rtol=ULP)
