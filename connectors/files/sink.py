"""Files as a sink: a folder of parts, one a flush, each there whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from engine import types
from engine.types import HeadraceError, Snapshot, UserError

Write = Callable[[pl.DataFrame, Path], None]
WRITERS: dict[str, Write] = {
    "parquet": lambda frame, path: frame.write_parquet(path),
    "ndjson": lambda frame, path: frame.write_ndjson(path),
    "csv": lambda frame, path: frame.write_csv(path),
    "arrow": lambda frame, path: frame.write_ipc(path),
}


class FilesSink:
    """See `engine.types.Sink`. ``flush`` turns what was written into ``part-00000012.parquet`` and
    counts up.

    A part is written under a temporary name, synced, renamed, and the folder synced. Beyond
    `max_buffer_bytes`, rows
    go to temporary parts early; only `flush` makes those visible. `restore` removes parts by their
    number, and never a
    file of another name.
    """

    class Settings(types.Settings):
        """``[sink] kind = "files"``

        Attributes:
            path: the folder; made when it is first needed.
            format: parquet, ndjson, csv or arrow.
            max_buffer_bytes: rows held in memory between flushes.
        """

        path: str
        format: Literal["parquet", "ndjson", "csv", "arrow"] = "parquet"
        max_buffer_bytes: int = Field(64 << 20, ge=1)

    def __init__(self, settings: FilesSink.Settings) -> None:
        self.settings = settings
        self.folder = Path(settings.path)
        self._write = WRITERS[settings.format]
        self._frames: list[pl.DataFrame] = []
        self._nbytes = 0
        self._spilled: list[Path] = []
        self._next = 0
        self._check()

    @property
    def nbytes(self) -> int:
        """Bytes held in memory."""
        return self._nbytes

    def write(self, frame: pl.DataFrame) -> None:
        """See `engine.types.Sink`. Raises: HeadraceError when the disk is full."""
        if not frame.height:
            return
        self._frames.append(frame)
        self._nbytes += int(frame.estimated_size())
        if self._nbytes > self.settings.max_buffer_bytes:
            self._spill()

    def flush(self) -> None:
        """See `engine.types.Sink`. Raises: HeadraceError when the disk is full; nothing of it is
        visible then."""
        self._spill()
        if not self._spilled:
            return
        try:
            for temporary in self._spilled:
                temporary.replace(self._part(self._next))
                self._next += 1
            _sync(self.folder)
        except OSError as error:
            raise self._error(error) from error
        self._spilled = []

    def snapshot(self) -> Snapshot:
        """The next part's number."""
        return self._next

    def restore(self, value: Snapshot) -> None:
        """Remove parts of this number and above, and temporary ones; None removes all parts."""
        self.close()
        self._next = value or 0
        pattern = re.compile(rf"part-(\d{{8}})\.{self.settings.format}(\.tmp)?")
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = pattern.fullmatch(path.name)
            if match and (match[2] or int(match[1]) >= self._next):
                path.unlink()

    def close(self) -> None:
        """See `engine.types.Sink`."""
        for temporary in self._spilled:
            temporary.unlink(missing_ok=True)
        self._frames, self._nbytes, self._spilled = [], 0, []

    def _part(self, number: int) -> Path:
        return self.folder / f"part-{number:08d}.{self.settings.format}"

    def _spill(self) -> None:
        """What is in memory to one temporary part."""
        if not self._frames:
            return
        part = self._part(self._next + len(self._spilled))
        temporary = part.with_name(part.name + ".tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(pl.concat(self._frames), temporary)
            _sync(temporary)
        except (OSError, pl.exceptions.ComputeError) as error:
            temporary.unlink(missing_ok=True)
            raise self._error(error) from error
        self._spilled.append(temporary)
        self._frames, self._nbytes = [], 0

    def _check(self) -> None:
        """A folder that can never be written is known now. Raises: UserError."""
        place = self.folder.absolute()
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise UserError(
                f"[sink] path '{self.folder}' cannot be written: expected a writable folder at {place}."
            )

    def _error(self, error: Exception) -> HeadraceError:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return HeadraceError(
            f"[sink] cannot write to {self.folder}: {reason}; mend that and start again: nothing before "
            "the last checkpoint is lost."
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


__all__ = ["FilesSink"]
