"""Looks at an ONNX file that was made elsewhere, and tries it, in a child process with limits: a
file can end the process that loads it, loop for days or ask for all memory.

The functions `read` and `attempt` run in the child. They import neither torch nor polars.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.system import limited_process
from engine.system.limited_process import Limits, ProcessFailed
from models.export.onnx_file import parsed
from models.serving.session import (
    PROVIDER_NAMES,
    NotAModel,
    available_providers,
    complaint,
    known_operators,
    load,
)
from models.serving.signature import TEXT, GraphValue, Size

if TYPE_CHECKING:
    import onnx

    from models.serving.settings import InferSettings

Feed = Mapping[str, NDArray[Any]]

CPU = ("cpu",)
MEMORY = 2 << 30
"""The bytes that any file may take, beside eight times its size."""
RANDOM_OPERATORS = frozenset(
    ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
     "RandomUniformLike")
)  # fmt: skip
BATCH_RANGES = frozenset(("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"))
"""Operators that quantize a batch by its own range: an answer depends a little on the rows beside
it."""
SAME_CLASSES = frozenset(
    ("Cast", "Identity", "LogSoftmax", "Normalizer", "Sigmoid", "Softmax", "ZipMap")
)
"""Operators whose output has the classes of their input, in the same order."""
STANDARD_DOMAIN = "ai.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphFile:
    """What an ONNX file holds.

    Attributes:
        refusal: why it cannot be served, as the end of a sentence; "" if it can.
        properties: its metadata.
        producer: the program that wrote it, and its version.
        opsets: domain -> version.
        operators: name -> how often, in all of its graphs; those of other domains than ONNX's own
            as ``domain.name``.
        unknown: operators that ONNX Runtime does not have.
        inputs, outputs: of the graph.
        labels: value -> the class labels that the graph itself holds for it.
        mapped: output -> the value behind a ZipMap: the same as an array.
        external: names of the files beside it that hold weights.
    """

    refusal: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)
    producer: str = ""
    opsets: Mapping[str, int] = field(default_factory=dict)
    operators: Mapping[str, int] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    inputs: tuple[GraphValue, ...] = ()
    outputs: tuple[GraphValue, ...] = ()
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mapped: Mapping[str, str] = field(default_factory=dict)
    external: tuple[str, ...] = ()

    @property
    def draws(self) -> bool:
        """Whether its answers are random."""
        return bool(RANDOM_OPERATORS & self.operators.keys())

    @property
    def quantizes_by_batch(self) -> bool:
        """Whether an answer depends a little on the rows beside it."""
        return any(name.rpartition(".")[2] in BATCH_RANGES for name in self.operators)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTrial:
    """What to try.

    Attributes:
        path: the file.
        outputs: names of the outputs to look at.
        feeds: inputs to try, in this order, until the graph takes one.
        fixed: names of inputs that do not have a row for each row.
        one_by_one: also run the rows alone.
        providers: to run on.
    """

    path: str
    outputs: tuple[str, ...]
    feeds: tuple[Feed, ...]
    fixed: tuple[str, ...] = ()
    one_by_one: bool = True
    providers: tuple[str, ...] = CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a trial gave.

    Attributes:
        refusal: why the graph cannot be run, as the end of a sentence; "" if it can.
        shapes: of the outputs.
        types: numpy names of their types; "" for what is no array.
        apart: output -> the largest difference between a row's answers in two batches, as a share
            of its largest answer; infinite if the shapes differ.
    """

    refusal: str = ""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    apart: Mapping[str, float] = field(default_factory=dict)


def limits_of(settings: InferSettings) -> Limits:
    """Return the limits within which the file that the settings name is tried."""
    size = Path(settings.model).stat().st_size
    memory = settings.max_memory or MEMORY + 8 * size
    on_cpu = set(available_providers(settings.providers)) <= {PROVIDER_NAMES["cpu"]}
    return Limits(seconds=settings.max_seconds, memory=int(memory), allocations=on_cpu)


def inspect(path: Path, limits: Limits, providers: tuple[str, ...] = CPU) -> GraphFile:
    """Look at a file and load it, in a child process."""
    job = (str(path), providers)
    try:
        graph: GraphFile = limited_process.call(f"{__name__}:read", job, limits)
    except ProcessFailed as error:
        return GraphFile(refusal=f"loading it {_failure(error)}")
    return graph


def run_trial(trial: FileTrial, limits: Limits) -> Outcome:
    """Run the graph on a few rows, in a child process."""
    try:
        outcome: Outcome = limited_process.call(f"{__name__}:attempt", trial, limits)
    except ProcessFailed as error:
        return Outcome(refusal=f"running it on a few rows {_failure(error)}")
    return outcome


def _failure(error: ProcessFailed) -> str:
    text = str(error)
    known = text.startswith(("took ", "crashed ", "hung", "ended "))
    return text if known else f"failed ({text})"


# ------------------------------------------------------------------------------- in the child: read


def read(job: tuple[str, tuple[str, ...]]) -> GraphFile:
    """Parse the file, look at what it needs, load it on the first of the providers that can."""
    path, providers = Path(job[0]), job[1]
    try:
        model = parsed(path)
    except ValueError as error:
        return GraphFile(refusal=f"it is no ONNX model ({error})")
    graph = _described(model)
    refusal = _unusable(graph) or _data_problem(model, path.parent)
    if refusal or "format" in graph.properties:  # headrace's own: it says so itself
        return replace(graph, refusal=refusal)
    try:
        session = load(path, providers, 1)
    except NotAModel as error:
        return replace(graph, refusal=f"ONNX Runtime cannot load it ({error})")
    inferred = {output.name: tuple(output.shape) for output in session.get_outputs()}
    outputs = tuple(_with_shape(value, inferred[value.name]) for value in graph.outputs)
    return replace(graph, outputs=outputs)


def _described(model: onnx.ModelProto) -> GraphFile:
    operators = Counter(
        f"{domain}.{node.op_type}" if (domain := _domain(node)) else node.op_type
        for node in _nodes(model)
    )
    own = {(function.domain, function.name) for function in model.functions}
    known = known_operators() | own
    unknown = {
        f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        for node in _nodes(model)
        if (_domain(node), node.op_type) not in known
    }
    weights = {tensor.name for tensor in model.graph.initializer}
    mapped, labels = _mapped(model)
    return GraphFile(
        properties={prop.key: prop.value for prop in model.metadata_props},
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        opsets={entry.domain or STANDARD_DOMAIN: entry.version for entry in model.opset_import},
        operators=dict(operators),
        unknown=tuple(sorted(unknown)),
        inputs=tuple(graph_value(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(
            replace(graph_value(v), labels=labels.get(v.name, ())) for v in model.graph.output
        ),
        labels=labels,
        mapped=mapped,
        external=tuple(sorted({_location(t) for t in _tensors(model) if _is_external(t)})),
    )


def graph_value(info: onnx.ValueInfoProto) -> GraphValue:
    """Return an input or output as the graph declares it."""
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        return GraphValue(name=info.name, type=_words(info.type), shape=None)
    tensor = info.type.tensor_type
    shape = tuple(map(_size, tensor.shape.dim)) if tensor.HasField("shape") else None
    return GraphValue(name=info.name, type=_element(tensor.elem_type), shape=shape)


def _size(dim: Any) -> Size:
    if dim.HasField("dim_value") and dim.dim_value > 0:
        return int(dim.dim_value)
    return str(dim.dim_param) or None


def _element(number: int) -> str:
    import onnx

    if number == onnx.TensorProto.STRING:
        return TEXT
    try:
        name = str(onnx.TensorProto.DataType.Name(number)).lower()
    except ValueError:
        return f"type {number}"
    return {"float": "float32", "double": "float64"}.get(name, name)


def _words(proto: Any) -> str:
    """Return the type of what is no array."""
    kind = str(proto.WhichOneof("value") or "unknown")
    if kind == "sequence_type":
        return f"seq({_words(proto.sequence_type.elem_type)})"
    if kind == "map_type":
        value = _words(proto.map_type.value_type)
        return f"map({_element(proto.map_type.key_type)}, {value})"
    if kind == "tensor_type":
        return _element(proto.tensor_type.elem_type)
    return kind.removesuffix("_type")


def _mapped(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """Return what stands before a ZipMap, and value -> the labels that the graph holds for it."""
    mapped: dict[str, str] = {}
    labels: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        names = [
            label.decode("utf-8", "replace") if isinstance(label, bytes) else str(label)
            for attribute in node.attribute
            if attribute.name.startswith("classlabels_")
            for label in (*attribute.strings, *attribute.ints)
        ]
        if node.op_type == "ZipMap":
            mapped[node.output[0]] = node.input[0]
        if names:
            labels |= dict.fromkeys(node.output, tuple(names))
        elif node.op_type in SAME_CLASSES and (known := labels.get(node.input[0])):
            labels[node.output[0]] = known
    return mapped, labels


def _domain(node: Any) -> str:
    return "" if node.domain == STANDARD_DOMAIN else str(node.domain)


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of all graphs, those inside of control flow and functions too."""
    bodies: list[Any] = [model.graph, *model.functions]
    while bodies:
        for node in bodies.pop().node:
            yield node
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    bodies.append(attribute.g)
                bodies += attribute.graphs


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield every tensor that a file can hold."""
    bodies: list[Any] = [model.graph]
    for node in _nodes(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            bodies += [attribute.g, *attribute.graphs]
    for body in bodies:
        yield from body.initializer
        for sparse in body.sparse_initializer:
            yield from (sparse.values, sparse.indices)


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location == 1)  # TensorProto.EXTERNAL


def _location(tensor: Any) -> str:
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def _unusable(graph: GraphFile) -> str:
    if graph.unknown:
        names = ", ".join(graph.unknown)
        return f"ONNX Runtime does not have its operators {names}"
    if not graph.outputs:
        return "it has no outputs"
    return ""


def _data_problem(model: onnx.ModelProto, folder: Path) -> str:
    """Return what is wrong with the files beside it; they must lie in its own folder."""
    root = folder.resolve()
    for tensor in _tensors(model):
        if not _is_external(tensor):
            continue
        location = _location(tensor)
        place = (folder / location).resolve()
        if not location or Path(location).is_absolute() or root not in place.parents:
            return f"it keeps weights in '{location}', outside its folder"
        if not place.is_file():
            return f"it keeps weights in '{location}' beside it, which is not there"
    return ""


def _with_shape(value: GraphValue, inferred: tuple[Size, ...]) -> GraphValue:
    """Return an output with the shape that ONNX Runtime infers, if the file does not say."""
    known = value.shape is not None or not inferred or not value.is_array
    return value if known else replace(value, shape=inferred)


# ---------------------------------------------------------------------------- in the child: attempt


def attempt(trial: FileTrial) -> Outcome:
    """Run some rows: together, in another order, and alone. A row's answer must not change."""
    session = load(Path(trial.path), trial.providers, 1)
    reason = ""
    for feed in trial.feeds:
        try:
            whole = _run(session, trial.outputs, feed)
        except Exception as error:  # noqa: BLE001 - onnxruntime raises many kinds, all its own
            reason = reason or f"running it on a few rows failed ({complaint(error)})"
            continue
        return _compared(session, trial, feed, whole)
    return Outcome(refusal=reason)


def _compared(session: Any, trial: FileTrial, feed: Feed, whole: Mapping[str, Any]) -> Outcome:
    arrays = {name: value for name, value in whole.items() if isinstance(value, np.ndarray)}
    shapes = {name: value.shape for name, value in arrays.items()}
    types = {name: value.dtype.name for name, value in arrays.items()}
    rows = next((len(array) for name, array in feed.items() if name not in trial.fixed), 0)
    apart = dict.fromkeys(arrays, 0.0)
    try:
        for other, order in _others(session, trial, feed, rows):
            for name, value in arrays.items():
                apart[name] = max(apart[name], differences(value, other[name], order))
    except Exception as error:  # noqa: BLE001 - as above
        reason = f"it answers {rows} rows and not 1 or 2 of them ({complaint(error)})"
        return Outcome(refusal=reason, shapes=shapes, types=types)
    return Outcome(shapes=shapes, types=types, apart=apart)


def _others(
    session: Any, trial: FileTrial, feed: Feed, rows: int
) -> Iterator[tuple[Mapping[str, Any], Sequence[int]]]:
    """Yield other runs, and the numbers of their rows."""
    orders: list[list[int]] = [[*range(1, rows), 0], [0] * rows] if rows > 1 else []
    if trial.one_by_one:
        orders += [[row] for row in range(rows)] + ([[0, 1]] if rows > 2 else [])
    for order in orders:
        part = {
            name: array if name in trial.fixed else array[order] for name, array in feed.items()
        }
        yield _run(session, trial.outputs, part), order


def _run(session: Any, outputs: Sequence[str], feed: Feed) -> dict[str, Any]:
    return dict(zip(outputs, session.run(list(outputs), dict(feed)), strict=True))


def differences(whole: NDArray[Any], other: NDArray[Any], order: Sequence[int]) -> float:
    """Return the largest difference between the same rows of two runs."""
    if not whole.ndim or len(whole) <= max(order) or len(other) != len(order):
        return np.inf
    wanted = whole[list(order)]
    if wanted.shape != other.shape:
        return np.inf
    if wanted.dtype.kind not in "fiub":
        return 0.0 if np.array_equal(wanted, other) else np.inf
    a, b = wanted.astype(np.float64), other.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        difference = np.abs(np.where(same, 0.0, a - b)).max()
    finite = np.abs(whole[np.isfinite(whole)]) if whole.dtype.kind == "f" else np.abs(a)
    largest = float(finite.max(initial=0.0))
    share = float(difference) / largest if largest else np.inf
    return np.inf if np.isnan(share) else share


__all__ = [
    "CPU",
    "Feed",
    "FileTrial",
    "GraphFile",
    "Outcome",
    "attempt",
    "differences",
    "graph_value",
    "inspect",
    "limits_of",
    "read",
    "run_trial",
]
