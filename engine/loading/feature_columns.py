"""The columns of a model's features: those of [model] numeric, categories and the like, or those of
a network's named inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from engine.config import ModelSettings
from engine.loading.nested_tensors import array_shape, float_images, image_shape, nested_features
from engine.scrub.columns import expand_columns
from engine.types import Schema, UserError, nearest, type_name
from engine.types.toml import toml_value

LIST_LENGTH = 256
"""Values of a list that are kept unless [model] says another number."""
KEYS = ("numeric", "categories")
"""Keys of [model] whose columns are the input of that name."""
WORDS = {
    "numeric": "numbers", "categories": "codes", "padded": "lists of ids", "images": "images",
    "arrays": "arrays",
}  # fmt: skip
"""How sentences name the kinds of features that a network reads."""
ONE_COLUMN = ("padded", "images", "arrays")
"""Those that it reads one column at a time."""


def tabular_features(
    model: ModelSettings, schema: Schema, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Return the `Features` that the keys of [model] name, globs expanded.

    Args:
        sizes: column -> number of its codes or ids, where a stage says so.

    Raises: UserError for a column that is missing or cannot be that.
    """
    for column in model.categories:
        if column not in sizes:
            raise UserError(
                f"No [scrub] stage of kind 'categories' encodes [model] category '{column}'"
                f"{_encoded(column, sizes)}"
            )
    numeric = model.numeric and expand_columns(model.numeric, schema, where="[model] numeric")
    return {
        "numeric": numeric,
        "categories": {column: sizes[column] for column in model.categories},
        **nested_features(model, schema, sizes),
    }


def network_features(
    named: Mapping[str, Sequence[str] | None],
    model: ModelSettings,
    schema: Schema,
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """Return the `Features` that the inputs of a network are made of.

    Args:
        named: input -> its columns, names or globs; None: [model] numeric or categories, or the
            column of that name.
        sizes: column -> number of its codes or ids, where a stage says so.

    Raises: UserError for a column that is not there or cannot be read, for columns of several kinds
        in one input, and for a column that two inputs read differently.
    """
    for key in ("images", "ragged", "padded", "sparse", "arrays"):
        if getattr(model, key):
            raise UserError(
                f"[model] {key} is a key of kind = 'tabular': a network reads the column as an "
                "input of its own, [model.inputs.NAME] columns."
            )
    limits = [*sorted(model.buckets)[-1:], *([model.max_length] if model.max_length else [])]
    length = min(limits, default=LIST_LENGTH)
    inputs = {name: _columns(name, named.get(name), model, schema) for name in _names(named, model)}
    kinds: dict[str, dict[str, Any]] = {kind: {} for kind in WORDS}
    for name, columns in inputs.items():
        read = {c: _read(_where(name), c, name, schema[c], sizes, length) for c in columns}
        _require_one_kind(_where(name), {column: kind for column, (kind, _) in read.items()})
        for column, (kind, of) in read.items():
            if name in KEYS and kind != name:
                raise UserError(
                    f"[model] {name} reads column '{column}', which holds {WORDS[kind]}: give it "
                    "an input of its own, [model.inputs.NAME] columns."
                )
            kinds[kind][column] = of
    for column in kinds["numeric"]:
        if column in kinds["categories"]:
            raise UserError(
                f"[model] reads column '{column}' as a number and as a category: name it in one "
                "of them."
            )
    return {
        **kinds,
        "numeric": tuple(kinds["numeric"]),
        "float_images": float_images(kinds["images"], schema),
        "inputs": inputs,
        "max_length": length,
        "buckets": tuple(sorted(model.buckets)),
    }


def _names(named: Mapping[str, Any], model: ModelSettings) -> list[str]:
    """Return the inputs: those of [model] numeric and categories first."""
    for key in KEYS:
        if getattr(model, key) and named.get(key):
            raise UserError(
                f"[model.inputs.{key}] and [model] {key} both name columns of the input '{key}': "
                "take one of them out."
            )
    return list(dict.fromkeys([*(key for key in KEYS if getattr(model, key)), *named]))


def _columns(
    name: str, asked: Sequence[str] | None, model: ModelSettings, schema: Schema
) -> tuple[str, ...]:
    if asked is not None:
        return tuple(expand_columns(asked, schema, where=f"[model.inputs.{name}] columns"))
    if name in KEYS and getattr(model, name):
        return tuple(expand_columns(getattr(model, name), schema, where=f"[model] {name}"))
    if name not in schema:
        raise UserError(
            f"The forward of [model] module asks for '{name}', and there is neither an input "
            f"[model.inputs.{name}] nor a column of that name.{nearest(name, schema)}"
        )
    return (name,)


def _encoded(column: str, sizes: Mapping[str, int]) -> str:
    """Return what encodes a column, as the end of a sentence."""
    name = toml_value(column)
    return (
        f": add {name} to the columns of one, or write [scrub.categories] columns = [{name}]."
        f"{nearest(column, sizes)}"
    )


def _where(name: str) -> str:
    return f"[model] {name}" if name in KEYS else f"[model.inputs.{name}]"


def _read(
    where: str, column: str, name: str, dtype: pl.DataType, sizes: Mapping[str, int], length: int
) -> tuple[str, Any]:
    """Return the kind of features that a column is, and what `Features` says of it."""
    coded = column in sizes and not dtype.is_nested()
    if name == "categories" and not coded:
        raise UserError(
            f"No [scrub] stage of kind 'categories' encodes {where} '{column}'"
            f"{_encoded(column, sizes)}"
        )
    if coded and name != "numeric":
        return "categories", sizes[column]
    if dtype.is_numeric() or dtype == pl.Boolean:
        return "numeric", None
    inner = getattr(dtype, "inner", None)  # of polars' lists and arrays alone
    if isinstance(dtype, pl.List) and isinstance(inner, pl.DataType):
        if inner.is_integer():
            return "padded", sizes.get(column, 0)
        if inner.is_float():
            return "arrays", array_shape(column, dtype, length)
    if isinstance(dtype, pl.Array):
        if len(dtype.shape) == 3:
            return "images", image_shape(column, dtype)
        return "arrays", array_shape(column, dtype, length)
    hint = (
        "encode it with a 'categories' stage, or its words with a 'tokens' stage"
        if dtype == pl.String
        else "make numbers, lists or arrays of it with a stage"
    )
    raise UserError(
        f"{where} reads column '{column}', which is {type_name(dtype)}; expected numbers, "
        f"codes of categories, lists of ids, images or arrays: {hint}."
    )


def _require_one_kind(where: str, kinds: Mapping[str, str]) -> None:
    if not kinds:
        raise UserError(f"{where} names no column: give it one at least.")
    (first, kind), *others = kinds.items()
    for column, other in others:
        if other != kind:
            raise UserError(
                f"{where} reads '{first}' ({WORDS[kind]}) and '{column}' ({WORDS[other]}), and one "
                "input has one kind of columns: make two inputs."
            )
    if others and kind in ONE_COLUMN:
        raise UserError(
            f"{where} names {len(kinds)} columns of {WORDS[kind]}, and an input reads one: "
            "give each an input of its own."
        )


__all__ = ["network_features", "tabular_features"]
