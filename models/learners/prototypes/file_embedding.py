"""The embedding that an ONNX file makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.system.limited_process import Limits
from engine.types import Features, GraphBuilder, Tensors, UserError, nearest
from models.export.model_files import FORMAT
from models.learners.modules.trial import made_rows
from models.learners.prototypes.embedding import TOLERANCE, TRIED_ROWS, Embedding, Rows
from models.net_input import NetInput, tensors_of
from models.serving.inspection import FileTrial, GraphFile, Outcome, inspect, run_trial
from models.serving.session import load
from models.serving.signature import GraphValue, listed

FILE_SECONDS, FILE_MEMORY = 60.0, 2 << 30
"""Within which a file must load and embed a few rows; eight times its size is added."""


UNREADABLE = frozenset(("ids", "floats", "array"))
"""Kinds of inputs of headrace's own model files that hold more than a tensor of rows says: what
stands behind a list's end, and rows that are not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What an input of the graph gets.

    Attributes:
        value: the input.
        name: of the tensor, as `models.net_input.tensors_of` has it.
        column: of the tensor, for an input of one number per row; None: the whole.
        pixels: whether the tensor's 0 to 1 are bytes to the graph.
    """

    value: GraphValue
    name: str
    column: int | None = None
    pixels: bool = False


class FileEmbedding(Embedding):
    """The vectors that an ONNX file makes. One of headrace's own, whose inputs are columns of one
    number, gets the columns of that name.

    Args:
        path: of the file.
        output: of its graph; needed where it has several.
        threads: of ONNX Runtime.

    Raises: UserError for a file that cannot be loaded, does not fit the inputs, or gives no vector
        for each row.
    """

    def __init__(
        self,
        path: str,
        output: str | None,
        inputs: Sequence[NetInput],
        features: Features,
        *,
        threads: int,
    ) -> None:
        self._who = f"[model] embedding '{path}'"
        self._path = Path(path)
        if not self._path.is_file():
            raise UserError(f"{self._who} is no file.")
        self._inputs = inputs
        self._features = features
        size = self._path.stat().st_size
        limits = Limits(seconds=FILE_SECONDS, memory=FILE_MEMORY + 8 * size)
        graph = inspect(self._path, limits)
        if graph.refusal:
            raise UserError(f"{self._who} cannot be used: {graph.refusal}.")
        self._given = self._matched(graph.inputs)
        self._require_readable(graph)
        self._output = self._chosen(output, graph.outputs)
        self._at = [value.name for value in graph.outputs].index(self._output)
        width = self._tried_width(graph, limits)
        self.scaled = np.zeros(width, np.bool_)
        self._session = load(self._path, ("cpu",), threads)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self._path.read_bytes()).hexdigest()[:16]

    @property
    def nbytes(self) -> int:
        return self._path.stat().st_size

    def embed(self, rows: Tensors) -> Rows:
        if not len(rows):
            return np.empty((0, self.width), np.float32)
        (vectors,) = self._session.run([self._output], self._feed(rows))
        return np.ascontiguousarray(vectors, np.float32)

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        import onnx
        from onnx import TensorProto, helper

        from models.export.body import input_values
        from models.export.onnx_graph import OPSET

        model = onnx.load(self._path)
        if any(o.domain in ("", "ai.onnx") and o.version < OPSET for o in model.opset_import):
            try:
                model = onnx.version_converter.convert_version(model, OPSET)
            except Exception as error:
                raise UserError(
                    f"{self._who} cannot be part of a model file: its operators are older than "
                    f"ONNX opset {OPSET} and cannot be converted: convert the file, or take "
                    "[export] out."
                ) from error
        values = input_values(graph, self._inputs, self._features, numeric, categories)
        given = {}
        for each in self._given:
            x = values[each.name]
            if each.column is not None:
                x = graph.op("Gather", x, graph.constant(np.int64(each.column)), axis=1)
            if each.pixels:
                x = graph.op("Round", graph.op("Mul", x, graph.constant(np.float32(255))))
            element = helper.np_dtype_to_tensor_dtype(np.dtype(each.value.type))
            given[each.value.name] = graph.op("Cast", x, to=element)
        vectors = graph.append(model, given)[self._at]
        return graph.op("Cast", vectors, to=TensorProto.FLOAT)

    def _feed(self, rows: Tensors) -> dict[str, NDArray[Any]]:
        tensors = tensors_of(rows, self._inputs)
        feed: dict[str, NDArray[Any]] = {}
        for each in self._given:
            values = tensors[each.name].numpy()
            values = values if each.column is None else values[:, each.column]
            values = np.rint(values * 255) if each.pixels else values
            feed[each.value.name] = values.astype(each.value.type)
        return feed

    def _matched(self, graph_inputs: Sequence[GraphValue]) -> list[Given]:
        """Return what each input of the graph gets: the tensor of its name, or the only one; an
        input of one number per row the column of its name."""
        columns = self._single_columns(graph_inputs)
        if columns is not None:
            return columns
        names = [entry.name for entry in self._inputs]
        masks = [f"{entry.name}_mask" for entry in self._inputs if entry.form in ("ids", "array")]
        if len(graph_inputs) == 1 and len(names) == 1:
            pairs = [(graph_inputs[0], names[0])]
        else:
            pairs = [(value, value.name) for value in graph_inputs]
        for value, name in pairs:
            if name not in (*names, *masks):
                raise UserError(
                    f"{self._who} reads {listed(graph_inputs)}, and [model] has no input '{name}': "
                    f"name its columns in [model.inputs.{name}].{nearest(name, names)}"
                )
            if not value.is_array:
                raise UserError(
                    f"{self._who} reads '{value.name}' as {value.type}; expected numbers, as "
                    "stages make them."
                )
        if left := [name for name in names if name not in {name for _, name in pairs}]:
            raise UserError(
                f"{self._who} reads {listed(graph_inputs)}, and nothing reads the input "
                f"'{left[0]}' of [model]: take it out."
            )
        images = {
            entry.name
            for entry in self._inputs
            if entry.form == "image" and entry.columns[0] not in self._features.float_images
        }
        return [
            Given(value=value, name=name, pixels=name in images and value.type == "uint8")
            for value, name in pairs
        ]

    def _single_columns(self, graph_inputs: Sequence[GraphValue]) -> list[Given] | None:
        """Return the column of each input of the graph, where each takes one number per row and all
        inputs of the model are numbers; else None."""
        numbers = all(entry.form == "numbers" for entry in self._inputs)
        if not numbers or not all(value.shape and not value.row for value in graph_inputs):
            return None
        places = {
            column: (entry.name, i)
            for entry in self._inputs
            for i, column in enumerate(entry.columns)
        }
        names = {value.name for value in graph_inputs}
        for value in graph_inputs:
            if value.name not in places or not value.is_array:
                raise UserError(
                    f"{self._who} reads {value}, and [model] has no column of numbers of that name."
                    f"{nearest(value.name, places)}"
                )
        if left := [column for column in places if column not in names]:
            raise UserError(
                f"{self._who} reads {listed(graph_inputs)}, and nothing reads the column "
                f"'{left[0]}' of [model]: take it out."
            )
        return [
            Given(value=value, name=places[value.name][0], column=places[value.name][1])
            for value in graph_inputs
        ]

    def _require_readable(self, graph: GraphFile) -> None:
        """Raises: UserError for a model file of ours that reads lists or arrays."""
        if graph.properties.get("format") != FORMAT:
            return
        for name, kind in json.loads(graph.properties["inputs"]).items():
            if kind in UNREADABLE:
                raise UserError(
                    f"{self._who} is a model file of headrace that reads '{name}', a column of "
                    "lists or arrays: prototypes can stand on one that reads numbers and images."
                )

    def _chosen(self, output: str | None, outputs: Sequence[GraphValue]) -> str:
        names = [value.name for value in outputs]
        if output is None and len(names) == 1:
            return names[0]
        if output in names:
            return str(output)
        raise UserError(
            f"{self._who} gives {listed(outputs)}: name the one that holds the vectors in [model] "
            f"embedding_output.{nearest(output or '', names)}"
        )

    def _tried_width(self, graph: GraphFile, limits: Limits) -> int:
        feed = self._feed(made_rows(self._features, TRIED_ROWS))
        trial = FileTrial(path=str(self._path), outputs=(self._output,), feeds=(feed,))
        outcome: Outcome = run_trial(trial, limits)
        if outcome.refusal:
            raise UserError(
                f"{self._who} cannot embed a few made rows: {outcome.refusal}; 'headrace adopt "
                f"{self._path}' says what it takes, and frees a fixed number of rows."
            )
        shape = outcome.shapes[self._output]
        floats = outcome.types[self._output].startswith("float")
        if len(shape) != 2 or shape[0] != TRIED_ROWS or not floats:
            raise UserError(
                f"{self._who} gives '{self._output}' of shape {shape} for {TRIED_ROWS} rows, and "
                f"prototypes need a vector of floats for each, ({TRIED_ROWS}, width)."
            )
        if outcome.apart[self._output] > TOLERANCE or graph.draws:
            raise UserError(
                f"{self._who} gives a row another vector alone than beside others: its prototypes "
                "would depend on the batch."
            )
        return int(shape[1])


__all__ = ["FileEmbedding"]
