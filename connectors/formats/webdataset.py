"""Decodes samples of a WebDataset shard: columns by extension, and by path within their JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from connectors.formats.kernels.paths import parse_path
from connectors.formats.kernels.rows import BAD_UTF8, NOT_UTF8, decode_utf8, make_rejects
from connectors.formats.ndjson import Ndjson
from connectors.formats.options import FormatOptions
from connectors.formats.values.casts import conform
from connectors.formats.values.columns import readable_rows
from engine.types import Format, Records, Rejects, Schema, UserError, Values, nearest

KEY = "__key__"
"""The column of a sample's name: its members' path up to the first dot of the last part."""
EXTENSION_TYPES: Schema = {
    KEY: pl.String(),
    **dict.fromkeys(("cls", "cls2", "class", "count", "index", "inx", "id"), pl.Int64()),
    **dict.fromkeys(("txt", "text", "transcript", "json"), pl.String()),
}
"""The types of undeclared columns, as WebDataset decodes them; others are bytes."""
MemberPath = tuple[tuple[str, ...], str]
"""Extensions, of which the first existing one counts, and the path in their JSON, or nothing."""


class WebDatasetFormat(Format):
    """See `engine.types.Format`. Records are frames of bytes, a column an extension (see
    `connectors.files.readers.tar`). A column is what lies under the extension of its name: bytes
    as they are, anything else as text (UTF-8) that is cast; null where the sample has none.

    Args:
        paths: column -> its extension, or several, ``jpg;png``, of which the first that is there
            counts; or a place in JSON, ``json.size.width``.
    """

    def __init__(self, paths: Mapping[str, str] | None = None) -> None:
        """Raises: UserError for a text that is no path."""
        self._paths = dict(paths or {})
        for column in self._paths:
            self.place(column)

    def place(self, column: str) -> MemberPath:
        """Return where a column is. Raises: UserError for an invalid path."""
        extensions, rest = [], ""
        for path in self._paths.get(column, column).split(";"):
            parts = path.lower().split(".")
            if column in self._paths and "json" in parts[:-1]:
                head = parts.index("json") + 1
                rest = ".".join(path.split(".")[head:])
                parse_path(rest, column)
                parts = parts[:head] if rest else [""]
            if not all(parts):
                raise UserError(
                    f"[source] paths: '{path}' of column '{column}' is no path: expected an "
                    "extension, as 'jpg' or 'seg.png', or a place in JSON, as 'json.size.width'."
                )
            extensions.append(".".join(parts))
        return tuple(extensions), rest

    def extensions(self, columns: Iterable[str]) -> list[str]:
        """The extensions that the columns are made of."""
        names = [e for c in columns if not self._is_key(c) for e in self.place(c)[0]]
        return list(dict.fromkeys(names))

    def schema(self, declared: Schema) -> Schema:
        """Return the declared columns. Raises: UserError if they and the paths do not fit
        together."""
        for column in self._paths:
            if column not in declared:
                raise UserError(
                    f"[source] paths names column '{column}', which [source.schema] does not."
                    f"{nearest(column, declared)}"
                )
        return declared

    def kinds(self, extensions: Iterable[str]) -> Schema:
        """Return the columns of samples with these extensions, if none are declared."""
        names = dict.fromkeys([KEY, *extensions, *self._paths])
        return {
            c: EXTENSION_TYPES.get(c, pl.String() if self._in_json(c) else pl.Binary())
            for c in names
        }

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Decode every readable sample whose text is UTF-8 and whose JSON is valid."""
        assert isinstance(records.values, pl.DataFrame)
        frame, at, rejects = readable_rows(records.values, records)
        at = np.arange(len(records)) if at is None else at
        good = np.ones(frame.height, np.bool_)
        columns: dict[str, pl.Series] = {}
        nested: dict[tuple[str, ...], dict[str, str]] = {}
        for column, dtype in schema.items():
            extensions, rest = self.place(column)
            raw = frame.get_column(KEY) if self._is_key(column) else _first(frame, extensions)
            if rest:
                nested.setdefault(extensions, {})[column] = rest
            elif dtype == pl.Binary() or self._is_key(column):
                columns[column] = raw
            else:
                columns[column] = decode_utf8(raw)
                lost = (raw.is_not_null() & columns[column].is_null()).to_numpy() & good
                if lost.any():
                    rows = np.flatnonzero(lost)
                    shown = frame.get_column(KEY).gather(rows)
                    rejects.append(make_rejects(records, at[rows], BAD_UTF8, NOT_UTF8, shown))
                    good &= ~lost
        for extensions, places in nested.items():
            rows = np.flatnonzero(_first(frame, extensions).is_not_null().to_numpy() & good)
            raw = _first(frame, extensions).gather(rows)
            part = _as_records(raw, records, at[rows])
            inner, more = Ndjson(places).decode(part, {c: schema[c] for c in places})
            rejects += more
            where = rows[np.searchsorted(part.positions, inner.get_column("_position").to_numpy())]
            good[rows] = False
            good[where] = True
            index = np.full(frame.height, -1)
            index[where] = np.arange(inner.height)
            wanted = pl.Series(index).replace(-1, None)
            for column in places:
                columns[column] = inner.get_column(column).gather(wanted)
        made_frame = pl.DataFrame([columns[c].alias(c) for c in schema]).filter(pl.Series(good))
        done, more = conform(made_frame, records, schema, at[good])
        return done, [*rejects, *more]

    def _is_key(self, column: str) -> bool:
        return column == KEY and column not in self._paths

    def _in_json(self, column: str) -> bool:
        return bool(self.place(column)[1])


def _first(frame: pl.DataFrame, extensions: Iterable[str]) -> pl.Series:
    """Return the first of the extensions that a sample has."""
    columns = [pl.col(e) for e in extensions if e in frame.columns]
    if not columns:
        return pl.Series([None], dtype=pl.Binary).new_from_index(0, frame.height)
    return frame.select(pl.coalesce(columns)).to_series()


def _as_records(raw: pl.Series, records: Records, at: NDArray[np.int64]) -> Records:
    parts = raw.to_list()
    return Records(
        partition=records.partition,
        positions=records.positions[at],
        next=records.next,
        values=Values(
            data=np.frombuffer(b"".join(parts), np.uint8),
            bounds=np.cumsum([0, *map(len, parts)]).astype(np.int64),
        ),
        arrived=records.arrived,
    )


def make(options: FormatOptions) -> WebDatasetFormat:
    """Return the format; called by `connectors.formats.registry`."""
    return WebDatasetFormat(options.paths)


__all__ = ["KEY", "WebDatasetFormat"]
