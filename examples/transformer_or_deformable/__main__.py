"""Spatial transformer or deformable convolution: digits under global and local warps.

A spatial transformer warps the whole picture by one transform; a deformable convolution moves every tap at every place.
When should one use which, and are their fields of view the same?

The same small network is trained plain, with a transformer in front, with two deformable layers, and with both, on
handwritten digits under global poses (rotation, scale, translation) and under elastic warps. The four networks are
widened to the same number of parameters, within three per cent, and trained alike. Then `cudakit.fov` measures where
the units of their last layer look. Each number is the mean over the seeds ± the standard deviation between them;
"a / b" stands for the networks trained and tested on poses / on elastic warps.

- error: wrong answers in per cent, on digits by other writers than those of the training.
- size: of a unit's field of view, four standard deviations, in pixels of the canvas of 32 x 32.
- shift: from where the same unit of the plain network looks to where it looks, root mean square in pixels.
- spacing: how far apart the units look, in per cent of the plain network's; 0 if all look at the same place.
- local: the part of the shift that no affine map of the whole picture can make, root mean square in pixels.
- follows: how far the fields go along with the digit, in per cent of how far it moves where the plain network's unit
  looks: 0 if they stay. For the translation of a pose, for its rotation and scale, and for the bending of an elastic
  warp, which is what its best affine map leaves.
- time: processor seconds of a training.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from networks import MODELS
from results import environment, lines, markdown, numbers, table
from trial import Effort, one_thread, run
from warps import WARPS

QUICK = Effort(steps=20, tested=100, repeats=1, measured=1)
PROCESSES = 8  # at most; each takes some 0.4 GB


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="transformer_or_deformable", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: %(default)s)")
    add("--seeds", type=int, default=3, help="trainings of each network (default: %(default)s)")
    add("--jobs", type=int, default=min(os.cpu_count() or 1, PROCESSES), help="processes (default: %(default)s)")
    add("--quick", action="store_true", help="a few steps of one seed: a check of the programme, not a measurement")
    add("--out", type=Path, metavar="FILE", help="write FILE.md, the table, and FILE.json, all numbers")
    add("--picture", type=Path, metavar="FILE", help="draw errors and fields")
    args = parser.parse_args(words)
    for name, least in (("seeds", 1), ("jobs", 1)):
        if getattr(args, name) < least:
            parser.error(f"argument --{name}: must be at least {least}, got {getattr(args, name)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("argument --device: PyTorch finds no GPU")
    for name in ("out", "picture"):
        if (path := getattr(args, name)) and not path.parent.is_dir():
            parser.error(f"argument --{name}: there is no directory {path.parent}")
    return args


def trainings(seeds: int, device: str, effort: Effort, jobs: int) -> Iterator[dict[str, Any]]:
    """Train every model under every kind of warp from every seed, `jobs` at a time."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, one_thread) as pool:
        work = [
            pool.submit(run, model, warp, seed, device, effort)
            for seed in range(seeds)
            for model in MODELS
            for warp in WARPS
        ]
        for done in as_completed(work):
            yield done.result()


def main(words: Sequence[str] | None = None) -> int:
    """Run the experiment, print its table and write what was asked for."""
    args = arguments(words)
    effort, seeds = (QUICK, 1) if args.quick else (Effort(), args.seeds)
    start, total, found = time.perf_counter(), seeds * len(MODELS) * len(WARPS), []
    for training in trainings(seeds, args.device, effort, args.jobs):
        found.append(training)
        what = "{model}, {warp}, seed {seed}: error {error:.1f} %".format(**training)
        print(f"[{len(found):2d}/{total}] {time.perf_counter() - start:4.0f} s  {what}", flush=True)
    found.sort(key=lambda t: (list(MODELS).index(t["model"]), t["warp"], t["seed"]))
    report = {
        "command": " ".join(["python examples/transformer_or_deformable", *(sys.argv[1:] if words is None else words)]),
        "environment": environment(args.device),
        "seeds": seeds,
        "jobs": args.jobs,
        "wall_s": round(time.perf_counter() - start),
        "effort": asdict(effort),
        "trainings": found,
    }
    print("\n".join(["", *lines(table(found))]))
    if args.out:
        args.out.with_suffix(".json").write_text(numbers(report), encoding="utf-8")
        args.out.with_suffix(".md").write_text(markdown(report, __doc__), encoding="utf-8")
    if args.picture:
        from picture import draw  # Matplotlib is for the picture alone

        draw(report, args.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
