"""Parts and folds through a whole pipeline: what is kept apart is predicted, and never learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.commands.folds import folds
from engine.config import Pipeline
from engine.run import Run
from engine.types import Batch, Features, Learner, Step, Tensors, UserError
from engine.types import Settings as Nothing
from tests.pipelines.conftest import Headrace

ROWS = 3_000
ENDLESS = {"kind": "linear", "target": "y", "numeric": ["a"]}


def pipeline(folder: Path, **tables: Any) -> Pipeline:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, ROWS))
    rows = pl.DataFrame({"a": a, "b": b, "y": np.where(a + b > 1, "yes", "no")})
    rows.write_parquet(folder / "rows.parquet")
    return Pipeline.of(
        {
            "name": "parts",
            "folder": str(folder / "run"),
            "source": {"kind": "files", "path": str(folder / "rows.parquet")},
            "loader": {"batch_rows": 100},
            "model": {
                "kind": "linear",
                "task": "binary",
                "target": "y",
                "classes": ["no", "yes"],
                "numeric": ["a", "b"],
            },
            **tables,
        }
    )


def test_what_is_kept_apart_is_predicted_and_reported_on(tmp_path: Path) -> None:
    split = {"kind": "split", "test": 0.2, "validation": 0.1}
    run = Run(pipeline(tmp_path, scrub={"split": split, "standardize": {"columns": ["a", "b"]}}))
    totals = run.run().totals
    slices = run.evaluation.report()["slices"]
    assert totals.balanced
    assert {part: slices[part]["rows"] for part in ("train", "validation", "test")} == {
        "train": totals.learned,
        "validation": totals.predicted - slices["test"]["rows"],
        "test": totals.predicted - slices["validation"]["rows"],
    }
    assert slices["test"]["rows"] == pytest.approx(0.2 * ROWS, rel=0.1)
    assert slices["test"]["accuracy"] > 0.9


class LastValue(Learner):
    """A learner of one's own: says the newest label that it has learned, row by row."""

    learns_by_batch = False
    Settings = Training = Nothing

    def __init__(self, settings: Any, training: Any, features: Features) -> None:
        super().__init__(settings, training, features)
        self.last = 0.0

    def learn(self, batch: Batch) -> Step:
        assert batch.tensors is not None
        assert batch.tensors.target is not None
        seen = np.concatenate(([self.last], batch.tensors.target.numpy().astype(np.float64)))
        self.last = float(seen[-1])
        return Step(scores=seen[:-1], loss=0.0)

    def predict(self, tensors: Tensors) -> Any:
        return np.full(len(tensors), self.last)

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: Any) -> None:
        self.last = state["last"]


@pytest.mark.parametrize("kind", ["tabular", "linear", "trees", f"{__name__}:LastValue"])
def test_rows_kept_apart_are_predicted_at_their_place_in_the_stream(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the model that has learned the rows before them, however many a batch holds: by that of
    before the batch, all of a first one would be predicted by a model that knows nothing."""
    monkeypatch.chdir(tmp_path)  # a row's part goes by the name of its file
    a, b = np.random.default_rng(1).normal(size=(2, 400))
    rows = pl.DataFrame({"a": a, "b": b, "y": 90 + a + b})
    rows.write_parquet("rows.parquet")
    model = {"kind": kind, "task": "regression", "target": "y", "numeric": ["a", "b"]}
    reports, states = [], []
    for most in (32, 1_024):
        run = Run(
            Pipeline.of(
                {
                    "name": "parts",
                    "source": {"kind": "files", "path": "rows.parquet"},
                    "scrub": {"split": {"kind": "split", "test": 0.3}},
                    "loader": {"batch_rows": most},
                    "model": model,
                }
            )
        )
        run.run(fresh=True)
        reports.append(run.evaluation.report()["slices"])
        state = dict(run.learner.state_dict())
        state.pop("renewal", None)  # sums of errors: scores are the same to rounding
        states.append(state)
    np.testing.assert_equal(states[0], states[1])
    small, large = (slices["test"] for slices in reports)
    assert small["rows"] == large["rows"] > 100
    assert large["mae"] == pytest.approx(small["mae"], rel=1e-5)
    assert large["mae"] < 30  # 90 of a model that knows nothing


def test_rows_of_other_parts_teach_nothing(tmp_path: Path) -> None:
    """Other values in them change neither weights nor statistics."""
    given = pipeline(
        tmp_path,
        scrub={
            "derive": {"columns": {"part": "CASE WHEN a < 0.5 THEN 0 ELSE 1 END"}},
            "split": {"kind": "split", "time": "part", "test_from": 1},
            "standardize": {"columns": ["a", "b"]},
        },
    )
    states = []
    for change in (0.0, 5.0):
        rows = pl.read_parquet(tmp_path / "rows.parquet")
        changed = rows.with_columns(
            pl.when(pl.col("a") < 0.5).then("b").otherwise(change + pl.col("b"))
        )
        changed.write_parquet(tmp_path / "rows.parquet")
        run = Run(given)
        run.run(fresh=True)
        states.append(run.learner.state_dict())
    np.testing.assert_equal(states[0], states[1])


def test_folds_test_every_row_once(tmp_path: Path) -> None:
    found = folds(pipeline(tmp_path), 4)
    assert [fold.number for fold in found.folds] == [0, 1, 2, 3]
    assert [fold.rows for fold in found.folds] == [ROWS // 4] * 4
    values = [fold.figures["accuracy"] for fold in found.folds]
    assert found.mean("accuracy") == pytest.approx(np.mean(values))
    assert found.deviation("accuracy") == pytest.approx(np.std(values, ddof=1))
    assert min(values) > 0.9
    assert "cross-validation" in str([getattr(t, "title", t) for t in found.tables()])


def test_a_fold_without_a_class_is_named(tmp_path: Path) -> None:
    given = pipeline(tmp_path, scrub={"split": {"folds": 3, "stratify": "y"}})
    rows = pl.read_parquet(tmp_path / "rows.parquet")
    few = rows.with_columns(
        y=pl.when(pl.int_range(pl.len()) < 2).then(pl.lit("yes")).otherwise(pl.lit("no"))
    )
    few.write_parquet(tmp_path / "rows.parquet")
    found = folds(given)
    assert [fold.absent for fold in found.folds] == [(), (), ("yes",)]
    assert [text for text in found.tables() if isinstance(text, str)] == [
        "Fold 2 has no row of class 'yes': what is said of it there counts for nothing; take fewer "
        "folds, or stratify by the target."
    ]


@pytest.mark.parametrize(
    ("tables", "count", "sentence"),
    [
        ({"model": None}, 5, r"has no \[model\] to train"),
        ({"scrub": {"split": {"test": 0.2}}}, 5, r"\[scrub.split\] splits by share or time"),
        ({}, 1, "two folds or more, got 1"),
        (
            {"source": {"kind": "tests.pipelines.slow:Source"}, "model": ENDLESS},
            2,
            "a source that ends",
        ),
    ],
)
def test_what_cannot_be_folded_is_one_sentence(
    tmp_path: Path, tables: dict[str, Any], count: int, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        folds(pipeline(tmp_path, **tables), count)


def test_the_command(headrace: Headrace, tmp_path: Path) -> None:
    own = f'folder="{tmp_path}"'
    code, out, err = headrace("folds", "deploy/pipelines/phishing.toml", "--folds", 3, "--set", own)
    assert code == 0, err
    assert "deviation" in out
