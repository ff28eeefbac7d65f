"""CONTRIBUTING.md's own examples, run from a pipeline file."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from engine.types import EndOfStream, Mark
from tests.pipelines.conftest import Headrace

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the examples as `mine.py`, and the pipeline that names them."""
    (tmp_path / "mine.py").write_text("\n\n".join(blocks("python")))
    (pipeline,) = blocks("toml")
    (tmp_path / "mine.toml").write_text(pipeline)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("mine", None)


def called(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the installed command in a folder, as the page says and without more."""
    command = [str(Path(sys.executable).with_name("headrace")), *arguments]
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True)


def test_a_stage_a_format_and_a_learner_run_from_a_pipeline_file(mine: Path) -> None:
    (mine / "rows.txt").write_text("".join(f"{n}|red\n" for n in (1, 3, 8)) + "x|red\n5\n")
    out = ["--set", "sink.kind=files", "--set", "sink.path=out", "--set", "dead_letters.limit=0.5"]
    check = called(mine, "check", "mine.toml", *out)
    assert check.returncode == 0, check.stderr
    run = called(mine, "run", "mine.toml", *out, "--set", "loader.batch_rows=1")
    assert run.returncode == 0, run.stderr
    written = pl.read_parquet(mine / "out" / "*.parquet")
    assert written["share"].to_list() == [1.0] * 4
    assert written["prediction"].to_list() == [0.0, 1.0, 2.0, 4.0]
    report = json.loads((mine / "runs" / "mine" / "report.json").read_text())
    assert report["all"]["mae"] == (1 + 2 + 6 + 1) / 4
    letters = pl.read_ndjson(*(mine / "runs" / "mine" / "dead_letters").glob("*.ndjson"))
    assert letters["reason"].to_list() == ["wrong_type"]


def test_classes_are_found_beside_the_pipeline_file_and_not_where_it_is_called(
    mine: Path, headrace: Headrace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine / "rows.txt").write_text("".join(f"{n}|red\n" for n in (1, 3, 8)))
    (mine / "elsewhere").mkdir()
    (mine / "elsewhere" / "mine.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(mine / "elsewhere")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".")])
    where = f"source.path={mine / 'rows.txt'}"
    code, _, err = headrace("check", "../mine.toml", "--set", where)
    assert code == 0, err


def test_a_pipeline_without_such_classes_leaves_the_import_path_alone(
    mine: Path, headrace: Headrace
) -> None:
    (mine / "rows.csv").write_text("a,b\n1,2\n")
    (mine / "plain.toml").write_text('name = "p"\n[source]\nkind = "files"\npath = "rows.csv"\n')
    before = [*sys.path]
    headrace("check", "plain.toml")
    assert sys.path == before


def test_a_misspelt_method_is_named(mine: Path, headrace: Headrace) -> None:
    code = (mine / "mine.py").read_text()
    (mine / "mine.py").write_text(code.replace("def apply", "def aply"))
    (mine / "rows.txt").write_text("1|red\n")
    exit_code, _, err = headrace("check", "mine.toml")
    assert exit_code == 2
    assert "apply" in err


def test_the_source_reads_every_number_once_and_resumes(
    mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(mine)
    numbers = importlib.import_module("mine").Numbers
    source = numbers(numbers.Settings(count=5))
    first = source.read(2, 1 << 20, 0.0)
    assert (first.values["n"].to_list(), first.next) == ([0, 1], 2)
    source.seek(Mark(positions={"numbers": 3}))
    assert source.read(10, 1 << 20, 0.0).values["n"].to_list() == [3, 4]
    with pytest.raises(EndOfStream):
        source.read(10, 1 << 20, 0.0)


def test_the_files_it_names_are_there() -> None:
    root = Path(__file__).parents[2]
    names = set(re.findall(r"`((?:engine|connectors|models|tests)/[\w./]+\.py)`", TEXT))
    assert len(names) >= 8
    assert [name for name in names if not (root / name).exists()] == []
