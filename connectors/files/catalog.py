"""The files a source reads, their format, and the splits of this engine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from connectors.files.paths import common_format, find_files
from connectors.files.readers.stdin import STDIN, StdinBytes
from connectors.files.readers.table import open_table
from connectors.files.readers.text import compression, readable
from connectors.files.settings import FilesSettings
from connectors.files.splits import SHARD_GROUPS, InputSplit, pieces, text_bounds
from connectors.formats.custom import require_known_format
from connectors.formats.registry import FILES, FORMATS, spec_of
from connectors.formats.values.hive import partition_values
from engine.types import UserError

SORTABLE = tuple(name for name in FILES if FORMATS[name].sortable)
"""Formats for `order_by`."""
JSON_FORMATS = ("ndjson", "json")

log = logging.getLogger("headrace.files")


class Catalog:
    """The files of a source, shared by all of its parts.

    Attributes:
        settings: the source's; `FilesSource.use_parse_settings` replaces them.
        stdin: standard input, if it is read instead of files.
        files: partition -> path, in their order.
        format: the name of their format.
        spec: the registry's entry of that format.
        name: the partition, if all files are one.
        folders: partition -> column -> value, from folder names; grows as files are opened.
    """

    def __init__(self, settings: FilesSettings) -> None:
        """Raises: UserError if the path matches no file or files of several formats, or order_by is
        set for files that cannot be sorted."""
        if settings.format is not None:
            require_known_format(settings.format, FILES)
        self.settings = settings
        self.stdin = StdinBytes() if settings.path == STDIN else None
        self.files = self.find()
        self.format = settings.format or common_format(self.files)
        self.spec = spec_of(self.format)
        if settings.order_by and not self.spec.sortable:
            raise UserError(
                f"[source] order_by is for {', '.join(SORTABLE)}, not for '{self.format}'."
            )
        self.name = readable(",".join(settings.locations))
        self.folders = {name: partition_values(path) for name, path in self.files.items()}

    def find(self) -> dict[str, Path]:
        """Return the current files.

        Raises: UserError if there is none, unless files are followed and the format is given.
        """
        settings = self.settings
        if self.stdin is not None:
            return {STDIN: Path(STDIN)}
        try:
            return find_files(settings.locations, settings.format)
        except UserError as error:
            if not settings.follow:
                raise
            if settings.format is None:
                raise UserError(
                    f"{error} If files come later, set [source] format and declare their "
                    "columns in [source.schema]."
                ) from None
            log.warning("%s It is waited for.", error)
            return {}

    @property
    def first(self) -> tuple[str, Path]:
        """The first file's partition and path."""
        return next(iter(self.files.items()))

    @property
    def inspected(self) -> list[str]:
        """The partitions of the files whose columns a run begins with."""
        every = self.format != "xml" and self.spec.layout != "samples"
        return list(self.files)[: None if every else 1]

    @property
    def described(self) -> str:
        """The files as words for a sentence."""
        first, rest = self.first[0], len(self.files) - 1
        return f"{first}, or any of {rest} more files," if rest else first

    @property
    def has_lines(self) -> bool:
        """Whether a row is a line of text, or several."""
        return self.spec.layout == "lines"

    @property
    def has_objects(self) -> bool:
        """Whether a row is a JSON object."""
        return self.format in JSON_FORMATS

    @property
    def nests(self) -> bool:
        """Whether `paths` may lead into nested columns."""
        return self.has_objects or self.spec.layout == "table"

    @property
    def file_per_row(self) -> bool:
        """Whether each file is a row."""
        return self.spec.layout == "file" and self.settings.row is None

    @property
    def is_single_partition(self) -> bool:
        """Whether all files are one partition."""
        return bool(self.settings.order_by) or self.file_per_row

    def note_folders(self, partition: str, path: Path) -> None:
        """Record the columns in the folder names of a partition's file."""
        self.folders[partition] = partition_values(path)

    def splits(self) -> list[InputSplit]:
        """Return the splits that this engine reads, in the order of names.

        Raises: UserError if the files cannot be shared or shuffled.
        """
        settings = self.settings
        shard, shards = settings.place()
        if settings.order_by:
            if settings.shards is not None or settings.shuffle_files:
                raise UserError(
                    "[source] order_by reads all files at once, in that order: leave shards and "
                    "shuffle_files out."
                )
            return [InputSplit(self.name, "")]
        if self.file_per_row:
            if settings.shards is None:
                return [InputSplit(self.name, "")]
            if shards > SHARD_GROUPS:
                raise UserError(f"[source] shards: expected at most {SHARD_GROUPS}, got {shards}.")
            every = [
                InputSplit(f"{self.name}[{g}/{SHARD_GROUPS}]", "", group=g)
                for g in range(SHARD_GROUPS)
            ]
            return every[shard::shards]
        if settings.shards is None:
            return [InputSplit(n, n, size=p.stat().st_size) for n, p in self.files.items()]
        return list(pieces(self.files, self._bounds))[shard::shards]

    def _bounds(self, name: str, path: Path) -> Sequence[int] | None:
        """Return the offsets at which a file may be cut; None if it may not."""
        if self.spec.layout == "table":
            table = open_table(self.format, path, name)
            table.close()
            return [int(x) for x in table.bounds]
        lines = self.spec.plain_lines and compression(path) is None
        return text_bounds(path) if lines else None

    def require_followable(self) -> None:
        """Raises: UserError if the files cannot be followed."""
        self._require_once("follow reads files as they come, without an end")
        if self.file_per_row:
            raise UserError(
                f"[source] follow is for files of many rows, and each file of format "
                f"'{self.format}' is one: leave follow out."
            )

    def require_pipeable(self) -> None:
        """Raises: UserError if rows cannot be read from standard input."""
        if not self.has_lines:
            raise UserError(
                f"[source] path = \"-\" reads lines of text, not '{self.format}': write it to a "
                "file."
            )
        if self.settings.follow:
            raise UserError('[source] path = "-" is read to its end: leave follow out.')
        self._require_once("standard input is read once")

    def _require_once(self, why: str) -> None:
        """Raises: UserError for settings that read files together, repeatedly or shared."""
        settings = self.settings
        own = (settings.order_by, settings.shuffle_files, settings.epochs > 1, settings.shards)
        names = ("order_by", "shuffle_files", "epochs", "shards")
        for name, given in zip(names, own, strict=True):
            if given:
                raise UserError(f"[source] {why}: leave {name} out.")


__all__ = ["Catalog"]
