"""Near duplicates of text: against the exact similarity, and beside datasketch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from datasketch import MinHash, MinHashLSH
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.hashing import utf8_buffer
from engine.scrub.rows.near_duplicates import MISSED, _minima, band_of
from engine.types import Batch
from tests.size import examples

Run = Callable[..., list[Batch]]
Make = Callable[..., Any]
PIECE = 5


def pieces(text: str) -> set[bytes]:
    data = text.encode()
    return {data[i : i + PIECE] for i in range(max(len(data) - PIECE, 0) + 1)}


def similarities(texts: list[str]) -> np.ndarray[Any, Any]:
    """Exact Jaccard similarity of each two texts, shape (n, n)."""
    sets = [pieces(text) for text in texts]
    times = Counter(piece for one in sets for piece in one)
    shared = {piece: i for i, piece in enumerate(p for p, n in times.items() if n > 1)}
    there = np.zeros((len(texts), len(shared)), np.float32)
    for row, one in zip(there, sets, strict=True):
        row[[shared[piece] for piece in one if piece in shared]] = 1
    both = (there @ there.T).astype(np.float64)
    np.fill_diagonal(both, [len(one) for one in sets])
    size = np.diagonal(both)
    return np.asarray(both / (size[:, None] + size - both))


def articles(rows: int, seed: int) -> list[str]:
    """Texts of 30 words; a third of them an earlier one with up to 12 words replaced."""
    rng = np.random.default_rng(seed)
    letters_ = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(letters_, rng.integers(3, 9))) for _ in range(2_000)]
    texts: list[str] = []
    for i in range(rows):
        chosen = rng.choice(words, 30).tolist()
        if i and rng.random() < 1 / 3:
            chosen = texts[int(rng.integers(i))].split()
            for place in rng.integers(0, 30, rng.integers(0, 13)):
                chosen[place] = words[int(rng.integers(2_000))]
        texts.append(" ".join(chosen))
    return texts


def rejected(batches: list[Batch]) -> set[int]:
    return {p for b in batches for r in b.rejects for p in r.rows["_position"].to_list()}


def test_what_is_rejected_is_what_is_similar(run: Run) -> None:
    """Exact similarities to all texts let through; only near the threshold may the estimate err."""
    texts = articles(900, 1)
    (done,) = run("near_duplicates", {"column": "t", "threshold": 0.6}, {"t": texts})
    gone = rejected([done])
    exact = similarities(texts)
    through: list[int] = []
    clear = 0
    for i in range(len(texts)):
        most = exact[i, through].max(initial=0.0)
        if abs(most - 0.6) > 0.13:  # three standard errors
            assert (i in gone) == (most > 0.6), most
            clear += most > 0.6
        if i not in gone:
            through.append(i)
    assert clear > 60
    assert done.counts["s", "duplicates"] == len(gone)


def test_recall_and_precision_are_datasketchs_or_better(run: Run) -> None:
    """Both judge by 128 hashes, whether a text is like one before; exact similarity decides."""
    texts = articles(600, 2)
    (done,) = run("near_duplicates", {"column": "t", "threshold": 0.7}, {"t": texts})
    ours = rejected([done])
    index, theirs = MinHashLSH(0.7, 128), set()
    for i, text in enumerate(texts):
        signature = MinHash(128)
        signature.update_batch(list(pieces(text)))
        if index.query(signature):
            theirs.add(i)
        else:
            index.insert(i, signature)
    exact = np.tril(similarities(texts), -1)
    true = set(np.flatnonzero(exact.max(axis=1) >= 0.7).tolist())
    recall, precision = (len(ours & true) / len(x) for x in (true, ours))
    assert recall >= len(theirs & true) / len(true) - 0.02
    assert precision >= len(theirs & true) / len(theirs) - 0.02
    assert recall > 0.9
    assert precision > 0.8  # many lie near the threshold


def test_the_estimate_has_the_stated_error() -> None:
    texts = articles(400, 3)
    data, bounds = utf8_buffer(pl.Series(texts))
    rng = np.random.default_rng(4)
    factors, terms = (rng.integers(0, 2**63, 128).astype(np.uint64) * 2 + 1 for _ in range(2))
    minima = np.empty((400, 128), np.uint32)
    _minima(data, bounds, PIECE, factors, terms, minima)
    exact = similarities(texts)
    off, expected = [], []
    for i in range(400):
        for j in range(max(0, i - 30), i):
            true = exact[i, j]
            if true > 0.2:
                off.append((minima[i] == minima[j]).mean() - true)
                expected.append(true * (1 - true) / 128)
    assert len(off) > 10
    assert abs(np.mean(off)) < 0.03
    assert np.sqrt(np.mean(np.square(off))) < 1.6 * math.sqrt(np.mean(expected))


@settings(max_examples=examples(40), deadline=None)
@given(
    texts=st.lists(st.none() | st.text(alphabet="abç", max_size=8), max_size=60),
    window=st.integers(1, 30),
    cut=st.integers(1, 40),
)
def test_equal_texts_and_the_window_are_exact(
    run: Run, texts: list[str | None], window: int, cut: int
) -> None:
    """With a threshold of 1 only texts of the same pieces are rejected, however it is cut."""
    kept: list[int] = []
    let_through: dict[frozenset[bytes], int] = {}
    for row, text in enumerate(texts):
        if text is None:
            kept.append(row)
            continue
        key = frozenset(pieces(text))
        if row - let_through.get(key, -1_000) > window:
            let_through[key] = row
            kept.append(row)
    frame = pl.DataFrame(
        {"t": texts, "row": range(len(texts))}, schema={"t": pl.String, "row": int}
    )
    parts = [frame.slice(at, cut) for at in range(0, max(len(texts), 1), cut)]
    done = run("near_duplicates", {"column": "t", "window": window, "threshold": 1}, *parts)
    assert [row for batch in done for row in batch.frame["row"].to_list()] == kept


@pytest.mark.parametrize("cut", [1, 37, 200])
def test_cuts_do_not_matter(run: Run, cut: int) -> None:
    frame = pl.DataFrame({"t": articles(400, 5)}).with_row_index("row")
    options = {"column": "t", "threshold": 0.5, "window": 150}
    whole = run("near_duplicates", options, frame)[0].frame["row"].to_list()
    parts = [frame.slice(at, cut) for at in range(0, 400, cut)]
    done = run("near_duplicates", options, *parts)
    assert [row for batch in done for row in batch.frame["row"].to_list()] == whole
    assert 200 < len(whole) < 390


def test_a_sentence_says_which_row_it_is_like(run: Run) -> None:
    text = "a headrace brings water to the wheel, and this one a stream to a model"
    (done,) = run("near_duplicates", {"column": "t"}, {"t": [text, "another", None, text + "!"]})
    assert done.frame["t"].to_list() == [text, "another", None]
    (reject,) = done.rejects
    assert reject.reason == "near_duplicate"
    words = reject.rows["detail"][0].split()
    assert words[0] == "Shares"
    assert 0.9 <= float(words[1]) <= 1
    assert words[2:] == ["of", "its", "pieces", "with", "a", "row", "3", "before."]


def test_memory_is_bounded(stage: Make, batch: Any) -> None:
    made = stage("near_duplicates", column="t", window=500)
    made.bind({"t": pl.String()})
    texts = [f"{i:x} {i * 7919:x} {i * 104729:x} {i * i:x}" for i in range(5_000)]
    for at in range(0, 5_000, 100):
        made.apply(batch(t=texts[at : at + 100]))
    state = made.snapshot()
    assert len(state["texts"]) == len(state["bytes"]) <= 600
    bands = sum(len(run["keys"]) for run in state["bands"])
    assert bands <= 2.5 * 500 * (128 // band_of(0.8, 128))


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_miss_as_few_as_stated(threshold: float) -> None:
    band = band_of(threshold, 128)
    assert (1 - threshold**band) ** (128 // band) <= MISSED or band == 1
    wider = band + 1
    assert (1 - threshold**wider) ** (128 // wider) > MISSED
