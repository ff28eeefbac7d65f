"""A model file that serves: the learner's answers, and a sentence for what cannot be served."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch

from engine.types import Affine, Batch, Codes, Features, Fill, Mark, Tensors, Transform, UserError
from models.compress.gate import Compression, compress
from models.export.model import export
from models.export.model_files import annotate
from models.export.onnx_graph import Graph, TensorProto
from models.learners.tabular import TabularLearner
from models.serving.predictor import OnnxPredictor, session
from models.serving.session import PROVIDER_ORDER, available_providers

KEYS = ("n", "e", "s", "w")
TASKS = {"regression": (), "binary": ("no", "yes"), "multiclass": ("x", "y", "z")}
FRONT: list[Transform] = [
    Fill(column="a", value=2.0),
    Affine(column="a", shift=2.0, scale=0.5),
    Codes(column="key", values=KEYS),
]
"""Of `a` and `key`; nothing fills `b`."""


def rows(n: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "a": rng.normal(2, 2, n),
            "b": rng.normal(size=n).astype(np.float32),
            "key": rng.choice([*KEYS, "never"], n),
            "note": pl.Series([f"row {i}" for i in range(n)], dtype=pl.String),
        }
    )
    gone = [pl.Series(rng.random(n) < 0.2, dtype=pl.Boolean) for _ in "ab"]
    return frame.with_columns(
        pl.when(hole).then(None).otherwise(pl.col(c)).alias(c)
        for c, hole in zip(("a", "key"), gone, strict=True)
    )


def batch_of(frame: pl.DataFrame) -> Batch:
    reserved = pl.lit("p").alias("_partition"), pl.int_range(pl.len()).alias("_position")
    return Batch(
        frame=frame.select(*reserved, pl.all()),
        mark=Mark(positions={"p": frame.height}),
        arrived=5.0,
        raw_rows=frame.height,
    )


def tensors_of(frame: pl.DataFrame) -> Tensors:
    """What the stages of `FRONT` make of rows."""
    numeric = frame.select((pl.col("a").fill_null(2.0) - 2.0) * 0.5, "b").cast(pl.Float32)
    codes = frame.select(
        pl.col("key").replace_strict(KEYS, [1, 2, 3, 4], default=0, return_dtype=pl.Int64)
    )
    return Tensors(
        numeric=torch.from_numpy(numeric.to_numpy(order="c", writable=True)),
        categories=torch.from_numpy(codes.to_numpy(order="c", writable=True)),
    )


def learner_of(task: str) -> TabularLearner:
    """One whose scores lie well apart: its layers are linear, with large weights."""
    features = Features(
        numeric=("a", "b"), categories={"key": 5}, target="y", task=task, classes=TASKS[task]
    )
    learner = TabularLearner(
        TabularLearner.Settings(layers=(16,), skip_connection=True, seed=4),
        TabularLearner.Training(),
        features,
    )
    state = learner.state_dict()
    state["weights"]["skip.weight"] *= 4
    learner.load_state_dict(state)
    return learner


def predictor_of(path: Path, **keys: Any) -> OnnxPredictor:
    return OnnxPredictor(OnnxPredictor.Settings(model=str(path), **keys))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Task -> a model file."""
    folder = tmp_path_factory.mktemp("models")

    def make(task: str) -> Path:
        path = folder / f"{task}.onnx"
        metadata = {"version": "v3", "stages": '["fill", "scale"]'}
        return path if path.exists() else export(path, learner_of(task), FRONT, metadata)

    return make


Model = Callable[[str], Path]


# -------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_the_learners(model: Model, task: str) -> None:
    frame = rows(1_000)
    scores = predictor_of(model(task), threads=1).scores(frame)
    wanted = learner_of(task).predict(tensors_of(frame))
    assert scores.shape == wanted.shape
    assert wanted.std() > 0.05
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-6)


def test_regression_answers(model: Model) -> None:
    frame = rows(50)
    predictor = predictor_of(model("regression"))
    done = predictor.predict(batch_of(frame)).frame
    assert done.columns == [
        "_partition",
        "_position",
        *frame.columns,
        "prediction",
        "model_version",
    ]
    assert done.select(frame.columns).equals(frame)
    assert done.schema["prediction"] == pl.Float64
    wanted = learner_of("regression").predict(tensors_of(frame))
    np.testing.assert_allclose(done.get_column("prediction"), wanted, rtol=1e-4, atol=1e-6)
    assert done.get_column("model_version").unique().to_list() == ["v3"]


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_classes_answer_with_their_names(model: Model, task: str) -> None:
    frame = rows(200)
    done = predictor_of(model(task)).predict(batch_of(frame)).frame
    wanted = learner_of(task).predict(tensors_of(frame))
    numbers = (wanted > 0.5).astype(int) if task == "binary" else wanted.argmax(axis=1)
    names = [TASKS[task][i] for i in numbers]
    assert len(set(names)) == len(TASKS[task])
    assert done.get_column("prediction").to_list() == names
    likely = wanted if task == "binary" else wanted.max(axis=1)
    assert done.schema["probability"] == pl.Float64
    np.testing.assert_allclose(done.get_column("probability"), likely, rtol=1e-4)


def test_what_a_batch_carries_stays(model: Model) -> None:
    batch = batch_of(rows(5)).counted("fill", filled=3)
    done = predictor_of(model("binary")).predict(batch)
    assert (done.mark, done.arrived, done.raw_rows) == (batch.mark, 5.0, 5)
    unknown = int((done.frame["key"] == "never").sum())
    lacks = {("predict", "missing a"): 2, ("predict", "missing key"): 2}
    assert done.counts == {("fill", "filled"): 3, **lacks} | (
        {("predict", "unknown key"): unknown} if unknown else {}
    )
    assert done.rejects == ()
    assert batch.frame.columns == ["_partition", "_position", *rows(1).columns]


@pytest.mark.parametrize("task", TASKS)
def test_no_rows(model: Model, task: str) -> None:
    """An empty batch has the same columns of the same types."""
    predictor = predictor_of(model(task))
    full, empty = (predictor.predict(batch_of(rows(n))) for n in (3, 0))
    assert len(empty) == 0
    assert empty.frame.schema == full.frame.schema
    assert empty.mark == Mark(positions={"p": 0})


def test_one_row_is_as_good_as_many(model: Model) -> None:
    predictor, frame = predictor_of(model("multiclass")), rows(20)
    single = np.concatenate([predictor.scores(frame.slice(i, 1)) for i in range(20)])
    np.testing.assert_allclose(single, predictor.scores(frame), rtol=1e-6)


def test_numbers_of_other_types(model: Model) -> None:
    """JSON gives whole numbers where they happen to be whole, and all nulls have no type."""
    predictor = predictor_of(model("regression"))
    floats = pl.DataFrame({"a": [2.0, 3.0], "b": [1.0, 0.0], "key": ["n", None]})
    wanted = predictor.scores(floats)
    others = floats.with_columns(
        pl.col("a").cast(pl.Int32), pl.col("b").cast(pl.Boolean), pl.col("key").cast(pl.Categorical)
    )
    np.testing.assert_array_equal(predictor.scores(others), wanted)
    void = pl.DataFrame({"a": [None], "b": [1.0], "key": [None]})
    filled = pl.DataFrame({"a": [2.0], "b": [1.0], "key": ["never"]})
    np.testing.assert_array_equal(predictor.scores(void), predictor.scores(filled))


# ------------------------------------------------------------------------------------- rejected


@pytest.mark.parametrize("value", [None, np.nan, -np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("task", TASKS)
def test_a_row_without_a_score_is_rejected(model: Model, task: str, value: float | None) -> None:
    frame = rows(6).with_columns(b=pl.Series([0.0, value, 1.0, 2.0, value, 0.5]))
    done = predictor_of(model(task)).predict(batch_of(frame))
    assert done.frame.get_column("_position").to_list() == [0, 2, 3, 5]
    assert done.raw_rows == len(done) + sum(map(len, done.rejects))
    (reject,) = done.rejects
    assert (reject.stage, reject.reason) == ("predict", "non_finite")
    assert reject.rows.get_column("_position").to_list() == [1, 4]
    lacks = value is None or np.isnan(value)
    assert reject.rows.get_column("detail").unique().to_list() == [
        "Expected a finite score: no value is in column 'b'; a [scrub.missing] in the pipeline "
        "that trains the model helps."
        if lacks
        else "Expected a finite score: the number in column 'b' is infinite or too large for "
        "float32; a [scrub.outliers] in the pipeline that trains the model helps."
    ]
    assert json.loads(reject.rows.get_column("value")[0])["note"] == "row 1"
    others = predictor_of(model(task)).predict(batch_of(frame)).frame
    good = frame.gather([0, 2, 3, 5])
    wanted = predictor_of(model(task)).predict(batch_of(good)).frame
    assert others.drop("_position").equals(wanted.drop("_position"))


def test_values_that_the_file_fills_are_counted_by_column(model: Model) -> None:
    frame = pl.DataFrame(
        {
            "a": [1.0, None, np.nan, None],
            "b": [1.0, 2.0, 3.0, None],
            "key": ["n", None, "never", None],
        }
    )
    done = predictor_of(model("binary")).predict(batch_of(frame))
    assert done.frame.get_column("_position").to_list() == [0, 1, 2]
    missing = {("predict", "missing a"): 2, ("predict", "missing key"): 1}
    assert done.counts == {**missing, ("predict", "unknown key"): 1}


def test_a_column_that_stops_coming_is_reported_once(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pl.DataFrame({"a": [1.0] * 60, "b": [1.0] * 60, "key": ["n"] * 60})
    frame = frame.with_columns(A=pl.lit(None, pl.Float64))
    late = frame.with_columns(a=pl.lit(None, pl.Float64), A=pl.col("a"))
    predictor = predictor_of(model("binary"))
    predictor.bind(frame.schema)
    for part in (frame, late, frame, late):
        predictor.predict(batch_of(part))
    assert not caplog.records
    predictor.predict(batch_of(late))
    predictor.predict(batch_of(late))
    (record,) = caplog.records
    assert record.getMessage() == (
        "Column 'a' has no value in the last 120 rows, where 'A' has: the model reads 'a' and "
        "answers without it. Write both under that name, or add a 'derive' stage with columns.a = "
        '\'COALESCE("a", "A")\'.'
    )
    gone = frame.with_columns(key=pl.lit(None, pl.String))
    for _ in range(18):
        predictor.predict(batch_of(gone))
    assert [r.getMessage() for r in caplog.records[1:]] == [
        "Column 'key' has no value in the last 1,020 rows: the model answers without it. See that "
        "it is still written under that name."
    ]


def test_all_rows_may_go(model: Model) -> None:
    frame = rows(3).with_columns(b=pl.lit(None, dtype=pl.Float64))
    done = predictor_of(model("multiclass")).predict(batch_of(frame))
    assert len(done) == 0
    assert [len(reject) for reject in done.rejects] == [3]
    assert "probability" in done.frame.columns


# ------------------------------------------------------------------------------ the user's mistakes


def sentence(make: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        make()
    return str(error.value)


def test_no_such_file(model: Model) -> None:
    there = model("regression")
    missing = there.with_name("regresion.onnx")
    said = sentence(lambda: predictor_of(missing))
    assert said.startswith(f"[infer] model '{missing}' is no file: train and export one first.")
    assert said.endswith("Did you mean 'regression.onnx'?")


def test_no_such_folder(tmp_path: Path) -> None:
    missing = tmp_path / "none" / "m.onnx"
    assert sentence(lambda: predictor_of(missing)) == (
        f"[infer] model '{missing}' is no file: train and export one first."
    )


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a zip", b"{}\n", b"\x00" * 100], ids=str)
def test_not_an_onnx_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    said = sentence(lambda: predictor_of(path))
    assert said.startswith(f"[infer] model '{path}' is no ONNX model (")
    assert said.endswith(": expected a file that 'headrace export' or 'headrace compress' wrote.")
    assert "\n" not in said


def test_a_cut_off_file(tmp_path: Path, model: Model) -> None:
    path = tmp_path / "m.onnx"
    data = model("regression").read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert "is no ONNX model" in sentence(lambda: predictor_of(path))


def test_a_changed_file(tmp_path: Path, model: Model) -> None:
    """ONNX Runtime is not asked: a flipped bit in a graph can end the process."""
    path = tmp_path / "m.onnx"
    file = onnx.load(model("regression"))
    file.doc_string = "changed"
    onnx.save(file, path)
    assert "was changed after it was written" in sentence(lambda: predictor_of(path))
    data = bytearray(model("regression").read_bytes())
    at = data.index(b"Gemm")
    data[at] ^= 1
    path.write_bytes(data)
    assert "is damaged" in sentence(lambda: predictor_of(path))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threshold", "half"),
        ("threshold", "nan"),
        ("classes", "[0, "),
        ("classes", '{"a": 1}'),
        ("classes", '["one"]'),
        ("inputs", "[]"),
        ("inputs", '{"x": "float128"}'),
        ("task", "ranking"),
        ("stages", "null"),
        ("columns", "7"),
    ],
)
def test_damaged_properties_are_a_sentence(
    key: str, value: str, tmp_path: Path, model: Model
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model("binary").read_bytes())
    annotate(path, {key: value})
    said = sentence(lambda: predictor_of(path))
    assert said.startswith(f"The model file {path} is damaged: its property '{key}' is {value!r} (")
    frame = rows(200)
    assert sentence(lambda: compress(path, frame, Compression(), path=tmp_path / "small")) == said


@pytest.mark.parametrize(
    "metadata", [{}, {"format": "headrace/99"}, {"format": "h\v\nx"}], ids=["none", "newer", "odd"]
)
def test_a_file_that_is_not_ours(tmp_path: Path, metadata: dict[str, str]) -> None:
    graph = Graph()
    x = graph.input("x", TensorProto.FLOAT, ["n"])
    file = graph.model({"score": (x, TensorProto.FLOAT, ["n"])}, metadata)
    path = tmp_path / "m.onnx"
    onnx.save(file, path)
    assert sentence(lambda: predictor_of(path)) == (
        f"[infer] model '{path}' was not written by headrace: expected format 'headrace/1' in its "
        f"metadata, got {metadata.get('format', 'none')!r}; expected a file that 'headrace export' "
        "or 'headrace compress' wrote."
    )


def test_bind_accepts_what_can_be_served(model: Model) -> None:
    kinds = [pl.Float64(), pl.Float32(), pl.Int8(), pl.UInt64(), pl.Boolean()]
    predictor = predictor_of(model("binary"))
    for kind in kinds:
        predictor.bind({"a": kind, "b": kind, "key": pl.String(), "more": pl.Date()})


def test_bind_misses_a_column(model: Model) -> None:
    schema = {"a": pl.Float64(), "b": pl.Float64(), "keys": pl.String()}
    assert sentence(lambda: predictor_of(model("binary")).bind(schema)) == (
        "The model needs column 'key', which is not there. Did you mean 'keys'?"
    )


def test_bind_finds_text_for_numbers(model: Model) -> None:
    schema = {"a": pl.Float64(), "b": pl.String(), "key": pl.String()}
    assert sentence(lambda: predictor_of(model("binary")).bind(schema)) == (
        "The model needs numbers in column 'b', got string."
    )


def test_predict_misses_a_column(model: Model) -> None:
    predictor = predictor_of(model("binary"))
    assert sentence(lambda: predictor.predict(batch_of(rows(3).drop("b")))) == (
        "The model needs column 'b', which is not there. Known: a, key, note."
    )


def test_predict_finds_text_for_numbers(model: Model) -> None:
    predictor = predictor_of(model("binary"))
    frame = rows(3).with_columns(b=pl.lit("high"))
    said = sentence(lambda: predictor.predict(batch_of(frame)))
    assert said.startswith("The model's columns cannot be made of these: ")
    assert "'b'" in said
    assert "high" in said


# ------------------------------------------------------------------------------------- what it is


def test_what_it_says_of_itself(model: Model) -> None:
    path = model("multiclass")
    predictor = predictor_of(path, providers=("cpu",))
    assert predictor.info() == {
        "version": "v3",
        "precision": "float32",
        "provider": "CPUExecutionProvider",
        "digest": hashlib.sha256(path.read_bytes()).hexdigest()[:12],
    }
    assert set(predictor.requires) == {"a", "b", "key"}
    assert predictor.stages == ("fill", "scale")
    assert predictor.features.task == "multiclass"
    assert predictor.features.classes == ("x", "y", "z")


def test_the_version_is_the_models_own(tmp_path: Path) -> None:
    """Not that of a place in the stream: the same model has the same one, another model another."""
    learners = [learner_of("binary"), learner_of("binary"), learner_of("multiclass")]
    files = [export(tmp_path / f"{i}.onnx", each, FRONT, {}) for i, each in enumerate(learners)]
    predictors = [predictor_of(file) for file in files]
    first, same, other = (predictor.info()["version"] for predictor in predictors)
    assert first == same != other
    done = predictors[0].predict(batch_of(rows(1)))
    assert done.frame.get_column("model_version").to_list() == [first]
    assert predictors[0].stages == ()


# ------------------------------------------------------------------------------------- providers

CUDA = "CUDAExecutionProvider"
no_gpu = pytest.mark.skipif(CUDA in available_providers(()), reason="there is a CUDA device")


@no_gpu
@pytest.mark.parametrize("asked", ["cuda", CUDA])
def test_another_provider_than_asked_for_is_said(
    model: Model, caplog: pytest.LogCaptureFixture, asked: str
) -> None:
    with caplog.at_level(logging.WARNING, logger="headrace.predictor"):
        predictor = predictor_of(model("regression"), providers=(asked,))
    (record,) = caplog.records
    assert record.name == "headrace.predictor"
    assert record.getMessage() == (
        f"[infer] providers asks for {CUDA}, but the model runs on CPUExecutionProvider here"
    )
    assert predictor.provider == predictor.info()["provider"] == "CPUExecutionProvider"
    assert len(predictor.scores(rows(3))) == 3


@no_gpu
@pytest.mark.parametrize("asked", [("cuda",), ("cuda", "cpu"), ("tensorrt", "cuda", "cpu")])
def test_strictly_the_provider_asked_for(model: Model, asked: tuple[str, ...]) -> None:
    wished = {"cuda": CUDA, "tensorrt": PROVIDER_ORDER[0]}[asked[0]]
    said = sentence(
        lambda: predictor_of(model("regression"), providers=asked, strict_provider=True)
    )
    assert said == (
        f"[infer] providers asks for {wished}, but the model runs on CPUExecutionProvider here: "
        "install its libraries, or drop strict_provider."
    )


@pytest.mark.parametrize("asked", [(), ("cpu",), ("CPUExecutionProvider",)])
@pytest.mark.parametrize("strict", [True, False])
def test_nothing_to_say_where_it_runs_as_asked(
    model: Model, caplog: pytest.LogCaptureFixture, asked: tuple[str, ...], strict: bool
) -> None:
    keys: dict[str, Any] = {"providers": asked, "strict_provider": strict}
    predictor = predictor_of(model("regression"), **keys)
    assert caplog.records == []
    if asked:
        assert predictor.provider == "CPUExecutionProvider"


def test_available() -> None:
    assert available_providers(("cpu",)) == ("CPUExecutionProvider",)
    assert available_providers(("no such",)) == ()
    assert available_providers(())[-1] == "CPUExecutionProvider"
    assert set(available_providers(())) <= set(onnxruntime.get_available_providers())


def test_a_session_of_so_many_threads(model: Model) -> None:
    made = session(model("regression"), ("cpu",), threads=2)
    options = made.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
