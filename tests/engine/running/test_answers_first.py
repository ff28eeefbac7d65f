"""Rows are answered, then learned: by the model that was there when they came, whether they have a
label or not; and what is learned is what is learned anyway."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl
import pytest

from connectors.memory import MemorySink, MemorySource
from engine.config import LoaderSettings
from engine.loading.collate import Collate
from engine.loading.loader import Loader
from engine.observing.metrics import Metrics
from engine.quality.evaluation import Evaluation
from engine.running.holdout import Holdout
from engine.running.loop import Loop
from engine.running.reporter import Reporter
from engine.running.work import Training, WorkResult
from engine.types import PART, Batch, Features, HeadraceError, Mark, Rejects, Sink
from models.learners.modules.learner import ModuleLearner
from models.learners.prototypes.learner import PrototypeLearner
from models.learners.tabular import TabularLearner
from tests.pipelines.runs.test_crash import same

SIZES = [7, 40, 1, 52]
CASES: dict[str, dict[str, Any]] = {
    "regression": {"target": "y"},
    "binary": {"target": "no or yes", "task": "binary", "classes": ("no", "yes")},
    "several": {"targets": ("y", "z")},
    "quantiles": {"target": "y", "quantiles": (0.1, 0.5, 0.9)},
    "growing": {"target": "letter", "task": "multiclass", "max_classes": 3},
    "state": {"target": "y", "inputs": {"numeric": ("a", "b")}},
}


def rows(n: int = sum(SIZES)) -> pl.DataFrame:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, n))
    return pl.DataFrame(
        {
            "a": a, "b": b, "k": rng.integers(0, 5, n), "y": a - b, "z": a + b,
            "no or yes": np.where(a > b, "yes", "no"), "letter": rng.choice(list("abcde"), n),
            "_partition": ["p"] * n, "_position": np.arange(n),
        }
    )  # fmt: skip


def learner_of(case: str) -> Any:
    settings = ModuleLearner.Settings(state={"by": ["k"], "width": 4})
    state = ModuleLearner.named_state(settings, {}) if case == "state" else None
    features = Features(numeric=("a", "b"), state=state, **CASES[case])
    if case == "growing":
        return PrototypeLearner(
            PrototypeLearner.Settings(neighbors=2), PrototypeLearner.Training(), features
        )
    train = {"replay_rows": 30, "replay_steps": 2, "step_rows": 8, "lr": 0.01, "threads": 1}
    if case == "state":
        return ModuleLearner(settings, ModuleLearner.Training(**train), features)
    return TabularLearner(
        TabularLearner.Settings(layers=(8,)), TabularLearner.Training(**train), features
    )


@dataclass
class Trained:
    """A run's work on rows, cut into batches: what was answered, and what the model would have said
    then."""

    case: str
    first: bool = True
    holdout: Holdout | None = None
    frames: list[pl.DataFrame] = field(default_factory=list)
    expected: list[Any] = field(default_factory=list)
    results: list[WorkResult] = field(default_factory=list)

    def of(self, frame: pl.DataFrame) -> Trained:
        learner = learner_of(self.case)
        self.features: Features = learner.features
        evaluation = Evaluation(Evaluation.Settings(), self.features, type(learner).baselines)
        self.work = Training(learner, evaluation, answers_first=self.first, holdout=self.holdout)
        collate, at = Collate(self.features, unlabelled=self.first), 0
        for size in SIZES:
            part = frame[at : at + size]
            batch = Batch(
                frame=part, mark=Mark(), arrived=0.0, raw_rows=size,
                raw=None if self.holdout is None and self.case != "state" else part,
            )  # fmt: skip
            batch = collate.apply(batch)
            self.work.on_answer(lambda batch, rows: self._note(learner, batch, rows))
            self.results.append(self.work.process(batch))
            at += size
        return self

    def _note(self, learner: Any, batch: Batch, rows: pl.DataFrame) -> None:
        assert batch.frame["_position"].equals(rows["_position"])
        self.frames.append(rows)
        assert batch.tensors is not None
        self.expected.append(learner.predict(batch.tensors))

    @property
    def answers(self) -> pl.DataFrame:
        return pl.concat(self.frames)

    @property
    def state(self) -> Any:
        return self.work.state_dict()["learner"]

    def sum(self, outcome: str) -> int:
        return sum(getattr(done, outcome) for done in self.results)


@pytest.mark.parametrize("case", CASES)
def test_a_row_is_answered_by_the_model_before_its_batch_and_learned_as_ever(case: str) -> None:
    frame = rows()
    ours, usual = Trained(case).of(frame), Trained(case, first=False).of(frame)
    same(ours.state, usual.state)
    reports = [trained.work.evaluation.report()["rows"] for trained in (ours, usual)]
    assert reports == [100, 100]
    assert usual.frames == []
    assert all(done.rows is None for done in ours.results)
    assert (ours.sum("learned"), usual.sum("learned")) == (100, 100)
    assert ours.answers["_position"].to_list() == list(range(100))
    if case == "growing":  # no class is known before it comes
        assert ours.answers["prediction"][:7].null_count() == 7
        return
    said = ours.answers[list(ours.features.prediction_names)]
    columns = ours.features.prediction_columns(np.concatenate(ours.expected))
    assert said.equals(pl.DataFrame(columns))


def test_the_answers_are_judged_beside_the_newest_label_of_then() -> None:
    frame = rows()
    trained = Trained("regression").of(frame)
    report = trained.work.evaluation.report()["all"]
    y, said = frame["y"].to_numpy(), trained.answers["prediction"].to_numpy()
    assert report["mae"] == pytest.approx(np.abs(said - y.astype(np.float32)).mean(), rel=1e-6)
    starts = np.repeat(np.cumsum([0, *SIZES[:-1]]), SIZES)
    last = np.where(starts > 0, y[starts - 1], np.nan)
    assert report["baselines"]["last value"]["mae"] == pytest.approx(
        np.nanmean(np.abs(last - y)), rel=1e-6
    )


@pytest.mark.parametrize("case", CASES)
def test_a_row_without_a_label_is_answered_and_not_learned(case: str) -> None:
    frame, features = rows(), Features(numeric=(), **CASES[case])
    gone = np.arange(100) % 3 == 1
    without = frame.with_columns(
        pl.when(pl.Series(gone)).then(None).otherwise(pl.col(name)).alias(name)
        for name in features.labels
    )
    ours = Trained(case).of(without)
    assert (ours.sum("learned"), ours.sum("predicted")) == (67, 33)
    assert not any(done.batch.rejects for done in ours.results)
    assert ours.answers["_position"].to_list() == list(range(100))
    answered = ours.answers[ours.features.prediction_names[0]]
    assert answered.null_count() == (7 if case == "growing" else 0)
    assert ours.work.evaluation.report()["rows"] == 67
    part = np.where(gone, "test", "train")
    usual = Trained(case, first=False).of(frame.with_columns(pl.Series(PART, part)))
    if case != "growing":  # whose classes are those of all labels there are
        same(ours.state, usual.state)


def test_rows_without_a_label_alone_are_answered() -> None:
    trained = Trained("growing").of(rows().with_columns(letter=pl.lit(None, pl.String)))
    assert (trained.sum("learned"), trained.sum("predicted")) == (0, 100)
    assert trained.answers["prediction"].null_count() == 100


def test_a_row_without_a_label_is_never_held_out() -> None:
    frame = rows().with_columns(y=pl.when(pl.col("a") < 0).then(None).otherwise(pl.col("y")))
    trained = Trained("regression", holdout=Holdout(0.5, 100)).of(frame)
    assert trained.holdout is not None
    kept = trained.holdout.frame()
    assert kept is not None
    assert 0 < len(kept) < 100
    assert kept["y"].null_count() == 0


def test_a_label_that_is_none_is_rejected_where_a_missing_one_is_not() -> None:
    frame = pl.DataFrame(
        {
            "a": [0.0] * 4, "y": [1.0, None, np.nan, np.inf], "c": ["no", None, "", "maybe"],
            "_partition": ["p"] * 4, "_position": range(4),
        }
    )  # fmt: skip
    classes = Features(numeric=("a",), target="c", task="binary", classes=("no", "yes"))
    for features, left, reason in (
        (Features(numeric=("a",), target="y"), [0, 1, 2], "non_finite"),
        (classes, [0, 1], "unknown_label"),
    ):
        done = Collate(features, unlabelled=True).apply(
            Batch(frame=frame, mark=Mark(), arrived=0.0)
        )
        assert done.frame["_position"].to_list() == left
        assert {reject.reason for reject in done.rejects} == {reason}


class Picky(Sink):
    """A sink that fails at the n-th write, or refuses a row; it notes how many steps the model had
    taken at each write."""

    def __init__(self, learner: Any, *, fails: int = 0, refuses: int = -1) -> None:
        super().__init__(None)
        self.kept = MemorySink()
        self.learner, self.fails, self.refuses = learner, fails, refuses
        self.steps: list[int] = []

    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> Rejects | None:
        self.steps.append(self.learner.state_dict()["rows"])
        if len(self.steps) == self.fails:
            raise HeadraceError("[sink] fails.")
        assert positions is not None
        out = frame.filter(pl.col("_position") == self.refuses)
        self.kept.write(frame.filter(pl.col("_position") != self.refuses))
        if not len(out):
            return None
        rows = out.select(
            "_partition", "_position", detail=pl.lit("It is odd."), value=pl.lit("{}")
        )
        return Rejects(stage="sink", reason="odd", rows=rows)

    def flush(self) -> None:
        self.kept.flush()


def looped(sink: Picky, letters: MemorySink, metrics: Metrics, frame: pl.DataFrame) -> Loop:
    features = sink.learner.features
    work = Training(
        sink.learner,
        Evaluation(Evaluation.Settings(), features),
        answers_first=True,
        metrics=metrics,
    )
    source = MemorySource.of([frame.drop("_partition", "_position")])
    settings = LoaderSettings(batch_rows=25, poll_timeout=0.01)
    schema = source.schema({"*": pl.String()})
    loader = Loader(
        source, schema=schema, collate=Collate(features, unlabelled=True), settings=settings
    )
    reporter = Reporter(metrics, source=source, sink=sink, timer=loader.timer)
    return Loop(
        source=source, loader=loader, work=work, sink=sink, dead_letters=letters, reporter=reporter
    )


def test_the_sink_has_the_answers_before_the_steps_are_taken() -> None:
    learner, metrics = learner_of("regression"), Metrics()
    sink, letters = Picky(learner, refuses=30), MemorySink()
    frame = rows().with_columns(y=pl.when(pl.col("_position") % 10 == 0).then(None).otherwise("y"))
    totals = looped(sink, letters, metrics, frame).run()
    assert sink.steps == [0, 22, 45, 67]  # rows learned before each write: 22 or 23 a batch
    assert sink.kept.frame["_position"].to_list() == [n for n in range(100) if n != 30]
    assert letters.frame["_position"].to_list() == [30]
    assert (totals.read, totals.learned, totals.predicted, totals.rejected) == (100, 90, 10, 0)
    for span in ("ready_to_answered", "ready_to_done"):
        name = "headrace_record_latency_seconds_count"
        assert metrics.registry.get_sample_value(name, {"span": span}) == 4


def test_what_was_answered_and_not_learned_is_not_done() -> None:
    """The mark is behind a batch whose answers could not be written, and the model is as it was."""
    learner = learner_of("regression")
    loop = looped(Picky(learner, fails=3), MemorySink(), Metrics(), rows())
    with pytest.raises(HeadraceError, match="fails"):
        loop.run()
    assert loop.mark.positions == {"memory": 50}
    assert learner.state_dict()["rows"] == 50
    assert (loop.totals.read, loop.totals.learned) == (50, 50)
