"""The rows that the model is most wrong about."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl

from engine.interpret.figures import Importance, WorstRow
from engine.interpret.judging import Judge, Judged
from engine.types import PARTITION, POSITION
from engine.types.arrays import Floats
from engine.types.plural import short_number

ROWS = 10
COLUMNS = 6
MAX_CHARS = 40
"""The most characters of a value that are shown."""


def worst_rows(
    judge: Judge,
    frame: pl.DataFrame,
    judged: Judged,
    losses: Floats,
    importances: tuple[Importance, ...],
) -> tuple[WorstRow, ...]:
    """Return the rows with the largest losses, the largest first.

    Args:
        frame, judged, losses: n rows.
        importances: the most important columns, whose values are shown.
    """
    columns = [
        each.column
        for each in importances
        if not isinstance(frame.schema[each.column], pl.Array | pl.Binary | pl.Object)
    ]
    shown, found = columns[:COLUMNS], []
    rows = frame.select(PARTITION, POSITION, *shown)
    for row in np.argsort(-losses, kind="stable")[:ROWS].tolist():
        values = rows.row(row, named=True)
        label, prediction = _words(judge, judged, row)
        found.append(
            WorstRow(
                partition=values[PARTITION],
                position=values[POSITION],
                label=label,
                prediction=prediction,
                loss=float(losses[row]),
                values={name: _text(values[name]) for name in shown},
            )
        )
    return tuple(found)


def _words(judge: Judge, judged: Judged, row: int) -> tuple[str, str]:
    """Return the label and the prediction of a row, of several quantiles from which to which."""
    one = judged.only(np.arange(len(judged)) == row)
    if judge.regression:
        ends = () if one.quantiles is None else (one.quantiles[0, 0], one.quantiles[0, -1])
        between = f" ({' to '.join(short_number(float(end)) for end in ends)})" if ends else ""
        return short_number(float(one.target[0])), short_number(float(one.scores[0])) + between
    names = judge.features.classes
    label, number = names[int(one.target[0])], int(judge.predicted(one)[0])
    predicted = names[number] if number >= 0 else "no class"
    if not judge.probabilistic:
        return label, predicted
    share = float(judge.true_probabilities(one)[0])
    return label, f"{predicted} (probability of {label}: {share:.3g})"


def _text(value: Any) -> str:
    """Return a value as people read it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    text = short_number(value) if isinstance(value, float) and math.isfinite(value) else str(value)
    return text if len(text) <= MAX_CHARS else text[: MAX_CHARS - 3] + "..."


__all__ = ["worst_rows"]
