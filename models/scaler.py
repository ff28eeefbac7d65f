"""Numeric features on a common scale, as part of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from models.graph import Graph

Floats = NDArray[np.float64]
Numbers = tuple[torch.Tensor, ...]
"""Of each feature, float32, shape (d,): shift, 1 / deviation (1 where it is 0), factor, lowest and
highest."""
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

    on: NDArray[np.bool_]
    any: bool
    count: float
    mean: Floats
    squares: Floats
    device: str = "cpu"
    _unit: Floats = field(init=False, repr=False)
    _numbers: Numbers = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.any:
            return
        deviation = np.sqrt(self.squares / max(self.count, 1.0))
        varies = deviation > 0
        unit = np.where(varies, deviation, 1.0)
        numbers = np.empty((5, len(unit)), np.float32)
        numbers[0] = self.mean
        numbers[1] = 1 / unit
        numbers[2] = np.where(varies | ~self.on, numbers[1], 0.0)
        numbers[4] = np.where(varies, REACH, np.inf)
        numbers[3] = -numbers[4]
        placed = torch.from_numpy(numbers).to(self.device)
        object.__setattr__(self, "_unit", unit)
        object.__setattr__(self, "_numbers", placed.unbind())

    @classmethod
    def of(cls, on: Sequence[bool], device: str = "cpu") -> Scaler:
        """A scaler of no rows."""
        zeros = np.zeros(len(on))
        mask = np.array(on, np.bool_)
        return cls(on=mask, any=any(on), count=0.0, mean=zeros, squares=zeros, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features of these rows, scaled; (n, d) float32."""
        if not self.any:
            return x
        shift, _, factor, low, high = self._numbers
        return (x - shift).mul_(factor).clamp_(low, high)

    def learned(self, x: torch.Tensor) -> Scaler:
        """With these rows in the statistics (Chan, Golub and LeVeque's merge). A number further
        than `REACH` deviations away counts as so far."""
        if not self.any:
            return self
        n, total = len(x), self.count + len(x)
        unit, (mean, squares) = self._unit, self._moments(x)
        gap = unit * mean
        return Scaler(
            on=self.on,
            any=self.any,
            count=total,
            mean=self.mean + gap * (n / total),
            squares=self.squares + squares * unit**2 + gap**2 * (self.count * n / total),
            device=self.device,
        )

    def _moments(self, x: torch.Tensor) -> Floats:
        """Mean and sum of squared deviations of how many units each number lies from the shift,
        shape (2, d); 0 of features that are not scaled."""
        shift, per, _, low, high = self._numbers
        if x.device.type == "cpu":
            made = np.zeros((2, len(shift)))
            _moments_into(*(part.numpy() for part in (x, shift, per, high)), *made)
        else:
            z = (x - shift).mul_(per).clamp_(low, high)
            mean = z.mean(0, dtype=torch.float64)
            squares = z.sub_(mean.float()).square_().sum(0, dtype=torch.float64)
            made = torch.stack([mean, squares]).cpu().numpy()
        return np.where(self.on, made, 0.0)

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
        shift, _, factor, low, high = (part.cpu().numpy() for part in self._numbers)
        x = graph.op("Mul", graph.op("Sub", x, graph.constant(shift)), graph.constant(factor))
        x = graph.op("Min", x, graph.constant(high))
        return graph.op("Max", x, graph.constant(low))

    def snapshot(self) -> dict[str, Any]:
        """The statistics as a plain value."""
        return {
            "count": self.count,
            "mean": self.mean,
            "squares": self.squares,
        }

    def restored(self, value: Mapping[str, Any]) -> Scaler:
        """With the statistics that `snapshot` gave."""
        return dataclasses.replace(self, **value)


@numba.njit(nogil=True, cache=True)
def _moments_into(x, shift, factor, limit, mean, squares):  # type: ignore[no-untyped-def]
    """Mean and sum of squared deviations of ``(x - shift) * factor`` within the limit into zeros,
    shape (d,). One pass: torch's var_mean takes 20 times as long."""
    n, d = x.shape
    for i in range(n):
        for j in range(d):
            z = (x[i, j] - shift[j]) * factor[j]
            z = limit[j] if z > limit[j] else -limit[j] if z < -limit[j] else z
            mean[j] += z
            squares[j] += np.float64(z) * z
    for j in range(d):
        mean[j] /= n
        squares[j] = max(squares[j] - n * mean[j] * mean[j], 0.0)


__all__ = ["REACH", "Scaler"]
