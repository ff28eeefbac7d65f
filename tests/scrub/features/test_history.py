"""The last rows of a key, against the definition of them, row by row."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine.errors import UserError
from engine.scrub.key_store import KeyStore, RecentKeys
from engine.types import Batch
from tests.size import examples

INF, NAN = math.inf, math.nan
Run = Callable[..., list[Batch]]
Make = Callable[..., Any]
Row = tuple[str | None, float | None, int | None]
Array = list[list[float] | None]


def arrays(batches: list[Batch]) -> list[Array]:
    return [array for batch in batches for array in batch.frame["s"].to_list()]


def counts(batches: list[Batch], name: str) -> list[int]:
    return [batch.counts["s", name] for batch in batches]


def test_it_is_the_earlier_rows_of_the_key_oldest_first(run: Run) -> None:
    options = {"columns": ["x", "f"], "by": ["k"], "rows": 2}
    parts: tuple[dict[str, list[Any]], ...] = (
        {"k": ["a", "b", "a"], "x": [1.0, 2.0, 3.0], "f": [True, False, None]},
        {"k": ["a", "a", None, "b"], "x": [4.0, 5.0, 6.0, 7.0], "f": [True, True, True, True]},
    )
    done = run("history", options, *parts)
    assert arrays(done) == [
        [None, None],
        [None, None],
        [[1, 1], None],
        [[1, 1], None],  # the row before has a gap
        [None, [4, 1]],
        [None, None],
        [[2, 0], None],
    ]
    assert counts(done, "gaps") == [1, 0]
    assert counts(done, "forgotten") == [0, 0]
    assert done[0].frame.columns == ["_partition", "_position", "k", "x", "f", "s"]
    own = arrays(run("history", {**options, "own": True}, *parts))
    assert own == [
        [[1, 1], None],
        [[2, 0], None],
        [[1, 1], None],
        [None, [4, 1]],
        [[4, 1], [5, 1]],
        [[6, 1], None],
        [[2, 0], [7, 1]],
    ]


def test_without_a_key_all_rows_are_one_sequence(run: Run) -> None:
    done = run("history", {"columns": ["x"], "rows": 3}, {"x": [1, 2]}, {"x": [3, 4, 5]})
    assert arrays(done)[-1] == [[2], [3], [4]]
    assert arrays(done)[2] == [[1], [2], None]


def test_what_is_no_number_is_a_gap_that_keeps_its_place(run: Run) -> None:
    values = [1.0, None, NAN, INF, -INF, 1e39, 2.0]
    done = run("history", {"columns": ["x"], "rows": 7, "own": True}, {"x": values})
    assert arrays(done)[-1] == [[1], None, None, None, None, None, [2]]
    assert counts(done, "gaps") == [5]


def test_the_key_not_seen_for_the_longest_time_is_forgotten(run: Run) -> None:
    rows = {"k": ["a", "b", "a", "c", "b", "a"], "x": [1, 2, 3, 4, 5, 6]}
    done = run("history", {"columns": ["x"], "by": ["k"], "rows": 2, "keys": 2}, rows)
    # c puts b out, b puts a out, a puts c out
    assert arrays(done) == [[None] * 2, [None] * 2, [[1], None], *[[None] * 2] * 3]
    assert counts(done, "forgotten") == [3]


def reference(
    rows: list[Row], length: int, *, own: bool, keys: int
) -> tuple[list[Array], int, int]:
    """The definition of the stage, row by row; with how many keys left, and the gaps."""
    memory: OrderedDict[str | None, Array] = OrderedDict()
    out, left, gaps = [], 0, 0
    for key, *numbers in rows:
        gap = any(v is None or not math.isfinite(v) for v in numbers)
        row = None if gap else [float(v) for v in numbers if v is not None]
        gaps += gap
        past = memory.pop(key, [])
        both = [*past, row][-length:]
        memory[key] = both
        if len(memory) > keys:
            memory.popitem(last=False)
            left += 1
        seen = both if own else past
        out.append([*seen, *[None] * (length - len(seen))])
    return out, left, gaps


@settings(max_examples=examples(60), deadline=None)
@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c", "d", "e", None]),
            st.sampled_from([1.5, -2.0, 0.0, NAN, INF, None]),
            st.integers(0, 9) | st.none(),
        ),
        max_size=60,
    ),
    length=st.integers(1, 5),
    own=st.booleans(),
    keys=st.integers(1, 6),
    cuts=st.lists(st.integers(0, 25), max_size=8),
)
@example(rows=[("a", 1.0, 1), ("b", 1.0, 2), ("a", 1.0, 3)], length=2, own=False, keys=1, cuts=[])
def test_it_is_its_definition_for_every_cut(
    stage: Make, batch: Make, rows: list[Row], length: int, own: bool, keys: int, cuts: list[int]
) -> None:
    schema = {"k": pl.String(), "x": pl.Float64(), "n": pl.Int64()}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    made = stage("history", columns=["x", "n"], by=["k"], rows=length, own=own, keys=keys)
    made.bind(schema)
    done, at = [], 0
    for size in [*cuts, len(rows)]:
        done.append(made.apply(batch(frame.slice(at, size))))
        at += size
        snapshot = made.snapshot()
        made = stage("history", columns=["x", "n"], by=["k"], rows=length, own=own, keys=keys)
        made.bind(schema)
        made.restore(snapshot)
    expected, left, gaps = reference(rows, length, own=own, keys=keys)
    assert arrays(done) == expected
    assert sum(counts(done, "forgotten")) == left
    assert sum(counts(done, "gaps")) == gaps
    assert snapshot["count"] == len({key for key, *_ in rows}) - left + returned(rows, keys)


def returned(rows: list[Row], keys: int) -> int:
    """How often a key that had left came again."""
    memory: OrderedDict[str | None, None] = OrderedDict()
    seen, again = set(), 0
    for key, *_ in rows:
        again += key in seen and key not in memory
        seen.add(key)
        memory.pop(key, None)
        memory[key] = None
        if len(memory) > keys:
            memory.popitem(last=False)
    return again


def test_memory_is_bounded_by_the_keys(stage: Make, batch: Make) -> None:
    made = stage("history", columns=["x"], by=["k"], rows=4, keys=100)
    made.bind({"k": pl.Int64(), "x": pl.Float64()})
    forgotten = 0
    for start in range(0, 20_000, 50):
        keys = list(range(start, start + 50))
        done = made.apply(batch(k=keys, x=[1.0] * 50))
        forgotten += done.counts["s", "forgotten"]
    assert forgotten == 20_000 - 100
    assert made.snapshot()["count"] == 100
    assert 100 <= sum(len(run["keys"]) for run in made.snapshot()["store"]) <= 200


def test_keys_seen_all_the_time_are_kept_beside_many_others() -> None:
    """A queue of old rows, of which nearly all are no longer their key's last."""
    rng = np.random.default_rng(0)
    recent = RecentKeys(size=20)
    memory: OrderedDict[int, None] = OrderedDict()
    for _ in range(200):
        keys = np.where(rng.random(64) < 0.9, rng.integers(0, 10, 64), rng.integers(10, 500, 64))
        visit = recent.visit(keys.astype(np.uint64))
        for row, key in enumerate(keys.tolist()):
            assert bool(visit.fresh[row]) == (key not in memory)
            memory.pop(key, None)
            memory[key] = None
            if len(memory) > 20:
                memory.popitem(last=False)
        recent = recent.updated(visit, np.zeros(len(visit.keys)))
    assert recent.count == len(memory) == 20


def test_texts_of_different_lengths_are_stored_whole() -> None:
    store = KeyStore()
    for start, text in ((0, "a"), (4, "a longer one"), (8, "b")):
        keys = np.arange(start, start + 4, dtype=np.uint64)
        order = np.arange(start, start + 4)
        store = store.add(keys, order, np.full(4, text), oldest=0)
    _, _, values = store.find(np.array([1, 5, 9], np.uint64))
    assert values.tolist() == ["a", "a longer one", "b"]


def test_a_row_that_is_rejected_later_was_a_row_of_its_key(run: Run) -> None:
    done = run("history", {"columns": ["x"], "rows": 1}, {"x": [1.0, 2.0, 3.0]})
    left = done[0].reject(done[0].frame["x"] != 2, stage="s", reason="r")
    assert arrays([left]) == [[None], [[2]]]
    assert '"s":[[1.0]]' in left.rejects[0].rows["value"][0]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"columns": ["k"]}, "expects numbers in column 'k', got string: encode it with a"),
        ({"columns": ["z"]}, "needs column 'z', which is not there"),
        ({"columns": ["x"], "by": ["z"]}, "by needs column 'z', which is not there"),
    ],
)
def test_a_wrong_setting_says_so(stage: Make, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        stage("history", **options).bind({"k": pl.String(), "x": pl.Float64()})


def test_a_column_of_its_name_is_refused(stage: Make) -> None:
    with pytest.raises(UserError, match="'s', which is there already: give the stage another"):
        stage("history", columns=["s"]).bind({"s": pl.Float64()})
