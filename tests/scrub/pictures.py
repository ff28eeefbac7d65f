"""Images for the tests, encoded."""

from __future__ import annotations

import functools
import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def scene(seed: int, side: int = 96) -> NDArray[np.uint8]:
    """Smooth light and shade with some edges, like a photograph's, shape (side, side, 3)."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (7, 7, 3)).astype(np.uint8)
    soft = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
    made = np.asarray(soft).astype(np.int64)
    for _ in range(6):
        top, left = rng.integers(0, side * 2 // 3, 2)
        height, width = rng.integers(side // 12, side // 3, 2)
        made[top : top + height, left : left + width] += rng.integers(-90, 91, 3)
    return made.clip(0, 255).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG", **options: Any) -> bytes:
    """The image as bytes of a file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def some(rows: int, seed: int) -> list[bytes | None]:
    """A few images again and again, in two formats; null, damaged and empty ones among them."""
    pool = _pool()
    return [pool[i] for i in np.random.default_rng(seed).integers(0, len(pool), rows)]


@functools.cache
def _pool() -> tuple[bytes | None, ...]:
    images = [encoded(scene(i, 24), kind) for i in range(8) for kind in ("PNG", "JPEG")]
    return (*images, None, b"", b"no image", images[0][: len(images[0]) // 2])
