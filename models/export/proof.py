"""Proves that a model file scores as the learner does."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import polars as pl
import torch
from numpy.typing import NDArray

from engine.types import Learner, Scales, Schema, Transform, UserError
from engine.types.plural import counted
from models.export.front_tensors import FrontTensors, write_front
from models.export.model_files import STATE_BEFORE, score_of
from models.export.onnx_inputs import OnnxInputs

TOLERANCE = 1e-5
"""The largest difference of a converted network's scores, as a share of the largest."""
SIZES = (1, 2, 3, 64)
"""The batches that are scored besides all rows: a network may be converted for one size alone."""
CHUNK = 1_024


def first_difference(
    got: Sequence[NDArray[Any]],
    expected: Sequence[NDArray[Any]],
    tolerance: float = TOLERANCE,
) -> tuple[int, float, float] | None:
    """Return the first size at which scores differ, with a score of each; None if all are equal.

    Args:
        got, expected: scores by size, shape (n, ...) each.
        tolerance: the largest difference, as a share of the largest score.
    """
    largest = max(
        (np.abs(scores[np.isfinite(scores)]).max(initial=0.0) for scores in expected), default=0.0
    )
    for ours, theirs in zip(got, expected, strict=True):
        if ours.shape != theirs.shape:
            return len(theirs), float("nan"), float("nan")
        same = np.isclose(ours, theirs, rtol=0, atol=tolerance * largest, equal_nan=True)
        if not same.all():
            at = np.unravel_index(np.argmin(same), same.shape)
            return len(theirs), float(ours[at]), float(theirs[at])
    return None


def session(model: bytes) -> Any:
    """Return a session on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def prove(
    model: onnx.ModelProto,
    learner: Learner,
    transforms: Sequence[Transform],
    schema: Schema,
    rows: pl.DataFrame,
    scales: Scales = (),
) -> None:
    """Score rows with both, in batches of several sizes.

    Args:
        rows: as the model file reads them; at least one.
        scales: what stages scale features with now.

    Raises: UserError naming the first size at which they differ.
    """
    features = learner.features
    graph, stages, outputs = write_front(features, transforms, schema)
    front = FrontTensors(session(graph.model(outputs, {}).SerializeToString()), features)
    inputs = OnnxInputs(stages.inputs, lengths=stages.lengths, buckets=features.buckets)
    state = features.state
    scorer = session(model.SerializeToString())
    got: list[NDArray[Any]] = []
    expected: list[NDArray[Any]] = []
    for part in _parts(rows):
        feed = inputs.feed(part)
        tensors, bad = front.of(feed, part.height)
        tensors = dataclasses.replace(tensors, scales=scales)
        if state is not None:  # each row is its key's first
            feed[STATE_BEFORE] = np.zeros((part.height, state.width), np.float32)
            keys = torch.arange(part.height)
            times = None if state.time is None else torch.zeros_like(keys)
            tensors = dataclasses.replace(tensors, keys=keys, times=times)
        for scores, kept in (
            (scorer.run([score_of(scorer)], feed)[0], got),
            (learner.predict(tensors), expected),
        ):
            kept.append(np.where(bad.reshape(-1, *[1] * (scores.ndim - 1)), np.nan, scores))
    if difference := first_difference(got, expected, learner.unwrapped.score_rounding):
        n, ours, theirs = difference
        raise UserError(
            f"[model] cannot be exported: of {counted(n, 'row')} at a time, the ONNX file scores "
            f"one {ours:.6g}, and the trained model {theirs:.6g}. Its network computes otherwise "
            "for such a batch: look for sizes that are numbers in its forward."
        )


def _parts(rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield batches of `SIZES`, rows repeated where there are fewer; then all rows."""
    for size in SIZES:
        yield rows[np.resize(np.arange(rows.height), size)]
    yield from rows.iter_slices(CHUNK)


__all__ = ["TOLERANCE", "first_difference", "prove", "session"]
