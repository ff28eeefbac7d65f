"""Pipelines whose model carries a state per key: trained, stopped, served and resumed; and what
does not go together with it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.config import Pipeline
from engine.run import Run
from engine.types import UserError
from tests.models.export.modules import in_this_process
from tests.pipelines.conftest import Headrace
from tests.pipelines.runs.test_crash import finish_through_stops, same, state

ROWS, USERS = 360, 6
Write = Callable[..., Path]
PIPELINE = """
name = "visits"
folder = "{folder}"
[source]
kind = "files"
path = "{data}"
[loader]
batch_rows = {batch_rows}
[model]
target = "y"
numeric = ["a"]
[model.state]
by = ["user"]
width = 4
[train]
threads = 1
replay_rows = 0
[export]
holdout = 0.1
compress = false
"""
CODED = """
[scrub.codes]
kind = "categories"
columns = ["user"]
size = 3
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Write:
    """Writes the pipeline's file, by the name of its folder; all on the same data."""
    rng = np.random.default_rng(0)
    rows = pl.DataFrame(
        {"user": [f"u{i}" for i in rng.integers(0, USERS, ROWS)], "a": rng.normal(size=ROWS)}
    ).with_columns(y=pl.col("a").cum_sum().over("user"))
    for number in range(2):
        (tmp_path / "rows").mkdir(exist_ok=True)
        half = rows[number * ROWS // 2 : (number + 1) * ROWS // 2]
        half.write_csv(tmp_path / "rows" / f"{number}.csv")

    def write(name: str = "whole", *changes: tuple[str, str], batch_rows: int = 60) -> Path:
        text = PIPELINE.format(
            folder=tmp_path / name, data=tmp_path / "rows" / "*.csv", batch_rows=batch_rows
        )
        for old, new in changes:
            assert old in text, old
            text = text.replace(old, new)
        file = tmp_path / f"{name}.toml"
        file.write_text(text)
        return file

    return write


@pytest.mark.full
def test_a_stopped_run_ends_where_an_uninterrupted_one_does(
    pipeline: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are held out pass in their turn."""
    in_this_process(monkeypatch)
    whole, stopped = pipeline("whole"), pipeline("stopped")
    totals = Run(whole).run().totals
    assert totals.learned + totals.predicted == ROWS
    assert 10 < totals.predicted < 70
    finish_through_stops(stopped, 2, 5)
    same(state(whole)["work"], state(stopped)["work"])


def test_the_key_is_the_column_as_a_model_file_sees_it(
    pipeline: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Categories know two users; each has a state of its own. The served model begins with none."""
    in_this_process(monkeypatch)
    file = pipeline("coded", ("[model]\n", f'{CODED}[model]\ncategories = ["user"]\n'))
    Run(file).run()
    assert len(state(file)["work"]["learner"]["carried"]["table"]["keys"]) == USERS
    metrics = (tmp_path / "coded" / "metrics.prom").read_text()
    assert 'headrace_memory_bytes{component="states"}' in metrics
    rows = tmp_path / "rows"
    model = tmp_path / "coded" / "model.onnx"
    whole = answers(served(tmp_path / "once", model, rows, batch_rows=17))
    later = (rows / "1.csv").rename(tmp_path / "1.csv")
    twice = served(tmp_path / "twice", model, rows)
    assert Run(Pipeline.of(twice)).run().totals.predicted == ROWS // 2
    later.rename(rows / "1.csv")
    assert whole.height == ROWS
    np.testing.assert_allclose(answers(twice)["prediction"], whole["prediction"], rtol=0, atol=1e-5)


def test_a_state_expires_by_time_where_it_learns_and_where_it_serves(
    pipeline: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A day passes between the two files: each key starts anew, once."""
    in_this_process(monkeypatch)
    rows = tmp_path / "rows"
    file = pipeline("timed", ("width = 4", 'width = 4\nidle = "1h"\ntime = "at"'))
    for number, name in enumerate(("0.csv", "1.csv")):
        at = pl.datetime(2020, 1, 1 + number) + pl.duration(seconds=pl.int_range(pl.len()))
        pl.read_csv(rows / name).with_columns(at=at).write_csv(rows / name)
    assert Run(file).run().totals.counts["model", "expired"] == USERS
    model = tmp_path / "timed" / "model.onnx"
    whole = answers(served(tmp_path / "both", model, rows))
    again = Run(Pipeline.of(served(tmp_path / "again", model, rows))).run()
    assert again.totals.counts["predict", "expired"] == USERS
    (rows / "0.csv").unlink()
    alone = answers(served(tmp_path / "alone", model, rows))
    np.testing.assert_allclose(
        whole["prediction"][-ROWS // 2 :], alone["prediction"], rtol=0, atol=1e-5
    )
    dated = served(tmp_path / "dated", model, rows)
    dated["source"]["schema"] = {"user": "string", "a": "float64", "at": "datetime[ms]"}
    with pytest.raises(UserError, match=r"'at', which was datetime .* is datetime\[ms\] here"):
        Run(Pipeline.of(dated)).run()


def served(folder: Path, model: Path, rows: Path, batch_rows: int = 1_000) -> dict[str, Any]:
    return {
        "name": "served",
        "folder": str(folder),
        "source": {"kind": "files", "path": str(rows / "*.csv")},
        "loader": {"batch_rows": batch_rows},
        "infer": {"model": str(model), "threads": 1},
        "sink": {"kind": "files", "path": str(folder / "out"), "columns": ["user"]},
    }


def answers(table: dict[str, Any]) -> pl.DataFrame:
    """What is answered, in the order of the rows."""
    summary = Run(Pipeline.of(table)).run()
    assert summary.totals.balanced
    return pl.read_parquet(Path(table["sink"]["path"]) / "*.parquet")


WRONG = {
    "twice": (('kind = "files"\n', 'kind = "files"\nepochs = 2\n'), "epochs in .* reads every row"),
    "mixed": (("[loader]\n", "[loader]\nshuffle_rows = 90\n"), "shuffle_rows in .* mixes rows"),
    "drawn": (
        ("[train]\n", "[train.sampling]\n[train]\n"),
        r"\[train.sampling\] in .* leaves rows",
    ),
    "absent": (('["user"]', '["usr"]'), r"\[model.state\] by needs column 'usr'.*'user'"),
    "target": (('by = ["user"]', 'by = ["y"]'), r"\[model.state\] by in .* names the target 'y'"),
    "none": (
        ('by = ["user"]', "by = []"),
        r"\[model.state\] .* expected a list .* for 'by', got \[\]",
    ),
    "no idle": (("width = 4", 'width = 4\ntime = "a"'), r"\[model.state\] time is for 'idle'"),
    "no time": (
        ("width = 4", 'width = 4\nidle = "7d"'),
        "number of rows for 'idle' without a 'time'",
    ),
    "no times": (
        ("width = 4", 'width = 4\nidle = 7\ntime = "a"'),
        "integer column, got 'a' of type",
    ),
    "unknown": (
        ("width = 4", 'width = 4\nidle = 7\ntime = "at"'),
        "needs column 'at', which is not",
    ),
    "kind": (("[model]\n", '[model]\nkind = "tabular"\n'), r"\[model\].* has no key 'state'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_together_is_one_sentence(
    pipeline: Write, headrace: Headrace, case: str
) -> None:
    change, sentence = WRONG[case]
    no_export = ("[export]\nholdout = 0.1\ncompress = false\n", "")
    code, _, err = headrace("check", pipeline("wrong", change, no_export))
    assert code == 2
    assert len(err.strip().splitlines()) == 1, err
    assert re.search(sentence, err), err
