"""How fast the cores work: a short loop of additions, which other work on the same core slows down.

A virtual machine's core is often half of a real one, whose other half computes for somebody else now and then, for
some milliseconds or for minutes. What runs meanwhile takes up to 1.8 times as long, and no clock of the system says so.
"""

import os
from ctypes import c_double, c_int
from functools import cache
from time import perf_counter, sleep

import cudakit

from .native import library

SLOWED = 1.15  # times the least time of the loop
TRIES = 200
LONGEST_WAIT = 0.1
PATIENCE = 0.05
TEXT = """
#include <pthread.h>
#include <sched.h>
#include <time.h>

static const int STEPS = 4000, BATCHES = 5, MOST = 256;

// As many instructions at a time as a core can start, so that another thread takes some of their places.
static double loop_ns() {
    timespec start, end;
    unsigned long a = 1, b = 2, c = 3, d = 4, e = 5, f = 6;
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (int i = 0; i < STEPS; ++i) {
        a += a >> 1, b ^= b << 1, c += c >> 2, d ^= d << 2, e += e >> 3, f ^= f << 3;
        __asm__ volatile("" : "+r"(a), "+r"(b), "+r"(c), "+r"(d), "+r"(e), "+r"(f));
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec);
}

static double median_ns() {
    double times[BATCHES];
    for (int i = 0; i < BATCHES; ++i) {
        const double found = loop_ns();
        int at = i;
        for (; at > 0 && times[at - 1] > found; --at) times[at] = times[at - 1];
        times[at] = found;
    }
    return times[BATCHES / 2];
}

struct Probe {
    int core;
    double ns;
};

static void* on_core(void* given) {
    Probe* probe = (Probe*)given;
#ifdef __linux__
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(probe->core, &set);
    sched_setaffinity(0, sizeof set, &set);
#endif
    probe->ns = median_ns();
    return 0;
}

// Of the slowest of these cores, or of the caller's where there are none or no threads to be had.
extern "C" __attribute__((visibility("default"))) double pace_ns(const int* cores, int count) {
    pthread_t threads[MOST];
    Probe probes[MOST];
    double slowest = 0;
    count = count < MOST ? count : MOST;
    for (int i = 0; i < count; ++i) {
        probes[i].core = cores[i];
        probes[i].ns = 0;
        if (pthread_create(&threads[i], 0, on_core, &probes[i]) != 0) count = i;
    }
    for (int i = 0; i < count; ++i) {
        pthread_join(threads[i], 0);
        if (probes[i].ns > slowest) slowest = probes[i].ns;
    }
    return slowest > 0 ? slowest : median_ns();
}
"""


def pace_ns(threads: int) -> float:
    """Return the nanoseconds of the loop on the slowest core that so many threads use; 0 where they are unknown."""
    native = library(TEXT)
    if native is None:
        return 0.0
    native.pace_ns.restype = c_double
    many = threads > 1 and hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if many else []
    return float(native.pace_ns((c_int * len(cores))(*cores), len(cores)))


class Watch:
    """Knows the least time of the loop so far, and how long it has waited for it."""

    def __init__(self) -> None:
        self._start = perf_counter()
        self._waited = 0.0
        self._least = min(pace_ns(1) for _ in range(TRIES))

    def at_full_pace(self) -> bool:
        """Whether nothing else slows down the cores that the libraries use at the moment."""
        found = pace_ns(cudakit.get_num_threads())
        self._least = min(self._least, found)
        return found <= SLOWED * self._least

    def await_full_pace(self) -> bool:
        """The same after a wait, if need be: of `LONGEST_WAIT` at most, and of `PATIENCE` of all the time so far."""
        begin = perf_counter()
        limit = min(LONGEST_WAIT, PATIENCE * (begin - self._start) - self._waited)
        while not self.at_full_pace():
            self._waited += (now := perf_counter()) - begin
            if (limit := limit - (now - begin)) <= 0:
                return False
            begin = now
            sleep(0.001)
        return True


watch = cache(Watch)
