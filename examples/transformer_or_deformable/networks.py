"""The same small network plain, behind a spatial transformer, with deformable layers, and with both; and its training.

All are widened to the same number of parameters, and trained alike. What decides on positions, the localisation network
or the convolutions that make offsets, learns at `BRANCH_RATE` of the rate of the rest: one rule for both.
"""

from collections.abc import Callable

import torch
from torch import nn
from warps import CANVAS, Warp, draw

import cudakit.torch.nn as cudakit_nn

# Model: (has a transformer in front, has deformable layers)
MODELS = {
    "plain": (False, False),
    "transformer": (True, False),
    "deformable": (False, True),
    "both": (True, True),
}
PARAMETERS = 24_000
BATCH = 64
# The rates were chosen once, by the error on the last 250 training digits: RATE from 0.004, 0.01 and 0.02 on the plain
# network, BRANCH_RATE from 0.1, 0.3 and 1 on the others.
RATE = 0.01
BRANCH_RATE = 0.3
DECAY = 0.001


def layer(kind: Callable[..., nn.Module], inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """Return a 3x3 convolution of some kind, normalised and rectified."""
    return nn.Sequential(kind(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def localization() -> nn.Module:
    """Return what the transformer looks with: from the canvas to 32 features."""
    return nn.Sequential(
        layer(nn.Conv2d, 1, 8, 2),
        layer(nn.Conv2d, 8, 16, 2),
        layer(nn.Conv2d, 16, 16, 2),
        nn.Flatten(),
        nn.Linear(16 * (CANVAS // 8) ** 2, 32),
        nn.ReLU(),
    )


class Network(nn.Module):
    """A classifier of four convolutions, the last two ordinary or deformable ones, and a mean over the canvas."""

    def __init__(self, transformer: bool, deformable: bool, width: int) -> None:
        super().__init__()
        free = cudakit_nn.DeformConv2dPack if deformable else nn.Conv2d
        self.front = cudakit_nn.SpatialTransformer(localization(), 32) if transformer else nn.Identity()
        self.features = nn.Sequential(
            layer(nn.Conv2d, 1, width // 2, 2),
            layer(nn.Conv2d, width // 2, width, 2),
            layer(free, width, width),
            layer(free, width, width),
        )
        self.head = nn.Linear(width, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return a score for each digit."""
        scores: torch.Tensor = self.head(self.features(self.front(pictures)).mean((2, 3)))
        return scores


def size(network: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(x.numel() for x in network.parameters())


def build(model: str) -> Network:
    """Return a model, as wide as brings it nearest to PARAMETERS."""
    return min((Network(*MODELS[model], width) for width in range(16, 48)), key=lambda x: abs(size(x) - PARAMETERS))


def rates(network: Network) -> list[dict[str, object]]:
    """Return the parameters in two groups, those that decide on positions with a lower rate."""
    named = list(network.named_parameters())
    branch = [name.startswith("front.") or ".conv_offset." in name for name, _ in named]
    groups = ((RATE, False), (RATE * BRANCH_RATE, True))
    found = [([x for (_, x), b in zip(named, branch, strict=True) if b == which], rate) for rate, which in groups]
    return [{"params": parameters, "lr": rate} for parameters, rate in found if parameters]


def train(
    network: Network, images: torch.Tensor, labels: torch.Tensor, warp: Warp, steps: int, seed: int
) -> list[float]:
    """Train on digits that are warped anew in every batch; return the loss of each step."""
    generator = torch.Generator().manual_seed(seed)
    groups = rates(network)
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY)
    peaks = [group["lr"] for group in groups]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peaks, total_steps=steps, pct_start=0.2)
    losses = []
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH,), generator=generator).to(images.device)
        scores = network(draw(images[chosen], warp(BATCH, generator)))
        loss = nn.functional.cross_entropy(scores, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def error(network: Network, images: torch.Tensor, labels: torch.Tensor, warp: Warp, repeats: int) -> float:
    """Return the share of wrong answers in per cent, each digit under the same `repeats` warps on every call."""
    generator = torch.Generator().manual_seed(0)
    network.eval()
    wrong = [network(draw(images, warp(len(images), generator))).argmax(1) != labels for _ in range(repeats)]
    return 100 * torch.stack(wrong).float().mean().item()
