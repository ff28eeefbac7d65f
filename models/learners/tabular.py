"""The tabular learner: a network that predicts each row before it learns from it."""

from __future__ import annotations

import logging
import math
import os
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import (
    Augmenter,
    Batch,
    Features,
    GraphBuilder,
    Scale,
    Snapshot,
    Step,
    Tensors,
    UserError,
)
from models.challenge.challenger import SUCCESSOR_ROWS, Challengeable
from models.learners.identity import require_same_model
from models.learners.losses import make_loss
from models.learners.optimizer import Optimizer
from models.learners.replay import Rehearsal
from models.learners.scorer import Scorer
from models.learners.steps import BatchProgress, StepBuffer, StepSizes, target_of
from models.learners.tabular_settings import TabularSettings, TabularTraining, identity
from models.learners.target_transform import TargetScale

log = logging.getLogger("headrace.learner")
SHARED_WORK = 100_000_000
"""Weights of the layers times rows of a step above which torch's threads share it. Measured on
two cores: at 11 million two threads took 0.92 of one's time, at 39 and 73 million 0.74; beside
other processes 4, 10 and 40 times as long."""
OWN_THREADS = torch.get_num_threads()
"""torch's default number of threads."""
KEPT_BAD_BATCHES = 4
"""The batches with a non-finite loss or gradient that are kept for inspection."""
MAX_SCORE = 1e18
"""The bound of scores and targets: their squares must be float32."""


class TabularLearner(Challengeable):
    """A feed-forward network with embeddings for categories, bags of embeddings for lists of ids
    (ragged: the mean, sparse: the sum) and convolutions for images; regression, binary or
    multiclass.

    **Steps follow rows.** A step has a 64th of the rows seen so far, rounded down to a power of two
    and at most `step_rows`: a young model takes many small steps, a settled one few large ones.
    Rows are scored up to the end of a step, then the step is taken, with `replay_steps` on kept
    rows after it; what does not fill a step waits for the next batch, as part of the state. So each
    row is scored by a model that has learned all steps before it, and the weights depend on the
    rows and not on how they were cut into batches, to the bit; scores to the rounding of float32.
    (What `[scrub]` stages and `[train.sampling]` learn, they learn by the batch.)

    Features that no stage has scaled are standardized by the model itself (`Scaler`). Kept rows are
    scaled as the stream stands when they are learned again, not as it stood when they came.

    With an `augmentation`, each step is on rows augmented anew, while the rows themselves are
    scored and kept. Nothing uses torch's global random state: every draw of a step comes from
    generators seeded with the learner's seed and the step's number, so a learner restored from
    `state_dict` goes on to the bit as the first one did.

    Args:
        settings: ``[model]``.
        training: ``[train]``.
        features: what it reads.

    Attributes:
        bad_batches: the last few batches that were skipped because loss or gradient was not finite.
        augmentation: what to learn from in place of the rows; see `augment_with`.

    Raises: UserError for settings that do not fit the task, the features or each other.
    """

    soft_targets = True
    learns_by_batch = False
    sets_threads = True

    Settings = TabularSettings
    Training = TabularTraining

    def __init__(
        self, settings: TabularSettings, training: TabularTraining, features: Features
    ) -> None:
        self.settings: TabularSettings = settings
        self.training: TabularTraining = training
        self.features = features
        self.bad_batches: deque[Batch] = deque(maxlen=KEPT_BAD_BATCHES)
        self.augmentation: Augmenter | None = None
        self.device = _device(training.device)
        self._loss = make_loss(training, features, self.device)
        self._scorer = Scorer(settings, training, features, self.device)
        torch.set_num_threads(training.threads or _threads(training, features, self._scorer))
        self._optimizer = Optimizer(training, self._scorer.network, self._scorer.average)
        self._rehearsal = Rehearsal(training, features, self.device)
        replay = training if self._rehearsal.rows else None
        self._sizes = StepSizes(most_rows=training.step_rows, replay=replay)
        self._waiting = StepBuffer()
        self._steps = 0
        self._rows = 0

    # ------------------------------------------------------------------------------------- deeds

    def learn(self, batch: Batch) -> Step:
        """Score the rows and learn from them, step by step.

        A row whose loss is not finite is refused; so are the rows of a step whose gradient is not.
        With neither dropout nor `ema_decay` nor augmentation, a step whose rows come in one piece
        is scored by its own forward pass.
        """
        tensors = batch.tensors
        assert tensors is not None, "a batch to learn from is collated"
        assert tensors.target is not None, "and has a target"
        if not len(tensors.target):
            return Step(
                scores=self._scorer.no_scores(), loss=float("nan"), steps=0, skipped="empty"
            )
        with self._scorer.deterministic():
            return self._learned(batch, self._scorer.on_device(tensors))

    def _learned(self, batch: Batch, rows: Tensors) -> Step:
        progress = BatchProgress(len(rows))
        scores: list[NDArray[np.float64]] = []
        at, n = 0, len(rows)
        while at < n:
            # A new pace may ask for a smaller step than there are rows that wait.
            room = max(1, self._sizes.rows(self._rows) - len(self._waiting))
            part = rows.slice(at, min(n, at + room))
            raw = self._score(part)
            scores.append(self._scorer.scores(raw.detach()))
            known = self._enqueue(part, raw, batch.scales, progress, at)
            at += len(part)
            if len(self._waiting) >= self._sizes.rows(self._rows):
                self._take_step(batch.scales, progress, known)
        step = progress.step(np.concatenate(scores))
        if step.not_learned is not None:
            self.bad_batches.append(batch)
        return step

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Return scores with the averaged weights if `ema_decay` is on, without dropout."""
        with torch.inference_mode(), self._scorer.deterministic():
            return self._scorer.scores(self._scorer.raw(self._scorer.on_device(tensors)))

    def augment_with(self, augmentation: Augmenter) -> None:
        self.augmentation = augmentation

    def limit_memory(self, nbytes: int) -> None:
        """Limit the bytes of the replay, unless `replay_rows` gives its size. Called once,
        before anything is learned."""
        self._rehearsal.limit_memory(nbytes)

    def successor(self) -> TabularLearner:
        """Return a fresh learner that keeps the current scales, discounted so that new rows
        dominate."""
        learner = TabularLearner(self.settings, self.training, self.features)
        learner.limit_memory(self._rehearsal.limit)
        learner.augmentation = self.augmentation
        learner._scorer.take_scales(self._scorer, SUCCESSOR_ROWS)
        return learner

    def steps_per_row(self, rows: int) -> float:
        """Return new and replay steps; see `Challengeable.steps_per_row`."""
        return self._sizes.own_steps_per_row(rows)

    def pace(self, steps_per_row: float) -> None:
        """Take larger steps if that is fewer than its own; see `Challengeable.pace`."""
        self._sizes.steps_per_row = steps_per_row

    def state_dict(self) -> dict[str, Snapshot]:
        """Return weights, average, optimizer, replay, waiting rows, statistics of features and
        target, and the numbers of steps and rows (steps determine all random numbers). A copy."""
        scorer = self._scorer
        return {
            "shape": self._identity(),
            "weights": scorer.network.weights(),
            "average": None if scorer.average is None else scorer.average.weights(),
            "optimizer": self._optimizer.state_dict(),
            "replay": self._rehearsal.state_dict(),
            "waiting": self._waiting.snapshot(),
            "scaler": scorer.scaler.snapshot(),
            "target": scorer.target_scale.snapshot(),
            "steps": self._steps,
            "rows": self._rows,
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError naming the first thing in which the saved model is another."""
        require_same_model(state["shape"], self._identity())
        scorer = self._scorer
        scorer.network.load(state["weights"])
        if scorer.average is not None:
            scorer.average.load(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._rehearsal.load_state_dict(state["replay"])
        self._waiting.restore(state["waiting"], self.device)
        scorer.scaler = scorer.scaler.restored(state["scaler"])
        scorer.target_scale = scorer.target_scale.restored(state["target"])
        self._steps, self._rows = state["steps"], state["rows"]

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the computation of `predict` into an ONNX graph.

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.

        Returns:
            The name of the scores, float32, (n,) or (n, classes).

        Raises: UserError where it reads images or lists.
        """
        return self._scorer.build(graph, numeric, categories)

    # ------------------------------------------------------------------------------------- sizes

    @property
    def parameters_count(self) -> int:
        """The number of weights."""
        return self._scorer.network.count

    @property
    def replay_bytes(self) -> int:
        """Return the bytes of a full replay buffer in host memory."""
        return self._rehearsal.host_bytes

    def memory(self) -> dict[str, int]:
        """Return component -> bytes."""
        return {
            "weights": 4 * self._scorer.network.count,
            "optimizer": self._optimizer.nbytes,
            "replay": self._waiting.nbytes + self._rehearsal.nbytes,
        }

    # ------------------------------------------------------------------------------------ inside

    def _score(self, part: Tensors) -> torch.Tensor:
        """Return raw scores of new rows; with a gradient if they can be a step by themselves."""
        fills_a_step = not len(self._waiting) and len(part) >= self._sizes.rows(self._rows)
        if fills_a_step and self._scorer.trains_on_scores and self.augmentation is None:
            return self._scorer.train(part)
        with torch.inference_mode():
            return self._scorer.raw(part)

    def _enqueue(
        self,
        part: Tensors,
        raw: torch.Tensor,
        scales: Sequence[Scale],
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
        self._rehearsal.add(part, scales)
        return raw if raw.requires_grad and len(self._waiting) == len(part) else None

    def _bad(self, part: Tensors, raw: torch.Tensor) -> NDArray[np.bool_] | None:
        """Return a mask of rows with a non-finite loss; None if all are finite."""
        large = np.abs(raw.cpu().numpy())
        large = large if large.ndim == 1 else large.max(1)
        if self.features.task == "regression":
            goal = self._scorer.target_scale.forward(target_of(part))
            large = np.maximum(large, np.abs(goal.cpu().numpy()))
        good: NDArray[np.bool_] = large < MAX_SCORE  # nan is not
        return None if good.all() else ~good

    def _take_step(
        self, scales: Sequence[Scale], progress: BatchProgress, raw: torch.Tensor | None = None
    ) -> None:
        """Take a step on the waiting rows, and some on replayed ones.

        Args:
            raw: what the network says of them, where that is known.
        """
        if not len(self._waiting):
            return
        scorer = self._scorer
        rows, size = self._waiting.take(), self._sizes.rows(self._rows)
        self._steps += 1
        self._seed_rngs()
        scale = scorer.target_scale.learned(target_of(rows))
        augmented = self._augmented(rows, 0, progress.changed)
        raw = scorer.train(augmented) if raw is None else raw
        loss, taken = self._optimizer.step(self._loss_of(raw, augmented, scale))
        self._rows += len(rows)
        if not taken:
            if before := len(rows) - progress.step_failed():
                log.warning(
                    "a step's gradient was not finite: rows of earlier batches are not learned",
                    extra={"rows": before},
                )
            return
        scorer.target_scale, scorer.scaler = scale, scorer.scaler.learned(rows.numeric)
        progress.step_taken(loss)
        progress.steps += self._replay_steps(scales, size, progress.changed)

    def _replay_steps(self, scales: Sequence[Scale], size: int, changed: Counter[str]) -> int:
        """Take steps on replayed rows; return how many."""
        steps = self._sizes.replay_steps(self._rows, size)
        taken = 0
        for step, rows in enumerate(self._rehearsal.sample(steps, size, scales), 1):
            augmented = self._augmented(rows, step, changed)
            raw = self._scorer.train(augmented)
            loss = self._loss_of(raw, augmented, self._scorer.target_scale)
            taken += self._optimizer.step(loss)[1]
        return taken

    def _seed_rngs(self) -> None:
        # The state of chance is one number, the same on every device.
        seed = (self.settings.seed * 1_000_003 + self._steps) % 2**32
        self._rehearsal.seed(seed)
        self._scorer.seed(seed ^ 0x5EED)

    def _loss_of(self, raw: torch.Tensor, rows: Tensors, scale: TargetScale) -> torch.Tensor:
        target = target_of(rows)
        return self._loss(
            raw, scale.forward(target) if self.features.task == "regression" else target
        )

    def _augmented(self, rows: Tensors, step: int, changed: Counter[str]) -> Tensors:
        """Return the augmented rows; count the rows that each augment changed."""
        if self.augmentation is None:
            return rows
        augmented, counts = self.augmentation(rows, self._steps, step)
        changed.update(counts)
        return augmented

    def _identity(self) -> dict[str, Any]:
        shape, kept = self._scorer.network.shape, self._rehearsal.rows
        return identity(self.settings, self.training, self.features, shape, kept)


def _threads(training: TabularTraining, features: Features, scorer: Scorer) -> int:
    """Return the number of torch's threads where none is asked for."""
    dense = sum(map(math.prod, scorer.network.shape.dense().values()))  # a table is little work
    small = dense * training.step_rows < SHARED_WORK
    asked = "OMP_NUM_THREADS" in os.environ
    return 1 if small and not asked and not features.images else OWN_THREADS


def _device(name: str) -> str:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "[train] device = 'cuda' expects a CUDA device, and torch finds none here: "
            "use 'cpu' or 'auto'."
        )
    return ("cuda" if available else "cpu") if name == "auto" else name


__all__ = ["TabularLearner"]
