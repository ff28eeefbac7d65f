"""Rows held out of a run: the same contents, whatever the file is called, in whatever order its
rows and columns stand, and whoever else reads it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.run import Run
from tests.pipelines.conftest import Rows, Small

LAG = '[scrub.lag]\ncolumn = "b"\ntime = "n"\nevery = 1\nsteps = [1]\n'
EXPORT = "[export]\nholdout = 0.2\ncompress = { candidates = [] }\n"


@pytest.fixture
def held(small: Small, tmp_path: Path) -> Callable[..., pl.DataFrame]:
    """Trains on rows in a file of that name; the rows that were held out."""

    def run(frame: pl.DataFrame, name: str, *changes: tuple[str, str]) -> pl.DataFrame:
        data = tmp_path / name
        data.parent.mkdir(exist_ok=True)
        frame.write_parquet(data)
        made = Run(small(data, *changes, more=EXPORT))
        made.run(fresh=True)
        assert made.parts.judging.holdout is not None
        found = made.parts.judging.holdout.frame()
        assert found is not None
        return found

    return run


def test_the_same_contents_are_held_out(held: Callable[..., pl.DataFrame], rows: Rows) -> None:
    frame = rows(1_500)
    first = held(frame, "a.parquet")
    other = frame.reverse().with_columns(n=pl.lit(0, pl.Int64)).select(reversed(frame.columns))
    columns = ("[sink]\n", '[sink]\ncolumns = ["key"]\n')
    moved = held(other, "b/z.parquet", columns)
    own = ["a", "b", "key", "y"]
    assert 200 <= first.height <= 400
    assert first.select(own).sort(own).equals(moved.select(own).sort(own))


def test_what_was_held_out_is_not_learned_when_it_comes_again(
    held: Callable[..., pl.DataFrame],
    rows: Rows,
    tmp_path: Path,
    totals: Callable[[Path], Any],
) -> None:
    """All rows come twice, in other batches: their contents are learned twice or not at all."""
    frame = rows(1_200)
    found = held(pl.concat([frame, frame.sample(fraction=1, shuffle=True, seed=1)]), "a.parquet")
    assert found["n"].n_unique() == found.height
    assert totals(tmp_path / "small.toml").predicted == 2 * found.height


def test_behind_a_stage_that_learns_place_decides(small: Small, rows: Rows, tmp_path: Path) -> None:
    """Its columns are others in every epoch, and would hold out other rows."""
    lag = '[scrub.lag]\ntime = "n"\ncolumn = "y"\nby = ["key"]\nevery = 1\nsteps = [1]\n'
    rows(600).write_parquet(tmp_path / "a.parquet")
    file = small(tmp_path / "a.parquet", ("[scrub.missing]", lag + "[scrub.missing]"), more=EXPORT)
    run = Run(file)
    run.run()
    again = Run(file)
    assert run.parts.judging.holdout is not None
    assert again.parts.judging.holdout is not None
    held = run.parts.judging.holdout.frame()
    assert held is not None
    assert 60 <= held.height <= 180
    assert again.parts.judging.holdout.select(held.with_columns(y=0.0)).all()


@pytest.mark.parametrize("stage", ["", LAG])
def test_it_is_said_where_rows_are_held_out_by_place(
    small: Small, rows: Rows, tmp_path: Path, caplog: pytest.LogCaptureFixture, stage: str
) -> None:
    rows(20).write_parquet(tmp_path / "a.parquet")
    first = ("[scrub.missing]", f"{stage}[scrub.missing]")
    run = Run(small(tmp_path / "a.parquet", first, more=EXPORT))
    with caplog.at_level("INFO"):
        run.assemble()
    said = "not by content: no model file can hold the state of [scrub.lag]."
    assert (said in caplog.text) == bool(stage)
