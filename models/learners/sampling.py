"""Re-samples rows of imbalanced classes to a desired distribution, and corrects the
probabilities back to the true one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from engine.columnar.numeric_scale import NumericScale
from engine.types import (
    Batch,
    Features,
    GraphBuilder,
    Learner,
    Settings,
    Snapshot,
    Step,
    Tensors,
    UserError,
    even_parts,
    nearest,
)
from models.challenge.challenger import Challengeable, WrappedLearner
from models.learners.identity import require_same_model
from models.learners.labelled import labelled, target_of


class SamplingSettings(Settings):
    """``[train.sampling]``

    Attributes:
        method: ``under`` leaves rows of frequent classes out, ``over`` learns rows of rare ones
            several times, ``hybrid`` does both and learns `sampling_rate` rows for each that was
            read.
        desired_dist [share]: class -> its share of the rows learned from; equal shares unless
            given. They are divided by their sum.
        sampling_rate: of hybrid.
        max_copies: a row is learned at most so many times.
        smote_neighbors: in place of copies, rows between a row and one of its so many nearest of
            the same class (SMOTE); 0 copies.
        keep [rows]: rows of each class that smote looks among, the newest.
        correct: correct probabilities back to the classes' true shares.
        seed: of the random numbers that rows are drawn by.
    """

    method: Literal["under", "over", "hybrid"] = "hybrid"
    desired_dist: dict[str, float] = Field(default_factory=dict)
    sampling_rate: float = Field(1.0, gt=0)
    max_copies: int = Field(100, ge=1)
    smote_neighbors: int = Field(0, ge=0)
    keep: int = Field(1_000, ge=2)
    correct: bool = True
    seed: int = Field(0, ge=0)


class ResampledLearner(WrappedLearner):
    """A learner that learns from re-sampled rows; see `engine.types.Learner`.

    Each row is drawn as often as its class needs: on average `rates` times, rounded up or down at
    random. The rates follow the classes' shares so far, this batch included, as those of River's
    RandomUnderSampler, RandomOverSampler and RandomSampler do; rounding in place of their Poisson
    draws keeps the distribution closer to the desired one.

    Every row is scored before anything is learned, on the true distribution. Probabilities are
    corrected for the shares that were learned from: the odds times the true ratio of the classes
    over the learned one (Elkan, "The Foundations of Cost-Sensitive Learning", 2001; Saerens,
    Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities",
    2002). The exported model does so too.

    With `smote_neighbors`, the second and further copies of a row lie at random between it and one
    of its nearest kept rows of the same class (Chawla et al., "SMOTE: Synthetic Minority
    Over-sampling Technique", 2002): numbers on the line between the two, categories those of the
    row.

    Chance is a function of the seed and the number of the batch, so a restored learner goes on to
    the bit.

    Args:
        learner: of the drawn rows.
        settings: ``[train.sampling]``.

    Raises: UserError for a regression, an unknown class, or shares that sum to 0.
    """

    def __init__(self, learner: Learner, settings: SamplingSettings) -> None:
        super().__init__(learner)
        self.settings = settings
        self._desired = _desired(settings, self.features)
        classes = len(self.features.classes)
        self._seen = np.zeros(classes, np.int64)
        self._drawn = np.zeros(classes, np.int64)
        self._kept = [np.empty((0, len(self.features.numeric)), np.float32)] * classes
        self._scale = NumericScale.unknown(len(self.features.numeric))
        self._batches = 0
        self._pace: float | None = None

    # -------------------------------------------------------------------------------------- actions

    def learn(self, batch: Batch) -> Step:
        """Score the rows, draw, learn from the draw."""
        tensors, labels = labelled(batch)
        target = labels.numpy()
        scores = self.predict(tensors)
        if not len(target):
            return Step.empty(scores)
        own = np.flatnonzero(tensors.to_learn)
        step = Step(scores=scores, loss=float("nan"), steps=0)
        if not len(own):
            return step
        self._batches += 1
        rng = np.random.default_rng((self.settings.seed, self._batches))
        seen = self._seen + np.bincount(target[own], minlength=len(self._seen))
        times = self._times(target[own], seen, rng)
        chosen = np.repeat(own, times)
        tensors = dataclasses.replace(tensors, learned=None)
        drawn = self._interpolated(tensors.take(chosen), chosen, rng)
        if len(chosen):
            self._keep_pace()
            step = self.learner.learn(dataclasses.replace(batch, tensors=drawn))
        if step.skipped is None:
            self._seen = seen
            self._drawn = self._drawn + np.bincount(target[chosen], minlength=len(seen))
            self._keep(tensors.take(own), target[own])
        not_learned = None
        if step.not_learned is not None:
            not_learned = np.zeros(len(target), np.bool_)
            not_learned[chosen[step.not_learned]] = True
        scored_only = int((times == 0).sum())
        return dataclasses.replace(
            step, scores=scores, not_learned=not_learned, scored_only=scored_only
        )

    @property
    def scores_in_turn(self) -> bool:
        """Its turn is the batch: rows to learn are scored before it, too."""
        return True

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Return the learner's scores, corrected."""
        scores, weights = self.learner.predict(tensors), self.weights
        if scores.ndim == 2:
            scores = scores * weights
            scores /= scores.sum(axis=1, keepdims=True)
            return scores
        yes = scores * weights[1]
        corrected: NDArray[np.float64] = yes / (yes + (1 - scores) * weights[0])
        return corrected

    def successor(self) -> ResampledLearner:
        """Return a successor of the wrapped learner, with fresh class counts."""
        return ResampledLearner(self._challengeable.successor(), self.settings)

    def steps_per_row(self, rows: int) -> float:
        """Return the learner's, per original row."""
        drawn = self._drawn_per_row
        return drawn * self._challengeable.steps_per_row(int(rows * drawn))

    def pace(self, steps_per_row: float) -> None:
        """Limit the learner's, per original row: again for each batch, as draws grow."""
        self._pace = steps_per_row

    @property
    def rates(self) -> NDArray[np.float64]:
        """Return how many times a row of each class is learned now, on average, shape
        (classes,)."""
        return self._rates(self._seen)

    @property
    def shares(self) -> NDArray[np.float64]:
        """Return the share of each class among the rows learned so far, shape (classes,)."""
        return self._drawn / max(1, int(self._drawn.sum()))

    @property
    def weights(self) -> NDArray[np.float64]:
        """Return the factor of each class's probability before normalization, shape (classes,):
        true share over learned share. 1 for all while a seen class has not been learned."""
        seen = self._seen > 0
        if not self.settings.correct or not seen.any() or (self._drawn[seen] == 0).any():
            return np.ones(len(self._seen))
        ratio = np.divide(self._seen, self._drawn, where=seen, out=np.ones(len(seen)))
        weights: NDArray[np.float64] = ratio * (self._drawn.sum() / self._seen.sum())
        return np.where(seen, weights, 1.0)

    def remarks(self) -> list[str]:
        """Return a sentence for each requested class that never came, or could not be reached."""
        remarks, settings = [], self.settings
        for i, name in enumerate(self.features.classes):
            if self._desired[i] > 0 and not self._seen[i]:
                remarks.append(
                    f"[train.sampling] wants class '{name}' to be {self._desired[i]:.1%} of what "
                    "is learned, and no row of it has come."
                )
            elif self._rates(self._seen)[i] == settings.max_copies and settings.max_copies > 1:
                remarks.append(
                    f"[train.sampling] max_copies = {settings.max_copies} keeps class '{name}' "
                    f"below its "
                    f"{self._desired[i]:.1%}: raise it, or choose method = 'under'."
                )
        return remarks

    # ------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Snapshot]:
        """Return the learner's state, and the counts of seen and drawn rows."""
        own = {
            "shape": self._identity(),
            "seen": self._seen,
            "drawn": self._drawn,
            "kept": list(self._kept),
            "scale": self._scale.snapshot(),
            "batches": self._batches,
        }
        return {**self.learner.state_dict(), "sampling": own}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError naming the first thing in which the saved model is another."""
        if "sampling" not in state:
            raise UserError(
                "The saved model was trained without [train.sampling]: take it out, or start over "
                "with --fresh."
            )
        own = state["sampling"]
        require_same_model(own["shape"], self._identity())
        self.learner.load_state_dict({k: v for k, v in state.items() if k != "sampling"})
        self._seen, self._drawn = own["seen"], own["drawn"]
        self._kept, self._batches = list(own["kept"]), own["batches"]
        self._scale = NumericScale.restored(own["scale"])

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the computation of `predict` into an ONNX graph."""
        score = self.learner.build(graph, numeric, categories)
        weights = self.weights.astype(np.float32)
        if (weights == 1).all():
            return score
        if self.features.task == "multiclass":
            axis = graph.constant(np.array([1], np.int64))
            score = graph.op("Mul", score, graph.constant(weights))
            return graph.op("Div", score, graph.op("ReduceSum", score, axis, keepdims=1))
        yes = graph.op("Mul", score, graph.constant(weights[1]))
        no = graph.op("Sub", graph.constant(np.float32(1)), score)
        no = graph.op("Mul", no, graph.constant(weights[0]))
        return graph.op("Div", yes, graph.op("Add", yes, no))

    # ------------------------------------------------------------------------------------- sizes

    def memory(self) -> dict[str, int]:
        """Return the learner's memory, and that of rows kept to interpolate."""
        return {**self.learner.memory(), "sampling": sum(rows.nbytes for rows in self._kept)}

    # ------------------------------------------------------------------------------------ inside

    @property
    def _challengeable(self) -> Challengeable:
        """Return the learner as a challengeable one: `require_challengeable` has checked it."""
        learner = self.learner
        assert isinstance(learner, Challengeable)
        return learner

    def _keep_pace(self) -> None:
        if self._pace is not None:
            self._challengeable.pace(self._pace / self._drawn_per_row)

    @property
    def _drawn_per_row(self) -> float:
        """Return how many times a row was learned, on average."""
        drawn, seen = int(self._drawn.sum()), int(self._seen.sum())
        return drawn / seen if drawn else 1.0

    def _rates(self, seen: NDArray[np.int64]) -> NDArray[np.float64]:
        ratio, settings = _ratio(self._desired, seen), self.settings
        some = ratio[ratio > 0]
        if not len(some):
            return np.zeros(len(ratio))
        scale = {"under": 1 / some.max(), "over": 1 / some.min(), "hybrid": settings.sampling_rate}
        rates: NDArray[np.float64] = np.minimum(ratio * scale[settings.method], settings.max_copies)
        return rates

    def _times(
        self, target: NDArray[np.int64], seen: NDArray[np.int64], rng: np.random.Generator
    ) -> NDArray[np.int64]:
        """Return how often each row is learned, shape (n,)."""
        wanted = self._rates(seen)[target]
        return np.floor(wanted + rng.random(len(target))).astype(np.int64)

    def _interpolated(
        self, drawn: Tensors, chosen: NDArray[np.int64], rng: np.random.Generator
    ) -> Tensors:
        """Return copies moved towards a neighbour."""
        if not self.settings.smote_neighbors:
            return drawn
        numeric, target = drawn.numeric.numpy().copy(), target_of(drawn).numpy()
        for at, scales in even_parts(drawn.scales, len(drawn)):
            kept = self._kept_in(NumericScale.of(self.features.numeric, scales))
            self._move_copies(numeric[at], target[at], chosen[at], kept, rng)
        return dataclasses.replace(drawn, numeric=torch.from_numpy(numeric))

    def _move_copies(
        self,
        numeric: NDArray[np.float32],
        target: NDArray[np.int64],
        chosen: NDArray[np.int64],
        kept: Sequence[NDArray[np.float32]],
        rng: np.random.Generator,
    ) -> None:
        """Move the second and further copies of rows, in place.

        Args:
            kept: rows of each class, in the scale of these.
        """
        copies = np.flatnonzero(np.r_[False, chosen[1:] == chosen[:-1]])
        for code in np.unique(target[copies]).tolist():
            if len(kept[code]) < 2:
                continue
            at = copies[target[copies] == code]
            rows, own = np.unique(chosen[at], return_inverse=True)
            first = torch.from_numpy(numeric[np.searchsorted(chosen, rows)])
            near = _nearest(first, kept[code], self.settings.smote_neighbors)
            picked = near[own, rng.integers(near.shape[1], size=len(at))]
            share = rng.random((len(at), 1), np.float32)
            numeric[at] += share * (kept[code][picked] - numeric[at])

    def _kept_in(self, scale: NumericScale) -> list[NDArray[np.float32]]:
        """Return the kept rows of each class in another scale."""
        if not self.features.scaled:
            return self._kept
        a, b = self._scale.to(scale)
        return [(rows * a + b).astype(np.float32) for rows in self._kept]

    def _keep(self, tensors: Tensors, target: NDArray[np.int64]) -> None:
        """Keep rows, all of them in the newest scale."""
        if not self.settings.smote_neighbors:
            return
        keep = self.settings.keep
        for at, scales in even_parts(tensors.scales, len(tensors)):
            rows, codes = tensors.numeric.numpy()[at], target[at]
            if self.features.scaled:
                own = NumericScale.of(self.features.numeric, scales)
                newest = self._scale.followed(own)
                a, b = own.to(newest)
                rows = (rows * a + b).astype(np.float32)
                self._kept, self._scale = self._kept_in(newest), newest
            self._kept = [
                np.concatenate([kept, rows[codes == code]])[-keep:]
                for code, kept in enumerate(self._kept)
            ]

    def _identity(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "[model] classes": list(self.features.classes),
            "[train.sampling] method": settings.method,
            "[train.sampling] desired_dist": self._desired.tolist(),
            "[train.sampling] sampling_rate": settings.sampling_rate,
            "[train.sampling] smote_neighbors": settings.smote_neighbors,
            "[train.sampling] seed": settings.seed,
        }


def _desired(settings: SamplingSettings, features: Features) -> NDArray[np.float64]:
    """Return the shares in class order."""
    where = "[train.sampling] desired_dist"
    if features.task == "regression":
        raise UserError(
            "[train.sampling] is for classes, and [model] task is 'regression': take it out."
        )
    classes, desired_dist = features.classes, settings.desired_dist
    for name in desired_dist:
        if name not in classes:
            raise UserError(
                f"{where} names class '{name}', which [model] classes does not."
                f"{nearest(name, classes)}"
            )
    shares = np.array([desired_dist.get(name, 0.0) if desired_dist else 1.0 for name in classes])
    if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise UserError(
            f"{where} expects shares of 0 or more, at least one above 0, got {dict(desired_dist)}."
        )
    normalized: NDArray[np.float64] = shares / shares.sum()
    return normalized


def _ratio(desired_dist: NDArray[np.float64], seen: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return desired share over true share of each class; 0 for a class not seen."""
    seen_mask = seen > 0
    actual = seen / max(1, int(seen.sum()))
    possible = np.where(seen_mask, desired_dist, 0.0)
    possible = possible / (possible.sum() or 1.0)
    ratio: NDArray[np.float64] = np.divide(
        possible, actual, where=seen_mask, out=np.zeros(len(desired_dist))
    )
    return ratio


def _nearest(rows: torch.Tensor, kept: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the `k` kept rows nearest to each row, without the row itself, shape (n, k)."""
    distance = torch.cdist(rows, torch.from_numpy(kept))
    distance[distance == 0] = torch.inf
    near: NDArray[np.int64] = distance.topk(min(k, len(kept) - 1), largest=False).indices.numpy()
    return near


__all__ = ["ResampledLearner", "SamplingSettings"]
