"""Small networks, published as versions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from engine.types import Features
from engine.versions.store import Versions
from engine.versions.version import Details
from models.export.model import make
from models.export.model_files import write
from models.learners.tabular import TabularLearner

KEEP = 1_000


@functools.cache
def _model(seed: int, columns: tuple[str, ...], layers: tuple[int, ...], task: str) -> bytes:
    """The ONNX model of a network of random weights, whose rows say ``v`` and its seed."""
    classes = ("no", "yes") if task == "binary" else ()
    features = Features(numeric=columns, categories={}, target="y", task=task, classes=classes)
    if task == "several":
        features = Features(numeric=columns, targets=("y", "z"))
    if task == "quantiles":
        features = Features(numeric=columns, target="y", quantiles=(0.1, 0.5, 0.9))
    settings = TabularLearner.Settings(layers=layers, standardize=False)
    learner = TabularLearner(settings, TabularLearner.Training(), features)
    state, rng = learner.state_dict(), np.random.default_rng(seed)
    for weights in state["weights"].values():
        weights[...] = rng.normal(size=weights.shape)
    learner.load_state_dict(state)
    content: bytes = make(learner, [], {"version": f"v{seed}", "mark": "{}"}).SerializeToString()
    return content


def network(
    path: Path,
    seed: int,
    *,
    columns: tuple[str, ...] = ("a", "b"),
    layers: tuple[int, ...] = (4,),
    task: str = "regression",
    change: Callable[[Any], None] | None = None,
) -> Path:
    """Write a network of random weights, whose rows say ``v`` and its seed.

    Args:
        columns: that it reads.
        layers: their widths.
        change: is done to the ONNX model.
    """
    model = onnx.load_model_from_string(_model(seed, columns, layers, task))
    if change is not None:
        change(model)
    return write(model, path)


def publish(versions: Versions, seed: int, *, folder: Path, **keys: Any) -> int:
    """Publish a network; return its number.

    Args:
        folder: for the file on its way.
        keys: of `network`.
    """
    path = network(folder / "next.onnx", seed, **keys)
    details = Details(model_version=f"v{seed}", rows=seed, data_time=100.0 + seed)
    return versions.publish(path, details, keep=KEEP).number
