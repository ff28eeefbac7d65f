"""The tabular learner: a network that predicts each row before it learns from it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from engine import types
from engine.types import (
    Augmenter,
    Batch,
    Features,
    GraphBuilder,
    Scale,
    Settings,
    Snapshot,
    Step,
    Tensors,
    UserError,
    nearest,
)
from models.challenge.challenger import Challengeable, ChallengeSettings
from models.learners.identity import require_same_model
from models.learners.losses import LossSettings, make_loss
from models.learners.network import Network, NetworkShape, embedding_width
from models.learners.optimizer import Optimizer, OptimizerSettings
from models.learners.replay import DEFAULT_REPLAY_BYTES, DEFAULT_REPLAY_ROWS, Replay, ReplaySettings
from models.learners.rescale import Rescale
from models.learners.scaler import Scaler
from models.learners.steps import StepBuffer
from models.learners.target_transform import TargetScale, TargetTransform

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
ROWS_PER_STEP_ROW = 64
"""A step has this part of the rows seen."""
SUCCESSOR_ROWS = 512
"""The rows that the previous scales count for in a successor."""


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

    class Settings(types.Settings):
        """The learner's own keys of ``[model]``.

        Attributes:
            layers: widths of the hidden layers.
            embedding_dim: width of the vectors of categories and ids, one for all or by column;
                unless given, by the number of codes (`models.learners.network.embedding_width`).
            conv_channels: widths of the layers that images go through
                (`models.learners.network.NetworkShape`).
            activation: function after each hidden layer.
            dropout [share]: share of hidden units silenced in a training step.
            sparse_embeddings: only the rows of a table that a batch uses get a gradient: for tables
                of many thousand codes. They get no l1 or l2, and adam becomes SparseAdam.
            skip_connection: a linear path from the inputs to the output beside the layers.
            standardize: scale the numeric features by their mean and deviation so far, but for
                those that a stage has scaled.
            target_transform: what a regression learns in place of its target: none, log1p, sqrt,
                standard (mean and deviation so far; the default), or a warp and then standard:
                ["sqrt", "standard"].
            seed: of first weights, dropout and replay.
        """

        layers: tuple[PositiveInt, ...] = (128, 64)
        embedding_dim: PositiveInt | dict[str, PositiveInt] | None = None
        conv_channels: tuple[PositiveInt, ...] = Field((16, 32, 64), min_length=1)
        activation: Literal["relu", "silu", "gelu"] = "relu"
        dropout: float = Field(0.0, ge=0, lt=1)
        sparse_embeddings: bool = False
        skip_connection: bool = False
        standardize: bool = True
        target_transform: TargetTransform | tuple[TargetTransform, ...] = "standard"
        seed: int = Field(0, ge=0)

    class Training(LossSettings, OptimizerSettings, ReplaySettings, ChallengeSettings):
        """``[train]``: loss, optimizer, replay and change, the steps, and where the arithmetic is
        done.

        Attributes:
            step_rows [rows]: most rows of a step.
            device: ``auto`` is cuda where there is one.
            precision: bfloat16 computes the layers in it (autocast); weights stay float32.
            threads: of torch on the CPU, for the whole process. Unless given, 1 where a step is
                less than 100 million weights of layers times rows (`step_rows`) and reads no
                images, else torch's own number (``OMP_NUM_THREADS``, or the cores): threads that
                share a small step gain a quarter of its time on idle cores, and lose many times as
                much on busy ones. Another number may round weights otherwise.
        """

        step_rows: int = Field(1_024, ge=1)
        device: Literal["cpu", "cuda", "auto"] = "cpu"
        precision: Literal["float32", "bfloat16"] = "float32"
        threads: int | None = Field(None, ge=1, le=256)

    def __init__(self, settings: Settings, training: Training, features: Features) -> None:
        self.settings: TabularLearner.Settings = settings
        self.training: TabularLearner.Training = training
        self.features = features
        self.bad_batches: deque[Batch] = deque(maxlen=KEPT_BAD_BATCHES)
        self.augmentation: Augmenter | None = None
        self.device = _device(training.device)
        self._loss = make_loss(training, features, self.device)
        self._scale = _scale(settings, features)
        self._scaler = Scaler.of(_standardized(settings, features), self.device)
        self._shape = _shape(settings, features)
        self._network = self._make_network()
        torch.set_num_threads(training.threads or self._threads())
        self._average = self._make_network() if training.ema_decay else None
        self._optimizer = Optimizer(training, self._network, self._average)
        self._rescale = Rescale(features, self.device)
        self._replay_limit = DEFAULT_REPLAY_BYTES
        self._replay = self._make_replay()
        self._waiting = StepBuffer()
        self._rng, self._dropout_rng = torch.Generator(), torch.Generator(self.device)
        self._steps = 0
        self._rows = 0
        self._pace = math.inf

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
            return Step(scores=self._no_scores(), loss=float("nan"), steps=0, skipped="empty")
        with self._deterministic():
            return self._learned(batch, self._on_device(tensors))

    def _learned(self, batch: Batch, rows: Tensors) -> Step:
        progress = _BatchProgress(len(rows))
        scores: list[NDArray[np.float64]] = []
        at, n = 0, len(rows)
        while at < n:
            # A new pace may ask for a smaller step than there are rows that wait.
            room = max(1, self._step_rows() - len(self._waiting))
            part = rows.slice(at, min(n, at + room))
            raw = self._score(part)
            scores.append(self._scores(raw.detach()))
            known = self._enqueue(part, raw, batch.scales, progress, at)
            at += len(part)
            if len(self._waiting) >= self._step_rows():
                self._take_step(batch.scales, progress, known)
        step = progress.step(np.concatenate(scores))
        if step.not_learned is not None:
            self.bad_batches.append(batch)
        return step

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Return scores with the averaged weights if `ema_decay` is on, without dropout."""
        with torch.inference_mode(), self._deterministic():
            return self._scores(self._raw(self._on_device(tensors)))

    def augment_with(self, augmentation: Augmenter) -> None:
        self.augmentation = augmentation

    def limit_memory(self, nbytes: int) -> None:
        """Limit the bytes of the replay, unless `replay_rows` gives its size. Called once,
        before anything is learned."""
        self._replay_limit = min(nbytes, DEFAULT_REPLAY_BYTES)
        self._replay = self._make_replay()

    def successor(self) -> TabularLearner:
        """Return a fresh learner that keeps the current scales, discounted so that new rows
        dominate."""
        learner = TabularLearner(self.settings, self.training, self.features)
        learner.limit_memory(self._replay_limit)
        learner.augmentation = self.augmentation
        learner._scaler, learner._scale = (
            self._scaler.discounted(SUCCESSOR_ROWS),
            self._scale.discounted(SUCCESSOR_ROWS),
        )
        return learner

    def steps_per_row(self, rows: int) -> float:
        """Return new and replay steps; see `Challengeable.steps_per_row`."""
        return (1 + self._replay_steps_after(rows)) / self._rows_per_step(rows)

    def pace(self, steps_per_row: float) -> None:
        """Take larger steps if that is fewer than its own; see `Challengeable.pace`."""
        self._pace = steps_per_row

    def state_dict(self) -> dict[str, Snapshot]:
        """Return weights, average, optimizer, replay, waiting rows, statistics of features and
        target, and the numbers of steps and rows (steps determine all random numbers). A copy."""
        return {
            "shape": self._identity(),
            "weights": self._network.weights(),
            "average": None if self._average is None else self._average.weights(),
            "optimizer": self._optimizer.state_dict(),
            "replay": None if self._replay is None else self._replay.state_dict(),
            "waiting": self._waiting.snapshot(),
            "scaler": self._scaler.snapshot(),
            "target": self._scale.snapshot(),
            "steps": self._steps,
            "rows": self._rows,
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError naming the first thing in which the saved model is another."""
        require_same_model(state["shape"], self._identity())
        self._network.load(state["weights"])
        if self._average is not None:
            self._average.load(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._replay is not None:
            self._replay.load_state_dict(state["replay"])
        self._waiting.restore(state["waiting"], self.device)
        self._scaler = self._scaler.restored(state["scaler"])
        self._scale = self._scale.restored(state["target"])
        self._steps, self._rows = state["steps"], state["rows"]

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the computation of `predict` into an ONNX graph.

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.

        Returns:
            The name of the scores, float32, (n,) or (n, classes).

        Raises: UserError where it reads images or lists.
        """
        if self.features.nested:
            raise UserError(
                f"[model] reads images or lists ('{self.features.nested[0]}'), which cannot be "
                "exported: take [export] out, and score with the pipeline that trains."
            )
        raw = self._scoring_network.build(graph, self._scaler.build(graph, numeric), categories)
        if self.features.task == "multiclass":
            return graph.op("Softmax", raw, axis=1)
        raw = graph.op("Squeeze", raw, graph.constant(np.array([1], np.int64), "axis"))
        if self.features.task == "binary":
            return graph.op("Sigmoid", raw)
        return self._scale.build(graph, raw)

    # ------------------------------------------------------------------------------------- sizes

    @property
    def parameters_count(self) -> int:
        """The number of weights."""
        return self._network.count

    @property
    def replay_bytes(self) -> int:
        """Return the bytes of a full replay buffer in host memory."""
        replay = self._replay
        return 0 if replay is None or replay.device != "cpu" else replay.capacity_bytes

    def memory(self) -> dict[str, int]:
        """Return component -> bytes."""
        return {
            "weights": 4 * self._network.count,
            "optimizer": self._optimizer.nbytes,
            "replay": self._waiting.nbytes + (0 if self._replay is None else self._replay.nbytes),
        }

    # ------------------------------------------------------------------------------------ inside

    @property
    def _scoring_network(self) -> Network:
        return self._network if self._average is None else self._average

    @property
    def _needs_scoring_pass(self) -> bool:
        """Return whether scores need a separate forward pass."""
        augmented = self.augmentation is not None
        return self._average is not None or self.settings.dropout > 0 or augmented

    def _make_network(self) -> Network:
        return Network(self._shape, seed=self.settings.seed, device=self.device)

    def _threads(self) -> int:
        dense = sum(map(math.prod, self._shape.dense().values()))  # a row reads little of a table
        small = dense * self.training.step_rows < SHARED_WORK
        asked = "OMP_NUM_THREADS" in os.environ
        return 1 if small and not asked and not self.features.images else OWN_THREADS

    def _make_replay(self) -> Replay | None:
        """Return the replay; by default as large as fits."""
        features, training = self.features, self.training
        asked, exact = training.replay_rows, bool(features.scaled)
        if asked and features.nested:
            raise UserError(
                "[train] replay_rows keeps numbers and categories, and [model] reads images or "
                f"lists ('{features.nested[0]}'): take it out."
            )
        if asked == 0 or features.nested:
            return None
        widths = len(features.numeric), len(features.categories)
        room = max(1, self._replay_limit // Replay.row_bytes(*widths, exact=exact))
        return Replay(
            training,
            rows=asked or min(DEFAULT_REPLAY_ROWS, room),
            numeric=widths[0],
            categories=widths[1],
            target=torch.float32 if features.task == "regression" else torch.int64,
            exact=exact,
            device=self.device,
        )

    def _step_rows(self) -> int:
        """Return the rows of the next step."""
        own = self._rows_per_step(self._rows)
        if self._pace == math.inf:
            return own
        least = math.ceil((1 + self._replay_steps_after(self._rows)) / self._pace)
        return max(own, min(self.training.step_rows, 1 << (least - 1).bit_length()))

    def _rows_per_step(self, rows: int) -> int:
        """Return the rows of a step of a model that has learned so many."""
        share = max(1, rows // ROWS_PER_STEP_ROW)
        return min(self.training.step_rows, 1 << (share.bit_length() - 1))

    def _replay_steps_after(self, rows: int) -> int:
        """Return the replay steps after a step of a model that has learned so many."""
        return 0 if self._replay is None else self.training.replay_steps_after(rows)

    def _score(self, part: Tensors) -> torch.Tensor:
        """Return raw scores of new rows; with a gradient if they can be a step by themselves."""
        if self._needs_scoring_pass or len(self._waiting) or len(part) < self._step_rows():
            with torch.inference_mode():
                return self._raw(part)
        return self._train(part)

    def _enqueue(
        self,
        part: Tensors,
        raw: torch.Tensor,
        scales: Sequence[Scale],
        progress: _BatchProgress,
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
        if self._replay is not None:
            whole = self._rescale.unscale(part.numeric, scales)
            self._replay.add((whole, part.categories, _target(part)))
        return raw if raw.requires_grad and len(self._waiting) == len(part) else None

    def _bad(self, part: Tensors, raw: torch.Tensor) -> NDArray[np.bool_] | None:
        """Return a mask of rows with a non-finite loss; None if all are finite."""
        large = np.abs(raw.cpu().numpy())
        large = large if large.ndim == 1 else large.max(1)
        if self.features.task == "regression":
            goal = self._scaled_target(_target(part), self._scale)
            large = np.maximum(large, np.abs(goal.cpu().numpy()))
        good: NDArray[np.bool_] = large < MAX_SCORE  # nan is not
        return None if good.all() else ~good

    def _take_step(
        self, scales: Sequence[Scale], progress: _BatchProgress, raw: torch.Tensor | None = None
    ) -> None:
        """Take a step on the waiting rows, and some on replayed ones.

        Args:
            raw: what the network says of them, where that is known.
        """
        if not len(self._waiting):
            return
        rows, size = self._waiting.take(), self._step_rows()
        self._steps += 1
        self._seed_rngs()
        scale = self._scale.learned(_target(rows))
        augmented = self._augmented(rows, 0, progress.changed)
        raw = self._train(augmented) if raw is None else raw
        loss, taken = self._optimizer.step(
            self._loss(raw, self._scaled_target(_target(augmented), scale))
        )
        self._rows += len(rows)
        if not taken:
            if before := len(rows) - progress.step_failed():
                log.warning(
                    "a step's gradient was not finite: rows of earlier batches are not learned",
                    extra={"rows": before},
                )
            return
        self._scale, self._scaler = scale, self._scaler.learned(rows.numeric)
        progress.step_taken(loss)
        progress.steps += self._replay_steps(scales, size, progress.changed)

    def _replay_steps(self, scales: Sequence[Scale], size: int, changed: Counter[str]) -> int:
        """Take steps on replayed rows; return how many."""
        steps = round(min(self._replay_steps_after(self._rows), self._pace * size - 1))
        if self._replay is None or steps < 1:
            return 0
        taken = 0
        drawn = self._replay.sample(steps, self._rng, size)
        for step, kept in enumerate(drawn, 1):
            numeric = self._rescale.rescale(kept[0], scales)
            again = Tensors(numeric=numeric, categories=kept[1], target=kept[2])
            augmented = self._augmented(again, step, changed)
            loss = self._loss(
                self._train(augmented), self._scaled_target(_target(augmented), self._scale)
            )
            taken += self._optimizer.step(loss)[1]
        return taken

    def _seed_rngs(self) -> None:
        # The state of chance is one number, the same on every device.
        seed = (self.settings.seed * 1_000_003 + self._steps) % 2**32
        self._rng.manual_seed(seed)
        if self.settings.dropout:
            self._dropout_rng.manual_seed(seed ^ 0x5EED)

    def _to_device(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _on_device(self, tensors: Tensors) -> Tensors:
        """Return tensors on the device, copied before or now."""
        if tensors.on_device is not None:
            return tensors.on_device.wait()
        return tensors if self.device == "cpu" else tensors.map(self._to_device)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.training.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def _deterministic(self) -> contextlib.AbstractContextManager[Any]:
        """Make GPU convolutions deterministic, in full float32."""
        if self.device == "cpu" or not self.features.images:
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )

    def _train(self, rows: Tensors) -> torch.Tensor:
        rng_options: dict[str, Any] = {"dropout": self.settings.dropout, "rng": self._dropout_rng}
        return self._forward(self._network, rows, **rng_options)

    def _raw(self, rows: Tensors) -> torch.Tensor:
        return self._forward(self._scoring_network, rows)

    def _forward(self, network: Network, rows: Tensors, **rng_options: Any) -> torch.Tensor:
        numeric = self._scaler.forward(rows.numeric)
        with self._autocast():
            raw = network(numeric, rows.categories, **_nested(rows), **rng_options)
        return raw.float()

    def _scaled_target(self, target: torch.Tensor, scale: TargetScale) -> torch.Tensor:
        return scale.forward(target) if self.features.task == "regression" else target

    def _augmented(self, rows: Tensors, step: int, changed: Counter[str]) -> Tensors:
        """Return the augmented rows; count the rows that each augment changed."""
        if self.augmentation is None:
            return rows
        augmented, counts = self.augmentation(rows, self._steps, step)
        changed.update(counts)
        return augmented

    def _scores(self, raw: torch.Tensor) -> NDArray[np.float64]:
        raw = raw.double()
        if self.features.task == "regression":
            scores = self._scale.inverse(raw)
        else:
            scores = raw.sigmoid() if raw.ndim == 1 else raw.softmax(1)
        values: NDArray[np.float64] = scores.cpu().numpy()
        return values

    def _no_scores(self) -> NDArray[np.float64]:
        width = self.features.outputs
        return np.empty((0,) if width == 1 else (0, width))

    def _identity(self) -> dict[str, Any]:
        """Return what a saved state must share with this learner, by the key to change."""
        settings, training, features = self.settings, self.training, self.features
        own: dict[str, Any] = {}
        if features.nested:
            lists = {**features.ragged, **features.sparse}
            own["[model] images"] = [[name, *shape] for name, shape in features.images.items()]
            own["[model] ragged"] = [list(pair) for pair in features.ragged.items()]
            own["[model] sparse"] = [list(pair) for pair in features.sparse.items()]
            own["[model] conv_channels"] = list(settings.conv_channels)
            own["[model] bags"] = [list(pair) for pair in self._network.shape.bags] if lists else []
        return {
            **own,
            "[model] kind": "tabular",
            "[model] task": features.task,
            "[model] numeric": list(features.numeric),
            "[model] categories": [list(pair) for pair in features.categories.items()],
            "[model] classes": list(features.classes),
            "[model] layers": list(settings.layers),
            "[model] embedding_dim": list(self._network.shape.embedding_dim),
            "[model] activation": settings.activation,
            "[model] skip_connection": settings.skip_connection,
            "[model] sparse_embeddings": settings.sparse_embeddings,
            "[model] standardize": settings.standardize,
            "[model] target_transform": list(_steps(settings, features)),
            "[train] optimizer": training.optimizer,
            "[train] momentum": training.momentum,
            "[train] ema_decay": training.ema_decay > 0,
            "[train] replay_rows": 0 if self._replay is None else self._replay.rows,
        }


class _BatchProgress:
    """Accumulates the scores and outcomes of one batch over its optimizer steps.

    Attributes:
        not_learned: rows that nothing was learned from, bool, shape (n,).
        steps: taken.
        changed: augment -> rows that it changed.
    """

    def __init__(self, rows: int) -> None:
        self.not_learned = np.zeros(rows, np.bool_)
        self.steps = 0
        self.changed: Counter[str] = Counter()
        self._losses: list[float] = []
        self._waiting: list[NDArray[np.int64]] = []

    def waits(self, at: int, rows: int | NDArray[np.int64]) -> None:
        """Note that these rows, from row `at` on, wait for their step."""
        self._waiting.append(at + np.arange(rows) if isinstance(rows, int) else at + rows)

    def step_taken(self, loss: float) -> None:
        """Note that a step on the waiting rows was taken."""
        self._waiting.clear()
        self._losses.append(loss)
        self.steps += 1

    def step_failed(self) -> int:
        """Note that the step failed; return how many of its rows are of this batch."""
        rows = np.concatenate([*self._waiting, np.empty(0, np.int64)])
        self._waiting.clear()
        self.not_learned[rows] = True
        return len(rows)

    def step(self, scores: NDArray[np.float64]) -> Step:
        """Return the finished `Step`."""
        not_learned = self.not_learned if self.not_learned.any() else None
        return Step(
            scores=scores,
            loss=sum(self._losses) / len(self._losses) if self._losses else float("nan"),
            steps=self.steps,
            skipped="non_finite" if not_learned is not None and not_learned.all() else None,
            not_learned=not_learned,
            augmented=self.changed,
        )


def _device(name: str) -> str:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise UserError(
            "[train] device = 'cuda' expects a CUDA device, and torch finds none here: "
            "use 'cpu' or 'auto'."
        )
    return ("cuda" if available else "cpu") if name == "auto" else name


def _target(rows: Tensors) -> torch.Tensor:
    assert rows.target is not None
    return rows.target


def _nested(rows: Tensors) -> dict[str, Any]:
    """Return the network's list and image inputs, in the order of its shape."""
    bags = [*rows.ragged.values(), *rows.sparse.values()]
    return {"bags": bags, "images": list(rows.images.values())}


def _shape(settings: TabularLearner.Settings, features: Features) -> NetworkShape:
    if not features.numeric and not features.categories and not features.nested:
        raise UserError("[model] needs features: name columns in 'numeric' or 'categories'.")
    if features.padded:
        raise UserError(
            "[model] padded is for a learner of your own, and kind = 'tabular' takes lists of any "
            f"length: name '{next(iter(features.padded))}' in 'ragged' or 'sparse'."
        )
    lists = {**features.ragged, **features.sparse}
    for name, ids in lists.items():
        if not ids:
            raise UserError(
                f"[model] ragged expects ids in column '{name}', and no stage says how many there "
                "are: make them with a 'tokens' stage."
            )
    sizes = {**features.categories, **lists}
    if len(sizes) < len(features.categories) + len(features.ragged) + len(features.sparse):
        raise UserError("[model] expects a column in one of 'categories', 'ragged' and 'sparse'.")
    widths = _embedding(settings.embedding_dim, sizes)
    return NetworkShape(
        numeric=len(features.numeric),
        categories=tuple(features.categories.values()),
        embedding_dim=widths[: len(features.categories)],
        layers=settings.layers,
        outputs=features.outputs,
        activation=settings.activation,
        skip_connection=settings.skip_connection,
        sparse=settings.sparse_embeddings and bool(sizes),
        bags=tuple(zip(lists.values(), widths[len(features.categories) :], strict=True)),
        images=tuple(channels for channels, _, _ in features.images.values()),
        conv_channels=settings.conv_channels if features.images else (),
    )


def _embedding(asked: int | Mapping[str, int] | None, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if isinstance(asked, int):
        return (asked,) * len(sizes)
    asked = asked or {}
    for name in asked:
        if name not in sizes:
            raise UserError(
                f"[model] embedding_dim names '{name}', which is none of the categories or lists."
                f"{nearest(name, sizes)}"
            )
    return tuple(asked.get(name, embedding_width(codes)) for name, codes in sizes.items())


def _standardized(settings: TabularLearner.Settings, features: Features) -> list[bool]:
    """Return which numeric features the model scales."""
    return [settings.standardize and name not in features.scaled for name in features.numeric]


def _steps(settings: TabularLearner.Settings, features: Features) -> tuple[str, ...]:
    asked = settings.target_transform
    if "target_transform" not in settings.model_fields_set and features.task != "regression":
        return ()
    steps = (asked,) if isinstance(asked, str) else asked
    return tuple(step for step in steps if step != "none")


def _scale(settings: TabularLearner.Settings, features: Features) -> TargetScale:
    steps = _steps(settings, features)
    if steps and features.task != "regression":
        raise UserError(
            f"[model] target_transform is for regression, and task is '{features.task}': "
            "take it out."
        )
    transforms = [step for step in steps if step != "standard"]
    if len(transforms) > 1 or len(steps) > 2 or (len(steps) == 2 and steps[1] != "standard"):
        raise UserError(
            "[model] target_transform expects one of none, log1p, sqrt and standard, or a warp and "
            f"then standard, got {list(steps)}."
        )
    return TargetScale(
        transform=transforms[0] if transforms else "none", standard="standard" in steps
    )


__all__ = ["TabularLearner"]
