"""Measure cudakit beside its peers, and gather all that gets written down."""

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, product
from operator import itemgetter
from tempfile import TemporaryDirectory
from typing import NamedTuple

from rich.console import Console

import cudakit
from cudakit.cpuinfo import core_count, processor_name

from . import deformable, gpu, growth, limits, memory, overhead, tensors
from .cases import OURS, Family, Row, in_dtype
from .distance import nearest
from .families import FAMILIES, GROWTH
from .limits import Limits, against
from .measure import CPU, Device, Result
from .parts import ALL, PROCESSES, Part, Share, measure_part, together
from .peers import PEERS, forget_libraries, keep_compiled, present, set_threads, title, versions
from .processes import in_new_process
from .progress import progress
from .report import row_line
from .tables import in_words


class Choice(NamedTuple):
    """What is to be measured.

    `families` may name growth, too; `peers` beside cudakit; `rows` is a regular expression that a row's name must
    contain; `threads` are numbers of CPU threads; `extras`: call overhead, import, first call and peak memory.
    """

    families: Sequence[str]
    device: str
    dtypes: Sequence[str]
    peers: Sequence[str]
    threads: Sequence[int]
    rows: str
    small: bool
    extras: bool


class Found(NamedTuple):
    """What a process found about rows, by their names, and why cudakit failed in others."""

    rows: dict[str, Part]
    failed: dict[str, str]


Measured = tuple[dict[str, Found], Limits]  # by one process, of every family


def _output(*command: str) -> str:
    """Return what a command prints, or nothing where it fails."""
    try:
        done = subprocess.run(command, cwd=overhead.ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine(device: str) -> Result:
    """Return what the times depend on besides the sides' versions."""
    from cudakit.compiler import commands

    return {
        **(gpu.describe() if device == "cuda" else {}),
        "cpu": processor_name(),
        "cores": core_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "compiler": (_output(*next(iter(commands()), ("c++",)), "--version").splitlines() or ["no compiler"])[0],
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def commit() -> str:
    """Return the commit that is measured."""
    if not (overhead.ROOT / ".git").exists():  # installed, perhaps inside somebody else's repository
        return f"of version {cudakit.__version__}"
    name = _output("git", "rev-parse", "--short", "HEAD") or "unknown"
    return name + (" with changes" if _output("git", "status", "--porcelain", "--", "cudakit", "cuda_src") else "")


def matching(family: Family, choice: Choice) -> Iterator[tuple[str, Row]]:
    """Yield the rows that were asked for, each with its dtype."""
    rows = family.gpu_rows if choice.device == "cuda" else family.rows
    for dtype, row in product(choice.dtypes, rows(choice.small)):
        found = in_dtype(row, dtype)
        if re.search(choice.rows, found.name):
            yield dtype, found


def chosen(family: Family, choice: Choice) -> Iterator[tuple[Family, Row, Device]]:
    """Yield the rows that were asked for, each with the sides that can take its arrays, and with its device."""
    family = family.only(choice.peers)
    for dtype, rows in groupby(matching(family, choice), key=itemgetter(0)):
        on_numpy = choice.device == "cpu" and dtype == "float32"
        sides = family if on_numpy else family.only(family.on_tensors)
        device = CPU if on_numpy else tensors.on_cpu() if choice.device == "cpu" else gpu.device()
        for _, row in rows:
            yield sides, row, device


def measure_rows(family: Family, choice: Choice, label: str, threads: int, share: Share = ALL) -> Found:
    """Measure a part of the rows' rounds; a row that cudakit fails in does not keep the others from being measured."""
    rows: dict[str, Part] = {}
    failed: dict[str, str] = {}
    work = list(chosen(family, choice))
    forget_libraries({side for sides, _, _ in work for side in sides.sides})
    with progress() as bar:
        task = bar.add_task(f"{family.name}, {label}", total=len(work))
        for sides, row, device in work:
            bar.update(task, description=f"{family.name}, {label}: {row.name}")
            try:
                rows[row.name] = measure_part(sides, row, threads, device, share)
            except Exception as error:
                failed[row.name] = f"{type(error).__name__}: {error}"
                bar.console.print(f"{label}: {row.name}: {failed[row.name]}")
            bar.advance(task)
    return Found(rows, failed)


def measure(names: Sequence[str], choice: Choice, threads: int, share: Share, folder: str) -> Measured:
    """Measure a part of the rounds of families' rows with one number of threads, in this process.

    What is compiled for that number goes into the folder, for the next part.
    """
    memory.keep_freed()
    keep_compiled(folder)
    set_threads(threads)
    label = f"{in_words(threads)}, {share.part + 1} of {share.parts}" if share.parts > 1 else in_words(threads)
    return limits.on_cpu(
        threads,
        choice.dtypes,
        lambda: {name: measure_rows(FAMILIES[name], choice, label, threads, share) for name in names},
    )


def joined(name: str, choice: Choice, label: str, threads: int, measured: Sequence[Measured]) -> Result:
    """Return a run: every row of what its parts, during which the cores were near, say together."""
    family, typical = FAMILIES[name], limits.typical([reached for _, reached in measured])
    found = [families[name] for families, _ in measured]
    least = nearest(part.crossing_ns for one in found for part in one.rows.values())
    rows = []
    for _, row in matching(family, choice):
        parts = [one.rows[row.name] for one in found if row.name in one.rows]
        if parts:
            result = together(row, parts, least)
            rows.append(result | against(result, typical))
    failed = {row: message for one in found for row, message in one.failed.items()}
    console = Console(stderr=True, highlight=False)
    for result in rows:
        console.print(f"{label}: {row_line(result, family.rivals)}")
    return {"label": label, "threads": threads, "rows": rows, "failed": failed, "limits": typical._asdict()}


def measure_on_gpu(name: str, choice: Choice) -> Result:
    """Measure the rows on the GPU."""
    found = {name: measure_rows(FAMILIES[name], choice, "GPU", 1)}
    return joined(name, choice, "GPU", 1, [(found, gpu.limits(choice.dtypes))])


def measure_overhead(name: str, peers: Sequence[str]) -> Result:
    """Measure what is not computing."""
    family = FAMILIES[name].only(peers)
    return {
        "title": family.tiny.title,
        "call_us": overhead.call_overhead(family),
        "start_ms": overhead.start_up(family.tiny),
    }


def peak_memory(name: str, row_name: str, side: str, threads: int) -> int | None:
    """Measure the peak memory of a call, in this process; None for a peer that fails, which the row's table tells."""
    set_threads(threads)
    family = FAMILIES[name]
    (row,) = (row for row in family.rows(False) if row.name == row_name)
    try:
        return memory.peak(family.sides[side], family.tiny.row, row, threads)
    except Exception:
        if side == OURS:
            raise
        return None


def measure_memory(family: Family, threads: int) -> Result:
    """Measure the peak memory of every side in the family's rows for that."""
    sides = [side for side in family.sides if present(side) and side not in family.floors]
    work = list(product(family.memory, sides))

    def measured(pair: tuple[str, str]) -> int | None:
        found: int | None = in_new_process(threads, peak_memory, family.name, *pair, threads)
        return found

    with ThreadPoolExecutor(core_count()) as pool:  # a time does not matter here
        peaks = dict(zip(work, pool.map(measured, work), strict=True))
    return {"threads": threads, "rows": {row: {side: peaks[row, side] for side in sides} for row in family.memory}}


def measure_extras(name: str, choice: Choice) -> Result:
    """Return what is written down of a family besides its rows."""
    return {
        "overhead": in_new_process(1, measure_overhead, name, choice.peers),
        "memory": measure_memory(FAMILIES[name].only(choice.peers), max(choice.threads)),
    }


def measure_parts(names: Sequence[str], choice: Choice) -> dict[int, list[Measured]]:
    """Measure the rows of families, for each number of threads in several processes; these take turns."""
    parts = 1 if choice.small else PROCESSES
    found: dict[int, list[Measured]] = {threads: [] for threads in choice.threads}
    with TemporaryDirectory() as folder:
        for part, threads in product(range(parts), found):
            first = [rows for families, _ in found[threads][:1] for rows, _ in families.values()]
            known = {name: measured.seconds() for rows in first for name, measured in rows.items()}
            arguments = (names, choice, threads, Share(part, parts, known), f"{folder}/{threads}")
            found[threads].append(in_new_process(threads, measure, *arguments))
    return found


def measure_families(names: Sequence[str], choice: Choice) -> Result:
    """Return everything about families that is written down."""
    if choice.device == "cuda":
        return {name: {"runs": [measure_on_gpu(name, choice)]} for name in names}
    extras = {name: measure_extras(name, choice) if choice.extras else {} for name in names}
    found = measure_parts(names, choice) if names else {}

    def run(name: str, threads: int) -> Result:
        return joined(name, choice, in_words(threads), threads, found[threads])

    return {name: {"runs": [run(name, threads) for threads in found], **extras[name]} for name in names}


def measure_growth(choice: Choice) -> Result:
    """Return how times grow."""
    arguments = (choice.device, max(choice.threads), choice.peers, choice.small)
    if choice.device == "cuda":
        return growth.measure(*arguments)
    found: Result = in_new_process(max(choice.threads), growth.measure, *arguments)
    return found


def measure_all(choice: Choice) -> Result:
    """Return the whole record."""
    before = machine(choice.device)  # whose load is not ours yet
    families = [FAMILIES[name] for name in choice.families if name in FAMILIES]
    used = {side for family in families or [deformable.FAMILY] for side in family.sides}
    found = {
        "device": choice.device,
        "small": choice.small,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": before,
        "versions": versions(side for side in (OURS, *PEERS) if side in used & {OURS, *choice.peers}),
        "families": measure_families([family.name for family in families], choice),
    }
    return found | ({GROWTH: measure_growth(choice)} if GROWTH in choice.families else {})


def complaints(results: Result) -> list[str]:
    """Return a line for every row that cudakit fails in, and every side that does not compute what cudakit does."""
    found = []
    for run in (run for family in results["families"].values() for run in family["runs"]):
        found += [f"{run['label']}: {row}: {message}" for row, message in run["failed"].items()]
        for row in run["rows"]:
            wrong = row["disagreements"].items()
            found += [f"{run['label']}: {row['row']}: {title(side)}: {message}" for side, message in wrong]
    return found + (growth.complaints(results[GROWTH]) if GROWTH in results else [])
