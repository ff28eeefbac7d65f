"""The tabular learner: a network that predicts each batch before it learns from it."""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from engine import types
from engine.types import Batch, Features, Settings, Snapshot, Step, Tensors, UserError, nearest
from models.identity import require_same
from models.losses import LossSettings, make_loss
from models.network import Network, Shape, embedding_width
from models.optimizer import Optimizer, OptimizerSettings
from models.replay import Replay, ReplaySettings
from models.target import TargetScale, Transform

if TYPE_CHECKING:
    from models.augment.augmentation import Augmentation
    from models.graph import Graph

ASIDE = 4
"""How many batches with a loss or gradient that was not finite are kept to look at."""


class TabularLearner:
    """A feed-forward network with embeddings for categories, bags of embeddings for lists of ids
    (ragged: the mean, sparse: the sum) and convolutions for images; regression, binary or
    multiclass.

    `learn` scores the rows, takes one step on them and `replay_steps` on kept rows; with an
    `augmentation`, each step is on rows augmented anew, while the rows themselves are scored and
    kept. Nothing uses torch's global random state: every draw of a batch comes from generators
    seeded with the learner's seed and the batch's number, so a learner restored from `state_dict`
    goes on to the bit as the first one did.

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
            embedding: width of the vectors of categories and ids, one for all or by column; None
                goes by the number of codes (`models.network.embedding_width`).
            convolutions: widths of the layers that images go through (`models.network.Shape`).
            activation: after each hidden layer.
            dropout: share of hidden units silenced in a training step.
            sparse_embeddings: only the rows of a table that a batch uses get a gradient: for tables
                of many thousand codes. They get no l1 or l2, and adam becomes SparseAdam.
            skip: a linear path from the inputs to the output beside the layers.
            target_transform: what a regression learns in place of its target: none, log1p, sqrt,
                standard (mean and deviation so far), or a warp and then standard: ["sqrt",
                "standard"].
            seed: of first weights, dropout and replay.
        """

        layers: tuple[PositiveInt, ...] = (128, 64)
        embedding: PositiveInt | dict[str, PositiveInt] | None = None
        convolutions: tuple[PositiveInt, ...] = Field((16, 32, 64), min_length=1)
        activation: Literal["relu", "silu", "gelu"] = "relu"
        dropout: float = Field(0.0, ge=0, lt=1)
        sparse_embeddings: bool = False
        skip: bool = False
        target_transform: Transform | tuple[Transform, ...] = "none"
        seed: int = Field(0, ge=0)

    class Training(LossSettings, OptimizerSettings, ReplaySettings):
        """``[train]``: loss, optimizer and replay, and where the arithmetic is done.

        Attributes:
            device: ``auto`` is cuda where there is one.
            precision: bfloat16 computes the layers in it (autocast); weights stay float32.
            threads: of torch on the CPU, for the whole process; None leaves them.
        """

        device: Literal["cpu", "cuda", "auto"] = "cpu"
        precision: Literal["float32", "bfloat16"] = "float32"
        threads: int | None = Field(None, ge=1)

    def __init__(self, settings: Settings, training: Training, features: Features) -> None:
        self.settings = settings
        self.training = training
        self.features = features
        self.aside: deque[Batch] = deque(maxlen=ASIDE)
        self.augmentation: Augmentation | None = None
        self.device = _device(training.device)
        if training.threads is not None:
            torch.set_num_threads(training.threads)
        self._loss = make_loss(training, features, self.device)
        self._scale = _scale(settings, features)
        self._network = Network(_shape(settings, features), seed=settings.seed, device=self.device)
        self._average = self._following()
        self._optimizer = Optimizer(training, self._network, self._average)
        self._replay = self._ring()
        self._chance, self._noise = torch.Generator(), torch.Generator(self.device)
        self._batches = 0

    # ------------------------------------------------------------------------------------- deeds

    def learn(self, batch: Batch) -> Step:
        """Score the rows, then step on them and on kept ones.

        With neither dropout nor `ema` nor augmentation the scores come from the first step's own
        forward pass; else from one more.
        """
        tensors = batch.tensors
        assert tensors is not None, "a batch to learn from is collated"
        assert tensors.target is not None, "and has a target"
        if not len(tensors.target):
            return Step(scores=self._none(), loss=float("nan"), steps=0, skipped="empty")
        with self._exactly():
            return self._learned(batch, tensors)

    def _learned(self, batch: Batch, tensors: Tensors) -> Step:
        assert tensors.target is not None
        self._batches += 1
        self._seed_draws()
        rows = self._placed(tensors)
        scale = self._scale.learned(tensors.target)
        scored = self.predict(tensors) if self._apart else None
        changed: Counter[str] = Counter()
        lesson = self._lesson(rows, 0, changed)
        raw = self._train(lesson)
        scores = self._answers(raw.detach()) if scored is None else scored
        loss, taken = self._optimizer.step(self._loss(raw, self._goal(_target(lesson), scale)))
        if not taken:
            self.aside.append(batch)
            return Step(scores=scores, loss=float("nan"), steps=0, skipped="non_finite")
        self._scale = scale
        steps = 1 + self._rehearse(rows, changed)
        return Step(scores=scores, loss=loss, steps=steps, augmented=changed)

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        """Scores by the averaged weights where `ema` is on, without dropout."""
        with torch.inference_mode(), self._exactly(), self._autocast():
            rows = self._placed(tensors)
            return self._answers(self._serving(rows.numeric, rows.categories, **_nested(rows)))

    def state_dict(self) -> dict[str, Snapshot]:
        """Weights, average, optimizer, replay, target's statistics and the number of batches (the
        state of all chance). A copy."""
        return {
            "shape": self._identity(),
            "weights": self._network.weights(),
            "average": None if self._average is None else self._average.weights(),
            "optimizer": self._optimizer.state_dict(),
            "replay": None if self._replay is None else self._replay.state_dict(),
            "target": self._scale.snapshot(),
            "batches": self._batches,
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
        self._scale = self._scale.restored(state["target"])
        self._batches = state["batches"]

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
        raw = self._serving.build(graph, numeric, categories)
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
    def nbytes(self) -> int:
        """Bytes of everything it keeps."""
        return sum(self.memory().values())

    @property
    def replay_bytes(self) -> int:
        """Of the replay once it is full, in this process's memory."""
        replay = self._replay
        return 0 if replay is None or replay.device != "cpu" else replay.full

    def memory(self) -> dict[str, int]:
        """Component -> bytes."""
        return {
            "weights": 4 * self._network.count,
            "optimizer": self._optimizer.nbytes,
            "replay": 0 if self._replay is None else self._replay.nbytes,
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

    def _following(self) -> Network | None:
        if not self.training.ema:
            return None
        return Network(self._network.shape, seed=self.settings.seed, device=self.device)

    def _ring(self) -> Replay | None:
        if not self.training.replay_rows:
            return None
        if self.features.nested:
            raise UserError(
                "[train] replay_rows keeps numbers and categories, and [model] reads images or "
                f"lists ('{self.features.nested[0]}'): take it out."
            )
        return Replay(
            self.training,
            numeric=len(self.features.numeric),
            categories=len(self.features.categories),
            target=torch.float32 if self.features.task == "regression" else torch.int64,
            device=self.device,
        )

    def _seed_draws(self) -> None:
        # The state of chance is one number, the same on every device.
        seed = (self.settings.seed * 1_000_003 + self._batches) % 2**32
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
        with self._autocast():
            raw = self._network(rows.numeric, rows.categories, **_nested(rows), **chance)
        return raw.float()

    def _goal(self, target: torch.Tensor, scale: TargetScale) -> torch.Tensor:
        return scale.forward(target) if self.features.task == "regression" else target

    def _lesson(self, rows: Tensors, step: int, changed: Counter[str]) -> Tensors:
        """What to learn from in place of these rows; counts the rows that each augment changed."""
        if self.augmentation is None:
            return rows
        made, counts = self.augmentation(rows, self._batches, step)
        changed.update(counts)
        return made

    def _rehearse(self, rows: Tensors, changed: Counter[str]) -> int:
        """Keep the rows, step on kept ones; how many steps were taken."""
        if self._replay is None:
            return 0
        self._replay.add((rows.numeric, rows.categories, _target(rows)))
        taken = 0
        drawn = self._replay.sample(self.training.replay_steps, self._chance)
        for step, kept in enumerate(drawn, 1):
            again = Tensors(numeric=kept[0], categories=kept[1], target=kept[2])
            lesson = self._lesson(again, step, changed)
            loss = self._loss(self._train(lesson), self._goal(_target(lesson), self._scale))
            taken += self._optimizer.step(loss)[1]
        return taken

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
            "[model] target_transform": list(_steps(settings)),
            "[train] optimizer": training.optimizer,
            "[train] momentum": training.momentum,
            "[train] ema": training.ema > 0,
            "[train] replay_rows": training.replay_rows,
        }


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


def _steps(settings: TabularLearner.Settings) -> tuple[str, ...]:
    asked = settings.target_transform
    steps = (asked,) if isinstance(asked, str) else asked
    return tuple(step for step in steps if step != "none")


def _scale(settings: TabularLearner.Settings, features: Features) -> TargetScale:
    steps = _steps(settings)
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
