"""Scores rows as they come, and keeps them until they are a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from engine.types import Features, Snapshot, Tensors
from models.carry import Carry
from models.learners.labelled import target_of
from models.learners.online.replay.rehearsal import Rehearsal
from models.learners.online.scorer import Scorer
from models.learners.online.steps.buffer import StepBuffer, fit_lengths
from models.learners.online.steps.progress import BatchProgress
from models.learners.online.trainable import TrainableNetwork

N = TypeVar("N", bound=TrainableNetwork)
MAX_SCORE = 1e18
"""The bound of scores and targets: their squares must be float32."""


class WaitingRows(Generic[N]):
    """Rows that are scored and wait for their step, each of which stands for itself.

    Args:
        scorer: of rows.
        rehearsal: keeps the rows too, to learn them again.
        features: of rows.
        device: where they are.
    """

    def __init__(
        self, scorer: Scorer[N], rehearsal: Rehearsal, features: Features, *, device: str
    ) -> None:
        self._scorer = scorer
        self._rehearsal = rehearsal
        self._features = features
        self._device = device
        self._buffer = StepBuffer()

    def __len__(self) -> int:
        """The rows that wait to be learned."""
        return len(self._buffer)

    @property
    def full(self) -> bool:
        """Whether a step is due however few rows it learns from."""
        return False

    def end(self, rows: Tensors, at: int, room: int) -> int:
        """Return where rows from row `at` on end, so that `room` of them are learned from."""
        if rows.learned is None:
            return min(len(rows), at + room)
        learned = np.flatnonzero(rows.to_learn[at:])
        return at + int(learned[room - 1]) + 1 if len(learned) >= room else len(rows)

    def add(
        self, part: Tensors, at: int, progress: BatchProgress, *, step_rows: int, trains: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Score rows, and let those that are learned wait for their step, except those with a
        non-finite loss.

        Args:
            at: the number of the first row in its batch.
            step_rows: the rows of a step.
            trains: whether a step may train on the scores that its rows have got.

        Returns:
            Their raw scores; and those of the rows that wait, with a gradient, if they are a step
            that may train on them.
        """
        trains = trains and not len(self._buffer)
        if part.learned is None:
            rows, trains = np.arange(at, at + len(part)), trains and len(part) >= step_rows
            return self._add(part, rows, progress, trains=trains)
        learned = part.to_learn
        rows, part = np.flatnonzero(learned), dataclasses.replace(part, learned=None)
        trains = trains and len(rows) >= step_rows
        if len(rows) == len(part):
            return self._add(part, at + rows, progress, trains=trains)
        # Apart, so that a step is the same to the bit with and without the others.
        rest = np.flatnonzero(~learned)
        raw = self._scorer.raw(fit_lengths(part.take(rest), self._features))
        if not len(rows):
            return raw, None
        own = fit_lengths(part.take(rows), self._features)
        scores, known = self._add(own, at + rows, progress, trains=trains)
        order = np.argsort(np.concatenate((rest, rows)))
        whole = torch.cat((raw.detach(), scores.detach()))
        return whole[torch.from_numpy(order).to(whole.device)], known

    def _add(
        self, part: Tensors, rows: NDArray[np.int64], progress: BatchProgress, *, trains: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Score rows that are learned, and let them wait; see `add`.

        Args:
            rows: their numbers in the batch.
        """
        raw = self._scorer.train(part) if trains else self._scorer.raw(part)
        known = raw
        bad = self._bad(part, raw.detach())
        if bad is not None:
            progress.not_learned[rows] = bad
            waits = np.flatnonzero(~bad)
            if not len(waits):
                return raw, None
            part, known = part.take(waits), raw[torch.from_numpy(waits).to(raw.device)]
            rows = rows[waits]
        self._buffer.add(part)
        progress.waits(rows)
        self._rehearsal.add(part)
        return raw, known if known.requires_grad else None

    def take(self) -> Tensors:
        """Return and remove the rows of the step."""
        return fit_lengths(self._buffer.take(), self._features)

    def learned(
        self, rows: Tensors, augmented: Tensors, raw: torch.Tensor | None
    ) -> tuple[Tensors, Tensors, torch.Tensor | None]:
        """Return those of the rows that were taken that are learned from, as they came and
        augmented, and their raw scores with a gradient, where they are known.

        Args:
            raw: what `add` returned last.
        """
        return rows, augmented, raw

    def pass_on(self) -> None:
        """Let go of rows of which none is learned."""
        raise AssertionError("all rows that wait are learned")

    def carry(self, rows: Tensors) -> Carry | None:
        """Return the states of the rows' keys; None where none is carried."""
        return None

    def forget_classes(self, gone: torch.Tensor) -> None:
        """Let these classes be none, -1, in the rows."""
        self._buffer.forget_classes(gone)

    def memory(self) -> dict[str, int]:
        """Return component -> bytes."""
        return {"replay": self._buffer.nbytes + self._rehearsal.nbytes}

    def snapshot(self) -> dict[str, Snapshot]:
        """Return the state as a plain value. A copy."""
        return {"waiting": self._buffer.snapshot()}

    def restore(self, state: Mapping[str, Snapshot]) -> None:
        """Restore a `snapshot`."""
        self._buffer.restore(state["waiting"], self._device)

    def _bad(self, part: Tensors, raw: torch.Tensor) -> NDArray[np.bool_] | None:
        """Return a mask of rows with a non-finite loss; None if all are finite."""
        large = np.abs(raw.cpu().numpy())
        large = large if large.ndim == 1 else large.max(1)
        if self._features.task == "regression":
            goal = np.abs(self._scorer.target_scale.forward(target_of(part)).cpu().numpy())
            if self._features.targets:
                goal = np.nan_to_num(goal, posinf=np.inf).max(1)
            large = np.maximum(large, goal)
        if large.max() < MAX_SCORE:  # nan is not
            return None
        bad: NDArray[np.bool_] = ~(large < MAX_SCORE)
        return bad


__all__ = ["WaitingRows"]
