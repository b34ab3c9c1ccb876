"""How far apart the cores are: the time that a line of the cache takes from one to another.

A virtual machine's cores may move between the dies of a processor, and come to lie four times as far apart. What
threads hand to each other then takes longer, for each library as much as it has them do so.
"""

from collections.abc import Iterable
from ctypes import c_double

from .measure import Result
from .native import library

FAR = 1.6  # times the least distance of a run
BATCHES = 3
TEXT = """
#include <pthread.h>
#include <sched.h>
#include <time.h>

static const int ROUNDS = 2000;
static int line[32];

static void await_value(int value) {
    for (int spins = 1; __atomic_load_n(line, __ATOMIC_ACQUIRE) != value; ++spins) {
        if (spins % 10000 == 0) sched_yield();  // the other one may wait for this core
    }
}

static void* answer(void*) {
    for (int i = 0; i < ROUNDS; ++i) {
        await_value(2 * i + 1);
        __atomic_store_n(line, 2 * i + 2, __ATOMIC_RELEASE);
    }
    return 0;
}

extern "C" __attribute__((visibility("default"))) double crossing_ns() {
    pthread_t other;
    line[0] = 0;
    if (pthread_create(&other, 0, answer, 0) != 0) return 0;
    timespec start, end;
    for (int i = 0; i < ROUNDS; ++i) {
        __atomic_store_n(line, 2 * i + 1, __ATOMIC_RELEASE);
        await_value(2 * i + 2);
        if (i == ROUNDS / 2) clock_gettime(CLOCK_MONOTONIC, &start);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    pthread_join(other, 0);
    return ((end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec)) / (ROUNDS - 1 - ROUNDS / 2) / 2;
}
"""


def crossing_ns(threads: int) -> float | None:
    """Return the nanoseconds from one core to another, None for a single thread or where it cannot be measured."""
    native = library(TEXT) if threads > 1 else None
    if native is None:
        return None
    native.crossing_ns.restype = c_double
    nearest: float = min(native.crossing_ns() for _ in range(BATCHES))
    return nearest


def nearest(distances: Iterable[float | None]) -> float | None:
    """Return the least distance, None where none was measured."""
    return min(filter(None, distances), default=None)


def far_from(least: float | None, distance: float | None) -> bool:
    """Whether the cores are further apart than they can be."""
    return bool(least and distance and distance > FAR * least)


def is_far(row: Result, rows: Iterable[Result]) -> bool:
    """Whether a row was measured while the cores were further apart than in the nearest of all rows."""
    return far_from(nearest(other.get("crossing_ns") for other in rows), row.get("crossing_ns"))
