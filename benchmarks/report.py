"""The results as tables: on the terminal and in Markdown."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from .cases import OURS, Family
from .overhead import BARE, BEYOND
from .peers import title

Result = dict[str, Any]
NOTHING = "–"
DISTURBED = "ᵈ: disturbed; nearly every call waited for a core: other load, or more threads of its own than cores."
RESULTS = "benchmarks/results"
COMMAND = "python -m benchmarks.run --family {0} --threads 1 2"
COMMAND += f" --json {RESULTS}/cpu-{{0}}.json --markdown {RESULTS}/cpu-{{0}}.md"


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


def tables(run: Result, family: Family) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Yield (heading, column titles, cells) of every section of one number of threads."""
    threads, bandwidth = run["threads"], run["copy_gb_per_s"]
    sections = dict.fromkeys(row["section"] for row in run["rows"])
    for section in sections:
        found = [row for row in run["rows"] if row["section"] == section]
        peers = [side for side in family.sides if any(side in row["ratios"] for row in found)]
        head = ["row", f"{OURS} ms", "quartiles", "GB/s", "of copy", *map(title, peers), "fastest rival"]
        cells = [_cells(row, peers, family.rivals, bandwidth) for row in found]
        yield f"{section}: {threads} thread{'s' * (threads > 1)}", head, cells


def overhead_table(overhead: Result) -> tuple[str, list[str], list[list[str]]]:
    """Return (heading, column titles, cells) of the times besides the computing."""
    own = (BARE, BEYOND)
    calls = {name if name in own else f"{title(name)}, a call": time for name, time in overhead["call_us"].items()}
    rows = [[name, f"{number(time)} µs"] for name, time in calls.items()]
    rows += [[name, f"{number(time)} ms"] for name, time in overhead["start_ms"].items()]
    return "Besides the computing: grid_sample (1, 1, 4, 4) to (1, 1, 2, 2), 1 thread", ["what", "median"], rows


def _all_tables(report: Result, family: Family) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    for run in report["runs"]:
        yield from tables(run, family)
    if report["overhead"]:
        yield overhead_table(report["overhead"])


def _machine_lines(report: Result) -> list[str]:
    machine = report["machine"]
    there = ", ".join(f"{title(name)} {version}" for name, version in report["versions"].items() if version != "absent")
    absent = [title(name) for name, version in report["versions"].items() if version == "absent"]
    copies = ", ".join(f"{number(run['copy_gb_per_s'])} GB/s with {run['threads']}" for run in report["runs"])
    return [
        f"{machine['cpu']}, {machine['cores']} cores; {report['date']}, commit {report['commit']}.",
        f"Python {machine['python']}, {machine['compiler']}; {there}."
        + f" Absent: {', '.join(absent)}." * bool(absent),
        f"Copying 256 MB, read and written: {copies} thread(s)." * bool(copies),
    ]


def _notes(report: Result, family: Family) -> tuple[str, ...]:
    times = (time for run in report["runs"] for row in run["rows"] for time in row["sides"].values())
    disturbed = any(time["disturbed"] for time in times)
    return (*family.notes, *((DISTURBED,) if disturbed else ()))


def show(report: Result, family: Family, console: Console) -> None:
    """Print the report."""
    for line in _machine_lines(report):
        console.print(line, highlight=False, soft_wrap=True)
    for heading, head, rows in _all_tables(report, family):
        table = Table(title=heading, title_justify="left", min_width=len(heading))
        for position, column in enumerate(head):
            table.add_column(column, justify="right" if position else "left", no_wrap=position == 0)
        for cells in rows:
            table.add_row(*cells)
        console.print(table)
    for line in _notes(report, family):
        console.print(f"- {line}", highlight=False, soft_wrap=True)


def markdown(report: Result, family: Family) -> str:
    """Write the report as a Markdown page."""
    lines = [f"# {family.name.capitalize()} on a CPU", "", f"Reproduce with `{COMMAND.format(family.name)}`.", ""]
    if report["small"]:
        lines += ["**Small sizes: a check of the programme, not a measurement.**", ""]
    lines += ["\n\n".join(_machine_lines(report)), ""]
    lines += [
        "Medians; in brackets, how many times as long as cudakit. See [README.md](README.md) for what is measured.",
        "",
    ]
    rivals = ", ".join(map(title, family.rivals))
    lines += [f"- Fastest rival: the fastest of {rivals}, over cudakit; above 1, cudakit is faster."]
    lines += [f"- {note}" for note in _notes(report, family)]
    for heading, head, rows in _all_tables(report, family):
        lines += ["", f"## {heading}", "", _line(head), _line(["---", *["---:"] * (len(head) - 1)])]
        lines += [_line(cells) for cells in rows]
    return "\n".join([*lines, ""])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
