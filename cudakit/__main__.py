"""The command line: ``python -m cudakit``, or the script ``cudakit``.

A sub-command is a module with ``add_arguments(parser)`` and ``run(args) -> int``, listed in `COMMANDS`. Only the module
of the command that was asked for is imported.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

from cudakit import BackendUnavailable, CompileError, __version__
from cudakit.cli.command import UserError, write_plainly

MISUSED, INTERRUPTED, UNREAD = 2, 130, 141  # the last two as a shell says it of signals


class Command(NamedTuple):
    """A sub-command: its module, one line about it, and examples, each with what it is for."""

    module: str
    summary: str
    examples: tuple[tuple[str, str], ...]


COMMANDS = {
    "info": Command(
        "cudakit.cli.info",
        "what cudakit finds here: devices, compiler, kernel cache, frameworks",
        (
            ("cudakit info", "what works here, and what to install for the rest"),
            ("cudakit info --check", "call every operator on every framework's arrays"),
            ("CUDAKIT_CACHE_DIR=/tmp/k cudakit info", "with another folder for compiled kernels"),
        ),
    ),
    "demo": Command(
        "cudakit.cli.demo",
        "warp a photograph, check it, and let a spatial transformer undo the warp",
        (
            ("cudakit demo", "with the photograph that Matplotlib ships"),
            ("cudakit demo --image cat.jpg --out cat.png", "with one of yours"),
            ("cudakit demo --device cuda --size 1024", "on a GPU"),
        ),
    ),
    "bench": Command(
        "cudakit.benchmarks.command",
        "measure the operators beside the peers that are installed",
        (
            ("cudakit bench --json cpu.json --plot cpu.png", "all that is measured on a CPU"),
            ("cudakit bench deformable --rows c64_56 --no-extras", "a few rows"),
            ("cudakit bench sampling --dtype bfloat16 --peers torch", "in half precision, beside one peer"),
            ("cudakit bench --device cuda --json gpu.json", "on a GPU"),
        ),
    ),
    "fov": Command(
        "cudakit.cli.fov",
        "what plain, dilated and deformable convolutions and a spatial transformer see of a photograph",
        (
            ("cudakit fov", "with the photograph that Matplotlib ships"),
            ("cudakit fov cat.jpg --at 120,80 --layers 3,3,3,3", "from one place of yours, through four layers"),
            ("cudakit fov cat.jpg --offsets offsets.npy", "with offsets of your network"),
            ("cudakit fov --learn", "offsets and transform learn to see through a swirl"),
        ),
    ),
}


def _epilog(*commands: Command) -> str:
    """Return what stands below the options."""
    pairs = [pair for command in commands for pair in command.examples]
    width = max(len(line) for line, _ in pairs)
    lines = [f"  {line:{width}}   {purpose}" for line, purpose in pairs]
    return "\n".join(["examples:", *lines, EXIT_CODES])


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave."""
        self.exit(MISUSED, f"{self.prog}: {message} (see {self.prog} --help)\n")


def make_parser(arguments: Sequence[str]) -> Parser:
    """Return the parser of a command line; only the commands that occur in it get their options."""
    parser = Parser(
        prog="cudakit",
        description="Deformable convolution and spatial-transformer sampling for every array framework.",
        epilog=_epilog(*COMMANDS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cudakit {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=f"{command.summary[0].upper()}{command.summary[1:]}.",
            epilog=_epilog(command),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name in arguments:
            module = import_module(command.module)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


EXIT_CODES = """
exit status: 0 fine, 1 a check failed, 2 a mistake in the command or something missing,
130 interrupted, 141 nobody reads on
"""


def _stop_writing() -> None:
    """Let nothing become of what Python still writes when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after ``cudakit``; those of the process by default.

    Returns
    -------
    int
        The exit status: 0 fine, 1 a check failed, 2 a mistake of the user or something missing, 130 interrupted, 141
        where nobody reads what is printed any more.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        write_plainly(stream)  # a "?" for what the terminal's encoding lacks, not a traceback
    parser = make_parser(arguments)
    if not arguments:
        parser.print_help(sys.stderr)
        return MISUSED
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        Parser(prog=f"cudakit {args.command}").error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status: int = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (UserError, BackendUnavailable, CompileError) as error:
        print(f"cudakit {args.command}: {error}", file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads has read enough, as `head` has
        _stop_writing()
        return UNREAD
    except OSError as error:  # a full disk, for one
        print(f"cudakit {args.command}: {error}", file=sys.stderr)
        _stop_writing()
        return MISUSED
    return status


if __name__ == "__main__":
    sys.exit(main())
