"""A file sink: writes numbered part files atomically."""

from __future__ import annotations

import errno
import io
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, ClassVar, Literal

import polars as pl
import polars.selectors as cs
from pydantic import ByteSize, Field

from connectors.formats.type_support import require_supported, warn_about_nulls
from engine import types
from engine.system import atomic
from engine.types import Buffered, HeadraceError, Name, Schema, Sink, Snapshot, UserError, in_utc
from engine.types.changes import Fixed, Free
from engine.types.plural import counted

log = logging.getLogger("headrace.files")
MOMENT = "%Y-%m-%dT%H:%M:%S%.f%:z"
WRITERS: dict[str, Callable[[pl.DataFrame, IO[bytes]], None]] = {
    "parquet": lambda frame, file: frame.write_parquet(file),
    "ndjson": lambda frame, file: frame.write_ndjson(file),
    "csv": lambda frame, file: frame.write_csv(file, datetime_format=MOMENT),
    "arrow": lambda frame, file: frame.write_ipc(file),
}
"""Format -> writer. NDJSON and CSV have no infinity: NDJSON gets null; nor bytes: they get
base64. Times are ISO 8601 with their offset from UTC."""
PART_NAME = re.compile(rf"part-(\d{{8,}})\.(?:{'|'.join(WRITERS)})(\.tmp)?")
"""A part's number, and whether it is temporary; of any format, because those of a run with another
one are results, too."""


class PartSettings(types.Settings):
    """Settings of a folder of parts.

    Attributes:
        path: the folder; created at the first write.
        max_buffer_bytes: rows held in memory between flushes; less if the pipeline's budget is
            small.
        verify_parts: refuse to start if parts are missing or truncated. Set it to false if another
            program removes parts.
        private: whether only the user who runs headrace may read the parts (mode 0600).
    """

    path: Free[Name]
    max_buffer_bytes: Free[ByteSize] = Field(default=ByteSize(64 << 20), ge=1)
    verify_parts: Free[bool] = True
    private: Free[bool] = False


class FilesSink(Sink, Buffered):
    """Writes a folder of part files. `flush` turns buffered rows into the part
    ``part-00000012.parquet``.

    A part is written as `engine.system.atomic` does. Rows beyond `max_buffer_bytes` go to temporary
    parts early; only `flush` makes those visible. `restore` first checks that the earlier parts
    exist, then removes later parts by number, and no file of another name. A folder is recognised
    by its parts, whatever its path.
    """

    section: ClassVar[str] = "sink"

    class Settings(PartSettings):
        """``[sink] kind = "files"``

        Attributes:
            format: parquet, ndjson, csv or arrow; in ndjson and csv, times of no zone are written
                as UTC.
        """

        format: Fixed[Literal["parquet", "ndjson", "csv", "arrow"]] = "parquet"

    def __init__(self, settings: FilesSink.Settings | FileDeadLetterSink.Settings) -> None:
        """Raises: UserError if the folder cannot be created or written."""
        self.settings: FilesSink.Settings | FileDeadLetterSink.Settings = settings
        self.folder = Path(settings.path)
        self._place = atomic.Folder(self.folder, f"[{self.section}] path")
        atomic.require_folder(self.folder, self._place.named)
        self._frames: list[pl.DataFrame] = []
        self._told: set[str] = set()
        """Columns whose NaN were reported to become null."""
        self._nbytes = 0
        self._limit = int(settings.max_buffer_bytes)
        self._spilled: list[Path] = []
        self._next = self._written = 0

    def folders(self) -> tuple[Path, ...]:
        return (self.folder,)

    def files(self) -> tuple[Path, ...]:
        part = self.folder / f"part-00000000.{self.settings.format}"
        return part, part.with_name(part.name + atomic.SUFFIX)

    def has_output(self) -> bool:
        """Return whether there are parts."""
        return any(True for _ in self._parts())

    def bind(self, schema: Schema) -> None:
        format = self.settings.format
        require_supported(schema, format, f'[{self.section}] format = "{format}"')

    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> None:
        """Buffer the rows. Raises: HeadraceError when the disk is full."""
        if not frame.height:
            return
        self._frames.append(frame)
        self._nbytes += int(frame.estimated_size())
        if self._nbytes > self._limit:
            self._spill()

    @property
    def nbytes(self) -> int:
        """The bytes of buffered rows."""
        return self._nbytes

    def limit_memory(self, nbytes: int) -> None:
        if "max_buffer_bytes" not in self.settings.model_fields_set:
            self._limit = max(1, min(self._limit, nbytes))

    def flush(self) -> None:
        """Flush. Raises: HeadraceError when the disk is full, or the folder or its newest part
        were removed."""
        self._require()
        self._spill()
        if not self._spilled:
            return
        try:
            self._written += sum(temporary.stat().st_size for temporary in self._spilled)
            atomic.publish({temporary: temporary.with_suffix("") for temporary in self._spilled})
        except OSError as error:
            raise self._error(self.folder, error) from error
        self._next += len(self._spilled)
        self._spilled = []

    def snapshot(self) -> Snapshot:
        """Return the next part's number, the total length of the earlier parts, and their
        folder."""
        return {"next": self._next, "bytes": self._written, "path": str(self.folder.resolve())}

    def require(self, value: Snapshot) -> None:
        """Truncate. Raises: UserError if earlier parts are missing or truncated, or the folder
        is another one and has results."""
        if value is None:
            return
        before, after = {}, False
        for path, part in self._parts():
            if part[2] or int(part[1]) >= value["next"]:
                after = True
            else:
                before[int(part[1])] = path.stat().st_size
        moved = "" if value["path"] == str(self.folder.resolve()) else str(value["path"])
        if self.settings.verify_parts:
            self._verify(before, value, moved)
        if not moved or (self.settings.verify_parts and value["next"]):
            return  # the same folder at another path
        if after:
            raise UserError(
                f"[{self.section}] path '{self.folder}' holds results already, and the checkpoint "
                f"was written with '{moved}': set it back, name an empty folder, or start over "
                "with --fresh."
            )
        log.warning(
            "[%s] path has changed since the checkpoint was written: '%s' now, '%s' before; new "
            "parts go to the new path.", self.section, self.folder, moved,
        )  # fmt: skip

    def restore(self, value: Snapshot) -> None:
        """Delete parts from this number on, and temporary ones; None deletes all parts.

        Raises: as `require`.
        """
        self.close()
        self._place.note()
        try:
            self.require(value)
            self._next, self._written = (0, 0) if value is None else (value["next"], value["bytes"])
            for path, part in list(self._parts()):
                if part[2] or int(part[1]) >= self._next:
                    path.unlink()
        except OSError as error:
            raise self._error(self.folder, error) from error

    def _parts(self) -> Iterator[tuple[Path, re.Match[str]]]:
        """Return its parts, temporary ones included: number and extension."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if (part := PART_NAME.fullmatch(path.name)) is not None:
                yield path, part

    def _require(self) -> None:
        """Raises: HeadraceError if the newest part was deleted."""
        self._place.require()
        if not self._next or not self.settings.verify_parts:
            return
        newest = self.folder / self._name(self._next - 1)
        if not newest.exists():
            raise HeadraceError(
                f"[{self.section}] path '{self.folder}' has lost {newest.name} while the engine "
                "ran: put it back and start again, start over with --fresh, or set verify_parts = "
                "false if another program removes parts."
            )

    def _verify(self, sizes: dict[int, int], value: Snapshot, moved: str) -> None:
        """Raises: UserError if these parts are not those of a snapshot.

        Args:
            sizes: number -> bytes.
            moved: the earlier folder, if it was another one.
        """
        parts, written = value["next"], value["bytes"]
        gone = [number for number in range(parts) if number not in sizes]
        if not gone and sum(sizes.values()) == written:
            return
        if moved:
            raise UserError(
                f"The checkpoint was written with another [{self.section}] path: expected "
                f"'{self.folder}', got '{moved}', where {counted(parts, 'part')} "
                f"{'is' if parts == 1 else 'are'}; set it back, move the parts, or start over with "
                "--fresh."
            )
        problem = (
            f"{len(gone):,} of {counted(parts, 'part')} {'is' if len(gone) == 1 else 'are'} "
            f"gone, {self._name(gone[0])} first"
            if gone
            else f"they are {sum(sizes.values()):,} bytes, and {written:,} were written"
        )
        raise UserError(
            f"[{self.section}] path '{self.folder}' no longer has the parts that the checkpoint "
            f"counts on: {problem}; put them back, start over with --fresh, or set verify_parts = "
            "false if another program removes parts."
        )

    def _name(self, number: int) -> str:
        return f"part-{number:08d}.{self.settings.format}"

    def close(self) -> None:
        for temporary in self._spilled:
            temporary.unlink(missing_ok=True)
        self._frames, self._nbytes, self._spilled = [], 0, []

    def _spill(self) -> None:
        """Write the buffered rows to a temporary part file and fsync it."""
        if not self._frames:
            return
        name = self._name(self._next + len(self._spilled))
        temporary = self.folder / (name + atomic.SUFFIX)
        self._place.require()
        try:
            self._place.make()
            atomic.stage(temporary, [self._encoded()], private=self.settings.private)
        except OSError as error:
            raise self._error(temporary, error) from error
        self._spilled.append(temporary)
        self._frames, self._nbytes = [], 0

    def _encoded(self) -> memoryview:
        """Encode the part in memory: polars panics when a disk fills up while it writes."""
        buffer = io.BytesIO()
        frame = pl.concat(self._frames)
        if self.settings.format == "ndjson":
            warn_about_nulls(frame, self._told)
        if self.settings.format in ("ndjson", "csv"):
            frame = in_utc(frame.with_columns(cs.binary().bin.encode("base64")))
        if self.settings.format == "csv":
            frame = frame.with_columns(cs.duration().dt.to_string("iso"))
        WRITERS[self.settings.format](frame, buffer)
        return buffer.getbuffer()

    def _error(self, path: Path, error: OSError) -> HeadraceError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "free some space" if full else "fix that"
        return HeadraceError(
            f"[{self.section}] cannot write {path}: {error.strerror}: {remedy} and start again; "
            "nothing before the last checkpoint is lost."
        )


class FileDeadLetterSink(FilesSink):
    """Dead letters as files. They may be deleted once the cause is fixed."""

    section = "dead_letters"

    class Settings(PartSettings):
        """``[dead_letters] kind = "files"``; always NDJSON, which `headrace replay` reads.

        Attributes:
            verify_parts: refuse to start if parts are missing or truncated. Dead letters may be
                deleted once their cause is fixed, so it is false unless given.
        """

        verify_parts: Free[bool] = False
        format: ClassVar[Literal["ndjson"]] = "ndjson"

    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> None:
        """Write without `replayed`: what a killed engine wrote to a file is truncated, so no letter
        is there twice."""
        super().write(frame.drop("replayed", strict=False), positions)


__all__ = ["FileDeadLetterSink", "FilesSink"]
