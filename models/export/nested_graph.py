"""Image, list and array columns of a model file: their inputs, masks and guards."""

from __future__ import annotations

import numpy as np
import polars as pl
from onnx import TensorProto

from engine.types import Features, GraphColumn, Schema
from models.export.onnx_graph import Graph
from models.export.onnx_inputs import PADDING, innermost

ELEMENT_TYPES = {
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
}
Shape = tuple[int | str, ...]


class NestedGraph:
    """Adds an input for each such column. A row that training would reject gets a NaN in `guards`,
    and zeros in place of what is wrong with it: an id outside its table would end the whole batch.

    Args:
        schema: types of the columns, as the model file reads them.

    Attributes:
        inputs: column -> its kind, see `models.export.onnx_inputs`.
        lengths: column of lists -> the most values that are kept; None keeps all.
        guards: names of float32 tensors, (n,): NaN for a bad row, else 0.
    """

    def __init__(self, graph: Graph, features: Features, schema: Schema) -> None:
        self._graph = graph
        self.inputs: dict[str, str] = {}
        self.lengths: dict[str, int | None] = {}
        self.guards: list[str] = []
        for column, image in features.images.items():
            graph.columns[column] = self._image(column, image, innermost(schema[column]))
        limits = [n for n in (features.max_length, *features.buckets[-1:]) if n is not None]
        most = min(limits, default=None)
        length = most if len(features.buckets) == 1 else None
        for column, ids in {**features.ragged, **features.padded, **features.sparse}.items():
            self.lengths[column] = most
            graph.columns[column] = (
                self._numbers(column, length)
                if innermost(schema[column]).is_float()
                else self._ids(column, length, ids)
            )
        for column, (rows, width) in features.arrays.items():
            self.lengths[column] = rows
            graph.columns[column] = self._numbers(column, rows, width)

    def _image(self, column: str, shape: tuple[int, int, int], element: pl.DataType) -> GraphColumn:
        dtype = "uint8" if element == pl.UInt8 else "float32"
        pixels = self._input(column, "image", dtype, shape)
        if dtype == "float32":
            pixels = self._finite(pixels, axes=(1, 2, 3))
        return GraphColumn(values=pixels, mask="", dtype=dtype)

    def _ids(self, column: str, length: int | None, ids: int) -> GraphColumn:
        """Give ids; one that is none of `ids` makes its row bad."""
        graph, none = self._graph, self._constant(np.int64(0))
        values = self._input(column, "ids", "int64", (length or f"{column}_length",))
        mask = graph.op("Greater", values, self._constant(np.int64(PADDING)))
        bad = graph.op("Less", values, self._constant(np.int64(PADDING)))
        if ids:
            large = graph.op("Greater", values, self._constant(np.int64(ids - 1)))
            bad = graph.op("Or", bad, large)
        nan, zero = self._constant(np.float32(np.nan)), self._constant(np.float32(0))
        self._guard(graph.op("Where", bad, nan, zero), (1,))
        unusable = graph.op("Or", bad, graph.op("Not", mask))
        ids_or_zero = graph.op("Where", unusable, none, values)
        return GraphColumn(values=ids_or_zero, mask=mask, dtype="int64", length=length)

    def _numbers(self, column: str, length: int | None, *width: int) -> GraphColumn:
        """Give numbers, NaN where there is none; one that is infinite makes its row bad."""
        graph = self._graph
        shape = (length or f"{column}_length", *width)
        values = self._input(column, "array" if width else "floats", "float32", shape)
        absent = graph.op("IsNaN", values)
        values = graph.op("Where", absent, self._constant(np.float32(0)), values)
        values = self._finite(values, axes=tuple(range(1, 1 + len(shape))))
        if width:  # a row of an array is there or not as a whole
            absent = graph.op("Gather", absent, self._constant(np.int64(0)), axis=2)
        mask = graph.op("Not", absent)
        return GraphColumn(values=values, mask=mask, dtype="float32", length=length)

    def _finite(self, values: str, axes: tuple[int, ...]) -> str:
        """Replace what is not finite by 0, and mark its row as bad."""
        graph, zero = self._graph, self._constant(np.float32(0))
        nan = graph.op("Mul", values, zero)  # NaN there, else 0
        self._guard(nan, axes)
        return graph.op("Where", graph.op("IsNaN", nan), zero, values)

    def _guard(self, nan: str, axes: tuple[int, ...]) -> None:
        over = self._constant(np.array(axes, np.int64))
        self.guards.append(self._graph.op("ReduceSum", nan, over, keepdims=0))

    def _input(self, column: str, kind: str, dtype: str, shape: Shape) -> str:
        self.inputs[column] = kind
        return self._graph.input(column, ELEMENT_TYPES[dtype], ["n", *shape])

    def _constant(self, value: object) -> str:
        return self._graph.constant(value)


__all__ = ["ELEMENT_TYPES", "NestedGraph"]
