"""What a network reads: its named inputs, and the tensors of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from engine.types import Features, Tensors

Form = Literal["numbers", "codes", "ids", "image", "array"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetInput:
    """An input of a network: what its ``forward`` gets under the input's name.

    | form    | tensor                                                              |
    |---------|---------------------------------------------------------------------|
    | numbers | (n, columns) float32, scaled                                        |
    | codes   | (n, columns) int64, code 0 unknown                                  |
    | ids     | (n, length) int64, 0 = padding; ``NAME_mask`` (n, length) bool      |
    | image   | (n, channels, height, width) float32, 0 ... 1                       |
    | array   | (n, length, width) float32; ``NAME_mask`` (n, length) bool          |

    A mask is true where there is a value.

    Attributes:
        name: of the input, and of ``forward``'s parameter.
        form: how its columns reach the network.
        columns: of the batch; one for ids, image and array.
        sizes: codes: number of codes of each column; ids: number of ids.
        shape: image: channels, height, width; array: length, width.
    """

    name: str
    form: Form
    columns: tuple[str, ...]
    sizes: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()


def net_inputs(features: Features) -> tuple[NetInput, ...]:
    """Return the inputs of a network with these features: those that they name, or else `numeric`,
    `categories` and each other column."""
    every = {"numeric": features.numeric, "categories": tuple(features.categories)}
    every |= {column: (column,) for column in features.nested}
    named = features.inputs or {name: columns for name, columns in every.items() if columns}
    return tuple(_net_input(features, *pair) for pair in named.items())


def _net_input(features: Features, name: str, columns: tuple[str, ...]) -> NetInput:
    first = columns[0]
    if first in features.categories:
        sizes = tuple(features.categories[column] for column in columns)
        return NetInput(name=name, form="codes", columns=columns, sizes=sizes)
    if first in features.padded:
        return NetInput(name=name, form="ids", columns=columns, sizes=(features.padded[first],))
    if first in features.images:
        return NetInput(name=name, form="image", columns=columns, shape=features.images[first])
    if first in features.arrays:
        return NetInput(name=name, form="array", columns=columns, shape=features.arrays[first])
    return NetInput(name=name, form="numbers", columns=columns)


def tensors_of(
    rows: Tensors, inputs: Sequence[NetInput], numeric: torch.Tensor | None = None
) -> dict[str, torch.Tensor]:
    """Return what a network is called with: the tensor of each input, and its mask if it has one.

    Args:
        inputs: all inputs of the features that the rows have; numbers and codes lie in the rows in
            the order in which the inputs name them.
        numeric: the scaled `rows.numeric`, in its place.
    """
    numeric = rows.numeric if numeric is None else numeric
    tensors: dict[str, torch.Tensor] = {}
    for name, form, column, picked in _plan(tuple(inputs)):
        if form == "numbers":
            tensors[name] = numeric if picked is None else numeric[:, picked]
        elif form == "codes":
            tensors[name] = rows.categories if picked is None else rows.categories[:, picked]
        elif form == "image":
            image = rows.images[column]
            tensors[name] = image.float().div_(255) if image.dtype == torch.uint8 else image
        else:
            padded = (rows.padded if form == "ids" else rows.arrays)[column]
            tensors[name], tensors[f"{name}_mask"] = padded.values, padded.mask
    return tensors


@cache
def _plan(inputs: tuple[NetInput, ...]) -> tuple[tuple[str, Form, str, list[int] | None], ...]:
    """Return for each input its name, form and first column, and which columns of the tensor of all
    numbers or codes it reads; None for all."""
    every = {
        form: list(dict.fromkeys(c for each in inputs if each.form == form for c in each.columns))
        for form in ("numbers", "codes")
    }
    plan = []
    for each in inputs:
        columns = every.get(each.form, [])
        picked = [columns.index(column) for column in each.columns] if columns else []
        whole = picked == list(range(len(columns)))
        plan.append((each.name, each.form, each.columns[0], None if whole else picked))
    return tuple(plan)


__all__ = ["Form", "NetInput", "net_inputs", "tensors_of"]
