"""Perceptual hashes of images, 64 bits: similar images have similar hashes, whatever their
encoding."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image

from engine.columnar.hashing import Hashes, utf8_buffer
from engine.scrub.features.image import FORMATS
from engine.system import environment

SIDE = 32
"""The width and height of the hashed image."""
LOW = 8
"""The frequencies used in each direction."""
PIXELS = 1 << 26
"""The largest image that is decoded: 64 Mi pixels."""
WORTH = 8
"""The images that justify another thread."""


def perceptual_hashes(
    images: pl.Series, threads: int | None = None
) -> tuple[Hashes, NDArray[np.bool_]]:
    """Return the hash of each image, and which could be read: not null, complete, of at most
    `PIXELS` pixels.

    The hash is that of Zauner, "Implementation and Benchmarking of Perceptual Image Hash
    Functions", 2010, as the imagehash library defines its ``phash``: the luminance at 32 x 32, of
    its cosine transform the 8 x 8 lowest frequencies, and of these one bit each: above their median
    or not. JPEG is decoded no larger than it needs (at an eighth, a quarter or half of its size).
    All sums are exact, so one decoder gives the same bits on every machine.

    Args:
        images: encoded, in a format that the 'image' stage decodes, Binary, shape (n,).
        threads: that decode; as many as there are cores unless given. They change nothing but the
            time.

    Returns:
        Shapes (n,); the hash of one that could not be read is 0.
    """
    data, bounds = utf8_buffer(images)
    readable = images.is_not_null().to_numpy(writable=True)
    grey = np.zeros((len(images), SIDE, SIDE), np.uint8)
    decode = partial(_decode, data, bounds, readable, grey)
    cores = environment.cores()
    count = min(threads or cores, max(1, len(images) // WORTH))
    parts = np.array_split(np.arange(len(images)), count)
    if count == 1:
        decode(parts[0])
    else:
        with ThreadPoolExecutor(count, "headrace-images") as pool:
            list(pool.map(decode, parts))
    return np.where(readable, hashed(grey), np.uint64(0)), readable


def hashed(grey: NDArray[np.uint8]) -> Hashes:
    """Return n hashes of grey images of 32 x 32 pixels, shape (n, 32, 32)."""
    low = (COSINES @ grey.astype(np.float64) @ COSINES.T).reshape(len(grey), LOW * LOW)
    bits = low > np.median(low, axis=1, keepdims=True)
    words: Hashes = np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)
    return words


def _cosines() -> NDArray[np.float64]:
    """Return rows of the cosine transform, shape (8, 32), as integers: a float64 holds every sum
    of their products with pixels (below 2**52) exactly, so the order of adding does not matter,
    and a single colour has frequencies 0."""
    wave = np.outer(np.arange(LOW), 2 * np.arange(SIDE) + 1)
    return np.round(np.cos(np.pi * wave / (2 * SIDE)) * 2**17)


COSINES = _cosines()


def _decode(
    data: NDArray[np.uint8],
    bounds: NDArray[np.int64],
    readable: NDArray[np.bool_],
    grey: NDArray[np.uint8],
    rows: NDArray[np.int64],
) -> None:
    """Write the luminance of these rows to `grey`; mark unreadable ones in `readable`."""
    for i in rows[readable[rows]].tolist():  # pillow takes one at a time, without the lock
        try:
            grey[i] = _small(data[bounds[i] : bounds[i + 1]])
        except Exception:  # noqa: BLE001 - damage comes out of pillow as any error
            readable[i] = False


def _small(encoded: NDArray[np.uint8]) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(encoded.tobytes()), formats=FORMATS) as image:
        if image.width * image.height > PIXELS:
            raise ValueError
        image.draft("L", (2 * SIDE, 2 * SIDE))
        return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


__all__ = ["hashed", "perceptual_hashes"]
