"""Changes a graph so that it takes any number of rows and returns arrays alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from models.serving.signature import Size

if TYPE_CHECKING:
    import onnx

STATES = (5, 6)
"""The inputs of recurrent operators that hold the first states."""
Shapes = Mapping[str, tuple[Size, ...]]
"""Input -> its shape."""


def inputs_of(model: onnx.ModelProto) -> list[Any]:
    """Return the inputs of a graph that are no weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in weights]


def change(
    model: onnx.ModelProto, shapes: Shapes, outputs: Mapping[str, str], *, patch: bool
) -> None:
    """Give inputs these shapes, and forget what was inferred from the old ones.

    Args:
        outputs: output -> the value that replaces it.
        patch: also let constants go that hold the old batch size.
    """
    graph = model.graph
    batch = None
    for value in inputs_of(model):
        if value.name not in shapes:
            continue
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value:
            batch = batch or dims[0].dim_value
        del dims[:]
        for size in shapes[value.name]:
            dim = dims.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size is not None:
                dim.dim_param = size
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    _replace_outputs(graph, outputs)
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


__all__ = ["Shapes", "change", "inputs_of"]
