"""A rare class from end to end: a threshold for an aim, every probability, honest figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

from engine.run import Run
from tests.pipelines.conftest import Headrace

PIPELINE = """
name = "rare"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/data.parquet"
epochs = {epochs}
[scrub.standardize]
columns = {numbers}
[loader]
batch_rows = {batch_rows}
[model]
task = "binary"
target = "y"
classes = ["no", "yes"]
numeric = {numbers}
layers = {layers}
{model}
[train]
optimizer = "adam"
lr = {lr}
threads = 1
[export]
holdout = {holdout}
[export.compress]
candidates = []
confidence = 0.9999
[sink]
kind = "files"
path = "{folder}/out"
columns = ["y"]
{sink}
"""


def rows(n: int, seed: int) -> pl.DataFrame:
    """One in ten says yes, and two numbers tell which a little."""
    rng = np.random.default_rng(seed)
    yes = rng.random(n) < 0.1
    numbers = rng.normal(size=(n, 2)) + 1.2 * yes[:, None]
    return pl.DataFrame(numbers, schema=["a", "b"]).with_columns(
        y=pl.Series(np.where(yes, "yes", "no"))
    )


def pipeline(folder: Path, **changes: object) -> Path:
    rest = {
        "epochs": 1,
        "layers": [8],
        "lr": 0.01,
        "holdout": 0.2,
        "batch_rows": 250,
        "numbers": '["a", "b"]',
        "model": "",
        "sink": "",
    }
    file = folder / "rare.toml"
    file.write_text(PIPELINE.format(folder=folder, **{**rest, **changes}))
    return file


def of(properties: list[onnx.StringStringEntryProto]) -> dict[str, str]:
    return {prop.key: prop.value for prop in properties}


def test_labels_follow_the_threshold_in_training_in_the_file_and_in_serving(
    tmp_path: Path, headrace: Headrace
) -> None:
    rows(5_000, 0).write_parquet(tmp_path / "data.parquet")
    file = pipeline(tmp_path, model="threshold = {recall = 0.8}", sink="probabilities = true")
    code, out, _ = headrace("run", file)
    assert code == 0
    for words in ("rare: yes", "average precision", "recall at a precision of 0.5", "Brier score"):
        assert words in out
    assert "confusion" in out
    trained = pl.read_parquet(tmp_path / "out" / "*.parquet")
    assert (trained["probability_no"] + trained["probability_yes"] - 1).abs().max() < 1e-12  # type: ignore[operator]
    late = trained.tail(2_000)
    true = late.filter(pl.col("y") == "yes")
    # Chosen by what models gave held-out rows so far, which were worse ones.
    assert (true["prediction"] == "yes").mean() > 0.5  # type: ignore[operator]
    assert (true["probability_yes"] > 0.5).mean() < 0.45  # type: ignore[operator]

    model = tmp_path / "run" / "model.onnx"
    threshold = float(of(onnx.load(model).metadata_props)["threshold"])
    assert 0.01 < threshold < 0.3
    fresh = rows(5_000, 1)
    fresh.write_parquet(tmp_path / "new.parquet")
    done = headrace(
        "predict", model, "--input", tmp_path / "new.parquet", "--output", tmp_path / "scored",
        "--set", "sink.probabilities=true",
    )  # fmt: skip
    assert done[0] == 0
    scored = pl.read_parquet(tmp_path / "scored" / "*.parquet")
    assert scored["prediction"].to_list() == [
        "yes" if p > threshold else "no" for p in scored["probability_yes"]
    ]
    recall = (scored.filter(pl.col("y") == "yes")["prediction"] == "yes").mean()
    assert recall == pytest.approx(0.8, abs=0.2)  # five deviations of a hundred held-out rows
    assert not (scored["probability_yes"] > 0.5).all()

    # Another threshold is no other model: the run goes on, and the file says the new one.
    code, _, err = headrace("run", pipeline(tmp_path, model="threshold = 0.25"))
    assert code == 0
    assert '"message": "resumed"' in err
    assert of(onnx.load(model).metadata_props)["threshold"] == "0.25"


@pytest.mark.full
def test_held_out_rows_say_what_rows_never_seen_say_also_after_fifteen_epochs(
    tmp_path: Path,
) -> None:
    """A net that learns 400 rows by heart, with labels that are noise by a third."""
    rng = np.random.default_rng(0)

    def noisy(n: int) -> pl.DataFrame:
        numbers = rng.normal(size=(n, 12))
        yes = (numbers[:, 0] > 0) ^ (rng.random(n) < 0.3)
        return pl.DataFrame(numbers, schema=[f"x{i}" for i in range(12)]).with_columns(
            y=pl.Series(np.where(yes, "yes", "no"))
        )

    noisy(800).write_parquet(tmp_path / "data.parquet")
    file = pipeline(
        tmp_path, epochs=15, layers=[128, 64], holdout=0.5, batch_rows=40, numbers='["x*"]'
    )
    run = Run(file)
    summary = run.run()
    assert summary.totals.read == 800 * 15
    assert run.parts.judging.holdout is not None
    held = run.parts.judging.holdout.frame()
    assert held is not None
    assert held.height == held["_position"].n_unique() == summary.totals.predicted // 15
    compression = summary.compression
    assert compression is not None
    error = compression.candidates[0].figures[0]
    assert (error.name, compression.rows + compression.calibration) == ("error", held.height)

    from models.serving.predictor import OnnxPredictor

    predictor = OnnxPredictor(OnnxPredictor.Settings(model=str(tmp_path / "run" / "model.onnx")))

    def wrong(frame: pl.DataFrame) -> float:
        said = predictor.features.prediction_columns(predictor.scores(frame))[0]
        return float((said != frame["y"]).to_numpy().mean())

    assert error.low <= wrong(noisy(20_000)) <= error.high
    data = pl.read_parquet(tmp_path / "data.parquet").with_row_index("at")
    learned = data.filter(~pl.col("at").is_in(held["_position"].implode()))
    assert wrong(learned) < error.low  # what was learned proves nothing


def test_a_baseline_that_wins_is_said_and_a_short_stream_ends_well(
    tmp_path: Path, headrace: Headrace
) -> None:
    """Ten rows, one class of them rare: exit 0, a model, and the words."""
    rows(40, 2).write_parquet(tmp_path / "data.parquet")
    file = pipeline(tmp_path, model='threshold = "f1"', holdout=0.02, lr=1e-6)
    code, out, err = headrace("run", file)
    assert code == 0
    assert re.search(r"The (baseline 'majority|most frequent) class'? is no worse than the", out)
    assert "No compressed model was judged, and float32 serves" in out
    assert "raise [export] holdout." in out
    assert "it stays 0.5" in err
    assert (tmp_path / "run" / "model.onnx").is_file()
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["classes"] == ["no", "yes"]
    assert sum(group["rows"] for group in report["all"]["reliability"]) == 40
