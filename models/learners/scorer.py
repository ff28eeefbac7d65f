"""From rows to scores: a network between the scales of its features and of its target."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import Features, GraphBuilder, Tensors, UserError
from models.learners.network import Network
from models.learners.scaler import Scaler
from models.learners.tabular_settings import (
    TabularSettings,
    TabularTraining,
    network_shape,
    standardized,
    target_scale,
)


class Scorer:
    """Scores rows, on the device and in the precision of ``[train]``.

    Args:
        device: of the weights: cpu or cuda.

    Attributes:
        network: the weights that are trained.
        average: their moving average, which scores where `ema_decay` is on; else None.
        scaler, target_scale: the scales of numeric features and target. Values: learning replaces
            them.

    Raises: UserError for settings that do not fit the task or the features.
    """

    def __init__(
        self, settings: TabularSettings, training: TabularTraining, features: Features, device: str
    ) -> None:
        self.device = device
        self.target_scale = target_scale(settings, features)
        self.scaler = Scaler.of(standardized(settings, features), device)
        shape = network_shape(settings, features)
        self.network = Network(shape, seed=settings.seed, device=device)
        average = Network(shape, seed=settings.seed, device=device) if training.ema_decay else None
        self.average = average
        self._features = features
        self._bfloat16 = training.precision == "bfloat16"
        self._dropout = settings.dropout
        self._dropout_rng = torch.Generator(device)

    def train(self, rows: Tensors) -> torch.Tensor:
        """Return raw scores with a gradient, with dropout."""
        return self._forward(self.network, rows, dropout=self._dropout, rng=self._dropout_rng)

    def raw(self, rows: Tensors) -> torch.Tensor:
        """Return raw scores as `scores` needs them: averaged weights if there are any, no
        dropout."""
        return self._forward(self._scoring_network, rows)

    def scores(self, raw: torch.Tensor) -> NDArray[np.float64]:
        """Return predictions or probabilities, shape (n,) or (n, classes)."""
        raw = raw.double()
        if self._features.task == "regression":
            scores = self.target_scale.inverse(raw)
        else:
            scores = raw.sigmoid() if raw.ndim == 1 else raw.softmax(1)
        values: NDArray[np.float64] = scores.cpu().numpy()
        return values

    def no_scores(self) -> NDArray[np.float64]:
        """Return the scores of no rows."""
        width = self._features.outputs
        return np.empty((0,) if width == 1 else (0, width))

    @property
    def trains_on_scores(self) -> bool:
        """Whether one forward pass both scores rows and trains on them."""
        return self.average is None and not self._dropout

    def seed(self, seed: int) -> None:
        """Seed dropout."""
        if self._dropout:
            self._dropout_rng.manual_seed(seed)

    def take_scales(self, other: Scorer, rows: int) -> None:
        """Continue another's scales, as if so many rows had taught them."""
        self.scaler = other.scaler.discounted(rows)
        self.target_scale = other.target_scale.discounted(rows)

    def on_device(self, tensors: Tensors) -> Tensors:
        """Return tensors on the device, copied before or now."""
        if tensors.on_device is not None:
            return tensors.on_device.wait()
        if self.device == "cpu":
            return tensors
        return tensors.map(lambda tensor: tensor.to(self.device, non_blocking=True))

    def deterministic(self) -> contextlib.AbstractContextManager[Any]:
        """Make GPU convolutions deterministic, in full float32."""
        if self.device == "cpu" or not self._features.images:
            return contextlib.nullcontext()
        return torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write scaling, network and the inverse of the target's scale into an ONNX graph; see
        `engine.types.Learner.build`."""
        features = self._features
        if features.nested:
            raise UserError(
                f"[model] reads images or lists ('{features.nested[0]}'), which cannot be "
                "exported: take [export] out, and score with the pipeline that trains."
            )
        raw = self._scoring_network.build(graph, self.scaler.build(graph, numeric), categories)
        if features.task == "multiclass":
            return graph.op("Softmax", raw, axis=1)
        raw = graph.op("Squeeze", raw, graph.constant(np.array([1], np.int64), "axis"))
        if features.task == "binary":
            return graph.op("Sigmoid", raw)
        return self.target_scale.build(graph, raw)

    @property
    def _scoring_network(self) -> Network:
        return self.network if self.average is None else self.average

    def _forward(self, network: Network, rows: Tensors, **rng_options: Any) -> torch.Tensor:
        numeric = self.scaler.forward(rows.numeric)
        with self._autocast():
            raw = network(numeric, rows.categories, **_nested(rows), **rng_options)
        return raw.float()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if not self._bfloat16:
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)


def _nested(rows: Tensors) -> dict[str, Any]:
    """Return the network's list and image inputs, in the order of its shape."""
    bags = [*rows.ragged.values(), *rows.sparse.values()]
    return {"bags": bags, "images": list(rows.images.values())}


__all__ = ["Scorer"]
