"""Wrong arguments of the deformable operators: the type of each error and what its text names."""

from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit.op import OPS

from .conftest import Arrays, require
from .test_errors import BFLOAT16, Case, check, f32

X, OFFSET, MASK = f32(2, 4, 8, 8), f32(2, 18, 8, 8), f32(2, 9, 8, 8)
WEIGHT, BIAS, OUT, COLUMNS = f32(6, 4, 3, 3), f32(6), f32(2, 6, 8, 8), f32(2, 36, 64)
CONVOLUTION = {"input": X, "offset": OFFSET, "weight": WEIGHT, "bias": BIAS, "padding": 1, "mask": MASK}
SAMPLING = {"input": X, "offset": OFFSET, "kernel_size": (3, 3), "padding": 1, "mask": MASK}


def conv(**changed: Any) -> Case:
    """Return a case of `deform_conv2d`, with good arguments in place of the ones not given; the others likewise."""
    return cudakit.deform_conv2d, (), CONVOLUTION | changed


def conv_backward(**changed: Any) -> Case:
    return cudakit.deform_conv2d_backward, (), {"grad_output": OUT} | CONVOLUTION | changed


def im2col(**changed: Any) -> Case:
    return cudakit.deform_im2col, (), SAMPLING | changed


def im2col_backward(**changed: Any) -> Case:
    return cudakit.deform_im2col_backward, (), {"grad_columns": COLUMNS} | SAMPLING | changed


def col2im(**changed: Any) -> Case:
    arguments = {name: value for name, value in SAMPLING.items() if name != "input"}
    return cudakit.deform_col2im, (), {"columns": COLUMNS, "input_size": (8, 8)} | arguments | changed


# (call, argument that is wrong and what its rule must mention, what was got); all but the call are regular expressions
SHAPES = {
    "input of 1-D": (conv(input=f32(2, 4, 8)), "input", r"\(2, 4, 8\)"),
    "input of 3-D": (conv(input=f32(2, 4, 8, 8, 8)), "input", r"\(2, 4, 8, 8, 8\)"),
    "input with an empty dimension": (conv(input=f32(2, 4, 0, 8)), "input", r"\(2, 4, 0, 8\)"),
    "input of im2col without space": (im2col(input=f32(2, 4)), "input", r"\(2, 4\)"),
    "input of im2col of 4-D": (im2col(input=f32(2, 4, 3, 3, 3, 3)), "input", r"\(2, 4, 3, 3, 3, 3\)"),
    "offset with a channel too few": (
        conv(offset=f32(2, 17, 8, 8)),
        r"offset have shape \(N=2, 2\*G\*K=18\*G, 8, 8\)",
        r"\(2, 17, 8, 8\)$",
    ),
    "offset of a mask's shape": (im2col(offset=MASK), r"offset have shape \(N=2, .*18\*G, 8, 8\)", r"\(2, 9, 8, 8\)"),
    "offset without channels": (conv(offset=f32(2, 0, 8, 8)), "offset .*N=2", r"\(2, 0, 8, 8\)"),
    "offset of another batch": (conv(offset=f32(3, 18, 8, 8)), "offset .*N=2", r"\(3, 18, 8, 8\)"),
    "offset of another size": (conv(offset=f32(2, 18, 8, 7)), "offset .*8, 8", r"\(2, 18, 8, 7\)"),
    "offset of the size without padding": (conv(padding=0), "offset .*6, 6", r"\(2, 18, 8, 8\)"),
    "offset with too few dimensions": (conv(offset=f32(2, 18, 8)), "offset .*8, 8", r"\(2, 18, 8\)"),
    "offset of col2im": (col2im(offset=f32(2, 18, 7, 8)), "offset .*8, 8", r"\(2, 18, 7, 8\)"),
    "offset in the gradient": (conv_backward(offset=f32(2, 17, 8, 8)), r"offset .*18\*G", r"\(2, 17, 8, 8\)"),
    "offset channels first beside channels last": (
        conv(input=f32(2, 8, 8, 4), data_format="channels_last", mask=None),
        "offset .*8, 8, .*18",
        r"\(2, 18, 8, 8\)",
    ),
    "three offset groups of four channels": (conv(offset=f32(2, 54, 8, 8), mask=None), "(offset|input) .*", ""),
    "mask with a channel too few": (conv(mask=f32(2, 8, 8, 8)), "mask .*9, 8, 8", r"\(2, 8, 8, 8\)"),
    "mask of two groups beside offsets of one": (conv(mask=f32(2, 18, 8, 8)), "mask .*9, 8, 8", r"\(2, 18, 8, 8\)"),
    "mask of another batch": (im2col(mask=f32(1, 9, 8, 8)), "mask .*2, .*9, 8, 8", r"\(1, 9, 8, 8\)"),
    "mask of another size": (im2col_backward(mask=f32(2, 9, 6, 6)), "mask .*9, 8, 8", r"\(2, 9, 6, 6\)"),
    "mask with too few dimensions": (col2im(mask=f32(2, 9, 64)), "mask .*9, 8, 8", r"\(2, 9, 64\)"),
    "weight of 1-D": (conv(weight=f32(6, 4, 3)), "weight", r"\(6, 4, 3\)"),
    "weight of channels that divide nothing": (conv(weight=f32(6, 3, 3, 3)), "weight .*", r"\(6, 3, 3, 3\)"),
    "weight of too many channels": (conv(weight=f32(6, 8, 3, 3)), "weight .*", r"\(6, 8, 3, 3\)"),
    "weight without channels": (conv(weight=f32(6, 0, 3, 3)), "weight .*", r"\(6, 0, 3, 3\)"),
    "no channels, whose groups nothing tells": (
        conv(input=f32(2, 0, 8, 8), weight=f32(6, 0, 3, 3)),
        "weight .*",
        r"\(6, 0, 3, 3\)",
    ),
    "five outputs of two groups": (conv(weight=f32(5, 2, 3, 3), bias=None), "weight .*", r"\(5, 2, 3, 3\)|5"),
    "weight with an empty kernel": (conv(weight=f32(6, 4, 0, 3)), "weight .*", r"\(6, 4, 0, 3\)"),
    "bias of another length": (conv(bias=f32(5)), "bias .*6", r"\(5,\)"),
    "bias of 2-D": (conv(bias=f32(6, 1)), "bias .*6", r"\(6, 1\)"),
    "grad_output of another size": (conv_backward(grad_output=f32(2, 6, 8, 7)), "grad_output .*2, 6, 8, 8", "8, 7"),
    "grad_output with other channels": (conv_backward(grad_output=f32(2, 4, 8, 8)), "grad_output .*2, 6, 8, 8", "4, 8"),
    "grad_output of another batch": (conv_backward(grad_output=f32(1, 6, 8, 8)), "grad_output .*2, 6, 8, 8", "1, 6"),
    "grad_columns of another size": (
        im2col_backward(grad_columns=f32(2, 36, 63)),
        "grad_columns .*36, .*64",
        "36, 63",
    ),
    "grad_columns of 4-D": (im2col_backward(grad_columns=f32(2, 36, 8, 8)), "grad_columns .*36, .*64", "36, 8, 8"),
    "columns of another length": (col2im(columns=f32(2, 36, 63)), "columns .*64", r"\(2, 36, 63\)"),
    "columns that no number of channels has": (col2im(columns=f32(2, 35, 64)), "columns .*9", r"\(2, 35, 64\)"),
    "columns of 4-D": (col2im(columns=f32(2, 36, 8, 8)), "columns .*", r"\(2, 36, 8, 8\)"),
    "columns of another batch": (col2im(columns=f32(3, 36, 64)), "(columns|offset) .*", r"[23], (36|18)"),
}
SIZE = "(input|weight|kernel_size|padding|dilation)"
VALUES = {
    **{
        f"{name} {value!r} of {case.__name__}": (case(**{name: value}), f"{name} .*", ".*")
        for case in (conv, conv_backward, im2col, col2im)
        for name, values in {
            "stride": (0, -1, (1, 0), (1, -2), (1, 1, 1)),
            "dilation": (0, -1, (0, 1), (1, 1, 1)),
            "padding": (-1, (1, -1), (1, 1, 1), (1, 1, -1, 1), (1, 1, 1, 1, 1)),
            "data_format": ("NCHW", None, ""),
        }.items()
        for value in values
    },
    **{
        f"kernel_size {value!r}": (im2col(kernel_size=value), "kernel_size .*", "")
        for value in (0, -3, (3, 0), (3, 3, 3))
    },
    **{
        f"input_size {value!r}": (col2im(input_size=value), "input_size .*", "")
        for value in ((), (8, 8, 8, 8), (8, 0), (8, -8))
    },
    "a kernel larger than the padded input": (conv(input=f32(2, 4, 8, 2), padding=0), SIZE, ""),
    "a dilated kernel larger than the input": (conv(dilation=(1, 6)), SIZE, ""),
    "a kernel of im2col larger than the input": (im2col(input=f32(2, 4, 2, 8), padding=0), SIZE, ""),
    "a kernel of col2im larger than the input": (col2im(input_size=(2, 8), padding=0), "input_size .*", "2, 8"),
    "needs": (conv_backward(needs=("input", "theta")), "needs .*input.*offset.*weight.*bias.*mask", "theta"),
    "needs of im2col": (im2col_backward(needs=("input", "weight")), "needs .*input.*offset.*mask", "weight"),
    "workspace 0": (conv(workspace=0), r"workspace be at least \d+ bytes here", "0"),
    "workspace below 0": (conv_backward(workspace=-4096), "workspace .*", "-4096"),
}

HALF = {name: array.astype(np.float16) for name, array in {**CONVOLUTION, "output": OUT}.items() if name != "padding"}
DTYPES_AND_KINDS = {
    "integer input": (conv(input=X.astype(np.int32)), "input", "int32"),
    "complex columns": (col2im(columns=COLUMNS.astype(np.complex64)), "columns", "complex64"),
    "float64 offset beside float32": (conv(offset=OFFSET.astype(np.float64)), "offset .*float32", "float64"),
    "float16 offset beside float32": (im2col(offset=OFFSET.astype(np.float16)), "offset .*float32", "float16"),
    "float32 offset beside float64": (im2col(input=X.astype(np.float64), mask=None), "offset .*float64", "float32"),
    "bfloat16 offset beside float16": (
        im2col(input=HALF["input"], offset=OFFSET.astype(BFLOAT16), mask=None),
        "offset .*float16",
        "bfloat16",
    ),
    "float64 offset of col2im": (col2im(offset=OFFSET.astype(np.float64)), "offset .*columns, float32", "float64"),
    "integer mask": (conv(mask=MASK.astype(np.int64)), "mask .*float32", "int64"),
    "float64 mask beside float32": (conv(mask=MASK.astype(np.float64)), "mask .*float32", "float64"),
    "float16 mask beside float32 offsets": (
        im2col(input=HALF["input"], mask=HALF["mask"]),
        "mask .*float32",
        "float16",
    ),
    "float32 mask beside float16 offsets": (im2col(input=HALF["input"], offset=HALF["offset"]), "mask .*", "float32"),
    "float64 weight": (conv(weight=WEIGHT.astype(np.float64)), "weight .*float32", "float64"),
    "float32 weight beside float16": (
        conv(**{name: HALF[name] for name in ("input", "offset", "bias", "mask")}),
        "weight .*float16",
        "float32",
    ),
    "float64 bias": (conv(bias=BIAS.astype(np.float64)), "bias .*float32", "float64"),
    "float64 grad_output": (conv_backward(grad_output=OUT.astype(np.float64)), "grad_output .*float32", "float64"),
    "float16 grad_columns": (
        im2col_backward(grad_columns=COLUMNS.astype(np.float16)),
        "grad_columns .*float32",
        "float16",
    ),
    "None as input": (conv(input=None), "input", "None"),
    "None as offset": (conv(offset=None), "offset", "None"),
    "None as weight": (conv(weight=None), "weight", "None"),
    "None as columns": (col2im(columns=None), "columns", "None"),
    "list as input": (im2col(input=[[[1.0, 2.0]]]), "input", "list"),
    "number as mask": (conv(mask=1.0), "mask", "float"),
    "number as bias": (conv(bias=0.0), "bias", "float"),
    "list as weight": (conv_backward(weight=[[[[1.0]]]]), "weight", "list"),
    "string as needs": (conv_backward(needs="input"), "needs", "'input'"),
    "None as needs": (im2col_backward(needs=None), "needs", "None"),
    **{
        f"{name} {value!r} of {case.__name__}": (case(**{name: value}), f"{name} .*", "")
        for case in (conv, im2col)
        for name in ("stride", "padding", "dilation")
        for value in (1.5, "1", None, (1, 1.0))
    },
    **{f"kernel_size {v!r}": (im2col(kernel_size=v), "kernel_size .*", "") for v in (3.0, None, "33", (3, 3.0))},
    **{f"input_size {v!r}": (col2im(input_size=v), "input_size .*", "") for v in (8.0, None, "88", (8, 8.0))},
    **{f"workspace {v!r}": (conv(workspace=v), "workspace .*", "") for v in (1e6, "1 MB", (1,))},
}


@pytest.mark.parametrize(("case", "argument", "got"), SHAPES.values(), ids=SHAPES)
def test_shapes(case: Case, argument: str, got: str) -> None:
    check(case, ValueError, argument, got)


@pytest.mark.parametrize(("case", "argument", "got"), VALUES.values(), ids=VALUES)
def test_values(case: Case, argument: str, got: str) -> None:
    check(case, ValueError, argument, got)


@pytest.mark.parametrize(("case", "argument", "got"), DTYPES_AND_KINDS.values(), ids=DTYPES_AND_KINDS)
def test_dtypes_and_kinds(case: Case, argument: str, got: str) -> None:
    check(case, TypeError, argument, got)


def test_the_text_of_the_contract() -> None:
    with pytest.raises(ValueError) as raised:
        cudakit.deform_conv2d(X, f32(2, 17, 8, 8), WEIGHT, padding=1)
    text = "deform_conv2d: offset must have shape (N=2, 2*G*K=18*G, 8, 8), got (2, 17, 8, 8)"
    assert str(raised.value) == text


@pytest.mark.parametrize("n", [1, 3])
def test_each_convolution_names_itself(n: int) -> None:
    space, kernel = (8,) * n, (3,) * n
    function = getattr(cudakit, f"deform_conv{n}d")
    offset, weight = f32(2, n * 3**n + 1, *space), f32(6, 4, *kernel)
    check((function, (f32(2, 4, *space), offset, weight, None, 1, 1), {}), ValueError, "offset .*N=2", "")


@pytest.mark.parametrize(
    ("grad", "error"),
    [
        pytest.param(f32(2, 4, 8, 7), ValueError, id="another size"),
        pytest.param(f32(2, 3, 8, 8), ValueError, id="other channels"),
        pytest.param(f32(1, 4, 8, 8), ValueError, id="another batch"),
        pytest.param(X.astype(np.float64), TypeError, id="another dtype"),
    ],
)
@pytest.mark.parametrize("name", ["deform_col2im_backward", "deform_col2im_double_backward"])
def test_gradients_of_col2im(name: str, grad: Any, error: type[Exception]) -> None:
    """Which frameworks call."""
    op, arrays = OPS[name], (COLUMNS, OFFSET, MASK)
    directions = arrays if "double" in name else ()
    with pytest.raises(error, match=f"^{name}: grad_output must have"):
        op((*directions, grad, *arrays), 3, 1, 1, 1, "channels_first", (8, 8))


@pytest.mark.parametrize("name", ["offset", "weight", "bias", "mask"])
def test_two_frameworks(arrays: Arrays, name: str) -> None:
    torch = require("torch")
    made = {key: arrays.make(value) if key != "padding" else value for key, value in CONVOLUTION.items()}
    other = torch.zeros(made[name].shape, device=arrays.device)
    check(conv(**made | {name: other}), TypeError, name, "")


@pytest.mark.parametrize("name", ["offset", "weight", "bias", "mask"])
def test_arrays_on_cpu_and_cuda(name: str) -> None:
    cupy = require("cupy")
    check(conv(**{name: cupy.asarray(CONVOLUTION[name])}), TypeError, name, "")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BFLOAT16])
def test_the_good_arguments_are_good(dtype: Any) -> None:
    # Otherwise the tables could pass for another reason than the one they name.
    for function, _, arguments in (conv(), conv_backward(), im2col(), im2col_backward(), col2im()):
        function(**{name: v.astype(dtype) if isinstance(v, np.ndarray) else v for name, v in arguments.items()})


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("size", [2**31, 2**40, 2**59])
def test_sizes_beyond_all_memory(batch: int, size: int) -> None:
    columns, offset = np.ones((batch, 1, 1), np.float32), np.zeros((batch, 2, 1, 1), np.float32)
    with pytest.raises(
        ValueError, match=r"^deform_col2im: input_size must make fewer than 2\*\*56 elements in all, got"
    ):
        cudakit.deform_col2im(columns, offset, (size, size), 1, stride=size)
    rule = r"^affine_grid: size must have fewer than 2\*\*56 pixels in all"
    with pytest.raises(ValueError, match=rf"{rule}, got N={batch} and \({size}, {size}\)$"):
        cudakit.affine_grid(np.ones((batch, 2, 3), np.float32), (batch, 1, size, size))
