"""A learner and the scrub stages before it as one ONNX file that takes raw columns."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from engine.types import Features, Learner, Transform, UserError
from models.feed import Inputs
from models.graph import Graph, TensorProto
from models.preparation import Preparation

FORMAT = "headrace/1"
"""Value of the metadata property ``format``: what else is in the file, and how to read it."""
NETWORK = "network/"
"""Names of the network's nodes begin with it; compression touches no others."""


def export(
    path: Path | str,
    learner: Learner,
    transforms: Sequence[Transform],
    metadata: Mapping[str, str],
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Path:
    """Write the model so that a bare onnxruntime session fed raw columns answers as the learner.

    Inputs are the raw columns, each of shape (n,): numbers as double (null is NaN), text as string
    (null is "", or what the property ``null_text`` says), codes made before the model as int64.
    The one output, ``score``, is float32, (n,) or (n, classes) as in `engine.types.Step.scores`;
    it is NaN where a numeric feature is not finite: such rows were never learned from.

    Metadata properties: format, task, target, classes, features, inputs, null_text, precision,
    created, target_transforms (what happens to the label before it is learned), ranges if given,
    and the caller's.

    Args:
        path: written atomically.
        transforms: of the stages inside, in order.
        metadata: version, pipeline, stages, schema, mark.
        ranges: raw column -> lowest and highest value seen.

    Raises: UserError when the learner cannot be exported, or reads nothing.
    """
    features = learner.features
    build = getattr(learner, "build", None)
    if build is None:
        raise UserError(
            f"The learner {type(learner).__name__} cannot be exported: it needs a method "
            "build(graph, numeric, categories) that writes it into a models.graph.Graph."
        )
    if not features.numeric and not features.categories:
        raise UserError("A model without features cannot be exported: set [model] numeric.")
    graph = Graph()
    inputs, score = _written(graph, features, transforms, build)
    shape = ["n"] if features.outputs == 1 else ["n", features.outputs]
    properties = dict(metadata) | _properties(features, inputs, transforms)
    if ranges is not None:
        properties["ranges"] = json.dumps({c: list(ends) for c, ends in ranges.items()})
    output = _output(inputs)
    model = graph.model({output: (score, TensorProto.FLOAT, shape)}, properties)
    return write_atomic(path, model.SerializeToString())


def write_atomic(path: Path | str, data: bytes) -> Path:
    """All of the bytes on the disk under that name, or the file as it was before."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(path.parent)
    return path


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _written(
    graph: Graph, features: Features, transforms: Sequence[Transform], build: Any
) -> tuple[Inputs, str]:
    """All nodes; the raw columns, and the name of the score."""
    graph.scope = "prepare/"
    preparation = Preparation(graph, features, transforms)
    numeric = preparation.numeric() if features.numeric else None
    categories = preparation.categories() if features.categories else None
    some = numeric or categories
    assert some is not None
    across = [
        _empty(graph, some, kind) if x is None else graph.op("Transpose", x, perm=[1, 0])
        for x, kind in ((numeric, np.float32), (categories, np.int64))
    ]
    graph.scope = NETWORK
    score: str = build(graph, *across)
    graph.scope = "finish/"
    if numeric is not None:
        score = graph.op("Add", score, _unsound(graph, numeric, features.outputs))
    return preparation.inputs, score


def _empty(graph: Graph, other: str, kind: type[np.generic]) -> str:
    """A matrix (n, 0), for a network that reads no features of that kind."""
    rows = graph.op("Shape", other, start=1, end=2)
    shape = graph.op("Concat", rows, graph.constant(np.zeros(1, np.int64)), axis=0)
    zero = graph.op("ConstantOfShape", shape)
    element = TensorProto.FLOAT if kind is np.float32 else TensorProto.INT64
    return graph.op("Cast", zero, to=element)


def _unsound(graph: Graph, numeric: str, outputs: int) -> str:
    """0 for each row, but NaN where a feature is not finite: quantized layers and some activations
    would make a number of it."""
    zeros = graph.op("Mul", numeric, graph.constant(np.float32(0)))
    axes = graph.constant(np.array([0], np.int64), "axes")
    total = graph.op("ReduceSum", zeros, axes, keepdims=int(outputs > 1))
    return graph.op("Transpose", total, perm=[1, 0]) if outputs > 1 else total


def _output(inputs: Inputs) -> str:
    name = "score"
    while name in inputs.kinds:
        name += "_"
    return name


def _properties(
    features: Features, inputs: Inputs, transforms: Sequence[Transform]
) -> dict[str, str]:
    label = [_plain(t) for t in transforms if t.column == features.target]
    return {
        "format": FORMAT,
        "task": features.task,
        "target": features.target or "",
        "target_transforms": json.dumps(label),
        "classes": json.dumps(features.classes),
        "features": json.dumps(
            {"numeric": features.numeric, "categories": dict(features.categories)}
        ),
        "inputs": json.dumps(dict(inputs.kinds)),
        "null_text": inputs.null_text,
        "precision": "float32",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _plain(transform: Transform) -> dict[str, Any]:
    fields = {name: getattr(transform, name) for name in transform.__slots__}
    return {"kind": type(transform).__name__} | fields


__all__ = ["FORMAT", "NETWORK", "export", "write_atomic"]
