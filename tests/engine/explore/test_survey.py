"""What is found is what is there: against polars and numpy, however the rows are cut."""

from __future__ import annotations

import json
import tomllib
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.hashing import hashes
from engine.columnar.statistics import Quantiles
from engine.explore.distinct import ERROR, DistinctCounter, RowSet
from engine.explore.findings import Findings, column_profiles, left_out, related, sentences, times
from engine.explore.notation import hint
from engine.explore.suggestion import suggestion
from engine.explore.survey import SLICES, VALUES, Survey, as_time
from engine.explore.time_axis import TimeAxis, find_time
from engine.scrub.features.derive import Derive
from engine.types import Batch, Mark, UserError
from tests.size import examples

HOUR = 3_600_000_000


def survey(frame: pl.DataFrame, cuts: list[int] | None = None, **options: Any) -> Survey:
    made, start = Survey(dict(frame.schema)), 0
    for stop in [*sorted(min(c, frame.height) for c in cuts or []), frame.height]:
        made.update(frame[start:stop], **options)
        start = stop
    made.close()
    return made


def found(frame: pl.DataFrame, **own: Any) -> Findings:
    import dataclasses

    made = survey(frame)
    bare = Findings(
        name="rows",
        rows=made.rows,
        columns=column_profiles(made),
        repeated=made.seen.repeated,
        times=times(made),
        related=related(made),
        left_out=tuple(left_out(made, None)),
        **own,
    )
    return dataclasses.replace(bare, sentences=tuple(sentences(bare)), suggestion=suggestion(bare))


numbers = st.one_of(st.none(), st.integers(-50, 50).map(float), st.just(float("nan")))
rows = st.lists(st.tuples(numbers, numbers, st.sampled_from(["a", "b", None])), max_size=300)


@settings(deadline=None, max_examples=examples(60))
@given(rows, st.lists(st.integers(0, 300), max_size=5))
def test_figures_are_those_of_polars(given_rows: list[Any], cuts: list[int]) -> None:
    frame = pl.DataFrame(
        given_rows, schema={"x": pl.Float64, "y": pl.Float64, "t": pl.String}, orient="row"
    )
    made = survey(frame, cuts)
    assert made.rows == frame.height
    for figure in column_profiles(made):
        column = frame[figure.name]
        known = (
            column.fill_nan(None).drop_nulls() if figure.kind == "float64" else column.drop_nulls()
        )
        assert figure.missing == frame.height - len(known)
        if frame.height:
            assert figure.exact
            assert figure.distinct == known.n_unique()
            assert sum(n for _, n in figure.top) + figure.others == len(known)
        if figure.kind == "float64" and len(known):
            assert figure.mean == pytest.approx(known.mean(), abs=1e-9)
            assert figure.deviation == pytest.approx(known.std(ddof=0), abs=1e-9)
            assert figure.quantiles[0] == known.min()
            assert figure.quantiles[-1] == known.max()
            assert sum(part.rows for part in made.slices) == frame.height


@settings(deadline=None, max_examples=examples(40))
@given(st.integers(2, 5), st.integers(3, 200), st.integers(0, 9), st.lists(st.integers(0, 200)))
def test_correlations_are_numpys(columns: int, n: int, seed: int, cuts: list[int]) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, columns)) @ rng.normal(size=(columns, columns)) + 1e6
    frame = pl.DataFrame(x, schema=[f"x{i}" for i in range(columns)])
    assert survey(frame, cuts[:3]).pairs.correlation == pytest.approx(
        np.corrcoef(x.T), rel=1e-6, abs=1e-6
    )


def test_a_pair_with_gaps_is_what_remains() -> None:
    frame = pl.DataFrame({"a": [1.0, 2, None, 4, 9], "b": [2.0, 1, 7, None, 5]})
    expected = np.corrcoef([1, 2, 9], [2, 1, 5])[0, 1]
    assert survey(frame, [2]).pairs.correlation[0, 1] == pytest.approx(expected)


def test_quantiles_and_far_values_are_right_within_half_a_percent_of_the_rows() -> None:
    x = np.random.default_rng(1).standard_t(2, 100_000)
    (column,) = column_profiles(survey(pl.DataFrame({"x": x}), list(range(0, 100_000, 7_000))))
    for q, value in zip((0.01, 0.25, 0.5, 0.75, 0.99), column.quantiles[1:-1], strict=True):
        assert abs((x <= value).mean() - q) < 0.005
    first, third = np.quantile(x, [0.25, 0.75])
    reach = 3 * (third - first)
    far = ((x < first - reach) | (x > third + reach)).sum()
    assert abs(column.outliers - far) < 0.005 * len(x)
    assert sum(column.bars) == pytest.approx(0.99, abs=0.01)


@pytest.mark.parametrize("numbers", [24, 7, 100, 199, 2])
def test_even_whole_numbers_have_even_bars(numbers: int) -> None:
    rows = np.tile(np.arange(numbers), 50)
    (column,) = column_profiles(survey(pl.DataFrame({"x": rows}), [len(rows)]))
    whole = column.bars[:-1] or column.bars  # the last may stand for fewer numbers
    assert len(column.bars) <= 20
    assert max(whole) == pytest.approx(min(whole))
    assert sum(column.bars) == pytest.approx(1)


@pytest.mark.parametrize("n", [0, 1, 100, 10_000, 1_000_000])
def test_distinct_values_are_counted_within_three_errors(n: int) -> None:
    values = hashes(pl.DataFrame({"x": np.arange(n)}))
    made, half = DistinctCounter(), DistinctCounter()
    made.update(values[: n // 2])
    half.update(values[n // 3 :])
    made.merge(half)
    made.update(values)
    assert abs(made.count - n) <= 3 * ERROR * n


def test_copies_are_counted_exactly() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200_000, 300_000)
    made = RowSet()
    for part in np.array_split(x, 37):
        made.update(hashes(pl.DataFrame({"x": part})))
    assert made.rows == len(x)
    assert made.repeated == len(x) - len(np.unique(x))


def test_a_full_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.explore.distinct.SLOTS", 1 << 16)
    made = RowSet()
    for start in range(0, 90_000, 30_000):
        made.update(hashes(pl.DataFrame({"x": np.arange(start, start + 30_000)})))
    assert made.full
    made.update(hashes(pl.DataFrame({"x": np.arange(30_000)})))
    assert made.repeated == 30_000


@settings(deadline=None, max_examples=examples(60))
@given(
    st.lists(st.integers(0, 400), min_size=3, max_size=300),
    st.lists(st.integers(0, 300), max_size=3),
)
def test_order_and_gaps(hours: list[int], cuts: list[int]) -> None:
    made = TimeAxis()
    made.step, made._origin = HOUR, hours[0] * HOUR  # as a sample of neighbours settles it
    start = 0
    for stop in [*sorted(min(c, len(hours)) for c in cuts), len(hours)]:
        made.update(pl.Series(hours[start:stop], dtype=pl.Int64) * HOUR)
        start = stop
    there = sorted(set(hours))
    assert made.late == sum(h < max(hours[:i], default=h) for i, h in enumerate(hours))
    assert made.repeated == len(hours) - len(there)
    assert made.missing == there[-1] - there[0] + 1 - len(there)
    assert sum(gap.steps for gap in made.gaps()) == made.missing


@pytest.mark.parametrize(("off", "step"), [(3, HOUR), (4, 0)])
def test_a_step_that_most_rows_do_not_lie_at_is_none(off: int, step: int) -> None:
    made = TimeAxis()
    made.step, made._origin = HOUR, 0  # as a sample of neighbours settles it
    made.update(pl.Series([0, 0, HOUR * 5, *range(1, off + 1)]))
    made.close()
    assert (made.step, made.repeated, made.missing) == (step, *((1, 4) if step else (0, 0)))


def test_the_step_is_found() -> None:
    begin = datetime(2024, 1, 1)
    at = [begin + timedelta(minutes=5 * i) for i in range(2_000) if i not in (7, 8, 9, 1_500)]
    made = survey(pl.DataFrame({"at": at, "x": range(len(at))}))
    seen = times(made)
    assert seen is not None
    assert (seen.step, seen.missing, seen.late, seen.repeated) == (300.0, 4, 0, 0)
    assert seen.gaps == (("2024-01-01 00:35:00", 3), ("2024-01-06 05:00:00", 1))


TIMES: dict[str, tuple[dict[str, list[Any]], str | None]] = {
    "datetime": ({"at": [datetime(2024, 1, 1)]}, "at"),
    "text": ({"at": ["2024-01-01T10:00:00", "2024-01-01T11:00:00"]}, "at"),
    "date and hour": ({"day": ["2024-01-01"], "hour": ["6:00-6:59"]}, "day + hour"),
    "date": ({"day": ["2024-01-01"], "x": ["a"]}, "day"),
    "local date": ({"day": ["31.01.2024", "1.2.2024"], "hour": ["6:00", "7:00"]}, "day + hour"),
    "short local date": ({"day": ["31.01.24", "01.02.24"]}, "day"),
    "month first": ({"day": ["01/31/2024", "02/01/2024"]}, "day"),
    "day first": ({"day": ["31/01/2024", "01/02/2024"]}, "day"),
    "either first": ({"day": ["01/02/2024", "02/03/2024"]}, None),
    "versions": ({"day": ["1.2.34", "1.2.35"]}, None),
    "seconds": ({"timestamp": [1_700_000_000]}, "timestamp"),
    "milliseconds": ({"ts": [1_700_000_000_000]}, "ts"),
    "a number that is none": ({"time": [12]}, None),
    "words": ({"day": ["monday"]}, None),
}


@pytest.mark.parametrize("case", TIMES)
def test_a_time_is_told_by_its_columns(case: str) -> None:
    columns, name = TIMES[case]
    told = find_time(pl.DataFrame(columns))
    assert (told and told[0]) == name
    if told is not None:
        year = datetime.fromtimestamp(pl.DataFrame(columns).select(told[1]).item(0, 0) / 1e6)
        assert year.year in (2023, 2024)


@pytest.mark.parametrize(
    ("dates", "formats"),
    [
        (["31.01.2024", "01.02.2024", None], ("%d.%m.%Y",)),
        (["01/31/24", "02/01/24", None], ("%m/%d/%y",)),
        (["02-01-2024", "03-02-2024", None], ("%d-%m-%Y", "%m-%d-%Y")),
        (["31.01.2024", "x", "y"], ()),
    ],
)
def test_dates_as_people_write_them_are_told_with_what_reads_them(
    dates: list[str | None], formats: tuple[str, ...]
) -> None:
    """They are no categories; where the day or the month may be first, both are named."""
    times = [datetime(2024, 1, day) for day in (1, 2, 3)]
    frame = pl.DataFrame({"at": times, "my day": dates})
    made = found(frame)
    assert made.columns[1].date_formats == formats
    written = " or ".join(formats)
    said = f"Text that reads as dates, for a 'derive' stage to read, in 'my day' ({written})."
    assert (said in made.sentences) == bool(formats)
    alone = found(frame.drop("at"))
    told = "whether the day or the month comes first in 'my day' is not certain"
    assert any(told in s for s in alone.left_out) == (len(formats) > 1)
    if formats:
        (line,) = (s for s in made.suggestion.splitlines() if "my day" in s)
        (sql,) = tomllib.loads(line.partition("as in ")[2])["columns"].values()
        assert frame.select(pl.sql_expr(sql)).to_series()[0] == 1


@pytest.mark.parametrize(
    ("sql", "sentence"), [("nope +", "is no SQL expression"), ("x + 1", "expects a time or a date")]
)
def test_a_time_that_is_none_is_one_sentence(sql: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        as_time(pl.DataFrame({"x": [1]}), sql)


def test_memory_stays_with_the_rows() -> None:
    made = Survey({"x": pl.Float64()})
    for _ in range(60):
        made.update(pl.DataFrame({"x": np.random.default_rng(0).normal(size=5_000)}))
    assert SLICES // 2 <= len(made.slices) <= SLICES
    assert len({part.rows for part in made.slices[:-1]}) == 1
    assert made.columns["x"].counts is None


def test_nothing_much() -> None:
    empty = found(pl.DataFrame(schema={"x": pl.Float64, "t": pl.String}))
    assert empty.sentences == ("There are no rows.",)
    assert empty.suggestion == ""
    one = found(pl.DataFrame({"x": [1.5], "t": ["a"], "n": [None], "l": [[1, 2]]}))
    assert one.sentences == ("No value at all in 'n'.",)
    assert "The inside of column 'l' (list[int64])." in one.left_out


def test_the_suggestion_has_a_reason_for_each_stage() -> None:
    rng = np.random.default_rng(0)
    n = 2_000
    x = rng.normal(size=n)
    x[:20] = 1e3
    y = [None if i % 10 == 0 else float(i) for i in range(n)]
    frame = pl.DataFrame(
        {
            "x": x,
            "y": y,
            "amount": rng.exponential(size=n) ** 4,
            "kind": rng.choice(["a", "b", "c"], n),
            "id": [f"row {i}" for i in range(n)],
            "label": (np.arange(n) % 100 == 0).astype(int),
            "same": ["-"] * n,
        }
    )
    made = found(pl.concat([frame, frame[:5]]), target="label").suggestion
    import tomllib

    scrub = tomllib.loads(made)["scrub"]
    assert list(scrub) == [
        *("duplicates", "missing", "outliers", "power", "standardize", "categories")
    ]
    assert scrub["missing"] == {"columns": ["y"], "strategy": "median", "indicator": True}
    assert "x" in scrub["outliers"]["columns"]
    assert scrub["power"]["columns"] == ["amount"]
    assert scrub["categories"] == {"columns": ["kind"], "size": 8}
    for line in (
        '# left out: "id", nearly every row has its own value',
        '# left out: "label", the target',
        '# left out: "same", it does not vary',
        "# [train.sampling]",
    ):
        assert line in made


def test_values_that_are_too_many_are_not_listed() -> None:
    frame = pl.DataFrame({"t": [f"{i}" for i in range(VALUES + 1)]})
    (column,) = found(frame).columns
    assert (column.exact, column.top) == (False, ())
    assert abs(column.distinct - VALUES - 1) <= 3
    assert column.reads


KINDS: dict[str, pl.Series] = {
    "above 63 bits": pl.Series([2**63 + 5, 2**64 - 1, None], dtype=pl.UInt64),
    "128 bits": pl.Series([2**100, -(2**100), None], dtype=pl.Int128),
    "decimal": pl.Series(["1.10", "99999999999999999999.25", None]).cast(pl.Decimal(30, 2)),
    "narrow": pl.Series([-128, 127, None], dtype=pl.Int8),
    "nothing": pl.Series([None, None, None]),
    "bool": pl.Series([True, False, None]),
    "bytes": pl.Series([b"a", b"\xff", None]),
    "enum": pl.Series(["a", "b", None], dtype=pl.Enum(["a", "b"])),
    "list": pl.Series([[1], [2, 3], None]),
    "struct": pl.Series([{"a": 1}, {"a": 2}, None]),
    "duration": pl.Series([timedelta(1), timedelta(2), None]),
    "nanoseconds": pl.Series([1, 2, None]).cast(pl.Datetime("ns", "UTC")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_looked_at(kind: str) -> None:
    column = found(KINDS[kind].alias("x").to_frame()).columns[0]
    nested = KINDS[kind].dtype.is_nested()
    assert column.missing == KINDS[kind].null_count()
    assert column.distinct == (0 if nested else KINDS[kind].drop_nulls().n_unique())


def test_whole_numbers_hash_by_value_whatever_their_width() -> None:
    values = [0, 1, 127]
    narrow = hashes(pl.DataFrame({"x": pl.Series(values, dtype=pl.UInt8)}))
    for kind in (pl.Int16, pl.UInt32, pl.Int64, pl.UInt64):
        assert (hashes(pl.DataFrame({"x": pl.Series(values, dtype=kind)})) == narrow).all()


def test_a_digest_is_asked_as_often_for_many_columns_as_for_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It answers for all columns at once: asked for each, work grows with their square."""
    asked: list[int] = []
    quantile = Quantiles.quantile

    def counting(self: Quantiles, *q: float) -> Any:
        asked.append(len(self.low))
        return quantile(self, *q)

    monkeypatch.setattr(Quantiles, "quantile", counting)
    rng = np.random.default_rng(0)
    calls = []
    for columns in (2, 40):
        asked.clear()
        found(pl.DataFrame({f"x{i}": rng.normal(size=600) for i in range(columns)}))
        calls.append(len(asked))
    assert calls[0] == calls[1]


def test_numbers_that_name_things_are_no_features() -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "number": np.arange(10_001, 10_201),
            "user_id": rng.integers(0, 50, 200),
            "customerId": rng.integers(0, 50, 200),
            "zip": [f"{i:05}" for i in rng.integers(0, 100, 200)],
            "paid": rng.integers(0, 1_000, 200),
            "height": rng.normal(size=200),
        }
    )
    told = found(frame)
    (keys,) = (s for s in told.sentences if s.startswith("Numbers that name things"))
    assert "'number' (it counts the rows)" in keys
    assert "'user_id' (its name" in keys
    assert "'customerId'" in keys
    assert "paid" not in keys
    assert 'columns = ["paid", "height"]' in told.suggestion
    assert "zip" not in "".join(s for s in told.sentences if "reads as numbers" in s)
    assert 'columns = ["zip"]' in told.suggestion  # a category


def test_text_that_reads_as_numbers_is_said_where_nothing_is_lost() -> None:
    told = found(pl.DataFrame({"x": ["1", "2.5", "0", "0.5", "-3"]}))
    assert any("reads as numbers" in s and "'x'" in s for s in told.sentences)


def test_types_are_named_as_a_pipeline_file_does_and_a_label_is_no_feature() -> None:
    times = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 1, 2), "1h", eager=True)
    n = len(times)
    frame = pl.DataFrame(
        {
            "at": times, "paid": times.reverse().alias("paid"), "a": [float(i) for i in range(n)],
            "y": [i / 2 for i in range(n)], "Label": ["yes", "no"] * (n // 2) + ["no"],
        }
    )  # fmt: skip
    made = found(frame)
    assert [column.kind for column in made.columns] == [
        "datetime", "datetime", "float64", "float64", "string",
    ]  # fmt: skip
    text = suggestion(made)
    assert '"paid", a time: a [scrub.derive]' in text
    scrub = tomllib.loads(text)["scrub"]
    named = {column for table in scrub.values() for column in table.get("columns", ())}
    assert named <= {"a"}
    assert "[model] target" in text


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([["a"], ["b", "c"]], 'a [scrub.tokens] with columns = ["x"], and then [model] sparse'),
        ([[1], [2, 3]], "[scrub.tokens]"),
        ([[1.5], [2.0]], 'lists of numbers: [model] ragged or padded = ["x"]'),
        ([{"a": 1, "b": 2}] * 2, '[source.paths] makes columns of what is in it, as in "x_a" ='),
        ([b"\xff", b"\xfe"], "[scrub.image]"),
        ([[[1]], [[2]]], "no stage makes features of list[list[int64]]"),
    ],
)
def test_what_makes_features_of_lists_and_objects_is_named(values: list[Any], said: str) -> None:
    assert said in suggestion(found(pl.DataFrame({"x": values, "z": [1.5, 2.5]})))


@pytest.mark.parametrize(
    ("values", "special", "numbers"),
    [
        (["1,100.50", "7", "1,000,000"], "with a comma between thousands", [1100.5, 7, 1e6]),
        (["1.100,50", "7", "-2.000"], "with a point between thousands", [1100.5, 7, -2000]),
        (["1,5", "7", "12,25"], "with a decimal comma", [1.5, 7, 12.25]),
        (["1 100,5", "7", "2 000"], "with a space between thousands", [1100.5, 7, 2000]),
        (["1'100.5", "7", "2'000"], "with an apostrophe between thousands", [1100.5, 7, 2000]),
        (["5%", "7.5 %", "0,5%"], "in percent", [0.05, 0.075, 0.005]),
        (
            ["1.101,50 \u20ac", "\u20ac 7", "-2.000 EUR"],
            "in a currency, with a point",
            [1101.5, 7, -2000],
        ),
        (["$1,100.50", "-$7", "USD 2"], "in a currency, with a comma", [1100.5, -7, 2]),
        (["1.101 \u20ac", "7 \u20ac", "802 \u20ac"], "in a currency, with a point", [1101, 7, 802]),
        (["CHF 1'100.50", "CHF 7", "2"], "in a currency, with an apostrophe", [1100.5, 7, 2]),
        (["1 100,50\u00a0\u20ac", "7 \u20ac", "2"], "in a currency, with a space", [1100.5, 7, 2]),
        (["EUR", "7 \u20ac", "x"], "", []),
        (["1.5", "2", "3"], "", []),
        (["a", "b,c", "1,100"], "", []),
        ([None, None, None], "", []),
    ],
)
def test_numbers_that_no_cast_reads_are_told_with_what_reads_them(
    values: list[str | None], special: str, numbers: list[float]
) -> None:
    frame = pl.DataFrame({"my x": pl.Series(values, dtype=pl.String), "z": [1.5, 2.5, 3.5]})
    made = found(frame)
    assert special in made.columns[0].special
    assert bool(made.columns[0].special) == bool(special)
    told = hint("my x", frame["my x"], null_values=True)
    assert (told is None) == (not special)
    if told is not None:
        assert any("'my x'" in s and special in s for s in made.sentences)
        columns = tomllib.loads(made.columns[0].reader)
        assert f"{{ {made.columns[0].reader} }}" in made.suggestion
        assert made.columns[0].reader in told
        stage = Derive("derive", Derive.Settings(columns=columns))
        bare = frame.with_columns(_partition=pl.lit("p"), _position=pl.int_range(3))
        stage.bind(dict(frame.schema))
        batch = Batch(frame=bare, mark=Mark(), arrived=0.0, raw_rows=3)
        assert stage.apply(batch).frame["my x"].to_list() == pytest.approx(numbers)


@pytest.mark.parametrize(
    ("values", "words", "special"),
    [
        (["61,9", "---", "62,0", "---", "5,5"], {"---": 2}, "with a decimal comma"),
        (["1.013,2", "n/a", "1.012,8", "?", "7"], {"n/a": 1, "?": 1}, "with a point between"),
        (["1.5", "none", "2", "3"], {"none": 1}, ""),
        (["1,5"] * 199 + ["1-2"], {}, "with a decimal comma"),
        (["1.5"] * 199 + ["1-2"], {}, ""),
    ],
)
def test_what_is_no_number_among_numbers_is_named(
    values: list[str], words: dict[str, int], special: str
) -> None:
    frame = pl.DataFrame({"x": values, "z": [float(i) for i in range(len(values))]})
    made = found(frame)
    column = made.columns[0]
    said = f"null_values = {json.dumps(list(words))}" if words else "but for 1 value that is none"
    told = hint("x", frame["x"], null_values=True)
    for text in (column.but, made.suggestion, told, " ".join(made.sentences)):
        assert text is not None
        assert said in text
        assert all(f"{word!r} in {n} row" in text for word, n in words.items())
    assert special in column.special
    if special:
        (sql,) = tomllib.loads(column.reader).values()
        read = frame.select(pl.sql_expr(sql)).to_series()
        assert read.null_count() == (sum(words.values()) or 1)


@pytest.mark.parametrize(("kind", "hour"), [("datetime", " 10:00:00"), ("date", "")])
def test_a_word_among_times_is_told(kind: str, hour: str) -> None:
    times = [f"2024-01-{day:02}{hour}" for day in (*range(1, 9), 8)]
    made = found(pl.DataFrame({"x": [*times[:4], "not a date", *times[4:]], "y": [*times, None]}))
    said = f"Text that reads as {kind}, to be declared so in [source.schema], in 'x' but for"
    assert [s for s in made.sentences if s.startswith("Text that reads")] == [
        f"{said} 'not a date' in 1 row: [source] null_values = [\"not a date\"] reads words as "
        "missing."
    ]
    assert f'declare it "{kind}" in [source.schema]' in made.suggestion


def test_the_only_times_that_are_text_are_no_axis_and_it_is_told() -> None:
    made = found(
        pl.DataFrame({"x": ["2024-01-01 10:00", "2024-01-02 10:00", "2024-01-03 10:00", "?"]})
    )
    said = "Order and gaps in time: not all of 'x' reads as a time; --time says what it is."
    assert said in made.left_out


@pytest.mark.parametrize(("text", "point"), [("1.5", "."), ("1,5", ",")])
def test_a_source_that_reads_the_numbers_needs_no_stage_for_them(text: str, point: str) -> None:
    column = pl.Series([text] * 199 + ["broken"])
    assert hint("x", column, null_values=True, decimal=point) == (
        "'x' is text: numbers but for 'broken' in 1 row: [source] null_values = [\"broken\"] reads "
        'words as missing; with "x" = "float64" in [source.schema] such rows are rejected.'
    )


@pytest.mark.parametrize(
    ("values", "point", "special"),
    [
        (["16.741", "802"], ",", "with a point between thousands"),
        (["16.741"] * 199 + ["1.234.567"], ".", "with a point between thousands"),
        (["1,234.5", "802"], ",", "with a comma between thousands"),
        (["7"] * 199 + ["0,5"], ".", "with a decimal comma"),
        (["7"] * 199 + ["1,234"], ".", "with a comma between thousands"),
    ],
)
def test_the_notation_is_that_of_most_values_and_of_the_decimal_point(
    values: list[str], point: str, special: str
) -> None:
    """Of values that fit several notations, those with the source's decimal point apply."""
    seen = Survey({"x": pl.String()}, decimal=point)
    seen.update(pl.DataFrame({"x": values, "_partition": "p", "_position": range(len(values))}))
    seen.close()
    (column,) = column_profiles(seen)
    assert column.special.startswith(special)
    assert not column.but
    told = hint("x", pl.Series(values), null_values=True, decimal=point)
    assert told is not None
    assert special in told


@pytest.mark.parametrize("values", [["a", "b", "1"], ["---", "---", "1,5"], ["007", "x", "008"]])
def test_texts_are_no_numbers_with_gaps(values: list[str]) -> None:
    frame = pl.DataFrame({"x": values, "z": [1.5, 2.5, 3.5]})
    assert not found(frame).columns[0].but
    assert not hint("x", frame["x"], null_values=True)


def test_words_for_true_and_false_are_told() -> None:
    frame = pl.DataFrame({"x": ["Ja", "Nein", "Ja"], "y": ["ja", "oui", "ja"], "z": [1.5, 2, 3]})
    (said,) = [s for s in found(frame).sentences if "true and false" in s]
    assert "'x' ('Ja', 'Nein')" in said
    assert "'y'" not in said


def test_rows_with_other_lists_are_no_copies() -> None:
    """Of whatever type the columns are: every value counts, also in the middle of a long list."""
    n = 300
    long = [[0.0] * 150 + [float(i)] + [0.0] * 150 for i in range(n)]
    columns: dict[str, Any] = {
        "lists": [[i] for i in range(n)],
        "long": long,
        "texts": [["same", str(i), None] for i in range(n)],
        "objects": [{"a": {"b": i}} for i in range(n)],
        "arrays": pl.Series([[1.0, i] for i in range(n)], dtype=pl.Array(pl.Float64, 2)),
        "bytes": [b"x" * 200 + bytes([i // 256, i % 256]) + b"x" * 200 for i in range(n)],
    }
    for name, values in columns.items():
        frame = pl.DataFrame({name: values, "y": [i % 2 == 0 for i in range(n)]})
        made = found(frame)
        assert made.repeated == 0, name
        assert "duplicates" not in made.suggestion
        twice = pl.concat([frame, frame.head(30)])
        assert survey(twice, [101, 250]).seen.repeated == 30, name


def test_no_stage_is_suggested_that_would_leave_little() -> None:
    frame = pl.DataFrame({"x": [i % 4 * 1.5 for i in range(1_000)], "y": [True, False] * 500})
    made = found(frame)
    assert made.repeated == 996
    assert "duplicates" not in made.suggestion
    few = pl.concat([pl.DataFrame({"x": np.arange(900) * 1.5}), pl.DataFrame({"x": [0.0] * 100})])
    assert '[scrub.duplicates] # 100 rows are copies\nby = ["x"]' in found(few).suggestion


def test_no_more_values_differ_than_there_are() -> None:
    for n in (5_000, 20_000):
        for seed in range(3):
            x = np.random.default_rng(seed).normal(size=n)
            frame = pl.DataFrame({"x": [*x, None], "t": [*map(str, x), None]})
            assert all(c.distinct <= n for c in found(frame).columns)


def test_words_among_numbers_are_left_to_a_stage_where_the_source_knows_none() -> None:
    texts = pl.Series(["1.5", "2", "NA", "4"] * 5)
    told = hint("x", texts, null_values=True)
    assert told is not None
    assert '[source] null_values = ["NA"]' in told
    staged = hint("x", texts, null_values=False)
    assert staged is not None
    assert "null_values" not in staged
    assert "TRY_CAST" in staged
    seen = Survey({"x": pl.String()}, null_values=False)
    seen.update(pl.DataFrame({"x": texts, "_partition": "p", "_position": range(20)}))
    seen.close()
    (column,) = column_profiles(seen)
    assert "null_values" not in column.but
    assert "TRY_CAST" in column.reader


# ----------------------------------------------------------------------------------- the too large


def test_the_largest_numbers_are_the_ends_and_are_told() -> None:
    findings = found(pl.DataFrame({"x": [1.0, 2.0, 3.0, 1e150, -1.7e308, None, float("inf")]}))
    (x,) = findings.columns
    assert (x.quantiles[0], x.quantiles[-1]) == (-1.7e308, 1e150)
    assert (x.too_large, x.infinite, x.missing) == (2, 1, 1)
    assert x.mean == 2.0
    assert "Numbers are too large to learn from, 1e+140 or more, in 'x' (2 rows)." in (
        findings.sentences
    )
    assert '[scrub.outliers] # about 3 in "x"' in findings.suggestion


@pytest.mark.parametrize("size", [1e200, 1e300])
def test_a_column_of_numbers_that_are_too_large_is_in_no_stage(size: float) -> None:
    findings = found(pl.DataFrame({"x": [size * i for i in (1, 2, 3, 4)], "z": [1, 5, 9, 4]}))
    x, _ = findings.columns
    assert (x.too_large, x.mean) == (4, None)
    assert '# left out: "x", too large to learn from' in findings.suggestion
    assert 'columns = ["z"]' in findings.suggestion
    assert '"x"' not in findings.suggestion.partition("\n\n")[2]


@settings(deadline=None, max_examples=examples(30))
@given(st.sampled_from([1.0, 1e100, 1e139, 1e-60]), st.sampled_from([1.0, 1e100, 1e139, 1e-60]))
def test_correlations_do_not_depend_on_the_scale(a: float, b: float) -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=200)
    y = x + rng.normal(size=200)
    _, ((_, got), _) = related(survey(pl.DataFrame({"x": x * a, "y": y * b})))
    assert got == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-9)
