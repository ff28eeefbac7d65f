"""A token bucket that bounds the cost of training challengers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

STEP_ROWS = 640
"""A step costs as much as this many more rows: with the default layers, on a CPU, a step of 1
row takes two fifths of the time of one of 1,024. Wide layers pay less for a step."""
FACTOR = 2.5
"""The most work of all models together, relative to a model without challenges. Uncounted work
(rows are scored in smaller pieces) makes it three times the time."""
MOST = 1 << 22
"""The most that can be saved: two models that learn from scratch at full speed, up to 8,192
rows."""
HORIZON = 1_024
"""The rows over which savings are spent, so that some remain when one change follows another."""


class TokenBucket(NamedTuple):
    """A token bucket of work. A value: charging makes a new one.

    A young model takes many small steps, and each challenger is young. The bucket fills at `FACTOR`
    times the work of a model without challengers; the real work of all models drains it. Its level
    limits the steps per row of a new model. So the first changes are followed as fast as a model
    can learn, endless changes with ever larger steps: the work of the whole stream stays within
    `FACTOR`.

    Work is counted in rows, a step as `STEP_ROWS` of them.

    Attributes:
        total: rows of the stream so far.
        left: work that may be spent, as of the last reckoning.
        rows, spent: rows, and work of all models, since then.
    """

    total: int = 0
    left: float = 0.0
    rows: int = 0
    spent: int = 0

    def charge(self, rows: int, steps: int, models: int) -> TokenBucket:
        """Charge the scoring of these rows by so many models, and their steps."""
        return self._replace(
            total=self.total + rows,
            rows=self.rows + rows,
            spent=self.spent + models * rows + STEP_ROWS * steps,
        )

    def settled(self, usual: float) -> TokenBucket:
        """Return the bucket with nothing open.

        Args:
            usual: steps per row of a model without challengers.
        """
        earned = FACTOR * self.rows * (1 + STEP_ROWS * usual)
        return TokenBucket(total=self.total, left=min(self.left + earned - self.spent, MOST))

    def limit(self, usual: float, rows: int) -> float:
        """Return the steps per row that a new model may take on the next rows."""
        return usual + max(self.left, 0.0) / (STEP_ROWS * max(HORIZON, 2 * rows))

    def snapshot(self) -> dict[str, Any]:
        """Return the fields as a plain value."""
        return self._asdict()

    @classmethod
    def restored(cls, value: Mapping[str, Any]) -> TokenBucket:
        """Return the bucket from a `snapshot`."""
        return cls(**value)


__all__ = ["FACTOR", "HORIZON", "MOST", "STEP_ROWS", "TokenBucket"]
