"""Pipelines that learn from images and from text: run, stopped, killed, and resumed to the bit."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from engine.commands.preflight import preflight
from engine.config import Pipeline
from engine.run import Run
from engine.types import UserError
from tests.connectors.conftest import shard
from tests.pipelines.runs.test_crash import (
    finish,
    finish_through_kills,
    finish_through_stops,
    same,
    state,
)

N = 1_200
BROKEN = range(7, N, 100)
Make = Callable[[Path], str]


def images(folder: Path) -> str:
    """Bars and crosses, as PNG and JPEG; one in a hundred is cut off."""
    rng = np.random.default_rng(0)
    for i in range(N):
        pixels = rng.integers(0, 90, (20, 16), dtype=np.uint8)
        top, left = rng.integers(0, 8, 2)
        pixels[top + 3 : top + 5, left : left + 8] = 250
        if i % 2:
            pixels[top : top + 8, left + 3 : left + 5] = 250
        path = folder / ("cross" if i % 2 else "bar") / f"{i:05}.{'png' if i % 3 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
        if i in BROKEN:
            path.write_bytes(path.read_bytes()[:80])
    return f"""
[source]
kind = "files"
path = "{folder}"
[source.schema]
image = "bytes"
label = "string"
[scrub.pixels]
kind = "image"
columns = ["image"]
size = [16, 16]
mode = "L"
[model]
images = ["image"]
conv_channels = [16, 32]
layers = [16]
"""


def text(folder: Path) -> str:
    """Sentences and tags that tell the class; one in a hundred has no text."""
    rng = np.random.default_rng(0)
    with (folder / "rows.ndjson").open("w") as file:
        for i in range(N):
            words = [f"{'cross' if i % 2 else 'bar'}{n}" for n in rng.integers(0, 9, 1 + i % 20)]
            said = None if i in BROKEN else " ".join(words)
            row = {"text": said, "more": f"x y{i % 4}", "label": "cross" if i % 2 else "bar"}
            file.write(json.dumps(row) + "\n")
    return f"""
[source]
kind = "files"
path = "{folder / "rows.ndjson"}"
[source.schema]
text = "string"
more = "string"
label = "string"
[scrub.missing]
columns = ["text"]
strategy = "drop"
[scrub.tokens]
columns = ["text", "more"]
size = 500
[model]
ragged = ["text"]
sparse = ["more"]
max_length = 12
embedding_dim = 16
layers = [8]
dropout = 0.1
"""


KINDS: list[Make] = [images, text]
REST = """
task = "binary"
target = "label"
classes = ["bar", "cross"]
[train]
optimizer = "adam"
lr = 1e-2
threads = 1
{more}
[loader]
batch_rows = 32
shuffle_rows = 1200
[checkpoint]
interval_batches = 3
[sink]
kind = "files"
path = "{folder}/out"
columns = ["label"]
"""


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def pipeline(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Writes the pipeline's file, by the name of its folder; all on the same data."""
    (tmp_path / "data").mkdir()
    first = request.param(tmp_path / "data")

    def write(name: str, more: str = "", rest: str = "") -> Path:
        file, folder = tmp_path / f"{name}.toml", tmp_path / name
        head = f'name = "tensors"\nfolder = "{folder}"\n'
        file.write_text(head + first + REST.format(folder=folder, more=more) + rest)
        return file

    return write


def ends(file: Path) -> dict[str, Any]:
    """Everything a run ends with."""
    saved, folder = state(file), file.with_suffix("")
    return {
        **{part: saved[part] for part in ("positions", "stages", "totals", "work")},
        "rows": pl.read_parquet(folder / "out" / "*.parquet"),
        "letters": pl.read_ndjson(folder / "dead_letters" / "*.ndjson"),
    }


def test_it_learns_and_what_is_broken_is_a_dead_letter(
    pipeline: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = pipeline("whole")
    assert preflight(Run(file), 200)
    assert "is ready to run" in capsys.readouterr().out
    summary = Run(file).run()
    assert summary.totals.balanced
    assert summary.totals.rejected == len(BROKEN)
    done = ends(file)
    assert done["rows"].height == N - len(BROKEN)
    assert done["letters"].height == len(BROKEN)
    last = done["rows"].tail(200)
    assert (last["label"] == last["prediction"]).mean() >= 0.95


@pytest.mark.full
@pytest.mark.slow
def test_a_stopped_or_killed_run_ends_where_an_uninterrupted_one_does(
    pipeline: Callable[..., Path],
) -> None:
    whole, stopped, killed = map(pipeline, ("whole", "stopped", "killed"))
    finish(whole)
    finish_through_stops(stopped, 5, 16)
    same(ends(whole), ends(stopped))
    finish_through_kills(killed, killed.with_suffix("") / "checkpoints")
    same(ends(whole), ends(killed))


def test_what_it_learns_is_served_from_a_file(pipeline: Callable[..., Path]) -> None:
    """Behind the stages that no file can contain; a row without its text or image has no answer."""
    file = pipeline("whole", rest="[export]\ncompress = false\n")
    assert preflight(Run(file), 200)
    model = Run(file).run().files["model"]
    table = tomllib.loads(file.read_text())
    folder = file.with_name("served")
    served = {
        "name": "served",
        "folder": str(folder),
        "source": table["source"],
        "scrub": table["scrub"],
        "infer": {"model": str(model)},
        "sink": {"kind": "files", "path": str(folder / "out"), "columns": ["label"]},
    }
    totals = Run(Pipeline.of(served)).run().totals
    assert totals.balanced
    assert (totals.predicted, totals.rejected) == (N - len(BROKEN), len(BROKEN))
    rows = pl.read_parquet(folder / "out" / "*.parquet")
    assert (rows["label"] == rows["prediction"]).to_numpy().mean() >= 0.95


def test_a_batch_that_would_burst_the_budget_is_told_before_the_run(tmp_path: Path) -> None:
    table: dict[str, Any] = {
        "name": "large",
        "folder": str(tmp_path / "run"),
        "source": {"kind": "files", "path": str(tmp_path / "images"), "format": "images"},
        "loader": {"batch_rows": 300, "memory_budget": "64MiB"},
        "scrub": {"x": {"kind": "image", "columns": ["image"], "size": [224, 224]}},
    }
    (tmp_path / "images").mkdir()
    Image.new("RGB", (5, 5)).save(tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match=r"makes batches of 45,158,400 bytes .* batch_rows = 222 "):
        Run(Pipeline.of(table)).run()
    table["loader"]["batch_rows"] = 222
    assert Run(Pipeline.of(table)).run().totals.cleaned == 1


def test_images_are_the_same_from_a_folder_a_parquet_column_and_a_tar(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    images(tmp_path / "photos")
    files = sorted((tmp_path / "photos").rglob("*.*"), key=lambda file: file.name)[:120]
    contents = [file.read_bytes() for file in files]
    rows = [{"image": {"bytes": c, "path": f.name}} for c, f in zip(contents, files, strict=True)]
    pl.DataFrame(rows).write_parquet(tmp_path / "rows.parquet")
    shard(tmp_path / "rows.tar", [(f"{i:03}.img", c) for i, c in enumerate(contents)])
    names = [str(file) for file in files]
    pl.DataFrame({"image": names}).write_ndjson(tmp_path / "rows.ndjson")
    schema = {"image": "bytes"}
    paths = {"image": "image.bytes"}
    sources: list[dict[str, Any]] = [
        {"path": str(tmp_path / "rows.parquet"), "paths": paths, "schema": schema},
        {"path": str(tmp_path / "rows.tar"), "paths": {"image": "img"}, "schema": schema},
        {"path": str(tmp_path / "rows.ndjson"), "schema": {"image": "string"}},
    ]
    found = []
    for source in sources:
        table: dict[str, Any] = {
            "name": "same",
            "source": {"kind": "files", **source},
            "scrub": {
                "x": {
                    "kind": "image", "columns": ["image"], "size": [16, 16], "root": str(tmp_path)
                }
            },
        }  # fmt: skip
        with Run(Pipeline.of(table)).loader() as loader:
            (batch,) = loader
        found.append(batch)
    first, *others = found
    assert len(first) == 118
    for other in others:
        assert other.frame["image"].equals(first.frame["image"])


def test_another_vocabulary_is_another_pipeline(tmp_path: Path) -> None:
    words, rows = tmp_path / "words.txt", tmp_path / "rows.ndjson"
    words.write_text("a\nb\n")
    pl.DataFrame({"t": ["a b", "b", "c", "a"] * 20, "y": [1.0, 2.0, 3.0, 4.0] * 20}).write_ndjson(
        rows
    )
    table: dict[str, Any] = {
        "name": "words",
        "folder": str(tmp_path / "run"),
        "source": {"kind": "files", "path": str(rows)},
        "scrub": {"tokens": {"columns": ["t"], "vocabulary": str(words)}},
        "model": {"ragged": ["t"], "target": "y"},
    }
    assert Run(Pipeline.of(table)).run().totals.learned == 80
    assert Run(Pipeline.of(table)).run().resumed
    words.write_text("b\na\n")
    with pytest.raises(UserError, match="was written with another file for stage tokens"):
        Run(Pipeline.of(table)).run()


@pytest.mark.full
def test_rare_classes_are_drawn_from_every_kind(pipeline: Callable[..., Path]) -> None:
    sampling = '[train.sampling]\nmethod = "over"\ndesired_dist = { cross = 3, bar = 1 }'
    assert Run(pipeline("whole", sampling)).run().totals.rejected == len(BROKEN)
