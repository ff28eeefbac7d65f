"""Avro object container files: the header, where the blocks are, and their codecs.

The layout is that of the Avro specification, 1.12, "Object Container Files": a header with the
schema and a sync marker, then blocks: how many records, how many bytes, the packed records, and the
sync marker again.
"""

from __future__ import annotations

import bz2
import lzma
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import snappy
import zstandard
from numpy.typing import NDArray

from connectors.formats.kernels.datums import (
    AVRO_MAGIC,
    BAD_HEAD,
    BAD_SYNC,
    CUT,
    DONE,
    MORE,
    SYNC,
    find_blocks,
)
from engine.types.arrays import Ints

MOST_BYTES = 256 << 20
"""The most bytes of a block, as it is and unpacked: it is in memory as a whole. Writers make blocks
of 16 KiB to a few MiB."""
MOST_HEADER_BYTES = 64 << 20
"""The bytes in which a header must end."""
WINDOW = 4_096
"""The bytes read to find a block, and those of its neighbours that are as near."""
PACKING = 15
"""Records may take so many bits less when they are packed."""
PIECE = 4_096
"""The bytes unpacked together where a codec takes no limit: they stand for at most 128 MiB."""
SNAPPY_RATIO = 64
"""A byte of Snappy stands for at most as many: a copy of 64 bytes has more than one."""


class CutShort(pa.ArrowInvalid):  # type: ignore[misc]
    """A file that ends before its header does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of a file.

    Attributes:
        schema: as JSON text.
        codec: the name of the codec of its blocks.
        sync: the sync marker, shape (16,).
        end: where the sync marker begins.
    """

    schema: str
    codec: str
    sync: NDArray[np.uint8]
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockIndex:
    """Where the b whole blocks of a file are.

    Attributes:
        offsets: of their packed records in the file, shape (b,).
        sizes: in bytes, as packed, shape (b,).
        rows: shape (b,).
        damage: a clause that says why there are not more; "" at the end of the file.
        cut: whether that is because the file ends within a block.
    """

    offsets: Ints
    sizes: Ints
    rows: Ints
    damage: str = ""
    cut: bool = False


def read_header(file: BinaryIO) -> Header:
    """Return the header of a file.

    Raises: CutShort if the file ends before; ArrowInvalid if it has none, or a damaged one.
    """
    end, size = os.fstat(file.fileno()).st_size, WINDOW
    while True:
        head = os.pread(file.fileno(), size, 0)
        if not head.startswith(AVRO_MAGIC[: len(head)]):
            raise pa.ArrowInvalid("expected an Avro container, which begins with 'Obj' and byte 1")
        try:
            return _header(head)
        except IndexError:
            if size >= end:
                raise CutShort("its header is cut short") from None
            if size >= MOST_HEADER_BYTES:
                raise pa.ArrowInvalid(
                    f"its header does not end within {MOST_HEADER_BYTES >> 20} MiB"
                ) from None
            size *= 4


def has_header(path: Path) -> bool:
    """Return whether a file that grows has its whole header, or begins with none."""
    try:
        with path.open("rb", buffering=0) as file:
            read_header(file)
    except CutShort:
        return False
    except (OSError, pa.ArrowException):  # its reader reports it
        return True
    return True


def _header(head: bytes) -> Header:
    """Raises: IndexError if the bytes end before the header; ArrowInvalid for a damaged one."""
    at, metadata = len(AVRO_MAGIC), dict[bytes, bytes]()
    while True:
        count, at = _number(head, at)
        if count == 0:
            break
        if count < 0:  # the size of the entries in bytes follows
            count, (_, at) = -count, _number(head, at)
        for _ in range(count):
            key, at = _piece(head, at)
            metadata[key], at = _piece(head, at)
    sync = head[at : at + SYNC]
    if len(sync) < SYNC:
        raise IndexError
    if b"avro.schema" not in metadata:
        raise pa.ArrowInvalid("its header has no schema")
    codec = metadata.get(b"avro.codec", b"null") or b"null"
    try:
        return Header(
            schema=metadata[b"avro.schema"].decode(),
            codec=codec.decode(),
            sync=np.frombuffer(sync, np.uint8),
            end=at,
        )
    except UnicodeDecodeError:
        raise pa.ArrowInvalid("its header is not UTF-8") from None


def _number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        if shift > 63:
            raise pa.ArrowInvalid("its header is damaged")


def _piece(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _number(data, at)
    if size < 0:
        raise pa.ArrowInvalid("its header is damaged")
    if at + size > len(data):
        raise IndexError
    return data[at : at + size], at + size


def read_index(file: BinaryIO, header: Header) -> BlockIndex:
    """Find the blocks of a file by what stands between them; they are not read.

    Blocks are read, not mapped: a file that is cut while it is read would end the process.
    """
    base, end = header.end, os.fstat(file.fileno()).st_size
    ratio = 0 if header.codec == "null" else PACKING
    parts: list[Ints] = []
    room = np.zeros((3, WINDOW // SYNC), np.int64)
    code = MORE
    while code == MORE:
        window = np.frombuffer(os.pread(file.fileno(), WINDOW, base), np.uint8)
        if len(window) < min(WINDOW, end - base):  # it is being cut
            code = CUT
            break
        n, at, code = find_blocks(window, base, end, header.sync, ratio, *room)
        parts.append(room[:, :n].copy())
        base += int(at)
    blocks = np.concatenate(parts, axis=1) if parts else room[:, :0]
    found, large = blocks.shape[1], np.flatnonzero(blocks[1] > MOST_BYTES)
    last, after = f"block {found:,}" if found else "its header", f"block {found + 1:,}"
    damage = {
        DONE: "",
        BAD_SYNC: f"{last} does not end in the sync marker of the file, at byte {base:,}",
        BAD_HEAD: f"{after}, at byte {base + SYNC:,}, has a count or a size that cannot be",
        CUT: f"{after}, at byte {base + SYNC:,}, is cut short",
    }[int(code)]
    if code == BAD_SYNC:
        found = max(0, found - 1)
    if large.size:
        found = int(large[0])
        code, damage = BAD_HEAD, _too_large(found)
    offsets, sizes, rows = blocks[:, :found]
    return BlockIndex(offsets=offsets, sizes=sizes, rows=rows, damage=damage, cut=code == CUT)


def _too_large(block: int) -> str:
    return f"block {block + 1:,} has more than {MOST_BYTES >> 20} MiB: write smaller blocks"


def read_blocks(
    file: BinaryIO, header: Header, index: BlockIndex, first: int, stop: int
) -> tuple[NDArray[np.uint8], Ints, Ints]:
    """Return the unpacked records of blocks `first` ... `stop` - 1 in one buffer, and where each
    block starts and stops in it, shape (stop - first,).

    Raises: ArrowInvalid for a block that is not as it was, cannot be unpacked, or is too large.
    """
    base = int(index.offsets[first])
    end = int(index.offsets[stop - 1] + index.sizes[stop - 1]) + SYNC
    raw = os.pread(file.fileno(), end - base, base)
    starts = index.offsets[first:stop] - base
    stops = starts + index.sizes[first:stop]
    sync, unpack = header.sync.tobytes(), CODECS[header.codec]
    parts = []
    for block, (a, b) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True), first):
        if raw[b : b + SYNC] != sync:
            raise pa.ArrowInvalid(f"block {block + 1:,} has changed while it was read")
        if unpack is not None:
            parts.append(_unpacked(unpack, raw[a:b], header.codec, block))
    if unpack is not None:
        bounds = np.cumsum([0, *map(len, parts)]).astype(np.int64)
        raw, starts, stops = b"".join(parts), bounds[:-1], bounds[1:]
    return np.frombuffer(raw, np.uint8), starts, stops


def _unpacked(unpack: Callable[[bytes], bytes], packed: bytes, codec: str, block: int) -> bytes:
    try:
        out = unpack(packed)
    except Exception as error:  # each library has exceptions of its own
        raise pa.ArrowInvalid(
            f"block {block + 1:,} cannot be unpacked by codec '{codec}'"
        ) from error
    if len(out) > MOST_BYTES:
        raise pa.ArrowInvalid(_too_large(block))
    return out


def _ended(decompressor: Any, packed: bytes) -> bytes:
    """Unpack by a decompressor of Python's; a byte more than is allowed where there are more."""
    out: bytes = decompressor.decompress(packed, MOST_BYTES + 1)
    if len(out) <= MOST_BYTES and not decompressor.eof:
        raise EOFError
    return out


def _deflate(packed: bytes) -> bytes:
    return _ended(zlib.decompressobj(-zlib.MAX_WBITS), packed)


def _bzip2(packed: bytes) -> bytes:
    return _ended(bz2.BZ2Decompressor(), packed)


def _xz(packed: bytes) -> bytes:
    return _ended(lzma.LZMADecompressor(memlimit=MOST_BYTES), packed)


def _zstandard(packed: bytes) -> bytes:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MOST_BYTES).decompressobj()
    parts, total = [], 0
    for at in range(0, len(packed), PIECE):
        parts.append(decompressor.decompress(packed[at : at + PIECE]))
        total += len(parts[-1])
        if total > MOST_BYTES or decompressor.eof:
            return b"".join(parts)
    raise EOFError


def _snappy(packed: bytes) -> bytes:
    body, checksum = packed[:-4], packed[-4:]
    claimed = shift = 0
    for byte in body[:5]:
        claimed |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if claimed > min(MOST_BYTES, SNAPPY_RATIO * len(body)):
        raise ValueError
    out: bytes = snappy.uncompress(body)
    if zlib.crc32(out) != int.from_bytes(checksum, "big"):
        raise ValueError
    return out


CODECS: dict[str, Callable[[bytes], bytes] | None] = {
    "null": None, "deflate": _deflate, "snappy": _snappy, "zstandard": _zstandard,
    "bzip2": _bzip2, "xz": _xz,
}  # fmt: skip
"""Name of a codec -> what unpacks a block: the specification's, all of them."""


__all__ = [
    "CODECS",
    "MOST_BYTES",
    "BlockIndex",
    "CutShort",
    "Header",
    "has_header",
    "read_blocks",
    "read_header",
    "read_index",
]
