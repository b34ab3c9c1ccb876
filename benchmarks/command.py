"""``cudakit bench``: measure cudakit beside the peers that are installed."""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from cudakit.cli.command import UserError, check_writable, make_console, require, whole
from cudakit.cpuinfo import core_count
from cudakit.settings import MOST_THREADS

from .cases import TOLERANCES
from .families import FAMILIES, GROWTH
from .peers import PEERS, present

NAMES = (*FAMILIES, GROWTH)
DTYPES = tuple(TOLERANCES)
PIPED_WIDTH = 220  # columns of a table that no terminal limits
SHOWN_ROWS = 6  # where none was found


def _peers(text: str) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown peer {unknown[0]!r}; there are {', '.join(PEERS)}")
    return names


def _pattern(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("family", nargs="*", metavar="FAMILY", help=f"{', '.join(NAMES)}; by default all of them")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="what to measure; by default the CPU")
    add("--dtype", choices=DTYPES, nargs="+", help="by default float32 on a CPU, and all three on a GPU")
    add("--peers", type=_peers, metavar="NAMES", help=f"only these, with commas between: {', '.join(PEERS)}")
    threads = "numbers of CPU threads; by default 1 and one for each core"
    add("--threads", type=whole(1, MOST_THREADS), nargs="+", help=threads)
    add(
        "--rows",
        type=_pattern,
        default="",
        metavar="PATTERN",
        help="only rows in whose names, as tables have them, this is found",
    )
    add("--small", action="store_true", help="small sizes: a check that everything runs")
    add("--no-extras", action="store_true", help="leave out call overhead, import, first call and peak memory")
    add("--against", type=Path, metavar="FILE", help="an earlier --json file to compare ratios with")
    add("--json", type=Path, metavar="FILE", help="write every number")
    add("--markdown", type=Path, metavar="FILE", help="write the tables")
    add("--plot", type=Path, metavar="FILE", help="draw ratios, roofline and growth; each family in a file of its own")


def run(args: argparse.Namespace) -> int:
    """Measure, print and write; return 1 if any row fails or any two sides disagree."""
    _check(args)
    names = (".record", ".report", ".comparison")
    record, report, comparison = (import_module(name, __package__) for name in names)
    before = _earlier(args.against, comparison) if args.against else None
    choice = record.Choice(
        families=args.family or (tuple(FAMILIES) if args.rows else NAMES),
        device=args.device,
        dtypes=args.dtype or (DTYPES if args.device == "cuda" else DTYPES[:1]),
        peers=tuple(PEERS) if args.peers is None else args.peers,
        threads=args.threads or sorted({1, core_count()}),
        rows=args.rows,
        small=args.small,
        extras=not (args.no_extras or args.small),
    )
    families = [FAMILIES[name] for name in choice.families if name != GROWTH]
    empty = [family.name for family in families if not any(True for _ in record.matching(family, choice))]
    if families and len(empty) == len(families):
        known = [row.name for family in families for _, row in record.matching(family, choice._replace(rows=""))]
        more = f" and {len(known) - SHOWN_ROWS} more" if len(known) > SHOWN_ROWS else ""
        some = ", ".join(known[:SHOWN_ROWS]) + more
        raise UserError(f"no row of {', '.join(empty)} has a name with {args.rows!r} in it; there are {some}")
    choice = choice._replace(families=[name for name in choice.families if name not in empty])
    results = record.measure_all(choice) | {"command": _recipe(args)}
    _write(args, results, report)  # first: who reads the output may leave before its end
    console = make_console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    report.show(results, console)
    if before is not None:
        report.show_table(comparison.compare(results, before), console)
    wrong = record.complaints(results)
    for line in wrong:
        print(f"wrong: {line}", file=sys.stderr)
    return 1 if wrong else 0


def _check(args: argparse.Namespace) -> None:
    """Raise `UserError` for what would fail after minutes of measuring."""
    unknown = [name for name in args.family if name not in NAMES]
    if unknown:
        raise UserError(f"no family {unknown[0]!r}; there are {', '.join(NAMES)}")
    require({"rich": "Rich"} | ({"matplotlib": "Matplotlib"} if args.plot else {}), "bench")
    for option in ("json", "markdown", "plot"):
        if getattr(args, option) is not None:
            check_writable(getattr(args, option), f"--{option}")
    if args.plot and args.plot.suffix not in (".pdf", ".png", ".svg"):
        raise UserError(f"--plot must name a .png, .svg or .pdf file, got {args.plot.name}")
    if args.peers and not any(map(present, args.peers)):
        raise UserError(f"--peers: none of {', '.join(args.peers)} is installed; pip install 'cudakit[bench]'")
    if args.device == "cuda" and not import_module(".gpu", __package__).available():
        raise UserError("--device cuda needs PyTorch with CUDA, CuPy, and a GPU that both can use")


def _recipe(args: argparse.Namespace) -> str:
    """Return the command that measures the same, without the files it writes."""
    options = {
        "device": args.device if args.device != "cpu" else None,
        "dtype": args.dtype and " ".join(args.dtype),
        "peers": None if args.peers is None else shlex.quote(",".join(args.peers)),
        "threads": args.threads and " ".join(map(str, args.threads)),
        "rows": args.rows and shlex.quote(args.rows),
    }
    flags = [flag for flag in ("small", "no_extras") if getattr(args, flag)]
    words = [*args.family, *(f"--{name} {value}" for name, value in options.items() if value)]
    return " ".join(["python -m cudakit bench", *words, *(f"--{flag.replace('_', '-')}" for flag in flags)])


def _earlier(path: Path, comparison: Any) -> dict[str, Any]:
    """Return an earlier record, once it can be compared with."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is no JSON'}") from None
    try:
        comparison.compare(found, found)
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"{path} is no record of cudakit bench") from None
    return found


def _write(args: argparse.Namespace, results: dict[str, Any], report: Any) -> None:
    if args.json:
        args.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    pictures: Sequence[Path] = ()
    if args.plot:
        pictures = import_module(".picture", __package__).draw(results, args.plot)
    if args.markdown:
        folder = args.markdown.resolve().parent
        shown = [path.name for path in pictures if path.resolve().parent == folder]
        args.markdown.write_text(report.markdown(results, shown), encoding="utf-8")
    for path in filter(None, (args.json, args.markdown, *pictures)):
        print(f"wrote {path}", file=sys.stderr)
