"""Columns to tensors: every row either gets finite tensors or leaves with its reason."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.loading.collate import Collate
from engine.types import Batch, Features, Mark, UserError
from tests.size import examples

INF = math.inf
NAN = math.nan


def batch(**columns: list[object]) -> Batch:
    n = len(next(iter(columns.values())))
    frame = pl.DataFrame(
        {"_partition": ["p"] * n, "_position": list(range(n)), **columns},
        strict=False,
    )
    return Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=n)


def reasons(done: Batch) -> dict[str, list[int]]:
    return {r.reason: r.rows["_position"].to_list() for r in done.rejects}


def test_regression() -> None:
    collate = Collate(Features(numeric=("a", "b"), categories={"c": 3}, target="y"))
    done = collate.apply(
        batch(
            a=[1.0, None, NAN, INF, 1e39, 6.0, 7.0, 8.0],
            b=[1, 2, 3, 4, 5, 6, 7, 8],
            c=[0, 1, 2, 0, 1, None, 2, 1],
            y=[1.5, 1.0, 1.0, 1.0, 1.0, 2.5, None, INF],
        )
    )
    assert done.tensors is not None
    assert done.tensors.numeric.tolist() == [[1.0, 1.0], [6.0, 6.0]]
    assert done.tensors.numeric.is_contiguous()
    assert done.tensors.categories.tolist() == [[0], [0]]
    assert done.tensors.target is not None
    assert done.tensors.target.tolist() == [1.5, 2.5]
    assert done.tensors.target.dtype == torch.float32
    assert done.frame["_position"].to_list() == [0, 5]
    first, second, missing, big = done.rejects
    assert (first.reason, first.rows["_position"].to_list()) == ("missing_label", [6])
    assert (second.reason, second.rows["_position"].to_list()) == ("non_finite", [7])
    assert (missing.reason, missing.rows["_position"].to_list()) == ("missing", [1, 2])
    assert missing.rows["detail"][0] == "Expected a number in feature 'a', got null or NaN."
    assert (big.reason, big.rows["_position"].to_list()) == ("non_finite", [3, 4])


def test_classes() -> None:
    features = Features(numeric=("a",), target="y", task="multiclass", classes=("x", "y", "z"))
    done = Collate(features).apply(batch(a=[1, 2, 3, 4], y=["z", "w", None, "x"]))
    assert done.tensors is not None
    assert done.tensors.target is not None
    assert done.tensors.target.tolist() == [2, 0]
    assert reasons(done) == {"missing_label": [2], "unknown_label": [1]}
    assert (
        done.rejects[1].rows["detail"][0]
        == "Expected a label of x, y, z ([model] classes); got 'w'."
    )


def test_a_label_below_what_can_be_learned() -> None:
    features = Features(numeric=("a",), target="y", lowest_label=0.0)
    done = Collate(features).apply(batch(a=[1, 2, 3, 4], y=[0.0, -0.5, None, INF]))
    assert done.tensors is not None
    assert done.tensors.target is not None
    assert done.tensors.target.tolist() == [0.0]
    assert reasons(done) == {"missing_label": [2], "non_finite": [3], "low_label": [1]}
    detail = done.rejects[-1].rows["detail"][0]
    assert detail == "Expected a label of 0 or more in 'y', got -0.5."


def test_a_row_may_lack_some_of_several_labels() -> None:
    features = Features(numeric=("a",), targets=("y", "z"), lowest_label=0.0)
    done = Collate(features).apply(
        batch(
            a=[1, 2, 3, 4, 5, 6],
            y=[1.0, None, float("nan"), 1e39, 5.0, 6.0],
            z=[None, 2.0, None, 4.0, -1.0, 6.0],
        )
    )
    assert done.tensors is not None
    assert done.tensors.target is not None
    np.testing.assert_array_equal(done.tensors.target, [[1, np.nan], [np.nan, 2], [6, 6]])
    assert done.tensors.target.dtype == torch.float32
    assert reasons(done) == {"missing_label": [2], "non_finite": [3], "low_label": [4]}
    details = [reject.rows["detail"][0] for reject in done.rejects]
    assert details == [
        "Expected a label in 'y' or 'z', got null or NaN.",
        "Expected a finite float32 as label in 'y', got 1e+39.",
        "Expected a label of 0 or more in 'z', got -1.0.",
    ]


def test_boolean_and_integer_labels_are_classes_by_their_text() -> None:
    truth = Features(numeric=("a",), target="y", task="binary", classes=("false", "true"))
    done = Collate(truth).apply(batch(a=[1, 2], y=[True, False]))
    assert done.tensors is not None
    assert done.tensors.target is not None
    assert done.tensors.target.tolist() == [1, 0]
    digits = Features(numeric=("a",), target="y", task="binary", classes=("0", "1"))
    done = Collate(digits).apply(batch(a=[1, 2, 3], y=[1, 0, 2]))
    assert reasons(done) == {"unknown_label": [2]}


def test_without_a_target_there_are_no_labels() -> None:
    done = Collate(Features(numeric=("a",))).apply(batch(a=[1.0]))
    assert done.tensors is not None
    assert done.tensors.target is None


def test_an_empty_batch_is_legal() -> None:
    collate = Collate(Features(numeric=("a",), target="y"))
    done = collate.apply(batch(a=[1.0], y=[1.0]).with_frame(batch(a=[1.0], y=[1.0]).frame.head(0)))
    assert done.tensors is not None
    assert done.tensors.numeric.shape == (0, 1)


@pytest.mark.parametrize(
    ("features", "sentence"),
    [
        (Features(numeric=("aa",)), r"\[model\] needs column 'aa', which is not there"),
        (Features(numeric=("text",)), r"expects numbers in column 'text', got string"),
        (Features(numeric=("a",), target="b"), r"\[model\] target needs column 'b'"),
    ],
)
def test_bind_refuses_what_would_fail_later(features: Features, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Collate(features).bind({"a": pl.Float64(), "text": pl.String()})


number = st.none() | st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.tuples(number, number, number), min_size=1, max_size=30))
def test_every_row_is_kept_finite_or_rejected_once(
    rows: list[tuple[object, object, object]],
) -> None:
    a, b, y = (list(column) for column in zip(*rows, strict=True))
    before = batch(a=a, b=b, y=y)
    before = before.with_frame(before.frame.with_columns(pl.col("a", "b", "y").cast(pl.Float64)))
    done = Collate(Features(numeric=("a", "b"), target="y")).apply(before)
    assert done.tensors is not None
    assert done.tensors.target is not None
    assert torch.isfinite(done.tensors.numeric).all()
    assert torch.isfinite(done.tensors.target).all()
    kept = done.frame["_position"].to_list()
    gone = [p for r in done.rejects for p in r.rows["_position"].to_list()]
    assert sorted(kept + gone) == list(range(len(rows)))
    assert kept == sorted(kept)
