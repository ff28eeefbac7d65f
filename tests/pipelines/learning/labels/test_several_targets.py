"""Several targets of one model: learned together, each judged, served as columns of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.run import Run
from tests.pipelines.conftest import Headrace
from tests.pipelines.runs.test_crash import finish_through_stops, same, state

PIPELINE = """
name = "both"
folder = "{folder}"
[source]
kind = "files"
path = "{data}"
[model]
target = ["heat", "power"]
numeric = ["x"]
{model}
[train]
lr = 0.01
[loader]
batch_rows = 50
[checkpoint]
interval_batches = 4
[sink]
kind = "files"
path = "{folder}/out"
{more}
"""
Write = Callable[..., Path]


def rows(n: int = 1_500) -> pl.DataFrame:
    """Two targets of one number; each is missing in every third row or so, and every 100th row has
    neither."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    heat, power = 20 + 5 * x, 3_000 - 1_000 * x
    lacks = rng.integers(0, 3, n)
    frame = pl.DataFrame({"x": x, "heat": heat, "power": power})
    none = pl.int_range(n, eager=True) % 100 == 0
    return frame.with_columns(
        heat=pl.when(~(pl.Series(lacks == 0) | none)).then(pl.col("heat")),
        power=pl.when(~(pl.Series(lacks == 1) | none)).then(pl.col("power")),
    )


@pytest.fixture
def both(tmp_path: Path) -> Write:
    """Writes the pipeline's file, by the name of its folder; all on the same rows."""
    rows().write_csv(tmp_path / "rows.csv")

    def write(name: str = "whole", model: str = "layers = [8]", more: str = "") -> Path:
        file = tmp_path / f"{name}.toml"
        folder, data = tmp_path / name, tmp_path / "rows.csv"
        file.write_text(PIPELINE.format(folder=folder, data=data, model=model, more=more))
        return file

    return write


def judged(file: Path, folder: Path) -> Any:
    """Run it; the figures of each target are those of what is written."""
    summary = Run(file).run()
    assert summary.totals.rejected == 15
    report = summary.report
    assert set(report["slices"]) == {"heat", "power"}
    written = pl.read_parquet(folder / "out" / "*.parquet")
    for name in ("heat", "power"):
        error = (written[name] - written[f"prediction_{name}"]).abs().mean()
        assert report["slices"][name]["mae"] == pytest.approx(error)
        assert report["slices"][name]["rows"] == written[name].count()
        assert report["slices"][name]["r2"] > 0.5
    assert "prediction" not in written.columns
    return summary


def test_both_are_learned_judged_gated_and_served(
    both: Write, headrace: Headrace, tmp_path: Path
) -> None:
    file = both(more="[export]\nholdout = 0.3\n[export.compress]\nrounds = 3\n")
    code, _, err = headrace("check", file)
    assert code == 0, err
    summary = judged(file, tmp_path / "whole")
    assert summary.compression is not None
    names = {figure.name for figure in summary.compression.candidates[0].figures}
    assert {"MAE of heat", "MAE of power"} <= names
    served = tmp_path / "served"
    model_file = tmp_path / "whole" / "model.onnx"
    code, _, err = headrace(
        "predict", model_file, "--input", tmp_path / "rows.csv", "--output", served
    )
    assert code == 0, err
    answers = pl.read_parquet(served / "*.parquet")
    assert answers.height == 1_500
    wrong = (answers["prediction_power"] - (3_000 - 1_000 * answers["x"])).abs()
    assert np.median(wrong.to_numpy()) < 200
    code, _, err = headrace("interpret", file)
    assert code == 2
    assert "explains the predictions of one target" in err


def test_a_network_of_layers_has_a_score_for_each(both: Write, tmp_path: Path) -> None:
    judged(both(model='kind = "module"\nhead = {}'), tmp_path / "whole")


@pytest.mark.full
def test_a_stopped_run_ends_where_an_uninterrupted_one_does(both: Write) -> None:
    whole, stopped = both("whole"), both("stopped")
    Run(whole).run()
    finish_through_stops(stopped, 2, 11)
    same(state(whole)["work"], state(stopped)["work"])


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ('kind = "linear"', "names 2 columns, and kind = 'linear' predicts one"),
        ('kind = "trees"', "names 2 columns, and kind = 'trees' predicts one"),
        ('task = "binary"', "predicted together as numbers, and [model] asks for classes"),
        ('numeric = ["x", "heat"]', "reads its target 'heat' as a feature"),
        ('target = ["heat", "heat"]', "expected different columns"),
        ('target = ["heat", "pwoer"]', "Did you mean 'power'?"),
        ("[evaluation.slices]\nheat = 'x > 1'", "heat is what the rows with that target"),
        ("[evaluation.baselines]\nold = 'x'", "are predictions of one target"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    model: str, said: str, both: Write, headrace: Headrace
) -> None:
    file = both(model=model)
    for key in ("numeric", "target"):
        if model.startswith(key):
            lines = file.read_text().splitlines()
            file.write_text(
                "\n".join(x for x in lines if not x.startswith(key) or x in model.splitlines())
            )
    code, _, err = headrace("check", file)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err


def test_a_list_of_one_is_one(both: Write) -> None:
    file = both()
    file.write_text(file.read_text().replace('["heat", "power"]', '["heat"]'))
    assert Run(file).features.target == "heat"
    assert Run(file).features.prediction_names == ("prediction",)
