"""Reads files: lines of text, tables, and files that are one row each."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from lxml import etree
from polars.exceptions import PolarsError
from pydantic import ByteSize, Field, ValidationInfo, field_validator

from connectors.files.fingerprint import (
    REPLAYED,
    CopyDetector,
    Fingerprint,
    FingerprintTracker,
    Policy,
    combined_digest,
    plan_resume,
    segments,
    unique_name,
)
from connectors.files.follow.follower import Follower
from connectors.files.inspection import (
    RESERVED_NAMES,
    Inspection,
    RowReader,
    TranscodedReader,
    inspect_csv,
    inspect_json,
    inspect_tables,
    is_taken,
    require_objects,
)
from connectors.files.paths import common_format, find_files, would_match
from connectors.files.readers.file_rows import FileRows
from connectors.files.readers.stdin import STDIN, StdinBytes, StdinRows
from connectors.files.readers.table import SortedRows, open_table
from connectors.files.readers.tar import TarShard
from connectors.files.readers.text import TextFile, compression, readable
from connectors.files.readers.xml import XmlRows
from connectors.files.splits import (
    EPOCH_STRIDE,
    SHARD_GROUPS,
    InputSplit,
    Readable,
    ShardSettings,
    SplitReader,
    line_start,
    order,
    pieces,
    text_bounds,
)
from connectors.formats.bounded import SizeLimited
from connectors.formats.csv import Csv
from connectors.formats.custom import (
    load_custom,
    require_declared,
    require_known_format,
)
from connectors.formats.dialect import Dialect
from connectors.formats.file_content import FileContent
from connectors.formats.inference.infer import NULL_WORDS, TypeInference
from connectors.formats.inference.misses import InferredTypes
from connectors.formats.inference.sniff import HEAD, sniff_dialect, unclear
from connectors.formats.inference.transcode import Transcoder
from connectors.formats.kernels.paths import parse_path, value_at
from connectors.formats.kernels.rows import parser_input
from connectors.formats.ndjson import Ndjson
from connectors.formats.options import FormatOptions
from connectors.formats.registry import CUSTOM, FILES, FORMATS, require_option, spec_of
from connectors.formats.values.casts import Coerce
from connectors.formats.values.columns import Columns
from connectors.formats.values.hive import HivePartitions, partition_values
from connectors.formats.webdataset import WebDatasetFormat
from connectors.formats.xml import Fields, columns_of, documents
from engine.columnar.expressions import expression
from engine.types import (
    DROPPED,
    SAMPLE_BYTES,
    WILDCARD,
    Duration,
    EndOfStream,
    Format,
    HeadraceError,
    Mark,
    Records,
    Schema,
    Snapshot,
    Source,
    UserError,
    Values,
    expand_schema,
    is_pattern,
    nearest,
    only_named,
)
from engine.types.changes import Fixed, Free, Meaning

JSON_FORMATS = ("ndjson", "json")
SORTABLE = tuple(name for name in FILES if FORMATS[name].sortable)
"""Formats for `order_by`."""
SAMPLE_ROWS = 1_000
"""The rows of a text file from which its columns' types are inferred."""
SCHEMA_ATTEMPTS = 5
"""The attempts to inspect files that come and go."""
CSV_CHARACTER = re.compile(r"[^\n\r\0\x80-\U0010ffff]")
PARSE_SETTINGS = ("coerce", "paths", "decimal", "null_values")
"""The settings that decide what a cell means, whatever file it is in."""
NULL_WORDS_KEY = "words"
CSV_SETTINGS = ("delimiter", "quote", "decimal", "comment", "null_values")
"""The settings of the CSV dialect."""
HEADER_BYTES = 1 << 16
"""The bytes in which a CSV's header must end."""
SAMPLED_FILES = 32
"""The files that a check reads rows of."""
INSPECTION_BYTES = 4 << 20
"""The bytes inspected of XML documents, whose trees are many times as large."""

log = logging.getLogger("headrace.files")


def _why_taken(column: str) -> str:
    if not column:
        return "it has no name"
    if column in RESERVED_NAMES:
        return f"headrace has a '{column}' of its own"
    return "it would stand for all columns whose names match it"


class FilesSource(Source):
    """Reads files. A file is a partition, named by its path as given or found; files that are
    one row each are one partition, named by `path`.

    Positions are byte offsets in the (decompressed) text, row numbers in Parquet and Arrow; see
    `FileRows` for files that are a row each. Plain text is sought in, Parquet and Arrow skip row
    groups and record batches, compressed text is read over. Memory holds one block of text or one
    row group; with `order_by`, everything.
    """

    class Settings(ShardSettings):
        """``[source] kind = "files"``

        Attributes:
            path: a file, a folder (all files below it), a glob, a list of them, "-" for standard
                input (lines of text, read once, to its end), or ``package:path/in/package`` for
                data that an installed package ships.
            format: csv, ndjson, parquet, arrow, xml, images or webdataset (a tar whose neighbours
                with one base name are a row), by the files' extension unless given; text (a row a
                line), documents (a row a file), json (an object a file); or a class of your own for
                lines of text, ``package.module:Class``.
            paths: column -> where its value is: ``user.address.city`` in NDJSON, JSON, and nested
                columns of Parquet and Arrow, ``address/city`` or ``@id`` in XML, ``jpg;png``
                or ``json.size.width`` in a WebDataset.
            row: of XML: names of the elements from the root to a row, ``orders/order``; a file is
                a row unless given.
            delimiter: of CSV; unless given, a tab for ``.tsv``, else a comma, or ``;``, a tab or
                ``|`` where that splits header and rows and a comma does not.
            quote: of CSV: around fields that hold delimiters or line ends; "" for none.
            decimal: of CSV: a comma where numbers are written 1,5; found where fields stand between
                ``;`` or tabs.
            comment: of CSV: a character; lines that begin with it are no rows; "" for none. Lines
                before the header that begin with ``#`` are found.
            null_values: of CSV: fields that stand for a missing value, besides the empty one; found
                where nothing else keeps a column from being numbers; [] for none.
            encoding: of CSV, NDJSON and lines of text: latin-1, cp1252 or another of one byte a
                character; UTF-8 unless given.
            missing_columns: a column that some files have and others do not is "null" there, or
                the run does not start: "fail".
            coerce: "lossless" takes every value that equals one of the declared type, however it is
                written; "strict" only what is written as that type.
            order_by: SQL expressions to sort by, stably, nulls last; reads all files at once as one
                partition whose positions are row numbers in that order. CSV columns are text here:
                CAST them.
            max_record_bytes: the longest row of text, or largest file that is a row, that is
                accepted; what is larger is a dead letter (of CSV and formats of your own: ends the
                run).
            follow: go on for ever: read what is added to files of lines, and files that come, whole
                ones (compressed, Parquet, Arrow, tars) once they have not changed between two
                looks: write them elsewhere, and rename them. See `connectors.files.follow`.
            poll_interval: time between two looks at the files that are followed.
            on_replaced: where a file that was read is replaced by another, cut, gone before its
                end, or goes on within the line that was its last: "fail" ends with a sentence;
                "read" takes what is there now for new, with a warning. "fail" unless given, "read"
                where files are followed.
            last_line: "take" reads a last line that has no line end; "wait" leaves it, with a
                warning, until it has one: for files that may grow. Where files are followed it
                waits.
            epochs: how often all files are read.
            shuffle_files: read the files of each epoch in another order.
            seed: of the order of `shuffle_files`.
            shards: engines that share the files, each row read by one; "env" takes WORLD_SIZE; 1 is
                for one that may become several. Shared are row groups of Parquet, record batches of
                Arrow, pieces of 32 MiB of lines, and else whole files.
            shard: which of them this one is, from 0; "env" takes RANK.
        """

        path: Free[str | tuple[str, ...]] = Field(min_length=1)
        format: Fixed[str | None] = None
        paths: Meaning[Mapping[str, str]] = Field(default_factory=dict)
        row: Fixed[str | None] = None
        delimiter: Fixed[str | None] = None
        quote: Fixed[str] = '"'
        decimal: Meaning[Literal[".", ","] | None] = None
        comment: Fixed[str | None] = None
        null_values: Meaning[tuple[str, ...]] = ()
        encoding: Meaning[str | None] = None
        missing_columns: Free[Literal["null", "fail"]] = "null"
        coerce: Meaning[Coerce] = "lossless"
        order_by: Fixed[tuple[str, ...]] = ()
        max_record_bytes: Free[ByteSize] = Field(default=ByteSize(16 << 20), ge=1)
        follow: Free[bool] = False
        poll_interval: Free[Duration] = Field(0.5, gt=0)
        on_replaced: Free[Policy | None] = None
        last_line: Free[Literal["take", "wait"]] = "take"

        @field_validator("path")
        @classmethod
        def _all_named(cls, path: str | tuple[str, ...]) -> str | tuple[str, ...]:
            if "" in path and not isinstance(path, str):
                raise ValueError("expected paths that are not empty")
            return path

        @field_validator("delimiter", "quote", "comment")
        @classmethod
        def _one_sign(cls, sign: str | None, info: ValidationInfo) -> str | None:
            none = "" if info.field_name == "delimiter" else ', or "" for none'
            if sign is not None and not CSV_CHARACTER.fullmatch(sign) and not (none and not sign):
                raise ValueError(f'expected one ASCII character that ends no line, as ";"{none}')
            return sign

        @field_validator("encoding")
        @classmethod
        def _known(cls, encoding: str | None) -> str | None:
            if encoding is not None:
                Transcoder.of(encoding)
            return encoding

    format: Format

    def __init__(self, settings: FilesSource.Settings) -> None:
        """Raises: UserError where the path leads to no file, or to files of several formats, or
        settings do not fit together."""
        self.settings: FilesSource.Settings = settings
        paths = (settings.path,) if isinstance(settings.path, str) else settings.path
        if settings.format is not None:
            require_known_format(settings.format, FILES)
        self._stdin = StdinBytes() if settings.path == STDIN else None
        self._files = self._found()
        self._kind = settings.format or common_format(self._files)
        self._spec = spec_of(self._kind)
        if settings.order_by and not self._spec.sortable:
            raise UserError(
                f"[source] order_by is for {', '.join(SORTABLE)}, not for '{self._kind}'."
            )
        self._check_csv_settings()
        self._file_per_row = self._spec.layout == "file" and settings.row is None
        self._table = self._recoding()
        self._name = readable(",".join(paths))
        self._follower = self._followed() if settings.follow else None
        self._stdin_rows = None if self._stdin is None else self._as_input(self._stdin)
        self._splits = self._assigned_splits()
        self._headers: dict[str, list[str]] = {}
        self._columns: list[str] | None = None
        self._sorted: pl.DataFrame | None = None
        self._positions: Mapping[str, int] = {}
        self._moved: dict[str, int] = {}
        """The positions to resume partitions at, instead of the mark's."""
        self._totals: dict[str, int] = {}
        self._known: dict[str, Fingerprint] = {}
        self._foreign_identities: Mapping[str, Snapshot] = {}
        self._watched: dict[str, FingerprintTracker] = {}
        self._contents = CopyDetector()
        self._epoch = self._at = 0
        self._yielded = False
        self._order = order(len(self._splits), settings, 0)
        self._file: Readable | None = None
        self._sniffed_dialect: dict[str, Any] | None = None
        """The sniffed CSV dialect; None before sniffing."""
        self._csvs: list[Csv]
        self._left_out: set[str] = set()
        self._words: dict[str, set[str]] = {}
        """Column -> fields of a CSV that may stand for missing values."""
        self._model_null_values: tuple[str, ...] = ()
        """The fields of a CSV that were missing values in a model's training."""
        self._folders = {name: partition_values(path) for name, path in self._files.items()}
        self._make_format()

    def _make_format(self) -> None:
        self._csvs = []
        self._inner = self._format()
        hive = any(self._folders.values()) and not self._is_single_partition
        self._inferred = InferredTypes(self._inner, lambda: self._dialect.decimal)
        lines = self._spec.layout == "lines" and self._spec.guessed
        told = self._inferred if lines else self._inner
        self.format = HivePartitions(told, self._folders) if hive else told

    def reads_file(self, file: Path) -> bool:
        paths = self.settings.path
        return self._stdin is None and would_match(
            (paths,) if isinstance(paths, str) else paths, file, self.settings.format
        )

    def _found(self) -> dict[str, Path]:
        """Return the current files.

        Raises: UserError where there is none, unless they are followed and the format is given.
        """
        path, format = self.settings.path, self.settings.format
        if self._stdin is not None:
            return {STDIN: Path(STDIN)}
        try:
            return find_files((path,) if isinstance(path, str) else path, format)
        except UserError as error:
            if not self.settings.follow:
                raise
            if format is None:
                raise UserError(
                    f"{error} Where files are yet to come, set [source] format and declare their "
                    "columns in [source.schema]."
                ) from None
            log.warning("%s It is waited for.", error)
            return {}

    def _check_csv_settings(self) -> None:
        """Raises: UserError for settings of CSV that mean nothing here, or contradict others."""
        given = self.settings.model_fields_set
        for name in CSV_SETTINGS:
            if name in given and getattr(self.settings, name) is not None:
                require_option(name, self._kind, FILES)
        if self._kind == "csv":
            roles = {"quote": self.settings.quote, **self._declared_dialect}
            _must_differ(roles, ("delimiter", "quote", "comment", "decimal"), "[source]")

    def _as_input(self, piped: StdinBytes) -> StdinRows:
        if not self._has_rows_of_text:
            raise UserError(
                f"[source] path = \"-\" reads lines of text, not '{self._kind}': write it to a "
                "file."
            )
        if self.settings.follow:
            raise UserError('[source] path = "-" is read to its end: leave follow out.')
        self._must_be_once("standard input is read once")
        return StdinRows(piped, partial(self._text, Path(STDIN)))

    def _must_be_once(self, why: str) -> None:
        """Raises: UserError for settings that read all files together, again or by several."""
        settings = self.settings
        own = (settings.order_by, settings.shuffle_files, settings.epochs > 1, settings.shards)
        names = ("order_by", "shuffle_files", "epochs", "shards")
        for name, given in zip(names, own, strict=True):
            if given:
                raise UserError(f"[source] {why}: leave {name} out.")

    def _followed(self) -> Follower:
        settings = self.settings
        self._must_be_once("follow reads files as they come, without an end")
        if self._file_per_row:
            raise UserError(
                f"[source] follow is for files of many rows, and each file of format "
                f"'{self._kind}' is one: leave follow out."
            )
        paths = (settings.path,) if isinstance(settings.path, str) else settings.path
        return Follower(
            partial(find_files, paths, settings.format),
            self._follow,
            lines=self._has_rows_of_text,
            interval=settings.poll_interval,
            policy=settings.on_replaced or "read",
        )

    # ---------------------------------------------------------------------------- the protocol

    @property
    def epochs(self) -> int:
        return self.settings.epochs

    def unbounded(self) -> bool:
        return self.settings.follow or self._stdin is not None

    def can_be_reread(self) -> bool:
        return self._stdin is None

    def schema(self, declared: Schema) -> Schema:
        """Return the columns from every footer and header and, if types must be inferred, from
        rows; see `connectors.files.inspection`.

        Raises: UserError when a declared column is in no file (NDJSON: a field may be absent), or a
            file lacks a column and ``missing_columns`` is "fail".
        """
        if not isinstance(self.format, HivePartitions):
            return self._schema_within(declared)
        from_folders = self._usable(self.format.folder_schema(declared))
        within = self._schema_within({c: t for c, t in declared.items() if c not in from_folders})
        if declared.get(WILDCARD) == DROPPED:
            from_folders = {c: dtype for c, dtype in from_folders.items() if c in declared}
        return {c: t for c, t in within.items() if c not in from_folders} | from_folders

    def _schema_within(self, declared: Schema) -> Schema:
        """Return the columns inside the files."""
        if self._follower is None:
            return self._schema(declared)
        for _ in range(SCHEMA_ATTEMPTS):
            self._files = {n: path for n, path in self._files.items() if self._is_begun(path)}
            try:
                return self._schema(declared)
            except UserError:
                raise
            except (HeadraceError, OSError):  # a file went meanwhile, or is only half there
                files = self._found()
                plain = {name: path for name, path in files.items() if compression(path) is None}
                self._files = plain or files
        return self._schema(declared)

    def _schema(self, declared: Schema) -> Schema:
        rest = declared.get(WILDCARD)
        named = {c: dtype for c, dtype in declared.items() if c != WILDCARD}
        declared_only = self._spec.declared_only and bool(declared) and rest is None
        only = rest == DROPPED or declared_only
        if self._kind in JSON_FORMATS:
            if only or not self._files:  # else the types of the others are guessed
                Ndjson(self.settings.paths).schema(named)
        elif self._kind == "xml":
            Fields(list(named), self.settings.paths if only else {})
        elif isinstance(self._inner, WebDatasetFormat):
            if only:
                self._inner.schema(named)
        elif (described := self._inner.schema(only_named(declared))) is not None:
            return described
        elif not self._spec.guessed:
            what = "text in a format of your own" if self._spec is CUSTOM else f"{self._kind} files"
            return require_declared(only_named(declared), what)
        if only and self._spec.sparse:  # a field may be absent
            if self._kind == "ndjson":
                require_objects(self._files, self._sampled)
            self._columns = list(named)
            return named
        if not self._files:  # they are waited for
            if not named:
                raise UserError(
                    "[source] path leads to no file yet that columns could be guessed from: "
                    "declare them in [source.schema]."
                )
            self._columns = list(named)
            return named
        available = self._file_schema(named, guess=rest is None)
        available = self._usable(available)
        if not self._spec.sparse:
            self._check(named, available)
        if self.settings.order_by:
            self._check_sortable(available)
        schema = expand_schema(declared, available)
        if self._kind in JSON_FORMATS:
            Ndjson(self.settings.paths).schema(schema)
        self._use_null_words(schema)
        self._columns = list(schema)
        if rest is None:
            self._inferred.columns = frozenset(c for c in schema if c not in named)
        return schema

    def _usable(self, available: Schema) -> Schema:
        """Return the usable columns; warn about the others once."""
        paths = self.settings.paths if self._nests else {}
        read = {str(parse_path(path, c)[0]) for c, path in paths.items()}
        for column in available:
            if is_taken(column) and column not in self._left_out | read:
                self._left_out.add(column)
                way = f' in [source] paths, as in other = "{column}"'
                if is_pattern(column) or not self._nests:
                    way = " name there"
                log.warning(
                    "Column '%s' of %s is left out, as %s: give it another%s.",
                    column, self._all_files().rstrip(","), _why_taken(column), way,
                )  # fmt: skip
        return {c: dtype for c, dtype in available.items() if not is_taken(c)}

    def schema_state(self) -> Mapping[str, Snapshot]:
        """Return the CSV dialect, and which types are inferred."""
        state = {"dialect": self._sniffed_dialect, "guessed": sorted(self._inferred.columns)}
        return {name: value for name, value in state.items() if value is not None}

    def in_effect(self) -> Mapping[str, Snapshot]:
        """Return the format, the CSV dialect, and the shard."""
        shard, shards = self.settings.place()
        shared = {"shard": shard, "shards": None if self.settings.shards is None else shards}
        dialect = dataclasses.asdict(self._dialect) if self._kind == "csv" else {}
        csv = {name: dialect[name] for name in CSV_SETTINGS if name in dialect}
        return {"format": self._kind, **shared, **csv}

    def parse_settings(self) -> Mapping[str, Any]:
        """Return the settings, and the words a CSV was found to have for missing values."""
        given = self.settings.model_dump(
            include=set(PARSE_SETTINGS) & self.settings.model_fields_set
        )
        return {**given, NULL_WORDS_KEY: list(self._dialect.null_values)}

    def use_parse_settings(self, parse_settings: Mapping[str, Any]) -> None:
        own = self._spec.options
        suits = {"coerce": True, "paths": "paths" in own and not self.settings.order_by}
        given = self.settings.model_dump(include=self.settings.model_fields_set)
        learned = {
            name: parse_settings[name]
            for name in PARSE_SETTINGS
            if name in parse_settings and suits.get(name, name in own)
        }
        self.settings = FilesSource.Settings(**{**learned, **given})
        self._model_null_values = tuple(parse_settings.get(NULL_WORDS_KEY, ()))
        self.__dict__.pop("_declared_dialect", None)  # depends on the settings
        self._make_format()

    def remarks(self) -> list[str]:
        return self._inferred.misses()

    def restore_schema_state(self, schema_state: Mapping[str, Snapshot]) -> None:
        """Use the settings; what is declared now takes precedence."""
        self._inferred.columns = frozenset(schema_state.get("guessed", ()))
        dialect = schema_state.get("dialect")
        if dialect is not None:
            dialect = {**dialect, "null_values": tuple(dialect.get("null_values", ()))}
        self._use_dialect(dialect)

    def read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """Return the next rows; None only for rows that have not come yet."""
        records = self._read(max_rows, max_bytes, timeout)
        if records is None or self._table is None:
            return records
        return self._table.recoded(records)

    def _read(self, max_rows: int, max_bytes: int, timeout: float) -> Records | None:
        """Return the next rows as they are in the file."""
        if self._follower is not None:
            return self._follower.read(max_rows, max_bytes, timeout)
        if self._stdin_rows is not None:
            return self._stdin_rows.read(max_rows, max_bytes, timeout)
        while self._epoch < self.settings.epochs:
            if self._at == len(self._splits):
                self._epoch, self._at = self._epoch + 1, 0
                self._order = order(len(self._splits), self.settings, self._epoch)
                continue
            split = self._splits[self._order[self._at]]
            epoch, position = divmod(self._positions.get(split.name, 0), EPOCH_STRIDE)
            if epoch <= self._epoch:
                if self._file is None:
                    self._file = self._open(split)
                    self._file.skip_to(position if epoch == self._epoch else 0)
                records = self._file.read(max_rows, max_bytes)
                self._totals[split.name] = self._file.total
                if records is not None:
                    self._yielded = True
                    return self._with_epoch(split, records)
                self._tell_waiting(split)
                self.close()
                if not self._yielded and not position:
                    del self._totals[split.name]  # no row, so no mark will ever name it
            self._at, self._yielded = self._at + 1, False
        raise EndOfStream

    def sample(self, rows: int, timeout: float) -> Sequence[Records]:
        """Return the first rows of some files from the first to the last, as many of each."""
        if self._is_single_partition or self._stdin is not None:
            return super().sample(rows, timeout)
        self.close()
        names = [name for name, path in self._files.items() if self._is_begun(path)]
        if len(names) > SAMPLED_FILES:
            log.info(
                "The sample is of %d of %d files, from the first to the last.",
                SAMPLED_FILES,
                len(names),
            )
            places = np.linspace(0, len(names) - 1, SAMPLED_FILES).astype(int)
            names = [names[at] for at in places.tolist()]
        pieces: list[Records] = []
        for i, name in enumerate(names):  # what short files leave, the next may have
            left = rows - sum(map(len, pieces))
            pieces += self._head(name, max(1, left // (len(names) - i)))
        return pieces

    def _head(self, name: str, rows: int) -> list[Records]:
        """Return the first rows of a file; None if it has none."""
        self._folders[name] = partition_values(self._files[name])
        file = self._one(self._files[name], name)
        try:
            records = file.read(rows, SAMPLE_BYTES)
        finally:
            file.close()
        if records is None:
            return []
        return [records if self._table is None else self._table.recoded(records)]

    def _with_epoch(self, split: InputSplit, records: Records) -> Records:
        """Return the records with the positions of this epoch."""
        epoch_offset = self._epoch * EPOCH_STRIDE
        if epoch_offset:
            records = replace(records, next=records.next + epoch_offset, epoch_offset=epoch_offset)
        watched = self._watched.get(split.name)
        if watched is not None:
            file = self._file
            watched.record(records, unfinished=isinstance(file, TextFile) and file.unfinished)
        return records

    def _tell_waiting(self, split: InputSplit) -> None:
        if isinstance(self._file, TextFile) and self._file.waiting:
            log.warning(
                "%s ends in a line without a line end, at position %d: it is not read until it has "
                "one (last_line).",
                split.name,
                self._file.next,
            )

    def seek(self, mark: Mark) -> None:
        self.close()
        if self._stdin_rows is not None:
            name = unique_name(STDIN, mark.positions)
            if name != STDIN:
                log.warning("Standard input is read as new input, '%s': none is read again.", name)
            self._stdin_rows.start(name)
        if self._follower is not None:
            self._follower.start(mark.positions, self._known)
        self._positions = {**mark.positions, **self._moved}
        self._epoch, self._at, self._yielded = 0, 0, False
        self._order = order(len(self._splits), self.settings, 0)

    def identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        """Return file -> its `Fingerprint`; for files that are one partition, a digest of all if
        their order depends on all."""
        return {**self._foreign_identities, **self._own_identities(mark)}

    def _own_identities(self, mark: Mark) -> Mapping[str, Snapshot]:
        if self._is_single_partition:
            return {self._name: self._digest}
        identities = {name: known.snapshot() for name, known in self._known.items()}
        if self._follower is not None:
            followed = self._follower.identities(mark.positions)
            return identities | {name: known.snapshot() for name, known in followed}
        for split in self._splits:
            position, watched = mark.positions.get(split.name), self._watched.get(split.name)
            if position is not None and watched is not None:
                total = self._totals.get(split.name)
                known = (
                    watched.fingerprint if split.stop else watched.at(position, total, EPOCH_STRIDE)
                )
                identities[split.file] = known.snapshot()
        return identities

    def match_identities(self, identities: Mapping[str, Snapshot]) -> None:
        own = {name: known for name, known in identities.items() if name != REPLAYED}
        self._foreign_identities = {
            name: known for name, known in identities.items() if name == REPLAYED
        }
        if self._is_single_partition:
            for name, known in own.items():
                self._name = name
                if known != self._digest:
                    raise UserError(
                        "[source] order_by puts the rows of all files in one order, and the files "
                        "are not those of the run before: expected no change; start over with "
                        "--fresh, or leave order_by out."
                    )
        else:
            self._known = {name: Fingerprint.restore(value) for name, value in own.items()}
            if self._follower is not None or self._stdin is not None:
                return
            plan = plan_resume(self._files, self._known, self.settings.on_replaced or "fail")
            self._files, self._known, self._moved = plan.files, plan.known, plan.moved
        self._splits = self._assigned_splits()

    @property
    def _is_single_partition(self) -> bool:
        """Return whether all files are one partition."""
        return bool(self.settings.order_by) or self._file_per_row

    @cached_property
    def _digest(self) -> str:
        """Return the identities of the files of the sorted partition."""
        return combined_digest(self._files.values()) if self.settings.order_by else ""

    def commit(self, mark: Mark) -> bool:
        """Do nothing: files have no offsets to commit."""
        return True

    def lag(self, mark: Mark) -> Mapping[str, int]:
        """Return partition -> bytes (text) or rows after the mark, of the files opened so far."""
        if self._follower is not None:
            return self._follower.lag(mark.positions)
        behind = {}
        for name, total in list(self._totals.items()):
            epoch, position = divmod(mark.positions.get(name, 0), EPOCH_STRIDE)
            again = self.settings.epochs - 1 - epoch
            behind[name] = max(0, total - position) + again * total
        return behind

    def progress(self, mark: Mark) -> float | None:
        """Return the share of the bytes of all files before the mark; inside a compressed file
        an estimate. None if files are followed."""
        if self._follower is not None or self._stdin is not None:
            return None
        positions = mark.positions
        known = [split for split in self._splits if split.name in positions]
        if not known:
            return 0.0
        epoch: int = max(positions[split.name] // EPOCH_STRIDE for split in known)
        places = order(len(self._splits), self.settings, epoch).tolist()
        sizes = [self._splits[at].size for at in places]
        last, within = 0, 0.0
        for i, at in enumerate(places):
            split = self._splits[at]
            mark_epoch, position = divmod(positions.get(split.name, 0), EPOCH_STRIDE)
            if split.name in positions and mark_epoch == epoch:
                first, total = split.start, self._totals.get(split.name, 0)
                last, within = i, (position - first) / max(1, total - first) if total else 0.0
        done = (sum(sizes[:last]) + sizes[last] * min(1.0, max(0.0, within))) / max(1, sum(sizes))
        return float(epoch + done) / self.settings.epochs

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._follower is not None:
            self._follower.close()

    # ---------------------------------------------------------------------------------- formats

    def _recoding(self) -> Transcoder | None:
        """Raises: UserError where an encoding is set for what is no text."""
        if self.settings.encoding is None:
            return None
        require_option("encoding", self._kind, FILES)
        return Transcoder.of(self.settings.encoding)

    @property
    def _dialect(self) -> Dialect:
        """Return the CSV dialect: declared, else sniffed, else the default."""
        found = dict(self._sniffed_dialect or {})
        if self._model_null_values:
            words = {*found.get("null_values", ()), *self._model_null_values}
            found["null_values"] = tuple(word for word in NULL_WORDS if word in words)
        return Dialect(**{**found, **self._declared_dialect})

    @cached_property
    def _declared_dialect(self) -> dict[str, Any]:
        """Return the fields of a `Dialect` that settings, or the files' extension, give."""
        settings = self.settings
        declared: dict[str, Any] = {
            name: getattr(settings, name)
            for name in CSV_SETTINGS
            if name in settings.model_fields_set and getattr(settings, name) is not None
        }
        if "comment" in declared:
            declared["comment"] = declared["comment"] or None
        paths = self._files.values() or map(Path, _paths(settings))
        if all(".tsv" in map(str.lower, path.suffixes) for path in paths):
            declared.setdefault("delimiter", "\t")
        return declared

    def _use_dialect(self, dialect: dict[str, Any] | None) -> None:
        """Apply the sniffed CSV dialect to fields that are not declared."""
        self._sniffed_dialect = dialect
        for decoder in self._csvs:
            decoder.dialect = self._dialect

    def _add_null_values(self, words: Iterable[str]) -> None:
        """Read these fields as missing values, in addition to the current ones."""
        before = (self._sniffed_dialect or {}).get("null_values", ())
        both = {*before, *words}
        if both - {*before}:
            ordered = tuple(word for word in NULL_WORDS if word in both)
            self._use_dialect({**(self._sniffed_dialect or {}), "null_values": ordered})

    def _use_null_words(self, schema: Schema) -> None:
        """Read words as missing values if they are all that keeps columns from being numbers or
        times, now that a model file declares these, and no text column has them."""
        of_text, others = set[str](), set[str]()
        for column, words in self._words.items():
            dtype = schema.get(column, pl.String())
            (of_text if dtype in (pl.String, pl.Binary) else others).update(words)
        self._add_null_values(others - of_text)

    def _sniff(self, path: Path, name: str) -> None:
        """Sniff the dialect of the first file with rows; it applies to all."""
        if self._stdin is not None and not self._stdin.peeking:
            return
        file = TextFile(
            path,
            name,
            delimiter=None,
            max_record=1 << 62,
            wait=self._waits(path),
            opened=self._rewound(),
        )
        records = file.read(1 << 62, HEAD)
        file.close()
        if records is None:
            return
        self._use_dialect(sniff_dialect(_bytes(records), self._declared_dialect))
        roles = dataclasses.asdict(self._dialect)
        _must_differ(roles, ("delimiter", "quote", "comment"), f"{name}:")
        if self._sniffed_dialect:
            log.info(
                "%s is read with %s: that is how its first rows are written; [source] settings of "
                "these names say otherwise.", name, self._dialect.told(),
            )  # fmt: skip

    def _format(self) -> Format:
        settings, spec = self.settings, self._spec
        if settings.row is not None:
            require_option("row", self._kind, FILES)
        if settings.paths:
            require_option("paths", self._kind, FILES)
            if settings.order_by:
                raise UserError(
                    "[source] order_by sorts rows as they are, without paths: take one of the two "
                    "out."
                )
        if settings.order_by:
            return Columns(coerce=settings.coerce, lenient=True)
        if settings.row is not None:  # elements come as columns of text
            return Columns()
        if spec is CUSTOM:
            return load_custom(self._kind)
        if self._kind == "csv":  # whose dialect is found later
            return self._csv(self._headers)
        format = spec.format(
            FormatOptions(paths=settings.paths, coerce=settings.coerce, lines=True, lenient=True)
        )
        if spec.plain_lines:
            return SizeLimited(format, settings.max_record_bytes)
        if spec.layout == "file" and not isinstance(format, FileContent):
            return FileContent(self._kind, format)
        return format

    def _csv(self, headers: Mapping[str, Sequence[str]]) -> Csv:
        decoder = Csv(headers, self._dialect, coerce=self.settings.coerce, lenient=True)
        self._csvs.append(decoder)
        return decoder

    @property
    def has_lines(self) -> bool:
        """Return whether a line end closes each row."""
        return not self._file_per_row

    def format_of_lines(self) -> Format:
        """Return the format of a row of its files that lies elsewhere; a columnar row is JSON.

        Raises: UserError for samples of a tar, of which a dead letter tells only the place.
        """
        if self._spec.layout == "samples":
            raise UserError(
                "Dead letters of a WebDataset tell where a sample lies, they do not hold it: mend "
                "the tar, and run it again."
            )
        if self._file_per_row or self._kind == "text":
            return self.format
        lines: Format = Ndjson()
        if self._kind == "csv" and not self.settings.order_by:
            self._file_schema({}, guess=False)  # opens every file
            lines = self._csv(Headers(self._headers))
        return (
            HivePartitions(lines, self._folders)
            if isinstance(self.format, HivePartitions)
            else lines
        )

    def _assigned_splits(self) -> list[InputSplit]:
        """Return the splits that this engine reads, in the order of names.

        Raises: UserError where it cannot be shared or shuffled.
        """
        settings = self.settings
        if self._follower is not None or self._stdin is not None:
            return []
        shard, shards = settings.place()
        if settings.order_by:
            if settings.shards is not None or settings.shuffle_files:
                raise UserError(
                    "[source] order_by reads all files at once, in that order: leave shards and "
                    "shuffle_files out."
                )
            return [InputSplit(self._name, "")]
        if self._file_per_row:
            if settings.shards is None:
                return [InputSplit(self._name, "")]
            if shards > SHARD_GROUPS:
                raise UserError(f"[source] shards: expected at most {SHARD_GROUPS}, got {shards}.")
            every = [
                InputSplit(f"{self._name}[{g}/{SHARD_GROUPS}]", "", group=g)
                for g in range(SHARD_GROUPS)
            ]
            return every[shard::shards]
        if settings.shards is None:
            return [InputSplit(n, n, size=p.stat().st_size) for n, p in self._files.items()]
        return list(pieces(self._files, self._bounds))[shard::shards]

    def _bounds(self, name: str, path: Path) -> Sequence[int] | None:
        """Return the offsets at which a file may be cut; None if it may not."""
        if self._spec.layout == "table":
            table = open_table(self._kind, path, name)
            table.close()
            return [int(x) for x in table.bounds]
        lines = self._spec.plain_lines and compression(path) is None
        return text_bounds(path) if lines else None

    def _open(self, split: InputSplit) -> Readable:
        if not self._is_single_partition:
            self._folders[split.name] = partition_values(self._files[split.file])
        if split.name not in self._watched and not self._is_single_partition:
            path, known = self._files[split.file], self._known.get(split.file)
            whole = not self._has_rows_of_text
            self._watched[split.name] = FingerprintTracker(path, whole=whole, before=known)
            self._contents.note(path, split.file)
        if split.stop is None:
            return self._whole_unit(split)
        file = self._whole_unit(split)
        first = split.start
        if self._spec.layout != "table":
            first = line_start(self._files[split.file], split.start)
        return SplitReader(file, split.name, first, split.stop)

    def _whole_unit(self, split: InputSplit) -> Readable:
        if self.settings.order_by:
            return SortedRows(self._in_order(), split.name)
        if self._file_per_row:
            return self._whole_files(split.name, split.group)
        return self._one(self._files[split.file], split.file)

    def _follow(self, path: Path, name: str) -> Readable | None:
        """Return the rows of a file, as `_one`; None while it lacks even its header."""
        self._folders[name] = partition_values(path)
        return self._one(path, name) if self._is_begun(path) else None

    def _is_begun(self, path: Path) -> bool:
        """Return whether a growing CSV has its header by now."""
        if self._kind != "csv" or compression(path) is not None:
            return True
        (head,) = segments(path, [(0, HEADER_BYTES)], raw=True)
        return len(head) == HEADER_BYTES or b"\n" in head.lstrip(b"\r\n")

    def _one(self, path: Path, name: str) -> Readable:
        """Return the rows of a file."""
        if self._kind == "xml":
            return self._xml(path, name)
        if isinstance(self._inner, WebDatasetFormat):
            wanted = None if self._columns is None else self._inner.extensions(self._columns)
            return TarShard(path, name, wanted, max_record=self.settings.max_record_bytes)
        if self._spec.layout == "table":
            return open_table(self._kind, path, name, self._table_columns())
        return self._text(path, name)

    def _whole_files(self, name: str, group: int | None = None) -> FileRows:
        """Return files that are one row each, in the order of this epoch."""
        names = list(self._files)[slice(group, None, None if group is None else SHARD_GROUPS)]
        names = [names[i] for i in order(len(names), self.settings, self._epoch)]
        limit = self.settings.max_record_bytes
        return FileRows({n: self._files[n] for n in names}, name, max_record=limit)

    def _xml(self, path: Path, name: str, columns: list[str] | None = None) -> XmlRows:
        if columns is None:
            columns = self._columns = self._columns or list(self._guess_xml(guess=False))
        assert self.settings.row is not None
        limit = self.settings.max_record_bytes
        return XmlRows(
            path, name, self.settings.row, columns, self._paths_of(columns), max_record=limit
        )

    def _paths_of(self, columns: list[str]) -> dict[str, str]:
        return {c: path for c, path in self.settings.paths.items() if c in columns}

    @property
    def _nests(self) -> bool:
        """Whether `paths` leads into columns that have others inside."""
        return self._kind in JSON_FORMATS or self._spec.layout == "table"

    @property
    def _has_rows_of_text(self) -> bool:
        return self._spec.layout == "lines"

    def _must_end_lines(self, path: Path, name: str) -> None:
        """Raises: UserError where a carriage return alone ends them, as on old Macs."""
        if self._stdin is not None or self.settings.follow or compression(path) is not None:
            return
        (head,) = segments(path, [(0, HEADER_BYTES)], raw=True)
        if b"\n" not in head and b"\r" in head.strip(b"\r"):
            raise UserError(
                f"{name} has no line end but carriage returns: expected lines that end in a line "
                "feed; convert it, for instance with tr '\\r' '\\n'."
            )

    def _text(self, path: Path, name: str) -> TextFile:
        if self._spec is not CUSTOM:
            self._must_end_lines(path, name)
        if self._kind != "csv":
            shorten = self._spec.plain_lines and not self.settings.order_by
            return TextFile(
                path,
                name,
                delimiter=None,
                max_record=self.settings.max_record_bytes,
                shorten=shorten,
                wait=self._waits(path),
                opened=self._rewound(),
            )
        first = self._sniffed_dialect is None
        if first:
            self._sniff(path, name)
        dialect = self._dialect
        file = self._csv_file(path, name, comment=dialect.comment or dialect.preamble)
        raw, end = file.header()
        encoding = self.settings.encoding or "utf-8"
        self._headers[name] = columns = header(raw, name, dialect, encoding)
        if first and (maybe := unclear(columns)) is not None:
            log.warning(
                "%s has one column, '%s': where '%s' stands between columns, set [source] "
                "delimiter.", name, columns[0], maybe,
            )  # fmt: skip
        if len(columns) == 1 or dialect.preamble:  # a blank line is a row there
            file.close()
            file = self._csv_file(path, name, comment=dialect.comment, keep_blank=len(columns) == 1)
            file.skip_to(end)
        return file

    def _waits(self, path: Path) -> bool:
        """Return whether a last line without its end is not a row yet."""
        grows = self.settings.follow and compression(path) is None
        peeking = self._stdin is not None and self._stdin.peeking
        return grows or peeking or self.settings.last_line == "wait"

    def _rewound(self) -> StdinBytes | None:
        """Return standard input from its first byte, if it is read."""
        if self._stdin is not None:
            self._stdin.rewind()
        return self._stdin

    def _csv_file(
        self, path: Path, name: str, *, comment: str | None, keep_blank: bool = False
    ) -> TextFile:
        dialect = self._dialect
        return TextFile(
            path,
            name,
            delimiter=dialect.delimiter,
            quote=dialect.quote_byte,
            comment=-1 if comment is None else ord(comment),
            max_record=self.settings.max_record_bytes,
            keep_blank=keep_blank,
            wait=self._waits(path),
            opened=self._rewound(),
        )

    def _sampled(self, path: Path, name: str) -> RowReader:
        """Open a text file for inspection, as UTF-8."""
        file = self._text(path, name)
        return file if self._table is None else TranscodedReader(file, self._table)

    # ----------------------------------------------------------------------------------- schema

    def _file_schema(self, named: Schema, *, guess: bool) -> Schema:
        """Return the columns of all files. Types of text are inferred, except for the named
        columns; without `guess`, all are text."""
        if self._kind == "xml":
            return self._guess_xml(guess=guess)
        if isinstance(self._inner, WebDatasetFormat):
            name, path = next(iter(self._files.items()))
            shard = TarShard(path, name, None, max_record=self.settings.max_record_bytes)
            columns = self._inner.kinds(shard.sample(SAMPLE_ROWS))
            shard.close()
            return columns
        inspection = self._inspection(named if guess else None)
        if self.settings.missing_columns == "fail":
            for column, files in inspection.missing_in.items():
                raise UserError(
                    f"{files[0]} has no column '{column}', which other files have: mend it, or "
                    'take [source] missing_columns = "fail" out.'
                )
        inspection.log_warnings(len(self._files), named)
        if self._spec.layout == "table":
            tops = inspection.schema
            plain = {c: pl.String() if t == pl.Null else t for c, t in tops.items()}
            return plain | self._nested(tops)
        if self._kind in JSON_FORMATS:  # what a path takes apart is no column of its own as well
            apart = {str(parse_path(path, c)[0]) for c, path in self.settings.paths.items()}
            own = {*named, *self.settings.paths}
            there = {c: t for c, t in inspection.schema.items() if c not in apart or c in own}
            return self._must_lead(there, named)
        return inspection.schema

    def _must_lead(self, there: Schema, named: Schema) -> Schema:
        """Return the same. Raises: UserError for one of `paths` whose column has no type: no row
        has a value there, and none is declared."""
        for column, path in self.settings.paths.items():
            if column not in there and column not in named:
                top = str(parse_path(path, column)[0])
                raise UserError(
                    f"[source] paths: '{path}' of column '{column}' leads to nothing in "
                    f"{next(iter(self._files))} that its type could be guessed from: correct it, "
                    f"or declare '{column}' in [source.schema].{nearest(top, there)}"
                )
        return there

    def _inspection(self, named: Schema | None) -> Inspection:
        if self._spec.layout == "table":
            return inspect_tables(self._files, self._kind)
        if self._kind == "csv":
            csv = self._inner if isinstance(self._inner, Csv) else self._csv(self._headers)
            words = "null_values" not in self._declared_dialect
            inspection = inspect_csv(
                self._files, self._sampled, csv, self._headers, named, words=words
            )
            if not inspection.schema:
                raise UserError(
                    f"{next(iter(self._files))} is empty: expected a CSV header in its first line."
                )
            self._words |= inspection.words
            self._add_null_values(inspection.null_values)
            return inspection
        declared, paths = bool(named), self.settings.paths
        if self._file_per_row:
            files = {self._name: Path()}
            return inspect_json(
                files, lambda _, name: self._whole_files(name), paths, declared=declared
            )
        return inspect_json(self._files, self._sampled, paths, declared=declared)

    def _nested(self, available: Schema) -> Schema:
        """Return the columns that `paths` takes out of others."""
        columns: Schema = {}
        for column, path in self.settings.paths.items():
            top = parse_path(path, column)[0]
            if top not in available:
                raise UserError(
                    f"[source] paths: '{path}' of column '{column}' begins at a column that "
                    f"{next(iter(self._files))} does not have.{nearest(str(top), available)}"
                )
            try:
                value = value_at(parse_path(path, column)).alias(column)
                columns |= dict(pl.LazyFrame(schema=available).select(value).collect_schema())
            except PolarsError:
                raise UserError(
                    f"[source] paths: '{path}' of column '{column}' leads to nothing: column "
                    f"'{top}' of {next(iter(self._files))} is {available[str(top)]}."
                ) from None
        return columns

    def _table_columns(self) -> list[str] | None:
        """Return the columns of the files that contain these columns."""
        if self._columns is None:
            return None
        paths = self.settings.paths
        return [str(parse_path(paths[c], c)[0]) if c in paths else c for c in self._columns]

    def _guess_xml(self, *, guess: bool) -> Schema:
        """Infer the columns of the first rows."""
        elements = self._sample_of_xml()
        paths = self.settings.paths
        columns = list(dict.fromkeys([*columns_of(elements), *paths]))
        texts = Fields(columns, paths).frame(elements, len(elements))
        if not guess or not elements:
            return dict(texts.schema)
        types = TypeInference()
        types.add(texts)
        return types.schema()

    def _sample_of_xml(self) -> list[etree._Element]:
        name, path = next(iter(self._files.items()))
        if not self._file_per_row:
            rows = self._xml(path, name, columns=[])
            elements = rows.sample(SAMPLE_ROWS)
            rows.close()
            return elements
        files = self._whole_files(self._name)
        records = files.read(SAMPLE_ROWS, INSPECTION_BYTES)
        return documents(records) if records is not None else []

    def _check(self, named: Schema, available: Schema) -> None:
        for column in named:
            if column not in available:
                raise UserError(
                    f"[source.schema] names column '{column}', which {self._all_files()} does not "
                    f"have.{nearest(column, available)}"
                )

    def _all_files(self) -> str:
        first, rest = next(iter(self._files)), len(self._files) - 1
        return f"{first}, or any of {rest} more files," if rest else first

    # ----------------------------------------------------------------------------------- sorted

    def _in_order(self) -> pl.DataFrame:
        if self._sorted is None:
            frames = [self._read_all(path, name) for name, path in self._files.items()]
            try:
                keys = [expression(sql, "[source] order_by") for sql in self.settings.order_by]
                frame = pl.concat(frames, how="diagonal_relaxed")
                frame = frame.sort(keys, maintain_order=True, nulls_last=True)
                self._sorted = frame.select(self._columns or frame.columns)
            except PolarsError as error:
                raise self._unsorted(error, frames[0].columns) from None
        return self._sorted

    def _check_sortable(self, available: Schema) -> None:
        """Raises: UserError where the columns cannot be sorted so; before anything is read."""
        columns = dict.fromkeys(available, pl.String()) if self._kind == "csv" else available
        try:
            keys = [expression(sql, "[source] order_by") for sql in self.settings.order_by]
            pl.DataFrame(schema=columns).sort(keys)
        except PolarsError as error:
            raise self._unsorted(error, list(columns)) from None

    def _unsorted(self, error: PolarsError, columns: list[str]) -> UserError:
        return UserError(
            f"[source] order_by {list(self.settings.order_by)} cannot be done: {_line(error)}; the "
            f"columns are {columns}, of CSV all text."
        )

    def _read_all(self, path: Path, name: str) -> pl.DataFrame:
        """Return all rows of a file; text columns for CSV."""
        if self._spec.layout == "table":
            return open_table(self._kind, path, name).whole()
        file = self._sampled(path, name)
        parts = []
        while (records := file.read(1 << 30, 1 << 40)) is not None:
            parts.append(_bytes(records))
        file.close()
        schema = dict.fromkeys(self._headers.get(name, ()), pl.String())
        if not parts:
            return pl.DataFrame(schema=schema)
        data, blank = parser_input(np.frombuffer(b"".join(parts), np.uint8))
        try:
            if self._kind == "ndjson":
                return pl.read_ndjson(data, infer_schema_length=None)
            return pl.read_csv(
                data,
                skip_lines=blank,
                has_header=False,
                schema=schema,
                separator=self._dialect.delimiter,
                quote_char=self._dialect.quote or None,
                null_values=list(self._dialect.null_values) or None,
            )
        except PolarsError as error:
            raise HeadraceError(
                f"{name} cannot be read whole, as [source] order_by needs: {_line(error)}; mend "
                "the file, or sort it yourself and leave order_by out."
            ) from None


def header(raw: bytes | None, name: str, dialect: Dialect, encoding: str = "utf-8") -> list[str]:
    """Return the column names of a CSV's first row; none without one. A column without a name,
    as before an index or after a last comma, is called by its number: ``column_1`` is the first.

    Raises: UserError when it is in another encoding, or names a column twice.
    """
    if raw is None:
        return []
    quote = dialect.quote or None
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE
    try:
        lines = io.StringIO(raw.decode(encoding).strip("\r\n"))
        read = csv.reader(lines, delimiter=dialect.delimiter, quotechar=quote, quoting=quoting)
        names = [name or f"column_{i}" for i, name in enumerate(next(read), start=1)]
    except UnicodeDecodeError as error:
        raise UserError(
            f"The header of {name} cannot be read: {error}; set [source] encoding, for instance "
            '"latin-1", or mend it.'
        ) from None
    except csv.Error as error:
        raise UserError(f"The header of {name} cannot be read: {error}; mend it.") from None
    twice = [c for i, c in enumerate(names) if c in names[:i]]
    if twice:
        raise UserError(f"{name} has column '{twice[0]}' twice in its header: rename one of them.")
    return names


class Headers(dict[str, list[str]]):
    """Partition -> its header, for existing files; for another one, the union of all.

    Raises (a look-up): UserError where a file is not there, and the others differ.
    """

    def __missing__(self, partition: str) -> list[str]:
        headers = {tuple(header) for header in self.values() if header}
        if len(headers) > 1:
            raise UserError(
                f"A dead letter comes from '{partition}', which [source] path no longer finds, and "
                "its files have their columns in different orders: put it back, or move the letter "
                "away."
            )
        return list(*headers)


def _must_differ(roles: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    """Raises: UserError where one character has two of these roles."""
    for first, other in combinations(names, 2):
        if roles.get(first) and roles.get(first) == roles.get(other):
            raise UserError(
                f"{where} {first} and {other} are both {json.dumps(roles[first])}: expected "
                f"different "
                f"characters; set [source] {first} or {other} to another."
            )


def _paths(settings: FilesSource.Settings) -> tuple[str, ...]:
    return (settings.path,) if isinstance(settings.path, str) else settings.path


def _bytes(records: Records) -> bytes:
    values = records.values
    assert isinstance(values, Values)
    return values.data[values.bounds[0] : values.bounds[-1]].tobytes()


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0]


__all__ = ["FilesSource"]
