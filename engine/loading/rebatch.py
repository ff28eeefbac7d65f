"""Cuts raw rows into batches."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from engine.columnar.row_sizes import ends_of
from engine.config import LoaderSettings
from engine.loading.budget import Budget
from engine.loading.channel import Empty
from engine.loading.deadline import Deadline, Demand
from engine.loading.nodes import Node
from engine.loading.prefetch import PrefetchNode
from engine.types import Records

MAX_GROUP_BATCHES = 4
"""The most batches processed together: more are no faster, since they leave the CPU cache before
the next step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawBatch:
    """The undecoded rows of one batch or of several.

    Attributes:
        pieces: rows by partition, in the order they were read; may be empty.
        positions: partition -> next position, after all pieces.
        arrived: `time.monotonic` seconds when the oldest row was read.
        cut: `time.monotonic` seconds when it was closed.
        batches: how many batches they are, of as many rows each; more than one where their rows
            are columns already and lie in one piece.
        reason: why it was closed: ``full`` (of rows), ``bytes``, ``delay``, ``deadline``, ``drain``
            (end of stream) or ``idle``.
    """

    pieces: tuple[Records, ...]
    positions: dict[str, int]
    arrived: float
    cut: float
    reason: str
    batches: int = 1

    def split(self) -> tuple[RawBatch, ...]:
        """Return each batch separately."""
        if self.batches == 1:
            return (self,)
        (piece,) = self.pieces
        size = len(piece) // self.batches
        pieces = [piece.slice(at, at + size) for at in range(0, len(piece), size)]
        return tuple(
            replace(
                self, pieces=(part,), positions={**self.positions, **part.end_positions}, batches=1
            )
            for part in pieces
        )

    @property
    def rows(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)


class RebatchNode(Node[RawBatch]):
    """Cuts raw rows into batches: of `batch_rows`, or fewer at `batch_limit` bytes, when the
    oldest has waited `max_delay`, or when waiting longer would miss the deadline.

    Rows are cut while raw, because then a position is exact; stages later only shrink or grow what
    was cut. Where none is full for `idle` seconds, an empty batch comes, whether rows wait for more
    or none are there, so that the loop behind can act (checkpoint, commit, stop, beat).

    Args:
        budget: what it keeps of former items counts there, as ``rebatch``.
        deadline: says when a batch must go; None: only `max_delay` does.
        demand: says when the consumer is ready for a batch that is not full; None: always.
    """

    idle = 0.2

    def __init__(
        self,
        node: PrefetchNode[Records | None],
        settings: LoaderSettings,
        budget: Budget,
        deadline: Deadline | None = None,
        demand: Demand | None = None,
    ) -> None:
        super().__init__()
        self._node = node
        self._demand = demand
        if demand is not None:
            demand.on_ask = self._look_again
        self._rows = settings.batch_rows
        self._bytes = settings.batch_limit
        self._delay = settings.max_delay
        self._deadline = deadline
        self._budget = budget
        self._account = budget.open("rebatch", drains=False)
        self._pieces: list[Records] = []
        self._held = 0
        """The bytes of the pieces in memory."""
        self._rest: Records | None = None
        self._left, self._room = self._rows, self._bytes
        self._positions: dict[str, int] = {}
        self._ahead: dict[str, int] = {}
        """The positions after the waiting rows."""
        self._ended = False

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        self._pieces, self._held, self._rest, self._ended = [], 0, None, False
        self._left, self._room = self._rows, self._bytes
        self._positions = dict(initial_state or {})
        self._ahead = dict(self._positions)
        self._node.reset(initial_state)

    def next(self) -> RawBatch:
        start, reason = time.monotonic(), ""
        batches = 1
        while not reason:
            records = self._rest or self._wait(start)
            if isinstance(records, str):
                reason = records
            elif (several := self._whole_batches(records)) > 1:
                reason, batches = "full", several
                self._take(records, several * self._rows)
            else:
                reason = self._add(records)
        if self._ended and not self._pieces and self._positions == self._ahead:
            raise StopIteration
        return self._idle() if reason == "idle" else self._cut(start, reason, batches)

    def get_state(self) -> dict[str, Any]:
        return self._positions

    def interrupt(self) -> None:
        self._node.interrupt()

    def halt(self) -> None:
        self._node.halt()
        self._pieces, self._held, self._rest = [], 0, None
        self._left, self._room = self._rows, self._bytes
        self._budget.hold(self._account, 0)

    def close(self) -> None:
        self._node.close()

    def _look_again(self) -> None:
        """Close a batch that waits for the consumer. Another thread calls it."""
        if self._pieces:
            self._node.poke()

    def _cut(self, start: float, reason: str, batches: int) -> RawBatch:
        pieces, self._pieces, self._held = tuple(self._pieces), [], 0
        self._left, self._room = self._rows, self._bytes
        self._positions = dict(self._ahead)
        return RawBatch(
            pieces=pieces,
            positions=self._positions,
            arrived=min((piece.arrived for piece in pieces), default=start),
            cut=time.monotonic(),
            reason=reason,
            batches=batches,
        )

    def _idle(self) -> RawBatch:
        """Return a batch without rows: waiting rows stay, and the positions before them."""
        if not self._pieces:
            self._positions = dict(self._ahead)
        now = time.monotonic()
        return RawBatch(pieces=(), positions=self._positions, arrived=now, cut=now, reason="idle")

    def _whole_batches(self, records: Records) -> int:
        """Return how many whole batches at the start of these rows can be cut at once: together
        they have no more bytes than one batch may have."""
        n = min(len(records) // self._rows, MAX_GROUP_BATCHES)
        together = isinstance(records.values, pl.DataFrame) and not self._pieces
        if n < 2 or not together or self._deadline is not None:
            return 1
        ends = ends_of(records.slice(0, n * self._rows))[self._rows - 1 :: self._rows]
        return int(np.searchsorted(ends, self._bytes, "right"))

    def _take(self, records: Records, n: int) -> None:
        """Move the first n rows into the batch; the others stay for the next."""
        piece = records if n == len(records) else records.slice(0, n)
        self._pieces.append(piece)
        self._held += piece.nbytes
        self._ahead |= piece.end_positions
        self._rest = records.slice(n, len(records)) if n < len(records) else None

    def _add(self, records: Records) -> str:
        """Move what fits into the batch and keep the rest; return why it is full, or nothing."""
        fit = records if len(records) <= self._left else records.slice(0, self._left)
        ends = ends_of(fit)
        n = int(np.searchsorted(ends, self._room, "right"))
        if not self._pieces:
            n = max(1, n)  # a record that is too large for any batch has one of its own
        if n:
            self._take(records, n)
            self._left -= n
            self._room -= int(ends[n - 1])
        else:
            self._rest = records
        return "bytes" if n < len(fit) or self._room <= 0 else "" if self._left else "full"

    def _wait(self, start: float) -> Records | str:
        """Return the next records, or the reason to close the batch without more."""
        while True:
            close, why = self._close_by(start)
            timeout = max(0.0, close - time.monotonic())
            self._budget.hold(self._account, self._held)
            try:
                records = self._node.next_within(timeout)
            except Empty:
                if timeout:  # the time is over, or the consumer asks
                    continue
                return why
            except StopIteration:
                self._ended = True
                return "drain"
            if records is not None and len(records):
                return records
            # Nothing came, or a gap without rows: only its position counts.
            if records is not None:
                self._ahead |= records.end_positions
            if time.monotonic() >= close:
                return why

    def _close_by(self, start: float) -> tuple[float, str]:
        """Return the latest time to close the batch, and the reason: not before the consumer is
        ready for it."""
        close, why = self._due(start)
        return (close if self._demand is None else max(close, self._demand.due)), why

    def _due(self, start: float) -> tuple[float, str]:
        """Return when to close the batch for a consumer that waits, and the reason."""
        ends = [(start + self.idle, "idle")]
        if not self._pieces:
            return ends[0]
        arrived = self._pieces[0].arrived
        if self._delay is not None:
            ends.append((arrived + self._delay, "delay"))
        if self._deadline is not None:
            ends.append((self._deadline.close_at(arrived, self._rows - self._left), "deadline"))
        return min(ends)


__all__ = ["RawBatch", "RebatchNode"]
