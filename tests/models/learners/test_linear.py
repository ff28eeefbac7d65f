"""The compiled learner against River, row by row."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from river import datasets, linear_model, optim, preprocessing

from engine.types import Batch, Features, Mark, Tensors, UserError
from models.learners import sgd
from models.learners.linear import LinearLearner
from tests.size import examples

TASKS: dict[str, Any] = {
    "binary": linear_model.LogisticRegression,
    "regression": linear_model.LinearRegression,
}


@cache
def phishing() -> tuple[tuple[dict[str, float], ...], NDArray[np.int64]]:
    rows, labels = zip(*datasets.Phishing(), strict=True)
    return rows, np.array(labels, np.int64)


def features(task: str, categories: dict[str, int] | None = None) -> Features:
    names = tuple(phishing()[0][0])
    classes = ("0", "1") if task == "binary" else ()
    return Features(
        numeric=names, categories=categories or {}, target="y", task=task, classes=classes
    )


def learner(task: str, *, standardize: bool = True, **training: Any) -> LinearLearner:
    made = LinearLearner.Settings(standardize=standardize)
    return LinearLearner(made, LinearLearner.Training(**training), features(task))


def batch(
    numeric: NDArray[np.float32], target: NDArray[Any], codes: NDArray[np.int64] | None = None
) -> Batch:
    codes = np.empty((len(target), 0), np.int64) if codes is None else codes
    tensors = Tensors(
        numeric=torch.from_numpy(numeric),
        categories=torch.from_numpy(codes),
        target=torch.from_numpy(target),
    )
    return Batch(frame=pl.DataFrame({"y": target}), mark=Mark(), arrived=0.0, tensors=tensors)


def arrays(task: str) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Phishing as the pipeline's tensors; a regression of its first feature's kind."""
    rows, labels = phishing()
    numeric = np.array([list(row.values()) for row in rows], np.float32)
    if task == "binary":
        return numeric, labels
    return numeric, (3 * numeric[:, 0] - numeric[:, 3] + 5 * labels).astype(np.float32)


def scores(made: LinearLearner, task: str, cuts: list[int]) -> NDArray[np.float64]:
    numeric, target = arrays(task)
    edges = [0, *sorted(cuts), len(target)]
    pieces = itertools.pairwise(edges)
    return np.concatenate([made.learn(batch(numeric[a:b], target[a:b])).scores for a, b in pieces])


def by_river(
    model: Any, task: str, rows: list[dict[Any, float]], target: NDArray[Any]
) -> list[float]:
    said = []
    for row, label in zip(rows, target.tolist(), strict=True):
        if task == "binary":
            said.append(model.predict_proba_one(row)[True])
        else:
            said.append(model.predict_one(row))
        model.learn_one(row, label)
    return said


def test_phishing_gives_the_published_figures() -> None:
    said = scores(learner("binary", lr=0.005), "binary", list(range(250, 1250, 250))) > 0.5
    label = phishing()[1] > 0
    assert round(float((said == label).mean()), 4) == 0.8872
    assert round(float(2 * (said & label).sum() / (said.sum() + label.sum())), 4) == 0.8712


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    "training",
    [
        {"lr": 0.005},
        {"lr": 0.01, "l2": 0.05},
        {"lr": 0.02, "l1": 0.01, "intercept_lr": 0.1},
        {"lr": 0.02, "clip_gradient": 0.2, "intercept_lr": 0.0},
    ],
    ids=["plain", "l2", "l1", "clip"],
)
@pytest.mark.parametrize("standardize", [True, False])
def test_every_row_is_what_river_says(
    task: str, training: dict[str, float], standardize: bool
) -> None:
    own = {key: value for key, value in training.items() if key != "lr"}
    model = TASKS[task](optimizer=optim.SGD(training["lr"]), **own)
    model = preprocessing.StandardScaler() | model if standardize else model
    numeric, target = arrays(task)
    names = tuple(phishing()[0][0])
    rows = [dict(zip(names, row, strict=True)) for row in numeric.astype(np.float64).tolist()]
    expected = by_river(model, task, rows, target)
    got = scores(learner(task, standardize=standardize, **training), task, [100, 700])
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_a_category_is_river_one_hot() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, (300, 2))
    target = (codes[:, 0] + rng.normal(size=300) > 2).astype(np.int64)
    rows: list[dict[Any, float]] = [{("a", a): 1.0, ("b", b): 1.0} for a, b in codes.tolist()]
    expected = by_river(
        linear_model.LogisticRegression(optimizer=optim.SGD(0.1), l2=0.01), "binary", rows, target
    )
    only = Features(
        numeric=(), categories={"a": 4, "b": 4}, target="y", task="binary", classes=("0", "1")
    )
    made = LinearLearner(LinearLearner.Settings(), LinearLearner.Training(lr=0.1, l2=0.01), only)
    got = made.learn(batch(np.empty((300, 0), np.float32), target, codes)).scores
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("code", [-1, 4, 2**40])
def test_a_code_outside_the_table_is_unknown(code: int) -> None:
    only = Features(numeric=(), categories={"a": 4}, target="y", task="regression")
    made = LinearLearner(LinearLearner.Settings(), LinearLearner.Training(), only)
    codes, target = np.array([[0], [3]], np.int64), np.array([1, 9], np.float32)
    made.learn(batch(np.empty((2, 0), np.float32), target, codes))
    none = torch.empty((3, 0))
    said = made.predict(Tensors(numeric=none, categories=torch.tensor([[0], [code], [3]])))
    assert said[0] == said[1] != said[2]


@pytest.mark.parametrize("task", TASKS)
@given(cuts=st.lists(st.integers(0, 1250), max_size=6))
@settings(max_examples=examples(15), deadline=None)
def test_cutting_into_batches_changes_nothing(task: str, cuts: list[int]) -> None:
    whole, cut = learner(task), learner(task)
    assert scores(whole, task, []).tobytes() == scores(cut, task, cuts).tobytes()
    one, other = whole.state_dict(), cut.state_dict()
    assert all(one[key].tobytes() == other[key].tobytes() for key in one if key != "shape")


def test_a_batch_that_blows_up_is_skipped_whole_and_kept_aside() -> None:
    made = learner("regression")
    numeric, target = arrays("regression")
    numeric[700, 2] = np.inf
    before = made.state_dict()
    bad = batch(numeric, target)
    step = made.learn(bad)
    assert (step.skipped, step.steps) == ("non_finite", 0)
    assert np.isnan(step.loss)
    assert np.isfinite(np.delete(step.scores, 700)).all()
    assert list(made.bad_batches) == [bad]
    after = made.state_dict()
    assert all(after[key] is before[key] for key in after if key != "shape")


def test_machine_code_says_what_python_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba, "njit", lambda **_: lambda function: function)
    spec = importlib.util.spec_from_file_location("interpreted", str(sgd.__file__))
    assert spec is not None
    assert spec.loader is not None
    interpreted = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(interpreted)
    rng = np.random.default_rng(0)
    numeric = rng.normal(size=(60, 3)).astype(np.float32) * 9
    codes = rng.integers(-1, 4, (60, 2))
    bounds = np.array([3, 6, 9], np.int64)
    rates = (0.5, 0.1, 0.01, 0.001, 2.0)
    flags = [np.array(on) for on in itertools.product([True, False], repeat=3)]
    lessons = np.where(np.arange(60) % 7 < 6, np.arange(60), -1)  # some are only predicted
    for logistic, scaled, apart in itertools.product([True, False], flags, [True, False]):
        target = rng.integers(0, 2, 60).astype(np.float64)
        ends = []
        for module in (sgd, interpreted):
            numbers = [np.zeros(n) for n in (3, 3, 3, 9, 9)]
            said, again, modes = np.empty(60), np.empty(60), (logistic, scaled)
            inputs = (numeric.copy(), codes.copy())
            taught = (inputs[0] + np.float32(apart), inputs[1], np.abs(target - 0.3 * apart))
            loss = module.learn_rows(
                *inputs, target, bounds, *modes, rates, *numbers, said, taught, apart, lessons
            )
            module.predict_rows(*inputs, bounds, *modes, *numbers[:4], again)
            ends.append(np.concatenate([[loss], said, again, *numbers]))
        np.testing.assert_allclose(ends[0], ends[1], rtol=1e-9, atol=1e-12)


def test_what_a_stage_has_scaled_is_not_scaled_again() -> None:
    """A stage gives 0 while it knows nothing: a deviation of nearly 0 must not amplify the rest."""
    rng = np.random.default_rng(0)
    numeric = rng.normal(size=(5_000, 2)).astype(np.float32)
    target = (100 + 30 * numeric[:, 0] - 20 * numeric[:, 1]).astype(np.float32)
    cold = numeric.copy()
    cold[:1_000] = 0
    names = ("a", "b")
    scaled = Features(numeric=names, target="y", task="regression", scaled=names)
    made = LinearLearner(LinearLearner.Settings(), LinearLearner.Training(), scaled)
    said = made.learn(batch(cold, target)).scores
    assert np.abs(said - target)[2_000:].mean() < 0.1
    plain = dataclasses.replace(scaled, scaled=())
    other = LinearLearner(
        LinearLearner.Settings(standardize=False), LinearLearner.Training(), plain
    )
    np.testing.assert_array_equal(other.learn(batch(cold, target)).scores, said)


def test_a_column_that_has_hardly_varied_amplifies_nothing() -> None:
    """A flag of one row in a thousand, and a column that is noise at first."""
    rng = np.random.default_rng(0)
    n = 20_000
    flag = rng.random(n) < 0.001
    late = np.where(np.arange(n) < 5_000, 1e-6, 1) * rng.normal(size=n)
    numeric = np.stack([rng.normal(size=n), flag, late], axis=1).astype(np.float32)
    target = (10 + 3 * numeric[:, 0] + 2 * flag + late).astype(np.float32)
    names = ("a", "flag", "late")
    made = LinearLearner(
        LinearLearner.Settings(),
        LinearLearner.Training(),
        Features(numeric=names, target="y", task="regression"),
    )
    error = np.abs(made.learn(batch(numeric, target)).scores - target)
    assert np.isfinite(error).all()
    assert error[:5_000].mean() < 0.2
    assert error[10_000:].mean() < 0.01


def test_a_feature_that_no_stage_has_scaled_is_scaled_beside_one_that_is() -> None:
    rng = np.random.default_rng(0)
    numeric = (rng.normal(size=(3_000, 2)) * [1, 1_000] + [0, 5_000]).astype(np.float32)
    target = (10 + 3 * numeric[:, 0] + 0.002 * numeric[:, 1]).astype(np.float32)
    mixed = Features(numeric=("a", "b"), target="y", task="regression", scaled=("a",))
    made = LinearLearner(LinearLearner.Settings(), LinearLearner.Training(), mixed)
    said = made.learn(batch(numeric, target)).scores
    assert np.abs(said - target)[2_000:].mean() < 0.1
    state = made.state_dict()
    assert state["mean"][0] == 0
    assert state["mean"][1] == pytest.approx(numeric[:, 1].mean(), rel=1e-4)


def test_loss_is_the_mean_of_the_rows() -> None:
    numeric, target = arrays("binary")
    step = learner("binary").learn(batch(numeric, target))
    p = step.scores
    expected = -np.where(target > 0, np.log(p), np.log(1 - p)).mean()
    assert step.loss == pytest.approx(expected)


def test_more_classes_are_refused(make_features: Callable[..., Features]) -> None:
    with pytest.raises(UserError, match=r"linear' expects task regression or binary, got"):
        LinearLearner(
            LinearLearner.Settings(), LinearLearner.Training(), make_features("multiclass")
        )


def test_no_features_are_refused(make_features: Callable[..., Features]) -> None:
    nothing = make_features("binary", 0, {})
    with pytest.raises(UserError, match="needs features"):
        LinearLearner(LinearLearner.Settings(), LinearLearner.Training(), nothing)
