"""Linear and logistic regression, one compiled step per row."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from engine import types
from engine.types import (
    Augmenter,
    Batch,
    Features,
    GraphBuilder,
    Settings,
    Snapshot,
    Step,
    Tensors,
    UserError,
)
from engine.types.arrays import Floats
from models.challenge.challenger import SUCCESSOR_ROWS, Challengeable, ChallengeSettings
from models.learners.identity import require_same_model
from models.learners.labelled import labelled, target_of
from models.learners.sgd import EACH, learn_rows, predict_rows
from models.learners.table_features import require_table

KEPT_BAD_BATCHES = 4
"""The batches with non-finite numbers that are kept for inspection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearState:
    """The learned state. Learning makes a new one, so a snapshot is a reference.

    Attributes:
        scalars: rows seen, intercept, the L1 penalty a weight could have got so far.
        mean, variance: of the d numeric features (population), float64.
        weights: d numeric ones, then one for each code of each category.
        penalties: the L1 penalty each weight did get.
    """

    scalars: Floats
    mean: Floats
    variance: Floats
    weights: Floats
    penalties: Floats

    def copy(self) -> LinearState:
        """Return a writable copy."""
        return LinearState(
            scalars=self.scalars.copy(),
            mean=self.mean.copy(),
            variance=self.variance.copy(),
            weights=self.weights.copy(),
            penalties=self.penalties.copy(),
        )

    def arrays(self) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Return the arrays in the order of the fields."""
        return (self.scalars, self.mean, self.variance, self.weights, self.penalties)


class LinearLearner(Challengeable):
    """Linear (squared loss) or logistic (log loss) regression by stochastic gradient descent.

    Each row is predicted, then learned from; all in float64, in one compiled call a batch.

    Row by row it is River's ``StandardScaler() | LogisticRegression()`` (or ``LinearRegression``)
    with the same settings: a row is predicted with the scaler as it was before the row; then the
    scaler learns it (Welford's method), the row is scaled again, and intercept and weights take a
    step from that score. One thing differs: a step of a regression that would leave its row with a
    larger error than before goes to the row's target instead; River's then grows without end. How
    rows are cut into batches changes nothing, unless there is an
    `augmentation`: then intercept and weights learn each row as that has made it, after the row
    itself was predicted and scaled.

    A category is a weight for each code (one-hot, not scaled); a code outside its table counts as
    code 0, unknown. Bound: no multiclass; use kind = "tabular".

    Args:
        settings: ``[model]``.
        training: ``[train]``.
        features: what it reads.

    Attributes:
        augmentation: what to learn from in place of the rows; see `augment_with`.

    Raises: UserError for a task it does not know.
    """

    soft_targets = True
    """Learns targets between classes."""

    class Settings(types.Settings):
        """The learner's own keys of ``[model]``.

        Attributes:
            standardize: scale the numeric features by their mean and deviation so far, but for
                those that a stage has scaled.
        """

        standardize: bool = True

    class Training(ChallengeSettings):
        """``[train]``.

        Attributes:
            forget_on: as with kind = "tabular", but ``never`` unless given.
            lr: step size of the weights.
            intercept_lr: and of the intercept; 0 keeps it at 0.
            l1: cumulative L1 penalty (Tsuruoka, Tsujii and Ananiadou, 2009).
            l2: weight of half the sum of the squared weights; of a category, the row's code only.
            clip_gradient: largest absolute gradient of a row's loss by its score.
        """

        forget_on: str = "never"
        lr: float = Field(0.01, gt=0)
        intercept_lr: float = Field(0.01, ge=0)
        l1: float = Field(0.0, ge=0)
        l2: float = Field(0.0, ge=0)
        clip_gradient: float = Field(1e12, gt=0)

    def __init__(self, settings: Settings, training: Training, features: Features) -> None:
        if features.task not in ("regression", "binary"):
            raise UserError(
                f"[model] kind = 'linear' expects task regression or binary, got "
                f"'{features.task}': use kind = 'tabular'."
            )
        require_table(features, "linear")
        self.settings: LinearLearner.Settings = settings
        self.training: LinearLearner.Training = training
        self.features = features
        self.bad_batches: deque[Batch] = deque(maxlen=KEPT_BAD_BATCHES)
        self.augmentation: Augmenter | None = None
        sizes = [len(features.numeric), *features.categories.values()]
        self._bounds = np.cumsum(sizes, dtype=np.int64)
        # A second scale would take the first rows of a stage, of which it knows little, for all.
        self._scaled = np.array(
            [settings.standardize and name not in features.scaled for name in features.numeric],
            np.bool_,
        )
        self._state = _zeros(sizes[0], int(self._bounds[-1]))
        self._rates = (
            training.lr,
            training.intercept_lr,
            training.l1,
            training.l2,
            training.clip_gradient,
        )
        self._warm_up()

    def learn(self, batch: Batch) -> Step:
        """Predict and learn, row by row; `Step.steps` counts rows.

        A batch on which the numbers do not stay finite is skipped whole.
        """
        tensors, target = labelled(batch)
        if not (n := len(target)):
            return Step.empty(np.empty(0))
        numbers, scores = self._state.copy(), np.empty(n)
        own, lessons = tensors, EACH
        if tensors.learned is not None:
            learned = tensors.to_learn
            own = tensors.take(np.flatnonzero(learned))
            lessons = np.where(learned, learned.cumsum() - 1, -1)
        taught, rows = len(own), _examples(tensors)
        changed: dict[str, int] = {}
        if self.augmentation is not None and taught:
            own, changed = self.augmentation(own, int(numbers.scalars[0]))
        lesson = rows if own is tensors else _examples(own)
        loss = learn_rows(
            *rows, self._bounds, *self._flags, self._rates,
            *numbers.arrays(), scores, lesson, self.augmentation is not None, lessons,
        )  # fmt: skip
        if not math.isfinite(loss):
            self.bad_batches.append(batch)
            return Step(
                scores=self.predict(tensors), loss=float("nan"), steps=0, skipped="non_finite"
            )
        self._state = numbers
        mean = loss / taught if taught else math.nan
        return Step(scores=scores, loss=mean, steps=taught, augmented=changed)

    @property
    def scores_in_turn(self) -> bool:
        return True

    def predict(self, tensors: Tensors) -> Floats:
        """Return scores like `Step.scores`."""
        scores = np.empty(len(tensors.numeric))
        predict_rows(
            *_inputs(tensors), self._bounds, *self._flags, *self._state.arrays()[:4], scores
        )
        return scores

    def attributions(self, tensors: Tensors) -> dict[str, Floats]:
        """Return each feature's term of the score, less its mean: the integrated gradients."""
        numeric, categories = _inputs(tensors)
        terms = numeric.astype(np.float64) * self._numeric_weights()
        moved = dict(zip(self.features.numeric, terms.T, strict=True))
        for name, codes, table in zip(
            self.features.categories, categories.T, self._tables(), strict=True
        ):
            moved[name] = table[np.where((codes >= 0) & (codes < len(table)), codes, 0)]
        return {name: term - term.mean() for name, term in moved.items() if len(term)}

    def augment_with(self, augmentation: Augmenter) -> None:
        self.augmentation = augmentation

    def successor(self) -> LinearLearner:
        """Return an untrained learner with the current scaler, which follows new rows faster."""
        learner, numbers = LinearLearner(self.settings, self.training, self.features), self._state
        learner.augmentation = self.augmentation
        scalars = np.array([min(numbers.scalars[0], SUCCESSOR_ROWS), 0.0, 0.0])
        learner._state = dataclasses.replace(
            learner._state, scalars=scalars, mean=numbers.mean, variance=numbers.variance
        )
        return learner

    def state_dict(self) -> dict[str, Snapshot]:
        """Return features and numbers; nothing is copied, since none is ever written to."""
        numbers = {f.name: getattr(self._state, f.name) for f in fields(LinearState)}
        return {"shape": self._identity(), **numbers}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError naming the first thing in which the saved model is another."""
        require_same_model(state["shape"], self._identity())
        self._state = LinearState(**{f.name: np.array(state[f.name]) for f in fields(LinearState)})

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the computation of `predict` into an ONNX graph; return the name of the scores,
        float32, (n,).

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.
        """
        terms = self._build_tables(graph, categories)
        if self.features.numeric:
            terms.append(self._build_numeric(graph, numeric))
        score = graph.constant(np.float32(self._state.scalars[1]), "intercept")
        for term in terms:
            score = graph.op("Add", term, score)
        return graph.op("Sigmoid", score) if self.features.task == "binary" else score

    @property
    def parameters_count(self) -> int:
        """The number of weights, the intercept included."""
        return len(self._state.weights) + 1

    def memory(self) -> dict[str, int]:
        """Return component -> bytes."""
        weights = self._state.weights.nbytes + 8
        total = sum(array.nbytes for array in self._state.arrays())
        return {"weights": weights, "optimizer": total - weights, "replay": 0}

    def _warm_up(self) -> None:
        """Compile now, so that the first batch does not wait."""
        empty = Tensors(
            numeric=torch.empty((0, len(self.features.numeric))),
            categories=torch.empty((0, len(self.features.categories)), dtype=torch.int64),
            target=torch.empty(0),
        )
        learn_rows(
            *_examples(empty), self._bounds, *self._flags, self._rates,
            *self._state.copy().arrays(), np.empty(0), _examples(empty), False, EACH,
        )  # fmt: skip
        self.predict(empty)

    @property
    def _flags(self) -> tuple[bool, NDArray[np.bool_]]:
        return self.features.task == "binary", self._scaled

    def _identity(self) -> dict[str, Any]:
        names = list(self.features.scaled)
        scaled = {"numeric features scaled by [scrub]": names} if names else {}
        return {
            "[model] kind": "linear",
            "[model] task": self.features.task,
            "[model] numeric": list(self.features.numeric),
            "[model] categories": [list(pair) for pair in self.features.categories.items()],
            "[model] standardize": self.settings.standardize,
            **scaled,
        }

    def _build_numeric(self, graph: GraphBuilder, numeric: str) -> str:
        if self._scaled.any():
            # The mean apart: folded into the weights, a large one would cost float32 its digits.
            mean = graph.constant(self._state.mean.astype(np.float32), "mean")
            numeric = graph.op("Sub", numeric, mean)
        weights = self._numeric_weights()
        column = graph.constant(weights.astype(np.float32)[:, None], "weight")
        axis = graph.constant(np.array([1], np.int64), "axis")
        return graph.op("Squeeze", graph.op("MatMul", numeric, column), axis)

    def _build_tables(self, graph: GraphBuilder, categories: str) -> list[str]:
        terms = []
        for i, table in enumerate(self._tables()):
            codes = graph.op("Gather", categories, graph.constant(np.int64(i), "column"), axis=1)
            weights = graph.constant(table.astype(np.float32), "table")
            terms.append(graph.op("Gather", weights, codes, axis=0))
        return terms

    def _numeric_weights(self) -> Floats:
        """Return the weights of the numeric features as they come, not scaled."""
        numbers = self._state
        weights = numbers.weights[: len(self.features.numeric)]
        if not self._scaled.any():
            return weights
        variance = np.where(self._scaled, numbers.variance, 1.0)
        return weights / np.sqrt(np.where(variance > 0, variance, np.inf))

    def _tables(self) -> list[Floats]:
        """Return each category's weights, one per code."""
        return np.split(self._state.weights, self._bounds)[1:-1]


def _zeros(numeric: int, weights: int) -> LinearState:
    return LinearState(
        scalars=np.zeros(3),
        mean=np.zeros(numeric),
        variance=np.zeros(numeric),
        weights=np.zeros(weights),
        penalties=np.zeros(weights),
    )


def _inputs(tensors: Tensors) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return tensors.numeric.numpy(), tensors.categories.numpy()


def _examples(tensors: Tensors) -> tuple[NDArray[np.float32], NDArray[np.int64], Floats]:
    return *_inputs(tensors), target_of(tensors).numpy().astype(np.float64)


__all__ = ["LinearLearner", "LinearState"]
