"""Smaller numbers in a model file: what becomes small, what stays, and what it costs."""

from __future__ import annotations

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
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from engine.types import (
    Affine,
    Batch,
    Clip,
    Codes,
    Features,
    Fill,
    HeadraceError,
    Mark,
    Tensors,
    Transform,
)
from models.compress.quantize import CANDIDATES, vnni
from models.export.model import export
from models.export.model_files import write
from models.export.onnx_graph import Graph
from models.export.onnx_inputs import Feed, OnnxInputs
from models.learners.tabular import TabularLearner

Files = dict[str, Path]

NAMES = ("a", "b", "c", "a_missing")
KEYS = ("n", "e", "s", "w")
TASKS = {"regression": (), "binary": ("no", "yes"), "multiclass": ("x", "y", "z")}
FRONT: list[Transform] = [
    Fill(column="a", value=1e9, indicator="a_missing"),
    Affine(column="a", shift=1e9, scale=1e-3),
    Clip(column="b", low=-3.0, high=3.0),
    Codes(column="key", values=KEYS),
]
"""`a` is about 1e9 with a spread of 1,000: float32, let alone less, would lose it."""
NEAR = {"int8": 0.1, "int8_dynamic": 0.1, "float16": 0.005}
"""Largest difference of a score from float32's that is still near, in deviations of the scores."""


def rows(n: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {
            "a": 1e9 + 1e3 * rng.normal(size=n),
            "b": rng.normal(size=n),
            "c": rng.normal(size=n),
            "key": rng.choice([*KEYS, "never"], n),
        }
    )
    gone = pl.Series(rng.random(n) < 0.1)
    return frame.with_columns(a=pl.when(gone).then(None).otherwise(pl.col("a")))


def learner_of(task: str) -> TabularLearner:
    """Trained on what the stages make of rows: standard normal numbers and codes."""
    features = Features(
        numeric=NAMES, categories={"key": 5}, target="y", task=task, classes=TASKS[task]
    )
    model = TabularLearner.Settings(layers=(64, 32))
    learner = TabularLearner(
        model, TabularLearner.Training(optimizer="adam", lr=0.001, replay_rows=0), features
    )
    rng = np.random.default_rng(0)
    for _ in range(30):
        learner.learn(taught(rng, task))
    return learner


def taught(rng: np.random.Generator, task: str) -> Batch:
    numeric = rng.normal(size=(128, 4)).astype(np.float32)
    codes = rng.integers(0, 5, (128, 1))
    signal = numeric[:, 0] + numeric[:, 1] * numeric[:, 2] + codes[:, 0] - 2
    target = {
        "regression": signal.astype(np.float32),
        "binary": (signal > 0).astype(np.int64),
        "multiclass": np.digitize(signal, [-1.0, 1.0]).astype(np.int64),
    }[task]
    tensors = Tensors(
        numeric=torch.from_numpy(numeric),
        categories=torch.from_numpy(codes),
        target=torch.from_numpy(target),
    )
    return Batch(frame=pl.DataFrame(), mark=Mark(), arrived=0.0, tensors=tensors)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Files]:
    """Task -> the float32 file and every candidate of it, made once."""
    done: dict[str, Files] = {}

    def make(task: str) -> Files:
        if task not in done:
            folder = tmp_path_factory.mktemp(task)
            metadata = {"version": "v3", "stages": '["scale"]'}
            model = export(folder / "m.onnx", learner_of(task), FRONT, metadata)
            done[task] = {"float32": model}
            for name, build in CANDIDATES.items():
                build(model, folder / f"m.{name}.onnx", calibration())
                done[task][name] = folder / f"m.{name}.onnx"
        return done[task]

    return make


def calibration() -> list[Feed]:
    inputs = OnnxInputs({"a": "double", "b": "double", "c": "double", "key": "string"})
    return [inputs.feed(rows(256, seed)) for seed in (1, 2)]


def bare(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def properties(path: Path) -> dict[str, str]:
    found: dict[str, str] = bare(path).get_modelmeta().custom_metadata_map
    return found


def scores(path: Path, frame: pl.DataFrame) -> NDArray[np.float32]:
    found: NDArray[np.float32] = bare(path).run(
        ["score"], OnnxInputs(json.loads(properties(path)["inputs"])).feed(frame)
    )[0]
    return found


Make = Callable[[str], Files]


@pytest.mark.parametrize("name", CANDIDATES)
@pytest.mark.parametrize("task", TASKS)
def test_scores_near_float32(made: Make, task: str, name: str) -> None:
    files, held_out = made(task), rows(2_000, seed=9)
    base, small = scores(files["float32"], held_out), scores(files[name], held_out)
    assert small.dtype == np.float32
    assert small.shape == base.shape
    assert base.std() > 0.1
    gap = np.abs(small - base) / base.std()
    assert gap.mean() > 0  # it does reckon otherwise
    assert np.quantile(gap, 0.99) < NEAR[name]
    assert np.isfinite(small).all()


@pytest.mark.parametrize("name", CANDIDATES)
def test_metadata_stays_but_for_the_precision(made: Make, name: str) -> None:
    files = made("multiclass")
    before, after = properties(files["float32"]), properties(files[name])
    assert before["precision"] == "float32"
    assert before.pop("digest") != after.pop("digest")
    assert after == {**before, "precision": name}


@pytest.mark.parametrize("name", CANDIDATES)
def test_inputs_and_output_stay(made: Make, name: str) -> None:
    files = made("binary")

    def face(path: Path) -> list[tuple[str, str, list[object]]]:
        session = bare(path)
        return [(x.name, x.type, x.shape) for x in (*session.get_inputs(), *session.get_outputs())]

    assert face(files[name]) == face(files["float32"])


@pytest.mark.parametrize("name", CANDIDATES)
def test_stages_stay_double(made: Make, name: str) -> None:
    """Every number of the stages is in the candidate as it was, to the bit."""
    files = made("regression")
    before, after = doubles(files["float32"]), doubles(files[name])
    assert any(1e9 in values for values in before)
    assert after == before


def doubles(path: Path) -> list[list[float]]:
    constants = onnx.load(path).graph.initializer
    arrays = (numpy_helper.to_array(t) for t in constants if t.data_type == TensorProto.DOUBLE)
    return sorted(array.ravel().tolist() for array in arrays)


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [
        ("int8", TensorProto.INT8, 1),
        ("int8_dynamic", TensorProto.INT8, 1),
        ("float16", TensorProto.FLOAT16, 2),
    ],
)
def test_the_layers_become_small(made: Make, name: str, kind: int, size: int) -> None:
    constants = onnx.load(made("regression")[name]).graph.initializer
    shapes = [tuple(t.dims) for t in constants if t.data_type == kind]
    width = 4 + 4  # numbers, and the key's embedding
    assert {(width, 64), (64, 32), (32, 1)} <= set(shapes)
    weights = [t for t in constants if len(t.dims) == 2 and 32 in t.dims]
    assert sum(len(t.raw_data) for t in weights) == size * 32 * 65


@pytest.mark.parametrize("name", ["int8", "int8_dynamic"])
def test_weights_are_symmetric(made: Make, name: str) -> None:
    """Zero is 0 in them, so no product needs a correction."""
    constants = onnx.load(made("binary")[name]).graph.initializer
    zeros = [
        numpy_helper.to_array(t)
        for t in constants
        if "zero_point" in t.name and t.data_type == TensorProto.INT8
    ]
    assert zeros
    assert all((array == 0).all() for array in zeros)


@pytest.mark.parametrize("name", CANDIDATES)
@pytest.mark.parametrize("value", [None, np.inf, -np.inf])
def test_no_number_is_still_no_score(made: Make, name: str, value: float | None) -> None:
    """int8 would make the smallest or largest of its numbers of it."""
    frame = rows(6, seed=3).with_columns(c=pl.Series([0.0, value, 1.0, value, 2.0, 3.0]))
    for task in TASKS:
        found = scores(made(task)[name], frame).reshape(6, -1)
        assert np.isnan(found[[1, 3]]).all()
        assert np.isfinite(found[[0, 2, 4, 5]]).all()


@pytest.mark.parametrize("name", CANDIDATES)
def test_leaves_nothing_behind(tmp_path: Path, made: Make, name: str) -> None:
    """Neither files beside the candidate, nor another level of the root logger."""
    model = made("binary")["float32"]
    before, level = model.read_bytes(), logging.getLogger().level
    CANDIDATES[name](model, tmp_path / "made.onnx", calibration())
    assert [path.name for path in tmp_path.iterdir()] == ["made.onnx"]
    assert model.read_bytes() == before
    assert logging.getLogger().level == level


def test_static_int8_needs_calibration(tmp_path: Path, made: Make) -> None:
    level = logging.getLogger().level
    with pytest.raises(ValueError, match="No data is collected"):
        CANDIDATES["int8"](made("binary")["float32"], tmp_path / "made.onnx", [])
    assert list(tmp_path.iterdir()) == []
    assert logging.getLogger().level == level


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flags\t: fpu avx2 avx512f avx512_vnni", True),
        ("flags\t: fpu avx2 avx_vnni", True),
        ("flags\t: fpu avx2 avx512f", False),
        (None, True),
    ],
)
def test_vnni(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, expected: bool
) -> None:
    """By what Linux says of the CPU; where it says nothing (other systems), yes."""
    info = tmp_path / "cpuinfo"
    if text is not None:
        info.write_text(text)
    monkeypatch.setattr("models.compress.quantize.Path", lambda _: info)
    assert vnni() is expected


@pytest.mark.parametrize("name", ["int8", "int8_dynamic"])
def test_without_vnni_weights_take_seven_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Make, name: str
) -> None:
    """Two products of 8-bit numbers can be too large for the 16 bits older CPUs add them in."""
    largest = {}
    for there in (True, False):
        monkeypatch.setattr("models.compress.quantize.vnni", lambda there=there: there)
        path = tmp_path / f"{there}.onnx"
        CANDIDATES[name](made("regression")["float32"], path, calibration())
        constants = onnx.load(path).graph.initializer
        weights = [numpy_helper.to_array(t) for t in constants if t.data_type == TensorProto.INT8]
        largest[there] = max(int(np.abs(w.astype(int)).max()) for w in weights if w.ndim == 2)
    assert largest[True] == 127
    assert largest[False] <= 64


def test_layers_of_a_converter_become_small_too(tmp_path: Path) -> None:
    """Its weights are turned (``transB``), its products without a bias stay as they are."""
    rng = np.random.default_rng(0)
    graph = Graph()
    x = graph.input("x", TensorProto.FLOAT, ["n", 64])
    weight, other = rng.normal(size=(2, 64, 64)).astype(np.float32)
    layer = graph.op("Gemm", x, graph.constant(weight), graph.constant(other[0]), transB=1)
    scores = graph.op("Gemm", graph.op("Relu", layer), graph.constant(other), alpha=0.5)
    outputs: dict[str, tuple[str, int, list[int | str]]] = {}
    outputs["score"] = (scores, TensorProto.FLOAT, ["n", 64])
    model = write(graph.model(outputs, {}), tmp_path / "m.onnx")
    CANDIDATES["int8_dynamic"](model, tmp_path / "small.onnx", [])
    feed = {"x": rng.normal(size=(50, 64)).astype(np.float32)}
    wanted, got = (bare(path).run(None, feed)[0] for path in (model, tmp_path / "small.onnx"))
    assert np.abs(got - wanted).max() < 0.1 * wanted.std()
    kinds = [node.op_type for node in onnx.load(tmp_path / "small.onnx").graph.node]
    assert "MatMulInteger" in kinds
    assert kinds.count("Gemm") == 1


def of_graph(build: Callable[[Graph, str], str], shape: list[int | str], path: Path) -> Path:
    """The file of a network that reads `x` and gives `score`."""
    graph = Graph()
    score = build(graph, graph.input("x", TensorProto.FLOAT, shape))
    outputs: dict[str, tuple[str, int, list[int | str]]] = {}
    outputs["score"] = (score, TensorProto.FLOAT, ["n", 3])
    return write(graph.model(outputs, {}), path)


def drawn(*shape: int) -> NDArray[np.float32]:
    scale = np.sqrt(2 / np.prod(shape[1:]))
    found: NDArray[Any] = scale * np.random.default_rng(sum(shape)).normal(size=shape)
    return found.astype(np.float32)


def convolutions(graph: Graph, x: str) -> str:
    """Two convolutions, the second added to what it reads; then a mean and a product."""

    def over(given: str, width: int, channels: int) -> str:
        weight, bias = graph.constant(drawn(width, channels, 3, 3)), graph.constant(drawn(width))
        return graph.op("Conv", given, weight, bias, pads=[1, 1, 1, 1])

    first = graph.op("Relu", over(x, 16, 3))
    second = graph.op("Relu", graph.op("Add", first, over(first, 16, 16)))
    mean = graph.op("Flatten", graph.op("GlobalAveragePool", graph.op("MaxPool", second,
        kernel_shape=[2, 2], strides=[2, 2])))  # fmt: skip
    return graph.op("Gemm", mean, graph.constant(drawn(16, 3)), graph.constant(drawn(3)))


def cells(graph: Graph, x: str) -> str:
    """An LSTM whose weights are put together in the graph, as torch writes it."""
    halves = [graph.constant(drawn(1, 64, 8)) for _ in range(2)]
    weights = graph.op("Concat", *halves, axis=1)
    kept = graph.constant(drawn(1, 128, 32))
    steps = graph.op("Transpose", x, perm=[1, 0, 2])
    every = graph.op("LSTM", steps, weights, kept, hidden_size=32)
    mean = graph.op("ReduceMean", every, axes=[0, 1], keepdims=0)
    return graph.op("Gemm", mean, graph.constant(drawn(32, 3)), graph.constant(drawn(3)))


def small(name: str, model: Path, shape: tuple[int, ...]) -> tuple[onnx.ModelProto, float]:
    """The candidate and the mean difference of its scores, in deviations of float32's."""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.random((32, *shape), np.float32)} for _ in range(3)]
    path = model.with_name(f"{name}.onnx")
    CANDIDATES[name](model, path, feeds[:2])
    wanted, got = (bare(file).run(None, feeds[2])[0] for file in (model, path))
    return onnx.load(path), float((np.abs(got - wanted) / wanted.std(0)).mean())


def test_convolutions_and_what_stands_between_them_become_small(tmp_path: Path) -> None:
    model = of_graph(convolutions, ["n", 3, 8, 8], tmp_path / "m.onnx")
    made, gap = small("int8", model, (3, 8, 8))
    assert gap < 0.2
    weights = {tuple(t.dims) for t in made.graph.initializer if t.data_type == TensorProto.INT8}
    assert {(16, 3, 3, 3), (16, 16, 3, 3), (16, 3)} <= weights
    rounded = {n.input[0] for n in made.graph.node if n.op_type == "QuantizeLinear"}
    by_kind = {n.op_type: n.output[0] for n in made.graph.node}
    assert rounded >= {by_kind[kind] for kind in ("Add", "MaxPool", "GlobalAveragePool")}
    assert by_kind["Gemm"] not in rounded


def test_scores_are_not_rounded(made: Make) -> None:
    """A regression has more than 256 answers."""
    found = scores(made("regression")["int8"], rows(2_000, seed=9))
    assert len(np.unique(found)) > 1_500


def test_cells_of_an_lstm_become_small(tmp_path: Path) -> None:
    model = of_graph(cells, ["n", 5, 8], tmp_path / "m.onnx")
    made, gap = small("int8_dynamic", model, (5, 8))
    assert gap < 0.2
    assert "DynamicQuantizeLSTM" in {node.op_type for node in made.graph.node}
    weights = [t for t in made.graph.initializer if t.data_type == TensorProto.INT8]
    assert max(len(t.raw_data) for t in weights) == 128 * 32


def test_nothing_to_quantize_is_said(tmp_path: Path) -> None:
    """The scores of trees, or of one product by an input, have no weights that int8 takes."""
    model = of_graph(lambda graph, x: graph.op("Relu", x), ["n", 3], tmp_path / "m.onnx")
    with pytest.raises(HeadraceError, match="no product by known weights"):
        CANDIDATES["int8"](model, tmp_path / "made.onnx", [{"x": drawn(2, 3)}])


def test_trees_have_no_float16(tmp_path: Path) -> None:
    node = onnx.helper.make_node("TreeEnsembleRegressor", ["x"], ["score"], domain="ai.onnx.ml")
    graph = onnx.helper.make_graph([node], "trees", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "trees.onnx")
    with pytest.raises(HeadraceError, match=r"^trees have no float16$"):
        CANDIDATES["float16"](tmp_path / "trees.onnx", tmp_path / "small.onnx", [])
    assert not (tmp_path / "small.onnx").exists()
