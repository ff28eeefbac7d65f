"""``loss = "contrastive"``: vectors that tell classes apart, in the model file and as what
prototypes of later classes stand on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
from numpy.typing import NDArray

from engine.interpret import interpret
from engine.run import Run
from tests.pipelines.conftest import Headrace
from tests.pipelines.runs.test_crash import finish_through_stops, same, state

PIPELINE = """
name = "vectors"
folder = "{folder}"
[source]
kind = "files"
path = "{data}"
[model]
target = "y"
task = "multiclass"
numeric = ["x*"]
{model}
[train]
loss = "contrastive"
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
KNOWN, LATER = [f"c{i}" for i in range(12)], [f"c{i}" for i in range(12, 16)]
NETWORK = f"classes = {json.dumps(KNOWN)}\nlayers = [32]\nvector_width = 16"
Write = Callable[..., Path]


def rows(n: int, classes: list[str], seed: int) -> pl.DataFrame:
    """Three numbers that say the class, and nine of noise that spread as much."""
    places = np.random.default_rng(0).uniform(-1, 1, (16, 3))
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n)
    at = places[[int(label[1:]) for label in labels]] + rng.normal(scale=0.1, size=(n, 3))
    x = np.concatenate([at, rng.normal(size=(n, 9))], axis=1).round(4)
    return pl.DataFrame({f"x{i}": x[:, i] for i in range(12)}).with_columns(y=pl.Series(labels))


@pytest.fixture
def vectors(tmp_path: Path) -> Write:
    """Writes the pipeline's file, by the name of its folder; all on the same rows."""
    rows(1_600, KNOWN, 1).write_csv(tmp_path / "rows.csv")

    def write(name: str = "whole", model: str = NETWORK, train: str = "", more: str = "") -> Path:
        file = tmp_path / f"{name}.toml"
        folder, data = tmp_path / name, tmp_path / "rows.csv"
        text = PIPELINE.format(folder=folder, data=data, model=model, train=train, more=more)
        file.write_text(text)
        return file

    return write


def served(headrace: Headrace, model: Path, data: pl.DataFrame, out: Path) -> pl.DataFrame:
    data.write_csv(out.with_suffix(".csv"))
    code, _, err = headrace("predict", model, "--input", out.with_suffix(".csv"), "--output", out)
    assert code == 0, err
    return pl.read_parquet(out / "*.parquet")


def share(equal: pl.Series) -> float:
    return float(equal.cast(pl.Float64).to_numpy().mean())


def matrix(answers: pl.DataFrame) -> NDArray[Any]:
    return answers["vector"].to_numpy()


def test_vectors_are_in_the_model_file(vectors: Write, headrace: Headrace, tmp_path: Path) -> None:
    """Served without a label; alone or beside others the same; the prediction is the class whose
    rows are nearest on average."""
    file = vectors(more="[export]\nholdout = 0.1\ncompress = false\n")
    code, _, err = headrace("check", file)
    assert code == 0, err
    report = Run(file).run().report
    assert report["window"]["accuracy"] > 0.9
    model, new = tmp_path / "whole" / "model.onnx", rows(300, KNOWN, 2)
    answers = served(headrace, model, new.drop("y"), tmp_path / "served")
    added = ["prediction", "probability", "vector", "model_version"]
    assert answers.columns[-4:] == added
    assert answers.schema["vector"] == pl.Array(pl.Float32, 16)
    assert "vector" not in pl.read_parquet(tmp_path / "whole" / "out" / "*.parquet").columns
    found = matrix(answers)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert share(answers["prediction"] == new["y"]) > 0.93
    own = np.stack([found[(new["y"] == name).to_numpy()].mean(axis=0) for name in KNOWN])
    nearest = pl.Series([KNOWN[i] for i in (found @ own.T).argmax(axis=1)])
    assert share(nearest == answers["prediction"]) > 0.95
    session = onnxruntime.InferenceSession(model)
    feed = {f"x{i}": new[f"x{i}"].to_numpy() for i in range(12)}
    for n in (1, 2, 3, 64):
        part = session.run(["vector"], {name: values[:n] for name, values in feed.items()})[0]
        np.testing.assert_allclose(part, found[:n], atol=1e-6)
    feed["x3"] = np.where(np.arange(300) == 5, np.nan, feed["x3"])
    lacking = np.isnan(session.run(["vector"], feed)[0]).all(axis=1)
    assert np.flatnonzero(lacking).tolist() == [5]  # a row that training would reject


def test_prototypes_of_later_classes_stand_on_the_vectors(
    vectors: Write, headrace: Headrace, tmp_path: Path
) -> None:
    """The vectors were learned on other classes. Raw numbers are mostly noise: their nearest class
    mean is right for about 0.88 of these rows."""
    Run(vectors(more="[export]\ncompress = false\n")).run()
    rows(200, LATER, 3).write_csv(tmp_path / "later.csv")
    accuracies = {}
    embedding = f'embedding = "{tmp_path}/whole/model.onnx"\nembedding_output = "vector"'
    for name, own in (("raw", ""), ("embedded", embedding)):
        file = tmp_path / f"{name}.toml"
        text = PIPELINE.format(
            folder=tmp_path / name, data=tmp_path / "later.csv", train="", more="[export]\n",
            model=f'kind = "prototypes"\nclasses = {json.dumps(LATER)}\n{own}',
        )  # fmt: skip
        file.write_text(text.replace('loss = "contrastive"\n', ""))
        accuracies[name] = Run(file).run().report["all"]["accuracy"]
    assert accuracies["embedded"] > 0.93
    assert accuracies["embedded"] > accuracies["raw"] + 0.03
    more = rows(200, LATER, 4)
    answers = served(headrace, tmp_path / "embedded" / "model.onnx", more, tmp_path / "served")
    assert share(answers["prediction"] == more["y"]) > 0.95


def test_they_are_gated_and_interpreted(vectors: Write) -> None:
    """By the classes that they tell apart."""
    file = vectors(more="[export]\nholdout = 0.2\n[export.compress]\nrounds = 3\n")
    summary = Run(file).run()
    assert summary.compression is not None
    assert summary.compression.measure == "error"
    found = interpret(file, rows=300, repeats=3)
    assert {a.feature for a in found.attributions[:3]} == {"x0", "x1", "x2"}


GROWING = 'kind = "module"\nclasses = "grow"\nmax_classes = 14\nvector_width = 8'


@pytest.mark.full
@pytest.mark.parametrize("model", [NETWORK, GROWING], ids=["tabular", "layers, growing"])
def test_a_stopped_run_ends_where_an_uninterrupted_one_does(vectors: Write, model: str) -> None:
    whole, stopped = vectors("whole", model), vectors("stopped", model)
    Run(whole).run()
    finish_through_stops(stopped, 2, 5)
    same(state(whole)["work"], state(stopped)["work"])


def test_classes_that_come_late_are_known_by_their_first_rows(vectors: Write) -> None:
    """No weights of an output have to be learned: a mean is enough."""
    file = vectors(model='classes = "grow"\nmax_classes = 16\nlayers = [32]\nvector_width = 16')
    late = rows(100, LATER, 3)
    data = file.parent / "rows.csv"
    pl.concat([pl.read_csv(data), late]).write_csv(data)
    Run(file).run()
    written = pl.read_parquet(file.with_suffix("") / "out" / "*.parquet").tail(60)
    assert share(written["prediction"] == written["y"]) > 0.8


NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 12)

    def forward(self, numeric):
        return self.layer(numeric)
"""


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"train.loss": "'focal'"}, "[model] vector_width is for [train] loss = 'contrastive'"),
        ({"train.loss": "'focal'", "train.temperature": 0.2}, "temperature is for loss = 'contr"),
        ({"train.temperature": 0}, "temperature"),
        ({"model.vector_width": 1}, "vector_width"),
        (
            {"model.kind": "'module'", "model.module": "'net:Net'"},
            "returns scores of shape (2, 12) for numeric (2, 12) float32, expected a float tensor "
            "of shape (2, 16): a vector of each row, with [model] vector_width = 16 numbers",
        ),
        (
            {"model.kind": "'module'", "model.state": "{by = ['x0']}"},
            "[train] loss = 'contrastive' compares rows by themselves",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(
    settings: dict[str, Any], said: str, vectors: Write, headrace: Headrace, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET)
    kind = settings.get("model.kind", "")
    model = NETWORK.replace("layers = [32]\n", "") if kind else NETWORK
    given = [part for pair in settings.items() for part in ("--set", "{}={}".format(*pair))]
    code, _, err = headrace("check", vectors(model=model), *given)
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err
