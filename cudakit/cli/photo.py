"""The photograph that `demo` and `fov` work on, and the file that the picture of it goes to."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cudakit.cli.command import UserError, check_writable
from cudakit.cli.registration import pyramid_unit

NEEDS = {"matplotlib": "Matplotlib", "PIL": "Pillow", "rich": "Rich"}
SUFFIXES = (".jpg", ".pdf", ".png", ".svg")
SMALLEST = 32  # pixels along either side


class Photo(NamedTuple):
    """A photograph: its name, and its pixels (1, 3, H, W) from 0 to 1."""

    name: str
    pixels: NDArray[np.float32]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels.shape[2:]
        return height, width


def check_picture(out: Path) -> None:
    """Find out before the work rather than after it whether a picture can be written."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out must end in one of {', '.join(SUFFIXES)}, got {out}")
    check_writable(out, "--out")


def load_photo(path: Path | None, longest: int) -> Photo:
    """Return a photograph made small, its sides divisible as the learning needs them."""
    from PIL import Image, ImageOps

    if path is None:
        from matplotlib.cbook import get_sample_data

        path = Path(get_sample_data("grace_hopper.jpg", asfileobj=False))
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "not a picture that Pillow can read"
        raise UserError(f"cannot read {path}: {reason}") from None
    unit = pyramid_unit(longest)
    width, height = (max(round(side * longest / max(image.size) / unit) * unit, SMALLEST, unit) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.float32)
    return Photo(path.name, np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]) / np.float32(255))
