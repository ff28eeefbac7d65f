"""Pipelines whose model is made of layers: texts, images and numbers; what `check` says of layers
that do not fit; the load of experts on /metrics."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from PIL import Image

from tests.pipelines.conftest import Headrace

N = 200
PIPELINE = """
name = "layers"
folder = "{folder}"
[source]
kind = "files"
path = "{folder}/rows.parquet"
[scrub.tokens]
columns = ["text"]
size = 30
[scrub.image]
columns = ["photo"]
size = [12, 12]
mode = "L"
[scrub.categories]
columns = ["colour"]
[model]
target = "label"
max_length = 16
numeric = ["price"]
categories = ["colour"]
{model}
[train]
lr = 1e-2
threads = 1
replay_rows = 0
[evaluation]
window = 200
"""
DEFAULTS = """
[model.inputs.words]
columns = ["text"]
[model.inputs.photo]
columns = ["photo"]
"""
LAYERS = """
[model.inputs.words]
columns = ["text"]
layers = [
    {kind = "embedding", width = 16},
    {kind = "attention", blocks = 1, heads = 2},
    {kind = "pooling", how = "attention"},
]
[model.inputs.photo]
columns = ["photo"]
layers = [
    {kind = "convolution", width = 8},
    {kind = "pooling", how = "max"},
    {kind = "convolution", width = 8, normalization = "batch"},
    {kind = "pooling", how = "mean"},
]
[model.head]
layers = [{kind = "experts", count = 3, top = 1, width = 16}, {kind = "dense", width = 8}]
"""


def rows() -> pl.DataFrame:
    """The order of two words tells the label, or a bar that stands or lies."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, N)
    by_text = np.arange(N) % 2 == 0
    texts, photos = [], []
    for label, text in zip(labels, by_text, strict=True):
        first = label if text else rng.integers(0, 2)
        words = ["good", "bad"] if first else ["bad", "good"]
        texts.append(" ".join([*words, *rng.choice(["a", "the", "of"], rng.integers(0, 5))]))
        photos.append(bar(None if text else bool(label), rng))
    return pl.DataFrame(
        {
            "text": texts,
            "photo": photos,
            "price": rng.normal(size=N),
            "colour": rng.choice(["red", "blue"], N),
            "label": labels.astype(bool),
        }
    )


def bar(upright: bool | None, rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 90, (12, 12), dtype=np.uint8)
    top, left = rng.integers(0, 6, 2)
    if upright is not None:
        pixels[np.s_[top : top + 6, left + 2] if upright else np.s_[top + 2, left : left + 6]] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows().write_parquet(tmp_path / "rows.parquet")
    return tmp_path


def write(folder: Path, model: str) -> Path:
    file = folder / "layers.toml"
    file.write_text(PIPELINE.replace("{folder}", str(folder)).replace("{model}", model))
    return file


@pytest.mark.parametrize("model", [DEFAULTS, LAYERS], ids=["defaults", "layers"])
def test_texts_images_and_numbers_are_read(folder: Path, headrace: Headrace, model: str) -> None:
    code, out, err = headrace("run", write(folder, model))
    assert code == 0, err
    assert f"{N} read = {N} learned" in out
    metrics = (folder / "metrics.prom").read_text()
    loads = re.findall(r'headrace_expert_load_ratio\{expert="\d",layer="head.0"\} (\S+)', metrics)
    assert len(loads) == (3 if model == LAYERS else 0)
    assert not loads or sum(map(float, loads)) == pytest.approx(1)


WORDS = '[model.inputs.words]\ncolumns = ["text"]\nlayers = '


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            f'{WORDS}[{{kind = "pooling", how = "mean"}}]',
            "[model.inputs.words] layer 1 (pooling): expected a sequence of vectors or an "
            "image, got ids: put an embedding before it.",
        ),
        (
            f'{WORDS}[{{kind = "embedding"}}, {{kind = "dense", width = 8}}]',
            "[model.inputs.words] layer 2 (dense): expected one vector per row, got a sequence of "
            "vectors: put a pooling before it.",
        ),
        (
            f'{WORDS}[{{kind = "embedding"}}, {{kind = "atention"}}]',
            "[model.inputs.words] layer 2 in FILE has no kind 'atention'. Did you mean "
            "'attention'?",
        ),
        (
            f'{WORDS}[{{kind = "embedding", widht = 3}}]',
            "[model.inputs.words] layer 1 in FILE has no key 'widht'. Did you mean 'width'?",
        ),
        (
            '[model.head]\nlayers = [{kind = "dense"}]',
            "[model.head] layer 1 in FILE needs the key 'width', which is not there.",
        ),
    ],
)
def test_layers_that_do_not_fit_are_one_sentence(
    folder: Path, headrace: Headrace, model: str, sentence: str
) -> None:
    file = write(folder, model)
    code, _, err = headrace("check", file)
    assert code == 2
    assert sentence.replace("FILE", str(file)) in err.replace("\n", " ")
