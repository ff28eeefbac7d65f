"""Detects drift of columns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import polars as pl
from pydantic import Field

from engine import types
from engine.columnar.kernels import MAX_ABS
from engine.scrub.columns import expand_columns, numbers
from engine.scrub.too_large import TooLarge
from engine.scrub.watching.detectors import Adwin, Detector, Drifts, PageHinkley, Psi
from engine.types import Batch, Names, Schema, Snapshot, Stage, Transform, UserError
from engine.types.changes import Neutral

log = logging.getLogger("headrace.scrub")

LOGGED = 8
"""The detections of one batch that are logged individually."""
ONLY_FOR = {
    "confidence": ("adwin",),
    "slack": ("page_hinkley",),
    "threshold": ("page_hinkley", "psi"),
    "window": ("psi",),
    "bins": ("psi",),
    "warmup": ("adwin", "page_hinkley"),
}
"""Setting -> the detectors that use it."""


class Drift(Stage):
    """Counts the rows at which a column changed, and changes nothing itself. Counts are exported
    as ``headrace_drift_detections_total{detector}``; a later stage that learns can start anew
    there, with its setting `forget_on`.

    ``adwin`` and ``page_hinkley`` look for a change of the mean at every number, ``psi`` for one of
    the whole distribution, missing values included, at the end of every window of rows: see
    `engine.scrub.watching.detectors` for the methods and their sources. Where it is found is exact
    to the row and does not depend on how the stream is cut.

    False alarms in 10**6 independent numbers, measured in the defaults: none for normal, uniform
    and exponential ones; for heavy tails (lognormal, Student's t with 3 degrees) 5 or less by
    adwin, 10 or less by page_hinkley, none by psi. A change of the mean by one deviation is found
    after 52 to 84 rows by adwin, 49 to 94 by page_hinkley, and by psi at the end of the next full
    window; one of half a deviation after 116 to 276, 119 to 354, and mostly in the next window.
    """

    class Settings(types.Settings):
        """``[scrub.NAME]`` with ``kind = "drift"``

        Attributes:
            columns: names or globs.
            detector: adwin, page_hinkley or psi.
            confidence: for adwin, the probability of a false alarm at a check; 0.002 by default.
            slack: for page_hinkley, a change of the mean that does not matter, in units; 0.25 by
                default.
            threshold: for page_hinkley, how far a sum must go, in units: 50 by default; for psi
                the index above which it is drift: 0.2 by default.
            window [rows]: for psi, rows; 1,000 by default.
            bins: for psi, quantiles of the reference; 10 by default.
            warmup [numbers]: for adwin and page_hinkley, numbers of a column whose deviation
                becomes its unit (adwin: four deviations), at the start and after each drift; 300 by
                default; 0 takes numbers as they are.
            log: write a warning with column, row and detector to the log.
        """

        columns: Neutral[Names]
        detector: Literal["adwin", "page_hinkley", "psi"] = "adwin"
        confidence: float = Field(0.002, gt=0, lt=1)
        slack: float = Field(0.25, ge=0, allow_inf_nan=False)
        threshold: float | None = Field(None, gt=0, allow_inf_nan=False)
        window: int = Field(1_000, ge=20)
        bins: int = Field(10, ge=2, le=1_000)
        warmup: int = Field(300, ge=0)
        log: Neutral[bool] = True

    def __init__(self, name: str, settings: Drift.Settings) -> None:
        super().__init__(name, settings)
        self.settings: Drift.Settings = settings
        self._columns: tuple[str, ...] = ()
        self._detector: Detector | None = None
        self._too_large = TooLarge()

    def bind(self, schema: Schema) -> Schema:
        detector = self.settings.detector
        for key in ONLY_FOR:
            if key in self.settings.model_fields_set and detector not in ONLY_FOR[key]:
                raise UserError(
                    f"{self.where} has '{key}', which is for {' and '.join(ONLY_FOR[key])}: take "
                    f"it away, or set another detector than '{detector}'."
                )
        self._columns = expand_columns(self.settings.columns, schema, where=self.where)
        numbers(self._columns, schema, where=self.where)
        if self._detector is None:
            self._detector = self._fresh(len(self._columns))
        return schema

    def _fresh(self, columns: int) -> Detector:
        settings = self.settings
        if settings.detector == "adwin":
            warmup = settings.warmup
            return Adwin.empty(columns, confidence=settings.confidence, warmup=warmup)
        if settings.detector == "page_hinkley":
            return PageHinkley.empty(
                columns,
                slack=settings.slack,
                threshold=settings.threshold or 50.0,
                keep=1.0,
                warmup=settings.warmup,
            )
        return Psi.empty(
            columns,
            bins=settings.bins,
            window=settings.window,
            threshold=settings.threshold or 0.2,
        )

    def apply(self, batch: Batch) -> Batch:
        assert self._detector is not None
        drifts: Drifts = []
        if len(batch):
            block = batch.frame[list(self._columns)]
            self._detector, drifts = self._detector.update(block)
            self._too_large.note(block, MAX_ABS)
        if self.settings.log:
            self._tell(batch.frame, drifts)
        counts = {self.settings.detector: len(drifts), **self._too_large.counts()}
        return batch.counted(self.name, **counts)

    def _tell(self, frame: pl.DataFrame, drifts: Drifts) -> None:
        for column, row in drifts[:LOGGED]:
            partition, position = frame.row(row)[:2]
            where = {"column": self._columns[column], "partition": partition, "position": position}
            log.warning(
                "drift", extra={"stage": self.name, "detector": self.settings.detector, **where}
            )
        if len(drifts) > LOGGED:
            more = len(drifts) - LOGGED
            log.warning("more drift in the same batch", extra={"stage": self.name, "times": more})

    def remarks(self) -> list[str]:
        """Return a sentence for each column with numbers that are too large to learn from."""
        return list(self._too_large.remarks(self.where, MAX_ABS))

    def snapshot(self) -> Snapshot:
        """Return the detector's fields."""
        return None if self._detector is None else self._detector.snapshot()

    def restore(self, value: Snapshot) -> None:
        assert self._detector is not None
        self._detector = self._detector.restore(value)

    def transforms(self) -> Sequence[Transform] | None:
        """Return no transform: it changes no value."""
        return ()


__all__ = ["Drift"]
