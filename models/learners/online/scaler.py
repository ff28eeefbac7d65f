"""Standardizes numeric features, as part of the model."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import GraphBuilder
from engine.types.arrays import Floats

MAX_DEVIATIONS = 8.0
"""Deviations from the mean at which numbers are clipped: one outlier spoils neither a step nor
the statistics."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scaler:
    """Mean and deviation of the rows learned so far: ``(x - mean) / deviation``, clipped at
    `MAX_DEVIATIONS`; 0 for a feature that has not varied. A value: learning makes a new one.

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
    _numbers: NDArray[np.float32] = field(init=False, repr=False)
    _placed: torch.Tensor | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        numbers = np.empty((5, len(self.on)), np.float32)
        _numbers_into(self.on, max(self.count, 1.0), self.mean, self.squares, numbers)
        object.__setattr__(self, "_numbers", numbers)
        placed = None if self.device == "cpu" else torch.from_numpy(numbers).to(self.device)
        object.__setattr__(self, "_placed", placed)

    @classmethod
    def of(cls, on: Sequence[bool], device: str = "cpu") -> Scaler:
        """Return a scaler without rows."""
        _compile()
        zeros = np.zeros(len(on))
        mask = np.array(on, np.bool_)
        return cls(on=mask, any=any(on), count=0.0, mean=zeros, squares=zeros, device=device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scaled features; (n, d) float32."""
        if not self.any:
            return x
        if self.device == "cpu":
            scaled = torch.empty_like(x)
            _scale_into(x.numpy(), self._numbers, scaled.numpy())
            return scaled
        assert self._placed is not None, "it is on a device"
        shift, _, factor, low, high = self._placed
        there: torch.Tensor = (x - shift).mul_(factor).clamp_(low, high)
        return there

    def learned(self, x: torch.Tensor) -> Scaler:
        """Return the scaler with these rows added (Chan, Golub and LeVeque's merge). Numbers
        beyond `MAX_DEVIATIONS` deviations are clipped."""
        if not self.any:
            return self
        mean, squares = self.mean.copy(), self.squares.copy()
        _merge(self.on, self.count, len(x), self._moments(x), mean, squares)
        return Scaler(
            on=self.on,
            any=self.any,
            count=self.count + len(x),
            mean=mean,
            squares=squares,
            device=self.device,
        )

    def _moments(self, x: torch.Tensor) -> Floats:
        """Return mean and sum of squared deviations of the clipped distances from the shift, in
        units, shape (2, d)."""
        moments = np.zeros((2, len(self.on)))
        if self.device == "cpu":
            _moments_into(x.numpy(), self._numbers, moments)
            return moments
        assert self._placed is not None, "it is on a device"
        shift, per, _, low, high = self._placed
        z = (x - shift).mul_(per).clamp_(low, high)
        mean = z.mean(0, dtype=torch.float64)
        squares = z.sub_(mean.float()).square_().sum(0, dtype=torch.float64)
        moments[:] = torch.stack([mean, squares]).cpu().numpy()
        return moments

    def discounted(self, rows: int) -> Scaler:
        """Return the same scale as if fewer rows had taught it, so that new rows move it faster."""
        if self.count <= rows:
            return self
        return dataclasses.replace(
            self, count=float(rows), squares=self.squares * (rows / self.count)
        )

    def build(self, graph: GraphBuilder, x: str) -> str:
        """Write `forward` as nodes of an ONNX graph."""
        if not self.any:
            return x
        shift, _, factor, low, high = self._numbers
        x = graph.op("Mul", graph.op("Sub", x, graph.constant(shift)), graph.constant(factor))
        x = graph.op("Min", x, graph.constant(high))
        return graph.op("Max", x, graph.constant(low))

    def snapshot(self) -> dict[str, Any]:
        """Return the statistics as a plain value."""
        return {
            "count": self.count,
            "mean": self.mean,
            "squares": self.squares,
        }

    def restored(self, value: Mapping[str, Any]) -> Scaler:
        """Return the scaler with the statistics of a `snapshot`."""
        return dataclasses.replace(self, **value)


@functools.cache
def _compile() -> None:
    """Compile the loops now, so that the first row does not wait."""
    numbers, moments = np.empty((5, 0), np.float32), np.empty((2, 0))
    none = np.empty(0)
    x = torch.empty((1, 0)).numpy()
    _scale_into(x, numbers, x)
    _moments_into(x, numbers, moments)
    _merge(np.empty(0, np.bool_), 0.0, 1, moments, none, none)


# Loops with few arrays in each: the compiler puts those on the processor's lanes. One pass over the
# rows; torch's operations take three times as long, its var_mean 20 times.


@numba.njit(nogil=True, cache=True)
def _numbers_into(on, count, mean, squares, numbers):  # type: ignore[no-untyped-def]
    """Write for each feature: shift, 1 / deviation (1 where it is 0), factor, lowest and
    highest."""
    for j in range(len(on)):
        deviation = math.sqrt(squares[j] / count)
        varies = deviation > 0
        numbers[0, j] = mean[j]
        numbers[1, j] = 1 / deviation if varies else 1.0
        numbers[2, j] = numbers[1, j] if varies or not on[j] else 0.0
        numbers[4, j] = MAX_DEVIATIONS if varies else np.inf
        numbers[3, j] = -numbers[4, j]


@numba.njit(nogil=True, cache=True)
def _within(z, low, high):  # type: ignore[no-untyped-def]
    """Clip; NaN stays NaN."""
    return high if z > high else low if z < low else z


@numba.njit(nogil=True, cache=True)
def _scale_into(x, numbers, made):  # type: ignore[no-untyped-def]
    """Run `Scaler.forward` for rows on the CPU."""
    for i in range(len(x)):
        for j in range(x.shape[1]):
            z = (x[i, j] - numbers[0, j]) * numbers[2, j]
            made[i, j] = _within(z, numbers[3, j], numbers[4, j])


@numba.njit(nogil=True, cache=True)
def _moments_into(x, numbers, moments):  # type: ignore[no-untyped-def]
    """Run `Scaler._moments` for rows on the CPU, into zeros."""
    n, d = x.shape
    row = np.empty(d, np.float32)
    for i in range(n):
        for j in range(d):
            z = (x[i, j] - numbers[0, j]) * numbers[1, j]
            row[j] = _within(z, numbers[3, j], numbers[4, j])
        for j in range(d):
            moments[0, j] += row[j]
        for j in range(d):
            moments[1, j] += np.float64(row[j]) * row[j]
    for j in range(d):
        moments[0, j] /= n
        moments[1, j] = max(moments[1, j] - n * moments[0, j] * moments[0, j], 0.0)


@numba.njit(nogil=True, cache=True)
def _merge(on, count, n, moments, mean, squares):  # type: ignore[no-untyped-def]
    """Merge moments of n rows, in units, into the statistics of `count` others."""
    for j in range(len(on)):
        if on[j]:
            unit = math.sqrt(squares[j] / max(count, 1.0))
            unit = unit if unit > 0 else 1.0
            gap = unit * moments[0, j]
            mean[j] += gap * (n / (count + n))
            squares[j] += moments[1, j] * unit**2 + gap**2 * (count * n / (count + n))


__all__ = ["MAX_DEVIATIONS", "Scaler"]
