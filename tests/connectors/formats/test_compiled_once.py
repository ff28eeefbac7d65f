"""A loop is compiled once, whether what it reads could be written to or not: in mid-stream, a
column may be copied for the first time, and nothing may wait seconds for a compiler then."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest

from connectors.formats.kernels import flat_json, json_scan
from connectors.formats.kernels.paths import JsonShape
from connectors.formats.walks.flat_json import FlatJson
from connectors.formats.walks.json_scan import Tree, halved_pairs, twice
from engine.columnar import hashing, kernels
from engine.types import Schema, Values
from engine.types.arrays import read_only

LINES = b'{"a": 1.5, "b": "x"}\n{"a": 2, "b": "\\ud800"}\n'
SCHEMA: Schema = {"a": pl.Float64(), "b": pl.String()}
NUMBERS = pl.Series("a", [1.0, 2.0, None])
LOOPS = {
    "walk_flat": flat_json.walk_flat,
    "scan_lines": json_scan.scan_lines,
    "mark_twice": json_scan.mark_twice,
    "mark_halves": json_scan.mark_halves,
    "_zobrist": hashing._zobrist,
    "_plain": hashing._plain,
    "fill_into": kernels.fill_into,
}


def read(data: np.ndarray[Any, Any], bounds: np.ndarray[Any, Any]) -> None:
    flat = FlatJson.of(SCHEMA)
    assert flat is not None
    flat.decode(Values(data=data, bounds=bounds))
    tree = Tree(JsonShape.of(SCHEMA, {}))
    assert tree.scan(data, bounds).verdicts.max() < json_scan.BROKEN
    twice(data, bounds, ["a", "b"])
    assert halved_pairs(data, bounds).tolist() == [False, True]
    hashing.spans(data, bounds[:-1], bounds[1:])


@pytest.fixture(scope="module", autouse=True)
def loops_that_ran() -> None:
    data, bounds = np.frombuffer(LINES, np.uint8), np.array([0, 21, len(LINES)])
    read(data, bounds)
    read(data.copy(), read_only(bounds))
    for column in (NUMBERS, NUMBERS.fill_null(0.0), NUMBERS.cast(pl.Int32)):
        kernels.fill_columns([column], [0.0])
        hashing.hashes(column.to_frame())


@pytest.mark.parametrize("name", LOOPS)
def test_no_loop_is_compiled_for_arrays_that_could_be_written_to_too(name: str) -> None:
    signatures = [" ".join(map(str, types)) for types in LOOPS[name].signatures]
    kinds = Counter(each.replace("readonly ", "") for each in signatures)
    assert set(kinds.values()) == {1}


def test_what_is_read_only_is_not_copied() -> None:
    numbers = np.arange(3)
    once = read_only(numbers)
    assert np.shares_memory(once, numbers)
    assert not once.flags.writeable
    assert numbers.flags.writeable
    assert read_only(once) is once
