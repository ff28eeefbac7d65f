"""Files as a source: CSV, NDJSON, Parquet, Arrow; one after the other, in the order of their
names."""

from __future__ import annotations

import csv
import glob
import importlib.resources
import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from polars.exceptions import PolarsError
from pydantic import Field

from connectors.files.table import TableFile
from connectors.files.text import OPENERS, TextFile
from connectors.formats.columns import Columns
from connectors.formats.csv import Csv
from connectors.formats.ndjson import Ndjson
from engine import types
from engine.types import (
    EndOfStream,
    Format,
    HeadraceError,
    Mark,
    Records,
    Schema,
    UserError,
    Values,
    nearest,
)

EXTENSIONS = {
    ".csv": "csv", ".tsv": "csv", ".ndjson": "ndjson", ".jsonl": "ndjson", ".json": "ndjson",
    ".parquet": "parquet", ".arrow": "arrow", ".ipc": "arrow", ".feather": "arrow",
}  # fmt: skip
SAMPLE_ROWS = 1_000


class FilesSource:
    """See `engine.types.Source`. A file is a partition, named by its path.

    Plain text is sought in, Parquet and Arrow skip row groups and record batches, compressed text
    is decompressed and
    passed over. Memory holds one block of text or one chunk of 131,072 rows; with `order_by`,
    everything.
    """

    class Settings(types.Settings):
        """``[source] kind = "files"``

        Attributes:
            path: a file, a glob, a list of them, or ``package:path/in/package`` for data that a
            package ships.
            format: csv, ndjson, parquet or arrow; by the file's extension unless given.
            delimiter: of CSV; a tab for .tsv.
            order_by: SQL expressions to sort by, stably; reads all files at once, as one partition
            whose positions
                are row numbers in that order. CSV columns are text here: CAST them.
            max_record_bytes: the longest row of text that is accepted.
        """

        path: str | tuple[str, ...]
        format: Literal["csv", "ndjson", "parquet", "arrow"] | None = None
        delimiter: str | None = Field(None, min_length=1, max_length=1)
        order_by: tuple[str, ...] = ()
        max_record_bytes: int = Field(16 << 20, ge=1)

    format: Format

    def __init__(self, settings: FilesSource.Settings) -> None:
        self.settings = settings
        self._files = _find(settings.path)
        self._kind = settings.format or _kind(next(iter(self._files.values())), settings.path)
        self._headers: dict[str, list[str]] = {}
        self.format = self._format()
        self._columns: list[str] | None = None
        self._positions: dict[str, int] = {}
        self._order = list(self._files)
        self._at = 0
        self._open: TextFile | TableFile | None = None
        self._sorted: pl.DataFrame | None = None
        self._sizes = {name: path.stat().st_size for name, path in self._files.items()}

    # ----------------------------------------------------------------------------- the protocol

    def schema(self, declared: Schema) -> Schema:
        """See `engine.types.Source`. Looks at the first file only.

        Raises: UserError when a declared column is not in it.
        """
        there = self._there(declared)
        rest = declared.get("*")
        named = {c: kind for c, kind in declared.items() if c != "*"}
        for column in named:
            if there and column not in there:
                raise UserError(
                    f"[source.schema] names column '{column}', which {self._order[0]} does not have."
                    f"{nearest(column, there)}"
                )
        if not declared:
            schema = there
        elif rest is not None:
            schema = {c: named.get(c, rest) for c in (there or named)}
        else:
            schema = named
        self._columns = list(schema)
        return schema

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """See `engine.types.Source`; a file never keeps one waiting."""
        if self.settings.order_by:
            return self._read_sorted(max_rows, max_bytes)
        while self._at < len(self._order):
            name = self._order[self._at]
            if self._open is None:
                self._open = self._start(name)
            records = self._open.read(max_rows, max_bytes)
            if records is not None:
                return records
            self._open.close()
            self._open = None
            self._at += 1
        raise EndOfStream

    def seek(self, mark: Mark) -> None:
        """See `engine.types.Source`."""
        self.close()
        self._positions = dict(mark.positions)
        self._at = 0

    def commit(self, mark: Mark) -> None:
        """Nothing: a file is not changed by reading it."""

    def lag(self) -> Mapping[str, int]:
        """Empty: the rows of a text file are not known before they are read."""
        return {}

    def progress(self, mark: Mark) -> float | None:
        """Share of the bytes (text) or rows before the mark; compressed text counts by whole
        files."""
        if self._sorted is not None:
            return mark.positions.get(self._name, 0) / max(1, self._sorted.height)
        done = 0.0
        for name, position in mark.positions.items():
            total = self._lengths.get(name)
            done += self._sizes.get(name, 0) * min(1.0, position / total if total else 1.0)
        return done / max(1, sum(self._sizes.values()))

    def close(self) -> None:
        """See `engine.types.Source`."""
        if self._open is not None:
            self._open.close()
            self._open = None

    # ------------------------------------------------------------------------------------ inside

    @property
    def _name(self) -> str:
        """The partition of a sorted source."""
        path = self.settings.path
        return path if isinstance(path, str) else ",".join(path)

    @property
    def _lengths(self) -> dict[str, int]:
        """Partition -> its last position, where that is cheap to know."""
        lengths = {
            name: self._sizes[name]
            for name, path in self._files.items()
            if self._kind in ("csv", "ndjson") and path.suffix not in OPENERS
        }
        if isinstance(self._open, TableFile):
            lengths[self._open.name] = self._open.rows
        return lengths

    def _format(self) -> Format:
        if self._kind == "csv":
            return Csv(self._headers, self._delimiter)
        return Ndjson() if self._kind == "ndjson" and not self.settings.order_by else Columns()

    @property
    def _delimiter(self) -> str:
        tabs = any(".tsv" in path.suffixes for path in self._files.values())
        return self.settings.delimiter or ("\t" if tabs else ",")

    def _start(self, name: str) -> TextFile | TableFile:
        path, position = self._files[name], self._positions.get(name, 0)
        if self._kind in ("parquet", "arrow"):
            table = TableFile(path, name, self._kind, self._columns)
            table.skip_to(position)
            return table
        file = self._text(name, path)
        file.skip_to(position)
        return file

    def _text(self, name: str, path: Path) -> TextFile:
        file = TextFile(
            path, name, quotes=self._kind == "csv", max_record=self.settings.max_record_bytes
        )
        if self._kind == "csv":
            self._headers[name] = self._header(file)
        return file

    def _header(self, file: TextFile) -> list[str]:
        line = file.header()
        if line is None:
            raise UserError(f"{file.name} is empty: expected a CSV header in its first line.")
        names = next(csv.reader(io.StringIO(line), delimiter=self._delimiter))
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(
                f"{file.name} has column '{twice[0]}' twice in its header: rename one of them."
            )
        return names

    def _there(self, declared: Schema) -> Schema:
        """The columns of the first file; a guess of their types for text; {} where it is empty
        NDJSON."""
        name, path = next(iter(self._files.items()))
        if self._kind in ("parquet", "arrow"):
            return TableFile(path, name, self._kind).schema
        if self._kind == "csv" and declared:
            file = self._text(name, path)
            file.close()
            return dict.fromkeys(self._headers[name], pl.String())
        if declared and "*" not in declared:
            return {}  # a field that NDJSON lacks is null
        return self._sample(name, path)

    def _sample(self, name: str, path: Path) -> Schema:
        file = self._text(name, path)
        records = file.read(SAMPLE_ROWS, self.settings.max_record_bytes)
        file.close()
        if self._kind == "ndjson" and records is None:
            return {}
        try:
            if self._kind == "ndjson":
                assert records is not None
                frame = pl.read_ndjson(io.BytesIO(_bytes(records)), infer_schema_length=None)
            else:
                raw = b"" if records is None else _bytes(records)
                kinds = {str(i): c for i, c in enumerate(self._headers[name])}
                frame = pl.read_csv(
                    io.BytesIO(raw),
                    has_header=False,
                    new_columns=list(kinds.values()),
                    infer_schema_length=None,
                    try_parse_dates=True,
                    separator=self._delimiter,
                    raise_if_empty=False,
                )
        except PolarsError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"The columns of {name} cannot be guessed from its first rows: {reason}; "
                "declare them in [source.schema]."
            ) from None
        return {c: pl.String() if k == pl.Null else k for c, k in frame.schema.items()}

    # ------------------------------------------------------------------------------------- sorted

    def _read_sorted(self, max_rows: int, max_bytes: int) -> Records:
        if self._sorted is None:
            self._sorted = self._sort()
        start = self._positions.get(self._name, 0)
        part = self._sorted.slice(start, max_rows)
        size = int(part.estimated_size())
        if size > max_bytes:
            part = part.head(max(1, part.height * max_bytes // size))
        if not part.height:
            raise EndOfStream
        stop = start + part.height
        self._positions = {self._name: stop}
        return Records(
            partition=self._name,
            positions=np.arange(start, stop),
            next=stop,
            values=part,
            arrived=time.monotonic(),
        )

    def _sort(self) -> pl.DataFrame:
        frames = [self._whole(name, path) for name, path in self._files.items()]
        try:
            keys = [pl.sql_expr(sql) for sql in self.settings.order_by]
            return pl.concat(frames).sort(keys, maintain_order=True, nulls_last=True)
        except PolarsError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"[source] order_by {list(self.settings.order_by)} cannot be done: {reason}; "
                "CSV columns are text here: CAST them."
            ) from None

    def _whole(self, name: str, path: Path) -> pl.DataFrame:
        if self._kind in ("parquet", "arrow"):
            return TableFile(path, name, self._kind, self._columns).whole()
        raw = OPENERS[path.suffix](path.open("rb")).read() if path.suffix in OPENERS else path
        try:
            if self._kind == "ndjson":
                return pl.read_ndjson(raw, infer_schema_length=None)
            return pl.read_csv(raw, infer_schema=False, separator=self._delimiter)
        except (PolarsError, OSError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise HeadraceError(
                f"{name} cannot be read whole, as order_by needs: {reason}."
            ) from None


def _bytes(records: Records) -> bytes:
    values = records.values
    assert isinstance(values, Values)
    return values.data[values.bounds[0] : values.bounds[-1]].tobytes()


def _find(paths: str | tuple[str, ...]) -> dict[str, Path]:
    """Partition -> file. Raises: UserError for a path that leads to none."""
    found: dict[str, Path] = {}
    for text in (paths,) if isinstance(paths, str) else paths:
        package, colon, inside = text.partition(":")
        if colon and package.replace(".", "").replace("_", "").isalnum() and len(package) > 1:
            found[text] = _resource(package, inside)
        elif glob.has_magic(text):
            matching = sorted(glob.glob(text, recursive=True))  # noqa: PTH207 - may be absolute
            found |= {name: Path(name) for name in matching if Path(name).is_file()}
            if not matching:
                raise UserError(f"[source] path '{text}' matches no file.")
        else:
            if not Path(text).is_file():
                near = nearest(Path(text).name, _names(Path(text).parent))
                raise UserError(f"[source] path '{text}' is no file.{near}")
            found[text] = Path(text)
    return dict(sorted(found.items()))


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


def _resource(package: str, inside: str) -> Path:
    try:
        place = importlib.resources.files(package)
    except ModuleNotFoundError:
        raise UserError(
            f"[source] path '{package}:{inside}' needs the package '{package}': pip install it."
        ) from None
    file = place.joinpath(inside)
    if not file.is_file() or not isinstance(file, Path):
        raise UserError(f"[source] path '{package}:{inside}' is no file of that package.")
    return file


def _kind(path: Path, given: object) -> str:
    suffixes = [s for s in path.suffixes if s not in OPENERS]
    kind = EXTENSIONS.get(suffixes[-1] if suffixes else "")
    if kind is None:
        raise UserError(
            f"[source] path '{given}' has no extension that says what it is: set [source] format to csv, "
            "ndjson, parquet or arrow."
        )
    return kind


__all__ = ["FilesSource"]
