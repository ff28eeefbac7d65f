"""A source that a stage reads beside the stream, such as the topic of a table (a side input).

    with the first batch             with every later batch
    whole() -> Records, to the end   changes() -> Records that came since, without waiting

The place in it rides on the mark of each batch. A run that resumes reads the source anew, at least
up to there, so that no row sees less of it than the rows before.

A stage that keeps what it has read in its own state reads on from the saved place instead, as far
as each batch needs it::

    next_records(timeout) -> Records, or None where there are none now;  go_to(snapshot)
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import polars as pl

from engine.types import (
    Buffered,
    EndOfStream,
    HeadraceError,
    Mark,
    Records,
    Rejects,
    Schema,
    SharedSource,
    Snapshot,
    Source,
    Stage,
    UserError,
)
from engine.user_code import calls
from engine.user_code.calls import naming

log = logging.getLogger("headrace.scrub")
READ_ROWS, READ_BYTES = 65_536, 8 << 20
CHANGED_ROWS = 100_000
"""The most records that one batch takes in before its rows: a burst of changes comes in parts."""
POLL_SECONDS = 0.01
"""The seconds between two looks for changes: batches may be shorter."""
WAIT_SECONDS = 0.5
"""The most seconds of a read before the first batch; also how soon it can be interrupted."""

Open = Callable[[bool], Source]
"""Opens the source: True ends where the source ends now, False never ends."""


def nothing() -> None:
    """The default of `SideSource.keep_alive`."""


class SideSource:
    """Reads a source whole, then what comes to it. The thread that applies the stage reads it;
    `lag`, `unavailable_reason`, `nbytes` and `interrupt` may be called by any thread.

    Attributes:
        section: its table in the pipeline file, for error sentences.
        keep_alive: called with each read that brings something before the first batch, so that
            the wait does not count as a stall.
        poll_interval: the seconds between two looks for changes.
        is_trial: whether the stage is only tried, as on a sample, so that no row is held back until
            what it needs has come.

    Args:
        declared: its own ``schema``.
    """

    def __init__(self, section: str, open_source: Open, declared: Schema) -> None:
        self.section = section
        self.keep_alive: Callable[[], object] = nothing
        self.poll_interval = POLL_SECONDS
        self.is_trial = False
        self._looked = -POLL_SECONDS
        self._open_source, self._declared = open_source, declared
        self._source: Source | None = None
        self._columns: Schema = {}
        self._follows = False
        self._positions: Mapping[str, int] = {}
        self._identities: Mapping[str, Snapshot] = {}
        self._least: Mapping[str, int] = {}
        self._most_bytes: int | None = None
        self._stop = threading.Event()

    # ------------------------------------------------------------------------------------ before

    def schema(self) -> Schema:
        """Return the columns of its records. Connects to nothing that need not be asked."""
        self._opened(follows=False)
        return self._columns

    def limit_memory(self, nbytes: int) -> None:
        """Let its client buffer at most so many bytes."""
        self._most_bytes = nbytes

    # ----------------------------------------------------------------------------------- reading

    def whole(self) -> Iterator[Records]:
        """Yield all records up to its end as of now.

        Raises: HeadraceError if it cannot be read, has become another, or ends before what an
            earlier run had read.
        """
        self._follows, self._positions = False, {}
        source = self._opened(follows=False)
        with naming(self.section):
            if self._identities:
                source.match_identities(self._identities)
            source.seek(Mark())
            self._require_least(source)
            yield from self._to_the_end(source)
            self._identify(source)
        self.close()
        self._follows, self._least = True, {}

    def changes(self) -> Iterator[Records]:
        """Yield the records that came since, without waiting for more."""
        now = time.monotonic()
        if not self._follows or now - self._looked < self.poll_interval:
            return
        self._looked = now
        with naming(self.section):
            source = self._opened(follows=True)
            rows = 0
            with contextlib.suppress(EndOfStream):
                while rows < CHANGED_ROWS and (records := self._read(source, 0.0)) is not None:
                    rows += len(records)
                    yield records

    def next_records(self, timeout: float, max_rows: int = READ_ROWS) -> Records | None:
        """Return the next records after its place, at most `max_rows`; None if nothing came within
        `timeout` seconds.

        Raises: EndOfStream after the last of a source that ends; HeadraceError if it cannot be
            read, or is interrupted.
        """
        if self._stop.is_set():
            raise HeadraceError(f"[{self.section}] was interrupted while rows waited for it.")
        self._follows = True
        self.is_another()
        with naming(self.section):
            source = self._source or self._begun()
            try:
                records = self._read(source, timeout, max_rows)
            except EndOfStream:
                self._identify(source)  # only now it knows that it was read to its end
                raise
            if records is not None:
                self._identify(source)
            return records

    def go_to(self, value: Snapshot) -> None:
        """Read on from a `snapshot`; from the beginning with None."""
        self.close()
        self._positions, self._identities = {}, {}
        if value is not None:
            self._positions, self._identities = value["positions"], value["identities"]

    def lags(self) -> Mapping[str, int] | None:
        """Return partition -> records that were not read yet; None where it cannot say that a
        partition has no more."""
        source = self._source
        if not isinstance(source, SharedSource):
            return None
        return source.unread(Mark(positions=self._positions))

    def is_endless(self) -> bool:
        """Return whether more may come after any pause. Connects to nothing."""
        with naming(self.section):
            source = self._open_source(False)
            try:
                return source.unbounded()
            finally:
                calls.close(source, self.section)

    def is_another(self) -> bool:
        """Return whether the source has become another (a topic was deleted and created again),
        so that it is to be read whole again; go on with partitions that were added."""
        source = self._source
        if not (self._follows and isinstance(source, SharedSource) and source.is_rebalancing()):
            return False
        with naming(self.section):
            mark = source.resume_after_rebalance(Mark(positions=self._positions))
            source.seek(mark)
            identities = source.identities(mark)
        another = any(identities.get(p, own) != own for p, own in self._identities.items())
        self._identities, self._positions = identities, mark.positions
        if another:
            self.close()
        return another

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Return the columns of `schema`, and what cannot be read; see `engine.types.Format`."""
        with naming(self.section):
            format = self._opened(follows=self._follows).format
            return calls.decode(format, records, schema, self.section)

    # ------------------------------------------------------------------------------------- state

    def snapshot(self) -> Snapshot:
        """Return the place in the source; None before anything was read."""
        positions = self._positions or self._least
        if not positions:
            return None
        return {"positions": dict(positions), "identities": dict(self._identities)}

    def restore(self, value: Snapshot) -> None:
        """Require of the first read that it comes at least to a `snapshot`. What was read already
        stays: it is never older."""
        if value is not None and not self._positions:
            self._least, self._identities = value["positions"], value["identities"]

    @property
    def least(self) -> Mapping[str, int]:
        """The positions that an earlier run has read to."""
        return self._least

    def lag(self) -> int:
        """Return how many records it has that were not read yet, as far as known."""
        source = self._source
        return 0 if source is None else sum(source.lag(Mark(positions=self._positions)).values())

    def unavailable_reason(self) -> str | None:
        """Return why rows cannot be given yet; None if they can."""
        if not self._follows:
            return f"[{self.section}] is being read, {self.lag():,} records to come"
        source = self._source
        if isinstance(source, SharedSource) and (why := source.unavailable_reason()):
            return f"[{self.section}]: {why}"
        return None

    @property
    def nbytes(self) -> int:
        """The bytes that its client holds."""
        source = self._source
        return source.nbytes if isinstance(source, Buffered) else 0

    def interrupt(self) -> None:
        """Let a first read end soon, with an error, until `resume`."""
        self._stop.set()

    def resume(self) -> None:
        """Allow reads again."""
        self._stop.clear()

    def close(self) -> None:
        """Close the source; a later read opens it again where it was."""
        source, self._source = self._source, None
        if source is not None:
            calls.close(source, self.section)

    # ------------------------------------------------------------------------------------ inside

    def _opened(self, *, follows: bool) -> Source:
        if self._source is not None:
            return self._source
        with naming(self.section):
            source = self._open_source(not follows)
            if self._most_bytes is not None and isinstance(source, Buffered):
                source.limit_memory(self._most_bytes)
            self._columns = calls.schema(source, self._declared, self.section)
            if follows and self._identities:
                source.match_identities(self._identities)
            if follows:
                source.seek(Mark(positions=self._positions))
        self._source = source
        return source

    def _begun(self) -> Source:
        """Open the source to read on, with the place in each of its partitions: records that come
        to one without any belong to the next run."""
        source = self._opened(follows=True)
        if isinstance(source, SharedSource):
            mark = source.resume_after_rebalance(Mark(positions=self._positions))
            source.seek(mark)
            self._positions = mark.positions
            self._identify(source)
        return source

    def _to_the_end(self, source: Source) -> Iterator[Records]:
        start = time.monotonic()
        rows = 0
        while not self._stop.is_set():
            try:
                records = self._read(source, WAIT_SECONDS)
            except EndOfStream:
                log.info(
                    "table read",
                    extra={"source": self.section, "records": rows, "seconds": _since(start)},
                )
                return
            if records is not None:
                self.keep_alive()
                rows += len(records)
                yield records
            elif source.unbounded():
                return  # a class that cannot be told to end: what there was in so long a time
        raise HeadraceError(f"[{self.section}] was interrupted before it was read.")

    def _read(self, source: Source, timeout: float, max_rows: int = READ_ROWS) -> Records | None:
        records = calls.read(
            source, max_rows, READ_BYTES, timeout, self.section, marked=self._positions
        )
        if records is not None:
            self._positions = {**self._positions, **records.end_positions}
        return records

    def _identify(self, source: Source) -> None:
        self._identities = source.identities(Mark(positions=self._positions))

    def _require_least(self, source: Source) -> None:
        """Raises: UserError if the source ends before what an earlier run has read of it."""
        ends = source.lag(Mark(positions=dict.fromkeys(self._least, 0)))
        for partition, at in self._least.items():
            end = ends.get(partition, at)
            if end < at:
                raise UserError(
                    f"[{self.section}] partition '{partition}' ends at {end:,}, and the checkpoint "
                    f"has read it to {at:,}: its last records are lost. Write them again, or start "
                    "over with --fresh."
                )


def _since(start: float) -> float:
    return round(time.monotonic() - start, 3)


class UnreadSource(SideSource):
    """A source of which only the columns are known: stages that are only tried read nothing."""

    def whole(self) -> Iterator[Records]:
        self._follows = True
        yield from ()

    def changes(self) -> Iterator[Records]:
        yield from ()

    def next_records(self, timeout: float, max_rows: int = READ_ROWS) -> Records | None:
        raise EndOfStream

    def is_another(self) -> bool:
        return False


class SideStage(Stage):
    """A stage that may read a source beside the stream.

    Attributes:
        side: that source, set by the engine before `bind` if `side_table` names one.
        keeps_what_it_read: whether its snapshot has more than the place in the source.
    """

    learns_by_batch = False

    side: SideSource | None = None
    keeps_what_it_read: ClassVar[bool] = False

    @property
    def side_table(self) -> Mapping[str, Any] | None:
        """The table of the source, with the keys of ``[source]``; None for none."""
        return None

    @property
    def is_mostly_odd(self) -> bool:
        """Whether at least half of the records that it has read there have no use: `check` refuses
        that, and only tells fewer."""
        return False

    @property
    def rows(self) -> int:
        """The rows that it has read there and kept. Any thread may ask."""
        return 0

    @property
    def nbytes(self) -> int:
        """The bytes of what it has read, here or elsewhere. Any thread may ask."""
        return 0

    def snapshot(self) -> Snapshot:
        """Return the place in the source, which is nothing learned from the rows."""
        return None if self.side is None else self.side.snapshot()

    def restore(self, value: Snapshot) -> None:
        if self.side is not None:
            self.side.restore(value)


def sides_of(stages: Iterable[Stage]) -> dict[str, SideSource]:
    """Return the name of each stage that reads a source -> that source."""
    return {s.name: s.side for s in stages if isinstance(s, SideStage) and s.side is not None}


__all__ = ["SideSource", "SideStage", "UnreadSource", "sides_of"]
