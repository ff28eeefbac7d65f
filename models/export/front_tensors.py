"""The front of a model file by itself: from raw columns to the tensors that a learner reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto

from engine.types import Features, Padded, Ragged, Schema, Sparse, Tensors, Transform
from models.export.front import StageGraph, columns_of
from models.export.nested_graph import ELEMENT_TYPES
from models.export.onnx_graph import Graph
from models.export.onnx_inputs import Feed

Outputs = dict[str, tuple[str, int, list[int | str]]]
"""Name of an output of a graph -> its value, element type and shape."""


def write_front(
    features: Features, transforms: Sequence[Transform], schema: Schema
) -> tuple[Graph, StageGraph, Outputs]:
    """Return a graph that ends where a learner begins, and its outputs."""
    graph = Graph(taken=columns_of(features, transforms, schema))
    stages = StageGraph(graph, features, transforms, schema)
    d, c = len(features.numeric), len(features.categories)
    outputs: Outputs = {}
    if d:
        outputs["front/numeric"] = (stages.numeric(), TensorProto.FLOAT, ["n", d])
    if c:
        outputs["front/categories"] = (stages.categories(), TensorProto.INT64, ["n", c])
    for name in features.nested:
        column = graph.column(name)
        shape = _shape(features, name)
        outputs[f"{name}/values"] = (column.values, ELEMENT_TYPES[column.dtype], shape)
        if column.mask:
            outputs[f"{name}/mask"] = (column.mask, TensorProto.BOOL, shape[:2])
    if guard := stages.guard():
        outputs["front/guard"] = (guard, TensorProto.FLOAT, ["n"])
    return graph, stages, outputs


class FrontTensors:
    """Runs a front.

    Args:
        session: of ONNX Runtime.
        features: of the learner.
    """

    def __init__(self, session: Any, features: Features) -> None:
        self._session = session
        self._features = features
        self._names = [value.name for value in session.get_outputs()]

    def of(self, feed: Feed, n: int) -> tuple[Tensors, NDArray[np.bool_]]:
        """Return what the learner reads of n rows, and which of them training would reject."""
        features = self._features
        found = dict(zip(self._names, self._session.run(self._names, feed), strict=True))

        def padded(name: str) -> Padded:
            values, mask = (
                torch.from_numpy(found[f"{name}/{part}"]) for part in ("values", "mask")
            )
            return Padded(values=values, mask=mask)

        tensors = Tensors(
            numeric=torch.from_numpy(found.get("front/numeric", np.empty((n, 0), np.float32))),
            categories=torch.from_numpy(found.get("front/categories", np.empty((n, 0), np.int64))),
            images={name: torch.from_numpy(found[f"{name}/values"]) for name in features.images},
            ragged={name: _ragged(padded(name)) for name in features.ragged},
            padded={name: padded(name) for name in features.padded},
            sparse={name: _sparse(padded(name), ids) for name, ids in features.sparse.items()},
            arrays={name: padded(name) for name in features.arrays},
        )
        bad = np.isnan(found.get("front/guard", np.zeros(n, np.float32)))
        return tensors, bad


def _shape(features: Features, name: str) -> list[int | str]:
    if name in features.images:
        return ["n", *features.images[name]]
    width = [features.arrays[name][1]] if name in features.arrays else []
    return ["n", f"{name}_length", *width]


def _ragged(rows: Padded) -> Ragged:
    ends = torch.cumsum(rows.mask.sum(1), 0)
    return Ragged(
        values=rows.values[rows.mask], offsets=torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    )


def _sparse(rows: Padded, width: int) -> Sparse:
    """Return how often each id is in each row."""
    number = torch.arange(len(rows.mask))[:, None] * width + rows.values
    cells, counts = torch.unique(number[rows.mask], return_counts=True)
    ends = torch.searchsorted(cells, torch.arange(len(rows.mask) + 1) * width)
    return Sparse(indices=cells % width, offsets=ends, weights=counts.float(), width=width)


__all__ = ["FrontTensors", "Outputs", "write_front"]
