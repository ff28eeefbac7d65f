"""Compiled per-row learning against River's, on River's Phishing data.

``python -m tests.bench.models.bench_linear``

Both predict a row, then learn it, with the same scaler, the same logistic regression and, to nine
digits, the same answers. River gets its rows as the dicts it wants, headrace its batches as the
loader delivers them; a third figure counts making tensors of columns too.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import polars as pl
from river import datasets, linear_model, optim, preprocessing

from engine.loading.collate import Collate
from engine.types import Batch, Features, Mark
from models.learners.linear import LinearLearner
from tests.bench.measure import interleave, median, report

BATCH = 250
PASSES = 40
"""How often a round of ours goes over the 1,250 rows: enough to be timed."""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/linear.json``."""
    rows = list(datasets.Phishing())
    names = tuple(rows[0][0])
    features = Features(numeric=names, target="label", task="binary", classes=("false", "true"))
    columns = pl.DataFrame([row | {"label": label} for row, label in rows])
    collate = Collate(features)
    raw = [
        Batch(frame=columns[start:stop], mark=Mark(), arrived=0.0)
        for start, stop in pairwise(range(0, len(rows) + 1, BATCH))
    ]
    batches = [collate.apply(batch) for batch in raw]
    learner = LinearLearner(LinearLearner.Settings(), LinearLearner.Training(lr=0.005), features)
    passes = 1 if quick else PASSES
    runs: dict[str, Callable[[], object]] = {
        "river": lambda: by_river(rows),
        "compiled": lambda: [learner.learn(batch) for _ in range(passes) for batch in batches],
        "compiled, from columns": lambda: [
            learner.learn(collate.apply(batch)) for _ in range(passes) for batch in raw
        ],
    }
    seconds = interleave(runs, rounds=3 if quick else 7)
    times = {name: 1 if name == "river" else passes for name in runs}
    rates = {name: times[name] * len(rows) / median(seconds[name]) for name in runs}
    figures = {f"{name}, rows/s": rate for name, rate in rates.items()}
    for name in ("compiled", "compiled, from columns"):
        figures[f"{name} / river"] = rates[name] / rates["river"]
    figures |= _same_answers(rows, batches, features)
    report("linear", figures, seconds=seconds, goal="compiled at 50 times River's rows/s or more")


def by_river(rows: list[tuple[dict[str, float], bool]]) -> list[float]:
    """River's own loop, test-then-train; the probabilities."""
    model = preprocessing.StandardScaler() | linear_model.LogisticRegression(
        optimizer=optim.SGD(0.005)
    )
    said = []
    for row, label in rows:
        said.append(model.predict_proba_one(row)[True])
        model.learn_one(row, label)
    return said


def _same_answers(
    rows: list[tuple[dict[str, float], bool]], batches: list[Batch], features: Features
) -> dict[str, float]:
    learner = LinearLearner(LinearLearner.Settings(), LinearLearner.Training(lr=0.005), features)
    ours = np.concatenate([learner.learn(batch).scores for batch in batches])
    label = np.array([label for _, label in rows])
    said = ours > 0.5
    return {
        "largest difference of a probability": float(np.abs(ours - by_river(rows)).max()),
        "accuracy, test-then-train": float((said == label).mean()),
        "F1, test-then-train": float(2 * (said & label).sum() / (said.sum() + label.sum())),
    }


if __name__ == "__main__":
    main()
