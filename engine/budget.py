"""One ledger for every byte that waits in a buffer of this process."""

from __future__ import annotations

import threading


class Budget:
    """Who holds how many bytes, under one hard cap.

    The ledger says what is true, so `acquire` never waits: whoever calls it has the bytes already,
    and waiting would not make them go away. What waits is a `Channel`, before it takes an item in:
    so a holder that is not a channel (rows kept for the next batch, a sink's buffer) leaves the
    channels less room, and the process stays under the cap as soon as they drain.

    Every channel on the budget works under the budget's one lock; `room` is the condition that its
    producers wait for. The lock is re-entrant, so that a finalizer which closes a channel while
    its own thread is inside another one cannot deadlock.
    """

    def __init__(self, total_bytes: int) -> None:
        """
        Args:
            total_bytes: the cap, in bytes, at least 1.
        """
        assert total_bytes >= 1, f"a budget of {total_bytes} bytes"
        self.total = total_bytes
        self.lock = threading.RLock()
        self.room = threading.Condition(self.lock)
        self._held: dict[str, int] = {}
        self._used = 0
        self._peak = 0

    @property
    def used(self) -> int:
        """Bytes held now, all holders together."""
        return self._used

    @property
    def peak(self) -> int:
        """The most bytes ever held at once."""
        return self._peak

    @property
    def left(self) -> int:
        """Bytes of the cap that nobody holds; never negative."""
        return max(0, self.total - self._used)

    def held(self) -> dict[str, int]:
        """Holder -> bytes held now; a holder that gave everything back stays, with 0."""
        with self.lock:
            return dict(self._held)

    def acquire(self, holder: str, n: int) -> None:
        """Note that `holder` has `n` more bytes, at once, even above the cap."""
        assert n >= 0, f"{holder} acquired {n} bytes"
        with self.lock:
            self._held[holder] = self._held.get(holder, 0) + n
            self._used += n
            self._peak = max(self._peak, self._used)

    def release(self, holder: str, n: int) -> None:
        """Note that `holder` gave `n` bytes back, and wake the producers that wait for room."""
        with self.lock:
            held = self._held.get(holder, 0)
            assert 0 <= n <= held, f"{holder} released {n} bytes of {held}"
            self._held[holder] = held - n
            self._used -= n
            self.room.notify_all()
