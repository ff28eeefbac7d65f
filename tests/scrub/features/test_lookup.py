"""Columns of a table by key, beside a search row by row."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.hash_index import HashIndex
from engine.scrub.features.lookup import Lookup
from engine.types import Batch, UserError
from tests.scrub.conftest import batch_of, schema_of
from tests.size import examples

Make = Callable[..., Any]
START = datetime(2026, 1, 1)


def bound(path: Path, frame: pl.DataFrame, **options: Any) -> Lookup:
    stage = Lookup("s", Lookup.Settings(path=str(path), **options))
    stage.bind(schema_of(frame))
    return stage


def applied(path: Path, frame: pl.DataFrame, **options: Any) -> Batch:
    stage = bound(path, frame, **options)
    done = stage.apply(batch_of(frame))
    assert schema_of(done.frame) == stage.bind(schema_of(frame))
    return done


def counts(batch: Batch) -> dict[str, int]:
    return {what: n for (_, what), n in batch.counts.items() if n}


# ------------------------------------------------------------------------------------------- by key


def test_columns_by_key(tmp_path: Path) -> None:
    table = pl.DataFrame({"id": ["a", "b"], "city": ["Bern", None], "zip": [3000, 8000]})
    table.write_parquet(tmp_path / "t.parquet")
    frame = pl.DataFrame({"who": ["b", None, "c", "a", "b"]})
    done = applied(tmp_path / "t.parquet", frame, by={"who": "id"}, prefix="home_")
    assert done.frame.to_dict(as_series=False) == {
        "who": ["b", None, "c", "a", "b"],
        "home_city": [None, None, None, "Bern", None],
        "home_zip": [8000, None, None, 3000, 8000],
    }
    assert counts(done) == {"unmatched": 2}


def test_rows_without_a_match_are_rejected_where_asked(tmp_path: Path) -> None:
    pl.DataFrame({"id": [1, 2], "x": [1.0, 2.0]}).write_ndjson(tmp_path / "t.ndjson")
    place = {"_partition": ["p"] * 4, "_position": range(4)}
    frame = pl.DataFrame({**place, "id": [2, 3, 1, None]})
    done = applied(tmp_path / "t.ndjson", frame, by=["id"], missing="reject")
    assert done.frame["x"].to_list() == [2.0, 1.0]
    assert [(r.reason, *r.rows.select("_position", "detail").row(0)) for r in done.rejects] == [
        ("no_key", 3, "Expected a key in 'id', got null."),
        ("unmatched", 1, f"No row of '{tmp_path / 't.ndjson'}' has its key: id."),
    ]


def test_a_rejected_row_says_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "t.ndjson"
    pl.DataFrame({"id": [1, 2], "t": [10, 20], "x": [1.0, 2.0]}).write_ndjson(path)
    place = {"_partition": ["p"] * 5, "_position": range(5)}
    frame = pl.DataFrame({**place, "id": [2, 2, None, 1, 1], "at": [21, 19, 21, None, 16]})
    options = {"by": ["id"], "time": "at", "as_of": "t", "max_age": 5, "missing": "reject"}
    done = applied(path, frame, **options)
    assert done.frame["x"].to_list() == [2.0]
    assert {r.rows["_position"][0]: (r.reason, r.rows["detail"][0]) for r in done.rejects} == {
        1: ("unmatched", f"No row of '{path}' that is valid at its time (at) has its key: id."),
        2: ("no_key", "Expected a key in 'id', got null."),
        3: ("no_time", "Expected an event time in 'at', got null."),
        4: ("stale", f"Its row of '{path}' is older than 'max_age' = 5.0 s."),
    }


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "arrow", "ndjson"])
def test_every_format_gives_the_same(tmp_path: Path, ending: str) -> None:
    table = pl.DataFrame({"id": ["007", "7"], "x": [0.5, 1.5]})
    path = tmp_path / f"t.{ending}"
    write: dict[str, Callable[[Path], object]] = {
        "csv": table.write_csv,
        "tsv": lambda file: table.write_csv(file, separator="\t"),
        "parquet": table.write_parquet,
        "arrow": table.write_ipc,
        "ndjson": table.write_ndjson,
    }
    write[ending](path)
    done = applied(path, pl.DataFrame({"id": ["7", "007"]}), by=["id"])
    assert done.frame["x"].to_list() == [1.5, 0.5]


def test_whole_numbers_of_any_width_are_equal(tmp_path: Path) -> None:
    pl.DataFrame({"id": [1, 300], "x": [1, 2]}).write_parquet(tmp_path / "t.parquet")
    frame = pl.DataFrame({"id": pl.Series([1, 44], dtype=pl.UInt8)})
    assert applied(tmp_path / "t.parquet", frame, by=["id"]).frame["x"].to_list() == [1, None]


@given(n=st.integers(0, 400), seed=st.integers(0, 9))
@settings(max_examples=examples(30), deadline=None)
def test_the_index_finds_what_it_was_given_and_nothing_else(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    hashes = np.unique(rng.integers(0, 600, n).astype(np.uint64))
    rng.shuffle(hashes)
    wanted = np.arange(600, dtype=np.uint64)
    place = {int(h): i for i, h in enumerate(hashes)}
    assert HashIndex(hashes).find(wanted).tolist() == [place.get(h, -1) for h in range(600)]


# --------------------------------------------------------------------------------------- as of time


@given(data=st.data())
@settings(max_examples=examples(60), deadline=None)
def test_as_of_is_a_search_row_by_row(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ticks = st.integers(0, 12)
    keys = st.sampled_from(["a", "b", "c"])
    drawn = data.draw(st.lists(st.tuples(keys, ticks, ticks), max_size=14))
    entries = list({(key, valid): (key, valid, known) for key, valid, known in drawn}.values())
    asked = data.draw(st.lists(st.tuples(keys, st.none() | ticks), max_size=14))
    most = data.draw(st.none() | st.integers(1, 6))
    table = pl.DataFrame(
        [(key, valid, known, i) for i, (key, valid, known) in enumerate(entries)],
        schema={"id": pl.String, "valid": pl.Int64, "known": pl.Int64, "row": pl.Int64},
        orient="row",
    )
    path = tmp_path_factory.mktemp("t") / "t.parquet"
    table.write_parquet(path)
    frame = pl.DataFrame(asked, schema={"id": pl.String, "at": pl.Int64}, orient="row")
    options = {"by": ["id"], "time": "at", "as_of": "valid", "known": "known", "max_age": most}
    done = applied(path, frame, **options)
    expected = [search(entries, key, at, most) for key, at in asked]
    assert done.frame["row"].to_list() == expected


def search(
    entries: list[tuple[str, int, int]], key: str, at: int | None, most: int | None
) -> int | None:
    """The newest entry of a key that is valid and known at a time."""
    fitting = [
        (valid, i)
        for i, (own, valid, known) in enumerate(entries)
        if at is not None and own == key and valid <= at and known <= at
    ]
    if not fitting or at is None:
        return None
    valid, row = max(fitting)
    return None if most is not None and at - valid > most else row


def test_times_of_any_unit(tmp_path: Path) -> None:
    days = [START, START + timedelta(days=2)]
    table = pl.DataFrame({"id": ["a", "a"], "since": days, "x": [1, 2]})
    table.with_columns(pl.col("since").dt.cast_time_unit("ms")).write_parquet(
        tmp_path / "t.parquet"
    )
    hours = [START + timedelta(hours=h) for h in (-1, 0, 47, 48, 73)]
    frame = pl.DataFrame({"id": ["a"] * 5, "at": hours})
    options = {"by": ["id"], "time": "at", "as_of": "since", "max_age": "1d"}
    done = applied(tmp_path / "t.parquet", frame, **options)
    assert done.frame["x"].to_list() == [None, 1, None, 2, None]
    assert counts(done) == {"unmatched": 1, "stale": 2}


@pytest.mark.parametrize("stream", [None, "UTC", "Europe/Berlin"])
@pytest.mark.parametrize("table", [None, "UTC", "America/New_York"])
def test_times_without_a_zone_are_in_utc(
    tmp_path: Path, stream: str | None, table: str | None
) -> None:
    """As sources read them: the same instants match, however they are written."""

    def instants(hours: list[int], zone: str | None) -> pl.Series:
        naive = pl.Series([START + timedelta(hours=h) for h in hours])
        utc = naive.dt.replace_time_zone("UTC")
        return naive if zone is None else utc.dt.convert_time_zone(zone)

    path = tmp_path / "t.parquet"
    columns = {"id": ["a", "a"], "since": instants([0, 10], table), "x": [1, 2]}
    pl.DataFrame(columns).write_parquet(path)
    frame = pl.DataFrame({"id": ["a"] * 3, "at": instants([-1, 9, 10], stream)})
    done = applied(path, frame, by=["id"], time="at", as_of="since")
    assert done.frame["x"].to_list() == [None, 1, 2]


def test_whole_numbers_that_the_streams_type_cannot_hold_are_times_too(tmp_path: Path) -> None:
    table = pl.DataFrame({"id": ["a", "a"], "since": [1, 300], "x": [1, 2]})
    table.write_parquet(tmp_path / "t.parquet")
    frame = pl.DataFrame({"id": ["a"], "at": pl.Series([200], dtype=pl.UInt8)})
    done = applied(tmp_path / "t.parquet", frame, by=["id"], time="at", as_of="since")
    assert done.frame["x"].to_list() == [1]


# ---------------------------------------------------------------------------------- another file


def replace(path: Path, table: pl.DataFrame) -> None:
    table.write_parquet(path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def test_another_file_is_read_between_two_batches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"id": ["a"], "x": [1]}).write_parquet(path)
    frame = pl.DataFrame({"id": ["a"]})
    stage = bound(path, frame, by=["id"], reload=1e-9)
    assert stage.digest() is None

    def now() -> tuple[Any, int]:
        done = stage.apply(batch_of(frame))
        return done.frame["x"][0], counts(done).get("reloaded", 0)

    assert now() == (1, 0)
    replace(path, pl.DataFrame({"id": ["a"], "x": [2]}))
    assert now() == (2, 1)
    assert now() == (2, 0)
    path.write_bytes(b"PAR1, cut off")
    assert now() == (2, 0)
    assert "The table stays as it was" in caplog.text
    replace(path, pl.DataFrame({"id": ["a"], "y": [2]}))
    assert now() == (2, 0)
    assert "has other columns now" in caplog.text
    path.unlink()
    assert now() == (2, 0)
    replace(path, pl.DataFrame({"id": ["a"], "x": [3]}))
    assert now() == (3, 1)


def test_without_reload_the_file_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,x\na,1\n")
    frame = pl.DataFrame({"id": ["a"]})
    first = bound(path, frame, by=["id"]).digest()
    os.utime(path, (0, 0))
    assert bound(path, frame, by=["id"]).digest() == first
    path.write_text("id,x\na,2\n")
    assert bound(path, frame, by=["id"]).digest() != first


# ------------------------------------------------------------------------------------- wrong tables


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("id,x\na,1\na,2\n", {}, "has the key a twice: keep one, or name the time"),
        ("id,t,x\na,1,1\na,1,2\n", {"time": "at", "as_of": "t"}, "keep one of the same time"),
        ("idd,x\na,1\n", {}, "needs column 'id', which is not there. Did you mean 'idd'?"),
        ("id,x,x\na,1,2\n", {}, "has column 'x' twice: rename one"),
        ("id\na\n", {}, "has no column beside its keys"),
        ("id,x\na,1\n", {"columns": ["y*"]}, "expects columns like 'y*'"),
        ("id,at\na,1\n", {}, "adds column 'at', which is there already: set 'prefix', or name the"),
        ("id,x\na,1\n", {"time": "at"}, "expects both 'time' and 'as_of', or neither"),
        ("id,x\na,1\n", {"max_age": 3}, "'max_age' needs 'as_of' and 'time'"),
        ("id,x\na,1\n", {"by": []}, "names no key columns: set 'by'"),
        ("id,x\na,1\n", {"by": {"at": "id"}}, "cannot be read"),
        ("id,t\na,soon\n", {"time": "at", "as_of": "t"}, "expects times like those of column 'at'"),
        ("id,x\na,1,2\n", {}, "cannot be read"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_fit(
    tmp_path: Path, text: str, options: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    frame = pl.DataFrame({"id": ["a"], "at": [1]})
    with pytest.raises(UserError) as error:
        bound(path, frame, **{"by": ["id"], **options})
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("t.parquet", "cannot be read: No such file"), ("t.xlsx", "expects a file that ends with")],
)
def test_a_file_that_is_none(tmp_path: Path, name: str, sentence: str) -> None:
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(UserError) as error:
        bound(tmp_path / name, pl.DataFrame({"id": ["a"]}), by=["id"])
    assert sentence in str(error.value)


def test_keys_of_another_type_are_refused(tmp_path: Path) -> None:
    pl.DataFrame({"id": [1], "x": [1]}).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match="expects string in its key column 'id'"):
        bound(tmp_path / "t.parquet", pl.DataFrame({"id": ["1"]}), by=["id"])


def test_where_nothing_matches_it_is_told_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,x\n")
    frame = pl.DataFrame({"id": ["a", "b"]})
    stage = bound(path, frame, by=["id"])
    assert stage.remarks() == ()
    stage.apply(batch_of(frame))
    (remark,) = stage.remarks()
    assert remark.startswith("[scrub.s]: of 2 rows of this run none has a match in")


def test_rows_without_a_key_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pl.DataFrame({"id": ["a", None], "x": [1, 2]}).write_parquet(tmp_path / "t.parquet")
    frame = pl.DataFrame({"id": [None, "a"]}, schema={"id": pl.String})
    done = applied(tmp_path / "t.parquet", frame, by=["id"])
    assert done.frame["x"].to_list() == [None, 1]
    assert "1 row without a key or time: they match nothing" in caplog.text


# ------------------------------------------------------------------- what polars takes for others


@pytest.mark.parametrize("ending", ["csv", "ndjson"])
def test_numbers_beyond_64_bits_are_floats_and_told(
    ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = {
        "csv": "id,x\n1,5\n2,99999999999999999999\n",
        "ndjson": '{"id":1,"x":5}\n{"id":2,"x":99999999999999999999}\n',
    }
    path = tmp_path / f"t.{ending}"
    path.write_text(lines[ending])
    done = applied(path, pl.DataFrame({"id": [2, 1]}), by=["id"])
    assert done.frame["x"].to_list() == [1e20, 5.0]
    (said,) = [r.getMessage() for r in caplog.records]
    assert "'x' is read as float64: no 64-bit integer holds '99999999999999999999'" in said


def test_a_number_that_no_float_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame = pl.DataFrame({"id": [2]})
    path.write_text("id,x\n1,0.5\n2,inf\n")
    assert applied(path, frame, by=["id"]).frame["x"].to_list() == [float("inf")]
    path.write_text("id,x\n1,0.5\n2,1e400\n")
    with pytest.raises(UserError, match="has '1e400' in column 'x', a number that no float64"):
        bound(path, frame, by=["id"])


def test_a_text_among_numbers_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,x,name\n1,5,a\n2,6,7\n3,-,b\n")
    done = applied(path, pl.DataFrame({"id": [3]}), by=["id"])
    assert done.frame.select("x", "name").rows() == [("-", "b")]
    (said,) = [r.getMessage() for r in caplog.records]
    assert "column 'x' is text: '-' is no number, as 2 of 3 are" in said


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["2026-01-02", "2026-01-01T23:30:00-01:00"], [24 * 60, 24 * 60 + 30]),
        (["2026-01-01", "2026-01-01 00:00:30.5"], [0, 0.5 + 1 / 120]),
        (["2026-01-01T01:00", "2026-01-01T02:00Z"], [60, 120]),
    ],
)
def test_times_in_several_spellings_are_times(
    tmp_path: Path, texts: list[str], expected: list[float]
) -> None:
    """In UTC where they have no offset."""
    path = tmp_path / "t.csv"
    path.write_text("id,at,x\n" + "".join(f"1,{text},{i}\n" for i, text in enumerate(texts)))
    at = [START + timedelta(minutes=minutes) for minutes in expected]
    early = [time - timedelta(microseconds=1) for time in at]
    frame = pl.DataFrame({"id": [1] * 4, "t": [*at, *early]})
    done = applied(path, frame, by=["id"], time="t", as_of="at")
    assert done.frame["x"].to_list() == [0, 1, None, 0]
