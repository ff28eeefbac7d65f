"""The [infer] table that serves an adopted file, by itself or in a pipeline file."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from engine.types import Schema, UserError
from engine.types.toml import toml_key, toml_value
from models.column_arrays import POLARS_TYPES
from models.serving.adopt.adoption import Adoption
from models.serving.answers import ANSWERS
from models.serving.inspection import GraphFile
from models.serving.settings import InputSettings
from models.serving.signature import GraphValue

ADDED = ("model", "inputs", "outputs")
"""The keys of [infer] that `infer_table` writes by itself."""
HEADER = re.compile(r"^[ \t]*\[[ \t]*infer[ \t]*\][ \t]*(#.*)?\n", re.MULTILINE)
NEXT_HEADER = re.compile(r"^[ \t]*\[[^\n=]*\][ \t]*(#.*)?$", re.MULTILINE)
MODEL = re.compile(r"""^([ \t]*model[ \t]*=[ \t]*)("[^"\n]*"|'[^'\n]*')""", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class InferTable:
    """The [infer] table that serves a file, as TOML.

    Attributes:
        keys: key -> value, ``model`` first.
        inputs, outputs: the lines of their tables, headers first.
    """

    keys: Mapping[str, str]
    inputs: Sequence[str]
    outputs: Sequence[str]

    def __str__(self) -> str:
        return self._text(self.keys, ("inputs", "outputs"))

    def written_into(self, text: str, where: str) -> str:
        """Return a pipeline file with the table. Keys of [infer] that it has stay as they are, but
        for ``model``; so do comments.

        Raises: UserError if its [infer] cannot be added to.
        """
        before = tomllib.loads(text)
        own = before.get("infer", {})
        whole = tomllib.loads(str(self))["infer"]
        new = {key: value for key, value in whole.items() if key not in own}
        keys = {key: self.keys[key] for key in self.keys if key in new and key != "model"}
        sections = [key for key in ("inputs", "outputs") if key in new]
        head, tail = f"{text.rstrip()}\n", ""
        if header := HEADER.search(head):
            following = NEXT_HEADER.search(head, header.end())
            cut = len(head) if following is None else following.start()
            head, tail = head[:cut], head[cut:]
            table, given = MODEL.subn(
                lambda found: f"{found[1]}{self.keys['model']}", head[header.end() :], count=1
            )
            lines = [] if given else [f"model = {self.keys['model']}"]
            lines += [f"{key} = {value}" for key, value in keys.items()]
            added = "".join(f"{line}\n" for line in lines)
            head = f"{head[: header.end()]}{added}{table}"
            more = self._text({}, sections)
        else:
            more = self._text({"model": self.keys["model"], **keys}, sections)
        result = f"{head}{tail}"
        result = f"{result}\n{more}" if more else result
        expected = {**before, "infer": {**own, **new, "model": whole["model"]}}
        try:
            fits = tomllib.loads(result) == expected
        except tomllib.TOMLDecodeError:
            fits = False
        if not fits:
            raise UserError(
                f"{where} has its [infer] in a form that cannot be added to: write it as keys "
                "under a line [infer], or leave out --write."
            )
        return result

    def _text(self, keys: Mapping[str, str], sections: Sequence[str]) -> str:
        tables = [["[infer]", *(f"{key} = {value}" for key, value in keys.items())]] if keys else []
        tables += [[*self.inputs]] if "inputs" in sections else []
        tables += [[*self.outputs]] if "outputs" in sections else []
        return "\n\n".join("\n".join(lines) for lines in tables) + "\n" if tables else ""


def infer_table(
    adoption: Adoption, inputs: Mapping[str, InputSettings], given: Mapping[str, Any] | None = None
) -> InferTable:
    """Return the [infer] table that serves the file.

    Args:
        inputs: input -> what it reads, where that is known; else a column of its name.
        given: the keys of [infer] that a user has said; they stay as they are.
    """
    given = given or {}
    keys = {key: toml_value(value) for key, value in given.items() if key not in ADDED}
    said, answers = given.get("inputs") or {}, given.get("outputs") or {}
    reads, served = ["[infer.inputs]"], adoption.served
    for value in served.inputs:
        default = InputSettings(columns=(value.name,))
        text = (
            toml_value(said[value.name])
            if value.name in said
            else _reads(inputs.get(value.name, default))
        )
        reads.append(f"{toml_key(value.name)} = {text}  # {value}")
    gives = [f"[infer.outputs]  # answer = {', '.join(ANSWERS)}"]
    gives += [f"{toml_key(name)} = {toml_value(table)}" for name, table in answers.items()]
    for value in () if answers else served.outputs:
        answer = _answer(value, adoption.graph)
        if answer is None:
            gives.append(f"# {value} is no number")
        else:
            gives.append(f"{toml_key(value.name)} = {answer}  # {value}")
    return InferTable(
        keys={"model": _text(str(adoption.path)), **keys}, inputs=reads, outputs=gives
    )


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


__all__ = ["InferTable", "columns_of", "infer_table"]
