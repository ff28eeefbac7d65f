"""Joins rows with the events of another stream by key, within a time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from engine.columnar.event_time import NEVER, Clock, EventTime
from engine.columnar.hashing import hashes
from engine.scrub.columns import extended, gathered
from engine.scrub.features.lookup_fit import Fit, complete_rows, null_keys
from engine.scrub.joining.reading import EventReader
from engine.scrub.joining.recent_events import Asked, RecentEvents
from engine.scrub.joining.settings import JoinSettings, Lengths
from engine.scrub.side_source import SideStage
from engine.types import (
    NANOSECONDS,
    Batch,
    Schema,
    Snapshot,
    Transform,
    UserError,
    require,
    type_name,
)
from engine.types.plural import counted

TOLD = (
    "rows", "events", "unmatched", "late", "ahead", "events_late", "events_missed",
    "events_forgotten",
)  # fmt: skip
"""The counts that `remarks` tells, of a run and of those that it resumes."""


class Join(SideStage):
    """Adds columns of the events of another stream: those of the newest event of the same key that
    happened at most `within` before the row. Where there is none and `wait` is set, those of the
    first that happened at most so long after it.

    A row without an event (``unmatched``) gets nulls or is rejected; so does one whose key has a
    null, or that has no time: in dead letters as ``no_key`` and ``no_time``. An event may be joined
    with any number of rows.

    Events are read until they are newer than the rows, by `wait` and `lateness`; where they end,
    or a topic has no more for now and the wall clock has come that far, rows go on without. What a
    row gets depends on its time, on the order of the rows and on that of the events in their
    partition, and not on how either is cut into batches, nor on kills. On a topic there is one
    exception, events that were not there in time (``events_missed``). Events of which the oldest
    are forgotten are another.

    An event that came more than `lateness` after a newer one of its partition (``events_late``) is
    not seen by rows between the two. A row that is more than `lateness` older than the newest
    (``late``) finds only what rows that came in time would find. One that is more than `ahead`
    newer (``ahead``) finds what could be found before it. Of events such times are
    ``events_ahead``. A record that is no event (``unreadable``), as it has no key or time or cannot
    be read, is told in the log.

    The events are in the checkpoint, beside the place in their source: a run that resumes reads
    none of them again. Memory: their columns and 64 to 100 bytes for each event of the last
    `within`, `wait` and `lateness`, and up to an eighth more. Keys are compared by a 64-bit hash.
    """

    Settings = JoinSettings
    single_pass = True
    keeps_what_it_read = True

    def __init__(self, name: str, settings: JoinSettings) -> None:
        super().__init__(name, settings)
        self.settings: JoinSettings = settings
        self._by = settings.key_columns
        self._time: EventTime | None = None
        self._lengths: Lengths | None = None
        self._added: Schema = {}
        self._clock = Clock()
        self._recent: RecentEvents | None = None
        self._reader: EventReader | None = None
        self._seen: Counter[str] = Counter()
        if not self._by:
            raise UserError(f"{self.where} names no key columns: set 'by'.")

    @property
    def side_table(self) -> Mapping[str, Any]:
        return self.settings.source

    @property
    def nbytes(self) -> int:
        """The bytes of the events."""
        return 0 if self._recent is None else self._recent.nbytes

    @property
    def rows(self) -> int:
        """The events that are kept."""
        return 0 if self._recent is None else len(self._recent)

    @property
    def is_mostly_odd(self) -> bool:
        return self._reader is not None and self._reader.is_mostly_odd

    # ------------------------------------------------------------------------------------- binding

    def bind(self, schema: Schema) -> Schema:
        settings = self.settings
        assert self.side is not None, "the engine sets the source before bind"
        require(schema, self._by, where=f"{self.where} by")
        require(schema, [settings.time], where=f"{self.where} time")
        self._time = EventTime(column=settings.time, dtype=schema[settings.time], where=self.where)
        self._lengths = Lengths.of(settings, self._time)
        self._require_waitable()
        fit = Fit(
            keys={column: schema[mine] for mine, column in self._by.items()},
            columns=settings.columns,
            prefix=settings.prefix,
            clock=self._time,
            as_of=settings.time_of_events,
            known=None,
        )
        columns = self.side.schema()
        self.side.close()
        self._added = fit.added(columns, f"[{self.side.section}]")
        if self._recent is None:
            self._recent = RecentEvents(settings.events, pl.DataFrame(schema=self._added))
        self._reader = EventReader(self.side, columns, fit, self._lengths, self._recent)
        return extended(schema, self._added, where=self.where, remedy=fit.remedy)

    def _require_waitable(self) -> None:
        """Raises: UserError if rows cannot tell by the wall clock when to wait no longer."""
        assert self.side is not None
        assert self._time is not None
        assert self._lengths is not None
        if self._lengths.wait and self._time.nanoseconds is None and self.side.is_endless():
            raise UserError(
                f"{self.where} expects a datetime or date in 'time' to 'wait' for events of a "
                f"stream without an end, got '{self._time.column}' of type "
                f"{type_name(self._time.dtype)}: make a time of it with a 'derive' stage, or take "
                "'wait' out."
            )

    # ------------------------------------------------------------------------------------ applying

    def apply(self, batch: Batch) -> Batch:
        assert self._recent is not None
        asked, counts = self._asked(batch.frame)
        if asked.whole.any():
            counts.update(self._read(asked))
        place = self._recent.find(asked)
        found = place >= 0
        counts["unmatched"] = int(len(batch) - found.sum())
        self._seen.update(counts, rows=len(batch))
        added = gathered(self._recent.columns, place)
        done = batch.with_frame(batch.frame.hstack(added))
        done = done.counted(self.name, **counts)
        if self.settings.missing == "null" or found.all():
            return done
        settings = self.settings
        after = f" or {settings.wait} after it" if settings.wait else ""
        detail = (
            f"No event of [{self.name}] has its key ({', '.join(self._by)}) at most "
            f"{settings.within} before it{after}."
        )
        done, kept = complete_rows(done, self._by, settings.time, asked.times, stage=self.name)
        return done.reject(found[kept], stage=self.name, reason="unmatched", detail=detail)

    def _asked(self, frame: pl.DataFrame) -> tuple[Asked, Counter[str]]:
        """Return what the rows ask for, and what was counted of their times."""
        assert self._time is not None
        assert self._lengths is not None
        lengths, times = self._lengths, self._time.read(frame)
        begins = self._clock.begins(times)
        self._clock, clocks, ahead = self._clock.walk(times, lengths.ahead, at_once=True)
        timed = times > NEVER
        floor = clocks - lengths.lateness - lengths.within
        oldest = np.maximum(times - lengths.within, floor)
        floor[:begins] = NEVER  # the guess may be wrong: no event is dropped for it
        asked = Asked(
            keys=hashes(frame, self._by),
            whole=timed & ~null_keys(frame[list(self._by)]),
            times=times,
            oldest=oldest,
            newest=times + lengths.wait,
            until=np.minimum(times, clocks) + lengths.wait + lengths.lateness,
            floor=floor,
        )
        late = timed & (times < clocks - lengths.lateness)
        counts = {"late": late.sum(), "ahead": ahead, "no_time": (~timed).sum()}
        return asked, Counter({what: int(n) for what, n in counts.items()})

    def _read(self, asked: Asked) -> Mapping[str, int]:
        """Read the events that rows ask for; return what was counted."""
        assert self._reader is not None
        whole = asked.whole
        need = int(asked.until[whole].max())
        return self._reader.advance(need, int(asked.floor[whole].min()), self._until(need))

    def _until(self, need: int) -> float:
        """Return up to when rows wait for events that have not come yet, `time.monotonic`
        seconds: until the wall clock says that they have happened and had time to come."""
        assert self._time is not None
        assert self._lengths is not None
        tick, now = self._time.nanoseconds, time.monotonic()
        if tick is None:
            return now
        longest = (self._lengths.wait + self._lengths.lateness) * tick
        left = need * tick - time.time_ns()
        return now + max(0, min(left, longest)) / NANOSECONDS["s"]

    # --------------------------------------------------------------------------------------- state

    def snapshot(self) -> Snapshot:
        """Return the events that are kept, the place in their source, the clocks, and counts."""
        if self._reader is None or self._recent is None:
            return None
        return {
            "clock": self._clock.snapshot(),
            "reader": self._reader.snapshot(),
            "events": self._recent.snapshot(),
            "told": {what: self._seen[what] for what in TOLD},
        }

    def restore(self, value: Snapshot) -> None:
        assert self._reader is not None
        assert self._recent is not None
        for run in value["events"]:
            if (kept := dict(run["columns"].schema)) != self._added:
                odd = next(c for c in {**kept, **self._added} if kept.get(c) != self._added.get(c))
                raise UserError(
                    f"{self.where} adds other columns than those of the events in the checkpoint, "
                    f"first of them '{odd}': declare them in [scrub.{self.name}.source.schema] as "
                    "they were, or start over with --fresh."
                )
        self._clock = Clock.restore(value["clock"])
        self._seen = Counter(value["told"])
        self._reader.restore(value["reader"])
        self._recent.restore(value["events"])

    # --------------------------------------------------------------------------------------- words

    def remarks(self) -> Sequence[str]:
        if self._reader is None:
            return ()
        return (*self._reader.remarks(), *self._odd_times())

    def _odd_times(self) -> Sequence[str]:
        """Return sentences on what the lengths may be wrong for."""
        assert self.side is not None
        if self.side.is_trial:  # rows of a sample are not in sequence
            return ()
        seen, sentences = self._seen, []
        if seen["rows"] and seen["unmatched"] == seen["rows"]:
            sentences.append(
                f"{self.where}: of {counted(seen['rows'], 'row')} none has an event among "
                f"{counted(seen['events'], 'event')} of [scrub.{self.name}.source]: look at the "
                "keys ('by') and the times of both, and at 'within'."
            )
        late = {"event": seen["events_late"], "row": seen["late"]}
        if any(late.values()):
            those = " and ".join(counted(n, what) for what, n in late.items() if n)
            sentences.append(
                f"{self.where}: {those} came more than 'lateness' = "
                f"{self.settings.lateness!r} after a newer one, so some rows may lack theirs: "
                "raise it."
            )
        if seen["events_missed"]:
            sentences.append(
                f"{self.where}: {counted(seen['events_missed'], 'event')} came when rows that they "
                "may have been for had gone on without: where that matters, raise 'lateness', "
                "which those rows are held back for."
            )
        if seen["ahead"]:
            sentences.append(
                f"{self.where}: {counted(seen['ahead'], 'row')} came more than 'ahead' after the "
                "newest before, and only found what that one could: where the stream has such "
                "pauses, raise it."
            )
        if seen["events_forgotten"]:
            sentences.append(
                f"{self.where}: {counted(seen['events_forgotten'], 'event')} that rows could still "
                "ask for were forgotten, as no more are kept than 'events', now "
                f"{self.settings.events:,}: raise it, or take a shorter 'within'."
            )
        return sentences

    def transforms(self) -> Sequence[Transform] | None:
        """Return None: it reads other rows."""
        return None


__all__ = ["Join"]
