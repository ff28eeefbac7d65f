"""Buffers rows until they fill an optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from engine.types import Ragged, Sparse, Tensors


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
        """Append rows without copying: nobody may write to them."""
        self._parts.append(part)

    def take(self) -> Tensors:
        """Return and remove all rows, in order."""
        parts, self._parts = self._parts, []
        return concat(parts)

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
        target=None if first.target is None else torch.cat([_target(part) for part in parts]),
        images={name: torch.cat([part.images[name] for part in parts]) for name in first.images},
        ragged={name: _ragged([part.ragged[name] for part in parts]) for name in first.ragged},
        sparse={name: _sparse([part.sparse[name] for part in parts]) for name in first.sparse},
    )


def plain(rows: Tensors) -> dict[str, Any]:
    """Return rows as numpy arrays, copied."""

    def array(tensor: torch.Tensor) -> np.ndarray:
        return np.array(tensor.cpu().numpy(), order="C")

    return {
        "numeric": array(rows.numeric),
        "categories": array(rows.categories),
        "target": array(_target(rows)),
        "images": {name: array(image.permute(0, 2, 3, 1)) for name, image in rows.images.items()},
        "ragged": {k: [array(r.values), array(r.offsets)] for k, r in rows.ragged.items()},
        "sparse": {
            k: [array(s.indices), array(s.offsets), array(s.weights), s.width]
            for k, s in rows.sparse.items()
        },
    }


def restored(value: Mapping[str, Any], device: str = "cpu") -> Tensors:
    """Return rows from the arrays of `plain`."""

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array, device=device)

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
    )  # fmt: skip


def _target(rows: Tensors) -> torch.Tensor:
    assert rows.target is not None
    return rows.target


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


__all__ = ["StepBuffer", "concat", "plain", "restored"]
