"""Transforms the target of a regression to the network's scale, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from engine.types import GraphBuilder

TargetTransform = Literal["none", "log1p", "sqrt", "standard"]
RATE = "rate"
"""The transform of losses of rates."""
HIGHEST = 80.0
"""The largest argument of the inverse of a logarithm: its exponential is still a float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetScale:
    """The scale of the target. A value: learning makes a new one.

    Attributes:
        transform: ``none``, ``log1p`` or ``sqrt`` (both of targets that are not negative; another
            makes the loss nan). Or ``rate``, whose scores are the logarithm of a share of the mean
            target: the loss takes the exponential, so targets are only divided by the mean.
        standard: then subtract the mean of all targets learned so far and divide by their standard
            deviation.
        count, mean, squares: of the warped targets; `squares` is the sum of squared deviations.
    """

    transform: str = "none"
    standard: bool = False
    count: float = 0
    mean: float = 0.0
    squares: float = 0.0

    @property
    def deviation(self) -> float:
        """The population standard deviation, 1 if it would be 0."""
        return math.sqrt(self.squares / self.count) if self.squares > 0 else 1.0

    @property
    def rate(self) -> float:
        """The mean of the targets and of one of 1: it is never 0."""
        return (self.count * self.mean + 1) / (self.count + 1)

    def learned(self, target: torch.Tensor) -> TargetScale:
        """Return the scale with these rows added (Chan, Golub and LeVeque's merge), in float64."""
        if not self.standard or not len(target):
            return self
        warped = self._transformed(target.cpu().double()).numpy()
        n, total = len(warped), self.count + len(warped)
        mean = float(warped.sum()) / n
        apart = warped - mean
        squares = float(np.square(apart).sum())
        gap = mean - self.mean
        return TargetScale(
            transform=self.transform,
            standard=True,
            count=total,
            mean=self.mean + gap * n / total,
            squares=self.squares + squares + gap * gap * self.count * n / total,
        )

    def forward(self, target: torch.Tensor) -> torch.Tensor:
        """Transform targets to the network's scale."""
        if self.transform == RATE:
            return target / self.rate
        warped = self._transformed(target)
        return (warped - self.mean) / self.deviation if self.standard else warped

    def inverse(self, raw: torch.Tensor) -> torch.Tensor:
        """Return targets in their own unit from the network's scores."""
        if self.transform == RATE:
            return raw.clamp(max=HIGHEST).exp() * self.rate
        if self.standard:
            raw = raw * self.deviation + self.mean
        if self.transform == "sqrt":
            return raw.clamp(min=0).square()
        return raw.clamp(max=HIGHEST).expm1() if self.transform == "log1p" else raw

    def build(self, graph: GraphBuilder, raw: str) -> str:
        """Write `inverse` as nodes of an ONNX graph."""

        def number(value: float) -> str:
            return graph.constant(np.float32(value))

        if self.transform == RATE:
            share = graph.op("Exp", graph.op("Min", raw, number(HIGHEST)))
            return graph.op("Mul", share, number(self.rate))
        if self.standard:
            raw = graph.op("Mul", raw, number(self.deviation))
            raw = graph.op("Add", raw, number(self.mean))
        if self.transform == "sqrt":
            root = graph.op("Relu", raw)
            return graph.op("Mul", root, root)
        if self.transform == "log1p":
            power = graph.op("Exp", graph.op("Min", raw, number(HIGHEST)))
            return graph.op("Sub", power, number(1))
        return raw

    def discounted(self, rows: int) -> TargetScale:
        """Return the same scale as if fewer rows had taught it, so that new rows move it faster."""
        if self.count <= rows:
            return self
        return dataclasses.replace(self, count=rows, squares=self.squares * (rows / self.count))

    def snapshot(self) -> dict[str, Any]:
        """Return the statistics as a plain value."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def restored(self, value: Mapping[str, Any]) -> TargetScale:
        """Return the scale with the statistics of a `snapshot`."""
        return dataclasses.replace(self, **value)

    def _transformed(self, target: torch.Tensor) -> torch.Tensor:
        if self.transform == "sqrt":
            return target.sqrt()
        return target.log1p() if self.transform == "log1p" else target


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetScales:
    """The scales of several targets, (n, targets); NaN where a row has none. A value."""

    each: tuple[TargetScale, ...]

    def learned(self, target: torch.Tensor) -> TargetScales:
        """Return the scales with the targets that are there added."""
        columns = zip(self.each, target.unbind(1), strict=True)
        return TargetScales(each=tuple(scale.learned(x[~x.isnan()]) for scale, x in columns))

    def forward(self, target: torch.Tensor) -> torch.Tensor:
        """Transform targets to the network's scale."""
        columns = zip(self.each, target.unbind(1), strict=True)
        return torch.stack([scale.forward(x) for scale, x in columns], 1)

    def inverse(self, raw: torch.Tensor) -> torch.Tensor:
        """Return targets in their own units from the network's scores."""
        columns = zip(self.each, raw.unbind(1), strict=True)
        return torch.stack([scale.inverse(x) for scale, x in columns], 1)

    def build(self, graph: GraphBuilder, raw: str) -> str:
        """Write `inverse` as nodes of an ONNX graph."""
        columns = []
        for number, scale in enumerate(self.each):
            at = graph.constant(np.array([number], np.int64))
            columns.append(scale.build(graph, graph.op("Gather", raw, at, axis=1)))
        return graph.op("Concat", *columns, axis=1)

    def discounted(self, rows: int) -> TargetScales:
        """Return the same scales as if fewer rows had taught them."""
        return TargetScales(each=tuple(scale.discounted(rows) for scale in self.each))

    def snapshot(self) -> dict[str, Any]:
        """Return the statistics as a plain value."""
        return {"each": [scale.snapshot() for scale in self.each]}

    def restored(self, value: Mapping[str, Any]) -> TargetScales:
        """Return the scales with the statistics of a `snapshot`."""
        pairs = zip(self.each, value["each"], strict=True)
        return TargetScales(each=tuple(scale.restored(one) for scale, one in pairs))


AnyTargetScale = TargetScale | TargetScales

__all__ = ["RATE", "AnyTargetScale", "TargetScale", "TargetScales", "TargetTransform"]
