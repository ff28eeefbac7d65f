"""What the model tests share: generated batches, and one thread for torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import polars as pl
import pytest
import torch

from engine.types import Batch, Features, Mark, Tensors

CLASSES = {"regression": (), "binary": ("no", "yes"), "multiclass": ("a", "b", "c")}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors, shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_features() -> Callable[..., Features]:
    """(task, numeric=4, categories={"color": 5, "city": 7}) -> Features."""

    def make(
        task: str = "regression", numeric: int = 4, categories: dict[str, int] | None = None
    ) -> Features:
        return Features(
            numeric=tuple(f"x{i}" for i in range(numeric)),
            categories={"color": 5, "city": 7} if categories is None else categories,
            target="y",
            task=task,
            classes=CLASSES[task],
        )

    return make


@pytest.fixture
def make_batches() -> Callable[..., list[Batch]]:
    """(features, count=6, rows=40, seed=0) -> batches of a problem that can be learned."""

    def make(features: Features, count: int = 6, rows: int = 40, seed: int = 0) -> list[Batch]:
        chance = np.random.default_rng(seed)
        return [_batch(features, rows, chance) for _ in range(count)]

    return make


def _batch(features: Features, rows: int, chance: np.random.Generator) -> Batch:
    numeric = chance.normal(size=(rows, len(features.numeric))).astype(np.float32)
    sizes = features.categories.values()
    codes = [chance.integers(0, size, rows) for size in sizes]
    categories = np.stack(codes, 1) if codes else np.empty((rows, 0), np.int64)
    signal = numeric @ np.arange(1, 1 + numeric.shape[1]) + categories.sum(1)
    target = {
        "regression": np.abs(signal).astype(np.float32),
        "binary": (signal > signal.mean()).astype(np.int64),
        "multiclass": np.digitize(signal, [3.0, 7.0]).astype(np.int64),
    }[features.task]
    tensors = Tensors(
        numeric=torch.from_numpy(numeric),
        categories=torch.from_numpy(categories),
        target=torch.from_numpy(target),
    )
    frame = pl.DataFrame({"y": target})
    return Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=tensors)
