"""Writes a changed file and proves that it gives the answers of the original.

`rework` runs in a child process (`models.serving.inspection` says why).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.system import atomic
from models.export.onnx_file import parsed
from models.serving.adopt.graph_changes import Shapes, change, inputs_of
from models.serving.inspection import CPU, Feed, differences, graph_value
from models.serving.session import NotAModel, complaint, load
from models.serving.signature import TEXT, GraphValue, Size

if TYPE_CHECKING:
    import onnx

PROOF_ROWS = 7
PROOF_SIZES = (1, 2, 3, PROOF_ROWS)
EXAMPLE_SIZE = 8
"""What a free size is in the proof."""
EQUAL = 1e-4
"""The largest difference, as a share of the largest answer, at which a file is proved equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rework:
    """What to change.

    Attributes:
        source, target: the file, and where the changed one goes.
        shapes: input -> its new shape.
        outputs: output -> the value that replaces it.
        labels: output -> the keys of its map, in the order of that value.
    """

    source: str
    target: str
    shapes: Shapes
    outputs: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was compared.

    Attributes:
        failure: why the changed file is not equal; "" if it is.
        rows: compared, in batches of each of `PROOF_SIZES`, with the same rows one by one.
        apart: the largest difference, as a share of the largest answer.
        compared: whether with the original's answers; else the changed file with itself.
    """

    failure: str = ""
    rows: int = 0
    apart: float = 0.0
    compared: bool = True


class _Unequal(Exception):
    """The changed file cannot be used; says why."""


def rework(job: Rework) -> Proof:
    """Write the changed file if it is proved equal; return the proof, or why there is none."""
    failure = ""
    for patch in (False, True):
        model = parsed(Path(job.source))
        original = [graph_value(value) for value in inputs_of(model)]
        change(model, job.shapes, job.outputs, patch=patch)
        try:
            with atomic.written(Path(job.target)) as temporary:
                _save(model, temporary)
                return _proved(job, temporary, original)
        except _Unequal as error:
            failure = failure or str(error)
    return Proof(failure=failure)


def _save(model: onnx.ModelProto, path: Path) -> None:
    import onnx

    onnx.save_model(model, path)


def _proved(job: Rework, changed: Path, original: Sequence[GraphValue]) -> Proof:
    """Compare the changed file with the original, row by row. Raises: _Unequal."""
    try:
        session = load(changed, CPU, 1)
    except NotAModel as error:
        raise _Unequal(f"the changed file does not load ({error})") from None
    outputs = [output.name for output in session.get_outputs() if "string" not in output.type]
    new = {value.name: job.shapes.get(value.name, value.shape) for value in original}
    fits = all(_takes(new[value.name], value.shape) for value in original)
    example = _example(original, {v.name: v.shape for v in original} if fits else new)
    try:
        wanted = (
            _one_by_one_of(job, example, original, outputs)
            if fits
            else [_run(session, outputs, _part(example, [row])) for row in range(PROOF_ROWS)]
        )
        apart = _largest(session, outputs, example, wanted)
    except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds, all its own
        raise _Unequal(f"the changed file does not run ({complaint(error)})") from None
    if not apart <= EQUAL:
        raise _Unequal(f"answers change by {apart:.2g} of the largest when rows share a batch")
    return Proof(rows=PROOF_ROWS, apart=apart, compared=fits)


def _takes(shape: Sequence[Size] | None, sizes: Sequence[Size] | None) -> bool:
    """Return whether an input of this shape takes an array of the old sizes."""
    if shape is None or sizes is None:
        return True
    pairs = zip(shape[1:], sizes[1:], strict=True)
    return all(not isinstance(size, int) or size == old for size, old in pairs)


def _example(values: Sequence[GraphValue], shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Return made-up rows for every input."""
    rng = np.random.default_rng(0)
    feed: dict[str, Any] = {}
    for value in values:
        shape = shapes[value.name] or (None,)
        sizes = [size if isinstance(size, int) else EXAMPLE_SIZE for size in shape[1:]]
        full = (PROOF_ROWS, *sizes)
        if value.type == TEXT:
            feed[value.name] = np.full(full, "a", object)
        elif value.is_float:
            feed[value.name] = rng.uniform(size=full).astype(value.type)
        else:
            feed[value.name] = rng.integers(0, 2, full).astype(value.type)
    return feed


def _one_by_one_of(
    job: Rework, feed: Feed, values: Sequence[GraphValue], outputs: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the original's answers to each row: alone, or as all rows of its fixed batch."""
    session = load(Path(job.source), CPU, 1)
    size = next((v.shape[0] for v in values if v.shape and isinstance(v.shape[0], int)), 1)
    rows = []
    for row in range(PROOF_ROWS):
        answers = _run(session, outputs, _part(feed, [row] * size))
        rows.append(
            {
                name: _unmapped(value, job.labels[name]) if name in job.outputs else value[:1]
                for name, value in answers.items()
            }
        )
    return rows


def _unmapped(rows: Sequence[Mapping[Any, float]], labels: Sequence[str]) -> Any:
    """Return what a ZipMap made of an array, as an array of one row."""
    scores = {str(label): score for label, score in rows[0].items()}
    return np.array([[scores[label] for label in labels]], np.float32)


def _largest(
    session: Any, outputs: Sequence[str], feed: Feed, wanted: Sequence[Mapping[str, Any]]
) -> float:
    """Return the largest difference of batches of several sizes from the rows one by one."""
    apart = 0.0
    for size in PROOF_SIZES:
        answers = _run(session, outputs, _part(feed, range(size)))
        for name in outputs:
            rows = np.concatenate([row[name] for row in wanted[:size]])
            apart = max(apart, differences(rows, answers[name], range(size)))
    return apart


def _part(feed: Feed, rows: Sequence[int]) -> dict[str, Any]:
    return {name: array[list(rows)] for name, array in feed.items()}


def _run(session: Any, outputs: Sequence[str], feed: Feed) -> dict[str, Any]:
    return dict(zip(outputs, session.run(list(outputs), dict(feed)), strict=True))


__all__ = ["Proof", "Rework", "rework"]
