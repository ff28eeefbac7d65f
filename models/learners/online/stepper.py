"""Takes optimizer steps on rows as they come."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import (
    Augmenter,
    Features,
    Scales,
    Snapshot,
    Step,
    Tensors,
)
from models.carry import Carry
from models.learners.labelled import target_of
from models.learners.online.carried import CarriedStates, Passage
from models.learners.online.losses import Loss
from models.learners.online.optimizer import Optimizer
from models.learners.online.replay import Rehearsal
from models.learners.online.scorer import Scorer
from models.learners.online.settings import (
    OnlineSettings,
    OnlineTraining,
)
from models.learners.online.steps import (
    BatchProgress,
    StepBuffer,
    StepSizes,
    fit_lengths,
)
from models.learners.online.target_transform import AnyTargetScale
from models.learners.online.trainable import TrainableNetwork

N = TypeVar("N", bound=TrainableNetwork)
log = logging.getLogger("headrace.learner")
MOST_PASSED = 4_096
"""The most rows of a step of a model with a state, with those that are not learned."""
MAX_SCORE = 1e18
"""The bound of scores and targets: their squares must be float32."""


class Stepper(Generic[N]):
    """Scores rows, gathers them until they are a step, and takes it, with steps on kept rows after
    it.

    Args:
        settings: ``[model]``.
        training: ``[train]``.
        features: what the network reads.
        loss: of raw scores and targets.
        scorer: the network between its scales.
        device: where it computes.
        nested: whether the replay also keeps images, padded lists and arrays.

    Attributes:
        augmentation: what to learn from in place of the rows.
        rehearsal: the kept rows.
        sizes: how large steps are.
    """

    def __init__(
        self,
        settings: OnlineSettings,
        training: OnlineTraining,
        features: Features,
        *,
        loss: Loss,
        scorer: Scorer[N],
        device: str,
        nested: bool,
    ) -> None:
        self.settings, self.training, self.features = settings, training, features
        self.device = device
        self.augmentation: Augmenter | None = None
        self._loss = loss
        self._scorer = scorer
        self._optimizer = Optimizer(training, scorer.network, scorer.average)
        self.rehearsal = Rehearsal(training, features, device, nested=nested)
        self.sizes = StepSizes(
            most_rows=training.step_rows,
            least_rows=scorer.network.least_step_rows,
            replay=training if self.rehearsal.rows else None,
        )
        self._waiting = StepBuffer()
        self._carried = None
        if features.state is not None:
            self._carried = CarriedStates(features.state, device)
        self._grows = features.max_classes > 0
        self._steps = 0
        self._rows = 0

    def learn(self, rows: Tensors) -> Step:
        """Score rows and learn from them, step by step; see `OnlineLearner.learn`."""
        progress = BatchProgress(len(rows))
        scores: list[NDArray[np.float64]] = []
        at, n = 0, len(rows)
        while at < n:
            # A new pace may ask for a smaller step than there are rows that wait.
            room = max(1, self.sizes.rows(self._rows) - self._rows_waiting)
            if self._carried is not None:
                room = self._rows_with(room, rows, at, MOST_PASSED - self._carried.rows)
            part = fit_lengths(rows.slice(at, min(n, at + room)), self.features)
            if self._carried is None:
                raw = self._score(part)
                known = self._enqueue(part, raw, progress, at)
            else:
                raw, known = self._pass(self._carried, part, progress, at)
            scores.append(self._scorer.scores(raw.detach()))
            at += len(part)
            if self._step_is_due():
                self._take_step(rows.scales, progress, known)
        return progress.step(np.concatenate(scores))

    def carry(self, rows: Tensors) -> Carry | None:
        """Return the states of the rows' keys; None where none is carried."""
        return None if self._carried is None else self._carried.look_up(rows)

    def forget_classes(self, gone: torch.Tensor) -> None:
        """Forget rows of classes that have left, by their outputs."""
        self._waiting.forget_classes(gone)
        self.rehearsal.forget_classes(gone)

    def memory(self) -> dict[str, int]:
        """Return component -> bytes."""
        memory = {
            "optimizer": self._optimizer.nbytes,
            "replay": self._waiting.nbytes + self.rehearsal.nbytes,
        }
        return memory if self._carried is None else {**memory, "states": self._carried.nbytes}

    def snapshot(self) -> dict[str, Snapshot]:
        """Return the state as a plain value. A copy."""
        state = {
            "optimizer": self._optimizer.state_dict(),
            "replay": self.rehearsal.state_dict(),
            "waiting": self._waiting.snapshot(),
            "steps": self._steps,
            "rows": self._rows,
        }
        if self._carried is not None:
            state["carried"] = self._carried.snapshot()
        return state

    def restore(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a `snapshot`."""
        self._optimizer.load_state_dict(state["optimizer"])
        self.rehearsal.load_state_dict(state["replay"])
        self._waiting.restore(state["waiting"], self.device)
        if self._carried is not None:
            self._carried.restore(state["carried"])
        self._steps, self._rows = state["steps"], state["rows"]

    # ------------------------------------------------------------------------------------ inside

    @property
    def _rows_waiting(self) -> int:
        """The rows that wait to be learned."""
        return len(self._waiting) if self._carried is None else len(self._carried)

    def _score(self, part: Tensors) -> torch.Tensor:
        """Return raw scores of new rows; with a gradient if they can be a step by themselves."""
        fills_a_step = not len(self._waiting) and len(part) >= self.sizes.rows(self._rows)
        alike = self._scorer.trains_on_scores and self.augmentation is None
        if fills_a_step and alike and self.training.accumulate == 1:
            return self._scorer.train(part)
        return self._scorer.raw(part)

    @staticmethod
    def _rows_with(room: int, rows: Tensors, at: int, most: int) -> int:
        """Return how many rows from row `at` on have so many that are learned; at most `most`."""
        if rows.learned is not None:
            learned = np.flatnonzero(rows.learned.cpu().numpy()[at : at + most])
            room = int(learned[room - 1]) + 1 if len(learned) >= room else most
        return min(room, most)

    def _step_is_due(self) -> bool:
        if self._carried is not None and self._carried.rows >= MOST_PASSED:
            return True
        return self._rows_waiting >= self.sizes.rows(self._rows)

    def _pass(
        self,
        carried: CarriedStates,
        part: Tensors,
        progress: BatchProgress,
        at: int,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Score rows that take the states of their keys along, and queue them all, those that are
        not learned too. Return their raw scores, and again if those are the step's."""
        passage = carried.enter(part, progress.counts)
        carry = passage.carry(self.device)
        whole = not carried.rows and passage.learned.sum() >= self.sizes.rows(self._rows)
        if whole and self._scorer.trains_on_scores and self.augmentation is None:
            raw = self._scorer.train(part, carry)
        else:
            raw = self._scorer.raw(part, carry)
        bad, learned = self._bad(part, raw.detach()), passage.learned
        if bad is not None:
            progress.not_learned[at : at + len(part)] = bad & learned
            learned = learned & ~bad
            broken = ~torch.isfinite(raw.detach()).reshape(len(part), -1).all(1)
            numeric = part.numeric.masked_fill(broken[:, None], 0.0)
            part = dataclasses.replace(part, numeric=numeric)
        rows = np.flatnonzero(learned)
        carried.wait(passage, learned, carry, hold=bad is None)
        self._waiting.add(part)
        progress.waits(at, rows)
        self.rehearsal.add(part if learned.all() else part.take(rows))
        return raw, raw if raw.requires_grad and bad is None else None

    def _enqueue(
        self,
        part: Tensors,
        raw: torch.Tensor,
        progress: BatchProgress,
        at: int,
    ) -> torch.Tensor | None:
        """Queue rows for their step and for the replay, except those with a non-finite loss;
        with their raw scores, if those are the step's."""
        bad = self._bad(part, raw.detach())
        if bad is not None:
            progress.not_learned[at : at + len(part)] = bad
            good = np.flatnonzero(~bad)
            if not len(good):
                return None
            kept = torch.from_numpy(good).to(raw.device)
            part, raw = part.take(good), raw[kept]
        self._waiting.add(part)
        progress.waits(at, len(part) if bad is None else good)
        self.rehearsal.add(part)
        return raw if raw.requires_grad and len(self._waiting) == len(part) else None

    def _bad(self, part: Tensors, raw: torch.Tensor) -> NDArray[np.bool_] | None:
        """Return a mask of rows with a non-finite loss; None if all are finite."""
        large = np.abs(raw.cpu().numpy())
        large = large if large.ndim == 1 else large.max(1)
        if self.features.task == "regression":
            goal = np.abs(self._scorer.target_scale.forward(target_of(part)).cpu().numpy())
            if self.features.targets:
                goal = np.nan_to_num(goal, posinf=np.inf).max(1)
            large = np.maximum(large, goal)
        good: NDArray[np.bool_] = large < MAX_SCORE  # nan is not
        return None if good.all() else ~good

    def _take_step(
        self, scales: Scales, progress: BatchProgress, raw: torch.Tensor | None = None
    ) -> None:
        """Take a step on the waiting rows, and some on replayed ones.

        Args:
            raw: what the network says of them, where that is known.
        """
        scorer, any_learned = self._scorer, self._rows_waiting > 0
        rows = fit_lengths(self._waiting.take(), self.features)
        if not any_learned:
            self._settle(rows)
            return
        size = self.sizes.rows(self._rows)
        self._steps += 1
        self._seed_rngs()
        if self._carried is None:
            scale = scorer.target_scale.learned(target_of(rows))
            augmented = self._augmented(rows, 0, progress.changed)
        else:
            passage = self._carried.take()
            learned = passage.of_learned(rows)
            scale = scorer.target_scale.learned(target_of(learned))
            raw, augmented = self._trained(self._carried, passage, rows, raw, progress)
            rows = learned
        loss, taken = self._optimizer.step(self._losses(augmented, scale, raw))
        self._rows += len(rows)
        if not taken:
            if before := len(rows) - progress.step_failed():
                log.warning(
                    "a step's gradient was not finite: rows of earlier batches are not learned",
                    extra={"rows": before},
                )
            return
        scorer.learn_scales(rows, scale)
        progress.step_taken(loss)
        progress.steps += self._replay_steps(scales, size, progress.changed)

    def _trained(
        self,
        carried: CarriedStates,
        passage: Passage,
        rows: Tensors,
        raw: torch.Tensor | None,
        progress: BatchProgress,
    ) -> tuple[torch.Tensor, Tensors]:
        """Return raw scores with a gradient, and the rows, of those that are learned. Rows of a key
        that are in this step follow one another, with a gradient through all of them."""
        scorer = self._scorer
        augmented = self._augmented(rows, 0, progress.changed)
        carry = passage.carry(self.device)
        scored: Carry | None = None
        if passage.states is None and not (scorer.trains_on_scores and augmented is rows):
            scored = passage.carry(self.device)
            scorer.raw(rows, scored)
        elif passage.states is None:
            scored = carry
        raw = scorer.train(augmented, carry) if raw is None else raw
        self.rehearsal.set_states(carried.settle(passage, scored))
        return passage.raw_of_learned(raw), passage.of_learned(augmented)

    def _settle(self, rows: Tensors) -> None:
        """Pass rows of which none is learned."""
        assert self._carried is not None, "without a state all rows that wait are learned"
        passage = self._carried.take()
        carry: Carry | None = None
        if passage.states is None:
            carry = passage.carry(self.device)
            self._scorer.raw(rows, carry)
        self._carried.settle(passage, carry)

    def _replay_steps(self, scales: Scales, size: int, changed: Counter[str]) -> int:
        """Take steps on replayed rows; return how many."""
        steps = self.sizes.replay_steps(self._rows, size)
        taken = 0
        for step, (rows, carry) in enumerate(self.rehearsal.sample(steps, size, scales), 1):
            augmented = self._augmented(fit_lengths(rows, self.features), step, changed)
            raw = None if carry is None else self._scorer.train(augmented, carry)
            losses = self._losses(augmented, self._scorer.target_scale, raw)
            taken += self._optimizer.step(losses)[1]
        return taken

    def _seed_rngs(self) -> None:
        # The state of chance is one number, the same on every device.
        seed = (self.settings.seed * 1_000_003 + self._steps) % 2**32
        self.rehearsal.seed(seed)
        self._scorer.network.seed(seed ^ 0x5EED)

    def _losses(
        self, rows: Tensors, scale: AnyTargetScale, raw: torch.Tensor | None
    ) -> Iterator[torch.Tensor]:
        """Yield the losses of the parts of a step, which add up to its mean loss.

        Args:
            raw: what the network says of all rows, where that is known.
        """
        if raw is not None:
            yield self._loss_of(raw, rows, scale)
            return
        least = self._scorer.network.least_step_rows
        parts = max(1, min(self.training.accumulate, len(rows) // least))
        if parts > 1 and self._grows:  # each part has rows of a class
            rows = rows.take(np.flatnonzero((target_of(rows) >= 0).cpu().numpy()))
        ends = np.linspace(0, len(rows), parts + 1).astype(int).tolist()
        for start, stop in pairwise(ends):
            if start == stop:
                continue
            part = rows.slice(start, stop)
            loss = self._loss_of(self._scorer.train(part), part, scale)
            yield loss if parts == 1 else loss * (len(part) / len(rows))

    def _loss_of(self, raw: torch.Tensor, rows: Tensors, scale: AnyTargetScale) -> torch.Tensor:
        target = target_of(rows)
        if self._grows and not (known := target >= 0).all():
            raw, target = raw[known], target[known]  # rows of a class that has left
        if self.features.task == "regression":
            target = scale.forward(target)
        if self.features.targets:
            there = ~target.isnan()
            raw, target = raw[there], target[there]
        return self._loss(raw, target)

    def _augmented(self, rows: Tensors, step: int, changed: Counter[str]) -> Tensors:
        """Return the augmented rows; count the rows that each augment changed."""
        if self.augmentation is None:
            return rows
        augmented, counts = self.augmentation(rows, self._steps, step)
        changed.update(counts)
        return augmented


__all__ = ["MOST_PASSED", "Stepper"]
