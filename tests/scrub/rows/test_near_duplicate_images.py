"""Near duplicates of images: against the hash's definition, and by copies made in many ways."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageFilter
from scipy.fft import dct

from engine.scrub.rows.near_duplicate_images import NearDuplicateImages
from engine.scrub.rows.perceptual import hashed, perceptual_hashes
from engine.types import Batch
from tests.scrub.pictures import encoded, scene
from tests.size import examples

Run = Callable[..., list[Batch]]
Make = Callable[..., Any]
KIND = "near_duplicate_images"


def imagehash_phash(image: Image.Image) -> int:
    """What imagehash 4.3 computes: phash(image), its 64 bits row by row as a number."""
    pixels = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS))
    low = dct(dct(pixels.astype(np.float64), axis=0), axis=1)[:8, :8]
    bits = (low > np.median(low)).flatten()
    return int("".join("1" if bit else "0" for bit in bits), 2)


def apart(a: int, b: int) -> int:
    return (int(a) ^ int(b)).bit_count()


def kept(batches: list[Batch]) -> list[int]:
    return [row for batch in batches for row in batch.frame["row"].to_list()]


def frame_of(images: list[bytes | None]) -> pl.DataFrame:
    return pl.DataFrame({"image": pl.Series(images, dtype=pl.Binary)}).with_row_index("row")


def test_hashes_are_imagehashs() -> None:
    scenes = [scene(i, 40 + 7 * (i % 9)) for i in range(60)]
    hashes, there = perceptual_hashes(pl.Series([encoded(one) for one in scenes]), threads=3)
    assert there.all()
    theirs = [imagehash_phash(Image.fromarray(one)) for one in scenes]
    assert hashes.tolist() == theirs


def test_a_jpeg_decoded_small_hashes_as_decoded_whole() -> None:
    files = [encoded(scene(i, 400), "JPEG", quality=85) for i in range(40)]
    hashes, _ = perceptual_hashes(pl.Series(files))
    theirs = [imagehash_phash(Image.open(io.BytesIO(one))) for one in files]
    off = list(map(apart, hashes.tolist(), theirs))
    assert max(off) <= 4
    assert np.mean(off) < 1


@functools.cache
def originals() -> list[tuple[NDArray[np.uint8], bytes]]:
    """Images, and their files."""
    return [(one, encoded(one)) for one in (scene(i, 192) for i in range(12))]


@pytest.mark.parametrize(
    "copy",
    [
        lambda image: image.resize((image.width // 3, image.height // 3)),
        lambda image: image.resize((image.width * 2, image.height * 2), Image.Resampling.BICUBIC),
        lambda image: image.resize((image.width, image.height * 3 // 4)),
        lambda image: image.convert("L"),
        lambda image: image.convert("RGBA"),
        lambda image: image.filter(ImageFilter.GaussianBlur(1)),
        lambda image: image.point(lambda level: 20 + level * 3 // 4),
    ],
    ids=["smaller", "larger", "flatter", "grey", "with alpha", "softer", "paler"],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_copies_are_found(run: Run, copy: Callable[[Image.Image], Image.Image], kind: str) -> None:
    copies = []
    for one, _ in originals():
        changed = copy(Image.fromarray(one))
        changed = changed.convert("RGB") if kind == "JPEG" else changed
        options = {} if kind == "PNG" else {"quality": 50}
        copies.append(encoded(np.asarray(changed), kind, **options))
    frame = frame_of([*(file for _, file in originals()), *copies])
    (done,) = run(KIND, {"column": "image", "max_distance": 10}, frame)
    assert kept([done]) == list(range(12))
    (reject,) = done.rejects
    assert reject.reason == "near_duplicate"
    assert done.counts["s", "duplicates"] == 12
    assert all(d.endswith("from an image 12 rows before.") for d in reject.rows["detail"])


def test_different_images_are_not(run: Run) -> None:
    (done,) = run(KIND, {"column": "image"}, frame_of([encoded(scene(i, 64)) for i in range(400)]))
    assert len(done) == 400


def reference(hashes: list[int | None], window: int, distance: int) -> list[int]:
    """Which rows go on, in plain words."""
    through: list[tuple[int, int]] = []
    good = []
    for row, one in enumerate(hashes):
        if one is None:
            good.append(row)
        elif not any(row - r <= window and apart(one, h) <= distance for r, h in through):
            through.append((row, one))
            good.append(row)
    return good


@settings(max_examples=examples(40), deadline=None)
@given(
    seed=st.integers(0, 1_000),
    window=st.integers(1, 40),
    distance=st.integers(0, 24),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_any_window_distance_and_cut(
    run: Run, seed: int, window: int, distance: int, cuts: list[int]
) -> None:
    """Grey noise on a few images, so that every distance comes."""
    rng = np.random.default_rng(seed)
    pool = rng.integers(0, 256, (4, 32, 32))
    pixels = pool[rng.integers(0, 4, 60)] + rng.normal(0, rng.uniform(0, 60, (60, 1, 1)))
    grey = pixels.clip(0, 255).astype(np.uint8)
    images: list[bytes | None] = [encoded(one) for one in grey]
    images[7], images[30] = None, b"damaged"
    hashes: list[int | None] = list(hashed(grey).tolist())
    hashes[7] = hashes[30] = None
    frame = frame_of(images)
    places = np.cumsum([0, *cuts]).clip(max=60).tolist()
    parts = [frame.slice(a, b - a) for a, b in zip(places, [*places[1:], 60], strict=True)]
    done = run(KIND, {"column": "image", "window": window, "max_distance": distance}, *parts)
    assert kept(done) == reference(hashes, window, distance)


def bomb(side: int) -> bytes:
    """A PNG of so many pixels squared, in a few hundred kilobytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side + 1) * 64), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_what_is_no_whole_image_is_left_to_others(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    load = ImageFile.ImageFile.load

    def counted(image: ImageFile.ImageFile) -> Any:
        decoded.append(image.width * image.height)
        return load(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    good = encoded(scene(1))
    jpeg = encoded(scene(2), "JPEG")
    bad: list[bytes | None] = [None, b"", b"GIF89a", good[:-200], jpeg[:-100], bomb(9_000)]
    (done,) = run(KIND, {"column": "image"}, frame_of([*bad, *bad, good, jpeg]))
    assert len(done) == 14
    assert not done.rejects
    assert decoded
    assert max(decoded) < 1_000_000  # not the 81 million of the bomb


def test_images_of_one_colour_are_alike(run: Run) -> None:
    flat = [np.full((50, 40, 3), level, np.uint8) for level in (0, 90, 255)]
    (done,) = run(KIND, {"column": "image", "max_distance": 1}, frame_of([*map(encoded, flat)]))
    assert kept([done]) == [0]


def test_threads_change_nothing() -> None:
    files = pl.Series([encoded(scene(i % 20, 40), "JPEG") for i in range(64)])
    one: NDArray[np.uint64] = perceptual_hashes(files, threads=1)[0]
    assert np.array_equal(perceptual_hashes(files, threads=5)[0], one)
    cut = [perceptual_hashes(files.slice(at, 7), threads=2)[0] for at in range(0, 64, 7)]
    assert np.array_equal(np.concatenate(cut), one)


def test_memory_is_bounded(stage: Make, batch: Any) -> None:
    made: NearDuplicateImages = stage(KIND, column="image", window=50, threads=1)
    made.bind({"image": pl.Binary()})
    for at in range(0, 400, 40):
        made.apply(batch(frame_of([encoded(scene(at + i, 32)) for i in range(40)])))
    assert 40 < len(made.snapshot()["images"]) <= 90
