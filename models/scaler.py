"""Numeric features on a common scale, as part of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from models.graph import Graph

Numbers = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Shift, factor and limit of each feature, float32, shape (d,)."""
REACH = 8.0
"""Deviations from the mean beyond which a number counts as so far away: one outlier spoils neither
a step nor the statistics."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scaler:
    """Mean and deviation of the rows learned so far: ``(x - mean) / deviation``, at most `REACH`
    from 0; 0 where a feature has not varied yet. A value: learning makes a new one.

    The factor of a feature that has not varied is 0; features that are not scaled have shift 0,
    factor 1 and no limit. The statistics hold a number beyond the limit for one at the limit.

    Attributes:
        on: features that are scaled, bool, shape (d,); the others pass unchanged.
        any: whether there are any.
        count: rows learned.
        mean, squares: the mean, and the sum of squared deviations from it, float64, shape (d,).
    """

    on: torch.Tensor
    any: bool
    count: float
    mean: torch.Tensor
    squares: torch.Tensor
    _unit: torch.Tensor = field(init=False, repr=False)
    _numbers: Numbers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.any:
            return
        deviation = (self.squares / max(self.count, 1.0)).sqrt()
        varies = self.on & (deviation > 0)
        unit = torch.where(varies, deviation, 1.0)
        shift = torch.where(self.on, self.mean, 0.0).float()
        factor = torch.where(varies | ~self.on, 1 / unit, 0.0).float()
        limit = torch.where(varies, REACH, torch.inf).float()
        object.__setattr__(self, "_unit", unit)
        object.__setattr__(self, "_numbers", (shift, factor, limit))

    @classmethod
    def of(cls, on: Sequence[bool], device: str = "cpu") -> Scaler:
        """A scaler of no rows."""
        zeros = torch.zeros(len(on), dtype=torch.float64, device=device)
        mask = torch.tensor(list(on), dtype=torch.bool, device=device)
        return cls(on=mask, any=any(on), count=0.0, mean=zeros, squares=zeros)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features of these rows, scaled; (n, d) float32."""
        if not self.any:
            return x
        shift, factor, limit = self._numbers
        return (x - shift).mul_(factor).clamp_(-limit, limit)

    def learned(self, x: torch.Tensor) -> Scaler:
        """With these rows in the statistics (Chan, Golub and LeVeque's merge). A number further
        than `REACH` deviations away counts as so far."""
        if not self.any:
            return self
        shift, _, limit = self._numbers
        unit = self._unit
        z = (x - shift).div_(unit.float()).clamp_(-limit, limit)
        variance, mean = torch.var_mean(z.double(), 0, correction=0)
        n, total = len(x), self.count + len(x)
        gap = unit * mean
        return dataclasses.replace(
            self,
            count=total,
            mean=self.mean + gap * (n / total),
            squares=self.squares + n * variance * unit**2 + gap**2 * (self.count * n / total),
        )

    def faded(self, rows: int) -> Scaler:
        """The same scale, as if so few rows had taught it: those that come move it faster."""
        if self.count <= rows:
            return self
        return dataclasses.replace(
            self, count=float(rows), squares=self.squares * (rows / self.count)
        )

    def build(self, graph: Graph, x: str) -> str:
        """`forward` as nodes of an ONNX graph."""
        if not self.any:
            return x
        shift, factor, limit = (part.cpu().numpy() for part in self._numbers)
        x = graph.op("Mul", graph.op("Sub", x, graph.constant(shift)), graph.constant(factor))
        x = graph.op("Min", x, graph.constant(limit))
        return graph.op("Max", x, graph.constant(-limit))

    def snapshot(self) -> dict[str, Any]:
        """The statistics as a plain value."""
        return {
            "count": self.count,
            "mean": self.mean.cpu().numpy(),
            "squares": self.squares.cpu().numpy(),
        }

    def restored(self, value: Mapping[str, Any]) -> Scaler:
        """With the statistics that `snapshot` gave."""
        mean, squares = (torch.tensor(value[k], device=self.on.device) for k in ("mean", "squares"))
        return dataclasses.replace(self, count=value["count"], mean=mean, squares=squares)


__all__ = ["REACH", "Scaler"]
