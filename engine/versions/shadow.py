"""A version in the shadow: it answers some of the rows too, and nobody sees its answers. How far
they are from those of the version that serves is on /metrics.

A thread of low priority does that. While it is busy, rows are not compared: the predicting thread
never waits, and hands over a copy of a few rows at most.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.errors import first_line
from engine.observing.metrics import Metrics
from engine.types import Batch, Mark, Predictor
from engine.versions.priority import lower_priority

log = logging.getLogger("headrace.versions")
ROW = "_shadow_row"
"""The column that numbers the rows of a comparison."""
POLL_SECONDS = 0.2
"""How soon an idle shadow notices its end."""
UNCOMPARED = "model_version"


class Shadow:
    """Compares the answers of two versions to a share of the rows.

    Args:
        share: of the rows (0-1).

    Attributes:
        predictor: the version in the shadow, bound; None compares nothing.
    """

    def __init__(self, share: float) -> None:
        self.predictor: Predictor | None = None
        self._share = share
        self._seen = 0.0
        self._waiting: queue.Queue[tuple[pl.DataFrame, Sequence[str]]] = queue.Queue(maxsize=1)
        self._failed: Predictor | None = None

    def offer(self, answered: pl.DataFrame, answers: Sequence[str]) -> None:
        """Take some rows with the answers of the version that serves, unless the shadow is busy.

        Args:
            answers: the columns that are answers.
        """
        rows = self._chosen(answered.height)
        if self.predictor is None or not len(rows) or self._waiting.full():
            return
        self._waiting.put_nowait((answered[rows], answers))  # the predicting thread alone puts

    def follow(self, done: threading.Event, metrics: Metrics) -> None:
        """Compare what is offered until `done`. Runs in a thread of its own."""
        lower_priority()
        while not done.is_set():
            try:
                frame, answers = self._waiting.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if (predictor := self.predictor) is not None and predictor is not self._failed:
                self._compare(predictor, frame, answers, metrics)

    def _compare(
        self, predictor: Predictor, frame: pl.DataFrame, answers: Sequence[str], metrics: Metrics
    ) -> None:
        asked = frame.drop(answers).with_row_index(ROW)
        batch = Batch(frame=asked, mark=Mark(), arrived=0.0, raw_rows=asked.height)
        try:
            theirs = predictor.predict(batch).frame
        except Exception as error:  # noqa: BLE001 - whatever it is, rows are served without it
            self._failed = predictor
            log.warning("the version in the shadow fails and is left out: %s", first_line(error))
            return
        ours = frame[theirs.get_column(ROW).to_numpy()]
        metrics.shadow_records.labels(outcome="compared").inc(theirs.height)
        metrics.shadow_records.labels(outcome="unanswered").inc(frame.height - theirs.height)
        if theirs.height:
            metrics.shadow_divergence_ratio.observe(divergence(ours, theirs, answers))

    def _chosen(self, rows: int) -> NDArray[np.int64]:
        """Return which of so many rows are compared: one after so many of all that came."""
        before, self._seen = self._seen, self._seen + rows * self._share
        count = int(self._seen) - int(before)
        return (np.arange(count) * rows // max(1, count)).astype(np.int64)


def divergence(ours: pl.DataFrame, theirs: pl.DataFrame, answers: Sequence[str]) -> float:
    """Return how far two versions' answers to the same rows are apart, of the column where that is
    most: of numbers the mean difference over the mean magnitude, of others the share of different
    ones."""
    columns = (name for name in answers if name != UNCOMPARED)
    return max((_apart(ours[name], theirs[name]) for name in columns), default=0.0)


def _apart(ours: pl.Series, theirs: pl.Series) -> float:
    if not ours.dtype.is_numeric():
        return float(ours.ne_missing(theirs).cast(pl.Float64).mean() or 0.0)  # type: ignore[arg-type]
    a, b = ours.cast(pl.Float64).to_numpy(), theirs.cast(pl.Float64).to_numpy()
    largest = np.abs(a).mean()
    return float(np.abs(a - b).mean() / (largest or 1.0))


__all__ = ["Shadow", "divergence"]
