"""Text to numbers of tokens, against plain Python."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.hashing import hashes
from engine.types import Batch, UserError
from tests.size import examples

SPACES = [*re.findall(r"\s", "".join(map(chr, range(0x3100)))), "a", "\u200b", "\u3001", "\u1681"]
Run = Callable[..., list[Batch]]
TEXTS = ["Hello World, hello", " a\t b\n", None, "", "Ça va", "   "]
PLAIN: dict[str, Callable[[str], list[str]]] = {
    "whitespace": str.split,
    "words": lambda text: [word for word in re.split(r"\W+", text) if word],
    "characters": list,
    "[,;]": lambda text: [word for word in re.split("[,;]", text) if word],
}


def number(token: str, size: int) -> int:
    return int(hashes(pl.DataFrame({"t": [token]}))[0] % size) + 1


@pytest.mark.parametrize("split", PLAIN)
@pytest.mark.parametrize("lower", [True, False])
def test_hashed_tokens_are_those_of_plain_python(run: Run, split: str, lower: bool) -> None:
    given = {"columns": ["x"], "split": split, "lower": lower, "size": 1_000}
    (done,) = run("tokens", given, {"x": TEXTS})
    lowered = [text.lower() if lower else text for text in (text or "" for text in TEXTS)]
    expected = [[number(token, 1_000) for token in PLAIN[split](text)] for text in lowered]
    assert done.counts == {("s", "unknown"): 0, ("s", "null"): 1}
    assert done.frame["x"].to_list() == expected
    assert done.frame.schema["x"] == pl.List(pl.Int64())


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.none() | st.text(alphabet="ab ,\n", max_size=12), max_size=8), st.integers(0, 3))
def test_any_texts_in_any_slice(run: Run, texts: list[str | None], start: int) -> None:
    frame = pl.DataFrame({"x": pl.Series(texts, dtype=pl.String)})
    whole, part = (
        run("tokens", {"columns": ["x"], "size": 9}, f)[0].frame["x"].to_list()
        for f in (frame, frame.slice(start))
    )
    assert part == whole[start:]
    assert [len(row) for row in whole] == [len((text or "").split()) for text in texts]


@settings(max_examples=examples(150), deadline=None)
@given(st.lists(st.none() | st.text(max_size=20) | st.text(alphabet=SPACES, max_size=9)))
def test_the_walk_splits_where_the_expression_does(run: Run, texts: list[str | None]) -> None:
    frame = pl.DataFrame({"x": pl.Series(texts, dtype=pl.String)})
    walked, split = (
        run("tokens", {"columns": ["x"], "size": 50, "split": how}, frame)[0].frame
        for how in ("whitespace", r"\s+")
    )
    assert walked.equals(split)


def test_a_vocabulary_gives_the_numbers_of_its_lines(run: Run, stage: Any, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("hello\nworld\nça\n")
    given = {"columns": ["x"], "vocabulary": str(file), "split": "words"}
    (done,) = run("tokens", given, {"x": TEXTS})
    assert done.frame["x"].to_list() == [[1, 2, 1], [0, 0], [], [], [3, 0], []]
    assert done.counts == {("s", "unknown"): 3, ("s", "null"): 1}
    made = stage("tokens", **given)
    made.bind({"x": pl.String()})
    assert made.vocabulary_sizes() == {"x": 4}
    before = made.digest()
    assert stage("tokens", **given).digest() == before
    file.write_text("world\nhello\nça\n")
    assert stage("tokens", **given).digest() != before
    assert stage("tokens", columns=["x"]).digest() is None


@pytest.mark.parametrize(("text", "sentence"), [("", "got none"), ("a\nb\na\n", "'a' twice")])
def test_a_bad_vocabulary_is_one_sentence(
    stage: Any, tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "v").write_text(text)
    with pytest.raises(UserError, match=sentence):
        stage("tokens", columns=["x"], vocabulary=str(tmp_path / "v"))


def test_lists_are_their_tokens(run: Run) -> None:
    frame = pl.DataFrame(
        {
            "tags": pl.Series([["A b", "c"], [], None, ["", None]], dtype=pl.List(pl.String)),
            "ids": pl.Series([[7, 8], None, [7], [None]], dtype=pl.List(pl.Int32)),
        }
    )
    (done,) = run("tokens", {"columns": ["tags", "ids"], "size": 100}, frame)
    expected = [[number("a b", 100), number("c", 100)], [], [], [number("", 100), 0]]
    assert done.frame["tags"].to_list() == expected
    first, second, third, fourth = done.frame["ids"].to_list()
    assert (first[0], second, fourth) == (third[0], [], [0])
    assert all(1 <= n <= 100 for n in first)
    (cut,) = run("tokens", {"columns": ["tags"], "size": 100}, frame.slice(3))
    assert cut.frame["tags"].to_list() == expected[3:]
