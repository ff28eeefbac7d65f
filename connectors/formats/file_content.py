"""Rows that are whole files: an image or a document, its path, and its folder's name."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from connectors.formats.kernels.rows import (
    BAD_UTF8,
    NOT_UTF8,
    binary,
    decode_utf8,
    is_utf8,
    make_rejects,
    preview,
    select_records,
)
from connectors.formats.options import FormatOptions
from connectors.formats.values.casts import conform
from connectors.formats.wrapping import WrappingFormat
from engine.types import (
    PARTITION,
    POSITION,
    Format,
    Records,
    Rejects,
    Schema,
    UserError,
    Values,
    nearest,
)

CONTENTS: dict[str, tuple[str, pl.DataType]] = {
    "images": ("image", pl.Binary()),
    "documents": ("text", pl.String()),
}
"""Format -> the column of a file's content, and its type."""
PATH, LABEL = "path", "label"
MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte order mark -> encoding, for text that is not UTF-8."""


class FileContent(Format):
    """Decodes whole files. A record is a file, its key the path. A file the source could not
    read is rejected with the source's reason.

    Images and documents have the columns ``image`` (bytes) or ``text`` (UTF-8, its byte order mark
    taken off; bytes where declared so), ``path``, and, where it is declared, ``label``: the name of
    the folder the file lies in, in any type. Files of another format have that format's columns.

    Args:
        kind: images or documents; or what the files hold, by `inner`.
        inner: decodes the content of a file.
    """

    def __init__(self, format: str, inner: Format | None = None) -> None:
        self._kind = format
        self._inner = inner
        self._content, self._type = CONTENTS.get(format, ("", pl.Binary()))

    def schema(self, declared: Schema) -> Schema | None:
        """Return the columns; content and path unless declared. Raises: UserError for any other."""
        if self._inner is not None:
            return self._inner.schema(declared)
        available: Schema = {self._content: self._type, PATH: pl.String(), LABEL: pl.String()}
        named = {c: dtype for c, dtype in declared.items() if c != "*"}
        for column, dtype in named.items():
            if column not in available:
                raise UserError(
                    f"[source.schema] names column '{column}', which {self._kind} do not have: "
                    f"expected {', '.join(available)}.{nearest(column, available)}"
                )
            if column == self._content and dtype not in (self._type, pl.Binary()):
                raise UserError(
                    f"[source.schema] column '{column}' of {self._kind} is "
                    f"{'bytes' if self._type == pl.Binary() else 'string or bytes'}, not a "
                    f"{str(dtype).lower()}."
                )
        if not declared:
            return {self._content: self._type, PATH: pl.String()}
        rest = declared.get("*")
        return named if rest is None else {c: named.get(c, available[c]) for c in available}

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Decode every readable file; a text that is not UTF-8 is rejected."""
        records, rejects = without_unread(records)
        if self._inner is not None:
            frame, more = self._inner.decode(records, schema)
            return frame, [*rejects, *more]
        if schema.get(self._content) == pl.String():
            records, bad = _only_utf8(records)
            rejects += bad
        frame, more = conform(self._columns(records, schema), records, schema)
        return frame, [*rejects, *more]

    def interrupt(self) -> None:
        if self._inner is not None:
            self._inner.interrupt()

    def resume(self) -> None:
        if self._inner is not None:
            self._inner.resume()

    def _columns(self, records: Records, schema: Schema) -> pl.DataFrame:
        values = records.values
        assert isinstance(values, Values)
        columns = {}
        if self._content in schema:
            content = binary(values)
            if schema[self._content] == pl.String():
                content = content.cast(pl.String).str.strip_prefix("\ufeff")
            columns[self._content] = content
        if PATH in schema or LABEL in schema:
            paths = _paths(records)
            columns[PATH] = paths
            columns[LABEL] = paths.str.extract(r"([^/]+)/+[^/]*$")
        return pl.DataFrame([columns[c].alias(c) for c in schema])


class UnreadFiles(WrappingFormat):
    """Rejects what a source could not read of a file, with the source's reason, and passes the
    other rows on."""

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        read, rejects = without_unread(records)
        if not rejects:
            return self.inner.decode(records, schema)
        if not len(read):
            return pl.DataFrame(
                schema={PARTITION: pl.String, POSITION: pl.Int64, **schema}
            ), rejects
        frame, more = self.inner.decode(read, schema)
        return frame, [*rejects, *more]


def without_unread(records: Records) -> tuple[Records, list[Rejects]]:
    """Return the records with content, and the others as rejects."""
    values = records.values
    if not isinstance(values, Values) or values.null is None or not values.null.any():
        return records, []
    unread = _unread(records, np.flatnonzero(values.null))
    return select_records(records, np.flatnonzero(~values.null)), unread


def _unread(records: Records, at: NDArray[np.int64]) -> list[Rejects]:
    """Return what the source reports about each unread file, by reason."""
    value = _paths(records).gather(at)
    why = pl.Series([None] * len(at), dtype=pl.String)
    if records.headers is not None:
        why = decode_utf8(binary(records.headers).gather(at))
    problems = pl.DataFrame(
        {
            "at": at,
            "value": value,
            "reason": why.str.extract(r"^(\w+): ").fill_null("unreadable"),
            "detail": why.str.replace(r"^\w+: ", "").fill_null("The file could not be read."),
        }
    )
    return [
        make_rejects(
            records, part["at"].to_numpy(), part["reason"][0], part["detail"], part["value"]
        )
        for part in problems.partition_by("reason", maintain_order=True)
    ]


def _only_utf8(records: Records) -> tuple[Records, list[Rejects]]:
    assert isinstance(records.values, Values)
    good = is_utf8(records.values)
    if good.all():
        return records, []
    bad = np.flatnonzero(~good)
    raw = binary(records.values).gather(bad)
    other = [MARKS.get(head or b"") for head in raw.bin.slice(0, 2)]
    detail = [NOT_UTF8 if o is None else f"Expected UTF-8, got {o}: convert it." for o in other]
    reject = make_rejects(records, bad, BAD_UTF8, pl.Series(detail), preview(raw))
    return select_records(records, np.flatnonzero(good)), [reject]


def _paths(records: Records) -> pl.Series:
    if records.keys is None:
        return pl.Series([None] * len(records), dtype=pl.String)
    return decode_utf8(binary(records.keys))


def images(options: FormatOptions) -> FileContent:
    """Return the format; called by `connectors.formats.registry`."""
    return FileContent("images")


def documents(options: FormatOptions) -> FileContent:
    """Return the format; called by `connectors.formats.registry`."""
    return FileContent("documents")


__all__ = ["FileContent", "UnreadFiles"]
