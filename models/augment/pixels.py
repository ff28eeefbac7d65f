"""Image arithmetic with separate parameters per row.

torchvision's transforms.v2 draws once for a whole batch; these functions do what its functions of
the same names do (a test compares them), but take a number for every row.

Images are tensors of shape (n, channels, height, width), bytes (0-255) or floats (0-1), on any
device; shape and type stay, nothing is edited in place. Numbers are numpy arrays of shape (n,).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from engine.types.arrays import Ints

AnyFloats = NDArray[np.floating[Any]]
GREY = (0.2989, 0.587, 0.114)
"""The luminance of red, green and blue, as in torchvision."""
BLOCK = 1 << 18
"""The image values that a CPU changes at a time."""


def blocks(images: torch.Tensor, rows: Ints) -> Iterator[Ints]:
    """Yield these rows in parts: on a CPU so few at a time that intermediate results stay in its
    cache, elsewhere all."""
    size = len(rows)
    if images.device.type == "cpu" and len(images):
        size = max(1, BLOCK // max(1, images[0].numel()))
    for at in range(0, len(rows), max(1, size)):
        yield rows[at : at + size]


def row_index(rows: Ints, images: torch.Tensor) -> slice | torch.Tensor:
    """Return an index of these rows, ascending: for adjacent ones a slice, which copies nothing."""
    if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows).to(images.device)


def flipped(images: torch.Tensor, *, vertical: bool = False) -> torch.Tensor:
    """Return mirrored images, left to right or top to bottom."""
    return images.flip(-2 if vertical else -1)


def cropped(images: torch.Tensor, top: Ints, left: Ints, height: Ints, width: Ints) -> torch.Tensor:
    """Return a part of each image, enlarged to full size (v2's ``resized_crop``, bilinear)."""
    if images.device.type != "cpu":
        return _gathered(images, top, left, height, width)
    out = torch.empty_like(images)
    edges = zip(*(edge.tolist() for edge in (top, left, height, width)), strict=True)
    for i, (y, x, high, wide) in enumerate(edges):  # its compiled loop for bytes: ten times as fast
        part = images[i : i + 1, :, y : y + high, x : x + wide]
        out[i : i + 1] = F.interpolate(part, images.shape[2:], mode="bilinear")
    return _as(out, images) if images.is_floating_point() else out


def _gathered(
    images: torch.Tensor, top: Ints, left: Ints, height: Ints, width: Ints
) -> torch.Tensor:
    """Return `cropped` for all rows in one call."""
    y = _places(top, height, images.shape[2], images)
    x = _places(left, width, images.shape[3], images)
    n, h, w = len(images), *images.shape[2:]
    grid = torch.stack((x[:, None, :].expand(n, h, w), y[:, :, None].expand(n, h, w)), 3)
    return _as(F.grid_sample(images.float(), grid, align_corners=False), images)


def rotated(images: torch.Tensor, degrees: AnyFloats) -> torch.Tensor:
    """Return each image rotated counter-clockwise about its centre (v2's ``rotate``, bilinear);
    outside pixels are 0."""
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
    images: torch.Tensor, brightness: AnyFloats, contrast: AnyFloats, saturation: AnyFloats
) -> torch.Tensor:
    """Return brightness, then contrast, then saturation times a factor each (v2's
    ``adjust_brightness`` and so on), clipped once, at the end; 1 changes nothing. Saturation
    needs 3 channels; others are left out."""
    n, channels, height, width = images.shape
    if not images.numel():
        return images
    grey = torch.full((channels,), 1 / channels, device=images.device)
    if channels == 3:
        grey = torch.tensor(GREY, device=images.device)
    else:
        saturation = np.ones_like(saturation)
    light, far, full = (_factor(x, images)[:, :, 0] for x in (brightness, contrast, saturation))
    pixels = images.permute(0, 2, 3, 1).reshape(n, height * width, channels).float()
    mean = light * (pixels.mean(1, keepdim=True) @ grey[:, None])
    # Each step is linear: y = x @ turn + shift.
    own = torch.eye(channels, device=images.device)
    turn = light * far * (full * own + (1 - full) * grey[:, None])
    shift = (1 - far) * mean * (full + (1 - full) * grey.sum())
    out = torch.baddbmm(shift, pixels, turn).clamp_(0, _top(images))
    return _as(out.view(n, height, width, channels).permute(0, 3, 1, 2), images)


def noised(images: torch.Tensor, scale: AnyFloats, torch_rng: torch.Generator) -> torch.Tensor:
    """Return images with normal noise on each value (v2's ``gaussian_noise``, clipped); the
    deviation is a share of the value range. Drawn row by row, on the CPU: the same on every
    device."""
    shape = [images.shape[2], images.shape[3], images.shape[1]]
    drawn = [torch.randn(shape, generator=torch_rng) for _ in range(len(images))]
    if not drawn:
        return images
    noise = torch.stack(drawn).permute(0, 3, 1, 2).to(images.device)
    out = noise.mul_(_factor(scale, images) * _top(images)).add_(images)
    return _as(out.clamp_(0, _top(images)), images)


def pasted(
    images: torch.Tensor, other: Ints, top: Ints, left: Ints, bottom: Ints, right: Ints
) -> torch.Tensor:
    """Return each image with a box, rows `top` to `bottom` and columns `left` to `right`
    (exclusive), of another row."""
    out = images.clone()
    edges = zip(*(edge.tolist() for edge in (other, top, left, bottom, right)), strict=True)
    for i, (row, above, before, below, after) in enumerate(edges):
        box = slice(None), slice(above, below), slice(before, after)
        out[i][box] = images[row][box]
    return out


def blended(images: torch.Tensor, other: Ints, away: AnyFloats) -> torch.Tensor:
    """Return each image with a share `away` of another row."""
    out = torch.empty_like(images)
    for at in blocks(images, np.arange(len(images))):
        rows, theirs = row_index(at, images), torch.from_numpy(other[at]).to(images.device)
        share = _factor(away[at], images)
        out[rows] = _as(torch.lerp(images[rows].float(), images[theirs].float(), share), images)
    return out


def _top(images: torch.Tensor) -> float:
    """Return the largest value."""
    return 1.0 if images.is_floating_point() else 255.0


def _as(result: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Return values in the type and range of these images: blending two largest values may round
    a last bit above them."""
    whole = result if images.is_floating_point() else result.round_()
    return whole.clamp_(0, _top(images)).to(images.dtype)


def _number(values: NDArray[Any], images: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float32)).to(images.device)


def _factor(values: AnyFloats, images: torch.Tensor) -> torch.Tensor:
    """Reshape to (n, 1, 1, 1) to broadcast over images."""
    return _number(values, images)[:, None, None, None]


def _places(start: Ints, length: Ints, size: int, images: torch.Tensor) -> torch.Tensor:
    """Return where the pixels of an enlarged part come from, as grid_sample takes it: the whole
    is -1 to 1, edge to edge; shape (n, size). No pixel comes from outside the part."""
    at = torch.arange(size, device=images.device) + 0.5
    begin, long = _number(start, images)[:, None], _number(length, images)[:, None]
    inside = (at * (long / size) - 0.5).clamp(min=0).minimum(long - 1)
    return (begin + inside + 0.5) * (2 / size) - 1


__all__ = [
    "blended",
    "blocks",
    "coloured",
    "cropped",
    "flipped",
    "noised",
    "pasted",
    "rotated",
    "row_index",
]  # fmt: skip
