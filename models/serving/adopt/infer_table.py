"""Writes the [infer] table that serves an adopted file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import polars as pl

from engine.types import Schema
from models.column_arrays import POLARS_TYPES
from models.serving.adopt.adoption import Adoption
from models.serving.answers import ANSWERS
from models.serving.inspection import GraphFile
from models.serving.settings import InputSettings, toml_key
from models.serving.signature import GraphValue


def infer_table(adoption: Adoption, inputs: Mapping[str, InputSettings]) -> str:
    """Return the [infer] table that serves the file, as TOML.

    Args:
        inputs: input -> what it reads, where that is known; else a column of its name.
    """
    lines = ["[infer]", f"model = {_text(str(adoption.path))}", "", "[infer.inputs]"]
    for value in adoption.served.inputs:
        reads = _reads(inputs.get(value.name, InputSettings(columns=(value.name,))))
        lines.append(f"{toml_key(value.name)} = {reads}  # {value}")
    lines += ["", f"[infer.outputs]  # answer = {', '.join(ANSWERS)}"]
    for value in adoption.served.outputs:
        answer = _answer(value, adoption.graph)
        if answer is None:
            lines.append(f"# {value} is no number")
        else:
            lines.append(f"{toml_key(value.name)} = {answer}  # {value}")
    return "\n".join(lines) + "\n"


def columns_of(inputs: Sequence[GraphValue]) -> Schema:
    """Return a column for each input, of its name, type and shape: rows whose sizes are fixed."""
    return {value.name: _column(value) for value in inputs}


def _column(value: GraphValue) -> pl.DataType:
    if value.type not in POLARS_TYPES:
        return pl.String()
    shape = tuple(size for size in value.row if isinstance(size, int))
    number = POLARS_TYPES[value.type]
    return pl.Array(number, shape) if shape and shape != (1,) else number


def _reads(given: InputSettings) -> str:
    if given.mask is not None:
        return f"{{mask = {_text(given.mask)}}}"
    columns = [*map(_text, given.columns)]
    return columns[0] if len(columns) == 1 else f"[{', '.join(columns)}]"


def _answer(value: GraphValue, graph: GraphFile) -> str | None:
    if not value.is_array:
        return None
    labels = graph.labels.get(value.name) or next(iter(graph.labels.values()), ())
    names = f"classes = {json.dumps(labels, ensure_ascii=False)}"
    column = f"column = {_text(value.name)}"
    widths = [size for size in value.row if size != 1]
    if labels and value.is_float and len(widths) <= 1:
        return f'{{{column}, answer = "classes", {names}}}'
    answer = "value" if not widths and value.shape is not None else "vector"
    return f'{{{column}, answer = "{answer}"}}'


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


__all__ = ["columns_of", "infer_table"]
