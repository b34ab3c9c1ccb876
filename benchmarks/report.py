"""The results as tables: on the terminal and in Markdown."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import rich.table
from rich.console import Console

from . import gpu, growth
from .cases import OURS, Family
from .distance import is_far
from .families import FAMILIES, GROWTH
from .measure import Result
from .overhead import BARE, BEYOND
from .peers import title
from .tables import NOTHING, Table, in_words, markdown_lines, number

DISTURBED = "ᵈ: disturbed; nearly every call waited for a core, or found it slowed down by other load."
FAR = "ᶠ: the cores were further apart than in other rows; see README.md."
HALF = (
    "Rows in half precision are on PyTorch's tensors. Their errors are against the same arrays in float32; peers work "
    "out coordinates in the arrays' dtype, and only cudakit's errors are limited."
)
MEDIANS = (
    "Medians; in brackets, how many times as long as cudakit, in the same rounds. Of roofline: the time of copying (m) "
    "or of the matrix product (a), whichever is longer, over cudakit's. [README.md](README.md) says how."
)
Part = tuple[str, Sequence[str], Iterable[Table]]  # title, notes, tables


def fastest_rival(row: Result, rivals: Iterable[str]) -> float | None:
    """Return how many times as long as cudakit the fastest rival takes."""
    return min((row["ratios"][side] for side in rivals if side in row["ratios"]), default=None)


def row_line(row: Result, rivals: Iterable[str]) -> str:
    """Return a line about a row that has just been measured."""
    best = fastest_rival(row, rivals)
    rival = "" if best is None else f", fastest rival {best:.2f}×"
    return f"{row['row']} {row['sides'][OURS]['median_ms']:.3f} ms{rival}"


def _time(time: Result) -> str:
    return number(time["median_ms"]) + ("ᵈ" if time["disturbed"] else "")


def _cells(row: Result, peers: list[str], rivals: Iterable[str], far: bool) -> list[str]:
    ours, best = row["sides"][OURS], fastest_rival(row, rivals)
    low, high = ours["quartiles_ms"]
    cells = [row["row"] + "ᶠ" * far, _time(ours), f"{number(low)}–{number(high)}"]
    cells += [number(row["gb_per_s"]), number(row["gflop_per_s"])]
    cells += [f"{row['roofline_share']:.0%} ({row['bound'][0]})"]
    for side in peers:
        time = row["sides"].get(side)
        ratio = row["ratios"].get(side, 0.0)
        wrong = " ≠" if side in row["disagreements"] else ""
        cells.append(f"{_time(time)} ({number(ratio)}×){wrong}" if time else NOTHING)
    return [*cells, f"{number(best)}×" if best is not None else NOTHING]


def tables(run: Result, family: Family) -> Iterator[Table]:
    """Yield the tables of every section, and those of errors."""
    sections = dict.fromkeys(row["section"] for row in run["rows"])
    for section in sections:
        found = [row for row in run["rows"] if row["section"] == section]
        peers = [side for side in family.sides if any(side in row["ratios"] for row in found)]
        head = ["row", f"{OURS} ms", "quartiles", "GB/s", "GFLOP/s", "of roofline"]
        head += [f"{title(side)} (floor)" if side in family.floors else title(side) for side in peers]
        cells = [_cells(row, peers, family.rivals, is_far(row, run["rows"])) for row in found]
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
    heading = f"Peak memory beyond arguments and results, MB: {in_words(memory['threads'])}"
    return heading, ["row", *map(title, sides)], cells


def _megabytes(size: int | None) -> str:
    return NOTHING if size is None else number(size / 1e6)


def family_tables(found: Result, family: Family) -> Iterator[Table]:
    """Yield all tables of a family."""
    for run in found["runs"]:
        yield from tables(run, family)
    if "overhead" in found:
        yield overhead_table(found["overhead"])
    if found.get("memory", {}).get("rows"):
        yield memory_table(found["memory"])


def parts(results: Result) -> Iterator[Part]:
    """Yield the record's families, then growth."""
    for name, found in results["families"].items():
        family = FAMILIES[name]
        yield family.title, family_notes(found, family, results["device"]), family_tables(found, family)
    if GROWTH in results:
        yield growth.TITLE, growth.notes(results[GROWTH]), growth.tables(results[GROWTH])


def machine_lines(results: Result) -> list[str]:
    """Return what was measured where, a paragraph each."""
    machine = results["machine"]
    versions = results["versions"].items()
    there = ", ".join(f"{title(name)} {version}" for name, version in versions if version != "absent")
    absent = [title(name) for name, version in versions if version == "absent"]
    return [
        *([f"{machine['gpu']}; {machine['cuda']}."] if "gpu" in machine else []),
        f"{machine['cpu']}, {machine['cores']} cores; {results['date']}, commit {results['commit']}.",
        f"Python {machine['python']}, {machine['compiler']}; {there}."
        + f" Absent: {', '.join(absent)}." * bool(absent),
        *_limits(results),
    ]


def _limits(results: Result) -> Iterator[str]:
    """Yield a line of the limits that each run measured, and of what, where families were measured apart."""
    lines: dict[str, list[str]] = {}
    for name, found in results["families"].items():
        for run in found["runs"]:
            copies, rates = run["limits"]["copy_gb_per_s"], run["limits"]["gemm_gflop_per_s"]
            shown = {row["dtype"]: rates[row["dtype"]] for row in run["rows"]}
            products = ", ".join(f"{number(rate)} GFLOP/s in {dtype}" for dtype, rate in shown.items())
            line = f"{run['label']}: copy {number(copies)} GB/s, matrix product {products}."
            lines.setdefault(line, []).append(FAMILIES[name].title)
    for line, titles in lines.items():
        yield line if len(titles) == len(results["families"]) else f"{', '.join(titles)}, {line}"


def family_notes(found: Result, family: Family, device: str) -> list[str]:
    """Return what is to be known of a family's tables."""
    rows = [row for run in found["runs"] for row in run["rows"]]
    rivals = ", ".join(title(side) for side in family.rivals if any(side in row["sides"] for row in rows))
    disturbed = any(time["disturbed"] for row in rows for time in row["sides"].values())
    failed = Counter(failure for row in rows for failure in row["failures"].items())
    return [
        f"Fastest rival: the fastest of {rivals or 'none'}, over cudakit; above 1, cudakit is faster.",
        *family.notes,
        *(gpu.NOTES if device == "cuda" else ()),
        *((HALF,) if any(row["dtype"] != "float32" for row in rows) else ()),
        *((DISTURBED,) if disturbed else ()),
        *((FAR,) if any(is_far(row, run["rows"]) for run in found["runs"] for row in run["rows"]) else ()),
        *(f"{title(side)} failed in {count} row(s): {why}" for (side, why), count in failed.items()),
    ]


def show(results: Result, console: Console) -> None:
    """Print the record."""
    for line in machine_lines(results):
        console.print(line, highlight=False, soft_wrap=True)
    for name, notes, found in parts(results):
        console.rule(name)
        for table in found:
            show_table(table, console)
        for line in notes:
            console.print(f"- {line}", highlight=False, soft_wrap=True)


def show_table(table: Table, console: Console) -> None:
    """Print a table."""
    heading, head, rows = table
    shown = rich.table.Table(title=heading, title_justify="left", min_width=min(len(heading), console.width))
    for position, column in enumerate(head):
        shown.add_column(column, justify="right" if position else "left", no_wrap=position == 0)
    for cells in rows:
        shown.add_row(*cells)
    console.print(shown)


def markdown(results: Result, pictures: Sequence[str] = ()) -> str:
    """Write the record as a Markdown page that shows some pictures."""
    cuda = results["device"] == "cuda"
    lines = [
        f"# cudakit and its peers on a {'GPU' if cuda else 'CPU'}",
        "",
        f"Reproduce with `{results['command']}`.",
    ]
    if results["small"]:
        lines += ["", "**Small sizes: a check of the programme, not a measurement.**"]
    for line in machine_lines(results):
        lines += ["", line]
    lines += ["", MEDIANS]
    for picture in pictures:
        lines += ["", f"![{Path(picture).stem}]({picture})"]
    for name, notes, found in parts(results):
        lines += ["", f"## {name}", "", *(f"- {note}" for note in notes)]
        for heading, head, rows in found:
            lines += ["", f"### {heading}", "", *markdown_lines(head, rows)]
    return "\n".join([*lines, ""])
