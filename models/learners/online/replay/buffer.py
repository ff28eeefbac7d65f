"""A ring buffer of the newest rows, to learn them again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field

from engine.types import Settings, UserError
from models.learners.online.replay.parts import Part

DEFAULT_REPLAY_ROWS = 10_000
EARLY_REPLAY_STEPS, EARLY_REPLAY_ROWS = 4, 32_768
"""Replay steps after each step, while the rows seen are fewer than this multiple."""
ReplayRows = tuple[torch.Tensor, ...]
"""Numeric (n, d), categories (n, c), target (n,), and further parts (n, ...)."""


class ReplaySettings(Settings):
    """The replay's keys of ``[train]``.

    Attributes:
        replay_rows [rows]: how many of the newest rows are kept; 0 keeps none. Unless given,
            10,000, or as many as 32 MiB hold; none of images and lists by kind = "tabular".
        replay_steps [steps]: steps on kept rows after each step on new ones; unless given, 4 while
            the model is young, ever fewer from 8,192 rows on, none from 32,768 on; where
            `replay_rows` is given, 1 at least.
        replay_batch [rows]: rows of such a step; unless given, as many as a step on new rows
            has, 64 to 512.
        replay_sampling: ``uniform``, or ``recent``: a row's chance halves with every
            `replay_half_life` newer rows.
        replay_half_life [rows]: in rows; a quarter of the rows that are kept unless given.
    """

    replay_rows: int | None = Field(None, ge=0)
    replay_steps: int | None = Field(None, ge=0)
    replay_batch: int | None = Field(None, ge=1)
    replay_sampling: Literal["uniform", "recent"] = "uniform"
    replay_half_life: float | None = Field(None, gt=0)

    def replay_steps_after(self, rows: int) -> int:
        """Return the replay steps after a step of a model that has seen so many rows."""
        if self.replay_steps is not None:
            return self.replay_steps
        least = 0 if self.replay_rows is None else 1
        return max(least, min(EARLY_REPLAY_STEPS, EARLY_REPLAY_ROWS // max(rows, 1)))

    def replay_rows_for(self, step: int) -> int:
        """Return the rows of a replay step, if a step on new rows has `step`."""
        return self.replay_batch or min(max(step, 64), 512)


class Replay:
    """A ring buffer of rows.

    Args:
        settings: how they are drawn.
        rows: how many are kept, above 0; None goes by the settings.
        numeric, categories: widths of a row.
        target: the targets' type.
        targets: of a row; 0 for a single one, whose shape is (n,).
        exact: keep numbers as float64, for rows that are scaled after they were kept.
        parts: further parts of each row.
    """

    def __init__(
        self,
        settings: ReplaySettings,
        *,
        rows: int | None = None,
        numeric: int,
        categories: int,
        target: torch.dtype,
        targets: int = 0,
        exact: bool = False,
        parts: Sequence[Part] = (),
        device: str = "cpu",
    ) -> None:
        self.settings = settings
        self.rows = rows = rows or settings.replay_rows or DEFAULT_REPLAY_ROWS
        self.device = torch.device(device).type
        shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
            ((rows, numeric), _float(exact)),
            ((rows, categories), torch.int64),
            ((rows, targets) if targets else (rows,), target),
            *(((rows, *part.shape), part.dtype) for part in parts),
        ]
        try:
            self._ring: ReplayRows = tuple(
                torch.empty(shape, dtype=dtype, device=device) for shape, dtype in shapes
            )
        except RuntimeError:
            size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in shapes)
            raise UserError(
                f"[train] replay_rows = {rows:,} takes {size:,} bytes, which the memory of "
                f"'{self.device}' does not have: expected fewer rows."
            ) from None
        self._names = ("numeric", "categories", "target", *(part.name for part in parts))
        self._filled = self._next = 0
        self._row_bytes = self.capacity_bytes // rows
        half_life = settings.replay_half_life or rows / 4
        self._rate = math.log(2) / half_life

    def __len__(self) -> int:
        """The number of rows kept."""
        return self._filled

    @property
    def nbytes(self) -> int:
        """The bytes of the rows kept. Asked for with every batch."""
        return self._row_bytes * self._filled

    @property
    def capacity_bytes(self) -> int:
        """The bytes of a full replay."""
        return sum(part.nbytes for part in self._ring)

    def add(self, rows: ReplayRows) -> None:
        """Keep a copy of these rows, over the oldest."""
        given = min(len(rows[2]), self.rows)
        first = min(given, self.rows - self._next)
        for ring, part in zip(self._ring, rows, strict=True):
            newest = part[len(part) - given :]
            ring[self._next : self._next + first] = newest[:first]
            if first < given:
                ring[: given - first] = newest[first:]
        self._next = (self._next + given) % self.rows
        self._filled = min(self._filled + given, self.rows)

    def set_states(self, states: torch.Tensor) -> None:
        """Set the last part of the newest rows, shape (n, ...)."""
        newest = states[-self.rows :]
        at = torch.arange(self._next - len(newest), self._next) % self.rows
        self._ring[-1][at.to(states.device)] = newest

    def sample(self, steps: int, rng: torch.Generator, step: int = 0) -> list[ReplayRows]:
        """Return rows for so many steps, drawn with replacement. At least one row must have been
        added.

        A step gets what `ReplaySettings.replay_rows_for` says of one with `step` new rows, or as
        many as are kept where those are fewer.
        """
        batch = min(self.settings.replay_rows_for(step), self._filled)
        index = self._draw(steps * batch, rng).to(self._ring[2].device)
        drawn = [torch.split(part.index_select(0, index), batch) for part in self._ring]
        return list(zip(*drawn, strict=True))

    def forget_classes(self, slots: torch.Tensor) -> None:
        """Let these classes be none, -1, in the rows kept."""
        target = self._ring[2][: self._filled]
        target[torch.isin(target, slots.to(target.device))] = -1

    def state_dict(self) -> dict[str, Any]:
        """Return the kept rows (a copy) and where the next one goes."""
        kept = [part[: self._filled].clone().cpu().numpy() for part in self._ring]
        return {"next": self._next, **dict(zip(self._names, kept, strict=True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the `state_dict` of a replay of the same size."""
        self._next, self._filled = state["next"], len(state["target"])
        for name, part in zip(self._names, self._ring, strict=True):
            part[: self._filled] = torch.tensor(state[name])

    def _draw(self, n: int, rng: torch.Generator) -> torch.Tensor:
        if self.settings.replay_sampling == "uniform":
            return torch.randint(self._filled, (n,), generator=rng)
        # The age is exponential, cut off at the oldest row: its distribution function, inverted.
        share = torch.rand(n, dtype=torch.float64, generator=rng)
        share *= -math.expm1(-self._rate * self._filled)
        age = torch.log1p(-share).div_(-self._rate).long().clamp_(max=self._filled - 1)
        return (self._next - 1 - age) % self._filled

    @staticmethod
    def row_bytes(
        numeric: int,
        categories: int,
        *,
        targets: int = 0,
        exact: bool = False,
        parts: Sequence[Part] = (),
    ) -> int:
        """Return the bytes of a row, with the widest target."""
        more = sum(part.nbytes for part in parts)
        return numeric * _float(exact).itemsize + 8 * categories + 8 * max(1, targets) + more


def _float(exact: bool) -> torch.dtype:
    return torch.float64 if exact else torch.float32


__all__ = ["DEFAULT_REPLAY_ROWS", "Replay", "ReplayRows", "ReplaySettings"]
