"""The settings of `[source] kind = "files"`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import ByteSize, Field, ValidationInfo, field_validator

from connectors.files.fingerprint import Policy
from connectors.files.splits import ShardSettings
from connectors.formats.inference.transcode import Transcoder
from connectors.formats.values.casts import Coerce
from engine.types import Duration
from engine.types.changes import Fixed, Free, Meaning

CSV_CHARACTER = re.compile(r"[^\n\r\0\x80-\U0010ffff]")


class FilesSettings(ShardSettings):
    """``[source] kind = "files"``

    Attributes:
        path: a file, a folder (all files below it), a glob, a list of them, "-" for standard
            input (lines of text, read once, to its end), or ``package:path/in/package`` for
            data that an installed package ships.
        format: csv, ndjson, parquet, arrow, avro, xml, images or webdataset (a tar whose neighbours
            with one base name are a row), by the files' extension unless given; text (one row per
            line), documents (one row per file), json (one object per file); or a class of your
            own for lines of text, ``package.module:Class``.
        paths: column -> the path of its value: ``user.address.city`` in NDJSON, JSON, and nested
            columns of Parquet, Arrow and Avro, ``address/city`` or ``@id`` in XML, ``jpg;png``
            or ``json.size.width`` in a WebDataset.
        row: for XML, names of the elements from the root to a row, ``orders/order``; a file is
            one row unless given.
        delimiter: for CSV; unless given, a tab for ``.tsv``, else a comma, or ``;``, a tab or
            ``|`` if it splits header and rows and a comma does not.
        quote: for CSV, the character around fields with delimiters or line ends; "" for none.
        decimal: for CSV, "," if numbers are written 1,5; detected if fields are separated by
            ``;`` or tabs.
        comment: for CSV, a character; lines that begin with it are skipped; "" for none. Lines
            before the header that begin with ``#`` are detected.
        null_values: for CSV, fields that mean a missing value, in addition to the empty field;
            detected if only they keep a column from being numbers; [] for none.
        encoding: for CSV, NDJSON and lines of text: latin-1, cp1252 or another with one byte per
            character; UTF-8 unless given.
        missing_columns: what to do about a column that only some files have: "null" in the
            others, or "fail": the run does not start.
        coerce: "lossless" accepts every value that equals one of the declared type, however it is
            written; "strict" only values written as that type.
        order_by: SQL expressions to sort by, stably, nulls last; reads all files at once as one
            partition whose positions are row numbers in that order. CSV columns are text here:
            CAST them.
        max_record_bytes: the longest accepted row of text, or largest file that is one row; a
            larger one is a dead letter (for CSV and formats of your own it ends the run).
        follow: never end: read rows added to files of lines, and new files. Compressed files,
            Parquet, Arrow, Avro and tars are read once they have not changed between two scans:
            write them elsewhere, and rename them; to an Avro file blocks may be added. See
            `connectors.files.streams.follow`.
        poll_interval: time between two scans for changed files, with `follow`.
        on_replaced: what to do if a file was replaced, truncated, deleted before its end, or
            continued within its last line: "fail" stops with an error; "read" reads the
            current content as a new file, with a warning. Default: "fail"; with `follow`,
            "read", and no more than a line in the log, as log rotation does that. A damaged file
            that is followed as a whole is a dead letter with "read".
        last_line: "take" reads a last line without a line end; "wait" leaves it, with a warning,
            until it has one, for files that may grow; always "wait" with `follow`.
        epochs: how often to read all files.
        shuffle_files: read the files of each epoch in another order.
        seed: the seed of `shuffle_files`.
        shards: number of engines that share the files, each row read by one; "env" takes
            WORLD_SIZE; 1 for one engine that may become several. They share row groups of
            Parquet, record batches of Arrow, blocks of Avro, pieces of 32 MiB of lines, otherwise
            whole files.
        shard: the number of this engine, from 0; "env" takes RANK.
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

    @property
    def locations(self) -> tuple[str, ...]:
        """The paths, one or several."""
        return (self.path,) if isinstance(self.path, str) else self.path


__all__ = ["FilesSettings"]
