"""The loop: runs one batch at a time through the work, writes its rows and counts them.

It runs on the main thread. How results and state become safe is in `engine.running.saving.saver`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import polars as pl

from engine.loading.loader import Loader
from engine.observing.metrics import Metrics
from engine.observing.service import Heartbeat
from engine.observing.traces import Traces
from engine.running.outputs import Outputs
from engine.running.reject_limit import RejectLimit, TooManyRejects
from engine.running.reporter import Reporter
from engine.running.saving.checkpoint import CheckpointFailed
from engine.running.saving.saver import Saver, State
from engine.running.totals import Totals
from engine.running.work import Work, WorkResult
from engine.running.written_rows import WrittenRows
from engine.system import signals
from engine.types import (
    Batch,
    HeadraceError,
    Mark,
    SharedSource,
    Sink,
    Snapshot,
    Source,
)

if TYPE_CHECKING:
    from engine.versions.publishing import Publisher

log = logging.getLogger("headrace.loop")


class Loop:
    """Runs batches through the work until the source ends, a signal comes or something fails.

    Args:
        source: commits and rebalances; the loader reads it.
        sink, dead_letters: None drops the rows, which are counted all the same.
        reporter: updates the metrics; the default keeps them to itself.
        saver: makes results and state safe; the default commits and saves no checkpoints.
        reject_limit: None never stops the run.
        publisher: is told of checkpoints that are safe; None publishes nothing.
        watch: called after every batch with the loop and the batch (a progress bar).
        traces: get what is done with a batch, and when it is committed; None traces nothing.
    """

    def __init__(
        self,
        *,
        source: Source,
        loader: Loader,
        work: Work,
        sink: Sink | None = None,
        chosen: WrittenRows | None = None,
        dead_letters: Sink | None = None,
        reporter: Reporter | None = None,
        saver: Saver | None = None,
        reject_limit: RejectLimit | None = None,
        heartbeat: Heartbeat | None = None,
        publisher: Publisher | None = None,
        watch: Callable[[Loop, Batch], None] | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.source = source
        self.loader = loader
        self.work = work
        self.outputs = Outputs(sink, dead_letters, chosen)
        self.reporter = reporter or Reporter(
            Metrics(), source=source, sink=sink, timer=loader.timer
        )
        self.saver = saver or Saver(source=source, sinks=self.outputs.sinks, reporter=self.reporter)
        self.totals = Totals()
        self.mark = Mark()
        self.resumed = False
        self._reject_limit = reject_limit
        self._heartbeat = heartbeat or Heartbeat()
        self.outputs.on_wait(self._heartbeat.beat)
        loader.on_wait(self._heartbeat.beat)
        self._publisher = publisher
        self._watch = watch
        self._traces = traces or Traces()
        self._shared = source if isinstance(source, SharedSource) else None
        self._stopping = self._waiting = False
        self._timed = self.reporter.timer.timed
        work.on_answer(self._answer)

    def resume(self) -> bool:
        """Restore the newest valid checkpoint and truncate the output written after it. Return
        whether there was one.

        Raises: UserError when the checkpoint is another pipeline's; HeadraceError when none can be
        read.
        """
        try:
            state = self.saver.newest()
            with self.saver.restoring(state, self._restored):
                self._go_to(state)
                if state is not None:
                    self.loader.restore(self.mark)
            self.saver.require_plain(self._restored)
            self.resumed = state is not None
        except BaseException:
            with self.outputs.closing():
                self.loader.close()
            raise
        if self.resumed:
            log.info("resumed", extra={"batches": self.totals.batches, "rows": self.totals.read})
        return self.resumed

    def run(self) -> Totals:
        """Run until the end of the source or a signal, then flush, save, commit.

        Raises: TooManyRejects; CheckpointFailed where the last one cannot be written; HeadraceError
            and whatever source, stages, work or sinks raise. What was saved stays saved.
        """
        with (
            signals.handling(self._on_signal),
            self.outputs.closing(),
            _publishing(self._publisher, self.totals.learned),
            _closing(self.loader),
            _releasing(self._shared),
        ):
            self.saver.begin(self.totals.batches)
            self.reporter.begin()
            with contextlib.suppress(signals.StopRequested):
                self._begin()
                self._batches()
            if self._stopping:
                log.info("stopping", extra={"batches": self.totals.batches})
            saved = not self.saver.unsaved or self._save()
            if self.saver.aborted:
                self._go_back()  # what was aborted is read again by the next start
            self.reporter.lag(self.saver.mark)
            if not saved and self.saver.error is not None:
                raise CheckpointFailed(
                    f"{self.saver.error} Unsaved work is lost: fix that and start again; its "
                    "records are read again."
                ) from self.saver.error
            self.totals.require_balance()
            if self._reject_limit is not None and not self._stopping:
                self._reject_limit.finish(self.totals)
            return self.totals

    def stop(self) -> None:
        """Finish the current batch, save and return from `run`. Any thread may call it."""
        self._stopping = True

    @property
    def stopped(self) -> bool:
        """Whether the run was asked to stop before the source's end."""
        return self._stopping

    def _go_to(self, state: State | None) -> None:
        """Restore a checkpoint; None is the start. Sinks come last, since their truncated output
        is gone."""
        if state is not None:
            self.mark = self.saver.mark = Mark(positions=state["positions"], stages=state["stages"])
            self.totals = Totals.restore(state["totals"])
            self.work.load_state_dict(state["work"])
            self.source.match_identities(state["identities"])
            self.loader.seek(self.mark)
            self.saver.unsaved = False
        self.outputs.restore(state)

    def _parts(self) -> dict[str, Snapshot]:
        """Return the parts of a checkpoint that this run has whatever its source gives."""
        return {
            "totals": self.totals.snapshot(),
            "work": self.work.state_dict(),
            **self.outputs.snapshots(),
        }

    def _restored(self) -> dict[str, Snapshot]:
        """Return a checkpoint of the components as they are, without partitions, which come and
        go."""
        source = {"positions": None, "identities": None}
        return {**source, "stages": self.loader.snapshots(), **self._parts()}

    def _save(self) -> bool:
        with self._traces.heard() as work:
            saved = self.saver.save(self.mark, self.totals.batches, self._parts)
        if saved:
            self._traces.committed(work)
            self._publish()
        return saved

    def _renew(self) -> None:
        self.saver.renew(self.totals.batches)
        self._publish()  # it may have become due since

    def _publish(self) -> None:
        if self._publisher is not None and self.saver.path is not None:
            self._publisher.saved(self.saver.path, self.totals.learned, self.reporter.event_time)

    def _begin(self) -> None:
        """Save where every partition starts before anything is read, so that records which come
        to a quiet partition while no engine runs are read by the next one."""
        if self._shared is None:
            return
        with self._interruptible():
            self._resume_after_rebalance(self._shared)
        if self.saver.unsaved:
            self._save()

    def _resume_after_rebalance(self, shared: SharedSource) -> None:
        """Continue with the current partitions."""
        before = self.mark.positions, self.source.identities(self.mark)
        self.mark = self.saver.mark = shared.resume_after_rebalance(self.mark)
        self.loader.seek(self.mark)
        if before != (self.mark.positions, self.source.identities(self.mark)):
            self.saver.unsaved = True

    def _batches(self) -> None:
        batches = iter(self.loader)
        while not self._stopping:
            batch = self._next(batches)
            if batch is not None:
                self._heartbeat.beat(None if batch.raw_rows else self.loader.read_started)
            else:
                self._finish()
                if self._shared is None or not self._is_aborted_at_end():
                    return
            if self._shared is not None and (self._shared.is_rebalancing() or self.saver.aborted):
                del batch
                batches = self._rebalance(self._shared)
            elif batch is not None:
                self._process(batch)
                del batch  # or it would stay in memory, uncounted, while the next is awaited

    def _is_aborted_at_end(self) -> bool:
        """Save at the end of the source, where a transaction may be aborted; return whether it
        was, so that its rows are to be read again."""
        if self.saver.is_transactional and self.saver.unsaved:
            self._save()
        return self.saver.aborted

    def _rebalance(self, shared: SharedSource) -> Iterator[Batch]:
        """Handle a change of partitions: 1 save what is done, or restore the last checkpoint if
        it can no longer be committed; 2 release the partitions; 3 drop what is in flight; 4
        continue with the current ones."""
        committed = not (self.saver.aborted or shared.partitions_lost) and self._save()
        if self.saver.aborted or shared.partitions_lost or (shared.is_revoking and not committed):
            self._go_back()
            if shared.shares_partitions and not shared.tracks_owners:
                self.mark = Mark(stages=self.mark.stages)  # only the group knows what counts
        self.saver.aborted = False
        shared.release_partitions()
        self.loader.halt()
        self._resume_after_rebalance(shared)
        self.reporter.rebalanced()
        log.info("partitions", extra={"positions": dict(self.mark.positions)})
        return iter(self.loader)

    def _go_back(self) -> None:
        """Restore the last checkpoint that counts. Raises: HeadraceError without one."""
        log.info("going back to the last checkpoint", extra={"rows": self.totals.read})
        self._traces.undone("rolled back")
        if (state := self.saver.newest()) is None:
            raise HeadraceError(
                "Partitions were taken away, or a transaction was aborted, before the first "
                "checkpoint was saved: start again."
            )
        self._go_to(state)

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
        self.reporter.lag(self.saver.mark, at_once=False)
        with self._traces.following(batch) as trace:
            self.outputs.traceparent = "" if trace is None else trace.traceparent
            with self._timed(self.work.stage, batch.raw_rows):
                done = self.work.process(batch)
            written = self._done(batch, done)
            if trace is not None:
                trace.add_rows(written.outcomes)
        moved = batch.raw_rows > 0 or batch.mark.positions != self.mark.positions or done.changed
        self.mark, self.saver.unsaved = batch.mark, self.saver.unsaved or moved
        if self._reject_limit is not None:
            self._check_rejects(self._reject_limit, written)
        if self.saver.is_due(self.totals.batches, idle=not batch.raw_rows):
            self._save() if self.saver.unsaved else self._renew()
        if self._watch is not None:
            self._watch(self, batch)

    def _answer(self, batch: Batch, rows: pl.DataFrame) -> None:
        """Write answers to rows that are learned afterwards."""
        with self._timed("write"):
            self.outputs.answer(batch, rows)
        self.reporter.answered(batch)

    def _done(self, batch: Batch, done: WorkResult) -> WorkResult:
        """Write the result of a batch, and count it; return it without what the sink refused."""
        with self._timed("write"):
            done = self.outputs.write(batch, done)
        self.totals.add(done)
        if self._reject_limit is not None:
            self._reject_limit.count(done.rows_in, done.failed, self.totals)
        self.reporter.done(done, dead_letters=self.outputs.keeps_dead_letters)
        self.totals.require_balance()  # before the mark moves past it
        return done

    def _finish(self) -> None:
        """Let the work end what waited for more records."""
        if (done := self.work.finish()) is not None:
            self.saver.unsaved = self.saver.unsaved or done.changed
            self._done(done.batch, done)

    def _check_rejects(self, limit: RejectLimit, done: WorkResult) -> None:
        try:
            limit.check(done.rows_in, done.failed)
        except TooManyRejects:
            self._save()  # a start after mending goes on behind what was rejected
            raise

    def _on_signal(self) -> None:
        """Handle SIGINT and SIGTERM by stopping cleanly."""
        self._stopping = True
        if self._waiting:
            raise signals.StopRequested


@contextlib.contextmanager
def _publishing(publisher: Publisher | None, learned: int) -> Iterator[None]:
    """Stop a version that is being made however the run ends: what follows is newer.

    Args:
        learned [rows]: before the run.
    """
    if publisher is None:
        yield
        return
    publisher.begin(learned)
    try:
        yield
    finally:
        publisher.close()


@contextlib.contextmanager
def _closing(loader: Loader) -> Iterator[None]:
    """End the loader's threads however the run ends. A thread that still waits for an unreachable
    broker is no failure if a signal ended the run: everything was saved."""
    try:
        yield
    finally:
        try:
            loader.close()
        except HeadraceError as error:
            if signals.stop_signal() is None:
                raise
            log.warning("%s", error)


@contextlib.contextmanager
def _releasing(shared: SharedSource | None) -> Iterator[None]:
    """Release waiting threads however the run ends, so that the loader's threads can end."""
    try:
        yield
    finally:
        if shared is not None:
            shared.release_partitions()


__all__ = ["Loop"]
