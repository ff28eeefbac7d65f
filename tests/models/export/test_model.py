"""One file from raw columns to scores, run by ONNX Runtime alone, against the learner behind the
scrub."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.columnar.kernels import power_transform
from engine.loading.collate import Collate
from engine.scrub.features.categories import Categories
from engine.scrub.values.missing import Missing
from engine.scrub.values.outliers import Outliers
from engine.scrub.values.power import Powers
from engine.scrub.values.scale import Normalize, Robust, Standardize
from engine.types import (
    Affine,
    Batch,
    Clip,
    Codes,
    Features,
    Fill,
    GraphBuilder,
    Learner,
    Mark,
    Power,
    Schema,
    Snapshot,
    Step,
    Tensors,
    Transform,
)
from models.export.front import StageGraph
from models.export.model import export
from models.export.model_files import SEAL, whole, write
from models.export.onnx_graph import OPSET, Graph
from models.learners.linear import LinearLearner
from models.learners.tabular import TabularLearner
from tests.size import examples

Scores = NDArray[np.floating[Any]]
FusedStages = Sequence[tuple[str, Any, dict[str, Any]]]

HELD_OUT = 10_000
WORST = 1e-4
"""Largest relative difference of a score from the learner's; of one near 0, relative to a tenth of
their deviation."""
CLASSES = {"regression": (), "binary": ("no", "yes"), "multiclass": ("a", "b", "c")}
NUMBERS = ("level", "count", "span", "flag", "level_missing", "flag_missing")
CODED = {"key": 9, "code": 13}

STAGES: FusedStages = (
    ("gap", Missing, {"columns": ["level"], "strategy": "mean", "indicator": True}),
    ("hole", Missing, {"columns": ["count", "flag"], "strategy": "most_frequent"}),
    ("void", Missing, {"columns": ["span"], "strategy": "constant", "value": -2.5}),
    ("name", Missing, {"columns": ["key"], "strategy": "constant", "value": "north"}),
    ("number", Missing, {"columns": ["code"], "strategy": "constant", "value": 3}),
    ("far", Outliers, {"columns": ["level", "count"], "threshold": 2.0}),
    ("low", Outliers, {"columns": ["span"], "method": "bounds", "low": -3.0}),
    ("scale", Standardize, {"columns": ["level", "count"]}),
    ("unit", Normalize, {"columns": ["span"], "clip": True}),
    ("coded", Categories, {"columns": ["key", "code"], "size": 8}),
)
"""Every stage that a model file can contain; `flag` gets its indicator from one of its own."""
FLAGGED: FusedStages = (
    ("mark", Missing, {"columns": ["flag"], "strategy": "constant", "indicator": True}),
    *STAGES,
)


def data(rows: int, seed: int, *, held_out: bool = False) -> pl.DataFrame:
    """Raw rows of every type, a fifth of each column null; values never seen where held out."""
    rng = np.random.default_rng(seed)
    level = 1_000 + 50 * rng.normal(size=rows)
    keys = ["north", "east", "south", "west", *(["elsewhere", "Ünknown"] if held_out else [])]
    key, flag = rng.choice(keys, rows), rng.random(rows) < 0.3
    frame = pl.DataFrame(
        {
            "level": level,
            "count": rng.poisson(20, rows),
            "span": rng.exponential(3, rows).astype(np.float32) - 4,
            "flag": flag,
            "key": key,
            "code": rng.integers(0, 9 if held_out else 6, rows),
        }
    )
    gone = [pl.Series(rng.random(rows) < 0.2) for _ in frame.columns]
    signal = level / 50 - 20 + flag + 2 * (key == "west") + rng.normal(0, 0.1, rows)
    return frame.select(
        pl.when(hole).then(None).otherwise(pl.col(c)).alias(c)
        for c, hole in zip(frame.columns, gone, strict=True)
    ).with_columns(signal=pl.Series(signal))


def labelled(frame: pl.DataFrame, task: str) -> pl.DataFrame:
    """With the label `y` of the task."""
    signal = frame.get_column("signal").to_numpy()
    made: dict[str, Any] = {
        "regression": signal + 8,
        "binary": np.where(signal > 0, "yes", "no"),
        "multiclass": np.array(["a", "b", "c"])[np.digitize(signal, [-0.5, 1.0])],
    }
    return frame.with_columns(y=pl.Series(made[task])).drop("signal")


def batch_of(frame: pl.DataFrame) -> Batch:
    reserved = pl.lit("p").alias("_partition"), pl.int_range(pl.len()).alias("_position")
    return Batch(
        frame=frame.select(*reserved, pl.all()), mark=Mark(), arrived=0.0, raw_rows=frame.height
    )


@dataclass
class Line:
    """Stages, collate and learner in a row, as a run has them."""

    chain: FusedStages
    features: Features
    learner: Any
    schema: Schema

    def __post_init__(self) -> None:
        self.stages = [kind(name, kind.Settings(**keys)) for name, kind, keys in self.chain]
        after = self.schema
        for stage in self.stages:
            after = stage.bind(after)
        Collate(self.features).bind(after)

    def scrubbed(self, frame: pl.DataFrame) -> Batch:
        """What reaches the learner; the stages learn from it afterwards."""
        return Collate(self.features).apply(self.passed(frame))

    def passed(self, frame: pl.DataFrame) -> Batch:
        """The same as columns."""
        batch = batch_of(frame)
        for stage in self.stages:
            batch = stage.apply(batch)
        return batch

    def train(self, frame: pl.DataFrame, batches: int = 10) -> None:
        size = frame.height // batches
        for i in range(batches):
            self.learner.learn(self.scrubbed(frame.slice(i * size, size)))

    def transforms(self) -> list[Transform]:
        return [t for stage in self.stages for t in stage.transforms()]

    def scores(self, frame: pl.DataFrame) -> Scores:
        """The learner's own, of rows that all stages transform with what they know now."""
        batch = self.scrubbed(frame)
        assert len(batch) == frame.height, batch.rejects
        assert batch.tensors is not None
        scores: Scores = self.learner.predict(batch.tensors)
        return scores


def features_of(task: str, **keys: Any) -> Features:
    given: dict[str, Any] = {"numeric": NUMBERS, "categories": CODED} | keys
    return Features(target="y", task=task, classes=CLASSES[task], **given)


def tabular(features: Features, **keys: Any) -> TabularLearner:
    known = TabularLearner.Settings.model_fields
    model = {key: value for key, value in keys.items() if key in known}
    train = {key: value for key, value in keys.items() if key not in known}
    # A small rate and few steps: of features that say nothing a constant would be learned in the
    # end, and nothing be left to compare.
    few = {"optimizer": "adam", "lr": 0.001, "step_rows": 50, "replay_rows": 0}
    return TabularLearner(
        TabularLearner.Settings(**({"layers": [16, 8]} | model)),
        TabularLearner.Training(**(few | train)),
        features,
    )


def linear(features: Features, **keys: Any) -> LinearLearner:
    settings = LinearLearner.Settings(**keys)
    return LinearLearner(settings, LinearLearner.Training(lr=0.001), features)


def trained(learner: Any, chain: FusedStages = FLAGGED) -> Line:
    batches, states, schema = passed(chain, learner.features.task)
    line = Line(chain, learner.features, learner, schema)
    for stage, state in zip(line.stages, states, strict=True):
        stage.restore(state)
    for batch in batches:
        learner.learn(Collate(learner.features).apply(batch))
    return line


def passed(chain: FusedStages, task: str) -> tuple[list[Batch], list[Any], Schema]:
    """Ten batches behind stages, what these have learned of them, and the schema before: made once
    for many learners."""
    key = repr(chain), task
    if key not in _passed:
        frame = labelled(data(3_000, seed=1), task)
        line = Line(chain, features_of(task, numeric=(), categories={}), None, dict(frame.schema))
        batches = [line.passed(frame.slice(at, 300)) for at in range(0, 3_000, 300)]
        _passed[key] = batches, [stage.snapshot() for stage in line.stages], line.schema
    return _passed[key]


_passed: dict[tuple[str, str], tuple[list[Batch], list[Any], Schema]] = {}


def raw(frame: pl.DataFrame, inputs: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    """What somebody without headrace would feed: NaN and "" for null, plain Python texts."""
    feed: dict[str, NDArray[Any]] = {}
    for name, kind in inputs.items():
        values = frame.get_column(name).to_list()
        if kind == "double":
            feed[name] = np.array([np.nan if v is None else float(v) for v in values], np.float64)
        else:
            assert kind == "string"
            feed[name] = np.array([said(v) for v in values], object)
    return feed


def said(value: object) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


def bare(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def properties(session: onnxruntime.InferenceSession) -> dict[str, str]:
    found: dict[str, str] = session.get_modelmeta().custom_metadata_map
    return found


def run(path: Path, frame: pl.DataFrame) -> Scores:
    session = bare(path)
    scores: Scores = session.run(["score"], raw(frame, json.loads(properties(session)["inputs"])))[
        0
    ]
    return scores


def difference(scores: Scores, wanted: Scores) -> float:
    """The largest, relative to the wanted score, or to a tenth of the scores' deviation."""
    size = np.maximum(np.abs(wanted), 0.1 * wanted.std())
    return float((np.abs(scores - wanted) / size).max())


def proven(line: Line, path: Path) -> Scores:
    """Export, and hold against the learner on held-out rows; the file's scores."""
    frame = labelled(data(HELD_OUT, seed=2, held_out=True), line.features.task)
    export(path, line.learner, line.transforms(), {})
    scores, wanted = run(path, frame), line.scores(frame)
    assert scores.dtype == np.float32
    assert scores.shape == wanted.shape
    assert wanted.std() > 0.01  # it has learned something to compare
    assert difference(scores, wanted) <= WORST
    return scores


# ---------------------------------------------------------------------- the learners, every option

OPTIONS: list[dict[str, Any]] = [
    {"activation": "relu"},
    {"activation": "silu", "skip_connection": True},
    {"activation": "gelu", "dropout": 0.2, "ema_decay": 0.9},
    {"layers": [], "skip_connection": True},
    {"sparse_embeddings": True, "embedding_dim": 3, "replay_rows": 200, "replay_steps": 1},
]


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("keys", OPTIONS, ids=lambda keys: "-".join(map(str, keys.values())))
def test_tabular_file_says_what_the_learner_says(
    tmp_path: Path, task: str, keys: dict[str, Any]
) -> None:
    line = trained(tabular(features_of(task), **keys))
    scores = proven(line, tmp_path / "m.onnx")
    assert scores.shape == ((HELD_OUT, 3) if task == "multiclass" else (HELD_OUT,))


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize(
    "keys",
    [{"categories": {}}, {"numeric": ()}, {"numeric": ("level_missing",), "categories": {}}],
    ids=["no categories", "no numbers", "an indicator only"],
)
def test_kinds_of_features(tmp_path: Path, task: str, keys: dict[str, Any]) -> None:
    proven(trained(tabular(features_of(task, **keys))), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "warp", ["none", "log1p", "sqrt", "standard", ("sqrt", "standard"), ("log1p", "standard")]
)
def test_target_is_put_back_on_its_scale(tmp_path: Path, warp: Any) -> None:
    features = features_of("regression")
    proven(trained(tabular(features, target_transform=warp)), tmp_path / "m.onnx")


@pytest.mark.parametrize("warp", ["none", ("sqrt", "standard"), ("log1p", "standard")])
def test_quantiles_rise_in_the_file_too(tmp_path: Path, warp: Any) -> None:
    """Without a scale of the target, those of so young a network cross before they are sorted."""
    keys = {"loss": "quantile", "quantiles": (0.1, 0.5, 0.9)}
    features = features_of("regression", quantiles=keys["quantiles"])
    scores = proven(trained(tabular(features, target_transform=warp, **keys)), tmp_path / "m.onnx")
    assert scores.shape == (HELD_OUT, 3)
    assert (np.diff(scores) >= 0).all()


@pytest.mark.parametrize("task", ["regression", "binary"])
@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("keys", [{}, {"categories": {}}, {"numeric": ()}], ids=str)
def test_linear_file_says_what_the_learner_says(
    tmp_path: Path, task: str, standardize: bool, keys: dict[str, Any]
) -> None:
    line = trained(linear(features_of(task, **keys), standardize=standardize))
    proven(line, tmp_path / "m.onnx")


def test_large_numbers_keep_their_digits(tmp_path: Path) -> None:
    """A clock in milliseconds: the stages are double, so float32 only ever sees small numbers."""
    rng = np.random.default_rng(5)
    start = datetime(2024, 1, 1).timestamp() * 1000
    frame = pl.DataFrame({"clock": start + 1000 * rng.random(5_000), "y": rng.random(5_000)})
    learner = tabular(features_of("regression", numeric=("clock",), categories={}))
    chain = (("scale", Standardize, {"columns": ["clock"]}),)
    line = Line(chain, learner.features, learner, dict(frame.schema))
    line.train(frame.with_columns(y=(pl.col("clock") - start) / 100))
    path = export(tmp_path / "m.onnx", learner, line.transforms(), {})
    scores = run(path, frame)
    assert np.ptp(scores) > 0.2
    assert difference(scores, line.scores(frame)) <= WORST


# --------------------------------------------------------------------------- the stages, one by one


EXPONENTS = [(0.0, 0.0), (0.4, 1.6), (1.0, 1.0), (-1.5, 3.5), (3.5, -1.5), (0.0, 2.0), (2.0, 0.0)]


@pytest.mark.parametrize("exponents", [EXPONENTS, [(0.0, 0.0)]], ids=["powers", "logarithms"])
def test_powers_are_exact_to_the_last_digits(
    tmp_path: Path, exponents: list[tuple[float, float]]
) -> None:
    """Of double columns with tiny, large and infinite numbers; the column beside stays as it is."""
    rng = np.random.default_rng(6)
    x = rng.normal(size=2_000) * 10.0 ** rng.integers(-14, 7, 2_000)
    x[:6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-300]
    names = [f"x{i}" for i in range(len(exponents))]
    powers = [
        Power(column=name, above=above, below=below)
        for name, (above, below) in zip(names, exponents, strict=True)
    ]
    clips = [Clip(column=name, low=-1e30, high=1e30) for name in names]
    scales = [Affine(column=name, shift=0.0, scale=1e-30) for name in names]
    session = front((*names, "beside"), [*powers, *clips, *scales], tmp_path)
    got = session.run(None, dict.fromkeys((*names, "beside"), x))[0]
    for j, (above, below) in enumerate(exponents):
        wanted = power_transform(pl.Series(x), above, below).to_numpy()
        known = ~np.isnan(wanted)
        wanted = np.clip(wanted, -1e30, 1e30) * 1e-30
        np.testing.assert_allclose(got[known, j], wanted[known], rtol=2e-14, atol=0)
        assert np.isnan(got[~known, j]).all()
    assert np.array_equal(got[:, -1], x, equal_nan=True)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (Powers, {"method": "log", "standardize": True}),
        (Powers, {"exponent": 0.5, "standardize": True}),
        (Powers, {"exponent": -0.5, "standardize": True}),
        (Powers, {"exponent": 2.0, "standardize": True}),
        (Powers, {}),
        (Standardize, {}),
        (Normalize, {}),
        (Robust, {}),
    ],
)
def test_beside_a_constant_infinite_and_too_large_numbers_stay(
    tmp_path: Path, kind: Any, keys: dict[str, Any]
) -> None:
    """In the stage, whatever else the batch has, and in the model file."""
    stage = kind("s", kind.Settings(columns=["x"], **keys))
    stage.bind({"x": pl.Float64()})
    stage.apply(batch_of(pl.DataFrame({"x": [1e30] * 200})))
    large = [np.inf, -np.inf, 1e200, -1e308, 1e140]
    x = [1e30, 5.0, -7.0, *large]
    session = front(("x",), list(stage.transforms()), tmp_path)
    exported = session.run(None, {"x": np.array(x)})[0][:, 0]
    alone = [stage.apply(batch_of(pl.DataFrame({"x": [v]}))).frame["x"][0] for v in large[:2]]
    done = stage.apply(batch_of(pl.DataFrame({"x": x}))).frame["x"].to_list()
    assert done == exported.tolist() == [0.0, 0.0, 0.0, *large]
    assert alone == large[:2]


def front(
    names: tuple[str, ...], transforms: list[Transform], place: Path
) -> onnxruntime.InferenceSession:
    """The stages' part of a model file alone, in double."""
    graph = Graph()
    made = StageGraph(graph, Features(numeric=names), transforms)
    shape: list[int | str] = ["n", len(names)]
    outputs = {"matrix": (made._matrix, int(onnx.TensorProto.DOUBLE), shape)}
    return bare(write(graph.model(outputs, {}), place / "front.onnx"))


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (Powers, {"columns": ["level", "span"], "method": "log"}),
        (Powers, {"columns": ["level", "span", "count"]}),
        (Powers, {"columns": ["span"], "exponent": -0.5}),
        (Robust, {"columns": ["level", "count"]}),
        (Standardize, {"columns": ["level", "count"], "halflife": 500}),
    ],
)
def test_every_way_to_scale_a_number(tmp_path: Path, kind: Any, keys: dict[str, Any]) -> None:
    """Behind a stage that fills them."""
    names = ("level", "count", "span")
    learner = tabular(features_of("regression", numeric=names, categories={}))
    fill = {"columns": list(names), "strategy": "median"}
    chain: FusedStages = (
        ("fill", Missing, fill),
        ("curve", kind, keys),
        ("scale", Standardize, {"columns": list(names)}),
    )
    proven(trained(learner, chain), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("column", "strategy", "value"),
    [
        ("level", "mean", None),
        ("level", "median", None),
        ("count", "mean", None),
        ("count", "most_frequent", None),
        ("span", "constant", 0.3),
        ("flag", "constant", True),
        ("flag", "most_frequent", None),
    ],
)
@pytest.mark.parametrize("indicator", [True, False])
def test_every_way_to_fill_a_number(
    tmp_path: Path, column: str, strategy: str, value: Any, indicator: bool
) -> None:
    keys = {"columns": [column], "strategy": strategy, "value": value, "indicator": indicator}
    names = (column, f"{column}_missing") if indicator else (column,)
    learner = tabular(features_of("regression", numeric=names, categories={}))
    proven(trained(learner, (("fill", Missing, keys),)), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("column", "strategy", "value"),
    [
        ("key", "constant", "north"),
        ("key", "constant", "nowhere"),
        ("key", "constant", None),
        ("key", "most_frequent", None),
        ("code", "constant", 3),
        ("code", "constant", None),
        ("code", "most_frequent", None),
        ("flag", "constant", True),
        ("flag", "constant", None),
        ("flag", "most_frequent", None),
    ],
)
def test_every_way_to_fill_a_category(
    tmp_path: Path, column: str, strategy: str, value: Any
) -> None:
    """Whole numbers and booleans are categories by their text, filled ones too."""
    keys = {"columns": [column], "strategy": strategy, "value": value, "indicator": True}
    chain = (
        ("fill", Missing, keys),
        ("coded", Categories, {"columns": [column], "size": 8}),
    )
    features = features_of("regression", numeric=(f"{column}_missing",), categories={column: 9})
    proven(trained(tabular(features), chain), tmp_path / "m.onnx")


def test_null_without_a_fill_is_the_unknown_category(tmp_path: Path) -> None:
    chain = (("coded", Categories, {"columns": ["key"], "size": 3}),)
    line = trained(tabular(features_of("regression", numeric=(), categories={"key": 4})), chain)
    path = export(tmp_path / "m.onnx", line.learner, line.transforms(), {})
    known = line.transforms()[0]
    assert isinstance(known, Codes)
    beyond = next(k for k in ("north", "east", "south", "west") if k not in known.values)
    frame = pl.DataFrame({"key": [None, "elsewhere", beyond, *known.values]})
    scores = run(path, frame).tolist()
    assert scores[0] == scores[1] == scores[2]
    assert len(set(scores)) == 4


def test_a_coded_column_may_be_a_number(tmp_path: Path) -> None:
    chain = (("coded", Categories, {"columns": ["key"], "size": 8}),)
    for categories in ({}, {"key": 9}):
        features = features_of("regression", numeric=("key",), categories=categories)
        line = trained(tabular(features), chain)
        proven(line, tmp_path / "m.onnx")


def test_only_the_indicator_of_a_text(tmp_path: Path) -> None:
    chain = (("name", Missing, {"columns": ["key"], "strategy": "constant", "indicator": True}),)
    features = features_of("regression", numeric=("key_missing",), categories={})
    proven(trained(tabular(features), chain), tmp_path / "m.onnx")


@pytest.mark.parametrize("keys", [{"method": "iqr", "factor": 0.5}, {"threshold": 0.7}], ids=str)
def test_learned_bounds_clip(tmp_path: Path, keys: dict[str, Any]) -> None:
    fill = ("fill", Missing, {"columns": ["level"], "strategy": "mean"})
    chain = (("far", Outliers, {"columns": ["level"], **keys}), fill)
    line = trained(tabular(features_of("regression", numeric=("level",), categories={})), chain)
    clip = line.transforms()[0]
    scores = proven(line, tmp_path / "m.onnx")
    assert isinstance(clip, Clip)
    assert -np.inf < clip.low < clip.high < np.inf
    frame = labelled(data(HELD_OUT, seed=2, held_out=True), "regression")
    outside = frame.get_column("level").fill_null(0) > clip.high
    assert outside.sum() > 100
    assert np.unique(scores[outside.to_numpy()]).size == 1


def test_stages_that_learned_nothing(tmp_path: Path) -> None:
    """Before the first batch: no bounds, no values, no deviation, and no codes but the unknown."""
    learner = tabular(features_of("binary"))
    frame = labelled(data(200, seed=4), "binary")
    coded = ("coded", Categories, {"columns": ["key", "code"], "size": 8, "learn": False})
    line = Line((*FLAGGED[:-1], coded), learner.features, learner, dict(frame.schema))
    path = export(tmp_path / "m.onnx", learner, line.transforms(), {})
    assert difference(run(path, frame), line.scores(frame)) <= WORST


VALUES = st.floats(-1e6, 1e6, width=32) | st.none()
PIECES = st.one_of(
    st.builds(Fill, column=st.just("x"), value=st.floats(-5, 5), indicator=st.none()),
    st.builds(Clip, column=st.sampled_from("xy"), low=st.just(-np.inf), high=st.floats(0, 9)),
    st.builds(Clip, column=st.sampled_from("xy"), low=st.floats(-9, -1), high=st.floats(0, 9)),
    st.builds(Affine, column=st.sampled_from("xy"), shift=st.floats(-3, 3), scale=st.floats(-2, 2)),
)


def by_hand(value: float | None, column: str, pieces: Sequence[Transform]) -> float:
    """What the words of `engine.types` say, one value at a time."""
    x = np.nan if value is None else value
    for piece in pieces:
        if piece.column != column:
            continue
        if isinstance(piece, Fill):
            x = float(piece.value) if np.isnan(x) else x
        elif isinstance(piece, Clip):
            x = piece.low if x < piece.low else piece.high if x > piece.high else x
        elif isinstance(piece, Affine):
            x = (x - piece.shift) * piece.scale
    return x


class Passing(Learner):
    """A learner that says its first feature, or another."""

    def __init__(self, *numeric: str, says: int = 0) -> None:
        super().__init__(None, None, Features(numeric=numeric))
        self.says = says

    def learn(self, batch: Batch) -> Step:
        raise NotImplementedError

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Snapshot]:
        return {}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None: ...

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        return graph.op("Gather", numeric, graph.constant(np.int64(self.says)), axis=1)


@given(st.lists(PIECES, max_size=5), st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5))
@settings(
    max_examples=examples(40),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_order_of_transforms(
    tmp_path: Path, pieces: list[Transform], rows: list[tuple[float | None, float | None]]
) -> None:
    """A run of one kind becomes one node, and still means what the single ones mean."""
    rows = [(x, 0.0 if y is None else y) for x, y in rows]
    last = Fill(column="x", value=7.0)
    frame = pl.DataFrame(rows, schema={"x": pl.Float64, "y": pl.Float64}, orient="row")
    for i, column in enumerate("xy"):
        path = export(tmp_path / "m.onnx", Passing("x", "y", says=i), [*pieces, last], {})
        wanted = [by_hand(row[i], column, [*pieces, last]) for row in rows]
        np.testing.assert_array_equal(run(path, frame), np.array(wanted, np.float32))


def test_columns_the_model_does_not_read_are_left_out(tmp_path: Path) -> None:
    line = trained(tabular(features_of("regression", numeric=("span",), categories={"key": 9})))
    session = bare(export(tmp_path / "m.onnx", line.learner, line.transforms(), {}))
    assert {i.name: i.type for i in session.get_inputs()} == {
        "span": "tensor(double)",
        "key": "tensor(string)",
    }
    assert [(o.name, o.type, o.shape) for o in session.get_outputs()] == [
        ("score", "tensor(float)", ["n"])
    ]


# ------------------------------------------------------------- what is not a number stays none


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf, 1e300], ids=str)
@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_a_row_that_training_would_reject_has_no_score(
    tmp_path: Path, value: float, task: str, activation: str
) -> None:
    """Else relu makes a number of infinity, and sigmoid a probability."""
    features = features_of(task, numeric=("x", "z"), categories={})
    learner = tabular(features, activation=activation)
    path = export(tmp_path / "m.onnx", learner, [], {})
    frame = pl.DataFrame({"x": [1.0, value, 2.0] * 11, "z": [0.5] * 33, "y": ["yes"] * 33})
    scores = run(path, frame).reshape(33, -1)
    collate = Collate(replace(features, target=None))
    rejected = 33 - len(collate.apply(batch_of(frame)))
    assert rejected == 11
    assert np.isnan(scores[1::3]).all()
    assert np.isfinite(scores[[0, 2]]).all()


def test_what_is_infinite_is_not_filled_where_a_column_does_not_vary(tmp_path: Path) -> None:
    """Its scale is 0 then, and 0 times infinity would be a missing number."""
    line: list[Transform] = [Affine(column="x", shift=3.0, scale=0.0), Fill(column="x", value=7.0)]
    session = front(("x", "y"), line, tmp_path)
    x = np.array([3.0, np.inf, -np.inf, np.nan, 1e200, -1e308, 1e139])
    (made,) = session.run(None, {"x": x, "y": x})
    assert made.T.tolist()[0] == [0.0, np.inf, -np.inf, 7.0, 1e200, -1e308, 0.0]
    np.testing.assert_array_equal(made[:, 1], x)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_linear_has_no_score_without_a_number(tmp_path: Path, value: float) -> None:
    features = features_of("binary", numeric=("x",), categories={})
    learner = LinearLearner(LinearLearner.Settings(), LinearLearner.Training(), features)
    numeric = torch.randn((50, 1), generator=torch.Generator().manual_seed(1))
    rows = Tensors(
        numeric=numeric,
        categories=torch.zeros((50, 0), dtype=torch.int64),
        target=(numeric[:, 0] > 0).long(),
    )
    learner.learn(replace(batch_of(pl.DataFrame({"x": [0.0]})), tensors=rows))
    path = export(tmp_path / "m.onnx", learner, [], {})
    scores = run(path, pl.DataFrame({"x": [value, 1.0]}))
    assert np.isnan(scores[0])
    assert 0.5 < scores[1] < 1


# ------------------------------------------------------------------------------------- the file


def test_metadata(tmp_path: Path) -> None:
    line = trained(tabular(features_of("multiclass")))
    given = {"version": "v7", "schema": json.dumps({"level": "Float64"}), "pipeline": "p"}
    ranges = {"level": (900.0, 1100.0), "nobody": (0.0, 1.0)}
    path = export(tmp_path / "m.onnx", line.learner, line.transforms(), given, ranges=ranges)
    session = bare(path)
    kept = properties(session)
    made = datetime.fromisoformat(kept.pop("created"))
    assert abs((datetime.now(made.tzinfo) - made).total_seconds()) < 60
    assert {key: kept[key] for key in given} == given
    assert kept["format"] == "headrace/1"
    assert kept["precision"] == "float32"
    assert (kept["task"], kept["target"]) == ("multiclass", "y")
    assert json.loads(kept["classes"]) == ["a", "b", "c"]
    assert json.loads(kept["features"]) == [*NUMBERS, *CODED]
    assert json.loads(kept["inputs"]) == {
        **dict.fromkeys(("level", "count", "span", "flag"), "double"),
        **dict.fromkeys(("key", "code"), "string"),
    }
    assert json.loads(kept["inputs"]).keys() == {i.name for i in session.get_inputs()}
    assert json.loads(kept["ranges"]) == {"level": [900.0, 1100.0]}


def test_the_file_is_plain_onnx(tmp_path: Path) -> None:
    line = trained(tabular(features_of("binary")))
    model = onnx.load(export(tmp_path / "m.onnx", line.learner, line.transforms(), {}))
    onnx.checker.check_model(model, full_check=True)
    assert {(o.domain, o.version) for o in model.opset_import} == {("", OPSET), ("ai.onnx.ml", 3)}
    assert {n.domain for n in model.graph.node} == {"", "ai.onnx.ml"}


def test_bare_runtime_has_nothing_to_warn_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    some: list[dict[str, Any]] = [{}, {"categories": {}}, {"numeric": ()}]
    for keys in some:
        line = trained(tabular(features_of("regression", **keys)))
        path = export(tmp_path / "m.onnx", line.learner, line.transforms(), {})
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 2
        capfd.readouterr()
        onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        assert capfd.readouterr().err == "", keys


def test_the_same_learner_makes_the_same_graph(tmp_path: Path) -> None:
    line = trained(tabular(features_of("binary")))
    files = [
        export(tmp_path / name, line.learner, line.transforms(), {})
        for name in ("a.onnx", "b.onnx")
    ]
    sums = {zlib.crc32(onnx.load(file).graph.SerializeToString()) for file in files}
    assert len(sums) == 1


def test_the_version_is_of_all_that_decides_the_answers(tmp_path: Path) -> None:
    """Classes, threshold and columns beside the graph; not the time or the mark of the export."""

    def version(given: Mapping[str, str] = MappingProxyType({}), **keys: Any) -> str:
        features = replace(features_of("binary", numeric=("x",), categories={}), **keys)
        return properties(bare(export(tmp_path / "m.onnx", tabular(features), [], given)))[
            "version"
        ]

    known = version()
    assert version({"mark": '{"p": 3}', "created": "later"}) == known
    others = [
        version(classes=("0", "1")),
        version(threshold=0.25),
        version({"parse_settings": '{"words": ["none"]}'}),
    ]
    assert len({known, *others}) == 4


def test_written_whole(tmp_path: Path) -> None:
    """In a folder that is not there yet; over an older file; nothing else is left."""
    path = tmp_path / "deep" / "m.onnx"
    learner = tabular(features_of("regression", numeric=("x",), categories={}))
    assert export(path, learner, [], {"version": "1"}) == path
    assert export(path, learner, [], {"version": "2"}) == path
    assert [p.name for p in path.parent.iterdir()] == ["m.onnx"]
    assert properties(bare(path))["version"] == "2"


def test_the_seal_is_a_property_as_protobuf_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    data = export(
        path, tabular(features_of("regression", numeric=("x",), categories={})), [], {}
    ).read_bytes()
    assert whole(data)
    content = data[: -len(SEAL) - 64]
    model, end = onnx.ModelProto(), onnx.ModelProto()
    model.ParseFromString(content)
    assert model.SerializeToString() == content
    onnx.helper.set_model_props(end, {"digest": hashlib.sha256(content).hexdigest()})
    assert data == content + end.SerializeToString()
    for damaged in (data[:-1], data + b"0", data[:9] + b"?" + data[10:]):
        assert not whole(damaged)


def test_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails before the new bytes are safe leaves the old file as it was."""
    path = tmp_path / "m.onnx"
    learner = tabular(features_of("regression", numeric=("x",), categories={}))
    before = export(path, learner, [], {}).read_bytes()
    model = onnx.load(path)

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write(model, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_what_cannot_be_built_touches_nothing(tmp_path: Path) -> None:
    class Broken(Passing):
        def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
            return graph.op("Nonsense", numeric)

    with pytest.raises(onnx.checker.ValidationError, match="Nonsense"):
        export(tmp_path / "m.onnx", Broken("x"), [], {})
    assert list(tmp_path.iterdir()) == []
