"""What a training has made, and how it scores rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.columnar.numeric_scale import NumericScale
from engine.types import Features, GraphBuilder, Snapshot
from engine.types.arrays import Floats, Ints
from models.learners.probabilities import sigmoid, softmax
from models.learners.quantiles import build_sorted
from models.learners.trees.forest import Forest, Rows, Target

UNSEEN = math.log(1e-15)
"""The raw score of a class that is in no training yet."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TreesScorer:
    """Trees, and what it takes to make scores of rows by them. A training makes a new one.

    Shares of classes follow Laplace's rule: a class that was never seen has one of (rows +
    classes).

    Attributes:
        features: of the rows.
        forests: the trees; of quantiles, those of each.
        scale: of the numbers that they were trained on.
        columns: the forest's output of each class; -1 for one that came later. Shape (classes,).
        learned: the rows that they were trained on.
    """

    features: Features
    forests: tuple[Forest, ...]
    scale: NumericScale
    columns: Ints
    learned: int

    @classmethod
    def constant(
        cls, target: Target, features: Features, scale: NumericScale, quantile: float | None = None
    ) -> TreesScorer:
        """Return the constants that fit a target best, without trees.

        Args:
            quantile: the one that is learned; None for several, and for a mean.
        """
        # Trees tell two classes at least apart.
        outputs = max(len(features.classes), 2) if features.task == "multiclass" else 1
        return cls(
            features=features,
            forests=tuple(
                Forest.of_target(target, features.task, outputs, level)
                for level in features.quantiles or (quantile,)
            ),
            scale=scale,
            columns=np.arange(len(features.classes)),
            learned=len(target),
        )

    def scores(self, rows: Rows, scale: NumericScale, threads: int) -> Floats:
        """Return predictions or probabilities of rows of this scale, shape (n,) or (n, outputs)."""
        rows = self._in_own_scale(rows, scale)
        raw = np.hstack([forest.raw(rows, threads) for forest in self.forests])
        if self.features.quantiles:
            return np.sort(raw, axis=1)  # they never cross
        raw = self._of_classes(raw) if self._multiclass else raw[:, 0]
        if self.features.task == "regression":
            return raw
        weight, even = self._laplace
        return weight * (softmax(raw) if raw.ndim > 1 else sigmoid(raw)) + even

    def known(self, rows: Rows, target: Target) -> tuple[Rows, Target]:
        """Return those of the rows whose class the trees know, and their outputs as the target."""
        if not self._multiclass:
            return rows, target
        outputs = self.columns[target.astype(np.int64)]
        return rows[outputs >= 0], outputs[outputs >= 0].astype(np.float32)

    def with_classes(self, features: Features, sources: Sequence[int]) -> TreesScorer:
        """Return the same trees for the classes of these features; see
        `engine.types.Learner.set_classes`."""
        # The last of them, -1, is that of a new class.
        columns = np.append(self.columns, -1)[np.asarray(sources, np.int64)]
        return replace(self, features=features, columns=columns)

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write `scores` into an ONNX graph; return their name, float32, (n,) or (n, outputs).

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.
        """
        features = self.features
        numeric = self.scale.build(graph, numeric, features.numeric)
        parts = [numeric] if features.numeric else []
        if features.categories:
            parts.append(graph.op("Cast", categories, to=1))
        rows = parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=1)
        scores, *others = (forest.build(graph, rows) for forest in self.forests)
        if features.quantiles:
            scores = graph.op("Concat", scores, *others, axis=1)
            return build_sorted(graph, scores, len(features.quantiles))
        if not self._multiclass:
            axis = graph.constant(np.array([1], np.int64), "axis")
            scores = graph.op("Squeeze", scores, axis)
        if features.task == "regression":
            return scores
        if self._multiclass:
            scores = self._build_columns(graph, scores)
            shares = graph.op("Softmax", scores, axis=1)
        else:
            shares = graph.op("Sigmoid", scores)
        weight, even = (np.float32(part) for part in self._laplace)
        shares = graph.op("Mul", shares, graph.constant(weight, "weight"))
        return graph.op("Add", shares, graph.constant(even, "even"))

    def snapshot(self) -> dict[str, Snapshot]:
        """Return a plain value."""
        return {
            "forests": [forest.snapshot() for forest in self.forests],
            "learned": self.learned,
            "columns": self.columns,
            "scale": self.scale.snapshot(),
        }

    @classmethod
    def restored(cls, value: Mapping[str, Any], features: Features) -> TreesScorer:
        """Return the scorer of a `snapshot`."""
        return cls(
            features=features,
            forests=tuple(map(Forest.restored, value["forests"])),
            scale=NumericScale.restored(value["scale"]),
            columns=np.array(value["columns"]),
            learned=value["learned"],
        )

    @property
    def outputs(self) -> int:
        """The raw scores of each of the forests."""
        return len(self.forests[0].constants)

    @property
    def leaves(self) -> int:
        """The leaves of all trees."""
        return sum(forest.leaves for forest in self.forests)

    @property
    def has_trees(self) -> bool:
        """Whether there is more than constants."""
        return self.forests[0].booster is not None

    @property
    def _multiclass(self) -> bool:
        return self.features.task == "multiclass"

    @property
    def _laplace(self) -> tuple[float, float]:
        """Return what shares are multiplied with, and what is added to each."""
        classes = max(len(self.features.classes), 1)
        return self.learned / (self.learned + classes), 1 / (self.learned + classes)

    def _in_own_scale(self, rows: Rows, scale: NumericScale) -> Rows:
        if not self.features.scaled:
            return rows
        count = len(self.features.numeric)
        a, b = scale.to(self.scale)
        return np.concatenate((rows[:, :count] * a + b, rows[:, count:]), axis=1).astype(np.float32)

    def _of_classes(self, raw: Floats) -> Floats:
        """Return raw scores by class, from those that the forest has."""
        there = self.columns >= 0
        scores = np.full((len(raw), len(self.columns)), UNSEEN)
        scores[:, there] = raw[:, self.columns[there]]
        return scores

    def _build_columns(self, graph: GraphBuilder, scores: str) -> str:
        """Write the same into an ONNX graph."""
        outputs = self.outputs
        if np.array_equal(self.columns, np.arange(outputs)):
            return scores
        pads = graph.constant(np.array([0, 0, 0, 1], np.int64), "pads")
        wider = graph.op("Pad", scores, pads, graph.constant(np.float32(UNSEEN), "unseen"))
        columns = np.where(self.columns < 0, outputs, self.columns)
        return graph.op("Gather", wider, graph.constant(columns, "columns"), axis=1)


__all__ = ["TreesScorer"]
