"""Rows that follow one another: each takes the state that the one before it has left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeAlias

import torch

from engine.columnar.state_table import Rounds, States

STATE = "state"
"""The parameter of a forward that gets the state of each row."""
CarryStep: TypeAlias = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""``step(*tensors, state) -> (result, state)`` of rows of which none follows another."""


@dataclass(slots=True, kw_only=True, eq=False)
class Carry:
    """The states with which the rows of one call begin and end.

    Attributes:
        start: the state before each sequence, shape (sequences, width), float32.
        order, place: as in `Rounds`; None where every row is a sequence, in the order of the rows.
        sizes: the rows of each round.
        states: the state after each row, shape (n, width); set by the call.
    """

    start: torch.Tensor
    order: torch.Tensor | None = None
    place: torch.Tensor | None = None
    sizes: tuple[int, ...] = ()
    states: torch.Tensor | None = None

    @classmethod
    def of(cls, rounds: Rounds, start: States, device: str = "cpu") -> Self:
        """Return the carry of rows that have these rounds."""
        first = torch.from_numpy(start).to(device)
        if len(rounds.sizes) <= 1:
            return cls(start=first)
        return cls(
            start=first,
            order=torch.from_numpy(rounds.order).to(device),
            place=torch.from_numpy(rounds.place).to(device),
            sizes=tuple(rounds.sizes.tolist()),
        )

    @property
    def after(self) -> torch.Tensor:
        """The state after each row, once the rows were passed, without a gradient."""
        assert self.states is not None, "the call has passed its rows"
        return self.states.detach()

    def run(self, step: CarryStep, *tensors: torch.Tensor) -> torch.Tensor:
        """Return what a step makes of the rows, round by round; sets `states`.

        Args:
            tensors: shape (n, ...) each.
        """
        if self.order is None or self.place is None:
            result, self.states = step(*tensors, self.start)
            return result
        rows = [tensor.index_select(0, self.order) for tensor in tensors]
        results, states = [], []
        state, at = self.start, 0
        for size in self.sizes:
            part = (tensor[at : at + size] for tensor in rows)
            result, state = step(*part, state[:size])
            results.append(result)
            states.append(state)
            at += size
        self.states = torch.cat(states).index_select(0, self.place)
        return torch.cat(results).index_select(0, self.place)


__all__ = ["STATE", "Carry", "CarryStep"]
