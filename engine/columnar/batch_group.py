"""A group of consecutive batches the loader processes in one pass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import polars as pl

from engine.types import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchGroup:
    """A group of consecutive batches. If their rows are adjacent in one frame, a step may process
    them in one call, which pays the per-call overhead of Python and polars once. The result is
    identical, bit for bit, to processing one batch after the other.

    Attributes:
        batches: one or more.
        frame: all their rows, each batch's own a part of it; None where they do not lie in one.
    """

    batches: tuple[Batch, ...]
    frame: pl.DataFrame | None = None

    @classmethod
    def of(cls, batch: Batch) -> BatchGroup:
        """Return a group of one batch."""
        return cls(batches=(batch,), frame=batch.frame)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def ends(self) -> list[int]:
        """The row numbers at which batches begin, and the end."""
        return list(accumulate(map(len, self.batches), initial=0))

    def map(self, step: Callable[[Batch], Batch], frame: pl.DataFrame | None = None) -> BatchGroup:
        """Return the group after a step applied to each batch separately.

        Args:
            frame: all their rows afterwards, where they lie in one still.

        Raises: StepFailed if the step failed at another batch than the first; what the step
            raised where it was the first.
        """
        done: list[Batch] = []
        for batch in self.batches:
            try:
                done.append(step(batch))
            except BaseException as error:
                if not done:
                    raise
                raise StepFailed(BatchGroup.concat(done)) from error
        group = BatchGroup.concat(done)
        return group if len(group) == 1 else dataclasses.replace(group, frame=frame)

    @classmethod
    def concat(cls, batches: Sequence[Batch]) -> BatchGroup:
        """Return a group of batches that are not adjacent in one frame."""
        return cls.of(batches[0]) if len(batches) == 1 else cls(batches=tuple(batches))

    def with_frame(self, frame: pl.DataFrame) -> BatchGroup:
        """Return the same batches with other columns, whose rows are those of the frame."""
        parts = zip(self.batches, slices(frame, self.ends), strict=True)
        batches = tuple(dataclasses.replace(batch, frame=part) for batch, part in parts)
        return BatchGroup(batches=batches, frame=frame)


class StepFailed(Exception):
    """A step failed; `__cause__` is why. The batches before it are done.

    Attributes:
        done: those batches.
    """

    def __init__(self, done: BatchGroup) -> None:
        super().__init__()
        self.done = done


def slices(frame: pl.DataFrame, ends: Sequence[int]) -> Iterator[pl.DataFrame]:
    """Return slices of a frame, between the rows of `ends`."""
    return (frame.slice(start, stop - start) for start, stop in pairwise(ends))


__all__ = ["BatchGroup", "StepFailed", "slices"]
