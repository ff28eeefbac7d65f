"""A setting that no stage can do anything with is one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.config import load_class, validate
from engine.scrub import STAGES
from engine.types import Schema, UserError
from tests.scrub.conftest import beside

SCHEMA: Schema = {
    "key": pl.String(), "n": pl.Int64(), "a": pl.Float64(), "b": pl.Float64(),
    "image": pl.Binary(), "photo": pl.Binary(),
}  # fmt: skip

WINDOW: dict[str, Any] = {"time": "n", "length": 5, "aggregates": {"a": ["sum"]}}


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("missing", {"columns": ["aa"]}, "[scrub.stage] needs column 'aa', which is not there."),
        ("missing", {"columns": ["key"]}, "expects numbers in column 'key', got string"),
        (
            "missing",
            {"columns": ["a"], "strategy": "constant", "value": "x"},
            "value 'x' does not fit column 'a' of type float64",
        ),
        (
            "missing",
            {"columns": ["n"], "strategy": "constant", "value": 1e39},
            "value 1e+39 does not fit column 'n' of type int64",
        ),
        ("missing", {"columns": ["a"], "strategy": "average"}, "for 'strategy', got \"average\""),
        ("impute", {"columns": ["a"]}, "has only column 'a', which nothing can predict"),
        ("impute", {"columns": ["a", "key"]}, "expects numbers in column 'key'"),
        ("duplicates", {"by": ["kye"]}, "needs column 'kye', which is not there. Did you mean"),
        ("near_duplicates", {"column": "a"}, "expects text in column 'a', got float64: use a"),
        ("near_duplicates", {"column": "image"}, "bytes: use a 'near_duplicate_images' stage."),
        ("near_duplicate_images", {"column": "key"}, "expects encoded images (bytes) in column"),
        ("near_duplicate_images", {"column": "imgae"}, "there. Did you mean 'image'?"),
        ("near_duplicate_images", {"column": "image", "max_distance": 65}, "24 for 'max_distance', "
        "got 65"),
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
        ("anomalies", {"columns": ["a"], "score": "b"}, "already: set another name in 'score'."),
        ("image", {"columns": ["a"], "size": [2, 2]}, "expects bytes or paths in column 'a', got"),
        ("image", {"columns": ["key"], "size": [2, 2]}, "needs the key 'root', the folder below"),
        ("image", {"columns": ["key"], "size": [2, 2], "root": "/none"}, "root expects a folder"),
        ("image", {"columns": ["photo"], "size": [0, 2]}, "for 'size', got 0 in it"),
        ("image", {"columns": ["photo"], "size": [2, 2], "max_pixels": 1 << 30}, "for 'max_pix"),
        ("tokens", {"columns": ["a"]}, "expects text, or lists of texts or whole numbers,"),
        ("tokens", {"columns": ["key"], "split": "("}, "characters or a regular expression: inva"),
        ("tokens", {"columns": ["key"], "vocabulary": "/none"}, "'/none' cannot be read: "),
        ("split", {}, "expected one of test or validation (shares), folds, or time"),
        ("split", {"test": 0.6, "validation": 0.5}, "below 1 together, got 1.1"),
        ("split", {"folds": 3, "fold": 3}, "a fold from 0 to 2, got 3"),
        ("split", {"test": 0.1, "by": ["kye"]}, "needs column 'kye', which is not there. Did you"),
        ("split", {"time": "n", "test_from": "soon"}, "expects a value of column 'n' (int64)"),
        ("derive", {"columns": {"x": "a +"}}, "is no SQL expression"),
        ("derive", {"columns": {"x": "aaa + 1"}}, "needs column 'aaa'"),
        ("derive", {"columns": {"x": "key * 2"}}, "cannot be done"),
        ("unpivot", {"columns": ["key", "a"]}, "expects columns of one type"),
        ("lag", {"column": "a", "time": "b", "every": 1, "steps": [1]}, "time expects a datetime"),
        ("lag", {"column": "a", "time": "n", "every": "1h", "steps": [1]}, "whole numbers"),
        ("lag", {"column": "a", "time": "n", "every": 1, "steps": [0]}, "of 1 or more, got 0"),
        ("window", WINDOW | {"time": "b"}, "time expects a datetime, date or integer column, got"),
        ("window", WINDOW | {"length": "1h"}, "expects whole numbers for 'length', as column 'n'"),
        ("window", WINDOW | {"length": 0}, "expects a positive 'length', got 0."),
        ("window", WINDOW | {"length": []}, "needs the key 'length', for shape 'sliding'."),
        ("window", WINDOW | {"length": [5, 5]}, "names a length twice in [5, 5]."),
        ("window", WINDOW | {"gap": 5}, "has 'gap', which is not for shape 'sliding': take it out"),
        ("window", WINDOW | {"shape": "session"}, "has 'length', which is not for shape 'session'"),
        ("window", WINDOW | {"shape": "tumbling", "length": [2, 4]}, "expects one 'length' for"),
        ("window", WINDOW | {"resolution": 3}, "multiples of 'resolution', got 3, and 5."),
        ("window", WINDOW | {"lateness": 6}, "'lateness' of at most the window's length, got 6."),
        ("window", WINDOW | {"ahead": 0}, "expects a positive 'ahead', got 0."),
        ("window", WINDOW | {"length": 1 << 60}, "expects less than 2**60 ticks of column 'n'"),
        ("window", WINDOW | {"idle": 4}, "'idle' of at least the longest window and the lateness"),
        ("window", WINDOW | {"resolution": 5, "ties": False}, "needs a 'resolution' of one tick"),
        ("window", WINDOW | {"aggregates": {"aa": ["sum"]}}, "needs column 'aa', which is not"),
        ("window", WINDOW | {"aggregates": {"key": ["sum"]}}, "take count, rate, time_since"),
        ("window", WINDOW | {"aggregates": {"a": ["sum"] * 2}}, "names an aggregate of 'a' twice"),
        ("window", WINDOW | {"aggregates": {"a": []}}, "wants nothing of column 'a': name an"),
        ("window", WINDOW | {"aggregates": {"a": ["total"]}}, "for 'aggregates.a', got"),
        (
            "window",
            {"time": "n", "aggregates": {"a": ["max"]}, "shape": "fading", "halflife": 9},
            "expects aggregates that can fade, got 'max' of column 'a'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_sentence(kind: str, options: dict[str, Any], sentence: str) -> None:
    assert sentence in refusal(kind, options)


@pytest.mark.parametrize(
    ("kind", "options", "column", "remedy"),
    [
        ("window", WINDOW, "a_sum_5", "set another 'prefix'."),
        ("missing", {"columns": ["a"], "indicator": True}, "a_missing", "take 'indicator' out, or"),
        ("impute", {"indicator": True}, "a_missing", "take 'indicator' out, or rename that one"),
        ("outliers", {"columns": ["a"], "action": "flag"}, "a_outlier", "rename that one where it"),
        (
            "lag",
            {"column": "a", "time": "n", "every": 1, "steps": [1]},
            "a_lag_1",
            'rename that one where it comes from, or leave it out with "*" = "drop" in [source.s',
        ),
        ("unpivot", {"columns": ["a"], "keep": ["value"]}, "value", "in 'variable' or 'value'."),
    ],
)
def test_a_column_that_is_there_already_is_named_with_what_settles_it(
    kind: str, options: dict[str, Any], column: str, remedy: str
) -> None:
    stage_class = load_class(kind, STAGES, "scrub.stage")
    settings = {"columns": ["a", "b"]} | options if kind == "impute" else options
    given = validate(stage_class.Settings, settings, "scrub.stage", where="a test")
    stage = stage_class("stage", given)
    schema: Schema = {c: pl.Float64() for c in ("a", "b", column)}
    with pytest.raises(UserError) as caught:
        stage.bind({**schema, "n": pl.Int64()})
    assert f"column '{column}', which is there already: " in str(caught.value)
    assert remedy in str(caught.value)


TABLE = str(Path(__file__).with_name("table.csv"))
NEEDED: dict[str, dict[str, Any]] = {
    "split": {"test": 0.2}, "categories": {"size": 4}, "image": {"size": [2, 2]},
    "outliers": {"low": 0.0, "high": 1.0, "method": "bounds"},
    "lag": {"column": "a", "time": "n", "every": 1, "steps": [1]},
    "near_duplicates": {"column": "key"}, "near_duplicate_images": {"column": "photo"},
    "missing": {"strategy": "last"}, "window": WINDOW,
    "lookup": {"path": TABLE, "by": {"key": "key"}},
    "join": {"source": {}, "by": {"key": "key"}, "time": "n", "within": 1},
}  # fmt: skip
"""What a kind needs besides the names of columns."""


def naming(several: bool) -> list[tuple[str, str]]:
    """Kind and key of every setting that names columns: several, or one."""
    found = []
    for kind in STAGES:
        fields = load_class(kind, STAGES, "scrub.stage").Settings.model_fields.items()
        for key, field in fields:
            named = "_some_text" in repr(field) or "_each_once" in repr(field)
            if named and ("tuple" in repr(field.annotation)) == several:
                found.append((kind, key))
    return found


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["a", "a"], 'expected every name once for \'{}\', got ["a", "a"].'),
        ([""], "expected names that are not empty for '{}', got [\"\"]."),
        ([1], "for '{}'"),
        ("a", "for '{}', got \"a\"."),
        (["no such column"], "'no such column'"),
    ],
)
@pytest.mark.parametrize(("kind", "key"), naming(several=True))
def test_names_of_columns_are_names_each_once(
    kind: str, key: str, wrong: object, sentence: str
) -> None:
    options = {"columns": ["a"], "by": ["key"], **NEEDED.get(kind, {}), key: wrong}
    known = load_class(kind, STAGES, "scrub.stage").Settings.model_fields
    options = {name: value for name, value in options.items() if name in known}
    assert sentence.format(key) in refusal(kind, options)


@pytest.mark.parametrize(("kind", "key"), naming(several=False))
@pytest.mark.parametrize("wrong", ["", 1, ["a"]])
def test_a_name_is_text_and_not_empty(kind: str, key: str, wrong: object) -> None:
    options = {"columns": ["a"], "by": ["key"], **NEEDED.get(kind, {}), key: wrong}
    known = load_class(kind, STAGES, "scrub.stage").Settings.model_fields
    options = {name: value for name, value in options.items() if name in known}
    assert f"for '{key}', got " in refusal(kind, options)


def refusal(kind: str, options: dict[str, Any]) -> str:
    found = load_class(kind, STAGES, "scrub.stage")

    def bind() -> None:
        settings = validate(found.Settings, options, "scrub.stage", "a test")
        beside(found("stage", settings)).bind(SCHEMA)

    with pytest.raises(UserError) as caught:
        bind()
    assert "\n" not in str(caught.value)
    return str(caught.value)
