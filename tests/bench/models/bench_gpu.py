"""What a CUDA GPU gives: training, transfer, and inference by provider and precision.

``python -m tests.bench gpu``

"transfer" learns from batches of images that the loader's thread has pinned and copied ahead, and
from the same that the model copies by itself; both must come to the same scores.

Takes a minute or two. What the GPU computes is checked by the tests, on it:
``pytest --device cuda tests/models tests/engine/loading/test_transfer.py``.

Runs only where torch and ONNX Runtime both find the device, and says so in one sentence elsewhere.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch

from connectors.memory import MemorySource
from engine.config import LoaderSettings
from engine.loading.collate import Collate
from engine.loading.loader import Loader
from engine.loading.transfer import Transfer
from engine.types import Batch, Features, Mark, UserError
from models.compress.quantize import float16
from models.learners.tabular import TabularLearner
from models.serving.predictor import OnnxPredictor
from tests.bench.measure import interleave, median, report
from tests.bench.models import bench_inference, bench_training

PROVIDERS = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
LAYERS = (1_024, 1_024, 512)
BATCH = 8_192


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/gpu_*.json``; exit 1 with a sentence without a GPU."""
    if not torch.cuda.is_available():
        sys.exit("There is no CUDA device here: expected one that torch finds; nothing was run.")
    training(quick=quick)
    with TemporaryDirectory() as folder:
        inference(Path(folder), quick=quick)
    transfer(quick=quick)


def training(*, quick: bool) -> None:
    """A wide network on cpu and cuda, float32 and bfloat16, the copy to the device included."""
    frame = bench_training.rows(16 if quick else 128)
    features = bench_training.features(frame)
    collate = Collate(features)
    batches = [
        collate.apply(Batch(frame=part, mark=Mark(), arrived=0.0))
        for part in frame.iter_slices(BATCH)
    ]

    def learn(device: str, precision: str) -> Callable[[], object]:
        learner = TabularLearner(
            TabularLearner.Settings(layers=LAYERS),
            TabularLearner.Training(
                optimizer="adam",
                device=device,
                precision=precision,
                step_rows=BATCH,
                replay_rows=0,
            ),
            features,
        )
        return lambda: [learner.learn(batch) for batch in batches]

    runs = {
        "cpu float32": learn("cpu", "float32"),
        "cuda float32": learn("cuda", "float32"),
        "cuda bfloat16": learn("cuda", "bfloat16"),
    }
    seconds = interleave(runs, rounds=3 if quick else 5)
    figures = {f"{name}, rows/s": frame.height / median(seconds[name]) for name in runs}
    for name in ("cuda float32", "cuda bfloat16"):
        figures[f"{name} / cpu float32"] = median(seconds["cpu float32"]) / median(seconds[name])
    figures["device"] = torch.cuda.get_device_name()  # type: ignore[assignment]
    report("gpu_training", figures, seconds=seconds)


def transfer(*, quick: bool) -> None:
    """Images copied ahead through pinned memory, against copies by whoever needs them."""
    rows, size = 256, 224
    pixels = np.random.default_rng(0).integers(0, 256, (rows, size, size, 3), dtype=np.uint8)
    frame = pl.DataFrame({"image": pixels, "y": np.arange(rows, dtype=np.float32)})
    features = Features(numeric=(), images={"image": (3, size, size)}, target="y")
    settings: dict[str, Any] = {"batch_rows": rows, "poll_timeout": 0.01, "memory_budget": 1 << 30}
    schema = dict(frame.schema)
    batches = 4 if quick else 16
    scores: dict[str, float] = {}

    def learn(name: str, ahead: Callable[[Batch], Batch] | None) -> Callable[[], None]:
        def run() -> None:
            learner = TabularLearner(
                TabularLearner.Settings(),
                TabularLearner.Training(device="cuda", step_rows=rows, replay_rows=0),
                features,
            )
            source = MemorySource.of([frame] * batches)
            made = Loader(
                source, schema=schema, collate=Collate(features).apply, transfer=ahead,
                settings=LoaderSettings(**settings),
            )  # fmt: skip
            with made as loader:
                for batch in loader:
                    assert batch.tensors is not None
                    assert (batch.tensors.on_device is not None) == (ahead is not None)
                    scores[name] = float(learner.learn(batch).scores.sum())
                spent = loader.timer.snapshot().stages.get("transfer")
            taken[name] = 0.0 if spent is None else spent.wall / batches

        return run

    taken: dict[str, float] = {}
    runs = {"ahead": learn("ahead", Transfer("cuda").apply), "by the model": learn("model", None)}
    seconds = interleave(runs, rounds=3 if quick else 5)
    figures: dict[str, Any] = {
        f"{name}, images/s": batches * rows / median(seconds[name]) for name in runs
    }
    figures["ahead / by the model"] = median(seconds["by the model"]) / median(seconds["ahead"])
    figures["transfer, s a batch"] = taken["ahead"]
    figures["largest difference of scores, relative"] = abs(scores["ahead"] / scores["model"] - 1)
    report("gpu_transfer", figures, seconds=seconds)


def inference(folder: Path, *, quick: bool) -> None:
    """float32 and float16 by every provider that is there, and the guard where one is not."""
    models = bench_inference.trained(folder, quick=quick, batches=100)
    models["float16"] = folder / "float16.onnx"
    float16(models["float32"], models["float16"], [])
    test = bench_inference.data(BATCH, seed=5).drop("y")
    predictors: dict[str, OnnxPredictor] = {}
    refused: dict[str, str] = {}
    for provider in PROVIDERS:
        for precision in ("float32", "float16"):
            settings = OnnxPredictor.Settings(
                model=str(models[precision]), providers=(provider,), strict_provider=True
            )
            try:
                predictors[f"{provider} {precision}"] = OnnxPredictor(settings)
            except UserError as error:
                refused[f"{provider} {precision}"] = str(error)
    runs = {name: _scores(predictor, test) for name, predictor in predictors.items()}
    seconds = interleave(runs, rounds=5 if quick else 15)
    figures: dict[str, object] = {f"{name}, rows/s": BATCH / median(seconds[name]) for name in runs}
    base = predictors["CPUExecutionProvider float32"].scores(test)
    for name, predictor in predictors.items():
        figures[f"{name}, runs on"] = predictor.provider
        figures[f"{name}, largest difference"] = float(abs(predictor.scores(test) - base).max())
    report("gpu_inference", {**figures, **refused}, seconds=seconds)


def _scores(predictor: OnnxPredictor, test: pl.DataFrame) -> Callable[[], object]:
    return lambda: predictor.scores(test)


if __name__ == "__main__":
    main()
