"""The rows that a learner learns again, in the scale of now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from engine.types import Features, Scales, Tensors, UserError
from models.carry import Carry
from models.learners.online.replay.buffer import DEFAULT_REPLAY_ROWS, Replay, ReplaySettings
from models.learners.online.replay.parts import packed, parts_of, unpacked
from models.learners.online.replay.rescale import Rescale

DEFAULT_REPLAY_BYTES = 32 << 20
"""The most bytes of a replay whose rows are not given."""


class Rehearsal:
    """The rows that a learner learns again: kept as they were before stages scaled them, given back
    in the scale of now. Empty if none are kept.

    Args:
        settings: how many rows are kept, and how they are drawn.
        features: of the learner.
        nested: also keep rows with images, padded lists and arrays.

    Raises: UserError if rows are to be kept that a replay cannot hold.
    """

    def __init__(
        self, settings: ReplaySettings, features: Features, device: str, *, nested: bool = False
    ) -> None:
        self._keeps = nested or not features.nested
        if settings.replay_rows and not self._keeps:
            raise UserError(
                "[train] replay_rows keeps numbers and categories, and [model] reads images or "
                f"lists ('{features.nested[0]}'): take it out."
            )
        self._settings = settings
        self._features = features
        self._device = device
        self._parts = parts_of(features) if self._keeps else []
        self._rescale = Rescale(features, device)
        self._rng = torch.Generator()
        self.limit_memory(DEFAULT_REPLAY_BYTES)

    def limit_memory(self, nbytes: int) -> None:
        """Limit the bytes, unless `replay_rows` gives the size. Called before rows are added."""
        self.limit = min(nbytes, DEFAULT_REPLAY_BYTES)
        self._replay = self._make_replay()

    def add(self, rows: Tensors) -> None:
        """Keep a copy of rows, as they were before stages scaled them, over the oldest."""
        if self._replay is None:
            return
        assert rows.target is not None
        whole = self._rescale.unscale(rows)
        parts = packed(rows, self._features) if self._parts else ()
        self._replay.add((whole, rows.categories, rows.target, *parts))

    def set_states(self, states: torch.Tensor) -> None:
        """Keep the states before the newest rows, shape (n, width), with them."""
        if self._replay is not None:
            self._replay.set_states(states)

    def seed(self, seed: int) -> None:
        """Seed what is drawn next."""
        if self._replay is not None:
            self._rng.manual_seed(seed)

    def sample(
        self, steps: int, step: int, scales: Scales
    ) -> Iterator[tuple[Tensors, Carry | None]]:
        """Yield the rows of each replay step, in these scales, and the states that they begin with,
        if there are any; see `Replay.sample`."""
        if self._replay is None or steps < 1:
            return
        for numeric, categories, target, *parts in self._replay.sample(steps, self._rng, step):
            rescaled = self._rescale.rescale(numeric, scales)
            carry = None if self._features.state is None else Carry(start=parts[-1])
            yield unpacked(rescaled, categories, target, parts, self._features), carry

    def forget_classes(self, slots: torch.Tensor) -> None:
        """Let these classes be none, -1, in the rows kept."""
        if self._replay is not None:
            self._replay.forget_classes(slots)

    @property
    def rows(self) -> int:
        """The number of rows kept at most."""
        return 0 if self._replay is None else self._replay.rows

    @property
    def nbytes(self) -> int:
        """The bytes of the rows kept."""
        return 0 if self._replay is None else self._replay.nbytes

    @property
    def host_bytes(self) -> int:
        """The bytes in host memory once it is full."""
        replay = self._replay
        return 0 if replay is None or replay.device != "cpu" else replay.capacity_bytes

    def state_dict(self) -> dict[str, Any] | None:
        """Return the state of the replay; None where no rows are kept."""
        return None if self._replay is None else self._replay.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Restore the `state_dict` of a rehearsal of the same size."""
        if self._replay is not None:
            assert state is not None
            self._replay.load_state_dict(state)

    def _make_replay(self) -> Replay | None:
        """Return the replay; by default as large as fits."""
        features, asked = self._features, self._settings.replay_rows
        if asked == 0 or not self._keeps:
            return None
        widths, exact = (len(features.numeric), len(features.categories)), bool(features.scaled)
        targets = len(features.targets)
        row = Replay.row_bytes(*widths, targets=targets, exact=exact, parts=self._parts)
        room = max(1, self.limit // row)
        return Replay(
            self._settings,
            rows=asked or min(DEFAULT_REPLAY_ROWS, room),
            numeric=widths[0],
            categories=widths[1],
            target=torch.float32 if features.task == "regression" else torch.int64,
            targets=targets,
            exact=exact,
            parts=self._parts,
            device=self._device,
        )


__all__ = ["Rehearsal"]
