"""The rows that wait for their step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from engine.types import Features, Padded, Ragged, Sparse, Tensors, bucket
from models.learners.labelled import target_of


class StepBuffer:
    """Parts of batches, in order. The learner cuts them so that they fill a step exactly."""

    def __init__(self) -> None:
        self._parts: list[Tensors] = []

    def __len__(self) -> int:
        """The number of waiting rows."""
        return sum(map(len, self._parts))

    @property
    def nbytes(self) -> int:
        """The bytes of the rows."""
        return sum(part.nbytes for part in self._parts)

    def add(self, part: Tensors) -> None:
        """Append rows without copying; they must not be written to afterwards."""
        self._parts.append(part)

    def take(self) -> Tensors:
        """Return and remove all rows, in order."""
        parts, self._parts = self._parts, []
        return concat(parts)

    def forget_classes(self, slots: torch.Tensor) -> None:
        """Let these classes be none, -1, in the rows."""
        self._parts = [
            dataclasses.replace(part, target=without_classes(target_of(part), slots))
            for part in self._parts
        ]

    def snapshot(self) -> dict[str, Any]:
        """Return the rows as a plain value, copied."""
        return plain(concat(self._parts)) if self._parts else {}

    def restore(self, value: Mapping[str, Any], device: str) -> None:
        """Restore a `snapshot`."""
        self._parts = [restored(value, device)] if value else []


def concat(parts: Sequence[Tensors]) -> Tensors:
    """Concatenate the rows of several parts with the same features."""
    first = parts[0]
    if len(parts) == 1:
        return first
    return Tensors(
        numeric=torch.cat([part.numeric for part in parts]),
        categories=torch.cat([part.categories for part in parts]),
        target=None if first.target is None else torch.cat([target_of(part) for part in parts]),
        images={name: torch.cat([part.images[name] for part in parts]) for name in first.images},
        ragged={name: _ragged([part.ragged[name] for part in parts]) for name in first.ragged},
        sparse={name: _sparse([part.sparse[name] for part in parts]) for name in first.sparse},
        padded={name: _padded([part.padded[name] for part in parts]) for name in first.padded},
        arrays={name: _padded([part.arrays[name] for part in parts]) for name in first.arrays},
    )


def plain(rows: Tensors) -> dict[str, Any]:
    """Return rows as numpy arrays, copied."""

    def array(tensor: torch.Tensor) -> np.ndarray:
        return np.array(tensor.cpu().numpy(), order="C")

    return {
        "numeric": array(rows.numeric),
        "categories": array(rows.categories),
        "target": array(target_of(rows)),
        "images": {name: array(image.permute(0, 2, 3, 1)) for name, image in rows.images.items()},
        "ragged": {k: [array(r.values), array(r.offsets)] for k, r in rows.ragged.items()},
        "sparse": {
            k: [array(s.indices), array(s.offsets), array(s.weights), s.width]
            for k, s in rows.sparse.items()
        },
        "padded": {k: [array(p.values), array(p.mask)] for k, p in rows.padded.items()},
        "arrays": {k: [array(p.values), array(p.mask)] for k, p in rows.arrays.items()},
    }


def restored(value: Mapping[str, Any], device: str = "cpu") -> Tensors:
    """Return rows from the arrays of `plain`."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array, device=device)

    def padded(kind: str) -> dict[str, Padded]:
        pairs = value[kind].items()
        return {k: Padded(values=tensor(values), mask=tensor(mask)) for k, (values, mask) in pairs}

    return Tensors(
        numeric=tensor(value["numeric"]),
        categories=tensor(value["categories"]),
        target=tensor(value["target"]),
        # Of one channel a tensor is channels_last whatever its strides are, and they decide which
        # kernel runs: these are the ones that `collate` gives.
        images={name: tensor(image).permute(0, 3, 1, 2) for name, image in value["images"].items()},
        ragged={
            name: Ragged(values=tensor(values), offsets=tensor(offsets))
            for name, (values, offsets) in value["ragged"].items()
        },
        sparse={
            name: Sparse(
                indices=tensor(indices), offsets=tensor(offsets), weights=tensor(weights),
                width=width,
            )
            for name, (indices, offsets, weights, width) in value["sparse"].items()
        },
        padded=padded("padded"),
        arrays=padded("arrays"),
    )  # fmt: skip


def fit_lengths(rows: Tensors, features: Features) -> Tensors:
    """Return rows whose padded lists are as long as their own longest row asks for, whatever batch
    they came in: so the same rows round alike."""
    if not rows.padded:
        return rows
    padded = {
        name: _fitted(part, features.most_values, features.buckets)
        for name, part in rows.padded.items()
    }
    return dataclasses.replace(rows, padded=padded)


def without_classes(target: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Return a target with -1 where it is one of these classes."""
    return torch.where(torch.isin(target, slots.to(target.device)), -1, target)


def _fitted(rows: Padded, most: int, buckets: tuple[int, ...]) -> Padded:
    longest = int(rows.mask.sum(1).max())
    length = bucket(longest, most, buckets)
    rows = _lengthened(rows, max(length, rows.mask.shape[1]))
    return Padded(
        values=rows.values[:, :length].contiguous(), mask=rows.mask[:, :length].contiguous()
    )


def _padded(parts: Sequence[Padded]) -> Padded:
    length = max(part.mask.shape[1] for part in parts)
    parts = [_lengthened(part, length) for part in parts]
    return Padded(
        values=torch.cat([part.values for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
    )


def _lengthened(rows: Padded, length: int) -> Padded:
    """Return the rows with more padding."""
    more = length - rows.mask.shape[1]
    if not more:
        return rows
    last = (0, 0) * (rows.values.ndim - 2)  # pad counts dimensions from the last
    return Padded(
        values=F.pad(rows.values, (*last, 0, more)), mask=F.pad(rows.mask, (0, more), value=False)
    )


def _ragged(parts: Sequence[Ragged]) -> Ragged:
    return Ragged(values=torch.cat([part.values for part in parts]), offsets=_offsets(parts))


def _sparse(parts: Sequence[Sparse]) -> Sparse:
    return Sparse(
        indices=torch.cat([part.indices for part in parts]),
        offsets=_offsets(parts),
        weights=torch.cat([part.weights for part in parts]),
        width=parts[0].width,
    )


def _offsets(parts: Sequence[Ragged] | Sequence[Sparse]) -> torch.Tensor:
    """Return the offsets of the rows of all parts."""
    lengths = torch.cat([part.offsets.diff() for part in parts])
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


__all__ = [
    "StepBuffer",
    "concat",
    "fit_lengths",
    "plain",
    "restored",
    "without_classes",
]
