"""What prototypes are means of: raw features, or what a module or an ONNX file makes of them. None
of it learns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from engine.types import Features, GraphBuilder, Tensors
from engine.types.arrays import Bools, Floats
from models.net_input import NetInput, tensors_of

Rows = NDArray[np.float32]
TOLERANCE = 1e-4
"""The largest difference between a row's vectors in two batches, as a share of the largest number:
what float32 sums in another order differ by, and more."""
TRIED_ROWS = 3
"""The made rows with which an embedding is tried."""


class Embedding(ABC):
    """Makes a vector of each row.

    Attributes:
        scaled: the numbers of a vector that are divided by their deviation, shape (width,).
    """

    scaled: Bools

    @property
    def width(self) -> int:
        """The numbers of a vector."""
        return len(self.scaled)

    @property
    def digest(self) -> str:
        """What identifies its numbers; "" where it has none of its own."""
        return ""

    @property
    def nbytes(self) -> int:
        """The bytes of its numbers."""
        return 0

    @abstractmethod
    def embed(self, rows: Tensors) -> Rows:
        """Return the vectors, shape (n, width), C-contiguous."""

    @abstractmethod
    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write `embed` into an ONNX graph; return the name of the vectors, float32.

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.

        Raises: UserError if that is impossible.
        """


class RawFeatures(Embedding):
    """The features themselves, side by side: numbers, a 1 for each code of a category, the pixels
    of images (0 to 1), the numbers of arrays (0 where there is none).

    Args:
        standardize: whether numbers that no stage has scaled, and those of arrays, are divided by
            their deviation.
    """

    def __init__(
        self, inputs: Sequence[NetInput], features: Features, *, standardize: bool
    ) -> None:
        self._inputs = [entry for entry in inputs if entry.form != "ids"]
        self._features = features
        parts = [np.zeros(0, np.bool_)]
        numbers = [np.zeros(0, np.int64)]
        for entry in self._inputs:
            if entry.form == "numbers":
                own = [standardize and name not in features.scaled for name in entry.columns]
                parts.append(np.array(own, np.bool_))
                numbers.append(np.array([features.numeric.index(name) for name in entry.columns]))
            else:
                parts.append(np.full(_size(entry), standardize and entry.form == "array"))
                numbers.append(np.full(_size(entry), -1))
        self.scaled = np.concatenate(parts)
        self._numbers = np.concatenate(numbers)

    def by_number(self, values: Floats, others: float) -> Floats:
        """Return the value of the numeric feature that each number of a vector is, (width,), from
        those of all, (d,)."""
        return np.append(values, others)[self._numbers]

    def embed(self, rows: Tensors) -> Rows:
        tensors = tensors_of(rows, self._inputs)
        vectors = np.empty((len(rows), self.width), np.float32)
        at = 0
        for entry in self._inputs:
            values = tensors[entry.name]
            if entry.form == "array":
                values = values * tensors[f"{entry.name}_mask"].unsqueeze(-1)
            parts = [values.flatten(1)]
            if entry.form == "codes":
                pairs = enumerate(entry.sizes)
                parts = [nn.functional.one_hot(values[:, i], size) for i, size in pairs]
            for part in parts:
                vectors[:, at : at + part.shape[1]] = part.numpy()
                at += part.shape[1]
        return vectors

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        from models.export.body import input_values  # onnx, which learning does without

        values = input_values(graph, self._inputs, self._features, numeric, categories)
        parts: list[str] = []
        for entry in self._inputs:
            value = values[entry.name]
            if entry.form == "codes":
                parts += _one_hot(graph, value, entry.sizes)
            else:
                parts.append(graph.op("Flatten", value, axis=1))
        return parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=1)


def _size(entry: NetInput) -> int:
    """Return the numbers that an input takes in a vector."""
    return sum(entry.sizes) if entry.form == "codes" else int(np.prod(entry.shape))


def _one_hot(graph: GraphBuilder, codes: str, sizes: Sequence[int]) -> list[str]:
    """Return a (n, size) float32 of each column of codes."""
    ends = graph.constant(np.array([0, 1], np.float32))
    columns = []
    for i, size in enumerate(sizes):
        column = graph.op("Gather", codes, graph.constant(np.int64(i)), axis=1)
        columns.append(graph.op("OneHot", column, graph.constant(np.int64(size)), ends, axis=-1))
    return columns


__all__ = ["TOLERANCE", "TRIED_ROWS", "Embedding", "RawFeatures", "Rows"]
