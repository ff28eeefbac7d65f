"""Input splits: whole files, or pieces of them that can be distributed to several engines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from engine.types import Records, Settings
from engine.types.changes import Fixed, Free

PIECE_BYTES = 32 << 20
"""The bytes of a piece of plain text."""
SHARD_GROUPS = 64
"""The groups of files that are one row each: at most that many engines can share them."""
EPOCH_STRIDE = 1 << 40
"""The number added to positions on a mark in each epoch, so that positions of epochs differ and
the mark stays small."""


class ShardSettings(Settings):
    """How often files are read, in which order, and by which engine.

    Attributes:
        epochs: how often all files are read.
        shuffle_files: read the files of each epoch in another order.
        seed: of the order of `shuffle_files`.
        shards: engines that share the files, each row read by one; "env" takes WORLD_SIZE. None
            shares nothing. To resume n engines as m, see `engine.types.Mark.joined`.
        shard: which of them this one is, from 0; "env" takes RANK.
    """

    epochs: Free[int] = Field(1, ge=1, le=1 << 20)
    shuffle_files: Free[bool] = False
    seed: Free[int] = Field(0, ge=0)
    shards: Fixed[int | Literal["env"] | None] = None
    shard: Fixed[int | Literal["env"]] = 0

    @model_validator(mode="after")
    def _within(self) -> ShardSettings:
        shard, shards = self.place()
        if not 0 <= shard < shards:
            raise ValueError(
                f"expected a shard from 0 to {max(shards - 1, 0)} of shards = {shards}, got {shard}"
            )
        return self

    def place(self) -> tuple[int, int]:
        """Return the shard's number and the number of shards. Raises: ValueError if the
        environment does not tell."""
        shards = 1 if self.shards is None else self.shards
        return _number(self.shard, "RANK"), _number(shards, "WORLD_SIZE")


@dataclass(frozen=True, slots=True)
class InputSplit:
    """A partition: a file, or its rows that begin at or after `start` and before `stop`.

    Attributes:
        name: the name of the partition.
        file: the name of the file; empty for files that are one row each.
        start, stop: positions in the file; None: to its end.
        group: for files that are one row each, which of `SHARD_GROUPS`; None: all.
        size: the approximate size in bytes.
    """

    name: str
    file: str
    start: int = 0
    stop: int | None = None
    group: int | None = None
    size: int = 1


class Readable(Protocol):
    """An open file."""

    @property
    def total(self) -> int:
        """The last position, as far as known."""
        ...

    def skip_to(self, position: int) -> None:
        """Continue at a position."""
        ...

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """Return the next rows, None at the end."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class SplitReader:
    """Reads the part of an open file that belongs to a split.

    Args:
        file: the open file.
        first: the position of the first row.
        stop: the position from which rows belong to another split.
    """

    def __init__(self, file: Readable, name: str, first: int, stop: int) -> None:
        self._file = file
        self._name = name
        self._first = first
        self._stop = stop
        self.next = first

    @property
    def total(self) -> int:
        return min(self._stop, self._file.total) if self._file.total else self._stop

    def skip_to(self, position: int) -> None:
        self.next = max(position, self._first)
        if self.next < self._stop:
            self._file.skip_to(self.next)

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        if self.next >= self._stop:
            return None
        records = self._file.read(max_rows, max_bytes)
        if records is None:
            self.next = self._stop
            return None
        n = int(np.searchsorted(records.positions, self._stop))
        self.next = self._stop if n < len(records) else records.next
        if not n:
            return None
        return replace(records.slice(0, n), partition=self._name, next=self.next)

    def close(self) -> None:
        self._file.close()


def line_start(path: Path, position: int) -> int:
    """Return where the first line begins at or after `position`."""
    if position == 0:
        return 0
    with path.open("rb") as file:
        file.seek(position - 1)
        file.readline()
        return file.tell()


def pieces(
    files: Mapping[str, Path],
    bounds: Callable[[str, Path], Sequence[int] | None],
) -> Iterator[InputSplit]:
    """Return the splits of files; `bounds` gives the offsets at which a file may be cut, first
    and last included, None if it may not be."""
    for name, path in files.items():
        cuts = bounds(name, path)
        if cuts is None or len(cuts) < 2:
            yield InputSplit(name, name, size=path.stat().st_size)
            continue
        size = path.stat().st_size // (len(cuts) - 1)
        for number, (start, stop) in enumerate(pairwise(cuts)):
            yield InputSplit(f"{name}[{number}]", name, int(start), int(stop), size=size)


def text_bounds(path: Path) -> list[int]:
    """Return the bounds of text: every `PIECE_BYTES`."""
    size = path.stat().st_size
    return [*range(0, size, PIECE_BYTES), size]


def order(n: int, settings: ShardSettings, epoch: int) -> NDArray[np.int64]:
    """Return the order of n splits in an epoch."""
    if not settings.shuffle_files:
        return np.arange(n)
    return np.random.default_rng((settings.seed, epoch)).permutation(n)


def _number(given: int | str, variable: str) -> int:
    if given != "env":
        return int(given)
    text = os.environ.get(variable, "")
    if not text.isdigit():
        raise ValueError(f"expected a number in the environment variable {variable}, got '{text}'")
    return int(text)


__all__ = [
    "EPOCH_STRIDE",
    "SHARD_GROUPS",
    "InputSplit",
    "Readable",
    "ShardSettings",
    "SplitReader",
    "line_start",
    "order",
    "pieces",
    "text_bounds",
]
