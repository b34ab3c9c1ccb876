"""Functions in interpreters of their own."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from .memory import same_layout

THREAD_VARIABLES = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # what NumPy's library reads
PR_SET_PDEATHSIG = 1  # sys/prctl.h


def end_with_parent() -> None:
    """Let Linux end this process when its parent is killed: it would go on and disturb what is measured next."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def in_new_process(threads: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in an interpreter of its own: some libraries take their number of threads only once."""
    os.environ |= dict.fromkeys(THREAD_VARIABLES, str(threads)) | {"PYTHONHASHSEED": "0"}
    context = multiprocessing.get_context("spawn")
    with same_layout(), ProcessPoolExecutor(1, mp_context=context, initializer=end_with_parent) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except KeyboardInterrupt:  # it would go on to its end
            for process in multiprocessing.active_children():
                process.kill()
            raise
