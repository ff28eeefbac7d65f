"""The parts of a kept row beside numbers, categories and target: images, lists of ids and arrays as
tensors of one shape per row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from engine.types import Features, HeadraceError, Padded, Tensors

MOST_INT32 = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of each row: a tensor of shape (n, *shape).

    Attributes:
        name: in a state.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """The bytes per row."""
        return math.prod(self.shape) * self.dtype.itemsize


def parts_of(features: Features) -> list[Part]:
    """Return the parts of rows with these features, in the order of `packed`."""
    parts = []
    for name, (channels, height, width) in features.images.items():
        dtype = torch.float32 if name in features.float_images else torch.uint8
        parts.append(Part(name=f"images.{name}", shape=(height, width, channels), dtype=dtype))
    for name, size in features.padded.items():
        small = 0 < size <= MOST_INT32
        dtype = torch.int32 if small else torch.int64
        parts.append(Part(name=f"padded.{name}", shape=(features.most_values,), dtype=dtype))
        parts.append(Part(name=f"lengths.{name}", shape=(), dtype=torch.int32))
    for name, (length, width) in features.arrays.items():
        parts.append(Part(name=f"arrays.{name}", shape=(length, width), dtype=torch.float32))
        parts.append(Part(name=f"present.{name}", shape=(length,), dtype=torch.bool))
    if features.state is not None:
        parts.append(Part(name="state", shape=(features.state.width,), dtype=torch.float32))
    return parts


def packed(rows: Tensors, features: Features) -> Iterator[torch.Tensor]:
    """Yield the parts of rows."""
    for name in features.images:
        image = rows.images[name]
        if image.is_floating_point() != (name in features.float_images):
            raise HeadraceError(
                f"Images in '{name}' hold {str(image.dtype).removeprefix('torch.')}, and "
                "Features.float_images says otherwise: name the column there if it holds floats."
            )
        yield image.permute(0, 2, 3, 1)  # as it lies in memory
    for name in features.padded:
        ids = rows.padded[name]
        yield F.pad(ids.values, (0, features.most_values - ids.values.shape[1]))
        yield ids.mask.sum(1)
    for name in features.arrays:
        yield from (rows.arrays[name].values, rows.arrays[name].mask)
    if features.state is not None:  # is known after the step
        yield rows.numeric.new_zeros((len(rows), features.state.width), dtype=torch.float32)


def unpacked(
    numeric: torch.Tensor,
    categories: torch.Tensor,
    target: torch.Tensor,
    parts: Sequence[torch.Tensor],
    features: Features,
) -> Tensors:
    """Return rows from their parts."""
    left = iter(parts)
    images = {name: next(left).permute(0, 3, 1, 2) for name in features.images}
    padded = {name: _padded(next(left), next(left)) for name in features.padded}
    arrays = {name: Padded(values=next(left), mask=next(left)) for name in features.arrays}
    return Tensors(
        numeric=numeric,
        categories=categories,
        target=target,
        images=images,
        padded=padded,
        arrays=arrays,
    )


def _padded(values: torch.Tensor, lengths: torch.Tensor) -> Padded:
    places = torch.arange(values.shape[1], device=values.device)
    return Padded(values=values.long(), mask=places < lengths.unsqueeze(1))


__all__ = ["Part", "packed", "parts_of", "unpacked"]
