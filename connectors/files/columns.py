"""Finds the columns of a source: declared, described by a format, or found in the files."""

from __future__ import annotations

import logging
from pathlib import Path

import polars as pl
from polars.exceptions import PolarsError

from connectors.files.catalog import Catalog
from connectors.files.csv_dialects import CsvDialects
from connectors.files.decoding import Decoding
from connectors.files.inspection import (
    RESERVED_NAMES,
    Inspection,
    inspect_csv,
    inspect_json,
    inspect_tables,
    inspect_xml,
    is_taken,
    require_objects,
)
from connectors.files.opening import Opener
from connectors.files.order_by import SortedFiles
from connectors.files.readers.text import compression
from connectors.formats.csv import Csv
from connectors.formats.custom import require_declared
from connectors.formats.kernels.paths import parse_path, value_at
from connectors.formats.ndjson import Ndjson
from connectors.formats.registry import CUSTOM
from connectors.formats.values.hive import HivePartitions
from connectors.formats.webdataset import WebDatasetFormat
from engine.types import (
    DROPPED,
    WILDCARD,
    Schema,
    UnreadableFile,
    UserError,
    expand_schema,
    is_pattern,
    nearest,
    only_named,
    type_name,
)

SCHEMA_ATTEMPTS = 5
"""The attempts to inspect files that come and go."""

log = logging.getLogger("headrace.files")


class ColumnFinder:
    """Finds the columns of decoded rows, and sets which of them the opener reads."""

    def __init__(
        self,
        catalog: Catalog,
        dialects: CsvDialects,
        decoding: Decoding,
        opener: Opener,
        sorted_files: SortedFiles,
    ) -> None:
        self._catalog = catalog
        self._dialects = dialects
        self._decoding = decoding
        self._opener = opener
        self._sorted_files = sorted_files
        self._left_out: set[str] = set()
        """The columns already reported as left out."""
        self._passes_over = False
        """Whether a file that cannot be read tells nothing of the columns, and is no error."""

    def schema(self, declared: Schema) -> Schema:
        """Return the columns of decoded rows, see `engine.types.Source.schema`.

        Raises: UserError when a declared column is in no file (NDJSON: a field may be absent), or a
            file lacks a column and ``missing_columns`` is "fail".
        """
        format = self._decoding.format
        if not isinstance(format, HivePartitions):
            return self._inside(declared)
        from_folders = self._usable(format.folder_schema(declared))
        inside = self._inside({c: t for c, t in declared.items() if c not in from_folders})
        if declared.get(WILDCARD) == DROPPED:
            from_folders = {c: dtype for c, dtype in from_folders.items() if c in declared}
        return {c: t for c, t in inside.items() if c not in from_folders} | from_folders

    def in_files(self, named: Schema, *, guess: bool, only: bool = False) -> Schema:
        """Return the columns of all files. Types of text are inferred, except for the named
        columns; without `guess`, all are text. With `only`, no others are read."""
        catalog, paths = self._catalog, self._catalog.settings.paths
        if catalog.format == "xml":
            inspection = inspect_xml(self._opener.elements(), paths, guess=guess)
            inspection.log_warnings(len(catalog.files), named)
            return inspection.schema
        if isinstance(self._decoding.inner, WebDatasetFormat):
            return self._decoding.inner.kinds(self._opener.members())
        inspection = self._inspection(named if guess else None)
        if catalog.settings.missing_columns == "fail":
            for column, files in inspection.missing_in.items():
                raise UserError(
                    f"{files[0]} has no column '{column}', which other files have: fix it, or "
                    'take [source] missing_columns = "fail" out.'
                )
        if only:
            inspection.missing_in = {c: f for c, f in inspection.missing_in.items() if c in named}
        inspection.log_warnings(len(catalog.files), named)
        if catalog.spec.layout == "table":
            tops = inspection.schema
            plain = {c: pl.String() if t == pl.Null else t for c, t in tops.items()}
            return plain | self._nested(tops)
        if catalog.has_objects:  # a column that paths lead into is not a column itself
            apart = {str(parse_path(path, c)[0]) for c, path in paths.items()}
            own = {*named, *paths}
            there = {c: t for c, t in inspection.schema.items() if c not in apart or c in own}
            self._require_leading(there, named)
            return there
        return inspection.schema

    def _inside(self, declared: Schema) -> Schema:
        """Return the columns inside the files."""
        catalog = self._catalog
        if not catalog.settings.follow:
            return self._schema(declared)
        for _ in range(SCHEMA_ATTEMPTS):
            begun = {n: path for n, path in catalog.files.items() if self._opener.is_begun(path)}
            catalog.files = begun
            try:
                return self._schema(declared)
            except (UnreadableFile, OSError):  # a file disappeared meanwhile, or is incomplete
                files = catalog.find()
                plain = {name: path for name, path in files.items() if compression(path) is None}
                catalog.files = plain or files
        self._passes_over = True  # damaged ones: what is read of them is a dead letter
        return self._schema(declared)

    def _schema(self, declared: Schema) -> Schema:
        catalog, spec, rest = self._catalog, self._catalog.spec, declared.get(WILDCARD)
        named = {c: dtype for c, dtype in declared.items() if c != WILDCARD}
        declared_only = spec.declared_only and bool(declared) and rest is None
        only = rest == DROPPED or declared_only
        if (described := self._described(declared, named, only=only)) is not None:
            return described
        if only and spec.sparse:  # a field may be absent
            if catalog.format == "ndjson" and not self._passes_over:
                require_objects(catalog.files, self._opener.sampled)
            self._opener.columns = list(named)
            return named
        available: Schema = {}
        if catalog.files:
            available = self._usable(self.in_files(named, guess=rest is None, only=only))
        if not catalog.files or (self._passes_over and not available):  # files that come later
            self._require_declared(named)
            self._opener.columns = list(named)
            return named
        if not spec.sparse:
            self._require_there(named, available)
        if catalog.settings.order_by:
            self._sorted_files.require_sortable(available)
        schema = expand_schema(declared, available)
        if catalog.has_objects:
            Ndjson(catalog.settings.paths).schema(schema)
        self._dialects.use_null_words(schema)
        self._opener.columns = list(schema)
        if rest is None:
            self._decoding.inferred.columns = frozenset(c for c in schema if c not in named)
        return schema

    def _described(self, declared: Schema, named: Schema, *, only: bool) -> Schema | None:
        """Return the columns of a format that defines them itself; None if the files do.

        Args:
            only: read no columns but the declared ones.

        Raises: UserError for columns and paths that contradict each other, or are missing.
        """
        catalog, inner, paths = self._catalog, self._decoding.inner, self._catalog.settings.paths
        if catalog.has_objects:
            if only or not catalog.files:  # otherwise the types of the others are inferred
                Ndjson(paths).schema(named)
            return None
        if catalog.format == "xml":
            from connectors.formats.xml import XmlFields  # and with it lxml

            XmlFields(list(named), paths if only else {})
            return None
        if isinstance(inner, WebDatasetFormat):
            if only:
                inner.schema(named)
            return None
        described = inner.schema(only_named(declared))
        if described is None and not catalog.spec.guessed:
            own = catalog.spec is CUSTOM
            what = "text in a format of your own" if own else f"{catalog.format} files"
            return require_declared(only_named(declared), what)
        return described

    def _require_declared(self, named: Schema) -> None:
        """Raises: UserError if no column is declared."""
        if not named:
            raise UserError(
                "[source] path leads to no file yet from which columns could be inferred: "
                "declare them in [source.schema]."
            )

    def _usable(self, available: Schema) -> Schema:
        """Return the usable columns; warn about the others once."""
        catalog = self._catalog
        paths = catalog.settings.paths if catalog.nests else {}
        read = {str(parse_path(path, c)[0]) for c, path in paths.items()}
        for column in available:
            if is_taken(column) and column not in self._left_out | read:
                self._left_out.add(column)
                way = f' in [source] paths, as in other = "{column}"'
                if is_pattern(column) or not catalog.nests:
                    way = " name there"
                log.warning(
                    "Column '%s' of %s is left out, as %s: give it another%s.",
                    column, catalog.described.rstrip(","), _why_taken(column), way,
                )  # fmt: skip
        return {c: dtype for c, dtype in available.items() if not is_taken(c)}

    def _inspection(self, named: Schema | None) -> Inspection:
        catalog, opener, dialects = self._catalog, self._opener, self._dialects
        passes_over = self._passes_over
        if catalog.spec.layout == "table":
            return inspect_tables(
                catalog.files,
                catalog.format,
                may_grow=catalog.settings.follow,
                pass_over_damaged=passes_over,
            )
        if catalog.format == "csv":
            inner = self._decoding.inner
            decoder = inner if isinstance(inner, Csv) else dialects.decoder()
            words = "null_values" not in dialects.declared
            inspection = inspect_csv(
                catalog.files,
                opener.sampled,
                decoder,
                dialects.headers,
                named,
                words=words,
                pass_over_damaged=passes_over,
            )
            if not inspection.schema and not passes_over:
                raise UserError(
                    f"{catalog.first[0]} is empty: expected a CSV header in its first line."
                )
            dialects.add_null_values(inspection.null_values, inspection.words)
            return inspection
        declared, paths = bool(named), catalog.settings.paths
        if catalog.file_per_row:
            files = {catalog.name: Path()}
            return inspect_json(
                files, lambda _, name: opener.files(name), paths, declared=declared, per_file=True
            )
        return inspect_json(
            catalog.files,
            opener.sampled,
            paths,
            declared=declared,
            per_file=False,
            pass_over_damaged=passes_over,
        )

    def _nested(self, available: Schema) -> Schema:
        """Return the columns that `paths` extracts from others.

        Raises: UserError for a path that leads to nothing.
        """
        columns: Schema = {}
        file = self._catalog.first[0]
        for column, path in self._catalog.settings.paths.items():
            top = parse_path(path, column)[0]
            if top not in available:
                raise UserError(
                    f"[source] paths: '{path}' of column '{column}' begins at a column that "
                    f"{file} does not have.{nearest(str(top), available)}"
                )
            try:
                value = value_at(parse_path(path, column)).alias(column)
                columns |= dict(pl.LazyFrame(schema=available).select(value).collect_schema())
            except PolarsError:
                raise UserError(
                    f"[source] paths: '{path}' of column '{column}' leads to nothing: column "
                    f"'{top}' of {file} is {type_name(available[str(top)])}."
                ) from None
        return columns

    def _require_leading(self, there: Schema, named: Schema) -> None:
        """Raises: UserError for one of `paths` whose column has no type: no row has a value there,
        and none is declared."""
        for column, path in self._catalog.settings.paths.items():
            if column not in there and column not in named:
                top = str(parse_path(path, column)[0])
                raise UserError(
                    f"[source] paths: '{path}' of column '{column}' leads to nothing in "
                    f"{self._catalog.first[0]} from which its type could be inferred: correct it, "
                    f"or declare '{column}' in [source.schema].{nearest(top, there)}"
                )

    def _require_there(self, named: Schema, available: Schema) -> None:
        """Raises: UserError for a declared column that no file has."""
        for column in named:
            if column not in available:
                raise UserError(
                    f"[source.schema] names column '{column}', which {self._catalog.described} "
                    f"does not have.{nearest(column, available)}"
                )


def _why_taken(column: str) -> str:
    if not column:
        return "it has no name"
    if column in RESERVED_NAMES:
        return f"headrace has a '{column}' of its own"
    return "it would stand for all columns whose names match it"


__all__ = ["ColumnFinder"]
