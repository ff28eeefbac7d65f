"""Avro container files, byte by byte: any codec, any size of block, any damage."""

from __future__ import annotations

import bz2
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import fastavro
import snappy
import zstandard

SYNC = bytes(range(16))


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def _snappy(data: bytes) -> bytes:
    return bytes(snappy.compress(data)) + zlib.crc32(data).to_bytes(4, "big")


PACKERS: Mapping[str, Callable[[bytes], bytes]] = {
    "null": bytes, "deflate": _deflate, "snappy": _snappy, "zstandard": zstandard.compress,
    "bzip2": bz2.compress, "xz": lzma.compress,
}  # fmt: skip


def varint(number: int) -> bytes:
    """A number as Avro has it, and Thrift's compact protocol: zigzag."""
    rest, out = (number << 1) ^ (number >> 63), bytearray()
    while rest >= 0x80:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*out, rest])


def record(**types: Any) -> dict[str, Any]:
    """The schema of a record with these fields."""
    fields = [{"name": name, "type": kind} for name, kind in types.items()]
    return {"type": "record", "name": "Row", "fields": fields}


def datum(schema: Any, row: Mapping[str, Any]) -> bytes:
    """A record, encoded."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
    return out.getvalue()


def header(schema: Any, codec: str = "null") -> bytes:
    """The header of a file, its sync marker included."""
    out = b"Obj\x01" + varint(2)
    for key, value in (("avro.schema", json.dumps(schema)), ("avro.codec", codec)):
        out += varint(len(key)) + key.encode() + varint(len(value.encode())) + value.encode()
    return out + b"\0" + SYNC


def block(packed: bytes, count: int, size: int | None = None, sync: bytes = SYNC) -> bytes:
    """A block, which says what it likes."""
    return varint(count) + varint(len(packed) if size is None else size) + packed + sync


def container(
    schema: Any, rows: Iterable[Mapping[str, Any]], codec: str = "null", each: int = 20
) -> bytes:
    """A file of blocks of `each` rows."""
    parsed: Any = fastavro.parse_schema(schema)
    data: Sequence[bytes] = [datum(parsed, row) for row in rows]
    out = header(schema, codec)
    for start in range(0, len(data), each):
        part = data[start : start + each]
        out += block(PACKERS[codec](b"".join(part)), len(part))
    return out


__all__ = ["PACKERS", "SYNC", "block", "container", "datum", "header", "record", "varint"]
