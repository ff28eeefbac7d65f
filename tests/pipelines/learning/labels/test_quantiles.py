"""Several quantiles of a regression: learned together, judged by their coverage, served as columns
of their own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from engine.interpret import Interpretation, interpret, page, terminal
from engine.run import Run
from engine.types import Features, UserError
from tests.pipelines.conftest import Headrace
from tests.pipelines.runs.test_crash import finish_through_stops, same, state

PIPELINE = """
name = "bands"
folder = "{folder}"
[source]
kind = "files"
path = "{data}"
[model]
target = "y"
numeric = ["x"]
{model}
[train]
loss = "quantile"
quantiles = [0.1, 0.5, 0.9]
{train}
[loader]
batch_rows = 200
[checkpoint]
interval_batches = 4
[sink]
kind = "files"
path = "{folder}/out"
{more}
"""
NETWORK = "lr = 0.01\nreplay_rows = 0"
ROWS = 9_000
NORMAL = 1.2815516
"""The 0.9 quantile of the normal distribution."""
NAMES = ("prediction", "prediction_q10", "prediction_q50", "prediction_q90")
Write = Callable[..., Path]


def deviation(x: pl.Series) -> pl.Series:
    """Of the target: four times as large where x is 2 as where it is 0."""
    return 0.5 + 0.75 * x


@pytest.fixture
def bands(tmp_path: Path) -> Write:
    """Writes the pipeline's file, by the name of its folder; all on the same rows."""
    rng = np.random.default_rng(0)
    x = pl.Series(rng.uniform(0, 2, ROWS))
    y = 30 + 5 * x + deviation(x) * pl.Series(rng.normal(size=ROWS))
    pl.DataFrame({"x": x, "y": y}).write_csv(tmp_path / "rows.csv")

    def write(
        name: str = "whole", model: str = "layers = [16]", train: str = NETWORK, more: str = ""
    ) -> Path:
        file = tmp_path / f"{name}.toml"
        folder, data = tmp_path / name, tmp_path / "rows.csv"
        text = PIPELINE.format(folder=folder, data=data, model=model, train=train, more=more)
        file.write_text(text)
        return file

    return write


def require_covered(rows: pl.DataFrame) -> None:
    """Each interval holds about four of five targets, where they spread little and where much: one
    of a width for all would hold about 0.97 and 0.62. Five standard deviations of that share of
    the rows, and 0.03 for what is not learned yet."""
    for half in (rows.filter(pl.col("x") < 1), rows.filter(pl.col("x") >= 1)):
        inside = half.select(pl.col("y").is_between("prediction_q10", "prediction_q90")).to_series()
        assert inside.mean() == pytest.approx(0.8, abs=5 * (0.16 / half.height) ** 0.5 + 0.03)
    width = (rows["prediction_q90"] - rows["prediction_q10"]) / (2 * NORMAL * deviation(rows["x"]))
    assert width.mean() == pytest.approx(1, abs=0.15)
    assert rows["prediction"].equals(rows["prediction_q50"])
    assert (rows["prediction_q10"] <= rows["prediction"]).all()
    assert (rows["prediction"] <= rows["prediction_q90"]).all()


@pytest.mark.parametrize(
    ("model", "train"),
    [
        ('layers = [16]\ntarget_transform = ["log1p", "standard"]', NETWORK),
        ('kind = "module"\nhead = {layers = [{kind = "dense", width = 16}]}', NETWORK),
        ('kind = "trees"\nnum_trees = 20', "min_data_in_leaf = 200"),
    ],
    ids=["tabular, log", "layers", "trees"],
)
def test_intervals_hold_as_many_targets_as_asked_for(
    bands: Write, headrace: Headrace, model: str, train: str, tmp_path: Path
) -> None:
    file = bands(model=model, train=train)
    code, _, err = headrace("check", file)
    assert code == 0, err
    report = Run(file).run().report
    written = pl.read_parquet(tmp_path / "whole" / "out" / "*.parquet")
    assert set(NAMES) < set(written.columns)
    require_covered(written.tail(4_000))
    inside = written["y"].is_between(written["prediction_q10"], written["prediction_q90"])
    assert report["all"]["coverage"] == pytest.approx(inside.mean())
    assert report["all"]["coverage_asked"] == 0.8
    page = (tmp_path / "whole" / "metrics.prom").read_text()
    for name in ("pinball", "coverage", "coverage_asked", "width"):
        assert f'headrace_quality{{metric="{name}",window="window"}}' in page


def test_they_are_gated_served_and_interpreted(
    bands: Write, headrace: Headrace, tmp_path: Path
) -> None:
    file = bands(more="[export]\nholdout = 0.2\n[export.compress]\nrounds = 3\n")
    summary = Run(file).run()
    assert summary.compression is not None
    assert summary.compression.measure == "pinball loss"
    figures = summary.compression.candidates[0].figures
    assert [figure.name for figure in figures[:3]] == ["pinball loss", "coverage error", "MAE"]
    served = tmp_path / "served"
    code, _, err = headrace(
        "predict",
        tmp_path / "whole" / "model.onnx",
        "--input",
        tmp_path / "rows.csv",
        "--output",
        served,
    )
    assert code == 0, err
    answers = pl.read_parquet(served / "*.parquet")
    assert answers.columns[-5:] == [*NAMES, "model_version"]
    require_covered(answers)
    found = interpret(file, repeats=3)
    assert (found.metric, found.attributions[0].feature) == ("pinball", "x")
    require_coverage(found, {"q10": 0.1, "q50": 0.5, "q90": 0.9, "q10 to q90": 0.8})
    by_file = interpret(serving(tmp_path), rows=2_000, repeats=3)
    require_coverage(by_file, {"q10": 0.1, "q50": 0.5, "q90": 0.9, "q10 to q90": 0.8})


def serving(folder: Path) -> Path:
    """Write a pipeline that serves the model on the rows it has learned."""
    file = folder / "serve.toml"
    file.write_text(
        f'name = "serve"\nfolder = "{folder}/serve"\n'
        f'[source]\nkind = "files"\npath = "{folder}/rows.csv"\n'
        f'[infer]\nmodel = "{folder}/whole/model.onnx"\n'
        f'[sink]\nkind = "files"\npath = "{folder}/served_again"\n'
    )
    return file


def require_coverage(found: Interpretation, asked: dict[str, float]) -> None:
    """The terminal, the JSON and the page have the share of targets for each quantile, and say
    nothing of means."""
    assert {each.name: each.asked for each in found.quantiles} == asked
    assert found.calibrations == ()
    for each in found.quantiles:
        assert each.whole.observed == pytest.approx(each.asked, abs=0.08)
    plain = json.loads(json.dumps(found.plain()))
    assert [each["whole"]["observed"] for each in plain["quantiles"]] == [
        each.whole.observed for each in found.quantiles
    ]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(*terminal.parts(found))
    for text in (console.export_text(), page.page(found)):
        for each in found.quantiles:
            assert each.name in text
            assert f"{each.whole.observed:.1%}" in text


@pytest.mark.parametrize(
    ("model", "loss", "level"),
    [
        ("layers = [16]", 'loss = "quantile"\nquantile = 0.9', 0.9),
        ("layers = [16]", 'loss = "mae"', 0.5),
        ('kind = "trees"\nnum_trees = 5', 'loss = "mae"', 0.5),
    ],
    ids=["one quantile", "a median", "a median of trees"],
)
def test_one_value_that_is_a_quantile_is_judged_as_one(
    model: str, loss: str, level: float, bands: Write, tmp_path: Path
) -> None:
    train = "replay_rows = 0" if "layers" in model else ""
    file = bands(model=model, train=train, more="[export]\nholdout = 0.2\ncompress = false\n")
    text = file.read_text().replace('loss = "quantile"\nquantiles = [0.1, 0.5, 0.9]', loss)
    file.write_text(text)
    Run(file).run()
    for way in (file, serving(tmp_path)):
        found = interpret(way, rows=500, repeats=3)
        assert [(each.asked, len(each.groups)) for each in found.quantiles] == [(level, 15)]
        assert found.metric == ("mae" if level == 0.5 else "pinball")
        assert not any("Values are not calibrated" in sentence for sentence in found.sentences)
        assert found.calibrations == ()


def test_names_are_those_that_avro_and_sql_take() -> None:
    features = Features(numeric=(), target="y", quantiles=(0.005, 0.07, 0.5, 0.975))
    names = [f"prediction_{name}" for name in ("q0_5", "q7", "q50", "q97_5")]
    assert features.prediction_names == ("prediction", *names)


@pytest.mark.full
def test_a_stopped_run_ends_where_an_uninterrupted_one_does(bands: Write) -> None:
    whole, stopped = bands("whole"), bands("stopped")
    Run(whole).run()
    finish_through_stops(stopped, 2, 11)
    same(state(whole)["work"], state(stopped)["work"])


def test_other_quantiles_are_another_model(bands: Write, caplog: pytest.LogCaptureFixture) -> None:
    """What is refused is not first said to hold for what comes."""
    file = bands()
    Run(file).run()
    caplog.clear()
    file.write_text(file.read_text().replace("[0.1, 0.5, 0.9]", "[0.2, 0.5, 0.9]"))
    said = r"\[train\] quantiles = \[0.1, 0.5, 0.9\].*: change it back, or start over with --fresh"
    with pytest.raises(UserError, match=said):
        Run(file).run()
    assert not [record for record in caplog.records if "has changed" in record.message]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.quantiles=[0.9,0.5]", "that rise, as in [0.1, 0.5, 0.9], got [0.9, 0.5]"),
        ("train.quantiles=[0.1,0.9]", "expected 0.5 among quantiles"),
        ('train.quantiles=["0.1",0.5]', "expected numbers, got the text '0.1'"),
        ("train.quantile=0.3", "take one of them out"),
        ("train.loss='mse'", "quantiles is for loss = 'quantile', and loss is 'mse'"),
        ("model.target=['y','x']", "are of one target, and [model] target names 2"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    setting: str, said: str, bands: Write, headrace: Headrace
) -> None:
    code, _, err = headrace("check", bands(), "--set", setting)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize("loss", ['loss = "quantile"', 'loss = "poisson"', 'loss = "mae"'])
def test_a_loss_of_numbers_says_that_the_task_is_regression(
    loss: str, bands: Write, tmp_path: Path
) -> None:
    kind = "" if "poisson" in loss else 'kind = "trees"'
    file = bands(model=kind, train="")
    text = file.read_text().replace('loss = "quantile"\nquantiles = [0.1, 0.5, 0.9]', loss)
    file.write_text(text)
    pl.DataFrame({"x": [1.0, 2.0, 3.0], "y": [0, 1, 1]}).write_csv(tmp_path / "rows.csv")
    label = Run(file).parts.model.label
    assert (label.task, label.is_left_to_type) == ("regression", False)  # no hint of classes
    pl.DataFrame({"x": [1.0, 2.0], "y": [None, None]}).write_csv(tmp_path / "rows.csv")
    with pytest.raises(UserError, match=r"\[train\] loss in .* expects numbers in target 'y'"):
        _ = Run(file).parts.model.features
