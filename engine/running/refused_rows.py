"""The rows that training refuses: those it could not learn, and those that have no answer."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from engine.quality.measures import finite_rows
from engine.types import Batch, Step


def without_step(batch: Batch, reason: str) -> Batch:
    """Return a batch without its rows, whose step was skipped."""
    return batch.reject(
        pl.repeat(False, len(batch), eager=True),
        stage="learn",
        reason=reason,
        detail="The step's loss or gradient was not finite, so nothing was learned from these "
        "rows.",
    )


def without_unlearned(batch: Batch, step: Step) -> tuple[Batch, Step]:
    """Drop the rows that could not be learned."""
    if step.not_learned is None:
        return batch, step
    batch = batch.reject(
        pl.Series(~step.not_learned),
        stage="learn",
        reason="non_finite",
        detail="The row's loss or gradient was not finite, so nothing was learned from it.",
    )
    return batch, replace(step, scores=step.scores[~step.not_learned], not_learned=None)


def without_unscored(batch: Batch, step: Step) -> tuple[Batch, Step]:
    """Drop the rows without a finite score."""
    there = finite_rows(step.scores)
    if there.all():
        return batch, step
    batch = batch.reject(
        pl.Series(there),
        stage="predict",
        reason="non_finite",
        detail="Expected a finite score, got one that is none, so the row has no answer.",
    )
    scored_only = min(step.scored_only, len(batch))
    return batch, replace(step, scores=step.scores[there], scored_only=scored_only)


__all__ = ["without_step", "without_unlearned", "without_unscored"]
