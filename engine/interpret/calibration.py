"""Reliability: predictions beside what happened.

Of a calibrated model, a tenth of the rows with a probability of 0.1 have the class. Rows are
grouped by their prediction; each group has the interval in which 95 % of such groups of a
calibrated model have their labels' mean (Broecker & Smith, "Increasing the Reliability of
Reliability Diagrams", 2007; by the normal approximation).
"""

from __future__ import annotations

import math

import numpy as np

from engine.interpret.figures import Calibration
from engine.interpret.judging import Judge, Judged, normal
from engine.quality.measures import CALIBRATION_GROUPS, reliability

GROUP_ROWS = 20
"""The fewest rows of a group, where there are enough for two."""
CONFIDENCE = 0.95


def calibrations(judge: Judge, judged: Judged) -> tuple[Calibration, ...]:
    """Return groups of rows by prediction, the lowest first; none for classes without
    probabilities."""
    groups = max(1, min(CALIBRATION_GROUPS, len(judged) // GROUP_ROWS))
    if judge.regression:
        return _of_values(judged, groups)
    if not judge.probabilistic:
        return ()
    return tuple(
        _of_shares(group["rows"], group["predicted"], group["true"])
        for group in reliability(judge.sums(judged).histogram, groups)
    )


def _of_shares(rows: int, predicted: float, observed: float) -> Calibration:
    reach = normal(CONFIDENCE) * math.sqrt(predicted * (1 - predicted) / rows)
    # A group of few rows has few shares: half a row more on both sides.
    reach += 0.5 / rows
    low, high = max(0.0, predicted - reach), min(1.0, predicted + reach)
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


__all__ = ["calibrations"]
