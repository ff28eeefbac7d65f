"""Judges whether a new model is surely worse than the one that serves, on held-out rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine.types import Features, UserError, class_indexes
from engine.types.arrays import Bools, Floats
from engine.types.plural import counted
from models.compress.comparison import (
    Figure,
    Rules,
    compare_classes,
    compare_quantiles,
    compare_regression,
    compare_targets,
)
from models.compress.gate import MIN_JUDGED
from models.serving.predictor import Network, OnnxPredictor

MAX_ROWS = 2_000
"""The newest held-out rows that both are judged on."""
OVERALL = 2
"""The first figures, which are over all rows: MAE and RMSE, pinball loss and coverage error of
quantiles, or error and log loss of classes."""


def surely_worse(
    new: Path,
    old: Path,
    rows: pl.DataFrame,
    *,
    allowed: float,
    network: Network | None = None,
) -> str:
    """Return by how much a model is surely worse than another, as a part of a sentence; "" if it is
    not, or if that cannot be told: too few rows, or rows that the other does not read.

    Args:
        rows: raw, with the target, oldest first.
        allowed: percent of MAE and RMSE of a regression, or of the pinball loss; for coverage and
            classes points of 100.
        network: makes the network of a file where torch runs it.
    """
    rows = rows.tail(MAX_ROWS)
    try:
        models = [
            OnnxPredictor(OnnxPredictor.Settings(model=str(path), threads=1), network=network)
            for path in (new, old)
        ]
        candidate, base = (np.asarray(model.scores(rows), np.float64) for model in models)
    except UserError:  # the one that serves is of another pipeline
        return ""
    ours, theirs = (model.features for model in models)
    if _answers(ours) != _answers(theirs):
        return ""
    target, known = _labels(rows.select(list(ours.targets) or models[0].target), ours)
    known &= _finite(candidate) & _finite(base)
    count = int(known.sum())
    if count < MIN_JUDGED:
        return ""
    figures = _compare(target[known], base[known], candidate[known], ours, Rules(max_loss=allowed))
    worse = [figure for figure in figures if _is_surely(figure, allowed)]
    return _said(worse[0], allowed, count) if worse else ""


def _answers(features: Features) -> tuple[object, ...]:
    """Return what a model answers with."""
    return features.task, features.classes, features.targets, features.quantiles


def _labels(columns: pl.DataFrame, features: Features) -> tuple[Any, Bools]:
    """Return numbers or class numbers, (n,) or of several targets (n, k), and which rows have a
    label, (n,)."""
    if features.task == "regression":
        numbers = columns.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        known = np.isfinite(numbers).any(axis=1)
        return numbers if features.targets else numbers[:, 0], known
    indexes = class_indexes(columns.to_series(), features.classes)
    return indexes, indexes >= 0


def _compare(
    target: Any, base: Floats, candidate: Floats, features: Features, rules: Rules
) -> tuple[Figure, ...]:
    """Return the figures over all rows."""
    if features.targets:
        return compare_targets(target, base, candidate, rules, features.targets, OVERALL)
    if features.quantiles:
        return compare_quantiles(target, base, candidate, rules, features.quantiles)[:OVERALL]
    if features.task == "regression":
        return compare_regression(target, base, candidate, rules)[:OVERALL]
    return compare_classes(
        target, base, candidate, rules, names=features.classes, threshold=features.threshold
    )[:OVERALL]


def _is_surely(figure: Figure, allowed: float) -> bool:
    """Return whether a figure is worse; beside one that makes no error, there is no interval."""
    return figure.loss > allowed and not figure.loss_low <= allowed


def _said(figure: Figure, allowed: float, rows: int) -> str:
    what = f"its {figure.name} on {counted(rows, 'held-out row')}"
    if not math.isfinite(figure.loss):
        return f"{what} is {figure.value:.4g}, where the other has none"
    unit = " %" if figure.unit == "%" else " points"
    return (
        f"{what} is worse by {figure.loss:.2f}{unit} ({figure.loss_low:.2f} to "
        f"{figure.loss_high:.2f}), and {allowed:g} are allowed"
    )


def _finite(scores: Floats) -> Bools:
    return np.asarray(np.isfinite(scores).reshape(len(scores), -1).all(axis=1))


__all__ = ["surely_worse"]
