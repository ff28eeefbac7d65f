"""`[sink] where`: only some rows are written, and the others are counted."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch
from tests.pipelines.conftest import Headrace

N = 300
CLEAN = """
name = "clean"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/data.csv"
[source.schema]
id = "int64"
a = "float64"
text = "string"
[loader]
batch_rows = 50
[checkpoint]
interval_batches = 2
[sink]
kind = "files"
path = "{folder}/out"
where = "a > 3"
"""
MODEL = """
[model]
target = "y"
classes = ["no", "yes"]
numeric = ["a"]
[train]
threads = 1
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frame = pl.DataFrame(
        {
            "id": range(N),
            "a": [None if i % 10 == 9 else float(i % 7) for i in range(N)],
            "text": ["x" if i % 50 == 0 else str(i) for i in range(N)],
        }
    )
    yes = pl.when(pl.col("a") > 3).then(pl.lit("yes")).otherwise(pl.lit("no"))
    frame.with_columns(y=yes).write_csv(tmp_path / "data.csv")
    return tmp_path


def file_of(folder: Path, *changes: tuple[str, str], more: str = "") -> Path:
    text = CLEAN.format(folder=folder)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    file = folder / "p.toml"
    file.write_text(text + more)
    return file


def written(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "out" / "*.parquet").sort("id")


def wanted(i: int) -> bool:
    return i % 10 != 9 and i % 7 > 3


WANTED = [i for i in range(N) if wanted(i)]


def test_rows_for_which_it_does_not_hold_are_counted(folder: Path, headrace: Headrace) -> None:
    """Null is not true. They end as all others do: the account balances."""
    file = file_of(folder)
    assert headrace("check", file)[0] == 0
    code, out, err = headrace("run", file)
    assert code == 0, err
    assert f"{N} read = {N} cleaned" in out
    assert f"sink not_written {N - len(WANTED)}" in " ".join(out.replace(":", "").split())
    assert written(folder)["id"].to_list() == WANTED


def test_a_stopped_run_goes_on(folder: Path) -> None:
    def watch(loop: Loop, _: Batch) -> None:
        if loop.totals.batches == 3:
            loop.stop()

    file = file_of(folder)
    assert Run(file, watch=watch).run().stopped
    totals = Run(file).run().totals
    assert totals.counts["sink", "not_written"] == N - len(WANTED)
    assert written(folder)["id"].to_list() == WANTED


@pytest.mark.parametrize("answer", ["learned", "first"])
def test_alerts_of_a_model(answer: str, folder: Path) -> None:
    where = ('where = "a > 3"', f'where = "prediction = \'yes\'"\nanswer = "{answer}"')
    schema = ('text = "string"', 'text = "string"\ny = "string"')
    nulls = '[scrub.missing]\ncolumns = ["a"]\nstrategy = "constant"\n'
    run = Run(file_of(folder, where, schema, more=nulls + MODEL))
    totals = run.run().totals
    rows = written(folder)
    assert totals.learned == N
    assert 0 < rows.height < N
    assert rows["prediction"].unique().to_list() == ["yes"]
    assert totals.counts["sink", "not_written"] == N - rows.height


@pytest.mark.parametrize("model", ["", MODEL])
def test_a_row_on_which_it_fails_is_a_dead_letter(model: str, folder: Path) -> None:
    """Alone; and one that is learned stays so."""
    where = ('where = "a > 3"', 'where = "CAST(text AS INT) < 100"')
    if model:
        where = (where[0], where[1] + '\n[scrub.missing]\ncolumns = ["a"]\nstrategy = "constant"')
    schema = ('text = "string"', 'text = "string"\ny = "string"')
    limit = "[dead_letters]\nlimit = 1.0\n"
    totals = Run(file_of(folder, where, schema, more=limit + model)).run().totals
    failed = N // 50
    assert written(folder)["id"].to_list() == [i for i in range(100) if i % 50]
    assert totals.counts["sink", "not_written"] == 200 - 4
    letters = pl.read_ndjson(folder / "run" / "dead_letters" / "*.ndjson")
    assert letters["stage"].to_list() == ["sink"] * failed
    assert letters["reason"].to_list() == ["invalid"] * failed
    assert letters["detail"].str.starts_with("[sink] where: ").all()
    if model:
        assert (totals.learned, totals.rejected) == (N, 0)
        assert totals.counts["sink", "invalid"] == failed
    else:
        assert (totals.cleaned, totals.rejected) == (N - failed, failed)


@pytest.mark.parametrize("answer", ["learned", "first"])
def test_learned_rows_without_an_answer_are_counted_and_limited(
    answer: str, folder: Path, headrace: Headrace
) -> None:
    where = ('where = "a > 3"', f'answer = "{answer}"\nwhere = "CAST(text AS INT) < 100"')
    schema = ('text = "string"', 'text = "string"\ny = "string"')
    nulls = '[scrub.missing]\ncolumns = ["a"]\nstrategy = "constant"\n'
    file = file_of(folder, where, schema, more=nulls + MODEL)
    code, out, err = headrace("run", file, "--set", "dead_letters.limit=0.01")
    assert code == 3
    said = " ".join((out + err).split())
    assert "2.0% of 300 rows were rejected (sink: invalid)" in said
    code, out, _ = headrace("run", "--fresh", file, "--set", "dead_letters.limit=1.0")
    account = "300 read = 300 learned 202 of them not in the output (sink: invalid 6, sink: "
    assert (code, account in " ".join(out.split())) == (0, True)
    metrics = (folder / "run" / "metrics.prom").read_text()
    assert f'headrace_dead_letters_total{{reason="invalid"}} {N // 50}.0' in metrics


@pytest.mark.parametrize(
    ("model", "answer", "failed", "tried"),
    [("", "learned", 6, 300), (MODEL, "learned", 1, 32), (MODEL, "first", 1, 32)],
)
def test_check_tries_it_on_the_sample(
    model: str, answer: str, failed: int, tried: int, folder: Path, headrace: Headrace
) -> None:
    more = '[scrub.missing]\ncolumns = ["a"]\nstrategy = "constant"\n' + model
    schema = ('text = "string"', 'text = "string"\ny = "string"')
    where = f'where = "CAST(text AS INT) < 10"\nanswer = "{answer}"'
    file = file_of(folder, ('where = "a > 3"', where if model else where.split("\n")[0]), schema,
                   more=more)  # fmt: skip
    code, out, _ = headrace("check", file)
    rows = f"{failed} of {tried} sampled rows {'is' if failed == 1 else 'are'} rejected"
    said = " ".join(out.split())
    assert code == 0, out
    assert f"{rows} in sink as invalid: [sink] where: conversion from `str`" in said
    left = tried - failed - sum(i % 50 > 0 for i in range(10))
    assert f"not_written {left}" in said
    code, out, _ = headrace("check", file, "--set", "dead_letters.limit=0.01")
    said = " ".join(out.split())
    assert code == 2
    assert f"! {rows}, and [dead_letters] limit allows 1.0%" in said
    assert f"{failed}, in sink as invalid: [sink] where: " in said
    assert not (folder / "out").exists()


@pytest.mark.parametrize("answer", ["learned", "first"])
def test_where_on_what_a_model_adds_holds_with_late_labels(answer: str, tmp_path: Path) -> None:
    """A batch may hold labels alone: no row is scored, and none has a probability."""
    (tmp_path / "rows.csv").write_text("id,at,x\na,1,1.5\nb,2,2.5\nc,3,0.5\nd,4,2\n")
    (tmp_path / "labels.csv").write_text("id,at,label\na,11,yes\nb,12,no\nc,13,yes\nd,14,no\n")
    file = tmp_path / "p.toml"
    file.write_text(f"""
name = "late"
folder = "{tmp_path}/run"
[source]
kind = "files"
path = "{tmp_path}/rows.csv"
[loader]
batch_rows = 4
[model]
kind = "linear"
task = "binary"
target = "label"
classes = ["no", "yes"]
numeric = ["x"]
[labels]
by = ["id"]
time = "at"
horizon = 100
[labels.source]
kind = "files"
path = "{tmp_path}/labels.csv"
[sink]
kind = "files"
path = "{tmp_path}/out"
answer = "{answer}"
where = "probability >= 0"
""")
    totals = Run(file).run().totals
    assert (totals.learned, totals.matched) == (4, 4)
    assert written(tmp_path)["id"].to_list() == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("b > 3", "'b'"),
        ("id > 3", "'id'"),
        ("prediction = 'yes'", "'prediction'"),
        ("a + 1", "expects true or false, got float64"),
        ("a > avg(a)", "looks at other rows"),
        ("a >", "is no SQL expression"),
        ("  ", "is empty"),
        ("a > now()", "asks the clock"),
        ("a LIKE 'x'", "cannot be done"),
    ],
)
def test_what_is_no_condition_on_written_columns_is_refused(
    where: str, why: str, folder: Path, headrace: Headrace
) -> None:
    file = file_of(folder, ("a > 3", where), ("[sink]", '[sink]\ncolumns = ["a"]'))
    for command in ("check", "run"):
        code, out, err = headrace(command, file)
        assert code == 2
        said = " ".join((out + err).split())
        assert "[sink] where" in said
        assert why in said
    assert not (folder / "out").exists()
