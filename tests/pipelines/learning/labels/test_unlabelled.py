"""Pipelines of texts and of images learn, export, and score rows that have no label."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from tests.pipelines.conftest import Headrace

WORDS = {"good": ("great", "fine", "lovely"), "bad": ("awful", "poor", "sad")}
FILLER = ("the", "a", "film", "it")
LEARN = """
[model]
target = "label"
task = "binary"
classes = {classes}
{reads}
[train]
threads = 1
[export]
compress = false
"""
SERVE = """
[infer]
model = "{place}/learn/model.onnx"
threads = 1
[sink]
kind = "files"
path = "{place}/out"
columns = ["{key}"]
"""


def text_rows(n: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    labels = rng.choice(["bad", "good"], n)
    texts = [
        " ".join(rng.permutation([*rng.choice(WORDS[label], 2), *rng.choice(FILLER, 4)]))
        for label in labels
    ]
    return pl.DataFrame({"text": texts, "label": labels})


def images(folder: Path, n: int, seed: int) -> None:
    """Reddish and bluish noise, in folders that are the labels."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        label = ("blue", "red")[i % 2]
        pixels = rng.integers(0, 120, (12, 12, 3), dtype=np.uint8)
        pixels[..., 0 if label == "red" else 2] += 80
        place = folder / label
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{i}.png")


def run(headrace: Headrace, place: Path, name: str, text: str) -> None:
    file = place / f"{name}.toml"
    file.write_text(f'name = "{name}"\nfolder = "{place / name}"\n{text}')
    for command in ("check", "run"):
        code, out, err = headrace(command, file)
        assert code == 0, out + err


def served(place: Path) -> pl.DataFrame:
    return pl.read_parquet(place / "out" / "*.parquet")


def test_texts(headrace: Headrace, tmp_path: Path) -> None:
    text_rows(1_500, 0).write_parquet(tmp_path / "learn.parquet")
    new = text_rows(100, 1)
    new.drop("label").write_parquet(tmp_path / "new.parquet")
    source = '[source]\nkind = "files"\npath = "{path}"\n'
    source += '[scrub.tokens]\ncolumns = ["text"]\nsize = 512\n'
    learn = LEARN.format(classes='["bad", "good"]', reads='ragged = ["text"]')
    run(headrace, tmp_path, "learn", source.format(path=tmp_path / "learn.parquet") + learn)
    serve = SERVE.format(place=tmp_path, key="_position")
    run(headrace, tmp_path, "serve", source.format(path=tmp_path / "new.parquet") + serve)
    rows = served(tmp_path).sort("_position")
    assert (rows["prediction"] == new["label"]).sum() > 90
    # A stage that the model was trained behind must be the same: other ids are other words.
    for command in ("check", "run"):
        code, out, err = headrace(
            command, tmp_path / "serve.toml", "--set", "scrub.tokens.size=100"
        )
        assert code == 2, out + err
        assert "[scrub.tokens] has size = 100, and 512 where the model of [infer] was" in " ".join(
            (out + err).split()
        )


@pytest.mark.slow
def test_images(headrace: Headrace, tmp_path: Path) -> None:
    images(tmp_path / "photos", 240, 0)
    images(tmp_path / "new", 20, 1)
    stage = (
        '[loader]\nbatch_rows = 40\n{loader}[scrub.image]\ncolumns = ["image"]\nsize = [12, 12]\n'
    )
    source = '[source]\nkind = "files"\npath = {path}\n'
    path = json.dumps(str(tmp_path / "photos" / "**" / "*.png"))
    schema = '[source.schema]\nimage = "bytes"\nlabel = "string"\n'
    learn = LEARN.format(
        classes='["blue", "red"]', reads='images = ["image"]\nconv_channels = [8]\nlayers = [8]'
    )
    run(
        headrace, tmp_path, "learn",
        source.format(path=path) + schema + stage.format(loader="shuffle_rows = 240\n") + learn,
    )  # fmt: skip
    path = json.dumps(str(tmp_path / "new" / "**" / "*.png"))
    serve = SERVE.format(place=tmp_path, key="path")
    run(headrace, tmp_path, "serve", source.format(path=path) + stage.format(loader="") + serve)
    rows = served(tmp_path)
    assert len(rows) == 20
    folders = rows["path"].str.extract(r"(\w+)/\d+\.png$")
    assert (rows["prediction"] == folders).sum() > 18
