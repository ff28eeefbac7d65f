"""Scrub transforms as nodes of an ONNX graph: from raw columns to the network's inputs.

Columns whose transforms are of the same kinds in the same order go through one set of nodes as the
rows of a float64 matrix of shape (columns, n): laid end to end by one Concat, and with constants of
shape (columns, 1), so that 32 columns cost little more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from engine.types import Affine, Clip, Codes, Features, Fill, Transform
from models.feed import CODE, NUMBER, TEXT, Inputs
from models.graph import Graph, TensorProto

ELEMENTS = {NUMBER: TensorProto.DOUBLE, TEXT: TensorProto.STRING, CODE: TensorProto.INT64}

Key = tuple[Any, ...]
"""What columns of one matrix have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """Columns on their way through the graph.

    Attributes:
        name: of the value in the graph.
        kind: `NUMBER`: float64, (columns, n); `TEXT`: string, (n,); `CODE`: int64, (n,).
        filled: whether no NaN can be left in it (but what arithmetic with infinity makes).
        null: for text, what null was filled with; None while it is still null.
    """

    name: str
    kind: str
    filled: bool = False
    null: str | None = None


class Preparation:
    """Writes the nodes that make a network's inputs of raw columns.

    Args:
        graph: written to; gets an input for each raw column that is needed.
        features: what the network reads.
        transforms: in the order they are applied; those of other columns are left out.

    Attributes:
        inputs: the raw columns.
    """

    def __init__(self, graph: Graph, features: Features, transforms: Sequence[Transform]) -> None:
        self._graph = graph
        self._features = features
        self._chains: dict[str, list[Transform]] = {}
        self._parents: dict[str, tuple[str, int]] = {}
        for transform in transforms:
            chain = self._chains.setdefault(transform.column, [])
            if isinstance(transform, Fill) and transform.indicator is not None:
                self._parents[transform.indicator] = (transform.column, len(chain))
            chain.append(transform)
        self._null_text = _unused(transforms)
        self._kinds: dict[str, str] = {}
        self._members: dict[Key, list[str]] = {}
        for column in (*features.numeric, *features.categories):
            self._join(column)
        self._made: dict[Key, Matrix] = {}
        self._masks: dict[tuple[Key, int], str] = {}

    @property
    def inputs(self) -> Inputs:
        return Inputs(kinds=dict(self._kinds), null_text=self._null_text)

    def numeric(self) -> str:
        """The float32 matrix (d, n) of the numeric features; d > 0."""
        columns: list[str] = []
        parts = []
        for key in dict.fromkeys(self._key(column) for column in self._features.numeric):
            columns += self._members[key]
            number = self._number(self._matrix(key))
            parts.append(self._graph.op("Cast", number, to=TensorProto.FLOAT))
        rows = [columns.index(column) for column in self._features.numeric]
        return self._rows(self._joined(parts), rows, len(columns))

    def categories(self) -> str:
        """The int64 matrix (c, n) of the categories' codes; c > 0."""
        codes = [self._codes(self._matrix(self._key(c))) for c in self._features.categories]
        return self._graph.op("Reshape", self._joined(codes), self._shape(len(codes), -1))

    # ---------------------------------------------------------------------------------- grouping

    def _join(self, column: str) -> None:
        """Give the column, and the one it indicates, a place in a matrix."""
        members = self._members.setdefault(self._key(column), [])
        if column not in members:
            members.append(column)
        if column in self._parents:
            self._join(self._parents[column][0])

    def _key(self, column: str) -> Key:
        chain = self._chains.get(column, [])
        kinds = tuple(type(transform) for transform in chain)
        if column in self._parents:
            parent, step = self._parents[column]
            return (self._key(parent), step, kinds)
        alone = self._raw_kind(column) != NUMBER or Codes in kinds
        return (column if alone else None, kinds)

    def _raw_kind(self, column: str) -> str:
        chain = self._chains.get(column, [])
        if not chain:
            return CODE if column in self._features.categories else NUMBER
        first = chain[0]
        text = isinstance(first, Codes) or (
            isinstance(first, Fill) and isinstance(first.value, str)
        )
        return TEXT if text else NUMBER

    # ---------------------------------------------------------------------------------- applying

    def _matrix(self, key: Key) -> Matrix:
        """The columns of that key after all their transforms."""
        if key not in self._made:
            columns = self._members[key]
            matrix = self._start(columns)
            steps = zip(*(self._chains.get(column, []) for column in columns), strict=True)
            for step, transforms in enumerate(steps):
                matrix = self._applied(matrix, transforms, (key, step))
            self._made[key] = matrix
        return self._made[key]

    def _start(self, columns: Sequence[str]) -> Matrix:
        if columns[0] in self._parents:
            return self._indicators(columns)
        kind = self._raw_kind(columns[0])
        names = [self._graph.input(column, ELEMENTS[kind], ["n"]) for column in columns]
        self._kinds |= dict.fromkeys(columns, kind)
        if kind != NUMBER:
            return Matrix(name=names[0], kind=kind)
        end_to_end = self._joined(names)
        shape = self._shape(len(columns), -1)
        return Matrix(name=self._graph.op("Reshape", end_to_end, shape), kind=NUMBER)

    def _indicators(self, columns: Sequence[str]) -> Matrix:
        parent, step = self._parents[columns[0]]
        key = self._key(parent)
        self._matrix(key)
        parents = self._members[key]
        rows = [parents.index(self._parents[column][0]) for column in columns]
        mask = self._rows(self._masks[key, step], rows, len(parents))
        number = self._graph.op("Cast", mask, to=TensorProto.DOUBLE)
        return Matrix(name=number, kind=NUMBER, filled=True)

    def _applied(
        self, matrix: Matrix, transforms: Sequence[Transform], at: tuple[Key, int]
    ) -> Matrix:
        kind = type(transforms[0])
        if kind is Codes:
            return self._encoded(matrix, cast("Codes", transforms[0]))
        if kind is Fill and matrix.kind == TEXT:
            return self._text_filled(matrix, cast("Fill", transforms[0]), at)
        number = self._number(matrix)
        if kind is Fill:
            return self._filled(number, cast("Sequence[Fill]", transforms), at)
        if kind is Clip:
            clips = cast("Sequence[Clip]", transforms)
            return Matrix(
                name=self._clipped(number, clips, filled=matrix.filled),
                kind=NUMBER,
                filled=matrix.filled,
            )
        name = self._scaled(number, cast("Sequence[Affine]", transforms))
        return Matrix(name=name, kind=NUMBER, filled=matrix.filled)

    def _filled(self, x: str, fills: Sequence[Fill], at: tuple[Key, int]) -> Matrix:
        mask = self._masks[at] = self._graph.op("IsNaN", x)
        values = self._vector(fills, lambda fill: float(fill.value))
        return Matrix(name=self._graph.op("Where", mask, values, x), kind=NUMBER, filled=True)

    def _text_filled(self, matrix: Matrix, fill: Fill, at: tuple[Key, int]) -> Matrix:
        if fill.indicator is not None:
            missing = self._lookup(matrix.name, {self._null_text: int(matrix.null is None)})
            self._masks[at] = self._graph.op("Reshape", missing, self._shape(1, -1))
        null = str(fill.value) if matrix.null is None else matrix.null
        return Matrix(name=matrix.name, kind=TEXT, null=null)

    def _clipped(self, x: str, clips: Sequence[Clip], *, filled: bool) -> str:
        low = self._vector(clips, lambda clip: clip.low)
        high = self._vector(clips, lambda clip: clip.high)
        graph = self._graph
        if filled:
            return graph.op("Min", graph.op("Max", x, low), high)
        # What Max and Min make of NaN is left open by ONNX; a comparison with it is false.
        x = graph.op("Where", graph.op("Less", x, low), low, x)
        return graph.op("Where", graph.op("Greater", x, high), high, x)

    def _scaled(self, x: str, affines: Sequence[Affine]) -> str:
        shift = self._vector(affines, lambda affine: affine.shift)
        scale = self._vector(affines, lambda affine: affine.scale)
        return self._graph.op("Mul", self._graph.op("Sub", x, shift), scale)

    def _encoded(self, matrix: Matrix, codes: Codes) -> Matrix:
        known = {value: i + 1 for i, value in enumerate(codes.values)}
        if matrix.kind == TEXT:
            known[self._null_text] = 0 if matrix.null is None else known.get(matrix.null, 0)
            return Matrix(name=self._lookup(matrix.name, known), kind=CODE)
        whole = {_whole(value): code for value, code in known.items()}
        absent = min(whole, default=0) - 1
        return Matrix(name=self._lookup(self._codes(matrix, null=absent), whole), kind=CODE)

    # ------------------------------------------------------------------------------------- nodes

    def _number(self, matrix: Matrix) -> str:
        """As float64, (columns, n)."""
        if matrix.kind == NUMBER:
            return matrix.name
        assert matrix.kind == CODE, "text is encoded before anything else is done with it"
        number = self._graph.op("Cast", matrix.name, to=TensorProto.DOUBLE)
        return self._graph.op("Reshape", number, self._shape(1, -1))

    def _codes(self, matrix: Matrix, null: int = 0) -> str:
        """As int64, (n,); NaN as `null`."""
        if matrix.kind == CODE:
            return matrix.name
        x, graph = matrix.name, self._graph
        x = graph.op("Where", graph.op("IsNaN", x), graph.constant(np.float64(null)), x)
        return graph.op("Reshape", graph.op("Cast", x, to=TensorProto.INT64), self._shape(-1))

    def _lookup(self, x: str, known: Mapping[Any, int]) -> str:
        """int64: the code of each value, 0 for one that has none."""
        known = known or {0: 0}
        keys = "keys_strings" if isinstance(next(iter(known)), str) else "keys_int64s"
        values = {keys: list(known), "values_int64s": list(known.values())}
        return self._graph.op("LabelEncoder", x, domain="ai.onnx.ml", default_int64=0, **values)

    def _joined(self, names: Sequence[str]) -> str:
        return names[0] if len(names) == 1 else self._graph.op("Concat", *names, axis=0)

    def _rows(self, x: str, rows: Sequence[int], height: int) -> str:
        if list(rows) == list(range(height)):
            return x
        return self._graph.op("Gather", x, self._graph.constant(np.array(rows, np.int64)), axis=0)

    def _shape(self, *sizes: int) -> str:
        return self._graph.constant(np.array(sizes, np.int64), "shape")

    def _vector(self, transforms: Sequence[Any], number: Callable[[Any], float]) -> str:
        """Float64, (columns, 1)."""
        return self._graph.constant(np.array([[number(t)] for t in transforms], np.float64))


def _unused(transforms: Sequence[Transform]) -> str:
    """A text that no category is written as, to stand for null: "" where possible."""
    words = {word for t in transforms if isinstance(t, Codes) for word in t.values}
    text = ""
    while text in words:
        text += "?"
    return text


def _whole(value: str) -> int:
    """The number that a whole number or a boolean is written as."""
    return {"true": 1, "false": 0}.get(value) if value in ("true", "false") else int(value)


__all__ = ["Preparation"]
