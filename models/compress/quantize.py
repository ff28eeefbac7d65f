"""Quantizes a model file to int8 or float16. Only the network's products change, never the
stages."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from models.export.model_files import write
from models.export.onnx_graph import ML

Feed = dict[str, NDArray[Any]]

PRODUCTS = ["Gemm", "MatMul"]
"""The operators of the network, which the stages do not use."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Gives feeds one after the other."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        """Return the next feed; None after the last."""
        return next(self._feeds, None)


def int8(model: Path, path: Path, feeds: Iterable[Feed]) -> None:
    """Quantize statically to int8: symmetric weights per channel and symmetric activations
    (S8S8), as QDQ nodes, with ranges from the calibration feeds. Jacob et al., "Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (CVPR 2018)."""

    def make(source: Path, target: Path) -> None:
        quantize_static(
            source,
            target,
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=not vnni(),
            op_types_to_quantize=PRODUCTS,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )

    _rewrite(model, path, "int8", make)


def int8_dynamic(model: Path, path: Path, feeds: Iterable[Feed]) -> None:
    """Quantize dynamically to int8: weights in advance, activations by each batch's own range;
    needs no calibration."""

    def make(source: Path, target: Path) -> None:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            weight_type=QuantType.QInt8,
            per_channel=False,
            reduce_range=not vnni(),
        )

    _rewrite(model, path, "int8_dynamic", make, _products)


def float16(model: Path, path: Path, feeds: Iterable[Feed]) -> None:
    """Convert the network to half precision; inputs, stages and the score are unchanged. Pays
    off on a GPU."""

    def make(source: Path, target: Path) -> None:
        proto = convert_float_to_float16(
            onnx.load(source), keep_io_types=True, op_block_list=["LabelEncoder"]
        )
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


def _rewrite(
    model: Path,
    path: Path,
    precision: str,
    make: Callable[[Path, Path], None],
    before: Callable[[onnx.ModelProto], onnx.ModelProto] | None = None,
) -> None:
    """Make the candidate under a temporary name, keep our metadata, and move it into place."""
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        proto = onnx.load(model)
        onnx.save(before(proto) if before else proto, source)
        root.setLevel(logging.ERROR)  # the quantizer advises on the root logger
        try:
            make(source, target)
        finally:
            root.setLevel(level)
        quantized = onnx.load(target)
        kept: dict[str, str] = {p.key: p.value for p in proto.metadata_props}
        onnx.helper.set_model_props(quantized, {**kept, "precision": precision})
        write(quantized, path)


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
