"""Augmentation of images, each row by its own numbers.

torchvision's transforms.v2 draws once for a whole batch; these functions do what its functions of
the same names do (a test compares them), but take a number for every row, in one call a batch.

Images are tensors of shape (n, channels, height, width), bytes (0-255) or floats (0-1), on any
device; shape and type stay, nothing is edited in place. Numbers are numpy arrays of shape (n,).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
GREY = (0.2989, 0.587, 0.114)
"""Luminance of red, green and blue, as torchvision has it."""


def flipped(images: torch.Tensor, rows: Bools, *, vertical: bool = False) -> torch.Tensor:
    """These rows mirrored, left to right or top to bottom."""
    return torch.where(_beside(rows, images), images.flip(-2 if vertical else -1), images)


def cropped(images: torch.Tensor, top: Ints, left: Ints, height: Ints, width: Ints) -> torch.Tensor:
    """A part of each, enlarged to the size of the whole (v2's ``resized_crop``, bilinear)."""
    y = _places(top, height, images.shape[2], images)
    x = _places(left, width, images.shape[3], images)
    n, h, w = len(images), *images.shape[2:]
    grid = torch.stack((x[:, None, :].expand(n, h, w), y[:, :, None].expand(n, h, w)), 3)
    return _as(F.grid_sample(images.float(), grid, align_corners=False), images)


def rotated(images: torch.Tensor, degrees: Floats) -> torch.Tensor:
    """Each turned counter-clockwise about its middle (v2's ``rotate``, bilinear); what comes in
    from outside is 0."""
    n, channels, height, width = images.shape
    if not images.numel():
        return images
    angle = _number(np.deg2rad(degrees), images)
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack(  # the grid's coordinates are halves of height and width
        (cos, -sin * height / width, none, sin * width / height, cos, none), 1
    ).view(n, 2, 3)
    grid = F.affine_grid(theta, [n, channels, height, width], align_corners=False)
    return _as(F.grid_sample(images.float(), grid, align_corners=False), images)


def coloured(
    images: torch.Tensor, brightness: Floats, contrast: Floats, saturation: Floats
) -> torch.Tensor:
    """Brightness, then contrast, then saturation times a factor each (v2's ``adjust_brightness``
    and so on); 1 leaves it. Saturation needs 3 channels, others are left."""
    top = _top(images)
    made = (images.float() * _factor(brightness, images)).clamp(0, top)
    mean = _grey(made).mean((1, 2, 3), keepdim=True)
    made = torch.lerp(mean, made, _factor(contrast, images)).clamp(0, top)
    if images.shape[1] == 3:
        made = torch.lerp(_grey(made), made, _factor(saturation, images)).clamp(0, top)
    return _as(made, images)


def noised(images: torch.Tensor, scale: Floats, chance: np.random.Generator) -> torch.Tensor:
    """With normal noise on each value (v2's ``gaussian_noise``, clipped); the deviation is a share
    of the range of values."""
    drawn = torch.from_numpy(chance.standard_normal(tuple(images.shape), np.float32))
    noise = drawn.to(images.device) * (_factor(scale, images) * _top(images))
    return _as((images.float() + noise).clamp(0, _top(images)), images)


def pasted(
    images: torch.Tensor, other: Ints, top: Ints, left: Ints, bottom: Ints, right: Ints
) -> torch.Tensor:
    """Each with a box, rows `top` to `bottom` and columns `left` to `right` (without the last), of
    another row."""
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    edges = (
        torch.from_numpy(edge).to(images.device)[:, None] for edge in (top, left, bottom, right)
    )
    above, before, below, after = edges
    high, wide = (y >= above) & (y < below), (x >= before) & (x < after)
    box = (high[:, :, None] & wide[:, None, :])[:, None]
    return torch.where(box, images[torch.from_numpy(other).to(images.device)], images)


def blended(images: torch.Tensor, other: Ints, away: Floats) -> torch.Tensor:
    """Each with a share `away` of another row."""
    at = torch.from_numpy(other).to(images.device)
    whole = images.float()
    return _as(torch.lerp(whole, whole[at], _factor(away, images)), images)


def _top(images: torch.Tensor) -> float:
    """The largest value."""
    return 1.0 if images.is_floating_point() else 255.0


def _as(made: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Of the type of these images."""
    return made if images.is_floating_point() else made.round_().clamp_(0, 255).to(images.dtype)


def _number(values: NDArray[Any], images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32)).to(images.device)


def _factor(values: Floats, images: torch.Tensor) -> torch.Tensor:
    """Beside images, shape (n, 1, 1, 1)."""
    return _number(values, images)[:, None, None, None]


def _beside(rows: Bools, images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(rows).to(images.device)[:, None, None, None]


def _grey(images: torch.Tensor) -> torch.Tensor:
    """Luminance, shape (n, 1, height, width)."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    weights = torch.tensor(GREY, device=images.device)[:, None, None]
    return (images * weights).sum(1, keepdim=True)


def _places(start: Ints, length: Ints, size: int, images: torch.Tensor) -> torch.Tensor:
    """Where the pixels of an enlarged part come from, as the grid wants it: the whole is -1 to 1,
    edge to edge; shape (n, size). No pixel comes from outside of the part."""
    at = torch.arange(size, device=images.device) + 0.5
    begin, long = _number(start, images)[:, None], _number(length, images)[:, None]
    inside = (at * (long / size) - 0.5).clamp(min=0).minimum(long - 1)
    return (begin + inside + 0.5) * (2 / size) - 1


__all__ = ["blended", "coloured", "cropped", "flipped", "noised", "pasted", "rotated"]
