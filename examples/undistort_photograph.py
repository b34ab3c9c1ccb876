"""Take the barrel distortion of a wide-angle lens out of a photograph: NumPy or CuPy, and no deep-learning framework.

A lens of strength k shows the point at radius r (the corners are at 1) at the radius r (1 + k r^2). To undistort is to
look, for every pixel of the straight picture, where the lens put it. To distort, as this example does first, is to
solve the same equation for r.

    python examples/undistort_photograph.py --out undistorted.png
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image

import cudakit


def arrays() -> Any:
    """Return CuPy where it is and finds a GPU, else NumPy."""
    try:
        import cupy

        return cupy if cupy.cuda.is_available() else np
    except ImportError:
        return np


def load(path: Path | None, size: int) -> np.ndarray:
    """Return a photograph as (1, 3, H, W) from 0 to 1, its longer side `size` pixels."""
    with Image.open(path or get_sample_data("grace_hopper.jpg", asfileobj=False)) as photo:
        photo.thumbnail((size, size))
        pixels = np.asarray(photo.convert("RGB"), np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def save(pictures: Sequence[Any], out: Path) -> None:
    """Write pictures side by side."""
    row = np.concatenate([x.get() if hasattr(x, "get") else x for x in pictures], axis=3)[0]
    Image.fromarray((row.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)).save(out)


def centred(xp: Any, height: int, width: int) -> Any:
    """Return the coordinates (x, y) of the pixels, with the corners at radius 1 whatever the sides are."""
    y, x = xp.meshgrid(*[(2 * xp.arange(n) + 1 - n) / np.hypot(height, width) for n in (height, width)], indexing="ij")
    return xp.stack([x, y], -1).astype(np.float32)


def as_grid(xp: Any, positions: Any) -> Any:
    """Return centred coordinates as `cudakit.grid_sample` takes them: -1 and 1 at the borders."""
    height, width = positions.shape[:2]
    diagonal = np.hypot(height, width)
    return (positions * xp.asarray([diagonal / width, diagonal / height], np.float32))[None]


def seen(xp: Any, points: Any, strength: float) -> Any:
    """Return where the lens shows points."""
    return points * (1 + strength * xp.sum(points**2, -1, keepdims=True))


def source(xp: Any, positions: Any, strength: float, steps: int) -> Any:
    """Return what points the lens shows at these positions: `seen`, solved by iteration, NaN where none."""
    points = positions
    for _ in range(steps):
        points = positions / (1 + strength * xp.sum(points**2, -1, keepdims=True))
    error = xp.abs(seen(xp, points, strength) - positions).max(-1, keepdims=True)
    return xp.where(error < 0.01, points, np.float32("nan"))


def main(arguments: Sequence[str] | None = None) -> float:
    """Distort and undistort, write the pictures, and return the mean difference in the middle of the photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, help="photograph (default: one that Matplotlib ships)")
    parser.add_argument("--size", type=int, default=600, help="pixels of its longer side (default: %(default)s)")
    parser.add_argument("--strength", type=float, default=-0.25, help="negative for a barrel (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="iterations of the solver (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("undistorted.png"), help="default: %(default)s")
    args = parser.parse_args(arguments)

    xp = arrays()
    photo = xp.asarray(load(args.image, args.size))
    positions = centred(xp, *photo.shape[2:])
    lens = as_grid(xp, source(xp, positions, args.strength, args.steps))
    distorted = cudakit.grid_sample(photo, lens, "bicubic")
    straight = cudakit.grid_sample(distorted, as_grid(xp, seen(xp, positions, args.strength)), "bicubic")

    save([photo, distorted, straight], args.out)
    height, width = photo.shape[2:]
    middle = (..., slice(height // 4, -height // 4), slice(width // 4, -width // 4))
    difference = float(xp.abs(straight - photo)[middle].mean())
    print(f"{args.out}: the photograph, as the lens shows it, and undistorted (mean difference {difference:.4f})")
    return difference


if __name__ == "__main__":
    main()
