"""Where the rows of a run go: results to the sink, rejected rows to the dead letters."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import polars as pl

from engine.running.dead_letters import dead_letter_frame
from engine.running.work import WorkResult
from engine.running.written_rows import NOT_WRITTEN, SINK, WrittenRows
from engine.types import RESERVED, Batch, Rejects, Sink, Snapshot
from engine.user_code import calls


class Outputs:
    """The sink and the dead letters; one that is None drops its rows.

    Args:
        chosen: the rows that the sink gets; None for all.

    Attributes:
        sinks: section of the pipeline file -> sink, of those that are there.
        traceparent: of the batch in hand; "" if it is not traced.
    """

    def __init__(
        self, sink: Sink | None, dead_letters: Sink | None, chosen: WrittenRows | None = None
    ) -> None:
        self._sink, self._dead_letters, self._chosen = sink, dead_letters, chosen
        self._not_written = 0
        self._refused: list[Rejects] = []
        both = {"sink": sink, "dead_letters": dead_letters}
        self.sinks = {section: one for section, one in both.items() if one is not None}
        self.traceparent = ""

    @property
    def keeps_dead_letters(self) -> bool:
        """Whether rejected rows are written."""
        return self._dead_letters is not None

    def on_wait(self, beat: Callable[[], None]) -> None:
        """Call `beat` while a sink waits."""
        for sink in self.sinks.values():
            sink.on_wait(beat)

    def answer(self, batch: Batch, rows: pl.DataFrame) -> None:
        """Write answers to the rows of a batch, which is not done yet; those that the sink can
        never take are dead letters, and learned all the same."""
        refused = self._write(rows, batch)
        self._reject(batch, refused)
        self._refused += refused

    def write(self, batch: Batch, done: WorkResult) -> WorkResult:
        """Write rows to the sink, unless that was done before, and rejects to the dead letters;
        return the result with the rows that the sink can never take, and with a count of those that
        are not for it."""
        refused = () if done.rows is None else self._write(done.rows, done.batch)
        self._reject(batch, (*done.batch.rejects, *refused))
        if done.learned:  # what was learned from stays learned: only its answer is a dead letter
            self._refused += refused
        else:
            for each in refused:
                done = done.with_rejects(each)
        if self._not_written or any(map(len, self._refused)):
            counts = Counter({NOT_WRITTEN: self._not_written})
            for each in self._refused:
                counts[each.reason] += len(each)
            counted = done.batch.counted(SINK, **+counts)
            done = replace(done, batch=counted, refused=tuple(self._refused))
            self._not_written, self._refused = 0, []
        self.traceparent = ""
        return done

    def _write(self, rows: pl.DataFrame, batch: Batch) -> tuple[Rejects, ...]:
        """Write the rows of a batch to the sink; return those that it can never take."""
        if self._sink is None:
            return ()
        if self.traceparent:
            with calls.Calling("sink", self._sink):
                self._sink.on_trace(self.traceparent)
        places, failed = batch.frame[list(RESERVED)], None
        if self._chosen is not None:
            rows, places, left, failed = self._chosen.choose(rows, places)
            self._not_written += left
        refused = calls.write(self._sink, rows, places)
        return tuple(each for each in (failed, refused) if each is not None)

    def _reject(self, batch: Batch, rejects: Sequence[Rejects]) -> None:
        """Write rows to the dead letters, as they stand in the records of a batch."""
        if self._dead_letters is not None:
            for reject in rejects:
                with calls.Calling("dead_letters", self._dead_letters):
                    self._dead_letters.write(dead_letter_frame(reject, batch.pieces))

    def snapshots(self) -> dict[str, Snapshot]:
        """Return section -> state, None for what is not there."""
        states: dict[str, Snapshot] = {"sink": None, "dead_letters": None}
        for section, sink in self.sinks.items():
            with calls.Calling(section, sink):
                states[section] = sink.snapshot()
        return states

    def restore(self, state: Mapping[str, Snapshot] | None) -> None:
        """Truncate what was written after a state; None is the start."""
        for section, sink in self.sinks.items():
            with calls.Calling(section, sink):
                sink.restore(None if state is None else state[section])

    @contextlib.contextmanager
    def closing(self) -> Iterator[None]:
        """Close the sinks however the block ends; what was not flushed is dropped."""
        try:
            yield
        finally:
            for section, sink in self.sinks.items():
                calls.close(sink, section)


__all__ = ["Outputs"]
