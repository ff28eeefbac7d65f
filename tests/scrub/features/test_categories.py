"""Categories that come and go: a code after some rows, and none any more after a time without."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import polars as pl
import pytest

from engine.types import Batch, Codes, UserError

Run = Callable[..., list[Batch]]
Make = Callable[..., Any]
START = datetime(2024, 1, 1)


def codes(done: list[Batch]) -> list[list[int]]:
    return [batch.frame["t"].to_list() for batch in done]


def times(*days: int) -> list[datetime]:
    return [START + timedelta(days=day) for day in days]


@pytest.mark.usefixtures("steady")
def test_a_value_gets_a_code_after_enough_rows(run: Run) -> None:
    options = {"columns": ["t"], "size": 2, "min_count": 3}
    done = run(
        "categories", options, {"t": ["a", "b", "a"]}, {"t": ["b", "a", None]},
        {"t": ["a", "b", "c"]}, {"t": ["a", "b", "c"]}, {"t": ["c", "c", "b"]}, {"t": ["c", "b"]},
    )  # fmt: skip
    assert codes(done) == [[0, 0, 0], [0, 0, 0], [1, 0, 0], [1, 2, 0], [0, 0, 2], [0, 2]]


def test_the_first_rows_have_codes_in_their_own_batch(run: Run) -> None:
    """One by one, then in blocks, each as long as all rows before it; later rows after it."""
    texts = [f"v{i % 40}" for i in range(100)]
    (one,) = codes(run("categories", {"columns": ["t"]}, {"t": texts}))
    assert one[:16] == list(range(1, 17))
    assert one[16:40] == [0] * 24
    assert one[64:] == [i % 40 + 1 for i in range(64, 100)]
    cut = run("categories", {"columns": ["t"]}, {"t": texts[:40]}, {"t": texts[40:]})
    assert codes(cut)[1] == [i % 40 + 1 for i in range(40, 100)]
    many = [f"v{i % 150}" for i in range(200)]
    first, late, again = codes(run("categories", {"columns": ["t"]}, *(
        {"t": part} for part in (many, ["new", "new"], ["new"]))))  # fmt: skip
    assert first[128:] == [0] * 22 + list(range(1, 51))
    assert (late, again) == ([0, 0], [151])


def test_at_most_as_many_values_wait_as_there_are_codes(
    run: Run, stage: Make, caplog: pytest.LogCaptureFixture
) -> None:
    once = [f"value {i}" for i in range(50)]
    made = stage("categories", columns=["t"], size=4, min_count=2)
    made.bind({"t": pl.String()})
    frame = pl.DataFrame({"_partition": "p", "_position": range(50), "t": once})
    from tests.scrub.conftest import batch_of

    done = made.apply(batch_of(frame))
    assert made.snapshot()["known"]["t"]["waiting"]["value"].to_list() == once[-4:]
    assert done.counts["s", "dropped"] == 46
    made.apply(batch_of(frame.head(6)))
    assert caplog.text.count("counted as 'dropped'") == 1


@pytest.mark.usefixtures("steady")
def test_a_value_that_is_not_seen_loses_its_code_to_another(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"columns": ["t"], "size": 2, "idle": "10d", "time": "at"}
    done = run(
        "categories", options,
        {"t": ["a", "b"], "at": times(0, 0)},
        {"t": ["a", "c"], "at": times(5, 6)},  # no code is free
        {"t": ["a", "b"], "at": times(14, 9)},
        {"t": ["a", "c"], "at": times(20, 20)},  # b is gone, and c has its code now
        {"t": ["b", "c"], "at": times(20, 21)},
        {"t": ["a", "c"], "at": [None, times(22)[0]]},
    )  # fmt: skip
    assert codes(done) == [[0, 0], [1, 0], [1, 2], [1, 0], [0, 2], [1, 2]]
    assert [batch.counts.get(("s", "forgotten"), 0) for batch in done] == [0, 0, 0, 1, 0, 0]
    assert [batch.counts.get(("s", "reused"), 0) for batch in done] == [0, 0, 0, 1, 0, 0]
    assert caplog.text.count("a model goes on from what it has learned of that code") == 1


@pytest.mark.parametrize("wrong", [0, 3, 40])
def test_a_wrong_time_in_the_future_forgets_nothing(run: Run, wrong: int) -> None:
    """At the start, among the first times, and later; the value of its row is none that stays."""
    options = {"columns": ["t"], "size": 9, "idle": "10d", "time": "at"}
    days = [i // 4 for i in range(60)]
    texts = ["abcd"[i % 4] for i in range(60)]
    days[wrong], texts[wrong] = 36_500, "w"
    rows = [{"t": [t], "at": times(day)} for t, day in zip(texts, days, strict=True)]
    more = [{"t": ["a"], "at": times(60)}] * 20
    done = run("categories", options, *rows, *more)
    gone = [batch.counts.get(("s", "forgotten"), 0) for batch in done]
    assert sum(gone[:60]) == (wrong < 40)  # w itself, idle for longer than ten days
    assert sum(gone) == 4  # w, and b, c and d with the last times
    (last,) = done[-1].frame["t"].to_list()
    assert last == done[-20].frame["t"].to_list()[0]


@pytest.mark.usefixtures("steady")
def test_new_codes_are_taken_before_those_of_others(run: Run, stage: Make) -> None:
    options = {"columns": ["t"], "size": 3, "idle": 2}
    done = run(
        "categories", options, {"t": ["a", "b"]}, {"t": ["b", "b", "b"]}, {"t": ["c", "b"]},
        {"t": ["c", "b", "d"]}, {"t": ["d", "c"]},
    )  # fmt: skip
    assert codes(done) == [[0, 0], [2, 2, 2], [0, 2], [3, 2, 0], [1, 3]]
    assert [batch.counts.get(("s", "reused"), 0) for batch in done] == [0, 0, 0, 1, 0]


def test_a_free_code_is_in_no_model_file(run: Run, stage: Make) -> None:
    made = stage("categories", columns=["t"], size=5, idle=2)
    made.bind({"t": pl.String()})
    from tests.scrub.conftest import batch_of

    for texts in (["a", "b", "c"], ["c", "c", "c"]):
        frame = pl.DataFrame({"_partition": "p", "_position": range(3), "t": texts})
        made.apply(batch_of(frame))
    (table,) = made.transforms()
    assert isinstance(table, Codes)
    assert {value: code for code, value in enumerate(table.values, 1)} == {"c": 3}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"idle": "1d"}, "expects a number of rows for 'idle' without a 'time'"),
        ({"idle": 0}, "expects a positive 'idle'"),
        ({"time": "at"}, "time is for 'idle'"),
        ({"idle": "soon", "time": "at"}, "expects a duration"),
        ({"idle": "1d", "time": "t"}, "time expects a datetime"),
        ({"method": "hash", "min_count": 2}, "min_count is for method 'vocabulary'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options: dict[str, Any], said: str, stage: Make) -> None:
    made = stage("categories", columns=["t"], **options)
    with pytest.raises(UserError, match=said):
        made.bind({"t": pl.String(), "at": pl.Datetime("us")})
