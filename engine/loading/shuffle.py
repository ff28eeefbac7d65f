"""Shuffles the rows of a stream, exactly resumable, within bounded blocks.

A block of records is read and decoded, its rows are put in the order of partition and position, and
from there into an order that is a function of the seed and the block's number alone. So the order
does not depend on how the records came, and a checkpoint in the middle of a block needs no rows:
its mark has the positions at the block's start, the positions at its end, its number, and how many
of its rows were given. A restart reads those records again, gets the same order, and leaves out
what was given.

Until a block is done its records are not committed, so they come again to whoever has no
checkpoint.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from engine.columnar.row_sizes import ends_of
from engine.config import LoaderSettings
from engine.loading.budget import Budget
from engine.loading.channel import Empty
from engine.loading.decoder import Decoder
from engine.loading.nodes import Node
from engine.loading.prefetch import PrefetchNode
from engine.observing.metrics import Metrics
from engine.observing.timing import StageTimer
from engine.types import Batch, Mark, Records, Rejects, Snapshot

SHUFFLE_STATE = "_shuffle"
"""The name of its snapshot among those of the stages."""
MEMORY_SHARE = 0.25
"""The part of the budget that a block's raw records may use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShuffleBlock:
    """Decoded rows in their new order.

    Attributes:
        frame: the good rows.
        rejects: the others; they are given with the first batch.
        rows, nbytes: of the raw records.
        arrived: `time.monotonic` seconds when the oldest was read.
        ends: partition -> position after it.
    """

    frame: pl.DataFrame
    rejects: tuple[Rejects, ...]
    rows: int
    nbytes: int
    arrived: float
    ends: Mapping[str, int]


class ShuffleNode(Node[Batch]):
    """Gives decoded batches from blocks of `shuffle_rows` records, each block in its own order.
    See the module.

    A block is closed early where it would take more than a quarter of the budget, where its oldest
    record has waited `max_delay`, and at the end of the stream. While a block fills, an empty batch
    comes every `idle` seconds, so that the loop behind can act.

    Batches keep no records: a row that a later stage rejects is a dead letter as JSON.

    Args:
        node: records as they are read.
        budget: what it holds counts there, as ``shuffle``.
    """

    idle = 0.5

    def __init__(
        self,
        node: PrefetchNode[Records | None],
        decoder: Decoder,
        settings: LoaderSettings,
        budget: Budget,
        metrics: Metrics,
        timer: StageTimer,
    ) -> None:
        super().__init__()
        self._node = node
        self._decoder = decoder
        self._rows, self._batch_rows = settings.shuffle_rows, settings.batch_rows
        self._bytes = max(1, int(int(settings.memory_budget) * MEMORY_SHARE))
        self._delay, self._seed = settings.max_delay, settings.shuffle_seed
        self._budget = budget
        self._account = budget.open("shuffle", drains=False)
        self._releases = metrics.batches_closed
        self._timer = timer
        self._begin({})

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        state = initial_state or {}
        self._begin(state.get("positions", {}), state.get("stages", {}).get(SHUFFLE_STATE))
        self._decoder.resume()
        self._node.reset(dict(self._start))

    def restore(self, value: Mapping[str, Any]) -> None:
        """Restore the state from a mark."""
        self._begin({}, value)

    def snapshots(self) -> Mapping[str, Snapshot]:
        """Return the state for a mark."""
        return self._mark().stages

    def next(self) -> Batch:
        if self._block is None and not self._fill():
            if self._ended:
                raise StopIteration
            self._releases.labels(reason="idle").inc()
            now = time.monotonic()
            return Batch(frame=self._decoder.decode(())[0], mark=self._mark(), arrived=now, cut=now)
        assert self._block is not None
        return self._emit(self._block)

    def get_state(self) -> dict[str, Any]:
        mark = self._mark()
        return {"positions": mark.positions, "stages": mark.stages}

    def interrupt(self) -> None:
        self._decoder.interrupt()
        self._node.interrupt()

    def halt(self) -> None:
        self._node.halt()
        self._decoder.close()
        self._begin({})
        self._budget.hold(self._account, 0)

    def close(self) -> None:
        self._node.close()

    def _begin(self, start: Mapping[str, int], saved: Mapping[str, Any] | None = None) -> None:
        """Begin at the start of a block, or within the block described by `saved`."""
        saved = saved or {"block": 0, "given": 0, "ends": {}}
        self._start = dict(start)
        self._number, self._emitted = int(saved["block"]), int(saved["given"])
        self._ends: dict[str, int] = dict(saved["ends"])  # of a block that is read again
        self._held: deque[Records] = deque()
        self._block: ShuffleBlock | None = None
        self._ended = False
        self._start_block()

    def _start_block(self) -> None:
        self._pieces: list[Records] = []
        self._nexts: dict[str, int] = {}
        self._left, self._room, self._full = self._rows, self._bytes, False

    # -------------------------------------------------------------------------------- a block fills

    def _fill(self) -> bool:
        """Read until a block is full; return False if nothing comes, now or ever."""
        start = time.monotonic()
        while not self._is_full():
            records: Records | None
            try:
                records = self._pull(start)
            except Empty:
                records = None
            except StopIteration:
                self._ended = True
                if not self._pieces:
                    return False
                break
            if records is not None:
                self._take(records)
            elif self._is_overdue():
                break
            elif time.monotonic() >= start + self.idle:
                return False
        self._block = self._close_block()
        return True

    def _is_full(self) -> bool:
        if not self._ends:
            return self._full
        at = {**self._start, **self._nexts}
        return all(at.get(partition, 0) >= end for partition, end in self._ends.items())

    def _pull(self, start: float) -> Records | None:
        if self._held and not self._ends:
            return self._held.popleft()
        until = start + self.idle
        if self._delay is not None and self._pieces:
            until = min(until, self._pieces[0].arrived + self._delay)
        return self._node.next_within(max(0.0, until - time.monotonic()))

    def _is_overdue(self) -> bool:
        if self._delay is None or not self._pieces or self._ends:
            return False
        return time.monotonic() >= self._pieces[0].arrived + self._delay

    def _take(self, records: Records) -> None:
        """Move the records of this block into it; keep the rest for the next."""
        again = bool(self._ends)
        n = self._before_end(records) if again else self._fitting(records)
        if n < len(records):
            rest = records.slice(n, len(records))
            (self._held.append if again else self._held.appendleft)(rest)
            records = records.slice(0, n)
        if n:
            self._pieces.append(records)
        self._budget.hold(
            self._account, sum(piece.nbytes for piece in (*self._pieces, *self._held))
        )

    def _before_end(self, records: Records) -> int:
        """Return how many of the records belong to a block that is read again."""
        end = self._ends.get(records.partition)
        if end is None:
            return 0
        # What lies behind the end says that nothing more comes before it.
        self._nexts |= records.end_positions
        return int(np.searchsorted(records.positions + records.epoch_offset, end))

    def _fitting(self, records: Records) -> int:
        """Return how many of the records fit into a new block; at least one into an empty one."""
        fit = records.slice(0, min(len(records), self._left))
        ends = ends_of(fit)
        n = int(np.searchsorted(ends, self._room, "right"))
        if not self._pieces and len(fit):
            n = max(1, n)
        if n:
            self._left -= n
            self._room -= int(ends[n - 1])
        self._full = n < len(records) or not self._left or self._room <= 0
        if n:
            self._nexts |= records.slice(0, n).end_positions
        return n

    def _close_block(self) -> ShuffleBlock:
        """Return the records, decoded and in their new order."""
        pieces = sorted(self._pieces, key=lambda piece: (piece.partition, piece.mark_position(0)))
        rows = sum(map(len, pieces))
        with self._timer.timed("decode", rows):
            frame, rejects = self._decoder.decode(pieces)
            order = np.random.default_rng((self._seed, self._number)).permutation(frame.height)
            frame = frame[order]
        block = ShuffleBlock(
            frame=frame,
            rejects=rejects,
            rows=rows,
            nbytes=sum(piece.nbytes for piece in pieces),
            arrived=min((piece.arrived for piece in pieces), default=time.monotonic()),
            ends=self._ends or self._nexts,
        )
        self._start_block()
        held = sum(piece.nbytes for piece in self._held)
        self._budget.hold(self._account, int(frame.estimated_size()) + held)
        return block

    # ------------------------------------------------------------------------------- and is given

    def _emit(self, block: ShuffleBlock) -> Batch:
        rejects = () if self._emitted else block.rejects
        frame = block.frame.slice(self._emitted, self._batch_rows)
        rows = frame.height + sum(map(len, rejects))
        self._emitted += frame.height
        self._ends = dict(block.ends)
        if self._emitted >= block.frame.height:
            self._start |= block.ends
            self._number, self._emitted, self._ends, self._block = self._number + 1, 0, {}, None
        self._releases.labels(reason="full" if self._block else "drain").inc()
        return Batch(
            frame=frame,
            mark=self._mark(),
            arrived=block.arrived,
            cut=time.monotonic(),
            raw_rows=rows,
            raw_bytes=block.nbytes * rows // max(1, block.rows),
            rejects=rejects,
        )

    def _mark(self) -> Mark:
        """Return the positions at the block's start, and how many of its rows were given."""
        state = {
            "block": self._number,
            "given": self._emitted,
            "ends": dict(self._ends) if self._emitted else {},
        }
        return Mark(positions=dict(self._start), stages={SHUFFLE_STATE: state})


__all__ = ["SHUFFLE_STATE", "ShuffleBlock", "ShuffleNode"]
