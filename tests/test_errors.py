"""Wrong arguments: the type of each error, and that its text names the function, the argument and the numbers.

Every text has the form ``FUNCTION: ARGUMENT must ..., got ...``; the wording between is the library's own business.
"""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import cudakit

from .conftest import Arrays, require


def f32(*shape: int) -> Any:
    """Return a float32 array of `shape`; any other dtype by ``astype``."""
    return np.zeros(shape, np.float32)


X, GRID, OUT = f32(2, 3, 8, 9), f32(2, 5, 6, 2), f32(2, 3, 5, 6)
THETA, SIZE = f32(2, 2, 3), (2, 4, 5, 6)

Case = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def sample(*arguments: Any, **attributes: Any) -> Case:
    """Return a case of `grid_sample`, with good arguments in place of the ones not given."""
    return cudakit.grid_sample, (*arguments, *(X, GRID)[len(arguments) :]), attributes


def backward(*arguments: Any, **attributes: Any) -> Case:
    """Return a case of `grid_sample_backward`, likewise."""
    return cudakit.grid_sample_backward, (*arguments, *(OUT, X, GRID)[len(arguments) :]), attributes


def affine(*arguments: Any) -> Case:
    """Return a case of `affine_grid`, likewise."""
    return cudakit.affine_grid, (*arguments, *(THETA, SIZE)[len(arguments) :]), {}


def affine_backward(*arguments: Any) -> Case:
    """Return a case of `affine_grid_backward`, likewise."""
    return cudakit.affine_grid_backward, (*arguments, *(GRID, SIZE)[len(arguments) :]), {}


def check(case: Case, error: type[Exception], argument: str, got: str) -> None:
    """Call, and look at type and text of what is raised."""
    function, arguments, attributes = case
    name, _, rule = argument.partition(" ")
    with pytest.raises(error, match=rf"^{function.__name__}: {name} must {rule}.*, got .*{got}") as raised:
        function(*arguments, **attributes)
    assert type(raised.value) is error


# (call, argument that is wrong and what its rule must mention, what was got); all but the call are regular expressions
SHAPES_AND_VALUES = {
    "input with too few dimensions": (sample(f32(2, 4)), "input", r"\(2, 4\)"),
    "input with too many dimensions": (sample(f32(1, 1, 2, 2, 2, 2)), "input", r"\(1, 1, 2, 2, 2, 2\)"),
    "input with an empty dimension": (sample(f32(2, 4, 0, 9)), "input", r"\(2, 4, 0, 9\)"),
    "grid of another batch": (sample(X, f32(3, 5, 6, 2)), "grid .*N=2", r"\(3, 5, 6, 2\)"),
    "grid with too few dimensions": (sample(X, f32(2, 6, 2)), "grid .*N=2", r"\(2, 6, 2\)"),
    "grid with too many dimensions": (sample(X, f32(2, 5, 6, 7, 2)), "grid .*N=2", r"\(2, 5, 6, 7, 2\)"),
    "grid with too many coordinates": (sample(X, f32(2, 5, 6, 3)), "grid .*N=2", r"\(2, 5, 6, 3\)"),
    "grid of a 3-D input": (sample(f32(1, 1, 3, 3, 3), f32(1, 2, 2, 2, 2)), "grid .*N=1", r"\(1, 2, 2, 2, 2\)"),
    "mode": (sample(mode="cubic"), "mode .*nearest.*bilinear.*bicubic", "'cubic'"),
    "padding_mode": (sample(padding_mode="wrap"), "padding_mode .*zeros.*border.*reflection", "'wrap'"),
    "data_format": (sample(data_format="NHWC"), "data_format .*channels_first.*channels_last", "'NHWC'"),
    "channels last with an empty dimension": (
        sample(f32(2, 0, 9, 4), data_format="channels_last"),
        "input",
        r"\(2, 0, 9, 4\)",
    ),
    "grad_output of another size": (backward(f32(2, 3, 5, 7)), "grad_output .*2.*3.*5.*6", r"\(2, 3, 5, 7\)"),
    "grad_output of another batch": (backward(f32(1, 3, 5, 6)), "grad_output .*2.*3.*5.*6", r"\(1, 3, 5, 6\)"),
    "grad_output with other channels": (backward(f32(2, 4, 5, 6)), "grad_output .*2.*3.*5.*6", r"\(2, 4, 5, 6\)"),
    "grad_output channels first beside channels last": (
        backward(OUT, f32(2, 8, 9, 4), data_format="channels_last"),
        "grad_output .*2.*5.*6.*4",
        r"\(2, 3, 5, 6\)",
    ),
    "grid in the gradient": (backward(OUT, X, f32(3, 5, 6, 2)), "grid .*N=2", r"\(3, 5, 6, 2\)"),
    "mode in the gradient": (backward(mode="linear"), "mode .*bilinear", "'linear'"),
    "needs": (backward(needs=("input", "theta")), "needs .*input.*grid", "theta"),
    "theta with too few dimensions": (affine(f32(2, 3)), "theta .*2", r"\(2, 3\)"),
    "theta that is no affine matrix": (affine(f32(2, 2, 2)), "theta .*2.*2.*3", r"\(2, 2, 2\)"),
    "theta of another batch": (affine(f32(3, 2, 3)), "theta .*2.*2.*3", r"\(3, 2, 3\)"),
    "theta of a 3-D size": (affine(THETA, (2, 4, 5, 6, 7)), "theta .*2.*3.*4", r"\(2, 2, 3\)"),
    "size of 1-D": (affine(THETA, (2, 4, 5)), "size", r"\(2, 4, 5\)"),
    "size of 4-D": (affine(THETA, (2, 4, 5, 6, 7, 8)), "size", r"\(2, 4, 5, 6, 7, 8\)"),
    "size of zero": (affine(THETA, (2, 4, 0, 6)), "size", r"\(2, 4, 0, 6\)"),
    "negative size": (affine(THETA, (2, 4, 5, -6)), "size", r"\(2, 4, 5, -6\)"),
    "grad_grid of another size": (affine_backward(f32(2, 5, 7, 2)), "grad_grid .*2.*5.*6.*2", r"\(2, 5, 7, 2\)"),
    "grad_grid with other coordinates": (affine_backward(f32(2, 5, 6, 3)), "grad_grid .*2.*5.*6.*2", r"\(2, 5, 6, 3\)"),
    "size of more digits than Python prints": (affine(THETA, (2, 4, 10**5000, 6)), "size", "tuple of too many digits"),
    "size of zero in the gradient": (affine_backward(GRID, (2, 4, 5, 0)), "size", r"\(2, 4, 5, 0\)"),
}

BFLOAT16 = ml_dtypes.bfloat16
DTYPES_AND_KINDS = {
    "integer input": (sample(X.astype(np.int32)), "input", "int32"),
    "boolean input": (sample(X.astype(bool)), "input", "bool"),
    "complex input": (sample(X.astype(np.complex64)), "input", "complex64"),
    "integer grid": (sample(X, GRID.astype(np.int64)), "grid", "int64"),
    "float64 grid beside float32": (sample(X, GRID.astype(np.float64)), "grid .*float32", "float64"),
    "float32 grid beside float64": (sample(X.astype(np.float64)), "grid .*float64", "float32"),
    "float16 grid beside float32": (sample(X, GRID.astype(np.float16)), "grid .*float32", "float16"),
    "float64 grid beside float16": (sample(X.astype(np.float16), GRID.astype(np.float64)), "grid .*float16", "float64"),
    "float16 grid beside bfloat16": (sample(X.astype(BFLOAT16), GRID.astype(np.float16)), "grid .*bfloat16", "float16"),
    "grad_output of another dtype": (backward(OUT.astype(np.float64)), "(grad_output|input)", "float(32|64)"),
    "float32 grad_output beside float16": (backward(OUT, X.astype(np.float16)), "(grad_output|input)", "float(32|16)"),
    "integer theta": (affine(THETA.astype(np.int32)), "theta", "int32"),
    "integer grad_grid": (affine_backward(GRID.astype(np.int32)), "grad_grid", "int32"),
    "None as input": (sample(None), "input", "None"),
    "list as input": (sample([[[1.0, 2.0]]]), "input", "list"),
    "string as input": (sample("image"), "input", "str"),
    "number as grid": (sample(X, 0.5), "grid", "float"),
    "None as grid": (sample(X, None), "grid", "None"),
    "None as grad_output": (backward(None), "grad_output", "None"),
    "input with a mask": (sample(np.ma.array(X, mask=X == 0)), "input .*without a mask", "numpy.MaskedArray"),
    "list as theta": (affine([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), "theta", "list"),
    "string as align_corners": (sample(align_corners="yes"), "align_corners", "'yes'"),
    "None as align_corners": (sample(align_corners=None), "align_corners", "None"),
    "array as align_corners": (sample(X, GRID, "bilinear", "zeros", X), "align_corners", ""),
    "None as align_corners of affine_grid": (affine(THETA, SIZE, None), "align_corners", "None"),
}


@pytest.mark.parametrize(("case", "argument", "got"), SHAPES_AND_VALUES.values(), ids=SHAPES_AND_VALUES)
def test_shapes_and_values(case: Case, argument: str, got: str) -> None:
    check(case, ValueError, argument, got)


@pytest.mark.parametrize(("case", "argument", "got"), DTYPES_AND_KINDS.values(), ids=DTYPES_AND_KINDS)
def test_dtypes_and_kinds(case: Case, argument: str, got: str) -> None:
    check(case, TypeError, argument, got)


def test_two_frameworks(arrays: Arrays) -> None:
    torch = require("torch")
    x = torch.zeros(2, 3, 8, 9, device=arrays.device)
    check(sample(x, arrays.make(GRID)), TypeError, "grid", "")


def test_arrays_on_cpu_and_cuda() -> None:
    cupy = require("cupy")
    check(sample(X, cupy.asarray(GRID)), TypeError, "grid", "")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BFLOAT16])
def test_the_good_arguments_are_good(dtype: Any) -> None:
    # Otherwise the tables could pass for another reason than the one they name.
    for function, arguments, attributes in (sample(), backward(), affine(), affine_backward()):
        made = [a.astype(dtype) if isinstance(a, np.ndarray) else a for a in arguments]
        function(*made, **attributes)


def test_none_is_refused_whatever_was_called_before() -> None:
    x, offset = np.ones((1, 2, 4, 4), np.float32), np.zeros((1, 18, 4, 4), np.float32)
    cudakit.deform_im2col(x, offset, 3, padding=1)  # its third array may be None
    with pytest.raises(TypeError, match="grid_sample_backward: grid must be an array that speaks DLPack, got NoneType"):
        cudakit.grid_sample_backward(x, x, None)


def test_a_type_without_a_module_is_refused() -> None:
    x = np.ones((1, 1, 2, 2), np.float32)
    with pytest.raises(TypeError, match="grid_sample: input must be an array that speaks DLPack, got c_float_Array_2"):
        cudakit.grid_sample(np.ctypeslib.as_ctypes(x), x)


def test_options_that_change_are_read_anew() -> None:
    x, offset = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2), np.zeros((1, 2, 2, 3), np.float32)
    padding = np.array([0, 1])
    cudakit.deform_im2col(x, np.zeros((1, 2, 2, 4), np.float32), 1, padding=padding)
    padding[1] = 0
    with pytest.raises(ValueError, match="offset must have shape"):
        cudakit.deform_im2col(x, offset, 1, padding=padding)


class Number:
    """An integer that changes."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


def test_an_integer_that_changes_is_read_anew() -> None:
    x, kernel = np.ones((1, 1, 4), np.float32), Number(1)
    assert cudakit.deform_im2col(x, np.zeros((1, 2, 4), np.float32)[:, :1], kernel).shape == (1, 1, 4)
    kernel.value = 2
    assert cudakit.deform_im2col(x, np.zeros((1, 2, 3), np.float32), kernel).shape == (1, 2, 3)


@pytest.mark.parametrize("size", [b"\x03", {3}, bytearray(b"\x03"), {3: 1}, memoryview(np.ones((2, 2)))])
def test_what_is_no_tuple_of_integers(size: Any) -> None:
    with pytest.raises(TypeError, match="deform_im2col: kernel_size must be a positive int or a tuple of them, got"):
        cudakit.deform_im2col(np.ones((1, 1, 4), np.float32), np.zeros((1, 3, 2), np.float32), size)


@pytest.mark.parametrize("needs", [memoryview(np.ones((2, 2))), iter(["grid"]), "grid", None])
def test_what_is_no_collection_of_names(needs: Any) -> None:
    x, grid = np.ones((1, 1, 4, 4), np.float32), np.zeros((1, 4, 4, 2), np.float32)
    with pytest.raises(TypeError, match="grid_sample_backward: needs must be a collection of names from"):
        cudakit.grid_sample_backward(x, x, grid, needs=needs)


def test_elements_of_no_bytes() -> None:
    with pytest.raises(TypeError, match="grid_sample: input must have a dtype among"):
        cudakit.grid_sample(np.zeros((2, 3, 4, 5), "V0"), np.zeros((2, 3, 3, 2), np.float32))


def test_threads_out_of_range() -> None:
    with pytest.raises(ValueError, match="set_num_threads: threads must be at least 1 and at most 1024, got 4096"):
        cudakit.set_num_threads(4096)
    with pytest.raises(TypeError, match="set_num_threads: threads must be an int, got array"):
        cudakit.set_num_threads(np.array([1, 2]))


def test_an_array_in_the_place_of_an_option_is_not_shown_whole() -> None:
    x, offset, mask = (np.ones((1, channels, 40, 40), np.float32) for channels in (2, 18, 9))
    with pytest.raises(TypeError, match=r"deform_im2col: stride must be .*, got array\(.*\.\.\.") as caught:
        cudakit.deform_im2col(x, offset, 3, mask)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)
