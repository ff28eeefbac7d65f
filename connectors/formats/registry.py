"""Which formats there are, and what a source must know of each.

A format is its own file and a line in `FORMATS`: files and topics both read this table. What makes
it is imported when it is named, so that an unused format costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast

from connectors.formats.options import FormatOptions
from engine.types import Format, UserError

Layout = Literal["lines", "table", "file", "samples"]
"""How a file holds rows: a line is one, a table has them by number, the file is one (or, of XML,
its elements), or neighbours in an archive are one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormatSpec:
    """One format.

    Attributes:
        make: import string of a function that makes it from `FormatOptions`.
        layout: how a file holds its rows; None where it is not for files.
        topics: whether the value of a message is a row.
        extensions: of its files.
        other_names: what other tools call it, besides its extensions.
        by_extension: whether those say that a file is of this format.
        options: settings of a source that are for it, and not for every format.
        table: of tables: import string of the `connectors.files.readers.table.TableFile`.
        guessed: whether the source finds columns and types in the files; where not, the format
            describes them (`Format.schema`), or all are declared.
        sparse: whether a row need not have every column.
        declared_only: whether only declared columns are looked for, where there are any.
        sortable: whether `order_by` can sort its rows.
        plain_lines: whether a row is a line, whatever is in it: a file may be cut at any line end,
            and a row that is too long for the source is rejected by itself.
        newline: whether its parser wants a line end behind every message.
        plain_text: whether its values are text, whatever they hold: what begins like something
            packed is rejected.
    """

    make: str
    layout: Layout | None = None
    topics: bool = False
    extensions: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()
    by_extension: bool = True
    options: frozenset[str] = frozenset()
    table: str = ""
    guessed: bool = False
    sparse: bool = False
    declared_only: bool = False
    sortable: bool = False
    plain_lines: bool = False
    newline: bool = False
    plain_text: bool = True

    def format(self, options: FormatOptions) -> Format:
        """The format. Raises: UserError for options that do not fit."""
        make = cast("Callable[[FormatOptions], Format]", imported(self.make))
        return make(options)


CUSTOM = FormatSpec(
    make="", layout="lines", topics=True, options=frozenset({"encoding"}), plain_text=False
)
"""A class of the user's own: lines of a file, or values of a topic."""
_FORMATS = "connectors.formats."
_TABLES = "connectors.files.readers.table:"
_DIALECT = {"delimiter", "quote", "decimal", "comment", "null_values"}
_REGISTRY = {"registry", "registry_user", "registry_password", "schema_file"}
FORMATS: Mapping[str, FormatSpec] = {
    "csv": FormatSpec(
        make=_FORMATS + "csv:make", layout="lines", topics=True, extensions=(".csv", ".tsv"),
        options=frozenset({"columns", "encoding", *_DIALECT}), guessed=True, sortable=True,
        newline=True,
    ),
    "ndjson": FormatSpec(
        make=_FORMATS + "ndjson:make", layout="lines", topics=True,
        extensions=(".ndjson", ".jsonl"),
        other_names=("jsonlines", "json_lines", "json-lines", "ldjson"),
        options=frozenset({"paths", "encoding"}), guessed=True, sparse=True, sortable=True,
        plain_lines=True, newline=True,
    ),
    "parquet": FormatSpec(
        make=_FORMATS + "values.columns:make", layout="table", extensions=(".parquet",),
        table=_TABLES + "ParquetFile", options=frozenset({"paths"}), guessed=True, sortable=True,
    ),
    "arrow": FormatSpec(
        make=_FORMATS + "values.columns:make", layout="table",
        extensions=(".arrow", ".ipc", ".feather"), table=_TABLES + "ArrowFile",
        options=frozenset({"paths"}), guessed=True, sortable=True,
    ),
    "avro": FormatSpec(
        make=_FORMATS + "avro:make", layout="table", topics=True, extensions=(".avro",),
        table="connectors.files.readers.avro:AvroFile", options=frozenset({"paths", *_REGISTRY}),
        guessed=True, sortable=True, plain_text=False,
    ),
    "xml": FormatSpec(
        make=_FORMATS + "xml:make", layout="file", topics=True, extensions=(".xml",),
        options=frozenset({"paths", "row"}), guessed=True, sparse=True, declared_only=True,
    ),
    "webdataset": FormatSpec(
        make=_FORMATS + "webdataset:make", layout="samples",
        extensions=(".tar", ".tgz", ".tbz2", ".txz"), options=frozenset({"paths"}), guessed=True,
        sparse=True, declared_only=True,
    ),
    "images": FormatSpec(
        make=_FORMATS + "file_content:images", layout="file",
        extensions=(".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
    ),
    "json": FormatSpec(
        make=_FORMATS + "ndjson:make", layout="file", extensions=(".json",), by_extension=False,
        options=frozenset({"paths"}), guessed=True, sparse=True,
    ),
    "documents": FormatSpec(make=_FORMATS + "file_content:documents", layout="file"),
    "text": FormatSpec(
        make=_FORMATS + "text:make", layout="lines", topics=True, options=frozenset({"encoding"}),
        plain_lines=True,
    ),
}  # fmt: skip
"""Name in a pipeline file -> format."""
FILES = tuple(name for name, spec in FORMATS.items() if spec.layout is not None)
TOPICS = tuple(name for name, spec in FORMATS.items() if spec.topics)
EXTENSIONS = {
    extension: name
    for name, spec in FORMATS.items()
    for extension in spec.extensions
    if spec.by_extension
}
"""Extension -> the format of its files."""


def spec_of(format: str) -> FormatSpec:
    """What is known of a format; of a class of the user's, `CUSTOM`."""
    return FORMATS.get(format, CUSTOM)


def format_of(name: str) -> str | None:
    """The format that this name means: its own, that of its files' extension, or another tool's;
    None if it means none."""
    name = name.lower()
    if name in FORMATS:
        return name
    for format, spec in FORMATS.items():
        if f".{name.removeprefix('.')}" in spec.extensions or name in spec.other_names:
            return format
    return None


def with_option(option: str, known: Iterable[str] = FORMATS) -> tuple[str, ...]:
    """Those of the known formats that a setting is for."""
    return tuple(name for name in known if option in FORMATS[name].options)


def require_option(option: str, format: str, known: Iterable[str]) -> None:
    """Raises: UserError if a setting of a source is not for this format, but for others of the
    known ones."""
    if option not in spec_of(format).options:
        *most, last = with_option(option, known)
        names = f"{', '.join(most)} and {last}" if most else last
        raise UserError(f"[source] {option} is for {names}, and format is '{format}': take it out.")


def imported(path: str) -> object:
    """What an import string names."""
    module, _, name = path.partition(":")
    return vars(importlib.import_module(module))[name]


__all__ = [
    "CUSTOM",
    "EXTENSIONS",
    "FILES",
    "FORMATS",
    "TOPICS",
    "FormatSpec",
    "format_of",
    "imported",
    "require_option",
    "spec_of",
    "with_option",
]
