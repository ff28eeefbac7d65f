"""What `engine.types.Source` promises, held by every source."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from engine.types import EndOfStream, Mark, Records, Source
from tests.connectors.conftest import ROWS, SCHEMA, N, decoded, drain, take

Make = Callable[[], Source]


@pytest.mark.parametrize("max_rows", [1, 7, 1_000])
def test_every_row_once_in_order(make_source: Make, max_rows: int) -> None:
    source = make_source()
    source.schema(SCHEMA)
    pieces = drain(source, max_rows)
    assert all(1 <= len(piece) <= max_rows for piece in pieces)
    assert_frame_equal(decoded(source, pieces), ROWS)


def test_positions_increase_and_next_continues_them(make_source: Make) -> None:
    source = make_source()
    last: dict[str, int] = {}
    for piece in drain(source, 4):
        assert (np.diff(piece.positions) > 0).all()
        assert piece.positions[0] >= last.get(piece.partition, 0)
        assert piece.next > piece.positions[-1]
        last[piece.partition] = piece.next


def test_seek_gives_the_same_rest(make_source: Make) -> None:
    source = make_source()
    source.schema(SCHEMA)
    pieces = drain(source, 1)
    for done in (0, 1, 19, 20, 21, 40, N - 1, N):
        mark = Mark(positions={piece.partition: piece.next for piece in pieces[:done]})
        source.seek(mark)
        assert_frame_equal(decoded(source, drain(source, 6)), ROWS[done:])
        other = make_source()
        other.schema(SCHEMA)
        other.seek(mark)
        assert_frame_equal(decoded(other, drain(other, 6)), ROWS[done:])


def test_max_bytes_holds_but_for_one_larger_row(make_source: Make) -> None:
    source = make_source()
    pieces = drain(source, 1_000, 200)
    assert sum(map(len, pieces)) == N
    assert all(len(p) == 1 or p.nbytes - 8 * len(p) <= 200 for p in pieces)
    assert all(len(p) == 1 for p in drain_again(source, 1))


def drain_again(source: Source, max_bytes: int) -> list[Records]:
    source.seek(Mark())
    return drain(source, 1_000, max_bytes)


def test_the_end_stays_the_end(make_source: Make) -> None:
    source = make_source()
    drain(source)
    for _ in range(3):
        with pytest.raises(EndOfStream):
            take(source, 1, 1_000)


def test_close_twice_and_unread(make_source: Make) -> None:
    source = make_source()
    source.close()
    source.close()
    take(source, 1, 1_000)
    source.close()
    source.close()


def test_progress_and_lag_go_to_the_end(make_source: Make) -> None:
    source = make_source()
    shares = [source.progress(Mark())]
    positions: dict[str, int] = {}
    for _ in range(N):
        piece = take(source, 1, 1_000)
        positions[piece.partition] = piece.next
        shares.append(source.progress(Mark(positions=positions)))
    with pytest.raises(EndOfStream):
        take(source, 1, 1_000)
    assert shares[0] == 0.0
    assert source.progress(Mark(positions=positions)) == 1.0
    assert all(share is not None and 0.0 <= share <= 1.0 for share in shares)
    lags = source.lag(Mark(positions=positions))
    assert set(lags.values()) == {0}
    assert {source.lag_unit(partition) for partition in lags} <= {"records", "rows", "bytes"}


def test_commit_takes_a_mark(make_source: Make) -> None:
    source = make_source()
    source.commit(Mark())
    assert len(drain(source)) >= 1
    assert isinstance(source, Source)
