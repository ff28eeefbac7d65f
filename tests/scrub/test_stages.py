"""Each stage, list in, list out."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.event_time import Clock
from engine.columnar.hashing import hashes
from engine.types import Batch, UserError
from tests.size import examples

INF, NAN = math.inf, math.nan
PINNED = [6258203314994644589, 4549038829682717750, 11591891339104894550, 529801633415461679]
Run = Callable[..., list[Batch]]
Make = Callable[..., Any]


def gone(batch: Batch) -> list[tuple[str, int, str | None]]:
    return [
        (r.reason, position, detail)
        for r in batch.rejects
        for position, detail in r.rows.select("_position", "detail").rows()
    ]


def columns(batches: list[Batch], name: str) -> list[list[Any]]:
    return [batch.frame[name].to_list() for batch in batches]


# ---------------------------------------------------------------------------------------- missing


@pytest.mark.usefixtures("steady")
def test_mean_of_the_batches_before(run: Run) -> None:
    parts = ({"x": [None, 1.0, 3.0]}, {"x": [NAN, INF, None]}, {"x": [8.0, None, None]})
    options = {"columns": ["x"], "strategy": "mean", "value": -1, "indicator": True}
    done = run("missing", options, *parts)
    assert columns(done, "x") == [[-1.0, 1.0, 3.0], [2.0, INF, 2.0], [8.0, 2.0, 2.0]]
    assert columns(done, "x_missing") == [[1.0, 0.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    assert [b.counts["s", "filled"] for b in done] == [1, 2, 2]


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent"])
@pytest.mark.parametrize("indicator", [False, True])
def test_what_is_filled_before_a_value_was_learned_is_counted(
    run: Run, strategy: str, indicator: bool
) -> None:
    """Column by column: `late` has no value for two batches."""
    parts: list[dict[str, list[float | None]]] = [
        {"x": [None, 1.0, None], "late": [None, None, None]},
        {"x": [None, 1.0, 2.0], "late": [None, None, None]},
        {"x": [None, 1.0, 2.0], "late": [5.0, None, None]},
        {"x": [None, 1.0, 2.0], "late": [5.0, None, None]},
    ]
    frames = [pl.DataFrame(part, schema={"x": pl.Float64, "late": pl.Float64}) for part in parts]
    options = {"columns": ["x", "late"], "strategy": strategy, "indicator": indicator}
    done = run("missing", options, *frames)
    assert [b.counts["s", "filled"] for b in done] == [5, 4, 3, 3]
    assert [b.counts.get(("s", "filled_before_learning"), 0) for b in done] == [5, 3, 2, 0]
    said = run("missing", {**options, "value": 1}, *frames)  # the pipeline says with what
    assert not any(("s", "filled_before_learning") in b.counts for b in said)


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(
    ("strategy", "given_", "filled"),
    [
        ("median", [1, 2, 90], 2.0),
        ("mean", [1, 2, 90], 31.0),
        ("most_frequent", [1, 2, 2], 2),
        ("most_frequent", ["b", "a", "b"], "b"),
        ("most_frequent", [True, True, False], True),
        ("constant", ["b", "a", "b"], ""),
        ("constant", [True, True, False], False),
        ("constant", [1, 2, 3], 0),
        ("last", [date(2024, 1, 2), date(2024, 1, 1)], date(2024, 1, 2)),
    ],
)
def test_filled_with(run: Run, strategy: str, given_: list[Any], filled: Any) -> None:
    options = {"columns": ["c"], "strategy": strategy}
    *_, last = run("missing", options, {"c": given_}, {"c": [*given_[:1], None]})
    assert last.frame["c"].to_list()[1] == filled


def test_all_null_column_falls_back(run: Run) -> None:
    frame = pl.DataFrame({"x": [None] * 3}, schema={"x": pl.Float64})
    done = run("missing", {"columns": ["x"], "strategy": "median"}, frame, frame)
    assert columns(done, "x") == [[0.0] * 3, [0.0] * 3]


def test_last_value_of_the_same_key(run: Run) -> None:
    options = {"columns": ["x"], "strategy": "last", "by": ["k"]}
    parts = (
        {"k": ["a", "b", "a"], "x": [1.0, None, None]},
        {"k": ["b", "a", "b"], "x": [NAN, None, 5.0]},
        {"k": ["b", "c"], "x": [None, 7.0]},
    )
    done = run("missing", options, *parts)
    assert columns(done, "x") == [[1.0, None, 1.0], [None, 1.0, 5.0], [5.0, 7.0]]
    assert [b.counts["s", "filled"] for b in done] == [1, 1, 1]


def test_last_forgets_the_keys_seen_longest_ago(run: Run) -> None:
    options = {"columns": ["x"], "strategy": "last", "by": ["k"], "keys": 1}
    parts = ({"k": ["a", "b"], "x": [1.0, 2.0]}, {"k": ["a", "b"], "x": [None, None]})
    assert columns(run("missing", options, *parts), "x")[1] == [None, 2.0]


def test_drop_names_the_column(run: Run) -> None:
    options = {"columns": ["x", "t"], "strategy": "drop"}
    (done,) = run("missing", options, {"x": [1.0, NAN, 3.0, None], "t": ["a", "b", None, None]})
    assert done.frame["x"].to_list() == [1.0]
    assert gone(done) == [
        ("missing", 1, "Column 'x' is missing."),
        ("missing", 2, "Column 't' is missing."),
        ("missing", 3, "Column 'x' is missing."),
    ]


# ------------------------------------------------------------------------------------- duplicates


def test_first_one_wins(run: Run) -> None:
    parts = ({"a": [1, 1, 2], "b": ["x", "x", "x"]}, {"a": [2, 3, None], "b": ["x", "x", None]})
    done = run("duplicates", {"by": ["a", "b"]}, *parts, {"a": [None], "b": [None]})
    assert columns(done, "a") == [[1, 2], [3, None], []]
    assert [gone(b) for b in done] == [[("duplicate", n, None)] for n in (1, 0, 0)]
    assert [b.counts["s", "duplicates"] for b in done] == [1, 1, 1]


@settings(max_examples=examples(60), deadline=None)
@given(
    keys=st.lists(st.integers(0, 12), max_size=120),
    window=st.integers(1, 30),
    cut=st.integers(1, 50),
)
def test_window_is_exact_to_the_row(run: Run, keys: list[int], window: int, cut: int) -> None:
    kept: list[int] = []
    let_through: dict[int, int] = {}
    for row, key in enumerate(keys):
        if row - let_through.get(key, -1000) > window:
            let_through[key] = row
            kept.append(key)
    frame = pl.DataFrame({"k": keys}, schema={"k": pl.Int64})
    parts = [frame.slice(at, cut) for at in range(0, max(len(keys), 1), cut)]
    done = run("duplicates", {"by": ["k"], "window": window}, *parts)
    assert [key for part in columns(done, "k") for key in part] == kept


def test_memory_of_duplicates_is_bounded(stage: Make, batch: Callable[..., Batch]) -> None:
    made = stage("duplicates", by=["k"], window=1000)
    made.bind({"k": pl.Int64()})
    for start in range(0, 40_000, 100):
        done = made.apply(batch(k=list(range(start, start + 100))))
        assert len(done) == 100
    remembered = sum(len(r["keys"]) for r in made.snapshot()["seen"])
    assert 1000 <= remembered <= 2500


def test_hashes_never_change() -> None:
    """Checkpoints hold them: these numbers are written down, not computed."""
    columns = {"t": ["", "a", None, "ab"], "x": [0.0, NAN, None, 1.5], "n": [1, 2, 3, None]}
    assert hashes(pl.DataFrame(columns)).tolist() == PINNED
    negative = pl.DataFrame({"x": [-0.0, 0.0]})
    assert len(set(hashes(negative).tolist())) == 1


@settings(max_examples=examples(60), deadline=None)
@given(texts=st.lists(st.text(max_size=6), unique=True, max_size=50))
def test_different_texts_have_different_hashes(texts: list[str]) -> None:
    column = pl.Series("t", texts, pl.String)
    assert len(set(hashes(column.to_frame()).tolist())) == len(texts)
    sliced = column.slice(1)
    assert hashes(sliced.to_frame()).tolist() == hashes(column.to_frame())[1:].tolist()


def test_a_text_has_one_hash_however_it_lies_in_memory() -> None:
    """In its view or behind it, in one buffer or several, beside a null, short or long."""
    texts = ["", "a", "twelve bytes", "thirteen byte", "e" * 63, "\u00e9" * 40, "z" * 200]
    column = pl.Series("t", texts)
    plain = hashes(column.to_frame()).tolist()
    parts = pl.concat([pl.Series("t", [text]) for text in texts], rechunk=False)
    assert hashes(parts.to_frame()).tolist() == plain
    assert hashes(column.extend_constant(None, 1).to_frame()).tolist()[:-1] == plain
    assert hashes(column.cast(pl.Binary).to_frame()).tolist() == plain
    assert [hashes(pl.DataFrame({"t": [text]}))[0] for text in texts] == plain


# --------------------------------------------------------------------------------------- outliers


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0, 5, pl.UInt8), (-1, 5, pl.Float64), (1, 300, pl.Float64), (0, 1e300, pl.Float64)],
)
def test_bounds_that_whole_numbers_cannot_have_make_floats(
    run: Run, low: float, high: float, kind: Any
) -> None:
    options = {"columns": ["x"], "method": "bounds", "low": low, "high": high}
    (done,) = run("outliers", options, {"x": pl.Series([0, 3, 255], dtype=pl.UInt8)})
    assert done.frame.schema["x"] == kind
    assert done.frame["x"].to_list() == [max(low, 0), 3, min(high, 255)]
    assert run("outliers", {**options, "action": "reject"}, {"x": pl.Series([3], dtype=pl.UInt8)})


def test_bounds_clip_infinity_but_not_nan(run: Run) -> None:
    options = {"columns": ["x"], "method": "bounds", "low": 0, "high": 10}
    (done,) = run("outliers", options, {"x": [-1.0, INF, -INF, NAN, None, 5.0]})
    x = done.frame["x"].to_list()
    assert [*x[:3], *x[4:]] == [0.0, 10.0, 0.0, None, 5.0]
    assert math.isnan(x[3])
    assert done.counts["s", "clipped"] == 3


def test_nothing_is_judged_before_min_rows(run: Run) -> None:
    options = {"columns": ["x"], "method": "zscore", "threshold": 2, "min_rows": 4}
    done = run("outliers", options, {"x": [0.0, 2.0, 99.0]}, {"x": [99.0, -99.0]}, {"x": [999.0]})
    assert columns(done, "x")[:2] == [[0.0, 2.0, 99.0], [99.0, -99.0]]
    known = np.array([0.0, 2.0, 99.0, 99.0, -99.0])
    assert columns(done, "x")[2] == pytest.approx([known.mean() + 2 * known.std()])


def test_quartiles_reject_with_a_sentence(run: Run) -> None:
    options = {"columns": ["x"], "method": "iqr", "factor": 1, "action": "reject", "min_rows": 5}
    part = {"x": [float(i) for i in range(101)]}
    done = run("outliers", options, part, {"x": [50.0, 151.0, None, -60.0]})
    assert columns(done, "x")[1] == [50.0, None]
    assert [(r, n) for r, n, _ in gone(done[1])] == [("outlier", 1), ("outlier", 3)]
    assert gone(done[1])[0][2] == "Expected 'x' in -25.75 ... 125.75; got 151.0."


def test_flags(run: Run) -> None:
    options = {"columns": ["n", "m"], "method": "bounds", "high": 5, "action": "flag"}
    (done,) = run("outliers", options, {"n": [1, 9, None], "m": [INF, NAN, 5.0]})
    assert columns([done], "n_outlier") == [[0.0, 1.0, 0.0]]
    assert columns([done], "m_outlier") == [[1.0, 0.0, 0.0]]
    assert done.counts["s", "flagged"] == 2
    assert done.frame["n"].to_list() == [1, 9, None]


def test_a_column_that_does_not_vary_is_not_judged(run: Run) -> None:
    options = {"columns": ["x"], "min_rows": 1}
    for method in ("zscore", "iqr"):
        done = run("outliers", {**options, "method": method}, {"x": [0.1] * 50}, {"x": [7.0]})
        assert columns(done, "x")[1] == [7.0]


# ------------------------------------------------------------------------------------------ scale


@pytest.mark.usefixtures("steady")
def test_z_score_of_the_batches_before(run: Run) -> None:
    parts = ({"x": [1, 3], "c": [5, 5]}, {"x": [4, None], "c": [6, 7]})
    done = run("standardize", {"columns": ["*"]}, *parts)
    assert columns(done, "x") == [[0.0, 0.0], [2.0, None]]
    assert columns(done, "c") == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.usefixtures("steady")
def test_min_max(run: Run) -> None:
    options = {"columns": ["x"], "low": -1, "high": 1, "clip": True}
    done = run("normalize", options, {"x": [0.0, 10.0]}, {"x": [5.0, 20.0, -5.0, None]})
    assert columns(done, "x") == [[0.0, 0.0], [0.0, 1.0, -1.0, None]]
    assert [b.counts["s", "clipped"] for b in done] == [0, 2]


def test_given_bounds_learn_nothing(run: Run, stage: Make) -> None:
    options = {"columns": ["x"], "from_low": 0, "from_high": 4}
    assert columns(run("normalize", options, {"x": [1.0, 8.0]}), "x") == [[0.25, 2.0]]
    made = stage("normalize", **options)
    made.bind({"x": pl.Float64()})
    assert made.snapshot() is None


def test_freezing_is_exact_to_the_row(run: Run) -> None:
    options = {"columns": ["x"], "freeze_after": 2}
    done = run("standardize", options, {"x": [1.0, 3.0, 99.0]}, {"x": [99.0]}, {"x": [4.0]})
    assert columns(done, "x")[2] == [2.0]
    done = run("standardize", {"columns": ["x"], "learn": False}, {"x": [1.0, 3.0]}, {"x": [4.0]})
    assert columns(done, "x")[1] == [0.0]


# ------------------------------------------------------------------------------------- categories


@pytest.mark.usefixtures("steady")
def test_codes_in_order_of_first_appearance(run: Run, stage: Make) -> None:
    options = {"columns": ["t"], "size": 3}
    parts = ({"t": ["b", "a", None, "b"]}, {"t": ["a", "b", "c"]}, {"t": ["d", "c", "never"]})
    done = run("categories", options, *parts, {"t": ["d", "a"]})
    assert columns(done, "t") == [[0, 0, 0, 0], [2, 1, 0], [0, 3, 0], [0, 2]]
    assert [b.counts["s", "unknown"] for b in done] == [4, 1, 2, 1]
    made = stage("categories", **options)
    made.bind({"t": pl.String()})
    assert made.vocabulary_sizes() == {"t": 4}


def test_hashed_codes_need_no_learning(run: Run) -> None:
    options = {"columns": ["t"], "method": "hash", "size": 7}
    done = run("categories", options, {"t": ["a", "b", None]}, {"t": ["b", "a"]})
    (a, b, null), second = columns(done, "t")
    assert second == [b, a]
    assert null == 0
    assert {a, b} <= set(range(1, 8))


# ------------------------------------------------------------------------------- derive and unpivot


def test_derived_columns_may_use_each_other(run: Run) -> None:
    sql = {
        "time": "strptime(date || ' ' || split_part(hour, '-', 1), '%Y-%m-%d %H:%M')",
        "hour": "date_part('hour', time)",
        "log": "log1p(n)",
        "twice": "log * 2",
        "late": "CASE WHEN hour >= 18 THEN 'late' ELSE 'early' END",
    }
    part = {"date": ["2019-01-01", None], "hour": ["6:00-6:59", "18:00-18:59"], "n": [0, 1]}
    (done,) = run("derive", {"columns": sql}, part)
    assert done.frame["time"].to_list() == [datetime(2019, 1, 1, 6), None]
    assert done.frame["hour"].to_list() == [6, None]
    assert done.frame["twice"].to_list() == pytest.approx([0, 2 * math.log(2)])
    assert done.frame["late"].to_list() == ["early", "early"]


def test_a_row_that_fails_costs_itself(run: Run) -> None:
    sql = {"day": "strptime(t, '%Y-%m-%d')"}
    part = {"t": ["2024-01-01", "no date", None, "2024-13-01", "2024-01-02"]}
    (done,) = run("derive", {"columns": sql}, part)
    assert done.frame["t"].to_list() == ["2024-01-01", None, "2024-01-02"]
    assert [(r, n) for r, n, _ in gone(done)] == [("invalid", 1), ("invalid", 3)]
    assert '["no date"]' in str(gone(done)[0][2])


@pytest.mark.parametrize(
    "sql",
    [
        "sum(n)", "n - avg(n)", "max(n) OVER (PARTITION BY n)", "count(*)", "first(n)",
        "n - quantile_cont(n, 0.5)", "row_number() OVER (ORDER BY n)",
    ],
)  # fmt: skip
def test_looking_at_other_rows_is_refused(stage: Make, sql: str) -> None:
    with pytest.raises(UserError, match=r"\[scrub.s\] column 'z' = .* looks at other rows"):
        stage("derive", columns={"z": sql}).bind({"n": pl.Int64()})


def test_whole_numbers_that_grow_beyond_their_type_cost_their_row(run: Run) -> None:
    big = 2**62
    sql = {"p": "n * n", "s": "n + n", "w": "pow(n, 2)", "more": "n * n > n", "mean": "(n + n) / 2"}
    part = {"n": pl.Series([3, None, -(2**31)], dtype=pl.Int64)}
    (done,) = run("derive", {"columns": sql}, part)
    assert done.frame["p"].to_list() == [9, None, big]
    assert done.frame.schema["p"] == pl.Int64
    assert done.frame["more"].to_list() == [True, None, True]
    (done,) = run("derive", {"columns": sql}, {"n": [3, big, 4]})
    assert done.frame["p"].to_list() == [9, 16]
    assert [(r, n) for r, n, _ in gone(done)] == [("invalid", 1)]
    (done,) = run("derive", {"columns": {"mean": sql["mean"]}}, {"n": [big, big + 2]})
    assert done.frame["mean"].to_list() == [float(big), float(big + 2)]
    (done,) = run("derive", {"columns": {"a": "n * n"}}, {"n": pl.Series([200], dtype=pl.UInt8)})
    assert done.frame.is_empty()  # in 8 bits


@pytest.mark.parametrize(
    "sql",
    [
        "CAST(n AS BIGINT) * 9223372036854775807",
        "CAST(t AS BIGINT) * 9223372036854775807",
        "CAST(CAST(n AS INT) AS BIGINT) * 4 * 4611686018427387904",
        "CAST(n AS BIGINT) * CAST(t AS BIGINT) * 9223372036854775807",
    ],
)
def test_a_product_of_cast_values_beyond_64_bits_rejects_its_row(run: Run, sql: str) -> None:
    rows = {"n": [0, 2, 0], "t": ["0", "2", "0"]}
    (done,) = run("derive", {"columns": {"z": sql}}, rows)
    assert done.frame["z"].to_list() == [0, 0]
    assert done.frame.schema["z"] == pl.Int64
    (reject,) = done.rejects
    assert reject.reason == "invalid"
    assert reject.rows.height == 1


def test_a_cast_amid_a_thousand_terms_is_refused(stage: Make) -> None:
    with pytest.raises(UserError, match="'z' casts to integers amid too many terms: derive parts"):
        stage("derive", columns={"z": "CAST(n AS INT)" + " + n" * 990}).bind({"n": pl.Int64()})


def test_a_cast_still_refuses_what_does_not_fit_it(run: Run) -> None:
    (done,) = run("derive", {"columns": {"z": "CAST(n AS TINYINT) + 1"}}, {"n": [1, 300]})
    assert done.frame["z"].to_list() == [2]
    assert done.rejects[0].rows.height == 1


@pytest.mark.parametrize(
    ("sql", "why"),
    [
        ("now()", "asks the clock (now)"),
        ("date_diff('day', t, current_date)", "asks the clock (current_date)"),
        ("CURRENT_TIMESTAMP", "asks the clock (current_timestamp)"),
        ("(SELECT 1)", "selects from elsewhere"),
        ("n IN (SELECT a FROM read_csv('/no/such/file'))", "selects from elsewhere"),
        ("+".join(["n"] * 10_000), "19,999 words and signs"),
        ("n +", "is no SQL expression"),
    ],
    ids=lambda text: text[:20],
)
def test_an_expression_is_over_one_row_and_bounded(stage: Make, sql: str, why: str) -> None:
    with pytest.raises(UserError) as told:
        stage("derive", columns={"z": sql}).bind({"n": pl.Int64(), "t": pl.Date()})
    assert why in str(told.value)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600


def test_a_thousand_terms_are_no_trouble_and_names_may_be_those_of_the_clock(run: Run) -> None:
    sql = {"sum": "+".join(["n"] * 1_000), "text": "'select now()'", "same": '"now"'}
    (done,) = run("derive", {"columns": sql}, {"n": [2], "now": [5]})
    assert done.frame.select("sum", "text", "same").row(0) == (2_000, "select now()", 5)


def test_unpivot_row_by_row(run: Run) -> None:
    options = {"keep": ["t"], "variable": "sensor", "value": "count"}
    (done,) = run("unpivot", options, {"t": [1, 2], "b": [10, None], "a": [0.5, 1.5]})
    assert done.frame.rows() == [
        ("p", 0, 1, "b", 10.0),
        ("p", 0, 1, "a", 0.5),
        ("p", 1, 2, "b", None),
        ("p", 1, 2, "a", 1.5),
    ]
    assert done.added == 2


# -------------------------------------------------------------------------------------------- lag


def test_lag_sees_only_earlier_rows(run: Run) -> None:
    options = {"column": "x", "by": ["k"], "time": "t", "every": 1, "steps": [1, 2]}
    parts = (
        {"k": ["a", "a", "b"], "t": [2, 1, 2], "x": [2.0, 1.0, 9.0]},
        {"k": ["a", "a", "a", "b"], "t": [3, 3, 2, 3], "x": [3.0, 99.0, 98.0, None]},
        {"k": ["a", "b", None], "t": [4, 4, 4], "x": [4.0, 4.0, 4.0]},
    )
    done = run("lag", options, *parts)
    assert columns(done, "x_lag_1") == [[None] * 3, [2.0, 2.0, 1.0, 9.0], [3.0, None, None]]
    assert columns(done, "x_lag_2") == [[None] * 3, [1.0, 1.0, None, None], [2.0, 9.0, None]]


def test_lag_of_dates_and_missing_times(run: Run) -> None:
    options = {"column": "t", "time": "d", "every": "1w", "steps": [1]}
    days = [date(2024, 1, 1), None, date(2024, 1, 8), date(2024, 1, 9)]
    (done,) = run("lag", options, {"d": days, "t": ["x", "y", None, "z"]})
    assert done.frame["t_lag_1"].to_list() == [None, None, "x", None]


def test_late_rows_find_what_lateness_keeps(run: Run) -> None:
    options = {"column": "x", "time": "t", "every": 1, "steps": [1, 3]}
    part = {"t": [0, 1, 4, 2], "x": [0.0, 1.0, 4.0, 2.0]}
    assert columns(run("lag", options, part), "x_lag_1") == [[None, 0.0, None, 1.0]]
    part = {"t": [0, 1, 4, 1], "x": [0.0, 1.0, 4.0, 2.0]}
    assert columns(run("lag", options, part), "x_lag_1") == [[None, 0.0, None, None]]
    options["lateness"] = 1
    assert columns(run("lag", options, part), "x_lag_1") == [[None, 0.0, None, 0.0]]


@pytest.mark.parametrize("cut", [1, 3, 40])
@pytest.mark.parametrize("wrong", [0, 7])
def test_lag_does_not_follow_one_wrong_time(run: Run, wrong: int, cut: int) -> None:
    options = {"column": "x", "time": "t", "every": 1, "steps": [1]}
    times = list(range(40))
    times[wrong] = 9_999
    parts = [
        {"t": times[at : at + cut], "x": [float(t) for t in range(at, min(at + cut, 40))]}
        for at in range(0, 40, cut)
    ]
    found = [x for part in columns(run("lag", options, *parts), "x_lag_1") for x in part]
    right = [float(t - 1) if t - 1 in times[:t] else None for t in range(40)]
    assert found[:wrong] + found[wrong + 1 :] == right[:wrong] + right[wrong + 1 :]


def test_lag_goes_on_behind_a_gap_of_the_stream(run: Run) -> None:
    options = {"column": "x", "time": "t", "every": 1, "steps": [1]}
    times = [*range(20), *range(5_000, 5_020)]
    (done,) = run("lag", options, {"t": times, "x": times})
    right = [t - 1 if t - 1 in times else None for t in times]
    assert done.frame["x_lag_1"].to_list() == right


def reference(
    rows: list[tuple[int, int, int | None]], steps: list[int], lateness: int
) -> list[list[int | None]]:
    """The definition of lag, row by row."""
    seen: dict[tuple[int, int], int] = {}
    horizon, out = max(steps) + lateness, []
    times = np.array([time for _, time, _ in rows])
    _, clocks, _ = Clock().walk(times, horizon, at_once=True)
    for (key, time, value), clock in zip(rows, clocks.tolist(), strict=True):
        oldest = clock - horizon
        out.append([seen.get((key, t)) if (t := time - k) >= oldest else None for k in steps])
        if value is not None and (key, time) not in seen:
            seen[key, time] = value
    return out


@settings(max_examples=examples(80), deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 30), st.none() | st.integers(0, 99)),
        min_size=1,
        max_size=80,
    ),
    steps=st.lists(st.integers(1, 8), min_size=1, max_size=3, unique=True),
    lateness=st.integers(0, 5),
    cut=st.integers(1, 40),
)
def test_lag_is_its_definition(
    run: Run, rows: list[tuple[int, int, int | None]], steps: list[int], lateness: int, cut: int
) -> None:
    names = {"k": pl.Int64, "t": pl.Int64, "x": pl.Int64}
    frame = pl.DataFrame(rows, schema=names, orient="row")
    options = {"column": "x", "by": ["k"], "time": "t", "every": 1, "steps": steps}
    parts = [frame.slice(at, cut) for at in range(0, len(rows), cut)]
    done = run("lag", {**options, "lateness": lateness}, *parts)
    ours = pl.concat([b.frame.select(f"x_lag_{k}" for k in steps) for b in done])
    assert [list(row) for row in ours.rows()] == reference(rows, steps, lateness)


def test_memory_of_lag_is_bounded(stage: Make, batch: Callable[..., Batch]) -> None:
    made = stage("lag", column="x", time="t", every=1, steps=[10, 500])
    made.bind({"t": pl.Int64(), "x": pl.Float64()})
    for start in range(0, 20_000, 50):
        made.apply(batch(t=list(range(start, start + 50)), x=[1.0] * 50))
    assert 500 <= sum(len(r["keys"]) for r in made.snapshot()["past"]) <= 1250


# -------------------------------------------------------------------------------- wrong settings


SCHEMA = {
    "x": pl.Float64(), "n": pl.Int64(), "text": pl.String(), "d": pl.Date(),
    "t": pl.Datetime("us"), "x_missing": pl.Float32(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        (
            "missing",
            {"columns": ["txet"]},
            "needs column 'txet', which is not there. Did you mean 'text'",
        ),
        ("missing", {"columns": ["z*"]}, "expects columns like 'z*', and no column matches"),
        ("missing", {"columns": []}, "names no columns"),
        (
            "missing",
            {"columns": ["text"], "value": ""},
            "'mean' expects numbers in column 'text', got string: take it out, or set strategy = "
            '"constant"',
        ),
        ("missing", {"columns": ["d"], "strategy": "constant"}, "use strategy 'last' or 'drop'"),
        (
            "missing",
            {"columns": ["x"], "strategy": "constant", "value": "a"},
            "value 'a' does not fit",
        ),
        (
            "missing",
            {"columns": ["x"], "strategy": "constant", "value": True},
            "value True does not",
        ),
        (
            "missing",
            {"columns": ["x"], "indicator": True},
            "adds column 'x_missing', which is there",
        ),
        (
            "missing",
            {"columns": ["n"], "strategy": "drop", "indicator": True},
            "set one of the two",
        ),
        (
            "missing",
            {"columns": ["n"], "by": ["text"]},
            "has 'by', which only strategy 'last' uses",
        ),
        ("missing", {"columns": ["n"], "strategy": "last", "by": ["n"]}, "which is its own key"),
        ("missing", {"columns": ["n"], "strategy": "drop", "learn": False}, "learns no statistic"),
        ("outliers", {"columns": ["x"], "low": 1}, "learns its bounds by method 'zscore'"),
        (
            "outliers",
            {"columns": ["x"], "method": "bounds", "low": 2, "high": 1},
            "got 2.0 and 1.0",
        ),
        ("normalize", {"columns": ["x"], "low": 1, "high": 1}, "expects low < high, got 1 and 1"),
        ("normalize", {"columns": ["x"], "from_low": 3, "from_high": 1}, "from_low < from_high"),
        ("categories", {"columns": ["x"]}, "expects text or whole numbers in column 'x'"),
        ("derive", {"columns": {"_position": "n"}}, "which headrace itself adds"),
        ("derive", {"columns": {"z": "no_such(n)"}}, "is no SQL expression"),
        ("unpivot", {"keep": ["*"]}, "none is left to unpivot"),
        ("unpivot", {"keep": ["n"], "columns": ["x"], "value": "n"}, "names a new column 'n'"),
        ("lag", {"column": "x", "time": "t", "every": "1mo", "steps": [1]}, "expects a duration"),
        (
            "lag",
            {"column": "x", "time": "d", "every": "1h", "steps": [1]},
            "is finer than column 'd'",
        ),
        (
            "lag",
            {"column": "x", "time": "t", "every": 0, "steps": [1]},
            "expects a positive 'every'",
        ),
        ("lag", {"column": "x", "time": "n", "every": 1, "steps": [1, 1]}, "names a step twice"),
    ],
)
def test_a_wrong_setting_says_so(
    stage: Make, kind: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as caught:
        stage(kind, **options).bind(SCHEMA)
    assert str(caught.value).startswith("[scrub.s] ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [NAN, INF])
def test_no_fill_value_without_a_number(stage: Make, value: float) -> None:
    with pytest.raises(ValueError, match="should be a finite number"):
        stage("missing", columns=["x"], strategy="constant", value=value)


@pytest.mark.parametrize("method", ["zscore", "iqr"])
def test_a_stage_that_judged_nothing_says_so(stage: Make, batch: Any, method: str) -> None:
    x = np.random.default_rng(0).normal(size=300)
    made = stage("outliers", columns=["x"], method=method)
    made.bind({"x": pl.Float64()})
    assert made.remarks() == []
    made.apply(batch(x=x))
    (said,) = made.remarks()
    assert "tested none of 300 rows" in said
    resumed = stage("outliers", columns=["x"], method=method)
    resumed.bind({"x": pl.Float64()})
    resumed.restore(made.snapshot())
    assert resumed.remarks() == []
    made.apply(batch(x=x))
    assert made.remarks() == []


@pytest.mark.parametrize("kind", ["standardize", "normalize", "robust", "power", "outliers"])
def test_a_stage_that_was_never_let_learn_says_so(stage: Make, batch: Any, kind: str) -> None:
    made = stage(kind, columns=["x"], learn=False)
    made.bind({"x": pl.Float64()})
    made.apply(batch(x=[1.0, 2.0]))
    (said,) = made.remarks()
    assert "has learned nothing yet" in said
    learned = stage(kind, columns=["x"])
    learned.bind({"x": pl.Float64()})
    learned.apply(batch(x=[1.0, 2.0]))
    made.restore(learned.snapshot())
    assert not any("learned nothing" in said for said in made.remarks())


@pytest.mark.parametrize("strategy", ["mean", "median", "most_frequent"])
@pytest.mark.parametrize("indicator", [False, True])
def test_gaps_of_the_first_rows_are_filled_by_the_rows_before(
    run: Run, strategy: str, indicator: bool
) -> None:
    x = [None, 4.0, None, 1.0, None, 7.0, None]
    options = {"columns": ["x"], "strategy": strategy, "indicator": indicator}
    done = run("missing", options, pl.DataFrame({"x": x, "own": [[1]] * 7}))[0]
    if strategy == "most_frequent":  # of values as frequent, any
        assert done.frame["x"][0] == 0
        assert set(done.frame["x"]) <= {0.0, 1.0, 4.0, 7.0}
    else:
        assert done.frame["x"].to_list() == [0.0, 4.0, 4.0, 1.0, 2.5, 7.0, 4.0]
    assert (done.counts["s", "filled"], done.counts["s", "filled_before_learning"]) == (4, 1)
    if indicator:
        assert done.frame["x_missing"].to_list() == [float(v is None) for v in x]
