"""Writes any module of torch into a graph, by torch.onnx.

1. This process traces the module (`torch.export`), so that it may be of any class, wherever that is
   defined, and scores a few made rows with it.
2. A child process, with limits on time and memory, converts the trace to ONNX, runs it in ONNX
   Runtime on the same rows, and compares.
3. `Graph.append` puts the result behind the front.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import nn

from engine.system import limited_process
from engine.system.limited_process import Limits, ProcessFailed
from engine.types import Features, GraphBuilder, GraphColumn, UserError, bucket, first_line
from engine.types.plural import counted
from models.carry import STATE
from models.export.conversion import OUTPUTS, ConversionJob, Example
from models.export.recurrent_shapes import one_node_per_layer
from models.net_input import NetInput

CPU_SECONDS = 600.0
MEMORY = 4 << 30
"""The limits of a conversion; 16 times the module's memory is added."""
NOT_THE_USERS = (str(Path(torch.__file__).parent), __file__)
"""Where no line of a module is."""
TRACED_ROWS, TRACED_LENGTH = 5, 8
"""The size of the traced batch: torch.export takes a size of 1 for a constant."""
SIZES = ((1, 1), (2, 2), (3, 8), (64, 16))
"""Rows and longest list of the compared batches."""


class NotExportable(UserError):
    """A module that cannot become ONNX; the sentence says why, and what to do.

    Attributes:
        why: the sentence without what to do.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.why = f"{name} cannot be exported as ONNX: {reason}"
        super().__init__(
            f"{self.why}. Change its forward, or take [export] out and score with the pipeline "
            "that trains it."
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Body:
    """A module to convert.

    Attributes:
        module: in eval mode and on the CPU.
        inputs: what it reads.
        arguments: the keywords it is called with: names of inputs, and ``NAME_mask``.
        outputs: 1, or the number of classes.
        name: how sentences call it.
        max_length, buckets: of lists, as in [model].
        lengths: input -> the length of all its lists, where there is one.
        state_width: of the state that it gets and returns, besides; 0 without one.
    """

    module: nn.Module
    inputs: Sequence[NetInput]
    arguments: Sequence[str]
    outputs: int
    name: str = "[model]"
    max_length: int | None = None
    buckets: tuple[int, ...] = ()
    lengths: Mapping[str, int] = field(default_factory=dict)
    state_width: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each tensor that it returns."""
        return (self.outputs, self.state_width) if self.state_width else (self.outputs,)

    def length(self, entry: NetInput, longest: int) -> int:
        """Return the padded length of a batch of lists or arrays of an input."""
        if entry.name in self.lengths:
            return self.lengths[entry.name]
        if entry.form == "array":
            return entry.shape[0]
        limits = [n for n in (self.max_length, *self.buckets[-1:]) if n is not None]
        return bucket(longest, min(limits, default=1 << 62), self.buckets)


class GraphScale(Protocol):
    """A scale that writes itself into a graph, such as `models.learners.online.scaler.Scaler`."""

    def build(self, graph: GraphBuilder, x: str) -> str: ...


def write_module(
    graph: GraphBuilder,
    module: nn.Module,
    arguments: Sequence[str],
    inputs: Sequence[NetInput],
    features: Features,
    numeric: str,
    categories: str,
    *,
    array_scales: Mapping[str, GraphScale] | None = None,
    outputs: int | None = None,
    state_width: int = 0,
    name: str = "[model]",
) -> str:
    """Write a module into a graph; return the name of its raw scores, float32, (n, outputs). Its
    state is an input and an output of the graph.

    Args:
        module: any; a copy of it is exported, as it scores on the CPU.
        arguments: the keywords it is called with: names of inputs, and ``NAME_mask``.
        numeric, categories: the scaled numbers, (n, d) float32, and the codes, (n, c) int64, of
            `features`.
        array_scales: array column -> its scale.
        outputs: numbers that it returns per row; unless given, those of `features`.
        state_width: of the state that it gets and returns, besides; 0 without one.
        name: how sentences call it.

    Raises: NotExportable.
    """
    columns = {entry.name: graph.column(entry.columns[0]) for entry in inputs if _is_nested(entry)}
    outputs = features.outputs if outputs is None else outputs
    body = Body(
        module=_copied(module, name),
        inputs=inputs,
        arguments=arguments,
        outputs=outputs,
        name=name,
        max_length=features.max_length,
        buckets=features.buckets,
        lengths={name: c.length for name, c in columns.items() if c.length is not None},
        state_width=state_width,
    )
    (model,) = convert([body])
    values = input_values(graph, inputs, features, numeric, categories, array_scales=array_scales)
    given = {name: values[name] for name in arguments}
    if state_width:
        given[STATE] = graph.state_input(state_width)
    return _append(graph, model, given, body.widths)


def input_values(
    graph: GraphBuilder,
    inputs: Sequence[NetInput],
    features: Features,
    numeric: str,
    categories: str,
    *,
    array_scales: Mapping[str, GraphScale] | None = None,
) -> dict[str, str]:
    """Return the name of the value in the graph that each input of a network gets, and of each
    ``NAME_mask``; see `write_module`."""
    values: dict[str, str] = {}
    for entry in inputs:
        if entry.form == "numbers":
            values[entry.name] = _columns(graph, numeric, features.numeric, entry.columns)
        elif entry.form == "codes":
            values[entry.name] = _columns(graph, categories, [*features.categories], entry.columns)
        else:
            scale = (array_scales or {}).get(entry.columns[0])
            values |= _nested(graph, entry, graph.column(entry.columns[0]), scale)
    return values


def convert(bodies: Sequence[Body]) -> list[onnx.ModelProto]:
    """Return each module as an ONNX model that takes its arguments; one child converts them all.

    Raises: NotExportable, for the first that cannot be one.
    """
    jobs = [_job(body) for body in bodies]
    size = sum(len(job.program) for job in jobs)
    limits = Limits(seconds=CPU_SECONDS, memory=MEMORY + 16 * size)
    try:
        results = limited_process.call("models.export.conversion:convert", jobs, limits)
    except ProcessFailed as error:
        raise NotExportable(bodies[0].name, f"its conversion {error}") from None
    for body, result in zip(bodies, results, strict=True):
        if isinstance(result, str):
            raise NotExportable(body.name, result)
    return [onnx.ModelProto.FromString(result) for result in results]


def _copied(module: nn.Module, name: str) -> nn.Module:
    try:
        return copy.deepcopy(module).cpu().eval()
    except Exception as error:  # noqa: BLE001 - whatever a user's class raises
        raise NotExportable(name, f"it cannot be copied ({first_line(error)})") from None


def _append(
    graph: GraphBuilder, model: onnx.ModelProto, values: Mapping[str, str], widths: Sequence[int]
) -> str:
    made = []
    for result, value, width in zip(
        graph.append(model, values), model.graph.output, widths, strict=True
    ):
        if value.type.tensor_type.elem_type != TensorProto.FLOAT:
            result = graph.op("Cast", result, to=TensorProto.FLOAT)
        made.append(graph.op("Reshape", result, graph.constant(np.array([-1, width], np.int64))))
    raw, *state = made
    for name in state:
        graph.state_output(name)
    return raw


# ---------------------------------------------------------------------------------- what it reads


def _is_nested(entry: NetInput) -> bool:
    return entry.form in ("ids", "image", "array")


def _columns(graph: GraphBuilder, matrix: str, names: Sequence[str], wanted: Sequence[str]) -> str:
    """Return some of a matrix's columns."""
    if list(names) == list(wanted):
        return matrix
    at = np.array([names.index(name) for name in wanted], np.int64)
    return graph.op("Gather", matrix, graph.constant(at), axis=1)


def _nested(
    graph: GraphBuilder, entry: NetInput, column: GraphColumn, scale: GraphScale | None
) -> dict[str, str]:
    """Return the arguments that an image, list or array column makes."""
    if entry.form == "image":
        return {entry.name: _pixels(graph, column)}
    values = column.values if scale is None else _scaled(graph, column, scale)
    return {entry.name: values, f"{entry.name}_mask": column.mask}


def _pixels(graph: GraphBuilder, column: GraphColumn) -> str:
    """Return pixels as a network reads them: bytes become 0 ... 1."""
    if column.dtype != "uint8":
        return column.values
    pixels = graph.op("Cast", column.values, to=TensorProto.FLOAT)
    return graph.op("Div", pixels, graph.constant(np.float32(255)))


def _scaled(graph: GraphBuilder, column: GraphColumn, scale: GraphScale) -> str:
    """Return arrays with each of their columns scaled; absent rows stay 0."""
    present = graph.op("Unsqueeze", column.mask, graph.constant(np.array([2], np.int64)))
    zero = graph.constant(np.float32(0))
    return graph.op("Where", present, scale.build(graph, column.values), zero)


# -------------------------------------------------------------------------------------- the trace


class _Positional(nn.Module):
    """A module that is called with tensors in a known order."""

    def __init__(self, module: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.module = module
        self.names = tuple(names)

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.module(**dict(zip(self.names, tensors, strict=True)))


def _job(body: Body) -> ConversionJob:
    rng = torch.Generator().manual_seed(0)
    cases = []
    for rows, longest in SIZES:
        tensors = _rows(body, rows, longest, rng)
        try:
            with torch.no_grad():
                result = body.module(**tensors)
                made = result if body.state_width else (result,)
                parts = zip(made, body.widths, strict=True)
                expected = [part.float().reshape(rows, width).numpy() for part, width in parts]
        except Exception as error:  # noqa: BLE001 - whatever the module's own code raises
            reason = f"its forward fails on {counted(rows, 'row')} ({first_line(error)})"
            raise NotExportable(body.name, reason) from None
        feed = {name: tensor.numpy() for name, tensor in tensors.items()}
        cases.append(Example(feed=feed, expected=tuple(expected)))
    traced = _rows(body, TRACED_ROWS, TRACED_LENGTH, rng)
    outputs = OUTPUTS[: len(body.widths)]
    return ConversionJob(
        program=_traced(body, traced), names=tuple(traced), outputs=outputs, cases=tuple(cases)
    )


def _traced(body: Body, tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return the module's trace, for any number of rows. Raises: NotExportable."""
    varying = {
        argument
        for entry in body.inputs
        if entry.form == "ids" and entry.name not in body.lengths
        for argument in (entry.name, f"{entry.name}_mask")
    }
    any_size = torch.export.Dim.DYNAMIC
    dynamic = tuple({0: any_size, 1: any_size} if n in varying else {0: any_size} for n in tensors)
    module = _Positional(body.module, tuple(tensors)).eval()
    reason = ""
    for strict in (False, True):  # the first is faster, the second knows len(x), and says more
        buffer = io.BytesIO()
        try:
            with torch.no_grad(), one_node_per_layer(), _quiet():
                program = torch.export.export(
                    module,
                    tuple(tensors.values()),
                    dynamic_shapes={"tensors": dynamic},
                    strict=strict,
                )
                torch.export.save(program, buffer)
            return buffer.getvalue()
        except Exception as error:  # noqa: BLE001 - whatever the module's own code or torch raises
            reason = _said(error)
    raise NotExportable(body.name, f"torch.export cannot trace it ({reason})")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch prints and logs of a trace that fails from the user's terminal."""
    torch_logger = logging.getLogger("torch")
    handlers, propagate = torch_logger.handlers, torch_logger.propagate
    torch_logger.handlers, torch_logger.propagate = [logging.NullHandler()], False
    nowhere = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch_logger.handlers, torch_logger.propagate = handlers, propagate


def _said(error: BaseException) -> str:
    """Return the first line of torch's error, and the line of the module that it names."""
    places = re.findall(r'File "([^"]+)", line (\d+)', str(error))
    own = [(Path(file), line) for file, line in places if not file.startswith(NOT_THE_USERS)]
    place = f", at {own[-1][0].name}:{own[-1][1]}" if own else ""
    return f"{first_line(error)}{place}"


def _rows(body: Body, rows: int, longest: int, rng: torch.Generator) -> dict[str, torch.Tensor]:
    """Return random rows by argument; where there are several, the last has empty lists.

    Args:
        longest: list, before padding.
    """
    tensors: dict[str, torch.Tensor] = {}
    for entry in body.inputs:
        tensors |= _random(entry, rows, body.length(entry, longest), rng)
    made = {name: tensors[name] for name in body.arguments}
    if body.state_width:
        made[STATE] = torch.rand((rows, body.state_width), generator=rng) * 2 - 1
    return made


def _random(
    entry: NetInput, rows: int, length: int, rng: torch.Generator
) -> dict[str, torch.Tensor]:
    if entry.form == "numbers":
        return {entry.name: torch.randn((rows, len(entry.columns)), generator=rng)}
    if entry.form == "codes":
        codes = [torch.randint(0, size, (rows,), generator=rng) for size in entry.sizes]
        return {entry.name: torch.stack(codes, 1)}
    if entry.form == "image":
        return {entry.name: torch.rand((rows, *entry.shape), generator=rng)}
    ends = torch.randint(1, length + 1, (rows, 1), generator=rng)
    ends[0] = length
    if rows > 1:  # alone it would say nothing
        ends[-1] = 0
    mask = torch.arange(length) < ends
    if entry.form == "array":
        values = torch.randn((rows, length, entry.shape[1]), generator=rng) * mask[:, :, None]
    else:
        values = torch.randint(0, max(*entry.sizes, 1), mask.shape, generator=rng) * mask
    return {entry.name: values, f"{entry.name}_mask": mask}


__all__ = ["Body", "NotExportable", "convert", "input_values", "write_module"]
