"""Small ONNX files as other programs write them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from engine.system.limited_process import Limits

HEAD = '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3], producer_name: "elsewhere">'
WEIGHTS = np.array([[1.0, 0.0, -1.0], [0.0, 1.0, 1.0]], np.float32)

LINEAR = "g (float[n, 2] x) => (float[n, 3] scores) { scores = MatMul(x, w) }"
"""Two numbers in, three scores out."""
FIXED = "g (float[{rows}, 2] x) => (float[{rows}, 3] scores) { scores = MatMul(x, w) }"
TAKES_EACH = """
g (float[n] a, int64[n] b) => (float[n] sum) {
    c = Cast<to = 1>(b)
    sum = Add(a, c)
}
"""
MIXES_ROWS = """
g (float[n, 2] x) => (float[n, 2] y) {
    y = Softmax<axis = 0>(x)
}
"""
"""A row's answer depends on the rows beside it."""
SUMS_UP = "g (float[n, 2] x) => (float[1, 1] total) { total = ReduceSum(x) }"
"""One answer for all rows."""
TEXT_OUT = """
g (float[n, 2] x) => (string[n] label) {
    best = ArgMax<axis = 1, keepdims = 0>(x)
    label = ai.onnx.ml.LabelEncoder<keys_int64s = [0, 1], values_strings = ["no", "yes"]>(best)
}
"""
BY_ID = "g (int64[n] id) => (float[n, 3] row) { row = Gather(w, id) }"
"""Fails for an id that is not there."""
MEAN_OF_TOKENS = """
g (int64[n, length] ids, float[n, length] ids_mask) => (float[n] mean) {
    values = Cast<to = 1>(ids)
    masked = Mul(values, ids_mask)
    one = Constant<value_ints = [1]>()
    sum = ReduceSum<keepdims = 0>(masked, one)
    count = ReduceSum<keepdims = 0>(ids_mask, one)
    mean = Div(sum, count)
}
"""
BRIGHTNESS = """
g (float[n, 3, h, w] image) => (float[n, 3] mean) {
    mean = ReduceMean<axes = [2, 3], keepdims = 0>(image)
}
"""
LOOPS = """
g (float[n, 2] x) => (float[n, 2] y) {
    many = Constant<value_int = 1000000000000>()
    go_on = Cast<to = 9>(many)
    y = Loop <body = b (int64 i, bool go, float[n, 2] before) => (bool on, float[n, 2] after) {
        on = Identity(go)
        after = Sin(before)
    }> (many, go_on, x)
}
"""
HUGE = """
g (float[n, 2] x) => (float[n, 2] y) {
    shape = Constant<value_ints = [1000000, 1000000]>()
    zeros = ConstantOfShape(shape)
    sum = ReduceSum<keepdims = 0>(zeros)
    y = Add(x, sum)
}
"""
CLASSIFIER = """
g (float[n, 2] x) => (LABEL[n] label, float[n, 2] scores) {
    label, raw = ai.onnx.ml.LinearClassifier
        <CLASSES, coefficients = [1.0, 0.0, 0.0, 1.0], intercepts = [0.0, 0.0], multi_class = 1>(x)
    likely = ai.onnx.ml.Normalizer <norm = "L1">(raw)
    scores = Identity(likely)
}
"""
"""Two classes: the score of each is its column's share of the row."""
UNKNOWN = "g (float[n, 2] x) => (float[n, 2] y) { y = MagicAttention(x) }"


def saved(
    path: Path, text: str, weights: Mapping[str, NDArray[Any]] | None = None, **sizes: int
) -> Path:
    """Write the graph; a graph that names ``w`` gets `WEIGHTS`."""
    for name, size in sizes.items():
        text = text.replace(f"{{{name}}}", str(size))
    model = parser.parse_model(HEAD + text)
    given = {"w": WEIGHTS} if weights is None else weights
    read = {name for node in model.graph.node for name in node.input}
    for name, value in given.items():
        if name in read:
            model.graph.initializer.append(numpy_helper.from_array(value, name))
    onnx.save(model, path)
    return path


def classifier(labels: Sequence[str] | Sequence[int]) -> str:
    """Return the text of `CLASSIFIER` with these labels."""
    kind, name = ("int64", "ints") if isinstance(labels[0], int) else ("string", "strings")
    classes = f"classlabels_{name} = {json.dumps(labels)}"
    return CLASSIFIER.replace("LABEL", kind).replace("CLASSES", classes)


def call_here(function: str, argument: Any, limits: Limits) -> Any:
    """What `engine.system.limited_process.call` does, in this process: a child takes a second."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(argument)
