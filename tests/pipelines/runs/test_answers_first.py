"""One engine that answers rows and learns them afterwards, through the command."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from engine.interpret import interpret
from engine.run import Run
from tests.crash.killed import Killed
from tests.pipelines.conftest import Headrace, Rows, Small, small_in
from tests.pipelines.runs.test_crash import same
from tests.waiting import HANG

FIRST = ("[sink]", '[sink]\nanswer = "first"')
LEARN = "models.challenge.challenger:ChampionChallenger.learn"


@pytest.fixture
def data(rows: Rows, tmp_path: Path) -> Path:
    """The small pipeline's rows; a third of them has no label."""
    path = tmp_path / "rows.parquet"
    label = pl.when(pl.col("n") % 3 != 1).then(pl.col("y"))
    rows(1_000).with_columns(y=label).write_parquet(path)
    return path


@pytest.mark.slow(4)
def test_a_kill_between_answer_and_learning_loses_no_row_and_learns_none_twice(
    small: Small, data: Path, tmp_path: Path, results: Callable[[], pl.DataFrame]
) -> None:
    file = small(data, FIRST)
    process = Killed([LEARN, "7", "run", str(file)], stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == -signal.SIGKILL, errors.decode()
    resumed = Run(file)
    totals = resumed.run().totals
    assert resumed.loop.resumed
    (whole := tmp_path / "whole").mkdir()
    untroubled = Run(small_in(whole, data, FIRST))
    assert totals == untroubled.run().totals
    assert (totals.read, totals.learned, totals.predicted, totals.rejected) == (1_000, 667, 333, 0)
    same(resumed.loop.work.state_dict(), untroubled.loop.work.state_dict())
    expected = pl.concat(map(pl.read_parquet, sorted((whole / "out").glob("*.parquet"))))
    assert results().equals(expected)
    assert results()["n"].to_list() == list(range(1_000))
    assert results()["prediction"].null_count() == 0


def test_rows_without_a_label_are_neither_augmented_nor_interpreted(
    small: Small, data: Path, headrace: Headrace
) -> None:
    file = small(data, FIRST, more="[augment.mixup]\nalpha = 0.4\n")
    code, out, err = headrace("check", file)
    assert code == 0, err
    changed = re.search(r"changed (\d+)", out)
    assert changed is not None, out
    assert int(changed[1]) <= 667
    Run(file).run()
    assert interpret(file, repeats=3).rows == 667


def test_without_it_a_row_without_a_label_is_a_dead_letter(small: Small, data: Path) -> None:
    file = small(data, more="[dead_letters]\nlimit = 1.0\n")
    totals = Run(file).run().totals
    assert (totals.learned, totals.predicted) == (667, 0)
    assert totals.reasons == {("collate", "missing_label"): 333}


def test_the_setting_is_told_where_it_changes_and_refused_where_nothing_answers(
    small: Small, data: Path, headrace: Headrace
) -> None:
    limit = "[dead_letters]\nlimit = 1.0\n"
    assert headrace("run", small(data, more=limit))[0] == 0
    code, _, err = headrace("run", small(data, FIRST, more=limit))
    assert code == 0
    assert "[sink] answer" in err
    cleaning = small(data, FIRST)
    kept = re.sub(r"\[(model|train|evaluation)\]\n(?:[^\[].*\n)*", "", cleaning.read_text())
    cleaning.write_text(kept)
    code, _, err = headrace("run", cleaning, "--fresh")
    assert code == 2
    assert f"[sink] answer in {cleaning} needs a [model] that answers" in err
