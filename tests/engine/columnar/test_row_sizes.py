"""Where batches and blocks are cut by bytes: the sizes of rows, by their values alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from connectors.memory import MemorySource
from engine.columnar.row_sizes import ends_of
from engine.config import LoaderSettings
from engine.loading.collate import Collate
from engine.loading.loader import Loader
from engine.types import Features, Records


def sizes(values: list[Any], kind: Any) -> list[int]:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=kind)})
    n = frame.height
    records = Records(partition="p", positions=np.arange(n), next=n, values=frame, arrived=0.0)
    return [int(size) for size in np.diff(ends_of(records), prepend=0)]


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, None], pl.Int64, [8, 8]),
        (["ab", None, ""], pl.String, [2, 0, 0]),
        ([b"abc", b""], pl.Binary, [3, 0]),
        ([[1, 2, 3], [], None], pl.List(pl.Int64), [24, 0, 0]),
        ([["a", "bcd"], ["e"]], pl.List(pl.String), [4, 1]),
        ([{"a": 1, "b": "xy"}], pl.Struct({"a": pl.Int64, "b": pl.String}), [10]),
        ([[1, 2], [3, 4]], pl.Array(pl.Float64, 2), [16, 16]),
        ([[1, 2], [3, 4]], pl.Array(pl.Float32, 2), [8, 8]),
        ([[[[1], [2]], [[3], [4]]]], pl.Array(pl.UInt8, (2, 2, 1)), [4]),
        ([[[1, 2]]], pl.List(pl.Array(pl.UInt16, 2)), [4]),
        ([["ab", "c"], ["d", ""]], pl.Array(pl.String, 2), [3, 1]),
    ],
)
def test_bytes_of_each_row(values: list[Any], kind: Any, expected: list[int]) -> None:
    assert sizes(values, kind) == expected


def test_images_that_fit_are_one_batch() -> None:
    pixels = np.zeros((32, 64, 64, 3), np.uint8)
    frame = pl.DataFrame({"image": pixels, "y": np.zeros(32)})
    loader = Loader(
        MemorySource.of([frame]),
        schema=dict(frame.schema),
        collate=Collate(Features(numeric=(), images={"image": (3, 64, 64)}, target="y")).apply,
        settings=LoaderSettings(
            batch_rows=32, batch_bytes=pixels.nbytes + 32 * 8, poll_timeout=0.01
        ),
    )
    with loader:
        assert [len(batch) for batch in loader] == [32]
