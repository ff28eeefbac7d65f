"""Shared by formats: raw values as series, reserved columns, and rejects."""

from __future__ import annotations

import codecs
import io
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.kernels.swar import compiled, copy
from engine.types import PARTITION, POSITION, Records, Rejects, Values, bytes_as_hex
from engine.types.arrays import read_only

STAGE = "decode"
BROKEN = "broken"
BAD_UTF8 = "bad_utf8"
WRONG_TYPE = "wrong_type"
OUT_OF_RANGE = "out_of_range"
TOO_LARGE = "too_large"
PREVIEW_BYTES = 2_000
"""The bytes of a rejected value in its dead letter; its position leads to the rest."""
PACKED = (b"\x1f\x8b", b"x\x01", b"x^", b"x\x9c", b"x\xda", b"(\xb5/\xfd")
"""The first bytes of gzip, zlib and zstd: polars decompresses input that begins so."""
NOT_UTF8 = (
    "Expected UTF-8, got bytes that are none: convert them, or set [source] encoding, for instance "
    '"latin-1", where they are files.'
)


def parser_input(data: NDArray[np.uint8]) -> tuple[io.BytesIO, int]:
    """Return bytes for one of polars' parsers, and how many lines to skip: text that happens to
    begin like compressed data gets a blank line before it, and is read unchanged."""
    begin = data[:4].tobytes()
    blank = begin.startswith(PACKED)
    return io.BytesIO(b"\n" + data.tobytes() if blank else data.data), int(blank)


def with_position_columns(
    frame: pl.DataFrame, records: Records, at: NDArray[np.int64] | None = None
) -> pl.DataFrame:
    """Return the frame with its reserved columns; `at`: the records of its rows, None for all."""
    positions = records.positions if at is None else records.positions[at]
    partition = pl.Series(PARTITION, [records.partition]).new_from_index(0, len(positions))
    return pl.DataFrame([partition, pl.Series(POSITION, positions)]).hstack(frame)


def make_rejects(
    records: Records,
    at: NDArray[np.int64],
    reason: str,
    detail: str | pl.Series,
    value: pl.Series | None = None,
) -> Rejects:
    """Return records `at` as rejects of stage ``decode``.

    Args:
        detail: a sentence for all, or one for each, shape (len(at),).
        value: rows as text, shape (len(at),); None shows the raw bytes.
    """
    if isinstance(detail, str):
        detail = pl.repeat(detail, len(at), dtype=pl.String, eager=True)
    if value is None:
        assert isinstance(records.values, Values)
        value = preview(binary(records.values).gather(at))
    frame = pl.DataFrame([detail.alias("detail"), value.alias("value")])
    return Rejects(stage=STAGE, reason=reason, rows=with_position_columns(frame, records, at))


def binary(values: Values) -> pl.Series:
    """Return the values as a Binary series, shape (n,), sharing the buffer."""
    buffers = [None, pa.py_buffer(values.bounds), pa.py_buffer(values.data)]
    array = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(values), buffers)
    series = pl.from_arrow(array)
    assert isinstance(series, pl.Series)
    return series


def values(series: pl.Series) -> Values:
    """Return text or bytes as values, shape (n,); null stays null."""
    array = series.cast(pl.Binary).to_arrow(compat_level=pl.CompatLevel.oldest())
    if not len(array):
        return Values(data=np.empty(0, np.uint8), bounds=np.zeros(1, np.int64))
    _, bounds, data = array.buffers()
    return Values(
        data=np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8),
        bounds=np.frombuffer(bounds, np.int64)[array.offset : array.offset + len(array) + 1],
        null=series.is_null().to_numpy() if series.null_count() else None,
    )


def preview(raw: pl.Series) -> pl.Series:
    """Return bytes as text for a dead letter, without the line end; other than UTF-8 as
    ``\\xff``."""
    head = raw.bin.slice(0, PREVIEW_BYTES)
    try:
        text = head.cast(pl.String)
    except PolarsError:
        text = pl.Series(
            raw.name,
            [None if v is None else v.decode("utf-8", "backslashreplace") for v in head],
            dtype=pl.String,
        )
    return text.str.strip_chars_end("\r\n")


def as_json(rows: pl.DataFrame) -> pl.Series:
    """Return each row as a JSON object; bytes as in `preview`, those inside lists and objects as
    hexadecimal digits."""
    rows = rows.with_columns(preview(s) for s in rows if s.dtype == pl.Binary)
    columns = (bytes_as_hex(pl.col(c), dtype).alias(c) for c, dtype in rows.schema.items())
    return rows.select(pl.struct(columns).struct.json_encode()).to_series()


def decode_utf8(raw: pl.Series) -> pl.Series:
    """Return bytes as text, null if they are not UTF-8."""
    try:
        return raw.cast(pl.String)
    except PolarsError:
        gather = raw.fill_null(b"")
        bounds = np.zeros(len(raw) + 1, np.int64)
        np.cumsum(gather.bin.size().to_numpy(), out=bounds[1:])
        data = np.frombuffer(b"".join(gather.to_list()), np.uint8)
        good = pl.Series(is_utf8(Values(data=data, bounds=bounds)))
        blank = pl.Series([b""]).new_from_index(0, len(raw))  # what is null is checked all the same
        text = gather.zip_with(good, blank).cast(pl.String)
        return text.set(~good | raw.is_null(), None).alias(raw.name)


def is_utf8(values: Values) -> NDArray[np.bool_]:
    """Return which values are UTF-8, shape (n,). The loops run once for each that is not.

    Neighbours are checked together, between values that begin in the middle of a character: the
    end of one and the beginning of the next are no character of both.
    """
    good = np.ones(len(values), np.bool_)
    starts, ends = values.bounds[:-1], values.bounds[1:]
    filled = np.flatnonzero(starts < ends)
    middle = filled[values.data[starts[filled]] & 0xC0 == 0x80]
    good[middle] = False
    begins, stops = [values.bounds[0], *ends[middle]], [*starts[middle], values.bounds[-1]]
    for begin, stop in zip(begins, stops, strict=True):
        _check_utf8(values, int(begin), int(stop), good)
    return good


def _check_utf8(values: Values, at: int, stop: int, good: NDArray[np.bool_]) -> None:
    """Find the values between two places that are not UTF-8."""
    data, ends = values.data.data, values.bounds[1:]
    while at < stop:
        try:
            codecs.utf_8_decode(data[at:stop], "strict", True)
            break
        except UnicodeDecodeError as error:
            row = int(np.searchsorted(ends, at + error.start, "right"))
            good[row] = False
            at = int(ends[row])


def take(values: Values, at: NDArray[np.int64]) -> Values:
    """Return some of the values, copied together."""
    starts = values.bounds[at]
    null = None if values.null is None else values.null[at]
    gathered = gather(values.data, starts, values.bounds[at + 1] - starts)
    return replace(gathered, null=null, tail=values.tail)


def gather(data: NDArray[np.uint8], starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Values:
    """Return pieces of a buffer side by side, `sizes` bytes from each of `starts`, shape (n,); a
    negative size is null."""
    return gather_all([(data, starts, sizes)])


def gather_all(
    parts: Sequence[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]],
    *,
    newline: bool = False,
) -> Values:
    """Return pieces of several buffers side by side, see `gather`.

    Args:
        parts: buffer, starts, sizes of each.
        newline: put one behind each piece.
    """
    sizes = np.concatenate([part[2] for part in parts])
    bounds = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(np.maximum(sizes, 0) + int(newline), out=bounds[1:])
    out = np.empty(int(bounds[-1]), np.uint8)
    done = 0
    for data, starts, _ in parts:
        n = len(starts)
        _copy(read_only(data), read_only(starts), bounds[done : done + n + 1], int(newline), out)
        done += n
    return Values(data=out, bounds=bounds, null=sizes < 0, tail=int(newline))


@compiled
def _copy(data, starts, bounds, newline, out):  # type: ignore[no-untyped-def]
    for i in range(len(starts)):
        size = bounds[i + 1] - bounds[i] - newline
        copy(data, starts[i], size, out, bounds[i])
        if newline:
            out[bounds[i] + size] = 10


def select_records(records: Records, at: NDArray[np.int64]) -> Records:
    """Return some of the records, copied together, as a format takes them: without headers,
    timestamps and origins."""
    frame = records.values
    return replace(
        records,
        positions=records.positions[at],
        values=take(frame, at) if isinstance(frame, Values) else frame[at],
        keys=None if records.keys is None else take(records.keys, at),
        headers=None,
        timestamps=None,
        origins=None,
    )


__all__ = [
    "BAD_UTF8",
    "BROKEN",
    "NOT_UTF8",
    "OUT_OF_RANGE",
    "TOO_LARGE",
    "WRONG_TYPE",
    "as_json",
    "binary",
    "decode_utf8",
    "gather",
    "gather_all",
    "is_utf8",
    "make_rejects",
    "parser_input",
    "preview",
    "select_records",
    "take",
    "values",
    "with_position_columns",
]  # fmt: skip
