"""The states that a learner carries from row to row of a key, as it scores and as it learns."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from engine.columnar.hashing import Hashes
from engine.columnar.state_table import Rounds, States, StateTable
from engine.types import KeyedState, Tensors, UserError
from engine.types.arrays import Bools, Ints
from models.carry import Carry

KEY_BYTES = 48
"""The most bytes of a key in a table, without its state."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passage:
    """Consecutive rows on their way through the states of their keys.

    Attributes:
        row: the number of the first row.
        slots: where the table keeps each row's key, shape (n,).
        previous: number of the row in which the key stood before, -1 where it starts anew; (n,).
        learned: the rows to learn from, bool, shape (n,).
        rounds: of the rows.
        start: the states that the sequences begin with, shape (sequences, width).
        states: after each row, if all were scored in one call, shape (n, width); else None.
    """

    row: int
    slots: Ints
    previous: Ints
    learned: Bools
    rounds: Rounds
    start: States
    states: States | None = None

    @classmethod
    def of(cls, row: int, slots: Ints, previous: Ints, learned: Bools, starts: States) -> Self:
        """Return the passage of rows.

        Args:
            starts: the state before each row that begins a sequence; any before the others; shape
                (n, width).
        """
        rounds = Rounds.of(np.maximum(previous - row, -1))
        start = starts[rounds.first]
        return cls(
            row=row, slots=slots, previous=previous, learned=learned, rounds=rounds, start=start
        )

    @classmethod
    def joined(cls, parts: Sequence[Passage]) -> Passage:
        """Return parts that follow one another as one."""
        if len(parts) == 1:
            return parts[0]
        return cls.of(
            parts[0].row,
            np.concatenate([part.slots for part in parts]),
            np.concatenate([part.previous for part in parts]),
            np.concatenate([part.learned for part in parts]),
            np.concatenate([part.starts for part in parts]),
        )

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def starts(self) -> States:
        """The `start` of each row that begins a sequence, 0 for the others, shape (n, width)."""
        starts = np.zeros((len(self), self.start.shape[1]), np.float32)
        starts[self.rounds.first] = self.start
        return starts

    def carry(self, device: str) -> Carry:
        """Return what a network is called with."""
        return Carry.of(self.rounds, self.start, device)

    def of_learned(self, rows: Tensors) -> Tensors:
        """Return those of the rows that are learned from."""
        return rows if self.learned.all() else rows.take(np.flatnonzero(self.learned))

    def raw_of_learned(self, raw: torch.Tensor) -> torch.Tensor:
        """Return their raw scores."""
        if self.learned.all():
            return raw
        return raw[torch.from_numpy(self.learned).to(raw.device)]

    def snapshot(self) -> dict[str, Any]:
        """Return a plain value: the arguments of `of`."""
        return {
            "row": self.row,
            "slots": self.slots,
            "previous": self.previous,
            "learned": self.learned,
            "starts": self.starts,
        }


class CarriedStates:
    """The states of keys, and the rows that wait for their step.

    A row is scored as soon as it comes, with whatever came with it; its step passes all of its rows
    once more together, unless one call has scored them all. What a step leaves in the table holds,
    so that states depend on the rows and not on how they were cut into batches, to the bit. Until
    then the table has what scoring has left, which is the same but for rounding.

    Raises: UserError if there is no memory for so many keys.
    """

    def __init__(self, state: KeyedState, device: str) -> None:
        try:
            self._table = StateTable(
                width=state.width, keys=state.keys, idle=state.idle, timed=state.time is not None
            )
        except MemoryError:
            raise UserError(
                f"[model.state] keys = {state.keys:,} with states of {state.width:,} numbers may "
                f"take {state.keys * (KEY_BYTES + 4 * state.width):,} bytes, more than this "
                "machine has: lower keys or width."
            ) from None
        self._device = device
        self._waiting: list[Passage] = []

    def __len__(self) -> int:
        """The rows that wait to be learned."""
        return sum(int(part.learned.sum()) for part in self._waiting)

    @property
    def rows(self) -> int:
        """The rows that wait for their step, with those that are not learned."""
        return sum(map(len, self._waiting))

    @property
    def nbytes(self) -> int:
        """The bytes of keys and states."""
        return self._table.nbytes

    def enter(self, rows: Tensors, counts: Counter[str]) -> Passage:
        """Let rows in, in the order of the stream; `wait` must follow.

        Args:
            counts: gets how many keys were forgotten, and how many have expired.
        """
        entry = self._table.enter(_hashes(rows), _times(rows))
        counts.update(entry.counts)
        rounds = Rounds.of(np.maximum(entry.previous - entry.row, -1))
        learned = np.ones(len(rows), np.bool_)
        return Passage(
            row=entry.row,
            slots=entry.slots,
            previous=entry.previous,
            learned=learned if rows.learned is None else rows.learned.cpu().numpy(),
            rounds=rounds,
            start=self._table.states(entry, rounds.first),
        )

    def wait(self, passage: Passage, learned: Bools, carry: Carry, *, hold: bool) -> None:
        """Let rows that were scored wait for their step.

        Args:
            learned: the rows of the passage that can be learned.
            carry: of their scoring.
            hold: whether its states hold, if these are all rows of their step.
        """
        states = _array(carry)
        self._table.put(passage.slots, states)
        kept = states if hold else None
        self._waiting.append(dataclasses.replace(passage, learned=learned, states=kept))

    def take(self) -> Passage:
        """Return and remove all rows that wait; `settle` must follow."""
        parts, self._waiting = self._waiting, []
        return Passage.joined(parts)

    def settle(self, passage: Passage, carry: Carry | None) -> torch.Tensor:
        """Keep what the rows of a step leave behind; return the state before each row that is
        learned from, shape (learned, width).

        Args:
            carry: of a call with all of them; None if the `states` of the passage hold.
        """
        states = passage.states if carry is None else _array(carry)
        assert states is not None, "rows that were scored apart are passed together"
        if carry is not None:
            self._table.put(passage.slots, states)
        before = passage.rounds.states_before(passage.start, states)
        return torch.from_numpy(before[passage.learned]).to(self._device)

    def look_up(self, rows: Tensors) -> Carry:
        """Return what rows that came next would find. Changes nothing."""
        return Carry.of(*self._table.look_up(_hashes(rows), _times(rows)), self._device)

    def snapshot(self) -> dict[str, Any]:
        """Return a plain value, copied."""
        waiting = Passage.joined(self._waiting).snapshot() if self._waiting else {}
        return {"table": self._table.snapshot(), "waiting": waiting}

    def restore(self, value: Mapping[str, Any]) -> None:
        """Restore a `snapshot`."""
        self._table.restore(value["table"])
        self._waiting = [Passage.of(**value["waiting"])] if value["waiting"] else []


def _hashes(rows: Tensors) -> Hashes:
    assert rows.keys is not None, "collate hashes the keys of features with a state"
    hashes: Hashes = rows.keys.cpu().numpy().view(np.uint64)
    return hashes


def _times(rows: Tensors) -> Ints | None:
    times: Ints | None = None if rows.times is None else rows.times.cpu().numpy()
    return times


def _array(carry: Carry) -> States:
    """Return the states after each row; 0 for numbers that are not finite."""
    states: States = carry.after.float().nan_to_num(0.0, 0.0, 0.0).cpu().numpy()
    return states


__all__ = ["CarriedStates", "Passage"]
