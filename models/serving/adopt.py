"""Adopts an ONNX file that was made elsewhere: frees a fixed batch size and sizes that it need not
fix, takes out what no column can hold, and proves that the answers stay the same.

The function `rework` runs in a child process (`models.serving.inspection` says why).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import UserError, nearest
from engine.system import atomic, limited_process
from engine.system.limited_process import Limits, ProcessFailed
from models.export.onnx_file import parsed
from models.serving.inspection import (
    CPU,
    Feed,
    GraphFile,
    differences,
    graph_value,
    inspect,
)
from models.serving.session import NotAModel, complaint, load
from models.serving.signature import TEXT, GraphValue, Size

if TYPE_CHECKING:
    import onnx

ROWS = "n"
"""The name of a freed batch size."""
PROOF_ROWS = 7
PROOF_SIZES = (1, 2, 3, PROOF_ROWS)
EXAMPLE_SIZE = 8
"""What a free size is in the proof."""
EQUAL = 1e-4
"""The largest difference, as a share of the largest answer, at which a file is proved equal."""
STATES = (5, 6)
"""The inputs of recurrent operators that hold the first states."""
Shapes = Mapping[str, tuple[Size, ...]]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """What was found out about a file.

    Attributes:
        graph: what is in it.
        size: bytes of the file.
        fixed: the rows that it takes at a time; None for any.
        path: the file to serve.
        served: what is in that file.
        changes: what was changed, in words.
        proof: that the changed file is equal; None if nothing was changed.
    """

    graph: GraphFile
    size: int
    fixed: int | None
    path: Path
    served: GraphFile
    changes: tuple[str, ...] = ()
    proof: Proof | None = None


def adopt(path: Path, target: Path, shapes: Shapes, limits: Limits) -> Adoption:
    """Look at a file, and write a changed one if that is of use and proved equal.

    Args:
        target: where the changed file goes; beside the file itself if it has external data.
        shapes: input -> the shape that it is to have; names are free sizes.

    Raises: UserError for an input that there is not, or a shape of other dimensions.
    """
    graph = inspect(path, limits)
    sizes = [v.shape[0] for v in graph.inputs if v.shape]
    found = Adoption(
        graph=graph,
        size=path.stat().st_size,
        fixed=next((size for size in sizes if isinstance(size, int)), None),
        path=path,
        served=graph,
    )
    if graph.refusal:
        return found
    wanted = _wanted(graph, shapes)
    changes = (
        *_reshaped(graph, wanted),
        *(f"output '{name}' is an array" for name in graph.mapped),
    )
    if not changes:
        return found
    if graph.external and target.resolve().parent != path.resolve().parent:
        raise UserError(
            f"'{path}' keeps weights in files beside it: expected --to in the same folder, got "
            f"'{target}'."
        )
    atomic.require_file(target, "--to")
    job = Rework(
        source=str(path),
        target=str(target),
        shapes=wanted,
        outputs=graph.mapped,
        labels=graph.labels,
    )
    try:
        proof: Proof = limited_process.call(f"{__name__}:rework", job, limits)
    except ProcessFailed as error:
        proof = Proof(failure=f"the changed file {error}")
    found = replace(found, changes=changes, proof=proof)
    if proof.failure:
        return found
    return replace(found, path=target, served=inspect(target, limits))


def _wanted(graph: GraphFile, shapes: Shapes) -> dict[str, tuple[Size, ...]]:
    """Return the new shape of each input that gets one."""
    inputs = {value.name: value for value in graph.inputs}
    for name, shape in shapes.items():
        if name not in inputs:
            raise UserError(f"--shape names '{name}', which is no input.{nearest(name, inputs)}")
        old = inputs[name].shape
        if old is not None and len(old) != len(shape):
            raise UserError(f"--shape {name}: expected {len(old)} sizes, got {len(shape)}.")
    freed = {
        value.name: (ROWS, *value.shape[1:])
        for value in graph.inputs
        if value.shape and isinstance(value.shape[0], int)
    }
    return {**freed, **shapes}


def _reshaped(graph: GraphFile, wanted: Shapes) -> Iterator[str]:
    for value in graph.inputs:
        new = wanted.get(value.name)
        if new is not None and new != value.shape:
            yield f"input {value} is {' x '.join(map(str, new))}"


# ----------------------------------------------------------------------------------- in the child


class _Unequal(Exception):
    """The changed file cannot be used; says why."""


def rework(job: Rework) -> Proof:
    """Write the changed file if it is proved equal; return the proof, or why there is none."""
    failure = ""
    for patch in (False, True):
        model = parsed(Path(job.source))
        original = [graph_value(value) for value in _inputs(model)]
        _change(model, job, patch=patch)
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


def _inputs(model: onnx.ModelProto) -> list[Any]:
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def _change(model: onnx.ModelProto, job: Rework, *, patch: bool) -> None:
    """Give the inputs their shapes, and forget what was inferred from the old ones."""
    graph = model.graph
    batch = None
    for value in _inputs(model):
        if value.name not in job.shapes:
            continue
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value:
            batch = batch or dims[0].dim_value
        del dims[:]
        for size in job.shapes[value.name]:
            dim = dims.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = size
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    _replace_outputs(graph, job.outputs)
    if patch and batch is not None:
        _free_constants(graph, batch)


def _replace_outputs(graph: Any, outputs: Mapping[str, str]) -> None:
    """Make the array before a ZipMap the output, under the output's name."""
    import onnx

    kept = [node for node in graph.node if not set(node.output) & outputs.keys()]
    if len(kept) == len(graph.node):
        return
    del graph.node[:]
    graph.node.extend(kept)
    for name, value in outputs.items():
        graph.node.append(onnx.helper.make_node("Identity", [value], [name]))
    for info in graph.output:
        if info.name in outputs:
            typed = onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, None)
            info.type.CopyFrom(typed)


def _free_constants(graph: Any, batch: int) -> None:
    """Let reshapes to the old batch size keep the rows of what they reshape, and recurrent nets
    begin with zeros for as many rows as there are."""
    constants = _constants(graph)
    for node in graph.node:
        if node.op_type in ("GRU", "LSTM", "RNN"):
            _free_states(node, constants)
        if node.op_type == "Reshape" and node.input[1] in constants:
            _free_reshape(node, constants[node.input[1]], batch)


def _free_states(node: Any, constants: Mapping[str, Any]) -> None:
    from onnx import numpy_helper

    for at in STATES:
        given = constants.get(node.input[at]) if at < len(node.input) else None
        if given is not None and not numpy_helper.to_array(given).any():
            node.input[at] = ""  # zeros of the right size


def _free_reshape(node: Any, tensor: Any, batch: int) -> None:
    from onnx import numpy_helper

    shape = numpy_helper.to_array(tensor).copy()
    places = np.flatnonzero(shape == batch)
    if not places.size:
        return
    if -1 not in shape:
        shape[places[0]] = -1  # what is left
    elif places[0] == 0 and 0 not in shape:
        shape[0] = 0  # as the input of the reshape has it
        del node.attribute[:]  # allowzero: 0 is no size of its own
    tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))


def _constants(graph: Any) -> dict[str, Any]:
    """Return the constant tensors of a graph, by name, to be changed in place."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type != "Constant":
            continue
        (attribute,) = node.attribute
        if attribute.name == "value_ints":
            tensor = numpy_helper.from_array(np.array(attribute.ints, np.int64))
            attribute.CopyFrom(helper.make_attribute("value", tensor))
        if attribute.name == "value":
            constants[node.output[0]] = attribute.t
    return constants


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


__all__ = ["Adoption", "Proof", "Rework", "adopt", "rework"]
