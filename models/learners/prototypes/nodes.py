"""Prototypes as ONNX nodes."""

from __future__ import annotations

import numpy as np

from engine.types import GraphBuilder
from engine.types.arrays import Floats
from models.learners.prototypes.table import PrototypeTable

NEVER = -1e30
"""The logit of a class without a prototype."""


def write_scores(graph: GraphBuilder, vectors: str, table: PrototypeTable) -> str:
    """Write the softmax over the negative distances of vectors to the prototypes; return the name
    of the probabilities, float32, (n, classes).

    Both are scaled, and seen from a point in their midst: a product of large numbers would cost
    float32 its digits. Of |z - p|^2 = |z|^2 - 2 zp + |p|^2 the first term is the same for all
    classes, so the softmax does without it.
    """
    spread = np.sqrt(table.weights)
    middle = table.mean if table.cosine else _middle(table)
    prototypes = (table.prototypes - middle) * spread
    z = graph.op("Sub", vectors, graph.constant(middle.astype(np.float32), "middle"))
    z = graph.op("Mul", z, graph.constant(spread.astype(np.float32), "spread"))
    if table.cosine:
        length = np.linalg.norm(prototypes, axis=1, keepdims=True)
        weights = table.sharpness * np.divide(prototypes, length, where=length > 0, out=prototypes)
        bias = table.sharpness * table.corrections
        z = _normed(graph, z)
    else:
        weights = 2 * table.sharpness * prototypes
        bias = table.sharpness * (table.corrections - (prototypes**2).sum(axis=1))
    none = table.counts == 0
    weights[none], bias[none] = 0.0, 0.0 if none.all() else NEVER
    logits = graph.op("MatMul", z, graph.constant(weights.T.astype(np.float32), "prototypes"))
    logits = graph.op("Add", logits, graph.constant(bias.astype(np.float32), "bias"))
    return graph.op("Softmax", logits, axis=1)


def _middle(table: PrototypeTable) -> Floats:
    there = table.counts > 0
    width = table.prototypes.shape[1]
    middle: Floats = table.prototypes[there].mean(axis=0) if there.any() else np.zeros(width)
    return middle


def _normed(graph: GraphBuilder, z: str) -> str:
    """Return vectors of length 1; those of length 0 stay as they are."""
    axis = graph.constant(np.array([1], np.int64), "axis")
    length = graph.op("Sqrt", graph.op("ReduceSum", graph.op("Mul", z, z), axis, keepdims=1))
    smallest = graph.constant(np.float32(1e-30), "smallest")
    return graph.op("Div", z, graph.op("Max", length, smallest))


__all__ = ["write_scores"]
