"""Inference through headrace against a bare ONNX Runtime loop; and int8 against float32.

``python -m tests.bench inference``

The network has four hidden layers of 512 and 32 inputs, on one thread of ONNX Runtime everywhere.
The bare loop has its input arrays in a list; headrace reads frames, makes inputs of them, checks
the answers and adds them to the rows. Accuracy is on rows that nothing was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from connectors.memory import MemorySource
from engine.config import LoaderSettings
from engine.loading.collate import Collate
from engine.loading.loader import Loader
from engine.running.loop import Loop
from engine.running.work import Serving
from engine.types import Batch, Features, Mark
from models.compress.quantize import CANDIDATES
from models.export.model import export
from models.export.model_files import SCORE
from models.export.onnx_inputs import OnnxInputs
from models.learners.tabular import TabularLearner
from models.serving.predictor import OnnxPredictor
from tests.bench.measure import interleave, median, report

COLUMNS = 32
NAMES = tuple(f"x{i}" for i in range(COLUMNS))
FEATURES = Features(numeric=NAMES, target="y", task="binary", classes=("0", "1"))
LAYERS = (512,) * 4
QUICK = (32,) * 4
BATCHES = (1_024, 8_192)
SIZES = (1, 64, 1_024)
"""Rows of a call, for int8 against float32."""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/inference.json``."""
    with TemporaryDirectory() as folder:
        models = trained(Path(folder), quick=quick)
        through_headrace(models["float32"], quick=quick)
        against_float32(models, quick=quick)


def through_headrace(model: Path, *, quick: bool) -> None:
    """P5: what the engine around the session costs."""
    runs: dict[str, Callable[[], object]] = {}
    count = 16_384 if quick else 131_072
    for rows in BATCHES:
        frame = data(count, seed=1).drop("y")
        runs[f"bare, {rows}"] = bare(model, frame, rows)
        runs[f"headrace, {rows}"] = through(model, frame, rows)
    seconds = interleave(runs, rounds=3 if quick else 7)
    figures = {f"{name} rows a batch, rows/s": count / median(seconds[name]) for name in runs}
    for rows in BATCHES:
        ratio = median(seconds[f"bare, {rows}"]) / median(seconds[f"headrace, {rows}"])
        figures[f"headrace / bare, {rows} rows a batch"] = ratio
    report("inference", figures, seconds=seconds, goal="0.97 of the bare loop or more")


def against_float32(models: dict[str, Path], *, quick: bool) -> None:
    """Latency by rows of a call, and accuracy."""
    test = data(2_000 if quick else 20_000, seed=2)
    label = test["y"].to_numpy()
    sessions = {name: predictor(path) for name, path in models.items()}
    figures: dict[str, float] = {}
    for name, session in sessions.items():
        said = session.scores(test) > 0.5
        figures[f"{name}, accuracy"] = float((said == label).mean())
    raw: dict[str, list[float]] = {}
    for rows in SIZES:
        part = test.head(rows)
        times = max(1, (8_192 if quick else 65_536) // max(rows, 256))
        runs = {name: _bound(session, part, times) for name, session in sessions.items()}
        seconds = interleave(runs, rounds=5 if quick else 15)
        raw |= {f"{name}, {rows}": values for name, values in seconds.items()}
        for name in models:
            if name != "float32":
                speed = median(seconds["float32"]) / median(seconds[name])
                figures[f"{name} / float32, {rows} rows a call"] = speed
    report("int8", figures, seconds=raw, goal="4 times float32, at 0.5 point of accuracy or less")


def data(rows: int, seed: int) -> pl.DataFrame:
    """Two classes whose border is curved."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, COLUMNS))
    border = x[:, 0] * x[:, 1] + x[:, 2] + 0.5 * np.abs(x[:, 3]) - 0.4
    label = (border + rng.normal(0, 0.2, rows) > 0).astype(np.int64)
    return pl.DataFrame(x, schema=list(NAMES)).with_columns(y=pl.Series(label))


def trained(folder: Path, *, quick: bool, batches: int = 300) -> dict[str, Path]:
    """The network as float32 and its candidates, calibrated on rows of their own; quick, a small
    one that has hardly learned."""
    batches = 2 if quick else batches
    learner = TabularLearner(
        TabularLearner.Settings(layers=QUICK if quick else LAYERS),
        TabularLearner.Training(optimizer="adam", lr=1e-3),
        FEATURES,
    )
    collate = Collate(FEATURES)
    for part in data(batches * 512, seed=0).iter_slices(512):
        learner.learn(collate.apply(Batch(frame=part, mark=Mark(), arrived=0.0)))
    models = {"float32": export(folder / "float32.onnx", learner, [], {"version": "bench"})}
    inputs = OnnxInputs(dict.fromkeys(NAMES, "double"))
    feeds = [inputs.feed(part) for part in data(8 * 512, seed=3).iter_slices(512)]
    for name, make in CANDIDATES.items():
        if name == "float16":  # pays on a GPU only
            continue
        models[name] = folder / f"{name}.onnx"
        make(models["float32"], models[name], feeds)
    return models


def predictor(model: Path) -> OnnxPredictor:
    """On one thread."""
    return OnnxPredictor(OnnxPredictor.Settings(model=str(model), threads=1))


def bare(model: Path, frame: pl.DataFrame, rows: int) -> Callable[[], object]:
    """A session over arrays that are ready."""
    session = predictor(model)._session
    inputs = OnnxInputs(dict.fromkeys(NAMES, "double"))
    feeds = [inputs.feed(part) for part in frame.iter_slices(rows)]
    return lambda: [session.run([SCORE], feed)[0] for feed in feeds]


def through(model: Path, frame: pl.DataFrame, rows: int) -> Callable[[], object]:
    """The loop of a serving run."""
    serving = predictor(model)
    serving.bind(dict(frame.schema))

    def run() -> None:
        source = MemorySource.of([frame])
        settings = LoaderSettings(batch_rows=rows)
        schema = source.schema({})
        loader = Loader(source, schema=schema, collate=serving.collate, settings=settings)
        totals = Loop(source=source, loader=loader, work=Serving(serving, ())).run()
        assert totals.predicted == frame.height

    return run


def _bound(session: OnnxPredictor, part: pl.DataFrame, times: int) -> Callable[[], object]:
    feed = OnnxInputs(dict.fromkeys(NAMES, "double")).feed(part)
    run = session._session.run
    return lambda: [run([SCORE], feed) for _ in range(times)]


if __name__ == "__main__":
    main()
