"""Takes optimizer steps on rows as they come."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import Augmenter, Features, Scales, Snapshot, Step, Tensors
from models.carry import Carry
from models.learners.labelled import target_of
from models.learners.online.losses import Loss
from models.learners.online.optimizer import Optimizer
from models.learners.online.replay.rehearsal import Rehearsal
from models.learners.online.scorer import Scorer
from models.learners.online.settings import OnlineSettings, OnlineTraining
from models.learners.online.steps.buffer import fit_lengths
from models.learners.online.steps.keyed_rows import KeyedRows
from models.learners.online.steps.loss import StepLoss
from models.learners.online.steps.progress import BatchProgress
from models.learners.online.steps.sizes import StepSizes
from models.learners.online.steps.waiting_rows import WaitingRows
from models.learners.online.trainable import TrainableNetwork

N = TypeVar("N", bound=TrainableNetwork)
log = logging.getLogger("headrace.learner")


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
        self.augmentation: Augmenter | None = None
        self._settings, self._training, self._features = settings, training, features
        self._scorer = scorer
        self._loss = StepLoss(loss, scorer, features, accumulate=training.accumulate)
        self._optimizer = Optimizer(training, scorer.network, scorer.average)
        self.rehearsal = Rehearsal(training, features, device, nested=nested)
        self.sizes = StepSizes(
            most_rows=training.step_rows,
            least_rows=scorer.network.least_step_rows,
            replay=training if self.rehearsal.rows else None,
        )
        self._waiting: WaitingRows[N] = (
            WaitingRows(scorer, self.rehearsal, features, device=device)
            if features.state is None
            else KeyedRows(scorer, self.rehearsal, features, features.state, device=device)
        )
        self._steps = 0
        self._rows = 0

    def learn(self, rows: Tensors) -> Step:
        """Score rows and learn from them, step by step; see `OnlineLearner.learn`."""
        progress = BatchProgress(len(rows))
        scores: list[NDArray[np.float64]] = []
        at, waiting = 0, self._waiting
        trains = self._scorer.trains_on_scores and self.augmentation is None
        trains = trains and self._training.accumulate == 1
        while at < len(rows):
            size = self.sizes.rows(self._rows)
            # A new pace may ask for a smaller step than there are rows that wait.
            before = len(waiting)
            end = waiting.end(rows, at, max(1, size - before))
            part = fit_lengths(rows.slice(at, end), self._features)
            raw, known = waiting.add(part, at, progress, step_rows=size, trains=trains)
            scores.append(self._scorer.scores(raw.detach()))
            at = end
            if before < len(waiting) >= size or waiting.full:
                self._take_step(size, rows.scales, progress, known)
        return progress.step(scores[0] if len(scores) == 1 else np.concatenate(scores))

    def carry(self, rows: Tensors) -> Carry | None:
        """Return the states of the rows' keys; None where none is carried."""
        return self._waiting.carry(rows)

    def forget_classes(self, gone: torch.Tensor) -> None:
        """Forget rows of classes that have left, by their outputs."""
        self._waiting.forget_classes(gone)
        self.rehearsal.forget_classes(gone)

    def memory(self) -> dict[str, int]:
        """Return component -> bytes."""
        means = self._scorer.class_means
        beside = self._optimizer.nbytes + (0 if means is None else means.nbytes)
        return {"optimizer": beside, **self._waiting.memory()}

    def snapshot(self) -> dict[str, Snapshot]:
        """Return the state as a plain value. A copy."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "replay": self.rehearsal.state_dict(),
            "steps": self._steps,
            "rows": self._rows,
            **self._waiting.snapshot(),
        }

    def restore(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a `snapshot`."""
        self._optimizer.load_state_dict(state["optimizer"])
        self.rehearsal.load_state_dict(state["replay"])
        self._waiting.restore(state)
        self._steps, self._rows = state["steps"], state["rows"]

    # ------------------------------------------------------------------------------------ inside

    def _take_step(
        self, size: int, scales: Scales, progress: BatchProgress, raw: torch.Tensor | None
    ) -> None:
        """Take a step on the waiting rows, and some on replayed ones.

        Args:
            size: the rows of a step.
            raw: what the network says of them, where that is known.
        """
        scorer = self._scorer
        if not len(self._waiting):
            self._waiting.pass_on()
            return
        rows = self._waiting.take()
        self._steps += 1
        self._seed_rngs()
        augmented = self._augmented(rows, 0, progress.changed)
        rows, augmented, raw = self._waiting.learned(rows, augmented, raw)
        scale = scorer.target_scale.learned(target_of(rows))
        loss, taken = self._optimizer.step(self._loss.parts(augmented, scale, raw))
        self._rows += len(rows)
        if not taken:
            if before := len(rows) - progress.step_failed():
                log.warning(
                    "a step's gradient was not finite: rows of earlier batches are not learned",
                    extra={"rows": before},
                )
            return
        scorer.learn_scales(rows, scale)
        scorer.learn_means(rows)
        progress.step_taken(loss)
        progress.steps += self._replay_steps(scales, size, progress.changed)

    def _replay_steps(self, scales: Scales, size: int, changed: Counter[str]) -> int:
        """Take steps on replayed rows; return how many."""
        if not self.rehearsal.rows:
            return 0
        steps = self.sizes.replay_steps(self._rows, size)
        taken = 0
        for step, (kept, carry) in enumerate(self.rehearsal.sample(steps, size, scales), 1):
            rows = fit_lengths(kept, self._features)
            augmented = self._augmented(rows, step, changed)
            raw = None if carry is None else self._scorer.train(augmented, carry)
            losses = self._loss.parts(augmented, self._scorer.target_scale, raw)
            if self._optimizer.step(losses)[1]:
                self._scorer.learn_means(rows)
                taken += 1
        return taken

    def _seed_rngs(self) -> None:
        # The state of chance is one number, the same on every device.
        seed = (self._settings.seed * 1_000_003 + self._steps) % 2**32
        self.rehearsal.seed(seed)
        self._scorer.network.seed(seed ^ 0x5EED)

    def _augmented(self, rows: Tensors, step: int, changed: Counter[str]) -> Tensors:
        """Return the augmented rows; count the rows that each augment changed."""
        if self.augmentation is None:
            return rows
        augmented, counts = self.augmentation(rows, self._steps, step)
        changed.update(counts)
        return augmented


__all__ = ["Stepper"]
