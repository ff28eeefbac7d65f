"""Files that are read again, in another order, or by several engines: every row as often as it
should, wherever one stops, and however many go on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors.files import splits
from connectors.files.readers.table import _opened
from connectors.files.source import FilesSource
from connectors.files.splits import EPOCH_STRIDE, SHARD_GROUPS
from engine.types import EndOfStream, Mark, Records, Schema, UserError
from tests.containers import container, record
from tests.size import examples

SCHEMA: Schema = {"n": pl.Int64()}
SIZES = (40, 0, 7, 23)
N = sum(SIZES)
Frames = list[pl.DataFrame]


def frames() -> Frames:
    start, made = 0, []
    for size in SIZES:
        made.append(pl.DataFrame({"n": range(start, start + size)}, schema=SCHEMA))
        start += size
    return made


def parquet(folder: Path) -> str:
    for i, frame in enumerate(frames()):
        frame.write_parquet(folder / f"{i}.parquet", row_group_size=5)
    return str(folder / "*.parquet")


def avro(folder: Path) -> str:
    for i, frame in enumerate(frames()):
        rows = container(record(n="long"), frame.to_dicts(), each=5)
        (folder / f"{i}.avro").write_bytes(rows)
    return str(folder / "*.avro")


def ndjson(folder: Path) -> str:
    for i, frame in enumerate(frames()):
        (folder / f"{i}.ndjson").write_text(frame.write_ndjson())
    return str(folder / "*.ndjson")


def csv(folder: Path) -> str:
    for i, frame in enumerate(frames()):
        frame.write_csv(folder / f"{i}.csv")
    return str(folder / "*.csv")


def whole(folder: Path) -> str:
    place = folder / "rows"
    place.mkdir()
    for n in range(N):
        (place / f"{n:03}.json").write_text(json.dumps({"n": n}))
    return str(place)


KINDS: dict[str, tuple[Callable[[Path], str], dict[str, Any]]] = {
    "parquet": (parquet, {}),
    "avro": (avro, {}),
    "ndjson": (ndjson, {}),
    "csv": (csv, {}),
    "whole": (whole, {"format": "json"}),
}


@pytest.fixture(scope="module", params=KINDS)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    write, own = KINDS[request.param]
    return {"path": write(tmp_path_factory.mktemp(request.param)), **own}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "PIECE_BYTES", 60)


def source(place: dict[str, Any], **more: Any) -> FilesSource:
    made = FilesSource(FilesSource.Settings(**place, **more))
    made.schema(SCHEMA)
    return made


def take(made: FilesSource, mark: Mark, rows: int | None) -> tuple[list[int], Mark]:
    """So many rows from the mark on, all for None, and the mark behind them."""
    made.seek(mark)
    positions, found = dict(mark.positions), list[int]()
    while rows is None or len(found) < rows:
        try:
            records = made.read(4 if rows is None else min(4, rows - len(found)), 1 << 20, 0.0)
        except EndOfStream:
            break
        assert isinstance(records, Records)
        frame, rejects = made.format.decode(records, SCHEMA)
        assert not rejects
        found += frame["n"].to_list()
        positions[records.partition] = records.next
    made.close()
    return found, Mark(positions=positions)


@settings(deadline=None, max_examples=examples(25))
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.integers(0, 120), min_size=4, max_size=4),
    st.integers(1, 2),
    st.booleans(),
)
def test_any_number_of_engines_goes_on_where_any_number_stopped(
    place: dict[str, Any], before: int, after: int, stops: list[int], epochs: int, shuffle: bool
) -> None:
    own = {"epochs": epochs, "shuffle_files": shuffle and "format" not in place}
    found, marks = Counter[int](), []
    for shard in range(before):
        rows, mark = take(source(place, shard=shard, shards=before, **own), Mark(), stops[shard])
        found.update(rows)
        marks.append(mark)
    joined = Mark.joined(marks)
    for shard in range(after):
        rows, _ = take(source(place, shard=shard, shards=after, **own), joined, None)
        found.update(rows)
    assert found == Counter(dict.fromkeys(range(N), epochs))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("done", [0, 1, N - 1, N, N + 1, 2 * N - 3, 2 * N])
def test_epochs_go_on_at_any_row(place: dict[str, Any], done: int, shuffle: bool) -> None:
    own = {"epochs": 2, "shuffle_files": shuffle, "seed": 3}
    whole, _ = take(source(place, **own), Mark(), None)
    first, mark = take(source(place, **own), Mark(), done)
    rest, _ = take(source(place, **own), mark, None)
    assert first + rest == whole
    assert sorted(whole[:N]) == sorted(whole[N:]) == list(range(N))
    assert (whole[:N] == whole[N:]) is not shuffle
    assert len(mark.positions) <= (1 if "format" in place else len(SIZES))


def test_the_order_is_the_seeds(place: dict[str, Any]) -> None:
    made = [take(source(place, shuffle_files=True, seed=s), Mark(), None)[0] for s in (0, 0, 5)]
    assert made[0] == made[1] != made[2]
    assert made[0] != list(range(N))


def test_progress_and_lag_count_every_epoch(place: dict[str, Any]) -> None:
    made = source(place, epochs=3)
    mark, shares = Mark(), []
    for _ in range(3 * N):
        _, mark = take(made, mark, 1)
        shares.append(made.progress(mark))
    assert shares == sorted(shares, key=lambda share: share or 0.0)
    assert shares[-1] == 1.0
    assert set(made.lag(mark).values()) == {0}
    assert sum(made.lag(Mark()).values()) > 0


def test_positions_of_rows_stay_what_they_are(place: dict[str, Any]) -> None:
    """So what is decided by them, a split, is decided the same in each epoch."""
    made, seen = source(place, epochs=2), list[tuple[str, int]]()
    while True:
        try:
            records = made.read(5, 1 << 20, 0.0)
        except EndOfStream:
            break
        assert records is not None
        seen += [(records.partition, p) for p in records.positions.tolist()]
        assert records.next // EPOCH_STRIDE == records.epoch_offset // EPOCH_STRIDE
    assert Counter(seen) == Counter(dict.fromkeys(set(seen), 2))


def test_the_environment_says_which_of_how_many(
    place: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    own, _ = take(source(place, shard="env", shards="env"), Mark(), None)
    assert own == take(source(place, shard=1, shards=3), Mark(), None)[0]


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"shard": 2, "shards": 2}, "expected a shard from 0 to 1 of shards = 2, got 2"),
        ({"shard": -1}, "expected a shard from 0 to 0"),
        ({"shards": 0}, "shards = 0"),
        ({"shards": "env"}, "environment variable WORLD_SIZE, got ''"),
        ({"epochs": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_numbers(own: dict[str, Any], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValidationError, match=sentence):
        FilesSource.Settings(path="x", **own)


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    path = {"path": csv(tmp_path)}
    for own in ({"shards": 2}, {"shuffle_files": True}):
        with pytest.raises(UserError, match="order_by reads all files at once"):
            source(path, order_by=("n",), **own)
    rows = {"path": whole(tmp_path), "format": "json"}
    with pytest.raises(UserError, match=f"at most {SHARD_GROUPS}, got 65"):
        source(rows, shards=65)


def test_states_are_not_joined() -> None:
    with pytest.raises(UserError, match="Stage 'scale' has learned apart"):
        Mark.joined([Mark(stages={"scale": 1})])


def test_splits_of_a_parquet_file_read_its_footer_once(tmp_path: Path) -> None:
    """With thousands of row groups it takes longer than the rows. Another file is another one."""
    path = tmp_path / "rows.parquet"
    pl.DataFrame({"n": range(100)}).write_parquet(path, row_group_size=5)
    _opened.cache_clear()
    rows, _ = take(source({"path": str(path)}, shard=1, shards=2), Mark(), None)
    assert len(rows) == 50
    assert _opened.cache_info().misses == 1
    pl.DataFrame({"n": range(200, 300)}).write_parquet(path, row_group_size=10)
    again, _ = take(source({"path": str(path)}, shard=1, shards=2), Mark(), None)
    assert len(again) == 50
    assert _opened.cache_info().misses == 2


def test_a_broken_line_among_sorted_ones_is_a_reject(tmp_path: Path) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text(
        '{"n": 3, "s": "c"}\n{"n": 1\n{"n": 2, "s": "b"}\nnothing\n{"n": 1, "s": "a"}\n'
    )
    source = FilesSource(FilesSource.Settings(path=str(path), order_by=("n",)))
    schema = source.schema({})
    source.seek(Mark())
    rows: list[int] = []
    rejected: list[tuple[str, str, str]] = []
    while True:
        try:
            records = source.read(100, 1 << 20, 0.0)
        except EndOfStream:
            break
        assert records is not None
        frame, rejects = source.format.decode(records, schema)
        rows += frame["n"].to_list()
        for reject in rejects:
            found = reject.rows.select("detail", "value").rows()
            rejected += [(reject.reason, detail, value) for detail, value in found]
    assert rows == [1, 2, 3]
    assert [(reason, value) for reason, _, value in rejected] == [
        ("broken", '{"n": 1'),
        ("broken", "nothing"),
    ]
    assert f"It is row 2 of {path}." in rejected[0][1]
    assert f"It is row 4 of {path}." in rejected[1][1]
