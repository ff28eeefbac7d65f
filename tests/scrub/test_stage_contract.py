"""What every stage promises, and one suite that all of them run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.checkpoint import decode, encode
from engine.config import component, validate
from engine.scrub import STAGES
from engine.types import Affine, Batch, Clip, Codes, Fill, Mark, Power, Schema, Stage, UserError
from tests.scrub.conftest import PHOTOS
from tests.scrub.pictures import some

WORDS = str(Path(__file__).with_name("words.txt"))
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "constant": ("missing", {"columns": ["a", "b"], "strategy": "constant", "value": 7.0}),
    "constant text": ("missing", {"columns": ["key"], "strategy": "constant", "value": "?"}),
    "mean": ("missing", {"columns": ["a", "b"], "strategy": "mean", "indicator": True}),
    "median": ("missing", {"columns": ["a"], "strategy": "median"}),
    "most frequent": ("missing", {"columns": ["key"], "strategy": "most_frequent"}),
    "last": ("missing", {"columns": ["a"], "strategy": "last"}),
    "last by key": ("missing", {"columns": ["a", "b"], "strategy": "last", "by": ["key"]}),
    "drop": ("missing", {"columns": ["a", "b"], "strategy": "drop"}),
    "impute": ("impute", {"columns": ["a", "b"], "given": ["n"], "min_rows": 10}),
    "duplicates": ("duplicates", {"by": ["key", "n"], "window": 40}),
    "near duplicates": ("near_duplicates", {"column": "key", "window": 12, "hashes": 32}),
    "near images": ("near_duplicate_images", {"column": "image", "window": 12, "distance": 2}),
    "bounds": ("outliers", {"columns": ["a"], "method": "bounds", "low": -1.0, "high": 1.0}),
    "zscore": ("outliers", {"columns": ["a", "b"], "threshold": 1.0, "min_rows": 10}),
    "iqr": ("outliers", {"columns": ["a"], "method": "iqr", "factor": 0.5, "min_rows": 10}),
    "reject": ("outliers", {"columns": ["a"], "threshold": 1.0, "action": "reject", "min_rows": 9}),
    "flag": ("outliers", {"columns": ["a"], "threshold": 1.0, "action": "flag", "min_rows": 9}),
    "anomalies": ("anomalies", {"columns": ["a", "b", "n"], "window": 20, "trees": 4}),
    "anomalies, reject": (
        "anomalies",
        {"columns": ["a", "n"], "action": "reject", "window": 20, "trees": 4, "share": 0.2},
    ),
    "standardize": ("standardize", {"columns": ["a", "b", "n"]}),
    "fading": ("standardize", {"columns": ["a", "b", "n"], "halflife": 20}),
    "standardize by": ("standardize_by", {"columns": ["a", "b"], "by": ["key"], "min_rows": 3}),
    "normalize": ("normalize", {"columns": ["a", "b"], "low": -1.0, "high": 1.0}),
    "normalize, clip": ("normalize", {"columns": ["a"], "clip": True}),
    "robust": ("robust", {"columns": ["a", "b", "n"]}),
    "log": ("power", {"columns": ["a", "n"], "method": "log"}),
    "power": ("power", {"columns": ["a", "b", "n"], "min_rows": 10, "standardize": False}),
    "power, standard": ("power", {"columns": ["a", "b", "n"], "min_rows": 10}),
    "vocabulary": ("categories", {"columns": ["key"], "size": 4}),
    "hash": ("categories", {"columns": ["key"], "method": "hash", "size": 3}),
    "adwin": ("drift", {"columns": ["a", "b", "n"], "warmup": 0}),
    "page_hinkley": (
        "drift",
        {"columns": ["a", "n"], "detector": "page_hinkley", "threshold": 2.0, "warmup": 5},
    ),
    "psi": ("drift", {"columns": ["a", "n"], "detector": "psi", "window": 30}),
    "tokens": ("tokens", {"columns": ["key"], "split": "characters", "size": 9}),
    "tokens, known": ("tokens", {"columns": ["key"], "vocabulary": WORDS}),
    "image": ("image", {"columns": ["photo"], "size": [4, 3]}),
    "image, grey": ("image", {"columns": ["photo"], "size": [5, 2], "mode": "L"}),
    "derive": ("derive", {"columns": {"c": "a + n", "d": "c * 2", "up": "UPPER(key)"}}),
    "split by key": ("split", {"test": 0.3, "validation": 0.2, "by": ["key"]}),
    "split in turns": ("split", {"folds": 3, "fold": 1}),
    "split by strata": ("split", {"test": 0.3, "stratify": "key", "values": 3}),
    "unpivot": ("unpivot", {"keep": ["key", "n"], "columns": ["a", "b"]}),
    "lag": ("lag", {"column": "a", "by": ["key"], "time": "n", "every": 1, "steps": [1, 2, 5]}),
    "lag, no key": ("lag", {"column": "key", "time": "n", "every": 2, "steps": [1]}),
}
SCHEMA: Schema = {
    "key": pl.String(), "n": pl.Int64(), "a": pl.Float64(), "b": pl.Float64(),
    "image": pl.Binary(), "photo": pl.Binary(),
}  # fmt: skip


def make(case: str) -> Stage:
    kind, options = CASES[case]
    found = component(kind, STAGES, "scrub.stage")
    stage: Stage = found("stage", validate(found.Settings, options, "scrub.stage", "a test"))
    stage.bind(SCHEMA)
    return stage


def dirty(rows: int, seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    values = {}
    for name in ("a", "b"):
        column = pl.Series(rng.normal(size=rows))
        strange = pl.Series(rng.choice([0, 1, 2, 3], rows, p=[0.7, 0.1, 0.1, 0.1]))
        values[name] = pl.select(
            pl.when(strange == 1).then(None)
            .when(strange == 2).then(float("nan"))
            .when(strange == 3).then(column * 1e6)
            .otherwise(column)
        ).to_series()  # fmt: skip
    keys = pl.Series(rng.choice(["x", "y", "z", "ä", "w", ""], rows))
    return pl.DataFrame(
        {
            "_partition": ["p"] * rows,
            "_position": np.arange(rows) + 1_000 * seed,
            "key": pl.select(pl.when(keys != "").then(keys)).to_series(),
            "n": np.sort(rng.integers(0, rows // 3, rows)),
            **values,
            "image": pl.Series(some(rows, seed), dtype=pl.Binary),
            "photo": [PHOTOS[i % len(PHOTOS)] for i in range(rows)],
        }
    )


def batches(frame: pl.DataFrame, size: int) -> Iterator[Batch]:
    for start in range(0, frame.height, size):
        part = frame.slice(start, size)
        yield Batch(frame=part, mark=Mark(), arrived=0.0, raw_rows=part.height)


def run(stage: Stage, frame: pl.DataFrame, size: int = 25) -> list[pl.DataFrame]:
    return [stage.apply(batch).frame for batch in batches(frame, size)]


def stored(value: Any) -> Any:
    """A snapshot that went through a checkpoint."""
    return decode(b"".join(encode({"value": value}, {})))[0]["value"]


every_stage = pytest.mark.parametrize("case", CASES)


@every_stage
def test_bind_tells_the_schema_that_apply_gives(case: str) -> None:
    stage = make(case)
    bound = stage.bind(SCHEMA)
    for batch in batches(dirty(60, 1), 25):
        frame = stage.apply(batch).frame
        assert dict(frame.drop("_partition", "_position").schema) == bound


@every_stage
def test_the_input_stays_as_it_was(case: str) -> None:
    frame = dirty(60, 1)
    before = frame.clone()
    run(make(case), frame)
    assert frame.equals(before)


@every_stage
def test_every_row_goes_on_or_is_rejected(case: str) -> None:
    stage = make(case)
    for batch in batches(dirty(200, 2), 25):
        done = stage.apply(batch)
        assert done.raw_rows + done.grown == len(done) + sum(len(r) for r in done.rejects)
        for reject in done.rejects:
            assert reject.stage == "stage"
            assert reject.rows.columns == ["_partition", "_position", "detail", "value"]


@every_stage
def test_an_empty_batch_is_legal_and_teaches_nothing(case: str) -> None:
    stage, other = make(case), make(case)
    frame = dirty(100, 3)
    empty = Batch(frame=frame.head(0), mark=Mark(), arrived=0.0)
    assert len(stage.apply(empty)) == 0
    first = run(stage, frame.head(50))
    stage.apply(empty)
    again = [*first, *run(stage, frame.tail(50))]
    assert pl.concat(again).equals(pl.concat(run(other, frame)))


@every_stage
@pytest.mark.parametrize("done", [0, 4, 8])
def test_a_restored_stage_goes_on_to_the_bit(case: str, done: int) -> None:
    frames = list(batches(dirty(200, 4), 25))
    stage = make(case)
    for batch in frames[:done]:
        stage.apply(batch)
    saved = stored(stage.snapshot())
    rest = [stage.apply(batch).frame for batch in frames[done:]]
    other = make(case)
    other.restore(saved)
    assert all(
        a.equals(other.apply(batch).frame) for a, batch in zip(rest, frames[done:], strict=True)
    )


@every_stage
def test_a_snapshot_never_changes(case: str) -> None:
    stage = make(case)
    frames = list(batches(dirty(200, 5), 25))
    for batch in frames[:4]:
        stage.apply(batch)
    snapshot = stage.snapshot()
    before = b"".join(encode({"value": snapshot}, {}))
    copied = copy.deepcopy(snapshot)
    for batch in frames[4:]:
        stage.apply(batch)
    assert b"".join(encode({"value": snapshot}, {})) == before
    stage.restore(copied)


@every_stage
def test_later_batches_change_nothing_earlier(case: str) -> None:
    frame = dirty(100, 6)
    other = pl.concat([frame.head(50), dirty(50, 7).with_columns(pl.col("n") + 40)])
    assert all(
        a.equals(b)
        for a, b in zip(run(make(case), frame)[:2], run(make(case), other)[:2], strict=True)
    )


def _stayed(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(frames)


@pytest.mark.parametrize("case", ["duplicates", "lag", "lag, no key", "last", "last by key"])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_row_wise_stages_do_not_depend_on_the_cut(case: str, size: int) -> None:
    frame = dirty(60, 8)
    assert _stayed(run(make(case), frame, size)).equals(_stayed(run(make(case), frame, 60)))


@pytest.mark.parametrize(
    "case",
    ["constant", "constant text", "mean", "median", "most frequent", "bounds", "zscore", "iqr",
     "standardize", "fading", "normalize", "normalize, clip", "robust", "log", "power",
     "power, standard", "vocabulary"],
)  # fmt: skip
def test_transforms_say_exactly_what_apply_does(case: str) -> None:
    stage = make(case)
    run(stage, dirty(150, 9))
    frame = dirty(80, 10)
    transforms = stage.transforms()
    assert transforms
    expected = frame
    for transform in transforms:
        expected = expected.with_columns(_written(transform))
    (done,) = run(stage, frame, 80)
    for column in done.columns:
        a, b = done[column], expected[column]
        if a.dtype.is_float():
            # A model file knows one missing: NaN.
            x, y = (s.cast(pl.Float64).fill_null(float("nan")).to_numpy() for s in (a, b))
            assert np.allclose(x, y, rtol=1e-12, atol=0, equal_nan=True), column
        else:
            assert a.equals(b.cast(a.dtype), null_equal=True), column


def _written(transform: Any) -> list[pl.Expr]:
    """A transform as its docstring defines it, for raw columns where NaN may stand for null."""
    value = pl.col(transform.column)
    if isinstance(transform, Codes):
        codes = dict(zip(transform.values, range(1, len(transform.values) + 1), strict=True))
        return [value.replace_strict(codes, default=0, return_dtype=pl.Int64).fill_null(0)]
    if isinstance(transform, Affine):
        return [(value.cast(pl.Float64) - transform.shift) * transform.scale]
    if isinstance(transform, Power):
        x = value.cast(pl.Float64)
        return [pl.when(x < 0).then(-_curve(-x, transform.below))
                .otherwise(_curve(x, transform.above)).alias(transform.column)]  # fmt: skip
    if isinstance(transform, Clip):
        clipped = value.clip(transform.low, transform.high)
        return [pl.when(value.is_nan()).then(value).otherwise(clipped).alias(transform.column)]
    assert isinstance(transform, Fill)
    if isinstance(transform.value, str):
        return [value.fill_null(transform.value)]
    missing = value.is_null() | value.is_nan()
    filled = pl.when(missing).then(transform.value).otherwise(value).alias(transform.column)
    if transform.indicator is None:
        return [filled]
    return [filled, missing.cast(pl.Float32).alias(transform.indicator)]


def _curve(x: pl.Expr, exponent: float) -> pl.Expr:
    return ((1 + x).pow(exponent) - 1) / exponent if exponent else x.log1p()


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("missing", {"columns": ["aa"]}, "[scrub.stage] needs column 'aa', which is not there."),
        ("missing", {"columns": ["key"]}, "expects numbers in column 'key', got String"),
        (
            "missing",
            {"columns": ["a"], "strategy": "constant", "value": "x"},
            "value 'x' does not fit column 'a' of type Float64",
        ),
        ("missing", {"columns": ["a"], "strategy": "average"}, "for 'strategy', got \"average\""),
        ("impute", {"columns": ["a"]}, "has only column 'a', which nothing can predict"),
        ("impute", {"columns": ["a", "key"]}, "expects numbers in column 'key'"),
        ("duplicates", {"by": ["kye"]}, "needs column 'kye', which is not there. Did you mean"),
        ("near_duplicates", {"column": "a"}, "expects text in column 'a', got Float64: use a"),
        ("near_duplicates", {"column": "image"}, "Binary: use a 'near_duplicate_images' stage."),
        ("near_duplicate_images", {"column": "key"}, "expects encoded images (Binary) in column"),
        ("near_duplicate_images", {"column": "imgae"}, "there. Did you mean 'image'?"),
        ("near_duplicate_images", {"column": "image", "distance": 65}, "24 for 'distance', got 65"),
        ("outliers", {"columns": ["a"], "method": "bounds"}, "expects low < high"),
        ("standardize", {"columns": ["key"]}, "expects numbers in column 'key'"),
        ("normalize", {"columns": ["a"], "low": 1, "high": 0}, "expects low < high"),
        ("robust", {"columns": ["a"], "low": 0.75, "high": 0.25}, "low < high, got 0.75 and 0.25."),
        ("power", {"columns": ["a"], "method": "log", "exponent": 1}, "only method 'yeo-johnson'"),
        ("power", {"columns": ["a"], "exponent": 1, "learn": False}, "but learns nothing"),
        ("power", {"columns": ["key"]}, "expects numbers in column 'key'"),
        ("drift", {"columns": ["a"], "slack": 1}, "has 'slack', which is for page_hinkley: take"),
        ("drift", {"columns": ["a"], "detector": "psi", "warmup": 1}, "is for adwin and page"),
        ("missing", {"columns": ["a"], "strategy": "drop", "forget_on": "d"}, "learns no sta"),
        ("standardize_by", {"columns": ["a"], "by": ["kye"]}, "needs column 'kye', which is not"),
        ("standardize_by", {"columns": ["a", "n"], "by": ["n"]}, "'n', which is its own key"),
        ("anomalies", {"columns": ["a"], "score": "b"}, "adds column 'b', which is there already"),
        ("image", {"columns": ["a"], "size": [2, 2]}, "expects bytes or paths in column 'a', got"),
        ("image", {"columns": ["key"], "size": [2, 2]}, "needs the key 'root', the folder below"),
        ("image", {"columns": ["key"], "size": [2, 2], "root": "/none"}, "root expects a folder"),
        ("image", {"columns": ["photo"], "size": [0, 2]}, "for '0', got 0"),
        ("image", {"columns": ["photo"], "size": [2, 2], "max_pixels": 1 << 30}, "for 'max_pix"),
        ("tokens", {"columns": ["a"]}, "expects text, or lists of texts or whole numbers,"),
        ("tokens", {"columns": ["key"], "split": "("}, "characters or a regular expression: inva"),
        ("tokens", {"columns": ["key"], "vocabulary": "/none"}, "'/none' cannot be read: "),
        ("derive", {"columns": {"x": "a +"}}, "is no SQL expression"),
        ("derive", {"columns": {"x": "aaa + 1"}}, "needs column 'aaa'"),
        ("derive", {"columns": {"x": "key * 2"}}, "cannot be done"),
        ("unpivot", {"columns": ["key", "a"]}, "expects columns of one type"),
        ("lag", {"column": "a", "time": "b", "every": 1, "steps": [1]}, "time expects a datetime"),
        ("lag", {"column": "a", "time": "n", "every": "1h", "steps": [1]}, "whole numbers"),
        ("lag", {"column": "a", "time": "n", "every": 1, "steps": [0]}, "of 1 or more, got 0"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_sentence(kind: str, options: dict[str, Any], sentence: str) -> None:
    found = component(kind, STAGES, "scrub.stage")
    with pytest.raises(UserError) as caught:
        found("stage", validate(found.Settings, options, "scrub.stage", "a test")).bind(SCHEMA)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
