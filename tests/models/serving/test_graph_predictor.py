"""ONNX files made elsewhere: answers equal to ONNX Runtime's own, and a sentence for what cannot
be served."""

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
from numpy.typing import NDArray
from onnx import numpy_helper

from engine.system import limited_process
from engine.types import Batch, Mark, Predictor, Schema, UserError
from models.serving.opening import open_model
from models.serving.settings import InferSettings
from tests.models.serving import graphs
from tests.models.serving.graphs import WEIGHTS, call_here, saved

Open = Callable[..., Predictor]
NUMBERS: Schema = {"a": pl.Float64(), "b": pl.Float64()}


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls what a child process does in this one: `test_in_a_child` has the real one."""

    monkeypatch.setattr(limited_process, "call", call_here)


@pytest.fixture
def opened(tmp_path: Path, here: None) -> Open:
    """(text of a graph, schema, keys of [infer]) -> its bound predictor."""

    def make(text: str, schema: Schema = NUMBERS, **keys: Any) -> Predictor:
        weights = keys.pop("weights", None)
        path = saved(tmp_path / "m.onnx", text, weights)
        predictor = open_model(InferSettings(model=str(path), threads=1, **keys))
        predictor.bind(schema)
        return predictor

    return make


def batch_of(frame: pl.DataFrame) -> Batch:
    reserved = pl.lit("p").alias("_partition"), pl.int_range(pl.len()).alias("_position")
    rows = frame.select(*reserved, pl.all())
    return Batch(frame=rows, mark=Mark(), arrived=0.0, raw_rows=frame.height)


def answered(predictor: Predictor, frame: pl.DataFrame) -> Batch:
    """The batch with answers; its rows stay in the account."""
    done = predictor.predict(predictor.collate(batch_of(frame)))
    assert done.raw_rows == len(done) + sum(map(len, done.rejects))
    assert {c: done.frame.schema[c] for c in predictor.answers} == predictor.answers
    return done


def rows(n: int = 20, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n)})


def scores_of(frame: pl.DataFrame) -> NDArray[np.float32]:
    return frame.select("a", "b").to_numpy().astype(np.float32) @ WEIGHTS


def sentence(make: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


# -------------------------------------------------------------------------------------- answers


def test_outputs_of_numbers_are_columns_unless_the_file_says_otherwise(opened: Open) -> None:
    predictor = opened(graphs.LINEAR, inputs={"x": ["a", "b"]})
    done = answered(predictor, rows())
    assert predictor.answers == {"scores": pl.Array(pl.Float32(), 3), "model_version": pl.String()}
    np.testing.assert_allclose(done.frame["scores"].to_numpy(), scores_of(rows()), rtol=1e-6)
    assert done.frame["model_version"].unique().to_list() == [predictor.info()["version"]]


def test_the_order_of_columns_is_the_files(opened: Open) -> None:
    done = answered(opened(graphs.LINEAR, inputs={"x": ["b", "a"]}), rows())
    wanted = scores_of(rows().select(a="b", b="a"))
    np.testing.assert_allclose(done.frame["scores"].to_numpy(), wanted, rtol=1e-6)


CLASSES = ["left", "middle", "right"]


def test_classes(opened: Open) -> None:
    output = {"column": "label", "answer": "classes", "classes": CLASSES}
    done = answered(
        opened(graphs.LINEAR, inputs={"x": ["a", "b"]}, outputs={"scores": output}), rows()
    )
    scores = scores_of(rows())
    assert done.frame["label"].to_list() == [CLASSES[i] for i in scores.argmax(axis=1)]
    np.testing.assert_allclose(done.frame["label_score"], scores.max(axis=1), rtol=1e-6)


def classes_of(opened: Open, labels: Any, classes: Any = (), **keys: Any) -> Predictor:
    keys = {"answer": "classes", "column": "y", **keys}
    table = {"classes": list(classes), **keys} if classes else keys
    return opened(graphs.classifier(labels), inputs={"x": ["a", "b"]}, outputs={"scores": table})


@pytest.mark.parametrize("answer", ["classes", "probabilities"])
@pytest.mark.parametrize("labels", [["yes", "no"], [0, 1]])
def test_classes_in_another_order_than_the_file_holds_are_refused(
    opened: Open, answer: str, labels: list[Any]
) -> None:
    first, second = map(str, labels)
    said = sentence(lambda: classes_of(opened, labels, [second, first], answer=answer))
    assert said == (
        f"[infer.outputs] 'scores' with answer = '{answer}' expects classes in the order of the "
        f"model file, '{first}', '{second}', got '{second}', '{first}'."
    )


def test_classes_that_the_file_holds_are_answered(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    frame = pl.DataFrame({"a": [0.9, 0.1], "b": [0.1, 0.9]})
    for given in ((), ["no", "yes"]):
        done = answered(classes_of(opened, ["no", "yes"], given), frame)
        assert done.frame["y"].to_list() == ["no", "yes"]
    done = answered(classes_of(opened, [0, 1], ["no", "yes"]), frame)
    assert done.frame["y"].to_list() == ["no", "yes"]
    with caplog.at_level(logging.INFO):
        done = answered(classes_of(opened, ["nein", "ja"], ["no", "yes"]), frame)
    assert done.frame["y"].to_list() == ["no", "yes"]
    assert "answers classes of the model file: 'nein' as 'no', 'ja' as 'yes'." in caplog.text


def test_labels_of_the_file_are_no_numbers_of_classes(opened: Open) -> None:
    table = {"label": {"answer": "classes", "classes": ["a", "b"]}}
    said = sentence(
        lambda: opened(graphs.classifier([1, 2]), inputs={"x": ["a", "b"]}, outputs=table)
    )
    assert said.endswith(
        "expects the numbers 0, 1, ... of the classes, got the labels '1', '2': answer with the "
        "scores, or with value."
    )


def test_the_best_classes_and_their_scores(opened: Open, tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("\n".join(CLASSES) + "\n")
    output = {"answer": "classes", "classes": str(file), "top": 2, "activation": "softmax"}
    done = answered(
        opened(graphs.LINEAR, inputs={"x": ["a", "b"]}, outputs={"scores": output}), rows()
    )
    scores = np.exp(scores_of(rows()).astype(float))
    scores /= scores.sum(axis=1, keepdims=True)
    best = np.argsort(-scores, axis=1)[:, :2]
    assert done.frame["scores"].to_list() == [[CLASSES[i] for i in row] for row in best]
    told = np.array(done.frame["scores_score"].to_list())
    np.testing.assert_allclose(told, np.take_along_axis(scores, best, axis=1), rtol=1e-5)


def test_one_score_is_of_the_second_class(opened: Open) -> None:
    output = {
        "answer": "classes",
        "classes": ["no", "yes"],
        "activation": "sigmoid",
        "threshold": 0.6,
    }
    predictor = opened(
        graphs.TAKES_EACH, {"a": pl.Float32(), "b": pl.Int64()}, outputs={"sum": output}
    )
    frame = pl.DataFrame({"a": [-1.0, 0.2, 1.0], "b": [0, 0, 0]})
    done = answered(predictor, frame)
    assert done.frame["sum"].to_list() == ["no", "no", "yes"]
    likely = 1 / (1 + np.exp([-1.0, 0.2, -1.0]))  # of the class that is answered
    np.testing.assert_allclose(done.frame["sum_score"], likely, rtol=1e-6)


def test_probabilities_are_a_column_each(opened: Open) -> None:
    output = {"column": "p", "answer": "probabilities", "classes": CLASSES, "activation": "softmax"}
    done = answered(
        opened(graphs.LINEAR, inputs={"x": ["a", "b"]}, outputs={"scores": output}), rows()
    )
    told = done.frame.select("p_left", "p_middle", "p_right").to_numpy()
    np.testing.assert_allclose(told.sum(axis=1), 1)
    assert told.argmax(axis=1).tolist() == scores_of(rows()).argmax(axis=1).tolist()


def test_scores_that_are_no_probabilities_are_no_answers(opened: Open) -> None:
    output = {"answer": "probabilities", "classes": CLASSES}
    predictor = opened(graphs.LINEAR, inputs={"x": ["a", "b"]}, outputs={"scores": output})
    done = answered(predictor, pl.DataFrame({"a": [0.5, 2.0], "b": [0.5, 0.0]}))
    (reject,) = done.rejects
    assert (reject.reason, len(done)) == ("no_probability", 1)
    assert "set activation to softmax or sigmoid" in reject.rows["detail"][0]


# --------------------------------------------------------------------------------------- inputs


def test_inputs_of_the_columns_names_need_no_table(
    opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="headrace.predictor"):
        predictor = opened(graphs.TAKES_EACH, {"b": pl.Int32(), "a": pl.Int64(), "more": pl.Date()})
    assert any("a <- a, b <- b" in record.getMessage() for record in caplog.records)
    done = answered(predictor, pl.DataFrame({"a": [1, 2], "b": [10, 20]}))
    assert done.frame["sum"].to_list() == [11.0, 22.0]


def test_the_one_column_that_fits_is_taken(opened: Open) -> None:
    schema: Schema = {"photo": pl.Array(pl.UInt8(), (2, 4, 3)), "name": pl.String()}
    predictor = opened(graphs.BRIGHTNESS, schema)
    assert predictor.columns_read(schema) == ("photo",)


def test_which_columns_side_by_side_is_not_guessed(opened: Open) -> None:
    said = sentence(lambda: opened(graphs.LINEAR))
    assert said.endswith(
        "reads x (float32, n x 2): say which columns they read, in their order, by [infer] "
        "inputs = {x = [...]}; there are a (float64), b (float64)."
    )


@pytest.mark.parametrize(
    ("text", "schema", "inputs", "wanted"),
    [
        (graphs.LINEAR, NUMBERS, {"x": ["a"]}, "expected 2 columns, got 1: a."),
        (graphs.LINEAR, NUMBERS, {"y": ["a"]}, "names 'y', which is no input of"),
        (graphs.LINEAR, NUMBERS, {"x": ["a", "c"]}, "needs column 'c', which is not there."),
        (graphs.LINEAR, {"a": pl.String(), "b": pl.Float64()}, {"x": ["a", "b"]},
         "expected numbers, got string in column 'a'."),
        (graphs.TAKES_EACH, NUMBERS, {}, "expected whole numbers, got float64 in column 'b'."),
        (graphs.TAKES_EACH, {"a": pl.Float64(), "c": pl.Int8(), "d": pl.Int8()}, {},
         "b (int64, n), and no column is called b: say which columns they read, in their order"),
        (graphs.BRIGHTNESS, {"image": pl.Array(pl.UInt8(), (4, 4, 1))}, {},
         "expected images of that shape, got images of 4 x 4 x 1 in column 'image'."),
        (graphs.BRIGHTNESS, {"image": pl.Binary()}, {}, "expected a row of that shape, got bytes"),
        (graphs.MEAN_OF_TOKENS, {"ids": pl.List(pl.String())}, {}, "lists of whole numbers"),
        (graphs.LINEAR, NUMBERS, {"x": {"constant": 1.0, "columns": ["a"]}}, "one of the keys"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_sentence(
    opened: Open, text: str, schema: Schema, inputs: Any, wanted: str
) -> None:
    try:
        said = sentence(lambda: opened(text, schema, inputs=inputs))
    except ValueError as error:  # pydantic's, where there is no pipeline file
        said = str(error)
    assert wanted in said


def test_pixels(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 2, 4, 3), dtype=np.uint8)
    frame = pl.DataFrame({"photo": pl.Series(pixels.reshape(-1)).reshape((5, 2, 4, 3))})
    schema = dict(frame.schema)
    with caplog.at_level(logging.INFO, logger="headrace.predictor"):
        plain = opened(graphs.BRIGHTNESS, schema, inputs={"image": "photo"})
    assert any("go to 'image' as 0 ... 1" in record.getMessage() for record in caplog.records)
    told = answered(plain, frame).frame["mean"].to_numpy()
    np.testing.assert_allclose(told, pixels.mean(axis=(1, 2)) / 255, rtol=1e-5)
    given = {"columns": "photo", "range": [0, 255], "channels": "BGR", "mean": 10.0, "std": 2.0}
    turned = opened(graphs.BRIGHTNESS, schema, inputs={"image": given})
    told = answered(turned, frame).frame["mean"].to_numpy()
    np.testing.assert_allclose(told, (pixels.mean(axis=(1, 2))[:, ::-1] - 10) / 2, rtol=1e-5)


TOKENS = pl.DataFrame({"ids": [[1, 3], [4], [2, 2, 2, 6]]}, schema={"ids": pl.List(pl.Int64)})


def test_lists_and_their_mask(opened: Open) -> None:
    predictor = opened(graphs.MEAN_OF_TOKENS, dict(TOKENS.schema))
    assert answered(predictor, TOKENS).frame["mean"].to_list() == [2.0, 4.0, 3.0]
    alone = [answered(predictor, TOKENS[i : i + 1]).frame["mean"][0] for i in range(3)]
    assert alone == [2.0, 4.0, 3.0]


def test_lists_are_cut_and_counted(opened: Open) -> None:
    given = {"ids": {"columns": "ids", "length": 2}, "ids_mask": {"mask": "ids"}}
    done = answered(opened(graphs.MEAN_OF_TOKENS, dict(TOKENS.schema), inputs=given), TOKENS)
    assert done.frame["mean"].to_list() == [2.0, 4.0, 2.0]
    assert done.counts["predict", "truncated"] == 2


SUM_OF_LIST = "g (float[n, {wide}] x) => (float[n, 1] sum) {{ sum = ReduceSum(x, one) }}"


@pytest.mark.parametrize("wide", [2, "length"])
def test_lists_of_any_length_need_a_length_or_a_mask(opened: Open, wide: object) -> None:
    """Padding to a batch's longest would make a row's answer depend on its batch."""
    text = SUM_OF_LIST.format(wide=wide)
    weights = {"one": np.array([1])}
    frame = pl.DataFrame({"x": [[1.0, 2.0], [5.0]]})
    if wide == "length":
        said = sentence(lambda: opened(text, dict(frame.schema), weights=weights))
        assert said.endswith("set [infer.inputs.x] length.")
    else:
        done = answered(opened(text, dict(frame.schema), weights=weights), frame)
        assert [(reject.reason, len(reject)) for reject in done.rejects] == [("length", 1)]
        assert done.frame["sum"].to_list() == [3.0]
    given = {"x": {"columns": "x", "length": 2, "pad": 10}}
    padded = opened(text, dict(frame.schema), weights=weights, inputs=given)
    assert answered(padded, frame).frame["sum"].to_list() == [3.0, 15.0]


CONSTANT = """
g (float[n, length] x, int64[n, length] kind, float factor) => (float[n, 1] sum) {
    k = Cast<to = 1>(kind)
    added = Add(x, k)
    raised = Mul(added, factor)
    sum = ReduceSum(raised, one)
}
"""


def test_constants_fill_what_has_no_column(opened: Open) -> None:
    given = {"x": ["a", "b"], "kind": {"constant": 1}, "factor": {"constant": 0.5}}
    predictor = opened(CONSTANT, inputs=given, weights={"one": np.array([1])})
    done = answered(predictor, pl.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]}))
    assert done.frame["sum"].to_list() == [3.0, 4.0]


# --------------------------------------------------------------------------------- rows that go


def test_rows_that_no_array_can_hold(opened: Open) -> None:
    schema: Schema = {"id": pl.Int64()}
    predictor = opened(graphs.BY_ID.replace("int64[n]", "int32[n]"), schema)
    done = answered(predictor, pl.DataFrame({"id": [0, None, 1 << 40, 1]}))
    reasons = {reject.reason: reject.rows["_position"].to_list() for reject in done.rejects}
    assert reasons == {"missing": [1], "out_of_range": [2]}
    np.testing.assert_array_equal(done.frame["row"].to_numpy(), WEIGHTS)


def test_a_row_for_which_the_graph_fails_goes_alone(opened: Open) -> None:
    predictor = opened(graphs.BY_ID, {"id": pl.Int64()})
    ids = [0, 1, 7, 1, 0, -9, 1]
    done = answered(predictor, pl.DataFrame({"id": ids}))
    assert done.frame["_position"].to_list() == [0, 1, 3, 4, 6]
    np.testing.assert_array_equal(done.frame["row"].to_numpy(), WEIGHTS[[0, 1, 1, 0, 1]])
    (reject,) = done.rejects
    assert reject.reason == "model_error"
    assert reject.rows["_position"].to_list() == [2, 5]
    assert reject.rows["detail"][0].startswith("The model fails on this row: ")


@pytest.mark.parametrize("value", [None, np.nan, np.inf])
def test_a_row_without_a_finite_answer_is_rejected(opened: Open, value: float | None) -> None:
    frame = rows(4).with_columns(b=pl.Series([0.0, value, 1.0, 2.0]))
    done = answered(opened(graphs.LINEAR, inputs={"x": ["a", "b"]}), frame)
    assert done.frame["_position"].to_list() == [0, 2, 3]
    (reject,) = done.rejects
    assert (reject.stage, reject.reason) == ("predict", "non_finite")
    good = frame.filter(pl.Series([True, False, True, True]))
    np.testing.assert_allclose(done.frame["scores"].to_numpy(), scores_of(good), rtol=1e-6)


def test_values_that_a_graph_answers_without_are_counted(opened: Open) -> None:
    text = "g (float[n] a) => (float[n] y) { gone = IsNaN(a) y = Cast<to = 1>(gone) }"
    done = answered(opened(text, {"a": pl.Float64()}), pl.DataFrame({"a": [1.0, None, 2.0]}))
    assert done.frame["y"].to_list() == [0, 1, 0]
    assert done.counts == {("predict", "missing a"): 1}


def test_the_cause_of_an_answer_that_is_not_finite(opened: Open) -> None:
    """A value that is missing or too large, or the model itself."""
    text = "g (float[n] a) => (float[n] y) { y = Log(a) }"
    a = pl.Series("a", [1.0, 0.0, None, -1.0, 1e39])
    frame = rows(5).with_columns(a)
    (reject,) = answered(opened(text, inputs={"a": "a"}), frame).rejects
    details = reject.rows.select("_position", "detail").rows()
    assert [(row, "too large" in detail) for row, detail in details] == [
        (1, False), (2, True), (3, False), (4, True),
    ]  # fmt: skip
    assert details[0][1].endswith("answers these values, which are finite, with NaN or infinity.")


@pytest.mark.parametrize(
    "output",
    [
        {"answer": "vector"},
        {"answer": "classes", "classes": CLASSES},
        {"answer": "classes", "classes": CLASSES, "top": 2},
        {"answer": "probabilities", "classes": CLASSES, "activation": "softmax"},
        {"answer": "probabilities", "classes": CLASSES},
    ],
)
def test_no_rows_and_no_rows_left(opened: Open, output: dict[str, Any]) -> None:
    """As while a topic is idle, and where each row of a batch is rejected."""
    predictor = opened(graphs.LINEAR, inputs={"x": ["a", "b"]}, outputs={"scores": output})
    full = answered(predictor, pl.DataFrame({"a": [0.5], "b": [0.5]}))
    assert len(full) == 1
    empty, left = answered(predictor, rows(0)), answered(predictor, rows(3) * np.nan)
    assert (len(empty), len(empty.rejects)) == (0, 0)
    assert (len(left), [len(reject) for reject in left.rejects]) == (0, [3])
    assert empty.frame.schema == left.frame.schema == full.frame.schema


# ------------------------------------------------------------------------------------ batch size


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("n", [0, 1, 3, 4, 9])
def test_a_fixed_batch_size_is_fed_in_pieces(opened: Open, size: int, n: int) -> None:
    text = graphs.FIXED.replace("{rows}", str(size))
    done = answered(opened(text, inputs={"x": ["a", "b"]}), rows(n))
    assert len(done) == n
    np.testing.assert_allclose(done.frame["scores"].to_numpy(), scores_of(rows(n)), rtol=1e-6)


@pytest.mark.parametrize("text", [graphs.MIXES_ROWS, graphs.MIXES_ROWS.replace("[n,", "[4,")])
def test_rows_that_influence_each_other_are_refused(opened: Open, text: str) -> None:
    said = sentence(lambda: opened(text, inputs={"x": ["a", "b"]}))
    assert "output 'y' of a row changes with the other rows of its batch" in said


def test_an_output_without_rows_is_refused(opened: Open) -> None:
    said = sentence(lambda: opened(graphs.SUMS_UP, inputs={"x": ["a", "b"]}))
    assert said.endswith(
        "output 'total' for 3 rows has shape 1 x 1, and expected a first dimension of 3: an answer "
        "for each row."
    )


RANDOM = """
g (float[n, 2] x) => (float[n, 2] y) {
    noise = RandomNormalLike(x)
    y = Add(x, noise)
}
"""
RANGES = """
g (float[n, 2] x) => (float[n, 2] y) {
    q, scale, zero = DynamicQuantizeLinear(x)
    y = DequantizeLinear(q, scale, zero)
}
"""


@pytest.mark.parametrize(
    ("text", "said"), [(RANDOM, "draws random numbers"), (RANGES, "by its own range")]
)
def test_answers_that_are_not_a_rows_alone_are_said(
    opened: Open, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    with caplog.at_level(logging.INFO, logger="headrace.predictor"):
        predictor = opened(text, inputs={"x": ["a", "b"]})
    assert any(said in record.getMessage() for record in caplog.records)
    assert len(answered(predictor, rows(5))) == 5


# ----------------------------------------------------------------------------------- wrong files


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (graphs.TEXT_OUT, "gives label (text, n): expected an output of numbers."),
        (graphs.UNKNOWN, "ONNX Runtime does not have its operators MagicAttention."),
        ("g (float[n] x) => () { y = Neg(x) }", "it has no outputs."),
    ],
)
def test_what_no_column_can_be_is_refused(opened: Open, text: str, wanted: str) -> None:
    assert sentence(lambda: opened(text)).endswith(wanted)


def test_an_output_that_is_none(opened: Open) -> None:
    said = sentence(lambda: opened(graphs.LINEAR, outputs={"score": "label"}))
    assert "names 'score', which is no output of [infer] model" in said
    assert said.endswith("Did you mean 'scores'?")


def test_an_answer_that_is_none(opened: Open) -> None:
    said = sentence(lambda: opened(graphs.LINEAR, outputs={"scores": {"answer": "class"}}))
    assert said == "[infer.outputs.scores] has no answer 'class'. Did you mean 'classes'?"


@pytest.mark.parametrize("column", ["a", "_position", "_part", "model_version"])
def test_a_column_that_is_there_already(opened: Open, column: str) -> None:
    said = sentence(
        lambda: opened(graphs.LINEAR, inputs={"x": ["a", "b"]}, outputs={"scores": column})
    )
    assert said.startswith(f"Column '{column}' is there already")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 a zip", b"{}\n", b"\x00" * 100], ids=str)
def test_not_an_onnx_file(tmp_path: Path, here: None, data: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    said = sentence(lambda: open_model(InferSettings(model=str(path))))
    assert said.startswith(f"[infer] model '{path}' cannot be served: it is no ONNX model (")


def test_a_headrace_file_that_was_changed_is_damaged(tmp_path: Path, here: None) -> None:
    path = saved(tmp_path / "m.onnx", graphs.LINEAR)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"format": "headrace/1"})
    onnx.save(model, path)
    said = sentence(lambda: open_model(InferSettings(model=str(path))))
    assert said.endswith("its content does not have its digest; export it again.")


@pytest.mark.parametrize(
    ("location", "wanted"),
    [
        ("../weights.bin", "it keeps weights in '../weights.bin', outside its folder."),
        ("/etc/hostname", "it keeps weights in '/etc/hostname', outside its folder."),
        ("link.bin", "it keeps weights in 'link.bin', outside its folder."),
        ("gone.bin", "it keeps weights in 'gone.bin' beside it, which is not there."),
    ],
)
def test_weights_beside_the_file(tmp_path: Path, here: None, location: str, wanted: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    path = external(folder, location)
    said = sentence(lambda: open_model(InferSettings(model=str(path))))
    assert said.endswith(wanted)


def test_weights_in_the_files_folder_serve(tmp_path: Path, here: None) -> None:
    (tmp_path / "weights.bin").write_bytes(WEIGHTS.tobytes())
    path = external(tmp_path, "weights.bin")
    predictor = open_model(InferSettings(model=str(path), inputs={"x": ["a", "b"]}))
    predictor.bind(NUMBERS)
    done = answered(predictor, rows())
    np.testing.assert_allclose(done.frame["scores"].to_numpy(), scores_of(rows()), rtol=1e-6)
    digest = predictor.info()["digest"]
    (tmp_path / "weights.bin").write_bytes((2 * WEIGHTS).tobytes())
    assert open_model(InferSettings(model=str(path))).info()["digest"] != digest


def external(folder: Path, location: str) -> Path:
    """The linear graph with its weights in another file."""
    path = saved(folder / "m.onnx", graphs.LINEAR)
    model = onnx.load(path)
    (tensor,) = model.graph.initializer
    tensor.CopyFrom(numpy_helper.from_array(WEIGHTS, "w"))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    path.write_bytes(model.SerializeToString())
    return path


# ------------------------------------------------------------------------------ in a child process


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (graphs.LOOPS, "running it on a few rows took more than 3 s of processor time."),
        (graphs.HUGE, "cannot be served: "),
    ],
    ids=["loops", "huge"],
)
def test_in_a_child(tmp_path: Path, text: str, wanted: str) -> None:
    path = saved(tmp_path / "m.onnx", text)
    settings = InferSettings(model=str(path), inputs={"x": ["a", "b"]}, max_seconds=3)

    def serve() -> None:
        open_model(settings).bind(NUMBERS)

    assert wanted in sentence(serve)


def test_serves_after_a_child_has_tried_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.onnx", graphs.LINEAR)
    predictor = open_model(InferSettings(model=str(path), inputs={"x": ["a", "b"]}))
    predictor.bind(NUMBERS)
    frame = rows(50)
    bare = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    wanted = bare.run(None, {"x": frame.to_numpy().astype(np.float32)})[0]
    np.testing.assert_array_equal(answered(predictor, frame).frame["scores"].to_numpy(), wanted)


def test_the_detail_of_a_rejected_row_is_its_values(opened: Open) -> None:
    done = answered(opened(graphs.BY_ID, {"id": pl.Int64()}), pl.DataFrame({"id": [9]}))
    assert json.loads(done.rejects[0].rows["value"][0]) == {"id": 9}
