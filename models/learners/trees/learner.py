"""The learner of trees: gradient boosting on the newest rows, trained anew as the stream grows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine.columnar.numeric_scale import NumericScale
from engine.types import (
    Batch,
    Features,
    GraphBuilder,
    Snapshot,
    Step,
    Tensors,
    UserError,
    pinball_losses,
)
from engine.types.arrays import Floats
from models.challenge.challenger import Challengeable
from models.learners.identity import require_same_model
from models.learners.labelled import labelled, target_of
from models.learners.quantiles import only_quantile
from models.learners.table_features import require_table
from models.learners.trees.forest import Rows, Target, lightgbm
from models.learners.trees.scorer import TreesScorer
from models.learners.trees.settings import (
    MIN_TREE_ROWS,
    TreesSettings,
    TreesTraining,
    lightgbm_params,
)
from models.learners.trees.window import Kept, TrainingWindow, row_bytes

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


class TreesLearner(Challengeable):
    """Gradient-boosted trees by LightGBM; regression, binary or multiclass.

    Trees are not learned row by row: they are trained on a window of the newest rows, again
    whenever the stream has grown by an eighth, or by as many rows as the window has. In between
    their leaves are moved towards the newest rows three times. Each row is scored before it is in
    any training. So trainings depend on the rows and not on how they were cut into batches, to the
    bit, and are few on a long stream; a stream that changes makes a new model sooner, by
    `forget_on`. Numbers that stages scale are kept as they were before, and scaled as the stream
    stands at a training.

    The first rows, and a window of a single class or value, are learned as constants.

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
        default = min(DEFAULT_WINDOW_ROWS, DEFAULT_WINDOW_BYTES // row_bytes(features))
        self._window = TrainingWindow(features, training.window_rows or max(default, MIN_TREE_ROWS))
        self._newest = NumericScale.unknown(len(features.numeric))
        self._scorer = TreesScorer.constant(np.empty(0, "f4"), features, self._newest)
        self._rows = 0
        self._trained = 0

    @classmethod
    def quantiles(cls, training: TreesTraining) -> tuple[float, ...]:
        return training.quantiles

    @classmethod
    def only_regression(cls, training: TreesTraining) -> bool:
        return training.loss != "mse"

    @classmethod
    def quantile(cls, training: TreesTraining) -> float | None:
        return only_quantile(training.loss, training)

    # -------------------------------------------------------------------------------------- actions

    def learn(self, batch: Batch) -> Step:
        """Score the rows and keep them; train where it is time. `Step.steps` counts rows."""
        tensors, labels = labelled(batch)
        target = labels.numpy().astype(np.float32)
        if not len(target):
            return Step.empty(self.predict(tensors))
        parts = [scores for part in tensors.even_parts() for scores in self._learn_part(part)]
        scores = np.concatenate(parts)
        learned = tensors.to_learn
        loss = self._loss(scores[learned], target[learned]) if learned.any() else math.nan
        return Step(scores=scores, loss=loss, steps=int(learned.sum()))

    @property
    def scores_in_turn(self) -> bool:
        return True

    def predict(self, tensors: Tensors) -> Floats:
        """Return scores like `Step.scores`."""
        parts = [
            self._scorer.scores(_matrix(part), self._scale_of(part), self.training.threads)
            for part in tensors.even_parts()
        ]
        return np.concatenate(parts)

    def set_classes(self, classes: Sequence[str], sources: Sequence[int]) -> None:
        """Give new classes their share of rows that Laplace's rule gives to unseen ones, until the
        next training; kept rows of classes that have left are not learned again."""
        at = np.asarray(sources, np.int64)
        numbers = np.full(len(self.features.classes) + 1, -1)
        numbers[at[at >= 0]] = np.flatnonzero(at >= 0)
        self.features = replace(self.features, classes=tuple(classes))
        self._scorer = self._scorer.with_classes(self.features, sources)
        self._window.renumber(numbers)

    def limit_memory(self, nbytes: int) -> None:
        """Limit the bytes of the window, unless `window_rows` gives its size. Called once, before
        anything is learned."""
        if self.training.window_rows is None:
            rows = min(self._window.most, nbytes // row_bytes(self.features))
            self._window = TrainingWindow(self.features, max(rows, MIN_TREE_ROWS))

    def successor(self) -> TreesLearner:
        """Return an untrained learner with the same settings."""
        learner = TreesLearner(self.settings, self.training, self.features)
        learner._window = TrainingWindow(self.features, self._window.most)
        return learner

    def state_dict(self) -> dict[str, Snapshot]:
        """Return the trees, the window and the number of rows. A copy."""
        return {
            "shape": self._identity(),
            **self._scorer.snapshot(),
            "window": self._window.snapshot(),
            "rows": self._rows,
            "trained": self._trained,
            "newest": self._newest.snapshot(),
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError naming the first thing in which the saved model is another."""
        require_same_model(state["shape"], self._identity())
        self._scorer = TreesScorer.restored(state, self.features)
        self._window.restore(state["window"])
        self._rows, self._trained = state["rows"], state["trained"]
        self._newest = NumericScale.restored(state["newest"])

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the computation of `predict` into an ONNX graph; return the name of the scores,
        float32, (n,) or (n, classes).

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.
        """
        return self._scorer.build(graph, numeric, categories)

    # ------------------------------------------------------------------------------------- sizes

    @property
    def parameters_count(self) -> int:
        """The number of leaves."""
        return self._scorer.leaves

    @property
    def replay_bytes(self) -> int:
        """Return the bytes of a full window."""
        return self._window.capacity_bytes

    def memory(self) -> dict[str, int]:
        """Return component -> bytes."""
        weights = BYTES_PER_LEAF * self._scorer.leaves
        return {"weights": weights, "optimizer": 0, "replay": self._window.nbytes}

    # ------------------------------------------------------------------------------------ inside

    def _learn_part(self, part: Tensors) -> Iterator[Floats]:
        """Score rows of one scale and keep them; train where it is time. Yield the scores."""
        rows, target, own = _matrix(part), target_of(part).numpy(), self._scale_of(part)
        kept: Kept = self._window.unscaled(rows, own)
        learned = np.flatnonzero(part.to_learn)
        if len(learned):
            self._newest = self._newest.followed(own)
        at = 0
        while at < len(rows):
            left = self._rows_left()
            new, learned = learned[:left], learned[left:]
            end = int(new[-1]) + 1 if len(new) == left else len(rows)
            yield self._scorer.scores(rows[at:end], own, self.training.threads)
            at = end
            if len(new):
                self._window.add(kept[new], target[new])
                self._rows += len(new)
                self._fit()

    def _scale_of(self, part: Tensors) -> NumericScale:
        return NumericScale.of(self.features.numeric, part.scales)

    @property
    def _interval(self) -> int:
        """The rows between the last training and the next one."""
        return max(1, min(self._trained // ROWS_PER_TRAINING, self._window.most))

    @property
    def _stride(self) -> int:
        """The rows between the last training or refit and the next one."""
        part = self._interval // REFITS
        refits = part >= MIN_REFIT_ROWS and self._scorer.has_trees
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
        rows, target = self._window.newest(self._newest)
        self._trained = self._rows
        quantile = self.quantile(self.training)
        self._scorer = TreesScorer.constant(target, self.features, self._newest, quantile)
        if len(target) < MIN_TREE_ROWS or (target == target[0]).all():
            return
        first = len(self.features.numeric)
        params = self._params(len(target))
        alphas = self.features.quantiles or (params["alpha"],)
        forests = (
            forest.with_trees(
                rows,
                target,
                params={**params, "alpha": alpha},
                num_trees=self.settings.num_trees,
                categories=range(first, first + len(self.features.categories)),
            )
            for alpha, forest in zip(alphas, self._scorer.forests, strict=True)
        )
        self._scorer = replace(self._scorer, forests=tuple(forests))

    def _refit(self, count: int) -> None:
        """Move the leaves towards the newest rows. Of a single class they would say nothing of the
        other."""
        scorer = self._scorer
        rows, target = scorer.known(*self._window.newest(scorer.scale, count))
        if len(target) and (target != target[0]).any():
            params = self._params(scorer.learned)
            (forest,) = scorer.forests  # quantiles are not refitted
            forest = forest.refitted(rows, target, params=params, decay=DECAY)
            self._scorer = replace(scorer, forests=(forest,))

    def _params(self, rows: int) -> dict[str, Any]:
        """Return LightGBM's parameters for so many rows."""
        task, classes = self.features.task, self._scorer.outputs
        return lightgbm_params(self.settings, self.training, task=task, classes=classes, rows=rows)

    def _loss(self, scores: Floats, target: Target) -> float:
        """Return the mean loss of scores: squared or absolute error, the pinball loss of quantiles,
        or the log loss."""
        if quantiles := self.features.quantiles:
            return float(pinball_losses(target.astype(np.float64), scores, quantiles).mean())
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
            **({"[train] quantiles": list(features.quantiles)} if features.quantiles else {}),
        }


def _require_readable(training: TreesTraining, features: Features) -> None:
    """Raises: UserError for features that trees cannot read, and a loss that fits nothing."""
    if training.loss != "mse" and features.task != "regression":
        raise UserError(
            f"[train] loss = '{training.loss}' is for regression, and task is '{features.task}': "
            "take it out."
        )
    for key in ("quantile", "quantiles"):
        if training.loss != "quantile" and key in training.model_fields_set:
            raise UserError(f"[train] {key} is for loss = 'quantile': set that, or take it out.")
    require_table(features, "trees")
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


__all__ = ["TreesLearner"]
