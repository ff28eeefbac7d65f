"""Rows that wait for their step while the states of their keys move on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from engine.types import Features, KeyedState, Snapshot, Tensors
from models.carry import Carry
from models.learners.online.carried import CarriedStates
from models.learners.online.replay.rehearsal import Rehearsal
from models.learners.online.scorer import Scorer
from models.learners.online.steps.progress import BatchProgress
from models.learners.online.steps.waiting_rows import N, WaitingRows

MOST_PASSED = 4_096
"""The most rows of a step, with those that are not learned."""


class KeyedRows(WaitingRows[N]):
    """Waiting rows that take the states of their keys along. Rows that are not learned from wait
    too: they pass in their turn.

    Args:
        state: what is carried.
    """

    def __init__(
        self,
        scorer: Scorer[N],
        rehearsal: Rehearsal,
        features: Features,
        state: KeyedState,
        *,
        device: str,
    ) -> None:
        super().__init__(scorer, rehearsal, features, device=device)
        self._carried = CarriedStates(state, device)

    def __len__(self) -> int:
        return len(self._carried)

    @property
    def full(self) -> bool:
        return self._carried.rows >= MOST_PASSED

    def end(self, rows: Tensors, at: int, room: int) -> int:
        most = MOST_PASSED - self._carried.rows
        if rows.learned is not None:
            learned = np.flatnonzero(rows.learned.cpu().numpy()[at : at + most])
            room = int(learned[room - 1]) + 1 if len(learned) >= room else most
        return min(len(rows), at + min(room, most))

    def add(
        self, part: Tensors, at: int, progress: BatchProgress, *, step_rows: int, trains: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        passage = self._carried.enter(part, progress.counts)
        carry = passage.carry(self._device)
        if trains and not self._carried.rows and passage.learned.sum() >= step_rows:
            raw = self._scorer.train(part, carry)
        else:
            raw = self._scorer.raw(part, carry)
        bad, learned = self._bad(part, raw.detach()), passage.learned
        if bad is not None:
            progress.not_learned[at : at + len(part)] = bad & learned
            learned = learned & ~bad
            broken = ~torch.isfinite(raw.detach()).reshape(len(part), -1).all(1)
            numeric = part.numeric.masked_fill(broken[:, None], 0.0)
            part = dataclasses.replace(part, numeric=numeric)
        rows = np.flatnonzero(learned)
        self._carried.wait(passage, learned, carry, hold=bad is None)
        self._buffer.add(part)
        progress.waits(at + rows)
        self._rehearsal.add(part if learned.all() else part.take(rows))
        return raw, raw if raw.requires_grad and bad is None else None

    def learned(
        self, rows: Tensors, augmented: Tensors, raw: torch.Tensor | None
    ) -> tuple[Tensors, Tensors, torch.Tensor | None]:
        """Rows of a key that are in this step follow one another, with a gradient through all of
        them."""
        passage = self._carried.take()
        carry = passage.carry(self._device)
        scored: Carry | None = None
        if passage.states is None and not (self._scorer.trains_on_scores and augmented is rows):
            scored = passage.carry(self._device)
            self._scorer.raw(rows, scored)
        elif passage.states is None:
            scored = carry
        raw = self._scorer.train(augmented, carry) if raw is None else raw
        self._rehearsal.set_states(self._carried.settle(passage, scored))
        return passage.of_learned(rows), passage.of_learned(augmented), passage.raw_of_learned(raw)

    def pass_on(self) -> None:
        rows, passage = self.take(), self._carried.take()
        carry: Carry | None = None
        if passage.states is None:
            carry = passage.carry(self._device)
            self._scorer.raw(rows, carry)
        self._carried.settle(passage, carry)

    def carry(self, rows: Tensors) -> Carry | None:
        return self._carried.look_up(rows)

    def memory(self) -> dict[str, int]:
        return {**super().memory(), "states": self._carried.nbytes}

    def snapshot(self) -> dict[str, Snapshot]:
        return {**super().snapshot(), "carried": self._carried.snapshot()}

    def restore(self, state: Mapping[str, Snapshot]) -> None:
        super().restore(state)
        self._carried.restore(state["carried"])


__all__ = ["MOST_PASSED", "KeyedRows"]
