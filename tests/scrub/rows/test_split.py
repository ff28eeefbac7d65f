"""Parts by key, by turns, by strata and by time; nothing is learned from what is kept apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.model_selection import KFold, LeaveOneOut, StratifiedKFold

from engine.scrub.rows.split import PARTS, Split
from engine.scrub.values.missing import Missing
from engine.scrub.values.scale import Standardize
from engine.types import PART, Batch, Mark, UserError
from tests.size import examples


def batch(frame: pl.DataFrame, start: int = 0) -> Batch:
    places = pl.DataFrame(
        {"_partition": ["p"] * frame.height, "_position": np.arange(start, start + frame.height)}
    )
    return Batch(frame=places.hstack(frame), mark=Mark(), arrived=0.0)


def stage(frame: pl.DataFrame, **own: Any) -> Split:
    made = Split("split", Split.Settings(**own))
    made.bind(dict(frame.schema))
    return made


def parts(frame: pl.DataFrame, cuts: list[int] | None = None, **own: Any) -> list[str]:
    """Of all rows, given in batches that end at the cuts."""
    made, found, start = stage(frame, **own), [], 0
    for stop in [*sorted(cuts or []), frame.height]:
        found += made.apply(batch(frame[start:stop], start)).frame[PART].to_list()
        start = stop
    return found


rows = st.integers(1, 80)
cuts = st.lists(st.integers(0, 80), max_size=4)


@settings(deadline=None, max_examples=examples(40))
@given(st.lists(st.integers(0, 9), min_size=1, max_size=200), cuts, st.integers(0, 5))
def test_a_key_never_crosses_and_cuts_change_nothing(
    keys: list[int], at: list[int], seed: int
) -> None:
    frame = pl.DataFrame({"user": keys})
    own: dict[str, Any] = {"test": 0.3, "validation": 0.2, "by": ["user"], "seed": seed}
    found = parts(frame, [min(a, len(keys)) for a in at], **own)
    assert found == parts(frame, **own)
    by_key = frame.with_columns(part=pl.Series(found)).group_by("user").n_unique()
    assert by_key["part"].to_list() == [1] * by_key.height


@pytest.mark.parametrize("by", [(), ("user",)])
def test_shares_are_met(by: tuple[str, ...]) -> None:
    frame = pl.DataFrame({"user": [f"u{i}" for i in range(20_000)]})
    found = parts(frame, test=0.2, validation=0.1, by=by)
    shares = [found.count(part) / len(found) for part in PARTS]
    # Three standard deviations of what rng gives.
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=3 * np.sqrt(0.21 / 20_000))


@pytest.mark.parametrize("keys", [1, 2, 400])
@pytest.mark.parametrize("rows", [900, 1_200])
def test_a_part_without_rows_is_told(keys: int, rows: int) -> None:
    frame = pl.DataFrame({"user": [i % keys for i in range(rows)]})
    made = stage(frame, test=0.1, validation=0.1, by=["user"])
    found = [
        part for start in (0, 500)
        for part in made.apply(batch(frame[start : start + 500 if not start else rows], start))
        .frame[PART].to_list()
    ]  # fmt: skip
    without = [part for part in PARTS[1:] if part not in found]
    assert len(found) == rows
    assert (keys == 400) == (not without)
    told = [remark.split(" into ")[1].split(":")[0] for remark in made.remarks()]
    assert told == (without if rows > 1_000 else [])


def test_another_seed_deals_out_another_way() -> None:
    frame = pl.DataFrame({"user": range(1_000)})
    one = parts(frame, test=0.5, by=["user"])
    assert one == parts(frame, test=0.5, by=["user"])
    assert one != parts(frame, test=0.5, by=["user"], seed=1)


@settings(deadline=None, max_examples=examples(40))
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=120), cuts)
def test_each_value_has_its_share_to_one_row(labels: list[str], at: list[int]) -> None:
    frame = pl.DataFrame({"y": labels})
    found = parts(frame, [min(a, len(labels)) for a in at], test=0.25, stratify="y")
    for value in set(labels):
        own = [part for part, label in zip(found, labels, strict=True) if label == value]
        assert abs(own.count("test") - 0.25 * len(own)) < 1
        assert "validation" not in own


def sizes_of_tests(frame: pl.DataFrame, folds: int, **own: Any) -> tuple[list[int], list[int]]:
    """Rows of each fold's test part; and how often each row is tested."""
    tested = np.zeros(frame.height, int)
    sizes = []
    for fold in range(folds):
        test = np.array(parts(frame, folds=folds, fold=fold, **own)) == "test"
        tested += test
        sizes.append(int(test.sum()))
    return sizes, tested.tolist()


@settings(deadline=None, max_examples=examples(30))
@given(rows, st.integers(2, 8))
def test_folds_are_those_of_scikit_learn_in_size(n: int, folds: int) -> None:
    frame = pl.DataFrame({"a": range(n)})
    sizes, tested = sizes_of_tests(frame, folds)
    assert tested == [1] * n
    if n >= folds:
        theirs = [len(test) for _, test in KFold(folds).split(np.zeros(n))]
        assert sorted(sizes) == sorted(theirs)


@settings(deadline=None, max_examples=examples(30))
@given(st.lists(st.sampled_from("ab"), min_size=16, max_size=80), st.integers(2, 4))
def test_stratified_folds_have_the_classes_of_scikit_learns(labels: list[str], folds: int) -> None:
    if min(labels.count("a"), labels.count("b")) < folds:
        labels = [*labels, *"ab" * folds]
    frame = pl.DataFrame({"y": labels})
    mine = []
    for fold in range(folds):
        found = np.array(parts(frame, folds=folds, fold=fold, stratify="y")) == "test"
        mine.append(sorted(np.array(labels)[found].tolist()).count("a"))
    split = StratifiedKFold(folds).split(np.zeros(len(labels)), labels)
    theirs = [np.array(labels)[test].tolist().count("a") for _, test in split]
    assert sorted(mine) == sorted(theirs)


def test_a_key_is_in_one_fold() -> None:
    frame = pl.DataFrame({"user": [i % 37 for i in range(1_000)]})
    sizes, tested = sizes_of_tests(frame, 5, by=["user"])
    assert tested == [1] * 1_000
    assert sum(sizes) == 1_000
    for fold in range(5):
        found = parts(frame, folds=5, fold=fold, by=["user"])
        users = {u for u, part in zip(frame["user"], found, strict=True) if part == "test"}
        others = {u for u, part in zip(frame["user"], found, strict=True) if part != "test"}
        assert not users & others


def test_leave_one_out() -> None:
    frame = pl.DataFrame({"a": range(7)})
    sizes, tested = sizes_of_tests(frame, 7)
    assert (sizes, tested) == ([1] * 7, [1] * 7)
    assert [len(test) for _, test in LeaveOneOut().split(np.zeros(7))] == sizes


def test_by_time() -> None:
    frame = pl.DataFrame({"at": ["2024-01-01", "2024-06-01", "2025-01-01", None]}).with_columns(
        pl.col("at").str.to_datetime()
    )
    own: dict[str, Any] = {"time": "at", "validation_from": "2024-06-01", "test_from": "2025-01-01"}
    assert parts(frame, **own) == ["train", "validation", "test", "train"]
    assert parts(pl.DataFrame({"n": [1, 2, 3]}), time="n", test_from=3) == ["train"] * 2 + ["test"]


def test_statistics_never_see_what_is_kept_apart() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=2_000)
    frame = pl.DataFrame({"a": a, "user": rng.integers(0, 50, 2_000)})
    frame = frame.with_columns(part=pl.Series(parts(frame, test=0.3, by=["user"]))).with_columns(
        # A value that training could not have known of, and gaps.
        a=pl.when(pl.col("part") == "test").then(1e6).otherwise("a")
    )
    split = stage(frame.drop("part"), test=0.3, by=["user"])
    schema = split.bind(dict(frame.drop("part").schema))
    fill = Missing("fill", Missing.Settings(columns=("a",), strategy="mean"))
    scale = Standardize("scale", Standardize.Settings(columns=("a",)))
    stages: list[Any] = [fill, scale]
    for one in stages:
        schema = one.bind(schema)
    for i, piece in enumerate(frame.drop("part").iter_slices(100)):
        done = batch(piece, 100 * i)
        for one in (split, *stages):
            done = one.apply(done)
    train = frame.filter(pl.col("part") == "train")["a"]
    assert scale.snapshot()["mean"][0] == pytest.approx(train.mean())
    assert fill.snapshot()["rows"] == len(train)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({}, "expected one of test or validation"),
        ({"test": 0.5, "folds": 3}, "expected one of test or validation"),
        ({"test": 0.6, "validation": 0.4}, "below 1 together, got 1"),
        ({"test": 0.1, "by": ["a"], "stratify": "y"}, "a key has one part"),
        ({"folds": 3, "fold": 3}, "a fold from 0 to 2, got 3"),
        ({"time": "at"}, "expected test_from or validation_from"),
    ],
)
def test_settings_that_do_not_fit(own: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Split.Settings(**own)


def test_columns_and_times_that_are_not_there() -> None:
    frame = pl.DataFrame({"user": [1]})
    with pytest.raises(UserError, match=r"needs column 'usr'.* Did you mean 'user'\?"):
        stage(frame, test=0.1, by=["usr"])
    with pytest.raises(UserError, match="test_from expects a value of column 'user'"):
        stage(frame, time="user", test_from="soon")
