"""The table of the experiment, and the files that keep it."""

import datetime
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import sklearn
import torch
from networks import MODELS

import cudakit

Training = dict[str, Any]


def pick(training: Training, path: str) -> float:
    """Return a number of a training: `path` is its keys with dots between them."""
    value: Any = training
    for key in path.split("."):
        value = value[key]
    return float(value)


def spread(trainings: Iterable[Training], path: str, digits: int, scale: float = 1) -> str:
    """Return mean ± standard deviation of a number over trainings."""
    values = [scale * pick(training, path) for training in trainings]
    mean = round(statistics.mean(values), digits) + 0.0  # no -0
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{deviation}"


def columns() -> dict[str, Callable[[list[Training], list[Training]], str]]:
    """Return for every column of the table what makes its cell of a model's trainings on pose and on elastic warps."""

    def both(path: str, digits: int, scale: float = 1) -> Callable[[list[Training], list[Training]], str]:
        return lambda *warps: " / ".join(spread(trainings, path, digits, scale) for trainings in warps)

    def share(part: str) -> str:
        return f"fields.follows.{part}"

    return {
        "model": lambda pose, _: pose[0]["model"],
        "parameters": lambda pose, _: f"{pose[0]['parameters']:,}",
        "error %, pose": lambda pose, _: spread(pose, "error", 2),
        "error %, elastic": lambda _, elastic: spread(elastic, "error", 2),
        "size px": both("fields.size", 1),
        "shift px": both("fields.shift", 1),
        "spacing %": both("fields.spacing", 0, 100),
        "local px": both("fields.local", 2),
        "follows translation %": lambda pose, _: spread(pose, share("translation"), 0, 100),
        "follows rotation, scale %": lambda pose, _: spread(pose, share("linear"), 0, 100),
        "follows bending %": lambda _, elastic: spread(elastic, share("bending"), 0, 100),
        "time s": both("training_s", 0),
    }


def table(trainings: list[Training]) -> list[list[str]]:
    """Return the table: its head, and a row for each model."""
    rows = [list(columns())]
    for model in MODELS:
        found = [[t for t in trainings if (t["model"], t["warp"]) == (model, warp)] for warp in ("pose", "elastic")]
        rows.append([cell(*found) for cell in columns().values()])
    return rows


def lines(rows: list[list[str]]) -> list[str]:
    """Return the lines of a table in Markdown, aligned for the terminal too."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    rule = ["-" * width if i == 0 else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *body)]


def environment(device: str) -> dict[str, str]:
    """Return what ran the experiment."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores, {platform.machine()}",
        "python": platform.python_version(),
        "cudakit": cudakit.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": sklearn.__version__,
    }


def markdown(report: dict[str, Any], text: str) -> str:
    """Write the report as a Markdown page that begins with a text."""
    where = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    effort = ", ".join(f"{name} {value}" for name, value in report["effort"].items())
    ran = f"{report['seeds']} seeds, {report['wall_s']} s with {report['jobs']} processes; {where}; {effort}."
    title, _, rest = text.partition("\n")
    paragraphs = (f"# {title.rstrip('.')}\n{rest}", f"Reproduce with `{report['command']}`.", ran)
    return "\n\n".join([*map(str.rstrip, paragraphs), "\n".join(lines(table(report["trainings"])))]) + "\n"


def numbers(report: dict[str, Any]) -> str:
    """Write the report as JSON, a line for each training."""
    rows = ",\n  ".join(json.dumps(training) for training in report["trainings"])
    head = json.dumps({**report, "trainings": None}, indent=1)
    return head.replace('"trainings": null', f'"trainings": [\n  {rows}\n ]') + "\n"
