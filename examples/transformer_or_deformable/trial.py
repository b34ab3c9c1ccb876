"""One training: a model, a kind of warp and a seed, to the numbers that come of it."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from fields import example, measure
from networks import build, error, size, train
from warps import TRAIN, WARPS, digits

import cudakit

EXAMPLE = TRAIN + 12  # a digit whose pose is far from upright


@dataclass(frozen=True)
class Effort:
    """How much is done for each training: steps, digits and warps of each to test on, digits to measure fields on."""

    steps: int = 700
    tested: int = 797
    repeats: int = 10
    measured: int = 30


def one_thread() -> None:
    """Keep a process to one thread: several train beside each other, and one thread adds up in one order."""
    torch.set_num_threads(1)
    cudakit.set_num_threads(1)


def field_warps(warp: str) -> torch.Tensor:
    """Return the warps under which fields are measured, the same for every training."""
    return WARPS[warp](Effort.measured, torch.Generator().manual_seed(1))


def run(model: str, warp: str, seed: int, device: str, effort: Effort) -> dict[str, Any]:
    """Train a model and measure it."""
    start = time.process_time()
    images, labels = digits(device)
    new = slice(TRAIN, TRAIN + effort.tested)
    torch.manual_seed(seed)
    network = build(model).to(device)
    losses = train(network, images[:TRAIN], labels[:TRAIN], WARPS[warp], effort.steps, seed)
    trained = time.process_time()
    few = max(effort.steps // 10, 1)
    return {
        "model": model,
        "warp": warp,
        "seed": seed,
        "parameters": size(network),
        "loss": {"first": sum(losses[:few]) / few, "last": sum(losses[-few:]) / few},
        "error": error(network, images[new], labels[new], WARPS[warp], effort.repeats),
        "fields": measure(network, images[new][: effort.measured], field_warps(warp)[: effort.measured]),
        "example": example(network, images[EXAMPLE], field_warps(warp)[EXAMPLE - TRAIN]),
        "training_s": round(trained - start, 1),
    }
