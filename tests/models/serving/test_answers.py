"""What outputs become: the right columns, and a sentence for outputs that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from engine.types import UserError
from models.serving.answers import ANSWERS, Answer, answer_class_of
from models.serving.signature import GraphValue, Size

RNG = np.random.default_rng(0)


def answer(
    kind: str, array: NDArray[Any], row: tuple[Size, ...] | None = None, **keys: Any
) -> Answer:
    """An answer that is bound to outputs like this array."""
    answer_class = answer_class_of({"answer": kind})
    made = answer_class("out", answer_class.Settings(answer=kind, **keys))
    shape = (None, *(array.shape[1:] if row is None else row))
    schema = made.bind({"out": GraphValue(name="out", type=array.dtype.name, shape=shape)})
    columns = made.columns({"out": array})
    assert {column.name: column.dtype for column in columns} == schema
    empty = made.columns({"out": array[:0]})
    assert {column.name: column.dtype for column in empty} == schema
    return made


def columns(kind: str, array: NDArray[Any], row: Any = None, **keys: Any) -> list[list[Any]]:
    return [c.to_list() for c in answer(kind, array, row, **keys).columns({"out": array})]


def test_every_answer_can_be_loaded() -> None:
    assert all(issubclass(answer_class_of({"answer": name}), Answer) for name in ANSWERS)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "int8", "int64", "uint8", "bool"]
)
def test_values_keep_their_type(dtype: str) -> None:
    array = np.array([[1], [0], [1]], dtype)
    assert columns("value", array) == [[1, 0, 1]]
    assert columns("vector", array) == [[[1], [0], [1]]]
    assert columns("value", array.reshape(3)) == [[1, 0, 1]]


def test_vectors_of_any_rank() -> None:
    array = RNG.normal(size=(4, 2, 3)).astype(np.float32)
    assert columns("vector", array) == [array.tolist()]
    free = columns("vector", array, (None, "k"))
    assert free == [array.tolist()]


def test_numbers_of_classes() -> None:
    numbers = np.array([1, 0, 2, -1])
    made = answer("classes", numbers % 3, classes=["a", "b", "c"])
    assert [c.to_list() for c in made.columns({"out": numbers % 3})] == [["b", "a", "c", "c"]]
    unusable = made.unusable({"out": numbers})
    assert unusable is not None
    assert (unusable[0], unusable[1].tolist()) == ("unknown_class", [False, False, False, True])
    assert columns("classes", numbers) == [[1, 0, 2, -1]]


def test_classes_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("first\nsecond\n")
    assert columns("classes", np.array([1, 0]), classes=str(file)) == [["second", "first"]]
    file.write_text("")
    with pytest.raises(UserError, match="expects a name a line, got none"):
        columns("classes", np.array([1, 0]), classes=str(file))
    with pytest.raises(UserError, match="is no file: expected a list, or a file of names"):
        columns("classes", np.array([1, 0]), classes=str(tmp_path / "none.txt"))


def test_whole_numbers_are_names_too() -> None:
    assert columns("classes", np.array([1, 0]), classes=[7, True]) == [["true", "7"]]


def test_masks() -> None:
    scores = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    wanted = [scores.argmax(axis=1).tolist()]
    assert columns("masks", scores) == wanted
    assert columns("masks", scores, (3, "h", "w")) == wanted
    single = scores[:, :1]
    assert columns("masks", single, threshold=0.2) == [(single[:, 0] > 0.2).astype(int).tolist()]
    assert columns("masks", single[:, 0]) == [(single[:, 0] > 0.5).astype(int).tolist()]


def test_tokens(tmp_path: Path) -> None:
    scores = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    best = scores.argmax(axis=2)
    assert columns("tokens", scores) == [best.tolist()]
    file = tmp_path / "vocabulary.txt"
    file.write_text("a\nb\nc\n")
    words = [["abc"[i] for i in row] for row in best]
    assert columns("tokens", scores, vocabulary=str(file)) == [words]
    assert columns("tokens", best, vocabulary=str(file)) == [words]
    made = answer("tokens", best, vocabulary=str(file))
    unusable = made.unusable({"out": np.array([[0, 3], [1, 2]])})
    assert unusable is not None
    assert (unusable[0], unusable[1].tolist()) == ("unknown_token", [True, False])


@pytest.mark.parametrize(
    ("kind", "array", "keys", "wanted"),
    [
        ("value", np.ones((2, 3)), {}, "expects one number per row, got out"),
        ("classes", np.ones((2, 3)), {"classes": ["a"]}, "expects 3 classes"),
        ("classes", np.ones((2, 3)), {"top": 4}, "expects top of 3 at most, got 4"),
        ("classes", np.ones((2, 3, 4)), {}, "expects a score for each class"),
        ("classes", np.ones(2, int), {"top": 2}, "expects scores for 'top' and 'activation'"),
        (
            "probabilities",
            np.ones((2, 2)),
            {"classes": ["a", "a"]},
            "every class once, got 'a' twice",
        ),
        ("probabilities", np.ones((2, 2), int), {}, "expects a score for each class"),
        ("masks", np.ones((2, 3)), {}, "expects scores of shape n x classes x height x width"),
        ("tokens", np.ones((2, 3)), {}, "expects scores of shape n x length x tokens"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    kind: str, array: NDArray[Any], keys: dict[str, Any], wanted: str
) -> None:
    with pytest.raises(UserError, match=wanted):
        answer(kind, array, **keys)


def test_columns_of_lists_are_polars_own() -> None:
    array = RNG.normal(size=(3, 2)).astype(np.float32)
    (column,) = answer("vector", array, ("k",)).columns({"out": array})
    assert column.dtype == pl.List(pl.Float32)
    assert column.list.sum().len() == 3
