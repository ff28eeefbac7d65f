"""Classes that come and go while a model learns: new ones are told apart, those that left are
forgotten, and how rows were cut into batches does not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.loading.collate import Collate
from engine.quality.evaluation import Evaluation
from engine.running.work import Training
from engine.types import Batch, Features, Mark, Tensors
from models.learners.modules.learner import ModuleLearner
from models.learners.online.class_slots import ClassSlots
from models.learners.prototypes.learner import PrototypeLearner
from models.learners.tabular import TabularLearner
from models.learners.trees.learner import TreesLearner
from tests.pipelines.runs.test_crash import same
from tests.size import examples

FEATURES = Features(
    numeric=("x", "y"), inputs={"numeric": ("x", "y")}, target="label", task="multiclass",
    max_classes=3,
)  # fmt: skip
PLACES = np.array([[0, 0], [4, 0], [0, 4], [4, 4]])


def test_a_class_keeps_its_slot_and_a_new_one_takes_one_that_had_none() -> None:
    slots = ClassSlots(most=4).moved([-1, -1])
    assert slots.slots.tolist() == [0, 1]
    slots = slots.moved([1, -1])  # the first left
    assert slots.slots.tolist() == [1, 2]
    slots = slots.moved([1, 0, -1, -1])
    assert slots.slots.tolist() == [2, 1, 3, 0]
    assert ClassSlots.restored(slots.snapshot()).moved([0]).slots.tolist() == [2]


def points(classes: list[int], n: int, seed: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows around the places of some classes, with those as numbers."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n)
    return (PLACES[labels] + rng.normal(size=(n, 2))).astype(np.float32), labels


def batch(rows: NDArray[Any], numbers: NDArray[Any]) -> Batch:
    tensors = Tensors(
        numeric=torch.from_numpy(rows),
        categories=torch.empty((len(rows), 0), dtype=torch.int64),
        target=torch.from_numpy(numbers.astype(np.int64)),
    )
    return Batch(frame=pl.DataFrame({"label": numbers}), mark=Mark(), arrived=0.0, tensors=tensors)


@pytest.fixture(params=[TabularLearner, ModuleLearner, TreesLearner])
def kind(request: pytest.FixtureRequest) -> Any:
    if request.param is TreesLearner:
        pytest.importorskip("lightgbm")
    return request.param


def made(kind: Any) -> Any:
    if kind is TreesLearner:
        return kind(kind.Settings(num_trees=10), kind.Training(window_rows=240), FEATURES)
    training = kind.Training(replay_rows=60, replay_steps=1, ema_decay=0.5, lr=1e-2)
    return kind(kind.Settings(), training, FEATURES)


def right(learner: Any, classes: list[int]) -> float:
    """The share of new rows of these classes, in the learner's order, that it tells apart."""
    rows, labels = points(classes, 90, 5)
    said = learner.predict(batch(rows, labels).tensors).argmax(1)
    return float((np.array(classes)[said] == labels).mean())


def test_a_model_tells_new_classes_apart_and_forgets_those_that_left(kind: Any) -> None:
    learner = made(kind)
    learner.set_classes(("0", "1"), [-1, -1])
    assert learner.predict(batch(*points([0, 1], 4, 0)).tensors).shape == (4, 2)
    for seed in range(6):
        rows, labels = points([0, 1], 60, seed)
        scores = learner.learn(batch(rows, labels)).scores
        np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-6)
    assert right(learner, [0, 1]) > 0.85
    before = learner.predict(batch(*points([0, 1], 20, 9)).tensors)
    learner.set_classes(("0", "1", "2"), [0, 1, -1])
    after = learner.predict(batch(*points([0, 1], 20, 9)).tensors)
    both = after[:, :2] / after[:, :2].sum(1, keepdims=True)
    np.testing.assert_allclose(both, before, atol=0.02)
    for seed in range(6):
        learner.learn(batch(*points([0, 1, 2], 60, seed)))
    assert right(learner, [0, 1, 2]) > 0.85
    learner.set_classes(("1", "2", "3"), [1, 2, -1])
    for seed in range(8):
        rows, labels = points([1, 2, 3], 60, seed)
        learner.learn(batch(rows, labels - 1))
    assert right(learner, [1, 2, 3]) > 0.85


def test_it_goes_on_to_the_bit_after_classes_left(kind: Any) -> None:
    learner = made(kind)
    learner.set_classes(("0", "1", "2"), [-1] * 3)
    for seed in range(3):
        learner.learn(batch(*points([0, 1, 2], 60, seed)))
    learner.set_classes(("2", "1", "3"), [2, 1, -1])
    learner.learn(batch(*points([0, 1, 2], 50, 7)))
    other = made(kind)
    other.set_classes(("2", "1", "3"), [-1] * 3)
    other.load_state_dict(learner.state_dict())
    for seed in (8, 9):
        rows = batch(*points([0, 1, 2], 70, seed))
        assert learner.learn(rows).scores.tobytes() == other.learn(rows).scores.tobytes()


def trained(frame: pl.DataFrame, sizes: list[int]) -> tuple[Training, pl.DataFrame]:
    """A run's work on the frame, cut into batches; and what it predicted."""
    kind = PrototypeLearner
    learner = kind(kind.Settings(neighbors=2), kind.Training(), FEATURES)
    work = Training(learner, Evaluation(Evaluation.Settings(), FEATURES, kind.baselines))
    collate, at, rows = Collate(FEATURES), 0, []
    for size in [*sizes, frame.height]:
        part = frame[at : at + size]
        done = work.process(collate.apply(Batch(frame=part, mark=Mark(), arrived=0.0)))
        assert done.learned == part.height
        assert done.rows is not None
        rows.append(done.rows)
        at += part.height
    return work, pl.concat([part for part in rows if part.width > frame.width])


@settings(max_examples=examples(15), deadline=None)
@given(
    labels=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=40),
    sizes=st.lists(st.integers(0, 20), max_size=4),
)
def test_cuts_do_not_matter_where_classes_come_and_go(labels: list[str], sizes: list[int]) -> None:
    rng = np.random.default_rng(len(labels))
    frame = pl.DataFrame(
        {"x": rng.normal(size=len(labels)), "y": rng.normal(size=len(labels)), "label": labels}
    ).with_columns(_partition=pl.lit("p"), _position=pl.int_range(pl.len()))
    (one, ours), (other, theirs) = trained(frame, []), trained(frame, sizes)
    assert ours.equals(theirs)
    same(one.state_dict()["learner"], other.state_dict()["learner"])
    reports = [work.evaluation.report()["all"] for work in (one, other)]
    assert reports[0]["accuracy"] == reports[1]["accuracy"]
    assert reports[0]["confusion"] == reports[1]["confusion"]
    right = (ours["prediction"] == ours["label"]).fill_null(False)
    assert reports[0]["accuracy"] == pytest.approx(right.cast(pl.Float64).to_numpy().mean())
    last = list(dict.fromkeys(reversed(labels)))[: FEATURES.max_classes]
    assert set(one.learner.features.classes) == set(last)
