"""Rows joined with the events of another source, in whole pipelines."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.config import Pipeline
from engine.run import Run
from engine.types import UserError
from tests.crash.killed import Killed
from tests.pipelines.conftest import Headrace
from tests.pipelines.kafka.test_kafka_quiet import toml
from tests.waiting import HANG

Table = Callable[..., dict[str, Any]]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """A pipeline that adds `price` to impressions by `who`, from the clicks of one minute before
    and ten seconds after."""

    def make(**join: Any) -> dict[str, Any]:
        events = {"kind": "files", "path": str(tmp_path / "clicks" / "*.ndjson")}
        own = {"by": {"who": "user"}, "time": "at", "within": "60s", "wait": "10s", **join}
        schema = {"user": "string", "at": "datetime[ms]", "price": "int64"}
        return {
            "name": "t",
            "folder": str(tmp_path / "run"),
            "source": {
                "kind": "files", "path": str(tmp_path / "rows" / "*.ndjson"),
                "schema": {"n": "int64", "who": "string", "at": "datetime[ms]"},
            },
            "scrub": {"clicks": {"kind": "join", **own, "source": {**events, "schema": schema}}},
            "loader": {"batch_rows": 50},
            "checkpoint": {"interval_batches": 3},
            "sink": {"kind": "files", "path": str(tmp_path / "out")},
        }  # fmt: skip

    return make


def write(file: Path, frame: pl.DataFrame) -> None:
    file.parent.mkdir(exist_ok=True)
    frame.write_ndjson(file)


def streams(rows: int, seed: int = 1) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Impressions and clicks of 20 users, some ms to seconds apart, in order."""
    rng = np.random.default_rng(seed)

    def of(user: str) -> pl.DataFrame:
        at = np.sort(rng.integers(0, rows * 300, rows))
        users = [f"u{i}" for i in rng.integers(0, 20, rows)]
        ms = pl.Series(at).cast(pl.Datetime("ms"))
        return pl.DataFrame({user: users, "at": ms})

    return (
        of("who").with_row_index("n").select(pl.col("n").cast(pl.Int64), "who", "at"),
        of("user").with_row_index("price").select("user", "at", pl.col("price").cast(pl.Int64)),
    )


def expected(rows: pl.DataFrame, clicks: pl.DataFrame) -> list[int | None]:
    """The prices, by polars' joins of what is sorted."""
    right = clicks.rename({"user": "who"})
    before = rows.join_asof(right, on="at", by="who", tolerance="60s")
    after = rows.join_asof(right, on="at", by="who", strategy="forward", tolerance="10s")
    return before["price"].fill_null(after["price"]).to_list()


def results(folder: Path) -> list[int | None]:
    return pl.read_parquet(folder / "out" / "part-*.parquet").sort("n")["price"].to_list()


def test_killed_runs_end_as_one_that_is_not(tmp_path: Path, table: Table) -> None:
    rows, clicks = streams(900)
    write(tmp_path / "rows" / "1.ndjson", rows)
    for part in range(3):
        write(tmp_path / "clicks" / f"{part}.ndjson", clicks[part * 300 : part * 300 + 300])
    file = tmp_path / "t.toml"
    file.write_text(toml(table()))
    for target, call in (
        ("engine.scrub.joining.stage:Join.apply", 8),
        ("engine.running.saving.checkpoint:Checkpoints.save", 2),
    ):
        process = Killed([target, str(call), "run", str(file)], stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=HANG)
        assert process.returncode == -signal.SIGKILL, errors.decode()
    run = Run(file)
    totals = run.run().totals
    assert run.loop.resumed
    assert (totals.read, totals.cleaned) == (900, 900)
    assert results(tmp_path) == expected(rows, clicks)
    assert totals.counts["clicks", "events"] == 900
    missing = results(tmp_path).count(None)
    assert totals.counts["clicks", "unmatched"] == missing > 0


def test_a_later_run_goes_on_with_rows_and_events_that_came_since(
    tmp_path: Path, table: Table
) -> None:
    rows, clicks = streams(200)
    write(tmp_path / "rows" / "1.ndjson", rows[:100])
    write(tmp_path / "clicks" / "1.ndjson", clicks.filter(pl.col("at") <= rows["at"][99]))
    Run(Pipeline.of(table(wait=0))).run()
    write(tmp_path / "rows" / "2.ndjson", rows[100:])
    write(tmp_path / "clicks" / "2.ndjson", clicks.filter(pl.col("at") > rows["at"][99]))
    second = Run(Pipeline.of(table(wait=0))).run()
    assert (second.resumed, second.totals.read) == (True, 200)
    assert second.totals.counts["clicks", "events"] == 200
    before = rows.join_asof(clicks.rename({"user": "who"}), on="at", by="who", tolerance="60s")
    assert results(tmp_path) == before["price"].to_list()


def test_its_gauges_and_counts_are_on_metrics(tmp_path: Path, table: Table) -> None:
    rows, clicks = streams(100)
    write(tmp_path / "rows" / "1.ndjson", rows)
    write(tmp_path / "clicks" / "1.ndjson", clicks)
    run = Run(Pipeline.of(table(events=16)))
    run.run()
    text = run.metrics.exposition()[0].decode()
    assert 'headrace_table_rows{stage="clicks"}' in text
    assert 'headrace_memory_bytes{component="table clicks"}' in text
    assert 'headrace_stage_events_total{event="events_forgotten",stage="clicks"}' in text


def test_what_its_state_depends_on_may_not_change(tmp_path: Path, table: Table) -> None:
    rows, clicks = streams(20)
    write(tmp_path / "rows" / "1.ndjson", rows)
    write(tmp_path / "clicks" / "1.ndjson", clicks)
    Run(Pipeline.of(table())).run()
    with pytest.raises(UserError, match="fresh"):
        Run(Pipeline.of(table(within="2m"))).run()
    write(tmp_path / "rows" / "2.ndjson", rows)
    write(tmp_path / "clicks" / "1.ndjson", clicks[:10])
    with pytest.raises(UserError, match=r"\[scrub.clicks.source\]"):
        Run(Pipeline.of(table())).run()


@pytest.mark.parametrize(("first", "then"), [(64, 1_000), (1_000, 160)])
def test_the_number_of_events_may_change(
    tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture, first: int, then: int
) -> None:
    """The second run has enough of them; the first may have forgotten older ones."""
    rows, clicks = streams(200)
    write(tmp_path / "rows" / "1.ndjson", rows[:100])
    write(tmp_path / "clicks" / "1.ndjson", clicks.filter(pl.col("at") <= rows["at"][99]))
    few = {"within": "2s", "wait": 0}
    Run(Pipeline.of(table(events=first, **few))).run()
    write(tmp_path / "rows" / "2.ndjson", rows[100:])
    write(tmp_path / "clicks" / "2.ndjson", clicks.filter(pl.col("at") > rows["at"][99]))
    second = Run(Pipeline.of(table(events=then, **few))).run()
    assert (second.resumed, second.totals.read) == (True, 200)
    assert "[scrub.clicks] events has changed since the checkpoint in" in caplog.text
    assert f": {then} now, {first} before" in caplog.text
    right = clicks.rename({"user": "who"})
    whole = rows.join_asof(right, on="at", by="who", tolerance="2s")["price"].to_list()
    assert results(tmp_path)[100:] == whole[100:]


@pytest.mark.parametrize(("odd", "code"), [(9, 0), (10, 2)])
def test_check_refuses_events_of_which_half_have_no_use(
    tmp_path: Path, table: Table, headrace: Headrace, odd: int, code: int
) -> None:
    rows, clicks = streams(20)
    nameless = pl.when(pl.int_range(pl.len()) >= odd).then("user").alias("user")
    write(tmp_path / "rows" / "1.ndjson", rows)
    write(tmp_path / "clicks" / "1.ndjson", clicks.with_columns(nameless))
    file = tmp_path / "t.toml"
    file.write_text(toml(table()))
    got, out, err = headrace("check", file)
    assert got == code, out + err
    said = f"[scrub.clicks.source] had {odd} records without a key or time"
    assert said in out
    assert ("! " + said in out, "is ready to run" in out) == (code == 2, code == 0)


def test_a_missing_file_is_none_of_those_that_the_pipeline_reads(
    tmp_path: Path, table: Table
) -> None:
    given, rows = table(), tmp_path / "r.ndjson"
    given["source"]["path"] = str(rows)
    given["scrub"]["clicks"]["source"]["path"] = str(tmp_path / "e.ndjson")
    rows.write_text('{"n": 1, "who": "a", "at": 5}\n')
    with pytest.raises(UserError, match=r"e.ndjson' is no file.$"):
        Run(Pipeline.of(given)).run()
    (tmp_path / "f.ndjson").touch()
    with pytest.raises(UserError, match=r"e.ndjson' is no file. Did you mean 'f.ndjson'\?$"):
        Run(Pipeline.of(given)).run()


def test_check_says_what_cannot_work(tmp_path: Path, table: Table, headrace: Headrace) -> None:
    rows, clicks = streams(20)
    write(tmp_path / "rows" / "1.ndjson", rows)
    write(tmp_path / "clicks" / "1.ndjson", clicks)
    file = tmp_path / "t.toml"
    file.write_text(toml(table()))
    code, out, err = headrace("check", file)
    assert (code, "is ready to run" in out) == (0, True), out + err
    for key, value, said in (
        ("within", "10", "expects a duration"),
        ("by", '["user"]', "needs column 'user'"),
        ("time", "n", "expects whole numbers for 'within'"),
        ("source.group_id", "g", "as far as its rows need it: take 'group_id' out"),
    ):
        code, out, err = headrace("check", file, "--set", f"scrub.clicks.{key}={value}")
        assert code == 2, out + err
        assert said in err
