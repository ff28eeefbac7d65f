"""The saver: three effects that make finished work safe, in a fixed order.

    1. `Sink.flush`, of results and dead letters: the results are safe
    2. `Checkpoints.save`:    the state is safe, and says which results belong to it
    3. `Source.commit(mark)`: the source may forget

After a crash between 1 and 2 the next start truncates the results (`Sink.restore`). After a crash
between 2 and 3 the source gives rows again that the checkpoint's mark skips. So every record counts
once.

With a transaction, or a group that may have moved the partitions meanwhile, step 3 decides: the
next start passes over a checkpoint that was not committed, and when a commit is refused the run
itself goes back to the one before.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from engine.running.reporter import Reporter
from engine.running.saving.checkpoint import CheckpointFailed, Checkpoints
from engine.running.saving.codec import Saved, require_plain
from engine.types import HeadraceError, Mark, SharedSource, Sink, Snapshot, Source, Transaction
from engine.user_code import calls

log = logging.getLogger("headrace.loop")
State = Mapping[str, Snapshot]


class Saver:
    """Flushes, saves and commits, in this order, and knows which checkpoint counts.

    Args:
        sinks: section of the pipeline file -> sink.
        checkpoints: None saves nothing: a restart begins at the start.
        identity: what a checkpoint must have in common with this pipeline.
        transaction: commits results and positions together, in place of `source.commit`, and says
            whether it did; in its own time, where that is sooner than a checkpoint is due.
        keeps_state: whether stages or work have a state of the rows that were read.
        mend: see `engine.running.saving.checkpoint.Checkpoints.load`.

    Attributes:
        mark: the newest committed mark.
        unsaved: whether work was done since.
        is_transactional: whether a transaction commits.
        aborted: whether the last commit was refused, so that the run must go back.
        error: why the last checkpoint could not be written; None if it was.
        path: the newest checkpoint that this run has written; None before the first.
    """

    def __init__(
        self,
        *,
        source: Source,
        sinks: Mapping[str, Sink],
        reporter: Reporter,
        checkpoints: Checkpoints | None = None,
        identity: Mapping[str, str] | None = None,
        transaction: Transaction | None = None,
        keeps_state: bool = True,
        mend: Callable[[Saved], Saved] | None = None,
    ) -> None:
        self.mark = Mark()
        self.unsaved = self.aborted = False
        self.error: CheckpointFailed | None = None
        self.path: Path | None = None
        self._source = source
        self._sinks = sinks
        self._reporter = reporter
        self._checkpoints = checkpoints
        self._identity = dict(identity or {})
        self._commit = source.commit if transaction is None else transaction.commit
        self._commit_seconds = None if transaction is None else transaction.every
        self.is_transactional = transaction is not None
        self._keeps_state = keeps_state
        self._mend = mend
        self._saved_at, self._saved_batches = time.monotonic(), 0
        self._begun: int | None = None
        """The batches done before this run; None until it begins."""

    def begin(self, batches: int) -> None:
        """Start a run that has done so many batches before. Raises: HeadraceError"""
        self._saved_batches = self._begun = batches
        if self._checkpoints is not None:
            self._checkpoints.discard_unnamed()

    def newest(self) -> State | None:
        """Return the state of the newest checkpoint that counts; None without one. In a run with
        transactions these are the one that it began with and those that it has committed.

        Raises: UserError if it is another pipeline's; HeadraceError if none can be read.
        """
        if self._checkpoints is None:
            return None
        last = None
        if self.is_transactional and self._begun is not None:
            last = self._checkpoints.committed or 0
        return self._checkpoints.load(self._identity, self._was_committed, self._mend, last=last)

    def restoring(
        self, state: State | None, parts: Callable[[], State]
    ) -> AbstractContextManager[None]:
        """Guard a block in which the parts restore the state; see `Checkpoints.restoring`."""
        if self._checkpoints is None or state is None:
            return contextlib.nullcontext()
        return self._checkpoints.restoring(state, parts)

    def require_plain(self, parts: Callable[[], State]) -> None:
        """Check before the run that the state can be saved. Raises: HeadraceError"""
        if self._checkpoints is not None:
            require_plain(parts())

    def is_due(self, batches: int, *, idle: bool) -> bool:
        """Return whether to save after so many batches.

        Args:
            idle: whether the source has nothing more for now.
        """
        if self._checkpoints is None:
            return False
        settings, since = self._checkpoints.settings, time.monotonic() - self._saved_at
        if self.unsaved and since >= self._commits_after(self._checkpoints, idle=idle):
            return True
        if settings.interval_batches is not None:
            return batches - self._saved_batches >= settings.interval_batches
        return since >= settings.interval

    def save(self, mark: Mark, batches: int, parts: Callable[[], State]) -> bool:
        """1 flush, 2 save, 3 commit; return whether all is done. A failed checkpoint is counted
        and logged, and the run continues: earlier ones stay, and nothing after them is
        committed.

        Args:
            mark: the position the parts have reached.
            parts: returns their state; called after the flush, as a sink's snapshot covers what
                is safe.
        """
        with self._reporter.timer.timed("flush"):
            for section, sink in self._sinks.items():
                with calls.Calling(section, sink):
                    sink.flush()
        if self._checkpoints is not None and not self._checkpoint(
            self._checkpoints, mark, batches, parts
        ):
            return False
        with self._reporter.timer.timed("commit"), calls.Calling("source", self._source):
            committed = self._commit(mark)
        # A checkpoint of no work counts whatever the answer: there is nothing to abort.
        if self._checkpoints is not None and (committed or batches == self._begun):
            self._checkpoints.mark_committed()
        self.aborted = self.is_transactional and not committed
        # What a group did not take, for instance in a rebalance, is committed when it is next due,
        # also if nothing more comes. The results of an aborted transaction are gone.
        self.unsaved = not committed and not self.aborted
        if committed:
            self.mark = mark
        if self._checkpoints is not None:
            self._checkpoints.require()
        return committed

    def renew(self, batches: int) -> None:
        """Commit the positions again, because brokers forget offsets that are not renewed.
        Nothing was done since they were committed, so that needs no new checkpoint."""
        self._saved_at, self._saved_batches = time.monotonic(), batches
        if self.mark.positions:
            self._commit(self.mark)
            self._reporter.checkpoint_renewed()

    def _checkpoint(
        self, checkpoints: Checkpoints, mark: Mark, batches: int, parts: Callable[[], State]
    ) -> bool:
        self._saved_at, self._saved_batches = time.monotonic(), batches
        state = {
            "positions": dict(mark.positions),
            "stages": dict(mark.stages),
            "identities": dict(self._source.identities(mark)),
            **parts(),
        }
        start = time.perf_counter()
        try:
            with self._reporter.timer.timed("checkpoint"):
                path = self.path = checkpoints.save(state, self._identity)
        except CheckpointFailed as error:
            self._reporter.checkpoint_failed()
            self.error = error
            log.error("checkpoint failed", extra={"error": str(error)})
            return False
        self.error = None
        self._reporter.checkpoint_saved(path, time.perf_counter() - start)
        return True

    def _commits_after(self, checkpoints: Checkpoints, *, idle: bool) -> float:
        """Return the seconds between two commits of a transaction; while nothing comes, it need
        not wait. Each commit takes a checkpoint: positions, and perhaps a state, which may take
        a tenth of the time."""
        if self._commit_seconds is None:
            return math.inf
        return max(0.0 if idle else self._commit_seconds, 10 * checkpoints.seconds)

    def _was_committed(self, state: Mapping[str, Any]) -> bool:
        """Return whether a checkpoint was committed; always true if the checkpoint is the
        authority.

        Raises: HeadraceError if that is unknown and matters.
        """
        shared = self._source if isinstance(self._source, SharedSource) else None
        if shared is None or not (
            self.is_transactional or (self._keeps_state and shared.shares_partitions)
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


__all__ = ["Saver", "State"]
