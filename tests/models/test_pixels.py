"""Augmentation of images: beside torchvision's functions, row by row."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from models.augment import pixels
from tests.size import examples


@pytest.fixture(scope="module")
def vision() -> Any:
    """Torchvision's functions, imported by the process that compares with them."""
    return importlib.import_module("torchvision.transforms.v2.functional")


@pytest.fixture(scope="module")
def bilinear() -> Any:
    return importlib.import_module("torchvision.transforms").InterpolationMode.BILINEAR


def images_of(
    kind: str, n: int = 12, channels: int = 3, height: int = 17, width: int = 24, seed: int = 0
) -> torch.Tensor:
    """Smooth waves and some noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    wave = rng.uniform(-6, 6, (4, n, channels, 1, 1))
    made = 0.5 + 0.4 * np.sin(wave[0] * x + wave[1] * y + wave[2])
    made = (made + rng.normal(0, 0.05, made.shape)).clip(0, 1)
    if kind == "bytes":
        return torch.from_numpy((made * 255).astype(np.uint8))
    return torch.from_numpy(made.astype(np.float32))


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, in levels of 255."""
    scale = 255.0 if ours.is_floating_point() else 1.0
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    return float((ours.float() - theirs.float()).abs().max()) * scale


def each(images: torch.Tensor, do: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    return torch.stack([do(i, image) for i, image in enumerate(images)])


every_type = pytest.mark.parametrize("kind", ["bytes", "floats"])


@every_type
def test_flips_are_torchvisions(vision: Any, kind: str) -> None:
    images = images_of(kind)
    assert torch.equal(pixels.flipped(images), vision.horizontal_flip(images))
    assert torch.equal(pixels.flipped(images, vertical=True), vision.vertical_flip(images))


@every_type
@pytest.mark.parametrize("channels", [1, 3])
def test_crops_are_torchvisions(vision: Any, bilinear: Any, kind: str, channels: int) -> None:
    images, rng = images_of(kind, 30, channels), np.random.default_rng(1)
    height, width = rng.integers(1, 18, 30), rng.integers(1, 25, 30)
    top, left = rng.integers(0, 18 - height), rng.integers(0, 25 - width)
    expected = each(
        images,
        lambda i, x: vision.resized_crop(
            x, int(top[i]), int(left[i]), int(height[i]), int(width[i]), [17, 24], bilinear
        ),
    )
    assert off(pixels.cropped(images, top, left, height, width), expected) < 0.01
    # and in one go, as on other devices
    assert off(pixels._gathered(images, top, left, height, width), expected) <= 1.01


@every_type
def test_rotations_are_torchvisions(vision: Any, bilinear: Any, kind: str) -> None:
    images = images_of(kind, 24)
    degrees = np.linspace(-180, 180, 24)
    expected = each(images, lambda i, x: vision.rotate(x, float(degrees[i]), bilinear))
    assert off(pixels.rotated(images, degrees), expected) <= 1.01


@every_type
@pytest.mark.parametrize(
    ("place", "theirs"),
    [(0, "adjust_brightness"), (1, "adjust_contrast"), (2, "adjust_saturation")],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_colours_are_torchvisions(
    vision: Any, kind: str, place: int, theirs: str, channels: int
) -> None:
    images = images_of(kind, 16, channels)
    factors = np.ones((3, 16))
    factors[place] = np.linspace(0, 2, 16)
    expected = each(images, lambda i, x: getattr(vision, theirs)(x, float(factors[place, i])))
    assert off(pixels.coloured(images, *factors), expected) <= 2.01  # they round in between


@every_type
def test_noise_has_the_asked_deviation(kind: str) -> None:
    grey = torch.full((2, 3, 100, 100), 0.5)
    images = grey if kind == "floats" else (grey * 255).byte()
    made = pixels.noised(images, np.array([0.1, 0.0]), torch.Generator().manual_seed(0))
    assert torch.equal(made[1], images[1])
    scale = 1.0 if kind == "floats" else 255.0
    assert float(made[0].float().std()) / scale == pytest.approx(0.1, rel=0.02)
    assert float(made[0].float().mean()) / scale == pytest.approx(0.5, abs=0.005)


@every_type
def test_a_box_of_another_is_pasted(kind: str) -> None:
    images = images_of(kind, 3)
    zero, two = np.zeros(3, np.int64), np.full(3, 2)
    edges = np.array([0, 5, 0]), np.array([0, 20, 0]), np.array([17, 8, 0]), np.array([24, 24, 9])
    made = pixels.pasted(images, np.array([1, 2, 0]), *edges)
    assert torch.equal(made[0], images[1])
    assert torch.equal(made[1][:, 5:8, 20:], images[2][:, 5:8, 20:])
    assert torch.equal(made[1][:, :5], images[1][:, :5])
    assert torch.equal(made[2], images[2])
    assert torch.equal(pixels.pasted(images, two, zero, zero, zero, zero), images)


@settings(max_examples=examples(30), deadline=None)
@example(kind="floats", n=3, channels=4, size=(9, 5), seed=37)  # a last bit above 1
@given(
    kind=st.sampled_from(["bytes", "floats"]),
    n=st.integers(0, 4),
    channels=st.sampled_from([1, 3, 4]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1_000),
)
def test_shapes_types_and_range_hold(
    kind: str, n: int, channels: int, size: tuple[int, int], seed: int
) -> None:
    images, rng = images_of(kind, n, channels, *size, seed=seed), np.random.default_rng(seed)
    before = images.clone()
    factor = rng.uniform(0, 3, (3, n))
    height, width = (rng.integers(1, side + 1, n) for side in size)
    top, left = rng.integers(0, size[0] + 1 - height), rng.integers(0, size[1] + 1 - width)
    other = rng.permutation(n)
    for made in (
        pixels.flipped(images),
        pixels.cropped(images, top, left, height, width),
        pixels.rotated(images, rng.uniform(-180, 180, n)),
        pixels.coloured(images, *factor),
        pixels.noised(images, factor[0], torch.Generator().manual_seed(seed)),
        pixels.pasted(images, other, top, left, top + height, left + width),
        pixels.blended(images, other, rng.random(n)),
    ):
        assert (made.shape, made.dtype) == (images.shape, images.dtype)
        assert ((made >= 0) & (made <= (255 if kind == "bytes" else 1))).all()
    assert torch.equal(images, before)


@every_type
def test_the_neutral_numbers_change_nothing(kind: str) -> None:
    images, one, zero = images_of(kind), np.ones(12), np.zeros(12, np.int64)
    full = np.full(12, 17), np.full(12, 24)
    assert off(pixels.cropped(images, zero, zero, *full), images) < 0.01
    assert off(pixels.rotated(images, zero * 0.0), images) < 0.01
    assert off(pixels.coloured(images, one, one, one), images) < 0.01
    assert torch.equal(pixels.noised(images, zero * 0.0, torch.Generator()), images)
    assert torch.equal(pixels.blended(images, np.arange(12)[::-1].copy(), zero * 0.0), images)


@settings(max_examples=examples(20), deadline=None)
@given(n=st.integers(0, 40), side=st.integers(1, 300))
def test_blocks_are_all_rows_once(n: int, side: int) -> None:
    images, rows = torch.empty((n, 3, side, 1), dtype=torch.uint8), np.arange(0, n, 2)
    cut = list(pixels.blocks(images, rows))
    assert [row for block in cut for row in block.tolist()] == rows.tolist()
    assert all(len(block) for block in cut)
