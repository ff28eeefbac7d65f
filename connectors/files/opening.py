"""Opens the files of a source as rows."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from connectors.files.catalog import Catalog
from connectors.files.csv_dialects import CsvDialects
from connectors.files.fingerprint import segments
from connectors.files.inspection import (
    SAMPLE_ROWS,
    RowReader,
    TranscodedReader,
    inspect_xml,
    raw_lines,
)
from connectors.files.readers.file_rows import FileRows
from connectors.files.readers.table import TableFile, open_table
from connectors.files.readers.tar import TarShard
from connectors.files.readers.text import TextFile, compression
from connectors.files.splits import SHARD_GROUPS, Readable, order
from connectors.formats.inference.sniff import HEAD, split_sep_line
from connectors.formats.inference.transcode import Transcoder
from connectors.formats.kernels.paths import parse_path
from connectors.formats.registry import CUSTOM, FILES, require_option
from connectors.formats.webdataset import WebDatasetFormat
from engine.types import Records, UserError

if TYPE_CHECKING:  # lxml is imported where XML is read
    from lxml import etree

    from connectors.files.readers.xml import XmlRows

HEADER_BYTES = 1 << 16
"""The bytes in which a CSV's header must end."""
INSPECTION_BYTES = 4 << 20
"""The bytes inspected of XML documents, whose trees are many times as large."""

log = logging.getLogger("headrace.files")


class Opener:
    """Opens one file after the other, in the way its format needs.

    Attributes:
        columns: the columns to read, if the format can choose; None for all.
    """

    def __init__(self, catalog: Catalog, dialects: CsvDialects) -> None:
        """Raises: UserError if an encoding is set for a format that is not text."""
        self._catalog = catalog
        self._dialects = dialects
        self.columns: list[str] | None = None
        self._waiting: set[str] = set()
        """The files whose last block was reported as incomplete."""
        self._transcoder: Transcoder | None = None
        if catalog.settings.encoding is not None:
            require_option("encoding", catalog.format, FILES)
            self._transcoder = Transcoder.of(catalog.settings.encoding)

    def recoded(self, records: Records) -> Records:
        """Return rows as UTF-8."""
        return records if self._transcoder is None else self._transcoder.recoded(records)

    def recoded_lines(self, lines: pl.Series) -> pl.Series:
        """Return lines, as bytes, in UTF-8; those that are in UTF-8 already stay as they are."""
        return lines if self._transcoder is None else self._transcoder.recoded_lines(lines)

    def file(self, path: Path, name: str) -> Readable:
        """Return the rows of a file."""
        catalog = self._catalog
        if catalog.format == "xml":
            return self._xml(path, name)
        if catalog.spec.layout == "samples":
            return self._tar(path, name)
        if catalog.spec.layout == "table":
            return self._table(path, name)
        return self.text(path, name)

    def growing(self, path: Path, name: str) -> Readable | None:
        """Return the rows of a file that may grow; None while it has no header."""
        self._catalog.note_folders(name, path)
        return self.file(path, name) if self.is_begun(path) else None

    def is_begun(self, path: Path) -> bool:
        """Return whether the header of a growing CSV or Avro file is complete."""
        if self._catalog.format == "avro":
            from connectors.formats.walks.avro_blocks import has_header  # and with it the codecs

            return has_header(path)
        if self._catalog.format != "csv" or compression(path) is not None:
            return True
        (head,) = segments(path, [(0, HEADER_BYTES)], raw=True)
        full, head = len(head) == HEADER_BYTES, split_sep_line(head)[0]
        return full or b"\n" in head.lstrip(b"\r\n")

    def files(self, name: str, group: int | None = None, epoch: int = 0) -> FileRows:
        """Return the files that are one row each, in the order of an epoch.

        Args:
            group: which of `SHARD_GROUPS`; None: all.
        """
        files, settings = self._catalog.files, self._catalog.settings
        names = list(files)[slice(group, None, None if group is None else SHARD_GROUPS)]
        names = [names[i] for i in order(len(names), settings, epoch)]
        return FileRows({n: files[n] for n in names}, name, max_record=settings.max_record_bytes)

    def elements(self) -> list[etree._Element]:
        """Return a sample of XML's rows."""
        from connectors.formats.xml import documents

        if self._catalog.file_per_row:
            records = self.files(self._catalog.name).read(SAMPLE_ROWS, INSPECTION_BYTES)
            return documents(records) if records is not None else []
        name, path = self._catalog.first
        return self.elements_in(path, name)

    def elements_in(self, path: Path, name: str) -> list[etree._Element]:
        """Return a sample of the rows of an XML file."""
        rows = self._xml(path, name, columns=[])
        elements = rows.sample(SAMPLE_ROWS)
        rows.close()
        return elements

    def members(self) -> list[str]:
        """Return the extensions that a sample of a WebDataset has."""
        name, path = self._catalog.first
        return self.members_in(path, name)

    def members_in(self, path: Path, name: str) -> list[str]:
        """Return the extensions that a sample of a WebDataset's shard has."""
        shard = TarShard(path, name, None, max_record=self._catalog.settings.max_record_bytes)
        extensions = shard.sample(SAMPLE_ROWS)
        shard.close()
        return extensions

    def sampled(self, path: Path, name: str) -> RowReader:
        """Open a text file for inspection, as UTF-8."""
        file = self.text(path, name)
        return file if self._transcoder is None else TranscodedReader(file, self._transcoder)

    def text(self, path: Path, name: str) -> TextFile:
        """Open lines of text; a CSV after its header, which is passed to the dialects.

        Raises: UserError if lines end with a carriage return alone, or the header cannot be read.
        """
        catalog = self._catalog
        if catalog.spec is not CUSTOM:
            self._require_line_feeds(path, name)
        if catalog.format == "csv":
            return self._csv(path, name)
        shorten = catalog.spec.plain_lines and not catalog.settings.order_by
        return self._text_file(path, name, delimiter=None, shorten=shorten)

    def _csv(self, path: Path, name: str) -> TextFile:
        first = self._dialects.sniffed is None
        if first:
            self._sniff(path, name)
        dialect = self._dialects.dialect
        file = self._csv_file(path, name, comment=dialect.comment or dialect.preamble)
        raw, end = file.header()
        if raw is not None and (named := split_sep_line(raw)[1]):
            self._dialects.require_delimiter(named, name)
            raw, end = file.header()
        columns = self._dialects.take_header(raw, name, sniffed_now=first)
        if len(columns) == 1 or dialect.preamble:  # a blank line is a row there
            file.close()
            file = self._csv_file(path, name, comment=dialect.comment, keep_blank=len(columns) == 1)
            file.skip_to(end)
        return file

    def _sniff(self, path: Path, name: str) -> None:
        """Sniff the dialect if the file has rows."""
        stdin = self._catalog.stdin
        if stdin is not None and not stdin.peeking:
            return
        file = self._text_file(path, name, delimiter=None, max_record=1 << 62)
        records = file.read(1 << 62, HEAD)
        file.close()
        if records is not None:
            self._dialects.sniff(raw_lines(records), name)

    def _csv_file(
        self, path: Path, name: str, *, comment: str | None, keep_blank: bool = False
    ) -> TextFile:
        dialect = self._dialects.dialect
        return self._text_file(
            path,
            name,
            delimiter=dialect.delimiter,
            quote=dialect.quote_byte,
            comment=-1 if comment is None else ord(comment),
            keep_blank=keep_blank,
        )

    def _text_file(self, path: Path, name: str, **how: Any) -> TextFile:
        """Open lines of text, `how` as `TextFile` says; standard input from its first byte."""
        stdin, limit = self._catalog.stdin, self._catalog.settings.max_record_bytes
        if stdin is not None:
            stdin.rewind()
        how = {"max_record": limit, "wait": self._waits(path), "opened": stdin, **how}
        return TextFile(path, name, **how)

    def _waits(self, path: Path) -> bool:
        """Return whether a last line without a line end is left until it is complete."""
        stdin, settings = self._catalog.stdin, self._catalog.settings
        grows = settings.follow and compression(path) is None
        peeking = stdin is not None and stdin.peeking
        return grows or peeking or settings.last_line == "wait"

    def _require_line_feeds(self, path: Path, name: str) -> None:
        """Raises: UserError if lines end with a carriage return alone, as on old Macs."""
        catalog = self._catalog
        if catalog.stdin is not None or catalog.settings.follow or compression(path) is not None:
            return
        (head,) = segments(path, [(0, HEADER_BYTES)], raw=True)
        if b"\n" not in head and b"\r" in head.strip(b"\r"):
            raise UserError(
                f"{name} has no line end but carriage returns: expected lines that end in a line "
                "feed; convert it, for instance with tr '\\r' '\\n'."
            )

    def _xml(self, path: Path, name: str, columns: list[str] | None = None) -> XmlRows:
        from connectors.files.readers.xml import XmlRows

        settings = self._catalog.settings
        if columns is None:
            columns = self.columns = self.columns or list(
                inspect_xml(self.elements(), settings.paths, guess=False).schema
            )
        assert settings.row is not None
        paths = {c: way for c, way in settings.paths.items() if c in columns}
        limit = settings.max_record_bytes
        return XmlRows(path, name, settings.row, columns, paths, max_record=limit)

    def _tar(self, path: Path, name: str) -> TarShard:
        settings, wanted = self._catalog.settings, None
        if self.columns is not None:
            wanted = WebDatasetFormat(settings.paths).extensions(self.columns)
        return TarShard(path, name, wanted, max_record=settings.max_record_bytes)

    def _table(self, path: Path, name: str) -> TableFile:
        grows = self._catalog.settings.follow
        table = open_table(self._catalog.format, path, name, self._table_columns(), may_grow=grows)
        if table.waits and name not in self._waiting:
            self._waiting.add(name)
            log.warning("%s is not read to its end yet: %s.", name, table.waits)
        return table

    def _table_columns(self) -> list[str] | None:
        """Return the columns of a table file that contain the columns to read."""
        if self.columns is None:
            return None
        paths = self._catalog.settings.paths
        return [str(parse_path(paths[c], c)[0]) if c in paths else c for c in self.columns]


__all__ = ["Opener"]
