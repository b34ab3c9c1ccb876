"""What is asked of CUDA and CuPy besides kernels: streams, graphs, cuBLAS, and what is left as it was found."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import cudakit
from cudakit import frameworks, launch
from cudakit.deformable.column_plan import IM2COL
from cudakit.op import OPS
from cudakit.product import Product
from cudakit.sampling.grid import GridSampleOptions

from .conftest import devices, require
from .deformable_problems import GEOMETRIES, Problem, call, draw

pytestmark = pytest.mark.skipif("cuda" not in devices(), reason="there is no GPU")

DEVICE = ("cuda", 0)
PRODUCT = Product("float32", "float32", (2, 3, 4), 1, (4, 1, 0), (3, 1, 0), (3, 1, 0), add=False)


@pytest.fixture
def cupy() -> Iterator[Any]:
    """Return CuPy, and make its default stream current again after the test."""
    found = require("cupy")
    yield found
    found.cuda.Stream.null.use()


@pytest.fixture
def runtime(cupy: Any) -> Any:
    """Return a runtime that tells which streams have work that nobody has waited for."""
    if not hasattr(cupy, "EMULATED"):
        pytest.skip("a GPU does not tell")
    cupy.cuda.runtime.unfinished.clear()
    return cupy.cuda.runtime


@pytest.fixture
def stream(cupy: Any) -> Any:
    """Return a stream that CUDA's default one does not wait for."""
    return cupy.cuda.Stream(non_blocking=True)


def problem(cupy: Any, dtype: str = "float32") -> Problem:
    """Return a convolution with workspaces and products."""
    found = draw(np.random.default_rng(7), GEOMETRIES["2-D of all sorts"])
    return found.map(lambda _, array: cupy.asarray(array.astype(dtype)))


def convolve(made: Problem) -> list[Any]:
    """Return the results of a convolution and all its gradients."""
    return [x for operator in ("deform_conv", "deform_conv_backward") for x in call(operator, made).values()]


def values(arrays: list[Any]) -> list[Any]:
    return [x.get() for x in arrays]


def test_a_cuda_graph_holds_convolutions(cupy: Any, stream: Any) -> None:
    made = problem(cupy)
    expected = values(convolve(made))
    with stream:
        convolve(made)  # gives the stream memory
        stream.begin_capture()
        found = convolve(made)
        graph = stream.end_capture()
        graph.launch(stream)
        stream.synchronize()
    for one, other in zip(values(found), expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)  # sums of atomics


def test_a_cuda_graph_leaves_memory_alone_that_is_allocated_later(cupy: Any, stream: Any) -> None:
    """Workspaces, and copies of what is not contiguous, are the graph's own."""
    made = problem(cupy)
    turned = made.map(lambda name, x: cupy.array(x[..., ::-1])[..., ::-1] if name in ("offset", "mask") else x)
    with stream:
        found = convolve(turned)
        sizes = [x.nbytes for x in found] + [1 << k for k in range(9, 21)]
        stream.begin_capture()
        found = convolve(turned)
        graph = stream.end_capture()
        later = [cupy.zeros(size, np.uint8) for size in sizes for _ in range(8)]
        graph.launch(stream)
        stream.synchronize()
    assert not any(x.get().any() for x in later)
    for one, other in zip(values(found), values(convolve(made)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_streams_of_the_same_handle_on_other_devices(cupy: Any) -> None:
    from cudakit import cuda

    per_thread = 2  # cudaStreamPerThread
    if cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    for ordinal in (0, 1):
        with cupy.cuda.Device(ordinal), cupy.cuda.Stream():
            assert cuda.allocate(256, ("cuda", ordinal), per_thread).pointer


def test_a_stream_in_use_stays_in_use(cupy: Any, stream: Any) -> None:
    made = problem(cupy)
    stream.use()
    convolve(made)
    assert cupy.cuda.get_current_stream() == stream


@pytest.mark.parametrize("inside", [False, True])
def test_memory_for_another_stream_leaves_the_current_one(cupy: Any, stream: Any, inside: bool) -> None:
    from cudakit import cuda

    outer, own = cupy.cuda.Stream(), cupy.cuda.Stream()
    with outer:
        if not inside:
            stream.use()
        cuda.allocate(256, DEVICE, own.ptr)
        assert cupy.cuda.get_current_stream() == (outer if inside else stream)
    assert cupy.cuda.get_current_stream() == cupy.cuda.Stream.null


def test_memory_is_freed_on_the_stream_it_is_for(runtime: Any) -> None:
    """CuPy's `MemoryAsyncPool` has but a weak reference to it."""
    from cudakit import cuda

    assert cuda.allocate(256, DEVICE, 1 << 50).owner.stream_ref().ptr == 1 << 50


def test_work_of_cupy_is_not_waited_for(cupy: Any, runtime: Any, stream: Any) -> None:
    made = problem(cupy)
    with stream:
        runtime.unfinished.clear()
        convolve(made)
    assert runtime.unfinished == {stream.ptr}


class Lender:
    """An array of a library that cudakit does not know, nor its streams."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


class Borrower(Lender):
    """An array of one that takes others' memory, too."""

    __module__ = "borrowers"


@pytest.mark.parametrize("kind", [Lender, Borrower])
@pytest.mark.parametrize("turned", [False, True])
def test_work_of_unknown_libraries_is_waited_for(
    cupy: Any, runtime: Any, stream: Any, monkeypatch: pytest.MonkeyPatch, kind: Any, turned: bool
) -> None:
    borrowers = ModuleType("borrowers")
    borrowers.from_dlpack = Borrower
    monkeypatch.setitem(sys.modules, "borrowers", borrowers)
    made = problem(cupy)
    if turned:  # which is copied
        made = made.map(lambda _, x: cupy.ascontiguousarray(x[::-1])[::-1])
    made = made.map(lambda _, x: kind(x))
    stream.use()
    runtime.unfinished.clear()
    found = convolve(made)
    assert {type(x) for x in found} == {Borrower if kind is Borrower else cupy.ndarray}
    assert runtime.unfinished == set()
    assert cupy.cuda.get_current_stream() == stream


def test_a_library_that_tells_its_stream_gets_its_work_there(cupy: Any, runtime: Any, stream: Any) -> None:
    framework = frameworks.wrapping_framework(lambda buffer, _: buffer, lambda _: stream.ptr)
    shapes = ((1, 2, 3, 3), (1, 2, 4, 4), (1, 3, 3, 2))
    arrays = tuple(cupy.zeros(shape, np.float32) for shape in shapes)
    options = GridSampleOptions("bilinear", "zeros", False, "channels_first", ("input", "grid"))
    runtime.unfinished.clear()
    OPS["grid_sample_backward"].run(framework, arrays, options)
    assert runtime.unfinished == {stream.ptr}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_mode_of_cublas_is_put_back(cupy: Any, dtype: str) -> None:
    """The emulated one refuses half results of sums that are less than float32."""
    cublas, handle = cupy.cuda.cublas, cupy.cuda.device.get_cublas_handle()
    before = cublas.getMathMode(handle)
    cublas.setMathMode(handle, 2)
    try:
        convolve(problem(cupy, dtype))
        assert cublas.getMathMode(handle) == 2
    finally:
        cublas.setMathMode(handle, before)


def test_products_run_on_the_stream_they_are_given(cupy: Any, stream: Any) -> None:
    from cudakit import cuda

    a, b = (cupy.asarray(np.arange(24, dtype=np.float32)[:size]) for size in (8, 12))
    c = cupy.zeros(6, np.float32)
    pointers = np.array([x.data.ptr for x in (a, b, c)], np.uint64).tobytes()
    stream.use()
    for handle in (0, stream.ptr):  # 0 is CUDA's default stream, whatever CuPy takes for it
        cupy.cuda.Device().synchronize()
        cuda.CudaProduct(PRODUCT, 0).launch(pointers, handle)
        assert cupy.cuda.cublas.getStream(cupy.cuda.device.get_cublas_handle()) == handle
        cupy.cuda.Device().synchronize()
        np.testing.assert_array_equal(c.get(), (a.get().reshape(2, 4) @ b.get().reshape(4, 3)).ravel())


def test_every_thread_has_its_own_handle(cupy: Any) -> None:
    made = problem(cupy)
    expected = values(convolve(made))
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(lambda: values(convolve(made))).result()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_the_current_device_stays(cupy: Any) -> None:
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    with cupy.cuda.Device(1):
        made = problem(cupy)
    found = convolve(made)
    assert cupy.cuda.runtime.getDevice() == 0
    assert {x.device.id for x in found} == {1}
    for one, other in zip(values(found), values(convolve(problem(cupy))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_an_error_of_cublas_has_its_name(cupy: Any) -> None:
    from cudakit import cuda

    impossible = cuda.CudaProduct(PRODUCT._replace(sizes=(2, 3, -1)), 0)
    with pytest.raises(RuntimeError, match="cublasGemmStridedBatchedEx failed: CUBLAS_STATUS_INVALID_VALUE"):
        impossible.launch(bytes(24), 0)


def test_kernels_of_one_call_are_compiled_at_the_same_time(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cudakit import cuda

    both, launched = Barrier(2), []

    class Awaited:
        """A kernel that is not compiled before another one is about to be."""

        def __init__(self, text: str, *_: Any) -> None:
            both.wait(timeout=60)
            self.text = text

        def launch(self, *_: Any) -> None:
            launched.append(self.text)

    monkeypatch.setattr(cuda, "CudaKernel", Awaited)
    monkeypatch.setattr(launch, "core_count", lambda: 2)
    made = [launch.LazyKernel(IM2COL, (("LANES", lanes),), DEVICE) for lanes in (1, 2)]
    calls = [launch.Launch(kernel, b"", 1, 1, 1, 1) for kernel in (*made, *made)]
    launch.compile_together([*calls, None])
    assert all(kernel.compiled for kernel in made)
    launch.compile_together(calls)
    for each in calls:
        each(b"", 0)
    assert launched == [made[0].text, made[1].text] * 2


def test_missing_parts_of_the_toolkit_are_named(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cudakit import cuda

    def module(**_: Any) -> Any:
        raise RuntimeError("Failed to find CUDA headers.")

    monkeypatch.setattr(cupy, "RawModule", module)
    with pytest.raises(cudakit.BackendUnavailable, match=r"pip install 'cudakit\[cuda12\]'.*\nFailed to find CUDA"):
        cuda.CudaKernel("", "kernel", 1, 0)


def test_an_error_of_cuda_stays_what_it_is(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cudakit import cuda

    def module(**_: Any) -> Any:
        cupy.cuda.runtime.setDevice(-1)

    monkeypatch.setattr(cupy, "RawModule", module)
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaErrorInvalidDevice"):
        cuda.CudaKernel("", "kernel", 1, 0)


def test_a_missing_cublas_is_named(runtime: Any, cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cudakit import cuda

    cuda._cublas.cache_clear()
    monkeypatch.delattr(cupy.cuda, "cublas")
    monkeypatch.setitem(sys.modules, "cupy.cuda.cublas", None)
    with pytest.raises(cudakit.BackendUnavailable, match=r"cuBLAS; .* pip install 'cudakit\[cuda12\]'"):
        cuda.CudaProduct(PRODUCT, 0)
