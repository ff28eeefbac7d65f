"""Exports a learner and the stages before it as one ONNX file, from raw columns to scores.

Imputation, clipping, scaling and category codes are nodes of the graph, with the numbers that
training used, so what serves cannot differ from what was learned. Each raw column is an input of
its own; `models.export.onnx_inputs` has a table of them. The output ``score`` is float32, shape
(n,) or (n, k). A classifier of vectors has the output ``vector``, float32, (n, width), each of
length 1. Of a model with a state per key, the input ``state/before`` has what the keys of the rows
carry, and the output ``state/after`` what they carry then, (n, width) float32; no two rows of a
call may have the same key.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
import polars as pl
from onnx import TensorProto

from engine.types import Codes, Features, Learner, Scales, Schema, Transform, UserError
from engine.user_code.calls import Calling, named
from models.export.body import NotExportable
from models.export.front import StageGraph, columns_of
from models.export.front_tensors import write_front
from models.export.model_files import FORMAT, SCORE, STATE_AFTER, VECTOR, write
from models.export.onnx_graph import Graph
from models.export.properties import Properties

log = logging.getLogger("headrace.export")
FEW = 1_000
"""The most categories of a column that a file lists, so that who serves it counts unknown ones."""


def export(
    path: Path,
    learner: Learner,
    transforms: Sequence[Transform],
    metadata: Mapping[str, str],
    *,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    schema: Schema | None = None,
    scales: Scales = (),
    rows: pl.DataFrame | None = None,
) -> Path:
    """Write the model file atomically.

    Args:
        transforms: what the stages do now, in their order; those of columns the model does not read
            are left out.
        metadata: further properties; the format, task, features and inputs are added, and a version
            by the content where none is given.
        ranges: column -> smallest and largest value seen, for whoever watches the data drift.
        schema: types of the columns that the file reads; needed for images, lists and arrays.
        scales: what stages scale features with now, those before the model file's too; needed by
            learners that keep what they know in a scale of its own.
        rows: raw rows, with which `make` proves the model.

    Raises: UserError if the learner cannot be exported.
    """
    model = make(
        learner, transforms, metadata, ranges=ranges, schema=schema, scales=scales, rows=rows
    )
    return write(model, path)


def make(
    learner: Learner,
    transforms: Sequence[Transform],
    metadata: Mapping[str, str],
    *,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    schema: Schema | None = None,
    scales: Scales = (),
    rows: pl.DataFrame | None = None,
) -> onnx.ModelProto:
    """Return the model of `export`. A network that torch has converted is proved to score as the
    learner does.

    A module that cannot become ONNX is packed as it is, and torch runs it where the file is served.

    Raises: UserError if the learner cannot be exported, or the model scores otherwise.
    """
    features = learner.features
    graph = Graph(scales, columns_of(features, transforms, schema or {}))
    front = StageGraph(graph, features, transforms, schema)
    numeric, categories = front.numeric(), front.categories()
    packed: Mapping[str, str] = {}
    try:
        with Calling("model", learner.unwrapped):
            score = learner.build(graph, numeric, categories)
    except NotExportable as error:
        packed = _packed(learner, error)
        score = ""
    shape: list[int | str] = ["n"] if features.outputs == 1 else ["n", features.outputs]
    properties = {**metadata, **packed, **_properties(features, front, ranges or {})}
    properties["vocabularies"] = json.dumps(
        {t.column: t.values for t in transforms if isinstance(t, Codes) and len(t.values) <= FEW}
    )
    if packed:
        graph, _, outputs = write_front(features, transforms, schema or {})
    else:
        guarded = front.with_nan_guard(score, outputs=features.outputs)
        outputs = {SCORE: (guarded, TensorProto.FLOAT, shape)}
        outputs |= _vectors(learner, graph, front)
    if features.state is not None:
        properties["state"] = json.dumps(dataclasses.asdict(features.state))
        width: list[int | str] = ["n", features.state.width]
        outputs[STATE_AFTER] = (graph.new_state, TensorProto.FLOAT, width)
    model = graph.model(outputs, properties)
    if "version" not in properties:
        content = model.graph.SerializeToString(deterministic=True)
        answers = {k: properties[k] for k in {*Properties.model_fields, *packed} & {*properties}}
        content += json.dumps(answers, sort_keys=True).encode()  # classes, threshold, torch weights
        model.metadata_props.add(key="version", value=hashlib.sha256(content).hexdigest()[:8])
    if graph.has_appended and rows is not None and rows.height:
        from models.export import proof  # onnxruntime and torch

        proof.prove(model, learner, transforms, schema or {}, rows, scales)
    return model


def _vectors(
    learner: Learner, graph: Graph, front: StageGraph
) -> dict[str, tuple[str, int, list[int | str]]]:
    """Return the output with the vectors, if there are any.

    Raises: UserError for a learner that answers vectors and writes none, or the other way round.
    """
    width = learner.features.vector_width
    if bool(graph.vector) != bool(width):
        raise UserError(
            f"{named('model', learner.unwrapped)} answers vectors of {width} numbers, and its "
            f"build wrote {'one' if graph.vector else 'none'}: vector_width and "
            "graph.vector_output belong together."
        )
    if not width:
        return {}
    guarded = front.with_nan_guard(graph.vector, outputs=width)
    return {VECTOR: (guarded, TensorProto.FLOAT, ["n", width])}


def _properties(
    features: Features, front: StageGraph, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, str]:
    """Return the metadata that every model has."""
    properties = {
        "format": FORMAT,
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "task": features.task,
        "target": features.target or "",
        "targets": json.dumps(features.targets),
        "quantiles": json.dumps(features.quantiles),
        "quantile": json.dumps(features.quantile),
        "classes": json.dumps(features.classes),
        "threshold": repr(features.threshold),
        "features": json.dumps([*features.numeric, *features.categories, *features.nested]),
        "inputs": json.dumps(front.inputs),
        "ranges": json.dumps({k: list(v) for k, v in ranges.items() if k in front.inputs}),
        "precision": "float32",
        "vector_width": str(features.vector_width),
    }
    if front.lengths:
        properties["lengths"] = json.dumps(front.lengths)
        properties["buckets"] = json.dumps(features.buckets)
    return properties


def _packed(learner: Learner, error: NotExportable) -> dict[str, str]:
    """Return the network that torch runs in place of one that cannot become ONNX, and say so.

    Raises: NotExportable if it cannot be packed either.
    """
    packed = learner.torch_body()
    if packed is None:
        raise error
    log.warning(
        "%s. The model file holds its weights instead, and torch runs it where '[infer] module' "
        "names %s: float32 serves, and every serving process loads torch.",
        error.why,
        packed["module"],
    )
    return {"body": "torch", **packed}


__all__ = ["export", "make"]
