"""The tabular learner: a network that predicts each row before it learns from it."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from engine import types
from engine.types import (
    Batch,
    Features,
    Scale,
    Settings,
    Snapshot,
    Step,
    Tensors,
    UserError,
    nearest,
)
from models.learners.identity import require_same
from models.learners.losses import LossSettings, make_loss
from models.learners.network import Network, Shape, embedding_width
from models.learners.optimizer import Optimizer, OptimizerSettings
from models.challenge.challenger import Renewable, RenewalSettings
from models.learners.replay import AUTOMATIC_BYTES, AUTOMATIC_ROWS, Replay, ReplaySettings
from models.learners.rescale import Rescale
from models.learners.scaler import Scaler
from models.learners.target_transform import TargetScale, Transform
from models.learners.step_buffer import Waiting

if TYPE_CHECKING:
    from models.augment.augmentation import Augmentation
    from models.export.onnx_graph import Graph

log = logging.getLogger("headrace.learner")
SHARED_WORK = 100_000_000
"""Weights of the layers times rows of a step from which on torch's threads share it. Measured on
two cores: at 11 million two threads took 0.92 of one's time, at 39 and 73 million 0.74; beside
other processes 4, 10 and 40 times as long."""
OWN_THREADS = torch.get_num_threads()
"""What torch takes by itself."""
ASIDE = 4
"""How many batches with a loss or gradient that was not finite are kept to look at."""
LARGEST = 1e18
"""What the network says, and what it should say, must be smaller: a square is then still a
float32."""
GROWTH = 64
"""A step has so small a part of the rows seen."""
FADED = 512
"""For how many rows the scales of the model before count with a successor."""


class TabularLearner(Renewable):
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
        aside: the last few batches that were skipped because loss or gradient was not finite.
        augmentation: what to learn from in place of the rows; see its `attach`.

    Raises: UserError for settings that do not fit the task, the features or each other.
    """

    soft_targets = True
    """Learns targets between classes."""

    class Settings(types.Settings):
        """The learner's own keys of ``[model]``.

        Attributes:
            layers: widths of the hidden layers.
            embedding: width of the vectors of categories and ids, one for all or by column; unless
                given, by the number of codes (`models.learners.network.embedding_width`).
            convolutions: widths of the layers that images go through (`models.learners.network.Shape`).
            activation: function after each hidden layer.
            dropout [share]: share of hidden units silenced in a training step.
            sparse_embeddings: only the rows of a table that a batch uses get a gradient: for tables
                of many thousand codes. They get no l1 or l2, and adam becomes SparseAdam.
            skip: a linear path from the inputs to the output beside the layers.
            standardize: scale the numeric features by their mean and deviation so far, but for
                those that a stage has scaled.
            target_transform: what a regression learns in place of its target: none, log1p, sqrt,
                standard (mean and deviation so far; the default), or a warp and then standard:
                ["sqrt", "standard"].
            seed: of first weights, dropout and replay.
        """

        layers: tuple[PositiveInt, ...] = (128, 64)
        embedding: PositiveInt | dict[str, PositiveInt] | None = None
        convolutions: tuple[PositiveInt, ...] = Field((16, 32, 64), min_length=1)
        activation: Literal["relu", "silu", "gelu"] = "relu"
        dropout: float = Field(0.0, ge=0, lt=1)
        sparse_embeddings: bool = False
        skip: bool = False
        standardize: bool = True
        target_transform: Transform | tuple[Transform, ...] = "standard"
        seed: int = Field(0, ge=0)

    class Training(LossSettings, OptimizerSettings, ReplaySettings, RenewalSettings):
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
        self.settings = settings
        self.training = training
        self.features = features
        self.aside: deque[Batch] = deque(maxlen=ASIDE)
        self.augmentation: Augmentation | None = None
        self.device = _device(training.device)
        self._loss = make_loss(training, features, self.device)
        self._scale = _scale(settings, features)
        self._scaler = Scaler.of(_standardized(settings, features), self.device)
        self._shape = _shape(settings, features)
        self._network = self._first()
        torch.set_num_threads(training.threads or self._threads())
        self._average = self._first() if training.ema else None
        self._optimizer = Optimizer(training, self._network, self._average)
        self._rescale = Rescale(features, self.device)
        self._room = AUTOMATIC_BYTES
        self._replay = self._ring()
        self._waiting = Waiting()
        self._chance, self._noise = torch.Generator(), torch.Generator(self.device)
        self._steps = 0
        self._rows = 0
        self._pace = math.inf

    # ------------------------------------------------------------------------------------- deeds

    def learn(self, batch: Batch) -> Step:
        """Score the rows and learn from them, step by step.

        A row whose loss is not finite is refused; so are the rows of a step whose gradient is not.
        With neither dropout nor `ema` nor augmentation, a step whose rows come in one piece is
        scored by its own forward pass.
        """
        tensors = batch.tensors
        assert tensors is not None, "a batch to learn from is collated"
        assert tensors.target is not None, "and has a target"
        if not len(tensors.target):
            return Step(scores=self._none(), loss=float("nan"), steps=0, skipped="empty")
        with self._exactly():
            return self._learned(batch, self._placed(tensors))

    def _learned(self, batch: Batch, rows: Tensors) -> Step:
        lesson = _Lesson(len(rows))
        scores: list[NDArray[np.float64]] = []
        at, n = 0, len(rows)
        while at < n:
            # A new pace may ask for a smaller step than there are rows that wait.
            room = max(1, self._step_rows() - len(self._waiting))
            part = rows.slice(at, min(n, at + room))
            raw = self._said(part)
            scores.append(self._answers(raw.detach()))
            known = self._admit(part, raw, batch.scales, lesson, at)
            at += len(part)
            if len(self._waiting) >= self._step_rows():
                self._close(batch.scales, lesson, known)
        step = lesson.step(np.concatenate(scores))
        if step.refused is not None:
            self.aside.append(batch)
        return step

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Scores by the averaged weights where `ema` is on, without dropout."""
        with torch.inference_mode(), self._exactly():
            return self._answers(self._raw(self._placed(tensors)))

    def bound(self, nbytes: int) -> None:
        """Keep no more bytes of rows to learn again than that, unless `replay_rows` says how many.
        Called once, before anything is learned."""
        self._room = min(nbytes, AUTOMATIC_BYTES)
        self._replay = self._ring()

    def successor(self) -> TabularLearner:
        """Return a fresh learner that keeps the current scales, discounted so that new rows
        dominate. The scales are those of now, and follow the rows that come faster."""
        made = TabularLearner(self.settings, self.training, self.features)
        made.bound(self._room)
        made.augmentation = self.augmentation
        made._scaler, made._scale = self._scaler.faded(FADED), self._scale.faded(FADED)
        return made

    def steps_per_row(self, rows: int) -> float:
        """Steps on new and on kept rows; see `Renewable.steps_per_row`."""
        return (1 + self._rehearsals(rows)) / self._share(rows)

    def pace(self, steps_per_row: float) -> None:
        """Take larger steps where that is fewer than its own; see `Renewable.pace`."""
        self._pace = steps_per_row

    def state_dict(self) -> dict[str, Snapshot]:
        """Weights, average, optimizer, replay, rows that wait for a step, statistics of features
        and target, and the numbers of steps and rows (steps are the state of all chance). A
        copy."""
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
        require_same(state["shape"], self._identity())
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

    def build(self, graph: Graph, numeric: str, categories: str) -> str:
        """Write what `predict` does into an ONNX graph.

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
        raw = self._serving.build(graph, self._scaler.build(graph, numeric), categories)
        if self.features.task == "multiclass":
            return graph.op("Softmax", raw, axis=1)
        raw = graph.op("Squeeze", raw, graph.constant(np.array([1], np.int64), "axis"))
        if self.features.task == "binary":
            return graph.op("Sigmoid", raw)
        return self._scale.build(graph, raw)

    # ------------------------------------------------------------------------------------- sizes

    @property
    def parameters_count(self) -> int:
        """Number of weights."""
        return self._network.count

    @property
    def replay_bytes(self) -> int:
        """Return the bytes of a full replay buffer in host memory."""
        replay = self._replay
        return 0 if replay is None or replay.device != "cpu" else replay.full

    def memory(self) -> dict[str, int]:
        """Component -> bytes."""
        return {
            "weights": 4 * self._network.count,
            "optimizer": self._optimizer.nbytes,
            "replay": self._waiting.nbytes + (0 if self._replay is None else self._replay.nbytes),
        }

    # ------------------------------------------------------------------------------------ inside

    @property
    def _serving(self) -> Network:
        return self._network if self._average is None else self._average

    @property
    def _apart(self) -> bool:
        """Whether scores need a forward pass of their own."""
        augmented = self.augmentation is not None
        return self._average is not None or self.settings.dropout > 0 or augmented

    def _first(self) -> Network:
        return Network(self._shape, seed=self.settings.seed, device=self.device)

    def _threads(self) -> int:
        dense = sum(map(math.prod, self._shape.dense().values()))  # a row reads little of a table
        small = dense * self.training.step_rows < SHARED_WORK
        asked = "OMP_NUM_THREADS" in os.environ
        return 1 if small and not asked and not self.features.images else OWN_THREADS

    def _ring(self) -> Replay | None:
        """The kept rows; as many as there is room for, where nothing is said."""
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
        room = max(1, self._room // Replay.row_bytes(*widths, exact=exact))
        return Replay(
            training,
            rows=asked or min(AUTOMATIC_ROWS, room),
            numeric=widths[0],
            categories=widths[1],
            target=torch.float32 if features.task == "regression" else torch.int64,
            exact=exact,
            device=self.device,
        )

    def _step_rows(self) -> int:
        """Rows of the next step."""
        own = self._share(self._rows)
        if self._pace == math.inf:
            return own
        least = math.ceil((1 + self._rehearsals(self._rows)) / self._pace)
        return max(own, min(self.training.step_rows, 1 << (least - 1).bit_length()))

    def _share(self, rows: int) -> int:
        """Rows of a step of a model that has learned so many."""
        share = max(1, rows // GROWTH)
        return min(self.training.step_rows, 1 << (share.bit_length() - 1))

    def _rehearsals(self, rows: int) -> int:
        """Steps on kept rows after one of a model that has learned so many."""
        return 0 if self._replay is None else self.training.rehearsals(rows)

    def _said(self, part: Tensors) -> torch.Tensor:
        """Raw scores of rows that come; with a gradient where they can be a step by themselves."""
        if self._apart or len(self._waiting) or len(part) < self._step_rows():
            with torch.inference_mode():
                return self._raw(part)
        return self._train(part)

    def _admit(
        self,
        part: Tensors,
        raw: torch.Tensor,
        scales: Sequence[Scale],
        lesson: _Lesson,
        at: int,
    ) -> torch.Tensor | None:
        """Let rows wait for their step, and keep them for later ones, but for those whose loss is
        not finite; their raw scores, where those are the step's."""
        bad = self._bad(part, raw.detach())
        if bad is not None:
            lesson.refused[at : at + len(part)] = bad
            good = np.flatnonzero(~bad)
            if not len(good):
                return None
            kept = torch.from_numpy(good).to(raw.device)
            part, raw = part.take(good), raw[kept]
        self._waiting.add(part)
        lesson.waits(at, len(part) if bad is None else good)
        if self._replay is not None:
            whole = self._rescale.back(part.numeric, scales)
            self._replay.add((whole, part.categories, _target(part)))
        return raw if raw.requires_grad and len(self._waiting) == len(part) else None

    def _bad(self, part: Tensors, raw: torch.Tensor) -> NDArray[np.bool_] | None:
        """Return a mask of rows with a non-finite loss; None if all are finite."""
        large = np.abs(raw.cpu().numpy())
        large = large if large.ndim == 1 else large.max(1)
        if self.features.task == "regression":
            goal = self._goal(_target(part), self._scale)
            large = np.maximum(large, np.abs(goal.cpu().numpy()))
        good: NDArray[np.bool_] = large < LARGEST  # nan is not
        return None if good.all() else ~good

    def _close(
        self, scales: Sequence[Scale], lesson: _Lesson, raw: torch.Tensor | None = None
    ) -> None:
        """Take a step on the rows that wait, and some on kept ones.

        Args:
            raw: what the network says of them, where that is known.
        """
        if not len(self._waiting):
            return
        rows, size = self._waiting.take(), self._step_rows()
        self._steps += 1
        self._seed_draws()
        scale = self._scale.learned(_target(rows))
        taught = self._augmented(rows, 0, lesson.changed)
        raw = self._train(taught) if raw is None else raw
        loss, taken = self._optimizer.step(self._loss(raw, self._goal(_target(taught), scale)))
        self._rows += len(rows)
        if not taken:
            if before := len(rows) - lesson.failed():
                log.warning(
                    "a step's gradient was not finite: rows of earlier batches are not learned",
                    extra={"rows": before},
                )
            return
        self._scale, self._scaler = scale, self._scaler.learned(rows.numeric)
        lesson.took(loss)
        lesson.steps += self._rehearse(scales, size, lesson.changed)

    def _rehearse(self, scales: Sequence[Scale], size: int, changed: Counter[str]) -> int:
        """Step on kept rows; how many steps were taken."""
        steps = round(min(self._rehearsals(self._rows), self._pace * size - 1))
        if self._replay is None or steps < 1:
            return 0
        taken = 0
        drawn = self._replay.sample(steps, self._chance, size)
        for step, kept in enumerate(drawn, 1):
            numeric = self._rescale.forth(kept[0], scales)
            again = Tensors(numeric=numeric, categories=kept[1], target=kept[2])
            taught = self._augmented(again, step, changed)
            loss = self._loss(self._train(taught), self._goal(_target(taught), self._scale))
            taken += self._optimizer.step(loss)[1]
        return taken

    def _seed_draws(self) -> None:
        # The state of chance is one number, the same on every device.
        seed = (self.settings.seed * 1_000_003 + self._steps) % 2**32
        self._chance.manual_seed(seed)
        if self.settings.dropout:
            self._noise.manual_seed(seed ^ 0x5EED)

    def _put(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _placed(self, tensors: Tensors) -> Tensors:
        """On the device: copied there before, or now."""
        if tensors.placed is not None:
            return tensors.placed.wait()
        return tensors if self.device == "cpu" else tensors.map(self._put)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.training.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def _exactly(self) -> contextlib.AbstractContextManager[Any]:
        """On a GPU: convolutions that come out the same every time, and in float32's own digits."""
        if self.device == "cpu" or not self.features.images:
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )

    def _train(self, rows: Tensors) -> torch.Tensor:
        chance: dict[str, Any] = {"dropout": self.settings.dropout, "noise": self._noise}
        return self._forward(self._network, rows, **chance)

    def _raw(self, rows: Tensors) -> torch.Tensor:
        return self._forward(self._serving, rows)

    def _forward(self, network: Network, rows: Tensors, **chance: Any) -> torch.Tensor:
        numeric = self._scaler.forward(rows.numeric)
        with self._autocast():
            raw = network(numeric, rows.categories, **_nested(rows), **chance)
        return raw.float()

    def _goal(self, target: torch.Tensor, scale: TargetScale) -> torch.Tensor:
        return scale.forward(target) if self.features.task == "regression" else target

    def _augmented(self, rows: Tensors, step: int, changed: Counter[str]) -> Tensors:
        """What to learn from in place of these rows; counts the rows that each augment changed."""
        if self.augmentation is None:
            return rows
        made, counts = self.augmentation(rows, self._steps, step)
        changed.update(counts)
        return made

    def _answers(self, raw: torch.Tensor) -> NDArray[np.float64]:
        raw = raw.double()
        if self.features.task == "regression":
            scores = self._scale.inverse(raw)
        else:
            scores = raw.sigmoid() if raw.ndim == 1 else raw.softmax(1)
        answers: NDArray[np.float64] = scores.cpu().numpy()
        return answers

    def _none(self) -> NDArray[np.float64]:
        width = self.features.outputs
        return np.empty((0,) if width == 1 else (0, width))

    def _identity(self) -> dict[str, Any]:
        """What a saved state must have in common with this learner, by the key to change."""
        settings, training, features = self.settings, self.training, self.features
        own: dict[str, Any] = {}
        if features.nested:
            lists = {**features.ragged, **features.sparse}
            own["[model] images"] = [[name, *shape] for name, shape in features.images.items()]
            own["[model] ragged"] = [list(pair) for pair in features.ragged.items()]
            own["[model] sparse"] = [list(pair) for pair in features.sparse.items()]
            own["[model] convolutions"] = list(settings.convolutions)
            own["[model] bags"] = [list(pair) for pair in self._network.shape.bags] if lists else []
        return {
            **own,
            "[model] kind": "tabular",
            "[model] task": features.task,
            "[model] numeric": list(features.numeric),
            "[model] categories": [list(pair) for pair in features.categories.items()],
            "[model] classes": list(features.classes),
            "[model] layers": list(settings.layers),
            "[model] embedding": list(self._network.shape.embedding),
            "[model] activation": settings.activation,
            "[model] skip": settings.skip,
            "[model] sparse_embeddings": settings.sparse_embeddings,
            "[model] standardize": settings.standardize,
            "[model] target_transform": list(_steps(settings, features)),
            "[train] optimizer": training.optimizer,
            "[train] momentum": training.momentum,
            "[train] ema": training.ema > 0,
            "[train] replay_rows": 0 if self._replay is None else self._replay.rows,
        }


class _Lesson:
    """Accumulates the scores and outcomes of one batch over its optimizer steps.

    Attributes:
        refused: rows that nothing was learned from, bool, shape (n,).
        steps: taken.
        changed: augment -> rows that it changed.
    """

    def __init__(self, rows: int) -> None:
        self.refused = np.zeros(rows, np.bool_)
        self.steps = 0
        self.changed: Counter[str] = Counter()
        self._losses: list[float] = []
        self._waiting: list[NDArray[np.int64]] = []

    def waits(self, at: int, rows: int | NDArray[np.int64]) -> None:
        """These rows of the part that begins at row `at` wait for their step, or so many."""
        self._waiting.append(at + np.arange(rows) if isinstance(rows, int) else at + rows)

    def took(self, loss: float) -> None:
        """A step on the rows that wait was taken."""
        self._waiting.clear()
        self._losses.append(loss)
        self.steps += 1

    def failed(self) -> int:
        """The step could not be taken; how many of its rows are of this batch."""
        rows = np.concatenate([*self._waiting, np.empty(0, np.int64)])
        self._waiting.clear()
        self.refused[rows] = True
        return len(rows)

    def step(self, scores: NDArray[np.float64]) -> Step:
        """Return the finished `Step`."""
        refused = self.refused if self.refused.any() else None
        return Step(
            scores=scores,
            loss=sum(self._losses) / len(self._losses) if self._losses else float("nan"),
            steps=self.steps,
            skipped="non_finite" if refused is not None and refused.all() else None,
            refused=refused,
            augmented=self.changed,
        )


def _device(name: str) -> str:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError(
            "[train] device = 'cuda' expects a CUDA device, and torch finds none here: "
            "use 'cpu' or 'auto'."
        )
    return ("cuda" if there else "cpu") if name == "auto" else name


def _target(rows: Tensors) -> torch.Tensor:
    assert rows.target is not None
    return rows.target


def _nested(rows: Tensors) -> dict[str, Any]:
    """The network's inputs that are lists and images, in the order of its shape."""
    bags = [*rows.ragged.values(), *rows.sparse.values()]
    return {"bags": bags, "images": list(rows.images.values())}


def _shape(settings: TabularLearner.Settings, features: Features) -> Shape:
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
    widths = _embedding(settings.embedding, sizes)
    return Shape(
        numeric=len(features.numeric),
        categories=tuple(features.categories.values()),
        embedding=widths[: len(features.categories)],
        layers=settings.layers,
        outputs=features.outputs,
        activation=settings.activation,
        skip=settings.skip,
        sparse=settings.sparse_embeddings and bool(sizes),
        bags=tuple(zip(lists.values(), widths[len(features.categories) :], strict=True)),
        images=tuple(channels for channels, _, _ in features.images.values()),
        convolutions=settings.convolutions if features.images else (),
    )


def _embedding(asked: int | Mapping[str, int] | None, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if isinstance(asked, int):
        return (asked,) * len(sizes)
    asked = asked or {}
    for name in asked:
        if name not in sizes:
            raise UserError(
                f"[model] embedding names '{name}', which is none of the categories or lists."
                f"{nearest(name, sizes)}"
            )
    return tuple(asked.get(name, embedding_width(codes)) for name, codes in sizes.items())


def _standardized(settings: TabularLearner.Settings, features: Features) -> list[bool]:
    """Which numeric features the model scales."""
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
    warps = [step for step in steps if step != "standard"]
    if len(warps) > 1 or len(steps) > 2 or (len(steps) == 2 and steps[1] != "standard"):
        raise UserError(
            "[model] target_transform expects one of none, log1p, sqrt and standard, or a warp and "
            f"then standard, got {list(steps)}."
        )
    return TargetScale(warp=warps[0] if warps else "none", standard="standard" in steps)


__all__ = ["TabularLearner"]
