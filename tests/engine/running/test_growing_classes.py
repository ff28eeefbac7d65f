"""Labels that become classes once they have come often enough, and leave when they come no more:
the same to the row however the stream is cut and wherever it is resumed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.event_time import NEVER, Clock, EventTime
from engine.loading.collate import Collate
from engine.observing.metrics import Metrics
from engine.quality.evaluation import Evaluation
from engine.running.classes.class_table import ClassRules
from engine.running.classes.growing_classes import GrowingClasses
from engine.running.work import Training, WorkResult
from engine.types import Batch, Features, Mark
from models.learners.prototypes.learner import PrototypeLearner
from models.learners.tabular import TabularLearner
from models.learners.trees.learner import TreesLearner
from tests.size import examples

FEATURES = Features(numeric=("x",), target="label", task="multiclass", max_classes=3)
TIME = EventTime(column="t", dtype=pl.Int64(), where="[model.grow]")


def growing(rules: ClassRules) -> GrowingClasses:
    kind = PrototypeLearner
    learner = kind(kind.Settings(neighbors=2), kind.Training(), FEATURES)
    return GrowingClasses(learner, Evaluation(Evaluation.Settings(), FEATURES), rules, Metrics())


@dataclass
class Slowly:
    """What the rules mean, row by row."""

    rules: ClassRules
    classes: dict[str, tuple[int, int]] = field(default_factory=dict)
    waiting: dict[str, tuple[int, int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def said(self, labels: list[str | None], moments: list[int]) -> list[str | None]:
        """The class of each row."""
        began = next((moment for moment in moments if moment != NEVER), NEVER)
        return [
            self._row(row, label, moment, began)
            for row, (label, moment) in enumerate(zip(labels, moments, strict=True))
        ]

    def _row(self, row: int, label: str | None, moment: int, began: int) -> str | None:
        def late(seen: int) -> bool:
            return self.rules.idle is not None and moment - max(seen, began) > self.rules.idle

        for name in [name for name, (_, seen) in self.classes.items() if late(seen)]:
            del self.classes[name]
            self._count("expired_classes")
        if label is None:
            return None
        if label not in self.classes:
            count, seen = self.waiting.pop(label, (0, moment))
            count = 1 if late(seen) else count + 1
            if count < self.rules.min_count:
                self.waiting[label] = count, moment
                self._count("waiting_for_class")
                if len(self.waiting) > self.rules.most:
                    del self.waiting[next(iter(self.waiting))]
                    self._count("forgotten_labels")
                return None
            self._count("new_classes")
            if len(self.classes) == self.rules.most:
                del self.classes[min(self.classes, key=lambda name: self.classes[name][0])]
        self.classes[label] = row, moment
        return label

    def _count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1


LABELS = st.lists(st.sampled_from(["a", "a", "b", "c", "d", None]), min_size=30, max_size=60)
TIMES = st.lists(st.none() | st.integers(0, 12), min_size=60, max_size=60)


@settings(max_examples=examples(150), deadline=None)
@given(
    labels=LABELS,
    times=TIMES,
    cuts=st.lists(st.integers(0, 60), max_size=5),
    min_count=st.integers(1, 4),
    idle=st.none() | st.integers(1, 9),
    timed=st.booleans(),
)
def test_classes_are_the_same_to_the_row_however_it_is_cut_and_resumed(
    labels: list[str | None],
    times: list[int | None],
    cuts: list[int],
    min_count: int,
    idle: int | None,
    timed: bool,
) -> None:
    timed = timed and idle is not None
    steps = [None if time is None else row + time for row, time in enumerate(times)]
    frame = pl.DataFrame(
        {"label": labels, "t": steps[: len(labels)]},
        schema={"label": pl.String, "t": pl.Int64},
    ).with_columns(x=pl.int_range(pl.len()).cast(pl.Float64), _partition=pl.lit("p"))
    frame = frame.with_columns(_position=pl.int_range(pl.len()))
    rules = ClassRules(most=3, min_count=min_count, idle=idle, time=TIME if timed else None)
    moments = np.arange(len(labels))
    if timed:
        assert idle is not None
        _, moments, _ = Clock().walk(TIME.read(frame), idle, at_once=False)
    slowly = Slowly(rules)
    expected = slowly.said(labels, moments.tolist())

    classes, said, counts = growing(rules), [], dict[str, int]()
    ends = sorted(min(cut, len(labels)) for cut in cuts)
    collate = Collate(FEATURES, unlabelled=True)
    for start, stop in zip([0, *ends], [*ends, len(labels)], strict=True):
        batch = collate.apply(Batch(frame=frame[start:stop], mark=Mark(), arrived=0.0))
        for part, known in classes.parts(batch):
            assert part.tensors is not None
            assert part.tensors.target is not None
            numbers = part.tensors.target.tolist()
            assert known <= len(classes.table.names) <= 3
            said += [None if number < 0 else classes.table.names[number] for number in numbers]
            for (stage, name), n in part.counts.items():
                assert stage == "model"
                counts[name] = counts.get(name, 0) + n
        state = classes.snapshot()
        classes = growing(rules)
        classes.restore(state)
    assert said == expected
    assert counts == slowly.counts
    assert set(classes.table.names) == slowly.classes.keys()
    assert {name: count for name, count, _ in classes.table.waiting.values()} == {
        name: count for name, (count, _) in slowly.waiting.items()
    }


def test_equal_labels_are_counted_together() -> None:
    classes = growing(ClassRules(most=3, min_count=3))
    frame = pl.DataFrame({"label": ["1", "1.0", "true", "1", "x"], "x": [0.0] * 5})
    frame = frame.with_columns(_partition=pl.lit("p"), _position=pl.int_range(pl.len()))
    batch = Collate(FEATURES).apply(Batch(frame=frame, mark=Mark(), arrived=0.0))
    ((part, known),) = classes.parts(batch)
    assert (known, classes.table.names) == (0, ("1",))
    assert part.tensors is not None
    assert part.tensors.target is not None
    assert part.tensors.target.tolist() == [-1, -1, 0, 0, -1]


def test_one_wrong_time_expires_no_class() -> None:
    times = [*range(10), 10**9, *range(10, 14)]
    labels = ["a", "b"] * 7 + ["a"]
    classes = growing(ClassRules(most=3, idle=5, time=TIME))
    frame = pl.DataFrame({"label": labels, "t": times, "x": [0.0] * 15})
    frame = frame.with_columns(_partition=pl.lit("p"), _position=pl.int_range(pl.len()))
    batch = Collate(FEATURES).apply(Batch(frame=frame, mark=Mark(), arrived=0.0))
    assert len(list(classes.parts(batch))) == 1
    assert (classes.table.names, classes.table.expired) == (("a", "b"), 0)


@pytest.mark.parametrize("rows", [1, 4, 20])
def test_what_came_before_the_time_began_is_as_old_as_that(rows: int) -> None:
    times = [None, None, *[100] * 8, 103, 105, 106]
    labels = ["a", "b", *["c"] * 11]
    classes, known = growing(ClassRules(most=3, idle=5, time=TIME)), []
    frame = pl.DataFrame({"label": labels, "t": times, "x": [0.0] * 13})
    frame = frame.with_columns(_partition=pl.lit("p"), _position=pl.int_range(pl.len()))
    for part in frame.iter_slices(rows):
        batch = Collate(FEATURES).apply(Batch(frame=part, mark=Mark(), arrived=0.0))
        for done, _ in classes.parts(batch):
            known += [len(classes.table.names)] * len(done)
    assert known[-3:] == [3, 3, 1]
    assert (classes.table.names, classes.table.expired) == (("c",), 2)


@pytest.fixture(params=[PrototypeLearner, TabularLearner, TreesLearner])
def kind(request: pytest.FixtureRequest) -> Any:
    if request.param is TreesLearner:
        pytest.importorskip("lightgbm")
    return request.param


def test_all_classes_leave_and_come_again(kind: Any) -> None:
    labels = [*"aaabbb", *"cdefgh", *"aaab"]
    frame = pl.DataFrame({"label": labels}).with_columns(
        x=pl.int_range(pl.len()).cast(pl.Float64),
        _partition=pl.lit("p"),
        _position=pl.int_range(pl.len()),
    )
    learner = kind(kind.Settings(), kind.Training(), FEATURES)
    rules, metrics = ClassRules(most=3, min_count=2, idle=5), Metrics()
    work = Training(
        learner,
        Evaluation(Evaluation.Settings(), FEATURES, kind.baselines),
        class_rules=rules,
        metrics=metrics,
    )
    batch = Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=frame.height)
    done = work.process(Collate(FEATURES).apply(batch))
    assert done.rows is not None
    assert done.rows["prediction"].is_null().to_list()[11:14] == [True] * 3
    assert (done.learned, done.predicted) == (4 + 2, 2 + 6 + 2)
    assert {name: n for (_, name), n in done.batch.counts.items()} == {
        "new_classes": 3, "expired_classes": 2, "waiting_for_class": 10, "forgotten_labels": 4,
    }  # fmt: skip
    assert learner.features.classes == ("a",)
    value = metrics.registry.get_sample_value
    assert value("headrace_classes_left_total", {"reason": "idle"}) == 2
    assert value("headrace_classes_waiting") == 3


@pytest.mark.parametrize("answers_first", [False, True])
def test_a_row_whose_label_waits_is_predicted_and_neither_learned_nor_judged(
    kind: Any, answers_first: bool
) -> None:
    labels = ["a", "b", "a", "b", "a", "a", "b", "b", "c", "a", "b"]
    frame = pl.DataFrame({"label": labels}).with_columns(
        x=pl.col("label").replace_strict({"a": 0.0, "b": 9.0, "c": 20.0}),
        _partition=pl.lit("p"),
        _position=pl.int_range(pl.len()),
    )
    learner = kind(kind.Settings(), kind.Training(), FEATURES)
    work = Training(
        learner, Evaluation(Evaluation.Settings(), FEATURES, kind.baselines),
        answers_first=answers_first, class_rules=ClassRules(most=3, min_count=3),
    )  # fmt: skip
    answers: list[pl.DataFrame] = []
    work.on_answer(lambda _, rows: answers.append(rows))
    collate, results = Collate(FEATURES, unlabelled=answers_first), list[WorkResult]()
    for start, stop in ((0, 3), (3, 7), (7, 11)):
        batch = Batch(frame=frame[start:stop], mark=Mark(), arrived=0.0, raw_rows=stop - start)
        results.append(work.process(collate.apply(batch)))
    assert sum(done.learned for done in results) == 6
    assert sum(done.predicted for done in results) == 5  # two of a and b, the only one of c
    waited = [done.batch.counts.get(("model", "waiting_for_class"), 0) for done in results]
    assert waited == [3, 1, 1]
    rows = pl.concat(answers or [done.rows for done in results if done.rows is not None],
                     how="diagonal")  # fmt: skip
    assert rows["_position"].to_list() == list(range(11))
    assert rows["prediction"].head(3).null_count() == 3  # there was no class
    assert learner.features.classes == ("a", "b")
    assert work.evaluation.report()["all"]["rows"] == 6
