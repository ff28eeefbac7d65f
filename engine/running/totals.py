"""The account of a run: the outcome of every record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.running.work import WorkResult
from engine.types import HeadraceError

TABLE_FIELDS = ("reasons", "counts")
"""The fields of `Totals` that are not numbers."""


@dataclass(slots=True)
class Totals:
    """Record counts by outcome, summed over all restarts.

    Attributes:
        read: records the source gave.
        added: rows that stages added to them.
        learned, predicted, rejected, expired: rows by outcome; each row is in exactly one. Expired
            are those whose label did not come.
        waiting: rows and labels that wait for each other now.
        matched: labels that found their row.
        reasons: (stage, reason) -> rejected rows.
        counts: (stage, what it counts) -> how many.
        judged: rows of the source itself, not of dead letters that were read again.
        bad: those of them rejected for an unexpected reason, and not since accepted in a replay of
            dead letters.
    """

    batches: int = 0
    read: int = 0
    added: int = 0
    learned: int = 0
    predicted: int = 0
    cleaned: int = 0
    rejected: int = 0
    expired: int = 0
    waiting: int = 0
    matched: int = 0
    reasons: dict[tuple[str, str], int] = field(default_factory=dict)
    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    judged: int = 0
    bad: int = 0

    @property
    def balanced(self) -> bool:
        """Whether ``in = learned + predicted + rejected`` (without a model: cleaned; where labels
        come later, with expired and waiting rows, and all labels)."""
        out = self.learned + self.predicted + self.cleaned + self.rejected
        return self.read + self.added == out + self.expired + self.waiting + self.matched

    def require_balance(self) -> None:
        """Raises: HeadraceError if rows are missing or too many. This is the last line of defence:
        `engine.user_code.calls` finds a component that loses rows at once."""
        if not self.balanced:
            raise HeadraceError(
                f"The account does not balance: {self.read:,} read + {self.added:,} added are "
                f"not {self.learned:,} learned + {self.predicted:,} predicted + "
                f"{self.cleaned:,} cleaned + {self.rejected:,} rejected{self._late()}: expected "
                "each row in exactly one of these; some component of this pipeline loses or "
                "invents rows without a word, and what came after the last checkpoint is not saved."
            )

    def _late(self) -> str:
        late = (self.expired, self.waiting, self.matched)
        if not any(late):
            return ""
        return " + {:,} expired + {:,} waiting + {:,} matched labels".format(*late)

    def add(self, done: WorkResult) -> None:
        """Add the result of a batch."""
        batch = done.batch
        self.batches += 1
        self.read += batch.raw_rows
        self.added += batch.added
        self.learned += done.learned
        self.predicted += done.predicted
        self.cleaned += done.cleaned
        self.expired += done.expired
        self.waiting += done.waiting
        self.matched += done.matched
        for reject in batch.rejects:
            key = (reject.stage, reject.reason)
            self.rejected += len(reject)
            self.reasons[key] = self.reasons.get(key, 0) + len(reject)
        for counter, n in batch.counts.items():
            self.counts[counter] = self.counts.get(counter, 0) + n

    def snapshot(self) -> dict[str, Any]:
        """Return a plain value."""
        tables = {
            name: [[*key, n] for key, n in getattr(self, name).items()] for name in TABLE_FIELDS
        }
        return {name: getattr(self, name) for name in self.__slots__} | tables

    @classmethod
    def restore(cls, value: Mapping[str, Any]) -> Totals:
        """Return the totals from a `snapshot`."""
        tables = {name: {(s, counter): n for s, counter, n in value[name]} for name in TABLE_FIELDS}
        return cls(**{**value, **tables})


__all__ = ["Totals"]
