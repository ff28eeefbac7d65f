"""A canary: the version in the shadow answers some keys for real, always the same ones."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl

from engine.columnar.hashing import hashes
from engine.errors import first_line
from engine.observing.metrics import Metrics
from engine.types import Batch, Mark, Predictor, Schema, require

log = logging.getLogger("headrace.versions")
LARGEST = 2**64 - 1


class Canary:
    """Replaces the answers to some keys by those of another version.

    Args:
        share: of the keys (0-1).
        by: the columns of the key.

    Attributes:
        predictor: the other version, bound; None replaces nothing.
    """

    def __init__(self, share: float, by: Sequence[str]) -> None:
        self.predictor: Predictor | None = None
        self._limit = np.uint64(min(LARGEST, int(share * LARGEST)))
        self._by = by

    def bind(self, schema: Schema) -> None:
        """Raises: UserError if a column of the key is missing."""
        require(schema, self._by, where="[infer] canary_by")

    def answer(self, asked: Batch, done: Batch, answers: Sequence[str], metrics: Metrics) -> Batch:
        """Return the answers of both versions to a batch: each row of one of them. A batch in which
        either has no finite answer to a row is that of the version that serves.

        Args:
            asked: as both are asked.
            done: what the version that serves has answered.
            answers: the columns that are answers.
        """
        predictor = self.predictor
        if predictor is None or not len(asked) or len(done) != len(asked):
            return done
        rows = np.flatnonzero(hashes(asked.frame.select(self._by)) <= self._limit)
        if not len(rows):
            return done
        frame = asked.frame[rows]
        try:
            theirs = predictor.predict(
                Batch(frame=frame, mark=Mark(), arrived=asked.arrived, raw_rows=frame.height)
            ).frame
        except Exception as error:  # noqa: BLE001 - whatever it is, the other version serves on
            self.predictor = None
            log.warning("the canary fails and answers no more: %s", first_line(error))
            return done
        if theirs.height != len(rows):
            metrics.shadow_records.labels(outcome="unanswered").inc(len(rows) - theirs.height)
            return done
        metrics.shadow_records.labels(outcome="served").inc(len(rows))
        order = np.arange(len(done))
        order[rows] = len(done) + np.arange(len(rows))
        both = pl.concat([done.frame.select(answers), theirs.select(answers)])
        return done.with_frame(done.frame.with_columns(both[order].get_columns()))


__all__ = ["Canary"]
