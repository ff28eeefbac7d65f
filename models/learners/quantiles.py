"""Quantiles of a regression: the keys of ``[train]``, and how they are kept from crossing."""

from __future__ import annotations

from itertools import pairwise
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from engine.types import GraphBuilder, Settings


class QuantileSettings(Settings):
    """The keys of ``[train]`` for loss = "quantile".

    Attributes:
        quantile [share]: for quantile, the share of the targets that lies below the prediction.
        quantiles [shares]: the same of several: two or more, rising, 0.5 among them. The median is
            ``prediction``, and each has a column, ``prediction_q10`` of 0.1. Of a row they never
            cross.
    """

    quantile: float = Field(0.5, gt=0, lt=1)
    quantiles: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _rising_quantiles(self) -> Self:
        if "quantiles" not in self.model_fields_set:
            return self
        if "quantile" in self.model_fields_set:
            raise ValueError("expected quantile, or quantiles for several: take one of them out")
        ends = (0.0, *self.quantiles, 1.0)
        if len(ends) < 4 or not all(low < high for low, high in pairwise(ends)):
            raise ValueError(
                "expected for quantiles two numbers or more above 0 and below 1 that rise, as in "
                f"[0.1, 0.5, 0.9], got {list(self.quantiles)}; quantile is for one"
            )
        if 0.5 not in self.quantiles:
            raise ValueError(
                "expected 0.5 among quantiles, since the median is the prediction, got "
                f"{list(self.quantiles)}"
            )
        return self


def only_quantile(loss: str | None, settings: QuantileSettings) -> float | None:
    """Return the quantile that a loss learns as its one value: of mae the median."""
    if loss == "mae":
        return 0.5
    return settings.quantile if loss == "quantile" and not settings.quantiles else None


def build_sorted(graph: GraphBuilder, scores: str, quantiles: int) -> str:
    """Write into a graph what sorts the quantiles of each row, (n, quantiles)."""
    every = graph.constant(np.array([quantiles], np.int64))
    return graph.ops("TopK", scores, every, outputs=2, axis=1, largest=0)[0]


__all__ = ["QuantileSettings", "build_sorted", "only_quantile"]
