"""Rows that are whole files: an image or a document, where it lies, and its folder's name."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from connectors.formats.values.casts import conform
from connectors.formats.custom import Describing
from connectors.formats.kernels.rows import (
    BAD_UTF8,
    NOT_UTF8,
    binary,
    is_utf8,
    rejected,
    shown,
    some,
    texts,
)
from engine.types import Format, Records, Rejects, Schema, UserError, Values, nearest

CONTENTS: dict[str, tuple[str, pl.DataType]] = {
    "images": ("image", pl.Binary()),
    "documents": ("text", pl.String()),
}
"""Format -> the column of a file's content, and its type."""
PATH, LABEL = "path", "label"
MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
"""Byte order marks of what is no UTF-8."""


class Whole:
    """See `engine.types.Format`. A record is a file, its key the path. What the source could not
    read is rejected for the reason that it gives.

    Images and documents have the columns ``image`` (bytes) or ``text`` (UTF-8, its byte order mark
    taken off; bytes where declared so), ``path``, and, where it is declared, ``label``: the name of
    the folder the file lies in, in any type. Files of another format have that format's columns.

    Args:
        kind: images or documents; or what the files hold, by `inner`.
        inner: decodes the content of a file.
    """

    def __init__(self, kind: str, inner: Format | None = None) -> None:
        self._kind = kind
        self._inner = inner
        self._content, self._type = CONTENTS.get(kind, ("", pl.Binary()))

    def schema(self, declared: Schema) -> Schema:
        """The columns; content and path unless declared. Raises: UserError for any other."""
        if self._inner is not None:
            inner = self._inner
            return inner.schema(declared) if isinstance(inner, Describing) else declared
        there: Schema = {self._content: self._type, PATH: pl.String(), LABEL: pl.String()}
        named = {c: kind for c, kind in declared.items() if c != "*"}
        for column, kind in named.items():
            if column not in there:
                raise UserError(
                    f"[source.schema] names column '{column}', which {self._kind} do not have: "
                    f"expected {', '.join(there)}.{nearest(column, there)}"
                )
            if column == self._content and kind not in (self._type, pl.Binary()):
                raise UserError(
                    f"[source.schema] column '{column}' of {self._kind} is "
                    f"{'bytes' if self._type == pl.Binary() else 'string or bytes'}, not a "
                    f"{str(kind).lower()}."
                )
        if not declared:
            return {self._content: self._type, PATH: pl.String()}
        rest = declared.get("*")
        return named if rest is None else {c: named.get(c, there[c]) for c in there}

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Every file that could be read; a text that is not UTF-8 is rejected."""
        values = records.values
        assert isinstance(values, Values)
        rejects: list[Rejects] = []
        if values.null is not None and values.null.any():
            rejects += _unread(records, np.flatnonzero(values.null))
            records = some(records, np.flatnonzero(~values.null))
        if self._inner is not None:
            frame, more = self._inner.decode(records, schema)
            return frame, [*rejects, *more]
        if schema.get(self._content) == pl.String():
            records, bad = _only_utf8(records)
            rejects += bad
        frame, more = conform(self._columns(records, schema), records, schema)
        return frame, [*rejects, *more]

    def _columns(self, records: Records, schema: Schema) -> pl.DataFrame:
        values = records.values
        assert isinstance(values, Values)
        made = {}
        if self._content in schema:
            content = binary(values)
            if schema[self._content] == pl.String():
                content = content.cast(pl.String).str.strip_prefix("\ufeff")
            made[self._content] = content
        if PATH in schema or LABEL in schema:
            paths = _paths(records)
            made[PATH] = paths
            made[LABEL] = paths.str.extract(r"([^/]+)/+[^/]*$")
        return pl.DataFrame([made[c].alias(c) for c in schema])


def _unread(records: Records, at: NDArray[np.int64]) -> list[Rejects]:
    """What the source says of each, by reason."""
    value = _paths(records).gather(at)
    why = pl.Series([None] * len(at), dtype=pl.String)
    if records.headers is not None:
        why = texts(binary(records.headers).gather(at))
    told = pl.DataFrame(
        {
            "at": at,
            "value": value,
            "reason": why.str.extract(r"^(\w+): ").fill_null("unreadable"),
            "detail": why.str.replace(r"^\w+: ", "").fill_null("The file could not be read."),
        }
    )
    return [
        rejected(records, part["at"].to_numpy(), part["reason"][0], part["detail"], part["value"])
        for part in told.partition_by("reason", maintain_order=True)
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
    reject = rejected(records, bad, BAD_UTF8, pl.Series(detail), shown(raw))
    return some(records, np.flatnonzero(good)), [reject]


def _paths(records: Records) -> pl.Series:
    if records.keys is None:
        return pl.Series([None] * len(records), dtype=pl.String)
    return texts(binary(records.keys))


__all__ = ["CONTENTS", "Whole"]
