"""Finds the lines of JSON a parser would reject, in one compiled walk over their bytes.

The parser says that one of many lines is wrong, not which. The walk is as strict as the parser
about syntax (RFC 8259, UTF-8) and stricter about types: what it lets pass, the parser takes; what
it calls broken, the parser does not; about the rest it says so, and those few lines are parsed with
care. `tests/connectors/formats/test_ndjson.py` holds it against the parser.

By hand, because msgspec's typed decoder takes as long (20,000 lines of five columns: 10 ms both)
and stops at the first misfit of a line, without the kinds and places of the other values.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from connectors.formats.kernels.json_scan import (
    BEHIND,
    BLANK,
    BOOL,
    BROKEN,
    DATE,
    DECIMAL,
    DEEP,
    ENDS,
    FITS,
    FLOAT,
    FLOAT32,
    INT32,
    INT64,
    INTEGER,
    LIST,
    MOMENT,
    NO_OBJECT,
    NOT_UTF8,
    OBJECT,
    OTHER,
    OTHERS,
    PLACE,
    STRING,
    SUSPECT,
    TEXT,
    TOKENS,
    UNSURE,
    mark_halves,
    mark_twice,
    quote_texts,
    scan_lines,
)
from connectors.formats.kernels.json_text import has_pair
from connectors.formats.kernels.paths import JsonShape, PathNode, PathStep
from engine.types import element_type, field_types
from engine.types.arrays import read_only

BROKEN_REASONS = {
    BLANK: "the line is blank",
    NO_OBJECT: "it is another value",
    ENDS: "it ends too early",
}
SENTENCES = pl.Series(
    [f"Expected a JSON object: {BROKEN_REASONS.get(code, '')}." for code in range(NOT_UTF8 + 1)]
)
OUTSIDE = pl.Series(["out of place", "behind its end"])
SIGNS = pl.Series([chr(code) for code in range(127)])
HALF = re.compile(rb"\\u[dD][89a-fA-F]")
"""An escape that may be half of a surrogate pair."""
NODE_KINDS: dict[type[pl.DataType], int] = {
    pl.String: TEXT, pl.Binary: TEXT, pl.Float64: FLOAT, pl.Float32: FLOAT32, pl.Int64: INT64,
    pl.Int32: INT32, pl.Boolean: BOOL, pl.Date: DATE, pl.Datetime: MOMENT, pl.Decimal: DECIMAL,
    **dict.fromkeys([pl.Int8, pl.Int16, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64], INTEGER),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The verdicts on n lines.

    Attributes:
        verdicts: shape (n,).
        places: byte of the line where it breaks, shape (n,).
        tokens: what stands at each node of the tree, shape (n, nodes), or (n, 0).
        spans: from which byte of the buffer to which, shape (n, nodes, 2), or (n, 0, 2); zeros
            where nothing stands there, or its end was not seen.
    """

    verdicts: NDArray[np.int64]
    places: NDArray[np.int64]
    tokens: NDArray[np.int8]
    spans: NDArray[np.int64]


class Tree:
    """A shape as arrays, for the walk.

    Args:
        strict: nothing but a string fits a column of text.

    Attributes:
        nodes: in the arrays' order.
    """

    def __init__(self, shape: JsonShape, *, strict: bool = False) -> None:
        root = _with_others(shape.root)
        self.nodes: list[PathNode] = list(root.walk())
        number = {id(node): i for i, node in enumerate(self.nodes)}
        self._number = {node.path: i for i, node in reversed([*enumerate(self.nodes)])}
        table = np.full((len(self.nodes), 6), -1, np.int64)
        names = b""
        for i, node in enumerate(self.nodes):
            node_kind = _kind(node)
            table[i, 0] = STRING if strict and node_kind == TEXT else node_kind
            before = -1
            for step, child in node.below.items():
                at = number[id(child)]
                if before < 0:
                    table[i, 1] = at
                else:
                    table[before, 2] = at
                before = at
                if isinstance(step, int):
                    table[at, 5] = step
                else:
                    table[at, 3] = len(names)
                    names += step.encode()
                    table[at, 4] = len(names)
        self._table = table
        self._names = np.frombuffer(names, np.uint8)

    def number(self, node: PathNode) -> int:
        """Return the index of a node in `nodes`."""
        return self._number[node.path]

    def scan(
        self, data: NDArray[np.uint8], bounds: NDArray[np.int64], *, tokens: bool = False
    ) -> Scan:
        """Scan line i, ``data[bounds[i]:bounds[i + 1]]``; the line break may be part of it."""
        n, data, bounds = len(bounds) - 1, read_only(data), read_only(bounds)
        verdicts, places = np.zeros(n, np.int64), np.zeros(n, np.int64)
        seen = np.zeros((n, len(self.nodes) if tokens else 0), np.int8)
        spans = np.zeros((*seen.shape, 2), np.int64)
        unmarked = np.zeros(0, np.bool_)
        scan_lines(data, bounds, self._table, self._names, verdicts, places, seen, spans, unmarked)
        return Scan(verdicts=verdicts, places=places, tokens=seen, spans=spans)

    def scan_quoted(
        self, data: NDArray[np.uint8], bounds: NDArray[np.int64]
    ) -> tuple[Scan, NDArray[np.uint8], NDArray[np.int64]]:
        """Scan the lines; return them as well, with quotes around numbers that the parser would not
        keep as written: those in a text column; those with a point or exponent in an integer or
        decimal column, which it makes floats; and those with more digits than it reads. Lines that
        are not a JSON object are unchanged."""
        n, data, bounds = len(bounds) - 1, read_only(data), read_only(bounds)
        marks = np.zeros(len(data) + 1, np.bool_)
        seen, spans = np.zeros((n, 0), np.int8), np.zeros((n, 0, 2), np.int64)
        verdicts, places = np.zeros(n, np.int64), np.zeros(n, np.int64)
        scan_lines(data, bounds, self._table, self._names, verdicts, places, seen, spans, marks)
        scan = Scan(verdicts=verdicts, places=places, tokens=seen, spans=spans)
        at = np.flatnonzero(marks)
        if not len(at):
            return scan, data, bounds
        out = np.empty(len(data) + len(at), np.uint8)
        quote_texts(data, at, out)
        return scan, out, bounds + np.searchsorted(at, bounds)


def twice(
    data: NDArray[np.uint8], bounds: NDArray[np.int64], keys: Sequence[str]
) -> NDArray[np.bool_]:
    """Return which lines have one of these keys more than once, shape (n,): readers do not agree
    on which value counts."""
    encoded = [key.encode() for key in keys]
    names = np.frombuffer(b"".join(encoded), np.uint8)
    ends = np.cumsum([0, *map(len, encoded)]).astype(np.int64)
    found = np.zeros(len(bounds) - 1, np.bool_)
    lines = np.zeros(len(keys), np.int64)
    places = np.full(1 << (2 * len(keys)).bit_length(), -1, np.int64)  # half full at most
    mark_twice(read_only(data), read_only(bounds), names, ends, places, lines, found)
    return found


def halved_pairs(data: NDArray[np.uint8], bounds: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which lines have half of a surrogate pair."""
    found = np.zeros(len(bounds) - 1, np.bool_)
    if has_pair(read_only(data), *b"\\u") and HALF.search(data.data):
        mark_halves(read_only(data), read_only(bounds), found)
    return found


def words(
    data: NDArray[np.uint8], starts: NDArray[np.int64], scan: Scan, at: NDArray[np.int64]
) -> pl.Series:
    """Return why each of the broken lines `at` is not a JSON object; shape (len(at),)."""
    codes, places = scan.verdicts[at], scan.places[at]
    why = SENTENCES[codes.astype(np.uint32)]
    somewhere = np.flatnonzero((codes == PLACE) | (codes == BEHIND))
    if not len(somewhere):
        return why
    codes, places = codes[somewhere], places[somewhere]
    byte = data[np.minimum(starts[at[somewhere]] + places, max(0, len(data) - 1))]
    sign = SIGNS[np.where((byte > 32) & (byte < 127), byte, ord("?")).astype(np.uint32)]
    where = OUTSIDE[(codes == BEHIND).astype(np.uint32)]
    sentences = pl.format(
        "Expected a JSON object: byte {} ('{}') is {}.",
        *map(pl.lit, (pl.Series(places), sign, where)),
    )
    return why.scatter(somewhere, pl.select(sentences).to_series())


def _with_others(node: PathNode) -> PathNode:
    """Return the tree as the parser sees it: all elements of a list have the same fields,
    including elements that no column reads; columns of lists or objects have their declared
    types."""
    below = {step: _with_others(child) for step, child in node.below.items()}
    if isinstance(node.kind, pl.List):
        inner = PathNode(path=f"{node.path}[]", kind=element_type(node.kind))
        below = {OTHERS: _with_others(inner)}
    elif isinstance(node.kind, pl.Struct):
        below = {
            name: _with_others(PathNode(path=f"{node.path}\n{name}", kind=kind))
            for name, kind in field_types(node.kind).items()
        }
    elif node.is_list:
        every = _merge_nodes([*below.values()], f"{node.path}[]")
        below = {step: _merge_nodes([child, every], child.path) for step, child in below.items()}
        below[OTHERS] = every
    return dataclasses.replace(node, below=below)


def _merge_nodes(nodes: list[PathNode], path: str) -> PathNode:
    """Return one node with everything below any of these. What is not below the first gets a
    path that no column has."""
    steps = dict.fromkeys(step for node in nodes for step in node.below)
    below: dict[PathStep, PathNode] = {}
    for step in steps:
        same = [node.below[step] for node in nodes if step in node.below]
        own = nodes[0].path == path and step in nodes[0].below
        below[step] = _merge_nodes(same, same[0].path if own else f"{path}\n{step}")
    return PathNode(path=path, kind=nodes[0].kind, below=below)


def _kind(node: PathNode) -> int:
    if node.kind is None or isinstance(node.kind, pl.List | pl.Struct):
        return LIST if node.is_list else OBJECT
    return NODE_KINDS.get(type(node.kind), OTHER)


# --------------------------------------------------------------------------------------- compiled


__all__ = [
    "BROKEN", "DEEP", "FITS", "NOT_UTF8", "SUSPECT", "TOKENS", "UNSURE", "Scan", "Tree",
    "halved_pairs", "twice", "words",
]  # fmt: skip
