"""The loop: one batch at a time, and every interval the effects that must be ordered.

    1. `sink.flush` and `dead_letters.flush`: results are safe
    2. `checkpoints.save`:                    state is safe, and says which results belong to it
    3. `source.commit(mark)`:                 the source may forget

A crash between 1 and 2 leaves results that the next start takes away again (`Sink.restore`);
between 2 and 3, a source that gives rows again which the checkpoint's mark skips. So every record
counts once.

Where others decide what counts (a transaction, a group that may have given the partitions to
somebody else meanwhile), 3 is what decides: a checkpoint that was not committed is passed over by
the next start, and the run itself goes back to the one before when a commit is refused.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import polars as pl

from engine import calls
from engine.loading.loader import Loader
from engine.observing.metrics import Metrics
from engine.observing.service import Heartbeat
from engine.observing.timing import TimingSnapshot
from engine.running.bottleneck import PARTS, RUN_SECONDS, Bottleneck
from engine.running.checkpoint import CheckpointFailed, Checkpoints, Saved, require_plain
from engine.running.dead_letters import dead_letter_frame
from engine.running.reject_limit import RejectLimit, TooManyRejects
from engine.running.totals import Totals
from engine.scrub.base import DETECTORS
from engine.scrub.fusion import FILLED_BEFORE_LEARNING
from engine.system import signals
from engine.types import (
    NO_TIMESTAMP,
    RESERVED,
    Batch,
    HeadraceError,
    Mark,
    Rejects,
    SharedSource,
    Sink,
    Snapshot,
    Source,
    Transaction,
)

log = logging.getLogger("headrace.loop")
LAG_SECONDS = 1.0
"""The seconds between two exports of the source's lag."""
BOTTLENECK_SECONDS = 10.0
"""The seconds over which the metrics diagnose the bottleneck."""
MAX_LAGS = 256
SKEW_SECONDS = 5.0
"""The most seconds that a record's time may be ahead of the clock."""
COUNTER_METRICS = {
    "filled": "missing_values", FILLED_BEFORE_LEARNING: "filled_before_learning",
    "duplicates": "duplicates",
    "clipped": "clipped_values", "truncated": "truncated_values",
}  # fmt: skip
"""Count of a stage -> counter that sums it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkResult:
    """The result of a batch, beside its rejects: one row per row of the batch for the sink, and
    how many rows were learned, predicted or only passed on."""

    batch: Batch
    rows: pl.DataFrame
    learned: int = 0
    predicted: int = 0
    cleaned: int = 0

    def with_rejects(self, refused: Rejects) -> WorkResult:
        """Return a copy that also counts the rows the sink rejected."""
        n = len(refused)
        batch = replace(self.batch, rejects=(*self.batch.rejects, refused))
        return replace(
            self,
            batch=batch,
            predicted=max(0, self.predicted - n),
            cleaned=max(0, self.cleaned - n),
        )


class Work(Protocol):
    """What the loop does with a batch: train, serve or only clean."""

    stage: str
    """``learn``, ``predict`` or ``clean``: its name in ``headrace_stage_seconds``."""

    def process(self, batch: Batch) -> WorkResult:
        """Process one batch, which may be empty."""
        ...

    def state_dict(self) -> dict[str, Snapshot]:
        """Return its part of the checkpoint."""
        ...

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Restore the state of this work."""
        ...


class Loop:
    """Runs batches through the work until the source ends, a signal comes or something fails.

    Args:
        source: for commits and moves only; the loader reads it.
        sink, dead_letters: None drops the rows (they are counted all the same).
        checkpoints: None saves nothing: a restart begins at the start.
        identity: digests that a checkpoint must have in common with this pipeline.
        watch: called after every batch with the loop and the batch (a progress bar).
        transaction: commits results and positions together, in place of `source.commit`, and says
            whether it did.
        keeps_state: whether stages or work have a state that belongs to what was read.
        mend: see `engine.running.checkpoint.Checkpoints.load`.
        diagnose: says of what was spent which part holds the run.
    """

    def __init__(
        self,
        *,
        source: Source,
        loader: Loader,
        work: Work,
        sink: Sink | None = None,
        dead_letters: Sink | None = None,
        reject_limit: RejectLimit | None = None,
        checkpoints: Checkpoints | None = None,
        identity: Mapping[str, str] | None = None,
        metrics: Metrics | None = None,
        heartbeat: Heartbeat | None = None,
        watch: Callable[[Loop, Batch], None] | None = None,
        transaction: Transaction | None = None,
        keeps_state: bool = True,
        diagnose: Callable[[TimingSnapshot], Bottleneck | None] | None = None,
        mend: Callable[[Saved], Saved] | None = None,
    ) -> None:
        self.source = source
        self.loader = loader
        self.work = work
        self.sink = sink
        self.dead_letters = dead_letters
        self.totals = Totals()
        self.mark = self._saved = Mark()
        self.metrics = metrics or Metrics()
        self.resumed = False
        self._reject_limit = reject_limit
        self._checkpoints = checkpoints
        self._identity = dict(identity or {})
        self._heartbeat = heartbeat or Heartbeat()
        for place in (sink, dead_letters):
            if place is not None:
                place.on_wait(self._heartbeat.beat)
        self._watch = watch
        self._shared = source if isinstance(source, SharedSource) else None
        self._commit = source.commit if transaction is None else transaction.commit
        self._transactional = transaction is not None
        self._commit_seconds = None if transaction is None else transaction.every
        self._keeps_state = keeps_state
        self._diagnose = diagnose
        self._mend = mend
        self._run_start = self._last_diagnosis = TimingSnapshot()
        self._aborted = False
        self._stopping = False
        self._waiting = False
        self._dirty = self._lagging = False
        self._failed: CheckpointFailed | None = None
        self._lag_reported = self._skew_reported = self._event_time = 0.0
        self._counts_reported: dict[str, int] = {}
        self._saved_at = time.monotonic()
        self._saved_batches = 0
        self._timed = loader.timer.timed

    def resume(self) -> bool:
        """Restore the newest valid checkpoint and truncate the output written after it. Return
        whether there was one.

        Raises: UserError when the checkpoint is another pipeline's; HeadraceError when none can be
        read.
        """
        try:
            state = self._newest()
            if state is None or self._checkpoints is None:
                self._go_to(None)
            else:
                with self._checkpoints.restoring(state, self._restored):
                    self._go_to(state)
                    self.loader.restore(self.mark)
            if self._checkpoints is not None:
                require_plain(self._restored())  # known now, not when all rows are done
            self.resumed = state is not None
        except BaseException:
            with self._closing():
                self.loader.close()
            raise
        if self.resumed:
            log.info("resumed", extra={"batches": self.totals.batches, "rows": self.totals.read})
        return self.resumed

    def _newest(self) -> Mapping[str, Any] | None:
        """Return the newest checkpoint that counts."""
        if self._checkpoints is None:
            return None
        return self._checkpoints.load(self._identity, self._is_committed, self._mend)

    def _go_to(self, state: Mapping[str, Any] | None) -> None:
        """Restore a checkpoint; None is the start. Sinks come last, since their truncated output
        is gone."""
        if state is not None:
            self.mark = self._saved = Mark(positions=state["positions"], stages=state["stages"])
            self.totals = Totals.restore(state["totals"])
            self.work.load_state_dict(state["work"])
            self.source.match_identities(state["identities"])
            self.loader.seek(self.mark)
            self._dirty = False
        for sink, name in ((self.sink, "sink"), (self.dead_letters, "dead_letters")):
            if sink is not None:
                with calls.Calling(name, sink):
                    sink.restore(None if state is None else state[name])

    def _parts(self) -> dict[str, Snapshot]:
        """Return the parts of a checkpoint that this run has whatever its source gives."""
        return {
            "totals": self.totals.snapshot(),
            "work": self.work.state_dict(),
            "sink": _snapshot("sink", self.sink),
            "dead_letters": _snapshot("dead_letters", self.dead_letters),
        }

    def _restored(self) -> dict[str, Snapshot]:
        """Return a checkpoint of the components as they are, without partitions, which come and
        go."""
        of_source = {"positions": None, "identities": None}
        return {**of_source, "stages": self.loader.snapshots(), **self._parts()}

    def _is_committed(self, state: Mapping[str, Any]) -> bool:
        """Return whether a checkpoint was committed; always true if the checkpoint is the
        authority.

        Raises: HeadraceError where that cannot be told and matters.
        """
        shared = self._shared
        if shared is None or not (
            self._transactional or (self._keeps_state and shared.shares_partitions)
        ):
            return True
        shared.match_identities(state["identities"])
        was_committed = shared.was_committed(state["positions"])
        if was_committed is None:
            raise HeadraceError(
                "The newest checkpoint may hold rows that others have read again: its partitions "
                "have had too many owners since; start over with --fresh."
            )
        return was_committed

    def run(self) -> Totals:
        """Run until the end of the source or a signal, then flush, save, commit.

        Raises: TooManyRejects; CheckpointFailed where the last one cannot be written; HeadraceError
            and
        whatever source, stages, work or sinks raise. What was saved stays saved.
        """
        with (
            signals.handling(self._on_signal),
            self._closing(),
            self._loading(),
            self._releasing(),
        ):
            self._saved_batches = self.totals.batches
            self._run_start = self._last_diagnosis = self.loader.timer.snapshot()
            with contextlib.suppress(signals.StopRequested):
                self._begin()
                self._batches()
            if self._stopping:
                log.info("stopping", extra={"batches": self.totals.batches})
            saved = not self._dirty or self._save()
            self._report_lag()
            if not saved and self._failed is not None:
                raise CheckpointFailed(
                    f"{self._failed} What came after it is in none: mend that and start again; it "
                    "is read again."
                ) from self._failed
            self._require_balance()
            if self._reject_limit is not None and not self._stopping:
                self._reject_limit.finish(self.totals)
            return self.totals

    def stop(self) -> None:
        """Finish the current batch, save and return from `run`. Any thread may call it."""
        self._stopping = True

    def bottleneck(self, since: TimingSnapshot | None = None) -> Bottleneck | None:
        """Return the bottleneck from the start or `since` a snapshot; None if it is too early to
        tell."""
        if self._diagnose is None:
            return None
        timing = self.loader.timer.snapshot().since(since or self._run_start)
        if since is None and timing.at < RUN_SECONDS:
            return None
        return self._diagnose(timing)

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop before the source's end."""
        return self._stopping

    def _begin(self) -> None:
        """Save where every partition starts before anything is read, so that records which come
        to a quiet partition while no engine runs are read by the next one."""
        if self._shared is None:
            return
        with self._interruptible():
            self._resume_after_rebalance(self._shared)
        if self._dirty:
            self._save()

    def _resume_after_rebalance(self, shared: SharedSource) -> None:
        """Continue with the current partitions."""
        before = self.mark.positions, self.source.identities(self.mark)
        self.mark = self._saved = shared.resume_after_rebalance(self.mark)
        self.loader.seek(self.mark)
        if before != (self.mark.positions, self.source.identities(self.mark)):
            self._dirty = True

    def _batches(self) -> None:
        batches = iter(self.loader)
        while not self._stopping:
            batch = self._next(batches)
            if batch is None:
                return
            self._heartbeat.beat(None if batch.raw_rows else self.loader.read_started)
            if self._shared is not None and (self._shared.is_rebalancing() or self._aborted):
                del batch
                batches = self._rebalance(self._shared)
                continue
            self._process(batch)
            del batch  # or it would stay in memory, uncounted, while the next is awaited

    def _rebalance(self, shared: SharedSource) -> Iterator[Batch]:
        """Handle a change of partitions: 1 save what is done, or restore the last checkpoint if
        it can no longer be committed; 2 release the partitions; 3 drop what is in flight; 4
        continue with the current ones."""
        committed = not (self._aborted or shared.partitions_lost) and self._save()
        if self._aborted or shared.partitions_lost or (shared.is_revoking and not committed):
            log.info("going back to the last checkpoint", extra={"rows": self.totals.read})
            state = self._newest()
            if state is None:
                raise HeadraceError(
                    "Partitions were taken away before the first checkpoint was saved: start again."
                )
            self._go_to(state)
        self._aborted = False
        shared.release_partitions()
        self.loader.halt()
        self._resume_after_rebalance(shared)
        self.metrics.source_rebalances.inc()
        self.metrics.source_lag_records.clear()
        log.info("partitions", extra={"positions": dict(self.mark.positions)})
        return iter(self.loader)

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        with self._interruptible():
            return next(batches, None)

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let a signal interrupt what waits inside. Raises: StopRequested."""
        self._waiting = True
        try:
            if self._stopping:
                raise signals.StopRequested
            yield
        finally:
            self._waiting = False

    def _process(self, batch: Batch) -> None:
        # Before a result can be seen: a lag of 0 says that there is none to come.
        self._report_lag(every=LAG_SECONDS if self._lagging else 0.0)
        with self._timed(self.work.stage, batch.raw_rows):
            done = self.work.process(batch)
        with self._timed("write"):
            rejects = done.batch.rejects
            if (refused := self._write(done)) is not None:
                rejects = (*rejects, refused)
                # What was learned from stays learned: only its answer is a dead letter.
                done = done if done.learned else done.with_rejects(refused)
            if self.dead_letters is not None:
                for reject in rejects:
                    with calls.Calling("dead_letters", self.dead_letters):
                        self.dead_letters.write(dead_letter_frame(reject, batch.pieces))
        self._count(done)
        self._require_balance()  # before the mark moves past it
        moved = batch.raw_rows > 0 or batch.mark.positions != self.mark.positions
        self.mark, self._dirty = batch.mark, self._dirty or moved
        if self._reject_limit is not None:
            self._check_rejects(done)
        if self._due(idle=not batch.raw_rows):
            self._save() if self._dirty else self._renew_commit()
        if self._watch is not None:
            self._watch(self, batch)

    def _write(self, done: WorkResult) -> Rejects | None:
        """Write rows to the sink; return those it can never take."""
        if self.sink is None:
            return None
        return calls.write(self.sink, done.rows, done.batch.frame.select(RESERVED))

    def _report_lag(self, every: float = 0.0) -> None:
        """Export the lag of at most MAX_LAGS partitions: a folder of a million files must not
        become a million labels."""
        now = time.monotonic()
        if now - self._lag_reported < every:
            return
        self._lag_reported = now
        self._report_counts()
        self._report_bottleneck()
        with calls.Calling("source", self.source):
            lags = self.source.lag(self._saved)
        self._lagging = any(lags.values())
        if len(lags) <= MAX_LAGS:
            for partition, n in lags.items():
                self.metrics.source_lag_records.labels(partition=partition).set(n)

    def _report_bottleneck(self) -> None:
        """Export the bottleneck of the last seconds."""
        if self._diagnose is None:
            return
        snapshot = self.loader.timer.snapshot()
        timing = snapshot.since(self._last_diagnosis)
        if timing.at < BOTTLENECK_SECONDS or (bottleneck := self._diagnose(timing)) is None:
            return
        self._last_diagnosis = snapshot
        for part in PARTS:
            self.metrics.bottleneck.labels(part=part).set(part == bottleneck.part)
        for part, seconds in bottleneck.seconds.items():
            self.metrics.busy_ratio.labels(part=part).set(seconds / bottleneck.wall)

    def _report_counts(self) -> None:
        """What source and sink count by themselves, to the metrics."""
        counts = dict(self.sink.counts()) if self.sink is not None else {}
        if self._shared is not None:
            counts |= self._shared.counts()
        metrics = self.metrics
        own = {
            "failed_records": metrics.sink_failed_records,
            "skipped": metrics.source_skipped_records,
            "commit_failures": metrics.source_commit_failures,
        }
        for name, n in counts.items():
            more = n - self._counts_reported.get(name, 0)
            self._counts_reported[name] = n
            (own.get(name) or metrics.transactions.labels(outcome=name)).inc(more)

    def _check_rejects(self, done: WorkResult) -> None:
        assert self._reject_limit is not None
        try:
            self._reject_limit.check(done.batch.raw_rows + done.batch.added, done.batch.rejects)
        except TooManyRejects:
            self._save()  # a start after mending goes on behind what was rejected
            raise

    def _require_balance(self) -> None:
        """Raises: HeadraceError where rows are missing or too many: the last line of defence, as
        whoever loses rows is told at once (`engine.calls`)."""
        totals = self.totals
        if not totals.balanced:
            raise HeadraceError(
                f"The account does not balance: {totals.read:,} read + {totals.added:,} added are "
                f"not {totals.learned:,} learned + {totals.predicted:,} predicted + "
                f"{totals.cleaned:,} cleaned + {totals.rejected:,} rejected: expected each row in "
                "exactly one of these; some component of this pipeline loses or invents rows "
                "without a word, and what came after the last checkpoint is not saved."
            )

    def _count(self, done: WorkResult) -> None:
        batch, totals, metrics = done.batch, self.totals, self.metrics
        totals.batches += 1
        totals.read += batch.raw_rows
        totals.added += batch.added
        totals.learned += done.learned
        totals.predicted += done.predicted
        totals.cleaned += done.cleaned
        if self._reject_limit is not None:
            self._reject_limit.count(batch.raw_rows + batch.added, batch.rejects, totals)
        for reject in batch.rejects:
            key = (reject.stage, reject.reason)
            totals.rejected += len(reject)
            totals.reasons[key] = totals.reasons.get(key, 0) + len(reject)
            metrics.rejected_records.labels(stage=reject.stage, reason=reject.reason).inc(
                len(reject)
            )
            if self.dead_letters is not None:
                metrics.dead_letters.labels(reason=reject.reason).inc(len(reject))
        self._report_event_time(batch)
        metrics.source_records.inc(batch.raw_rows)
        metrics.source_bytes.inc(batch.raw_bytes)
        metrics.added_records.inc(batch.added)
        metrics.learned_records.inc(done.learned)
        metrics.predicted_records.inc(done.predicted)
        metrics.cleaned_records.inc(done.cleaned)
        metrics.batch_rows.observe(len(batch))
        for (stage, name), n in batch.counts.items():
            totals.counts[stage, name] = totals.counts.get((stage, name), 0) + n
            if name in COUNTER_METRICS:
                getattr(metrics, COUNTER_METRICS[name]).inc(n)
            elif name in DETECTORS:
                metrics.drift_detections.labels(detector=name).inc(n)
        if batch.raw_rows:
            now = time.monotonic()
            latency = metrics.record_latency_seconds
            latency.labels(span="fetch_to_ready").observe(batch.ready - batch.arrived)
            latency.labels(span="ready_to_done").observe(now - batch.ready)

    def _report_event_time(self, batch: Batch) -> None:
        """Export the newest time of the records; a time in the future is a wrong clock, reported
        once a minute and not exported."""
        stamps = [int(p.timestamps.max()) for p in batch.pieces if p.timestamps is not None]
        stamps = [stamp for stamp in stamps if stamp != NO_TIMESTAMP]
        if not stamps:
            return
        newest, now = max(stamps) / 1000, time.time()
        if newest > now + SKEW_SECONDS:
            if now - self._skew_reported > 60.0:
                self._skew_reported = now
                log.warning(
                    "records are from the future: a producer's clock is wrong, or this one",
                    extra={"partition": batch.pieces[-1].partition, "ahead_seconds": newest - now},
                )
            newest = now
        self._event_time = max(self._event_time, newest)
        self.metrics.source_event_timestamp_seconds.set(self._event_time)

    def _due(self, *, idle: bool) -> bool:
        if self._checkpoints is None:
            return False
        settings, since = self._checkpoints.settings, time.monotonic() - self._saved_at
        if self._dirty and since >= self._commits_after(self._checkpoints, idle=idle):
            return True
        if settings.interval_batches is not None:
            return self.totals.batches - self._saved_batches >= settings.interval_batches
        return since >= settings.interval

    def _commits_after(self, checkpoints: Checkpoints, *, idle: bool) -> float:
        """Return the seconds between two commits of a transaction; while nothing comes, it need
        not wait. Each commit takes a checkpoint: positions, and perhaps a state, which may take
        a tenth of the time."""
        if self._commit_seconds is None:
            return math.inf
        return max(0.0 if idle else self._commit_seconds, 10 * checkpoints.seconds)

    def _save(self) -> bool:
        """1 flush, 2 save, 3 commit; return whether all is done. A failed checkpoint is counted
        and logged, and the run continues: the last good one stays, and nothing after it is
        committed."""
        with self._timed("flush"):
            for sink, name in ((self.sink, "sink"), (self.dead_letters, "dead_letters")):
                if sink is not None:
                    with calls.Calling(name, sink):
                        sink.flush()
        if self._checkpoints is not None and not self._checkpoint(self._checkpoints):
            return False
        self._dirty = False
        with calls.Calling("source", self.source):
            committed = self._commit(self.mark)
        if committed and self._checkpoints is not None:
            self._checkpoints.mark_committed()
        self._aborted = self._transactional and not committed
        if committed:
            self._saved = self.mark
        if self._checkpoints is not None:
            self._checkpoints.require()
        return committed

    def _renew_commit(self) -> None:
        """Commit the positions again, because brokers forget offsets that are not renewed.
        Nothing was done since the newest checkpoint, so it needs no new one."""
        self._saved_at, self._saved_batches = time.monotonic(), self.totals.batches
        if self._saved.positions:
            self._commit(self._saved)
            self.metrics.checkpoint_timestamp_seconds.set_to_current_time()

    def _checkpoint(self, checkpoints: Checkpoints) -> bool:
        metrics = self.metrics
        self._saved_at, self._saved_batches = time.monotonic(), self.totals.batches
        state = {
            "positions": dict(self.mark.positions),
            "stages": dict(self.mark.stages),
            "identities": dict(self.source.identities(self.mark)),
            **self._parts(),
        }
        start = time.perf_counter()
        try:
            with self._timed("checkpoint"):
                path = checkpoints.save(state, self._identity)
        except CheckpointFailed as error:
            metrics.checkpoint_failures.inc()
            self._failed = error
            log.error("checkpoint failed; the last good one stays", extra={"error": str(error)})
            return False
        self._failed = None
        metrics.checkpoint_seconds.observe(time.perf_counter() - start)
        metrics.checkpoint_bytes.set(path.stat().st_size)
        metrics.checkpoint_timestamp_seconds.set_to_current_time()
        return True

    @contextlib.contextmanager
    def _closing(self) -> Iterator[None]:
        """Close the sinks however the run ends; what was not flushed is dropped."""
        try:
            yield
        finally:
            for sink in (self.sink, self.dead_letters):
                if sink is not None:
                    sink.close()

    @contextlib.contextmanager
    def _loading(self) -> Iterator[None]:
        """End the loader's threads however the run ends. A thread that still waits for an
        unreachable broker is no failure if a signal ended the run: everything was saved."""
        try:
            yield
        finally:
            try:
                self.loader.close()
            except HeadraceError as error:
                if signals.stop_signal() is None:
                    raise
                log.warning("%s", error)

    @contextlib.contextmanager
    def _releasing(self) -> Iterator[None]:
        """Release waiting threads however the run ends, so that the loader's threads can end."""
        try:
            yield
        finally:
            if self._shared is not None:
                self._shared.release_partitions()

    def _on_signal(self) -> None:
        """Handle SIGINT and SIGTERM by stopping cleanly."""
        self._stopping = True
        if self._waiting:
            raise signals.StopRequested


def _snapshot(section: str, sink: Sink | None) -> Snapshot:
    if sink is None:
        return None
    with calls.Calling(section, sink):
        return sink.snapshot()


__all__ = ["Loop", "Work", "WorkResult"]
