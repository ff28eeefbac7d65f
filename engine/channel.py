"""A queue between two threads that is bounded in bytes.

The contract; a difference between it and the code is a bug in the code.

1.  Order and count. One producer puts, one consumer gets. Items come out in the order they went in,
    each once.
2.  Back-pressure. `put` waits while the item does not fit into what is left of the budget, or into
    the channel's share of it, or while `max_items` are waiting.
3.  An empty channel, one with nothing waiting in it and nothing in the consumer's hand, always
    accepts one item. So a lone item that is bigger than the budget passes, and the channels of one
    budget cannot block each other for ever: each always moves one item at a time.
4.  The consumer's hand. An item's bytes are held until the consumer asks for the next one, by any
    `get`, because until then it works on it. A consumer that keeps more than one item must say so
    with `Budget.acquire` before it asks for the next.
5.  The bound. With one channel on it, the budget never holds more than its total, or one item where
    that alone is more; each further channel can add one item. The item for which a `put` waits is
    in the producer's hand and not counted: memory is the budget plus one item.
6.  Waiting. `get` waits until there is something to tell, at most `timeout` seconds, then raises
    `Empty`. Nobody polls: every wait ends by a notification or at its timeout.
7.  The end. After `finish` the consumer gets what is left, then `EndOfStream`, every time.
8.  Failure. After `fail` the consumer gets what was put before, in order, then that same exception
    with its original traceback, every time. Any BaseException will do. The first of `finish` and
    `fail` counts; nothing is put after it.
9.  Closing. `close` drops what is waiting and gives all bytes back, the hand's too. A waiting `put`
    or `get` wakes and raises `Closed`, and so do all later ones. Any thread may close, more than
    once; `finish` and `fail` afterwards do nothing.
10. Interruption. A BaseException that arrives in a wait (Ctrl-C) leaves the channel as it was: the
    item is not in it, nothing is held for it, and both sides may go on or close.

Leaves out: several producers or consumers, priorities, and looking at an item without taking it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from engine.budget import Budget
from engine.types import EndOfStream

T = TypeVar("T")


class Empty(Exception):
    """Nothing came within the timeout; ask again."""


class Closed(Exception):
    """The channel was closed: whoever puts or gets should stop, this is no error of the data."""


class Channel(Generic[T]):
    """See the contract above.

    Attributes:
        name: its holder's name on the budget, and its label in metrics.
        put_wait_seconds: how long the producer has waited for room, all in all.
        get_wait_seconds: how long the consumer has waited for items, all in all.
    """

    def __init__(
        self,
        name: str,
        budget: Budget,
        size_of: Callable[[T], int],
        max_items: int | None = None,
        *,
        share: float = 1.0,
        on_put_wait: Callable[[float], object] | None = None,
        on_get_wait: Callable[[float], object] | None = None,
    ) -> None:
        """
        Args:
            size_of: bytes that an item holds in memory; called once for each, by `put`.
            max_items: a further bound, on the number of waiting items.
            share: part (0-1) of the budget's total that this channel may fill, so that a fast
                producer upstream leaves the channels downstream room to prefetch.
            on_put_wait: called after every `put` with the seconds it waited, mostly 0.0. Must not
                raise.
            on_get_wait: the same for `get`.
        """
        assert max_items is None or max_items >= 1, f"max_items={max_items}"
        assert 0.0 < share <= 1.0, f"share={share}"
        self.name = name
        self.put_wait_seconds = 0.0
        self.get_wait_seconds = 0.0
        self._budget = budget
        self._lock = budget.lock
        self._filled = threading.Condition(self._lock)
        self._size_of = size_of
        self._max_items = max_items
        self._cap = int(budget.total * share)
        self._on_put_wait = on_put_wait
        self._on_get_wait = on_get_wait
        self._items: deque[tuple[T, int]] = deque()
        self._nbytes = 0
        self._hand: int | None = None
        self._end: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._closed = False

    def __len__(self) -> int:
        """Items waiting; the one in the consumer's hand is not among them."""
        return len(self._items)

    def __bool__(self) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        """Bytes held: what waits and what is in the consumer's hand."""
        return self._nbytes

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    # Locks are entered as themselves, never as a condition: `Condition.__enter__` is Python code,
    # in which an interrupt can leave the lock taken.

    def put(self, item: T) -> None:
        """Add an item; waits for room.

        Raises: Closed when the channel is or gets closed.
        """
        size = self._size_of(item)
        assert size >= 0, f"size_of gave {size} bytes in channel {self.name}"
        with self._lock:
            waited = self._wait(self._budget.room, lambda: self._accepts(size), None)
            self.put_wait_seconds += waited
            closed = self._closed
            if not closed:
                self._admit(item, size)
        if self._on_put_wait is not None:
            self._on_put_wait(waited)
        if closed:
            raise Closed(self.name)

    def get(self, timeout: float | None = None) -> T:
        """The next item; gives the bytes of the one before it back first.

        Args:
            timeout: seconds to wait for it; None for ever; 0 or less not at all.

        Raises: Empty after `timeout`; EndOfStream after the last item; the producer's exception
            after the last item before it; Closed.
        """
        with self._lock:
            self._let_go()
            waited = self._wait(self._filled, self._has_news, timeout)
            self.get_wait_seconds += waited
            taken = self._take() or self._verdict()
        if self._on_get_wait is not None:
            self._on_get_wait(waited)
        if isinstance(taken, BaseException):
            raise taken
        return taken[0]

    def finish(self) -> None:
        """Say that nothing more comes. Called by the producer."""
        self._stop(EndOfStream())

    def fail(self, exc: BaseException) -> None:
        """Say that nothing more comes, and why. Called by the producer, with what it caught."""
        self._stop(exc)

    def close(self) -> None:
        """Drop everything and wake everybody. Called by the consumer, or by whoever shuts down."""
        with self._lock:
            self._closed = True
            # Dropped below, outside the lock: the items' own finalizers may take their time.
            dropped, self._items = self._items, deque()
            nbytes, self._nbytes, self._hand = self._nbytes, 0, None
            self._budget.release(self.name, nbytes)
            self._filled.notify_all()
        dropped.clear()

    def _wait(
        self, condition: threading.Condition, ready: Callable[[], bool], timeout: float | None
    ) -> float:
        """Wait until `ready` or the timeout; how many seconds that took."""
        if ready() or (timeout is not None and timeout <= 0):
            return 0.0
        start = time.perf_counter()
        condition.wait_for(ready, timeout)
        return time.perf_counter() - start

    def _accepts(self, size: int) -> bool:
        if self._closed or (not self._items and self._hand is None):
            return True
        if self._max_items is not None and len(self._items) >= self._max_items:
            return False
        return size <= self._budget.left and self._nbytes + size <= self._cap

    def _has_news(self) -> bool:
        return bool(self._items) or self._end is not None or self._closed

    def _admit(self, item: T, size: int) -> None:
        assert self._end is None, f"put after the end of channel {self.name}"
        self._budget.acquire(self.name, size)
        self._nbytes += size
        self._items.append((item, size))
        self._filled.notify_all()

    def _take(self) -> tuple[T] | None:
        """The next item, now in the consumer's hand; None when there is none."""
        if not self._items:
            return None
        item, self._hand = self._items.popleft()
        # The queue got shorter: matters to a producer that waits for `max_items`.
        self._budget.room.notify_all()
        return (item,)

    def _let_go(self) -> None:
        """Give the bytes in the consumer's hand back."""
        if self._hand is not None:
            size, self._hand = self._hand, None
            self._nbytes -= size
            self._budget.release(self.name, size)

    def _stop(self, end: BaseException) -> None:
        with self._lock:
            if self._end is None and not self._closed:
                self._end, self._traceback = end, end.__traceback__
                self._filled.notify_all()

    def _verdict(self) -> BaseException:
        """What to raise where there is no item."""
        if self._closed:
            return Closed(self.name)
        if self._end is None:
            return Empty(self.name)
        # Reset, or every raise would add its frames to the traceback of the same exception.
        return self._end.with_traceback(self._traceback)
