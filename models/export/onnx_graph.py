"""A small builder for ONNX graphs; each component writes its own nodes.

By hand, because onnx takes 0.2 s to import, with onnxscript 0.8 s, with spox 0.3 s; neither checks
more than a run of the exported model against the learner does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
"""The opset: old enough for every recent runtime, new enough for LayerNormalization."""
ML, ML_OPSET = "ai.onnx.ml", 3
"""The domain of LabelEncoder."""


class Graph:
    """The nodes, constants and inputs of an ONNX graph under construction.

    Values are known by their names: every method that makes one returns its name, to be handed to
    the next.

    Attributes:
        scope: put before the names of what is made from now on, e.g. ``network/``.
    """

    def __init__(self) -> None:
        self.scope = ""
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._count = 0

    def name(self, hint: str) -> str:
        """Return a unique name."""
        self._count += 1
        return f"{self.scope}{hint}_{self._count}"

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

    def model(
        self, outputs: dict[str, tuple[str, int, list[int | str]]], metadata: dict[str, str]
    ) -> onnx.ModelProto:
        """Return the finished, checked model.

        Args:
            outputs: public name -> (value's name, element type, shape).
            metadata: written to the model's metadata properties.
        """
        infos = []
        for public, (value, element_type, shape) in outputs.items():
            self._nodes.append(helper.make_node("Identity", [value], [public]))
            infos.append(helper.make_tensor_value_info(public, element_type, shape))
        read = {name for node in self._nodes for name in node.input}
        constants = [c for c in self._constants if c.name in read]  # ONNX Runtime warns of others
        graph = helper.make_graph(self._nodes, "headrace", self._inputs, infos, constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(ML, ML_OPSET)],
            producer_name="headrace",
        )
        model.ir_version = 9
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model)
        return model


__all__ = ["ML", "OPSET", "Graph", "TensorProto"]
