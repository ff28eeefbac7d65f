"""Conditions of slices: over one row each; a row on which one fails is left out of the slice."""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl
import pytest

from engine.run import Run
from engine.types import UserError

PIPELINE = """
name = "slices"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/data.csv"
[source.schema]
a = "float64"
text = "string"
y = "float64"
[loader]
batch_rows = 50
[model]
kind = "linear"
target = "y"
task = "regression"
numeric = ["a"]
[evaluation.slices]
own = "{condition}"
all_rows = "true"
"""


def run_with(folder: Path, condition: str) -> Run:
    a = [float(i % 7) for i in range(200)]
    text = ["none" if i in (60, 150) else str(i % 10) for i in range(200)]
    pl.DataFrame({"a": a, "text": text, "y": a}).write_csv(folder / "data.csv")
    file = folder / "p.toml"
    file.write_text(PIPELINE.format(folder=folder, condition=condition))
    return Run(file)


def test_a_row_on_which_a_condition_fails_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        slices = run_with(tmp_path, "CAST(text AS INT) < 5").run().report["slices"]
    assert slices["own"]["rows"] == 100 - 2
    assert slices["all_rows"]["rows"] == 200
    told = [record.getMessage() for record in caplog.records if "slices" in record.getMessage()]
    assert len(told) == 1
    assert told[0].startswith("[evaluation.slices] own fails on a row")


@pytest.mark.parametrize(
    ("condition", "why"),
    [
        ("a > avg(a)", "looks at other rows"),
        ("a + 1", "expects true or false, got float64"),
        ("b > 1", "needs column 'b'"),
        ("a LIKE 'x'", "cannot be done"),
    ],
)
def test_what_is_no_condition_on_a_row_is_refused(condition: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"\[evaluation.slices\] own.*{why}"):
        run_with(tmp_path, condition).run()
