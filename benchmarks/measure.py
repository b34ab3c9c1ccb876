"""Interleaved rounds of timed calls."""

import gc
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from itertools import cycle
from math import ceil, inf
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time, sleep
from typing import Any, NamedTuple

from .cases import OURS, Arrays, Family, Prepared, Row, aligned, disagreement, largest_error, traffic
from .pace import watch
from .peers import present

FEWEST_TURNS = 3
FEWEST_PAIRS = 5
BURST_SECONDS = 0.012
LONGEST_BURST = 10
WARM_SECONDS = 0.1  # calls that take longer need no untimed call before them
LONG_SECONDS = 0.25  # calls that take longer have their turns in one process
BUSY = 0.05  # share of its time that a call may wait for a core before it counts as disturbed
TASKS = Path("/proc/self/task")
NOTHING_KNOWN: Mapping[str, float] = {}

Result = dict[str, Any]


class Sample(NamedTuple):
    """Seconds of one call, and whether other load on the machine kept it waiting for a core or slowed the core down."""

    seconds: float
    disturbed: bool


Turns = dict[int, list[Sample]]  # of a side, by the number of the round


class Effort(NamedTuple):
    """How often sides take turns: in all of the `rounds`, or `fewest` times where that would take more `seconds`."""

    rounds: int = 15
    fewest: int = FEWEST_TURNS
    seconds: float = 0.5

    def turns(self, expected: float, parts: int) -> int:
        """Return how often a side takes turns in one of so many processes, if a call takes `expected` seconds."""
        fewest = self.fewest if expected >= LONG_SECONDS else ceil(self.fewest / parts)
        return min(max(int(self.seconds / parts / expected), fewest), ceil(self.rounds / parts))


WHOLE = Effort()


def waited() -> float:
    """Return the seconds that this process' threads have waited for a core so far; 0 where the system does not say."""
    total = 0
    for task in os.scandir(TASKS) if TASKS.is_dir() else ():
        with suppress(OSError), FileIO(f"{task.path}/schedstat") as file:  # unless the thread has just ended
            total += int(file.read().split()[1])
    return 1e-9 * total


def settle(limit: float = 0.1) -> None:
    """Wait until the threads of the last side, which may spin for a while after its call, are asleep."""
    end = perf_counter() + limit
    while perf_counter() < end:
        before = process_time()
        sleep(0.001)
        if process_time() - before < 0.0003:
            return


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of one call, its results' end included."""
    start = perf_counter()
    call()
    return perf_counter() - start


def burst(call: Callable[[], Any], count: int, warm: bool = False) -> list[Sample]:
    """Time a few calls in a row, after one that is not counted if `warm`, and see whether anything disturbed them."""
    settle()
    steady = watch().await_full_pace()
    if warm:
        call()
    before = waited()
    times = [timed(call) for _ in range(count)]
    late = waited() - before > BUSY * sum(times)
    settle()
    disturbed = late or not steady or not watch().at_full_pace()
    return [Sample(seconds, disturbed) for seconds in times]


def calm(samples: Sequence[Sample]) -> tuple[list[float], bool]:
    """Return the times that nothing disturbed, or all of them (and True) where those are too few."""
    chosen = [sample.seconds for sample in samples if not sample.disturbed]
    if len(chosen) >= min(FEWEST_TURNS, len(samples)):
        return chosen, False
    return [sample.seconds for sample in samples], True


def _turn(call: Callable[[], Any], expected: float) -> list[Sample]:
    return burst(call, min(max(int(BURST_SECONDS / expected), 1), LONGEST_BURST), warm=expected < WARM_SECONDS)


def summary(turns: Turns) -> Result:
    """Return median and quartiles in milliseconds, of how many calls they are, and whether those were disturbed."""
    seconds, disturbed = calm([sample for samples in turns.values() for sample in samples])
    low, middle, high = (1e3 * value for value in quantiles(seconds if len(seconds) > 1 else 2 * seconds, n=4))
    return {"median_ms": middle, "quartiles_ms": [low, high], "calls": len(seconds), "disturbed": disturbed}


def ratio(turns: Turns, ours: Turns) -> float:
    """Return how many times as long as cudakit a side takes.

    Each turn is held against cudakit's in the same round, and the median of these ratios is taken: what slows the
    machine down for a while slows down both. Where both were undisturbed in too few rounds, medians of all their
    undisturbed turns are compared, and where there are too few of those, too, disturbed rounds count.
    """
    steady, ours_steady = _steady(turns), _steady(ours)
    pairs = steady.keys() & ours_steady.keys()
    if len(pairs) < FEWEST_PAIRS:
        if min(len(steady), len(ours_steady)) < FEWEST_TURNS:
            steady, ours_steady, pairs = turns, ours, turns.keys() & ours.keys()
        else:
            pairs = set()
    if pairs:
        return median(_middle(turns[number]) / _middle(ours[number]) for number in pairs)
    return median(map(_middle, steady.values())) / median(map(_middle, ours_steady.values()))


def _steady(turns: Turns) -> Turns:
    """Return the turns that nothing disturbed."""
    return {number: turn for number, turn in turns.items() if not any(sample.disturbed for sample in turn)}


def _middle(samples: Sequence[Sample]) -> float:
    return median(sample.seconds for sample in samples)


class Device(NamedTuple):
    """Where the sides run.

    `copies` returns a row's arrays there, as many times as there are copies for calls to take in turn; `exact` returns
    the same values in float32. `turn` times several calls in a row, given about how long one takes, or one of a call of
    which that is not known yet (`inf`).
    """

    copies: Callable[[Row], list[Arrays]]
    exact: Callable[[Arrays], Arrays]
    turn: Callable[[Callable[[], Any], float], list[Sample]]


CPU = Device(lambda row: [aligned(row.make())], lambda arrays: arrays, _turn)


def _opening(
    calls: dict[str, Callable[[], Any]], device: Device, known: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, Turns]]:
    """Return about how many seconds each side's call takes, and the turns of those that need no untimed call.

    The first timed call of these, unless its length was known, is a turn of theirs, beside one of cudakit's, rather
    than thrown away.
    """
    expected = {side: known[side] for side in calls if side in known}
    found: dict[str, Turns] = {side: {} for side in calls}
    for number, (side, call) in enumerate(calls.items(), start=1):
        if side in known:
            continue
        turn = device.turn(call, inf)
        expected[side] = turn[0].seconds
        if expected[side] >= WARM_SECONDS:
            found[side][-number] = turn
            if side != OURS:
                found[OURS][-number] = device.turn(calls[OURS], expected[OURS])
    return expected, found


def interleaved(
    calls: dict[str, Callable[[], Any]],
    device: Device = CPU,
    effort: Effort = WHOLE,
    parts: int = 1,
    known: Mapping[str, float] = NOTHING_KNOWN,
) -> dict[str, Turns]:
    """Time several calls in turns: one side's burst, the next side's, and so on, round after round.

    Parameters
    ----------
    calls : dict of callable
        The sides, cudakit first, each called before.
    device : Device
        How they are timed.
    effort : Effort
        How many rounds there are; slow sides have fewer turns, spread over the rounds, and fast ones up to half as
        many more where half of them were disturbed, but not all. cudakit takes part in every round.
    parts : int
        How many processes share the rounds.
    known : mapping of float
        About how many seconds calls of sides take, found out by another process.

    Returns
    -------
    dict of dict
        The timed calls of each side's turns, by the number of the round.
    """
    rounds = ceil(effort.rounds / parts)
    gc.collect()
    gc.disable()
    try:
        expected, found = _opening(calls, device, known)
        opened = {side for side, seconds in expected.items() if seconds >= WARM_SECONDS and side not in known}
        count = {side: effort.turns(seconds, parts) - (side in opened) for side, seconds in expected.items()}
        for number in range(rounds + rounds // 2):
            if number < rounds:
                due = {side for side in calls if (number + 1) * count[side] // rounds > number * count[side] // rounds}
            else:
                due = {side for side in calls if count[side] == rounds and 0 < 2 * len(_steady(found[side])) < rounds}
            for side in calls if due else ():
                if side in due | {OURS}:
                    found[side][number] = turn = device.turn(calls[side], expected[side])
                    expected[side] = min(expected[side], *(sample.seconds for sample in turn))  # first calls are slower
    finally:
        gc.enable()
    return found


class Checked(NamedTuple):
    """The sides of a row, after one call of each.

    `traffic` is cudakit's, in bytes; `errors` are the largest ones of those that agree, `wrong` says how the others do
    not, `failures` why a side could not be called.
    """

    traffic: int
    calls: dict[str, Callable[[], Any]]
    errors: dict[str, float]
    wrong: dict[str, str]
    failures: dict[str, str]


def in_turn(ready: list[Prepared]) -> Callable[[], Any]:
    """Return a call that takes the copies of the arrays one after another."""
    if len(ready) == 1:
        return ready[0].call
    calls, held = cycle(prepared.call for prepared in ready), deque[Any](maxlen=len(ready))

    def call() -> None:
        held.append(next(calls)())  # so that results, too, lie elsewhere every time

    return call


def check(
    family: Family, row: Row, copies: list[Arrays], threads: int, device: Device = CPU, *, compare: bool = True
) -> Checked:
    """Prepare the sides that are installed and know the row's operator, and see whether they agree with cudakit.

    Without `compare` their results are not looked at, because another process does.
    """
    ours = family.sides[OURS](row, device.exact(copies[0]), threads)
    assert ours is not None
    expected = ours.results(ours.call())
    checked = Checked(traffic(row, copies[0], expected), {}, {}, {}, {})
    for side in filter(present, family.sides):
        try:
            made = [family.sides[side](row, arrays, threads) for arrays in copies]
            ready = [prepared for prepared in made if prepared is not None]
            returned = ready[0].call() if ready else None
            found = ready[0].results(returned) if ready and compare else ()
        except Exception as error:  # whatever a library raises where it lacks a dtype or memory
            if side == OURS:
                raise
            checked.failures[side] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        if ready:
            checked.calls[side] = in_turn(ready)
        if found and side not in family.floors:
            exact = side == OURS or row.dtype == "float32"  # peers work out coordinates in half precision too
            message = disagreement(row, found, expected, ready[0].slack if exact else inf)
            if message:
                checked.wrong[side] = message
            else:
                checked.errors[side] = largest_error(found, expected)
    return checked
