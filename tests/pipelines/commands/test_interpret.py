"""The command on trained pipelines and on model files that serve; its page in a browser."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest

from engine.interpret import Interpretation, interpret, page
from engine.run import Run
from models.serving.predictor import OnnxPredictor
from tests.chromium import browser, look_at_both
from tests.pipelines.conftest import Headrace, Small, rows_of, small_in

HELD = "[export]\nholdout = 0.3\ncompress = false\n"
SPLIT = "[scrub.split]\ntest = 0.5\n[evaluation.slices]\neast = \"key = 'e'\"\n"
FASTER = ('optimizer = "adam"', 'optimizer = "adam"\nlr = 0.05')
OWN = ("layers = [8]\n", "")
TRAIN = '[train]\noptimizer = "adam"\nreplay_rows = 0\nthreads = 1\n'
SCALED = '[scrub.standardize]\ncolumns = ["a", "b"]\n'
GROWS = ("[model]", '[model]\nkind = "prototypes"')
CLASSES = (('y = "float64"', 'y = "string"'), ("[evaluation]\nwindow = 1000\n", ""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline whose target is three times `a`, and noise; it has been run."""
    folder = tmp_path_factory.mktemp("trained")
    rows_of(1_500).write_parquet(folder / "data.parquet")
    Run(small_in(folder, folder / "data.parquet", FASTER, more=HELD)).run()
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> Interpretation:
    return interpret(folder / "small.toml", rows=400)


def content(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_column_that_decides_comes_first_and_noise_may_be_nothing(
    found: Interpretation,
) -> None:
    assert found.which.startswith("held out")
    assert 300 < found.rows <= 400
    first, *others = found.importances
    assert first.column == "a"
    assert first.tells
    assert {each.column for each in others} == {"b", "key"}
    for each in others:
        assert each.low <= 0 <= each.high
    assert first.worse > 5 * max(abs(each.worse) for each in others)
    assert found.attributions[0].feature == "a"
    assert found.attributions[0].moves == pytest.approx(3 * 0.8, rel=0.3)  # of a normal a
    assert any("'b'" in sentence for sentence in found.sentences)


def test_worst_rows_are_those_with_the_largest_errors(folder: Path, found: Interpretation) -> None:
    """By the model file, which is another way from the same rows to the same answers."""
    run = Run(folder / "small.toml")
    assert run.restore()
    assert run.parts.judging.holdout is not None
    rows = run.parts.judging.holdout.frame()
    assert rows is not None
    rows = rows.tail(400)
    model = OnnxPredictor(OnnxPredictor.Settings(model=str(folder / "run" / "model.onnx")))
    errors = np.abs(model.scores(rows) - rows["y"].to_numpy())
    worst = rows[np.argsort(-errors)[:10]]
    assert [each.position for each in found.worst_rows] == worst["_position"].to_list()
    assert {each.partition for each in found.worst_rows} == set(worst["_partition"])
    assert found.worst_rows[0].loss == pytest.approx(errors.max(), rel=1e-4)
    assert found.value == pytest.approx(errors.mean(), rel=1e-4)
    assert found.worst_rows[0].values["a"] in ("", *(f"{a:.4g}" for a in worst["a"].drop_nulls()))


def test_nothing_is_changed(headrace: Headrace, folder: Path, tmp_path: Path) -> None:
    before = content(folder)
    file, out = folder / "small.toml", tmp_path / "found.json"
    code, said, err = headrace("interpret", file, "--rows", 60, "--repeats", 3, "--json", out)
    assert code == 0, err
    assert "worst rows" in said
    assert json.loads(out.read_text())["rows"] == 60
    assert content(folder) == before


def test_a_browser_shows_the_page(found: Interpretation, tmp_path: Path) -> None:
    browser()
    page.write(found, tmp_path / "found.html")
    for seen in look_at_both(tmp_path / "found.html", tmp_path):
        assert seen.marks > 3_000  # the bars


def test_the_rows_a_split_keeps_from_learning_and_their_slices(
    headrace: Headrace, small: Small, tmp_path: Path
) -> None:
    """The labels of one in four keys are drawn by chance."""
    rows, rng = rows_of(1_200), np.random.default_rng(1)
    chance = rng.random(1_200) < 0.5
    label = pl.when(pl.col("key") == "e").then(pl.Series(chance)).otherwise(pl.col("b") > 5)
    rows = rows.with_columns(y=pl.when(label).then(pl.lit("yes")).otherwise(pl.lit("no")))
    rows.write_parquet(tmp_path / "data.parquet")
    file = small(tmp_path / "data.parquet", *CLASSES, more=SPLIT)
    assert headrace("run", file)[0] == 0
    out, html = tmp_path / "found.json", tmp_path / "found.html"
    code, said, err = headrace("interpret", file, "--json", out, "--html", html)
    assert code == 0, err
    figures = json.loads(out.read_text())
    assert figures["which"].startswith("of the parts that are predicted and never learned")
    assert 500 < figures["rows"] < 700
    assert figures["importances"][0]["column"] == "b"
    assert figures["metric"] == "log_loss"
    assert sum(group["rows"] for group in figures["calibrations"]) == figures["rows"]
    by_name = {each["name"]: each for each in figures["slices"]}
    assert by_name["east"]["worse"]
    assert by_name["key = e"]["loss"] == pytest.approx(by_name["east"]["loss"])
    assert by_name["key = e"]["rows"] == by_name["east"]["rows"]
    assert "key = e" in said
    assert "key = e" in html.read_text()
    code, _, err = headrace("interpret", file, "--metric", "r2")
    assert code == 2
    assert "Expected --metric of log_loss" in err


def test_classes_that_appeared_while_it_learned(small: Small, tmp_path: Path) -> None:
    """The last class comes late; the model has met it all the same."""
    rows = rows_of(300)
    label = pl.when(pl.col("n") >= 200).then(pl.lit("late")).otherwise(pl.lit("early"))
    rows = rows.with_columns(
        y=label, b=pl.when(pl.col("n") >= 200).then(20.0).otherwise(pl.col("b"))
    )
    rows.write_parquet(tmp_path / "data.parquet")
    file = small(tmp_path / "data.parquet", *CLASSES, OWN, (TRAIN, ""), (SCALED, ""), GROWS)
    Run(file).run()
    found = interpret(file, repeats=3)
    assert sorted(found.classes) == ["early", "late"]
    assert found.task == "multiclass"
    assert found.importances[0].column == "b"
    assert found.figures["accuracy"] > 0.9
    assert found.rows == 300


@pytest.mark.parametrize(("rows", "kind"), [(1, "tabular"), (10, "linear"), (30, "trees")])
def test_a_few_rows_that_were_learned(
    headrace: Headrace, small: Small, tmp_path: Path, rows: int, kind: str
) -> None:
    """They are judged once, also where they were learned twice."""
    rows_of(rows).write_parquet(tmp_path / "data.parquet")
    own = () if kind == "tabular" else (OWN, (TRAIN, ""))
    file = small(tmp_path / "data.parquet", *own)
    text = file.read_text().replace("[source]", "[source]\nepochs = 2")
    file.write_text(text.replace("[model]", f'[model]\nkind = "{kind}"'))
    assert headrace("run", file)[0] == 0
    code, said, err = headrace("interpret", file)
    said = " ".join(said.replace("│", " ").split())
    assert code == 0, err
    assert "The model has learned these rows" in said
    assert f"Only {rows} row" in said
    assert ("integrated gradients: how far" in said) == (kind != "trees")
    assert ("this kind of model has none" in said) == (kind == "trees")


def test_what_is_wrong_is_one_sentence(
    headrace: Headrace, small: Small, tmp_path: Path, folder: Path
) -> None:
    rows_of(20).write_parquet(tmp_path / "data.parquet")
    fresh, trained = small(tmp_path / "data.parquet"), folder / "small.toml"
    cleans = tmp_path / "cleans.toml"
    head, _, rest = fresh.read_text().partition("[model]")
    cleans.write_text(head + rest[rest.index("[checkpoint]") :])
    for words, sentence in (
        ((fresh,), "There is no checkpoint"),
        ((cleans,), "has neither [model] nor [infer]"),
        ((trained, "--rows", 0), "--rows of 1 or more"),
        ((trained, "--repeats", 2), "--repeats of 3 or more"),
        ((trained, "--metric", "auc"), "Expected --metric of mae, rmse, r2"),
        ((trained, "--target", "b"), "predicts 'y', got --target b"),
        ((trained, "--html", tmp_path), "cannot be a file"),
    ):
        code, _, err = headrace("interpret", *words)
        assert (code, sentence in err) == (2, True), (words, err)
        assert "Traceback" not in err


def serving(folder: Path, infer: str, columns: Callable[[pl.DataFrame], pl.DataFrame]) -> Path:
    columns(rows_of(300, seed=9)).write_parquet(folder / "new.parquet")
    file = folder / "serve.toml"
    file.write_text(
        f'name = "serve"\nfolder = "{folder}/run"\n[source]\nkind = "files"\n'
        f'path = "{folder}/new.parquet"\n[infer]\n{infer}\n'
        f'[sink]\nkind = "files"\npath = "{folder}/out"\ncolumns = ["n"]\n'
    )
    return file


def test_a_served_model_of_ours(headrace: Headrace, folder: Path, tmp_path: Path) -> None:
    infer = f'model = "{folder}/run/model.onnx"'
    file = serving(tmp_path, infer, lambda rows: rows)
    found = interpret(file, repeats=5)
    assert found.importances[0].column == "a"
    assert found.target == "y"
    assert found.rows == 300
    assert "attributions" in found.plain()
    assert found.attributions == ()
    (tmp_path / "base.toml").write_text(
        "[model]\ntarget = 'y'\n[evaluation.slices]\nlow = 'n < 99'"
    )
    file.write_text(f'base = "base.toml"\n{file.read_text()}')
    (low,) = (each for each in interpret(file, repeats=3).slices if not each.column)
    assert (low.name, low.rows) == ("low", 99)
    file = serving(tmp_path, infer, lambda rows: rows.drop("y"))
    code, _, err = headrace("interpret", file)
    assert code == 2
    assert "have no label: expected the column 'y'" in err
    file = serving(tmp_path, infer, lambda rows: rows.with_columns(y=pl.lit(None, pl.Float64)))
    code, _, err = headrace("interpret", file)
    assert code == 2
    assert "None of the 300 rows" in err


def test_a_served_model_made_elsewhere(headrace: Headrace, tmp_path: Path) -> None:
    """Two scores by the sign of `b` - 5; the label is in a column that the pipeline does not
    name."""
    graph = """g (float[n] b, float[n] a) => (float[n, 2] scores) {
        far = Constant<value_float = 5.0>()
        apart = Sub(b, far)
        away = Neg(apart)
        axis = Constant<value_ints = [1]>()
        yes = Unsqueeze(apart, axis)
        no = Unsqueeze(away, axis)
        idle = Unsqueeze(a, axis)
        none = Sub(idle, idle)
        both = Concat<axis = 1>(no, yes)
        scores = Add(both, none)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {graph}')
    onnx.save(model, tmp_path / "elsewhere.onnx")
    infer = f'model = "{tmp_path}/elsewhere.onnx"\n[infer.outputs.scores]\nanswer = "classes"\n'
    infer += 'column = "label"\nclasses = ["low", "high"]\nactivation = "softmax"'
    truth = pl.when(pl.col("b") > 5).then(pl.lit("high")).otherwise(pl.lit("low"))
    file = serving(
        tmp_path, infer, lambda rows: rows.with_columns(pl.col("a").fill_null(0), truth=truth)
    )
    found = interpret(file, label="truth", repeats=3)
    assert [each.column for each in found.importances] == ["b", "a"]
    assert found.importances[1].worse == 0
    assert found.figures["accuracy"] == 1
    code, _, err = headrace("interpret", file)
    assert code == 2
    assert "name its column with --target" in err
