"""What fields of view are asked with: arrays of every framework and layout, and mistakes."""

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from cudakit.fov import (
    Conv,
    DeformConv,
    SpatialTransformer,
    effective_receptive_field,
    moments,
    overlap,
    sampling_positions,
)

from .conftest import require
from .fov_problems import Floats


def _alike(values: Any, kind: Any, dtype: str) -> Floats:
    assert isinstance(values, kind), type(values)
    assert re.search(rf"\b{dtype}\b", str(values.dtype))  # TensorFlow writes <dtype: 'float32'>
    return np.asarray(values)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("framework", ["numpy", "torch", "jax", "tensorflow", "paddle", "array_api_strict"])
def test_arrays_of_every_framework(framework: str, dtype: str, rng: np.random.Generator) -> None:
    module = require(framework)
    storage = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    offset = np.round(rng.normal(size=(1, 18, 8, 8)) * 4) / 4  # exact in every dtype
    given, wide = offset.astype(storage), "float64" if dtype == "float64" else "float32"
    match framework:
        case "numpy":
            kind, array = np.ndarray, given
        case "torch":
            kind = module.Tensor
            array = module.tensor(offset, dtype=getattr(module, dtype), requires_grad=True)
        case "jax":
            kind = module.Array
            with module.enable_x64(True):
                array = module.numpy.asarray(given)
        case "tensorflow":
            kind, array = module.Tensor, module.constant(given)
        case "paddle":
            kind, array = module.Tensor, module.to_tensor(offset).astype(dtype)
        case _:
            if dtype in ("float16", "bfloat16"):
                pytest.skip("the standard has no half precision")
            kind, array = type(module.asarray(1)), module.asarray(given)
    expected = sampling_positions([DeformConv(offset, padding=1)], (8, 8), (3, 4))
    field = effective_receptive_field([DeformConv(offset, padding=1)], (8, 8), (3, 4))
    layers = [DeformConv(array, padding=1)]
    if framework == "jax":
        with module.enable_x64(True):
            found, found_field = (
                sampling_positions(layers, (8, 8), (3, 4)),
                effective_receptive_field(layers, (8, 8), (3, 4)),
            )
    else:
        found = sampling_positions(layers, (8, 8), (3, 4))
        found_field = effective_receptive_field(layers, (8, 8), (3, 4))
    for one, other in zip((*found, found_field), (*expected, field), strict=True):
        np.testing.assert_allclose(_alike(one, kind, wide), other, rtol=1e-6)
    assert moments(found_field).mass == pytest.approx(field.sum(), rel=1e-6)
    assert overlap(found_field, found_field) == pytest.approx(1)


def test_arrays_whose_library_makes_none(rng: np.random.Generator) -> None:
    """NumPy's come back."""

    class Offset:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def __dlpack_device__(self) -> tuple[int, int]:
            return 1, 0

        def __dlpack__(self, **options: Any) -> Any:
            return self.values.__dlpack__(**options)

    offset = rng.normal(size=(1, 18, 8, 8))
    found, expected = (
        sampling_positions([DeformConv(given, padding=1)], (8, 8), (3, 4)) for given in (Offset(offset), offset)
    )
    for one, other in zip(found, expected, strict=True):
        assert type(one) is np.ndarray
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("layout", ["transposed", "reversed", "broadcast", "read-only"])
def test_arrays_of_any_strides(layout: str, rng: np.random.Generator) -> None:
    offset = rng.normal(size=(1, 18, 8, 8))
    given = {
        "transposed": lambda: np.ascontiguousarray(offset.T).T,
        "reversed": lambda: offset[:, ::-1, :, ::-1].copy()[:, ::-1, :, ::-1],
        "broadcast": lambda: np.broadcast_to(offset[:, :, :1, :1], offset.shape),
        "read-only": lambda: np.frombuffer(offset.tobytes()).reshape(offset.shape),
    }[layout]()
    expected = sampling_positions([DeformConv(given.copy(), padding=1)], (8, 8), (3, 4))
    for found, wanted in zip(sampling_positions([DeformConv(given, padding=1)], (8, 8), (3, 4)), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


OFFSET = np.zeros((1, 18, 8, 8), np.float32)
THETA = np.zeros((1, 2, 3), np.float32)
BAD = [
    (TypeError, "layers must be a sequence of layers, from the input to the output, got Conv", Conv(), {}),
    (ValueError, "layers must be a sequence of layers, from the input to the output, got []", [], {}),
    (TypeError, "layers[1] must be a Conv, a DeformConv or a SpatialTransformer, got str", [Conv(), "conv"], {}),
    (TypeError, "input_size must be 1, 2 or 3 positive ints, got 8", [Conv()], {"input_size": 8}),
    (ValueError, "input_size must be 1, 2 or 3 positive ints, got (8, 0)", [Conv()], {"input_size": (8, 0)}),
    (ValueError, "at must be 2 ints, a unit of the output, whose size is (6, 6), got (0, 6)", [Conv()], {"at": (0, 6)}),
    (ValueError, "at must be 2 ints, a unit of the output, whose size is (6, 6), got (3,)", [Conv()], {"at": (3,)}),
    (
        ValueError,
        "at must be 2 ints, a unit of the output, whose size is (6, 6), got (-1, 3)",
        [Conv()],
        {"at": (-1, 3)},
    ),
    (
        TypeError,
        "at must be 2 ints, a unit of the output, whose size is (6, 6), got (0.5, 3)",
        [Conv()],
        {"at": (0.5, 3)},
    ),
    (ValueError, "kernel_size of layers[0] must be a positive int or a tuple of them, got 0", [Conv(0)], {}),
    (ValueError, "kernel_size of layers[0] must be an int or 2 ints, got (3, 3, 3)", [Conv((3, 3, 3))], {}),
    (
        ValueError,
        "stride of layers[1] must be a positive int or a tuple of them, got -1",
        [Conv(), Conv(stride=-1)],
        {},
    ),
    (ValueError, "padding of layers[0] must be a non-negative int", [Conv(padding=-1)], {}),
    (ValueError, "input of layers[1] must be at least as large, with its padding, as the", [Conv(7), Conv(3)], {}),
    (ValueError, "offset of layers[0] must have shape (N=1, 2*G*K=18*G, 6, 6), got", [DeformConv(OFFSET)], {}),
    (TypeError, "offset of layers[0] must be an array that speaks DLPack, got list", [DeformConv([[0.0]])], {}),
    (TypeError, "offset of layers[0] must have a dtype among", [DeformConv(OFFSET.astype(int), padding=1)], {}),
    (ValueError, "mask of layers[0] must have shape (N=1, G*K=9, 8, 8)", [DeformConv(OFFSET, 3, 1, 1, 1, OFFSET)], {}),
    (ValueError, "theta of layers[0] must be given, or else grid, got neither", [SpatialTransformer()], {}),
    (ValueError, "theta of layers[0] must be given, or else grid, got both", [SpatialTransformer(THETA, THETA)], {}),
    (ValueError, "theta of layers[0] must have shape (1, 2, 3), got (2, 3)", [SpatialTransformer(THETA[0])], {}),
    (ValueError, "grid of layers[0] must have shape (1, H_out, W_out, 2)", [SpatialTransformer(None, THETA)], {}),
    (ValueError, "size of layers[0] must be 2 positive ints, got (4,)", [SpatialTransformer(THETA, size=(4,))], {}),
    (ValueError, "mode of layers[0] must be one of 'nearest',", [SpatialTransformer(THETA, mode="linear")], {}),
]


@pytest.mark.parametrize(("kind", "message", "layers", "changes"), BAD)
@pytest.mark.parametrize("function", [sampling_positions, effective_receptive_field])
def test_bad_stacks(function: Any, kind: type[Exception], message: str, layers: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(kind, match=re.escape(f"{function.__name__}: {message}")):
        function(**{"layers": layers, "input_size": (8, 8), "at": (3, 3)} | changes)


@pytest.mark.parametrize(
    ("kind", "message", "options"),
    [
        (ValueError, "channels must be an int of at least 1, got 0", {"channels": 0}),
        (TypeError, "repeats must be an int of at least 1, got 2.5", {"repeats": 2.5}),
        (ValueError, "seed must be an int of at least 0, got -1", {"seed": -1}),
        (ValueError, "nonlinearity must be one of 'relu', 'none', got 'gelu'", {"nonlinearity": "gelu"}),
        (ValueError, "weights must be one of 'random', 'ones', got 'uniform'", {"weights": "uniform"}),
        (ValueError, "channels must be a multiple of the 2 offset groups, got 3", {"channels": 3}),
    ],
)
def test_bad_options(kind: type[Exception], message: str, options: dict[str, Any]) -> None:
    layers = [DeformConv(np.zeros((1, 36, 6, 6)))]
    with pytest.raises(kind, match=re.escape(f"effective_receptive_field: {message}")):
        effective_receptive_field(layers, (8, 8), (3, 3), **options)


@pytest.mark.parametrize(
    ("kind", "message", "arguments"),
    [
        (TypeError, "moments: weights must be an array that speaks DLPack, got list", ([1.0],)),
        (ValueError, "moments: weights must be finite and not negative, got", (np.array([1.0, -1.0]),)),
        (ValueError, "moments: weights must have 1, 2 or 3 dimensions, got shape ()", (np.array(1.0),)),
        (ValueError, "moments: positions must have shape (P, n) beside", (np.ones(3), np.ones((2, 2)))),
    ],
)
def test_bad_moments(kind: type[Exception], message: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        moments(*arguments)


def test_bad_overlap() -> None:
    with pytest.raises(ValueError, match=re.escape("overlap: second must have the shape of first, (3,), got (2,)")):
        overlap(np.ones(3), np.ones(2))
