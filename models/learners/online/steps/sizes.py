"""How large a step is."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.learners.online.replay.buffer import ReplaySettings

ROWS_PER_STEP_ROW = 64
"""A step has this part of the rows seen."""


@dataclass(slots=True, kw_only=True)
class StepSizes:
    """How many rows a step has, and how many replay steps follow it, by the rows learned so far.

    Attributes:
        most_rows: most rows of a step.
        least_rows: fewest rows of a step, if `most_rows` allows it.
        replay: None where no rows are kept.
        steps_per_row: the limit that a challenge sets; see `Challengeable.pace`.
    """

    most_rows: int
    replay: ReplaySettings | None
    least_rows: int = 1
    steps_per_row: float = math.inf

    def rows(self, learned: int) -> int:
        """Return the rows of the next step."""
        own = self._own_rows(learned)
        if self.steps_per_row == math.inf:
            return own
        least = math.ceil((1 + self._own_replay_steps(learned)) / self.steps_per_row)
        return max(own, min(self.most_rows, 1 << (least - 1).bit_length()))

    def replay_steps(self, learned: int, rows: int) -> int:
        """Return the replay steps after a step of so many rows; none if below 1."""
        return round(min(self._own_replay_steps(learned), self.steps_per_row * rows - 1))

    def own_steps_per_row(self, learned: int) -> float:
        """Return new and replay steps per row, without a limit."""
        return (1 + self._own_replay_steps(learned)) / self._own_rows(learned)

    def _own_rows(self, learned: int) -> int:
        share = max(self.least_rows, learned // ROWS_PER_STEP_ROW)
        return min(self.most_rows, 1 << (share.bit_length() - 1))

    def _own_replay_steps(self, learned: int) -> int:
        return 0 if self.replay is None else self.replay.replay_steps_after(learned)


__all__ = ["StepSizes"]
