"""The command as people type it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import polars as pl
import pytest

from engine.commands.cli import EXIT
from engine.run import Run
from tests.forks import Command
from tests.models.serving import graphs
from tests.models.serving.graphs import saved
from tests.pipelines.conftest import Headrace, Rows, Small, rows_of, small_in

EXPORT = "[export]\nholdout = 0.3\nholdout_rows = 2000\n"


@pytest.fixture
def data(tmp_path: Path, rows: Rows) -> Path:
    path = tmp_path / "data.csv"
    rows(1_500).write_csv(path)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline file that has been run, with its model exported and compressed; whoever changes
    what lies beside it leaves a run behind that is as whole."""
    folder = tmp_path_factory.mktemp("trained")
    rows_of(1_500).write_csv(folder / "data.csv")
    file = small_in(folder, folder / "data.csv", more=EXPORT)
    Run(file).run()
    return file


@pytest.fixture(scope="module")
def model(trained: Path) -> Path:
    """What such a run leaves to serve with."""
    return trained.with_name("run") / "model.onnx"


# --------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", ["run", "check", "interpret", "export", "compress", "predict"])
def test_help_teaches_with_an_example(headrace: Headrace, command: str) -> None:
    code, out, _ = headrace(command, "--help")
    assert code == 0
    assert f"  headrace {command} " in out
    assert "--set KEY=VALUE" in out


def test_help_names_every_command_and_exit_code(headrace: Headrace) -> None:
    code, out, _ = headrace("--help")
    assert code == 0
    for word in ("run", "check", "interpret", "export", "compress", "predict"):
        assert re.search(rf"^    {word}\b", out, re.MULTILINE)
    for number in EXIT.values():
        assert re.search(rf"\b{number} \w", out)


def test_version(headrace: Headrace) -> None:
    assert headrace("--version")[:2] == (0, f"headrace {version('headrace')}\n")


@pytest.mark.parametrize(
    "words",
    [
        [], ["rnu", "x.toml"], ["run"], ["predict", "m.onnx"], ["run", "x.toml", "y.toml"],
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_the_users_mistake(headrace: Headrace, words: list[str]) -> None:
    code, out, err = headrace(*words)
    assert (code, out) == (2, "")
    assert "usage: headrace" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "x.toml", "--set"], "--set: expected one argument"),
        (["run", ""], "FILE: expected a name, got an empty text"),
        (["explore", ""], "FILE|PIPELINE: expected a name, got an empty text"),
        (["explore", "x", "--html", ""], "--html: expected a name"),
        (["explore", "x", "--rows", "many"], "--rows: invalid int value: 'many'"),
        (["export", "x", "--to", ""], "--to: expected a name"),
        (["predict", "", "--input", "x", "--output", "y"], "MODEL: expected a name"),
        (["predict", "m", "--input", "", "--output", "y"], "--input: expected a name"),
        (["predict", "m", "--input", "x", "--output", ""], "--output: expected a name"),
        (["versions", "x", "--promote", "-1"], "--promote: expected the number of a version"),
        (["run", "x", "--log-level", "loud"], "--log-level: invalid choice: 'loud'"),
    ],
)
def test_a_wrong_argument_is_one_sentence(headrace: Headrace, words: list[str], said: str) -> None:
    code, out, err = headrace(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"headrace: {said}")
    assert err.count("\n") == 1


# ---------------------------------------------------------------------------------------------- run


def test_a_run_says_what_became_of_every_record_and_where_things_are(
    data: Path, small: Small, headrace: Headrace, tmp_path: Path
) -> None:
    code, out, _ = headrace("run", small(data, more=EXPORT))
    assert code == 0
    account = re.search(r"1,500 read = ([\d,]+) learned \+ ([\d,]+) predicted", out)
    assert account is not None
    assert sum(int(n.replace(",", "")) for n in account.groups()) == 1_500
    flat = out.replace("\n", "")
    for name in (
        "checkpoints",
        "out",
        "model.onnx",
        "compression.json",
        "report.json",
        "metrics.prom",
    ):
        assert name in flat
    for file in (
        "model.fp32.onnx",
        "model.onnx",
        "compression.json",
        "report.json",
        "metrics.prom",
    ):
        assert (tmp_path / "run" / file).stat().st_size > 0


def test_a_second_run_has_nothing_left_to_do_and_fresh_starts_over(
    trained: Path, headrace: Headrace
) -> None:
    def results() -> pl.DataFrame:
        return pl.concat(map(pl.read_parquet, sorted(trained.with_name("out").glob("*.parquet"))))

    before = results()
    assert before.height > 0
    code, out, err = headrace("run", trained)
    assert code == 0
    assert '"message": "resumed"' in err
    assert "1,500 read" in out
    assert results().equals(before)
    assert headrace("run", "--fresh", trained)[0] == 0
    assert results().equals(before)


def test_the_command_line_goes_before_the_environment_and_that_before_the_file(
    data: Path, small: Small, headrace: Headrace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HEADRACE_LOADER__BATCH_ROWS", "300")
    monkeypatch.setenv("HEADRACE_TRAIN__LR", "0.5")
    code, _, err = headrace("run", small(data), "--set", "train.lr=-1")
    assert code == 2
    assert "for 'lr', got -1" in err
    assert headrace("run", small(data), "--set", "train.lr=0.01")[0] == 0
    page = (tmp_path / "run" / "metrics.prom").read_text()
    assert re.search(r"^headrace_batch_rows_count 5\.0$", page, re.MULTILINE)


@pytest.mark.parametrize("words", ["check FILE", "run FILE", "schema", "reference", "--help"])
def test_a_reader_that_leaves_early_ends_the_command_quietly(
    data: Path, small: Small, words: str
) -> None:
    command = [*words.replace("FILE", str(small(data))).split(), "--log-level=error"]
    reader, writer = os.pipe()
    os.close(reader)
    with Command(command, stdout=writer, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(writer)
    assert process.returncode == 141


# -------------------------------------------------------------------------------------------- check


def test_check_says_what_each_stage_would_do_and_writes_nothing(
    data: Path, small: Small, headrace: Headrace, tmp_path: Path
) -> None:
    before = set(tmp_path.rglob("*"))
    file = small(data)
    code, out, _ = headrace("check", file)
    assert code == 0
    assert "1,000 records through the stages" in out
    for stage in ("decode", "missing", "standardize", "categories", "collate", "learn"):
        assert re.search(rf"│ {stage} +│", out)
    assert re.search(r"filled\s+\d+", out)
    assert "is ready to run." in out.replace("\n", " ")
    assert set(tmp_path.rglob("*")) == before | {file}


def test_check_finds_what_would_fail_later(headrace: Headrace, trained: Path) -> None:
    data, other = trained.with_name("data.csv"), ("layers = [8]", "layers = [9]")
    file = small_in(trained.parent, data, other, more=EXPORT, name="other")
    code, out, _ = headrace("check", file)
    assert code == 2
    assert "--fresh" in out


# ----------------------------------------------------------------------- export, compress, predict


def test_export_and_compress_again(trained: Path, headrace: Headrace, tmp_path: Path) -> None:
    code, out, _ = headrace("export", trained, "--to", tmp_path / "mine.onnx")
    assert code == 0
    assert "Wrote" in out
    first = trained.with_name("run") / "model.fp32.onnx"
    assert abs((tmp_path / "mine.onnx").stat().st_size - first.stat().st_size) < 1_000
    code, out, _ = headrace("compress", trained)
    assert code == 0
    assert "held-out rows" in out
    report = json.loads((trained.with_name("run") / "compression.json").read_text())
    assert report["chosen"] in out


@pytest.mark.parametrize("command", ["export", "compress"])
def test_there_is_nothing_to_export_before_a_run(
    data: Path, small: Small, headrace: Headrace, command: str
) -> None:
    code, _, err = headrace(command, small(data, more=EXPORT))
    assert code == 2
    assert "There is no checkpoint in" in err
    assert "headrace run" in err


@pytest.mark.parametrize("kind", ["parquet", "csv", "ndjson", "arrow"])
def test_predict_adds_answers_to_the_rows_of_files(
    model: Path, headrace: Headrace, tmp_path: Path, rows: Rows, kind: str
) -> None:
    new = rows(500, seed=9).drop("y")
    new.write_parquet(tmp_path / "new.parquet")
    scored = tmp_path / "scored"
    command = ["predict", model, "--input", tmp_path / "*.parquet", "--output", scored]
    code, _, err = headrace(*command, "--format", kind)
    assert code == 0, err
    (part,) = scored.glob(f"part-*.{kind}")
    read = {"parquet": "read_parquet", "csv": "read_csv", "ndjson": "read_ndjson"}
    made: pl.DataFrame = getattr(pl, read.get(kind, "read_ipc"))(part)
    assert made.height == 500
    assert set(made.columns) >= {"_partition", "_position", "n", "prediction", "model_version"}
    assert made["n"].to_list() == new["n"].to_list()
    assert made["prediction"].is_finite().all()
    code, _, err = headrace(*command, "--format", kind)
    assert code == 2
    assert "holds results already: name another --output folder" in err


def test_predict_reads_columns_in_the_types_that_the_model_learned(
    model: Path, headrace: Headrace, tmp_path: Path, rows: Rows
) -> None:
    """Whatever would be guessed from the rows to predict: whole numbers, nothing, no rows."""
    new = rows(50, seed=9).drop("y").with_columns(a=1.0)
    whole = new.with_columns(pl.col("a", "b").cast(pl.Int8))
    nothing = new.with_columns(a=pl.lit(None), key=pl.lit(None))
    new.clear().write_csv(tmp_path / "empty.csv")
    whole.write_csv(tmp_path / "whole.csv")
    whole.write_parquet(tmp_path / "whole.parquet")
    whole.cast({pl.Int8: pl.Int32}).write_avro(tmp_path / "whole.avro")
    nothing.write_parquet(tmp_path / "nothing.parquet")
    nothing.write_ndjson(tmp_path / "nothing.ndjson")
    for name, n in (
        ("empty.csv", 0), ("whole.csv", 50), ("whole.parquet", 50), ("whole.avro", 50),
        ("nothing.parquet", 50), ("nothing.ndjson", 50),
    ):  # fmt: skip
        scored = tmp_path / f"scored-{name}"
        code, out, err = headrace("predict", model, "--input", tmp_path / name, "--output", scored)
        assert code == 0, err
        assert f"{n} read = {n} predicted" in out or (n == 0 and "0 read" in out)


CLEAN_AND_SERVE = """
import sys
from pathlib import Path
from engine.commands.cli import main
from engine.config import Pipeline
from engine.run import Run

data, model, out = sys.argv[1:]
table = {"name": "clean", "folder": f"{out}/cleaning", "source": {"kind": "files", "path": data},
         "scrub": {"missing": {"columns": ["a"]}, "standardize": {"columns": ["a", "b"]}},
         "sink": {"kind": "files", "path": f"{out}/clean"}}
Run(Pipeline.of(table)).run()
heavy = ["torch", "torchdata", "kafka", "fastavro", "matplotlib", "onnx", "lxml", "starlette",
         "uvicorn", "onnxruntime"]
print([name for name in heavy if name in sys.modules])
assert main(["predict", model, "--input", data, "--output", f"{out}/scored"]) == 0
print([name for name in heavy if name in sys.modules])
Run(Pipeline.of({**table, "service": {"port": 0}})).run()
print([name for name in heavy if name in sys.modules])
"""


def test_an_engine_loads_the_libraries_that_it_uses(
    model: Path, tmp_path: Path, rows: Rows
) -> None:
    rows(300).write_parquet(tmp_path / "rows.parquet")
    command = [sys.executable, "-c", CLEAN_AND_SERVE, tmp_path / "rows.parquet", model, tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert loaded == ["[]", "['onnxruntime']", "['starlette', 'uvicorn', 'onnxruntime']"]


def test_predict_without_its_columns_names_the_first(
    model: Path, headrace: Headrace, tmp_path: Path, rows: Rows
) -> None:
    rows(10).drop("b").write_parquet(tmp_path / "new.parquet")
    scored = tmp_path / "scored"
    command = ["predict", model, "--input", tmp_path / "new.parquet", "--output", scored]
    code, _, err = headrace(*command)
    assert code == 2
    assert "needs column 'b'" in err
    code, _, err = headrace(*command, "--format", "xls")
    assert code == 2
    assert '--format: expected "parquet" or' in err
    assert not scored.exists()


@pytest.mark.parametrize(
    ("arguments", "said", "never"),
    [
        (["predict", "{model}", "--input", "-", "--output", "{out}"], "--input '-'", "[source]"),
        (["predict", "{model}", "--input", "{odd}", "--output", "{out}"], "--input", "[source]"),
        (["predict", "{model}", "--input", "{csv}", "--output", "{out}"], "MODEL", "[infer]"),
        (["explore", "{odd}"], "FILE", "[source]"),
        (
            ["predict", "{model}", "--input", "{odd}", "--output", "{out}", "--set", "source.x=1"],
            "--set source.x: [source] has no key 'x'", "--set source.has",
        ),
        (
            ["predict", "{graph}", "--input", "{csv}", "--output", "{out}"],
            "m.onnx' reads x (float32, n x 2): say which columns they read, in their order, by "
            "--set 'infer.inputs={x = [...]}'; there are", "[infer]",
        ),
        (
            ["predict", "{graph}", "--input", "{csv}", "--output", "{out}", "--format", "csv",
             "--set", "infer.inputs.x=[a,b]"],
            "--format \"csv\" cannot hold column 'scores'", "--format =",
        ),
    ],
)  # fmt: skip
def test_a_command_without_a_pipeline_file_speaks_of_its_own_words(
    arguments: list[str], said: str, never: str, headrace: Headrace, tmp_path: Path
) -> None:
    model, odd = tmp_path / "model.onnx", tmp_path / "rows.odd"
    odd.write_text("a,b\n1,2\n")
    csv = odd.rename(tmp_path / "rows.csv") if "{csv}" in arguments else odd
    graph = saved(tmp_path / "m.onnx", graphs.LINEAR) if "{graph}" in arguments else model
    places = {"model": model, "graph": graph, "odd": odd, "csv": csv, "out": tmp_path / "out"}
    filled = [word.format(**places) for word in arguments]
    code, _, err = headrace(*filled)
    assert code == 2
    assert said in err
    assert never not in err
    assert "set --set" not in err


def test_a_model_that_is_not_compressed_is_at_the_path(
    tmp_path: Path, rows: Rows, small: Small, headrace: Headrace
) -> None:
    rows(500).write_csv(tmp_path / "data.csv")
    file = small(tmp_path / "data.csv", more="[export]\ncompress = false\n")
    for command in ("run", "export"):
        code, out, _ = headrace(command, file)
        assert code == 0
        assert [path.name for path in (tmp_path / "run").glob("*.onnx")] == ["model.onnx"]
        assert "model.onnx" in out.replace("\n", "")
        (tmp_path / "run" / "model.onnx").unlink()


@pytest.mark.parametrize(
    ("set_to", "said"),
    [
        ("source.path=os:path", "names 'os', a module without files of its own"),
        ("source.path=math:pi", "names 'math', a module without files of its own"),
        ("source.path=json:nothing", "is no file: package 'json' has none there"),
        ("source.path=mine:a.csv", "'mine', which cannot be imported: ValueError: odd"),
        ("source.path=~/a.csv", "path = '~/...', and headrace reads and writes files"),
        ("source.path=['a.csv','s3://b/a.csv']", "path = 's3://...'"),
        ("sink.path=https://name:word@b/out", "path = 'https://...'"),
        ("folder=~/runs", "folder = '~/...'"),
        ("export.versions=~me/versions", "versions = '~me/...'"),
        ("model.kind=models:Mine", "'models' is a package of headrace's own, which comes first"),
        ("source.format=engine.mine:Mine", "'engine' is a package of headrace's own"),
        ("model.kind=own:Mine", "'connectors' is a package of headrace's own"),
    ],
)
def test_a_place_where_nothing_can_be_is_refused_in_one_sentence(
    data: Path, small: Small, headrace: Headrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    set_to: str, said: str,
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.py").write_text("raise ValueError('odd')")
    (tmp_path / "own.py").write_text("from connectors import Mine")
    file = small(data)
    before = set(tmp_path.iterdir())
    for command in ("check", "run"):
        code, _, err = headrace(command, file, "--set", set_to)
        assert code == 2, err
        assert said in err
        assert len(err.splitlines()) == 1
    assert "word" not in err
    assert set(tmp_path.iterdir()) - before <= {tmp_path / "__pycache__"}


def test_a_module_that_hides_a_package_of_headrace_is_named(
    data: Path, small: Small, headrace: Headrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "models", raising=False)
    code, _, err = headrace("check", small(data))
    assert code == 2, err
    assert f"'{tmp_path}/models.py' hides headrace's package 'models'" in err


def test_fresh_leaves_published_versions_and_says_so(
    data: Path, small: Small, headrace: Headrace, tmp_path: Path
) -> None:
    file = small(data, more="[export]\ncompress = false\n")
    for seed in (0, 1):
        code, _, err = headrace("run", "--fresh", file, "--set", f"model.seed={seed}")
        assert code == 0, err
    versions = tmp_path / "run" / "versions"
    assert {path.name for path in versions.iterdir()} >= {"1", "2"}
    assert "Versions of models that are published stay" in headrace("run", "--help")[1]
