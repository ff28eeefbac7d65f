"""Schema discovery: footers, headers, and sample rows for type inference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl

from connectors.files.table import KINDS
from connectors.formats.values.columns import PROBLEM
from connectors.formats.csv import Csv
from connectors.formats.inference.infer import (
    Guess,
    common_schema,
    common_type,
    json_types,
    spans_lines,
)
from connectors.formats.inference.transcode import Table
from engine.types import (
    PART,
    RESERVED,
    REST,
    Records,
    Schema,
    UserError,
    Values,
    is_pattern,
    type_name,
)
from engine.types.plural import counted

OWN_NAMES = (*RESERVED, PART, PROBLEM, REST, "")


def is_taken(name: str) -> bool:
    """Whether no column of a file can have this name."""
    return name in OWN_NAMES or is_pattern(name)


"""Names that no column of a file can have: headrace's own, and none."""
BUDGET = 32 << 20
"""Bytes of text that types are guessed from; files with less in all are looked at whole."""
LEAST = 64 << 10
"""Of one file, while there is any left."""
SOME_ROWS = 64
MOST_COLUMNS = 10_000
"""Whose types are guessed: more are data in the place of names."""
PIECE = 4 << 20
"""Bytes looked at together."""
NAMED = 3
"""Files that a log line names."""

log = logging.getLogger("headrace.files")


class Rows(Protocol):
    """An open file whose rows are text."""

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """See `connectors.files.text.TextFile`."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


class Recoded:
    """An open file of text in another encoding, as UTF-8."""

    def __init__(self, file: Rows, table: Table) -> None:
        self._file = file
        self._table = table

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """See `Rows`."""
        records = self._file.read(max_rows, max_bytes)
        return None if records is None else self._table.recoded(records)

    def close(self) -> None:
        """See `Rows`."""
        self._file.close()


@dataclass(slots=True, kw_only=True)
class Inspection:
    """What several files have in common.

    Attributes:
        schema: every column of any file, in a type that holds the values of all.
        lacking: column -> files with rows that lack it.
        mixed: column -> a sentence on its last change of type from file to file.
        empty: files without a row, as far as that is known.
        partly: files that were not looked at whole, although types are guessed from them.
        rows: whether a row was seen.
        blank: columns without a value.
        null_values: fields that are taken for missing values.
        words: column -> fields of it that may be missing values, see `connectors.formats.inference.infer`.
    """

    schema: Schema = field(default_factory=dict)
    lacking: dict[str, list[str]] = field(default_factory=dict)
    mixed: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    partly: list[str] = field(default_factory=list)
    rows: bool = False
    blank: list[str] = field(default_factory=list)
    null_values: tuple[str, ...] = ()
    words: dict[str, set[str]] = field(default_factory=dict)

    def tell(self, files: int, declared: Schema) -> None:
        """Log what a user should know of it."""
        if self.empty and len(self.empty) < files:
            log.warning(
                "%s no rows: %s.",
                counted(len(self.empty), f"of {files:,} files has", f"of {files:,} files have"),
                _some(self.empty),
            )
        self._tell_lacking(files)
        self._tell_mixed()
        if self.blank and self.rows:
            log.warning(
                "%s no value, and is read as text: declare its type in [source.schema] where it "
                "is another: %s.",
                counted(len(self.blank), "column has", "columns have"),
                _some(self.blank),
            )
        if self.null_values:
            words = ", ".join(f'"{word}"' for word in self.null_values)
            log.warning(
                "Fields %s are taken for missing values; [source] null_values says which are.",
                words,
            )
        guessed = [c for c in self.schema if c not in declared]
        if self.partly and guessed:
            log.warning(
                "%s guessed from the first %d MiB of text; declare them in [source.schema] where "
                "later rows may be of other types.",
                counted(len(guessed), "column type is", "column types are"),
                BUDGET >> 20,
            )

    def _tell_lacking(self, files: int) -> None:
        if len(self.lacking) == 1:
            ((column, lacking),) = self.lacking.items()
            log.warning(
                "%s column '%s', which is null there: %s; [source] "
                'missing_columns = "fail" refuses them.',
                counted(len(lacking), f"of {files:,} files lacks", f"of {files:,} files lack"),
                column,
                _some(lacking),
            )
        elif self.lacking:
            log.warning(
                "%d columns are not in all of %s files, and null where they are not: %s; [source] "
                'missing_columns = "fail" refuses them. --log-level debug tells which files.',
                len(self.lacking),
                f"{files:,}",
                _some([f"'{column}'" for column in self.lacking]),
            )
        for column, lacking in self.lacking.items():
            log.debug("Column '%s' is not in %s.", column, ", ".join(lacking))

    def _tell_mixed(self) -> None:
        said = list(self.mixed.values())
        for sentence in said[:NAMED]:
            log.warning("%s", sentence)
        for sentence in said[NAMED:]:
            log.debug("%s", sentence)
        if len(said) > NAMED:
            log.warning(
                "%d more columns are of several types; --log-level debug tells them.",
                len(said) - NAMED,
            )


def of_tables(files: Mapping[str, Path], kind: str) -> Inspection:
    """All footers. Raises: UserError where one column is of types that no type holds together."""
    found = Inspection()
    there: dict[str, list[str]] = {}
    for name, path in files.items():
        table = KINDS[kind](path, name)
        table.close()
        if not table.rows:
            found.empty.append(name)
        found.schema = _joined(found, table.schema, name, there)
        found.rows |= table.rows > 0
        there[name] = list(table.schema)
    _note_lacking(found, there)
    return found


def _joined(
    found: Inspection, schema: Schema, name: str, before: Mapping[str, list[str]]
) -> Schema:
    made = common_schema(found.schema, schema)
    for column, dtype in schema.items():
        old = found.schema.get(column, dtype)
        if made[column] == pl.String and pl.String not in (old, dtype) and _nested(old, dtype):
            first = next(file for file, columns in before.items() if column in columns)
            raise UserError(
                f"Column '{column}' is {type_name(old)} in {first} and {type_name(dtype)} in "
                f"{name}: expected types that go together; leave one of the files out."
            )
        if old not in (dtype, pl.Null) and dtype != pl.Null:
            found.mixed[column] = (
                f"Column '{column}' is {type_name(old)} before {name} and {type_name(dtype)} in "
                f"it: it is read as {type_name(made[column])}."
            )
    return made


def _nested(*dtypes: pl.DataType) -> bool:
    return any(dtype.is_nested() for dtype in dtypes)


def of_csv(
    files: Mapping[str, Path],
    opened: Callable[[Path, str], Rows],
    csv: Csv,
    headers: Mapping[str, list[str]],
    declared: Iterable[str] | None,
    *,
    words: bool = True,
) -> Inspection:
    """All headers, and rows to guess the types of columns from that are not declared.

    Args:
        opened: opens a file, and notes its header.
        declared: columns whose type is known; None where no type is to be guessed.
        words: whether words for missing values are looked for.
    """
    found, guess = Inspection(), Guess()
    there: dict[str, list[str]] = {}
    shares = Shares(len(files))
    for name, path in files.items():
        file = opened(path, name)
        try:
            guess.decimal = csv.dialect.decimal  # as the first file with rows has it
            columns = headers[name]
            _may_have(len(columns) if declared is not None else 0, name)
            there[name] = columns
            found.schema |= {c: pl.String() for c in columns if c not in found.schema}
            wanted = [] if declared is None else [c for c in columns if c not in declared]
            wanted = [c for c in wanted if not is_taken(c)]
            seen = 0
            for records in shares.parts(file, name, found) if columns else ():
                seen += len(records)
                if not wanted:
                    break
                guess.add(csv.decode(records, dict.fromkeys(wanted, pl.String()))[0])
            if not seen:
                found.empty.append(name)
            found.rows |= seen > 0
        finally:
            file.close()
    found.null_values = guess.null_values if words else ()
    found.words = guess.words if words else {}
    found.blank = guess.blank
    found.schema |= guess.schema(found.null_values)
    _note_lacking(found, {name: columns for name, columns in there.items() if columns})
    return found


def of_json(
    files: Mapping[str, Path],
    opened: Callable[[Path, str], Rows],
    paths: Mapping[str, str],
    *,
    declared: bool,
) -> Inspection:
    """The keys of the objects, in the types that hold all their values.

    Args:
        paths: column -> where its value is; one that leads to none in any row has no type.
        declared: some columns are, so rows that are no objects may be poison.

    Raises: UserError where objects span lines, or no row is an object although nothing is declared.
    """
    found = Inspection()
    shares = Shares(len(files))
    head: bytes | None = None
    for name, path in files.items():
        file = opened(path, name)
        try:
            seen = 0
            for records in shares.parts(file, name, found):
                seen += len(records)
                lines = _lines(records)
                types = json_types(lines, paths)
                _may_have(len(types), name)
                found.schema = common_schema(found.schema, types)
                if head is None:
                    head = lines
                    if spans_lines(lines) or not (found.schema or declared):
                        raise _no_objects(name, lines)
            if not seen:
                found.empty.append(name)
        finally:
            file.close()
    found.rows = head is not None
    found.schema = {c: _settled(dtype) for c, dtype in found.schema.items()}
    return found


def _may_have(columns: int, name: str) -> None:
    if columns > MOST_COLUMNS:
        raise UserError(
            f"{name} has {columns:,} columns, and more than {MOST_COLUMNS:,} are not guessed: "
            'declare those that are needed in [source.schema], and "*" = "drop".'
        )


def must_hold_objects(files: Mapping[str, Path], opened: Callable[[Path, str], Rows]) -> None:
    """Raises: UserError where the first rows are the lines of objects that span several."""
    for name, path in files.items():
        file = opened(path, name)
        try:
            records = file.read(SOME_ROWS, LEAST)
        finally:
            file.close()
        if records is not None:
            lines = _lines(records)
            if spans_lines(lines):
                raise _no_objects(name, lines)
            return


def _no_objects(name: str, lines: bytes) -> UserError:
    head = lines[:40].decode("utf-8", "replace").strip().partition("\n")[0]
    return UserError(
        f"{name} has no line that is a JSON object with keys; it begins with '{head}': expected "
        "one object a line. Write objects that span lines, or a list of them, as lines ('jq -c .', "
        "'jq -c .[]'), or set [source] format = \"json\" where a file is one object."
    )


class Shares:
    """Splits the inference byte budget among files; unused bytes pass to the next.

    Args:
        files: how many there are.
    """

    def __init__(self, files: int) -> None:
        self._left = BUDGET
        self._files = files

    def parts(self, file: Rows, name: str, found: Inspection) -> Iterator[Records]:
        """Rows from the beginning of a file; at least one part of it."""
        share = max(self._left // max(1, self._files), LEAST)
        self._files -= 1
        while (records := file.read(1 << 30, min(PIECE, max(share, 1)))) is not None:
            size = records.nbytes
            share -= size
            self._left -= size
            yield records
            if share <= 0 or self._left <= 0:
                found.partly.append(name)
                return


def _note_lacking(found: Inspection, there: Mapping[str, list[str]]) -> None:
    if len(set(map(frozenset, there.values()))) < 2:
        return
    for column in found.schema:
        lacking = [name for name, columns in there.items() if column not in columns]
        if lacking and not is_taken(column):
            found.lacking[column] = lacking


def _settled(dtype: pl.DataType) -> pl.DataType:
    """Replace the null type by text."""
    if dtype == pl.Null:
        return pl.String()
    if isinstance(dtype, pl.List):
        return pl.List(_settled(common_type(dtype.inner, pl.Null())))  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        fields = dtype.to_schema()
        return pl.Struct({c: _settled(kind) for c, kind in fields.items()})  # type: ignore[arg-type]
    return dtype


def _lines(records: Records) -> bytes:
    """One row a line; files that are a row each lose their line breaks."""
    values = records.values
    assert isinstance(values, Values)
    if records.keys is None:
        return values.data[values.bounds[0] : values.bounds[-1]].tobytes()
    rows = values.take(np.arange(len(records)))
    return b"\n".join(row.replace(b"\n", b" ") for row in rows if row is not None)


def _some(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


__all__ = [
    "Inspection",
    "Recoded",
    "Rows",
    "is_taken",
    "must_hold_objects",
    "of_csv",
    "of_json",
    "of_tables",
]
