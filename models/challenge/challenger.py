"""Follows drift: when a model's error rises, a challenger learns beside it and replaces it once
it is significantly better."""

from __future__ import annotations

import dataclasses
import logging
import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.types import (
    Augmenter,
    Batch,
    Buffered,
    DeviceTensors,
    Features,
    GraphBuilder,
    Learner,
    Settings,
    Snapshot,
    Step,
    Tensors,
    UserError,
    nearest,
    pinball_losses,
)
from models.challenge.error_drift import THRESHOLD, ErrorDrift, rehearse
from models.challenge.token_bucket import TokenBucket

log = logging.getLogger("headrace.learner")
FIRST_LOOK, MAX_CHALLENGE_ROWS = 256, 8_192
"""The rows of a challenge before the first comparison; the next comes whenever they have
doubled. A challenger that has not won after the limit is dropped."""
BLOCKS = 16
"""The blocks whose means are compared, between two comparisons."""
MIN_STANDARD_ERRORS = 5.0
"""The standard errors by which the challenger must be better: Student's t of 15 degrees of
freedom exceeds it once in 12,000 times, and there are five comparisons."""
MIN_GAIN_SHARE = 0.05
"""The share of the usual error by which the challenger must be better."""
LARGEST_THRESHOLD = 64 * THRESHOLD
"""The limit up to which `ErrorDrift.threshold` doubles with every failed challenge."""
STRIDES = 64, 1_024
"""The bounds of the stride: an alarm takes effect at the next multiple of a 16th of the
champion's rows, a power of two within these."""

SUCCESSOR_ROWS = 512
"""The rows that the previous scales count for in a successor, so that new rows dominate."""

NOTHING_YET: dict[str, Any] = {
    "rows": 0, "watch": {}, "pace": {}, "limit": math.inf, "challenge": None,
}  # fmt: skip
"""The state of a learner without a challenge."""


class ChallengeSettings(Settings):
    """How a learner follows drift; a key of ``[train]``.

    Attributes:
        forget_on: when to ask whether what was learned still holds: ``error``, where the model's
            own error rises (`models.challenge.error_drift.ErrorDrift`); the name of a 'drift'
            stage, where that detects drift in a batch; ``never``. A new model then learns beside
            the old one, and takes its place once it is surely better
            (`models.challenge.challenger.ChampionChallenger`).
    """

    forget_on: str = "error"


class Challengeable(Learner, Buffered):
    """A learner that can be challenged."""

    @abstractmethod
    def successor(self) -> Challengeable:
        """Return an untrained learner with the same settings, an empty replay and the same
        augmentation. Its scales may be the current ones, if they follow new rows faster."""

    def steps_per_row(self, rows: int) -> float:
        """Return the steps it takes per row after so many rows, at its own pace."""
        return 1.0

    def pace(self, steps_per_row: float) -> None:
        """Limit the steps per row from now on, replay steps included. Not part of its state."""
        return

    def limit_memory(self, nbytes: int) -> None:
        """Limit the bytes of kept rows; see `engine.types.Buffered`."""
        return

    @property
    def nbytes(self) -> int:
        """The bytes of everything it keeps."""
        return sum(self.memory().values())


class WrappedLearner(Challengeable):
    """A learner around another one, which answers what this one does not say itself.

    Attributes:
        learner: the inner learner.
    """

    learner: Learner

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.features: Features = learner.features
        self.device = learner.device

    def augment_with(self, augmentation: Augmenter) -> None:
        self.learner.augment_with(augmentation)

    def attributions(self, tensors: Tensors) -> Mapping[str, NDArray[np.float64]]:
        return self.learner.attributions(tensors)

    def expert_loads(self) -> Mapping[str, Sequence[float]]:
        return self.learner.expert_loads()

    def set_classes(self, classes: Sequence[str], sources: Sequence[int]) -> None:
        self.learner.set_classes(classes, sources)
        self.features = self.learner.features

    @property
    def unwrapped(self) -> Learner:
        return self.learner.unwrapped

    @property
    def parameters_count(self) -> int:
        return self.learner.parameters_count

    @property
    def replay_bytes(self) -> int:
        return self.learner.replay_bytes

    def limit_memory(self, nbytes: int) -> None:
        if isinstance(self.learner, Buffered):
            self.learner.limit_memory(nbytes)


class ChampionChallenger(WrappedLearner):
    """A learner, the champion, that a challenger may replace; see `engine.types.Learner`.

    An alarm throws nothing away: errors rise for many reasons, and only some of them mean that
    what was learned no longer holds. It begins a challenge: a successor of the champion learns
    beside it, as background learners do in adaptive random forests (Gomes et al., "Adaptive random
    forests for evolving data stream classification", 2017). Both score each row before they learn
    it; the champion answers. After 512, 1,024, ... 8,192 rows the two are compared on the rows
    since the look before. The challenger takes over where it is better by 5 standard errors, and by
    a 20th of the larger of the champion's error and its usual one: a lull without a rare class
    says nothing of either. Else it is dropped in the end, and the next alarm must be louder.

    All this may cost three times the work of the first champion alone, over the whole stream: new
    models learn by larger steps where changes follow each other (`models.challenge.token_bucket`).

    Rows count that are learned. Batches are cut where something is decided, so decisions do not
    depend on how rows come in batches, but for drift that a stage detects.

    Args:
        learner: the first champion.
        forget_on: as in `ChallengeSettings`; not ``never``.

    Attributes:
        learner: the champion.
    """

    learner: Challengeable

    def __init__(self, learner: Challengeable, forget_on: str = "error") -> None:
        super().__init__(learner)
        self.forget_on = forget_on
        rehearse()
        self._detector = ErrorDrift()
        self._rows = 0
        self._pace = TokenBucket()
        self._limit = math.inf
        self._challenge: _Challenge | None = None

    # -------------------------------------------------------------------------------------- actions

    def learn(self, batch: Batch) -> Step:
        """Score the rows and learn from them; the challenger does the same."""
        assert batch.tensors is not None, "a batch to learn from is collated"
        counts: Counter[str] = Counter()
        if self._challenge is None and self._drifted(batch):
            self._begin(counts)
        parts: list[Step] = []
        at, n = 0, len(batch.tensors)
        while at < n or not parts:
            part = _cut(batch, at, self._end(batch.tensors, at))
            parts.append(self._learned(part, counts))
            at += len(parts[-1].scores)
        step = Step.joined(parts)
        return dataclasses.replace(step, challenges=counts) if counts else step

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Return the champion's scores."""
        return self.learner.predict(tensors)

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the champion into an ONNX graph."""
        return self.learner.build(graph, numeric, categories)

    def torch_body(self) -> Mapping[str, str] | None:
        return self.learner.torch_body()

    def set_classes(self, classes: Sequence[str], sources: Sequence[int]) -> None:
        """Tell champion and challenger."""
        super().set_classes(classes, sources)
        if self._challenge is not None:
            self._challenge.learner.set_classes(classes, sources)

    def successor(self) -> ChampionChallenger:
        """Return the champion's."""
        return ChampionChallenger(self.learner.successor(), self.forget_on)

    def remarks(self) -> Sequence[str]:
        """Return the champion's remarks."""
        return self.learner.remarks()

    # ------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Snapshot]:
        """Return the champion's state, its error statistics, and the challenge."""
        challenge = self._challenge
        own = {
            "rows": self._rows,
            "watch": self._detector.snapshot(),
            "pace": self._pace.snapshot(),
            "limit": self._limit,
            "challenge": None if challenge is None else challenge.snapshot(),
        }
        return {**self.learner.state_dict(), "renewal": own}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Load the state; also accepts one saved without a challenger.

        Raises: UserError naming the first thing in which the saved model is another.
        """
        self.learner.load_state_dict({k: v for k, v in state.items() if k != "renewal"})
        own = state.get("renewal", NOTHING_YET)
        self._rows, self._detector = own["rows"], ErrorDrift.restored(own["watch"])
        self._pace = TokenBucket.restored(own["pace"])
        self._limit_steps(own["limit"])
        self._challenge = None
        if own["challenge"] is not None:
            self._challenge = _Challenge(self.learner.successor())
            self._challenge.restore(own["challenge"])

    # ------------------------------------------------------------------------------------- sizes

    def steps_per_row(self, rows: int) -> float:
        """Return the champion's."""
        return self.learner.steps_per_row(rows)

    def memory(self) -> dict[str, int]:
        """Return the memory of champion and challenger together."""
        memory = Counter(self.learner.memory())
        if self._challenge is not None:
            memory.update(self._challenge.learner.memory())
        return dict(memory)

    # ------------------------------------------------------------------------------------ inside

    def _drifted(self, batch: Batch) -> bool:
        """Return whether the stage named by `forget_on` detected drift in this batch."""
        name = self.forget_on
        if name == "error":
            return False
        counts = [n for (stage, _), n in batch.counts.items() if stage == name]
        if not counts:
            raise _no_stage(name)
        return any(counts)

    @property
    def scores_in_turn(self) -> bool:
        return self.learner.scores_in_turn

    def _end(self, rows: Tensors, at: int) -> int:
        """Return the end of rows from row `at` on after which something may be decided."""
        left = self._rows_left()
        learned = np.flatnonzero(rows.to_learn[at:])
        return at + int(learned[left - 1]) + 1 if len(learned) >= left else len(rows)

    def _rows_left(self) -> int:
        """Return the rows until the next possible decision."""
        if self._challenge is not None:
            return self._challenge.rows_left
        return self._stride - self._rows % self._stride

    @property
    def _stride(self) -> int:
        least, most = STRIDES
        return max(least, min(most, 1 << max(1, self._rows // 16).bit_length() - 1))

    def _learned(self, part: Batch, counts: Counter[str]) -> Step:
        """Learn from rows up to the next decision; then decide."""
        step, challenge = self.learner.learn(part), self._challenge
        assert part.tensors is not None
        errors = _errors(self.features, part.tensors, step)
        self._rows += len(errors)
        if challenge is None:
            self._detector = self._detector.update(errors)
            self._pace = self._pace.charge(len(errors), step.steps, models=1)
            if len(errors) and not self._rows % self._stride:
                self._check_error(counts)
            return step
        theirs = challenge.learner.learn(part)
        self._pace = self._pace.charge(len(errors), step.steps + theirs.steps, models=2)
        challenger_scores = dataclasses.replace(step, scores=theirs.scores)
        challenge.record(errors, _errors(self.features, part.tensors, challenger_scores))
        if not challenge.rows_left:
            self._decide(challenge, counts)
        return step

    def _check_error(self, counts: Counter[str]) -> None:
        """Begin a challenge if the error has risen; else adjust the champion's pace."""
        self._settle_bucket()
        if self._detector.risen and self.forget_on == "error":
            self._begin(counts)
        if self._limit < math.inf:
            self._limit_steps(self._allowed(self._rows_left()))

    def _begin(self, counts: Counter[str]) -> None:
        """Start a challenger if the pace budget allows it."""
        self._settle_bucket()
        if self._pace.left < 0:
            return
        self._challenge = _Challenge(self.learner.successor())
        self._challenge.hold(self._allowed(self._challenge.rows_left))
        counts["begun"] += 1
        self._log("a new model learns beside the old one: what that learned may no longer hold")

    def _decide(self, challenge: _Challenge, counts: Counter[str]) -> None:
        """Let the challenger take over, drop it, or let it continue."""
        self._settle_bucket()
        if challenge.better(self._detector.usual):
            self.learner, self._rows = challenge.learner, challenge.rows
            self._challenge, self._detector = None, self._detector.reset()
            self._limit_steps(self._allowed(self._rows_left()))
            counts["won"] += 1
            self._log("the new model takes over: it is better than the old one")
        elif challenge.rows >= MAX_CHALLENGE_ROWS:
            louder = min(2 * self._detector.threshold, LARGEST_THRESHOLD)
            self._challenge, self._detector = None, self._detector.reset(louder)
            counts["dropped"] += 1
            self._log("the new model is dropped: it is not better than the old one")
        else:
            challenge.extend()
            challenge.hold(self._allowed(challenge.rows_left))

    def _settle_bucket(self) -> None:
        self._pace = self._pace.settled(self.learner.steps_per_row(self._pace.total))

    def _allowed(self, rows: int) -> float:
        """Return the steps per row that a new model may take on the next rows."""
        return self._pace.limit(self.learner.steps_per_row(self._pace.total), rows)

    def _limit_steps(self, limit: float) -> None:
        """Limit the champion's steps per row. The first champion has no limit: it is the
        reference for all others."""
        self._limit = limit
        self.learner.pace(limit)

    def _log(self, sentence: str) -> None:
        log.info(sentence, extra={"forget_on": self.forget_on, "rows": self._rows})


def require_challengeable(learner: Learner, forget_on: str, stages: Sequence[str]) -> None:
    """Raises: UserError where the learner cannot be challenged, or `forget_on`, which is not
    ``never``, is none of the stages."""
    if forget_on != "error" and forget_on not in stages:
        raise _no_stage(forget_on, nearest(forget_on, ["error", "never", *stages]))
    if not isinstance(learner, Challengeable):
        raise UserError(
            f"[train] forget_on = '{forget_on}' expects a learner that can be challenged, and "
            f"{type(learner).__name__} has no method 'successor': write one "
            "(models.challenge.challenger.Challengeable), or set forget_on = 'never'."
        )


def _no_stage(name: str, near: str = "") -> UserError:
    return UserError(
        f"[train] forget_on = '{name}' expects 'error', 'never' or the name of a 'drift' stage, "
        f"and there is none of that name: add [scrub.{name}].{near}"
    )


class _Challenge:
    """A challenger and its error beside the champion's.

    Attributes:
        learner: the challenger.
        rows: learned since the challenge began.
    """

    def __init__(self, learner: Challengeable) -> None:
        self.learner = learner
        self.rows = 0
        self._limit = math.inf
        self._look = FIRST_LOOK
        self._errors: list[NDArray[np.float64]] = []

    @property
    def rows_left(self) -> int:
        """The rows until the next comparison."""
        return self._look - self.rows

    def hold(self, limit: float) -> None:
        """Limit the challenger's steps per row."""
        self._limit = limit
        self.learner.pace(limit)

    def record(self, champion: NDArray[np.float64], challenger: NDArray[np.float64]) -> None:
        """Record the errors of both on the same rows, shape (n,)."""
        self.rows += len(champion)
        self._errors.append(np.stack([champion, challenger]))

    def better(self, usual: float) -> bool:
        """Return whether the challenger is significantly and noticeably better on the rows since
        the last comparison. Before the first one its errors are those of an untrained model.

        Args:
            usual: the champion's mean error before the challenge.
        """
        if self._look == FIRST_LOOK:
            return False
        both = np.concatenate(self._errors, axis=1)
        champion, challenger = both.reshape(2, BLOCKS, -1).mean(axis=2)
        with np.errstate(invalid="ignore"):  # a gain of errors that are not finite is none
            gain = champion - challenger
            least = max(
                MIN_STANDARD_ERRORS * _standard_error(gain),
                MIN_GAIN_SHARE * max(champion.mean(), usual),
            )
            return bool(gain.mean() > least)

    def extend(self) -> None:
        """Continue until the next comparison."""
        self._look *= 2
        self._errors = []

    def snapshot(self) -> dict[str, Any]:
        """Return a plain value."""
        errors = np.concatenate([*self._errors, np.empty((2, 0))], axis=1)
        learner = self.learner.state_dict()
        return {
            "learner": learner,
            "rows": self.rows,
            "limit": self._limit,
            "look": self._look,
            "errors": errors,
        }

    def restore(self, value: Mapping[str, Any]) -> None:
        """Return the challenge from a `snapshot`."""
        self.learner.load_state_dict(value["learner"])
        self.rows, self._look, self._errors = value["rows"], value["look"], [value["errors"]]
        self.hold(value["limit"])


def _standard_error(means: NDArray[np.float64]) -> float:
    """Return the standard error of the mean of block means, shape (n,). Correlated neighbours
    count as fewer: the variance of an autoregressive series with their correlation, corrected
    for its bias in short series (Marriott and Pope, 1954)."""
    n, off = len(means), means - means.mean()
    squares = float(off @ off)
    alike = float(off[1:] @ off[:-1]) / squares if squares > 0 else 0.0
    alike = min(max(alike + (1 + 3 * alike) / n, 0.0), 0.9)
    return math.sqrt(squares / (n - 1) / n * (1 + alike) / (1 - alike))


def _errors(features: Features, rows: Tensors, step: Step) -> NDArray[np.float64]:
    """Return the error of each learned row: the distance from the target, of several their mean,
    the mean pinball loss of quantiles, or Brier's score of the probabilities."""
    assert rows.target is not None, "rows to learn from have a target"
    if step.skipped is not None:
        return np.empty(0)
    there = rows.labelled & rows.to_learn  # the others are only scored
    if step.not_learned is not None:
        there = there & ~step.not_learned
    scores, target = step.scores[there], rows.target.numpy()[there]
    if features.targets:  # a row has one of them at least
        errors = np.nanmean(np.abs(scores - target), axis=1)
    elif features.quantiles:
        errors = pinball_losses(target, scores, features.quantiles).mean(axis=1)
    elif features.task == "regression":
        errors = np.abs(scores - target)
    elif scores.ndim == 1:
        errors = np.square(scores - target)
    else:
        right = scores[np.arange(len(target)), target]
        errors = np.einsum("ij,ij->i", scores, scores) + 1 - 2 * right
    return np.asarray(errors, np.float64)


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    """Return rows start..stop-1 of a batch, also those on the device."""
    tensors = batch.tensors
    assert tensors is not None
    if start == 0 and stop == len(tensors):
        return batch
    on_device, part = tensors.on_device, tensors.slice(start, stop)
    if on_device is not None:
        on_device = DeviceTensors(
            tensors=on_device.tensors.slice(start, stop), copied=on_device.copied
        )
        part = dataclasses.replace(part, on_device=on_device)
    return dataclasses.replace(batch, frame=batch.frame.slice(start, stop - start), tensors=part)


__all__ = [
    "SUCCESSOR_ROWS",
    "ChallengeSettings",
    "Challengeable",
    "ChampionChallenger",
    "WrappedLearner",
    "require_challengeable",
]
