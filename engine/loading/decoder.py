"""Raw records to one frame, on several threads if that is faster, without records too large for
the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import polars as pl

from engine.loading.autotune import DecodeThreads
from engine.types import (
    PARTITION,
    POSITION,
    Format,
    Records,
    Rejects,
    Schema,
    Values,
    joined,
)
from engine.user_code import calls

ROWS_PER_THREAD = 2_048
"""The rows that justify another thread."""
PREVIEW_BYTES = 200
"""Bytes that a dead letter shows of a record that is too large."""


class Decoder:
    """Decodes the pieces of a batch with an `engine.types.Format`.

    With more than one thread, each decodes a part of the rows; what they give is put together in
    the order of the rows, so the number of threads changes nothing but the time. Formats release
    the interpreter's lock while they parse, or more threads do not help, and are not kept.

    Args:
        threads: how many decode together; one unless given.
        largest: bytes; a larger record is rejected as ``too_large`` before it is decoded.
        waited: seconds that whoever takes the batches has waited for them, all in all.
    """

    def __init__(
        self,
        format: Format,
        schema: Schema,
        *,
        threads: DecodeThreads | None = None,
        largest: int | None = None,
        waited: Callable[[], float] = float,
    ) -> None:
        self.format = format
        self._schema = schema
        self._threads = threads or DecodeThreads(1)
        self._largest = largest
        self._waited = waited
        self._waited_before = 0.0
        self._empty = pl.DataFrame(schema={PARTITION: pl.String(), POSITION: pl.Int64(), **schema})
        self._pool: ThreadPoolExecutor | None = None

    def decode(self, pieces: Sequence[Records]) -> tuple[pl.DataFrame, tuple[Rejects, ...]]:
        """Return one frame of all good rows, in order, and the rejects."""
        start = time.perf_counter()
        rejects: list[Rejects] = []
        fit = pieces if self._largest is None else list(self._fitting(pieces, rejects))
        fit = joined(fit)
        rows = sum(map(len, fit))
        parts = list(_parts(fit, rows, self._threads.count))
        decoded = list(self._map(parts))
        frames = [frame for frame, _ in decoded]
        frame = self._empty if not frames else frames[0] if len(frames) == 1 else pl.concat(frames)
        now, waited = time.perf_counter(), self._waited()
        self._threads.decoded(rows, now - start, waited - self._waited_before, now)
        self._waited_before = waited
        return frame, (*rejects, *(reject for _, more in decoded for reject in more))

    def interrupt(self) -> None:
        self.format.interrupt()

    def resume(self) -> None:
        self.format.resume()

    def close(self) -> None:
        """End the threads, and wait for them. Decoding afterwards starts new ones."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _map(self, parts: Sequence[Records]) -> Iterable[tuple[pl.DataFrame, list[Rejects]]]:
        decode = partial(calls.decode, self.format, schema=self._schema)
        if len(parts) < 2 or self._threads.count == 1:
            return map(decode, parts)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads.limit, "headrace-decode")
        return self._pool.map(decode, parts)

    def _fitting(self, pieces: Iterable[Records], rejects: list[Rejects]) -> Iterator[Records]:
        """Return the pieces without records that are too large; add those to `rejects`."""
        largest = self._largest
        assert largest is not None
        for piece in pieces:
            values = piece.values
            if not isinstance(values, Values) or values.nbytes <= largest:
                yield piece
                continue
            sizes = np.diff(values.bounds)
            bad = np.flatnonzero(sizes > largest)
            start = 0
            for at in bad.tolist():
                if at > start:
                    yield piece.slice(start, at)
                start = at + 1
                rejects.append(_too_large(piece.slice(at, at + 1), int(sizes[at]), largest))
            if start < len(piece):
                yield piece.slice(start, len(piece))


def _parts(pieces: Iterable[Records], rows: int, count: int) -> Iterator[Records]:
    size = max(ROWS_PER_THREAD, -(-rows // count))
    for piece in pieces:
        if count == 1 or len(piece) <= size:
            yield piece
            continue
        for start in range(0, len(piece), size):
            yield piece.slice(start, min(len(piece), start + size))


def _too_large(record: Records, size: int, largest: int) -> Rejects:
    values = record.values
    assert isinstance(values, Values)
    head = values.data[values.bounds[0] : values.bounds[0] + PREVIEW_BYTES].tobytes()
    rows = pl.DataFrame(
        {
            PARTITION: [record.partition],
            POSITION: record.positions,
            "detail": [
                f"Expected a record of at most {largest:,} bytes ([loader] memory_budget), got "
                f"{size:,}: raise the budget."
            ],
            "value": [head.decode("utf-8", "backslashreplace")],
        }
    )
    return Rejects(stage="decode", reason="too_large", rows=rows)


__all__ = ["Decoder"]
