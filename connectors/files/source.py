"""Reads files: lines of text, tables, and files that are one row each."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from connectors.files.catalog import Catalog
from connectors.files.columns import ColumnFinder
from connectors.files.csv_dialects import CsvDialects, Headers
from connectors.files.decoding import Decoding, TableRows
from connectors.files.fingerprint import REPLAYED
from connectors.files.later_columns import LaterColumns
from connectors.files.opening import Opener
from connectors.files.order_by import SortedFiles
from connectors.files.paths import find_files, would_match
from connectors.files.readers.file_rows import unreadable
from connectors.files.readers.stdin import STDIN, StdinRows
from connectors.files.readers.table import SortedRows
from connectors.files.settings import FilesSettings
from connectors.files.splits import InputSplit, Readable
from connectors.files.streams.follow.follower import Follower
from connectors.files.streams.row_stream import RowStream
from connectors.files.streams.split_stream import JoinedStream, SplitStream
from connectors.files.streams.stdin_stream import StdinStream
from connectors.formats.ndjson import Ndjson
from connectors.formats.values.hive import HivePartitions
from engine.types import (
    DROPPED,
    SAMPLE_BYTES,
    WILDCARD,
    Format,
    Mark,
    Records,
    Schema,
    Snapshot,
    Source,
    UnreadableFile,
    UserError,
)
from engine.types.toml import toml_value

PARSE_SETTINGS = ("coerce", "paths", "decimal", "null_values")
"""The settings that decide how a cell is parsed."""
NULL_WORDS_KEY, POINT_KEY = "words", "point"
"""What a CSV was found to have for missing values, and as the decimal point of its numbers."""
SAMPLED_FILES = 32
"""The most files of which a check reads rows."""

log = logging.getLogger("headrace.files")


class FilesSource(Source):
    """Reads files. A file is a partition, named by its path as given or found; files that are
    one row each are one partition, named by `path`.

    Positions are byte offsets in the (decompressed) text, row numbers in Parquet, Arrow and
    Avro; see `FileRows` for files that are a row each. Plain text is sought in, these tables skip
    row groups, record batches and blocks, compressed text is read over. Memory holds one block of
    text or one row group; with `order_by`, everything.
    """

    Settings = FilesSettings

    settings: FilesSettings
    format: Format

    def __init__(self, settings: FilesSettings) -> None:
        """Raises: UserError if the path matches no file or files of several formats, or settings
        contradict each other."""
        super().__init__(settings)
        self._catalog = Catalog(settings)
        self._dialects = CsvDialects(self._catalog)
        self._opener = Opener(self._catalog, self._dialects)
        self._sorted_files = SortedFiles(self._catalog, self._dialects, self._opener)
        self._later = LaterColumns(self._catalog, self._dialects, self._opener)
        self._takes_all: bool | None = None
        """Whether the run began with all columns of its files; None before that is known."""
        self._stream = self._made_stream()
        self._foreign_identities: Mapping[str, Snapshot] = {}
        self._decoding = Decoding(self._catalog, self._dialects)
        self._columns = ColumnFinder(
            self._catalog, self._dialects, self._decoding, self._opener, self._sorted_files
        )
        self.format = self._decoding.format

    def _made_stream(self) -> RowStream:
        catalog, settings, opener = self._catalog, self.settings, self._opener
        if settings.follow:
            catalog.require_followable()
        if catalog.stdin is not None:
            catalog.require_pipeable()
            return StdinStream(StdinRows(catalog.stdin, partial(opener.text, Path(STDIN))))
        if settings.follow:
            return Follower(
                partial(find_files, settings.locations, settings.format),
                self._growing,
                lines=catalog.has_lines,
                interval=settings.poll_interval,
                policy=settings.on_replaced or "read",
            )
        stream = JoinedStream if catalog.is_single_partition else SplitStream
        return stream(catalog, self._opened)

    def _opened(self, split: InputSplit, epoch: int) -> Readable:
        """Open the file or files of a split."""
        catalog = self._catalog
        if self.settings.order_by:
            return SortedRows(self._sorted_files.frame(), split.name)
        if catalog.file_per_row:
            return self._opener.files(split.name, split.group, epoch)
        path = catalog.files[split.file]
        file = self._opener.file(path, split.file)
        return self._looked_at(file, path, split.file)

    def _growing(self, path: Path, name: str) -> Readable | None:
        """Open a file that may grow; None while it cannot be read."""
        file = self._opener.growing(path, name)
        return None if file is None else self._looked_at(file, path, name)

    def _looked_at(self, file: Readable, path: Path, name: str) -> Readable:
        """Return an open file whose columns are as expected, or told."""
        try:
            self._later.look(file, path, name)
        except UserError:
            file.close()
            raise
        return file

    def reads_file(self, file: Path) -> bool:
        settings = self.settings
        return self._catalog.stdin is None and would_match(
            settings.locations, file, settings.format
        )

    @property
    def epochs(self) -> int:
        return self.settings.epochs

    def unbounded(self) -> bool:
        return self.settings.follow or self._catalog.stdin is not None

    def can_be_reread(self) -> bool:
        return self._catalog.stdin is None

    def schema(self, declared: Schema) -> Schema:
        """Return the columns from every footer and header and, if types must be inferred, from
        rows; see `connectors.files.inspection`.

        Raises: UserError when a declared column is in no file (NDJSON: a field may be absent), or a
            file lacks a column and ``missing_columns`` is "fail".
        """
        first = self._takes_all is None
        if first:
            chosen = self._catalog.spec.declared_only and bool(declared)
            self._takes_all = declared.get(WILDCARD) != DROPPED and not chosen
        schema = self._columns.schema(declared)
        if first:
            self._later.pass_over(self._catalog.inspected)
        self._later.read = frozenset(schema) if self._takes_all else None
        self._later.expected = schema
        return schema

    def schema_state(self) -> Mapping[str, Snapshot]:
        """Return the CSV dialect, which types are inferred, and whether all columns are read."""
        guessed = sorted(self._decoding.inferred.columns)
        state = {
            "dialect": self._dialects.sniffed,
            "guessed": guessed,
            "takes_all": self._takes_all,
        }
        return {name: value for name, value in state.items() if value is not None}

    def restore_schema_state(self, schema_state: Mapping[str, Snapshot]) -> None:
        """Use the findings of the first run; declared settings take precedence."""
        self._decoding.inferred.columns = frozenset(schema_state.get("guessed", ()))
        takes_all = schema_state.get("takes_all")
        self._takes_all = None if takes_all is None else bool(takes_all)
        dialect = schema_state.get("dialect")
        if dialect is not None:
            dialect = {**dialect, "null_values": tuple(dialect.get("null_values", ()))}
        self._dialects.use(dialect)

    def in_effect(self) -> Mapping[str, Snapshot]:
        """Return the format, the CSV dialect, and the shard."""
        shard, shards = self.settings.place()
        shared = {"shard": shard, "shards": None if self.settings.shards is None else shards}
        csv = self._dialects.in_effect() if self._catalog.format == "csv" else {}
        return {"format": self._catalog.format, **shared, **csv}

    def parse_settings(self) -> Mapping[str, Any]:
        """Return the settings, and what a CSV was found to have: words for missing values, and its
        decimal point."""
        given = self.settings.model_dump(
            include=set(PARSE_SETTINGS) & self.settings.model_fields_set
        )
        dialect = self._dialects.dialect
        return {**given, NULL_WORDS_KEY: list(dialect.null_values), POINT_KEY: dialect.decimal}

    def use_parse_settings(self, parse_settings: Mapping[str, Any]) -> None:
        own = self._catalog.spec.options
        suits = {"coerce": True, "paths": "paths" in own and not self.settings.order_by}
        given = self.settings.model_dump(include=self.settings.model_fields_set)
        learned = {
            name: parse_settings[name]
            for name in PARSE_SETTINGS
            if name in parse_settings and suits.get(name, name in own)
        }
        words = parse_settings.get(NULL_WORDS_KEY, ()) if "null_values" in own else ()
        _log_learned({k: v for k, v in {**learned, "null_values": words}.items() if k not in given})
        self.settings = self._catalog.settings = FilesSettings(**{**learned, **given})
        self._dialects.declare_again(words, parse_settings.get(POINT_KEY, "."))
        self._decoding.make()
        self.format = self._decoding.format

    def found(self) -> str:
        """Return the CSV dialect of the first rows, as far as it is not set."""
        return self._dialects.found if self._catalog.format == "csv" else ""

    def remarks(self) -> list[str]:
        return self._decoding.inferred.misses()

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """Return the next rows; None only for rows that have not come yet."""
        records = self._stream.read(max_rows, max_bytes, timeout)
        return None if records is None else self._opener.recoded(records)

    def sample(self, rows: int, timeout: float) -> Sequence[Records]:
        """Return first rows of files spread over all of them, equally many of each."""
        catalog = self._catalog
        if catalog.is_single_partition or catalog.stdin is not None:
            return super().sample(rows, timeout)
        self.close()
        names = [name for name, path in catalog.files.items() if self._opener.is_begun(path)]
        if len(names) > SAMPLED_FILES:
            log.info(
                "The sample is of %d of %d files, from the first to the last.",
                SAMPLED_FILES,
                len(names),
            )
            places = np.linspace(0, len(names) - 1, SAMPLED_FILES).astype(int)
            names = [names[at] for at in places.tolist()]
        pieces: list[Records] = []
        for i, name in enumerate(names):  # unused rows of short files pass to the next
            left = rows - sum(map(len, pieces))
            pieces += self._head(name, max(1, left // (len(names) - i)))
        return pieces

    def _head(self, name: str, rows: int) -> list[Records]:
        """Return the first rows of a file; none if it has none; a row that says why if it cannot
        be read, where the run goes on after it."""
        path = self._catalog.files[name]
        self._catalog.note_folders(name, path)
        try:
            return self._first_rows(path, name, rows)
        except UnreadableFile as error:
            if not self.settings.follow or self.settings.on_replaced == "fail":
                raise
            return [unreadable(path, name, 0, 1, str(error))]

    def _first_rows(self, path: Path, name: str, rows: int) -> list[Records]:
        file = self._opener.file(path, name)
        try:
            records = file.read(rows, SAMPLE_BYTES)
        finally:
            file.close()
        return [] if records is None else [self._opener.recoded(records)]

    def seek(self, mark: Mark) -> None:
        self._stream.seek(mark.positions)

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """Return file -> its `Fingerprint`; for files that are one partition, a digest of all if
        their order depends on all."""
        return {**self._foreign_identities, **self._stream.identities(mark.positions)}

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        own = {name: known for name, known in identities.items() if name != REPLAYED}
        self._foreign_identities = {
            name: known for name, known in identities.items() if name == REPLAYED
        }
        self._later.pass_over(own)
        self._stream.match_identities(own)

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """Return partition -> bytes (text) or rows after the mark, of the files opened so far."""
        return self._stream.lag(mark.positions)

    def lag_unit(self, partition: str) -> str:
        catalog = self._catalog
        by_number = catalog.spec.layout == "table" or self.settings.row is not None
        return "rows" if by_number or self.settings.order_by else "bytes"

    def progress(self, mark: Mark) -> float | None:
        """Return the share of the bytes of all files before the mark; inside a compressed file
        an estimate. None if files are followed."""
        return self._stream.progress(mark.positions)

    def close(self) -> None:
        self._stream.close()

    @property
    def has_lines(self) -> bool:
        """Return whether a line end closes each row."""
        return not self._catalog.file_per_row

    def recoded_lines(self, lines: pl.Series) -> pl.Series:
        """Return lines of its files, as bytes that may be in their encoding, in UTF-8."""
        return self._opener.recoded_lines(lines)

    def format_of_lines(self) -> Format:
        """Return the format of a row of its files that lies elsewhere; a columnar row is JSON.

        Raises: UserError for samples of a tar, of which a dead letter tells only the place.
        """
        catalog = self._catalog
        if catalog.spec.layout == "samples":
            raise UserError(
                "Dead letters of a WebDataset contain the place of a sample, not its content: fix "
                "the tar, and run it again."
            )
        if catalog.file_per_row or catalog.format == "text":
            return self.format
        paths = self.settings.paths if catalog.nests else {}
        lines: Format = TableRows(paths) if catalog.spec.layout == "table" else Ndjson(paths)
        if catalog.format == "csv" and not self.settings.order_by:
            self._columns.in_files({}, guess=False)  # opens every file
            lines = self._dialects.decoder(Headers(self._dialects.headers))
        if isinstance(self.format, HivePartitions):
            return self._decoding.beside_folders(lines)
        return lines


def _log_learned(settings: Mapping[str, Any]) -> None:
    """Say which settings come from the model that serves."""
    usual = {name: field.default for name, field in FilesSettings.model_fields.items()}
    parts = [
        f"{name} = {toml_value(value)}"
        for name, value in settings.items()
        if value and value != usual[name]
    ]
    if parts:
        log.info(
            "Cells are read as where the model learned: %s; [source] settings of these names say "
            "otherwise.", ", ".join(parts),
        )  # fmt: skip


__all__ = ["FilesSource"]
