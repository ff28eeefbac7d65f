"""Permutation importance: by how much a metric worsens when a column is permuted.

Breiman, "Random Forests" (2001), for any model and metric: Fisher, Rudin & Dominici, "All Models
are Wrong, but Many are Useful" (JMLR 2019). A column that tells nothing could as well have come in
any other order, so its own order is one more draw among the permuted ones: 0 then lies where 95 %
of draws do (a prediction interval, by Student's distribution).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import polars as pl

from engine.interpret.figures import Importance
from engine.interpret.judging import Judged, student
from engine.interpret.rows import Watch
from engine.interpret.subject import Subject
from engine.types.arrays import Floats

CONFIDENCE = 0.95


def importances(
    subject: Subject,
    frame: pl.DataFrame,
    base: Judged,
    measure: Callable[[Judged], float],
    *,
    repeats: int,
    seed: int,
    watch: Watch,
) -> tuple[tuple[Importance, ...], dict[str, int]]:
    """Return the importance of each column that the model reads, most important first; and column
    -> permuted rows that had no score, which count nowhere.

    Args:
        frame: the judged rows; all of them have a label and a score, `base`.
        measure: the error over rows: the higher, the worse.
    """
    rng = np.random.default_rng(seed)
    whole = measure(base)
    orders = [rng.permutation(frame.height) for _ in range(repeats)]
    found: list[Importance] = []
    lost: dict[str, int] = {}
    for number, column in enumerate(subject.columns):
        watch(f"permuting '{column}'", number / len(subject.columns))
        rises = np.empty(repeats)
        for at, order in enumerate(orders):
            permuted = frame.with_columns(frame[column].gather(order))
            judged = subject.judge(permuted)
            rises[at] = measure(judged) - whole
            if len(judged) < len(base):
                rises[at] += whole - measure(_same_rows(base, judged))
                lost[column] = lost.get(column, 0) + len(base) - len(judged)
        found.append(_importance(column, rises))
    return tuple(sorted(found, key=lambda each: -each.worse)), lost


def _same_rows(base: Judged, judged: Judged) -> Judged:
    """Return those of the rows that were judged again."""
    mask = np.zeros(len(base), np.bool_)
    mask[judged.rows] = True
    return base.only(mask)


def _importance(column: str, rises: Floats) -> Importance:
    mean, repeats = float(rises.mean()), len(rises)
    spread = float(rises.std(ddof=1)) * math.sqrt(1 + 1 / repeats)
    reach = student(CONFIDENCE, repeats - 1) * spread
    return Importance(column=column, worse=mean, low=mean - reach, high=mean + reach)


__all__ = ["importances"]
