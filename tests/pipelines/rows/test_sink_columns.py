"""`[sink] columns` may name what the model adds, in training, serving and `check`."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from tests.pipelines.conftest import Headrace

TRAIN = """
name = "train"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/data.csv"
[model]
target = "y"
classes = ["no", "yes"]
numeric = ["a"]
[train]
threads = 1
[export]
[sink]
kind = "files"
path = "{folder}/trained"
columns = {columns}
"""
SERVE = """
name = "serve"
folder = "{folder}/serving"
[source]
kind = "files"
path = "{folder}/data.csv"
[infer]
model = "{folder}/run/model.onnx"
[sink]
kind = "files"
path = "{folder}/served"
columns = {columns}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    frame = pl.DataFrame({"id": range(60), "a": [float(i % 7) for i in range(60)]})
    frame = frame.with_columns(
        y=pl.when(pl.col("a") > 3).then(pl.lit("yes")).otherwise(pl.lit("no"))
    )
    frame.write_csv(tmp_path / "data.csv")
    return tmp_path


def test_what_the_model_adds_can_be_named(folder: Path, headrace: Headrace) -> None:
    file = folder / "p.toml"
    trained = [
        ('["id"]', ["id", "prediction", "probability"]),
        ('["prediction", "id"]', ["prediction", "id"]),
    ]
    served = [
        ('["id"]', ["id", "prediction", "probability", "model_version"]),
        ('["probability", "model_version"]', ["probability", "model_version"]),
    ]
    for text, place, cases in ((TRAIN, "trained", trained), (SERVE, "served", served)):
        for asked, expected in cases:
            file.write_text(text.format(folder=folder, columns=asked))
            assert headrace("check", file)[0] == 0
            assert headrace("run", file, "--fresh")[0] == 0
            rows = pl.read_parquet(folder / place / "*.parquet")
            assert rows.columns == expected
            assert rows.height == 60


def test_what_nobody_adds_is_refused(folder: Path, headrace: Headrace) -> None:
    file = folder / "p.toml"
    for asked, near in (("predicton", "prediction"), ("model_version", None)):
        file.write_text(TRAIN.format(folder=folder, columns=f'["{asked}"]'))
        for command in ("check", "run"):
            code, out, err = headrace(command, file)
            assert code == 2
            said = " ".join((out + err).split())
            assert f"'{asked}'" in said
            assert near is None or f"'{near}'" in said


def test_an_empty_list_is_what_the_model_adds(folder: Path, headrace: Headrace) -> None:
    """Where nothing adds a column, there is nothing to write."""
    file = folder / "p.toml"
    file.write_text(TRAIN.format(folder=folder, columns="[]"))
    code, _, err = headrace("run", file)
    assert code == 0, err
    rows = pl.read_parquet(folder / "trained" / "*.parquet")
    assert rows.columns == ["prediction", "probability"]
    clean = SERVE.format(folder=folder, columns="[]")
    file.write_text(clean.replace("[infer]", "").replace(f'model = "{folder}/run/model.onnx"', ""))
    for command in ("check", "run"):
        code, _, err = headrace(command, file)
        assert code == 2
        assert "[sink] columns = []" in err
    assert not (folder / "served").exists()
