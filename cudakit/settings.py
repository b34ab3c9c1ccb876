"""What a user may set for all operators of the process: the number of CPU threads, and determinism."""

from collections.abc import Callable
from operator import index

from cudakit.checks import shown
from cudakit.cpuinfo import core_count

MOST_THREADS = 1024

_cores = min(MOST_THREADS, core_count())
_threads: int | None = None  # what the user set
_deterministic = False


def get_num_threads() -> int:
    """Return how many CPU threads an operator may use.

    Returns
    -------
    int
        What was set, else the cores that this process might run on when cudakit was imported: whoever binds it to fewer
        later (``os.sched_setaffinity``) sets the number, too.

    Examples
    --------
    >>> import cudakit
    >>> cudakit.get_num_threads() >= 1
    True
    """
    return _threads or _cores


def num_threads_of(library: Callable[[], int] | None) -> int:
    """Return how many may be used for arrays of a library: what was set, else as many as it takes itself."""
    if library is None or _threads is not None:
        return _threads or _cores
    return min(library(), _cores)


def set_num_threads(threads: int) -> None:
    """Set how many CPU threads an operator may use.

    Until then they are as many as PyTorch takes (``torch.get_num_threads()``, 1 in a worker of a ``DataLoader``) for
    its tensors, and for other arrays as many as there are cores that this process may run on.

    Parameters
    ----------
    threads : int
        From 1 to 1024.

    Raises
    ------
    TypeError, ValueError
        If `threads` is no int, or out of range.

    Examples
    --------
    >>> import cudakit
    >>> before = cudakit.get_num_threads()
    >>> cudakit.set_num_threads(1)
    >>> cudakit.get_num_threads()
    1
    >>> cudakit.set_num_threads(before)
    """
    global _threads
    try:
        number = index(threads)
    except TypeError:
        raise TypeError(f"set_num_threads: threads must be an int, got {shown(threads)}") from None
    if not 1 <= number <= MOST_THREADS:
        raise ValueError(f"set_num_threads: threads must be at least 1 and at most {MOST_THREADS}, got {number}")
    _threads = number


def are_deterministic_algorithms_enabled() -> bool:
    """Return whether results must be the same in every run; see `use_deterministic_algorithms`.

    Returns
    -------
    bool
        What was set last; PyTorch's own setting, which counts for its tensors, is not asked.

    Examples
    --------
    >>> import cudakit
    >>> cudakit.are_deterministic_algorithms_enabled()
    False
    """
    return _deterministic


def use_deterministic_algorithms(mode: bool) -> None:
    """Set whether an operator's results must be the same bits in every run on a GPU.

    By default they are not where gradients by an image are added up, in any order. In this mode numbers are first
    rounded to multiples of a power of two of which float64 holds all sums exactly (Demmel and Nguyen, "Fast
    reproducible floating-point summation", 2013). That changes each by less than 1e-9 of the largest that there may be,
    or 1e-18 where they are float64, and takes more time and temporary memory. Matrix products are cuBLAS's, the same in
    every run on one stream. PyTorch's ``torch.use_deterministic_algorithms`` counts, too, for its tensors. On a CPU
    results are always the same with the same number of threads.

    Parameters
    ----------
    mode : bool
        Whether they must.

    Raises
    ------
    TypeError
        If `mode` is no bool.

    Examples
    --------
    >>> import cudakit
    >>> cudakit.use_deterministic_algorithms(True)
    >>> cudakit.are_deterministic_algorithms_enabled()
    True
    >>> cudakit.use_deterministic_algorithms(False)
    """
    global _deterministic
    if not isinstance(mode, bool):
        raise TypeError(f"use_deterministic_algorithms: mode must be a bool, got {shown(mode)}")
    _deterministic = mode
