"""Adopting a file: a freed batch size is proved, or the file stays as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from engine.system import limited_process
from engine.system.limited_process import Limits
from engine.types import UserError
from models.serving.adopt.adoption import Adoption, adopt
from models.serving.adopt.infer_table import infer_table
from models.serving.settings import InputSettings
from tests.models.serving import graphs
from tests.models.serving.graphs import HEAD, WEIGHTS, call_here, saved

LIMITS = Limits(seconds=60, memory=2 << 30)
RESHAPED = """
g (float[{rows}, 2, 3] x) => (float[{rows}, 6] y) {
    flat = Reshape(x, shape)
    y = Relu(flat)
}
"""
"""Its file names the batch size once more."""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls what a child process does in this one."""

    monkeypatch.setattr(limited_process, "call", call_here)


def adopted(path: Path, **shapes: tuple[int | str | None, ...]) -> Adoption:
    return adopt(path, path.with_name("free.onnx"), shapes, LIMITS).publish()


def run(path: Path, **feed: Any) -> list[Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, feed)
    return outputs


@pytest.mark.parametrize("size", [1, 4])
def test_a_fixed_batch_size_is_freed(tmp_path: Path, size: int) -> None:
    found = adopted(saved(tmp_path / "m.onnx", graphs.FIXED, rows=size))
    assert found.fixed == size
    assert found.proof is not None
    assert (found.proof.failure, found.proof.rows, found.proof.compared) == ("", 7, True)
    assert found.proof.apart < 1e-6
    assert found.path == tmp_path / "free.onnx"
    x = np.random.default_rng(1).normal(size=(9, 2)).astype(np.float32)
    np.testing.assert_allclose(run(found.path, x=x)[0], x @ WEIGHTS, rtol=1e-5)
    assert str(found.served.inputs[0]) == "x (float32, n x 2)"


@pytest.mark.parametrize("size", [1, 4])
def test_reshapes_to_the_old_size_are_freed_too(tmp_path: Path, size: int) -> None:
    weights = {"shape": np.array([size, 6])}
    found = adopted(saved(tmp_path / "m.onnx", RESHAPED, weights, rows=size))
    assert found.proof is not None
    assert found.proof.failure == ""
    x = np.random.default_rng(1).normal(size=(5, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(run(found.path, x=x)[0], np.maximum(x.reshape(5, 6), 0))


RECURRENT = """
g (float[{rows}, 4, 2] x) => (float[1, {rows}, 3] last) {
    steps = Transpose<perm = [1, 0, 2]>(x)
    every, last = GRU<hidden_size = 3>(steps, w, r, , , first)
}
"""
ROWS_FIRST = (
    RECURRENT.replace("float[1, {rows}, 3] last", "float[{rows}, 3] state")
    .replace("    every", "    shape = Constant<value_ints = [{rows}, 3]>()\n    every")
    .replace("\n}", "\n    state = Reshape(last, shape)\n}")
)


def test_first_states_of_the_old_size_are_freed_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.normal(size=(1, 9, 2)).astype(np.float32),
        "r": rng.normal(size=(1, 9, 3)).astype(np.float32),
        "first": np.zeros((1, 1, 3), np.float32),
    }
    found = adopted(saved(tmp_path / "m.onnx", ROWS_FIRST, weights, rows=1))
    assert found.proof is not None
    assert found.proof.failure == ""
    x = rng.normal(size=(5, 4, 2)).astype(np.float32)
    wanted = [run(tmp_path / "m.onnx", x=x[i : i + 1])[0] for i in range(5)]
    np.testing.assert_allclose(run(found.path, x=x)[0], np.concatenate(wanted), rtol=1e-5)


def test_what_is_not_proved_stays_as_it_is(tmp_path: Path) -> None:
    text = graphs.MIXES_ROWS.replace("[n,", "[1,")
    path = saved(tmp_path / "m.onnx", text)
    found = adopted(path)
    assert found.proof is not None
    assert "answers change by" in found.proof.failure
    assert found.path == path
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_free_file_is_not_written_again(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", graphs.LINEAR)
    found = adopted(path)
    assert (found.fixed, found.changes, found.proof, found.path) == (None, (), None, path)


def test_a_new_shape(tmp_path: Path) -> None:
    text = graphs.BRIGHTNESS.replace("n, 3, h, w", "1, 3, 4, 4")
    path = saved(tmp_path / "m.onnx", text)
    found = adopted(path, image=("n", 3, "h", "w"))
    assert found.proof is not None
    assert found.proof.failure == ""
    x = np.random.default_rng(1).random((2, 3, 5, 9), np.float32)
    np.testing.assert_allclose(run(found.path, image=x)[0], x.mean(axis=(2, 3)), rtol=1e-5)
    other = adopted(path, image=("n", 3, 6, 6))
    assert other.proof is not None
    assert (other.proof.failure, other.proof.compared) == ("", False)


@pytest.mark.parametrize(
    ("shapes", "wanted"),
    [
        ({"images": ("n",)}, "Did you mean 'image'?"),
        ({"image": ("n", 3)}, "--shape image: expected 4 sizes, got 2."),
    ],
)
def test_a_wrong_shape_is_a_sentence(tmp_path: Path, shapes: Any, wanted: str) -> None:
    path = saved(tmp_path / "m.onnx", graphs.BRIGHTNESS)
    with pytest.raises(UserError) as error:
        adopted(path, **shapes)
    assert str(error.value).endswith(wanted)


def test_a_map_of_classes_becomes_an_array(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = onnx.parser.parse_model(HEAD + graphs.LINEAR)
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "w"))
    node = helper.make_node(
        "ZipMap", ["scores"], ["probabilities"], domain="ai.onnx.ml",
        classlabels_strings=["right", "left", "middle"],
    )  # fmt: skip
    model.graph.node.append(node)
    number = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [])
    mapped = helper.make_sequence_type_proto(helper.make_map_type_proto(8, number))
    model.graph.output[0].CopyFrom(helper.make_value_info("probabilities", mapped))
    onnx.save(model, path)
    found = adopted(path)
    assert str(found.graph.outputs[0]) == (
        "probabilities (seq(map(text, float32)), of unknown shape)"
    )
    assert found.proof is not None
    assert found.proof.failure == ""
    x = np.eye(2, dtype=np.float32)
    np.testing.assert_array_equal(run(found.path, x=x)[0], WEIGHTS)
    table = tomllib.loads(str(infer_table(found, {"x": InputSettings(columns=("a", "b"))})))
    assert table["infer"]["inputs"] == {"x": ["a", "b"]}
    assert table["infer"]["outputs"] == {
        "probabilities": {
            "column": "probabilities",
            "answer": "classes",
            "classes": ["right", "left", "middle"],
        }
    }


def test_the_table_is_toml_whatever_the_names(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(HEAD + graphs.LINEAR)
    model.graph.initializer.append(numpy_helper.from_array(WEIGHTS, "w"))
    model.graph.input[0].name = model.graph.node[0].input[0] = 'input.1 "ä"'
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    table = tomllib.loads(str(infer_table(adopted(path), {})))["infer"]
    assert table["model"] == str(path)
    assert table["inputs"] == {'input.1 "ä"': 'input.1 "ä"'}
    assert table["outputs"] == {"scores": {"column": "scores", "answer": "vector"}}
