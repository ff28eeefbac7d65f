"""Rows drawn to a desired distribution, and probabilities corrected back to the true one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.loading.collate import Collate
from engine.types import Batch, Features, Learner, Mark, Step, Tensors, UserError
from models.export.model import export
from models.learners.linear import LinearLearner
from models.learners.sampling import ResampledLearner, SamplingSettings
from models.learners.tabular import TabularLearner
from tests.size import examples

BINARY = Features(numeric=("x0", "x1"), target="y", task="binary", classes=("no", "yes"))
THREE = Features(numeric=("x0", "x1"), target="y", task="multiclass", classes=("a", "b", "c"))


class Spy(Learner):
    """A learner that only remembers what it was given."""

    def __init__(self, features: Features) -> None:
        super().__init__(None, None, features)
        self.given: list[Tensors] = []

    def learn(self, batch: Batch) -> Step:
        assert batch.tensors is not None
        self.given.append(batch.tensors)
        return Step(scores=np.zeros(0), loss=1.0)

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        k, n = self.features.outputs, len(tensors.numeric)
        return np.full(n, 0.5) if k == 1 else np.full((n, k), 1 / k)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


def batch_of(target: NDArray[np.int64], numeric: NDArray[np.float32] | None = None) -> Batch:
    n = len(target)
    if numeric is None:
        numeric = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    tensors = Tensors(
        numeric=torch.from_numpy(numeric),
        categories=torch.empty((n, 0), dtype=torch.int64),
        target=torch.from_numpy(target),
    )
    return Batch(frame=pl.DataFrame({"y": target}), mark=Mark(), arrived=0.0, tensors=tensors)


def labels(spy: Spy) -> NDArray[np.int64]:
    """Classes of all rows that were learned."""
    targets = [t.target.numpy() for t in spy.given if t.target is not None]
    return np.concatenate(targets) if targets else np.empty(0, np.int64)


@pytest.mark.parametrize("method", ["under", "over", "hybrid"])
@pytest.mark.parametrize(
    ("features", "true", "desired"),
    [
        (BINARY, [0.99, 0.01], {}),
        (BINARY, [0.99, 0.01], {"no": 0.8, "yes": 0.2}),
        (THREE, [0.7, 0.25, 0.05], {"a": 1, "b": 1, "c": 2}),
    ],
)
def test_the_desired_distribution_is_met_within_a_point(
    method: Any, features: Features, true: list[float], desired: dict[str, float]
) -> None:
    spy, rng = Spy(features), np.random.default_rng(1)
    balanced = ResampledLearner(spy, SamplingSettings(method=method, desired_dist=desired))
    scored_only = 0
    for _ in range(100):
        scored_only += balanced.learn(batch_of(rng.choice(len(true), 1_000, p=true))).scored_only
    k = len(true)
    wanted = np.array([desired.get(c, 0.0) for c in features.classes]) if desired else np.ones(k)
    shares = np.bincount(labels(spy), minlength=k) / len(labels(spy))
    assert np.abs(shares - wanted / wanted.sum()).max() < 0.01
    assert np.allclose(balanced.shares, shares)
    if method == "over":
        assert scored_only == 0
    elif method == "under":
        assert len(labels(spy)) + scored_only == 100_000  # no row twice
    else:
        assert len(labels(spy)) == pytest.approx(100_000, rel=0.02)


def test_rivers_rates() -> None:
    """River 0.2x learns a row with the rate that its samplers hold for its class."""
    target = np.repeat([0, 1], [900, 100])
    for method, rates in (("under", [1 / 9, 1.0]), ("over", [1.0, 9.0]), ("hybrid", [5 / 9, 5.0])):
        made = ResampledLearner(Spy(BINARY), SamplingSettings.model_validate({"method": method}))
        made.learn(batch_of(target))
        assert made.rates == pytest.approx(rates)


@settings(max_examples=examples(50), deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), max_size=40), max_size=8),
    st.sampled_from(["under", "over", "hybrid"]),
    st.integers(0, 4),
)
def test_every_row_is_scored_once_and_learned_or_not(
    batches: list[list[int]], method: Any, smote_neighbors: int
) -> None:
    spy = Spy(THREE)
    balanced = ResampledLearner(
        spy, SamplingSettings(method=method, smote_neighbors=smote_neighbors, max_copies=7)
    )
    for rows in batches:
        before = len(labels(spy))
        step = balanced.learn(batch_of(np.array(rows, np.int64)))
        drawn = labels(spy)[before:]
        assert len(step.scores) == len(rows)
        assert set(drawn.tolist()) <= set(rows)
        assert 0 <= step.scored_only <= len(rows)
        assert len(drawn) >= len(rows) - step.scored_only
        assert len(drawn) <= 7 * len(rows)


def test_a_class_that_never_comes_is_remarked_and_holds_nothing_up() -> None:
    spy = Spy(THREE)
    balanced = ResampledLearner(spy, SamplingSettings(desired_dist={"a": 0.5, "c": 0.5}))
    balanced.learn(batch_of(np.array([0, 1, 0, 1, 1, 1])))
    assert set(labels(spy).tolist()) == {0}  # b is not wanted, c is not there
    assert balanced.remarks() == [
        "[train.sampling] wants class 'c' to be 50.0% of what is learned, and no row of it has "
        "come."
    ]
    assert (balanced.weights == 1).all()  # b was seen and never learned: nothing to correct by


def test_copies_are_bounded_and_that_is_remarked() -> None:
    spy = Spy(BINARY)
    balanced = ResampledLearner(spy, SamplingSettings(method="over", max_copies=3))
    balanced.learn(batch_of(np.repeat([0, 1], [999, 1])))
    assert np.bincount(labels(spy)).tolist() == [999, 3]
    assert "max_copies = 3 keeps class 'yes' below" in balanced.remarks()[0]


def test_smote_lies_between_a_row_and_one_of_its_class() -> None:
    rng = np.random.default_rng(0)
    target = np.repeat([0, 1], [190, 10])
    numeric = rng.normal(0, 1, (200, 2)).astype(np.float32)
    numeric[target == 1] = rng.uniform(10, 11, (10, 2))
    spy = Spy(BINARY)
    balanced = ResampledLearner(spy, SamplingSettings(method="over", smote_neighbors=3))
    balanced.learn(batch_of(target, numeric))  # nothing is kept yet: copies
    balanced.learn(batch_of(target, numeric))
    first, second = spy.given
    made = second.numeric[second.target == 1].numpy()
    assert len(np.unique(first.numeric[first.target == 1].numpy(), axis=0)) == 10
    assert len(np.unique(made, axis=0)) > 100
    assert made.min() >= 10
    assert made.max() <= 11
    assert np.isin(numeric[target == 1], made).all()  # the rows themselves are learned as well
    assert np.array_equal(second.numeric[second.target == 0].numpy(), numeric[target == 0])


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"desired_dist": {"yse": 1}}, r"names class 'yse', .* Did you mean 'yes'\?"),
        (
            {"desired_dist": {"yes": 0, "no": 0}},
            "at least one above 0, got {'yes': 0.0, 'no': 0.0}",
        ),
        ({"desired_dist": {"yes": -1, "no": 2}}, "expects shares of 0 or more"),
    ],
)
def test_shares_that_make_no_sense_are_one_sentence(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ResampledLearner(Spy(BINARY), SamplingSettings(**table))


def test_a_regression_has_no_classes() -> None:
    with pytest.raises(UserError, match="task is 'regression': take it out"):
        ResampledLearner(Spy(Features(numeric=("x",))), SamplingSettings())


def calibration_error(label: NDArray[Any], probability: NDArray[Any], bins: int = 15) -> float:
    """Expected calibration error: mean distance of probability and frequency in bins of equal
    width, by rows (Naeini, Cooper and Hauskrecht, 2015)."""
    at = np.minimum((probability * bins).astype(int), bins - 1)
    off = np.bincount(at, probability - label, bins)
    return float(np.abs(off).sum() / len(label))


def rare(n: int, rng: np.random.Generator) -> pl.DataFrame:
    """One row in a hundred is positive, and more so with x0."""
    x = rng.normal(size=(n, 2))
    odds = np.exp(2 * x[:, 0] - 6.3)
    y = rng.random(n) < odds / (1 + odds)
    return pl.DataFrame({"x0": x[:, 0], "x1": x[:, 1], "y": np.where(y, "yes", "no")})


@pytest.mark.full
@pytest.mark.parametrize("kind", ["tabular", "linear"])
def test_corrected_probabilities_are_as_calibrated_as_without_sampling(
    kind: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    train, test = rare(60_000, rng), rare(60_000, rng)
    truth = (test["y"] == "yes").to_numpy()
    tensors = collated(test)
    errors: dict[str | None, float] = {}
    for method in (None, "under", "over", "hybrid"):
        learner = learner_of(kind, method)
        for part in train.iter_slices(500):
            learner.learn(Collate(BINARY).apply(Batch(frame=part, mark=Mark(), arrived=0.0)))
        said = learner.predict(tensors)
        errors[method] = calibration_error(truth, said)
        # The exported model says the same.
        path = export(tmp_path / "model.onnx", learner, [], {"version": "1"})
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        served = session.run(None, {c: test[c].to_numpy() for c in ("x0", "x1")})[0]
        assert np.abs(served - said).max() < 1e-5
        if method is not None:
            uncorrected = calibration_error(truth, learner.learner.predict(tensors))
            assert uncorrected > 0.1 > 10 * errors[method]
    assert max(errors.values()) <= errors[None] + 0.001


def collated(frame: pl.DataFrame) -> Tensors:
    tensors = Collate(BINARY).apply(Batch(frame=frame, mark=Mark(), arrived=0.0)).tensors
    assert tensors is not None
    return tensors


def learner_of(kind: str, method: str | None) -> Any:
    make: dict[str, Callable[[], Any]] = {
        "tabular": lambda: TabularLearner(
            TabularLearner.Settings(layers=(8,)),
            TabularLearner.Training(
                step_rows=256, lr=1e-2, ema_decay=0.98, replay_rows=0, forget_on="never"
            ),
            BINARY,
        ),
        "linear": lambda: LinearLearner(
            LinearLearner.Settings(), LinearLearner.Training(lr=0.003, intercept_lr=0.003), BINARY
        ),
    }
    learner = make[kind]()
    if method is None:
        return learner
    return ResampledLearner(learner, SamplingSettings.model_validate({"method": method}))
