"""The base of learners that take optimizer steps: a network that predicts each row before it learns
from it."""

from __future__ import annotations

import dataclasses
import logging
import os
from abc import abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import (
    Augmenter,
    Batch,
    Features,
    Snapshot,
    Step,
    Tensors,
    UserError,
)
from models.challenge.challenger import SUCCESSOR_ROWS, Challengeable
from models.learners.identity import require_same_model
from models.learners.labelled import labelled
from models.learners.online.losses import REGRESSION, make_loss
from models.learners.online.scorer import Scorer
from models.learners.online.settings import (
    OnlineSettings,
    OnlineTraining,
    identity,
    lowest_label,
    require_vectors,
)
from models.learners.online.steps.stepper import Stepper
from models.learners.online.trainable import TrainableNetwork
from models.learners.quantiles import only_quantile

N = TypeVar("N", bound=TrainableNetwork)
log = logging.getLogger("headrace.learner")
SHARED_WORK = 100_000_000
"""Weights of the layers times rows of a step above which torch's threads share it. Measured on
two cores: at 11 million two threads took 0.92 of one's time, at 39 and 73 million 0.74; beside
other processes 4, 10 and 40 times as long."""
OWN_THREADS = torch.get_num_threads()
"""torch's default number of threads."""
KEPT_BAD_BATCHES = 4
"""The batches with a non-finite loss or gradient that are kept for inspection."""


class OnlineLearner(Challengeable, Generic[N]):
    """A learner that trains a network: regression, binary or multiclass.

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

    **A state per key** (`Features.state`) goes from row to row. What is exact: each row is scored
    with the state that all earlier rows of its key have left, each as the model was when it scored
    them; also rows that are not learned (held out, of other parts) pass in their turn. What is
    truncated: the gradient. A step goes back through the rows of a key that are in it, and takes
    the state that they begin with as a given number. Kept rows are learned again one by one, with
    the state they had then. States are those of scoring: without dropout, and of the average with
    `ema_decay`.

    Args:
        settings: ``[model]``.
        training: ``[train]``.
        features: what it reads.

    Attributes:
        kind: its name in a pipeline file.
        replays_nested: its replay also keeps images, padded lists and arrays.
        bad_batches: the last few batches that were skipped because loss or gradient was not finite.

    Raises: UserError for settings that do not fit the task, the features or each other.
    """

    soft_targets = True
    learns_by_batch = False
    sets_threads = True
    grows = "asked"
    predicts_several = True
    kind: ClassVar[str]
    replays_nested: ClassVar[bool] = False
    settings: OnlineSettings
    training: OnlineTraining

    def __init__(
        self, settings: OnlineSettings, training: OnlineTraining, features: Features
    ) -> None:
        super().__init__(settings, training, features)
        self.bad_batches: deque[Batch] = deque(maxlen=KEPT_BAD_BATCHES)
        self.device = _device(training.device)
        loss = make_loss(training, features, self.device)
        require_vectors(settings, training, features)
        self._scorer = Scorer(
            self.make_network(),
            self.make_network() if training.ema_decay else None,
            settings,
            training,
            features,
            device=self.device,
        )
        torch.set_num_threads(_threads(training, self.row_work))
        self._stepper = Stepper(
            settings,
            training,
            features,
            loss=loss,
            scorer=self._scorer,
            device=self.device,
            nested=self.replays_nested,
        )
        if features.state is not None and training.accumulate > 1:
            raise UserError(
                "[train] accumulate passes parts of a step one after the other, and with "
                "[model.state] its rows follow one another: take one of them out."
            )
        if features.max_classes:
            if features.state is not None:
                raise UserError(
                    "[model.state] needs to know the classes: name them in [model] classes, or "
                    "take it out."
                )
            self.set_classes(features.classes, [-1] * len(features.classes))

    @classmethod
    def lowest_label(cls, settings: OnlineSettings, training: OnlineTraining) -> float:
        return lowest_label(settings, training)

    @classmethod
    def deviance_power(cls, training: OnlineTraining) -> float | None:
        return training.deviance_power

    @classmethod
    def quantiles(cls, training: OnlineTraining) -> tuple[float, ...]:
        return training.quantiles

    @classmethod
    def only_regression(cls, training: OnlineTraining) -> bool:
        return training.loss in REGRESSION

    @classmethod
    def quantile(cls, training: OnlineTraining) -> float | None:
        return only_quantile(training.loss, training)

    @classmethod
    def vector_width(cls, settings: OnlineSettings, training: OnlineTraining) -> int:
        return settings.vector_width if training.loss == "contrastive" else 0

    @property
    def scores_in_turn(self) -> bool:
        return True

    @abstractmethod
    def make_network(self) -> N:
        """Return the network with its first weights, the same at every call."""

    @abstractmethod
    def own_identity(self) -> dict[str, Any]:
        """Return what a saved state must share with this learner beside what all learners ask
        for, by the key to change."""

    @property
    @abstractmethod
    def row_work(self) -> float:
        """The multiplications per row, which decide whether torch's threads share a step."""

    # -------------------------------------------------------------------------------------- actions

    def learn(self, batch: Batch) -> Step:
        """Score the rows and learn from them, step by step.

        A row whose loss is not finite is refused; so are the rows of a step whose gradient is not.
        Where the network trains on the scores that it gives (without dropout, for instance), and
        with neither `ema_decay` nor augmentation, a step whose rows come in one piece is scored by
        its own forward pass.
        """
        tensors, target = labelled(batch)
        if not len(tensors):
            return Step.empty(self._scorer.no_scores())
        if self.features.max_classes:
            tensors = self._scorer.by_output(tensors, target)
        rows = self._scorer.on_device(tensors)
        if rows is not tensors:
            # These are asked for on the host: which rows are learned, and the table of states.
            own = {name: getattr(tensors, name) for name in ("keys", "times", "learned")}
            rows = dataclasses.replace(rows, **own)
        with self._scorer.deterministic():
            step = self._stepper.learn(rows)
        if step.not_learned is not None:
            self.bad_batches.append(batch)
        return step

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Return scores with the averaged weights if `ema_decay` is on, without dropout."""
        if not len(tensors):
            return self._scorer.no_scores()
        carry = self._stepper.carry(tensors)
        with self._scorer.deterministic():
            return self._scorer.scores(self._scorer.raw(self._scorer.on_device(tensors), carry))

    def attributions(self, tensors: Tensors) -> dict[str, NDArray[np.float64]]:
        """Return integrated gradients; see `models.learners.online.attribution`. Of several targets
        there are none: each would have its own."""
        if not len(tensors) or self.features.targets:
            return {}
        with self._scorer.deterministic():
            return self._scorer.attributions(self._scorer.on_device(tensors))

    def set_classes(self, classes: Sequence[str], sources: Sequence[int]) -> None:
        """Give new classes an output of the network, whose weights are 0 then; rows of classes that
        have left are not learned again."""
        self.features = dataclasses.replace(self.features, classes=tuple(classes))
        gone = self._scorer.set_classes(self.features, sources)
        if len(gone):
            self._stepper.forget_classes(gone)

    @property
    def augmentation(self) -> Augmenter | None:
        """What it learns from in place of the rows; see `augment_with`."""
        return self._stepper.augmentation

    def augment_with(self, augmentation: Augmenter) -> None:
        self._stepper.augmentation = augmentation

    def limit_memory(self, nbytes: int) -> None:
        """Limit the bytes of the replay, unless `replay_rows` gives its size. Called once,
        before anything is learned."""
        self._stepper.rehearsal.limit_memory(nbytes)

    def successor(self) -> OnlineLearner[N]:
        """Return a fresh learner that keeps the current scales, discounted so that new rows
        dominate."""
        learner = type(self)(self.settings, self.training, self.features)
        learner.limit_memory(self._stepper.rehearsal.limit)
        learner._stepper.augmentation = self.augmentation
        learner._scorer.take_scales(self._scorer, SUCCESSOR_ROWS)
        return learner

    def steps_per_row(self, rows: int) -> float:
        """Return new and replay steps; see `Challengeable.steps_per_row`."""
        return self._stepper.sizes.own_steps_per_row(rows)

    def pace(self, steps_per_row: float) -> None:
        """Take larger steps if that is fewer than its own; see `Challengeable.pace`."""
        self._stepper.sizes.steps_per_row = steps_per_row

    def state_dict(self) -> dict[str, Snapshot]:
        """Return weights, average, optimizer, replay, waiting rows, statistics of features and
        target, and the numbers of steps and rows (steps determine all random numbers). A copy."""
        return {
            "shape": self._identity(),
            **self._scorer.snapshot(),
            **self._stepper.snapshot(),
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError naming the first thing in which the saved model is another."""
        require_same_model(state["shape"], self._identity())
        self._scorer.restore(state)
        self._stepper.restore(state)

    def scoring_state(self) -> dict[str, Snapshot]:
        """Return what `predict` needs, as a plain value."""
        return {
            **self._scorer.snapshot(),
            "weights": self._scorer.scoring_network.weights(),
            "average": None,
        }

    def restore_scoring(self, state: Mapping[str, Snapshot]) -> None:
        """Predict as the learner of a `scoring_state`; a learner without an average."""
        self._scorer.restore(state)

    # ------------------------------------------------------------------------------------- sizes

    @property
    def parameters_count(self) -> int:
        """The number of weights."""
        return self._scorer.network.count

    @property
    def score_rounding(self) -> float:
        """Larger in bfloat16, which has 8 bits; a model file has float32."""
        return 0.05 if self.training.precision == "bfloat16" else super().score_rounding

    @property
    def replay_bytes(self) -> int:
        """Return the bytes of a full replay buffer in host memory."""
        return self._stepper.rehearsal.host_bytes

    def memory(self) -> dict[str, int]:
        """Return component -> bytes."""
        return {"weights": self._scorer.network.nbytes, **self._stepper.memory()}

    # ------------------------------------------------------------------------------------ inside

    def _identity(self) -> dict[str, Any]:
        common = identity(
            self.settings,
            self.training,
            self.features,
            kind=self.kind,
            replay_rows=self._stepper.rehearsal.rows,
        )
        return {**common, **self.own_identity()}


def _device(name: str) -> str:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "[train] device = 'cuda' expects a CUDA device, and torch finds none here: "
            "use 'cpu' or 'auto'."
        )
    return ("cuda" if available else "cpu") if name == "auto" else name


def _threads(training: OnlineTraining, row_work: float) -> int:
    """Return the number of torch's threads that is asked for, or pays."""
    if training.threads:
        return training.threads
    small = row_work * training.step_rows < SHARED_WORK
    return 1 if small and "OMP_NUM_THREADS" not in os.environ else OWN_THREADS


__all__ = ["OnlineLearner"]
