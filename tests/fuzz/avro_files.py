"""Avro container files of every codec and type, small and whole, and damage aimed at what their
bytes mean: a count or a size, the header's text, and records inside a block that is whole."""

from __future__ import annotations

import json
import random
from typing import Any

import polars as pl

from tests.containers import PACKERS, SYNC, block, datum, header, record, varint
from tests.fuzz.mutate import mutated

EXTREMES = (
    -(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 8, 11, 12, 13, 24, 63, 64, 127, 128, 2**15, 2**20,
    2**27, 2**31 - 1, 2**31, 2**40, 2**60, 2**63 - 1,
)  # fmt: skip
MOMENT = {"type": "long", "logicalType": "timestamp-millis"}
DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
INNER: dict[str, Any] = {
    "type": "record", "name": "Inner",
    "fields": [
        {"name": "a", "type": ["null", "string"]}, {"name": "next", "type": ["null", "Inner"]},
    ],
}  # fmt: skip
TYPES: dict[str, Any] = {
    "n": "long", "x": ["null", "double"], "s": ["null", "string"], "t": MOMENT, "price": DECIMAL,
    "day": {"type": "int", "logicalType": "date"},
    "clock": {"type": "int", "logicalType": "time-millis"},
    "many": {"type": "array", "items": ["null", "long"]},
    "when": {"type": "array", "items": MOMENT},
    "pairs": {"type": "map", "values": DECIMAL},
    "inner": ["null", INNER],
    "kind": {"type": "enum", "name": "E", "symbols": ["A", "B"]},
    "id": {"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"},
    "either": ["long", "string", {"type": "array", "items": "null"}],
}  # fmt: skip
SCHEMA = record(**TYPES)
EACH = 12


PLAIN = json.loads(json.dumps(SCHEMA), object_hook=lambda o: {
    key: value for key, value in o.items() if key != "logicalType"
})  # fmt: skip
"""The same without logical types, whose values are numbers and bytes."""


def seeds(rows: pl.DataFrame) -> dict[str, bytes]:
    """Whole files, by name."""
    encoded = [datum(PLAIN, _row(row)) for row in rows.to_dicts()]
    return {f"{codec}.avro": _file(encoded, codec) for codec in PACKERS}


def _file(encoded: list[bytes], codec: str) -> bytes:
    parts = [encoded[at : at + EACH] for at in range(0, len(encoded), EACH)]
    blocks = [block(PACKERS[codec](b"".join(part)), len(part)) for part in parts]
    return header(SCHEMA, codec) + b"".join(blocks)


def _row(row: dict[str, Any]) -> dict[str, Any]:
    n = row["n"]
    inner = {"a": "text", "next": {"a": None, "next": None}}
    return {
        "n": n, "x": row["x"], "s": row["s"], "t": n * 10**9, "price": bytes([n]), "day": n,
        "clock": n * 1_000, "many": [n, None], "when": [n] * (n % 3), "pairs": {"k": bytes([n])},
        "inner": inner if n % 4 else None, "kind": "AB"[n % 2], "id": bytes([n] * 16),
        "either": (n, "text", [None])[n % 3],
    }  # fmt: skip


def damaged(seed: bytes, number: int) -> bytes:
    """Mutation `number` of a file: random damage a third of the time, else damage that is aimed."""
    rng = random.Random(~number)
    what = rng.random()
    if what < 1 / 3:
        return mutated(seed, number)
    marks = _marks(seed)
    if what < 0.5:  # the count or the size of a block
        at = rng.choice(marks[:-1]) + len(SYNC)
        return seed[:at] + varint(rng.choice(EXTREMES)) + seed[at + 1 :]
    if what < 0.7:  # what the header says, but not how long it is
        end = marks[0]
        return mutated(seed[:end], number)[:end].ljust(end, b" ") + seed[end:]
    # Records that are damaged in a block that is whole, whatever its codec.
    rows = pl.DataFrame({"n": range(EACH), "x": 0.5, "s": "text"})
    data = mutated(b"".join(datum(PLAIN, _row(row)) for row in rows.to_dicts()), number)
    codec = next(codec for codec in PACKERS if b"\x14avro.codec" + _text(codec) in seed)
    return header(SCHEMA, codec) + block(PACKERS[codec](data), EACH)


def _text(text: str) -> bytes:
    return varint(len(text)) + text.encode()


def _marks(data: bytes) -> list[int]:
    """Where the sync markers of a whole file are."""
    marks, at = [], data.find(SYNC)
    while at >= 0:
        marks.append(at)
        at = data.find(SYNC, at + len(SYNC))
    return marks


__all__ = ["damaged", "seeds"]
