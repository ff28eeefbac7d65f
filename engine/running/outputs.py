"""Where the rows of a run go: results to the sink, rejected rows to the dead letters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

from engine.running.dead_letters import dead_letter_frame
from engine.running.work import WorkResult
from engine.types import RESERVED, Batch, Sink, Snapshot
from engine.user_code import calls


class Outputs:
    """The sink and the dead letters; one that is None drops its rows.

    Attributes:
        sinks: section of the pipeline file -> sink, of those that are there.
    """

    def __init__(self, sink: Sink | None, dead_letters: Sink | None) -> None:
        self._sink, self._dead_letters = sink, dead_letters
        both = {"sink": sink, "dead_letters": dead_letters}
        self.sinks = {section: one for section, one in both.items() if one is not None}

    @property
    def keeps_dead_letters(self) -> bool:
        """Whether rejected rows are written."""
        return self._dead_letters is not None

    def on_wait(self, beat: Callable[[], None]) -> None:
        """Call `beat` while a sink waits."""
        for sink in self.sinks.values():
            sink.on_wait(beat)

    def write(self, batch: Batch, done: WorkResult, traceparent: str = "") -> WorkResult:
        """Write rows to the sink and rejects to the dead letters; return the result with the rows
        that the sink can never take.

        Args:
            traceparent: of the batch; "" if it is not traced.
        """
        rejects = done.batch.rejects
        if self._sink is not None:
            if traceparent:
                with calls.Calling("sink", self._sink):
                    self._sink.on_trace(traceparent)
            refused = calls.write(self._sink, done.rows, done.batch.frame.select(RESERVED))
            if refused is not None:
                rejects = (*rejects, refused)
                # What was learned from stays learned: only its answer is a dead letter.
                done = done if done.learned else done.with_rejects(refused)
        if self._dead_letters is not None:
            for reject in rejects:
                with calls.Calling("dead_letters", self._dead_letters):
                    self._dead_letters.write(dead_letter_frame(reject, batch.pieces))
        return done

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
