"""`headrace check` finds what `run` would stumble over: a list of broken pipelines, each refused
with its sentence and exit code 2 (those that pass: test_shipped.py)."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl
import pytest

from engine.run import Run
from engine.types import UserError
from tests.forks import Command
from tests.pipelines.conftest import PIPELINE, Headrace, Rows, Small

Changes = list[tuple[str, str]]
BINARY = 'target = "label"\ntask = "binary"\nclasses = ["no", "yes"]'
SERVED = PIPELINE[PIPELINE.index("[model]") : PIPELINE.index("[checkpoint]")]

BROKEN: dict[str, tuple[Changes, str, str]] = {
    # keys, values and tables
    "key misspelt": ([("batch_rows", "batch_row")], "", "Did you mean 'batch_rows'?"),
    "key of another tool": (
        [('optimizer = "adam"', "learning_rate = 0.1")], "", "Did you mean 'lr'?",
    ),
    "key of another table": (
        [('optimizer = "adam"', "batch_rows = 10")], "", "'batch_rows' is a key of [loader].",
    ),
    "key of another kind": (
        [("[source.schema]", 'topics = "t"\n[source.schema]')],
        "", "'topics' is a key of [source] kind = \"kafka\".",
    ),
    "value of a wrong type": (
        [("batch_rows = 100", "batch_rows = 1.5")], "", "expected a whole number >= 1",
    ),
    "a bool for a number": (
        [("batch_rows = 100", "batch_rows = true")], "", "for 'batch_rows', got true.",
    ),
    "kind that is a list": (
        [('kind = "files"\npath = {data}', 'kind = ["files"]\npath = {data}')],
        "", "[source] in {file}: expected text for 'kind', got [\"files\"].",
    ),
    "kind that is none": (
        [('"files"\npath = {data}', '"csv"\npath = {data}')], "", "no kind 'csv'",
    ),
    "duration without a unit": ([], "[service]\nstall_timeout = \"soon\"\n", 'like "250ms"'),
    "bytes that are none": (
        [("batch_rows = 100", 'memory_budget = "64 apples"')], "", 'expected bytes ("64MiB"',
    ),
    "no file at the path": ([("path = {data}", 'path = "none.csv"')], "", "is no file."),
    "path that no file has": ([("path = {data}", 'path = "\\u0000"')], "", "is no file."),
    "no path at all": (
        [("path = {data}", "path = []")], "", "(1 or more) for 'path', got [].",
    ),
    "column that is not there": ([('n = "int64"', 'm = "int64"')], "", "column 'm'"),
    "type that is none": ([('n = "int64"', 'n = "int46"')], "", "Did you mean 'int64'?"),
    # the model and its rows
    "target among the features": (
        [('numeric = ["a", "b"]', 'numeric = ["a", "y"]')], "", "reads its target 'y' as a feature",
    ),
    "target caught by a glob": (
        [('numeric = ["a", "b"]', 'numeric = ["?"]')], "", "reads its target 'y' as a feature",
    ),
    "regression on text": (
        [('target = "y"', 'target = "label"\ntask = "regression"')],
        "", "expects numbers in target 'label', got string",
    ),
    "regression with classes": (
        [('target = "y"', 'target = "y"\nclasses = ["0", "1"]')], "", "classes are given",
    ),
    "binary with three classes": (
        [('target = "y"', 'target = "label"\ntask = "binary"\nclasses = ["a", "b", "c"]')],
        "", "expects two different [model] classes",
    ),
    "binary with one class twice": (
        [('target = "y"', 'target = "label"\ntask = "binary"\nclasses = ["a", "a"]')],
        "", "expects two different [model] classes",
    ),
    "multiclass on a date": (
        [('target = "y"', 'target = "day"\ntask = "multiclass"\nclasses = ["a", "b"]')],
        "", "got date",
    ),
    "labels that are no classes": (
        [('target = "y"', 'target = "label"\ntask = "binary"\nclasses = ["0", "1"]')],
        "", "another label in 'label': ",
    ),
    "one label too few": (
        [('target = "y"', 'target = "colour"\ntask = "binary"\nclasses = ["red", "green"]')],
        "", "'blue' (",
    ),
    "binary with three values": (
        [('target = "y"', 'target = "colour"\ntask = "binary"')],
        "", "'colour' has 'blue', 'green', 'red' in all 200 rows: set task to 'multiclass'",
    ),
    "no classes to be found": (
        [('target = "y"', 'target = "hollow"\ntask = "multiclass"')],
        "", "no row has a label: 'hollow' is empty in all 200 rows",
    ),
    "numbers that are no classes": (
        [('target = "y"', 'target = "y"\ntask = "multiclass"')],
        "", "different short values, and 'y' has '-",
    ),
    "a task that is none": ([('target = "y"', 'target = "y"\ntask = "rank"')], "", "rank"),
    "most rows rejected": ([('label = "string"', 'label = "float64"')], "", "sampled rows are re"),
    "every label missing": (
        [('target = "y"', 'target = "hollow"')], "", "sampled rows are rejected, and none is left",
    ),
    "a category that nobody encodes": (
        [('categories = ["key"]', 'categories = ["label"]')], "",
        "encodes [model] category 'label': add \"label\" to the columns of one, or write "
        "[scrub.categories] columns = [\"label\"].",
    ),
    "loss that does not fit": (
        [('optimizer = "adam"', 'loss = "cross_entropy"')], "", "does not fit [model] task",
    ),
    "device that is none": ([('optimizer = "adam"', "device = 50000")], "", "'device', got 50000"),
    "a slice that is no SQL": ([("window = 1000", 'slices = {{ odd = "a >" }}')], "", "odd"),
    # places
    "sink below a file": ([("path = {out}", 'path = "{data}/out"')], "", "cannot be a folder"),
    "CSV of lists": (
        [("path = {out}", 'path = {out}\nformat = "csv"'), ("path = {data}", "path = {lists}")],
        "", "[sink] format = \"csv\" cannot hold column 'tags' of list[string]",
    ),
    "sink column that is not there": (
        [("path = {out}", 'path = {out}\ncolumns = ["aa"]')], "", "columns needs column 'aa'",
    ),
    "a column of headrace's own": (
        [('n = "int64"', 'n = "int64"\n_part = "string"')],
        "", "names column '_part', which headrace itself adds",
    ),
    "a column that the model adds": (
        [("path = {data}", "path = {scored}")], "", "gets a column 'prediction' from the model",
    ),
    "port in use": ([], "[service]\nport = {port}\n", "is in use by another program"),
    "address of another machine": ([], '[service]\nhost = "203.0.113.7"\n', "cannot listen on"),
    "topic without a broker": (
        [('[sink]\nkind = "files"\npath = {out}',
          '[sink]\nkind = "kafka"\ntopic = "t"\nbootstrap_servers = "localhost:1"\ntimeout = 0.2')],
        "", "[sink] topic 't' at localhost:1 failed",
    ),
    "dead letters below a file": ([], '[dead_letters]\npath = "{data}/x"\n', "cannot be a folder"),
    # classes of a user's own
    "class that is not there": (
        [("[scrub.missing]\n", '[scrub.missing]\nkind = "mine_check:None_"\n')],
        "", "cannot be imported",
    ),
    "stage without a method": (
        [("[scrub.missing]\n", '[scrub.missing]\nkind = "mine_check:Lacking"\n')],
        "", "has no method 'restore', which a stage with 'snapshot' needs",
    ),
    "stage with a misspelt method": (
        [("[scrub.missing]\n", '[scrub.missing]\nkind = "mine_check:Misspelt"\n')],
        "", "Misspelt.remark is never called: a stage may have 'remarks'",
    ),
    "stage without settings": (
        [("[scrub.missing]\n", '[scrub.missing]\nkind = "mine_check:Bare"\n')],
        "", "has no Settings",
    ),
    # export and serving
    "export of a gate's candidate that is none": (
        [], '[export.compress]\ncandidates = 8\n', "for 'candidates', got 8",
    ),
    "model that is not there": ([(SERVED, '[infer]\nmodel = "none.onnx"\n')], "", "is no file"),
    "model that is no ONNX": (
        [(SERVED, "[infer]\nmodel = {data}\n")], "", "is no ONNX model",
    ),
}  # fmt: skip
DECLARED = """\
[source.schema]
a = "float64"
b = "float64"
n = "int64"
key = "string"
y = "float64"
"""
MORE = 'label = "string"\ncolour = "string"\nday = "date"\nhollow = "float64"\n'
OWN = """
from pydantic import BaseModel
from engine.types import Settings as Base, Stage
class Lacking(Stage):
    class Settings(Base):
        columns: tuple[str, ...] = ()
        strategy: str = ""
    def __init__(self, name, settings): self.name = name
    def bind(self, schema): return schema
    def apply(self, batch): return batch
    def snapshot(self): return None
    def restor(self, value): pass
    def transforms(self): return None
class Misspelt(Lacking):
    def restore(self, value): pass
    def remark(self): return ["unheard"]
class Bare(Lacking):
    Settings = None
    def restore(self, value): pass
"""


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


@pytest.fixture
def broken(
    tmp_path: Path, rows: Rows, small: Small, taken: int, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Path]:
    """Writes one of the broken pipelines, and what it reads."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_check.py").write_text(OWN)
    frame = rows(200).with_columns(
        label=pl.when(pl.col("n") % 2 == 0).then(pl.lit("yes")).otherwise(pl.lit("no")),
        colour=pl.Series(["red", "green", "blue", "green"] * 50),
        day=pl.date(2026, 1, 1),
        hollow=pl.lit(None, pl.Float64),
    )
    names = {"file": str(tmp_path / "small.toml"), "port": str(taken)}
    for name, made in {
        "data": frame,
        "lists": frame.with_columns(tags=pl.concat_list("key")),
        "scored": frame.with_columns(prediction=pl.lit(0.5)),
    }.items():
        made.write_parquet(tmp_path / f"{name}.parquet")
        names[name] = str(tmp_path / f"{name}.parquet")

    def filled(text: str) -> str:
        names["out"] = str(tmp_path / "out")
        for name, value in names.items():
            text = text.replace(f'"{{{name}}}', f'"{value}')  # within a longer text
            text = text.replace(f"{{{name}}}", value if name in ("port", "file") else f'"{value}"')
        return text.replace("{{", "{").replace("}}", "}")

    def write(name: str) -> Path:
        changes, more, _ = BROKEN[name]
        own = [(filled(old), filled(new)) for old, new in changes]
        other = any(old == "path = {data}" for old, _ in changes)  # which says its columns itself
        schema = (DECLARED, "" if other else DECLARED + MORE)
        return small(tmp_path / "data.parquet", schema, *own, more=filled(more))

    return write


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_broken_pipeline_is_refused_with_its_sentence(
    name: str, broken: Callable[[str], Path], headrace: Headrace, tmp_path: Path
) -> None:
    file = broken(name)
    sentence = BROKEN[name][2].replace("{file}", str(file))
    code, out, err = headrace("check", file)
    assert code == 2, out + err
    assert sentence in (out + err).replace("\n", " ").replace("  ", " ")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_there_are_forty_of_them() -> None:
    assert len(BROKEN) >= 40


def test_a_model_of_other_columns_is_refused(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace
) -> None:
    rows(200).write_csv(tmp_path / "data.csv")
    trains = small(tmp_path / "data.csv", more="[export]\ncompress = {}\n")
    assert headrace("run", trains, "--set", "export.compress.candidates=[]")[0] == 0
    model = tmp_path / "run" / "model.fp32.onnx"
    infer = (SERVED, f"[infer]\nmodel = {json.dumps(str(model))}\n")
    rows(200).drop("b").write_csv(tmp_path / "other.csv")
    for data, change, sentence in [
        ("other.csv", ('b = "float64"\n', ""), "The model needs column 'b', which is not there."),
        (
            "data.csv",
            ('b = "float64"', 'b = "string"'),
            "The model needs numbers in column 'b', got string.",
        ),
    ]:
        own = ('/run"', '/served"')
        serves = small(tmp_path / data, own, infer, change, name="serve")
        code, out, err = headrace("check", serves)
        assert code == 2, out
        assert sentence in err.replace("\n", " ")


def test_the_pipeline_that_they_are_made_of_passes(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace
) -> None:
    rows(200).write_csv(tmp_path / "data.csv")
    assert headrace("check", small(tmp_path / "data.csv"))[0] == 0


@pytest.mark.parametrize(
    ("schema", "code", "said"),
    [
        ('a = "float64"\ny = "float64"\n', 0, "stages, model and sink fit the declared columns"),
        ('b = "float64"\ny = "float64"\n', 2, "With the columns of [source.schema] alone"),
        ("", 0, "untried as well: declare the columns"),
    ],
)
def test_of_standard_input_what_is_declared_is_checked(
    schema: str, code: int, said: str, tmp_path: Path
) -> None:
    """Nothing is read: who pipes into `check` would lose rows."""
    file = tmp_path / "piped.toml"
    file.write_text(
        f'name = "piped"\nfolder = "{tmp_path}/run"\n[source]\nkind = "files"\npath = "-"\n'
        f'format = "ndjson"\n[source.schema]\n{schema}'
        '[scrub.standardize]\ncolumns = ["a"]\n'
        '[model]\nkind = "linear"\ntarget = "y"\nnumeric = ["a"]\n'
    )
    with Command(
        ["check", str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        told, _ = process.communicate("", timeout=120)
    assert process.returncode == code, told
    assert said in told
    assert ("'a'" in told) == (code == 2)


def test_a_column_that_the_model_adds_is_refused_before_a_model_is_made(
    small: Small, rows: Rows, tmp_path: Path
) -> None:
    rows(20).with_columns(prediction=pl.lit(1.0)).write_csv(tmp_path / "rows.csv")
    run = Run(
        small(tmp_path / "rows.csv", ("[source.schema]\n", '[source.schema]\n"*" = "float64"\n'))
    )
    with pytest.raises(UserError, match="gets a column 'prediction' from the model"):
        run.assemble()
    assert not {"features", "learner"} & vars(run.parts.model).keys()
