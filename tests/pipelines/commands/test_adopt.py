"""ONNX files made elsewhere, through the command: adopt, check, run and predict."""

from __future__ import annotations

import errno
import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest

from engine.system import limited_process
from tests.models.serving import graphs
from tests.models.serving.graphs import call_here, saved
from tests.pipelines.conftest import Headrace

CLASSES = ["left", "middle", "right"]
SERVING = """
name = "served"
folder = {folder}
[source]
kind = "files"
path = {data}
[scrub.sums]
kind = "derive"
columns = {{double = "a + a"}}
[sink]
kind = "files"
path = {out}
[dead_letters]
limit = 0.5
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A pipeline that cleans four rows of two numbers; one lacks a number."""
    rows = pl.DataFrame({"a": [1.0, -2.0, None, 4.0], "b": [0.5, 3.0, 1.0, 9.0]})
    rows.write_csv(tmp_path / "rows.csv")
    names = {"folder": "run", "data": "rows.csv", "out": "out"}
    paths = {name: json.dumps(str(tmp_path / path)) for name, path in names.items()}
    file = tmp_path / "served.toml"
    file.write_text(SERVING.format(**paths))
    return file


def written(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "out" / "*.parquet")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_adopted_checked_and_run(headrace: Headrace, pipeline: Path, tmp_path: Path) -> None:
    """A batch of one is freed; the [infer] table is written, edited and served."""
    model = saved(tmp_path / "m.onnx", graphs.FIXED.replace("x", "double"), rows=1)
    code, out, err = headrace("adopt", model, "--shape", "double=n,2")
    assert code == 0, err
    assert "1 row at a time" in out
    assert "Proved equal: 7 rows in batches of 1, 2, 3 and 7" in out
    assert (tmp_path / "m.adopted.onnx").exists()
    table = tomllib.loads(out[out.index("[infer]") :])["infer"]
    assert table["outputs"] == {"scores": {"column": "scores", "answer": "vector"}}

    text = pipeline.read_text()
    pipeline.write_text(
        f"{text}\n[infer]\nmodel = {json.dumps(table['model'])}\n"
        'inputs = {double = ["double", "b"]}\n'
        f'outputs = {{scores = {{column = "side", answer = "classes", classes = {CLASSES}}}}}\n'
    )
    code, out, err = headrace("check", pipeline)
    assert code == 0, out + err
    code, out, err = headrace("run", pipeline)
    assert code == 0, err
    frame = written(tmp_path)
    bare = onnxruntime.InferenceSession(table["model"], providers=["CPUExecutionProvider"])
    x = np.array([[2.0, 0.5], [-4.0, 3.0], [8.0, 9.0]], np.float32)
    scores = bare.run(None, {"double": x})[0]
    assert frame["side"].to_list() == [CLASSES[i] for i in scores.argmax(axis=1)]
    np.testing.assert_allclose(frame["side_score"], scores.max(axis=1), rtol=1e-6)
    pipeline.write_text(pipeline.read_text().replace('"side"', '"which"'))
    code, _, err = headrace("run", pipeline)
    assert code == 0, err
    assert "[infer] outputs has changed since the checkpoint" in err


def test_adopt_writes_into_a_pipeline(headrace: Headrace, pipeline: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "m.onnx", graphs.TAKES_EACH.replace("int64[n]", "float[n]"))
    before = pipeline.read_text()
    code, _, err = headrace("adopt", model, "--pipeline", pipeline, "--write")
    assert code == 0, err
    after = pipeline.read_text()
    assert after.startswith(before.rstrip())
    assert tomllib.loads(after)["infer"]["inputs"] == {"a": "a", "b": "b"}
    code, _, err = headrace("run", pipeline)
    assert code == 0, err
    assert written(tmp_path)["sum"].to_list() == [1.5, 1.0, 13.0]
    code, _, err = headrace("adopt", model, "--pipeline", pipeline, "--write")
    assert code == 0, err
    assert pipeline.read_text() == after


PAIR = "g (float[4, 2] pair) => (float[4, 3] scores) { scores = MatMul(pair, w) }"
INPUTS = {"pair": ["a", "b"]}
SAID = {
    "keys": '\n[infer]  # mine\nthreads = 1  # one\ninputs = {pair = ["a", "b"]}  # both\n',
    "a model": '\n[infer]\nmodel = "m.onnx"  # mine\ninputs = {pair = ["a", "b"]}\n[service]\n',
    "a table of inputs": '\n[infer.inputs]  # mine\npair = ["a", "b"]\n',
    "--set": "",
}


@pytest.mark.parametrize("case", SAID)
def test_what_infer_says_is_kept_and_filled_in(
    headrace: Headrace, pipeline: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_process, "call", call_here)
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "m.onnx", PAIR)
    before = pipeline.read_text() + SAID[case]
    pipeline.write_text(before)
    setting = ("--set", 'infer.inputs={pair=["a", "b"]}') if case == "--set" else ()
    words = ("adopt", "m.onnx", "--pipeline", pipeline, *setting)
    code, out, err = headrace(*words)
    assert code == 0, err
    shown = tomllib.loads(out[out.index("[infer]") :])["infer"]
    assert shown["inputs"] == INPUTS
    assert pipeline.read_text() == before
    code, out, err = headrace(*words, "--write")
    assert code == 0, err
    assert "Wrote m.adopted.onnx" in out
    after = pipeline.read_text()
    assert tomllib.loads(after)["infer"] == shown
    assert shown["model"] == "m.adopted.onnx"
    kept = before.replace("m.onnx", "m.adopted.onnx").split("\n")
    assert [line for line in after.split("\n") if line in kept and line] == [*filter(None, kept)]


REFUSED = {
    "no word of it": ("", (), "in their order, by [infer] inputs = {pair = [...]}; there are"),
    "a wrong column": ('[infer]\ninputs = {pair = ["a", "c"]}', (), "needs column 'c'"),
    "a wrong key": ("[infer]\nthreds = 1", (), "has no key 'threds'. Did you mean 'threads'?"),
    "a key of folders": (
        '[infer]\npoll_interval = 1\ninputs = {pair = ["a", "b"]}', (), "take it out, or name",
    ),
    "another model": ('[infer]\nmodel = "o.onnx"', (), "take model out, or set it to 'm.onnx'."),
    "another in --set": (
        '[infer]\ninputs = {pair = ["a", "b"]}', ("--set", 'infer.inputs={pair=["b", "a"]}'),
        "has another inputs in [infer] than is tried",
    ),
    "dotted keys": ('infer.inputs = {pair = ["a", "b"]}', (), "as keys under a line [infer]"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_is_refused_before_anything_is_changed(
    headrace: Headrace, pipeline: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_process, "call", call_here)
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "m.onnx", PAIR)
    text, setting, wanted = REFUSED[case]
    cleaning = pipeline.read_text()
    dotted = text.startswith("infer.")
    pipeline.write_text(f"{text}\n{cleaning}" if dotted else f"{cleaning}\n{text}\n")
    before = contents(tmp_path)
    of_writing = dotted or setting
    for write in [("--write",), *([] if of_writing else [()])]:
        code, out, err = headrace("adopt", "m.onnx", "--pipeline", pipeline, *setting, *write)
        assert code == 2, out
        assert wanted in err
        assert "adopted" not in err
        assert len(err.strip().splitlines()) == 1
        assert "Changed" not in out
        assert "Wrote" not in out
        assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("where = \"label = 'x'\"", "'label'"),
        ('where = "y + 1"', "expects true or false, got float"),
        ('columns = ["a", "label"]', "[sink] columns needs column 'label'"),
    ],
)
def test_a_sink_that_run_refuses_is_refused_before_infer_is_written(
    headrace: Headrace, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    key: str, why: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(limited_process, "call", call_here)
    model = saved(
        tmp_path / "m.onnx", "g (float[n] a, float[n] b) => (float[n] y) { y = Add(a, b) }"
    )
    pipeline.write_text(pipeline.read_text().replace("[sink]", f"[sink]\n{key}"))
    before = contents(tmp_path)
    code, out, err = headrace("adopt", model, "--pipeline", pipeline, "--write")
    assert code == 2, out
    assert why in err
    assert len(err.strip().splitlines()) == 1
    assert "Wrote" not in out
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


def test_a_table_that_cannot_be_written_leaves_no_file(
    headrace: Headrace, pipeline: Path, tmp_path: Path
) -> None:
    model = saved(tmp_path / "m.onnx", graphs.FIXED.replace("x", "nowhere"), rows=1)
    before = contents(tmp_path)
    words = ("--shape", "nowhere=n,2", "--pipeline", pipeline)
    code, out, err = headrace("adopt", model, *words, "--write")
    assert code == 2, err
    assert "Wrote" not in out
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "shapes", "refused"),
    [
        ("g (float[1, 2] nowhere) => (float[1, 3] y) { y = MatMul(nowhere, w) }",
         ["--shape", "nowhere=n,2"], "say which columns"),
        ("g (float[1] a, float[1] b) => (float[1] double) { double = Add(a, b) }",
         [], "'double'"),
    ],
    ids=["no table", "a table that run refuses"],
)  # fmt: skip
def test_an_older_file_stays_as_it_was(
    headrace: Headrace, pipeline: Path, tmp_path: Path, text: str, shapes: list[str], refused: str
) -> None:
    model = saved(tmp_path / "m.onnx", text)
    to = tmp_path / "served.onnx"
    to.write_bytes(b"older")
    before = contents(tmp_path)
    words = ("--pipeline", pipeline, "--to", to, "--write")
    code, out, err = headrace("adopt", model, *shapes, *words)
    assert code == 2, err
    assert refused in err
    assert "untried" not in err
    assert "Wrote" not in out
    assert contents(tmp_path) == before


def test_a_pipeline_that_cannot_be_written_leaves_the_model_as_it_was(
    headrace: Headrace, pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved(
        tmp_path / "m.onnx", "g (float[1] a, float[1] b) => (float[1] y) { y = Add(a, b) }"
    )
    to = tmp_path / "served.onnx"
    to.write_bytes(b"older")
    before = contents(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("engine.system.atomic.os.fsync", full)
        words = ("--pipeline", pipeline, "--to", to, "--write")
        code, out, err = headrace("adopt", model, *words)
    assert code == 1, err
    assert f"'{pipeline}' cannot be written: No space left on device; it stays as it was." in err
    assert "Wrote" not in out
    assert contents(tmp_path) == before
    code, _, err = headrace("adopt", model, *words)
    assert code == 0, err
    assert to.read_bytes() != b"older"


@pytest.mark.parametrize("pipelined", [False, True])
@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (graphs.MIXES_ROWS, "changes with the other rows of its batch"),
        (graphs.SUMS_UP, "expected a first dimension of 3"),
    ],
)
def test_what_run_would_refuse_is_refused(
    headrace: Headrace, pipeline: Path, tmp_path: Path, text: str, refused: str, pipelined: bool
) -> None:
    """The file is tried with its table, which is left to be mended."""
    model = saved(tmp_path / "m.onnx", text)
    words = ("--pipeline", pipeline, "--write") if pipelined else ()
    before = pipeline.read_text()
    code, out, err = headrace("adopt", model, *words)
    assert code == 2, out
    assert (refused if not pipelined else "say which columns") in err
    assert ("[infer.inputs]" in out) is not pipelined
    assert pipeline.read_text() == before


def test_a_damaged_file_is_one_sentence(headrace: Headrace, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(saved(tmp_path / "whole.onnx", graphs.LINEAR).read_bytes()[:-40])
    code, out, err = headrace("adopt", model)
    assert code == 2
    assert not out
    assert "is no ONNX model" in err


def test_predict_by_names(headrace: Headrace, pipeline: Path, tmp_path: Path) -> None:
    model = saved(tmp_path / "m.onnx", graphs.TAKES_EACH.replace("int64[n]", "float[n]"))
    out = tmp_path / "scored"
    code, _, err = headrace(
        "predict", model, "--input", tmp_path / "rows.csv", "--output", out,
        "--set", "dead_letters.limit=0.5",
    )  # fmt: skip
    assert code == 0, err
    assert pl.read_parquet(out / "*.parquet")["sum"].to_list() == [1.5, 1.0, 13.0]


WRONG = {
    "unknown key of an input": (
        'inputs = {x = {columns = ["a", "b"], scal = 1}}',
        "[infer.inputs.x] in {file} has no key 'scal'.",
    ),
    "unknown key of an output": (
        'inputs = {x = ["a", "b"]}\noutputs = {scores = {answer = "classes", topp = 1}}',
        "[infer.outputs.scores] in {file} has no key 'topp'. Did you mean 'top'?",
    ),
    "a wrong value": (
        'inputs = {x = ["a", "b"]}\noutputs = {scores = {answer = "classes", top = "all"}}',
        "[infer.outputs.scores] in {file}: expected a whole number >= 1 for 'top', got \"all\".",
    ),
    "no column": ('inputs = {x = ["a", "c"]}', "needs column 'c', which is not there."),
    "no table": ("inputs = {x = 1}", "expects a column, a list of columns or a table for 'x'"),
    "inputs left out": ("", "there are a (float64), b (float64), double (float64)."),
    "no labels": (
        'inputs = {x = ["a", "b"]}\noutputs = {scores = {answer = "classes", classes = "l.txt"}}',
        "classes 'l.txt' is no file",
    ),
    "other labels": (
        'inputs = {x = ["a", "b"]}\noutputs = {scores = {answer = "classes", classes = ["a"]}}',
        "expects 3 classes for scores (float32, ? x 3), got 1.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_check_says_what_is_wrong(
    headrace: Headrace, pipeline: Path, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limited_process, "call", call_here)  # a child each would take seconds
    keys, wanted = WRONG[case]
    model = saved(tmp_path / "m.onnx", graphs.LINEAR)
    text = pipeline.read_text()
    pipeline.write_text(f"{text}\n[infer]\nmodel = {json.dumps(str(model))}\n{keys}\n")
    code, out, err = headrace("check", pipeline)
    assert code == 2, out + err
    assert wanted.format(file=pipeline) in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_adopt_names_what_cannot_be_served(headrace: Headrace, tmp_path: Path) -> None:
    model = saved(tmp_path / "m.onnx", graphs.UNKNOWN)
    code, out, err = headrace("adopt", model)
    assert code == 2
    assert "MagicAttention" in out
    assert err.strip() == (
        f"headrace: '{model}' cannot be served: ONNX Runtime does not have its operators "
        "MagicAttention."
    )
    code, _, err = headrace("adopt", tmp_path / "none.onnx")
    assert code == 2
    assert "is no file" in err
