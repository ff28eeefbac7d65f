"""Rows that wait for their label keep the scale that they came with: learned later, they are what
they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine import types
from engine.run import Run
from engine.running.loop import Loop
from engine.types import Batch, Learner, Step, Tensors
from models.learners.online.replay.rescale import Rescale

PIPELINE = """
name = "late"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/rows.csv"
[labels]
by = ["id"]
time = "at"
horizon = 1000
every_rows = 50
[labels.source]
kind = "files"
path = "{folder}/labels.csv"
[loader]
batch_rows = 50
[scrub.standardize]
columns = ["x", "z"]
[scrub.robust]
columns = ["x"]
[model]
kind = "{here}:Recorder"
target = "y"
numeric = ["z", "plain", "x"]
task = "regression"
[dead_letters]
limit = 1.0
[checkpoint]
interval_batches = 4
"""
N = 600


class Recorder(Learner):
    """Learns nothing, and keeps the rows as they were before the stages, and in their scale."""

    class Settings(types.Settings):
        """None."""

    class Training(types.Settings):
        """None."""

    def __init__(self, settings: Any, training: Any, features: Any) -> None:
        super().__init__(settings, training, features)
        self.seen: list[np.ndarray[Any, Any]] = []

    def learn(self, batch: Batch) -> Step:
        assert batch.tensors is not None
        assert batch.tensors.target is not None
        raw = Rescale(self.features).unscale(batch.tensors).numpy()
        target = batch.tensors.target.numpy()[:, None]
        scaled = batch.tensors.numeric.numpy()
        self.seen.append(np.concatenate([target, raw, scaled], axis=1).astype(np.float64))
        return Step(scores=self.predict(batch.tensors), loss=0.0)

    def predict(self, tensors: Tensors) -> np.ndarray[Any, Any]:
        return np.zeros(len(tensors))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen)}

    def load_state_dict(self, state: Any) -> None:
        self.seen = list(state["seen"])


def ramp(n: int = N) -> pl.DataFrame:
    """A row a tick; x moves all the time, far from 0, so that its mean and deviation do."""
    at = np.arange(n)
    rng = np.random.default_rng(0)
    z, plain = rng.normal(size=n), rng.normal(size=n)
    return pl.DataFrame({"id": at, "at": at, "x": 1e6 + 1.0 * at, "z": z, "plain": plain})


def labels_of(rows: pl.DataFrame, delays: Any) -> pl.DataFrame:
    """The number of each row is its label, so many ticks later."""
    late = rows.select("id", pl.col("at") + pl.Series(delays), y=pl.col("id").cast(pl.Float64))
    return late.sort("at", maintain_order=True)


def written(folder: Path, labels: pl.DataFrame, *changes: tuple[str, str]) -> Path:
    ramp(N).write_csv(folder / "rows.csv")
    labels.write_csv(folder / "labels.csv")
    text = PIPELINE.format(folder=folder, here=__name__)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "late.toml").write_text(text)
    return folder / "late.toml"


def seen(run: Run) -> np.ndarray[Any, Any]:
    learner = run.parts.model.learner
    assert isinstance(learner, Recorder)
    return np.concatenate(learner.seen)


DELAYS = np.random.default_rng(1).integers(0, 300, N)
ON_DISK = ("horizon = 1000", "horizon = 1000\nmemory = 1")


def test_a_row_is_learned_as_it_was_when_it_came(tmp_path: Path) -> None:
    rows = ramp()
    run = Run(written(tmp_path, labels_of(rows, DELAYS)))
    assert run.run().totals.learned == N
    learned = seen(run)
    at = learned[:, 0].astype(int)
    assert sorted(at.tolist()) == list(range(N))
    assert at.tolist() != list(range(N))
    want = rows[["z", "plain", "x"]].to_numpy()[at]
    first = at < 2  # of which too little was known: the scale of a constant
    np.testing.assert_allclose(learned[~first, 1:4], want[~first], rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("changes", [(), (ON_DISK,)])
def test_disk_and_a_restart_change_no_bit(changes: Any, tmp_path: Path) -> None:
    labels = labels_of(ramp(), DELAYS)
    whole = Run(written(tmp_path, labels))
    whole.run()
    want = seen(whole)
    file = written(tmp_path, labels, *changes)
    for after in (3, 9):

        def watch(loop: Loop, _: Batch, after: int = after) -> None:
            if loop.totals.batches == after:
                loop.stop()

        assert Run(file, watch=watch).run(fresh=after == 3).stopped
    again = Run(file)
    again.run()
    assert seen(again).tobytes() == want.tobytes()


def test_rows_that_are_learned_together_have_one_scale(tmp_path: Path) -> None:
    """That of now, in which the model scores the next rows."""
    run = Run(written(tmp_path, labels_of(ramp(), DELAYS)))
    run.run()
    learner = run.parts.model.learner
    assert isinstance(learner, Recorder)
    for batch in learner.seen[3:]:
        x, scaled = batch[:, 3], batch[:, 6]
        assert len(np.unique(batch[:, 0] // 50)) > 1  # they came in several batches
        slope = np.polyfit(x - x.mean(), scaled, 1)
        np.testing.assert_allclose(np.polyval(slope, x - x.mean()), scaled, atol=1e-4)


def mae(folder: Path, replay: int, *changes: tuple[str, str]) -> float:
    tabular = (f'kind = "{__name__}:Recorder"', 'kind = "tabular"\nlayers = [8]')
    train = ("[dead_letters]", f"[train]\nreplay_rows = {replay}\nreplay_steps = 2\n[dead_letters]")
    file = written(folder, labels_of(ramp(), np.zeros(N, np.int64)), *changes, tabular, train)
    run = Run(file)
    run.run(fresh=True)
    return float(run.evaluation.report()["all"]["mae"])


def test_replay_helps_as_much_as_with_labels_in_the_rows(tmp_path: Path) -> None:
    late, without = mae(tmp_path, N), mae(tmp_path, 0)
    start, end = PIPELINE.index("[labels]"), PIPELINE.index("[loader]")
    labels = PIPELINE[start:end].format(folder=tmp_path)
    ramp().with_columns(y=pl.col("id").cast(pl.Float64)).write_csv(tmp_path / "labelled.csv")
    in_rows = mae(tmp_path, N, (labels, ""), ("rows.csv", "labelled.csv"))
    assert late <= 1.1 * in_rows
    assert late <= 0.8 * without
