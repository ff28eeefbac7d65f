"""The memory budget: counts every buffered byte of this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable


class Wakeup:
    """Wakes the single thread that waits on it.

    Notified while no thread waits, it lets the next wait return at once: no notification is lost,
    and whoever wakes must check whether there is a reason. Unlike `threading.Condition`, no lock is
    held or reacquired while waiting, so a wait can be interrupted, and `notify` re-entered,
    anywhere.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until notified, or until `timeout` seconds (> 0) have passed."""
        seconds = -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
        self._lock.acquire(timeout=seconds)

    def notify(self) -> None:
        """Wake the waiting thread. Callers hold the budget's lock."""
        if self._lock.locked():
            # Unless a finalizer or a signal handler of this thread was faster.
            with contextlib.suppress(RuntimeError):
                self._lock.release()


class BudgetAccount:
    """The bytes one holder accounts for.

    Attributes:
        name: the holder's.
        drains: whether what it holds moves on by itself: a queue's does, a store's does not.
        nbytes: bytes held; one assignment changes it, so no interrupt can leave it half changed.
        wakeup: notified when there may be room again.
    """

    __slots__ = ("drains", "name", "nbytes", "wakeup")

    def __init__(self, name: str, *, drains: bool) -> None:
        self.name = name
        self.drains = drains
        self.nbytes = 0
        self.wakeup = Wakeup()


class Budget:
    """Tracks the bytes of every holder under one hard limit.

    The ledger says what is true, so `acquire` never waits: whoever calls it has the bytes already,
    and waiting would not make them go away. What waits is a `Channel`, before it takes an item in:
    so a holder that is not a channel (rows kept for the next batch, a sink's buffer) leaves the
    channels less room, and the process comes under the cap as they drain. Holders that know by
    themselves what they have (a client's prefetch, a sink, a replay) are asked: `watch`.

    Every channel on the budget works under the budget's one lock. It is re-entrant, so that a
    finalizer or a signal handler which closes a channel cannot deadlock, wherever its thread is.
    """

    def __init__(self, total_bytes: int) -> None:
        """
        Args:
            total_bytes: the cap, in bytes, at least 1.
        """
        assert total_bytes >= 1, f"a budget of {total_bytes} bytes"
        self.total = total_bytes
        self.lock = threading.RLock()
        self._accounts: tuple[BudgetAccount, ...] = ()
        self._named: dict[str, BudgetAccount] = {}
        self._names: dict[str, int] = {}
        self._watched: dict[str, Callable[[], int]] = {}
        self._peak = 0

    @property
    def used(self) -> int:
        """The bytes held now by all holders."""
        held = sum([account.nbytes for account in self._accounts])
        return held + sum([nbytes() for nbytes in self._watched.values()])

    @property
    def peak(self) -> int:
        """The most bytes ever held at once."""
        return self._peak

    @property
    def left(self) -> int:
        """The unused bytes of the limit; never negative."""
        return max(0, self.total - self.used)

    def held(self) -> dict[str, int]:
        """Holder -> bytes held now; a holder that released everything stays, with 0."""
        with self.lock:
            held = dict(self._names)
            for account in self._accounts:
                held[account.name] += account.nbytes
            return held | {holder: nbytes() for holder, nbytes in self._watched.items()}

    def watch(self, holder: str, nbytes: Callable[[], int]) -> None:
        """Register a holder that reports its own size. It is called on every thread, under the
        lock, and must neither wait nor raise. When its size falls, channels notice at their next
        item."""
        with self.lock:
            self._watched[holder] = nbytes

    def acquire(self, holder: str, n: int) -> None:
        """Add `n` bytes to `holder`, at once, even above the limit."""
        assert n >= 0, f"{holder} acquired {n} bytes"
        with self.lock:
            self.grow(self._account(holder), n)

    def release(self, holder: str, n: int) -> None:
        """Subtract `n` bytes from `holder`, and wake the producers that wait for room."""
        with self.lock:
            account = self._account(holder)
            held = account.nbytes
            assert 0 <= n <= held, f"{holder} released {n} bytes of {held}"
            account.nbytes = held - n
            self.notify()

    def hold(self, account: BudgetAccount, n: int) -> None:
        """Set the bytes of an account to `n`, more or fewer than before."""
        with self.lock:
            freed = account.nbytes > n
            self.grow(account, n - account.nbytes)
            if freed:
                self.notify()

    def _account(self, holder: str) -> BudgetAccount:
        if holder not in self._named:
            self._named[holder] = self.open(holder, drains=False)
        return self._named[holder]

    # For channels, which hold the lock meanwhile.

    def open(self, name: str, *, drains: bool) -> BudgetAccount:
        """Open an account, separate from others of the same name."""
        account = BudgetAccount(name, drains=drains)
        with self.lock:
            self._names[name] = 0
            self._accounts = (*self._accounts, account)
        return account

    def draining(self) -> bool:
        """Return whether any queue is non-empty, so that room will become free."""
        return any(account.nbytes for account in self._accounts if account.drains)

    def drop(self, account: BudgetAccount) -> None:
        """Remove an account and its bytes. May be called twice."""
        self._accounts = tuple(kept for kept in self._accounts if kept is not account)
        self.notify()

    def grow(self, account: BudgetAccount, n: int) -> None:
        """Add bytes to an account."""
        account.nbytes += n
        self._peak = max(self._peak, self.used)

    def notify(self) -> None:
        """Wake every producer: there may be room."""
        for account in self._accounts:
            account.wakeup.notify()
