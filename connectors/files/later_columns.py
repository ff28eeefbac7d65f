"""Reports columns of files that come later, which a run does not read, or misses."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from connectors.files.catalog import Catalog
from connectors.files.csv_dialects import CsvDialects
from connectors.files.inspection import (
    MIN_BYTES_PER_FILE,
    is_taken,
    raw_lines,
    require_shared,
)
from connectors.files.opening import Opener
from connectors.files.readers.table import TableFile
from connectors.files.splits import Readable
from connectors.formats.inference.infer import TooManyColumns, infer_json_types
from connectors.formats.kernels.paths import parse_path
from connectors.formats.webdataset import WebDatasetFormat
from engine.types import HeadraceError, Schema
from engine.types.plural import counted

log = logging.getLogger("headrace.files")


class LaterColumns:
    """Warns of columns that a file has and the run, whose columns are fixed, does not read, and of
    those that it reads and the file lacks.

    Attributes:
        read: the columns of the run; None if they were chosen, so that others are left out on
            purpose.
        expected: the columns of the run, also if they were chosen.
    """

    def __init__(self, catalog: Catalog, dialects: CsvDialects, opener: Opener) -> None:
        self._catalog = catalog
        self._dialects = dialects
        self._opener = opener
        self._files: set[str] = set()
        """Files that were looked at."""
        self._told: set[str] = set()
        self.read: frozenset[str] | None = None
        self.expected: Schema = {}

    def pass_over(self, files: Iterable[str]) -> None:
        """Do not look at files whose columns are known."""
        self._files.update(files)

    def look(self, file: Readable, path: Path, name: str) -> None:
        """Look at a file that was just opened; for JSON, XML and WebDatasets, at its first rows.

        Raises: UserError if a CSV or a table has none of the columns of the others.
        """
        if name in self._files or (self.read is None and not self._has_header):
            return
        try:
            inside = [*self._columns(file, path, name)]
        except (OSError, HeadraceError):  # its reader reports it
            self._files.add(name)
            return
        if self._has_header:
            self._require_columns(inside, name)
        self._files.add(name)
        if self.read is None:
            return
        columns = [*inside, *self._catalog.folders.get(name, ())]
        later = [c for c in columns if c not in self.read | self._told and not is_taken(c)]
        if later:
            self._told.update(later)
            log.warning(
                "%s has %s with which the run did not begin, and which %s not read: '%s'; to read "
                "more, declare it in [source.schema] or start over with --fresh.",
                name, counted(len(later), "column"), "is" if len(later) == 1 else "are",
                "', '".join(later),
            )  # fmt: skip

    @property
    def _has_header(self) -> bool:
        """Whether a file names all of its columns before its rows."""
        return self._catalog.format == "csv" or self._catalog.spec.layout == "table"

    def _require_columns(self, columns: Sequence[str], name: str) -> None:
        """Warn of columns of the run that a file lacks. Raises: UserError if it has none."""
        csv = self._catalog.format == "csv"
        folders = self._catalog.folders.get(name, ())
        paths = self._catalog.settings.paths
        expected = [c for c in self.expected if c not in folders and c not in paths]
        headers = self._dialects.headers
        known = {file: headers[file] for file in headers if file in self._files}
        known["[source.schema]"] = expected
        require_shared(columns, known, name, self._dialects.dialect.delimiter if csv else None)
        lacking = [c for c in expected if c not in columns]
        if columns and lacking:
            log.warning(
                "%s lacks %s that the run reads, null in its rows: '%s'.",
                name, counted(len(lacking), "column"), "', '".join(lacking),
            )  # fmt: skip

    def _columns(self, file: Readable, path: Path, name: str) -> Iterable[str]:
        """Return the columns inside an open file; none if its format has no names for them."""
        catalog, paths = self._catalog, self._catalog.settings.paths
        if catalog.format == "csv":
            return self._dialects.headers.get(name, ())
        if isinstance(file, TableFile):
            return file.schema
        if catalog.format == "xml":
            from connectors.formats.xml import columns_of  # and with it lxml

            found = columns_of(self._opener.elements_in(path, name))
            return [c for c in found if c not in paths.values()]
        if catalog.spec.layout == "samples":
            named = WebDatasetFormat(paths).extensions(paths)
            return [e for e in self._opener.members_in(path, name) if e not in named]
        if not catalog.has_objects:
            return ()
        beginning = self._opener.sampled(path, name)
        try:
            records = beginning.read(1 << 30, MIN_BYTES_PER_FILE)
        finally:
            beginning.close()
        inside = {str(parse_path(way, c)[0]) for c, way in paths.items()}
        try:
            types = {} if records is None else infer_json_types(raw_lines(records), paths)
        except TooManyColumns as error:
            log.warning(
                "%s has %s columns: those that the run does not read are not told.",
                name,
                *error.args,
            )
            return ()
        return [c for c in types if c not in inside]


__all__ = ["LaterColumns"]
