"""A queue between two threads that is bounded in bytes.

The contract; a difference between it and the code is a bug in the code.

1.  Order and count. One producer puts, one consumer gets. Items come out in the order they went in,
    each once.
2.  Back-pressure. `put` waits while the item does not fit into what is left of the budget, or into
    the channel's depth, or while `max_items` are waiting. The depth may follow what both sides wait
    for (`tuning.QueueDepth`); it never exceeds the channel's share of the budget.
3.  An empty channel, one with nothing waiting in it and nothing in the consumer's hand, always
    accepts one item. So a lone item that is bigger than the budget passes, and the channels of one
    budget cannot block each other for ever: each always moves one item at a time. An `entry`, by
    which new bytes come in, is stricter: it accepts what does not fit only when no channel of the
    budget holds anything.
4.  The consumer's hand. An item's bytes are held until the consumer asks for the next one, by any
    `get`, because until then it works on it. A consumer that keeps more than one item must say so
    with `Budget.acquire` before it asks for the next.
5.  The bound. With one channel on it, the budget never holds more than its total, or one item where
    that alone is more; each further channel that is no entry can add one item, which the channel
    before it still counts in its consumer's hand. The item for which a `put` waits is
    in the producer's hand and not counted: memory is the budget plus one item.
6.  Waiting. `get` waits until there is something to tell, at most `timeout` seconds or until a
    `poke`, then raises `Empty`. Nobody polls: every wait ends by a notification or at its timeout.
7.  The end. After `finish` the consumer gets what is left, then `EndOfStream`, every time.
8.  Failure. After `fail` the consumer gets what was put before, in order, then that same exception
    with its original traceback, every time. Any BaseException will do. The first of `finish` and
    `fail` counts; nothing is put after it.
9.  Closing. `close` drops what is waiting and gives all bytes back, the hand's too. A waiting `put`
    or `get` wakes and raises `Closed`, and so do all later ones. Any thread may close, more than
    once; `finish` and `fail` afterwards do nothing.
10. Interruption. A BaseException that arrives in a wait (Ctrl-C) leaves the channel as it was: the
    item is not in it, nothing is held for it, and both sides may go on or close. Wherever else it
    arrives, `close` gives all bytes back and wakes the other side. A finalizer or a signal handler
    may close too, also while its own thread is inside the channel.

Leaves out: several producers or consumers, priorities, and looking at an item without taking it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from engine.loading.autotune import QueueDepth
from engine.loading.budget import Budget, Wakeup
from engine.types import EndOfStream

T = TypeVar("T")
R = TypeVar("R")
KEEP_ALIVE_SECONDS = 0.5
"""The seconds between two calls of `keep_alive` by a waiting `put`."""


class Empty(Exception):
    """No item came within the timeout; try again."""


class Closed(Exception):
    """The channel was closed: producer and consumer should stop; the data has no error."""


class Channel(Generic[T]):
    """A queue between two threads, with the contract above.

    Attributes:
        name: its holder's name on the budget, and its label in metrics.
        depth: how many bytes may wait here now.
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
        depth: QueueDepth | None = None,
        entry: bool = False,
        on_put_wait: Callable[[float], object] | None = None,
        on_get_wait: Callable[[float], object] | None = None,
    ) -> None:
        """
        Args:
            size_of: bytes that an item holds in memory; called once for each, by `put`.
            max_items: a further bound, on the number of waiting items.
            share: part (0-1) of the budget's total that this channel may fill, so that a fast
                producer upstream leaves the channels downstream room to prefetch.
            depth: how much of that it fills; all of it unless given.
            entry: whether its items are new to the budget; see 3.
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
        self._account = budget.open(name, drains=True)
        self._entry = entry
        self._filled = Wakeup()
        self._size_of = size_of
        self._max_items = max_items
        limit = max(1, int(budget.total * share))
        self.depth = depth or QueueDepth(limit, fixed=limit)
        self._on_put_wait = on_put_wait
        self._on_get_wait = on_get_wait
        self._items: deque[tuple[T, int]] = deque()
        self._held_bytes: int | None = None
        self._waited = 0.0
        self._poked = False
        self._end: BaseException | None = None
        self._traceback: TracebackType | None = None
        self._closed = False

    def __len__(self) -> int:
        """The number of waiting items, without the one the consumer holds."""
        return len(self._items)

    def __bool__(self) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        """The bytes of waiting items and of the item the consumer holds."""
        return 0 if self._closed else self._account.nbytes

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def put(self, item: T, keep_alive: Callable[[], object] | None = None) -> None:
        """Put an item; block until there is room.

        Args:
            keep_alive: called every `KEEP_ALIVE_SECONDS` of the wait, outside the lock. What it
                raises, `put` raises; the item is then not in the channel.

        Raises: Closed when the channel is or gets closed.
        """
        size = self._size_of(item)
        assert size >= 0, f"size_of gave {size} bytes in channel {self.name}"
        outcome, waited = self._wait_for(
            lambda: self._admit(item, size), self._account.wakeup, None, keep_alive
        )
        self.put_wait_seconds += waited
        if self._on_put_wait is not None:
            self._on_put_wait(waited)
        if outcome is not True:
            raise Closed(self.name)

    def await_room(self, keep_alive: Callable[[], object] | None = None) -> None:
        """Wait until there is room, so that an item is made only when it may enter, and not held
        by the producer while others fill the budget.

        Args:
            keep_alive: as of `put`.

        Raises: Closed.
        """
        _, waited = self._wait_for(
            lambda: self._accepts(1) or None, self._account.wakeup, None, keep_alive
        )
        self.put_wait_seconds += waited
        if self._on_put_wait is not None and waited:
            self._on_put_wait(waited)
        if self._closed:
            raise Closed(self.name)

    def get(self, timeout: float | None = None) -> T:
        """Return the next item; release the bytes of the previous one first.

        Args:
            timeout: seconds to wait for it; None for ever; 0 or less not at all.

        Raises: Empty after `timeout`; EndOfStream after the last item; the producer's exception
            after the last item before it; Closed.
        """
        with self._lock:
            self._release_held()
            self._measure()
        outcome: tuple[T] | BaseException | None
        outcome, waited = self._wait_for(self._take, self._filled, timeout)
        self.get_wait_seconds += waited
        self._waited = waited
        if self._on_get_wait is not None:
            self._on_get_wait(waited)
        if outcome is None:
            raise Empty(self.name)
        if isinstance(outcome, BaseException):
            # Reset, or every raise would add its frames to the traceback of the same exception.
            raise outcome.with_traceback(self._traceback if outcome is self._end else None)
        return outcome[0]

    def poke(self) -> None:
        """Let the `get` that waits, or the next one that would, raise `Empty` before its timeout.
        Any thread may call it."""
        with self._lock:
            self._poked = True
            self._filled.notify()

    def finish(self) -> None:
        """Mark the end of the stream. Called by the producer."""
        self._stop(EndOfStream())

    def fail(self, exc: BaseException) -> None:
        """End the stream with an error. Called by the producer, with the exception it caught."""
        self._stop(exc)

    def close(self) -> None:
        """Drop all items and wake both threads. Called by the consumer, or on shutdown."""
        with self._lock:
            self._closed = True
            dropped, self._items = self._items, deque()
            self._account.wakeup.notify()
            self._budget.drop(self._account)
            self._filled.notify()
        dropped.clear()  # outside the lock: the items' own finalizers may take their time

    # Inside the lock, statements come in an order in which a `close` may slip in between any two.

    def _wait_for(
        self,
        attempt: Callable[[], R | None],
        wakeup: Wakeup,
        timeout: float | None,
        keep_alive: Callable[[], object] | None = None,
    ) -> tuple[R | None, float]:
        """Call `attempt` under the lock at every notification; return its first result other
        than None, or None after the timeout, and the seconds waited."""
        with self._lock:
            outcome = attempt()
        if outcome is not None or (timeout is not None and timeout <= 0):
            return outcome, 0.0
        start, waited, last_keep_alive = time.perf_counter(), 0.0, 0.0
        while outcome is None and (timeout is None or waited < timeout):
            left = None if timeout is None else timeout - waited
            wakeup.wait(left if keep_alive is None else KEEP_ALIVE_SECONDS)
            with self._lock:
                outcome = attempt()
            waited = time.perf_counter() - start
            if (
                keep_alive is not None
                and outcome is None
                and waited - last_keep_alive >= KEEP_ALIVE_SECONDS
            ):
                last_keep_alive = waited
                keep_alive()
        return outcome, waited

    def _admit(self, item: T, size: int) -> bool | None:
        """Return True if the item was queued, False if it never can be, None if the caller must
        wait."""
        if not self._accepts(size):
            return None
        assert self._end is None, f"put after the end of channel {self.name}"
        self._budget.grow(self._account, size)
        self._items.append((item, size))
        self._filled.notify()
        if self._closed:
            self._items.clear()
        return not self._closed

    def _accepts(self, size: int) -> bool:
        empty = not self._items and self._held_bytes is None
        if self._closed or (empty and not self._entry):
            return True
        if self._max_items is not None and len(self._items) >= self._max_items:
            return False
        if size > self._budget.left:
            return empty and not self._budget.draining()
        if not empty and (needed := self._account.nbytes + size) > self.depth.bytes:
            self.depth.blocked(needed)
            return False
        return True

    def _take(self) -> tuple[T] | BaseException | None:
        """Return the next item, which the consumer now holds; or the exception to raise; or None
        while there is none."""
        try:
            item, self._held_bytes = self._items.popleft()
        except IndexError:
            poked, self._poked = self._poked, False
            if self._closed or self._end is not None or not poked:
                return Closed(self.name) if self._closed else self._end
            return Empty(self.name)
        if self._max_items is not None:
            # the queue got shorter, although the bytes are still held
            self._account.wakeup.notify()
        return (item,)

    def _measure(self) -> None:
        """Report to the depth what waited and what is left after the next item."""
        unused = self._account.nbytes - self._items[0][1] if self._items else 0
        if self.depth.item_taken(unused, self._waited, time.perf_counter()):
            self._account.wakeup.notify()

    def _release_held(self) -> None:
        """Release the bytes of the item the consumer holds."""
        if self._held_bytes is not None:
            size, self._held_bytes = self._held_bytes, None
            self._account.nbytes -= size
            self._budget.notify()

    def _stop(self, end: BaseException) -> None:
        with self._lock:
            if self._end is None and not self._closed:
                self._traceback = end.__traceback__
                self._end = end
                self._filled.notify()
