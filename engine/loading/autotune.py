"""Settings that adapt while the engine runs: the depth of a queue and the number of decode
threads.

Both follow what was measured, under a limit that nothing exceeds, and both can be fixed by hand
(``[loader] prefetch_bytes``, ``decode_threads``). They are values without threads or clocks of
their own: whoever owns one tells it what happened and when.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

log = logging.getLogger("headrace.tuning")

EPOCH_SECONDS = 0.5
"""The seconds between two decisions."""
LOW_WATER_EPOCHS = 20
"""Bytes unused for this many epochs in a row are surplus; longer than most bursts."""
WAIT_SHARE = 0.01
"""Below this share of its time, a consumer's waiting is not worth memory."""
SHRINK_FRACTION = 0.125
"""The part of the surplus returned each epoch: a quarter of it is left after 5 s."""
START = 0.5
"""The part of its limit that a queue starts with: surplus is returned within seconds."""


class QueueDepth:
    """The bytes one queue may hold.

    A deeper queue helps only a consumer that finds it empty although its producer had been stopped
    by the depth before: the bytes that were not let in then are the ones missing now. So the depth
    doubles when both have happened since the last change, and makes room for what was not let in.
    It shrinks by what lay in the queue untouched (its low-water mark) for the last ten seconds: a
    consumer that has become slow gives the memory back, one that comes in bursts keeps it. What
    still lies there above the depth has to leave before it shrinks again.

    Attributes:
        limit: bytes that it never exceeds.
        bytes: the depth now.
    """

    def __init__(
        self,
        limit: int,
        *,
        fixed: int | None = None,
        start: float = START,
        on_change: Callable[[int, str], object] | None = None,
        name: str = "",
    ) -> None:
        """
        Args:
            limit: bytes, at least 1.
            fixed: the depth, for ever; None lets it follow.
            start: part (0-1) of the limit that it begins with.
            on_change: called with the new depth and ``grow`` or ``shrink``. Must not raise.
        """
        assert limit >= 1, f"limit={limit}"
        self.limit = limit
        self.bytes = min(limit, fixed) if fixed is not None else max(1, int(limit * start))
        self._fixed = fixed is not None
        self._on_change = on_change
        self._name = name
        self._logged = self.bytes
        self._epoch = 0.0
        self._waited = 0.0
        self._needed = 0
        """The bytes that the item would have come to which was not let in; 0 if none was."""
        self._low: int | None = None
        self._lows: deque[int] = deque(maxlen=LOW_WATER_EPOCHS)

    def blocked(self, needed: int) -> None:
        """Note that the producer found no room because of the depth, which should have been so many
        bytes."""
        self._needed = needed

    def item_taken(self, unused: int, waited: float, now: float) -> bool:
        """Note that the consumer asks for an item; return whether the depth has changed.

        Args:
            unused: bytes that wait behind that item.
            waited: seconds it waited for the item before.
            now: `time.perf_counter` seconds.
        """
        if self._fixed:
            return False
        self._waited += waited
        self._low = unused if self._low is None else min(self._low, unused)
        if now - self._epoch < EPOCH_SECONDS:
            return False
        before = self.bytes
        self._decide(now)
        return self.bytes != before

    def _decide(self, now: float) -> None:
        first, seconds = self._epoch == 0.0, now - self._epoch
        starved = self._waited > WAIT_SHARE * seconds
        self._lows.append(self._low or 0)
        self._epoch, self._waited, self._low = now, 0.0, None
        if first:
            return
        if starved and self._needed:
            depth, self._needed = max(self.bytes * 2, self._needed), 0
            self._lows.clear()
            self._change(min(self.limit, depth), "grow")
        elif len(self._lows) == LOW_WATER_EPOCHS and 0 < (unused := min(self._lows)) <= self.bytes:
            self._change(max(1, self.bytes - max(1, int(unused * SHRINK_FRACTION))), "shrink")

    def _change(self, depth: int, direction: str) -> None:
        if depth == self.bytes:
            return
        self.bytes = depth
        if self._on_change is not None:
            self._on_change(depth, direction)
        if not self._logged / 2 < depth < self._logged * 2:
            self._logged = depth
            log.info("queue %s", direction, extra={"queue": self._name, "bytes": depth})


class DecodeThreads:
    """The number of threads that decode a batch, each a part of it.

    One more is tried where the consumer waits and decoding takes a good part of the time; it stays
    if a row then decodes faster by a tenth at least. What did not help is not tried again for a
    while. A consumer that no longer waits gives the threads back.

    Attributes:
        limit: never more than so many.
        count: threads now.
    """

    keep_ratio = 0.9
    """The ratio of a row's time with one more thread to the time before, up to which the thread
    is kept."""
    min_share = 0.2
    """The share of the prepare thread's time above which decoding is worth another thread."""
    retry_epochs = 120
    """Epochs until a change that did not help is tried again."""

    def __init__(
        self,
        limit: int,
        *,
        fixed: int | None = None,
        on_change: Callable[[int], object] | None = None,
    ) -> None:
        """
        Args:
            limit: threads at most, at least 1.
            fixed: the number, for ever; None lets it follow.
            on_change: called with the new number. Must not raise.
        """
        assert limit >= 1, f"limit={limit}"
        self.limit = limit if fixed is None else fixed
        self.count = 1 if fixed is None else fixed
        self._fixed = fixed is not None
        self._on_change = on_change
        self._epoch = 0.0
        self._rows, self._seconds, self._waited = 0, 0.0, 0.0
        self._before: float | None = None
        self._cooldown = 0
        self._idle_epochs = 0

    def decoded(self, rows: int, seconds: float, waited: float, now: float) -> None:
        """Note that a batch was decoded.

        Args:
            rows: how many it had.
            seconds: how long that took.
            waited: seconds that the consumer of the batches has waited since the last call.
            now: `time.perf_counter` seconds.
        """
        if self._fixed or self.limit == 1:
            return
        self._rows += rows
        self._seconds += seconds
        self._waited += waited
        if now - self._epoch >= EPOCH_SECONDS:
            self._decide(now)

    def _decide(self, now: float) -> None:
        first, length = self._epoch == 0.0, now - self._epoch
        rows, seconds, waited = self._rows, self._seconds, self._waited
        self._epoch, self._rows, self._seconds, self._waited = now, 0, 0.0, 0.0
        if first or not rows:
            return
        cost = seconds / rows
        if self._before is not None:
            before, self._before = self._before, None
            if cost > before * self.keep_ratio:
                self._cooldown = self.retry_epochs
                self._change(self.count - 1, "nothing gained")
            return
        self._cooldown = max(0, self._cooldown - 1)
        starved = waited > WAIT_SHARE * length
        self._idle_epochs = 0 if starved else self._idle_epochs + 1
        if starved and not self._cooldown and self.count < self.limit:
            if seconds > self.min_share * length:
                self._before = cost
                self._change(self.count + 1, "the model waits")
        elif self._idle_epochs >= LOW_WATER_EPOCHS and self.count > 1:
            self._idle_epochs = 0
            self._change(self.count - 1, "the model does not wait")

    def _change(self, count: int, why: str) -> None:
        self.count = count
        if self._on_change is not None:
            self._on_change(count)
        log.info("decode threads: %s", why, extra={"threads": count})


__all__ = ["DecodeThreads", "QueueDepth"]
