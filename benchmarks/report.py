"""The results as tables: on the terminal and in Markdown."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import rich.table
from rich.console import Console

from . import gpu
from .cases import OURS, Family
from .overhead import BARE, BEYOND
from .peers import title

Result = dict[str, Any]
NOTHING = "–"
DISTURBED = "ᵈ: disturbed; nearly every call waited for a core: other load, or more threads of its own than cores."
RESULTS = "benchmarks/results"
COMMAND = "python -m benchmarks.run {options} --json {page}.json --markdown {page}.md"
Table = tuple[str, list[str], list[list[str]]]  # heading, titles of the columns, cells


def number(value: float) -> str:
    """Write three significant digits, all of those before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def fastest_rival(row: Result, rivals: Iterable[str]) -> float | None:
    """Return how many times as long as cudakit the fastest rival takes."""
    return min((row["ratios"][side] for side in rivals if side in row["ratios"]), default=None)


def _time(time: Result) -> str:
    return number(time["median_ms"]) + ("ᵈ" if time["disturbed"] else "")


def _cells(row: Result, peers: list[str], rivals: Iterable[str], bandwidth: float) -> list[str]:
    ours, best = row["sides"][OURS], fastest_rival(row, rivals)
    low, high = ours["quartiles_ms"]
    cells = [row["row"], _time(ours), f"{number(low)}–{number(high)}"]
    cells += [number(row["gb_per_s"]), f"{row['gb_per_s'] / bandwidth:.0%}"]
    for side in peers:
        time = row["sides"].get(side)
        ratio = row["ratios"].get(side, 0.0)
        wrong = " ≠" if side in row["disagreements"] else ""
        cells.append(f"{_time(time)} ({number(ratio)}×){wrong}" if time else NOTHING)
    return [*cells, f"{number(best)}×" if best is not None else NOTHING]


def tables(run: Result, family: Family) -> Iterator[Table]:
    """Yield the tables of every section, and those of errors."""
    bandwidth = run["copy_gb_per_s"]
    sections = dict.fromkeys(row["section"] for row in run["rows"])
    for section in sections:
        found = [row for row in run["rows"] if row["section"] == section]
        peers = [side for side in family.sides if any(side in row["ratios"] for row in found)]
        head = ["row", f"{OURS} ms", "quartiles", "GB/s", "of copy"]
        head += [f"{title(side)} (floor)" if side in family.floors else title(side) for side in peers]
        cells = [_cells(row, peers, family.rivals, bandwidth) for row in found]
        yield f"{section}: {run['label']}", [*head, "fastest rival"], cells
    half = [row for row in run["rows"] if row["dtype"] != "float32"]
    if half:
        sides = [side for side in family.sides if any(side in row["errors"] for row in half)]
        cells = [[row["row"], *(_error(row["errors"].get(side)) for side in sides)] for row in half]
        yield f"Largest errors in half precision: {run['label']}", ["row", *map(title, sides)], cells


def _error(error: float | None) -> str:
    return NOTHING if error is None else f"{error:.1e}"


def overhead_table(overhead: Result) -> Table:
    """Return the table of the times besides the computing."""
    own = (BARE, BEYOND)
    calls = {name if name in own else f"{title(name)}, a call": time for name, time in overhead["call_us"].items()}
    rows = [[name, f"{number(time)} µs"] for name, time in calls.items()]
    rows += [[name, f"{number(time)} ms"] for name, time in overhead["start_ms"].items()]
    return f"Besides the computing: {overhead['title']}, 1 thread", ["what", "median"], rows


def memory_table(memory: Result) -> Table:
    """Return the table of the peak memory of calls."""
    rows = memory["rows"]
    sides = [side for side in next(iter(rows.values())) if any(found[side] is not None for found in rows.values())]
    cells = [[row, *(_megabytes(found[side]) for side in sides)] for row, found in rows.items()]
    heading = f"Peak memory beyond arguments and results, MB: {memory['threads']} thread(s)"
    return heading, ["row", *map(title, sides)], cells


def _megabytes(size: int | None) -> str:
    return NOTHING if size is None else number(size / 1e6)


def _all_tables(report: Result, family: Family) -> Iterator[Table]:
    for run in report["runs"]:
        yield from tables(run, family)
    if "overhead" in report:
        yield overhead_table(report["overhead"])
    if report.get("memory", {}).get("rows"):
        yield memory_table(report["memory"])


def machine_lines(report: Result) -> list[str]:
    """Return what was measured where, a paragraph each."""
    machine = report["machine"]
    there = ", ".join(f"{title(name)} {version}" for name, version in report["versions"].items() if version != "absent")
    absent = [title(name) for name, version in report["versions"].items() if version == "absent"]
    copies = ", ".join(f"{number(run['copy_gb_per_s'])} GB/s ({run['label']})" for run in report["runs"])
    return [
        *([f"{machine['gpu']}; {machine['cuda']}."] if "gpu" in machine else []),
        f"{machine['cpu']}, {machine['cores']} cores; {report['date']}, commit {report['commit']}.",
        f"Python {machine['python']}, {machine['compiler']}; {there}."
        + f" Absent: {', '.join(absent)}." * bool(absent),
        *([f"Copying, read and written: {copies}."] if copies else []),
    ]


def _notes(report: Result, family: Family) -> tuple[str, ...]:
    rows = [row for run in report["runs"] for row in run["rows"]]
    disturbed = any(time["disturbed"] for row in rows for time in row["sides"].values())
    failed = Counter(failure for row in rows for failure in row["failures"].items())
    failures = (f"{title(side)} failed in {count} row(s): {why}" for (side, why), count in failed.items())
    device = gpu.NOTES if report["device"] == "cuda" else ()
    return (*family.notes, *device, *((DISTURBED,) if disturbed else ()), *failures)


def show(report: Result, family: Family, console: Console) -> None:
    """Print the report."""
    for line in machine_lines(report):
        console.print(line, highlight=False, soft_wrap=True)
    for heading, head, rows in _all_tables(report, family):
        table = rich.table.Table(title=heading, title_justify="left", min_width=len(heading))
        for position, column in enumerate(head):
            table.add_column(column, justify="right" if position else "left", no_wrap=position == 0)
        for cells in rows:
            table.add_row(*cells)
        console.print(table)
    for line in _notes(report, family):
        console.print(f"- {line}", highlight=False, soft_wrap=True)


def markdown(report: Result, family: Family) -> str:
    """Write the report as a Markdown page."""
    cuda = report["device"] == "cuda"
    options = "--device cuda" if cuda else f"--family {family.name} --threads 1 2"
    command = COMMAND.format(options=options, page=f"{RESULTS}/{'gpu' if cuda else 'cpu'}-{family.name}")
    lines = [f"# {family.title} on a {'GPU' if cuda else 'CPU'}", "", f"Reproduce with `{command}`.", ""]
    if report["small"]:
        lines += ["**Small sizes: a check of the programme, not a measurement.**", ""]
    lines += ["\n\n".join(machine_lines(report)), ""]
    lines += [
        "Medians; in brackets, how many times as long as cudakit. See [README.md](README.md) for what is measured.",
        "",
    ]
    rivals = ", ".join(map(title, family.rivals))
    lines += [f"- Fastest rival: the fastest of {rivals}, over cudakit; above 1, cudakit is faster."]
    lines += [f"- {note}" for note in _notes(report, family)]
    for heading, head, rows in _all_tables(report, family):
        lines += ["", f"## {heading}", "", *table_lines(head, rows)]
    return "\n".join([*lines, ""])


def table_lines(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]
