"""The loader: every row once, in order, with the mark to resume from; errors that reach the loop;
no thread left."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ByteSize
from torchdata.nodes import Loader as NodeLoader
from torchdata.nodes import Mapper

from connectors.memory import Fault, MemorySource, Pause
from engine.config import BATCH_DELAY, BLOCK_DELAY, LoaderSettings
from engine.loading.budget import Budget, Wakeup
from engine.loading.channel import Channel, Closed
from engine.loading.collate import Collate
from engine.loading.interop import TorchdataNode
from engine.loading.loader import Loader
from engine.loading.nodes import Node
from engine.loading.prefetch import PrefetchNode
from engine.loading.sources.mix import Mix
from engine.observing.metrics import Metrics
from engine.system import environment
from engine.types import (
    Batch,
    EndOfStream,
    Features,
    Format,
    HeadraceError,
    Mark,
    Records,
    Rejects,
    Schema,
    Stage,
)
from tests.size import examples
from tests.waiting import HANG, until

SCHEMA: Schema = {"a": pl.Int64()}
pytestmark = pytest.mark.usefixtures("idle")


def frame(start: int, stop: int) -> pl.DataFrame:
    return pl.DataFrame({"a": range(start, stop)}, schema=SCHEMA)


def loader(items: list[Any], rows: int = 10, **options: Any) -> Loader:
    made = LoaderSettings(batch_rows=rows, poll_timeout=0.01, **options)
    return Loader(MemorySource.of(items), schema=SCHEMA, settings=made)


def values(batch: Batch) -> list[int]:
    return batch.frame["a"].to_list()


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield

    def gone() -> bool:
        if set(threading.enumerate()) <= before:
            return True
        gc.collect()  # does nothing while another thread collects, so again and again
        return False

    until(gone, what="the end of all threads")


def test_batches_are_cut_by_rows_whatever_the_source_gives() -> None:
    with loader([frame(0, 7), frame(7, 8), Pause(), frame(8, 25)]) as batches:
        got = [values(batch) for batch in batches]
    assert got == [list(range(10)), list(range(10, 20)), list(range(20, 25))]


def test_garbage_is_looked_for_as_usual_once_batches_are_made() -> None:
    usual = gc.get_threshold()
    gc.unfreeze()
    environment.collect_rarely()
    assert gc.get_threshold() == (1000 * usual[0], *usual[1:])
    try:
        with loader([frame(0, 5)]) as batches:
            assert gc.get_threshold() == usual
            frozen = gc.get_freeze_count()
            assert frozen  # what was there stays
            assert len(list(batches)) == 1
        with loader([frame(0, 5)]):  # what is there by now may go
            assert gc.get_freeze_count() <= frozen
    finally:
        gc.freeze()  # as the tests' own start left it


def test_torchdata_takes_it_as_its_own() -> None:
    """With nodes of theirs behind it, and their way to save and go on."""
    with loader([frame(0, 45)]) as made:
        theirs = NodeLoader(Mapper(TorchdataNode(made.root), values))
        loop = iter(theirs)
        first = [next(loop), next(loop)]
        state = theirs.state_dict()
    with loader([frame(0, 45)]) as made:
        theirs = NodeLoader(Mapper(TorchdataNode(made.root), values))
        theirs.load_state_dict(state)
        assert [row for batch in [*first, *theirs] for row in batch] == list(range(45))
    with loader([frame(0, 45)]) as made:
        own = made.torchdata()
        assert isinstance(own, NodeLoader)
        assert [len(batch) for batch in own] == [10, 10, 10, 10, 5]


def test_the_mark_is_after_the_batch_in_hand() -> None:
    with loader([frame(0, 95)]) as batches:
        marks = [batch.mark.positions for batch in batches]
    assert marks == [{"memory": n} for n in (10, 20, 30, 40, 50, 60, 70, 80, 90, 95)]


@settings(max_examples=examples(25), deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 12))
def test_saved_anywhere_and_restored_the_rest_is_the_same(
    sizes: list[int], rows: int, taken: int
) -> None:
    ends = np.cumsum([0, *sizes]).tolist()
    items = [frame(a, b) for a, b in itertools.pairwise(ends)]
    with loader(items, rows) as whole:
        everything = [values(batch) for batch in whole]
    first = loader(items, rows)
    got: list[list[int]] = []
    for batch in first:
        if len(got) == taken:
            break
        got.append(values(batch))
        state = first.state_dict()
    else:
        state = first.state_dict()
    first.close()
    if not got:
        return
    with loader(items, rows) as second:
        second.load_state_dict(state)
        rest = [values(batch) for batch in second]
    assert got + rest == everything


def test_the_state_is_the_batch_in_hand_not_what_was_read_ahead() -> None:
    with loader([frame(0, 100)]) as batches:
        loop = iter(batches)
        batch = next(loop)
        state = batches.state_dict()
        assert state is not None
        assert state["positions"] == batch.mark.positions == {"memory": 10}


@pytest.mark.parametrize("error", [ValueError("bad"), HeadraceError("bad"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [0, 3])
def test_an_error_in_the_source_comes_after_the_batches_before_it(
    error: BaseException, at: int
) -> None:
    items = [*(frame(10 * i, 10 * i + 10) for i in range(at)), Fault(error), frame(90, 99)]
    with loader(items) as batches:
        loop = iter(batches)
        got = [values(next(loop)) for _ in range(at)]
        for _ in range(3):  # and again, every time: it never becomes an end of stream
            with pytest.raises(type(error)) as caught:
                next(loop)
            assert caught.value is error
    assert got == [list(range(10 * i, 10 * i + 10)) for i in range(at)]


class Failing(Stage):
    """A stage that raises at its third batch."""

    def __init__(self, error: BaseException) -> None:
        super().__init__("failing", None)
        self.error = error
        self.batches = 0

    def apply(self, batch: Batch) -> Batch:
        self.batches += 1
        if self.batches == 3:
            raise self.error
        return batch


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3)])
def test_an_error_in_a_stage_reaches_the_loop(error: BaseException) -> None:
    source = MemorySource.of([frame(0, 100)])
    made = LoaderSettings(batch_rows=10)
    with Loader(source, schema=SCHEMA, stages=[Failing(error)], settings=made) as batches:
        loop = iter(batches)
        assert [len(next(loop)) for _ in range(2)] == [10, 10]
        with pytest.raises(type(error)) as caught:
            next(loop)
        assert caught.value is error


def test_a_hundred_exits_are_clean() -> None:
    for number in range(100):
        items: list[Any] = [
            frame(0, 50),
            Fault(ValueError("x")) if number % 2 else frame(50, 9_999),
        ]
        made = loader(items, rows=1 + number % 7)
        loop = iter(made)
        for _ in range(number % 4):
            next(loop)
        made.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("headrace-")]


class Waiting(MemorySource):
    """Gives its rows, then nothing, until it is told to end."""

    def __init__(self, items: list[Any]) -> None:
        super().__init__(self.Settings(items=items))
        self.end = threading.Event()

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        try:
            return super().read(max_rows, max_bytes, timeout)
        except EndOfStream:
            if self.end.wait(timeout):
                raise
            return None


def test_a_forgotten_loader_stops_by_itself() -> None:
    source = Waiting([frame(0, 100)])  # which by itself would never end
    made = Loader(source, schema=SCHEMA, settings=LoaderSettings(batch_rows=10, poll_timeout=0.01))
    next(iter(made))
    del made  # the fixture sees that the threads end


@pytest.mark.parametrize("delay", [0, 0.05])
def test_a_batch_that_does_not_fill_goes_after_max_delay(delay: float) -> None:
    source = Waiting([frame(0, 14)])
    made = LoaderSettings(batch_rows=10, max_delay=delay, poll_timeout=0.01)
    with Loader(source, schema=SCHEMA, settings=made) as batches:
        loop = iter(batches)
        assert [values(next(loop)) for _ in range(2)] == [list(range(10)), list(range(10, 14))]
        source.end.set()
        assert [batch for batch in loop if len(batch)] == []


class OneByOne(Waiting):
    """Gives rows one by one, the first few not before the batch of the one before is closed.

    Attributes:
        given: set once all of them are on their way.
    """

    def __init__(self, rows: int, metrics: Metrics) -> None:
        super().__init__([frame(n, n + 1) for n in range(rows)])
        self.given = threading.Event()
        self._metrics = metrics

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        until(lambda: self._closed() >= min(self.reads, 2))
        if self.reads >= len(self.items):
            self.given.set()
        return super().read(max_rows, max_bytes, timeout)

    def _closed(self) -> float:
        closed = self._metrics.batches_closed
        return sum(float(closed.labels(reason=r)._value.get()) for r in ("delay", "deadline"))


@pytest.mark.parametrize(
    "given", [{"max_delay": 0}, {"max_delay": "1ms"}, {"latency_objective": 0.001}]
)
def test_what_arrives_while_the_model_is_at_work_joins_the_next_batch(
    given: dict[str, Any],
) -> None:
    """One batch in the model's hand, one that is ready, and the rest in one: a batch of its own
    for each row would be in the way of those behind it."""
    metrics = Metrics()
    source = OneByOne(50, metrics)
    made = LoaderSettings(batch_rows=100, poll_timeout=0.01, **given)
    with Loader(source, schema=SCHEMA, settings=made, metrics=metrics) as batches:
        loop = iter(batches)
        first = next(loop)
        until(source.given.is_set)
        assert [values(batch) for batch in (first, next(loop), next(loop))] == [
            [0], [1], list(range(2, 50)),
        ]  # fmt: skip
        source.end.set()


def test_an_idle_stream_gives_empty_batches_that_hold_the_mark(
    idle: pytest.MonkeyPatch,
) -> None:
    idle.undo()
    source = Waiting([frame(0, 10)])
    made = LoaderSettings(batch_rows=10, poll_timeout=0.01)
    with Loader(source, schema=SCHEMA, settings=made) as batches:
        loop = iter(batches)
        assert len(next(loop)) == 10
        empty = next(loop)
        assert len(empty) == 0
        assert empty.frame.schema == {"_partition": pl.String, "_position": pl.Int64, **SCHEMA}
        assert empty.mark.positions == {"memory": 10}


class Endless(Waiting):
    """The same, and says that more may come at any time."""

    def unbounded(self) -> bool:
        return True


def test_rows_of_an_endless_source_do_not_wait_for_a_full_batch(
    idle: pytest.MonkeyPatch,
) -> None:
    """With the defaults; a bounded source fills its batches, however long that takes."""
    idle.undo()
    source = Endless([frame(0, 3)])
    with Loader(source, schema=SCHEMA) as batches:
        assert values(next(batch for batch in batches if len(batch))) == [0, 1, 2]
        source.end.set()
    bounded = Waiting([frame(0, 3), Pause(), frame(3, 8)])
    with Loader(bounded, schema=SCHEMA, settings=LoaderSettings(poll_timeout=0.01)) as batches:
        loop = iter(batches)
        assert values(next(loop)) == []  # idle: the loop may act, the rows wait for others
        bounded.end.set()
        assert [values(batch) for batch in loop if len(batch)] == [list(range(8))]


@pytest.mark.parametrize(
    ("given", "delay"),
    [
        ({}, BATCH_DELAY),
        ({"max_delay": "2h"}, 7_200.0),
        ({"max_delay": 0}, 0.0),
        ({"latency_objective": 0.5}, None),
        ({"shuffle_rows": 100}, BLOCK_DELAY),
    ],
)
def test_how_long_a_record_of_an_endless_source_waits(
    given: dict[str, Any], delay: float | None
) -> None:
    made = LoaderSettings(**given)
    assert made.of(unbounded=True).max_delay == delay
    assert made.of(unbounded=False) == made


def test_an_endless_source_makes_its_mix_endless() -> None:
    bounded, unbounded = MemorySource.of([frame(0, 1)]), Endless([frame(0, 1)])
    assert not Mix(Mix.Settings(), {"a": (bounded, 1.0)}).unbounded()
    assert Mix(Mix.Settings(), {"a": (bounded, 1.0), "b": (unbounded, 1.0)}).unbounded()


class Gapped(Waiting):
    """Three rows, then a gap that a transaction's end leaves, and nothing more."""

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        found = super().read(max_rows, max_bytes, timeout)
        if found is None and not self.gap:
            self.gap = True
            none = np.empty(0, np.int64)
            return Records(
                partition="memory", positions=none, next=5, values=frame(0, 0),
                arrived=time.monotonic(),
            )  # fmt: skip
        return found

    gap = False


def test_while_rows_wait_the_mark_stays_before_them(
    idle: pytest.MonkeyPatch,
) -> None:
    """An idle loop commits what it holds: not a row that still waits, nor a gap behind it."""
    idle.undo()
    source = Gapped([frame(0, 3)])
    made = LoaderSettings(batch_rows=10, max_delay=3_600, poll_timeout=0.01)
    with Loader(source, schema=SCHEMA, settings=made) as batches:
        loop = iter(batches)
        seen: list[tuple[list[int], dict[str, int]]] = []
        while not seen or not seen[-1][0]:
            batch = next(loop)
            seen.append((values(batch), dict(batch.mark.positions)))
            source.end.set()  # only then do the three rows go
    *before, last = seen
    assert before
    assert all(not mark for _, mark in before)
    assert last == ([0, 1, 2], {"memory": 5})


class EndsInGap(MemorySource):
    """Rows, then a gap as of records that are passed over, then the end."""

    gap = False

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        try:
            return super().read(max_rows, max_bytes, timeout)
        except EndOfStream:
            if self.gap:
                raise
            self.gap = True
            end, none = 9, np.empty(0, np.int64)
            return Records(
                partition="memory", positions=none, next=end, values=frame(0, 0),
                arrived=time.monotonic(),
            )  # fmt: skip


@pytest.mark.parametrize("rows", [0, 3, 4])
def test_a_gap_at_the_end_is_behind_the_last_mark(rows: int) -> None:
    """With the last rows, or in a batch without any: nothing of it is read again."""
    source = EndsInGap(EndsInGap.Settings(items=[frame(0, rows)] if rows else []))
    with Loader(source, schema=SCHEMA, settings=LoaderSettings(batch_rows=4)) as batches:
        seen = [(values(batch), dict(batch.mark.positions)) for batch in batches]
    assert [at for own, _ in seen for at in own] == list(range(rows))
    assert seen[-1][1] == {"memory": 9}


def test_it_says_since_when_a_source_owes_an_answer(
    idle: pytest.MonkeyPatch,
) -> None:
    """What hangs is told from what has nothing to give."""

    idle.undo()

    class Hanging(Waiting):
        def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
            hung.set()
            self.end.wait()
            raise EndOfStream

    hung = threading.Event()
    source = Hanging([])
    before = time.monotonic()
    with Loader(source, schema=SCHEMA) as batches:
        loop = iter(batches)
        assert hung.wait(HANG)
        read_started = batches.read_started
        assert before <= read_started <= time.monotonic()
        assert [len(next(loop)) for _ in range(3)] == [0, 0, 0]
        assert batches.read_started == read_started
        source.end.set()
    assert batches.read_started > read_started


def test_an_empty_source_ends_at_once() -> None:
    with loader([]) as batches:
        assert list(batches) == []


def test_each_loop_starts_anew() -> None:
    with loader([frame(0, 20)]) as batches:
        first = [values(batch) for batch in batches]
        assert [values(batch) for batch in batches] == first


def test_batches_carry_tensors_and_times() -> None:
    collate = Collate(Features(numeric=("a",), target="a"))
    source = MemorySource.of([frame(0, 20)])
    with Loader(source, schema=SCHEMA, collate=collate.apply) as batches:
        (batch,) = batches
    assert batch.tensors is not None
    assert batch.tensors.numeric[:, 0].tolist() == list(range(20))
    assert 0 < batch.arrived <= batch.ready
    assert batch.raw_bytes >= 20 * 8


class Sized(MemorySource):
    """Rows whose one value has a given size, made when they are read."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(self.Settings(items=[]))
        self.sizes = sizes
        self.at = 0

    def seek(self, mark: Mark) -> None:
        self.at = mark.positions.get("memory", 0)

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        if self.at == len(self.sizes):
            raise EndOfStream
        values_ = np.zeros(self.sizes[self.at] // 8)
        self.at += 1
        return Records(
            partition="memory",
            positions=np.array([self.at - 1]),
            next=self.at,
            values=pl.DataFrame({"a": [values_]}, schema={"a": pl.List(pl.Float64)}),
            arrived=time.monotonic(),
        )


class Items(Node[Any]):
    """Arrays of given sizes, each made when it is asked for."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.at = 0

    def reset(self, initial_state: dict[str, Any] | None = None) -> None:
        super().reset(initial_state)
        self.at = 0

    def next(self) -> Any:
        if self.at == len(self.sizes):
            raise StopIteration
        self.at += 1
        return np.ones(self.sizes[self.at - 1], np.uint8)

    def get_state(self) -> dict[str, Any]:
        return {"at": self.at}

    def close(self) -> None: ...


def skewed(n: int, largest: int) -> list[int]:
    """Sizes from 1 kB up, a row of the largest among them."""
    rng = np.random.default_rng(3)
    sizes: list[int] = np.exp(rng.uniform(np.log(1 << 10), np.log(largest), n)).astype(int).tolist()
    sizes[5:9] = [largest] * 4
    return sizes


class Attended(Wakeup):
    """A wakeup that knows whether somebody waits."""

    attended = False

    def wait(self, timeout: float | None = None) -> None:
        self.attended = True
        super().wait(timeout)
        self.attended = False


def test_prefetch_holds_the_budget_and_one_item_at_most() -> None:
    """Items of 1 kB to 32 MB at a budget of 64 MiB, a consumer that lets the queue fill up."""
    largest, total = 32 << 20, 64 << 20
    budget = Budget(total)
    wakeup = Attended()

    def channel() -> Channel[Any]:
        made: Channel[Any] = Channel("items", budget, lambda taken: int(taken[0].nbytes))
        made._account.wakeup = wakeup
        return made

    node: PrefetchNode[Any] = PrefetchNode(Items(skewed(200, largest)), channel, "items")
    tracemalloc.start()
    node.reset()
    seen = 0
    while True:
        until(lambda: wakeup.attended or node.channel is None or node.channel._end is not None)
        try:
            item = node.next()
        except StopIteration:
            break
        seen += 1
        del item
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    node.close()
    assert seen == 200
    assert budget.peak >= total / 2  # it did fill up
    assert peak <= total + largest + (1 << 20)


def test_a_loaders_two_queues_share_one_budget() -> None:
    largest, total = 4 << 20, 16 << 20
    made = LoaderSettings(batch_rows=1, memory_budget=ByteSize(total))
    schema: Schema = {"a": pl.List(pl.Float64())}
    with Loader(Sized(skewed(60, largest)), schema=schema, settings=made) as batches:
        assert sum(len(batch) > 0 for batch in batches) == 60  # a pause gives one without rows
    assert batches.budget.peak <= total + largest
    assert batches.budget.used == batches.budget.held()["threads"] == total // 64


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3_000), min_size=1, max_size=60),
    limit=st.integers(500, 6_000),
    read_rows=st.integers(1, 20),
    start=st.integers(0, 60),
)
def test_batches_are_cut_by_bytes_wherever_reading_began(
    sizes: list[int], limit: int, read_rows: int, start: int
) -> None:
    """As many whole records as fit, at least one: the same ones, however they were read."""
    rows = pl.DataFrame({"a": ["x" * n for n in sizes]})
    made = LoaderSettings(batch_rows=10, batch_bytes=ByteSize(limit), read_rows=read_rows)

    def cut(mark: Mark) -> list[int]:
        source = MemorySource.of([rows])
        with Loader(source, schema={"a": pl.String()}, settings=made, mark=mark) as batches:
            return [batch.mark.positions["memory"] for batch in batches]

    ends = cut(Mark())
    for first, end in itertools.pairwise([0, *ends]):
        size = sum(sizes[first:end])
        assert size <= limit or end - first == 1
        if end < len(sizes):
            assert end - first == 10 or size + sizes[end] > limit or size == limit
    begin = ends[start % len(ends)]
    assert cut(Mark(positions={"memory": begin})) == [end for end in ends if end > begin]


def test_one_queue_can_be_fixed_by_hand() -> None:
    made = LoaderSettings(batch_rows=1, prefetch_bytes=ByteSize(5_000))
    metrics = Metrics()
    schema: Schema = {"a": pl.List(pl.Float64())}
    with Loader(Sized([4_000] * 9), schema=schema, settings=made, metrics=metrics) as batches:
        assert sum(1 for _ in batches) == 9
        page = metrics.exposition()[0].decode()
    assert 'headrace_queue_depth_bytes{queue="raw"} 5000.0' in page
    assert 'headrace_queue_depth_bytes{queue="prepared"} 5000.0' in page


class Patient(Format):
    """A format whose decode waits for somebody else, until it is woken."""

    def __init__(self) -> None:
        self.called, self.woken = threading.Event(), threading.Event()

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        self.called.set()
        assert self.woken.wait(HANG)
        raise HeadraceError("nobody answered")

    def interrupt(self) -> None:
        self.woken.set()

    def resume(self) -> None:
        self.woken.clear()


def test_a_loader_that_ends_wakes_a_format_that_waits() -> None:
    source, format = MemorySource.of([frame(0, 10)]), Patient()
    source.format = format
    batches = Loader(
        source, schema=SCHEMA, settings=LoaderSettings(batch_rows=10, poll_timeout=0.01)
    )

    def take() -> None:
        with pytest.raises(Closed):
            next(iter(batches))

    taking = threading.Thread(target=take)
    taking.start()
    assert format.called.wait(HANG)
    batches.interrupt()
    taking.join()
    batches.close()
    assert format.woken.is_set()
