"""Splits lists and objects into elements and fields, and joins them again, so that the one rule
of `connectors.formats.values.casts` applies to each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.kernels.lists import (
    ARRAY,
    BOOL,
    ESCAPED,
    FLOAT,
    INTEGER,
    NULL,
    OBJECT,
    STRING,
    WORD,
    find_elements,
)
from connectors.formats.kernels.paths import JsonShape
from connectors.formats.kernels.rows import gather, values
from connectors.formats.walks import json_scan
from engine.types import Schema
from engine.types.arrays import Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """The elements of n rows of lists.

    Attributes:
        values: all elements, one list after the other, shape (m,).
        tokens: what each is in JSON, shape (m,); of columns none, shape (0,).
        sizes: how many elements each list has, shape (n,); -1 where there is no list.
    """

    values: pl.Series
    tokens: NDArray[np.int8]
    sizes: Ints

    @property
    def rows(self) -> Ints:
        """The list of each element, shape (m,)."""
        return np.repeat(np.arange(len(self.sizes)), np.maximum(self.sizes, 0))

    def to_lists(self, elements: pl.Series, name: str) -> pl.Series:
        """Join other elements to lists; null if an element was lost, i.e. became null although
        the value was not."""
        sizes = self.sizes
        if elements.null_count() != self.values.null_count():
            lost = (elements.is_null() & self.values.is_not_null()).to_numpy()
            rows = self.rows
            bad = np.zeros(len(sizes), np.bool_)
            bad[rows[lost]] = True
            elements = elements.filter(pl.Series(~bad[rows]))
            sizes = np.where(bad, -1, sizes)
        bounds = np.zeros(len(sizes) + 1, np.int64)
        np.cumsum(np.maximum(sizes, 0), out=bounds[1:])
        array = pa.LargeListArray.from_arrays(
            pa.array(bounds), elements.rechunk().to_arrow(), mask=pa.array(sizes < 0)
        )
        series = pl.from_arrow(array)
        assert isinstance(series, pl.Series)
        return series.cast(pl.List(elements.dtype)).alias(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The fields of n rows of objects.

    Attributes:
        columns: field -> its values, shape (n,), and what each is in JSON (`Elements.tokens`).
        there: where there is an object, shape (n,).
    """

    columns: Mapping[str, tuple[pl.Series, NDArray[np.int8]]]
    there: NDArray[np.bool_]

    def to_lists(self, columns: Sequence[pl.Series], dtype: pl.Struct, name: str) -> pl.Series:
        """Join other values (in the order of `columns`) to objects; null if a value was lost,
        i.e. became null although it was not."""
        there = self.there.copy()
        for column, (raw, _) in zip(columns, self.columns.values(), strict=True):
            if column.null_count() != raw.null_count():
                there &= ~(column.is_null() & raw.is_not_null()).to_numpy()
        whole = pl.DataFrame([*columns]).to_struct(name).cast(dtype)
        nothing = pl.Series(name, [None], dtype=dtype).new_from_index(0, len(whole))
        return whole if there.all() else whole.zip_with(pl.Series(there), nothing)


def of_column(column: pl.Series) -> Elements:
    """Return the elements of a column of lists or arrays."""
    if isinstance(column.dtype, pl.Array):
        column = column.arr.to_list()
    sizes = column.list.len().fill_null(-1).cast(pl.Int64).to_numpy()
    flat = column.explode(empty_as_null=False, keep_nulls=False)
    return Elements(values=flat, tokens=np.zeros(0, np.int8), sizes=sizes)


def parse_lists(texts: pl.Series) -> Elements:
    """Return the elements of JSON arrays as text: strings without their quotes, others as
    written. What is not an array has no list; nested objects and arrays are not parsed."""
    raw = values(texts.fill_null(""))
    commas = np.count_nonzero(raw.data == ord(","))
    tokens = np.zeros(commas + len(texts), np.int8)
    starts, stops = np.zeros((2, len(tokens)), np.int64)
    sizes = np.full(len(texts), -1, np.int64)
    m = int(find_elements(raw.data, raw.bounds, starts, stops, tokens, sizes))
    column, tokens = _said(raw.data, starts[:m], stops[:m], tokens[:m])
    return Elements(values=column, tokens=tokens, sizes=sizes)


def of_objects(texts: pl.Series, fields: Iterable[str]) -> Fields:
    """Return the fields of JSON objects, like the elements of `parse_lists`; null if missing. Of
    two equal keys the first counts. What is not an object has no fields."""
    raw = values(texts.fill_null(""))
    schema: Schema = dict.fromkeys(fields, pl.String())
    shape = JsonShape.of(schema, {})
    tree = json_scan.Tree(shape)
    scan = tree.scan(raw.data, raw.bounds, tokens=True)
    there = scan.verdicts < json_scan.DEEP
    backslash = texts.str.contains("\\", literal=True).fill_null(False).to_numpy()
    columns = {}
    for field in schema:
        number = tree.number(shape.way(field)[-1])
        tokens = np.where(there, scan.tokens[:, number], 0)
        starts, stops = scan.spans[:, number].T.copy()
        string = tokens == STRING
        quoted = string.astype(np.int64)
        starts, stops = starts + quoted, stops - quoted
        escaped = string & backslash
        tokens = np.where(escaped, STRING + ESCAPED, np.where(tokens == 0, NULL, tokens))
        columns[field] = _said(raw.data, starts, stops, tokens.astype(np.int8))
    return Fields(columns=columns, there=there)


def _said(
    data: NDArray[np.uint8], starts: Ints, stops: Ints, tokens: NDArray[np.int8]
) -> tuple[pl.Series, NDArray[np.int8]]:
    """Return values as text, and the kind of each; strings lie between their quotes."""
    null = tokens == NULL
    texts = gather(data, starts, np.where(null, -1, stops - starts))
    column = _text(texts.data, texts.bounds, null)
    escaped = tokens == STRING + ESCAPED
    if escaped.any():
        at = np.flatnonzero(escaped)
        column = column.scatter(at, _unescaped(column.gather(at)))
        tokens = np.where(escaped, np.int8(STRING), tokens)
    return column, tokens


def are_json(texts: pl.Series) -> NDArray[np.bool_]:
    """Return which of these objects and arrays are JSON, shape (n,)."""
    raw = values('{"":' + texts.fill_null("") + "}")
    return json_scan.Tree(JsonShape.of({}, {})).scan(raw.data, raw.bounds).verdicts < json_scan.DEEP


def _text(data: NDArray[np.uint8], bounds: Ints, null: NDArray[np.bool_]) -> pl.Series:
    buffers = [
        pa.py_buffer(np.packbits(~null, bitorder="little")), pa.py_buffer(bounds),
        pa.py_buffer(data),
    ]  # fmt: skip
    series = pl.from_arrow(pa.Array.from_buffers(pa.large_string(), len(null), buffers))
    assert isinstance(series, pl.Series)
    return series


def _unescaped(inside: pl.Series) -> pl.Series:
    """Return the strings with escapes resolved; unchanged if that is not a character (half of a
    surrogate pair)."""
    quoted = '"' + inside + '"'
    try:
        return quoted.str.json_decode(pl.String())
    except PolarsError:
        if len(inside) == 1:
            return inside
        half = len(inside) // 2
        return pl.concat([_unescaped(inside[:half]), _unescaped(inside[half:])])


__all__ = [
    "ARRAY",
    "BOOL",
    "FLOAT",
    "INTEGER",
    "OBJECT",
    "STRING",
    "WORD",
    "Elements",
    "Fields",
    "are_json",
    "of_column",
    "of_objects",
    "parse_lists",
]  # fmt: skip
