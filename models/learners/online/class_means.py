"""The mean vector of each class, by which rows are scored whose network returns a vector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch.nn import functional as F

from engine.types import GraphBuilder

MOST_ROWS = 128
"""The rows for which a mean stands, at most: the network moves on, and rows of before with it."""
LEAST_LENGTH = 1e-12
"""What a vector's length is taken to be at least, as `torch.nn.functional.normalize` has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMeans:
    """The running mean of the unit vectors of each class, and the raw scores that it gives: the
    cosine of a row's vector and its class's mean, divided by the temperature. A class without a row
    has the raw score of a mean that is opposite. A value: learning makes a new one.

    A mean weighs rows alike while they are few; from `MOST_ROWS` on the newest ones count most, so
    that it follows the network.

    Source: the nearest class mean of Snell, Swersky and Zemel, "Prototypical networks for few-shot
    learning", 2017; a mean that runs beside the network: Li, Xiong and Hoi, "MoPro: webly
    supervised learning with momentum prototypes", 2021.

    Attributes:
        means: shape (classes, width), float32; 0 of a class without a row.
        counts: rows that each mean stands for, int64, (classes,).
        temperature: what cosines are divided by.
        binary: two classes, whose raw score is one number, for the second.
    """

    means: torch.Tensor
    counts: torch.Tensor
    temperature: float
    binary: bool

    @classmethod
    def none(
        cls, classes: int, width: int, *, temperature: float, binary: bool, device: str
    ) -> Self:
        """Return the means of classes without a row."""
        return cls(
            means=torch.zeros((classes, width), device=device),
            counts=torch.zeros(classes, dtype=torch.int64, device=device),
            temperature=temperature,
            binary=binary,
        )

    @property
    def directions(self) -> torch.Tensor:
        """The means, brought to length 1; 0 of a class without a row."""
        return F.normalize(self.means)

    @property
    def nbytes(self) -> int:
        """The bytes of means and counts."""
        return self.means.nbytes + self.counts.nbytes

    def raw_scores(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return raw scores of vectors of any length, (n, width): (n, classes), or (n,) of two."""
        raw = F.normalize(vectors) @ self._weights + self._bias
        return raw[:, 1] - raw[:, 0] if self.binary else raw

    def learned(self, vectors: torch.Tensor, target: torch.Tensor) -> Self:
        """Return the means after these rows.

        Args:
            vectors: of any length, shape (n, width). One that is not finite is left out.
            target: classes, int64, shape (n,); -1 for rows of none.
        """
        known = (target >= 0) & vectors.isfinite().all(1)
        units, target = F.normalize(vectors[known]), target[known]
        if not len(target):
            return self
        classes, at = torch.unique(target, return_inverse=True)
        member = F.one_hot(at, len(classes)).to(units.dtype)  # adding by index varies on a GPU
        added = member.sum(0)
        share = added / (added + self.counts[classes])
        means, counts = self.means.clone(), self.counts.clone()
        newest = (member.T @ units) / added.unsqueeze(1)
        means[classes] = torch.lerp(means[classes], newest, share.unsqueeze(1))
        counts[classes] = (counts[classes] + added.long()).clamp(max=MOST_ROWS)
        return replace(self, means=means, counts=counts)

    def without(self, classes: list[int]) -> Self:
        """Return the means, those of these classes forgotten."""
        means, counts = self.means.clone(), self.counts.clone()
        means[classes], counts[classes] = 0.0, 0
        return replace(self, means=means, counts=counts)

    def snapshot(self) -> dict[str, Any]:
        """Return means and counts as a plain value, copied."""
        return {"means": _plain(self.means), "counts": _plain(self.counts)}

    def restored(self, value: Mapping[str, Any]) -> Self:
        """Return the means of a `snapshot`."""
        device = self.means.device
        means, counts = (torch.tensor(value[name], device=device) for name in ("means", "counts"))
        return replace(self, means=means, counts=counts)

    def build(self, graph: GraphBuilder, vectors: str) -> str:
        """Write `raw_scores` into an ONNX graph; return their name, (n, classes) or (n, 1). The
        vectors of length 1 are an output of the graph.

        Args:
            vectors: float32, (n, width).
        """
        axis = graph.constant(np.array([1], np.int64), "axis")
        squares = graph.op("ReduceSum", graph.op("Mul", vectors, vectors), axis, keepdims=1)
        length = graph.op(
            "Max", graph.op("Sqrt", squares), graph.constant(np.float32(LEAST_LENGTH))
        )
        units = graph.op("Div", vectors, length)
        graph.vector_output(units)
        weights, bias = self._weights, self._bias
        if self.binary:
            weights, bias = weights[:, 1:] - weights[:, :1], bias[1:] - bias[:1]
        raw = graph.op("MatMul", units, graph.constant(_plain(weights), "class_means"))
        return graph.op("Add", raw, graph.constant(_plain(bias), "bias"))

    @property
    def _weights(self) -> torch.Tensor:
        """What unit vectors are multiplied with, shape (width, classes)."""
        return self.directions.T / self.temperature

    @property
    def _bias(self) -> torch.Tensor:
        """What is added, shape (classes,)."""
        return (self.counts == 0).float() / -self.temperature


def _plain(tensor: torch.Tensor) -> np.ndarray:
    """Return a copy in contiguous memory of the host."""
    return np.array(tensor.detach().cpu().numpy(), order="C")


__all__ = ["ClassMeans"]
