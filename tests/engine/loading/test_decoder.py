"""Raw records to one frame: the number of threads changes nothing, a record too large costs
itself."""

from __future__ import annotations

import threading
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from connectors.formats.ndjson import Ndjson
from connectors.formats.values.columns import Columns
from engine.loading.autotune import DecodeThreads
from engine.loading.decoder import ROWS_PER_THREAD, Decoder
from engine.types import Format, Records, Rejects, Schema, Values

SCHEMA: Schema = {"a": pl.Int64(), "t": pl.String()}


def records(values: list[bytes], start: int = 0, partition: str = "p") -> Records:
    bounds = np.cumsum([0, *map(len, values)])
    data = np.frombuffer(b"".join(values), np.uint8)
    return Records(
        partition=partition,
        positions=np.arange(start, start + len(values)),
        next=start + len(values),
        values=Values(data=data, bounds=bounds),
        arrived=0.0,
    )


def lines(n: int, start: int = 0) -> list[bytes]:
    bad = b'{"a": "x", "t": 1}\n'
    good = [b'{"a": %d, "t": "row %d"}\n' % (i, i) for i in range(start, start + n)]
    return [bad if i % 97 == 0 else line for i, line in enumerate(good)]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_threads_change_nothing(count: int) -> None:
    n = 3 * ROWS_PER_THREAD + 5
    pieces = [records(lines(n)), records(lines(10, n), n), records(lines(n), partition="q")]
    alone, together = Decoder(Ndjson(), SCHEMA), decoder(count)
    frame, rejects = together.decode(pieces)
    expected, bad = alone.decode(pieces)
    together.close()
    assert frame.equals(expected)
    assert rows_of(rejects).equals(rows_of(bad))
    assert frame.height + rows_of(rejects).height == 2 * n + 10


def decoder(count: int) -> Decoder:
    return Decoder(Ndjson(), SCHEMA, threads=DecodeThreads(count, fixed=count))


def rows_of(rejects: tuple[Rejects, ...]) -> pl.DataFrame:
    return pl.concat(reject.rows for reject in rejects)


def test_small_batches_are_not_worth_a_thread() -> None:
    before = threading.active_count()
    made = decoder(4)
    made.decode([records(lines(ROWS_PER_THREAD))])
    assert threading.active_count() == before
    made.close()


def test_closed_it_leaves_no_thread_and_works_again() -> None:
    before = threading.active_count()
    made = decoder(2)
    for _ in range(2):
        made.decode([records(lines(4 * ROWS_PER_THREAD))])
        assert threading.active_count() > before
        made.close()
        assert threading.active_count() == before


class Counted(Ndjson):
    """Notes how many records each call decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        self.calls.append(len(records))
        return super().decode(records, schema)


def test_pieces_of_one_read_are_decoded_together() -> None:
    """As where rows and labels are read in turns, a few of each."""
    counted = Counted()
    read, other = records(lines(200, 1), 1), records(lines(5_000, 300), 300)
    null = np.isin(np.arange(200), [3, 60])
    read = replace(
        read,
        values=replace(read.values, null=null),  # type: ignore[type-var]
        timestamps=np.arange(200),
    )
    other = replace(other, timestamps=np.arange(5_000))
    cuts = [0, 1, 20, 55, 200]
    pieces = [read.slice(a, b) for a, b in pairwise(cuts)]
    made, whole = Decoder(counted, SCHEMA), Decoder(Ndjson(), SCHEMA)
    frame, rejects = made.decode([*pieces, other])
    assert counted.calls == [200, 5_000]
    expected, bad = whole.decode([read, other])
    assert frame.equals(expected)
    assert rows_of(rejects).equals(rows_of(bad))
    counted.calls.clear()
    made.decode([pieces[2], pieces[0], replace(pieces[3], partition="q"), *pieces[1:3]])
    assert counted.calls == [35, 1, 145, 54]  # only what is in order, of one partition


@pytest.mark.parametrize("null", [False, True])
def test_small_pieces_of_several_reads_are_decoded_together(null: bool) -> None:
    """As a topic gives them that brings a record now and then."""
    counted, plain = Counted(), Ndjson()
    pieces = [records(lines(n, at), at) for n, at in [(1, 0), (2, 1), (1, 7), (3, 20)]]
    times = [replace(piece, timestamps=piece.positions * 10) for piece in pieces]
    if null:
        at = np.array([False, True])
        times[1] = replace(times[1], values=replace(times[1].values, null=at))  # type: ignore[type-var]
    times = [times[0], times[1].slice(1, 2), *times[2:]]
    frame, rejects = Decoder(counted, SCHEMA).decode(times)
    assert counted.calls == [6]
    apart = [plain.decode(piece, SCHEMA) for piece in times]
    assert frame.equals(pl.concat([rows for rows, _ in apart]))
    assert rows_of(rejects).equals(rows_of(tuple(r for _, each in apart for r in each)))


def test_small_frames_are_decoded_together_where_their_columns_are_the_same() -> None:
    calls: list[int] = []

    class Plain(Columns):
        def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
            calls.append(len(records))
            return super().decode(records, schema)

    def piece(at: int, values: pl.DataFrame, lap: int = 0) -> Records:
        return replace(
            records(lines(1)), positions=np.array([at]), next=at + 1 + lap, values=values,
            epoch_offset=lap,
        )  # fmt: skip

    small, wide = pl.DataFrame({"a": [1]}), pl.DataFrame({"a": pl.Series([1], dtype=pl.Int32)})
    pieces = [
        piece(0, small), piece(1, small), piece(2, wide), piece(3, wide), piece(4, wide, 1_000),
    ]  # fmt: skip
    frame, _ = Decoder(Plain(), {"a": pl.Int64()}).decode(pieces)
    assert calls == [2, 2, 1]
    assert frame["_position"].to_list() == [0, 1, 2, 3, 4]


def test_nothing_gives_an_empty_frame() -> None:
    frame, rejects = decoder(2).decode([])
    assert (frame.height, list(frame.columns)[2:], rejects) == (0, ["a", "t"], ())


def test_an_error_of_a_thread_is_raised() -> None:
    class Broken(Format):
        def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
            raise MemoryError("as it may be")

    made = Decoder(Broken(), SCHEMA, threads=DecodeThreads(2, fixed=2))
    with pytest.raises(MemoryError, match="as it may be"):
        made.decode([records(lines(4 * ROWS_PER_THREAD))])
    made.close()


def test_a_record_larger_than_the_budget_costs_itself() -> None:
    huge = b'{"a": 9, "t": "' + b"x" * 1_000 + b'"}\n'
    values = [huge, *lines(5), huge, huge, *lines(2), huge]
    made = Decoder(Ndjson(), SCHEMA, largest=1_000)
    frame, rejects = made.decode([records(values, start=100)])
    large = [reject for reject in rejects if reject.reason == "too_large"]
    assert rows_of(tuple(large))["_position"].to_list() == [100, 106, 107, 110]
    assert large[0].rows["detail"][0] == (
        "Expected a record of at most 1,000 bytes ([loader] memory_budget), got 1,018: raise the "
        "budget."
    )
    assert frame.height + rows_of(rejects).height == len(values)
    assert frame["_position"].to_list() == [102, 103, 104, 105, 109]
