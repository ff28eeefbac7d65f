"""The newest rows, kept in a ring to learn from again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from engine.types import Settings

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Numeric (n, d), categories (n, c), target (n,)."""


class ReplaySettings(Settings):
    """The replay's keys of ``[train]``.

    Attributes:
        replay_rows: how many of the newest rows are kept; 0 keeps none.
        replay_steps: steps on kept rows after each batch's own.
        replay_batch: rows a step.
        replay_sampling: ``uniform``, or ``recent``: a row's chance halves with every
            `replay_half_life` newer rows.
        replay_half_life: in rows; None is a quarter of `replay_rows`.
    """

    replay_rows: int = Field(0, ge=0)
    replay_steps: int = Field(1, ge=0)
    replay_batch: int = Field(512, ge=1)
    replay_sampling: Literal["uniform", "recent"] = "uniform"
    replay_half_life: float | None = Field(None, gt=0)


class Replay:
    """A ring of rows.

    Args:
        settings: `replay_rows` above 0.
        numeric, categories: widths of a row.
        target: the targets' type.
    """

    def __init__(
        self,
        settings: ReplaySettings,
        *,
        numeric: int,
        categories: int,
        target: torch.dtype,
        device: str = "cpu",
    ) -> None:
        self.settings = settings
        self.rows = settings.replay_rows
        self.device = torch.device(device).type
        self._ring: Rows = (
            torch.empty((self.rows, numeric), device=device),
            torch.empty((self.rows, categories), dtype=torch.int64, device=device),
            torch.empty(self.rows, dtype=target, device=device),
        )
        self._filled = self._next = 0
        half_life = settings.replay_half_life or self.rows / 4
        self._rate = math.log(2) / half_life

    def __len__(self) -> int:
        """Rows kept now."""
        return self._filled

    @property
    def nbytes(self) -> int:
        """Bytes of the rows kept now."""
        return sum(part[: self._filled].nbytes for part in self._ring)

    @property
    def full(self) -> int:
        """Bytes of all the rows that it can keep."""
        return sum(part.nbytes for part in self._ring)

    def add(self, rows: Rows) -> None:
        """Keep these rows (a copy), over the oldest."""
        given = min(len(rows[2]), self.rows)
        first = min(given, self.rows - self._next)
        for ring, part in zip(self._ring, rows, strict=True):
            newest = part[len(part) - given :]
            ring[self._next : self._next + first] = newest[:first]
            ring[: given - first] = newest[first:]
        self._next = (self._next + given) % self.rows
        self._filled = min(self._filled + given, self.rows)

    def sample(self, steps: int, chance: torch.Generator) -> list[Rows]:
        """Rows for so many steps, drawn with replacement. At least one row must have been added.

        A step gets `replay_batch` rows, or as many as are kept where those are fewer.
        """
        batch = min(self.settings.replay_batch, self._filled)
        index = self._draw(steps * batch, chance).to(self._ring[2].device)
        drawn = [torch.split(part.index_select(0, index), batch) for part in self._ring]
        return list(zip(*drawn, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The kept rows (a copy) and where the next one goes."""
        names = ("numeric", "categories", "target")
        kept = [part[: self._filled].clone().cpu().numpy() for part in self._ring]
        return {"next": self._next, **dict(zip(names, kept, strict=True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From what `state_dict` of a ring of the same size gave."""
        self._next, self._filled = state["next"], len(state["target"])
        for name, part in zip(("numeric", "categories", "target"), self._ring, strict=True):
            part[: self._filled] = torch.tensor(state[name])

    def _draw(self, n: int, chance: torch.Generator) -> torch.Tensor:
        if self.settings.replay_sampling == "uniform":
            return torch.randint(self._filled, (n,), generator=chance)
        # The age is exponential, cut off at the oldest row: its distribution function, inverted.
        share = torch.rand(n, dtype=torch.float64, generator=chance)
        share *= -math.expm1(-self._rate * self._filled)
        age = torch.log1p(-share).div_(-self._rate).long().clamp_(max=self._filled - 1)
        return (self._next - 1 - age) % self._filled


__all__ = ["Replay", "ReplaySettings", "Rows"]
