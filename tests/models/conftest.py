"""What the model tests share: generated batches, and one thread for torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from engine.types import Batch, Features, KeyedState, Mark, Padded, Ragged, Sparse, Tensors

CLASSES = {"regression": (), "binary": ("no", "yes"), "multiclass": ("a", "b", "c")}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors, shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_features() -> Callable[..., Features]:
    """(task, numeric=4, categories={"color": 5, "city": 7}, nested=False, inputs=(), state=None) ->
    Features; nested adds an image and lists of ids; inputs are those of a network: numeric,
    categories, photo, words, past; state is what it carries per key."""

    def make(
        task: str = "regression",
        numeric: int = 4,
        categories: dict[str, int] | None = None,
        nested: bool = False,
        inputs: Sequence[str] = (),
        state: KeyedState | None = None,
    ) -> Features:
        if inputs:
            return replace(_network(inputs, task), state=state)
        return Features(
            images={"photo": (3, 9, 8)} if nested else {},
            ragged={"words": 20} if nested else {},
            sparse={"tags": 6} if nested else {},
            numeric=tuple(f"x{i}" for i in range(numeric)),
            categories={"color": 5, "city": 7} if categories is None else categories,
            target="y",
            task=task,
            classes=CLASSES[task],
        )

    return make


def _network(inputs: Sequence[str], task: str) -> Features:
    numeric = ("x0", "x1", "x2", "x3") if "numeric" in inputs else ()
    categories = {"color": 5, "city": 7} if "categories" in inputs else {}
    columns = {"numeric": numeric, "categories": tuple(categories)}
    return Features(
        numeric=numeric,
        categories=categories,
        images={"photo": (3, 9, 8)} if "photo" in inputs else {},
        padded={"words": 20} if "words" in inputs else {},
        arrays={"past": (5, 2)} if "past" in inputs else {},
        inputs={name: columns.get(name, (name,)) for name in inputs},
        max_length=8,
        target="y",
        task=task,
        classes=CLASSES[task],
    )


@pytest.fixture(scope="session")
def make_batches() -> Callable[..., list[Batch]]:
    """(features, count=6, rows=40, seed=0) -> batches of a problem that can be learned."""

    def make(features: Features, count: int = 6, rows: int = 40, seed: int = 0) -> list[Batch]:
        rng = np.random.default_rng(seed)
        return [_batch(features, rows, rng) for _ in range(count)]

    return make


def _batch(features: Features, rows: int, rng: np.random.Generator) -> Batch:
    numeric = rng.normal(size=(rows, len(features.numeric))).astype(np.float32)
    sizes = features.categories.values()
    codes = [rng.integers(0, size, rows) for size in sizes]
    categories = np.stack(codes, 1) if codes else np.empty((rows, 0), np.int64)
    signal = numeric @ np.arange(1, 1 + numeric.shape[1]) + categories.sum(1)
    if not numeric.size:
        signal = 5 * rng.normal(size=rows)
    target = {
        "regression": np.abs(signal).astype(np.float32),
        "binary": (signal > signal.mean()).astype(np.int64),
        "multiclass": np.digitize(signal, [3.0, 7.0]).astype(np.int64),
    }[features.task]
    if features.targets:
        target = _several(target, len(features.targets), rng)
    tensors = Tensors(
        numeric=torch.from_numpy(numeric),
        categories=torch.from_numpy(categories),
        target=torch.from_numpy(target),
        keys=torch.from_numpy(rng.integers(0, 12, rows)) if features.state else None,
        **_nested(features, signal, rng),
    )
    frame = pl.DataFrame({"y": target})
    return Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=tensors)


def _several(target: Any, count: int, rng: np.random.Generator) -> Any:
    """Targets of other units; a row lacks some of them, never all."""
    targets = np.stack([target * 1_000**i for i in range(count)], 1)
    gone = rng.random(targets.shape) < 0.3
    gone[np.arange(len(target)), rng.integers(0, count, len(target))] = False
    return np.where(gone, np.nan, targets).astype(np.float32)


def _nested(features: Features, signal: Any, rng: np.random.Generator) -> dict[str, Any]:
    """The brightness of the image follows the signal; the ids are of no use."""
    if not features.nested:
        return {}
    if features.inputs:
        return _network_tensors(features, signal, rng)
    rows = len(signal)
    light = 100 + 10 * np.clip(signal, -9, 9)[:, None, None, None]
    image = (light + rng.integers(0, 40, (rows, 9, 8, 3))).astype(np.uint8)
    bounds = torch.from_numpy(np.concatenate(([0], np.cumsum(rng.integers(0, 5, rows)))))
    ids = torch.from_numpy(rng.integers(0, 20, int(bounds[-1])))
    tags = Sparse(indices=ids % 6, offsets=bounds, weights=torch.ones(len(ids)), width=6)
    return {
        "images": {"photo": torch.from_numpy(image).permute(0, 3, 1, 2)},
        "ragged": {"words": Ragged(values=ids, offsets=bounds)},
        "sparse": {"tags": tags},
    }


def _network_tensors(features: Features, signal: Any, rng: np.random.Generator) -> dict[str, Any]:
    """All of them follow the signal; lists have 0 to 8 ids, arrays may have gaps."""
    rows = len(signal)
    tensors: dict[str, Any] = {}
    bright = np.clip(signal, -9, 9)
    if features.images:
        noise = rng.integers(0, 40, (rows, 9, 8, 3))
        pixels = (100 + 10 * bright[:, None, None, None] + noise).astype(np.uint8)
        tensors["images"] = {"photo": torch.from_numpy(pixels).permute(0, 3, 1, 2)}
    if features.padded:
        lengths = rng.integers(0, 9, rows)
        mask = np.arange(8) < lengths[:, None]
        ids = np.where(
            mask, np.clip(10 + bright[:, None] + rng.integers(-1, 2, mask.shape), 1, 19), 0
        )
        words = Padded(values=torch.from_numpy(ids.astype(np.int64)), mask=torch.from_numpy(mask))
        tensors["padded"] = {"words": words}
    if features.arrays:
        mask = rng.random((rows, 5)) < 0.8
        values = (bright[:, None, None] + rng.normal(size=(rows, 5, 2))) * mask[:, :, None]
        past = Padded(
            values=torch.from_numpy(values.astype(np.float32)), mask=torch.from_numpy(mask)
        )
        tensors["arrays"] = {"past": past}
    return tensors
