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

from . import overhead, report, sampling
from .cases import OURS, Family
from .measure import copy_bandwidth, copy_samples, measure_row
from .peers import set_threads, title, versions

FAMILIES = {family.name: family for family in (sampling.FAMILY,)}
PIPED_WIDTH = 220
Result = dict[str, Any]


def _output(*command: str) -> str:
    """Return what a command prints, or nothing where it fails."""
    try:
        done = subprocess.run(command, cwd=overhead.ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def machine() -> Result:
    """Return what the times depend on besides the sides' versions."""
    from cudakit.host import compiler

    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return {
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


def measure(name: str, threads: int, pattern: str, small: bool) -> Result:
    """Measure the rows of a family with one number of threads, in this process."""
    set_threads(threads)
    family, console = FAMILIES[name], Console(stderr=True)
    copies, rows = copy_samples(threads), []
    for row in family.rows(small):
        if re.search(pattern, row.name):
            rows.append(measure_row(family, row, threads))
            best = report.fastest_rival(rows[-1], family.rivals)
            rival = "" if best is None else f", fastest rival {best:.2f}×"
            time = rows[-1]["sides"][OURS]["median_ms"]
            console.print(f"{threads} thread(s): {row.name} {time:.3f} ms{rival}", highlight=False)
    return {"threads": threads, "copy_gb_per_s": copy_bandwidth(copies + copy_samples(threads)), "rows": rows}


def measure_overhead() -> Result:
    """Measure what is not computing."""
    return {"call_us": overhead.call_overhead(), "start_ms": overhead.start_up()}


def in_new_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Run a function in an interpreter of its own: some libraries take their number of threads only once."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def measure_all(family: Family, options: argparse.Namespace) -> Result:
    """Return everything about one family that is written down."""
    before = machine()  # whose load is not ours yet
    extra = None if options.no_overhead else in_new_process(measure_overhead)
    runs = [in_new_process(measure, family.name, threads, options.rows, options.small) for threads in options.threads]
    return {
        "family": family.name,
        "small": options.small,
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": before,
        "versions": versions(),
        "runs": runs,
        "overhead": extra,
    }


def disagreements(results: Result) -> list[str]:
    """Return a line for every side that does not compute what cudakit does."""
    return [
        f"{row['row']}, {run['threads']} thread(s): {title(side)}: {message}"
        for run in results["runs"]
        for row in run["rows"]
        for side, message in row["disagreements"].items()
    ]


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--family", choices=FAMILIES, default="sampling")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of threads, one run for each")
    parser.add_argument("--rows", default="", metavar="PATTERN", help="only rows whose name this expression finds")
    parser.add_argument("--small", action="store_true", help="small sizes: a check that everything runs")
    parser.add_argument("--no-overhead", action="store_true", help="leave out call overhead, import and first call")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    return parser.parse_args(given)


def main() -> int:
    """Measure, print and write; 1 if any two sides disagree."""
    options = arguments()
    family = FAMILIES[options.family]
    results = measure_all(family, options)
    report.show(results, family, Console(width=None if sys.stdout.isatty() else PIPED_WIDTH))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(report.markdown(results, family), encoding="utf-8")
    wrong = disagreements(results)
    for line in wrong:
        print(f"disagreement: {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
