"""The family of spatial transformers: `grid_sample`, `affine_grid` and their gradients."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

import cudakit

from .cases import OURS, Array, Arrays, Family, Prepared, Row, Side, Tiny, in_layout, to_numpy
from .peers import load, onnxruntime_call, openvino_call

DIGITS = (32, 1, 28, 28)  # a single plane each: bilinear only, channels first
SIZES = ((8, 3, 512, 512), (4, 64, 128, 128), (1, 8, 64, 64, 64), DIGITS)
GPU_SIZES = ((8, 3, 1024, 1024), (16, 64, 128, 128), (1, 16, 96, 96, 96))
SMALL_SIZES = ((2, 3, 24, 24), (2, 32, 12, 12), (1, 8, 8, 8, 8))
AFFINE_SIZES = ((8, 1, 512, 512), (1, 1, 64, 64, 64))
SMALL_AFFINE_SIZES = ((2, 1, 24, 24), (1, 1, 8, 8, 8))
TORCH_MODES = {"bilinear": 0, "bicubic": 2}
FLIPS = {1: 2e-3}  # share of samples so near to a knot that rounding picks the side of gradients by the grid
OPENCV_CHANNELS = 4  # beyond these its bilinear weights are multiples of 1/32, and bicubic is an error
OPENCV_SLACK = 500.0


class Sampling(NamedTuple):
    """A row of `grid_sample`: padding_mode "zeros", align_corners False; `last`: channels last."""

    shape: tuple[int, ...]
    out: tuple[int, ...]
    mode: str
    backward: bool
    last: bool

    @property
    def flop(self) -> int:
        """Return the operations of weighing the taps; the gradient by the grid weighs them once for each dimension."""
        n = len(self.out)
        taps: int = (2 if self.mode == "bilinear" else 4) ** n
        return 2 * taps * self.shape[0] * self.shape[1] * prod(self.out) * (1 + n if self.backward else 1)


class Affine(NamedTuple):
    """A row of `affine_grid`, align_corners False."""

    size: tuple[int, ...]
    backward: bool

    @property
    def flop(self) -> int:
        """Return the operations of a product with the matrix, or of its gradient."""
        n = len(self.size) - 2
        return 2 * n * (n + 1) * self.size[0] * prod(self.size[2:])


def transforms(batch: int, n: int) -> Array:
    """Return turns, a little zoom and a shift, different for each image."""
    theta = np.zeros((batch, n, n + 1))
    for i, angle in enumerate(np.linspace(0.1, 0.4, batch)):
        theta[i, :, :n] = np.eye(n)
        theta[i, :2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        theta[i, :, :n] *= 0.95
        theta[i, :, n] = 0.03
    return theta.astype(np.float32)


def smooth_grid(batch: int, out: tuple[int, ...]) -> Array:
    """Return the grid of those transforms."""
    axes = [(2 * np.arange(size) + 1) / size - 1 for size in out]
    base = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(out)], axis=-1)
    turned: Array = np.einsum("nij,...j->n...i", transforms(batch, len(out)).astype(np.float64), base)
    return turned.astype(np.float32)


def pixels(grid: Array, space: tuple[int, ...]) -> Array:
    """Return the positions of a grid in pixels, (N, n, O...), slowest dimension first."""
    sizes = np.array(space, np.float32)
    return np.ascontiguousarray(np.moveaxis(((grid[..., ::-1] + 1) * sizes - 1) / 2, -1, 1))


def _sampling_arrays(case: Sampling) -> Arrays:
    rng = np.random.default_rng(prod(case.shape))
    batch, channels = case.shape[:2]
    arrays = {
        "input": in_layout(rng.standard_normal(case.shape, np.float32), case.last),
        "grid": smooth_grid(batch, case.out),
    }
    if case.backward:
        grad = rng.standard_normal((batch, channels, *case.out), np.float32)
        return {"grad_output": in_layout(grad, case.last), **arrays}
    return arrays


def _affine_arrays(case: Affine) -> Arrays:
    if not case.backward:
        return {"theta": transforms(case.size[0], len(case.size) - 2)}
    shape = (case.size[0], *case.size[2:], len(case.size) - 2)
    return {"grad_grid": np.random.default_rng(1).standard_normal(shape, np.float32)}


def _size_name(space: tuple[int, ...]) -> str:
    return f"{space[0]}cubed" if len(space) == 3 else f"{space[0]}"


def _sampling_row(case: Sampling) -> Row:
    batch, channels, *space = case.shape
    way = "bwd" if case.backward else "fwd"
    mode = "trilinear" if len(space) == 3 else case.mode
    name = f"gs_{batch}x{channels}x{_size_name(tuple(space))}_{mode}_{way}" + ("_last" if case.last else "")
    section = "grid_sample, " + ("backward (input and grid)" if case.backward else "forward")
    section += ", channels last" if case.last else ""
    return Row(name, section, case, lambda: _sampling_arrays(case), flips=FLIPS if case.backward else {})


def _affine_row(case: Affine) -> Row:
    space = case.size[2:]
    name = f"ag_{case.size[0]}x" + (_size_name(space) if len(space) == 3 else "x".join(map(str, space)))
    way = ("fwd", "forward") if not case.backward else ("bwd", "backward")
    return Row(f"{name}_{way[0]}", f"affine_grid, {way[1]}", case, lambda: _affine_arrays(case))


def _rows(sizes: Sequence[tuple[int, ...]], affine_sizes: Sequence[tuple[int, ...]]) -> list[Row]:
    found = [
        _sampling_row(Sampling(shape, shape[2:], mode, backward, last))
        for backward in (False, True)
        for last in (False, True)
        for mode in TORCH_MODES
        for shape in sizes
        if (mode == "bilinear" or len(shape) == 4) and (shape != DIGITS or (mode == "bilinear" and not last))
    ]
    return found + [_affine_row(Affine(size, backward)) for backward in (False, True) for size in affine_sizes]


def rows(small: bool) -> list[Row]:
    """Return the family's rows on a CPU."""
    return _rows(SMALL_SIZES, SMALL_AFFINE_SIZES) if small else _rows(SIZES, AFFINE_SIZES)


def gpu_rows(small: bool) -> list[Row]:
    """Return the family's rows on a GPU."""
    return _rows(SMALL_SIZES, SMALL_AFFINE_SIZES) if small else _rows(GPU_SIZES, AFFINE_SIZES)


def _ours(row: Row, arrays: Arrays, _: int) -> Prepared:
    case, values = row.case, tuple(arrays.values())
    if isinstance(case, Affine):
        function: Callable[..., Any] = cudakit.affine_grid_backward if case.backward else cudakit.affine_grid
        return Prepared(lambda: function(*values, case.size), to_numpy)
    layout = "channels_last" if case.last else "channels_first"
    sample: Callable[..., Any] = cudakit.grid_sample_backward if case.backward else cudakit.grid_sample
    return Prepared(lambda: sample(*values, case.mode, data_format=layout), to_numpy)


def _torch(row: Row, arrays: Arrays, _: int) -> Prepared:
    torch, case = load("torch"), row.case
    aten, functional = torch.ops.aten, torch.nn.functional
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    if isinstance(case, Affine):
        function = aten.affine_grid_generator_backward if case.backward else aten.affine_grid_generator
        return Prepared(lambda: function(*tensors.values(), list(case.size), False), to_numpy)
    if case.last:  # the same values and strides, in torch's order of dimensions
        tensors |= {name: tensors[name].movedim(-1, 1) for name in tensors if name != "grid"}
    values = tuple(tensors.values())

    def results(value: Any) -> tuple[Array, ...]:
        images = [np.moveaxis(item, 1, -1) if case.last else item for item in to_numpy(value)]
        return (images[0], *to_numpy(value)[1:])

    if not case.backward:
        return Prepared(lambda: functional.grid_sample(*values, case.mode, "zeros", False), results)
    backward = aten.grid_sampler_3d_backward if len(case.out) == 3 else aten.grid_sampler_2d_backward
    return Prepared(lambda: backward(*values, TORCH_MODES[case.mode], 0, False, [True, True]), results)


def _openvino(row: Row, arrays: Arrays, threads: int) -> Prepared | None:
    case = row.case
    if isinstance(case, Affine) or case.backward or case.last or len(case.out) == 3:
        return None
    attributes = {"align_corners": False, "mode": case.mode, "padding_mode": "zeros"}

    def build(opset: Any, *parameters: Any) -> Any:
        return opset.grid_sample(*parameters, attributes)

    return Prepared(openvino_call(build, tuple(arrays.values()), threads), lambda found: to_numpy(list(found.values())))


def _onnxruntime(row: Row, arrays: Arrays, threads: int) -> Prepared | None:
    case = row.case
    if case.backward or (isinstance(case, Sampling) and case.last):
        return None
    if isinstance(case, Affine):
        inputs = {**arrays, "size": np.array(case.size, np.int64)}
        call = onnxruntime_call("AffineGrid", inputs, len(case.size), threads, align_corners=0)
    else:
        mode = {"bilinear": "linear", "bicubic": "cubic"}[case.mode]
        options = {"align_corners": 0, "mode": mode, "padding_mode": "zeros"}
        call = onnxruntime_call("GridSample", arrays, len(case.shape), threads, **options)
    return call and Prepared(call, to_numpy)


def _opencv(row: Row, arrays: Arrays, _: int) -> Prepared | None:
    """Prepare `remap` on images that are channels-last already, with maps that are in pixels already."""
    cv2, case = load("cv2"), row.case
    if isinstance(case, Affine) or case.backward or len(case.out) == 3:
        return None
    exact = case.shape[1] <= OPENCV_CHANNELS
    if case.mode == "bicubic" and not exact:
        return None
    images = arrays["input"] if case.last else in_layout(arrays["input"], True)
    maps = pixels(arrays["grid"], case.shape[2:])
    flag = cv2.INTER_LINEAR if case.mode == "bilinear" else cv2.INTER_CUBIC

    def call() -> list[Array]:
        return [cv2.remap(image, x, y, flag) for image, (y, x) in zip(images, maps, strict=True)]

    def results(found: list[Array]) -> tuple[Array, ...]:
        stacked = np.stack([image.reshape(*case.out, -1) for image in found])
        return (stacked if case.last else np.moveaxis(stacked, -1, 1),)

    return Prepared(call, results, slack=1.0 if exact else OPENCV_SLACK)


def _scipy(row: Row, arrays: Arrays, _: int) -> Prepared | None:
    """Prepare `map_coordinates`, one channel at a time, with coordinates that are in pixels already."""
    ndimage, case = load("scipy.ndimage"), row.case
    if isinstance(case, Affine) or case.backward or case.last or case.mode != "bilinear":
        return None  # its cubic interpolation is a spline: another function
    maps = pixels(arrays["grid"], case.shape[2:])

    def call() -> Array:
        result = np.empty((*case.shape[:2], *case.out), np.float32)
        for images, where, target in zip(arrays["input"], maps, result, strict=True):
            for image, place in zip(images, target, strict=True):
                ndimage.map_coordinates(image, where, place, order=1, mode="grid-constant")
        return result

    return Prepared(call, to_numpy)


def _jax(row: Row, arrays: Arrays, _: int) -> Prepared | None:
    """Prepare `map_coordinates` over channels and batch, compiled."""
    jax, ndimage, case = load("jax"), load("jax.scipy.ndimage"), row.case
    if isinstance(case, Affine) or case.last or case.mode != "bilinear":
        return None
    values = [jax.numpy.asarray(array) for array in arrays.values()]

    def one(image: Any, grid: Any) -> Any:
        space = image.shape[1:]
        where = [((grid[..., -1 - d] + 1) * size - 1) / 2 for d, size in enumerate(space)]
        return jax.vmap(lambda channel: ndimage.map_coordinates(channel, where, order=1, mode="constant"))(image)

    sample = jax.vmap(one)
    function = jax.jit((lambda grad, *both: jax.vjp(sample, *both)[1](grad)) if case.backward else sample)
    return Prepared(lambda: jax.block_until_ready(function(*values)), to_numpy)


SIDES: dict[str, Side] = {
    OURS: _ours,
    "torch": _torch,
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "opencv": _opencv,
    "scipy": _scipy,
    "jax": _jax,
}
NOTES = (
    "Grids are turns by 6 to 23 degrees with a little zoom and shift; padding zeros, align_corners=False.",
    "OpenCV is given channels-last images and maps in pixels in every table; beyond 4 channels its bilinear weights "
    "have 5 bits. SciPy is given coordinates in pixels, and its cubic splines are another function.",
    "In the channels-last tables torch is given tensors with channels-last strides.",
    "Operations are those of weighing the taps: coordinates, weights and the adding up of gradients are not counted.",
    "torch's gradients are timed without autograd around them (`torch.ops.aten.grid_sampler_2d_backward`).",
)
RIVALS = ("torch", "openvino", "onnxruntime")
TINY = Tiny(
    "grid_sample (1, 1, 4, 4) to (1, 1, 2, 2)",
    "x, grid = np.ones((1, 1, 4, 4), np.float32), np.zeros((1, 2, 2, 2), np.float32)",
    "cudakit.grid_sample(x, grid)",
    _sampling_row(Sampling((1, 1, 4, 4), (2, 2), "bilinear", backward=False, last=False)),
)
FAMILY = Family("sampling", "Sampling", rows, gpu_rows, SIDES, ("torch",), RIVALS, TINY, notes=NOTES)
