"""Tell discs, squares and rings apart: a small PyTorch model with deformable layers, under ``torch.compile``.

python examples/torch_deformable.py --steps 300
"""

import argparse
from collections.abc import Sequence

import torch
from torch import nn

from cudakit.torch.nn import DeformConv2dPack, ModulatedDeformConv2dPack

BATCH = 32


def shapes(count: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw noisy pictures (count, 1, size, size) of a disc (0), a square (1) or a ring (2), anywhere, of any size."""
    kind = torch.randint(3, (count,), generator=generator)
    place, radius = torch.rand(2, count, 1, 1, generator=generator) - 0.5, torch.rand(count, 1, 1, generator=generator)
    radius = 0.2 + 0.3 * radius
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    dy, dx = y - place[0], x - place[1]
    far = torch.hypot(dy, dx)
    disc, square = far < radius, torch.maximum(dy.abs(), dx.abs()) < 0.9 * radius
    pictures = torch.stack([disc, square, disc & (far > 0.5 * radius)])[kind, torch.arange(count)].float()
    return (pictures + 0.1 * torch.randn(pictures.shape, generator=generator))[:, None], kind


class Classifier(nn.Module):
    """Two deformable layers between ordinary ones; the second also weighs its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            DeformConv2dPack(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            ModulatedDeformConv2dPack(32, 32, 3, padding=1, deform_groups=2),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.head = nn.Linear(32, 3)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Return a score for each kind of shape."""
        scores: torch.Tensor = self.head(self.features(pictures))
        return scores


def main(arguments: Sequence[str] | None = None) -> float:
    """Train, print the losses, and return the accuracy on new pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="batches to train on (default: %(default)s)")
    parser.add_argument("--size", type=int, default=32, help="side of the pictures in pixels (default: %(default)s)")
    parser.add_argument("--backend", default="inductor", help="compiler behind torch.compile (default: %(default)s)")
    args = parser.parse_args(arguments)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Classifier().to(device)
    compiled = torch.compile(model, backend=args.backend, fullgraph=True)
    optimizer = torch.optim.Adam(model.parameters(), 0.003)
    for number in range(args.steps):
        pictures, kinds = (x.to(device) for x in shapes(BATCH, args.size, generator))
        loss = nn.functional.cross_entropy(compiled(pictures), kinds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if number % max(args.steps // 10, 1) == 0:
            print(f"step {number:4d}  loss {loss.item():.3f}")
    pictures, kinds = (x.to(device) for x in shapes(512, args.size, generator))
    with torch.no_grad():
        accuracy = (model(pictures).argmax(1) == kinds).float().mean().item()
    print(f"{accuracy:.1%} of 512 new pictures are told apart")
    return accuracy


if __name__ == "__main__":
    main()
