"""Tells which letters of a topic are replayed: those of one rejected record once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import polars as pl

from connectors.formats.kernels import rows
from connectors.formats.kernels.varints import write_varint
from connectors.kafka.chunks import header_entries
from connectors.kafka.dead_letters import PREFIX
from engine.types import NO_TIMESTAMP, PARTITION, POSITION, Records
from engine.types.arrays import Bools, Ints

ORIGIN_HEADERS = ("topic", "partition", "offset", "timestamp")
DIGEST_BYTES = 16
PLACE = r"^(?<partition>.*)/(?<position>\d+)$"


class ReplayedLetters:
    """The letters that were read, by their parents.

    The parent of a letter is the record that was rejected, or the letter that was replayed and
    rejected again. An engine that is killed reads what follows its checkpoint again, so it may
    write the letter of a parent twice: only the first is replayed. A parent that itself follows
    the checkpoint is yet to be read: its letter is left out, for it would count twice.

    Attributes:
        repeats: letters left out because another one of their parent was read.
        early: letters left out because their parent is yet to be read.
    """

    def __init__(self) -> None:
        self.repeats = self.early = 0
        self._begins: Mapping[str, int] = {}
        self._earlier = b""
        self._read: list[tuple[str, Ints, list[bytes]]] = []
        self._known: set[bytes] = set()

    def begin(self, positions: Mapping[str, int]) -> None:
        """Go to these positions, of letters and of the pipeline's own partitions."""
        self._begins = dict(positions)
        self._read = [
            (partition, at[:n], digests[:n])
            for partition, at, digests in self._read
            if (n := int(np.searchsorted(at, positions.get(partition, 0))))
        ]
        self._known = {*_split(self._earlier), *(d for *_, ds in self._read for d in ds)}

    def snapshot(self, positions: Mapping[str, int]) -> bytes:
        """Return the digests of the letters before these positions, `DIGEST_BYTES` each."""
        read = list(self._read)  # the thread that reads adds to it
        return self._earlier + b"".join(
            digest
            for partition, at, digests in read
            for digest in digests[: int(np.searchsorted(at, positions.get(partition, 0)))]
        )

    def restore(self, digests: bytes) -> None:
        """Restore a `snapshot`; call `begin` next."""
        self._earlier, self._read = digests, []

    def unwrapped(self, letters: Records) -> Iterator[Records]:
        """Yield the records of the letters to replay, in runs; the last ends where these do."""
        records, parents = unwrapped(letters)
        yield from _runs(records, self._replayed(letters, parents))

    def _replayed(self, letters: Records, parents: pl.DataFrame) -> Bools:
        """Return which letters are replayed, shape (n,)."""
        replayed = np.ones(len(letters), np.bool_)
        digests: list[bytes] = []
        taken: list[int] = []
        for i, (partition, position, time) in enumerate(parents.iter_rows()):
            if partition is None:  # not written by headrace: nothing is known of it
                continue
            digest = blake2b(
                f"{partition}/{position} {time}".encode(), digest_size=DIGEST_BYTES
            ).digest()
            if position >= self._begins.get(partition, position + 1):
                self.early += 1
            elif digest in self._known:
                self.repeats += 1
            else:
                self._known.add(digest)
                digests.append(digest)
                taken.append(i)
                continue
            replayed[i] = False
        self._read.append((letters.partition, letters.positions[taken], digests))
        return replayed


def unwrapped(letters: Records) -> tuple[Records, pl.DataFrame]:
    """Return letters as their original records (key and value unchanged, headers without those a
    letter adds, timestamp and position as first read), and the parent of each: partition,
    position, timestamp; null if it is unknown."""
    assert letters.headers is not None, "letters were read without their headers"
    split = [_opened(raw or b"") for raw in letters.headers.take(np.arange(len(letters)))]
    names = (*ORIGIN_HEADERS, "replayed")
    why = pl.DataFrame(
        [{name: added.get(PREFIX + name) for name in names} for _, added in split],
        schema=dict.fromkeys(names, pl.String),
    )
    place = pl.concat_str("topic", "partition", separator="/")
    times = why["timestamp"].cast(pl.Int64, strict=False).fill_null(NO_TIMESTAMP)
    record = pl.concat_str("topic", "partition", "offset", separator="/")
    parent = pl.coalesce("replayed", record).str.extract_groups(PLACE).struct
    records = replace(
        letters,
        headers=rows.values(pl.Series([own for own, _ in split], dtype=pl.Binary)),
        timestamps=times.to_numpy(),
        origins=why.select(
            pl.coalesce(place, "topic").fill_null("").alias(PARTITION),
            pl.col("offset").cast(pl.Int64, strict=False).fill_null(-1).alias(POSITION),
        ),
    )
    parents = why.select(
        parent["partition"], parent["position"].cast(pl.Int64, strict=False), times
    )
    return records, parents


def _opened(raw: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the headers of a letter: those of its record, unchanged, and those the letter added
    after them."""
    entries = list(header_entries(raw))
    names = [name for _, name, _ in entries]
    begins = [i for i, name in enumerate(names) if name == PREFIX + "topic"]
    cut = begins[-1] if begins else len(entries)
    if PREFIX + "pipeline" in names[:cut]:  # what every letter has comes first
        cut -= 1 + names[:cut][::-1].index(PREFIX + "pipeline")
    if not cut:
        own = b""
    else:
        count = np.empty(10, np.uint8)
        end = entries[cut][0] if cut < len(entries) else len(raw)
        own = count[: write_varint(count, 0, cut)].tobytes() + raw[entries[0][0] : end]
    return own, {name: value.decode("utf-8", "replace") for _, name, value in entries[cut:]}


def _runs(records: Records, kept: Bools) -> Iterator[Records]:
    """Yield the kept rows in runs of neighbours, the last with the position after all rows; no
    rows at all where none is kept."""
    if not kept.any():
        yield records.slice(len(records), len(records))
        return
    edges = np.flatnonzero(np.diff(kept.astype(np.int8), prepend=0, append=0)).tolist()
    for start, stop in zip(edges[:-2:2], edges[1:-2:2], strict=True):
        yield records.slice(start, stop)
    yield replace(records.slice(edges[-2], edges[-1]), next=records.next)


def _split(digests: bytes) -> Iterator[bytes]:
    return (digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES))


__all__ = ["ReplayedLetters"]
