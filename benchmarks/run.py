"""Measure cudakit beside its peers: ``python -m benchmarks.run --help``."""

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console

from . import deformable, gpu, memory, overhead, report, sampling
from .cases import OURS, Family
from .measure import CPU, Device, copy_bandwidth, copy_samples, measure_row
from .peers import present, set_threads, title, versions

FAMILIES = {
    "cpu": {family.name: family for family in (sampling.FAMILY, deformable.FAMILY)},
    "cuda": {family.name: family for family in (deformable.GPU_FAMILY, sampling.GPU_FAMILY)},
}
PIPED_WIDTH = 220
Result = dict[str, Any]


def _output(*command: str) -> str:
    """Return what a command prints, or nothing where it fails."""
    try:
        done = subprocess.run(command, cwd=overhead.ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine(device: str) -> Result:
    """Return what the times depend on besides the sides' versions."""
    from cudakit.host import compiler

    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return {
        **(gpu.describe() if device == "cuda" else {}),
        "cpu": found[1] if found else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "compiler": (_output(*compiler(), "--version").splitlines() or ["unknown compiler"])[0],
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
    }


def commit() -> str:
    """Return the commit that is measured."""
    name = _output("git", "rev-parse", "--short", "HEAD") or "unknown"
    return name + (" with changes" if _output("git", "status", "--porcelain", "--", "cudakit", "cuda_src") else "")


def measure_rows(family: Family, options: argparse.Namespace, label: str, threads: int, device: Device) -> Result:
    """Measure the rows that were asked for; one that cudakit fails in does not keep the others from being measured."""
    console, rows, failed = Console(stderr=True), [], {}
    for row in family.rows(options.small):
        if not re.search(options.rows, row.name):
            continue
        try:
            rows.append(measure_row(family, row, threads, device))
        except Exception as error:
            failed[row.name] = f"{type(error).__name__}: {error}"
            console.print(f"{label}: {row.name}: {failed[row.name]}", highlight=False)
            continue
        best = report.fastest_rival(rows[-1], family.rivals)
        rival = "" if best is None else f", fastest rival {best:.2f}×"
        time = rows[-1]["sides"][OURS]["median_ms"]
        console.print(f"{label}: {row.name} {time:.3f} ms{rival}", highlight=False)
    return {"label": label, "threads": threads, "rows": rows, "failed": failed}


def measure(options: argparse.Namespace, threads: int) -> Result:
    """Measure the rows with one number of threads, in this process."""
    set_threads(threads)
    copies = copy_samples(threads)
    label = f"{threads} thread{'s' * (threads > 1)}"
    run = measure_rows(FAMILIES["cpu"][options.family], options, label, threads, CPU)
    return {**run, "copy_gb_per_s": copy_bandwidth(copies + copy_samples(threads))}


def measure_on_gpu(options: argparse.Namespace) -> Result:
    """Measure the rows on the GPU."""
    bandwidth = gpu.copy_bandwidth()
    run = measure_rows(FAMILIES["cuda"][options.family], options, "GPU", 1, gpu.device())
    return {**run, "copy_gb_per_s": bandwidth}


def measure_overhead(name: str) -> Result:
    """Measure what is not computing."""
    family = FAMILIES["cpu"][name]
    return {
        "title": family.tiny.title,
        "call_us": overhead.call_overhead(family),
        "start_ms": overhead.start_up(family.tiny),
    }


def peak_memory(name: str, row_name: str, side: str, threads: int) -> int | None:
    """Measure the peak memory of a call, in this process."""
    set_threads(threads)
    family = FAMILIES["cpu"][name]
    (row,) = (row for row in family.rows(False) if row.name == row_name)
    return memory.peak(family.sides[side], family.tiny.row, row, threads)


def measure_memory(family: Family, threads: int) -> Result:
    """Measure the peak memory of every side in the family's rows for that."""
    sides = [side for side in family.sides if present(side) and side not in family.floors]
    found = {
        row: {side: in_new_process(peak_memory, family.name, row, side, threads) for side in sides}
        for row in family.memory
    }
    return {"threads": threads, "rows": found}


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in an interpreter of its own: some libraries take their number of threads only once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure_all(family: Family, options: argparse.Namespace) -> Result:
    """Return everything about one family that is written down."""
    before = machine(options.device)  # whose load is not ours yet
    extras: Result = {}
    if options.device == "cuda":
        runs = [measure_on_gpu(options)]
    else:
        if not options.no_overhead:
            extras["overhead"] = in_new_process(measure_overhead, family.name)
            extras["memory"] = measure_memory(family, max(options.threads))
        runs = [in_new_process(measure, options, threads) for threads in options.threads]
    return {
        "family": family.name,
        "device": options.device,
        "small": options.small,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": before,
        "versions": versions(family.sides),
        "runs": runs,
        **extras,
    }


def complaints(results: Result) -> list[str]:
    """Return a line for every row that cudakit fails in, and every side that does not compute what cudakit does."""
    found = []
    for run in results["runs"]:
        found += [f"{run['label']}: {row}: {message}" for row, message in run["failed"].items()]
        for row in run["rows"]:
            wrong = row["disagreements"].items()
            found += [f"{run['label']}: {row['row']}: {title(side)}: {message}" for side, message in wrong]
    return found


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--device", choices=FAMILIES, default="cpu")
    parser.add_argument("--family", choices=FAMILIES["cpu"], help="sampling, or on a GPU deformable, by default")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of CPU threads, one run for each")
    parser.add_argument("--rows", default="", metavar="PATTERN", help="only rows whose name this expression finds")
    parser.add_argument("--small", action="store_true", help="small sizes: a check that everything runs")
    parser.add_argument(
        "--no-overhead", action="store_true", help="leave out call overhead, import, first call and peak memory"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    options = parser.parse_args(given)
    options.family = options.family or next(iter(FAMILIES[options.device]))
    if options.device == "cuda" and not gpu.available():
        parser.error("--device cuda needs PyTorch with CUDA, CuPy, and a GPU that both can use")
    return options


def main() -> int:
    """Measure, print and write; 1 if any row fails or any two sides disagree."""
    options = arguments()
    family = FAMILIES[options.device][options.family]
    results = measure_all(family, options)
    report.show(results, family, Console(width=None if sys.stdout.isatty() else PIPED_WIDTH))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(report.markdown(results, family), encoding="utf-8")
    wrong = complaints(results)
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
