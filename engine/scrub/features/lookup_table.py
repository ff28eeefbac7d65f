"""The table of a `lookup` stage: read from a file, found by key and time."""

from __future__ import annotations

import logging
from pathlib import Path

import numba
import numpy as np
import polars as pl

from engine.columnar.event_time import NEVER
from engine.columnar.hash_index import HashIndex
from engine.columnar.hashing import hashes
from engine.system.file_stamp import FileStamp, file_stamp
from engine.types import Schema, UserError, first_line, nearest, type_name
from engine.types.arrays import Ints

ENDINGS = ".parquet, .csv, .tsv, .ndjson, .jsonl, .arrow or .feather"
TEXTS = (pl.String, pl.Categorical, pl.Enum)
TIME = (
    r"^(?<date>\d{4}-\d{2}-\d{2})(?:[T ](?<clock>\d{2}:\d{2})(?<seconds>:\d{2}(?:\.\d{1,9})?)?)?"
    r"(?<offset>Z|[+-]\d{2}:\d{2})?$"
)
"""A date, or a time with or without an offset."""

log = logging.getLogger("headrace.scrub")


def stamp(path: Path, where: str) -> FileStamp:
    """Return the stamp of the table's file. Raises: UserError if there is no file."""
    try:
        return file_stamp(path)
    except OSError as error:
        raise UserError(f"{where} path '{path}' cannot be read: {error.strerror}.") from None


class Table:
    """Rows by key, in the order of keys and then of times.

    Attributes:
        columns: that are added.
        valid: when each row becomes valid, in ticks; None without times.
        index: hash of a key -> its number, or its row without times.
    """

    def __init__(
        self,
        columns: pl.DataFrame,
        index: HashIndex,
        valid: Ints | None,
        known: Ints | None,
        starts: Ints,
    ) -> None:
        self.columns, self.index, self.valid = columns, index, valid
        self._known, self._starts = known, starts

    @classmethod
    def of(
        cls,
        keys: pl.DataFrame,
        columns: pl.DataFrame,
        valid: Ints | None,
        known: Ints | None,
        where: str,
    ) -> Table:
        """Raises: UserError for a key, or a key and a time, that stands in it twice."""
        hashed = hashes(keys)
        order = np.argsort(hashed, kind="stable") if valid is None else np.lexsort((valid, hashed))
        ordered = hashed[order]
        again = ordered[1:] == ordered[:-1]
        if valid is not None:
            valid = valid[order]
            known = None if known is None else known[order]
            again = again & (valid[1:] == valid[:-1])
        if again.any():
            twice = keys.row(int(order[int(again.argmax())]))
            key = ", ".join(map(str, twice))
            hint = "one" if valid is None else "one of the same time"
            more = ", or name the time from which each is valid: as_of" if valid is None else ""
            raise UserError(f"{where} has the key {key} twice: keep {hint}{more}.")
        new_key = np.append(np.ones(min(1, len(order)), np.bool_), ordered[1:] != ordered[:-1])
        starts = np.append(np.flatnonzero(new_key), len(order))
        return cls(columns[order], HashIndex(ordered[starts[:-1]]), valid, known, starts)

    @property
    def nbytes(self) -> int:
        """The bytes held."""
        arrays = {id(a): a.nbytes for a in (self.valid, self._known, self._starts) if a is not None}
        return int(self.columns.estimated_size()) + self.index.nbytes + sum(arrays.values())

    def newest(self, place: Ints, times: Ints) -> Ints:
        """Return the newest row of each key that is valid and known at a time; -1 for none."""
        assert self.valid is not None
        known = self.valid if self._known is None else self._known
        rows = np.empty(len(place), np.int64)
        _newest(place, times, self._starts, self.valid, known, rows)
        return rows


@numba.njit(nogil=True, cache=True)
def _newest(keys, times, starts, valid, known, rows):  # type: ignore[no-untyped-def]
    for i in range(keys.shape[0]):
        rows[i] = -1
        if keys[i] < 0 or times[i] == NEVER:
            continue
        first = low = starts[keys[i]]
        high = starts[keys[i] + 1]
        while low < high:
            middle = (low + high) // 2
            if valid[middle] <= times[i]:
                low = middle + 1
            else:
                high = middle
        while low > first:
            low -= 1
            if known[low] <= times[i]:
                rows[i] = low
                break


def read_table(path: Path, keys: Schema, where: str) -> pl.DataFrame:
    """Read the file; keys of a text format as the stream has them.

    Raises: UserError
    """
    text = {".csv": ",", ".tsv": "\t"}
    name = path.name.removesuffix(".gz")
    ending = Path(name).suffix.lower()
    try:
        if ending == ".parquet":
            return pl.read_parquet(path)
        if ending in text:
            return _with_numbers(_read_csv(path, text[ending], keys, where), keys, where)
        if ending in (".ndjson", ".jsonl"):
            return _with_numbers(pl.read_ndjson(path, infer_schema_length=None), keys, where)
        if ending in (".arrow", ".feather"):
            return pl.read_ipc(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{where} cannot be read: {first_line(error)}.") from None
    hint = nearest(ending, ENDINGS.replace(" or", ",").split(", "))
    raise UserError(f"{where} expects a file that ends with {ENDINGS}, got '{path.name}'.{hint}")


def _read_csv(path: Path, separator: str, keys: Schema, where: str) -> pl.DataFrame:
    """Raises: UserError for a column twice, or a number that no float holds."""
    table = pl.read_csv(
        path,
        separator=separator,
        schema_overrides=dict(keys),
        infer_schema_length=None,
        try_parse_dates=True,
    )
    _require_distinct(table, where)
    for name, dtype in table.schema.items():
        if dtype.is_float() and table[name].is_infinite().any():
            written = pl.read_csv(path, separator=separator, columns=[name], infer_schema=False)
            _require_finite(table[name], written[name], where)
    texts = [c for c, dtype in table.schema.items() if dtype == pl.String and c not in keys]
    return table.with_columns(_times(table[c]) for c in texts)


def _with_numbers(table: pl.DataFrame, keys: Schema, where: str) -> pl.DataFrame:
    """Return the table with numbers that stages can compute with."""
    return table.with_columns(_numbers(table[c], where) for c in table.columns if c not in keys)


def _numbers(column: pl.Series, where: str) -> pl.Series:
    """Return integers that no 64 bits hold as floats; say so, and of a column that would be numbers
    but for some texts."""
    known = column.drop_nulls()
    if column.dtype in (pl.Int128, pl.UInt128):
        log.warning(
            "%s: column '%s' is read as float64: no 64-bit integer holds '%s'.",
            where, column.name, known[int(known.cast(pl.Float64).abs().arg_max() or 0)],
        )  # fmt: skip
        return column.cast(pl.Float64)
    if column.dtype == pl.String:
        texts = known.filter(known.cast(pl.Float64, strict=False).is_null())
        numbers = len(known) - len(texts)
        if 0 < len(texts) < numbers:
            log.warning(
                "%s: column '%s' is text: '%s' is no number, as %s of %s are.",
                where, column.name, texts[0], f"{numbers:,}", f"{len(known):,}",
            )  # fmt: skip
    return column


def _times(column: pl.Series) -> pl.Series:
    """Return a column of texts that are dates and times in several spellings, with and without
    offsets, as times in UTC; another one as it is."""
    known = column.drop_nulls()
    if known.is_empty() or not known.str.contains(TIME).all():
        return column
    parts = column.str.extract_groups(TIME).struct
    clock = parts["clock"].fill_null("00:00")
    texts = pl.DataFrame([parts["date"], clock.alias("clock"), parts["seconds"], parts["offset"]])
    whole = texts.select(
        pl.concat_str(
            "date", pl.lit("T"), "clock", pl.col("seconds").fill_null(":00"),
            pl.col("offset").replace("Z", "+00:00").fill_null("+00:00"),
        )
    ).to_series()  # fmt: skip
    times = whole.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_zone="UTC", strict=False)
    return column if times.null_count() > column.null_count() else times.alias(column.name)


def _require_finite(column: pl.Series, written: pl.Series, where: str) -> None:
    """Raises: UserError for a number that no float holds, which polars reads as infinite."""
    lost = written.filter(column.is_infinite() & written.str.contains(r"\d"))
    if len(lost):
        raise UserError(
            f"{where} has '{lost[0]}' in column '{column.name}', a number that no float64 holds: "
            'correct it, or write "inf".'
        )


def _require_distinct(table: pl.DataFrame, where: str) -> None:
    """Raises: UserError for a name that stands in the header twice, which polars renames."""
    for name in table.columns:
        first, again, number = name.rpartition("_duplicated_")
        if again and number.isdecimal() and first in table.columns:
            raise UserError(f"{where} has column '{first}' twice: rename one.")


def key_column(column: pl.Series, dtype: pl.DataType, where: str) -> pl.Series:
    """Return a key column of the table as the stream has it."""
    if column.dtype == dtype:
        return column
    whole = column.dtype.is_integer() and dtype.is_integer()
    temporal = column.dtype.is_temporal() and dtype.is_temporal()
    text = isinstance(column.dtype, TEXTS) and isinstance(dtype, TEXTS)
    if not (whole or temporal or text or column.dtype == pl.Null):
        raise UserError(
            f"{where} expects {type_name(dtype)} in its key column '{column.name}', as the "
            "stream has, got "
            f"{type_name(column.dtype)}."
        )
    # A number that the stream's type cannot hold is a key that no row has: null matches nothing.
    return column.cast(dtype, strict=False)


__all__ = ["Table", "key_column", "read_table", "stamp"]
