"""Values no format can decode: tombstones, and text inside a registry envelope."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from connectors.formats.kernels.rows import make_rejects, select_records
from connectors.formats.text import RawText
from connectors.formats.wrapping import WrappingFormat
from engine.types import Format, Records, Rejects, Schema, Values
from engine.types.arrays import Ints

TOMBSTONE = "tombstone"
REGISTRY_FRAME = "registry_frame"
FRAME_BYTES = 5
"""Bytes of a schema registry's frame: 0, and the schema's number."""
BOM = "byte_order_mark"
COMPRESSED = "compressed"
ENVELOPES = {
    b"\x00": (
        REGISTRY_FRAME,
        "the frame of a schema registry (a byte 0 and the number of a schema)",
    ),
    b"\xef\xbb\xbf": (BOM, "a byte order mark (UTF-8)"),
    b"\xff\xfe": (BOM, "a byte order mark (UTF-16)"),
    b"\xfe\xff": (BOM, "a byte order mark (UTF-16)"),
    b"\x1f\x8b": (COMPRESSED, "what gzip makes"),
    b"\x28\xb5\x2f\xfd": (COMPRESSED, "what zstd makes"),
}
"""How values begin that are no plain text, what that is called, and in words."""
ENVELOPE_BYTES = np.zeros(256, np.bool_)
ENVELOPE_BYTES[[begin[0] for begin in ENVELOPES]] = True


class ValueFilter(WrappingFormat):
    """Wraps a format and rejects values that no format can decode.

    Args:
        inner: for all others.
        text: whether it reads text: a value that begins with a schema registry's frame, a byte
            order mark, or as a compressed file does, is rejected under that name.
    """

    def __init__(self, inner: Format, *, text: bool) -> None:
        super().__init__(inner)
        self._text = text

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Decode the non-null, unframed values with the inner format."""
        values = records.values
        assert isinstance(values, Values)
        rejects = []
        odd = np.zeros(len(values), np.bool_)
        if values.null is not None and values.null.any():
            odd |= values.null
            detail = "Expected a value, got none (null): its key was deleted."
            rejects.append(make_rejects(records, np.flatnonzero(odd), TOMBSTONE, detail))
        if self._text and not (isinstance(self.inner, RawText) and pl.Binary in schema.values()):
            for begin, at in _enveloped(values, odd):
                odd[at] = True
                reason, words = ENVELOPES[begin]
                rejects.append(
                    make_rejects(records, at, reason, _detail(values, at, reason, words))
                )
        if not odd.any():
            return self.inner.decode(records, schema)
        frame, others = self.inner.decode(select_records(records, np.flatnonzero(~odd)), schema)
        return frame, [*rejects, *others]


def _enveloped(values: Values, odd: NDArray[np.bool_]) -> Iterator[tuple[bytes, Ints]]:
    """How values begin that are in an envelope, and which these are; `odd` ones are left out."""
    if not len(values.data):
        return
    starts, sizes = values.bounds[:-1], np.diff(values.bounds) - values.tail
    suspect = ENVELOPE_BYTES[values.data[np.minimum(starts, len(values.data) - 1)]]
    suspects = np.flatnonzero(suspect & ~odd)
    for begin in ENVELOPES if len(suspects) else ():
        at = suspects[sizes[suspects] >= (FRAME_BYTES if begin == b"\x00" else len(begin))]
        for i, byte in enumerate(begin):
            at = at[values.data[starts[at] + i] == byte]
        if len(at):
            yield begin, at


def _detail(values: Values, at: Ints, reason: str, words: str) -> str | pl.Series:
    if reason != REGISTRY_FRAME:
        return f"Expected plain text, got {words} at its start: let the producer write it without."
    number = np.zeros(len(at), np.int64)
    for i in range(1, FRAME_BYTES):
        number = number << 8 | values.data[values.bounds[at] + i]
    return pl.select(
        pl.format(
            "Expected plain text, got {}, here {}: let the producer write plain values, or read "
            "them with a format of your own.",
            pl.lit(words),
            pl.lit(pl.Series(number)),
        )
    ).to_series()


__all__ = ["ValueFilter"]
