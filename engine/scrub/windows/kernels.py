"""Compiled loops over rows, their keys and what is remembered of each.

A key has a record in `records` and a segment of `arena`: its entries, one per pane (a piece of time
of the length of the resolution) that has rows, ascending. An entry is its pane's number, then the
aggregates of its own rows.

A window of up to 16 entries is summed up entry by entry. For keys of more entries `runs` holds
running aggregates, one for each block of eight entries and each window, and what a row sees is at
most two of them and the entries of the blocks where its window begins and ends:

* sliding: the run of a block before the record's split is that of its own and all later entries
  before the split, of a block behind it that of all from the split to the block. Nothing is ever
  subtracted. When a window begins behind the split, the split moves (two stacks, each entry turned
  over once), but no further than late rows may come, which change the runs after them.
* tumbling, session, fading: the run of a block is the aggregate, up to the block, since the window
  began. Of the entries that no row in time reaches any more, only the newest stays: its own
  aggregate becomes that since the window began.

Runs follow from the entries, where blocks begin among them, and the split, bit by bit, so those are
the state.

Distinct values are estimated by linear counting (Whang et al., 1990): each value has one of 256
slots of its key, and a slot the newest pane in which it was seen, so that one sketch serves all
windows. Of a key there are marks, a slot and its pane in 32 bits, for those that were seen only.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from engine.columnar.intrinsics import apart, prefetch
from engine.types.arrays import Floats, Ints

_njit: Any = numba.njit  # whose types know no `_nrt`
LOOP = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "_nrt": False,
    "no_cfunc_wrapper": True,
}
"""Numba's options for a loop that owns no array, and that nobody calls from C."""
_compiled = _njit(**LOOP)
"""Compiles a loop that owns no array: no references are counted."""
_called = _njit(**LOOP, no_cpython_wrapper=True, forceinline=False)
"""The same, for what only compiled loops call: it needs no way in from Python, which unpacks each
array of the plan and the memory. Unless told, numba takes the caller's word on `forceinline`."""
_inlined = _njit(**LOOP, no_cpython_wrapper=True, forceinline=True)
"""The same, for what is called for each row: a call would copy the plan and the memory."""

NEVER = -(1 << 62)
"""A time before all times."""

SLIDING, TUMBLING, SESSION, FADING = range(4)
"""Shapes of a window."""

COUNT, ROWS, SUM, MAX, MIN, TIME, START, LAST, MOMENTS = range(9)
"""What is kept of a column: `ROWS` is a count that does not fade, `TIME` and `START` are those of
its newest and oldest value, `MOMENTS` count, mean and the sum of squared differences from it. Up to
SUM it adds up; from MAX to START it is a maximum: MIN and START are kept negated."""

HASH, NEWEST, SEEN, AT = range(4)
"""Words of 64 bits of a key's record: its hash; its newest time, without those far ahead; the
stream's time at its last row; where its segment begins in `arena` (or the next free record)."""
SIZE, FIRST, END, SPLITS = 8, 9, 10, 12
"""Words of 32 bits: the size of its segment, its first entry and the end of its entries; then for
each window its split, and where it began last, to search from there."""

(
    CLOCK, ORIGIN, KEYS, RECORDS, FREE_RECORD, HEAD, TAIL, ARENA, ENTRIES, LATE, FORGOTTEN, UNTIMED,
    NEXT, LIMIT, WRITTEN, DUE, MARKS, MARKED,
) = range(18)  # fmt: skip
"""Registers: the stream's time; its first time; keys remembered; records used; the first free one
of those; the queue's two ends; how much of the arena is used; entries in it; counts; of the base
that is being made the next key to write, how many it has, and the entries written; until when no
key is silent for too long; marks of all sketches, and those written."""
FOUND, FREE_SEGMENT = 18, 82
"""Registers of the records that are looked up ahead, and of the first free segment of each class of
sizes."""
REGISTERS = FREE_SEGMENT + 64
FOUND_ROWS = FREE_SEGMENT - FOUND
AHEAD_ROWS = 16
"""Rows between the three steps in which what a row needs is fetched: its place of the hash table,
its key's record, its key's entries. So none of them is waited for."""

EMPTY = -1
"""A place of the hash table; others hold the upper half of a key's hash and its record."""
UPPER, LOWER = ~0xFFFF_FFFF, 0xFFFF_FFFF
BLOCK, FEW = 8, 16
"""Entries of a block; and those that are summed up one by one."""
SLAB = 24
"""Segments of 1, 2, 3, 4, 6, 8 and 12 entries are cut out of as many, so that larger ones, which
are whole blocks, begin with a block."""
BEGIN, HELD, MARK, UNIT, BEFORE = 3, 4, 5, 6, 7
"""Words of a base's key, after HASH, NEWEST and SEEN: where its entries begin, and how many it has;
where its marks begin, and what they count from; how many entries before its first one the block of
that begins. Then the split of each window, counted from there, and the marks of each sketch."""
LINE = 64
"""Bytes of a cache line."""

ONE, TWO = np.uint64(1), np.uint64(2)
"""Indices of the innermost loops are unsigned: signed ones are looked at for a sign each time."""
HOT = 512
"""Keys of which it is known what their windows hold before the newest entry, while rows of its pane
come: the hash, that pane, the first entry and the end of the entries, and those aggregates. It is
computed again where another key has taken the place, with the same bits."""

NIL, OWN, NO = np.int64(0), np.int64(1), np.int64(-1)
"""Arguments that are always the same: a function is compiled again for each bare number it gets.
`OWN` is where the words of an entry's own rows begin, `NO` no run."""

SLOTS = 256
SPARSE, SLOT_BITS = 64, 8
"""Marks that stand in the order in which they came; of a key of more than these each stands at its
slot, those that were never seen at the pane NONE."""
NONE, LAST_PANE = -(1 << 23), (1 << 23) - 1
"""What a mark's pane, counted from its key's base, is above; and its last one."""
PAST = 1 << 22
"""How long before the newest pane marks begin to count; longer than any window."""
ESTIMATES = np.round(-SLOTS * np.log1p(-np.append(np.arange(SLOTS), SLOTS - 0.5) / SLOTS))
"""How many values have most likely been seen where so many slots have."""


class Spec(NamedTuple):
    """What the windows of a key are.

    Attributes:
        shape: SLIDING ... FADING.
        ties: whether a row sees earlier rows of its own time.
        late_panes: how many panes rows may be late.
        lengths: of each window in panes (of a session the gap, of a fading one the halflife),
            ascending.
        kept: of each kept aggregate what it is, its column and its first word, shape (kept, 3);
            ascending.
        sums, tops, lasts: where the words of those that add up, of maxima and of LAST end.
        words: how many words they have.
        weights: of a fading window after 0, 1, ... panes.
    """

    shape: int
    ties: bool
    late_panes: int
    lengths: Ints
    kept: Ints
    sums: int
    tops: int
    lasts: int
    words: int
    weights: Floats


class Plan(NamedTuple):
    """What the loops do.

    Attributes:
        spec: of the windows.
        resolution: ticks of a pane.
        lateness, ahead, idle: in ticks.
        keys, panes: most keys, most entries.
        own: whether a row sees itself.
        sketches: of each the column, which holds slots, and START's word; shape (sketches, 2).
        shift: marks count panes in units of 2 ** shift, so that these have 24 bits.
    """

    spec: Spec
    resolution: int
    lateness: int
    ahead: int
    idle: int
    keys: int
    panes: int
    own: bool
    sketches: Ints
    shift: int


class Cells(NamedTuple):
    """Records and entries.

    Attributes:
        records: int64, shape (records, words).
        parts: the same memory as int32.
        arena: float64, shape (entries, 1 + words).
        panes: the same memory as int64; its first column are the panes.
        flat: the same, shape (entries * (1 + words),).
        runs: shape (entries / BLOCK, words * windows).
    """

    records: Ints
    parts: NDArray[np.int32]
    arena: Floats
    panes: Ints
    flat: Ints
    runs: Floats


class Memory(NamedTuple):
    """What the loops change.

    Attributes:
        cells: records and entries.
        table: hash table of keys, open addressing.
        queue: the record of each row, in their order; valid where `stamps` says so.
        stamps: index in `queue` of each record's last row, -1 if the record is free.
        slots: marks of each record, shape (records, SLOTS * sketches).
        bases: the unit that the marks of each record count from, then how many each sketch has;
            shape (records, 1 + sketches).
        tags, befores: see HOT; shapes (HOT, 4) and (HOT, windows * words).
        registers: see CLOCK.
    """

    cells: Cells
    table: Ints
    queue: NDArray[np.int32]
    stamps: NDArray[np.int32]
    slots: NDArray[np.int32]
    bases: Ints
    tags: Ints
    befores: Floats
    registers: Ints


class Base(NamedTuple):
    """Everything that is remembered at some row, as compact arrays.

    Attributes:
        keys: hash, newest time, when it was seen; see BEGIN; the one not seen for the longest time
            first; shape (keys, BEFORE + 1 + windows + sketches).
        panes: of the entries.
        aggregates: of their own rows, shape (entries, words).
        marks: of all sketches.
    """

    keys: Ints
    panes: Ints
    aggregates: Floats
    marks: NDArray[np.int32]


# ------------------------------------------------------------------------------------- aggregates


@_inlined
def _clear(kept, out, k, at):
    k, at = np.uint64(k), np.uint64(at)
    for f in range(np.uint64(kept.shape[0])):
        op, w = kept[f, 0], at + np.uint64(kept[f, 2])
        out[k, w] = 0.0
        if op == LAST:
            out[k, w] = math.nan
        elif op == MOMENTS:
            out[k, w + ONE] = out[k, w + TWO] = 0.0
        elif op > SUM:
            out[k, w] = -math.inf


@_inlined
def _copy(words, a, i, a_at, out, k, at):
    x, y, u, v = np.uint64(i), np.uint64(a_at), np.uint64(k), np.uint64(at)
    for w in range(np.uint64(words)):
        out[u, v + w] = a[x, y + w]


@_inlined
def _merge(spec, out, k, at, b, j, b_at):
    """Add newer rows `b` to the aggregate of older ones."""
    k, at, j, b_at = np.uint64(k), np.uint64(at), np.uint64(j), np.uint64(b_at)
    for f in range(np.uint64(spec.kept.shape[0])):
        op, w = spec.kept[f, 0], np.uint64(spec.kept[f, 2])
        x, y = out[k, at + w], b[j, b_at + w]
        if op <= SUM:
            out[k, at + w] = x + y
        elif op == LAST:
            out[k, at + w] = x if y != y else y
        elif op < LAST:
            out[k, at + w] = y if y > x else x
        else:
            _merge_moments(out, k, at + w, b, j, b_at + w)


@_inlined
def _merge_moments(out, k, at, b, j, b_at):
    x, y = out[k, at], b[j, b_at]
    if x == 0:
        out[k, at + ONE], out[k, at + TWO] = b[j, b_at + ONE], b[j, b_at + TWO]
    elif y != 0:
        delta = b[j, b_at + ONE] - out[k, at + ONE]
        out[k, at + ONE] += delta * (y / (x + y))
        out[k, at + TWO] += b[j, b_at + TWO] + delta * delta * (x * y / (x + y))
    out[k, at] = x + y


@_inlined
def _sum(spec, cells, window, low, a, front, back, b, high, out, k, at):
    """Write the aggregate of the entries low ... a, of the runs `front` and `back` (-1 for none),
    and of the entries b ... high, in this order. A word after the other: each is summed up in a
    register."""
    arena, runs, words = cells.arena, cells.runs, np.uint64(spec.words)
    low, a, b, high = np.uint64(low), np.uint64(a), np.uint64(b), np.uint64(high)
    k, at, run = np.uint64(k), np.uint64(at), np.uint64(window) * words
    for w in range(np.uint64(spec.sums)):
        x = 0.0
        for e in range(low, a):
            x += arena[e, w + ONE]
        if front >= 0:
            x += runs[np.uint64(front), run + w]
        if back >= 0:
            x += runs[np.uint64(back), run + w]
        for e in range(b, high):
            x += arena[e, w + ONE]
        out[k, at + w] = x
    for w in range(np.uint64(spec.sums), np.uint64(spec.tops)):
        x = -math.inf
        for e in range(low, a):
            x = arena[e, w + ONE] if arena[e, w + ONE] > x else x
        if front >= 0:
            x = runs[np.uint64(front), run + w] if runs[np.uint64(front), run + w] > x else x
        if back >= 0:
            x = runs[np.uint64(back), run + w] if runs[np.uint64(back), run + w] > x else x
        for e in range(b, high):
            x = arena[e, w + ONE] if arena[e, w + ONE] > x else x
        out[k, at + w] = x
    for w in range(np.uint64(spec.tops), np.uint64(spec.lasts)):
        x = math.nan
        for e in range(low, a):
            x = arena[e, w + ONE] if arena[e, w + ONE] == arena[e, w + ONE] else x
        if front >= 0:
            y = runs[np.uint64(front), run + w]
            x = y if y == y else x
        if back >= 0:
            y = runs[np.uint64(back), run + w]
            x = y if y == y else x
        for e in range(b, high):
            x = arena[e, w + ONE] if arena[e, w + ONE] == arena[e, w + ONE] else x
        out[k, at + w] = x
    if spec.words > spec.lasts:
        _sum_moments(spec, cells, window, low, a, front, back, b, high, out, k, at)


@_inlined
def _sum_moments(spec, cells, window, low, a, front, back, b, high, out, k, at):
    arena, runs, run = cells.arena, cells.runs, np.uint64(window * spec.words)
    for first in range(spec.lasts, spec.words, 3):
        w = np.uint64(first)
        out[k, at + w] = out[k, at + w + ONE] = out[k, at + w + TWO] = 0.0
        for e in range(low, a):
            _merge_moments(out, k, at + w, arena, e, w + ONE)
        if front >= 0:
            _merge_moments(out, k, at + w, runs, np.uint64(front), run + w)
        if back >= 0:
            _merge_moments(out, k, at + w, runs, np.uint64(back), run + w)
        for e in range(b, high):
            _merge_moments(out, k, at + w, arena, e, w + ONE)


@_inlined
def _add(kept, values, i, since, out, k, at):
    """Add a row's values, which are NaN where missing, to an aggregate."""
    i, k, at = np.uint64(i), np.uint64(k), np.uint64(at)
    for f in range(np.uint64(kept.shape[0])):
        x = values[i, np.uint64(kept[f, 1])]
        if x != x:
            continue
        op, w = kept[f, 0], at + np.uint64(kept[f, 2])
        if op <= ROWS:
            out[k, w] += 1.0
        elif op == SUM:
            out[k, w] += x
        elif op == LAST:
            out[k, w] = x
        elif op == MOMENTS:
            out[k, w] += 1.0
            delta = x - out[k, w + ONE]
            out[k, w + ONE] += delta / out[k, w]
            out[k, w + TWO] += delta * (x - out[k, w + ONE])
        else:
            y = x if op <= MIN else since
            y = -y if op in (MIN, START) else y
            out[k, w] = y if y > out[k, w] else out[k, w]


@_inlined
def _weight(halflife, panes):
    return 2.0 ** (-panes / halflife)


@_compiled
def weigh(halflife, weights):
    """Write the weights after 0, 1, ... panes."""
    for panes in range(weights.shape[0]):
        weights[panes] = _weight(halflife, panes)


@_inlined
def _fade(spec, panes, out, k, at):
    """Let an aggregate become older."""
    kept, weights, k, at = spec.kept, spec.weights, np.uint64(k), np.uint64(at)
    weight = weights[panes] if panes < weights.shape[0] else _weight(spec.lengths[0], panes)
    for f in range(np.uint64(kept.shape[0])):
        op, w = kept[f, 0], at + np.uint64(kept[f, 2])
        if op in (COUNT, SUM, MOMENTS):
            out[k, w] *= weight
        if op == MOMENTS:
            out[k, w + TWO] *= weight


# ------------------------------------------------------------------------------------------- keys


@_inlined
def _home(table, key):
    """Return where a key stands in the hash table, if its place is free."""
    return (key >> 32) & (table.shape[0] - 1)


@_inlined
def _likely(table, key):
    """Return the record of the first key whose hash has the same upper half, or -1."""
    mask = table.shape[0] - 1
    at = _home(table, key)
    slot = table[np.uint64(at)]
    while slot != EMPTY and (slot ^ key) & UPPER:
        at = (at + 1) & mask
        slot = table[np.uint64(at)]
    return -1 if slot == EMPTY else slot & LOWER


@_inlined
def _find(table, records, key):
    """Return the record of a key, or -1."""
    mask = table.shape[0] - 1
    at = _home(table, key)
    slot = table[at]
    while slot != EMPTY and records[slot & LOWER, HASH] != key:
        at = (at + 1) & mask
        slot = table[at]
    return -1 if slot == EMPTY else slot & LOWER


@_inlined
def _look_ahead(spec, memory, keys, i, start, stop):
    """Fetch what rows will read that come soon after row `i`, of the rows start ... stop: of three
    of them, each another thing."""
    table, registers = memory.table, memory.registers
    hashed, found, read = i + 3 * AHEAD_ROWS, i + 2 * AHEAD_ROWS, i + AHEAD_ROWS
    if start <= hashed < stop:
        prefetch(table, _home(table, keys[hashed]), 0)
    if start <= found < stop:
        record = registers[FOUND + found % FOUND_ROWS] = _likely(table, keys[found])
        if record >= 0:
            prefetch(memory.cells.records, record, 0)
            prefetch(memory.stamps, record, 0)
            if memory.slots.shape[1]:
                prefetch(memory.bases, record, 0)
    if start <= read < stop:
        record = registers[FOUND + read % FOUND_ROWS]
        if record >= 0:
            _fetch_entries(memory.cells, record)
            for sketch in range(memory.bases.shape[1] - 1):
                for line in range(0, 4 * memory.bases[record, 1 + sketch], LINE):
                    prefetch(memory.slots, record, 4 * SLOTS * sketch + line)


@_inlined
def _fetch_entries(cells, record):
    """Fetch the entries and runs of a key that its next row will read."""
    records, parts, panes = cells.records, cells.parts, cells.panes
    width = 8 * panes.shape[1]
    at, first, end = records[record, AT], parts[record, FIRST], parts[record, END]
    if end - first <= FEW:
        begin, block = at + first, end - first
    else:
        begin = at + parts[record, SPLITS + 1]
        block = BLOCK - begin % BLOCK
        last = at + end - 1 & ~(BLOCK - 1)
        prefetch(panes, at + first, 0)
        prefetch(cells.runs, begin // BLOCK + 1, 0)
        prefetch(cells.runs, last // BLOCK, 0)
        for line in range(0, width * (at + end - last + 1), LINE):
            prefetch(panes, last, line)
    for line in range(0, width * (block + 1), LINE):  # and the one that is new
        prefetch(panes, begin, line)
    prefetch(panes, begin + block, width - 1)


@_called
def _new(table, records, stamps, registers, key):
    """Return a record for a key that has none."""
    apart()
    record = registers[FREE_RECORD]
    if record >= 0:
        registers[FREE_RECORD] = records[record, AT]
    else:
        record = registers[RECORDS]
        registers[RECORDS] += 1
    registers[KEYS] += 1
    for word in range(records.shape[1]):
        records[record, word] = 0
    records[record, HASH] = key
    records[record, NEWEST] = NEVER
    stamps[record] = 0
    _enter(table, key, record)
    return record


@_inlined
def _enter(table, key, record):
    mask = table.shape[0] - 1
    at = _home(table, key)
    while table[at] != EMPTY:
        at = (at + 1) & mask
    table[at] = (key & UPPER) | record


@_compiled
def fill_table(table, records, queue, stamps, tail):
    """Enter the keys of a queue into an empty hash table."""
    for i in range(tail):
        if stamps[queue[i]] == i:
            _enter(table, records[queue[i], HASH], queue[i])


@_called
def _drop(table, records, parts, stamps, registers, panes, bases, record):
    """Forget a key."""
    apart()
    mask = table.shape[0] - 1
    hole = _home(table, records[record, HASH])
    while table[hole] & LOWER != record:
        hole = (hole + 1) & mask
    at = (hole + 1) & mask
    while table[at] != EMPTY:  # whoever stands behind the hole, and belongs before it, moves to it
        home = _home(table, table[at])
        if ((at - home) & mask) >= ((at - hole) & mask):
            table[hole] = table[at]
            hole = at
        at = (at + 1) & mask
    table[hole] = EMPTY
    if parts[record, SIZE]:
        _release(registers, panes, records[record, AT], parts[record, SIZE])
    for sketch in range(bases.shape[1] - 1):
        registers[MARKS] -= bases[record, 1 + sketch]
    registers[ENTRIES] -= parts[record, END] - parts[record, FIRST]
    stamps[record] = -1
    records[record, AT] = registers[FREE_RECORD]
    registers[FREE_RECORD] = record
    registers[KEYS] -= 1


@_inlined
def _touch(queue, stamps, registers, record):
    """Make a key the one seen last."""
    tail = registers[TAIL]
    queue[tail] = record
    stamps[record] = tail
    registers[TAIL] = tail + 1


@_inlined
def _oldest(memory):
    """Return the record of the key not seen for the longest time, or -1."""
    queue, stamps, registers = memory.queue, memory.stamps, memory.registers
    head, tail = registers[HEAD], registers[TAIL]
    while head < tail and stamps[queue[head]] != head:
        head += 1
        registers[HEAD] = head
        prefetch(memory.cells.records, queue[min(head + BLOCK, tail - 1)], 0)
    return -1 if head == tail else queue[head]


@_compiled
def compact_queue(queue, stamps, registers):
    """Take the places of rows that are not their key's last out of the queue, but for the first
    ones, of the keys of a base that is being made."""
    tail, end = registers[LIMIT], registers[TAIL]
    for i in range(max(registers[HEAD], tail), end):
        prefetch(stamps, queue[min(i + 2 * AHEAD_ROWS, end - 1)], 0)
        record = queue[i]
        last = stamps[record] == i
        queue[tail] = record  # no branch: nobody could guess it
        stamps[record] = tail if last else stamps[record]
        tail += last
    registers[HEAD] = min(registers[HEAD], registers[LIMIT])
    registers[TAIL] = tail


# --------------------------------------------------------------------------------------- segments


@_inlined
def _class_size(number):
    """Return the size of a class of segments: 1, 2, 3, 4, 6, 8, 12, ..."""
    return (3 - (number & 1)) << (number - 1 >> 1) if number else 1


@_inlined
def _size_class(size):
    """Return the class of the smallest segments that have room for so many entries."""
    number = 0
    while _class_size(number) < size:
        number += 1
    return number


@_inlined
def _fitting(entries):
    """Return the class of segments for so many entries, with room to grow."""
    return _size_class(entries + (entries >> 3) + (BLOCK if entries > FEW else 1))


@_compiled
def room_for(keys):
    """Return how many entries of the arena the keys of a base need."""
    room = 0
    for k in range(keys.shape[0]):
        room += _class_size(_fitting(keys[k, HELD]))
    return room


@_inlined
def _slab(size):
    """Return how many entries a new segment takes of the arena."""
    return size if SLAB % size else SLAB


@_inlined
def _fits(registers, room, number):
    """Return whether there is a free segment, or room for one in an arena of so many entries."""
    if registers[FREE_SEGMENT + number] >= 0:
        return True
    return registers[ARENA] + _slab(_class_size(number)) <= room


@_called
def _segment(registers, panes, number):
    """Return where a new segment begins."""
    apart()
    at = registers[FREE_SEGMENT + number]
    if at >= 0:
        registers[FREE_SEGMENT + number] = panes[at, 0]
        return at
    at, size = registers[ARENA], _class_size(number)
    registers[ARENA] += _slab(size)
    for part in range(at + _slab(size) - size, at, -size):
        panes[part, 0] = registers[FREE_SEGMENT + number]
        registers[FREE_SEGMENT + number] = part
    return at


@_called
def _release(registers, panes, at, size):
    apart()
    free = FREE_SEGMENT + _size_class(size)
    panes[at, 0] = registers[free]
    registers[free] = at


@_called
def _make_room(spec, cells, registers, record, newest):
    """Make room behind a key's last entry: move the entries to the start of the segment, or of one
    that fits better. A single entry that no row in time sees any more is forgotten before, so that
    a key of one pane needs room for one. Return how far the entries moved."""
    apart()
    if spec.shape == SLIDING and cells.parts[record, END] - cells.parts[record, FIRST] == 1:
        _expire(spec, cells, registers, record, newest)
    records, parts, panes = cells.records, cells.parts, cells.panes
    at, size = records[record, AT], parts[record, SIZE]
    first, end = parts[record, FIRST], parts[record, END]
    target, number = at, _fitting(end - first)
    fitting = _class_size(number)
    if fitting != size and _fits(registers, panes.shape[0], number):
        target = _segment(registers, panes, number)
        records[record, AT], parts[record, SIZE] = target, fitting
    by = np.int64(first & ~(BLOCK - 1) if end - first > FEW else first)
    _move_down(cells, record, at, target, by)
    if size and target != at:
        _release(registers, panes, at, size)
    return by


@_inlined
def _move_down(cells, record, source, target, by):
    """Move a key's entries down by so many, which are whole blocks if it has runs, from one segment
    to another or the same."""
    parts, flat, runs = cells.parts, cells.flat, cells.runs
    width, first, end = cells.panes.shape[1], parts[record, FIRST], parts[record, END]
    to, start = (target + first - by) * width, (source + first) * width
    for j in range((end - first) * width):
        flat[to + j] = flat[start + j]
    if end - first > FEW:
        to, start = target // BLOCK, (source + by) // BLOCK
        for block in range((end - by + BLOCK - 1) // BLOCK):
            for w in range(runs.shape[1]):
                runs[to + block, w] = runs[start + block, w]
    parts[record, FIRST], parts[record, END] = first - by, end - by
    for word in range(SPLITS, parts.shape[1]):
        parts[record, word] = max(parts[record, word] - by, 0)


@_called
def _can_grow(registers, room, entries, size):
    apart()
    number = _fitting(entries)
    return _class_size(number) <= size or _fits(registers, room, number)


@_inlined
def _has_room(memory, record):
    """Return whether a row of this key, or of a new one, can be remembered; the key may be
    forgotten before, and begin anew."""
    registers, parts = memory.registers, memory.cells.parts
    room = memory.cells.arena.shape[0]
    if registers[ARENA] + SLAB > room:
        return False
    if record < 0:
        if registers[FREE_RECORD] < 0 and registers[RECORDS] == parts.shape[0]:
            return False
        return 4 * registers[KEYS] < 3 * memory.table.shape[0]
    first, end, size = parts[record, FIRST], parts[record, END], parts[record, SIZE]
    if end < size or size <= FEW:  # which may need a slab at most
        return True
    return _can_grow(registers, room, end - first, size)


# ---------------------------------------------------------------------------------------- sketches


@_called
def _mark(slots, bases, registers, record, sketch, slot, unit, newest, dead):
    """Note in a key's sketch that a slot was seen in a unit of panes; the newest may be before it,
    if that is far ahead of the stream. A mark that is not after the unit `dead` has no use."""
    if not NONE < newest - bases[record, 0] <= LAST_PANE:  # or before a wrong first time
        _move_base(slots, bases, record, newest - PAST)
    after = min(unit - bases[record, 0], LAST_PANE)
    if after <= NONE:
        return
    first, n = SLOTS * sketch, bases[record, 1 + sketch]
    own, mark = np.int32(slot), np.int32(after << SLOT_BITS | np.int64(slot))
    place = np.int32(0)  # behind its mark, or 0; a sum, so that many are looked at at a time
    if n == SLOTS:
        place = np.int32(first + np.int64(slot) + 1)
        n = NIL
    for s in range(np.uint64(first), np.uint64(first + n)):
        is_own = np.int32(slots[np.uint64(record), s] & np.int32(SLOTS - 1) == own)
        place = np.int32(place + np.int32(is_own * np.int32(s + ONE)))
    if place:
        slots[record, place - 1] = max(slots[record, place - 1], mark)
        return
    free, dead = first, _clipped(dead - bases[record, 0])
    while free < first + n and slots[record, free] >> SLOT_BITS > dead:
        free += 1
    if free < first + n:
        slots[record, free] = mark
    elif n < SPARSE:
        slots[record, free] = mark
        bases[record, 1 + sketch] += 1
        registers[MARKS] += 1
    else:
        _spread(slots, record, first)
        slots[record, first + np.int64(slot)] = mark
        bases[record, 1 + sketch] = SLOTS
        registers[MARKS] += SLOTS - SPARSE


@_called
def _spread(slots, record, first):
    """Put each of `SPARSE` marks at its slot."""
    apart()
    for s in range(SPARSE, SLOTS):
        slots[record, first + s] = np.int32(NONE << SLOT_BITS | s)
    for s in range(SPARSE):
        mark = slots[record, first + s]
        while mark >> SLOT_BITS > NONE and mark & (SLOTS - 1) != s:
            own = first + np.int64(mark & (SLOTS - 1))
            slots[record, first + s], slots[record, own] = slots[record, own], mark
            mark = slots[record, first + s]
        if mark >> SLOT_BITS == NONE:
            slots[record, first + s] = np.int32(NONE << SLOT_BITS | s)


@_inlined
def _clipped(after):
    return min(max(after, NONE), LAST_PANE)


@_called
def _move_base(slots, bases, record, base):
    """Let a key's marks count from another unit."""
    apart()
    for sketch in range(bases.shape[1] - 1):
        for s in range(SLOTS * sketch, SLOTS * sketch + bases[record, 1 + sketch]):
            after = np.int64(slots[record, s] >> SLOT_BITS) + bases[record, 0] - base
            slot = np.int64(slots[record, s]) & SLOTS - 1
            slots[record, s] = np.int32(_clipped(after) << SLOT_BITS | slot)
    bases[record, 0] = base


@_called
def _distinct(slots, bases, record, sketch, start, unit, own):
    """Estimate how many values were seen in the units after `start`, up to and with `unit`; and in
    the slot `own`, which may be NaN."""
    base, first, n = bases[record, 0], SLOTS * sketch, bases[record, 1 + sketch]
    low = np.int32(_clipped(start - base) << SLOT_BITS | SLOTS - 1)
    high = np.int32(_clipped(unit - base) << SLOT_BITS | SLOTS - 1)
    has_own = own == own
    but = np.int32(own) if has_own else np.int32(-1)
    seen = np.int32(has_own)  # as wide as the marks: so many at a time
    for s in range(np.uint64(first), np.uint64(first + n)):
        mark = slots[np.uint64(record), s]
        counts = (mark > low) & (mark <= high) & (mark & np.int32(SLOTS - 1) != but)
        seen = np.int32(seen + np.int32(counts))
    return ESTIMATES[seen]


@_inlined
def _dead(spec, shift, newest):
    """Return the last unit that no row in time sees any more."""
    late, length = newest - spec.late_panes, spec.lengths[-1]
    if spec.shape == SLIDING:
        return (late - length) >> shift
    return (late // length * length - 1) >> shift if spec.shape == TUMBLING else NEVER


@_inlined
def _start(plan, origin, window, pane, since):
    """Return the last unit before the window of a row; `since` is when its session began."""
    spec, shift = plan.spec, plan.shift
    length = spec.lengths[window]
    if spec.shape == TUMBLING:
        return (pane // length * length - 1) >> shift
    if spec.shape == SLIDING:
        return (pane - length) >> shift
    if since == math.inf:
        return pane >> shift
    first = (origin + int(since)) // plan.resolution
    return (first >> shift) - 1  # in a whole unit before it there is a part of the pause only


# ----------------------------------------------------------------------------------------- one key


@_inlined
def _behind(panes, at, low, high, pane):
    """Return the first of the entries low ... high that is newer than a pane."""
    if low == high or panes[at + high - 1, 0] <= pane:
        return high
    while low < high:
        middle = (low + high) >> 1
        if panes[at + middle, 0] <= pane:
            low = middle + 1
        else:
            high = middle
    return low


@_inlined
def _joined(shape, length, older, newer):
    """Return whether two neighbours are of one window."""
    if shape == TUMBLING:
        return older // length == newer // length
    if shape == SESSION:
        return newer - older <= length
    return True


@_inlined
def _since(spec, cells, record, pos, out, k, at):
    """Write the aggregate since the window of entry `pos`, which is not sliding, began."""
    panes, start, length = cells.panes, cells.records[record, AT], spec.lengths[0]
    first, end = start + cells.parts[record, FIRST], start + cells.parts[record, END]
    last = start + pos
    block = max(first, last & ~(BLOCK - 1)) if end - first > FEW else first
    begin = last
    while begin > block and _joined(spec.shape, length, panes[begin - 1, 0], panes[begin, 0]):
        begin -= 1
    back = -1
    if begin == block > first and _joined(spec.shape, length, panes[block - 1, 0], panes[block, 0]):
        back = block // BLOCK
    if spec.shape != FADING:
        _sum(spec, cells, NIL, NIL, NIL, NO, back, begin, last + 1, out, k, at)
        return
    if back < 0:
        _copy(spec.words, cells.arena, begin, OWN, out, k, at)
        begin += 1
    else:
        _copy(spec.words, cells.runs, back, NIL, out, k, at)
    for e in range(begin, last + 1):
        _fade(spec, panes[e, 0] - panes[e - 1, 0], out, k, at)
        _merge(spec, out, k, at, cells.arena, e, OWN)


@_called
def _carry(spec, cells, record, window, pos):
    """Compute the runs of the blocks behind entry `pos`, and behind the split."""
    apart()
    arena, runs = cells.arena, cells.runs
    at, end = cells.records[record, AT], cells.parts[record, END]
    start = cells.parts[record, FIRST]
    if spec.shape == SLIDING:
        start = cells.parts[record, SPLITS + 2 * window]
    begin = max(pos + BLOCK - 1, start + BLOCK) & ~(BLOCK - 1)
    for block in range(begin, end, BLOCK):
        number = (at + block) // BLOCK
        if spec.shape == SLIDING:
            back = number - 1 if block - BLOCK > start else -1
            _sum(
                spec, cells, window, NIL, NIL, NO, back, at + max(block - BLOCK, start), at + block,
                runs, number, window * spec.words,
            )  # fmt: skip
        else:
            _since(spec, cells, record, block - 1, arena, NIL, OWN)
            _copy(spec.words, arena, NIL, OWN, runs, number, NIL)


@_called
def _turn(spec, cells, record, window, low):
    """Compute the runs of the blocks before the split, back to the one whose entries are not newer
    than the pane `low`."""
    apart()
    panes, parts, at = cells.panes, cells.parts, cells.records[record, AT]
    first, split = parts[record, FIRST], parts[record, SPLITS + 2 * window]
    for block in range((split - 1) & ~(BLOCK - 1), first - BLOCK, -BLOCK):
        end = min(block + BLOCK, split)
        if panes[at + end - 1, 0] <= low:
            break
        number = (at + block) // BLOCK
        front = number + 1 if end < split else -1
        _sum(
            spec, cells, window, at + max(block, first), at + end, front, NO, NIL, NIL,
            cells.runs, number, window * spec.words,
        )  # fmt: skip


@_inlined
def _see(spec, cells, record, window, pane, newest, out, i, befores, hot):
    """Write what a row of this pane sees of its key, whose newest pane is `newest`. If that is the
    row's, and has an entry, write what stands before that one, too, and return True."""
    panes, records, parts = cells.panes, cells.records, cells.parts
    at, first, end = records[record, AT], parts[record, FIRST], parts[record, END]
    length, word = spec.lengths[window], window * spec.words
    high = _behind(panes, at, first, end, pane if spec.ties else pane - 1)
    if spec.shape != SLIDING:
        if high == first or not _joined(spec.shape, length, panes[at + high - 1, 0], pane):
            _clear(spec.kept, out, i, word)
            return False
        _since(spec, cells, record, high - 1, out, i, word)
        if spec.shape == FADING:
            _fade(spec, pane - panes[at + high - 1, 0], out, i, word)
        return False
    low, late = _begin(cells, record, window, pane - length, high), newest - spec.late_panes
    front = back = -1
    a = b = low
    if end - first > FEW and pane >= late:
        split = parts[record, SPLITS + 2 * window]
        if low > split:
            split = max(low, _behind(panes, at, low, end, late - 1))
            parts[record, SPLITS + 2 * window] = split
            _turn(spec, cells, record, window, late - length)
            _carry(spec, cells, record, window, split)
        if high - low > FEW and high >= split:
            a = min(split, (low + BLOCK - 1) & ~(BLOCK - 1))
            front = (at + a) // BLOCK if a < split else -1
            b = max(split, (high - 1) & ~(BLOCK - 1))
            back = (at + b) // BLOCK if b > split else -1
    again = pane == newest and b < high == end and panes[at + high - 1, 0] == pane
    high -= again
    _sum(spec, cells, window, at + low, at + a, front, back, at + b, at + high, out, i, word)
    if again:
        _copy(spec.words, out, i, word, befores, hot, word)
        _merge(spec, out, i, word, cells.arena, at + high, OWN)
    return again


@_inlined
def _begin(cells, record, window, start, high):
    """Return the first entry, at most `high`, that is newer than the pane `start`."""
    panes, parts, at = cells.panes, cells.parts, cells.records[record, AT]
    first = parts[record, FIRST]
    if high < parts[record, END]:
        return _behind(panes, at, first, high, start)
    hint = SPLITS + 2 * window + 1
    low = min(max(parts[record, hint], first), high)
    while low < high and panes[at + low, 0] <= start:
        low += 1
    while low > first and panes[at + low - 1, 0] > start:
        low -= 1
    parts[record, hint] = low
    return low


@_inlined
def _entry(spec, cells, registers, record, pane, newest):
    """Return the place of a pane's entry among those of its key, and whether it is new."""
    records, parts, panes = cells.records, cells.parts, cells.panes
    at, first, end = records[record, AT], parts[record, FIRST], parts[record, END]
    pos = _behind(panes, at, first, end, pane)
    if pos > first and panes[at + pos - 1, 0] == pane:
        return pos - 1, False
    if end == parts[record, SIZE]:
        pos -= _make_room(spec, cells, registers, record, newest)
        at, end = records[record, AT], parts[record, END]
    width = panes.shape[1]
    for j in range((at + end) * width - 1, (at + pos) * width - 1, -1):
        cells.flat[np.uint64(j + width)] = cells.flat[np.uint64(j)]
    parts[record, END] = end + 1
    registers[ENTRIES] += 1
    for window in range(spec.lengths.shape[0]):
        if parts[record, SPLITS + 2 * window] > pos:
            parts[record, SPLITS + 2 * window] += 1
    panes[at + pos, 0] = pane
    _clear(spec.kept, cells.arena, at + pos, OWN)
    return pos, True


@_inlined
def _update(spec, cells, record, pos, new, newest):
    """Compute the runs that entry `pos` is part of."""
    parts, windows = cells.parts, spec.lengths.shape[0]
    first, end = parts[record, FIRST], parts[record, END]
    if end - first <= FEW:
        return
    if new and end - first == FEW + 1:  # it has had no runs
        at = cells.records[record, AT]
        _move_down(cells, record, at, at, np.int64(first))
        for window in range(windows):
            parts[record, SPLITS + 2 * window] = 0
            _carry(spec, cells, record, window, NIL)
        return
    for window in range(windows):
        split, changed = parts[record, SPLITS + 2 * window], pos
        if spec.shape == SLIDING and pos < split:
            low = newest - spec.late_panes - spec.lengths[window]
            _turn(spec, cells, record, window, low)
            changed = split if new else end
        if (changed + BLOCK - 1) & ~(BLOCK - 1) < end:
            _carry(spec, cells, record, window, changed)


@_inlined
def _expire(spec, cells, registers, record, newest):
    """Forget the entries that no row in time sees any more."""
    panes, parts = cells.panes, cells.parts
    at, first, end = cells.records[record, AT], parts[record, FIRST], parts[record, END]
    late = newest - spec.late_panes
    if spec.shape == SLIDING:
        longest = spec.lengths[-1]
        while first < end and panes[at + first, 0] <= late - longest:
            first += 1
    else:
        while first + 1 < end and panes[at + first + 1, 0] <= late:
            first += 1
    if first > parts[record, FIRST]:
        _forget_before(spec, cells, registers, record, first)


@_inlined
def _forget_before(spec, cells, registers, record, first):
    """Forget the entries before `first`."""
    arena, parts = cells.arena, cells.parts
    if spec.shape != SLIDING and first < parts[record, END]:
        _since(spec, cells, record, first, arena, NIL, OWN)
        _copy(spec.words, arena, NIL, OWN, arena, cells.records[record, AT] + first, OWN)
    registers[ENTRIES] -= first - parts[record, FIRST]
    parts[record, FIRST] = first
    if spec.shape == SLIDING and parts[record, END] - first > FEW:
        for window in range(spec.lengths.shape[0]):
            if parts[record, SPLITS + 2 * window] < first:
                parts[record, SPLITS + 2 * window] = first
                _carry(spec, cells, record, window, first)


@_called
def _forget_most(spec, memory, base, most, record):
    """Forget keys, or if there is only this one its oldest entry, until there are no more than
    `most` entries."""
    apart()
    cells, registers = memory.cells, memory.registers
    while registers[ENTRIES] > most:
        registers[FORGOTTEN] += 1
        oldest = _oldest(memory)
        if oldest == record:
            first = cells.parts[record, FIRST] + 1
            _forget_before(spec, cells, registers, record, first)
        else:
            _forget_key(memory, base, oldest)


@_inlined
def _forget_key(memory, base, record):
    _save_first(memory, base, record)
    cells = memory.cells
    _drop(
        memory.table, cells.records, cells.parts, memory.stamps, memory.registers, cells.panes,
        memory.bases, record,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- rows


@_compiled
def walk(plan, memory, base, start, keys, times, values, clocks, seen):
    """Walk over the rows from `start` on: write what each sees, and remember it. Return the row
    before which there is no room.

    Args:
        base: that is being made.
        clocks: the stream's time with each row.
        seen: the words of each window, then the estimates of each window's sketches; shape
            (n, windows * (words + sketches)). Rows without a time leave it as it is.
    """
    spec, registers, tail = plan.spec, memory.registers, memory.registers[TAIL]
    stop = min(keys.shape[0], start + memory.queue.shape[0] - tail)
    for i in range(start - 3 * AHEAD_ROWS, start):
        _look_ahead(spec, memory, keys, i, start, stop)
    i = start
    while i < stop:
        _look_ahead(spec, memory, keys, i, start, stop)
        key, time, clock = keys[i], times[i], clocks[i]
        if time == NEVER:
            registers[UNTIMED] += 1
        elif clock > registers[DUE]:
            _forget_silent(memory, base, clock, plan.idle)
            continue
        else:
            record = _record(memory, key, i)
            newest_time = NEVER if record < 0 else memory.cells.records[record, NEWEST]
            if time - clock <= plan.ahead or newest_time == NEVER:  # a wrong time makes none late
                newest_time = max(newest_time, time)
            pane, newest_time = time // plan.resolution, min(newest_time, clock)
            newest = pane if newest_time == time else newest_time // plan.resolution
            e = _goes_on(spec, memory, record, key, pane, newest)
            if e < 0 and not _has_room(memory, record):
                return i
            registers[CLOCK] = clock
            registers[LATE] += time < newest_time - plan.lateness
            _take(plan, memory, base, record, e, i, key, time, pane, newest, values, seen)
        i += 1
    return stop


@_inlined
def _record(memory, key, i):
    """Return the record of row `i`, which was looked up ahead, or -1."""
    records = memory.cells.records
    record = memory.registers[FOUND + i % FOUND_ROWS]
    if record < 0 or records[record, HASH] != key or memory.stamps[record] < 0:
        record = _find(memory.table, records, key)
    return record


@_called
def _forget_silent(memory, base, clock, idle):
    """Forget the keys that have been silent for too long, and note until when no other one is."""
    apart()
    records, oldest, due = memory.cells.records, _oldest(memory), clock + idle
    while oldest >= 0:
        due = records[oldest, SEEN] + idle
        if clock <= due:
            break
        _forget_key(memory, base, oldest)
        oldest, due = _oldest(memory), clock + idle
    memory.registers[DUE] = due


@_inlined
def _goes_on(spec, memory, record, key, pane, newest):
    """Return the entry that a row goes on with, or -1: the only one of its key, if it sees that and
    no row in time will see it without that one; or the newest one, if it is known what stands
    before it."""
    records, parts, panes = memory.cells.records, memory.cells.parts, memory.cells.panes
    if record < 0:
        return NO
    at, first, end = records[record, AT], parts[record, FIRST], parts[record, END]
    if spec.shape == SLIDING:
        tags, hot = memory.tags, key & (HOT - 1)
        if end == first or pane != newest or panes[at + end - 1, 0] != pane:
            return NO  # as mostly where keys have few rows: the tags are not read
        known = tags[hot, 0] == key and tags[hot, 1] == pane
        return at + end - 1 if known and tags[hot, 2] == first and tags[hot, 3] == end else NO
    if end - first != 1 or pane > newest - spec.late_panes:
        return NO
    return at + first if panes[at + first, 0] <= (pane if spec.ties else pane - 1) else NO


@_inlined
def _age(spec, cells, e, pane):
    """Let a key's only entry become that of a pane: what it holds is what the window of that
    holds."""
    before = cells.panes[e, 0]
    cells.panes[e, 0] = pane
    if not _joined(spec.shape, spec.lengths[0], before, pane):
        _clear(spec.kept, cells.arena, e, OWN)
    elif spec.shape == FADING:
        _fade(spec, pane - before, cells.arena, e, OWN)


@_inlined
def _take(plan, memory, base, record, e, i, key, time, pane, newest, values, seen):
    """Write what a row sees, and remember it; in entry `e`, unless that is -1."""
    spec, cells, registers = plan.spec, memory.cells, memory.registers
    records, parts, arena = cells.records, cells.parts, cells.arena
    windows, sketches, hot = spec.lengths.shape[0], plan.sketches.shape[0], key & (HOT - 1)
    if registers[ORIGIN] == NEVER:
        registers[ORIGIN] = time
    since = float(time - registers[ORIGIN])
    if record < 0:
        record = _arrive(memory, base, plan.keys, key, min(pane, newest) >> plan.shift)
    else:
        _save_first(memory, base, record)
    _touch(memory.queue, memory.stamps, registers, record)
    records[record, SEEN] = registers[CLOCK]
    if time - registers[CLOCK] <= plan.ahead:
        records[record, NEWEST] = max(records[record, NEWEST], time)
    if e >= 0 and spec.shape != SLIDING and cells.panes[e, 0] != pane:
        _age(spec, cells, e, pane)
    first, end, again = parts[record, FIRST], parts[record, END], True
    for window in range(windows):
        word = window * spec.words
        if e < 0:
            again &= _see(spec, cells, record, window, pane, newest, seen, i, memory.befores, hot)
        elif spec.shape == SLIDING:
            _copy(spec.words, memory.befores, hot, word, seen, i, word)
            _merge(spec, seen, i, word, arena, e, OWN)
        else:
            _copy(spec.words, arena, e, OWN, seen, i, word)
        if plan.own:
            _add(spec.kept, values, i, since, seen, i, word)
        if sketches:
            _estimate(plan, memory, record, window, values, i, pane, newest, seen)
    stays = spec.shape != SLIDING or pane > newest - spec.late_panes - spec.lengths[windows - 1]
    if e >= 0:
        _add(spec.kept, values, i, since, arena, e, OWN)
    elif stays:
        pos, new = _entry(spec, cells, registers, record, pane, newest)
        _add(spec.kept, values, i, since, arena, records[record, AT] + pos, OWN)
        _update(spec, cells, record, pos, new, newest)
    if sketches and stays:
        _mark_row(plan, memory, record, values, i, pane, newest)
    if e < 0:
        _expire(spec, cells, registers, record, newest)
        if registers[ENTRIES] > plan.panes:
            _forget_most(spec, memory, base, plan.panes, record)
        again &= first == parts[record, FIRST] and end == parts[record, END]
        _tag(memory.tags, key, pane if again else NEVER, first, end)


@_inlined
def _tag(tags, key, pane, first, end):
    """Note that it is known what stands before the entry of a pane; or NEVER, that it is not."""
    hot = key & (HOT - 1)
    if pane != NEVER or tags[hot, 0] == key:
        tags[hot, 0], tags[hot, 1], tags[hot, 2], tags[hot, 3] = key, pane, first, end


@_called
def _arrive(memory, base, most, key, pane):
    """Return a record for a key that has none, in place of the oldest if there are too many."""
    apart()
    registers, records = memory.registers, memory.cells.records
    if registers[KEYS] == most:
        _forget_key(memory, base, _oldest(memory))
        registers[FORGOTTEN] += 1
    record = _new(memory.table, records, memory.stamps, registers, key)
    if memory.slots.shape[1]:
        memory.bases[record, 0] = pane
        for sketch in range(memory.bases.shape[1] - 1):
            memory.bases[record, 1 + sketch] = 0
    return record


@_inlined
def _mark_row(plan, memory, record, values, i, pane, newest):
    """Note in a key's sketches that a row's values were seen."""
    unit, last = pane >> plan.shift, newest >> plan.shift
    dead = _dead(plan.spec, plan.shift, newest)
    for sketch in range(plan.sketches.shape[0]):
        slot = values[i, plan.sketches[sketch, 0]]
        if slot == slot:
            _mark(
                memory.slots, memory.bases, memory.registers, record, sketch, slot, unit, last, dead
            )


@_inlined
def _estimate(plan, memory, record, window, values, i, pane, newest, seen):
    """Write how many distinct values of each sketch a row sees in a window."""
    spec, sketches = plan.spec, plan.sketches
    at = spec.lengths.shape[0] * spec.words + window * sketches.shape[0]
    dead = _dead(spec, plan.shift, newest)
    for sketch in range(sketches.shape[0]):
        since = -seen[i, window * spec.words + sketches[sketch, 1]]
        start = _start(plan, memory.registers[ORIGIN], window, pane, since)
        end = (pane if spec.ties else pane - 1) >> plan.shift
        own = values[i, sketches[sketch, 0]] if plan.own else math.nan
        seen[i, at + sketch] = _distinct(
            memory.slots, memory.bases, record, sketch, max(start, dead), end, own
        )


# ----------------------------------------------------------------------------------------- a base


@_called
def _save(cells, slots, bases, registers, base, record, rank):
    """Write a key to a base."""
    apart()
    records, parts, keys = cells.records, cells.parts, base.keys
    windows = keys.shape[1] - bases.shape[1] - BEFORE
    keys[rank, HASH], keys[rank, NEWEST] = records[record, HASH], records[record, NEWEST]
    keys[rank, SEEN] = records[record, SEEN]
    first, end = parts[record, FIRST], parts[record, END]
    at, start, few = records[record, AT] + first, registers[WRITTEN], end - first <= FEW
    keys[rank, BEGIN], keys[rank, HELD] = start, end - first
    registers[WRITTEN] += end - first
    before = keys[rank, BEFORE] = 0 if few else first & (BLOCK - 1)
    for window in range(windows):
        split = parts[record, SPLITS + 2 * window] - first + before
        keys[rank, BEFORE + 1 + window] = 0 if few else split
    for j in range(end - first):
        base.panes[start + j] = cells.panes[at + j, 0]
        _copy(base.aggregates.shape[1], cells.arena, at + j, OWN, base.aggregates, start + j, NIL)
    keys[rank, MARK], keys[rank, UNIT] = registers[MARKED], 0
    for sketch in range(bases.shape[1] - 1):
        n = keys[rank, BEFORE + 1 + windows + sketch] = bases[record, 1 + sketch]
        keys[rank, UNIT] = bases[record, 0]
        for j in range(n):
            base.marks[registers[MARKED] + j] = slots[record, SLOTS * sketch + j]
        registers[MARKED] += n


@_inlined
def _save_first(memory, base, record):
    """Write a key, before it changes, to the base that is being made, if it is to be in it and is
    not yet."""
    stamp, registers = memory.stamps[record], memory.registers
    if registers[NEXT] <= stamp < registers[LIMIT]:
        _save(memory.cells, memory.slots, memory.bases, registers, base, record, stamp)


@_compiled
def save_some(memory, base, most):
    """Write the next keys, and those between that have changed since are written already: about
    `most` keys and entries. Return whether all are."""
    cells, registers = memory.cells, memory.registers
    records, parts, order = cells.records, cells.parts, memory.queue
    step = max(LINE // (8 * cells.panes.shape[1]), 1)
    rank, end = registers[NEXT], registers[LIMIT]
    until = rank + registers[WRITTEN] + most
    while rank < end and rank + registers[WRITTEN] < until:
        far, near = order[min(rank + 2 * BLOCK, end - 1)], order[min(rank + BLOCK, end - 1)]
        prefetch(records, far, 0)
        prefetch(memory.stamps, far, 0)
        at, first = records[near, AT], parts[near, FIRST]
        for e in range(first, min(parts[near, END], first + FEW), step):
            prefetch(cells.panes, at + e, 0)
        if memory.stamps[order[rank]] == rank:
            _save(cells, memory.slots, memory.bases, registers, base, order[rank], rank)
        rank += 1
    registers[NEXT] = rank
    return rank == end


@_compiled
def load(spec, memory, base):
    """Remember a base in an empty memory that has room for it."""
    cells, registers, stamps = memory.cells, memory.registers, memory.stamps
    records, parts, keys = cells.records, cells.parts, base.keys
    windows = spec.lengths.shape[0]
    for k in range(keys.shape[0]):
        record = _new(memory.table, records, stamps, registers, keys[k, HASH])
        _touch(memory.queue, stamps, registers, record)
        records[record, NEWEST], records[record, SEEN] = keys[k, NEWEST], keys[k, SEEN]
        mark = keys[k, MARK]
        for sketch in range(memory.bases.shape[1] - 1):
            memory.bases[record, 0] = keys[k, UNIT]
            n = memory.bases[record, 1 + sketch] = keys[k, BEFORE + 1 + windows + sketch]
            for j in range(n):
                memory.slots[record, SLOTS * sketch + j] = base.marks[mark + j]
            mark += n
            registers[MARKS] += n
        count, first = keys[k, HELD], keys[k, BEFORE]
        number = _fitting(count)
        at = _segment(registers, cells.panes, number)
        registers[ENTRIES] += count
        records[record, AT], parts[record, SIZE] = at, _class_size(number)
        parts[record, FIRST], parts[record, END] = first, first + count
        for j in range(count):
            e = keys[k, BEGIN] + j
            cells.panes[at + first + j, 0] = base.panes[e]
            _copy(spec.words, base.aggregates, e, NIL, cells.arena, at + first + j, OWN)
        for window in range(windows):
            split = parts[record, SPLITS + 2 * window] = keys[k, BEFORE + 1 + window]
            if count > FEW:
                if spec.shape == SLIDING:
                    _turn(spec, cells, record, window, NEVER)
                _carry(spec, cells, record, window, split)


@_compiled
def absorb(plan, memory, start, base, none):
    """Add the keys of a base of another memory, from the one numbered `start` on, as if their rows
    had come after all others. Return the number of the key before which there is no room."""
    spec, cells, registers = plan.spec, memory.cells, memory.registers
    records, parts, arena = cells.records, cells.parts, cells.arena
    keys, windows = base.keys, spec.lengths.shape[0]
    for k in range(start, keys.shape[0]):
        record = _find(memory.table, records, keys[k, HASH])
        needed = keys[k, HELD] + SLAB + (0 if record < 0 else parts[record, SIZE])
        full = registers[TAIL] == memory.queue.shape[0]
        room = arena.shape[0] - registers[ARENA]
        if full or not _has_room(memory, record) or room < 8 * needed:
            return k
        if record < 0:
            record = _arrive(memory, none, plan.keys, keys[k, HASH], keys[k, UNIT])
        _touch(memory.queue, memory.stamps, registers, record)
        records[record, SEEN] = registers[CLOCK]
        records[record, NEWEST] = max(records[record, NEWEST], keys[k, NEWEST])
        newest = min(records[record, NEWEST], registers[CLOCK]) // plan.resolution
        for j in range(keys[k, BEGIN], keys[k, BEGIN] + keys[k, HELD]):
            pos, new = _entry(spec, cells, registers, record, base.panes[j], newest)
            _merge(spec, arena, records[record, AT] + pos, OWN, base.aggregates, j, NIL)
            _update(spec, cells, record, pos, new, newest)
        _tag(memory.tags, keys[k, HASH], NEVER, NIL, NIL)
        last, dead, mark = newest >> plan.shift, _dead(spec, plan.shift, newest), keys[k, MARK]
        for sketch in range(plan.sketches.shape[0]):
            for _ in range(keys[k, BEFORE + 1 + windows + sketch]):
                unit = np.int64(base.marks[mark] >> SLOT_BITS) + keys[k, UNIT]
                slot = float(base.marks[mark] & (SLOTS - 1))
                _mark(memory.slots, memory.bases, registers, record, sketch, slot, unit, last, dead)
                mark += 1
        _expire(spec, cells, registers, record, newest)
        if registers[ENTRIES] > plan.panes:
            _forget_most(spec, memory, none, plan.panes, record)
    return keys.shape[0]
