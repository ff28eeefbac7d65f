"""Reads the rows of a columnar file: Parquet or Arrow IPC."""

from __future__ import annotations

import time
import zoneinfo
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import polars as pl
import polars.selectors as cs
import pyarrow as pa
from numpy.typing import NDArray
from polars.exceptions import PanicException, PolarsError
from pyarrow import ipc

from connectors.files.readers.arrow_times import as_numbers, flag_out_of_range, holds_times
from connectors.formats.registry import imported, spec_of
from connectors.formats.values.calendar import flag_impossible
from connectors.formats.values.columns import PROBLEM
from connectors.formats.walks.parquet_pages import Footer, first_bad_page, read_footer
from engine.system.file_stamp import FileStamp, file_stamp
from engine.types import Records, Schema, UnreadableFile, UserError
from engine.types.plural import counted

if TYPE_CHECKING:  # where Parquet is read
    import pyarrow.parquet as pq

CHUNK_ROWS = 131_072
"""The rows of a Parquet row group decoded at a time; a smaller group is decoded whole."""
MAGIC = b"ARROW1"
"""The first bytes of an Arrow IPC file; a stream begins otherwise."""
MOST_DIGITS = 38
"""The digits of a 128-bit decimal."""
HELD = (
    pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_struct,
    pa.types.is_map,
)  # fmt: skip
"""The nested types that a column can have."""
OPEN_FILES = 8
"""The Parquet files whose footers are kept: each split of a file opens it, and a footer of
thousands of row groups takes longer to read than a row group."""
PART_COLUMNS = 4
"""The columns that justify another thread."""
READ_ERRORS = (OSError, pa.ArrowException, PolarsError, PanicException, UnicodeDecodeError)
"""The exceptions of readers for a damaged file; a polars panic is not an `Exception`, and names
in a footer may not be text."""


class TableFile(ABC):
    """Reads one file in slices; positions are row numbers.

    A chunk (row group, record batch) is decoded at once and handed out in slices that share its
    memory; chunks before the position are not touched.

    Args:
        path: the file.
        name: the partition.
        columns: the columns to decode, if the file has them; None decodes all. If it has none of
            them, one column is decoded to count rows.
        may_grow: whether its end may be missing, or damaged: the rows before it are read.

    Attributes:
        schema: all columns of the file.
        bounds: rows at which chunks start, and the end, shape (chunks + 1,).
        waits: a clause on what ends the file for now, if it may grow; else "".

    Raises (all methods): UnreadableFile for a file of another format, truncated or damaged;
        UserError for a duplicate column, or one of an unsupported type.
    """

    format_name = ""
    waits = ""
    schema: Schema
    bounds: NDArray[np.int64]

    def __init__(
        self,
        path: Path,
        name: str,
        columns: Sequence[str] | None = None,
        *,
        may_grow: bool = False,
    ) -> None:
        self.name = name
        self.may_grow = may_grow
        self.next = 0
        self._chunk = pl.DataFrame()
        self._start = 0
        """The row number of the chunk's first row."""
        try:
            self._open(path, columns)
        except READ_ERRORS as error:
            raise self._error(error) from error

    @property
    def rows(self) -> int:
        return int(self.bounds[-1])

    @property
    def total(self) -> int:
        """The last position."""
        return self.rows

    def skip_to(self, position: int) -> None:
        """Continue at a row number."""
        if position > self.rows:
            raise UnreadableFile(
                f"{self.name} has {counted(self.rows, 'row')}, fewer than {position:,}, where "
                "to resume: expected the same file as before."
            )
        self.next = position

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """Return the next rows of one chunk; None at the end of the file."""
        if self.next >= self.rows:
            return None
        chunk = self._current()
        at = self.next - self._start
        wide = int(chunk.estimated_size()) // chunk.height + 8
        values = chunk.slice(at, max(1, min(max_rows, max_bytes // wide)))
        start, self.next = self.next, self.next + values.height
        return Records(
            partition=self.name,
            positions=np.arange(start, self.next),
            next=self.next,
            values=values,
            arrived=time.monotonic(),
        )

    def whole(self) -> pl.DataFrame:
        """Return all rows at once."""
        frames = [self._decoded(i) for i in range(len(self.bounds) - 1)]
        return pl.concat(frames, how="diagonal") if frames else pl.DataFrame(schema=self.schema)

    def close(self) -> None:
        """Release the chunk."""
        self._chunk = pl.DataFrame()

    def _current(self) -> pl.DataFrame:
        if not self._start <= self.next < self._start + self._chunk.height:
            number = int(np.searchsorted(self.bounds, self.next, "right")) - 1
            self._start = int(self.bounds[number])
            self._chunk = self._decoded(number)
        return self._chunk

    def _decoded(self, number: int) -> pl.DataFrame:
        try:
            frame = self._decode(number)
            expected = int(self.bounds[number + 1] - self.bounds[number])
            if frame.height != expected:
                raise pa.ArrowInvalid(f"expected {counted(expected, 'row')}, got {frame.height:,}")
        except READ_ERRORS as error:
            raise self._error(error) from error
        return flag_impossible(frame)

    def _error(self, error: Exception) -> UnreadableFile:
        return UnreadableFile(
            f"{self.name} cannot be read as {self.format_name} at row {self.next}: "
            f"{str(error).partition(chr(10))[0]}; the file is cut short, damaged or of another "
            "format: replace it, or set [source] format."
        )

    @abstractmethod
    def _open(self, path: Path, columns: Sequence[str] | None) -> None:
        """Set `schema` and `bounds`."""

    @abstractmethod
    def _decode(self, number: int) -> pl.DataFrame:
        """Decode chunk `number`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _OpenedParquet:
    """What is known of a Parquet file of g row groups before its rows are read.

    Attributes:
        metadata: by pyarrow.
        schema: by polars.
        timed: the columns with times that polars would change.
        footer: as walked.
        bounds: rows at which chunks start, and the end, shape (chunks + 1,).
        groups: the row group of each chunk, shape (chunks + 1,).
        scan: all rows and columns.
    """

    metadata: pq.FileMetaData
    schema: pl.Schema
    timed: frozenset[str]
    footer: Footer
    bounds: NDArray[np.int64]
    groups: NDArray[np.int64]
    scan: pl.LazyFrame


@lru_cache(maxsize=OPEN_FILES)
def _opened(path: Path, name: str, stamp: FileStamp) -> _OpenedParquet:
    """Open a Parquet file; splits of one file open it once.

    Args:
        name: of the file, in sentences.
        stamp: of the file.

    Raises: UserError for columns that no table holds; `READ_ERRORS` where the file is damaged.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        metadata, schema = file.metadata, file.schema_arrow
    require_once(schema.names, name)
    _must_be_held(schema, name, wide=True)
    with path.open("rb") as file:
        footer = read_footer(file, metadata.num_row_groups, metadata.num_columns)
    if footer is None:
        raise pa.ArrowInvalid("its footer is damaged, or its row groups are not all its rows")
    ends = np.cumsum([0, *footer.group_rows])
    inner = [np.arange(a, b, CHUNK_ROWS) for a, b in pairwise(ends)]
    bounds = np.concatenate([*inner, ends[-1:]]).astype(np.int64)
    scan = pl.scan_parquet(path, glob=False)
    return _OpenedParquet(
        metadata=metadata,
        schema=scan.collect_schema(),
        timed=frozenset(field.name for field in schema if holds_times(field.type)),
        footer=footer,
        bounds=bounds,
        groups=np.searchsorted(ends, bounds, "right") - 1,
        scan=scan,
    )


class ParquetFile(TableFile):
    """Slices of lazy scans: polars skips row groups, and decodes columns in parallel.

    The footer and the headers of pages are validated first: polars allocates as much as a page
    claims, and ends the process where that is 2^61 bytes. pyarrow only opens the file: its accessor
    of a column chunk's metadata ends the process at some damage. It also decodes the columns whose
    times polars would change, see `connectors.files.readers.arrow_times`.
    """

    format_name = "parquet"

    def _open(self, path: Path, columns: Sequence[str] | None) -> None:
        opened = _opened(path, self.name, file_stamp(path))
        self._path, self._footer, self._metadata = path, opened.footer, opened.metadata
        self.bounds, self._groups = opened.bounds, opened.groups
        frame, self.schema = opened.scan, dict(opened.schema)
        asked = dict.fromkeys(columns or self.schema)  # several paths may lead into one column
        self._columns = [c for c in asked if c in self.schema] or list(self.schema)[:1]
        self._leaves, self._flat = _leaves(self._metadata.schema, self._columns)
        self._walked = -1
        """The last row group whose pages were validated."""
        self._timed = [c for c in self._columns if c in opened.timed]
        self._group = (-1, pa.table({}))
        """The last row group whose times were decoded, and its columns `_timed`."""
        rest = [c for c in self._columns if c not in self._timed]
        # A row group is decoded by one thread: by several, where each has columns of its own.
        n = max(1, min(pl.thread_pool_size(), len(rest) // PART_COLUMNS))
        self._parts = [frame.select(part) for i in range(n) if (part := rest[i::n])]

    def _decode(self, number: int) -> pl.DataFrame:
        start, stop = self.bounds[number : number + 2].tolist()
        self._walk(int(self._groups[number]))
        parts = pl.collect_all([part.slice(start, stop - start) for part in self._parts])
        if not self._timed:
            return pl.concat(parts, how="horizontal")[self._columns]
        whole = pl.concat([*parts, self._times(number)], how="horizontal")
        return whole.select(*self._columns, cs.by_name(PROBLEM, require_all=False))

    def _times(self, number: int) -> pl.DataFrame:
        """Decode the columns `_timed` of a chunk."""
        import pyarrow.parquet as pq

        group, (start, stop) = int(self._groups[number]), self.bounds[number : number + 2].tolist()
        if group != self._group[0]:
            with pq.ParquetFile(self._path, metadata=self._metadata) as file:
                self._group = group, file.read_row_group(group, self._timed).select(self._timed)
        at = start - int(self.bounds[np.searchsorted(self._groups, group)])
        frames = []
        for batch in self._group[1].slice(at, stop - start).to_batches():
            numbers = as_numbers(batch)
            frames.append(flag_out_of_range(_frame(batch), batch.schema, numbers))
        return pl.concat(frames, how="diagonal").cast({c: self.schema[c] for c in self._timed})

    def close(self) -> None:
        super().close()
        self._group = (-1, pa.table({}))

    def _walk(self, group: int) -> None:
        """Validate the pages of a row group. Raises: ArrowInvalid"""
        if group == self._walked:
            return
        with self._path.open("rb") as file:
            bad = first_bad_page(file, self._footer, group, self._leaves, self._flat)
        if bad is not None:
            name = self._metadata.schema.column(int(self._leaves[bad[0]])).path
            raise pa.ArrowInvalid(f"the page of column '{name}' at byte {bad[1]} cannot be")
        self._walked = group


class ArrowFile(TableFile):
    """Record batches of a memory map: nothing is copied if the file is not compressed. A stream,
    which has no footer, is read from its beginning to the requested batch.

    A batch is validated in full before its values are touched: an offset that a flipped bit leads
    out of the file would otherwise end the process, or put its memory into a row. Times out of
    range are not damage: they reject their rows.
    """

    format_name = "arrow"

    def _open(self, path: Path, columns: Sequence[str] | None) -> None:
        self._map = pa.memory_map(str(path))
        self._streamed = self._map.read(len(MAGIC)) != MAGIC
        schema = self._stream().schema if self._streamed else ipc.open_file(self._map).schema
        require_once(schema.names, self.name)
        _must_be_held(schema, self.name, wide=False)
        fields = [i for i, name in enumerate(schema.names) if columns is None or name in columns]
        fields = fields or [0]
        # The size of a batch is unknown before it is read.
        if self._streamed:
            self._fields, self._at = fields, 0
            sizes = [batch.num_rows for batch in self._stream([0])]
            self._batches = iter(self._stream(fields))
        else:
            narrow, self._reader = self._columns([0]), self._columns(fields)
            sizes = [narrow.get_batch(i).num_rows for i in range(narrow.num_record_batches)]
        self.bounds = np.cumsum([0, *sizes]).astype(np.int64)
        self.schema = dict(_frame(schema.empty_table()).schema)

    def _decode(self, number: int) -> pl.DataFrame:
        batch = self._nth(number) if self._streamed else self._reader.get_batch(number)
        numbers = as_numbers(batch)
        numbers.validate(full=True)
        return flag_out_of_range(_frame(batch), batch.schema, numbers)

    def _nth(self, number: int) -> pa.RecordBatch:
        """Return a batch of a stream, skipping those before it."""
        if number < self._at:
            self._batches, self._at = iter(self._stream(self._fields)), 0
        while self._at < number:
            next(self._batches)
            self._at += 1
        self._at += 1
        return next(self._batches)

    def close(self) -> None:
        super().close()
        self._map.close()

    def _columns(self, fields: list[int]) -> ipc.RecordBatchFileReader:
        return ipc.open_file(self._map, options=ipc.IpcReadOptions(included_fields=fields))

    def _stream(self, fields: list[int] | None = None) -> ipc.RecordBatchStreamReader:
        self._map.seek(0)
        options = ipc.IpcReadOptions(included_fields=fields)
        return ipc.open_stream(self._map.read_buffer(), options=options)


class SortedRows(TableFile):
    """Rows already in memory, as a file of one chunk."""

    format_name = "table"

    def __init__(self, frame: pl.DataFrame, name: str) -> None:
        self._frame = frame
        super().__init__(Path(), name)

    def _open(self, path: Path, columns: Sequence[str] | None) -> None:
        self.schema = dict(self._frame.schema)
        self.bounds = np.array([0, self._frame.height])

    def _decode(self, number: int) -> pl.DataFrame:
        return self._frame


def _leaves(
    schema: pq.ParquetSchema, columns: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Numbers of the physical columns of some columns, and whether each has one value a row."""
    chosen, leaves = set(columns), [schema.column(i) for i in range(len(schema))]
    of_chosen = [
        not chosen.isdisjoint(accumulate(leaf.path.split("."), "{}.{}".format)) for leaf in leaves
    ]
    flat = np.array([leaf.max_repetition_level == 0 for leaf in leaves], bool)
    return np.flatnonzero(of_chosen), flat[of_chosen]


def _frame(table: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """Return the same columns, also one without a name, which polars would name."""
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    frame.columns = table.schema.names
    return frame


def require_once(names: Sequence[str], file: str) -> None:
    """Raises: UserError for a column that a file has twice."""
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise UserError(f"{file} has column '{twice}' twice: rename one of them.")


def _must_be_held(schema: pa.Schema, file: str, *, wide: bool) -> None:
    """Refuse types polars panics at, or takes for damage.

    Args:
        wide: whether decimals of 256 bits are read where their digits fit into 128.

    Raises: UserError
    """
    for field in schema:
        odd = _odd(field.type, wide)
        if odd is not None:
            what = "which" if odd == str(field.type) else f"and {odd}"
            raise UserError(
                f"{file} has column '{field.name}' of type {field.type}, {what} cannot be read: "
                "write it as another type, or the file without it."
            )


def _odd(dtype: pa.DataType, wide: bool) -> str | None:
    """Return what in a type no column can hold; None if all can be held."""
    if isinstance(dtype, pa.BaseExtensionType):
        return _odd(dtype.storage_type, wide)
    if pa.types.is_dictionary(dtype):
        return _odd(dtype.value_type, wide)
    if pa.types.is_decimal256(dtype) and not (wide and dtype.precision <= MOST_DIGITS):
        return str(dtype)
    if pa.types.is_timestamp(dtype) and dtype.tz is not None and not _is_zone(dtype.tz):
        return f"the time zone '{dtype.tz}'"
    if pa.types.is_nested(dtype) and not any(known(dtype) for known in HELD):
        return str(dtype)
    if pa.types.is_run_end_encoded(dtype) or pa.types.is_interval(dtype):
        return str(dtype)
    inner = (dtype.field(i).type for i in range(dtype.num_fields))
    return next((odd for part in inner if (odd := _odd(part, wide)) is not None), None)


def _is_zone(name: str) -> bool:
    """Return whether a zone is in the time zone database; an offset (+05:30) is not."""
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def open_table(
    format: str,
    path: Path,
    name: str,
    columns: Sequence[str] | None = None,
    *,
    may_grow: bool = False,
) -> TableFile:
    """A file of a table format, see `connectors.formats.registry`. Raises: as `TableFile`."""
    file_class = cast("type[TableFile]", imported(spec_of(format).table))
    return file_class(path, name, columns, may_grow=may_grow)


__all__ = [
    "ArrowFile",
    "ParquetFile",
    "SortedRows",
    "TableFile",
    "open_table",
    "require_once",
]
