"""The learner of trees: gradient boosting on the newest rows, trained anew as the stream grows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import Batch, Features, GraphBuilder, Snapshot, Step, Tensors, UserError
from engine.types.arrays import Floats
from models.challenge.challenger import Challengeable
from models.learners.forest import Forest, Rows, Target, lightgbm
from models.learners.identity import require_same_model
from models.learners.labelled import labelled, target_of
from models.learners.scales import NumericScale
from models.learners.trees_settings import (
    MIN_TREE_ROWS,
    TreesSettings,
    TreesTraining,
    lightgbm_params,
)

ROWS_PER_TRAINING = 8
"""A new training follows when the rows since the last one are this part of those before it."""
REFITS = 4
"""The parts of the rows between two trainings, after each of which the leaves are moved."""
MIN_REFIT_ROWS = 8
DECAY = 0.9
"""What a leaf keeps of its value when it is moved."""
DEFAULT_WINDOW_ROWS, DEFAULT_WINDOW_BYTES = 20_000, 32 << 20
MOST_CODES = 1 << 24
"""The codes of a category that float32 can tell apart."""
BYTES_PER_LEAF = 96
"""What LightGBM keeps of a leaf and its split."""
UNSEEN = math.log(1e-15)
"""The raw score of a class that is in no training yet."""
Kept = NDArray[np.float32] | NDArray[np.float64]
"""Rows of the window."""


class TreesLearner(Challengeable):
    """Gradient-boosted trees by LightGBM; regression, binary or multiclass.

    Trees are not learned row by row: they are trained on a window of the newest rows, again
    whenever the stream has grown by an eighth, or by as many rows as the window has. In between
    their leaves are moved towards the newest rows three times. Each row is scored before it is in
    any training. So trainings depend on the rows and not on how they were cut into batches, to the
    bit, and are few on a long stream; a stream that changes makes a new model sooner, by
    `forget_on`. Numbers that stages scale are kept as they were before, and scaled as the stream
    stands at a training.

    The first rows, and a window of a single class or value, are learned as constants. Shares of
    classes follow Laplace's rule: a class that was never seen has one of (rows + classes).

    Args:
        settings: ``[model]``.
        training: ``[train]``.
        features: what it reads.

    Raises: UserError for features it cannot read, or if LightGBM is not installed.
    """

    learns_by_batch = False
    sets_threads = True
    grows = "asked"

    Settings = TreesSettings
    Training = TreesTraining
    settings: TreesSettings
    training: TreesTraining

    def __init__(
        self, settings: TreesSettings, training: TreesTraining, features: Features
    ) -> None:
        _require_readable(training, features)
        lightgbm()
        torch.set_num_threads(training.threads)  # no more than LightGBM
        self.settings = settings
        self.training = training
        self.features = features
        self._window = self._new_window(1)
        default = min(DEFAULT_WINDOW_ROWS, DEFAULT_WINDOW_BYTES // self._window.row_bytes)
        self._window = self._new_window(training.window_rows or max(default, MIN_TREE_ROWS))
        self._scale = self._newest = NumericScale.unknown(len(features.numeric))
        self._multiclass = features.task == "multiclass"
        self._forest = Forest.of_target(np.empty(0, "f4"), features.task, self._outputs)
        self._columns = np.arange(len(features.classes))
        self._rows = 0
        self._trained = 0
        self._learned = 0

    # -------------------------------------------------------------------------------------- actions

    def learn(self, batch: Batch) -> Step:
        """Score the rows and keep them; train where it is time. `Step.steps` counts rows."""
        tensors, labels = labelled(batch)
        target = labels.numpy().astype(np.float32)
        if not len(target):
            return Step.empty(self.predict(tensors))
        parts = [scores for part in tensors.even_parts() for scores in self._learn_part(part)]
        scores = np.concatenate(parts)
        return Step(scores=scores, loss=self._loss(scores, target), steps=len(target))

    def predict(self, tensors: Tensors) -> Floats:
        """Return scores like `Step.scores`."""
        parts = [
            self._scores(self._brought(_matrix(part), self._scale_of(part)))
            for part in tensors.even_parts()
        ]
        return np.concatenate(parts)

    def set_classes(self, classes: Sequence[str], sources: Sequence[int]) -> None:
        """Give new classes their share of rows that Laplace's rule gives to unseen ones, until the
        next training; kept rows of classes that have left are not learned again."""
        at = np.asarray(sources, np.int64)
        numbers = np.full(len(self.features.classes) + 1, -1)
        numbers[at[at >= 0]] = np.flatnonzero(at >= 0)
        columns = np.append(self._columns, -1)
        self._columns = columns[np.where(at < 0, len(columns) - 1, at)]
        self.features = replace(self.features, classes=tuple(classes))
        kept = self._window.newest()
        target = numbers[kept[:, -1].astype(np.int64)]
        if not np.array_equal(target, kept[:, -1]):
            self._window = self._new_window(self._window.most)
            self._window.add(kept[target >= 0, :-1], target[target >= 0].astype(np.float32))

    def limit_memory(self, nbytes: int) -> None:
        """Limit the bytes of the window, unless `window_rows` gives its size. Called once, before
        anything is learned."""
        if self.training.window_rows is None:
            rows = min(self._window.most, nbytes // self._window.row_bytes)
            self._window = self._new_window(max(rows, MIN_TREE_ROWS))

    def successor(self) -> TreesLearner:
        """Return an untrained learner with the same settings."""
        learner = TreesLearner(self.settings, self.training, self.features)
        learner._window = learner._new_window(self._window.most)
        return learner

    def state_dict(self) -> dict[str, Snapshot]:
        """Return the trees, the window and the number of rows. A copy."""
        return {
            "shape": self._identity(),
            "forest": self._forest.snapshot(),
            "window": self._window.newest(),
            "rows": self._rows,
            "trained": self._trained,
            "learned": self._learned,
            "columns": self._columns,
            "scale": self._scale.snapshot(),
            "newest": self._newest.snapshot(),
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError naming the first thing in which the saved model is another."""
        require_same_model(state["shape"], self._identity())
        self._forest = Forest.restored(state["forest"])
        window: Kept = state["window"]
        self._window = self._new_window(self._window.most)
        self._window.add(window[:, :-1], window[:, -1])
        self._rows, self._trained = state["rows"], state["trained"]
        self._learned, self._columns = state["learned"], np.array(state["columns"])
        self._scale = NumericScale.restored(state["scale"])
        self._newest = NumericScale.restored(state["newest"])

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the computation of `predict` into an ONNX graph; return the name of the scores,
        float32, (n,) or (n, classes).

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.
        """
        numeric = self._scale.build(graph, numeric, self.features.numeric)
        parts = [numeric] if self.features.numeric else []
        if self.features.categories:
            parts.append(graph.op("Cast", categories, to=1))
        rows = parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis=1)
        scores = self._forest.build(graph, rows)
        if not self._multiclass:
            axis = graph.constant(np.array([1], np.int64), "axis")
            scores = graph.op("Squeeze", scores, axis)
        if self.features.task == "regression":
            return scores
        if self._multiclass:
            scores = self._build_columns(graph, scores)
            shares = graph.op("Softmax", scores, axis=1)
        else:
            shares = graph.op("Sigmoid", scores)
        weight, even = (np.float32(part) for part in self._laplace)
        shares = graph.op("Mul", shares, graph.constant(weight, "weight"))
        return graph.op("Add", shares, graph.constant(even, "even"))

    # ------------------------------------------------------------------------------------- sizes

    @property
    def parameters_count(self) -> int:
        """The number of leaves."""
        return self._forest.leaves

    @property
    def replay_bytes(self) -> int:
        """Return the bytes of a full window."""
        return self._window.most * self._window.row_bytes

    def memory(self) -> dict[str, int]:
        """Return component -> bytes."""
        weights = BYTES_PER_LEAF * self._forest.leaves
        return {"weights": weights, "optimizer": 0, "replay": self._window.nbytes}

    # ------------------------------------------------------------------------------------ inside

    def _new_window(self, rows: int) -> Window:
        features = self.features
        width = len(features.numeric) + len(features.categories)
        return Window(rows, width, exact=bool(features.scaled))

    def _learn_part(self, part: Tensors) -> Iterator[Floats]:
        """Score rows of one scale and keep them; train where it is time. Yield the scores."""
        rows, target, own = _matrix(part), target_of(part).numpy(), self._scale_of(part)
        kept = self._unscaled(rows, own)
        self._newest = self._newest.followed(own)
        at = 0
        while at < len(rows):
            some = slice(at, at + self._rows_left())
            scores = self._scores(self._brought(rows[some], own))
            yield scores
            self._window.add(kept[some], target[some])
            self._rows += len(scores)
            at += len(scores)
            self._fit()

    def _scale_of(self, part: Tensors) -> NumericScale:
        return NumericScale.of(self.features.numeric, part.scales)

    def _unscaled(self, rows: Rows, scale: NumericScale) -> Kept:
        """Return rows with their numbers as they were before stages scaled them, float64; the rows
        themselves if no stage does."""
        if not self.features.scaled:
            return rows
        count = len(self.features.numeric)
        numbers = scale.undo(rows[:, :count].astype(np.float64))
        return np.concatenate((numbers, rows[:, count:].astype(np.float64)), axis=1)

    def _brought(self, rows: Rows, scale: NumericScale) -> Rows:
        """Return rows of another scale in that of the trees."""
        if not self.features.scaled:
            return rows
        count = len(self.features.numeric)
        a, b = scale.to(self._scale)
        return np.concatenate((rows[:, :count] * a + b, rows[:, count:]), axis=1).astype(np.float32)

    def _in_scale(self, kept: Kept) -> Rows:
        """Return kept rows in the scale of the trees."""
        if not self.features.scaled:
            return np.ascontiguousarray(kept, np.float32)
        count = len(self.features.numeric)
        scaled = self._scale.apply(kept[:, :count].astype(np.float64))
        return np.concatenate((scaled, kept[:, count:]), axis=1).astype(np.float32)

    @property
    def _interval(self) -> int:
        """The rows between the last training and the next one."""
        return max(1, min(self._trained // ROWS_PER_TRAINING, self._window.most))

    @property
    def _stride(self) -> int:
        """The rows between the last training or refit and the next one."""
        part = self._interval // REFITS
        refits = part >= MIN_REFIT_ROWS and self._forest.booster is not None
        return part if refits and self.training.loss == "mse" else self._interval

    def _rows_left(self) -> int:
        """Return the rows until the next training or refit."""
        since = self._rows - self._trained
        return min(self._interval - since, self._stride - since % self._stride)

    def _fit(self) -> None:
        """Train or refit, if that many rows have come since the last time."""
        since = self._rows - self._trained
        if since >= self._interval:
            self._train()
        elif not since % self._stride:
            self._refit(self._stride)

    def _train(self) -> None:
        kept = self._window.newest()
        self._scale = self._newest
        rows, target = self._in_scale(kept[:, :-1]), kept[:, -1].astype(np.float32)
        self._trained, self._learned = self._rows, len(kept)
        self._forest = Forest.of_target(target, self.features.task, self._outputs)
        self._columns = np.arange(len(self.features.classes))
        if len(kept) < MIN_TREE_ROWS or (target == target[0]).all():
            return
        first = len(self.features.numeric)
        self._forest = self._forest.with_trees(
            rows,
            target,
            params=self._params(len(kept)),
            num_trees=self.settings.num_trees,
            categories=range(first, first + len(self.features.categories)),
        )

    def _refit(self, count: int) -> None:
        """Move the leaves towards the newest rows. Of a single class they would say nothing of the
        other."""
        kept = self._window.newest(count)
        rows, target = self._in_scale(kept[:, :-1]), kept[:, -1].astype(np.float32)
        if self._multiclass:
            columns = self._columns[target.astype(np.int64)]
            rows, target = rows[columns >= 0], columns[columns >= 0].astype(np.float32)
        if len(target) and (target != target[0]).any():
            params = self._params(self._learned)
            self._forest = self._forest.refitted(rows, target, params=params, decay=DECAY)

    def _params(self, rows: int) -> dict[str, Any]:
        """Return LightGBM's parameters for so many rows."""
        classes = len(self._forest.constants)
        return lightgbm_params(
            self.settings, self.training, task=self.features.task, classes=classes, rows=rows
        )

    @property
    def _laplace(self) -> tuple[float, float]:
        """Return what shares are multiplied with, and what is added to each."""
        classes = max(len(self.features.classes), 1)
        return self._learned / (self._learned + classes), 1 / (self._learned + classes)

    def _scores(self, rows: Rows) -> Floats:
        raw = self._forest.raw(rows, self.training.threads)
        raw = self._of_classes(raw) if self._multiclass else raw[:, 0]
        if self.features.task == "regression":
            return raw
        weight, even = self._laplace
        return weight * (_softmax(raw) if raw.ndim > 1 else _sigmoid(raw)) + even

    @property
    def _outputs(self) -> int:
        """The outputs of a training; trees tell two classes at least apart."""
        return max(len(self.features.classes), 2) if self._multiclass else 1

    def _of_classes(self, raw: Floats) -> Floats:
        """Return raw scores by class, from those that the forest has."""
        there = self._columns >= 0
        scores = np.full((len(raw), len(self._columns)), UNSEEN)
        scores[:, there] = raw[:, self._columns[there]]
        return scores

    def _build_columns(self, graph: GraphBuilder, scores: str) -> str:
        """Write the same into an ONNX graph."""
        outputs = len(self._forest.constants)
        if np.array_equal(self._columns, np.arange(outputs)):
            return scores
        pads = graph.constant(np.array([0, 0, 0, 1], np.int64), "pads")
        wider = graph.op("Pad", scores, pads, graph.constant(np.float32(UNSEEN), "unseen"))
        columns = np.where(self._columns < 0, outputs, self._columns)
        return graph.op("Gather", wider, graph.constant(columns, "columns"), axis=1)

    def _loss(self, scores: Floats, target: Target) -> float:
        """Return the mean loss of scores: squared or absolute error, or the log loss."""
        if self.features.task == "regression":
            error = np.abs(scores - target)
            return float(np.mean(error**2 if self.training.loss == "mse" else error))
        classes = target.astype(np.int64)
        if scores.ndim == 1:
            scores = np.stack((1 - scores, scores), axis=1)
        return float(-np.log(scores[np.arange(len(classes)), classes]).mean())

    def _identity(self) -> dict[str, Any]:
        features = self.features
        return {
            "[model] kind": "trees",
            "[model] task": features.task,
            "[model] classes": list(features.classes),
            "[model] numeric": list(features.numeric),
            "[model] categories": [list(pair) for pair in features.categories.items()],
            "[train] loss": self.training.loss,
        }


class Window:
    """The newest rows of a stream, with their target as the last column.

    Args:
        most: how many are kept.
        width: columns of a row, without the target.
        exact: keep numbers as float64, for rows that are scaled after they were kept.
    """

    def __init__(self, most: int, width: int, *, exact: bool = False) -> None:
        self.most = most
        dtype: Any = np.float64 if exact else np.float32
        self._ring: Kept = np.empty((most, width + 1), dtype)
        self._seen = 0

    @property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        return int(self._ring.itemsize * self._ring.shape[1])

    @property
    def nbytes(self) -> int:
        """The bytes of the rows."""
        return min(self._seen, self.most) * self.row_bytes

    def add(self, rows: Kept, target: NDArray[Any]) -> None:
        """Keep a copy of these rows, over the oldest."""
        rows, target = rows[-self.most :], target[-self.most :]
        places = (self._seen + np.arange(len(rows))) % self.most
        self._ring[places, :-1], self._ring[places, -1] = rows, target
        self._seen += len(rows)

    def newest(self, count: int | None = None) -> Kept:
        """Return a copy of the newest rows, oldest first."""
        held = min(self._seen, self.most)
        count = held if count is None else min(count, held)
        return self._ring[(self._seen - count + np.arange(count)) % self.most]


def _require_readable(training: TreesTraining, features: Features) -> None:
    """Raises: UserError for features that trees cannot read, and a loss that fits nothing."""
    if training.loss != "mse" and features.task != "regression":
        raise UserError(
            f"[train] loss = '{training.loss}' is for regression, and task is '{features.task}': "
            "take it out."
        )
    if training.loss != "quantile" and "quantile" in training.model_fields_set:
        raise UserError("[train] quantile is for loss = 'quantile': set that, or take it out.")
    if features.nested:
        raise UserError(
            "[model] kind = 'trees' expects numbers and categories, got "
            f"'{features.nested[0]}': use kind = 'tabular'."
        )
    if not features.numeric and not features.categories:
        raise UserError("[model] needs features: name columns in 'numeric' or 'categories'.")
    for name, codes in features.categories.items():
        if codes > MOST_CODES:
            raise UserError(
                f"[model] kind = 'trees' expects at most {MOST_CODES:,} codes in category "
                f"'{name}', got {codes:,}: set a smaller size in its 'categories' stage."
            )


def _matrix(tensors: Tensors) -> Rows:
    """Return numbers and codes side by side, shape (n, numeric + categories)."""
    numbers: Rows = tensors.numeric.numpy()
    if not tensors.categories.shape[1]:
        return np.ascontiguousarray(numbers)
    return np.concatenate((numbers, tensors.categories.numpy().astype(np.float32)), axis=1)


def _sigmoid(raw: Floats) -> Floats:
    positive = raw >= 0
    small = np.exp(np.where(positive, -raw, raw))
    shares: Floats = np.where(positive, 1.0, small) / (1 + small)
    return shares


def _softmax(raw: Floats) -> Floats:
    powers = np.exp(raw - raw.max(axis=1, keepdims=True, initial=-np.inf))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


__all__ = ["TreesLearner"]
