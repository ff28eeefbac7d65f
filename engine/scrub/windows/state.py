"""The state of a `window` stage: what it works on, and the value that a mark holds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.columnar.buffer_pool import BufferPool
from engine.columnar.event_time import Clock
from engine.columnar.hashing import Hashes
from engine.scrub.windows import kernels
from engine.scrub.windows import results as columns_of
from engine.scrub.windows.kernels import (
    ARENA,
    BEFORE,
    BLOCK,
    CLOCK,
    DUE,
    EMPTY,
    ENTRIES,
    FORGOTTEN,
    FREE_RECORD,
    HEAD,
    HOT,
    KEYS,
    LATE,
    LIMIT,
    LINE,
    MARKED,
    MARKS,
    NEVER,
    NEWEST,
    NEXT,
    ORIGIN,
    RECORDS,
    REGISTERS,
    SEEN,
    SLAB,
    SLOTS,
    SPLITS,
    START,
    TAIL,
    TIME,
    UNTIMED,
    WRITTEN,
    Base,
    Cells,
    Memory,
    Plan,
)
from engine.scrub.windows.results import Results
from engine.types.arrays import Bools, Floats, Ints

Arrays = dict[str, NDArray[Any]]

CHUNK_ROWS = 65_536
"""Rows of a piece of the log."""
MIN_LOG_BYTES = 32 << 20
"""A new base is begun once the log is larger than this and than the base."""
STEPS = 32
"""Batches in which a base is made, so that none of them takes long; fewer for a small one."""
MIN_STEP = 32_768
"""The fewest keys and entries that are written with a batch, at most a millisecond: the sooner a
base is made, the fewer keys change before and are written out of their order."""
RESERVED = 512 << 20
"""Bytes of an array that are asked for at once, as far as the settings may need them: the system
gives them when they are first used, and no copy is made to grow."""
SPARE = 32
"""Free blocks of memory that are kept for the log; for a base as many as it has arrays."""
COUNTED = {"late": LATE, "forgotten": FORGOTTEN, "no_time": UNTIMED}
"""What is counted of a batch, and its register."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """A base that is being made.

    Attributes:
        base: the arrays, some of them written.
        clock, origin: of the stream, and its first time.
        pieces: of the log that it stands for.
        step: keys and entries to write with each batch.
    """

    base: Base
    clock: Clock
    origin: int
    pieces: int
    step: int


class WindowState:
    """Keys with what their windows need.

    The loops work on memory that they change. The value of the state is a base, compact arrays of
    everything at some row, and a log of the rows since. Neither is ever changed, only replaced or
    continued, so `snapshot` refers to them; `restore` loads the base and walks over the log. A new
    base is made a part with each batch: a key that changes meanwhile is written before. What a row
    sees does not depend on where a base stands.

    Args:
        plan: what the loops do.
        results: what is made of what rows see.
        columns: how many columns of values rows have.
    """

    def __init__(self, plan: Plan, results: Results, columns: int) -> None:
        self._plan, self._results = plan, results
        self._clock = Clock()
        self._pool, self._outputs = BufferPool(spare=len(Base._fields)), BufferPool(spare=4)
        self._log = RowLog(columns, BufferPool(spare=SPARE))
        self._none = self._room_for(0, 0, 0)
        self._base: dict[str, Any] = {
            "clock": self._clock.snapshot(),
            "origin": NEVER,
            **self._none._asdict(),
        }
        self._making: Making | None = None
        self._memory = self._loaded()

    def walk(
        self, hashes: Hashes, times: Ints, values: Floats
    ) -> tuple[Floats, Bools, dict[str, int]]:
        """Return what each row sees and whether there is such a number, shapes (results, n), and
        what is counted; remember the rows.

        Args:
            hashes: of the keys, shape (n,).
            times: in ticks, NEVER for none, shape (n,).
            values: NaN where missing, shape (n, columns).
        """
        rows = {"keys": hashes.view(np.int64), "times": times, "values": values}
        self._memory.registers[LATE : UNTIMED + 1] = 0
        seen, ahead = self._walk(rows)
        registers = self._memory.registers
        counts = {name: int(registers[at]) for name, at in COUNTED.items()} | {"ahead": ahead}
        self._log.append(rows)
        if len(times):
            self._advance()
        shape = (len(self._results.columns), len(times))
        out, valid = self._outputs.empty(shape, np.float64), self._outputs.empty(shape, np.bool_)
        origin, whole = int(registers[ORIGIN]), out.view(np.int64)
        columns_of.write(self._results, origin, times, values, seen, out, whole, valid)
        return out, valid, counts

    def _walk(self, rows: Arrays) -> tuple[Floats, int]:
        """Remember rows; return what each sees, shape (n, words), and how many are far ahead."""
        n, begun, times = len(rows["keys"]), self._clock.has_begun, rows["times"]
        first = self._clock.begins(times)
        self._clock, clocks, ahead = self._clock.walk(times, self._plan.ahead, at_once=True)
        seen = self._outputs.empty((n, self._results.width), np.float64)
        # Before the clock has begun, it may be wrong: no key is silent for too long by then.
        self._pass(self._plan._replace(idle=-NEVER), rows, 0, first, clocks, seen)
        if first < n and not begun:
            self._begin_at(int(clocks[first]))
        self._pass(self._plan, rows, first, n, clocks, seen)
        return seen, ahead

    def _pass(
        self, plan: Plan, rows: Arrays, at: int, stop: int, clocks: Ints, seen: Floats
    ) -> None:
        """Walk over the rows at ... stop."""
        whole = [array[:stop] for array in (*rows.values(), clocks)]
        while at < stop:
            base = self._none if self._making is None else self._making.base
            at = kernels.walk(plan, self._memory, base, at, *whole, seen)
            if at < stop:
                self._grow()

    def _begin_at(self, clock: int) -> None:
        """Take back what keys note by a clock that had not begun: all are seen by now, and those
        whose newest time is far ahead have none."""
        records = self._memory.cells.records[: self._memory.registers[RECORDS]]
        records[:, SEEN] = clock
        newest = records[:, NEWEST]
        newest[newest - clock > self._plan.ahead] = NEVER
        self._memory.registers[DUE] = NEVER

    def _grow(self) -> None:
        """Make more room."""
        self._memory = _grown(self._memory)

    @property
    def panes(self) -> int:
        """How many panes are remembered."""
        return int(self._memory.registers[ENTRIES])

    @property
    def nbytes(self) -> int:
        """The bytes that the loops use, without the base and the log."""
        cells, table, queue, *_ = self._memory
        entries, keys = (int(self._memory.registers[at]) for at in (ARENA, RECORDS))
        of_key = sum(a[:1].nbytes for a in (cells.records, *self._memory[3:6]))
        of_block = BLOCK * cells.arena[:1].nbytes + cells.runs[:1].nbytes
        return entries // BLOCK * of_block + keys * of_key + table.nbytes + queue.nbytes

    def snapshot(self) -> dict[str, Any]:
        """Return the base and the log, O(1)."""
        return {"base": self._base, "log": self._log.pieces()}

    def restore(self, value: Mapping[str, Any]) -> None:
        """Restore a `snapshot`."""
        self._making = None
        self._base = dict(value["base"])
        self._log.restore(value["log"])
        del self._memory  # before there is new memory
        self._memory = self._loaded()
        for piece in self._log.pieces():
            self._walk(piece)

    def merge(self, value: Mapping[str, Any]) -> None:
        """Add the keys of another state's `snapshot`, as if they had been seen after all others; a
        key of both has the rows of both."""
        other = WindowState(self._plan, self._results, self._log.columns)
        other.restore(value)
        other._renew()
        added = _base_of(other._base)
        origin, registers = other._base["origin"], self._memory.registers
        begun = self._clock.has_begun
        self._clock = max(self._clock, other._clock, key=lambda c: (c.has_begun, c.time))
        registers[CLOCK] = self._clock.time
        if self._clock.has_begun and not begun:
            self._begin_at(self._clock.time)
        if registers[ORIGIN] == NEVER:
            registers[ORIGIN] = origin
        for op, _, word in self._plan.spec.kept:  # times count from the same origin
            if op in (TIME, START):  # the latter is kept negated
                later = origin - int(registers[ORIGIN])
                added.aggregates[:, word] += later if op == TIME else -later
        self._finish()
        at = 0
        while at < len(added.keys):
            at = kernels.absorb(self._plan, self._memory, at, added, self._none)
            if at < len(added.keys):
                self._grow()
        self._renew()

    # ------------------------------------------------------------------------------------- a base

    def _advance(self) -> None:
        """Go on with a new base, or begin one if the log has become long."""
        if self._making is not None:
            self._make(self._making.step)
            self._shrink()
        elif self._log.nbytes > max(MIN_LOG_BYTES, _nbytes(self._base)):
            self._begin()

    def _begin(self) -> None:
        """Begin a new base, of what is remembered now."""
        registers = self._memory.registers
        kernels.compact_queue(self._memory.queue, self._memory.stamps, registers)
        keys, entries, marks = (int(registers[at]) for at in (KEYS, ENTRIES, MARKS))
        registers[[NEXT, LIMIT, WRITTEN, MARKED]] = 0, keys, 0, 0
        self._making = Making(
            base=self._room_for(keys, entries, marks),
            clock=self._clock,
            origin=int(registers[ORIGIN]),
            pieces=self._log.close(),
            step=max((keys + entries) // STEPS, MIN_STEP),
        )

    def _make(self, step: int) -> None:
        """Write some more of the new base; when it is whole, take it."""
        making = self._making
        assert making is not None
        if not kernels.save_some(self._memory, making.base, step):
            return
        self._making = None
        self._memory.registers[LIMIT] = 0
        self._base = {
            "clock": making.clock.snapshot(),
            "origin": making.origin,
            **making.base._asdict(),
        }
        self._log.drop(making.pieces)

    def _shrink(self) -> None:
        """Take new memory if much of it lies in segments that no key has any more."""
        if self._making is None:
            needed = kernels.room_for(_writable(self._base["keys"]))
            if self._memory.registers[ARENA] > 1.5 * needed + CHUNK_ROWS:
                self.restore(self.snapshot())

    def _finish(self) -> None:
        """Write all that is left of a new base."""
        if self._making is not None:
            self._make(self._making.step * STEPS)

    def _renew(self) -> None:
        """Make a base of what is remembered now."""
        self._finish()
        self._begin()
        self._finish()

    def _room_for(self, keys: int, entries: int, marks: int) -> Base:
        plan, pool = self._plan, self._pool
        words = BEFORE + 1 + len(plan.spec.lengths) + len(plan.sketches)
        return Base(
            keys=_room(pool, (keys, words), np.int64),
            panes=_room(pool, (entries,), np.int64),
            aggregates=_room(pool, (entries, plan.spec.words), np.float64),
            marks=_room(pool, (marks,), np.int32),
        )

    def _loaded(self) -> Memory:
        """Return memory that holds the base, with room for more."""
        plan, base = self._plan, _base_of(self._base)
        self._clock = Clock.restore(self._base["clock"])
        windows, keys = len(plan.spec.lengths), len(base.keys)
        registers = np.full(REGISTERS, -1)
        registers[[KEYS, RECORDS, HEAD, TAIL, ENTRIES, MARKS, NEXT, LIMIT]] = 0
        registers[DUE] = NEVER
        registers[[CLOCK, ORIGIN, ARENA]] = self._clock.time, self._base["origin"], BLOCK
        words, slots = max(SPLITS // 2 + windows, LINE // 8), SLOTS * len(plan.sketches)
        records = max(2 * keys, min(plan.keys, RESERVED // max(8 * words, 4 * slots)), 256)
        width = 1 + plan.spec.words
        entries = 3 * len(base.panes) + 4 * keys + BLOCK * SLAB
        reserve = min(2 * plan.panes + 3 * plan.keys, RESERVED // (8 * width))
        arena = _aligned((-(-max(2 * entries, reserve) // BLOCK) * BLOCK, width), np.float64)
        runs = _aligned((len(arena) // BLOCK + 1, windows * plan.spec.words), np.float64)
        sketched = records if slots else 0
        memory = Memory(
            cells=_cells(_aligned((records, words), np.int64), arena, runs),
            table=np.full(_power(2 * min(records, 65_536 + keys)), EMPTY),
            queue=np.empty(max(3 * keys, CHUNK_ROWS), np.int32),
            stamps=np.empty(records, np.int32),
            slots=_aligned((sketched, slots), np.int32),
            bases=np.empty((sketched, 1 + len(plan.sketches)), np.int64),
            tags=np.full((HOT, 4), NEVER),
            befores=np.empty((HOT, windows * plan.spec.words)),
            registers=registers,
        )
        if keys:
            kernels.load(plan.spec, memory, base)
        return memory


class RowLog:
    """Rows of keys, times and values, in pieces that never change.

    Args:
        columns: how many columns of values rows have.
        pool: where memory comes from.
    """

    def __init__(self, columns: int, pool: BufferPool) -> None:
        self.columns = columns
        self._pool = pool
        self._whole: tuple[Arrays, ...] = ()
        self._begin()

    def _begin(self) -> None:
        self._used = 0
        self._last: Arrays = {
            "keys": self._pool.empty((CHUNK_ROWS,), np.int64),
            "times": self._pool.empty((CHUNK_ROWS,), np.int64),
            "values": self._pool.empty((CHUNK_ROWS, self.columns), np.float64),
        }

    @property
    def nbytes(self) -> int:
        """The bytes of all rows."""
        rows = self._used + sum(len(piece["keys"]) for piece in self._whole)
        return rows * 8 * (2 + self.columns)

    def append(self, rows: Arrays) -> None:
        """Append rows."""
        at, n = 0, len(rows["keys"])
        while at < n:
            step = min(n - at, CHUNK_ROWS - self._used)
            for name, values in rows.items():
                self._last[name][self._used : self._used + step] = values[at : at + step]
            self._used += step
            at += step
            if self._used == CHUNK_ROWS:
                self.close()

    def close(self) -> int:
        """End the last piece; return how many there are."""
        if self._used:
            self._whole = tuple(self.pieces())
            self._begin()
        return len(self._whole)

    def drop(self, pieces: int) -> None:
        """Drop the first pieces."""
        self._whole = self._whole[pieces:]

    def pieces(self) -> list[Arrays]:
        """Return all rows; what is appended later stands behind what these arrays show."""
        return [*self._whole, {name: rows[: self._used] for name, rows in self._last.items()}]

    def restore(self, pieces: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        """Begin with these `pieces`. The last is copied: others may hold what stood behind it."""
        *whole, last = pieces
        self._whole = tuple({name: _writable(rows[name]) for name in self._last} for rows in whole)
        self._begin()
        self.append({name: last[name] for name in self._last})


def _base_of(arrays: Mapping[str, Any]) -> Base:
    return Base(**{name: _writable(arrays[name]) for name in Base._fields})


def _cells(records: Ints, arena: Floats, runs: Floats) -> Cells:
    panes = arena.view(np.int64)
    return Cells(
        records=records, parts=records.view(np.int32), arena=arena, panes=panes,
        flat=panes.reshape(-1), runs=runs,
    )  # fmt: skip


def _grown(memory: Memory) -> Memory:
    """Return memory with more room where the walk ended for lack of it."""
    cells, table, queue, stamps, slots, bases, tags, befores, registers = memory
    records, arena, runs = cells.records, cells.arena, cells.runs
    full = registers[TAIL] == len(queue)
    kernels.compact_queue(queue, stamps, registers)
    if 4 * registers[TAIL] > 3 * len(queue):
        queue = _longer(queue, len(queue) // 2)
    if registers[FREE_RECORD] < 0 and registers[RECORDS] == len(records):
        records, stamps = _longer(records), _longer(stamps)
        slots, bases = _longer(slots), _longer(bases)
    elif 4 * registers[KEYS] >= 3 * len(table):
        table = np.full(2 * len(table), EMPTY)
        kernels.fill_table(table, records, queue, stamps, int(registers[TAIL]))
    elif not full:
        arena, runs = _longer(arena), _longer(runs)
    return Memory(
        _cells(records, arena, runs), table, queue, stamps, slots, bases, tags, befores, registers
    )


def _aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Return an array, not initialized, that begins with a cache line."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    return memory[start : start + size].view(dtype).reshape(shape)


def _longer(array: NDArray[Any], by: int | None = None) -> NDArray[Any]:
    """Return a longer array, twice as long unless `by` says how many rows it gets."""
    rows = len(array) + (len(array) if by is None else by)
    longer = _aligned((rows, *array.shape[1:]), array.dtype.type)
    longer[: len(array)] = array
    return longer


def _power(n: int) -> int:
    """Return the least power of two that is not less."""
    return 1 << (n - 1).bit_length()


def _room(pool: BufferPool, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    """Return an array in memory of which the next, slightly larger one can be made, too."""
    step = max(_power(max(shape[0], 1)) // 8, 1)
    rows = -(-shape[0] // step) * step
    return pool.empty((rows, *shape[1:]), dtype)[: shape[0]]


def _writable(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array that compiled loops take as they take all others: those of a checkpoint
    cannot be written to, which would be another type."""
    return array if array.flags.writeable else array.copy()


def _nbytes(base: Mapping[str, Any]) -> int:
    return sum(value.nbytes for value in base.values() if isinstance(value, np.ndarray))


__all__ = ["RowLog", "WindowState"]
