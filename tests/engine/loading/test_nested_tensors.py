"""Arrays and lists to tensors: every row is there whole, or leaves with its reason."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import ModelSettings
from engine.loading.collate import Collate
from engine.loading.nested_tensors import bucket, nested_features
from engine.types import Batch, Features, Mark, Schema, Tensors, UserError
from tests.size import examples

IDS = pl.List(pl.Int64())


def batch(**columns: pl.Series) -> Batch:
    n = len(next(iter(columns.values())))
    frame = pl.DataFrame({"_partition": ["p"] * n, "_position": np.arange(n), **columns})
    return Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=n)


def collated(features: Features, **columns: pl.Series) -> Batch:
    given = batch(**columns)
    collate = Collate(features)
    collate.bind({c: k for c, k in given.frame.schema.items() if not c.startswith("_")})
    return collate.apply(given)


def tensors_of(done: Batch) -> Tensors:
    assert done.tensors is not None
    return done.tensors


def pictures(n: int, kind: Any = np.uint8) -> pl.Series:
    return pl.Series(np.arange(n * 24, dtype=kind).reshape(n, 2, 4, 3))


def reasons(done: Batch) -> dict[str, list[int]]:
    return {r.reason: r.rows["_position"].to_list() for r in done.rejects}


FEATURES = Features(
    numeric=("a",),
    images={"i": (3, 2, 4)},
    ragged={"r": 10},
    padded={"p": 10},
    sparse={"s": 10},
    arrays={"h": (3, 2)},
    max_length=4,
)
LISTS = [[1, 2, 2], [], [9] * 6, [0]]
ARRAYS: list[Any] = [
    [[1, 2], [3, 4], [5, 6]],
    [None] * 3,
    [[1, 2], None, [0, 0]],
    [[7, 8], None, None],
]
"""Of shape (3, 2), with rows that are not there."""


def everything() -> Batch:
    lists = pl.Series(LISTS, dtype=IDS)
    return collated(
        FEATURES,
        a=pl.Series([1.0, 2, 3, 4]),
        i=pictures(4),
        r=lists,
        p=lists,
        s=lists,
        h=pl.Series(ARRAYS, dtype=pl.Array(pl.Float32, (3, 2))),
    )


def test_every_kind_becomes_its_tensors() -> None:
    done = everything()
    tensors = tensors_of(done)
    images = tensors.images["i"]
    assert (images.shape, images.dtype) == ((4, 3, 2, 4), torch.uint8)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images[1, 2, 0, 3] == 24 + 3 * 3 + 2
    ragged = tensors.ragged["r"]
    assert ragged.values.tolist() == [1, 2, 2, 9, 9, 9, 9, 0]
    assert ragged.offsets.tolist() == [0, 3, 3, 7, 8]
    padded = tensors.padded["p"]
    assert padded.values.tolist() == [[1, 2, 2, 0], [0] * 4, [9] * 4, [0] * 4]
    assert padded.mask.sum(1).tolist() == [3, 0, 4, 1]
    dense = tensors.sparse["s"].csr().to_dense()
    assert dense.shape == (4, 10)
    assert dense.nonzero().tolist() == [[0, 1], [0, 2], [2, 9], [3, 0]]
    assert dense[dense > 0].tolist() == [1, 2, 4, 1]
    arrays = tensors.arrays["h"]
    assert (arrays.values.dtype, arrays.values.shape) == (torch.float32, (4, 3, 2))
    assert arrays.mask.tolist() == [[row is not None for row in rows] for rows in ARRAYS]
    assert arrays.values.tolist() == [[row or [0, 0] for row in rows] for rows in ARRAYS]
    assert done.counts == {("collate", "truncated"): 6}


def test_images_lie_in_the_frames_memory_and_count_once() -> None:
    done = everything()
    tensors = tensors_of(done)
    place = done.frame["i"].to_numpy().__array_interface__["data"][0]
    assert tensors.images["i"].data_ptr() == place
    assert done.nbytes == done.frame.estimated_size() + tensors.nbytes - 96
    own = {"i": tensors.images["i"].clone()}
    apart = Batch(
        frame=done.frame, mark=Mark(), arrived=0.0, tensors=Tensors(
            numeric=tensors.numeric, categories=tensors.categories, images=own
        ),
    )  # fmt: skip
    assert apart.nbytes == done.frame.estimated_size() + 16 + 96


def test_rows_can_be_taken_again_and_again() -> None:
    tensors = tensors_of(everything())
    rows = np.array([2, 0, 0, 3, 1])
    taken = tensors.take(rows)
    assert len(taken) == 5
    assert torch.equal(taken.images["i"], tensors.images["i"][torch.from_numpy(rows)])
    assert taken.images["i"].is_contiguous(memory_format=torch.channels_last)
    lists = [LISTS[i][:4] for i in rows]
    assert taken.ragged["r"].values.tolist() == [x for row in lists for x in row]
    assert taken.padded["p"].mask.sum(1).tolist() == [len(row) for row in lists]
    assert taken.arrays["h"].values[0].tolist() == tensors.arrays["h"].values[2].tolist()
    assert taken.arrays["h"].mask.sum(1).tolist() == [2, 3, 3, 1, 0]
    piece = tensors.slice(1, 3).arrays["h"]
    assert piece.mask.sum(1).tolist() == [0, 2]
    expected = tensors.sparse["s"].csr().to_dense()[torch.from_numpy(rows)]
    assert torch.equal(taken.sparse["s"].csr().to_dense(), expected)
    none = tensors.take(np.empty(0, np.int64))
    assert len(none) == len(none.ragged["r"]) == len(none.sparse["s"]) == 0


def test_map_meets_every_tensor_once() -> None:
    tensors = tensors_of(everything())
    met: list[int] = []
    moved = tensors.map(lambda t: met.append(t.nbytes) or t.to("meta"))  # type: ignore[func-returns-value]
    assert sum(met) == tensors.nbytes
    assert moved.images["i"].device.type == moved.sparse["s"].weights.device.type == "meta"
    assert moved.nbytes == tensors.nbytes


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_images_of_floats(kind: Any) -> None:
    features = Features(numeric=(), images={"i": (3, 2, 4)})
    column = pl.Series(np.array([pictures(3, kind).to_numpy()[i] for i in range(3)]))
    numbers = column.to_numpy().copy()
    numbers[1, 0, 0, 0] = np.nan
    numbers[2, 1, 1, 1] = 1e300 if kind is np.float64 else np.inf
    done = collated(features, i=pl.Series(numbers))
    images = tensors_of(done).images["i"]
    assert images.dtype == torch.float32
    assert images[0, 1, 0].tolist() == [1, 4, 7, 10]
    assert reasons(done) == {"missing": [1], "non_finite": [2]}


def test_a_row_with_something_bad_in_it_leaves_once() -> None:
    rows = [[1, 2], None, [3, None], [10], [-1], [4, 11, None], []]
    lists = pl.Series(rows, dtype=IDS)
    done = collated(Features(numeric=(), ragged={"r": 10}), r=lists)
    assert reasons(done) == {"missing": [1, 2, 5], "out_of_range": [3, 4]}
    assert tensors_of(done).ragged["r"].values.tolist() == [1, 2]
    assert done.rejects[1].rows["detail"][0] == (
        "Expected ids from 0 to 9 in feature 'r', got another."
    )
    for values, detail in (
        ([[1], None], "Expected a value in feature 'r', got null."),
        ([[1], [None]], "Expected numbers in feature 'r', got null or NaN."),
    ):
        done = collated(Features(numeric=(), ragged={"r": 10}), r=pl.Series(values, dtype=IDS))
        assert [reject.rows["detail"].to_list() for reject in done.rejects] == [[detail]]
    arrays = pl.Series(
        [None, [[[1]], [[None]]], [[[1]], [[2]]]], dtype=pl.Array(pl.UInt8, (2, 1, 1))
    )
    done = collated(Features(numeric=(), images={"i": (1, 2, 1)}), i=arrays)
    assert reasons(done) == {"missing": [0, 1]}
    assert tensors_of(done).images["i"].tolist() == [[[[1], [2]]]]
    huge = pl.Series([[1], [2**63]], dtype=pl.List(pl.UInt64))
    done = collated(Features(numeric=(), ragged={"r": 0}), r=huge)
    assert reasons(done) == {"out_of_range": [1]}


def test_arrays_may_lack_rows_and_nothing_else() -> None:
    rows = [[[1, 2]], None, [None], [[1, None]], [[math.nan, 1]], [[1, math.inf]], [[1, 1e39]]]
    arrays = pl.Series(rows, dtype=pl.Array(pl.Float64, (1, 2)))
    done = collated(Features(numeric=(), arrays={"h": (1, 2)}), h=arrays)
    assert reasons(done) == {"missing": [1, 3, 4], "non_finite": [5, 6]}
    assert tensors_of(done).arrays["h"].values.tolist() == [[[1, 2]], [[0, 0]]]
    assert tensors_of(done).arrays["h"].mask.tolist() == [[True], [False]]


def test_lists_of_floats() -> None:
    rows = [[1.5, 2.0], [math.nan], [math.inf], [1e39], []]
    features = Features(numeric=(), ragged={"r": 0}, padded={"r": 0}, buckets=(3,))
    done = collated(features, r=pl.Series(rows, dtype=pl.List(pl.Float64)))
    assert reasons(done) == {"missing": [1], "non_finite": [2, 3]}
    assert tensors_of(done).ragged["r"].values.dtype == torch.float32
    assert tensors_of(done).padded["r"].values.tolist() == [[1.5, 2.0, 0.0], [0.0, 0.0, 0.0]]


def test_nothing_of_every_kind_is_legal() -> None:
    lists = pl.Series([], dtype=IDS)
    empty = collated(
        FEATURES,
        a=pl.Series([], dtype=pl.Float64),
        i=pictures(1).head(0),
        r=lists,
        p=lists,
        s=lists,
        h=pl.Series([], dtype=pl.Array(pl.Float32, (3, 2))),
    )
    tensors = tensors_of(empty)
    assert tensors.images["i"].shape == (0, 3, 2, 4)
    assert tensors.arrays["h"].values.shape == (0, 3, 2)
    assert tensors.padded["p"].values.shape[0] == len(tensors.ragged["r"]) == 0
    assert tensors.sparse["s"].csr().shape == (0, 10)
    assert empty.nbytes >= 0


@pytest.mark.parametrize(
    ("longest", "most", "buckets", "length"),
    [(0, 8, (), 1), (5, 64, (), 8), (64, 64, (), 64), (70, 100, (), 100), (3, 20, (4, 20), 4),
     (5, 20, (4, 20), 20), (7, 8, (4, 20), 8)],
)  # fmt: skip
def test_buckets(longest: int, most: int, buckets: tuple[int, ...], length: int) -> None:
    assert bucket(longest, most, buckets) == length


lists = st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=20)


@settings(max_examples=examples(80), deadline=None)
@given(lists, st.none() | st.integers(1, 9), st.integers(0, 5))
def test_lists_are_what_plain_python_makes_of_them(
    rows: list[list[int]], most: int | None, start: int
) -> None:
    features = Features(
        numeric=(), ragged={"r": 10}, padded={"r": 10}, sparse={"r": 10}, max_length=most,
        buckets=() if most else (12,),
    )  # fmt: skip
    column = pl.Series(rows, dtype=IDS)[start:]  # a slice has values before its own
    done = collated(features, r=column)
    tensors, kept = tensors_of(done), [row[:most] for row in rows[start:]]
    ragged, padded = tensors.ragged["r"], tensors.padded["r"]
    bounds = ragged.offsets.tolist()
    got = [ragged.values[a:b].tolist() for a, b in itertools.pairwise(bounds)]
    assert got == kept
    assert [v[m].tolist() for v, m in zip(padded.values, padded.mask, strict=True)] == kept
    assert (padded.values[~padded.mask] == 0).all()
    counts = [[Counter(row)[i] for i in range(10)] for row in kept]
    assert tensors.sparse["r"].csr().to_dense().tolist() == counts
    cut = sum(len(row) for row in rows[start:]) - sum(map(len, kept))
    assert done.counts.get(("collate", "truncated"), 0) == 3 * cut


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            {"images": ["r"]},
            "expects arrays of uint8 or floats of shape .* in column 'r', got list",
        ),
        ({"images": ["j"]}, "needs column 'j', which is not there"),
        ({"sparse": ["r"]}, "needs to know how many ids column 'r' can hold"),
        ({"padded": ["r"]}, "needs the key 'max_length' or 'buckets'"),
        ({"ragged": ["i"]}, "expects lists of numbers in column 'i', got Array"),
        ({"sparse": ["f"]}, r"expects lists of ids in column 'f', got list\[float64\]"),
        ({"arrays": ["i"]}, "expects arrays of floats of shape .* in column 'i', got Array"),
        ({"arrays": ["f"]}, "in column 'f', got list.*: make them with a 'history' stage"),
    ],
)
def test_what_cannot_be_is_one_sentence(model: dict[str, Any], sentence: str) -> None:
    schema: Schema = {
        "i": pl.Array(pl.UInt8(), (2, 4, 3)), "r": IDS, "f": pl.List(pl.Float64()),
    }  # fmt: skip

    def bind() -> None:
        parts = nested_features(ModelSettings(target="y", **model), schema, {"f": 4})
        Collate(Features(numeric=(), **parts)).bind(schema)

    with pytest.raises(UserError, match=sentence):
        bind()
