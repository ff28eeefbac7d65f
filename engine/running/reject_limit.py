"""The limit on rejected rows, beyond which a run stops."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping

from engine.config import DeadLetterSettings
from engine.running.totals import Totals
from engine.running.written_rows import NOT_WRITTEN, SINK
from engine.types import HeadraceError, Rejects
from engine.types.plural import counted


class TooManyRejects(HeadraceError):
    """More rows were rejected than [dead_letters] limit allows. Exit code 3."""


class RejectLimit:
    """Stops the run when too large a share of recent rows is rejected."""

    def __init__(self, settings: DeadLetterSettings, *, again: bool = False) -> None:
        """
        Args:
            again: the rows are dead letters that are read again, of which it is no news that they
                are rejected: `finish` judges nothing, and those that go through are mended.
        """
        self._settings = settings
        self._again = again
        self._recent: deque[tuple[int, Mapping[str, int]]] = deque()
        self._rows = 0
        self._bad: Counter[str] = Counter()

    def count(self, rows: int, rejects: tuple[Rejects, ...], totals: Totals) -> None:
        """Add a batch of `rows` rows, rejected ones included, to the totals."""
        if self._again:
            totals.bad = max(0, totals.bad - rows + sum(map(len, rejects)))
        else:
            totals.judged += rows
            totals.bad += sum(self._unexpected(rejects).values())

    def check(self, rows: int, rejects: tuple[Rejects, ...]) -> None:
        """Check the newest rows after a batch of `rows` rows, rejected ones included.

        Raises: TooManyRejects.
        """
        bad = self._unexpected(rejects)
        self._recent.append((rows, bad))
        self._rows += rows
        self._bad.update(bad)
        while self._rows - self._recent[0][0] >= self._settings.window:
            gone, bad_gone = self._recent.popleft()
            self._rows -= gone
            self._bad.subtract(bad_gone)
        if self._rows >= self._settings.window:
            which = f"the last {self._counted(self._rows)}"
            self._check("Stopped", which, self._rows, sum(self._bad.values()), self._bad)

    def finish(self, totals: Totals) -> None:
        """Check the limit once more at the end of the source, where fewer rows than a window
        suffice. Raises: TooManyRejects."""
        if self._again:
            return
        without_answer = {  # although they are learned
            (stage, reason): n
            for (stage, reason), n in totals.counts.items()
            if stage == SINK and reason != NOT_WRITTEN
        }
        reasons = Counter[str]()
        for (stage, reason), n in (*totals.reasons.items(), *without_answer.items()):
            if reason not in self._settings.expected:
                reasons[f"{stage}: {reason}"] += n
        self._check("Ended", self._counted(totals.judged), totals.judged, totals.bad, reasons)

    def _unexpected(self, rejects: tuple[Rejects, ...]) -> Counter[str]:
        bad: Counter[str] = Counter()
        for reject in rejects:
            if reject.reason not in self._settings.expected:
                bad[f"{reject.stage}: {reject.reason}"] += len(reject)
        return bad

    @staticmethod
    def _counted(rows: int) -> str:
        return counted(rows, "row was", "rows were")

    def _check(self, outcome: str, which: str, rows: int, bad: int, reasons: Counter[str]) -> None:
        if bad <= self._settings.limit * rows:
            return
        reason, n = reasons.most_common(1)[0]
        raise TooManyRejects(
            f"{outcome}: {bad / rows:.1%} of {which} rejected ({reason}"
            f"{f', {n:,} of {bad:,}' if n < bad else ''}), and [dead_letters] limit allows "
            f"{self._settings.limit:.1%}: fix the input or the schema, or raise the limit; the "
            "dead letters give the reason of each row."
        )


__all__ = ["RejectLimit", "TooManyRejects"]
