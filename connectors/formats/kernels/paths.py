"""Paths into JSON objects: ``user.address.city``, ``items[0].price``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import polars as pl

from engine.types import Schema, UserError, element_type, nearest

PathStep = str | int
STEPS = re.compile(r"[^.\[\]]+(?:\[\d+\])*(?:\.[^.\[\]]+(?:\[\d+\])*)*")
STEP = re.compile(r"[^.\[\]]+|\[\d+\]")


def parse_path(path: str, column: str) -> tuple[PathStep, ...]:
    """Return the keys and list indexes on the way to a value; the empty path is the key without
    a name.

    Raises: UserError if it is no path.
    """
    if not path:
        return ("",)
    if not STEPS.fullmatch(path):
        raise UserError(
            f"[source] paths: '{path}' of column '{column}' is no path: expected keys with dots "
            "in between and list indexes from 0 in brackets, as in 'user.address.city' or "
            "'items[0].price'."
        )
    return tuple(int(s[1:-1]) if s[0] == "[" else s for s in STEP.findall(path))


@dataclass(slots=True, kw_only=True)
class PathNode:
    """A place in the object. A leaf has a type; other nodes have children.

    Attributes:
        path: as in the settings.
        kind: of the column, None where the place is only on the way to others.
        column: the first column that is, or lies below, this place.
        below: key -> node of an object, index -> node of a list.
    """

    path: str
    kind: pl.DataType | None = None
    column: str = ""
    below: dict[PathStep, PathNode] = field(default_factory=dict)

    @property
    def is_list(self) -> bool:
        return any(isinstance(step, int) for step in self.below)

    def dtype(self, *, text: bool) -> pl.DataType:
        """Return the polars type for all that is read below; with `text`, every leaf as text."""
        if self.kind is not None:
            return pl.String() if text else parsed_as(self.kind)
        if self.is_list:
            inner = [node.dtype(text=text) for node in self.below.values()]
            return pl.List(_merged(inner, self))
        return pl.Struct({str(k): node.dtype(text=text) for k, node in self.below.items()})

    def walk(self) -> Iterator[PathNode]:
        """Yield this node and all below, parents first."""
        yield self
        for node in self.below.values():
            yield from node.walk()


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonShape:
    """The places of a schema's columns in an object.

    Attributes:
        schema: the columns.
        places: column -> steps to its value.
        root: the object itself.
    """

    schema: Schema
    places: Mapping[str, tuple[PathStep, ...]]
    root: PathNode

    @classmethod
    def of(cls, schema: Schema, paths: Mapping[str, str]) -> JsonShape:
        """Raises: UserError for a path of no column, or two that ask for one place in two ways."""
        for column in paths:
            if column not in schema:
                raise UserError(
                    f"[source] paths names column '{column}', which [source.schema] does not."
                    f"{nearest(column, schema)}"
                )
        places = {c: parse_path(paths[c], c) if c in paths else (c,) for c in schema}
        root = PathNode(path="")
        for column, steps in places.items():
            _add(root, steps, column, schema[column])
        for node in root.walk():
            node.dtype(text=False)  # lists of two types are found here
        return cls(schema=schema, places=places, root=root)

    def types(self, *, text: bool) -> Schema:
        """Return what the parser is asked for: key -> type; with `text`, every value as text."""
        return {str(key): node.dtype(text=text) for key, node in self.root.below.items()}

    def way(self, column: str) -> list[PathNode]:
        """Return the nodes on the way to a column's value, its own last."""
        nodes = [self.root]
        for step in self.places[column]:
            nodes.append(nodes[-1].below[step])
        return nodes[1:]

    def columns(self, parsed: pl.DataFrame) -> pl.DataFrame:
        """Return the columns of the schema, taken from the parsed object. A missing step is
        null."""
        if all(steps == (column,) for column, steps in self.places.items()):
            return parsed
        return parsed.select(value_at(steps).alias(c) for c, steps in self.places.items())


def parsed_as(dtype: pl.DataType) -> pl.DataType:
    """Return the type that the parser is asked for in place of a column's. It gives no bytes,
    takes times in several forms, makes decimals from floats, and panics at narrow integers."""
    if isinstance(dtype, pl.List):
        return pl.List(parsed_as(element_type(dtype)))
    if dtype in (pl.Int8, pl.Int16, pl.UInt8, pl.UInt16):
        return pl.Int64()
    as_text = dtype == pl.Binary or dtype.is_temporal() or dtype.is_decimal()
    return pl.String() if as_text else dtype


def value_at(steps: tuple[PathStep, ...]) -> pl.Expr:
    """Return the values at a path in columns of objects and lists; null if a step is missing."""
    value = pl.col(str(steps[0]))
    for step in steps[1:]:
        if isinstance(step, int):
            value = value.list.get(step, null_on_oob=True)
        else:
            value = value.struct.field(step)
    return value


def _add(root: PathNode, steps: tuple[PathStep, ...], column: str, dtype: pl.DataType) -> None:
    node, path = root, ""
    for step in steps:
        if node.kind is not None or (node.below and node.is_list != isinstance(step, int)):
            raise _two_ways(node, column)
        key = step or '""'
        path = f"{path}[{step}]" if isinstance(step, int) else f"{path}.{key}".lstrip(".")
        node = node.below.setdefault(step, PathNode(path=path, column=column))
    if node.below or (node.kind is not None and node.kind != dtype):
        raise _two_ways(node, column)
    node.kind = dtype


def _merged(inner: list[pl.DataType], node: PathNode) -> pl.DataType:
    """Return one type for the elements of a list: fields of objects are merged, other types are
    equal."""
    first = inner[0]
    if all(dtype == first for dtype in inner):
        return first
    if all(isinstance(dtype, pl.Struct) for dtype in inner):
        fields: dict[str, list[pl.DataType]] = {}
        for dtype in inner:
            assert isinstance(dtype, pl.Struct)
            for field in dtype.fields:
                assert isinstance(field.dtype, pl.DataType)
                fields.setdefault(field.name, []).append(field.dtype)
        return pl.Struct({name: _merged(kinds, node) for name, kinds in fields.items()})
    if all(isinstance(dtype, pl.List) for dtype in inner):
        return pl.List(_merged([dtype.inner for dtype in inner], node))  # type: ignore[attr-defined]
    raise UserError(
        f"[source] paths asks for elements of '{node.path}' (column '{node.column}') in two types: "
        "elements of one list have one, give their columns the same in [source.schema]."
    )


def _two_ways(node: PathNode, column: str) -> UserError:
    return UserError(
        f"[source] paths: columns '{node.column}' and '{column}' take '{node.path}' as two "
        "different things: expected a value, an object or a list; change one of their paths, or "
        "give both the same type."
    )


__all__ = ["JsonShape", "PathNode", "PathStep", "parse_path", "parsed_as", "value_at"]
