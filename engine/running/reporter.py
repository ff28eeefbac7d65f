"""Exports a run to the metrics: rows by outcome, times, lag, the bottleneck."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

from engine.observing.metrics import Metrics
from engine.observing.timing import StageTimer, TimingSnapshot
from engine.running.bottleneck import PARTS, RUN_SECONDS, Bottleneck
from engine.running.notes import Notes
from engine.running.work import WorkResult
from engine.scrub.base import DETECTORS
from engine.scrub.fusion import FILLED_BEFORE_LEARNING
from engine.types import MISSING_VALUES, NO_TIMESTAMP, Batch, Mark, SharedSource, Sink, Source
from engine.user_code import calls

log = logging.getLogger("headrace.loop")
LAG_SECONDS = 1.0
"""The seconds between two exports of the source's lag."""
BOTTLENECK_SECONDS = 10.0
"""The seconds over which the metrics diagnose the bottleneck."""
MAX_LAGS = 256
"""The most partitions whose lag is exported: a folder of a million files must not become a million
labels."""
SKEW_SECONDS = 5.0
"""The most seconds that a record's time may be ahead of the clock."""
SKEW_LOG_SECONDS = 60.0
"""The seconds between two warnings about it."""
COUNTER_METRICS = {
    "filled": "missing_values", FILLED_BEFORE_LEARNING: "filled_before_learning",
    "duplicates": "duplicates",
    "clipped": "clipped_values", "truncated": "truncated_values",
    "forgotten": "forgotten_keys", "expired": "expired_keys",
}  # fmt: skip
"""Count of a stage -> counter that sums it."""

Diagnose = Callable[[TimingSnapshot], Bottleneck | None]
"""Finds the bottleneck in a timing; None if it is too early to tell."""


class Reporter:
    """Updates the metrics of a run.

    Args:
        source, sink: export their lag and their own counts.
        timer: the loader's, which times the loop's work too.
        diagnose: None exports no bottleneck.
        notes: what the live page shows beside the metrics.
        time_column: a datetime or date column with the time of the data; None for none.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        source: Source,
        timer: StageTimer,
        sink: Sink | None = None,
        diagnose: Diagnose | None = None,
        notes: Notes | None = None,
        time_column: str | None = None,
    ) -> None:
        self.metrics = metrics
        self.notes = notes or Notes()
        self.timer = timer
        self._source = source
        self._sink = sink
        self._diagnose = diagnose
        self._run_start = self._last_diagnosis = TimingSnapshot()
        self._lagging = False
        self._lag_at = self._skew_at = self._event_time = 0.0
        self._time_in_data: float | None = None
        self._time_column = time_column
        self._counts: dict[str, int] = {}
        latency = metrics.record_latency_seconds
        self._fetch_to_ready = latency.labels(span="fetch_to_ready")
        self._ready_to_done = latency.labels(span="ready_to_done")

    @property
    def event_time(self) -> float | None:
        """The newest time of a record that was done, in seconds since the epoch: its source's own,
        or the one in its data where that has none; None if neither is known."""
        return self._event_time or self._time_in_data

    def begin(self) -> None:
        """Start a run: time spent before does not count."""
        self._run_start = self._last_diagnosis = self.timer.snapshot()

    def done(self, done: WorkResult, *, dead_letters: bool) -> None:
        """Count the result of a batch.

        Args:
            dead_letters: whether its rejected rows went to a sink.
        """
        batch, metrics = done.batch, self.metrics
        for reject in batch.rejects:
            rows = len(reject)
            metrics.rejected_records.labels(stage=reject.stage, reason=reject.reason).inc(rows)
        for reject in done.failed:
            self.notes.rejected(reject)
            if dead_letters:
                metrics.dead_letters.labels(reason=reject.reason).inc(len(reject))
        self._event_times(batch)
        self._time_in_data = done.event_time or self._newest_in_column(batch)
        metrics.source_records.inc(batch.raw_rows)
        metrics.source_bytes.inc(batch.raw_bytes)
        metrics.added_records.inc(batch.added)
        metrics.learned_records.inc(done.learned)
        metrics.predicted_records.inc(done.predicted)
        metrics.cleaned_records.inc(done.cleaned)
        metrics.expired_records.inc(done.expired)
        metrics.matched_records.inc(done.matched)
        if batch.raw_rows:  # the loop beats with empty batches while a source is idle
            metrics.batch_rows.observe(len(batch))
        for (stage, name), n in batch.counts.items():
            metrics.stage_events.labels(stage=stage, event=name).inc(n)
            if name.startswith(MISSING_VALUES):
                metrics.missing_values.inc(n)
            elif name in COUNTER_METRICS:
                getattr(metrics, COUNTER_METRICS[name]).inc(n)
            elif name in DETECTORS:
                metrics.drift_detections.labels(detector=name).inc(n)
        if batch.raw_rows:
            self._fetch_to_ready.observe(batch.ready - batch.arrived)
            self._ready_to_done.observe(time.monotonic() - batch.ready)

    def answered(self, batch: Batch) -> None:
        """Export how long rows waited that were answered before they are learned."""
        waited = time.monotonic() - batch.ready
        self.metrics.record_latency_seconds.labels(span="ready_to_answered").observe(waited)

    def lag(self, mark: Mark, *, at_once: bool = True) -> None:
        """Export the lag of the source behind `mark`, and with it own counts and the bottleneck.

        Args:
            mark: the newest committed mark.
            at_once: False exports a lag that is above 0 only every LAG_SECONDS.
        """
        now = time.monotonic()
        if not at_once and self._lagging and now - self._lag_at < LAG_SECONDS:
            return
        self._lag_at = now
        self._own_counts()
        self._show_bottleneck()
        with calls.Calling("source", self._source):
            lags = self._source.lag(mark)
        self._lagging = any(lags.values())
        if len(lags) <= MAX_LAGS:
            with calls.Calling("source", self._source):
                self.notes.lags({name: self._source.lag_unit(name) for name in lags})
            for partition, n in lags.items():
                self.metrics.source_lag_records.labels(partition=partition).set(n)

    def bottleneck(self, since: TimingSnapshot | None = None) -> Bottleneck | None:
        """Return the bottleneck from the start or `since` a snapshot; None if it is too early to
        tell."""
        if self._diagnose is None:
            return None
        timing = self.timer.snapshot().since(since or self._run_start)
        if since is None and timing.at < RUN_SECONDS:
            return None
        return self._diagnose(timing)

    def rebalanced(self) -> None:
        """Count a rebalance and forget the lag of the partitions before it."""
        self.metrics.source_rebalances.inc()
        self.metrics.source_lag_records.clear()

    def checkpoint_saved(self, path: Path, seconds: float) -> None:
        """Export the size, time and age of a new checkpoint."""
        self.metrics.checkpoint_seconds.observe(seconds)
        self.metrics.checkpoint_bytes.set(path.stat().st_size)
        self.checkpoint_renewed()

    def checkpoint_renewed(self) -> None:
        """Export that the newest checkpoint is up to date."""
        self.metrics.checkpoint_timestamp_seconds.set_to_current_time()

    def checkpoint_failed(self) -> None:
        """Count a checkpoint that could not be written."""
        self.metrics.checkpoint_failures.inc()

    def _show_bottleneck(self) -> None:
        """Export the bottleneck of the last seconds."""
        if self._diagnose is None:
            return
        if time.perf_counter() - self._last_diagnosis.at < BOTTLENECK_SECONDS:
            return  # a snapshot looks at every thread
        snapshot = self.timer.snapshot()
        timing = snapshot.since(self._last_diagnosis)
        if (bottleneck := self._diagnose(timing)) is None:
            return
        self._last_diagnosis = snapshot
        self.notes.diagnosed(bottleneck)
        for part in PARTS:
            self.metrics.bottleneck.labels(part=part).set(part == bottleneck.part)
        for part, seconds in bottleneck.seconds.items():
            self.metrics.busy_ratio.labels(part=part).set(seconds / bottleneck.wall)

    def _own_counts(self) -> None:
        """Export what source and sink count themselves."""
        counts = dict(self._sink.counts()) if self._sink is not None else {}
        if isinstance(self._source, SharedSource):
            counts |= self._source.counts()
        metrics = self.metrics
        own = {
            "failed_records": metrics.sink_failed_records,
            "skipped": metrics.source_skipped_records,
            "commit_failures": metrics.source_commit_failures,
        }
        for name, n in counts.items():
            more = n - self._counts.get(name, 0)
            self._counts[name] = n
            (own.get(name) or metrics.transactions.labels(outcome=name)).inc(more)

    def _newest_in_column(self, batch: Batch) -> float | None:
        """Return the newest time of the data so far by its time column, if there is one."""
        known, column = self._time_in_data, self._time_column
        if column is None or not isinstance(batch.frame.schema.get(column), pl.Datetime | pl.Date):
            return known
        newest = batch.frame.get_column(column).dt.epoch("us").max()
        if not isinstance(newest, int):  # no row has a time
            return known
        return newest / 1e6 if known is None else max(known, newest / 1e6)

    def _event_times(self, batch: Batch) -> None:
        """Export the newest time of the records; a time in the future is a wrong clock, logged and
        not exported."""
        stamps = [int(p.timestamps.max()) for p in batch.pieces if p.timestamps is not None]
        stamps = [stamp for stamp in stamps if stamp != NO_TIMESTAMP]
        if not stamps:
            return
        newest, now = max(stamps) / 1000, time.time()
        if newest > now + SKEW_SECONDS:
            if now - self._skew_at > SKEW_LOG_SECONDS:
                self._skew_at = now
                log.warning(
                    "records are from the future: a producer's clock is wrong, or this one",
                    extra={"partition": batch.pieces[-1].partition, "ahead_seconds": newest - now},
                )
            newest = now
        self._event_time = max(self._event_time, newest)
        self.metrics.source_event_timestamp_seconds.set(self._event_time)


__all__ = ["Diagnose", "Reporter"]
