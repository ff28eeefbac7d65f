"""The result of an interpretation: plain numbers and sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """By how much the metric worsens when the values of a column are permuted among the rows.

    Attributes:
        column: one that the model reads, before the stages in its file.
        worse: mean over the repeats.
        low, high: 95 % of repeats lie between; 0 lies there too if the column tells nothing.
    """

    column: str
    worse: float
    low: float
    high: float

    @property
    def tells(self) -> bool:
        """Whether the model surely is better with the column than without what it says."""
        return self.low > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """How far a feature moves the score from that of a mean row, by integrated gradients: the mean
    over rows, without sign."""

    feature: str
    moves: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Rows with about the same prediction.

    Attributes:
        rows: how many.
        predicted: their mean prediction: the value, or the probability of class 1 or of the
            predicted class.
        observed: their mean label: the value, or the share of such rows.
        low, high: where 95 % of such groups of a calibrated model have their mean label.
    """

    rows: int
    predicted: float
    observed: float
    low: float
    high: float

    @property
    def fits(self) -> bool:
        """Whether a calibrated model may have such a group."""
        return self.low <= self.observed <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How often targets lie below a quantile, or from one to another.

    Attributes:
        rows: how many.
        prediction: the mean of the quantile; of an interval, of its width.
        observed: the share of targets that are not above the quantile, or inside the interval, its
            ends included.
        least: the same without those that equal it, so that many equal targets count for neither
            side.
        low, high: where 95 % of such shares of a calibrated model lie, of all quantiles together.
    """

    rows: int
    prediction: float
    observed: float
    least: float
    low: float
    high: float

    @property
    def fits(self) -> bool:
        """Whether a calibrated model may have such a share."""
        return self.low <= self.observed and self.least <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileCalibration:
    """A quantile, or the interval from the lowest to the highest, beside the targets.

    Attributes:
        name: ``q10``, or ``q10 to q90``.
        asked: the share of targets that was asked for.
        whole: over all rows.
        groups: over rows with about the same prediction, the lowest first.
    """

    name: str
    asked: float
    whole: Coverage
    groups: tuple[Coverage, ...]

    @property
    def off(self) -> int:
        """The groups that a calibrated model hardly has."""
        return sum(not group.fits for group in self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The error over some of the rows.

    Attributes:
        name: of the slice, or its values.
        column: whose values these are; "" for a slice of the pipeline file.
        rows: how many.
        loss: mean loss over them.
        low, high: its interval: 95 %, for all slices of columns together.
        worse: whether it surely is above that of all rows.
    """

    name: str
    column: str
    rows: int
    loss: float
    low: float
    high: float
    worse: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstRow:
    """A row with one of the largest losses.

    Attributes:
        partition, position: where it was read.
        label, prediction: as text, for classes with the probability.
        loss: its loss.
        values: column -> value as text, of the most important columns.
    """

    partition: str
    position: int
    label: str
    prediction: str
    loss: float
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpretation:
    """What a model relies on, and where it is wrong.

    Attributes:
        name: of the pipeline.
        model: which model, in words.
        rows: judged rows; `which` they are, in words.
        target, task, classes: what is predicted.
        metric, value: what importance is measured by, and its value.
        loss: the name of a row's loss.
        figures: metric -> value over the rows.
        importances: most important first.
        repeats: permutations per column.
        attributions: the largest first; empty without gradients. `unit`: of what they move.
        calibrations: by prediction, the lowest first; empty for quantiles.
        quantiles: of a model of quantiles (a median is one), each of them, and the interval from
            the lowest to the highest.
        slices: those of the pipeline file, then the worst of each column, the worst first.
        worst_rows: the worst first.
        sentences: what a reader should know.
        left_out: what was not looked at, or not exactly.
    """

    name: str
    model: str
    rows: int
    which: str
    target: str
    task: str
    classes: tuple[str, ...]
    metric: str
    value: float
    loss: str
    figures: Mapping[str, float]
    importances: tuple[Importance, ...]
    repeats: int
    attributions: tuple[Attribution, ...] = ()
    unit: str = ""
    calibrations: tuple[Calibration, ...] = ()
    quantiles: tuple[QuantileCalibration, ...] = ()
    slices: tuple[Slice, ...] = ()
    worst_rows: tuple[WorstRow, ...] = ()
    sentences: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        values: dict[str, Any] = asdict(self, dict_factory=_finite)
        return {**values, "figures": _finite(self.figures.items())}


def _finite(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dict without numbers that JSON has not."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in pairs
    }


__all__ = [
    "Attribution",
    "Calibration",
    "Coverage",
    "Importance",
    "Interpretation",
    "QuantileCalibration",
    "Slice",
    "WorstRow",
]
