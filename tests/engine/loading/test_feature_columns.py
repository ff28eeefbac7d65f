"""The inputs of a network: what a column becomes by its type, and a sentence for what cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from engine.config import ModelSettings
from engine.loading.collate import Collate
from engine.loading.feature_columns import network_features
from engine.types import Batch, Features, Mark, UserError

SCHEMA: dict[str, Any] = {
    "a": pl.Float64(),
    "b": pl.Int32(),
    "yes": pl.Boolean(),
    "city": pl.Int64(),
    "words": pl.List(pl.Int64()),
    "tags": pl.List(pl.Int64()),
    "series": pl.List(pl.Float64()),
    "photo": pl.Array(pl.UInt8(), (4, 3, 2)),
    "map": pl.Array(pl.Float64(), (4, 3, 1)),
    "past": pl.Array(pl.Float32(), (5, 2)),
    "vector": pl.Array(pl.Float32(), 6),
    "text": pl.String(),
    "day": pl.Date(),
    "deep": pl.List(pl.List(pl.Int64())),
}
SIZES = {"city": 7, "words": 100}


def made(
    named: dict[str, Any], keys: dict[str, Any] | None = None, sizes: dict[str, int] | None = None
) -> dict[str, Any]:
    settings = ModelSettings(target="y", **(keys or {}))
    return network_features(named, settings, SCHEMA, SIZES if sizes is None else sizes)


def test_a_column_becomes_what_its_type_says() -> None:
    named = {
        "x": ["a", "y*"], "kind": ["city"], "words": None, "tags": None, "series": ["series"],
        "photo": None, "map": None, "past": None, "vector": None, "numeric": None,
    }  # fmt: skip
    assert made(named, {"numeric": ["b"], "max_length": 9}) == {
        "numeric": ("b", "a", "yes"),
        "categories": {"city": 7},
        "padded": {"words": 100, "tags": 0},
        "images": {"photo": (2, 4, 3), "map": (1, 4, 3)},
        "float_images": ("map",),
        "arrays": {"series": (9, 1), "past": (5, 2), "vector": (6, 1)},
        "inputs": {
            "numeric": ("b",), "x": ("a", "yes"), "kind": ("city",), "words": ("words",),
            "tags": ("tags",), "series": ("series",), "photo": ("photo",), "map": ("map",),
            "past": ("past",), "vector": ("vector",),
        },
        "max_length": 9,
        "buckets": (),
    }  # fmt: skip


def test_lists_have_a_limit() -> None:
    lengths = [
        made({"words": None}, keys)["max_length"]
        for keys in ({}, {"max_length": 3}, {"buckets": [8, 4]}, {"max_length": 3, "buckets": [8]})
    ]
    assert lengths == [256, 3, 8, 3]


def test_a_code_may_be_read_as_a_number_by_name() -> None:
    assert made({}, {"numeric": ["city"]})["numeric"] == ("city",)


@pytest.mark.parametrize(
    ("named", "keys", "said"),
    [
        ({"x": ["a", "city"]}, {}, r"\[model.inputs.x\] reads 'a' \(numbers\) and 'city'"),
        ({"x": ["words", "tags"]}, {}, "names 2 columns of lists of ids, and an input reads one"),
        ({"x": ["text"]}, {}, "'text', which is string; expected .* a 'tokens' stage"),
        ({"day": None}, {}, "reads column 'day', which is date"),
        ({"deep": None}, {}, "reads column 'deep', which is"),
        ({"x": ["nope"]}, {}, r"\[model.inputs.x\] columns .*'nope'"),
        ({"nope": None}, {}, "asks for 'nope', and there is neither an input"),
        ({"citi": None}, {}, "Did you mean 'city'"),
        ({"numeric": ["a"]}, {"numeric": ["b"]}, "both name columns of the input 'numeric'"),
        ({"x": ["city"]}, {"numeric": ["city"]}, "as a number and as a category"),
        ({}, {"categories": ["a"]}, r"encodes \[model\] categories 'a'"),
        ({}, {"numeric": ["words"]}, "numeric reads column .words., which holds lists of ids"),
        ({}, {"padded": ["words"]}, r"\[model\] padded is a key of kind = 'tabular'"),
    ],
)
def test_what_no_network_can_read(named: dict[str, Any], keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        made(named, keys)


def test_lists_of_numbers_become_arrays_of_one_length(caplog: pytest.LogCaptureFixture) -> None:
    lists = [[1.0, 2.0], [], [3.0, None], [4.0, 5.0, 6.0]]
    frame = pl.DataFrame(
        {
            "_partition": ["p"] * 4,
            "_position": [0, 1, 2, 3],
            "series": pl.Series(lists, dtype=pl.List(pl.Float64)),
            "vector": pl.Series(np.arange(24).reshape(4, 6), dtype=pl.Array(pl.Float32, 6)),
        }
    )  # fmt: skip
    features = Features(numeric=(), arrays={"series": (2, 1), "vector": (6, 1)}, max_length=2)
    collate = Collate(features)
    collate.bind(dict(frame.schema))
    batch = collate.apply(Batch(frame=frame, mark=Mark(), arrived=0.0))
    assert [(r.reason, r.rows["_position"].to_list()) for r in batch.rejects] == [("missing", [2])]
    assert batch.counts["collate", "truncated"] == 1
    collate.apply(Batch(frame=frame, mark=Mark(), arrived=0.0))
    (told,) = caplog.messages
    assert told.startswith("the model reads the first 2 values of each list")
    assert batch.tensors is not None
    series, vector = (batch.tensors.arrays[name] for name in ("series", "vector"))
    assert series.values.tolist() == [[[1.0], [2.0]], [[0.0], [0.0]], [[4.0], [5.0]]]
    assert series.mask.tolist() == [[True, True], [False, False], [True, True]]
    assert vector.values.shape == (3, 6, 1)
    assert vector.values.dtype == torch.float32
    assert vector.mask.all()
