"""Records beside the stream that a stage cannot use: counted, and told."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from engine.types import POSITION, Records, Rejects, Snapshot
from engine.types.arrays import Bools, Ints
from engine.types.plural import counted

log = logging.getLogger("headrace.scrub")
WARN_SECONDS = 60.0
"""The seconds between two warnings of one kind."""
UNREADABLE, KEYLESS, SHARED = "unreadable", "keyless", "shared"
KINDS = {
    UNREADABLE: ("unreadable record", "unreadable records"),
    KEYLESS: ("record without a key or time", "records without a key or time"),
    SHARED: (
        "record whose key another record has, too",
        "records whose keys other records have, too",
    ),
}
"""Kind -> one record of it, and more."""


class OddRecords:
    """Counts odd records of a source by kind, and warns of the first of each, at most once a
    minute.

    Args:
        name: the source, in sentences.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._warned: dict[str, float] = {}
        self._odd: Counter[str] = Counter()
        self._read = 0

    @property
    def are_most(self) -> bool:
        """Whether at least half of the records that were read have no use."""
        useless = self._odd[UNREADABLE] + self._odd[KEYLESS]
        return 0 < self._read <= 2 * useless

    def note_read(self, n: int) -> None:
        """Count `n` records, odd ones and others."""
        self._read += n

    def note_rejects(
        self, rejects: Sequence[Rejects], records: Records, empty: Bools | None = None
    ) -> None:
        """Warn of records that cannot be read.

        Args:
            empty: which have no value and are meant so, shape (n,).
        """
        for reject in rejects:
            places = np.searchsorted(records.positions, reject.rows.get_column(POSITION).to_numpy())
            odd = np.arange(len(places)) if empty is None else np.flatnonzero(~empty[places])
            if len(odd):
                first = reject.rows.row(int(odd[0]), named=True)
                place = f"{first[POSITION]:,} of '{records.partition}' ({reject.reason})"
                self.warn(UNREADABLE, len(odd), f"at {place}: {first['detail']}")

    def note_keyless(self, records: Records, at: Ints) -> None:
        """Warn of records without a key or a time, by their places among the records."""
        if len(at):
            first = f"at {records.positions[at[0]]:,} of '{records.partition}'"
            self.warn(KEYLESS, len(at), f"{first}: they match nothing")

    def warn(self, kind: str, n: int, first: str) -> None:
        """Count `n` records, and warn of them."""
        self._odd[kind] += n
        now = time.monotonic()
        if now - self._warned.get(kind, -WARN_SECONDS) >= WARN_SECONDS:
            self._warned[kind] = now
            log.warning("%s has %s, first %s", self._name, counted(n, *KINDS[kind]), first)

    def remarks(self) -> Iterator[str]:
        """Yield a sentence for each kind."""
        for kind, n in self._odd.items():
            if n:
                yield f"{self._name} had {counted(n, *KINDS[kind])}: the log names the first."

    def snapshot(self) -> Snapshot:
        """Return what was counted, by plain values."""
        return {"read": self._read, **{kind: self._odd[kind] for kind in KINDS}}

    def restore(self, value: Snapshot) -> None:
        """Count on from a `snapshot`."""
        self._read = value["read"]
        self._odd = Counter({kind: value[kind] for kind in KINDS})


__all__ = ["SHARED", "OddRecords"]
