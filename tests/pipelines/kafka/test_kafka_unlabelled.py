"""A model of texts and one of images: trained from files, compressed by the gate, and answering a
topic whose rows have no label."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from tests.broker import shared_broker
from tests.pipelines.conftest import Headrace
from tests.pipelines.learning.labels.test_unlabelled import images, run, text_rows

LEARN = """
[source]
kind = "files"
path = "{place}/learn.parquet"
[scrub.read]
{stage}
[loader]
batch_rows = 64
[model]
target = "label"
task = "binary"
{model}
[train]
threads = 1
[export]
holdout = 0.3
[export.compress]
candidates = ["int8_dynamic"]
rounds = 3
min_speedup = 0.01
max_size_ratio = 9
max_quality_loss = 5
max_slice_loss = 20
"""
SERVE = """
[source]
kind = "kafka"
bootstrap_servers = "{servers}"
topics = "{topic}"
stop = "end"
[source.schema]
{column} = "string"
[scrub.read]
{stage}
[infer]
model = "{file}"
threads = 1
[sink]
kind = "files"
path = "{place}/out"
"""


def answers(
    headrace: Headrace, place: Path, stage: str, column: str, model: str, rows: pl.DataFrame
) -> list[str]:
    """What a trained model in int8 says to the rows of a topic."""
    run(headrace, place, "learn", LEARN.format(place=place, stage=stage, model=model))
    broker = shared_broker()
    topic = broker.topic()
    broker.produce(topic, [json.dumps(row).encode() for row in rows.iter_rows(named=True)])
    report = json.loads((place / "learn" / "compression.json").read_text())
    _, int8 = report["candidates"]
    assert int8["refusal"] is None
    parts = {"servers": broker.bootstrap_servers, "topic": topic, "column": column}
    parts["file"] = int8["path"]  # whether it is faster than float32 is the machine's matter
    run(headrace, place, "serve", SERVE.format(place=place, stage=stage, **parts))
    done = pl.read_parquet(place / "out" / "*.parquet").sort("_position")
    return done["prediction"].to_list()


@pytest.mark.full
@pytest.mark.slow
def test_texts(headrace: Headrace, tmp_path: Path) -> None:
    text_rows(1_500, 0).write_parquet(tmp_path / "learn.parquet")
    new = text_rows(100, 1)
    stage = 'kind = "tokens"\ncolumns = ["text"]\nsize = 512'
    reads = 'ragged = ["text"]'
    said = answers(headrace, tmp_path, stage, "text", reads, new.drop("label"))
    assert sum(a == b for a, b in zip(said, new["label"], strict=True)) > 90


@pytest.mark.slow
def test_images(headrace: Headrace, tmp_path: Path) -> None:
    images(tmp_path, 600, 0)
    files = sorted(tmp_path.glob("*/*.png"))
    rows = pl.DataFrame(
        {
            "photo": [str(f.relative_to(tmp_path)) for f in files],
            "label": [f.parent.name for f in files],
        }
    )
    rows = rows.sample(fraction=1, shuffle=True, seed=0)
    rows[:560].write_parquet(tmp_path / "learn.parquet")
    new = rows[560:]
    stage = f'kind = "image"\ncolumns = ["photo"]\nsize = [12, 12]\nroot = "{tmp_path}"'
    reads = 'images = ["photo"]\nconv_channels = [8]\nlayers = [8]'
    said = answers(headrace, tmp_path, stage, "photo", reads, new.drop("label"))
    assert sum(a == b for a, b in zip(said, new["label"], strict=True)) > 36
