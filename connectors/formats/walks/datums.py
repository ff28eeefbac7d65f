"""Decodes Avro datums to columns: a schema becomes a small program, and one compiled loop runs
it over all records.

The encoding is that of the Avro specification, 1.12, "Binary Encoding"; a datum says nothing about
itself, so only a walk by the schema that wrote it finds its fields, and its end. A record that does
not take exactly its bytes is known by that, and moves no other.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fastavro
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from connectors.formats.kernels.datums import (
    BOOL,
    BYTES,
    CALL,
    CLOSE,
    CLOSE_LIST,
    DEEP,
    DOUBLE,
    END,
    ENUM,
    FINE,
    FIXED,
    FLOAT,
    INT,
    JUMP,
    LEFT,
    LONG,
    NULL,
    OPEN,
    OPEN_LIST,
    RETURN,
    SHORT,
    UNION,
    WRONG,
    unscale,
    walk_blocks,
    walk_records,
)
from connectors.formats.kernels.paths import PathNode
from connectors.formats.kernels.rows import decode_utf8, gather
from engine.types import Values
from engine.types.arrays import Ints, read_only

FATE_REASONS = {
    SHORT: "Expected a whole Avro record, got one that ends too early.",
    LEFT: "Expected one Avro record, got bytes behind its end.",
    WRONG: "Expected an Avro record of its schema, got an index or a length that cannot be.",
    DEEP: "Expected an Avro record, got one nested deeper than 256.",
}
SIMPLE = {
    "null": NULL, "boolean": BOOL, "int": INT, "long": LONG, "float": FLOAT, "double": DOUBLE,
    "bytes": BYTES, "string": BYTES, "fixed": FIXED, "enum": ENUM,
}  # fmt: skip
BLOCKED = "blocked"
RICH = "rich"
PRESENT = "present"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A kind of value that a column may hold.

    Attributes:
        kind: Avro's name of the type; ``rich`` for one with parts, taken as JSON text; ``blocked``
            where a path goes on and the value has no fields; ``present`` for a record of which
            fields are kept.
        logical: the logical type, or "".
        schema: the type's own schema.
    """

    kind: str
    logical: str
    schema: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkResult:
    """The result of the loop over n records.

    Attributes:
        fate: see `FINE`, shape (n,).
        leaves: which leaf a value is, an index into `Program.leaves`; 0 is null; shape (slots, n).
        values: numbers (floating ones as their bits), indexes of enums, or where bytes start,
            shape (slots, n).
        sizes: of bytes, shape (slots, n).
    """

    fate: Ints
    leaves: NDArray[np.int16]
    values: Ints
    sizes: Ints


class Program:
    """How to walk records of one schema, and what to keep.

    Args:
        schema: a record's, as `fastavro.parse_schema` gives it.
        wanted: the root of a tree of nodes: field names on the way to columns.
        aliases: column's field -> other names that older writers may use for it.

    Attributes:
        leaves: the kinds of values kept; the first is null.
        slots: path of a node -> row of the arrays; a path that this schema lacks is not in it.
    """

    def __init__(
        self, schema: Any, wanted: PathNode, aliases: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._named: Mapping[str, Any] = schema["__named_schemas"]
        self._aliases = aliases or {}
        self.leaves = [Leaf(kind="null", logical="", schema="null")]
        self.slots: dict[str, int] = {}
        self._ops: list[list[int]] = []
        self._branches: list[int] = []
        self._subs: dict[str, int] = {}
        self._calls: list[tuple[int, str]] = []
        self._record(schema, wanted)
        self._emit(END)
        while self._calls:
            at, name = self._calls.pop()
            if name not in self._subs:
                self._subs[name] = len(self._ops)
                self._record(self._named[name], None)
                self._emit(RETURN)
            self._ops[at][1] = self._subs[name]
        self._table = np.array(self._ops, np.int64)
        self._jumps = np.array([*self._branches, 0], np.int64)

    def walk(self, data: NDArray[np.uint8], starts: Ints, stops: Ints) -> WalkResult:
        """Walk records; record i is ``data[starts[i]:stops[i]]``."""
        shape = (max(1, len(self.slots)), len(starts))
        walked = WalkResult(
            fate=np.zeros(len(starts), np.int64),
            leaves=np.zeros(shape, np.int16),
            values=np.zeros(shape, np.int64),
            sizes=np.zeros(shape, np.int64),
        )
        walk_records(
            data, starts, stops, self._table, self._jumps,
            walked.fate, walked.leaves, walked.values, walked.sizes,
        )  # fmt: skip
        return walked

    def walk_blocks(
        self, data: NDArray[np.uint8], starts: Ints, stops: Ints, rows: Ints
    ) -> tuple[WalkResult, Ints, tuple[int, int]]:
        """Walk records that follow each other, `rows` of each of b blocks, block i in
        ``data[starts[i]:stops[i]]``.

        Return also where the last one of each block ends, shape (b,), and how that went: `FINE`,
        or another outcome and its block, after which nothing is walked.
        """
        n = int(rows.sum())
        shape = (max(1, len(self.slots)), n)
        walked = WalkResult(
            fate=np.zeros(n, np.int64),
            leaves=np.zeros(shape, np.int16),
            values=np.zeros(shape, np.int64),
            sizes=np.zeros(shape, np.int64),
        )
        ends = np.zeros(len(starts), np.int64)
        outcome = walk_blocks(
            data, read_only(starts), read_only(stops), read_only(rows), self._table, self._jumps,
            ends, walked.leaves, walked.values, walked.sizes,
        )  # fmt: skip
        return walked, ends, outcome

    def is_there(self, walked: WalkResult, path: str) -> NDArray[np.bool_]:
        """Return which records have a value in a slot, null apart, shape (n,)."""
        there: NDArray[np.bool_] = walked.leaves[self.slots[path]] != 0
        return there

    def encoded(self, data: NDArray[np.uint8], walked: WalkResult, path: str) -> Values:
        """Return the values of a slot, of types that are kept as bytes, as they are encoded, shape
        (n,); null stays null."""
        slot = self.slots[path]
        sizes = np.where(walked.leaves[slot] != 0, walked.sizes[slot], -1)
        return gather(data, walked.values[slot], sizes)

    def column(
        self, data: NDArray[np.uint8], walked: WalkResult, path: str, rows: Ints | slice
    ) -> tuple[pl.Series, Ints]:
        """Return the values of a slot for some of the n records, shape (n,), and the
        indexes into `rows` of those that cannot be decoded: text that is not UTF-8, a value
        without fields where a path continues, or a composite value without JSON.

        Several kinds in one column (a union) become text where their types differ.
        """
        slot = self.slots[path]
        leaves = walked.leaves[slot][rows]
        values, sizes = walked.values[slot][rows], walked.sizes[slot][rows]
        kinds = np.flatnonzero(np.bincount(leaves, minlength=1))
        kinds = kinds[kinds > 0]
        if not len(kinds):
            return pl.Series([None], dtype=pl.Null).new_from_index(0, len(leaves)), kinds
        parts, odd = [], []
        for leaf_kind in kinds.tolist():
            here = leaves == leaf_kind
            series, bad = self._series(data, self.leaves[leaf_kind], values, sizes, here)
            if series.dtype == pl.Binary and len(kinds) > 1:
                series, bad = _text(series)
            parts.append(series)
            odd.append(bad)
        types = {series.dtype for series in parts}
        if len(types) > 1:
            for i, series in enumerate(parts):
                parts[i] = series if series.dtype == pl.String else series.cast(pl.String)
        whole = parts[0]
        for series in parts[1:]:
            whole = whole.zip_with(whole.is_not_null(), series)
        return whole, np.concatenate(odd)

    # -------------------------------------------------------------------------------- compiling

    def _emit(self, op: int, a: int = -1, b: int = 0, c: int = 0) -> int:
        self._ops.append([op, a, b, c])
        return len(self._ops) - 1

    def _record(self, schema: Any, wanted: PathNode | None) -> None:
        below = {} if wanted is None else {str(key): node for key, node in wanted.below.items()}
        names = {field["name"] for field in schema["fields"]}
        for key, node in list(below.items()):
            if key not in names:
                below |= {a: node for a in self._aliases.get(key, ()) if a in names}
        for field in schema["fields"]:
            self._type(field["type"], below.get(field["name"]))

    def _type(self, schema: Any, wanted: PathNode | None) -> None:
        if isinstance(schema, str) and schema not in SIMPLE:
            schema = self._named[schema]
        type_name = schema if isinstance(schema, str) else "union"
        if isinstance(schema, dict):
            type_name = schema["type"]
            if isinstance(type_name, (dict, list)):  # {"type": {"type": ...}}
                self._type(type_name, wanted)
                return
            if type_name in self._named and type_name not in SIMPLE:
                self._type(type_name, wanted)
                return
        if type_name == "union":
            self._union(schema, wanted)
        elif type_name in ("record", "error") and wanted is not None and wanted.below:
            if wanted.kind is not None:  # whether it is null is asked too
                self._emit(NULL, *self._leaf(schema, PRESENT, "", wanted.path))
            self._record(schema, wanted)
        elif wanted is not None and type_name != "null":
            self._kept(schema, type_name, wanted)
        else:
            self._skipped(schema, type_name)

    def _union(self, branches: Any, wanted: PathNode | None) -> None:
        first = len(self._branches)
        self._branches += [0] * len(branches)
        self._emit(UNION, len(branches), first)
        ends = []
        for i, branch in enumerate(branches):
            self._branches[first + i] = len(self._ops)
            self._type(branch, wanted)
            ends.append(self._emit(JUMP))
        for end in ends:
            self._ops[end][1] = len(self._ops)

    def _kept(self, schema: Any, type_name: str, wanted: PathNode) -> None:
        logical = schema.get("logicalType", "") if isinstance(schema, dict) else ""
        if wanted.below:
            for node in wanted.walk():
                if node.kind is not None:
                    self._leaf(schema, BLOCKED, "", node.path)
            self._skipped(schema, type_name)
        elif type_name in SIMPLE:
            slot, leaf = self._leaf(schema, type_name, logical, wanted.path)
            self._emit(SIMPLE[type_name], slot, leaf, _extra(schema, type_name))
        else:
            slot, leaf = self._leaf(schema, RICH, logical, wanted.path, emit=False)
            self._emit(OPEN, slot, leaf)
            self._skipped(schema, type_name)
            self._emit(CLOSE, slot, leaf)

    def _leaf(
        self, schema: Any, type_name: str, logical: str, path: str, *, emit: bool = True
    ) -> tuple[int, int]:
        slot = self.slots.setdefault(path, len(self.slots))
        self.leaves.append(Leaf(kind=type_name, logical=logical, schema=schema))
        leaf = len(self.leaves) - 1
        if type_name == BLOCKED and emit:
            self._emit(OPEN, slot, leaf)
        return slot, leaf

    def _skipped(self, schema: Any, type_name: str) -> None:
        if type_name in SIMPLE:
            self._emit(SIMPLE[type_name], -1, 0, _extra(schema, type_name))
        elif type_name in ("record", "error"):
            self._calls.append((self._emit(CALL), schema["name"]))
        else:
            begin = self._emit(OPEN_LIST)
            if type_name == "map":
                self._emit(BYTES)
            self._type(schema["items" if type_name == "array" else "values"], None)
            self._emit(CLOSE_LIST, begin)
            self._ops[begin][1] = len(self._ops)

    # --------------------------------------------------------------------------------- columns

    def _series(
        self,
        data: NDArray[np.uint8],
        leaf: Leaf,
        values: Ints,
        sizes: Ints,
        here: NDArray[np.bool_],
    ) -> tuple[pl.Series, Ints]:
        """Return values of one kind, null elsewhere; and which rows' text is not UTF-8."""
        none = np.empty(0, np.int64)
        leaf_kind, logical = leaf.kind, leaf.logical
        if leaf_kind == BLOCKED:
            return pl.Series([None], dtype=pl.String).new_from_index(0, len(here)), np.flatnonzero(
                here
            )
        if leaf_kind == "boolean":
            return _masked(values != 0, here), none
        if leaf_kind == "double":
            return _masked(values.view(np.float64), here), none
        if leaf_kind == "float":
            return _masked(values.astype(np.uint32).view(np.float32).astype(np.float64), here), none
        if leaf_kind in ("int", "long"):
            return _moments(_masked(values, here), logical), none
        if leaf_kind == "enum":
            symbols = pl.Series(leaf.schema["symbols"], dtype=pl.String)
            return symbols.gather(_masked(values, here).cast(pl.UInt32)), none
        raw, ends, out = _bytes(data, values, np.where(here, sizes, 0), here)
        if leaf_kind == RICH:
            return self._texts(raw, leaf)
        if logical == "decimal":
            return _decimals(raw, out, ends, int(leaf.schema.get("scale", 0))), none
        if logical == "uuid" and leaf_kind == "fixed":
            digits = raw.bin.encode("hex")
            parts = [
                digits.str.slice(a, n) for a, n in ((0, 8), (8, 4), (12, 4), (16, 4), (20, 12))
            ]
            return pl.select(pl.concat_str(parts, separator="-")).to_series(), none
        return (raw, none) if leaf_kind in ("bytes", "fixed") else _text(raw)

    def _texts(self, raw: pl.Series, leaf: Leaf) -> tuple[pl.Series, Ints]:
        """Return composite values as JSON, one by one, since only fastavro decodes them; and
        which rows' value fails."""
        schema = {**leaf.schema, "__fastavro_parsed": True, "__named_schemas": self._named}
        texts: list[str | None] = []
        odd = []
        for row, value in enumerate(raw):
            try:
                texts.append(None if value is None else _json(value, schema))
            except (ValueError, ArithmeticError, RecursionError):  # a text, date or depth
                texts.append(None)
                odd.append(row)
        return pl.Series(texts, dtype=pl.String), np.array(odd, np.int64)


def _json(value: bytes, schema: Any) -> str:
    datum = fastavro.schemaless_reader(io.BytesIO(value), schema, None)
    return json.dumps(datum, default=_plain, ensure_ascii=False)


def _plain(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _extra(schema: Any, type_name: str) -> int:
    """Return the bytes of a fixed-size value, or the number of symbols of an enum."""
    if type_name in ("float", "double"):
        return 4 if type_name == "float" else 8
    if type_name == "enum":
        return len(schema["symbols"])
    return int(schema["size"]) if type_name == "fixed" else 0


def _masked(values: NDArray[Any], here: NDArray[np.bool_]) -> pl.Series:
    series = pl.from_arrow(pa.array(values, mask=~here))
    assert isinstance(series, pl.Series)
    return series


def _moments(numbers: pl.Series, logical: str) -> pl.Series:
    """Return dates and timestamps (UTC, or local unchanged); a time of day stays a number."""
    logical = logical.removeprefix("local-")
    if logical == "date":
        return numbers.cast(pl.Int32).cast(pl.Date)
    if logical == "timestamp-millis":
        return numbers.cast(pl.Datetime("ms"))
    if logical == "timestamp-micros":
        return numbers.cast(pl.Datetime("us"))
    if logical == "timestamp-nanos":
        return numbers.cast(pl.Datetime("ns"))
    return numbers


def _bytes(
    data: NDArray[np.uint8], starts: Ints, sizes: Ints, here: NDArray[np.bool_]
) -> tuple[pl.Series, Ints, NDArray[np.uint8]]:
    """Return pieces of the data as a Binary series, their bounds, and the bytes."""
    gathered = gather(data, starts, sizes)
    valid = pa.py_buffer(np.packbits(here, bitorder="little"))
    buffers = [valid, pa.py_buffer(gathered.bounds), pa.py_buffer(gathered.data)]
    series = pl.from_arrow(
        pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts), buffers)
    )
    assert isinstance(series, pl.Series)
    return series, gathered.bounds, gathered.data


def _text(raw: pl.Series) -> tuple[pl.Series, Ints]:
    """Return text; and which rows are not UTF-8."""
    text = decode_utf8(raw)
    if text.null_count() == raw.null_count():
        return text, np.empty(0, np.int64)
    return text, np.flatnonzero((text.is_null() & raw.is_not_null()).to_numpy())


def _decimals(raw: pl.Series, out: NDArray[np.uint8], ends: Ints, scale: int) -> pl.Series:
    """Return unscaled big-endian numbers as exact text; up to 8 bytes at once, longer ones one
    by one."""
    if np.diff(ends).max(initial=0) <= 8:
        numbers = np.zeros(len(raw), np.int64)
        unscale(out, ends, numbers)
        digits = pl.Series(numbers).cast(pl.String)
    else:
        digits = pl.Series(
            [None if v is None else str(int.from_bytes(v, "big", signed=True)) for v in raw],
            dtype=pl.String,
        )
    column = pl.col("digits")
    frame = digits.alias("digits").to_frame()
    sign = pl.when(column.str.starts_with("-")).then(pl.lit("-")).otherwise(pl.lit(""))
    padded = column.str.strip_chars_start("-").str.zfill(scale + 1)
    text = pl.concat_str(sign, padded)
    if scale:
        text = pl.concat_str(
            sign, padded.str.head(-scale), pl.lit("."), padded.str.tail(scale)
        )  # fmt: skip
    text_series = frame.select(text.alias("text")).to_series()
    return text_series.set(raw.is_null(), None) if raw.null_count() else text_series


# --------------------------------------------------------------------------------------- compiled


__all__ = ["BLOCKED", "FATE_REASONS", "FINE", "RICH", "Leaf", "Program", "WalkResult"]
