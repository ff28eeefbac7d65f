"""Converts text in a single-byte encoding to UTF-8."""

from __future__ import annotations

import codecs
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from connectors.formats.kernels.recode import recode
from connectors.formats.kernels.rows import is_utf8, values
from engine.types import Records, Values

ASCII = bytes(range(128))
NONE = b"\xff"
"""The replacement for a byte that is not a character: it is not UTF-8 either, so its row is
rejected."""


@dataclass(frozen=True, slots=True, eq=False)
class Transcoder:
    """The UTF-8 of each of 256 bytes.

    Attributes:
        data: one behind the other.
        bounds: where that of each begins and ends, shape (257,).
    """

    data: NDArray[np.uint8]
    bounds: NDArray[np.int64]

    @classmethod
    def of(cls, encoding: str) -> Transcoder | None:
        """Return the transcoder of an encoding; None for UTF-8, which needs none.

        Raises: ValueError for an encoding that is unknown, has several bytes a character, or in
            which ASCII is not ASCII.
        """
        try:
            codec = codecs.lookup(encoding)
        except (LookupError, ValueError):
            raise ValueError("expected the name of an encoding, as latin-1 or cp1252") from None
        if codec.name in ("utf-8", "utf-8-sig"):
            return None
        try:
            pieces = [_utf8(bytes([byte]), encoding) for byte in range(256)]
            several = any(_waits_for_more(bytes([byte]), codec) for byte in range(256))
        except (LookupError, UnicodeError):  # no encoding of texts
            pieces, several = [], True
        if several or b"".join(pieces[:128]) != ASCII:
            raise ValueError(
                "expected UTF-8, or an encoding of one byte a character, as latin-1 or cp1252 "
                "(iconv converts others)"
            )
        sizes = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
        return cls(np.frombuffer(b"".join(pieces), np.uint8), sizes)

    def recoded(self, records: Records) -> Records:
        """Return the same rows in UTF-8, with unchanged positions."""
        assert isinstance(records.values, Values)
        recoded = self._recoded(records.values)
        return records if recoded is records.values else replace(records, values=recoded)

    def recoded_lines(self, lines: pl.Series) -> pl.Series:
        """Return lines, as bytes, in UTF-8; those that are in UTF-8 already stay as they are."""
        at = np.flatnonzero(~is_utf8(values(lines)))
        recoded = self._recoded(values(lines.gather(at)))
        return lines.scatter(at, recoded.take(np.arange(len(at))))

    def _recoded(self, raw: Values) -> Values:
        part = raw.data[raw.bounds[0] : raw.bounds[-1]]
        if not len(part) or part.max() < 128:
            return raw
        sizes = np.diff(self.bounds)[part]
        ends = np.concatenate([[0], np.cumsum(sizes)])
        out = np.empty(int(ends[-1]), np.uint8)
        recode(part, self.data, self.bounds, out)
        return replace(raw, data=out, bounds=ends[raw.bounds - raw.bounds[0]])


def _utf8(byte: bytes, encoding: str) -> bytes:
    try:
        return byte.decode(encoding).encode()
    except UnicodeDecodeError:
        return NONE


def _waits_for_more(byte: bytes, codec: codecs.CodecInfo) -> bool:
    """Return whether this is the first byte of a longer character."""
    decoder = codec.incrementaldecoder("ignore")
    decoder.decode(byte)
    return bool(decoder.getstate()[0])


__all__ = ["Transcoder"]
