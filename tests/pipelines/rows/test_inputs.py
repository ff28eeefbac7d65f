"""Pipelines over images, documents, XML and tars: checked, run, killed and resumed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.commands.preflight import preflight
from engine.run import Run
from tests.connectors.conftest import shard
from tests.containers import container, header, record
from tests.pipelines.runs.test_crash import finish_through_kills
from tests.size import few

N = 3_000
Make = Callable[[Path], dict[str, Any]]


def _content(i: int) -> bytes:
    return random.Random(i).randbytes(10 + i % 90)


def images(folder: Path) -> dict[str, Any]:
    """A file in a hundred is too large."""
    for i in range(N):
        path = folder / "photos" / "abc"[i % 3] / f"{i:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(200) if i % 100 == 7 else _content(i))
    schema = {"image": "bytes", "path": "string", "label": "string"}
    return {"path": str(folder / "photos"), "max_record_bytes": 150, "schema": schema}


def documents(folder: Path) -> dict[str, Any]:
    """One in a hundred is not UTF-8."""
    for i in range(N):
        (folder / f"{i:05}.txt").write_bytes(b"\xff" if i % 100 == 7 else b"%d" % i)
    return {"path": str(folder), "format": "documents", "schema": {"text": "string"}}


def xml(folder: Path) -> dict[str, Any]:
    """A row in a hundred has no number."""
    rows = "".join(
        f"<row n='{'x' if i % 100 == 7 else i}'><s><t>{i}</t></s></row><!-- -->" for i in range(N)
    )
    (folder / "rows.xml").write_text(f"<rows>{rows}</rows>")
    schema = {"n": "int64", "t": "string"}
    where = {"path": str(folder / "rows.xml"), "row": "rows/row"}
    return {**where, "paths": {"n": "@n", "t": "s/t"}, "schema": schema}


def webdataset(folder: Path) -> dict[str, Any]:
    """Two shards; a sample in a hundred has broken JSON."""
    for part in range(2):
        members = []
        for i in range(part, N, 2):
            members.append((f"{i}.jpg", _content(i)))
            members.append((f"{i}.json", b"{" if i % 100 == 7 else json.dumps({"n": i}).encode()))
        shard(folder / f"part{part}.tar.gz", members, "w:gz")
    schema = {"__key__": "string", "jpg": "bytes", "n": "int64"}
    where = {"path": str(folder / "*.tar.gz"), "format": "webdataset"}
    return {**where, "paths": {"n": "json.n"}, "schema": schema}


def avro(folder: Path) -> dict[str, Any]:
    """A text in a hundred is not UTF-8."""
    rows = [{"n": i, "s": b"\xff" if i % 100 == 7 else b"%d" % i} for i in range(N)]
    bytes_, text = record(n="long", s="bytes"), record(n="long", s="string")  # encoded alike
    for part in range(2):
        raw = container(bytes_, rows[part * N // 2 : (part + 1) * N // 2], "deflate", each=70)
        blocks = raw[len(header(bytes_, "deflate")) :]
        (folder / f"part{part}.avro").write_bytes(header(text, "deflate") + blocks)
    return {"path": str(folder / "*.avro")}


KINDS: list[Make] = [images, documents, xml, webdataset, avro]


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def pipeline(folder: Path, name: str, source: dict[str, Any]) -> Path:
    file = folder / f"{name}.toml"
    keys = "\n".join(f"{key} = {toml(value)}" for key, value in source.items())
    file.write_text(
        f'name = "inputs"\nfolder = "{folder / name}"\n'
        f'[source]\nkind = "files"\n{keys}\n'
        "[loader]\nbatch_rows = 20\n"
        "[checkpoint]\ninterval_batches = 2\n"
        f'[sink]\nkind = "files"\npath = "{folder / name / "out"}"\n'
    )
    return file


def output(folder: Path, name: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What was kept, and the dead letters."""
    rows = pl.read_parquet(folder / name / "out" / "*.parquet")
    return rows, pl.read_ndjson(folder / name / "dead_letters" / "*.ndjson")


@pytest.mark.slow
@pytest.mark.parametrize("make", few(KINDS, (images, xml, avro)), ids=lambda make: make.__name__)
def test_a_pipeline_is_checked_and_run_and_kills_change_nothing(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    source = make(tmp_path / "data")
    file = pipeline(tmp_path, "whole", source)
    assert preflight(Run(file), 500)
    assert "is ready to run" in capsys.readouterr().out
    Run(file).run()
    rows, letters = output(tmp_path, "whole")
    assert (rows.height, letters.height) == (N - N // 100, N // 100)
    assert not rows.select("_partition", "_position").is_duplicated().any()
    file = pipeline(tmp_path, "killed", source)
    finish_through_kills(file, tmp_path / "killed" / "checkpoints")
    for whole, killed in zip(output(tmp_path, "whole"), output(tmp_path, "killed"), strict=True):
        assert whole.equals(killed)
