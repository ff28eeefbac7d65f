"""The front of a model file: from raw columns to the numbers that a learner reads, with the numbers
that training used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from engine.types import (
    Affine,
    Clip,
    Codes,
    Features,
    Fill,
    Power,
    Schema,
    Transform,
)
from engine.types.transforms import MAX_ABS
from models.export.nested_graph import NestedGraph
from models.export.onnx_graph import ML, Graph

ONNX_TYPES = {
    "double": TensorProto.DOUBLE,
    "string": TensorProto.STRING,
    "int64": TensorProto.INT64,
}


class StageGraph:
    """The stages' part of the graph: all numeric columns side by side, (n, d) float64, with one
    to three nodes per stage."""

    def __init__(
        self,
        graph: Graph,
        features: Features,
        transforms: Sequence[Transform],
        schema: Schema | None = None,
    ) -> None:
        self._graph = graph
        self._features = features
        nested = NestedGraph(graph, features, schema or {})
        self.inputs: dict[str, str] = {}
        self._guards = nested.guards
        self.lengths = nested.lengths
        indicator_columns = {
            t.indicator: t.column for t in transforms if isinstance(t, Fill) and t.indicator
        }
        raw = dict.fromkeys(indicator_columns.get(c, c) for c in features.numeric)
        self._text = {t.column for t in transforms if _is_text(t)}
        self._columns = [c for c in raw if c not in self._text]
        self._texts: dict[str, str] = {}
        self._codes: dict[str, str] = {}
        self._fills: dict[str, tuple[str, ...]] = {}
        for column in self._columns:
            self.inputs[column] = "double"
        others = [*features.categories, *(c for c in raw if c in self._text)]
        for column in dict.fromkeys(others):
            self.inputs[column] = "string" if column in self._text else "int64"
            self._texts[column] = graph.input(column, ONNX_TYPES[self.inputs[column]], ["n"])
        self.inputs |= nested.inputs
        self._matrix = self._gather_inputs()
        for layer in _layers(transforms):
            self._apply(layer)

    def numeric(self) -> str:
        """Return the features, (n, d) float32, in the learner's order, all finite; see
        `with_nan_guard`."""
        graph, wanted = self._graph, list(self._features.numeric)
        x = self._matrix
        if not wanted:
            return graph.constant(np.zeros((1, 0), np.float32))
        if wanted != self._columns:
            at = np.array([self._columns.index(c) for c in wanted], np.int64)
            x = graph.op("Gather", x, graph.constant(at), axis=1)
        x = graph.op("Cast", x, to=TensorProto.FLOAT)
        # What is not finite becomes 0 for the learner: with ranges by batch (dynamic int8) it
        # would spoil the other rows.
        zero = graph.constant(np.float32(0))
        nan = graph.op("Mul", x, zero)  # NaN there, else 0
        axis = graph.constant(np.array([1], np.int64))
        self._guards.append(graph.op("ReduceSum", nan, axis, keepdims=0))
        return graph.op("Where", graph.op("IsNaN", nan), zero, x)

    def categories(self) -> str:
        """Return the codes, (n, c) int64."""
        graph = self._graph
        columns = [self._codes.get(c, self._texts[c]) for c in self._features.categories]
        if not columns:
            return graph.constant(np.zeros((1, 0), np.int64))
        return self._concat(columns)

    def guard(self) -> str:
        """Return the name of a float32 tensor, (n,): NaN for a row that training would reject,
        else 0; "" where there is none."""
        first, *others = self._guards or [""]
        for other in others:
            first = self._graph.op("Add", first, other)
        return first

    def with_nan_guard(self, score: str, *, outputs: int) -> str:
        """Return the score, (n,) or (n, outputs), but NaN for a row with a non-finite feature:
        training rejects such a row, and relu or int8 would turn it into a number."""
        guard = self.guard()
        if not guard:
            return score
        graph = self._graph
        if outputs > 1:
            guard = graph.op("Unsqueeze", guard, graph.constant(np.array([1], np.int64)))
        return graph.op("Add", score, guard)

    def _gather_inputs(self) -> str:
        graph = self._graph
        inputs = [graph.input(c, TensorProto.DOUBLE, ["n"]) for c in self._columns]
        return self._concat(inputs) if inputs else ""

    def _concat(self, columns: list[str]) -> str:
        graph = self._graph
        axis = graph.constant(np.array([1], np.int64))
        wide = [graph.op("Unsqueeze", column, axis) for column in columns]
        return graph.op("Concat", *wide, axis=1) if len(wide) > 1 else wide[0]

    def _apply(self, layer: Sequence[Transform]) -> None:
        """Apply one kind of transform to some of the columns; the others pass unchanged."""
        numbers = [t for t in layer if t.column in self._columns]
        for transform in layer:
            if transform.column in self._texts and transform.column not in self._codes:
                self._apply_text(transform)
        if not numbers:
            return
        first = numbers[0]
        if isinstance(first, Fill):
            self._fill([t for t in numbers if isinstance(t, Fill)])
        elif isinstance(first, Clip):
            clips = [t for t in numbers if isinstance(t, Clip)]
            self._bound("Less", {t.column: t.low for t in clips}, -np.inf)
            self._bound("Greater", {t.column: t.high for t in clips}, np.inf)
        elif isinstance(first, Affine):
            affine = [t for t in numbers if isinstance(t, Affine)]
            shift = self._vector({t.column: t.shift for t in affine}, 0.0)
            scale = self._vector({t.column: t.scale for t in affine}, 1.0)
            graph = self._graph
            moved = graph.op("Sub", self._matrix, shift)
            self._matrix = graph.op("Mul", moved, scale)
            if not all(t.scale for t in affine):  # as `scaled_one` of engine.columnar.kernels
                constant = graph.op("Equal", scale, graph.constant(np.float64(0)))
                limit = graph.constant(np.float64(MAX_ABS))
                large = graph.op("GreaterOrEqual", graph.op("Abs", moved), limit)
                stays = graph.op("And", large, constant)
                self._matrix = graph.op("Where", stays, moved, self._matrix)
        elif isinstance(first, Power):
            self._power([t for t in numbers if isinstance(t, Power)])

    def _power(self, powers: list[Power]) -> None:
        graph, x = self._graph, self._matrix
        zero = graph.constant(np.float64(0))
        down = graph.op("Less", x, zero)
        size = graph.op("Abs", x)
        y = self._log1p(size)
        if any(t.above or t.below for t in powers):
            above = self._vector({t.column: t.above for t in powers}, 1.0)
            below = self._vector({t.column: t.below for t in powers}, 1.0)
            p = graph.op("Where", down, below, above)
            curved = graph.op("Div", self._expm1(graph.op("Mul", p, y)), p)
            y = graph.op("Where", graph.op("Equal", p, zero), y, curved)
            is_one = graph.op("Equal", p, graph.constant(np.float64(1)))
            y = graph.op("Where", is_one, size, y)
        y = graph.op("Where", down, graph.op("Neg", y), y)
        changed = {t.column for t in powers}
        if changed != set(self._columns):
            mask = graph.constant(np.array([c in changed for c in self._columns]))
            y = graph.op("Where", mask, y, x)
        self._matrix = y

    # Neither is an operator. Both corrections are Kahan's: what 1 + x loses of a small x is put
    # back by dividing what is computed of it by what it should be.

    def _log1p(self, x: str) -> str:
        graph, one = self._graph, self._graph.constant(np.float64(1))
        u = graph.op("Add", x, one)
        as_it_is = graph.op("Or", graph.op("Equal", u, one), graph.op("IsInf", u))
        ratio = graph.op("Div", x, graph.op("Sub", u, one))
        return graph.op("Where", as_it_is, x, graph.op("Mul", graph.op("Log", u), ratio))

    def _expm1(self, y: str) -> str:
        graph, one = self._graph, self._graph.constant(np.float64(1))
        u = graph.op("Exp", y)
        less = graph.op("Sub", u, one)
        ends = graph.op("Equal", less, graph.constant(np.float64(-1)))
        ends = graph.op("Or", ends, graph.op("IsInf", u))
        ratio = graph.op("Div", y, graph.op("Log", u))
        result = graph.op("Where", ends, less, graph.op("Mul", less, ratio))
        return graph.op("Where", graph.op("Equal", u, one), y, result)

    def _fill(self, fills: list[Fill]) -> None:
        graph = self._graph
        missing = graph.op("IsNaN", self._matrix)
        filled = {t.column for t in fills}
        chosen = missing
        if filled != set(self._columns):
            mask = np.array([c in filled for c in self._columns])
            chosen = graph.op("And", missing, graph.constant(mask))
        values = self._vector({t.column: float(t.value) for t in fills}, 0.0)
        x = graph.op("Where", chosen, values, self._matrix)
        flags = [t for t in fills if t.indicator]
        if flags:
            at = np.array([self._columns.index(t.column) for t in flags], np.int64)
            flag = graph.op("Gather", missing, graph.constant(at), axis=1)
            x = graph.op("Concat", x, graph.op("Cast", flag, to=TensorProto.DOUBLE), axis=1)
            self._columns = [*self._columns, *(str(t.indicator) for t in flags)]
        self._matrix = x

    def _bound(self, compare: str, bounds: dict[str, float], nothing: float) -> None:
        """Bound with Where rather than Max and Min: a comparison with NaN is false, so null
        stays null."""
        if all(bound == nothing for bound in bounds.values()):
            return
        graph = self._graph
        limit = self._vector(bounds, nothing)
        beyond = graph.op(compare, self._matrix, limit)
        self._matrix = graph.op("Where", beyond, limit, self._matrix)

    def _apply_text(self, transform: Transform) -> None:
        graph, column = self._graph, transform.column
        text = self._texts[column]
        if isinstance(transform, Fill):
            self._fills[column] = _said(transform.value)
            if transform.indicator in self._features.numeric:
                self._flag_text(text, str(transform.indicator))
        if isinstance(transform, Codes):
            codes = {value: i for i, value in enumerate(transform.values, 1)}
            for text_value in self._fills.get(column, ()):
                if text_value in codes:
                    codes[""] = codes[text_value]
            self._codes[column] = graph.op(
                "LabelEncoder",
                text,
                domain=ML,
                keys_strings=list(codes) or ["\0"],
                values_int64s=list(codes.values()) or [0],
                default_int64=0,
            )
            if column in self._features.numeric:
                self._append_column(self._codes[column], column)

    def _flag_text(self, text: str, indicator: str) -> None:
        graph = self._graph
        flag = graph.op(
            "LabelEncoder",
            text,
            domain=ML,
            keys_strings=[""],
            values_floats=[1.0],
            default_float=0.0,
        )
        self._append_column(flag, indicator)

    def _append_column(self, values: str, column: str) -> None:
        """Append numbers made from text as a column of the matrix."""
        graph = self._graph
        column_node = self._concat([graph.op("Cast", values, to=TensorProto.DOUBLE)])
        self._matrix = (
            graph.op("Concat", self._matrix, column_node, axis=1) if self._matrix else column_node
        )
        self._columns = [*self._columns, column]

    def _vector(self, values: Mapping[str, float], otherwise: float) -> str:
        array = np.array([values.get(c, otherwise) for c in self._columns], np.float64)
        return self._graph.constant(array)


def _is_text(transform: Transform) -> bool:
    """Return whether its column is text before it."""
    if isinstance(transform, Fill):
        return isinstance(transform.value, str)
    return isinstance(transform, Codes)


def _said(value: float | str) -> tuple[str, ...]:
    """Return a fill value as text: `Fill` holds integers and booleans as floats."""
    if isinstance(value, str):
        return (value,)
    return (str(int(value)), str(bool(value)).lower())


def columns_of(
    features: Features, transforms: Sequence[Transform], schema: Schema
) -> frozenset[str]:
    """Return the names that inputs of a graph may have."""
    read = (*features.numeric, *features.categories, *features.nested)
    return frozenset((*schema, *read, *(transform.column for transform in transforms)))


def _layers(transforms: Sequence[Transform]) -> list[list[Transform]]:
    """Group consecutive transforms of one type over disjoint columns into one vector operation."""
    layers: list[list[Transform]] = []
    for transform in transforms:
        last: list[Any] = layers[-1] if layers else []
        alike = bool(last) and type(last[0]) is type(transform)
        if alike and transform.column not in {t.column for t in last}:
            last.append(transform)
        else:
            layers.append([transform])
    return layers


__all__ = ["StageGraph", "columns_of"]
