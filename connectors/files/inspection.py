"""Schema discovery: footers, headers, and sample rows for type inference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from csv import reader as csv_reader
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl

from connectors.files.readers.table import open_table
from connectors.formats.csv import Csv
from connectors.formats.inference.infer import (
    MAX_COLUMNS,
    JsonTypeInference,
    OddValues,
    TooManyColumns,
    TypeInference,
    common_schema,
    common_type,
    spans_lines,
)
from connectors.formats.inference.sniff import DELIMITERS, WITH_COMMAS
from connectors.formats.inference.transcode import Transcoder
from connectors.formats.values.columns import PROBLEM
from engine.types import (
    PART,
    RESERVED,
    WILDCARD,
    Records,
    Schema,
    UnreadableFile,
    UserError,
    Values,
    is_pattern,
    type_name,
)
from engine.types.toml import toml_value

if TYPE_CHECKING:  # lxml is imported where XML is read
    from lxml import etree
from engine.types.plural import counted

RESERVED_NAMES = (*RESERVED, PART, PROBLEM, WILDCARD, "")
"""Names that no column of a file can have: reserved ones, and the empty name."""
INFERENCE_BYTES = 32 << 20
"""The bytes of text used to infer types; files with fewer in all are read completely."""
MIN_BYTES_PER_FILE = 64 << 10
"""The least bytes of one file, while any are left."""
SAMPLE_ROWS = 1_000
"""The rows of XML, or samples of a WebDataset, in which columns are looked for."""
SOME_ROWS = 64
PIECE = 4 << 20
"""The bytes inspected together."""
MAX_FILES_NAMED = 3
"""The most files a log line names."""

log = logging.getLogger("headrace.files")


def is_taken(name: str) -> bool:
    """Return whether no column of a file can have this name."""
    return name in RESERVED_NAMES or is_pattern(name)


class RowReader(Protocol):
    """An open file whose rows are text."""

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        """See `connectors.files.readers.text.TextFile`."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class TranscodedReader:
    """An open text file in another encoding, as UTF-8."""

    def __init__(self, file: RowReader, table: Transcoder) -> None:
        self._file = file
        self._table = table

    def read(self, max_rows: int, max_bytes: int) -> Records | None:
        records = self._file.read(max_rows, max_bytes)
        return None if records is None else self._table.recoded(records)

    def close(self) -> None:
        self._file.close()


@dataclass(slots=True, kw_only=True)
class Inspection:
    """The common schema of several files.

    Attributes:
        schema: every column of any file, in a type that holds the values of all.
        missing_in: column -> files with rows that lack it.
        mixed: column -> a sentence on its last change of type from file to file.
        empty: files without a row, as far as that is known.
        partly_read: files of which only a part was read to infer types.
        rows: whether a row was seen.
        blank: columns without a value.
        null_values: fields that are read as missing values.
        words: column -> fields of it that may be missing values, see
            `connectors.formats.inference.infer`.
        odd: column -> the few values that make it text.
        grouped: column -> its first value with a point, where every point may stand between
            thousands.
        reads_commas: whether ``decimal = ","`` suits a CSV: commas do not separate its fields, and
            no number has a decimal point.
        apart: sentences on files of objects without a key of the files before them.
    """

    schema: Schema = field(default_factory=dict)
    missing_in: dict[str, list[str]] = field(default_factory=dict)
    mixed: dict[str, str] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    partly_read: list[str] = field(default_factory=list)
    rows: bool = False
    blank: list[str] = field(default_factory=list)
    null_values: tuple[str, ...] = ()
    words: dict[str, set[str]] = field(default_factory=dict)
    odd: dict[str, OddValues] = field(default_factory=dict)
    grouped: dict[str, str] = field(default_factory=dict)
    reads_commas: bool = False
    apart: list[str] = field(default_factory=list)

    def log_warnings(self, files: int, declared: Schema) -> None:
        """Log what a user should know about the files."""
        if self.empty and len(self.empty) < files:
            log.warning(
                "%s no rows: %s.",
                counted(len(self.empty), f"of {files:,} files has", f"of {files:,} files have"),
                _some(self.empty),
            )
        _tell_some(self.apart, "files have no key of the others")
        self._tell_lacking(files)
        self._tell_mixed(declared)
        self._tell_odd(declared)
        self._tell_grouped(declared)
        blank = [column for column in self.blank if column not in declared]
        if blank and self.rows:
            log.warning(
                "%s no value, and is read as text: declare its type in [source.schema] where it "
                "is another: %s.",
                counted(len(blank), "column has", "columns have"),
                _some(blank),
            )
        if self.null_values:
            words = ", ".join(f'"{word}"' for word in self.null_values)
            log.warning(
                "Fields %s are read as missing values; set [source] null_values to choose others.",
                words,
            )
        guessed = [c for c in self.schema if c not in declared]
        if self.partly_read and guessed:
            log.warning(
                "%s guessed from the first %d MiB of text; declare them in [source.schema] where "
                "later rows may be of other types.",
                counted(len(guessed), "column type is", "column types are"),
                INFERENCE_BYTES >> 20,
            )

    def _tell_lacking(self, files: int) -> None:
        if len(self.missing_in) == 1:
            ((column, missing_in),) = self.missing_in.items()
            log.warning(
                "%s column '%s', which is null there: %s; [source] "
                'missing_columns = "fail" refuses them.',
                counted(len(missing_in), f"of {files:,} files lacks", f"of {files:,} files lack"),
                column,
                _some(missing_in),
            )
        elif self.missing_in:
            groups: dict[tuple[str, ...], list[str]] = {}
            for column, missing_in in self.missing_in.items():
                groups.setdefault(tuple(missing_in), []).append(f"'{column}'")
            log.warning(
                "%d columns are not in all of %s files, and null where they are not: %s; [source] "
                'missing_columns = "fail" refuses them. --log-level debug lists all files.',
                len(self.missing_in),
                f"{files:,}",
                _some([f"{_some(c)} in {_some(list(f))}" for f, c in groups.items()], "; "),
            )
        for column, missing_in in self.missing_in.items():
            log.debug("Column '%s' is not in %s.", column, ", ".join(missing_in))

    def _tell_mixed(self, declared: Schema) -> None:
        sentences = [said for column, said in self.mixed.items() if column not in declared]
        _tell_some(sentences, "columns are of several types")

    def _tell_odd(self, declared: Schema) -> None:
        odd = {
            column: few
            for column, few in self.odd.items()
            if column not in declared and self.schema.get(column) == pl.String
        }
        few = [self._of_odd(c, odd[c]) for c in odd if odd[c].few]
        _tell_some(few, "columns are text for a few values")
        many = [self._of_odd(c, odd[c]) for c in odd if not odd[c].few]
        _tell_some(many, "columns are numbers in a notation that no cast reads", level=logging.INFO)

    def _of_odd(self, column: str, few: OddValues) -> str:
        start = (
            f"Column '{column}' is read as text: {few.count:,} of {few.seen:,} values, the first "
            f"'{few.value[:80]}', {'is' if few.count == 1 else 'are'}"
        )
        if few.numbers:
            comma = few.commas and self.reads_commas
            reader = (
                '[source] decimal = "," reads' if comma else "'headrace explore' says what reads"
            )
            noun = "a number" if few.count == 1 else "numbers"
            return f"{start} {noun} in a notation that no cast reads; {reader} them all."
        return (
            f"{start} no {type_name(few.dtype)}, which the others are; declare "
            f'{toml_value(column)} = "{type_name(few.dtype)}" in [source.schema] to reject such '
            "rows (in CSV, [source] null_values makes them null)."
        )

    def _tell_grouped(self, declared: Schema) -> None:
        """Tell of numbers that may be a thousand times as large."""
        columns = {c: value for c, value in self.grouped.items() if c not in declared}
        sentences = [
            f"Column '{column}' is read with decimal points, as in {value}, and all of them stand "
            "before three digits, as points between thousands do: where they are that, set "
            f'[source] decimal = ","; where not, declare {toml_value(column)} = "float64" in '
            "[source.schema]."
            for column, value in columns.items()
        ]
        _tell_some(sentences, "perhaps numbers with points between thousands")


def _tell_some(sentences: Sequence[str], more: str, *, level: int = logging.WARNING) -> None:
    """Log the first sentences, as warnings or less, the others where somebody asks for them."""
    for sentence in sentences[:MAX_FILES_NAMED]:
        log.log(level, "%s", sentence)
    for sentence in sentences[MAX_FILES_NAMED:]:
        log.debug("%s", sentence)
    if len(sentences) > MAX_FILES_NAMED:
        rest = len(sentences) - MAX_FILES_NAMED
        log.log(level, "%d more %s; --log-level debug lists them.", rest, more)


@contextmanager
def passing_over(damaged: bool) -> Iterator[None]:
    """Pass over a file that cannot be read, where so asked: its reader reports it."""
    try:
        yield
    except UnreadableFile:
        if not damaged:
            raise


def inspect_tables(
    files: Mapping[str, Path],
    format: str,
    *,
    may_grow: bool = False,
    pass_over_damaged: bool = False,
) -> Inspection:
    """Inspect all footers and headers, see `connectors.files.readers.table.TableFile`.

    Raises: UserError for a column whose types have no common type.
    """
    inspection = Inspection()
    columns_by_file: dict[str, list[str]] = {}
    for name, path in files.items():
        with passing_over(pass_over_damaged):
            table = open_table(format, path, name, may_grow=may_grow)
            table.close()
            if not table.rows:
                inspection.empty.append(name)
            require_shared(list(table.schema), columns_by_file, name)
            inspection.schema = _merge_schema(inspection, table.schema, name, columns_by_file)
            inspection.rows |= table.rows > 0
            columns_by_file[name] = list(table.schema)
    _note_lacking(inspection, columns_by_file)
    return inspection


def _merge_schema(
    inspection: Inspection, schema: Schema, name: str, before: Mapping[str, list[str]]
) -> Schema:
    merged = common_schema(inspection.schema, schema)
    for column, dtype in schema.items():
        old = inspection.schema.get(column, dtype)
        if merged[column] == pl.String and pl.String not in (old, dtype) and _nested(old, dtype):
            first = next(file for file, columns in before.items() if column in columns)
            raise UserError(
                f"Column '{column}' is {type_name(old)} in {first} and {type_name(dtype)} in "
                f"{name}: expected types with a common type; leave one of the files out."
            )
        if old not in (dtype, pl.Null) and dtype != pl.Null:
            inspection.mixed[column] = (
                f"Column '{column}' is {type_name(old)} before {name} and {type_name(dtype)} in "
                f"it: it is read as {type_name(merged[column])}."
            )
    return merged


def _nested(*dtypes: pl.DataType) -> bool:
    return any(dtype.is_nested() for dtype in dtypes)


def require_shared(
    columns: Sequence[str],
    others: Mapping[str, Sequence[str]],
    name: str,
    delimiter: str | None = None,
) -> None:
    """Require that a file has a column of the other files: its rows would be null in all of them.

    Args:
        others: file -> its columns, those without any are left out.
        delimiter: the one with which a CSV is read.

    Raises: UserError, with the delimiter that the file has instead if that is the reason.
    """
    known = dict.fromkeys(c for other in others.values() for c in other)
    if not columns or not known or not known.keys().isdisjoint(columns):
        return
    start = (
        f"{name} has no column of {next(file for file, other in others.items() if other)}: "
        f"expected {_quoted(known)}, got {_quoted(columns)}"
    )
    for other in (",", *DELIMITERS) if delimiter is not None else ():
        header = next(csv_reader([str(delimiter).join(columns)], delimiter=other))
        if not known.keys().isdisjoint(header):
            raise UserError(
                f"{start}. Its columns stand between {toml_value(other)}, and the files are read "
                f"with delimiter {toml_value(str(delimiter))}: read it apart from the others, or "
                "convert it."
            )
    raise UserError(f"{start}: correct its header, or leave the file out.")


def inspect_csv(
    files: Mapping[str, Path],
    opened: Callable[[Path, str], RowReader],
    csv: Csv,
    headers: Mapping[str, list[str]],
    declared: Iterable[str] | None,
    *,
    words: bool = True,
    pass_over_damaged: bool = False,
) -> Inspection:
    """Inspect all headers, and rows to infer undeclared types.

    Args:
        opened: opens a file, and notes its header.
        declared: columns whose type is known; None to infer no types.
        words: whether to look for words that mean a missing value.
    """
    inspection, guess = Inspection(), TypeInference()
    columns_by_file: dict[str, list[str]] = {}
    shares = SampleBudget(len(files))
    for name, path in files.items():
        with passing_over(pass_over_damaged), closing(opened(path, name)) as file:
            guess.decimal = csv.dialect.decimal  # as the first file with rows has it
            columns = headers[name]
            _check_column_count(len(columns) if declared is not None else 0, name)
            require_shared(columns, columns_by_file, name, csv.dialect.delimiter)
            columns_by_file[name] = columns
            inspection.schema |= {c: pl.String() for c in columns if c not in inspection.schema}
            wanted = [] if declared is None else [c for c in columns if c not in declared]
            wanted = [c for c in wanted if not is_taken(c)]
            seen = 0
            for records in shares.parts(file, name, inspection) if columns else ():
                seen += len(records)
                if not wanted:
                    break
                guess.add(csv.decode(records, dict.fromkeys(wanted, pl.String()))[0])
            if not seen:
                inspection.empty.append(name)
            inspection.rows |= seen > 0
    inspection.null_values = guess.null_values if words else ()
    inspection.words = guess.words if words else {}
    inspection.odd = guess.odd
    delimiter, types = csv.dialect.delimiter, guess.schema(inspection.null_values)
    points = any(t.is_float() and c not in guess.grouped for c, t in types.items())
    inspection.reads_commas = delimiter != "," and not points
    inspection.grouped = guess.grouped if delimiter in WITH_COMMAS else {}
    inspection.blank = guess.blank
    inspection.schema |= types
    _note_lacking(
        inspection, {name: columns for name, columns in columns_by_file.items() if columns}
    )
    return inspection


def inspect_json(
    files: Mapping[str, Path],
    opened: Callable[[Path, str], RowReader],
    paths: Mapping[str, str],
    *,
    declared: bool,
    per_file: bool,
    pass_over_damaged: bool = False,
) -> Inspection:
    """Inspect the keys of the objects, and infer types that hold all their values.

    Args:
        paths: column -> the path of its value; a path without any value gives no type.
        declared: whether columns are declared, so that rows that are not objects are rejects.
        per_file: whether each file is one object, not each line.

    Raises: UserError if objects span lines, or no row is an object and nothing is declared.
    """
    inspection, guess = Inspection(), JsonTypeInference(paths)
    shares = SampleBudget(len(files))
    head: bytes | None = None
    for name, path in files.items():
        with passing_over(pass_over_damaged), closing(opened(path, name)) as file:
            seen, before, keys = 0, dict(guess.schema), dict[str, pl.DataType]()
            for records in shares.parts(file, name, inspection):
                seen += len(records)
                lines = raw_lines(records)
                try:
                    keys |= guess.add(lines)
                except TooManyColumns as error:
                    _check_column_count(int(error.args[0]), name)
                _check_column_count(len(keys), name)
                if head is None:
                    head = lines
                    if spans_lines(lines) or not (guess.schema or declared):
                        raise _no_object(name, lines) if per_file else _no_objects(name, lines)
            if not seen:
                inspection.empty.append(name)
            if before and keys and keys.keys().isdisjoint(before):
                inspection.apart.append(
                    f"{name} has no key of the files before it: expected {_quoted(before)}, got "
                    f"{_quoted(keys)}; those are null in its rows. Leave it out if its objects are "
                    "of another kind."
                )
    inspection.rows = head is not None
    inspection.schema = {c: _resolved_type(dtype) for c, dtype in guess.schema.items()}
    inspection.odd = guess.odd
    return inspection


def inspect_xml(
    elements: Sequence[etree._Element], paths: Mapping[str, str], *, guess: bool
) -> Inspection:
    """Inspect the columns that these elements have, and those of `paths`; without `guess`, all are
    text."""
    from connectors.formats.xml import XmlFields, columns_of

    columns = list(dict.fromkeys([*columns_of(elements), *paths]))
    texts = XmlFields(columns, paths).frame(elements, len(elements))
    if not guess or not elements:
        return Inspection(schema=dict(texts.schema))
    types = TypeInference()
    types.add(texts)
    return Inspection(schema=types.schema(), odd=types.odd, blank=types.blank, rows=True)


def _check_column_count(columns: int, name: str) -> None:
    if columns > MAX_COLUMNS:
        raise UserError(
            f"{name} has {columns:,} columns, and more than {MAX_COLUMNS:,} are not "
            f"guessed: "
            'declare those that are needed in [source.schema], and "*" = "drop".'
        )


def require_objects(files: Mapping[str, Path], opened: Callable[[Path, str], RowReader]) -> None:
    """Raises: UserError if the first rows are lines of objects that span several lines."""
    for name, path in files.items():
        file = opened(path, name)
        try:
            records = file.read(SOME_ROWS, MIN_BYTES_PER_FILE)
        finally:
            file.close()
        if records is not None:
            lines = raw_lines(records)
            if spans_lines(lines):
                raise _no_objects(name, lines)
            return


def _no_object(name: str, content: bytes) -> UserError:
    return UserError(
        f"{name} is not one JSON object with keys; it begins with '{_head(content)}': expected one "
        'object in each file. If each line is an object, set [source] format = "ndjson"; write a '
        "list as lines ('jq -c .[]')."
    )


def _head(content: bytes) -> str:
    return content[:40].decode("utf-8", "replace").strip().partition("\n")[0]


def _no_objects(name: str, lines: bytes) -> UserError:
    return UserError(
        f"{name} has no line that is a JSON object with keys; it begins with '{_head(lines)}': "
        "expected one object a line. Write objects that span lines, or a list of them, as lines "
        "('jq -c .', 'jq -c .[]'), or set [source] format = \"json\" where a file is one object."
    )


class SampleBudget:
    """Splits the inference byte budget among files; unused bytes pass to the next.

    Args:
        files: how many there are.
    """

    def __init__(self, files: int) -> None:
        self._left = INFERENCE_BYTES
        self._files = files

    def parts(self, file: RowReader, name: str, inspection: Inspection) -> Iterator[Records]:
        """Yield rows from the beginning of a file; at least one part."""
        share = max(self._left // max(1, self._files), MIN_BYTES_PER_FILE)
        self._files -= 1
        while (records := file.read(1 << 30, min(PIECE, max(share, 1)))) is not None:
            size = records.nbytes
            share -= size
            self._left -= size
            yield records
            if share <= 0 or self._left <= 0:
                inspection.partly_read.append(name)
                return


def _note_lacking(inspection: Inspection, columns_by_file: Mapping[str, list[str]]) -> None:
    if len(set(map(frozenset, columns_by_file.values()))) < 2:
        return
    for column in inspection.schema:
        missing_in = [name for name, columns in columns_by_file.items() if column not in columns]
        if missing_in and not is_taken(column):
            inspection.missing_in[column] = missing_in


def _resolved_type(dtype: pl.DataType) -> pl.DataType:
    """Replace the null type by text."""
    if dtype == pl.Null:
        return pl.String()
    if isinstance(dtype, pl.List):
        return pl.List(_resolved_type(common_type(dtype.inner, pl.Null())))  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        fields = dtype.to_schema()
        return pl.Struct({c: _resolved_type(field_type) for c, field_type in fields.items()})  # type: ignore[arg-type]
    return dtype


def raw_lines(records: Records) -> bytes:
    """Return one row per line; a file that is one row loses its line breaks."""
    values = records.values
    assert isinstance(values, Values)
    if records.keys is None:
        return values.data[values.bounds[0] : values.bounds[-1]].tobytes()
    rows = values.take(np.arange(len(records)))
    return b"\n".join(row.replace(b"\n", b" ") for row in rows if row is not None)


def _quoted(columns: Iterable[str]) -> str:
    return _some([f"'{column[:80]}'" for column in columns])


def _some(names: list[str], between: str = ", ") -> str:
    rest = len(names) - MAX_FILES_NAMED
    return between.join(names[:MAX_FILES_NAMED]) + (f" and {rest} more" if rest > 0 else "")


__all__ = [
    "Inspection",
    "RowReader",
    "TranscodedReader",
    "inspect_csv",
    "inspect_json",
    "inspect_tables",
    "inspect_xml",
    "is_taken",
    "raw_lines",
    "require_objects",
    "require_shared",
]
