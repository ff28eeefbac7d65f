"""Records beside the stream that a stage cannot use: counted, and told."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from engine.types import POSITION, Records, Rejects
from engine.types.arrays import Bools, Ints
from engine.types.plural import counted

log = logging.getLogger("headrace.scrub")
WARN_SECONDS = 60.0
"""The seconds between two warnings of one kind."""
UNREADABLE = "unreadable record", "unreadable records"
KEYLESS = "record without a key or time", "records without a key or time"


class OddRecords:
    """Counts odd records of a source by kind, and warns of the first of each, at most once a
    minute.

    Args:
        name: the source, in sentences.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._warned: dict[tuple[str, str], float] = {}
        self._odd: Counter[tuple[str, str]] = Counter()

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

    def warn(self, what: tuple[str, str], n: int, first: str) -> None:
        """Count `n` records, and warn of them."""
        self._odd[what] += n
        now = time.monotonic()
        if now - self._warned.get(what, -WARN_SECONDS) >= WARN_SECONDS:
            self._warned[what] = now
            log.warning("%s has %s, first %s", self._name, counted(n, *what), first)

    def remarks(self) -> Iterator[str]:
        """Yield a sentence for each kind."""
        for what, n in self._odd.items():
            yield f"{self._name} had {counted(n, *what)}: the log names the first."


__all__ = ["OddRecords"]
