"""Writes columns as record batches in a compiled loop, for the partitions that Kafka's own clients
would choose."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from connectors.formats.kernels import rows
from connectors.formats.kernels.swar import compiled, copy
from connectors.formats.kernels.varints import read_varint, varint_size, write_varint
from engine.types import Values
from engine.types.arrays import Ints, read_only

ByteArray = NDArray[np.uint8]
MAX_BATCH_BYTES = 1 << 18
"""The most bytes of an uncompressed record batch, unless it is one record."""
OVERHEAD = 32
"""The most bytes of a record on the wire besides its value, key and headers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingRecords:
    """n records as columns.

    Attributes:
        values: n; null where the record is a tombstone.
        keys: n, or None where no record has one.
        headers: n records' headers as they are on the wire, see `encode_headers`; None for none.
        times: ms since the epoch, shape (n,).
    """

    values: Values
    keys: Values | None = None
    headers: Values | None = None
    times: Ints

    def __len__(self) -> int:
        return len(self.values)

    def sizes(self) -> Ints:
        """The bytes of each record's value, key and headers, shape (n,)."""
        return sum(
            (np.maximum(_spans(part, len(self))[2], 0) for part in self._parts()),
            np.zeros(len(self), np.int64),
        )

    def _parts(self) -> tuple[Values | None, Values | None, Values | None]:
        return self.values, self.keys, self.headers

    def write(self, at: Ints, nbytes: int, first: int, since: int) -> ByteArray:
        """Return the records `at`, shape (n,), in the wire format after a batch's header.

        Args:
            nbytes: of them, at most: see `plan_batches`.
            first: offset of the first in its batch.
            since: ms since the epoch that the batch's times are counted from.
        """
        n = len(self)
        out = np.empty(nbytes, np.uint8)
        value, key = _spans(self.values, n), _spans(self.keys, n)
        head = _spans(self.headers, n, bare=1)
        return out[: _write(at, first, since, read_only(self.times), *value, *key, *head, out)]


def plan_batches(
    records: OutgoingRecords, at: Ints, partitions: int, turn: int, size: int = MAX_BATCH_BYTES
) -> tuple[list[tuple[int, Ints, int]], int]:
    """Assign the records `at` to partitions, in batches: by their key's hash, like Kafka's own
    clients (murmur2); records without a key go round robin, one batch each.

    Args:
        partitions: how many there are.
        turn: whose it is.
        size: bytes of a batch, at most, unless it is one record.

    Returns: (partition, records, bytes at most) of each batch, in their order; whose turn it is
        next.
    """
    sizes = records.sizes()[at] + OVERHEAD
    data, starts, lengths = _spans(records.keys, len(records))
    where = np.empty(len(at), np.int64)
    turn = _place(data, starts[at], lengths[at], sizes, size, partitions, turn, where)
    order = np.argsort(where, kind="stable")
    new = np.empty(len(at), np.bool_)
    _cut(where[order], sizes[order], size, new)
    if not len(at):
        return [], turn
    begins = np.flatnonzero(new)
    totals = np.add.reduceat(sizes[order], begins)
    cuts = np.split(at[order], begins[1:])
    return list(zip(where[order][begins].tolist(), cuts, totals.tolist(), strict=True)), turn


@functools.cache
def warm_up() -> None:
    """Warm up the compiled loops with a one-record batch that is never sent."""
    value = rows.values(pl.Series([b"1"]))
    heads = encode_headers(1, [("a", b"1")], {"b": pl.Series(["1"])})
    records = OutgoingRecords(values=value, keys=value, headers=heads, times=np.zeros(1, np.int64))
    for _, at, nbytes in plan_batches(records, np.arange(1), 1, 0)[0]:
        records.write(at, nbytes, 0, 0)


def encode_headers(
    n: int,
    always: Sequence[tuple[str, bytes]],
    columns: Mapping[str, pl.Series],
    own: Values | None = None,
) -> Values:
    """Return the headers of n records in the wire format.

    Args:
        always: of each record.
        columns: by header; text or bytes, shape (n,); where it is null the record has none.
        own: headers that come first, as they were read; null or empty for none.
    """
    same = np.frombuffer(b"".join(_entry(name, value) for name, value in always), np.uint8)
    names = [_text(name) for name in columns]
    spans = [_spans(rows.values(column), n) for column in columns.values()]
    data = [np.frombuffer(b"".join(names), np.uint8), *(np.asarray(s[0]) for s in spans)]
    begins = np.cumsum([0, *map(len, data)])
    starts = np.empty((len(spans), n), np.int64)
    sizes = np.empty((len(spans), n), np.int64)
    for i, (_, start, size) in enumerate(spans):
        starts[i], sizes[i] = start + begins[i + 1], size
    named = np.cumsum([0, *map(len, names)])
    raw, first, lengths = _spans(own, n)
    bounds = np.zeros(n + 1, np.int64)
    joined = np.concatenate(data)
    args = (raw, first, lengths, same, len(always), joined, named, starts, sizes, bounds)
    _write_headers(*args, np.empty(0, np.uint8), False)
    out = np.empty(int(bounds[-1]), np.uint8)
    _write_headers(*args, out, True)
    return Values(data=out, bounds=bounds)


def _text(text: str) -> bytes:
    return _sized(text.encode())


def _sized(raw: bytes) -> bytes:
    head = np.empty(10, np.uint8)
    return head[: write_varint(head, 0, len(raw))].tobytes() + raw


def _entry(name: str, value: bytes) -> bytes:
    return _text(name) + _sized(value)


def _spans(values: Values | None, n: int, *, bare: int = -1) -> tuple[ByteArray, Ints, Ints]:
    """Return where each of n values begins and its size, -1 for null.

    Args:
        bare: size of each where there are no values: bytes of 0.
    """
    if values is None:
        zeros = _shared(np.zeros(1, np.uint8)), _shared(np.zeros(n, np.int64))
        return *zeros, np.full(n, bare, np.int64)
    sizes = np.diff(values.bounds) - values.tail
    if values.null is not None:
        sizes[values.null] = -1
    return _shared(values.data), _shared(values.bounds[:-1]), sizes


def _shared(array: NDArray[Any]) -> NDArray[Any]:
    """Return a read-only view, so that the compiled loops see one type."""
    array = array.view()
    array.flags.writeable = False
    return array


# --------------------------------------------------------------------------------------- compiled

WORD = np.uint64(0xFFFFFFFF)
MIX = np.uint64(0x5BD1E995)


@compiled
def murmur2(data, start, size):  # type: ignore[no-untyped-def]
    """Return a key's hash as Kafka's clients compute it: A. Appleby's 32-bit MurmurHash2 with
    their seed, without the sign."""
    h = np.uint64(0x9747B28C) ^ np.uint64(size)
    end = start + size
    while end - start >= 4:
        k = np.uint64(0)
        for j in range(4):
            k |= np.uint64(data[start + j]) << np.uint64(8 * j)
        k = (k * MIX) & WORD
        k ^= k >> np.uint64(24)
        h = ((h * MIX) & WORD) ^ ((k * MIX) & WORD)
        start += 4
    if end > start:
        for j in range(end - start):
            h ^= np.uint64(data[start + j]) << np.uint64(8 * j)
        h = (h * MIX) & WORD
    h ^= h >> np.uint64(13)
    h = (h * MIX) & WORD
    h ^= h >> np.uint64(15)
    return np.int64(h & np.uint64(0x7FFFFFFF))


@compiled
def _place(data, starts, lengths, sizes, size, partitions, turn, where):  # type: ignore[no-untyped-def]
    total = 0
    for i in range(len(where)):
        if lengths[i] >= 0:
            where[i] = murmur2(data, starts[i], lengths[i]) % partitions
            continue
        if total and total + sizes[i] > size:
            turn, total = turn + 1, 0
        total += sizes[i]
        where[i] = turn % partitions
    return turn + 1 if total else turn


@compiled
def _cut(where, sizes, size, new):  # type: ignore[no-untyped-def]
    """Return where another batch begins."""
    total = 0
    for i in range(len(where)):
        new[i] = i == 0 or where[i] != where[i - 1] or total + sizes[i] > size
        total = sizes[i] if new[i] else total + sizes[i]


@compiled
def _write(at, first, since, times, vs, v0, vn, ks, k0, kn, hs, h0, hn, out):  # type: ignore[no-untyped-def]
    """Write the records; see `connectors.kafka.chunks` for their format. Arguments are data,
    starts and sizes of values, keys and headers. A record without a value has a key."""
    to = 0
    for i in range(len(at)):
        row = at[i]
        value, key, head, late = vn[row], kn[row], hn[row], times[row] - since
        if value < 0 and key < 0:
            key = 0
        body = (
            1
            + varint_size(late)
            + varint_size(first + i)
            + varint_size(key)
            + varint_size(value)
            + head
        )
        to = write_varint(out, to, body + max(key, 0) + max(value, 0))
        out[to] = 0
        to = write_varint(out, to + 1, late)
        to = write_varint(out, to, first + i)
        to = write_varint(out, to, key)
        if key > 0:
            copy(ks, k0[row], key, out, to)
            to += key
        to = write_varint(out, to, value)
        if value > 0:
            copy(vs, v0[row], value, out, to)
            to += value
        copy(hs, h0[row], head, out, to)
        to += head
    return to


@compiled
def _write_headers(  # type: ignore[no-untyped-def]
    raw, first, lengths, same, n_same, data, named, starts, sizes, bounds, out, write
):
    """Measure the encoded headers of each record; on the second call, write them."""
    for row in range(len(first)):
        count, begin = 0, first[row]
        if lengths[row] > 0:
            count, begin = read_varint(raw, first[row])
        rest = first[row] + max(lengths[row], 0) - begin
        count += n_same
        size = rest + len(same)
        for i in range(len(starts)):
            if sizes[i, row] >= 0:
                count += 1
                size += named[i + 1] - named[i] + varint_size(sizes[i, row]) + sizes[i, row]
        if not write:
            bounds[row + 1] = bounds[row] + varint_size(count) + size
            continue
        to = write_varint(out, bounds[row], count)
        copy(raw, begin, rest, out, to)
        to += rest
        copy(same, 0, len(same), out, to)
        to += len(same)
        for i in range(len(starts)):
            if sizes[i, row] >= 0:
                copy(data, named[i], named[i + 1] - named[i], out, to)
                to = write_varint(out, to + named[i + 1] - named[i], sizes[i, row])
                copy(data, starts[i, row], sizes[i, row], out, to)
                to += sizes[i, row]


__all__ = [
    "MAX_BATCH_BYTES",
    "OutgoingRecords",
    "encode_headers",
    "murmur2",
    "plan_batches",
    "warm_up",
]
