"""Errors over time: sums per step, for the model and its baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray


def add_errors(
    history: pl.DataFrame, steps: pl.Series, errors: NDArray[np.float64], names: Sequence[str]
) -> pl.DataFrame:
    """Return the history with these rows added.

    Args:
        history: columns ``time``, and ``sum NAME`` and ``n NAME`` for each name; or empty.
        steps: the step of each row, shape (n,).
        errors: NaN if there is none, shape (n, names).
    """
    sums = [f"sum {name}" for name in names]
    added = (
        pl.DataFrame(errors, schema=sums, orient="row", nan_to_null=True)
        .with_columns(steps.alias("time"))
        .group_by("time", maintain_order=True)
        .agg(
            *(pl.col(c).sum() for c in sums),
            *(pl.col(f"sum {name}").count().cast(pl.Int64).alias(f"n {name}") for name in names),
        )
    )
    if not history.height:
        return added
    both = pl.concat([history, added])
    return both.group_by("time", maintain_order=True).agg(pl.all().sum())


def mean_errors(history: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Return the mean error per step, in the order of time: columns ``time``, ``rows`` (those of
    the first name), and one per name."""
    if not history.height:
        return history
    means = [
        (pl.col(f"sum {name}") / pl.col(f"n {name}")).fill_nan(None).alias(name) for name in names
    ]
    rows = pl.col(f"n {names[0]}").alias("rows")
    return history.sort("time").select("time", rows, *means)


__all__ = ["add_errors", "mean_errors"]
