"""From rows to scores: a network between the scales of its features and of its target."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import Features, GraphBuilder, Padded, Tensors
from engine.types.arrays import Floats
from models.carry import Carry
from models.learners.labelled import target_of
from models.learners.online.attribution import integrated_gradients
from models.learners.online.class_means import ClassMeans
from models.learners.online.class_slots import ClassSlots
from models.learners.online.scaler import Scaler
from models.learners.online.settings import (
    OnlineSettings,
    OnlineTraining,
    standardized,
    target_scale,
)
from models.learners.online.target_transform import AnyTargetScale
from models.learners.online.trainable import TrainableNetwork
from models.learners.probabilities import sigmoid
from models.learners.quantiles import build_sorted

N = TypeVar("N", bound=TrainableNetwork)
ABSENT = -1e9
"""What is added to the raw score of an output without a class: its probability is exactly 0."""


class Scorer(Generic[N]):
    """Scores rows, on the device and in the precision of ``[train]``.

    Args:
        network: the weights that are trained.
        average: their moving average, which scores in their place; None without one.
        device: of the weights: cpu or cuda.

    Attributes:
        scaler, array_scalers, target_scale: the scales of numeric features, of each array feature
            and of the target. Values: learning replaces them.
        class_means: of vectors, such a value too; None where the network returns scores.

    Raises: UserError for settings that do not fit the task.
    """

    def __init__(
        self,
        network: N,
        average: N | None,
        settings: OnlineSettings,
        training: OnlineTraining,
        features: Features,
        *,
        device: str,
    ) -> None:
        self.device = device
        self.network = network
        self.average = average
        self.target_scale = target_scale(settings, training, features)
        self.scaler = Scaler.of(standardized(settings, features), device)
        self.array_scalers: Mapping[str, Scaler] = {
            name: Scaler.of([settings.standardize] * width, device)
            for name, (_, width) in features.arrays.items()
        }
        self._features = features
        self._bfloat16 = training.precision == "bfloat16"
        self._slots = ClassSlots(most=features.max_classes) if features.max_classes else None
        self._outputs: torch.Tensor | None = None
        self._absent: torch.Tensor | None = None
        self.class_means: ClassMeans | None = None
        if features.vector_width:
            self.class_means = ClassMeans.none(
                features.max_classes or len(features.classes),
                features.vector_width,
                temperature=training.temperature,
                binary=features.task == "binary",
                device=device,
            )

    def train(self, rows: Tensors, carry: Carry | None = None) -> torch.Tensor:
        """Return raw scores with a gradient, as the network trains; of a network that returns
        vectors those, since its loss is theirs."""
        rows = self._with_scaled_arrays(rows)
        with self._autocast():
            raw = self.network.train(rows, self.scaler.forward(rows.numeric), carry).float()
        return raw if self.class_means is not None else self._raw_scores(raw)

    def raw(self, rows: Tensors, carry: Carry | None = None) -> torch.Tensor:
        """Return raw scores without a gradient, as `scores` needs them: of the average if there
        is one."""
        with self.scoring_network.without_gradient():
            return self._raw_scores(self._returned(rows, carry))

    def scores(self, raw: torch.Tensor) -> NDArray[np.float64]:
        """Return predictions or probabilities, shape (n,) or (n, outputs)."""
        raw = raw.double()
        if self._features.task == "regression":
            scores = self._values(raw)
        elif raw.ndim == 1:
            return sigmoid(raw.cpu().numpy())
        else:
            scores = raw.softmax(1)
        if self._outputs is not None:
            scores = scores[:, self._outputs]
        values: NDArray[np.float64] = scores.cpu().numpy()
        return values

    def attributions(self, rows: Tensors) -> dict[str, Floats]:
        """Return how far each feature moves a score; see `engine.types.Learner.attributions`."""
        features, network = self._features, self.scoring_network
        rows = self._with_scaled_arrays(rows)
        numeric = self.scaler.forward(rows.numeric)
        with torch.no_grad():
            raw = self._raw_scores(network.raw(rows, numeric))
        predicted = raw.argmax(1, keepdim=True) if raw.ndim > 1 else raw.new_empty(0)

        def score(rows: Tensors, numeric: torch.Tensor) -> torch.Tensor:
            raw = self._raw_scores(network.raw(rows, numeric).float())
            if features.task == "regression":
                values = self._values(raw)
                return values[:, features.median] if features.quantiles else values
            return raw if raw.ndim == 1 else raw.log_softmax(1).gather(1, predicted).squeeze(1)

        with _differentiable(self.device):
            return integrated_gradients(score, rows, numeric, features)

    def set_classes(self, features: Features, sources: Sequence[int]) -> torch.Tensor:
        """Score the classes of these features and no others. New ones get an output of the network,
        whose weights are 0 then, or a mean without rows. Return the outputs whose class has left.

        Args:
            sources: see `engine.types.Learner.set_classes`.
        """
        assert self._slots is not None, "classes are set where they grow"
        before, self._slots = self._slots, self._slots.moved(sources)
        self._features = features
        self._score_slots(self._slots)
        kept = self._slots.slots[np.asarray(sources, np.int64) >= 0]
        fresh = np.setdiff1d(self._slots.slots, kept).tolist()
        if self.class_means is not None:
            self.class_means = self.class_means.without(fresh)
        else:
            for network in self._networks:
                network.reset_outputs(fresh)
        return torch.from_numpy(np.setdiff1d(before.slots, kept))

    def by_output(self, rows: Tensors, target: torch.Tensor) -> Tensors:
        """Return rows whose target is the output of their class, in place of its number; -1 of a
        row that has none."""
        assert self._slots is not None, "else the outputs are the classes"
        slots = torch.from_numpy(np.append(self._slots.slots, -1))[target]
        return dataclasses.replace(rows, target=slots, on_device=None)

    def no_scores(self) -> NDArray[np.float64]:
        """Return the scores of no rows."""
        return np.empty(self._features.score_shape(0))

    @property
    def scoring_network(self) -> N:
        """The network that scores: the average if there is one."""
        return self.network if self.average is None else self.average

    @property
    def trains_on_scores(self) -> bool:
        """Whether one forward pass both scores rows and trains on them."""
        same = self.class_means is None and self.average is None
        return same and self.network.trains_on_scores

    def learn_scales(self, rows: Tensors, target: AnyTargetScale) -> None:
        """Take the rows into the features' scales, and the target's scale as it is with them."""
        self.target_scale, self.scaler = target, self.scaler.learned(rows.numeric)
        if self.array_scalers:
            self.array_scalers = {
                name: _learned(scaler, rows.arrays[name])
                for name, scaler in self.array_scalers.items()
            }

    def learn_means(self, rows: Tensors) -> None:
        """Take the rows into the means of their classes, where there are any, as the network sees
        them now."""
        if self.class_means is None:
            return
        with self.scoring_network.without_gradient():
            vectors = self._returned(rows)
        with torch.no_grad():  # outside of inference mode: a loss takes the means
            self.class_means = self.class_means.learned(vectors, target_of(rows))

    def take_scales(self, other: Scorer[N], rows: int) -> None:
        """Continue another's scales, as if so many rows had taught them."""
        self.scaler = other.scaler.discounted(rows)
        self.target_scale = other.target_scale.discounted(rows)
        self.array_scalers = {
            name: scaler.discounted(rows) for name, scaler in other.array_scalers.items()
        }

    def snapshot(self) -> dict[str, Any]:
        """Return weights, average, scales and the outputs of classes as a plain value, copied."""
        return {
            "weights": self.network.weights(),
            "average": None if self.average is None else self.average.weights(),
            "scaler": self.scaler.snapshot(),
            "arrays": {name: scaler.snapshot() for name, scaler in self.array_scalers.items()},
            "target": self.target_scale.snapshot(),
            "slots": None if self._slots is None else self._slots.snapshot(),
            "means": None if self.class_means is None else self.class_means.snapshot(),
        }

    def restore(self, value: Mapping[str, Any]) -> None:
        """Restore a `snapshot`."""
        self.network.load(value["weights"])
        if self.average is not None:
            self.average.load(value["average"])
        self.scaler = self.scaler.restored(value["scaler"])
        self.array_scalers = {
            name: scaler.restored(value["arrays"][name])
            for name, scaler in self.array_scalers.items()
        }
        self.target_scale = self.target_scale.restored(value["target"])
        if self._slots is not None:
            self._slots = ClassSlots.restored(value["slots"])
            self._score_slots(self._slots)
        if self.class_means is not None:
            self.class_means = self.class_means.restored(value["means"])

    def on_device(self, tensors: Tensors) -> Tensors:
        """Return tensors on the device, copied before or now."""
        if tensors.on_device is not None:
            return tensors.on_device.wait()
        if self.device == "cpu":
            return tensors
        return tensors.map(lambda tensor: tensor.to(self.device, non_blocking=True))

    def deterministic(self) -> contextlib.AbstractContextManager[Any]:
        """Make GPU convolutions deterministic, in full float32."""
        if self.device == "cpu" or not self._features.nested:
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )

    def build_scores(self, graph: GraphBuilder, raw: str) -> str:
        """Write the way from raw scores, (n, 1) or (n, outputs), or from vectors, to scores into an
        ONNX graph."""
        if self.class_means is not None:
            raw = self.class_means.build(graph, raw)
        if self._slots is not None:
            raw = graph.op("Gather", raw, graph.constant(self._slots.slots), axis=1)
        if self._features.task == "multiclass":
            return graph.op("Softmax", raw, axis=1)
        if self._features.targets:
            return self.target_scale.build(graph, raw)
        if quantiles := len(self._features.quantiles):
            return build_sorted(graph, self.target_scale.build(graph, raw), quantiles)
        raw = graph.op("Squeeze", raw, graph.constant(np.array([1], np.int64), "axis"))
        if self._features.task == "binary":
            return graph.op("Sigmoid", raw)
        return self.target_scale.build(graph, raw)

    @property
    def _networks(self) -> list[N]:
        """The network, and its average if there is one."""
        return [self.network] if self.average is None else [self.network, self.average]

    def _values(self, raw: torch.Tensor) -> torch.Tensor:
        """Return the predictions of a regression. Quantiles are sorted, so that they never cross;
        together they are no farther from the true ones then (Chernozhukov, Fernandez-Val &
        Galichon, "Quantile and probability curves without crossing", 2010)."""
        values = self.target_scale.inverse(raw)
        return values.sort(1).values if self._features.quantiles else values

    def _score_slots(self, slots: ClassSlots) -> None:
        """Score the outputs that have a class."""
        self._outputs = torch.tensor(slots.slots, dtype=torch.int64, device=self.device)
        self._absent = torch.full((slots.most,), ABSENT, device=self.device)
        self._absent[self._outputs] = 0.0

    def _returned(self, rows: Tensors, carry: Carry | None = None) -> torch.Tensor:
        """Return what the network that scores says of rows."""
        rows = self._with_scaled_arrays(rows)
        with self._autocast():
            numeric = self.scaler.forward(rows.numeric)
            return self.scoring_network.raw(rows, numeric, carry).float()

    def _raw_scores(self, returned: torch.Tensor) -> torch.Tensor:
        """Return the raw scores of what the network returns: of vectors by the means of classes.
        They are so low where an output has no class that it gets no probability."""
        raw = returned if self.class_means is None else self.class_means.raw_scores(returned)
        return raw if self._absent is None else raw + self._absent

    def _with_scaled_arrays(self, rows: Tensors) -> Tensors:
        if not self.array_scalers:
            return rows
        arrays = {
            name: _scaled(scaler, rows.arrays[name]) for name, scaler in self.array_scalers.items()
        }
        return dataclasses.replace(rows, arrays=arrays)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self._bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)


def _differentiable(device: str) -> contextlib.AbstractContextManager[Any]:
    """Make recurrent layers differentiable in evaluation mode, which cuDNN's are not."""
    return (
        contextlib.nullcontext() if device == "cpu" else torch.backends.cudnn.flags(enabled=False)
    )


def _scaled(scaler: Scaler, rows: Padded) -> Padded:
    """Return arrays with each of their columns scaled; padding stays 0."""
    if not scaler.any or not rows.values.numel():
        return rows
    flat = rows.values.reshape(-1, rows.values.shape[-1])
    values = scaler.forward(flat).view(rows.values.shape) * rows.mask.unsqueeze(-1)
    return Padded(values=values, mask=rows.mask)


def _learned(scaler: Scaler, rows: Padded) -> Scaler:
    """Return the scaler with the numbers of these arrays added."""
    values = rows.values[rows.mask]
    return scaler.learned(values) if len(values) else scaler


__all__ = ["Scorer"]
