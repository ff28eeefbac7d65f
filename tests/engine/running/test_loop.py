"""The loop: effects in their order, everything accounted for, stops that lose nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from connectors.memory import Fault, MemorySink, MemorySource
from engine.config import DeadLetterSettings, LoaderSettings
from engine.loading.loader import Loader
from engine.observing.metrics import Metrics
from engine.observing.service import Heartbeat
from engine.running.loop import Loop
from engine.running.reject_limit import RejectLimit, TooManyRejects
from engine.running.reporter import Reporter
from engine.running.saving.checkpoint import CheckpointFailed, Checkpoints
from engine.running.saving.saver import Saver
from engine.running.totals import Totals
from engine.running.work import Work, WorkResult
from engine.types import (
    Batch,
    EndOfStream,
    HeadraceError,
    Mark,
    Records,
    Rejects,
    Schema,
    SharedSource,
    Snapshot,
    Transaction,
)

SCHEMA: Schema = {"a": pl.Int64()}


class Summing(Work):
    """Work with a state: the sum of all it has seen. Odd numbers are rejected."""

    stage = "learn"

    def __init__(self) -> None:
        self.total = 0
        self.stop_at: int | None = None
        self.loop: Loop | None = None

    def process(self, batch: Batch) -> WorkResult:
        done = batch.reject(pl.col("a") % 2 == 0, stage="learn", reason="odd", detail="It is odd.")
        self.total += int(done.frame["a"].sum())
        if self.loop is not None and self.stop_at is not None and self.total >= self.stop_at:
            self.loop.stop()
        return WorkResult(batch=done, rows=done.frame, learned=len(done))

    def finish(self) -> WorkResult | None:
        return None

    def state_dict(self) -> dict[str, Snapshot]:
        return {"total": self.total}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        self.total = state["total"]


class Pipeline:
    """A source of numbers, a loop around it, and what it left."""

    def __init__(self, items: list[Any], folder: Path, sink: MemorySink | None = None) -> None:
        self.source = MemorySource.of(items)
        self.sink = sink or MemorySink()
        self.letters = MemorySink()
        self.work = Summing()
        self.loop = self.make(folder)

    def make(self, folder: Path, **options: Any) -> Loop:
        settings = LoaderSettings(batch_rows=10, poll_timeout=0.01)
        checkpoints = Checkpoints(Checkpoints.Settings(path=str(folder), interval_batches=2))
        loader = Loader(self.source, schema=SCHEMA, settings=settings)
        sinks = {"sink": self.sink, "dead_letters": self.letters}
        self.work.loop = saving_loop(
            self.source, loader, self.work, sinks, checkpoints=checkpoints, **options
        )
        return self.work.loop


def saving_loop(
    source: MemorySource,
    loader: Loader,
    work: Summing,
    sinks: dict[str, MemorySink],
    *,
    checkpoints: Checkpoints,
    transaction: Transaction | None = None,
    **options: Any,
) -> Loop:
    """A loop with checkpoints; options of the loop itself."""
    reporter = Reporter(Metrics(), source=source, sink=sinks["sink"], timer=loader.timer)
    saver = Saver(
        source=source, sinks=sinks, reporter=reporter,
        checkpoints=checkpoints, transaction=transaction,
    )  # fmt: skip
    return Loop(
        source=source, loader=loader, work=work, reporter=reporter, saver=saver,
        sink=sinks["sink"], dead_letters=sinks.get("dead_letters"), **options,
    )  # fmt: skip


def numbers(start: int, stop: int) -> pl.DataFrame:
    return pl.DataFrame({"a": range(start, stop)}, schema=SCHEMA)


def test_every_row_is_learned_or_rejected_and_ends_in_its_place(tmp_path: Path) -> None:
    made = Pipeline([numbers(0, 95)], tmp_path)
    totals = made.loop.run()
    assert totals.balanced
    assert (totals.read, totals.learned, totals.rejected) == (95, 48, 47)
    assert totals.reasons == {("learn", "odd"): 47}
    assert made.sink.frame["a"].to_list() == list(range(0, 95, 2))
    assert made.letters.frame["_position"].to_list() == list(range(1, 95, 2))
    assert set(made.letters.frame["reason"]) == {"odd"}
    assert set(made.letters.frame["stage"]) == {"learn"}


def test_nothing_is_committed_that_was_not_finished(tmp_path: Path) -> None:
    made = Pipeline([numbers(0, 95)], tmp_path)
    made.loop.run()
    positions = [mark.positions["memory"] for mark in made.source.commits]
    assert positions == [20, 40, 60, 80, 95]


def test_flush_comes_before_save_and_save_before_commit(tmp_path: Path) -> None:
    """A sink that fails to flush leaves neither checkpoint nor commit behind that flush."""
    failing = MemorySink(MemorySink.Settings(fail_on_flush=3))
    made = Pipeline([numbers(0, 95)], tmp_path, failing)
    with pytest.raises(HeadraceError, match="fails on flush 3"):
        made.loop.run()
    assert [mark.positions["memory"] for mark in made.source.commits] == [20, 40]
    state = Checkpoints(Checkpoints.Settings(path=str(tmp_path))).load({})
    assert state is not None
    assert state["positions"] == {"memory": 40}


@pytest.mark.parametrize("at", [0, 15, 40, 77])
def test_after_a_fault_a_new_start_ends_where_an_untroubled_run_does(
    tmp_path: Path, at: int
) -> None:
    whole = Pipeline([numbers(0, 95)], tmp_path / "whole")
    whole.loop.run()
    items = [numbers(0, at), Fault(OSError("gone")), numbers(at, 95)]
    troubled = Pipeline([i for i in items if not isinstance(i, pl.DataFrame) or i.height], tmp_path)
    with pytest.raises(OSError, match="gone"):
        troubled.loop.run()
    again = Pipeline([numbers(0, 95)], tmp_path, troubled.sink)
    again.letters = troubled.letters
    again.loop = again.make(tmp_path)
    again.loop.resume()
    again.loop.run()
    assert again.work.total == whole.work.total
    assert again.loop.totals == whole.loop.totals
    assert again.sink.frame.equals(whole.sink.frame)
    assert again.letters.frame.equals(whole.letters.frame)


class Quiet(MemorySource):
    """Gives its rows, then nothing, for ever."""

    def unbounded(self) -> bool:
        return True

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        try:
            return super().read(max_rows, max_bytes, timeout)
        except EndOfStream:
            time.sleep(timeout)
            return None


def lag(loop: Loop) -> float:
    return float(loop.reporter.metrics.source_lag_records.labels(partition="memory")._value.get())


def test_an_idle_loop_beats_saves_once_and_its_lag_is_0_when_all_is_safe(tmp_path: Path) -> None:
    """Ten rows that fill no batch are done, saved and committed; the silence after them is no
    work, and no stall."""
    made = Pipeline([], tmp_path)
    made.source = Quiet.of([numbers(0, 10)])
    heart = Heartbeat(60.0)
    idle = 0
    seen: list[tuple[int, int, float]] = []

    def watch(loop: Loop, batch: Batch) -> None:
        nonlocal idle
        idle += not len(batch.frame) and loop.totals.read == 10
        loop.reporter.lag(loop.saver.mark)
        seen.append((loop.totals.read, len(made.source.commits), lag(loop)))
        if idle == 8:
            loop.stop()

    checkpoints = Checkpoints(Checkpoints.Settings(path=str(tmp_path), interval_batches=2, keep=9))
    settings = LoaderSettings(poll_timeout=0.01)
    loader = Loader(made.source, schema=SCHEMA, settings=settings)
    loop = saving_loop(
        made.source, loader, made.work, {"sink": made.sink},
        checkpoints=checkpoints, heartbeat=heart, watch=watch,
    )  # fmt: skip
    loop.run()
    assert made.sink.frame["a"].to_list() == [0, 2, 4, 6, 8]
    assert heart.health().ok
    assert len(list(tmp_path.glob("*.hrc"))) == 1
    assert {mark.positions["memory"] for mark in made.source.commits} == {10}
    assert all((lag == 0) == (commits > 0) for read, commits, lag in seen if read)
    assert loop.reporter.metrics.checkpoint_timestamp_seconds._value.get() > 0


class Refusing(Quiet):
    """Refuses its first two commits, as a group does that is rebalancing."""

    asked = 0

    def commit(self, mark: Mark) -> bool:
        self.asked += 1
        return self.asked > 2 and super().commit(mark)


def test_a_refused_commit_is_tried_again_in_the_silence_after_it(tmp_path: Path) -> None:
    made = Pipeline([], tmp_path)
    made.source = Refusing.of([numbers(0, 10)])
    lags: list[float] = []

    def watch(loop: Loop, batch: Batch) -> None:
        loop.reporter.lag(loop.saver.mark)
        lags.append(lag(loop))
        if loop.totals.read and not loop.saver.unsaved:
            loop.stop()

    made.make(tmp_path, watch=watch).run()
    assert [mark.positions["memory"] for mark in made.source.commits] == [10]
    assert lags[-2:] == [10, 0]


def test_a_refused_commit_is_tried_again_at_the_end(tmp_path: Path) -> None:
    made = Pipeline([], tmp_path)
    made.source = Refusing.of([numbers(0, 40)])
    loop = made.make(tmp_path)
    loop._watch = lambda loop, _: loop.stop() if loop.totals.batches == 4 else None
    loop.run()
    assert [mark.positions["memory"] for mark in made.source.commits] == [40]


@pytest.mark.parametrize(("seconds", "commits"), [(1e-9, 5), (3_600.0, 1)])
def test_a_transaction_is_committed_in_its_own_time(
    tmp_path: Path, seconds: float, commits: int
) -> None:
    """Sooner than a checkpoint is due: each batch, or once when nothing more comes."""
    made = Pipeline([], tmp_path)
    made.source = Quiet.of([numbers(0, 50)])
    marks: list[int] = []

    def commit(mark: Mark) -> bool:
        marks.append(mark.positions["memory"])
        return True

    def watch(loop: Loop, batch: Batch) -> None:
        checkpoints.seconds = 0.0  # a disk that takes its time is not what this is about
        if marks and marks[-1] == 50:
            loop.stop()

    checkpoints = Checkpoints(Checkpoints.Settings(path=str(tmp_path), interval=3_600.0))
    settings = LoaderSettings(batch_rows=10, poll_timeout=0.01)
    loader = Loader(made.source, schema=SCHEMA, settings=settings)
    own = Transaction(commit=commit, every=seconds)
    loop = saving_loop(
        made.source, loader, made.work, {"sink": made.sink},
        checkpoints=checkpoints, transaction=own, watch=watch,
    )  # fmt: skip
    loop.run()
    assert marks == [50] if commits == 1 else marks == [10, 20, 30, 40, 50]
    state = checkpoints.load({})
    assert state is not None
    assert state["positions"] == {"memory": 50}


class Group(MemorySource, SharedSource):
    """A member without a name of a group that only transactions commit to."""

    shares_partitions = True
    tracks_owners = partitions_lost = is_revoking = False
    committed: int | None = None

    def is_rebalancing(self) -> bool:
        return False

    def unavailable_reason(self) -> str | None:
        return None

    def release_partitions(self) -> None:
        return

    def reset_offsets(self) -> None:
        return

    def keep_alive(self) -> None:
        return

    def counts(self) -> Mapping[str, int]:
        return {}

    def resume_after_rebalance(self, mark: Mark) -> Mark:
        return Mark(positions={"memory": self.committed or 0}, stages=mark.stages)

    def was_committed(self, positions: Mapping[str, int]) -> bool | None:
        return self.committed is not None and positions["memory"] <= self.committed


@pytest.mark.parametrize("refused", [[1], [2], [1, 2], [1, 3], [6], [1, 6]])
def test_rows_of_an_aborted_transaction_count_once(tmp_path: Path, refused: list[int]) -> None:
    """Before the first transaction was committed, and at the end of the source, too."""
    made = Pipeline([], tmp_path)
    made.source = group = Group(Group.Settings(items=[numbers(0, 95)]))
    asked = 0

    def commit(mark: Mark) -> bool:
        nonlocal asked
        asked += 1
        if asked in refused:
            return False
        group.committed = mark.positions["memory"]
        return True

    loop = made.make(tmp_path, transaction=Transaction(commit=commit, every=3_600.0))
    totals = loop.run()
    assert group.committed == 95
    assert (totals.read, totals.learned, totals.rejected) == (95, 48, 47)
    assert made.sink.frame["a"].to_list() == list(range(0, 95, 2))
    assert made.letters.frame["_position"].to_list() == list(range(1, 95, 2))


def test_without_a_checkpoint_that_counts_an_aborted_transaction_ends_the_run(
    tmp_path: Path,
) -> None:
    """The first checkpoint could not be written; the next is of rows that were aborted."""
    folder = tmp_path / "folder"
    folder.write_text("")
    made = Pipeline([], folder)
    made.source = Group.of([numbers(0, 95)])
    answers = iter([False])
    own = Transaction(commit=lambda mark: next(answers, True), every=3_600.0)
    loop = made.make(folder, transaction=own)
    loop._watch = lambda *_: folder.unlink() if folder.is_file() else None
    with pytest.raises(HeadraceError, match=r"a transaction was aborted, before .*: start again"):
        loop.run()


def test_a_stop_whose_transaction_is_aborted_counts_none_of_its_rows(tmp_path: Path) -> None:
    made = Pipeline([], tmp_path)
    made.source = group = Group(Group.Settings(items=[numbers(0, 95)]))

    def commit(mark: Mark) -> bool:
        if loop.stopped:
            return False
        group.committed = mark.positions["memory"]
        return True

    loop = made.make(tmp_path, transaction=Transaction(commit=commit, every=3_600.0))
    loop._watch = lambda loop, _: loop.stop() if loop.totals.read == 50 else None
    totals = loop.run()
    assert group.committed == totals.read == 40
    assert made.sink.frame["a"].to_list() == list(range(0, 40, 2))
    assert loop.mark.positions == {"memory": 40}


def test_a_source_that_hangs_is_a_stall(tmp_path: Path) -> None:
    """Idle batches come all the same: they are no sign of life."""

    class Hanging(Quiet):
        def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
            hung.wait()
            return None

    hung = threading.Event()
    made = Pipeline([], tmp_path)
    made.source = Hanging.of([])
    made.loop = made.make(tmp_path, heartbeat=(heart := Heartbeat(1e-6)))
    ages: list[float] = []

    def watch(loop: Loop, batch: Batch) -> None:
        ages.append(heart.age())
        if len(ages) == 3:
            hung.set()
            loop.stop()

    made.loop._watch = watch
    made.loop.run()
    assert ages == sorted(ages)
    assert ages[-1] > 0
    assert not heart.health().ok


def test_stop_finishes_the_batch_in_hand_and_saves(tmp_path: Path) -> None:
    made = Pipeline([numbers(0, 10_000)], tmp_path)
    made.work.stop_at = 500
    totals = made.loop.run()
    assert made.loop.stopped
    assert totals.balanced
    assert totals.read == made.source.commits[-1].positions["memory"]
    assert 0 < totals.read < 10_000


def test_a_checkpoint_that_fails_is_counted_and_the_last_one_fails_the_run(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("")
    made = Pipeline([numbers(0, 95)], tmp_path / "file" / "folder")
    with pytest.raises(CheckpointFailed, match=r"cannot be written to .*start again"):
        made.loop.run()
    assert made.loop.totals.balanced
    assert made.loop.totals.read == 95
    text = made.loop.reporter.metrics.exposition()[0].decode()
    assert "headrace_checkpoint_failures_total 6.0" in text
    assert made.source.commits == []  # nothing is committed beyond what is saved


def rejects(n: int, reason: str) -> tuple[Rejects, ...]:
    return (Rejects(stage="decode", reason=reason, rows=pl.DataFrame({"x": range(n)})),)


def test_the_breaker_trips_on_the_share_of_the_newest_rows() -> None:
    reject_limit = RejectLimit(DeadLetterSettings(limit=0.1, window=100))
    for _ in range(20):
        reject_limit.check(50, rejects(4, "broken"))
    with pytest.raises(TooManyRejects) as caught:
        reject_limit.check(50, rejects(20, "broken"))
    assert str(caught.value).startswith("Stopped: 24.0% of the last 100 rows were rejected")
    assert "(decode: broken)" in str(caught.value)
    assert "limit allows 10.0%" in str(caught.value)


def test_the_breaker_waits_for_its_window_and_lets_expected_reasons_pass() -> None:
    reject_limit = RejectLimit(DeadLetterSettings(limit=0.1, window=100))
    reject_limit.check(99, rejects(99, "broken"))
    reject_limit = RejectLimit(DeadLetterSettings(limit=0.1, window=100))
    for _ in range(10):
        reject_limit.check(100, rejects(100, "missing_label"))


def test_a_flood_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    made = Pipeline([numbers(0, 10_000)], tmp_path)
    reject_limit = RejectLimit(DeadLetterSettings(limit=0.4, window=100))
    made.loop = made.make(tmp_path, reject_limit=reject_limit)
    with pytest.raises(TooManyRejects):
        made.loop.run()
    totals = made.loop.totals
    assert totals.balanced
    assert totals.rejected == made.letters.frame.height
    assert made.source.commits[-1].positions["memory"] == totals.read == 100


def test_totals_come_back_from_a_snapshot() -> None:
    totals = Totals(batches=3, read=10, learned=7, rejected=3, reasons={("a", "b"): 3})
    assert Totals.restore(totals.snapshot()) == totals
    assert totals.balanced
    totals.read += 1
    assert not totals.balanced


def test_a_mark_is_where_to_resume() -> None:
    assert Mark().positions == {}
