"""``kind = "prototypes"``: classes appear while it runs, and travel in checkpoint, sink and model
file."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.run import Run
from tests.pipelines.conftest import Headrace
from tests.pipelines.runs.test_crash import finish, finish_through_kills, finish_through_stops, same
from tests.pipelines.runs.test_crash import state as saved_state

PLACES = {"ant": (0, 0), "bee": (9, 0), "cat": (0, 9), "dog": (9, 9), "elk": (20, 20)}
PIPELINE = """
name = "few"
folder = "{folder}"
[source]
kind = "files"
path = "{data}"
[model]
kind = "prototypes"
target = "label"
numeric = ["x", "y"]
{model}
[loader]
batch_rows = 40
[checkpoint]
interval_batches = 3
[sink]
kind = "files"
path = "{folder}/out"
{more}
"""
Write = Callable[..., Path]


def animals(n: int = 600) -> pl.DataFrame:
    """Points around a place for each class; ever more classes come."""
    rng = np.random.default_rng(1)
    known = np.minimum(2 + np.arange(n) * 4 // n, len(PLACES))
    names = [list(PLACES)[i] for i in rng.integers(0, known)]
    x, y = (np.array([PLACES[name] for name in names]) + rng.normal(size=(n, 2))).T.round(3)
    return pl.DataFrame({"x": x, "y": y, "label": names})


@pytest.fixture
def few(tmp_path: Path) -> Write:
    """Writes the pipeline's file, by the name of its folder; all on the same rows."""
    animals().write_csv(tmp_path / "rows.csv")

    def write(name: str = "whole", model: str = "", more: str = "") -> Path:
        file = tmp_path / f"{name}.toml"
        data = tmp_path / "rows.csv"
        text = PIPELINE.format(folder=tmp_path / name, data=data, model=model, more=more)
        file.write_text(text)
        return file

    return write


def written(file: Path) -> pl.DataFrame:
    return pl.read_parquet(file.with_suffix("") / "out" / "*.parquet")


def share_right(rows: pl.DataFrame) -> float:
    """The share of rows with the right prediction; one without any is wrong."""
    right = (rows["prediction"] == rows["label"]).fill_null(False)
    return float(right.cast(pl.Float64).to_numpy().mean())


def ends(file: Path) -> dict[str, Any]:
    saved = saved_state(file)
    parts = {part: saved[part] for part in ("positions", "totals", "work")}
    return {**parts, "rows": written(file)}


def test_classes_appear_with_their_first_example(few: Write, headrace: Headrace) -> None:
    file = few()
    code, out, err = headrace("check", file)
    assert code == 0, err
    assert "is ready to run" in out
    run = Run(file)
    summary = run.run()
    assert (summary.totals.learned, summary.totals.rejected) == (600, 0)
    rows = written(file).with_row_index()
    first = rows.group_by("label").agg(pl.col("index").min())
    assert rows["prediction"].null_count() == 1  # before the first row there was no class
    seen = rows.join(first, on="label").filter(pl.col("index") <= pl.col("index_right"))
    assert not (seen["prediction"] == seen["label"]).any()
    later = rows.join(first, on="label").filter(pl.col("index") > pl.col("index_right") + 5)
    assert share_right(later) > 0.98
    assert run.features.classes == tuple(first.sort("index")["label"])
    report = summary.report
    assert report["classes"] == list(run.features.classes)
    assert (
        report["all"]["accuracy"] == (rows["prediction"] == rows["label"]).fill_null(False).mean()
    )
    assert report["all"]["baselines"]["nearest neighbour"]["accuracy"] > 0.97
    assert sum(map(sum, report["all"]["confusion"])) == 599
    assert report["all"]["outside_confusion"] == [1, 0]
    names = (file.with_suffix("") / "metrics.prom").read_text()
    assert "headrace_classes 5.0" in names


def test_names_travel_in_the_model_file(few: Write, headrace: Headrace, tmp_path: Path) -> None:
    file = few(more="[export]\nholdout = 0.1\n")
    code, _, err = headrace("run", file)
    assert code == 0, err
    model, out = tmp_path / "whole" / "model.onnx", tmp_path / "predicted"
    code, _, err = headrace("predict", model, "--input", tmp_path / "rows.csv", "--output", out)
    assert code == 0, err
    served = pl.read_parquet(out / "*.parquet")
    assert share_right(served) > 0.98
    run = Run(file)
    assert run.restore()
    assert set(run.features.classes) == set(PLACES)
    code, _, err = headrace("interpret", file)
    assert code == 0, err


def test_a_stopped_run_ends_where_an_uninterrupted_one_does(few: Write) -> None:
    whole, stopped = few("whole"), few("stopped")
    Run(whole).run()
    finish_through_stops(stopped, 2, 7)
    same(ends(whole), ends(stopped))


@pytest.mark.full
@pytest.mark.slow
def test_a_killed_run_ends_where_an_uninterrupted_one_does(few: Write) -> None:
    whole, killed = few("whole"), few("killed")
    finish(whole)
    finish_through_kills(killed, killed.with_suffix("") / "checkpoints")
    same(ends(whole), ends(killed))


def test_the_class_not_seen_for_longest_leaves(
    few: Write, caplog: pytest.LogCaptureFixture
) -> None:
    file = few(model="max_classes = 3")
    run = Run(file)
    totals = run.run().totals
    assert (totals.learned, totals.rejected) == (600, 0)
    assert "max_classes = 3 is reached" in caplog.text
    report = run.evaluation.report()
    assert len(report["classes"]) == 3
    assert report["all"]["rows"] == 600
    rows = written(file)
    assert report["all"]["accuracy"] == pytest.approx(share_right(rows))
    page = (file.with_suffix("") / "metrics.prom").read_text()
    left = re.search(
        r"^headrace_classes_left_total\{reason=\"max_classes\"\} (\S+)$", page, re.MULTILINE
    )
    assert left is not None
    assert float(left[1]) >= 2
    newest = animals().with_row_index().group_by("label").agg(pl.col("index").max())
    newest = newest.sort("index").tail(3)
    assert set(run.features.classes) == set(newest["label"])


GROW = "[model.grow]\nmin_count = 4\nidle = 100\n"


def test_a_label_is_a_class_after_some_rows_and_until_it_is_idle(
    few: Write, headrace: Headrace, tmp_path: Path
) -> None:
    rows = animals()
    rare = pl.col("label").is_in(["ant", "bee"]) & (pl.int_range(pl.len()) > 350)
    rows.filter(~rare).write_csv(tmp_path / "rows.csv")
    file = few(model=GROW, more="[export]\nholdout = 1e-9\n")
    run = Run(file)
    summary = run.run()
    totals = summary.totals
    events = {name: n for (stage, name), n in totals.counts.items() if stage == "model"}
    assert events == {"new_classes": 5, "waiting_for_class": 15, "expired_classes": 2}
    assert (totals.predicted, totals.rejected) == (15, 0)
    assert totals.learned + totals.predicted == totals.read
    assert set(run.features.classes) == {"cat", "dog", "elk"}
    page = (file.with_suffix("") / "metrics.prom").read_text()
    assert 'headrace_classes_left_total{reason="idle"} 2.0' in page
    assert 'stage_events_total{event="waiting_for_class",stage="model"} 15.0' in page
    model, out = tmp_path / "whole" / "model.onnx", tmp_path / "predicted"
    code, _, err = headrace("predict", model, "--input", tmp_path / "rows.csv", "--output", out)
    assert code == 0, err
    assert set(pl.read_parquet(out / "*.parquet")["prediction"]) == {"cat", "dog", "elk"}


def test_classes_that_wait_and_leave_stop_and_go_on(few: Write, tmp_path: Path) -> None:
    timed = animals().with_columns(at=pl.int_range(pl.len()) // 3)
    timed.write_csv(tmp_path / "rows.csv")
    grow = '[model.grow]\nmin_count = 4\nidle = 4\ntime = "at"\n'
    whole, stopped = few("whole", grow), few("stopped", grow)
    totals = Run(whole).run().totals
    assert totals.counts["model", "expired_classes"] > 3
    assert totals.counts["model", "waiting_for_class"] > 20
    finish_through_stops(stopped, 2, 7)
    same(ends(whole), ends(stopped))


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ('task = "regression"', "", "expects numbers in target 'label'"),
        ('task = "binary"\nclasses = "grow"', "", "are for 'multiclass'"),
        ('distance = "manhattan"', "", "distance"),
        ("tempreature = 1", "", "Did you mean 'temperature'?"),
        ('classes = ["ant", "bee"]\nmax_classes = 4', "", "max_classes in"),
        ('classes = ["ant", "bee"]\n[model.grow]\nmin_count = 4', "", "grow in"),
        ('[model.grow]\nidle = "3d"', "", "name the column of the time"),
        ('[model.grow]\nidle = 9\ntime = "y"', "", "expects a datetime, date or integer column"),
        ('[model.grow]\nidle = 9\ntime = "at"', "", "at"),
        ('embedding = "gone.onnx"', "", "embedding 'gone.onnx' is no file"),
        ('weights = "w.pt"', "", "expected module beside weights"),
        ("", "probabilities = true", "new classes may appear"),
        ("", '[train.sampling]\nmethod = "over"', "needs to know the classes"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    model: str, more: str, said: str, few: Write, headrace: Headrace
) -> None:
    code, _, err = headrace("check", few(model=model, more=more))
    assert code == 2, err
    assert said in err
    assert "Traceback" not in err


def of_kind(file: Path, kind: str) -> Path:
    file.write_text(file.read_text().replace('"prototypes"', f'"{kind}"'))
    return file


def test_other_kinds_need_their_classes(few: Write, headrace: Headrace) -> None:
    file = of_kind(few(model='classes = "grow"'), "linear")
    code, _, err = headrace("check", file)
    assert code == 2
    assert "needs to know its classes" in err


def test_a_model_file_needs_two_classes(few: Write, headrace: Headrace, tmp_path: Path) -> None:
    file = few(more="[export]\n")
    animals().filter(pl.col("label") == "ant").write_csv(tmp_path / "rows.csv")
    code, _, err = headrace("run", file)
    assert code == 1
    assert "has seen 1 class, and a model file" in err


def test_a_network_learns_classes_as_they_come(
    few: Write, headrace: Headrace, tmp_path: Path
) -> None:
    file = of_kind(few(model='classes = "grow"\nmax_classes = 6', more="[export]\n"), "tabular")
    code, _, err = headrace("run", file)
    assert code == 0, err
    assert share_right(written(file).tail(100)) > 0.75
    model, out = tmp_path / "whole" / "model.onnx", tmp_path / "predicted"
    code, _, err = headrace("predict", model, "--input", tmp_path / "rows.csv", "--output", out)
    assert code == 0, err
    assert share_right(pl.read_parquet(out / "*.parquet")) > 0.8


@pytest.mark.full
def test_a_network_whose_classes_leave_stops_and_goes_on(few: Write) -> None:
    whole, stopped = (
        of_kind(
            few(name, 'classes = "grow"\nmax_classes = 3', "[train]\nreplay_rows = 0"), "tabular"
        )
        for name in ("whole", "stopped")
    )
    totals = Run(whole).run().totals
    assert (totals.learned, totals.rejected) == (600, 0)
    finish_through_stops(stopped, 2, 7)
    same(ends(whole), ends(stopped))


ENCODER = '''
import torch
from torch import nn


class Encoder(nn.Module):
    """The two numbers, turned."""

    def forward(self, numeric):
        return torch.stack([numeric.sum(1), numeric[:, 0] - numeric[:, 1]], 1)
'''


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module `my_encoder:Encoder`, and its vectors as a file ``encoder.onnx``."""
    (tmp_path / "my_encoder.py").write_text(ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    from onnx import TensorProto, helper, numpy_helper, save

    turn = numpy_helper.from_array(np.array([[1, 1], [1, -1]], np.float32), "turn")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["numeric", "turn"], ["vector"])],
        "encoder",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", 2])],
        [turn],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    save(model, tmp_path / "encoder.onnx")
    yield tmp_path / "encoder.onnx"
    sys.modules.pop("my_encoder", None)


def test_an_embedding_is_a_module_or_a_file(
    few: Write, headrace: Headrace, tmp_path: Path, encoder: Path
) -> None:
    file = few("file", f"embedding = {json.dumps(str(encoder))}", "[export]\n")
    module = few("module", 'module = "my_encoder:Encoder"')
    for one in (file, module):
        code, _, err = headrace("run", one)
        assert code == 0, err
    assert written(file)["prediction"].equals(written(module)["prediction"])
    out = tmp_path / "predicted"
    code, _, err = headrace(
        "predict", tmp_path / "file" / "model.onnx", "--input", tmp_path / "rows.csv",
        "--output", out,
    )  # fmt: skip
    assert code == 0, err
    served = pl.read_parquet(out / "*.parquet")
    assert share_right(served) > 0.98


def test_what_is_known_moves_with_the_scale_of_a_stage(
    few: Write, headrace: Headrace, tmp_path: Path
) -> None:
    """One class after the other: mean and deviation move all the time."""
    stage = '[scrub.scale]\nkind = "standardize"\ncolumns = ["x", "y"]\n'
    file = few(more=f"{stage}[export]\n")
    rows = animals(150).sort("label")
    rows.write_csv(tmp_path / "rows.csv")
    code, _, err = headrace("run", file)
    assert code == 0, err
    model, out = tmp_path / "whole" / "model.onnx", tmp_path / "predicted"
    code, _, err = headrace("predict", model, "--input", tmp_path / "rows.csv", "--output", out)
    assert code == 0, err
    assert share_right(pl.read_parquet(out / "*.parquet")) > 0.98
