"""Quantizes a model file to int8 or float16. Only the network's products change, never the
stages."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from engine.errors import HeadraceError
from models.export.model_files import write
from models.export.onnx_graph import ML

Feed = dict[str, NDArray[Any]]

PRODUCTS = ("Conv", "Gemm", "MatMul")
"""The operators of the network, which the stages do not use."""
AFTER = ("Add", "AveragePool", "Clip", "GlobalAveragePool", "MaxPool", "Relu")
"""What stands between products and can stay in int8 between two of them."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives feeds one after the other."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        """Return the next feed; None after the last."""
        return next(self._feeds, None)


def int8(model: Path, path: Path, feeds: Iterable[Feed]) -> None:
    """Quantize statically to int8: symmetric weights per channel (S8) and activations with a zero
    of their own (U8), as QDQ nodes, with ranges from the calibration feeds; what the last products
    give stays float32, as no score has only 256 values. Jacob et al., "Quantization and Training of
    Neural Networks for Efficient Integer-Arithmetic-Only Inference" (CVPR 2018)."""

    def make(source: Path, target: Path) -> None:
        proto = onnx.load(source)
        nodes, last = _between(proto.graph)
        onnx.save(proto, source)
        quantize_static(
            source,
            target,
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=not vnni(),
            op_types_to_quantize=[*PRODUCTS, *AFTER],
            nodes_to_quantize=nodes,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"WeightSymmetric": True},
        )
        quantized = onnx.load(target)
        _keep_exact(quantized.graph, last)
        onnx.save(quantized, target)

    _rewrite(model, path, "int8", make)


def int8_dynamic(model: Path, path: Path, feeds: Iterable[Feed]) -> None:
    """Quantize dynamically to int8: weights in advance (of LSTM cells, too), activations by each
    batch's own range; needs no calibration."""

    def make(source: Path, target: Path) -> None:
        proto = onnx.load(source)
        if any(node.op_type == "LSTM" for node in proto.graph.node):
            proto = _folded(source)
        onnx.save(_products(proto), source)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul", "LSTM"],
            weight_type=QuantType.QInt8,
            per_channel=False,
            reduce_range=not vnni(),
        )

    _rewrite(model, path, "int8_dynamic", make)


def float16(model: Path, path: Path, feeds: Iterable[Feed]) -> None:
    """Convert the network to half precision; inputs, stages and the score are unchanged. Pays
    off on a GPU.

    Raises: HeadraceError for trees, which ONNX has in float32 only.
    """

    def make(source: Path, target: Path) -> None:
        base = onnx.load(source)
        if any(node.op_type.startswith("TreeEnsemble") for node in base.graph.node):
            raise HeadraceError("trees have no float16")
        proto = convert_float_to_float16(base, keep_io_types=True, op_block_list=["LabelEncoder"])
        onnx.save(proto, target)

    _rewrite(model, path, "float16", make)


CANDIDATES: dict[str, Callable[[Path, Path, Iterable[Feed]], None]] = {
    "int8": int8,
    "int8_dynamic": int8_dynamic,
    "float16": float16,
}
"""Name -> function that makes it from the float32 model, the candidate's path and calibration
feeds."""


def vnni() -> bool:
    """Return whether the CPU multiplies int8 without overflow (AVX-512 or AVX VNNI); without,
    weights take 7 bits."""
    info = Path("/proc/cpuinfo")
    return not info.exists() or "vnni" in info.read_text()


def _rewrite(model: Path, path: Path, precision: str, make: Callable[[Path, Path], None]) -> None:
    """Make the candidate under a temporary name, keep our metadata, and move it into place."""
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        proto = onnx.load(model)
        onnx.save(proto, source)
        root.setLevel(logging.ERROR)  # the quantizer advises on the root logger
        try:
            make(source, target)
        finally:
            root.setLevel(level)
        quantized = onnx.load(target)
        kept: dict[str, str] = {p.key: p.value for p in proto.metadata_props}
        onnx.helper.set_model_props(quantized, {**kept, "precision": precision})
        write(quantized, path)


def _between(graph: onnx.GraphProto) -> tuple[list[str], set[str]]:
    """Name all nodes; return the names of the products by known weights and of what stands between
    them, and the values that the last products give."""
    known = {weight.name for weight in graph.initializer}
    wanted, last = {value.name for value in graph.output}, set[str]()
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            if node.op_type in PRODUCTS and node.domain != ML:
                last.update(node.output)
            else:
                wanted.update(node.input)
    small, chosen = set[str](), list[str]()
    for number, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
        given = [name for name in node.input if name and name not in known]
        if node.op_type in PRODUCTS and node.domain != ML:
            take = len(given) < len(node.input)
        else:
            take = node.op_type in AFTER and bool(given) and small.issuperset(given)
        if take:
            chosen.append(node.name)
            small.update(set(node.output) - last)
    if not chosen:
        raise HeadraceError("it has no product by known weights that int8 could do")
    return chosen, last


def _keep_exact(graph: onnx.GraphProto, values: Collection[str]) -> None:
    """Take away the nodes that round values to int8."""
    rounded = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in values
    }
    back = {
        node.output[0]: rounded[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in rounded
    }
    kept = [node for node in graph.node if not {*rounded, *back}.intersection(node.output)]
    for node in kept:
        for at, name in enumerate(node.input):
            node.input[at] = back.get(name, name)
    del graph.node[:]
    graph.node.extend(kept)


def _folded(model: Path) -> onnx.ModelProto:
    """Return the model with the values of what depends on no input in the place of what computes
    them: torch stacks the weights of an LSTM in the graph, where the quantizer does not know them.
    The file is replaced by it."""
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(model)
    options.log_severity_level = 4
    InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
    return onnx.load(model)


def _products(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Replace Gemm by MatMul and Add, because the dynamic quantizer does not know Gemm."""
    weights = {weight.name: weight for weight in proto.graph.initializer}
    nodes: list[Any] = []
    for node in proto.graph.node:
        if not _is_layer(node, weights):
            nodes.append(node)
            continue
        x, weight, bias = node.input
        between = f"{node.output[0]}_product"
        if _attributes(node).get("transB"):
            turned = onnx.numpy_helper.to_array(weights[weight]).T.copy()
            weight = f"{between}_weight"
            proto.graph.initializer.append(onnx.numpy_helper.from_array(turned, weight))
        nodes.append(onnx.helper.make_node("MatMul", [x, weight], [between], name=between))
        nodes.append(
            onnx.helper.make_node("Add", [between, bias], list(node.output), name=node.name)
        )
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


def _is_layer(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    """Return whether a node is a Gemm that multiplies by known weights and adds a bias."""
    if node.op_type != "Gemm" or node.domain == ML or len(node.input) != 3:
        return False
    own = _attributes(node)
    plain = own.get("alpha", 1.0) == own.get("beta", 1.0) == 1.0 and not own.get("transA")
    return plain and node.input[1] in weights


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


__all__ = ["CANDIDATES", "float16", "int8", "int8_dynamic", "vnni"]
