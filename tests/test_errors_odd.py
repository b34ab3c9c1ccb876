"""Odd arguments: the error of the check must come, whatever they do when they are shown, and say what was read."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit import fov

X, GRID, OFFSET = (np.zeros(shape, np.float32) for shape in ((1, 1, 4, 4), (1, 4, 4, 2), (1, 2, 4, 4)))


class Silent:
    """What cannot be shown."""

    def __repr__(self) -> str:
        raise KeyError("no repr")


class Wordless:
    """What shows itself as no text."""

    def __repr__(self) -> Any:
        return 3


class Layers(list[Any]):
    """An empty sequence that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


REFUSALS: dict[str, tuple[Callable[[Any], object], type[Exception]]] = {
    "grid_sample: input": (lambda odd: cudakit.grid_sample(odd, GRID), TypeError),
    "grid_sample: mode": (lambda odd: cudakit.grid_sample(X, GRID, odd), ValueError),
    "grid_sample: align_corners": (lambda odd: cudakit.grid_sample(X, GRID, align_corners=odd), TypeError),
    "grid_sample_backward: needs": (lambda odd: cudakit.grid_sample_backward(X, X, GRID, needs=odd), TypeError),
    "affine_grid: size": (lambda odd: cudakit.affine_grid(X[0], (1, 1, 4, odd)), TypeError),
    "deform_im2col: kernel_size": (lambda odd: cudakit.deform_im2col(X, OFFSET, odd), TypeError),
    "deform_conv2d: padding": (lambda odd: cudakit.deform_conv2d(X, OFFSET, X, padding=(odd, 1)), TypeError),
    "deform_conv2d: workspace": (lambda odd: cudakit.deform_conv2d(X, OFFSET, X, workspace=odd), TypeError),
    "set_num_threads: threads": (cudakit.set_num_threads, TypeError),
    "use_deterministic_algorithms: mode": (cudakit.use_deterministic_algorithms, TypeError),
}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("odd", [Silent(), Wordless()], ids=["silent", "wordless"])
def test_what_cannot_be_shown_is_named_by_its_type(refusal: str, odd: Any) -> None:
    call, error = REFUSALS[refusal]
    with pytest.raises(error, match=f"^{refusal} must .*, got .*({type(odd).__name__}|tuple)") as raised:
        call(odd)
    assert type(raised.value) is error


def test_layers_that_cannot_be_shown_are_named_by_their_type() -> None:
    with pytest.raises(
        ValueError, match=r"^sampling_positions: layers must .*, got Layers whose repr raises RuntimeError$"
    ):
        fov.sampling_positions(Layers(), (9, 9), (0, 0))


def test_a_size_of_zero_beside_too_many_digits() -> None:
    with pytest.raises(ValueError, match=r"^affine_grid: size must be .*, got tuple of too many digits$"):
        cudakit.affine_grid(X[0], (1, 1, 0, 10**5000))


@pytest.mark.parametrize(
    ("shape", "grid", "message"),
    [
        ((3, 8, 8), (8, 8, 2), "have shape (N=3, W_out, 1) for input (N, C, W) = (3, 8, 8), got (8, 8, 2)"),
        ((2, 3, 8, 8), (2, 8, 8, 3), "have shape (N=2, H_out, W_out, 2) for input (N, C, H, W) = (2, 3, 8, 8), got"),
        ((2, 3, 8, 8), (1, 8, 8, 2), "have shape (N=2, H_out, W_out, 2), got (1, 8, 8, 2)"),
    ],
)
def test_a_grid_of_other_dimensions_is_told_how_the_input_was_read(
    shape: tuple[int, ...], grid: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(f"grid_sample: grid must {message}")):
        cudakit.grid_sample(np.ones(shape), np.ones(grid))


@pytest.mark.parametrize(("data_format", "names"), [("channels_first", "N, C, H, W"), ("channels_last", "N, H, W, C")])
def test_axes_have_names(data_format: str, names: str) -> None:
    message = f"deform_conv2d: input must have 4 dimensions ({names}), got shape (3, 8, 8)"
    with pytest.raises(ValueError, match=re.escape(message)):
        cudakit.deform_conv2d(*(np.ones((3, 8, 8)),) * 2, np.ones((4, 3, 3, 3)), data_format=data_format)


def test_a_kernel_of_other_dimensions_is_told_how_the_input_was_read() -> None:
    message = "deform_im2col: kernel_size must be an int or 1 int for input (N, C, W) = (3, 8, 8), got (3, 3)"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cudakit.deform_im2col(np.ones((3, 8, 8)), np.ones((18, 8, 8)), (3, 3))
