"""Every sentence of the channel's contract, by its number in `engine/loading/channel.py`."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import linecache
import signal
import sys
import threading
import traceback
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.loading.budget import Budget, Wakeup
from engine.loading.channel import Channel, Closed, Empty
from engine.types import EndOfStream
from tests.size import examples
from tests.waiting import HANG


class Announcing(Wakeup):
    """A wakeup that tells when somebody starts to wait. A notification after that is never lost."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()

    def wait(self, timeout: float | None = None) -> None:
        self.waiting.set()
        super().wait(timeout)


class Work(threading.Thread):
    """A thread that keeps what its function returned or raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._result: object = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:  # noqa: BLE001 - told to the test by `result`
            self._error = error

    def result(self) -> object:
        self.join(HANG)
        assert not self.is_alive(), "the thread hangs"
        if self._error is not None:
            raise self._error
        return self._result


def announce(channel: Channel[int]) -> tuple[threading.Event, threading.Event]:
    """Events that are set when a put, and when a get, starts to wait."""
    room, filled = Announcing(), Announcing()
    channel._account.wakeup, channel._filled = room, filled
    return room.waiting, filled.waiting


def ints(total: int, max_items: int | None = None, share: float = 1.0) -> Channel[int]:
    """A channel of numbers, each as many bytes as it says."""
    return Channel("raw", Budget(total), int, max_items, share=share)


def drain(channel: Channel[int]) -> Iterator[int]:
    with contextlib.suppress(EndOfStream):
        while True:
            yield channel.get(HANG)


# -------------------------------------------------------------------------------- 1 order and count


def test_items_come_out_in_order_each_once() -> None:
    channel = ints(100)
    for size in (3, 1, 2, 1):
        channel.put(size)
    channel.finish()
    assert list(drain(channel)) == [3, 1, 2, 1]


@settings(max_examples=examples(60), deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=40),
    total=st.integers(1, 80),
    max_items=st.none() | st.integers(1, 4),
    share=st.sampled_from([0.1, 0.5, 1.0]),
    delays=st.booleans(),
)
def test_nothing_is_lost_doubled_or_held_too_long(
    sizes: list[int], total: int, max_items: int | None, share: float, delays: bool
) -> None:
    channel = ints(total, max_items, share)
    budget = channel._budget
    used: list[int] = []

    def produce() -> None:
        for size in sizes:
            channel.put(size)
            used.append(budget.used)
        channel.finish()

    producer = Work(produce)
    got: list[int] = []
    with contextlib.suppress(EndOfStream):
        while True:
            with contextlib.suppress(Empty):
                got.append(channel.get(0.0005 if delays else HANG))
    producer.result()
    assert got == sizes
    assert budget.peak <= max([total, *sizes])
    assert budget.peak <= max([int(total * share), *sizes])
    assert (budget.used, channel.nbytes, len(channel)) == (0, 0, 0)


@settings(max_examples=examples(40), deadline=None)
@given(
    sizes=st.lists(st.integers(0, 60), max_size=30),
    total=st.integers(1, 50),
    group=st.integers(1, 4),
)
def test_two_channels_on_one_budget_never_block_each_other(
    sizes: list[int], total: int, group: int
) -> None:
    """Producer -> raw -> a thread that keeps `group_id` items and says so -> ready -> consumer."""
    budget = Budget(total)
    raw = Channel[int]("raw", budget, int)
    ready = Channel[list[int]]("ready", budget, sum)

    def produce() -> None:
        for size in sizes:
            raw.put(size)
        raw.finish()

    def regroup() -> None:
        kept: list[int] = []
        for size in drain(raw):
            budget.acquire("group", size)
            kept.append(size)
            if len(kept) == group:
                budget.release("group", sum(kept))
                ready.put(kept)
                kept = []
        budget.release("group", sum(kept))
        ready.put(kept)
        ready.finish()

    threads = [Work(produce), Work(regroup)]
    got: list[int] = []
    with contextlib.suppress(EndOfStream):
        while True:
            got += ready.get(HANG)
    for thread in threads:
        thread.result()
    assert got == sizes
    largest = max(sizes, default=0)
    assert budget.peak <= total + largest * (1 + 2 * group)
    assert set(budget.held().values()) <= {0}


# ---------------------------------------------------------------------------------- 2 back-pressure


def test_put_waits_until_the_item_fits() -> None:
    channel = ints(10)
    put_waits, _ = announce(channel)
    channel.put(6)
    producer = Work(lambda: channel.put(5))
    assert put_waits.wait(HANG)
    assert (len(channel), channel.nbytes) == (1, 6)
    assert channel.get(HANG) == 6
    assert channel.get(HANG) == 5
    producer.result()
    assert channel.put_wait_seconds > 0


def test_room_given_back_by_another_holder_wakes_a_put() -> None:
    channel = ints(10)
    budget = channel._budget
    put_waits, _ = announce(channel)
    budget.acquire("sink", 8)
    channel.put(1)
    producer = Work(lambda: channel.put(2))
    assert put_waits.wait(HANG)
    budget.release("sink", 1)
    producer.result()
    assert budget.held() == {"sink": 7, "raw": 3}


def test_a_poke_ends_the_wait_of_a_get_or_of_the_next_that_waits() -> None:
    channel = ints(100)
    channel.poke()
    channel.put(1)
    assert channel.get() == 1  # there was no need to wait
    with pytest.raises(Empty):
        channel.get(HANG)
    channel.finish()
    channel.poke()
    for _ in range(2):
        with pytest.raises(EndOfStream):
            channel.get(HANG)


def test_put_waits_while_max_items_are_waiting() -> None:
    channel = ints(1_000, max_items=2)
    put_waits, _ = announce(channel)
    channel.put(1)
    channel.put(2)
    producer = Work(lambda: channel.put(3))
    assert put_waits.wait(HANG)
    assert len(channel) == 2
    assert channel.get(HANG) == 1
    producer.result()
    assert len(channel) == 2


def test_a_channel_fills_its_share_and_leaves_the_rest() -> None:
    budget = Budget(100)
    raw = Channel[int]("raw", budget, int, share=0.5)
    ready = Channel[int]("ready", budget, int)
    put_waits, _ = announce(raw)
    raw.put(50)
    producer = Work(lambda: raw.put(1))
    assert put_waits.wait(HANG)
    ready.put(20)
    ready.put(30)
    assert budget.held() == {"raw": 50, "ready": 50}
    assert raw.get(HANG) == 50
    assert raw.get(HANG) == 1
    producer.result()


# ------------------------------------------------------------------------------------------ 3 empty


def test_an_empty_channel_accepts_an_item_bigger_than_the_budget() -> None:
    channel = ints(10)
    channel.put(1_000)
    assert channel.get(HANG) == 1_000
    assert channel._budget.peak == 1_000


def test_an_empty_channel_accepts_one_item_although_others_fill_the_budget() -> None:
    budget = Budget(10)
    other = Channel[int]("other", budget, int)
    channel = Channel[int]("raw", budget, int)
    other.put(10)
    channel.put(10)
    put_waits, _ = announce(channel)
    producer = Work(lambda: channel.put(1))
    assert put_waits.wait(HANG), "only one item"
    assert channel.get(HANG) == 10
    assert channel.get(HANG) == 1
    producer.result()


def test_a_channel_is_not_empty_while_the_consumer_holds_an_item() -> None:
    channel = ints(10)
    put_waits, _ = announce(channel)
    channel.put(100)
    assert channel.get(HANG) == 100
    producer = Work(lambda: channel.put(200))
    assert put_waits.wait(HANG)
    assert (len(channel), channel.nbytes) == (0, 100)
    assert channel.get(HANG) == 200
    producer.result()
    assert channel._budget.peak == 200


# ---------------------------------------------------------------------------- 4 the consumer's hand


def test_bytes_are_held_until_the_next_item_is_asked_for() -> None:
    channel = ints(10)
    channel.put(4)
    channel.put(3)
    assert channel.get(HANG) == 4
    assert channel._budget.held() == {"raw": 7}
    assert channel.get(HANG) == 3
    assert channel._budget.held() == {"raw": 3}
    with pytest.raises(Empty):
        channel.get(0)
    assert channel._budget.held() == {"raw": 0}


def test_the_channel_itself_keeps_no_reference_to_what_it_gave_away() -> None:
    class Item:
        pass

    channel = Channel[Item]("raw", Budget(10), lambda item: 1)
    channel.put(Item())
    alive = weakref.ref(channel.get(HANG))
    gc.collect()
    assert alive() is None
    assert channel.nbytes == 1


# -------------------------------------------------------------------------------------- 5 the bound


def test_memory_stays_at_the_budget_plus_one_item() -> None:
    total, largest = 16 << 20, 8 << 20
    sizes = [largest if i % 3 == 0 else 1_000 * (i % 50 + 1) for i in range(150)]
    channel = Channel[bytearray]("raw", Budget(total), len)

    def produce() -> None:
        for size in sizes:
            channel.put(bytearray(size))
        channel.finish()

    tracemalloc.start()
    producer = Work(produce)
    received = 0
    with contextlib.suppress(EndOfStream):
        while True:
            received += len(channel.get(HANG))
    producer.result()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert received == sum(sizes)
    assert channel._budget.peak <= total
    assert peak <= total + largest + (1 << 20)


# ---------------------------------------------------------------------------------------- 6 waiting


@pytest.mark.parametrize("timeout", [0.01, 0.0, -1.0])
def test_get_raises_empty_at_its_timeout_and_can_ask_again(timeout: float) -> None:
    channel = ints(10)
    with pytest.raises(Empty):
        channel.get(timeout)
    channel.put(2)
    assert channel.get(timeout) == 2


def test_a_waiting_get_wakes_when_an_item_comes() -> None:
    channel = ints(10)
    _, get_waits = announce(channel)
    consumer = Work(channel.get)
    assert get_waits.wait(HANG)
    channel.put(7)
    assert consumer.result() == 7
    assert channel.get_wait_seconds > 0


def test_observers_hear_every_hop_and_how_long_it_waited() -> None:
    puts: list[float] = []
    gets: list[float] = []
    channel = Channel[int]("raw", Budget(10), int, on_put_wait=puts.append, on_get_wait=gets.append)
    channel.put(1)
    channel.get(HANG)
    with pytest.raises(Empty):
        channel.get(0.01)
    assert puts == [0.0]
    assert gets[0] == 0.0
    assert gets[1] >= 0.01
    assert (sum(puts), sum(gets)) == (channel.put_wait_seconds, channel.get_wait_seconds)


# ---------------------------------------------------------------------------------------- 7 the end


def test_after_finish_the_rest_then_the_end_for_ever() -> None:
    channel = ints(10)
    channel.put(1)
    channel.finish()
    assert channel.get() == 1
    for _ in range(3):
        with pytest.raises(EndOfStream):
            channel.get()
    assert channel._budget.used == 0


def test_a_waiting_get_wakes_at_the_end() -> None:
    channel = ints(10)
    _, get_waits = announce(channel)
    consumer = Work(channel.get)
    assert get_waits.wait(HANG)
    channel.finish()
    with pytest.raises(EndOfStream):
        consumer.result()


# ---------------------------------------------------------------------------------------- 8 failure


def failure(error: BaseException) -> BaseException:
    """The error as it is after it was raised somewhere deep."""

    def deep_in_the_source() -> None:
        raise error

    try:
        deep_in_the_source()
    except BaseException as caught:  # noqa: BLE001 - this is what a producer does
        return caught
    raise AssertionError


@pytest.mark.parametrize(
    "error", [ValueError("torn"), KeyboardInterrupt(), SystemExit(3), StopIteration(), Empty()]
)
def test_after_fail_the_items_before_it_then_that_error_for_ever(error: BaseException) -> None:
    channel = ints(10)
    channel.put(1)
    channel.put(2)
    channel.fail(failure(error))
    assert [channel.get(), channel.get()] == [1, 2]
    lengths = set()
    for _ in range(3):
        with pytest.raises(type(error)) as caught:
            channel.get()
        assert caught.value is error
        frames = traceback.extract_tb(error.__traceback__)
        assert any(frame.name == "deep_in_the_source" for frame in frames)
        lengths.add(len(frames))
    assert len(lengths) == 1, "the traceback must not grow"


def test_a_waiting_get_wakes_at_a_failure() -> None:
    channel = ints(10)
    _, get_waits = announce(channel)
    consumer = Work(channel.get)
    assert get_waits.wait(HANG)
    channel.fail(OSError("disk gone"))
    with pytest.raises(OSError, match="disk gone"):
        consumer.result()


def test_the_first_end_counts() -> None:
    channel = ints(10)
    channel.fail(OSError("first"))
    channel.fail(ValueError("second"))
    channel.finish()
    with pytest.raises(OSError, match="first"):
        channel.get()
    other = ints(10)
    other.finish()
    other.fail(OSError("too late"))
    with pytest.raises(EndOfStream):
        other.get()


def test_a_put_after_the_end_is_our_mistake() -> None:
    channel = ints(10)
    channel.finish()
    with pytest.raises(AssertionError, match="after the end of channel raw"):
        channel.put(1)
    assert channel._budget.used == 0


# ---------------------------------------------------------------------------------------- 9 closing


def test_close_wakes_a_waiting_put_and_gives_all_bytes_back() -> None:
    channel = ints(10)
    budget = channel._budget
    put_waits, _ = announce(channel)
    channel.put(6)
    channel.put(4)
    assert channel.get() == 6
    producer = Work(lambda: channel.put(9))
    assert put_waits.wait(HANG)
    channel.close()
    with pytest.raises(Closed):
        producer.result()
    assert (budget.used, channel.nbytes, len(channel)) == (0, 0, 0)


def test_close_wakes_a_waiting_get() -> None:
    channel = ints(10)
    _, get_waits = announce(channel)
    consumer = Work(channel.get)
    assert get_waits.wait(HANG)
    channel.close()
    with pytest.raises(Closed):
        consumer.result()


def test_everything_after_close_raises_closed_or_does_nothing() -> None:
    channel = ints(10)
    channel.put(1)
    channel.close()
    channel.close()
    channel.finish()
    channel.fail(OSError("nobody listens"))
    for _ in range(2):
        with pytest.raises(Closed):
            channel.put(1)
        with pytest.raises(Closed):
            channel.get()
    assert channel.closed
    assert channel._budget.held() == {"raw": 0}


def test_close_gives_room_to_the_other_channels() -> None:
    budget = Budget(10)
    closing = Channel[int]("closing", budget, int)
    staying = Channel[int]("staying", budget, int)
    put_waits, _ = announce(staying)
    staying.put(1)
    closing.put(9)
    producer = Work(lambda: staying.put(5))
    assert put_waits.wait(HANG)
    closing.close()
    producer.result()
    assert budget.held() == {"closing": 0, "staying": 6}


@settings(max_examples=examples(40), deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), min_size=1, max_size=30),
    total=st.integers(1, 60),
    stop=st.integers(0, 30),
)
def test_closing_at_any_moment_leaves_nothing_behind(
    sizes: list[int], total: int, stop: int
) -> None:
    channel = ints(total)

    def produce() -> bool:
        try:
            for size in sizes:
                channel.put(size)
        except Closed:
            return False
        channel.finish()
        return True

    producer = Work(produce)
    got = [size for _, size in zip(range(stop), drain(channel), strict=False)]
    channel.close()
    assert producer.result() in (True, False)
    assert got == sizes[: len(got)]
    assert len(got) == min(stop, len(sizes))
    assert (channel._budget.used, channel.nbytes, len(channel)) == (0, 0, 0)


def test_a_close_inside_the_channels_own_lock_does_not_deadlock() -> None:
    """What a finalizer does when the collector runs while its thread is inside a channel."""
    budget = Budget(10)
    doomed = Channel[int]("doomed", budget, int)
    doomed.put(3)

    def finalize() -> None:
        with budget.lock:
            doomed.close()

    Work(finalize).result()
    assert budget.used == 0


# ---------------------------------------------------------------------------------- 10 interruption


@contextlib.contextmanager
def interrupt_when(waiting: threading.Event) -> Iterator[None]:
    """Ctrl-C for this thread as soon as it waits."""
    target, caught = threading.get_ident(), threading.Event()

    def handle(*_: object) -> None:
        if not caught.is_set():
            caught.set()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)

    def send() -> None:
        assert waiting.wait(HANG)
        signal.pthread_kill(target, signal.SIGINT)
        while not caught.wait(0.05):  # one that comes just before the sleep does not end it
            signal.pthread_kill(target, signal.SIGINT)

    sender = Work(send)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        sender.result()
        signal.signal(signal.SIGINT, before)


def test_an_interrupted_put_leaves_the_channel_as_it_was() -> None:
    channel = ints(10)
    put_waits, _ = announce(channel)
    channel.put(6)
    with interrupt_when(put_waits):
        channel.put(7)
    assert (channel._budget.used, len(channel)) == (6, 1)
    channel.finish()
    assert list(drain(channel)) == [6]


def test_an_interrupted_get_leaves_the_channel_as_it_was() -> None:
    channel = ints(10)
    _, get_waits = announce(channel)
    with interrupt_when(get_waits):
        channel.get()
    channel.put(3)
    assert channel.get(HANG) == 3
    channel.close()
    assert channel._budget.used == 0


class Interrupt(BaseException):
    pass


def source(frame: FrameType) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


def at_line(number: int, action: Callable[[], None]) -> Callable[..., Any]:
    """A trace function that does something before the line of that number (counted as they run) of
    the channel's and the ledger's code: what a signal handler or the collector may do."""
    count = [number]

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.endswith(("channel.py", "budget.py")):
            return None
        # Python itself lets nothing in between a `with` block's last line and the lock's release.
        if event == "line" and not source(frame).startswith("with "):
            count[0] -= 1
            if count[0] == 0:
                sys.settrace(None)
                action()
        return trace

    return trace


def hop(channel: Channel[int]) -> None:
    """Every operation there is, with an item in the hand and another waiting."""
    channel.put(2)
    channel.put(3)
    channel.get(0)
    channel.get(0)
    with contextlib.suppress(Empty):
        channel.get(0)


def put_all(channel: Channel[int], sizes: list[int]) -> None:
    for size in sizes:
        channel.put(size)


def everywhere(
    action: Callable[[Channel[int]], None], work: Callable[[Channel[int]], None]
) -> Iterator[Channel[int]]:
    """A fresh channel for every line at which the action can slip into the work, after that."""
    fired = 0

    def fire() -> None:
        nonlocal fired
        fired += 1
        action(channel)

    for line in itertools.count(1):
        channel = ints(10, max_items=2)
        before = sys.gettrace()
        sys.settrace(at_line(line, fire))
        try:
            with contextlib.suppress(Closed, Interrupt):
                work(channel)
        finally:
            sys.settrace(before)
        if fired < line:
            break
        yield channel
    assert fired > 80


def test_a_close_that_slips_in_anywhere_leaves_nothing_behind() -> None:
    for channel in everywhere(Channel.close, hop):
        channel.close()
        assert (channel._budget.used, channel.nbytes, len(channel)) == (0, 0, 0)
        assert channel._budget.held() == {"raw": 0}
        with pytest.raises(Closed):
            channel.get()


def test_after_an_interrupt_anywhere_close_wakes_the_other_side() -> None:
    def interrupt(_: Channel[int]) -> None:
        raise Interrupt

    for channel in everywhere(interrupt, hop):
        put_waits, _ = announce(channel)
        producer = Work(functools.partial(put_all, channel, [9, 9, 9]))
        assert put_waits.wait(HANG)
        channel.close()
        with pytest.raises(Closed):
            producer.result()
        assert (channel._budget.used, channel.nbytes, len(channel)) == (0, 0, 0)


def test_a_size_that_cannot_be_taken_leaves_the_channel_as_it_was() -> None:
    channel = Channel[list[int]]("raw", Budget(10), lambda item: item[0])
    with pytest.raises(IndexError):
        channel.put([])
    with pytest.raises(AssertionError, match="size_of gave -1 bytes"):
        channel.put([-1])
    channel.put([2])
    assert channel.get(HANG) == [2]


@pytest.mark.parametrize("options", [{"max_items": 0}, {"share": 0.0}, {"share": 1.5}])
def test_bounds_that_make_no_sense_are_our_mistakes(options: dict[str, float]) -> None:
    with pytest.raises(AssertionError, match=next(iter(options))):
        Channel[int]("raw", Budget(10), int, **options)  # type: ignore[arg-type]
