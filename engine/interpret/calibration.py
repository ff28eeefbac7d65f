"""Reliability: predictions beside what happened.

Of a calibrated model, a tenth of the rows with a probability of 0.1 have the class. Rows are
grouped by their prediction; each group has the interval in which 95 % of such groups of a
calibrated model have their labels' mean (Broecker & Smith, "Increasing the Reliability of
Reliability Diagrams", 2007; by the normal approximation).

A quantile is no mean: of a calibrated one, its share of the targets lies below it, in all rows and
in each group.
"""

from __future__ import annotations

import math
from collections.abc import Sized

import numpy as np

from engine.interpret.figures import Calibration, Coverage, QuantileCalibration
from engine.interpret.judging import Judge, Judged, normal
from engine.quality.measures import CALIBRATION_GROUPS, reliability
from engine.types import quantile_name
from engine.types.arrays import Bools, Floats, Ints

GROUP_ROWS = 20
"""The fewest rows of a group, where there are enough for two."""
CONFIDENCE = 0.95


def calibrations(judge: Judge, judged: Judged) -> tuple[Calibration, ...]:
    """Return groups of rows by prediction, the lowest first; none for classes without
    probabilities, and none for quantiles."""
    if judge.features.levels:
        return ()
    groups = _groups(judged)
    if judge.regression:
        return _of_values(judged, groups)
    if not judge.probabilistic:
        return ()
    return tuple(
        _of_shares(group["rows"], group["predicted"], group["true"])
        for group in reliability(judge.sums(judged).histogram, groups)
    )


def quantile_calibrations(judge: Judge, judged: Judged) -> tuple[QuantileCalibration, ...]:
    """Return each quantile that the model predicts, and of several the interval from the lowest to
    the highest; none for means and classes."""
    levels = judge.features.levels
    if not levels:
        return ()
    scores = judged.scores[:, None] if judged.quantiles is None else judged.quantiles
    target, found = judged.target, []
    # Of several figures one is off by chance more often than a single one (Bonferroni).
    confidence = 1 - (1 - CONFIDENCE) / (len(levels) + (len(levels) > 1))
    for level, each in zip(levels, scores.T, strict=True):
        shares = target < each, target <= each
        found.append(_of_rows(quantile_name(level), level, each, shares, each, confidence))
    if len(levels) > 1:
        lowest, highest = scores[:, 0], scores[:, -1]
        shares = (lowest < target) & (target < highest), (lowest <= target) & (target <= highest)
        name = f"{quantile_name(levels[0])} to {quantile_name(levels[-1])}"
        asked = round(levels[-1] - levels[0], 12)
        found.append(_of_rows(name, asked, highest - lowest, shares, judged.scores, confidence))
    return tuple(found)


def _of_rows(
    name: str,
    asked: float,
    prediction: Floats,
    shares: tuple[Bools, Bools],
    order_by: Floats,
    confidence: float,
) -> QuantileCalibration:
    """Compare all rows, and groups of them.

    Args:
        prediction: see `Coverage`.
        shares: whether a target lies inside, the ends excluded and included.
        order_by: what the rows are grouped by.
        confidence: over all rows.
    """
    least, most = shares

    def coverage(rows: Ints, confidence: float) -> Coverage:
        low, high = _span(asked, len(rows), confidence)
        return Coverage(
            rows=len(rows),
            prediction=float(prediction[rows].mean()),
            observed=float(most[rows].mean()),
            least=float(least[rows].mean()),
            low=low,
            high=high,
        )

    order = np.argsort(order_by, kind="stable")
    groups = tuple(coverage(rows, CONFIDENCE) for rows in np.array_split(order, _groups(order)))
    return QuantileCalibration(
        name=name, asked=asked, whole=coverage(order, confidence), groups=groups
    )


def _groups(rows: Sized) -> int:
    return max(1, min(CALIBRATION_GROUPS, len(rows) // GROUP_ROWS))


def _span(share: float, rows: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return where a share of so many rows lies, of a calibrated model."""
    reach = normal(confidence) * math.sqrt(share * (1 - share) / rows)
    # A group of few rows has few shares: half a row more on both sides.
    reach += 0.5 / rows
    return max(0.0, share - reach), min(1.0, share + reach)


def _of_shares(rows: int, predicted: float, observed: float) -> Calibration:
    low, high = _span(predicted, rows)
    return Calibration(rows=rows, predicted=predicted, observed=observed, low=low, high=high)


def _of_values(judged: Judged, groups: int) -> tuple[Calibration, ...]:
    """Group by predicted value. The errors' own spread says how far a group's mean may be off."""
    order = np.argsort(judged.scores, kind="stable")
    found = []
    for rows in np.array_split(order, groups):
        predicted = float(judged.scores[rows].mean())
        errors = judged.target[rows] - judged.scores[rows]
        spread = float(errors.std(ddof=1)) if len(rows) > 1 else math.inf
        reach = normal(CONFIDENCE) * spread / math.sqrt(len(rows))
        found.append(
            Calibration(
                rows=len(rows),
                predicted=predicted,
                observed=float(judged.target[rows].mean()),
                low=predicted - reach,
                high=predicted + reach,
            )
        )
    return tuple(found)


__all__ = ["calibrations", "quantile_calibrations"]
