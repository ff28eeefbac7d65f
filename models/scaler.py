"""Numeric features on a common scale, as part of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch

if TYPE_CHECKING:
    from models.graph import Graph

Numbers = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""Shift, factor, lowest and highest of each feature, float32, shape (d,)."""
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
        mean, squares: the mean, and the sum of squared deviations from it, float64, shape (d,); 0
            of features that are not scaled.
    """

    on: torch.Tensor
    any: bool
    count: float
    mean: torch.Tensor
    squares: torch.Tensor
    _unit: torch.Tensor = field(init=False, repr=False)
    _per: torch.Tensor = field(init=False, repr=False)
    _numbers: Numbers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.any:
            return
        deviation = self.squares.div(max(self.count, 1.0)).sqrt_()
        varies = deviation > 0
        unit = torch.where(varies, deviation, 1.0)
        per = unit.reciprocal().float()
        factor = torch.where(varies | ~self.on, per, 0.0)
        limit = torch.where(varies, REACH, torch.inf).float()
        numbers = (self.mean.float(), factor, -limit, limit)
        object.__setattr__(self, "_unit", unit)
        object.__setattr__(self, "_per", per)
        object.__setattr__(self, "_numbers", numbers)

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
        shift, factor, low, high = self._numbers
        return (x - shift).mul_(factor).clamp_(low, high)

    def learned(self, x: torch.Tensor) -> Scaler:
        """With these rows in the statistics (Chan, Golub and LeVeque's merge). A number further
        than `REACH` deviations away counts as so far."""
        if not self.any:
            return self
        n, total = len(x), self.count + len(x)
        unit, (mean, squares) = self._unit, self._moments(x)
        gap = unit * mean
        return dataclasses.replace(
            self,
            count=total,
            mean=self.mean + gap * (n / total),
            squares=self.squares + squares * unit**2 + gap**2 * (self.count * n / total),
        )

    def _moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and sum of squared deviations of what lies how many units from the shift, float64,
        shape (d,)."""
        shift, _, low, high = self._numbers
        if x.device.type == "cpu":
            moments = torch.zeros((2, len(shift)), dtype=torch.float64)
            given = (part.numpy() for part in (x, shift, self._per, high, self.on))
            _moments_into(*given, *moments.numpy())
            return moments[0], moments[1]
        z = (x - shift).mul_(self._per).clamp_(low, high).mul_(self.on)
        mean = z.mean(0, dtype=torch.float64)
        return mean, z.sub_(mean.float()).square_().sum(0, dtype=torch.float64)

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
        shift, factor, low, high = (part.cpu().numpy() for part in self._numbers)
        x = graph.op("Mul", graph.op("Sub", x, graph.constant(shift)), graph.constant(factor))
        x = graph.op("Min", x, graph.constant(high))
        return graph.op("Max", x, graph.constant(low))

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


@numba.njit(nogil=True, cache=True)
def _moments_into(x, shift, factor, limit, on, mean, squares):  # type: ignore[no-untyped-def]
    """Mean and sum of squared deviations of ``(x - shift) * factor`` within the limit into zeros,
    shape (d,); 0 for features that are not on. One pass: torch's var_mean takes 20 times as long.
    """
    n, d = x.shape
    for i in range(n):
        for j in range(d):
            z = (x[i, j] - shift[j]) * factor[j]
            z = limit[j] if z > limit[j] else -limit[j] if z < -limit[j] else z
            mean[j] += z
            squares[j] += np.float64(z) * z
    for j in range(d):
        mean[j] = mean[j] / n if on[j] else 0.0
        squares[j] = max(squares[j] - n * mean[j] * mean[j], 0.0) if on[j] else 0.0


__all__ = ["REACH", "Scaler"]
