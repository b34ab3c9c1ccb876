"""The libraries that cudakit is measured beside, each of them optional."""

import gc
import importlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, NamedTuple

import numpy as np

import cudakit

from .cases import OURS, Array


class Peer(NamedTuple):
    """A library, or something made of one: its title, and the library's module."""

    title: str
    module: str


LIBRARIES = {
    "torch": Peer("torch", "torch"),
    "torchvision": Peer("torchvision", "torchvision"),
    "openvino": Peer("OpenVINO", "openvino"),
    "onnxruntime": Peer("ONNX Runtime", "onnxruntime"),
    "opencv": Peer("OpenCV", "cv2"),
    "scipy": Peer("SciPy", "scipy"),
    "jax": Peer("JAX", "jax"),
}
PEERS = LIBRARIES | {
    "torch_composite": Peer("torch by hand", "torch"),
    "dense_conv": Peer("dense convolution", "torch"),
    "gemm_only": Peer("matrix product", "torch"),
    "copy_only": Peer("copy", "torch"),
}
ONNX_OPSET = 20
ONNX_IR = 10


@cache
def load(module: str) -> Any:
    """Return a module, or None where it does not load; what it warns of while loading is not our business."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except (ImportError, RuntimeError):  # the latter from a torchvision that was built for another torch
        return None


def title(side: str) -> str:
    """Return a side's name for readers."""
    return PEERS[side].title if side in PEERS else side


def present(side: str) -> bool:
    """Whether a side can run here."""
    return side == OURS or load(PEERS[side].module) is not None


def forget_libraries(sides: Iterable[str]) -> None:
    """Load what sides need, and let the garbage collector pass it over: that takes a fifth of a second a row."""
    for side in sides:
        present(side)
    gc.freeze()


def versions(sides: Iterable[str]) -> dict[str, str]:
    """Return the version of every library that the sides use, "absent" for one that is not installed."""
    used = {PEERS[side].module for side in sides if side != OURS}
    found = {name: load(peer.module) for name, peer in LIBRARIES.items() if peer.module in used}
    return {
        OURS: cudakit.__version__,
        "numpy": np.__version__,
        **{name: "absent" if module is None else module.__version__.split("-")[0] for name, module in found.items()},
    }


def set_threads(threads: int) -> None:
    """Let every library use that many threads; OpenVINO and ONNX Runtime take theirs with each model.

    XLA reads its number once, when JAX is first used: another one needs a new process.
    """
    os.environ["NPROC"] = str(threads)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cudakit.set_num_threads(threads)
    torch, cv2 = load("torch"), load("cv2")
    if torch is not None:
        torch.set_num_threads(threads)
    if cv2 is not None:
        cv2.setNumThreads(threads)


def keep_compiled(folder: str) -> None:
    """Let JAX, which is not loaded yet, keep what it compiles in a folder, and look for it there."""
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def openvino_call(build: Callable[..., Any], inputs: tuple[Array, ...], threads: int) -> Callable[[], Any]:
    """Compile one operator for OpenVINO; its request reads `inputs` in place and reuses its output.

    Parameters
    ----------
    build : callable
        (operator set, *parameters) -> node.
    inputs : tuple of array
        What the parameters stand for.
    threads : int
        How many threads it may use.
    """
    ov, opset = load("openvino"), load("openvino.opset15")
    parameters = [opset.parameter(list(array.shape), array.dtype) for array in inputs]
    model = ov.Model([build(opset, *parameters)], parameters)
    hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(model, "CPU", hints).create_infer_request()
    for position, array in enumerate(inputs):
        request.set_input_tensor(position, ov.Tensor(array, shared_memory=True))
    return lambda: request.infer(share_outputs=True)


def onnxruntime_call(
    operator: str, inputs: Mapping[str, Array | None], rank: int, threads: int, **attributes: Any
) -> Any:
    """Make an ONNX Runtime session of one operator; None without the `onnx` package, which writes its model.

    Parameters
    ----------
    operator : str
        Name of the ONNX operator.
    inputs : dict of array
        Its arguments in order; None for one that is left out.
    rank : int
        Number of dimensions of its float32 output.
    threads : int
        How many threads it may use.
    **attributes
        Of the operator.
    """
    onnx, runtime = load("onnx"), load("onnxruntime")
    if onnx is None:
        return None
    helper = onnx.helper
    given = {name: array for name, array in inputs.items() if array is not None}
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    output = helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [None] * rank)
    node = helper.make_node(operator, [name if name in given else "" for name in inputs], ["output"], **attributes)
    graph = helper.make_graph([node], operator, values, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET)], ir_version=ONNX_IR)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, given)
