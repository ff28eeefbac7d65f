"""A small builder for ONNX graphs; each component writes its own nodes.

By hand, because onnx takes 0.2 s to import, with onnxscript 0.8 s, with spox 0.3 s; neither checks
more than a run of the exported model against the learner does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, inliner, numpy_helper

if TYPE_CHECKING:  # a candidate's process needs none of the engine, and polars takes 0.2 s
    from engine.types import GraphColumn, Scales

OPSET = 17
"""The opset: old enough for every recent runtime, new enough for LayerNormalization. A model that
is appended may raise it."""
ML, ML_OPSET = "ai.onnx.ml", 3
"""The domain of LabelEncoder."""
IR_VERSION = 9


class Graph:
    """The nodes, constants and inputs of an ONNX graph under construction.

    Values are known by their names: every method that makes one returns its name, to be handed to
    the next.

    Args:
        taken: names of columns, which no other value may have.

    Attributes:
        scope: put before the names of what is made from now on, e.g. ``network/``.
        columns: the image, list and array columns of the model.
        has_appended: whether a whole model is part of it.
        new_state: name of the state after each row, (n, width) float32; "" without one.
        vector: name of the vector of each row, (n, width) float32; "" without one.
        scales: what stages have scaled the numeric features with that the graph gets.
    """

    def __init__(self, scales: Scales = (), taken: Iterable[str] = ()) -> None:
        self.scope = ""
        self._taken = frozenset(taken)
        self.scales = scales
        self.columns: dict[str, GraphColumn] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._count = 0
        self._opsets = {"": OPSET, ML: ML_OPSET}
        self._ir_version = IR_VERSION
        self.has_appended = False
        self.new_state = ""
        self.vector = ""

    def name(self, hint: str) -> str:
        """Return a unique name."""
        while True:
            self._count += 1
            name = f"{self.scope}{hint}_{self._count}"
            if name not in self._taken:
                return name

    def constant(self, value: Any, hint: str = "const") -> str:
        """Add a constant tensor; `value` is a numpy array (its dtype is kept; text becomes an
        ONNX string tensor)."""
        name = self.name(hint)
        array = np.asarray(value)
        if array.dtype.kind in "US":
            array = array.astype(object)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: str, outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Add a node with several outputs."""
        names = [self.name(op_type.lower()) for _ in range(outputs)]
        self._nodes.append(
            helper.make_node(
                op_type, list(inputs), names, name=names[0], domain=domain, **attributes
            )
        )
        return names

    def input(self, name: str, element_type: int, shape: list[int | str]) -> str:
        """Add a graph input; `element_type` is an `onnx.TensorProto` element type."""
        self._inputs.append(helper.make_tensor_value_info(name, element_type, shape))
        return name

    def state_input(self, width: int) -> str:
        """Add the input with what each row's key carries, (n, width) float32."""
        from models.export.model_files import STATE_BEFORE  # a candidate's process needs none of it

        return self.input(STATE_BEFORE, TensorProto.FLOAT, ["n", width])

    def state_output(self, name: str) -> None:
        """Take a value, (n, width) float32, as the state after each row."""
        self.new_state = name

    def vector_output(self, name: str) -> None:
        """Take a value, (n, width) float32, as the vector of each row."""
        self.vector = name

    def column(self, name: str) -> GraphColumn:
        """Return an image, list or array column of the model."""
        return self.columns[name]

    def append(self, model: onnx.ModelProto, inputs: Mapping[str, str]) -> list[str]:
        """Append the nodes of a whole model, under a prefix of their own.

        Args:
            inputs: input of the model -> name of the value it gets.

        Returns: the names of its outputs.
        """
        prefix = f"{self.name('body')}/"
        if model.functions:
            model = inliner.inline_local_functions(model)
        part = compose.add_prefix(model, prefix)
        _strip(part.graph)
        for value in model.graph.input:
            node = helper.make_node("Identity", [inputs[value.name]], [prefix + value.name])
            self._nodes.append(node)
        self._nodes.extend(part.graph.node)
        self._constants.extend(part.graph.initializer)
        for opset in part.opset_import:
            self._opsets[opset.domain] = max(self._opsets.get(opset.domain, 0), opset.version)
        self._ir_version = max(self._ir_version, part.ir_version)
        self.has_appended = True
        return [value.name for value in part.graph.output]

    def model(
        self, outputs: dict[str, tuple[str, int, list[int | str]]], metadata: dict[str, str]
    ) -> onnx.ModelProto:
        """Return the finished, checked model.

        Args:
            outputs: public name -> (value's name, element type, shape). An input that has the name
                keeps it, and the output gets a ``_`` behind.
            metadata: written to the model's metadata properties.
        """
        infos, inputs = [], {info.name for info in self._inputs}
        for public, (value, element_type, shape) in outputs.items():
            while public in inputs:
                public += "_"
            self._nodes.append(helper.make_node("Identity", [value], [public]))
            infos.append(helper.make_tensor_value_info(public, element_type, shape))
        read = set(_read(self._nodes))
        constants = [c for c in self._constants if c.name in read]  # ONNX Runtime warns of others
        graph = helper.make_graph(self._nodes, "headrace", self._inputs, infos, constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(*opset) for opset in self._opsets.items()],
            producer_name="headrace",
        )
        model.ir_version = self._ir_version
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model


def _strip(graph: onnx.GraphProto) -> None:
    """Take out what a converter notes of each part: paths and lines of the code that it read."""
    for part in (*graph.node, *graph.initializer):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    for inner in _inner_graphs(graph.node):
        _strip(inner)


def _inner_graphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Yield the graphs of loops and branches."""
    for node in nodes:
        for attribute in node.attribute:
            yield from attribute.graphs
            if attribute.HasField("g"):
                yield attribute.g


def _read(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Yield the names that nodes read, those inside loops and branches included."""
    nodes = list(nodes)
    for node in nodes:
        yield from node.input
    for graph in _inner_graphs(nodes):
        yield from _read(graph.node)
        yield from (value.name for value in graph.output)


__all__ = ["ML", "OPSET", "Graph", "TensorProto"]
