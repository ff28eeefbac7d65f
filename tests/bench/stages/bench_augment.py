"""Augmentation, each row by its own draw: images against torchvision's transforms called row by row
and once a batch, lists against loops, and what all that adds to a training step.

``python -m tests.bench augment``

torchvision's transforms.v2 draws once for what it is given; for a draw a row it must be called with
one image at a time, as a data set's workers do. Called with the batch it does less: every row is
changed alike. Both do the same kind of change with the same settings. One thread.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch
from torchvision.transforms import v2

from engine.loading.nested_tensors import ragged
from engine.types import Batch, Features, Mark, Tensors
from models.augment import Augmentation, Context
from models.augment.augmentation import rng_for
from models.augment.images import Colour, Crop, Flip, PixelNoise, Rotate
from models.augment.mixing import Cutmix, Mixup
from models.augment.tables import FeatureDropout, Jitter
from models.augment.tokens import Synonyms, TokenDropout, TokenSwap
from models.learners.tabular import TabularLearner
from tests.bench.measure import interleave, median, report

SIDE = 224
FEATURES = Features(
    numeric=tuple(f"x{i}" for i in range(32)), target="y", task="binary", classes=("a", "b")
)
BILINEAR = v2.InterpolationMode.BILINEAR


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/augment.json``."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        runs, rows = _images(2 if quick else 64)
        more, tokens = _lists(100 if quick else 2_000)
        steps, batch = (1, 64) if quick else (50, 1_024)  # of training, in a round
        seconds = interleave({**runs, **more, **_steps(steps, batch)}, rounds=3 if quick else 7)
    finally:
        torch.set_num_threads(before)
    figures = {}
    for name, count in {**rows, **tokens}.items():
        ours, _, theirs = name.partition(" / ")
        figures[f"{name}, rows/s"] = count / median(seconds[name])
        if theirs:
            figures[f"{ours}: ratio to {theirs}"] = median(seconds[name]) / median(seconds[ours])
    plain = median(seconds["step"])
    for name in seconds:
        if name.startswith("step"):
            figures[f"{name}, ms"] = 1e3 * median(seconds[name]) / steps
            figures[f"{name}: share of the plain step"] = median(seconds[name]) / plain
    report("augment", figures, seconds=seconds, goal="faster than torchvision row by row")


def _images(n: int) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """Kinds and torchvision's transforms on n images, bytes."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    whole = images.contiguous()  # as torchvision's decoders give them
    context = Context(features=Features(numeric=(), images={"i": (3, SIDE, SIDE)}, target="y"))
    tensors = Tensors(
        numeric=torch.empty((n, 0)),
        categories=torch.empty((n, 0), dtype=torch.int64),
        target=torch.rand(n),
        images={"i": images},
    )
    pairs: dict[str, tuple[Any, Any]] = {
        "flip": (Flip("a", Flip.Settings()), v2.RandomHorizontalFlip()),
        "crop": (
            Crop("a", Crop.Settings()),
            v2.RandomResizedCrop(SIDE, scale=(0.5, 1), antialias=False),
        ),
        "rotate": (Rotate("a", Rotate.Settings()), v2.RandomRotation(15, BILINEAR)),
        "colour": (Colour("a", Colour.Settings()), v2.ColorJitter(0.2, 0.2, 0.2)),
        "pixel_noise": (PixelNoise("a", PixelNoise.Settings()), None),
        "mixup": (Mixup("a", Mixup.Settings()), None),
        "cutmix": (Cutmix("a", Cutmix.Settings()), None),
    }
    runs: dict[str, Callable[[], object]] = {}
    for name, (ours, theirs) in pairs.items():
        ours.bind(context)
        runs[name] = partial(_apply, ours, tensors)
        if theirs is not None:
            runs[f"{name} / v2, row by row"] = partial(_each, theirs, whole)
            runs[f"{name} / v2, one draw a batch"] = partial(theirs, whole)
    return runs, dict.fromkeys(runs, n)


def _lists(n: int) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """Kinds and plain loops on n lists of 100 tokens."""
    rng = np.random.default_rng(0)
    lists = rng.integers(1, 1_000, (n, 100)).tolist()
    tensors = Tensors(
        numeric=torch.empty((n, 0)),
        categories=torch.empty((n, 0), dtype=torch.int64),
        ragged={"t": ragged(pl.Series(lists), None)[0]},
    )
    likes = {token: token + 1_000 for token in range(1, 1_000, 2)}
    context = Context(features=Features(numeric=(), ragged={"t": 2_000}))
    dropout, swap = TokenDropout("a", TokenDropout.Settings()), TokenSwap("a", TokenSwap.Settings())
    table = pl.DataFrame([*likes.items()], orient="row")
    synonyms = _Given("a", Synonyms.Settings(table="given"), table)
    runs: dict[str, Callable[[], object]] = {}
    for name, made in (("token_dropout", dropout), ("token_swap", swap), ("synonyms", synonyms)):
        made.bind(context)
        runs[name] = partial(_apply, made, tensors)
    draw = random.Random(0).random
    runs["token_dropout / a loop"] = lambda: [
        [token for token in tokens if draw() >= 0.1] or tokens[-1:] for tokens in lists
    ]
    runs["synonyms / a loop"] = lambda: [
        [likes[t] if t in likes and draw() < 0.1 else t for t in tokens] for tokens in lists
    ]
    return runs, dict.fromkeys(runs, n)


def _apply(augment: Any, tensors: Tensors) -> None:
    augment.apply(tensors, rng_for(0, "a", 0))


def _each(transform: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    return torch.stack([transform(image) for image in images])


def _learn(learner: TabularLearner, batch: Batch, steps: int) -> None:
    for _ in range(steps):
        learner.learn(batch)


class _Given(Synonyms):
    """Its table in memory."""

    def __init__(self, name: str, settings: Any, pairs: pl.DataFrame) -> None:
        super().__init__(name, settings)
        self._pairs = pairs

    def _read(self) -> pl.DataFrame:
        return self._pairs


def _steps(steps: int, n: int) -> dict[str, Callable[[], object]]:
    """So many training steps on n rows of 32 numbers, a network of 128-64."""
    rng = np.random.default_rng(0)
    tensors = Tensors(
        numeric=torch.from_numpy(rng.normal(size=(n, 32)).astype(np.float32)),
        categories=torch.empty((n, 0), dtype=torch.int64),
        target=torch.from_numpy(rng.integers(0, 2, n)),
    )
    batch = Batch(frame=pl.DataFrame(), mark=Mark(), arrived=0.0, tensors=tensors)
    kinds: dict[str, Any] = {
        "step": None,
        "step, jitter": Jitter("a", Jitter.Settings()),
        "step, feature_dropout": FeatureDropout("a", FeatureDropout.Settings()),
        "step, mixup": Mixup("a", Mixup.Settings()),
    }
    runs: dict[str, Callable[[], object]] = {}
    for name, augment in kinds.items():
        settings, training = TabularLearner.Settings(), TabularLearner.Training(optimizer="adam")
        learner = TabularLearner(settings, training, FEATURES)
        if augment is not None:
            Augmentation([augment]).attach(learner)
        runs[name] = partial(_learn, learner, batch, steps)
    return runs


if __name__ == "__main__":
    main()
