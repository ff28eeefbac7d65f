"""How well a model learns with nothing set, beside River's, on River's own streams.

``python -m tests.bench learning``

Test-then-train over each stream in its order, by the same rows: the accuracy of all, or the mean
absolute error. Nothing is drawn at random but by fixed seeds. Of speed is what following change
costs (`[train] forget_on`), on a stream that turns round for ever and on one that never does.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from engine.loading.collate import Collate
from engine.types import Batch, Features, Mark, Tensors
from models.challenge.challenger import ChampionChallenger
from models.learners.tabular import TabularLearner
from models.learners.trees.learner import TreesLearner
from tests.bench.measure import report

FLOORS = {"Phishing": 0.88, "Bananas": 0.80, "ImageSegments": 0.90, "TrumpApproval": 1.0}
"""Accuracy that is reached, or error that is stayed below."""
TREES = {
    "Phishing": 0.88,
    "Bananas": 0.85,
    "ImageSegments": 0.96,
    "Shuttle": 0.999,
    "TrumpApproval": 1.0,
}
"""The same of trees."""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/learning.json``."""
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    for name in FLOORS:
        rows = stream(name, 50 if quick else None)
        unit = "error" if features(*rows).task == "regression" else "accuracy"
        figures[f"{name}, {unit}"] = headrace(*rows)
        for other, model in rivals(unit == "error").items():
            figures[f"{name}, {unit} of {other}"] = river(model, name, len(rows[0]))
    figures |= trees(200 if quick else None)
    figures |= following(2_000 if quick else 200_000)
    goal = ", ".join(f"{name} {floor}" for name, floor in FLOORS.items())
    more = ", ".join(f"{name} {floor}" for name, floor in TREES.items())
    goal = f"{goal}; trees: {more}; following change at most 3 times the time"
    report("learning", figures, goal=goal)


def stream(name: str, most: int | None = None) -> tuple[list[dict[str, float]], list[Any]]:
    """Numbers and target of each row."""
    from river import datasets

    pairs = list(islice(getattr(datasets, name)(), most))
    return [dict(x) for x, _ in pairs], [y for _, y in pairs]


def features(rows: list[dict[str, float]], labels: list[Any]) -> Features:
    """All columns, and the task that the labels make."""
    if isinstance(labels[0], float):
        return Features(numeric=tuple(rows[0]), target="target")
    classes = tuple(sorted({_text(label) for label in labels}))
    task = "binary" if len(classes) == 2 else "multiclass"
    return Features(numeric=tuple(rows[0]), target="target", task=task, classes=classes)


def trees(most: int | None) -> dict[str, float]:
    """The same of trees, and their rows a second of CPU time."""
    figures = {}
    for name in TREES:
        rows = stream(name, most)
        unit = "error" if features(*rows).task == "regression" else "accuracy"
        start = time.thread_time()
        figures[f"{name}, {unit} of trees"] = headrace(*rows, kind=TreesLearner)
        figures[f"{name}, rows/s of trees"] = len(rows[0]) / (time.thread_time() - start)
    return figures


def headrace(rows: list[dict[str, float]], labels: list[Any], kind: Any = TabularLearner) -> float:
    """Accuracy or mean absolute error of a learner as it comes."""
    return float(judged(rows, labels, kind=kind).mean())


def judged(
    rows: list[dict[str, float]],
    labels: list[Any],
    batch_rows: int = 1_024,
    kind: Any = TabularLearner,
    seed: int = 0,
    training: Mapping[str, Any] = MappingProxyType({}),
) -> NDArray[np.float64]:
    """Of each row 1 or 0 for right or wrong, or the absolute error: of a learner as it comes, but
    for these keys of ``[train]``."""
    reads = features(rows, labels)
    regression = reads.task == "regression"
    target = labels if regression else [_text(label) for label in labels]
    frame = pl.DataFrame(rows).cast(pl.Float64).with_columns(target=pl.Series(target))
    frame = frame.with_columns(_partition=pl.lit("p"), _position=pl.int_range(pl.len()))
    collate = Collate(reads)
    model = ChampionChallenger(kind(kind.Settings(seed=seed), kind.Training(**training), reads))
    right: list[Any] = []
    for part in frame.iter_slices(batch_rows):
        batch = collate.apply(Batch(frame=part, mark=Mark(), arrived=0.0))
        said = model.learn(batch).scores
        prediction_columns = reads.prediction_columns(said)[0]
        truth = part["target"]
        right.append(
            (
                (prediction_columns - truth).abs() if regression else prediction_columns == truth
            ).to_numpy()
        )
    return np.concatenate(right).astype(np.float64)


def following(rows: int) -> dict[str, float]:
    """CPU time with `forget_on` over that without, and accuracy with it and without."""
    figures: dict[str, float] = {}
    for name, every in (("turns round every 5,000 rows", 5_000), ("never changes", rows)):
        batches, reads, labels = turning(rows, every)
        spent, right = [], []
        for forget in (True, False):
            model = TabularLearner(TabularLearner.Settings(), TabularLearner.Training(), reads)
            made = ChampionChallenger(model) if forget else model
            start = time.thread_time()
            scores = np.concatenate([made.learn(batch).scores for batch in batches])
            spent.append(time.thread_time() - start)
            right.append(float(((scores > 0.5) == labels).mean()))
        figures[f"a stream that {name}, forget_on / never, CPU time"] = spent[0] / spent[1]
        figures[f"a stream that {name}, accuracy"] = right[0]
        figures[f"a stream that {name}, accuracy of never"] = right[1]
    return figures


def turning(rows: int, every: int) -> tuple[list[Batch], Features, NDArray[np.int64]]:
    """Signs of a sum of four numbers, whose weights change theirs every so many rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4))
    signs = (-1.0) ** (np.arange(rows) // every)
    labels = (signs * (x @ [1.0, -2.0, 0.5, 0.0]) + 0.3 * rng.normal(size=rows) > 0).astype(int)
    reads = Features(numeric=tuple("abcd"), target="y", task="binary", classes=("no", "yes"))
    tensors = Tensors(
        numeric=torch.from_numpy(x.astype(np.float32)),
        categories=torch.empty((rows, 0), dtype=torch.int64),
        target=torch.from_numpy(labels),
    )
    frame = pl.DataFrame({"n": np.arange(rows)})
    batches = [
        Batch(
            frame=frame.slice(at, 1_024), mark=Mark(), arrived=0.0,
            tensors=tensors.slice(at, min(at + 1_024, rows)),
        )
        for at in range(0, rows, 1_024)
    ]  # fmt: skip
    return batches, reads, labels


def rivals(regression: bool) -> dict[str, Any]:
    """River's models for the task, fresh."""
    from river import forest, linear_model, preprocessing, tree

    scaled = preprocessing.StandardScaler()
    if regression:
        return {
            "River's linear regression": scaled | linear_model.LinearRegression(),
            "River's adaptive forest": forest.ARFRegressor(seed=1),
        }
    return {
        "River's Hoeffding tree": tree.HoeffdingTreeClassifier(),
        "River's adaptive forest": forest.ARFClassifier(seed=1),
    }


def river(model: Any, name: str, most: int) -> float:
    """The same of one of River's, over the rows that it says something of."""
    return float(np.nanmean(judged_of_river(model, name, most)))


def judged_of_river(model: Any, name: str, most: int | None) -> NDArray[np.float64]:
    """The same of each row; NaN where the model says nothing."""
    from river import datasets

    right: list[float] = []
    for x, y in islice(getattr(datasets, name)(), most):
        said = model.predict_one(x)
        if said is None:
            right.append(math.nan)
        else:
            right.append(abs(said - y) if isinstance(y, float) else float(said == y))
        model.learn_one(x, y)
    return np.array(right)


def _text(label: Any) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


if __name__ == "__main__":
    main()
