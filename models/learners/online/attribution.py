"""Integrated gradients: how far each feature moves a score from that of a mean row.

Sundararajan, Taly & Yan, "Axiomatic Attribution for Deep Networks" (ICML 2017): the gradient of the
score, integrated along the straight line from a baseline to the row, times the difference of both.
What all features get sums to the difference of the two scores; what is missing from it comes from
the steps of the sum, and from parts of a network that no line leads through.

The baseline is the mean row. Ids and codes have no mean, so the vectors that the network looks up
for them take their place, wherever in the network it does so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from engine.types import UNEXPLAINED, Features, Padded, Tensors
from engine.types.arrays import Floats

STEPS = 32
"""The points on the line at which the gradient is taken."""
LOOKUPS = (F.embedding, F.embedding_bag, torch.Tensor.float)
"""What turns ids, codes and bytes of pixels into numbers."""
Score = Callable[[Tensors, torch.Tensor], torch.Tensor]
"""Returns the score of each row, (n,), from rows and their scaled numbers."""


def integrated_gradients(
    score: Score, rows: Tensors, numeric: torch.Tensor, features: Features
) -> dict[str, Floats]:
    """Return feature -> its share of each row's distance from the mean row's score, shape (n,), and
    `UNEXPLAINED` -> the rest.

    Args:
        score: depends on each row alone.
        numeric: the scaled `rows.numeric`.
    """
    line = _StraightLine(score, rows, numeric, features)
    slopes = np.zeros((len(rows), len(line.names)))
    for step in range(STEPS):
        slopes += line.slopes((step + 0.5) / STEPS) / STEPS
    moved = dict(zip(line.names, slopes.T, strict=True))
    return {**moved, UNEXPLAINED: line.at(1.0) - line.at(0.0) - slopes.sum(1)}


class _StraightLine(TorchFunctionMode):
    """The line from the mean row to each row. Each feature of each row has a gate, which says where
    on the line it is, from 0 to 1; the gradient by the gate is the feature's part of the slope.

    Attributes:
        names: of the features.
    """

    def __init__(
        self, score: Score, rows: Tensors, numeric: torch.Tensor, features: Features
    ) -> None:
        super().__init__()
        self.names = (*features.numeric, *features.categories, *features.nested)
        self._score, self._rows, self._numeric = score, rows, numeric.detach()
        self._count = len(features.numeric)
        self._keys = dict(_keys(rows, features))
        self._left: list[str] = []
        self._gates = torch.empty(0)

    def slopes(self, place: float) -> Floats:
        """Return the slope of the score by each feature, (n, features)."""
        with torch.enable_grad():
            scores = self._scores(place, slope=True)
            # A score may depend on no gate: its features have no line, or none counts.
            total = scores.sum() + 0 * self._gates.sum()
            (slopes,) = torch.autograd.grad(total, self._gates)
        values: Floats = slopes.double().cpu().numpy()
        return values

    @torch.no_grad()
    def at(self, place: float) -> Floats:
        """Return the scores there, (n,)."""
        values: Floats = self._scores(place).double().cpu().numpy()
        return values

    def _scores(self, place: float, *, slope: bool = False) -> torch.Tensor:
        size = (len(self._rows), len(self.names))
        self._gates = torch.full(size, place, device=self._numeric.device, requires_grad=slope)
        self._left = list(self._keys)
        rows = dataclasses.replace(
            self._rows,
            images={name: self._image(name, x) for name, x in self._rows.images.items()},
            padded={name: self._list(name, x) for name, x in self._rows.padded.items()},
            arrays={name: self._list(name, x) for name, x in self._rows.arrays.items()},
        )
        mean = self._numeric.mean(0)
        numeric = mean + self._gates[:, : self._count] * (self._numeric - mean)
        with self:
            return self._score(rows, numeric)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in LOOKUPS:
            return result
        keys = args[0] if args else kwargs["input"]
        name = self._feature(keys)
        if name is None or len(result) != len(self._rows):
            return result
        places = tuple(range(result.ndim - 1)) if func is not torch.Tensor.float else (0,)
        return self._gated(name, result, result.detach().mean(places))

    def _feature(self, keys: torch.Tensor) -> str | None:
        """Return the feature whose ids, codes or pixels these are: of equal ones, the next that was
        not looked up yet."""
        alike = [
            name
            for name, own in self._keys.items()
            if own is keys
            or (own.shape == keys.shape and own.dtype == keys.dtype and torch.equal(own, keys))
        ]
        name = next((name for name in alike if name in self._left), next(iter(alike), None))
        if name in self._left:
            self._left.remove(name)
        return name

    def _gated(self, name: str, x: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        gate = self._gates[:, self.names.index(name)].view(-1, *[1] * (x.ndim - 1))
        return mean + gate * (x - mean)

    def _image(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._gated(name, x, x.mean(0)) if x.is_floating_point() else x

    def _list(self, name: str, x: Padded) -> Padded:
        if not x.values.is_floating_point() or not x.values.numel():
            return x
        return dataclasses.replace(x, values=self._gated(name, x.values, x.values.mean(0)))


def _keys(rows: Tensors, features: Features) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the features that a network looks up, and by what."""
    yield from zip(features.categories, rows.categories.unbind(1), strict=True)
    for name, padded in rows.padded.items():
        yield name, padded.values
    for name, ragged in rows.ragged.items():
        yield name, ragged.values
    for name, sparse in rows.sparse.items():
        yield name, sparse.indices
    yield from rows.images.items()


__all__ = ["integrated_gradients"]
