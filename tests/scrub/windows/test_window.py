"""Windows of a key, against the definition of them, row by row."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.hashing import hashes
from engine.scrub.windows.kernels import ARENA, KEYS, LOWER
from engine.types import Batch
from tests.scrub.windows.reference import NAMES, Reference, Row, close
from tests.size import examples

INF, NAN = math.inf, math.nan
Run = Callable[..., list[Batch]]
Make = Callable[..., Any]
SCHEMA = {"k": pl.String(), "t": pl.Int64(), "x": pl.Float64()}
FADING = tuple(name for name in NAMES if name not in ("min", "max", "distinct"))
SMALL: dict[str, Any] = {
    "sliding": {"length": [6, 15], "resolution": 1},
    "ties": {"length": 7, "resolution": 1, "ties": False},
    "panes": {"length": [12, 24], "resolution": 3},
    "tumbling": {"shape": "tumbling", "length": 12, "resolution": 3},
    "session": {"shape": "session", "gap": 3},
    "session panes": {"shape": "session", "gap": 6, "resolution": 2},
    "fading": {"shape": "fading", "halflife": 5},
}


@pytest.fixture
def folding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bases are made often, each in a few batches, and pieces of the log are short."""
    monkeypatch.setattr("engine.scrub.windows.state.MIN_LOG_BYTES", 0)
    monkeypatch.setattr("engine.scrub.windows.state.CHUNK_ROWS", 7)
    monkeypatch.setattr("engine.scrub.windows.state.STEPS", 3)
    monkeypatch.setattr("engine.scrub.windows.state.MIN_STEP", 1)


def expected(options: dict[str, Any]) -> Reference:
    own = dict(options)
    lengths = next(own.pop(k) for k in ("length", "gap", "halflife") if k in own)
    lengths = lengths if isinstance(lengths, list) else [lengths]
    names = FADING if options.get("shape") == "fading" else NAMES
    return Reference(lengths=lengths, names=names, **own)


def built(stage: Make, options: dict[str, Any]) -> Any:
    names = list(FADING if options.get("shape") == "fading" else NAMES)
    made = stage("window", by=["k"], time="t", aggregates={"x": names}, **options)
    made.bind(SCHEMA)
    return made


def check(reference: Reference, rows: list[Row], frame: pl.DataFrame) -> None:
    """Raises: AssertionError where a row does not see what it should."""
    for i, row in enumerate(rows):
        seen = reference.see(row)
        for number, length in enumerate(reference.lengths):
            for name in reference.names:
                ours = frame[f"x_{name}_{length}"][i]
                theirs = None if seen is None else seen[number][name]
                assert close(ours, theirs), (i, row, name, length, ours, theirs)


def timed(steps: list[Row]) -> list[Row]:
    """Rows of steps in time: those of 1 to 9 move it on; less is late, more is far ahead."""
    now, rows = 0, []
    for key, step, x in steps:
        if step is not None and 0 < step < 10:
            now, step = now + step, 0
        rows.append((key, None if step is None else now + step, x))
    return rows


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "a", "a", "b", "c", None]),
        st.integers(-4, 9) | st.sampled_from([None, -30, 60]),
        st.sampled_from([1.0, -2.5, 3.0, 0.5, 8.0, NAN, None]),
    ),
    max_size=40,
)  # fmt: skip


@pytest.mark.usefixtures("folding")
@pytest.mark.parametrize("case", SMALL)
@settings(max_examples=examples(15), deadline=None)
@given(
    steps=ROWS,
    wild=st.booleans(),
    own=st.booleans(),
    late=st.integers(0, 3),
    keys=st.sampled_from([1, 2, 100]),
    panes=st.sampled_from([3, 8, 1000]),
    cuts=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=12),
)
def test_it_is_its_definition_for_every_cut(
    stage: Make, batch: Make, case: str, steps: list[Row], wild: bool, own: bool, late: int,
    keys: int, panes: int, cuts: list[tuple[int, bool]],
) -> None:  # fmt: skip
    """And resumes from its snapshot after some batches; the same bits as in one batch. The stream
    may begin with a wild time."""
    options = SMALL[case] | {"own": own, "lateness": late, "keys": keys, "panes": panes}
    rows = [("a", 1_000, 2.0)] * wild + timed(steps)
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    whole = built(stage, options).apply(batch(frame))
    made = built(stage, options)
    done, at = [], 0
    for size, resumed in [*cuts, (len(rows), False)]:
        done.append(made.apply(batch(frame.slice(at, size))))
        at += size
        if not resumed:
            continue
        snapshot = made.snapshot()
        made = built(stage, options)
        made.restore(snapshot)
    cut = pl.concat([part.frame for part in done])
    assert cut.drop("_position").equals(whole.frame.drop("_position"))
    reference = expected(options)
    check(reference, rows, whole.frame)
    assert {name: whole.counts["s", name] for name in reference.counts} == reference.counts
    totals = {name: sum(part.counts["s", name] for part in done) for name in reference.counts}
    assert totals == reference.counts


LONG: dict[str, dict[str, Any]] = {
    "sliding": {"length": [40, 150], "resolution": 1, "lateness": 25},
    "panes": {"length": [60, 200], "resolution": 2, "lateness": 31, "panes": 90},
    "many rows of a pane": {"length": [70, 210], "resolution": 7, "lateness": 14},
    "tumbling": {"shape": "tumbling", "length": 120, "resolution": 1, "lateness": 60},
    "session": {"shape": "session", "gap": 25, "lateness": 80},
    "fading": {"shape": "fading", "halflife": 40, "lateness": 70, "own": True},
}
"""Windows of more panes than are summed up one by one."""


@pytest.mark.usefixtures("folding")
@pytest.mark.parametrize("case", LONG)
def test_long_windows_are_their_definition_for_every_cut(
    stage: Make, batch: Make, case: str
) -> None:
    """With late rows, of which some are later than promised, and a snapshot after each batch."""
    rng = np.random.default_rng(11)
    n = 400
    times = np.arange(n) - np.where(rng.random(n) < 0.2, rng.integers(0, 90, n), 0)
    times[300:] += 30
    keys = np.where(rng.random(n) < 0.8, "a", "b")
    each = zip(keys, times, rng.normal(size=n), strict=True)
    rows: list[Row] = [(str(k), int(t), x) for k, t, x in each]
    frame = pl.DataFrame(rows, schema=SCHEMA, orient="row")
    whole = built(stage, LONG[case]).apply(batch(frame)).frame
    check(expected(LONG[case]), rows, whole)
    made, done = built(stage, LONG[case]), []
    for part in frame.iter_slices(37):
        done.append(made.apply(batch(part)).frame)
        snapshot = made.snapshot()
        made = built(stage, LONG[case])
        made.restore(snapshot)
    assert pl.concat(done).drop("_position").equals(whole.drop("_position"))


EXAMPLES: dict[str, tuple[dict[str, Any], list[int | None], list[Any], dict[str, list[Any]]]] = {
    "the row itself is not seen, and the window is open where it begins": (
        {"length": 10}, [0, 4, 10, 13], [1, 2, 4, 8], {"sum": [0, 1, 2, 6]},
    ),
    "own": ({"length": 10, "own": True}, [0, 4, 10], [1, 2, 4], {"sum": [1, 3, 6]}),
    "earlier ties are seen": ({"length": 10}, [5, 5, 5], [1, 2, 4], {"sum": [0, 1, 3]}),
    "ties = false": (
        {"length": 10, "ties": False}, [4, 5, 5, 5], [1, 2, 4, 8], {"sum": [0, 1, 1, 1]},
    ),
    "panes begin on multiples of the resolution": (
        {"length": 20, "resolution": 10},
        [-1, 0, 9, 10, 19, 20, 29],  # panes -1, 0, 0, 1, 1, 2, 2: each sees two
        [1, 2, 4, 8, 16, 32, 64],
        {"sum": [0, 1, 3, 6, 14, 24, 56]},
    ),
    "a late row sees its own past only, and counts for later rows": (
        {"length": 10, "lateness": 5}, [0, 8, 4, 9, 13], [1, 2, 4, 8, 16],
        {"sum": [0, 1, 1, 7, 14]},
    ),
    "a later row than promised sees what is remembered": (
        {"length": 10, "lateness": 2}, [0, 30, 21, 20, 30], [1, 2, 4, 8, 16],
        {"sum": [0, 0, 0, 0, 6]},
    ),
    "one time far ahead does not take the others' past": (
        {"length": 10, "lateness": 2}, [0, 1000, 1, 2], [1, 2, 4, 8], {"sum": [0, 0, 1, 5]},
    ),
    "nor their distinct values": (
        {"length": 10, "lateness": 2}, [0, 1 << 40, 1, 2], [1, 2, 4, 8], {"distinct": [0, 0, 1, 2]},
    ),
    "an empty window": (
        {"length": 5}, [0, 50], [1, 2],
        {"count": [0, 0], "sum": [0, 0], "rate": [0, 0], "mean": [None] * 2, "min": [None] * 2,
         "max": [None] * 2, "last": [None] * 2, "time_since": [None] * 2, "ratio": [None] * 2,
         "deviation": [None] * 2, "distinct": [0, 0]},
    ),
    "a deviation needs two rows": (
        {"length": 9}, [0, 1, 2, 3], [1, 3, 5, 7], {"deviation": [None, None, math.sqrt(2), 2]},
    ),
    "null and NaN do not count, but their rows see": (
        {"length": 9}, [0, 1, 2, 3], [None, 5, NAN, None],
        {"count": [0, 0, 1, 1], "last": [None, None, 5, 5], "ratio": [None] * 4,
         "time_since": [None, None, 1, 2]},
    ),
    "infinities count, and leave again": (
        {"length": 4}, [0, 1, 2, 3, 8], [INF, -INF, 1, 2, 3],
        {"sum": [0, INF, NAN, NAN, 0], "max": [None, INF, INF, INF, None],
         "min": [None, INF, -INF, -INF, None], "count": [0, 1, 2, 3, 0]},
    ),
    "nothing is subtracted": (
        {"length": 4}, [0, 1, 2, 5, 6], [1e17, 0.1, 0.2, 0.3, 0.4],
        {"sum": [0, 1e17, 1e17, 0.2, 0.3]},
    ),
    "a row without a time sees and leaves nothing": (
        {"length": 9}, [0, None, 1], [1, 2, 4], {"count": [0, None, 1], "sum": [0, None, 1]},
    ),
    "distinct": (
        {"length": 10}, [0, 1, 2, 3, 4, 12], [7, 7, 8, None, NAN, 7],
        {"distinct": [0, 1, 1, 2, 2, 0]},
    ),
    "distinct, own": (
        {"length": 10, "own": True}, [0, 1, 2, 20], [7, 7, 8, None], {"distinct": [1, 1, 2, 0]},
    ),
    "distinct of a session": (
        {"shape": "session", "gap": 3}, [0, 3, 6, 10, 11], [1, 2, 2, 4, 4],
        {"distinct": [0, 1, 2, 0, 1]},
    ),
    "windows of more than 32 bits of panes": (
        {"length": 1 << 40, "resolution": 1}, [0, 1 << 33, 1 << 34, 1 << 41], [1, 2, 3, 4],
        {"sum": [0, 1, 3, 0], "distinct": [0, 1, 2, 0]},
    ),
    "times apart by more than 32 bits of panes": (
        {"length": 9, "idle": 1 << 40, "ahead": 1 << 40}, [0, 1, 1 << 33, (1 << 33) + 1],
        [1, 2, 3, 4], {"sum": [0, 1, 0, 3], "distinct": [0, 1, 0, 1]},
    ),
    "tumbling": (
        {"shape": "tumbling", "length": 10}, [3, 9, 10, 19, 20], [1, 2, 4, 8, 16],
        {"sum": [0, 1, 0, 4, 0]},
    ),
    "session": (
        {"shape": "session", "gap": 3}, [0, 3, 6, 10, 11], [1, 2, 4, 8, 16],
        {"sum": [0, 1, 3, 0, 8]},
    ),
    "a late row joins two sessions": (
        {"shape": "session", "gap": 3, "lateness": 5}, [0, 6, 3, 6], [1, 2, 4, 8],
        {"sum": [0, 0, 1, 7]},
    ),
    "fading": (
        {"shape": "fading", "halflife": 2}, [0, 2, 4, 8], [8, 8, 8, 8],
        {"sum": [0, 4, 6, 3.5], "count": [0, 0.5, 0.75, 0.4375], "mean": [None, 8, 8, 8]},
    ),
}  # fmt: skip
"""What is shown -> settings, times, values, and what the rows see."""


@pytest.mark.parametrize("case", EXAMPLES)
def test_examples(run: Run, case: str) -> None:
    options, times, values, seen = EXAMPLES[case]
    settings_ = {"time": "t", "aggregates": {"x": list(seen)}, **options}
    (done,) = run(
        "window", settings_, {"t": times, "x": [None if v is None else float(v) for v in values]}
    )
    for name, expected_values in seen.items():
        (column,) = [c for c in done.frame.columns if c.startswith(f"x_{name}_")]
        for ours, theirs in zip(done.frame[column], expected_values, strict=True):
            assert close(ours, theirs), (name, done.frame[column].to_list(), expected_values)


@pytest.mark.parametrize("each", [1, 200])
@pytest.mark.parametrize("place", [0, 1, 20])
@pytest.mark.parametrize("wrong", [10**9, -(10**6)])
@pytest.mark.parametrize("case", SMALL)
def test_a_wrong_time_takes_no_other_row_its_past(
    stage: Make, batch: Make, case: str, wrong: int, place: int, each: int
) -> None:
    """Also where it is all that is known, and of its own key; silent keys are forgotten as if it
    were not there."""
    options = SMALL[case] | {"lateness": 2, "idle": 50, "ahead": 60}
    rng, now, rows = np.random.default_rng(7), 0, []
    for n in range(200):
        now += int(rng.integers(0, 3))
        rows.append((f"k{n // 50 * 3 + rng.integers(3)}", now - int(rng.integers(0, 4)), float(n)))
    spoilt = [*rows[:place], (rows[place + 1][0], wrong, None), *rows[place:]]
    clean, other = built(stage, options), built(stage, options)
    seen, counted = [], []
    for made, given_rows in ((clean, rows), (other, spoilt)):
        frame = pl.DataFrame(given_rows, schema=SCHEMA, orient="row")
        done = [made.apply(batch(part)) for part in frame.iter_slices(each)]
        seen.append(pl.concat([part.frame for part in done]))
        totals = {"late": 0, "ahead": 0, "forgotten": 0, "no_time": 0}
        for part in done:
            for (_, what), n in part.counts.items():
                totals[what] += n
        counted.append(totals)
    left = pl.concat([seen[1].head(place), seen[1].slice(place + 1)])
    for c in left.columns:
        if c != "_position":
            assert left[c].to_list() == seen[0][c].to_list(), c
    assert counted[1]["ahead"] == 1 if wrong > 0 else counted[1]["late"] <= counted[0]["late"] + 1
    if wrong > 0:
        assert counted[1] == counted[0] | {"ahead": 1}
    keys = [int(made._state._memory.registers[KEYS]) for made in (clean, other)]
    assert keys[0] == keys[1] < 12


def test_it_is_what_polars_rolls_over_the_finished_rows(stage: Make, batch: Make) -> None:
    """Exact and in order, with one time a row, closed at the right, the own row taken out."""
    rng = np.random.default_rng(5)
    n = 4_000
    frame = pl.DataFrame(
        {
            "k": rng.choice(["a", "b", "c"], n), "t": np.cumsum(rng.integers(1, 9, n)),
            "x": rng.normal(100, 10, n) * np.where(rng.random(n) < 0.01, 1e9, 1),
        }
    )  # fmt: skip
    names = ["count", "sum", "mean", "min", "max", "deviation"]
    made = stage("window", by=["k"], time="t", length=500, resolution=1, aggregates={"x": names})
    made.bind(dict(frame.schema))
    ours = pl.concat([made.apply(batch(part)).frame for part in frame.iter_slices(700)])
    past = pl.col("x").head(pl.len() - 1)
    theirs = frame.rolling("t", period="500i", group_by="k").agg(
        past.count().alias("count"), past.sum().alias("sum"), past.mean().alias("mean"),
        past.min().alias("min"), past.max().alias("max"), past.std().alias("deviation"),
    ).sort("t")  # fmt: skip
    for name in names:
        a, b = ours[f"x_{name}_500"], theirs[name]
        assert a.is_null().equals(b.is_null()), name
        gaps = a.is_null()
        np.testing.assert_allclose(a.filter(~gaps), b.filter(~gaps), rtol=1e-9)


def test_memory_is_bounded_by_keys_and_by_time(stage: Make, batch: Make) -> None:
    """Endless new keys: memory and state stay as they are."""
    made = stage("window", by=["k"], time="t", length=50, aggregates={"x": ["sum"]}, keys=300)
    made.bind({"k": pl.Int64(), "t": pl.Int64(), "x": pl.Float64()})
    sizes, used = [], []
    for start in range(0, 200_000, 1_000):
        rows = np.arange(start, start + 1_000)
        done = made.apply(batch(k=rows.tolist(), t=(rows // 10).tolist(), x=[1.0] * 1_000))
        memory = made._state._memory
        sizes.append([len(array) for array in (*memory.cells, *memory[1:])])
        used.append(int(memory.registers[ARENA]))
    assert done.counts["s", "forgotten"] == 1_000
    assert sizes[-1] == sizes[0]
    assert len(set(used[20:])) == 1
    assert used[-1] < 2_000


def test_a_key_of_one_pane_takes_little_more_than_100_bytes(stage: Make, batch: Make) -> None:
    """Its record, its places in the hash table and in the queue, and its entry of 16 bytes."""
    n = 90_000
    made = stage(
        "window", by=["k"], time="t", length=10, resolution=10, aggregates={"x": ["sum"]},
        keys=2 * n,
    )  # fmt: skip
    made.bind({"k": pl.Int64(), "t": pl.Int64(), "x": pl.Float64()})
    rows = pl.DataFrame({"k": np.arange(n), "t": np.zeros(n, np.int64), "x": np.ones(n)})
    for now in range(0, 60, 10):
        for part in rows.with_columns(t=pl.lit(now)).iter_slices(10_000):
            made.apply(batch(part))
    assert made._state.panes == n
    assert made._state.nbytes < 115 * n


def test_keys_come_and_go_while_bases_are_made(
    stage: Make, batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all memory grows meanwhile: each row sees the same, resumed too."""
    rng = np.random.default_rng(4)
    n = 6_000
    keys = (rng.random(n) ** 3 * np.linspace(50, 2_500, n)).astype(np.int64)
    frame = pl.DataFrame({"k": keys, "t": np.arange(n) // 4, "x": rng.normal(size=n)})

    def build() -> Any:
        made = stage(
            "window", by=["k"], time="t", length=700, lateness=9, keys=1_100,
            aggregates={"x": ["sum", "count", "last"]},
        )  # fmt: skip
        made.bind(dict(frame.schema))
        return made

    whole = build().apply(batch(frame))
    assert whole.counts["s", "forgotten"] > 100
    for name, small in {"MIN_LOG_BYTES": 0, "RESERVED": 0, "CHUNK_ROWS": 64, "STEPS": 8}.items():
        monkeypatch.setattr(f"engine.scrub.windows.state.{name}", small)
    made, done = build(), []
    for i, part in enumerate(frame.iter_slices(50)):
        done.append(made.apply(batch(part)).frame)
        if i == 70:
            snapshot = made.snapshot()
            made = build()
            made.restore(snapshot)
    assert pl.concat(done).drop("_position").equals(whole.frame.drop("_position"))


def test_states_of_other_keys_are_merged(stage: Make, batch: Make) -> None:
    """As an engine that takes over another's partitions does."""
    rng = np.random.default_rng(3)
    frame = pl.DataFrame(
        {"k": rng.choice(list("abcd"), 400), "t": np.arange(400), "x": rng.normal(size=400)}
    )
    options = {
        "by": ["k"], "time": "t", "length": 90, "lateness": 9, "ahead": 1_000,
        "aggregates": {"x": ["sum", "time_since"]},
    }  # fmt: skip
    whole, one, two = (stage("window", **options) for _ in range(3))
    for made in (whole, one, two):
        made.bind(dict(frame.schema))
    early, late = frame.head(300), frame.tail(100)
    whole.apply(batch(early))
    one.apply(batch(early.filter(pl.col("k") < "c")))
    two.apply(batch(early.filter(pl.col("k") >= "c")))
    one.merge(two.snapshot())
    expected_rows, rows = (made.apply(batch(late)).frame for made in (whole, one))
    for name in ("x_sum_90", "x_time_since_90"):
        np.testing.assert_allclose(rows[name], expected_rows[name], rtol=1e-12)


def test_keys_whose_hashes_begin_alike_are_told_apart(
    stage: Make, batch: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys are looked up by the upper half of their hash; here all have the same."""
    rng = np.random.default_rng(2)
    n = 600
    rows = {"k": rng.choice(list("abcdefghij"), n), "t": np.arange(n), "x": rng.normal(size=n)}
    frame = pl.DataFrame(rows)
    seen = []
    for upper in (0xFFFF_FFFF_0000_0000, 0):
        monkeypatch.setattr(
            "engine.scrub.windows.stage.hashes",
            lambda frame, names, upper=upper: hashes(frame, names) & np.uint64(upper | LOWER),
        )
        made = stage("window", by=["k"], time="t", length=40, aggregates={"x": ["sum"]}, keys=5)
        made.bind(dict(frame.schema))
        seen.append(made.apply(batch(frame)))
    assert seen[0].frame["x_sum_40"].equals(seen[1].frame["x_sum_40"])
    assert seen[0].counts == seen[1].counts
    assert seen[0].counts["s", "forgotten"] > 100


def test_distinct_values_are_estimated(run: Run) -> None:
    """Texts, of which the window holds about 50, 100, 200 and 300."""
    rows = 2_000
    for values in (50, 100, 200, 300):
        texts = [f"shop {i % values}" for i in range(rows)]
        table = {"t": list(range(rows)), "x": texts}
        options = {"time": "t", "length": 1_500, "resolution": 1, "aggregates": {"x": ["distinct"]}}
        (done,) = run("window", options, table)
        assert done.frame["x_distinct_1500"][-1] == pytest.approx(values, rel=0.12)


@pytest.mark.usefixtures("folding")
def test_a_mark_holds_the_values_that_a_window_has(stage: Make, batch: Make) -> None:
    """A hundred keys of three values each in their window, of many before: no room for 256."""
    made = stage(
        "window", by=["k"], time="t", length=30, resolution=1, aggregates={"x": ["distinct"]}
    )
    made.bind({"k": pl.Int64(), "t": pl.Int64(), "x": pl.Int64()})
    for start in range(0, 2_000, 10):
        rows = {"k": range(100), "t": [start] * 100, "x": range(start, start + 100)}
        made.apply(batch(pl.DataFrame(rows)))
    base = made.snapshot()["base"]
    assert len(base["keys"]) == 100
    assert 300 <= len(base["marks"]) <= 800


def test_a_key_sees_the_same_whatever_stands_between_its_rows(stage: Make, batch: Make) -> None:
    """Partitions one after the other, or mixed: to the bit, as one engine and two give it."""
    rng = np.random.default_rng(7)
    n = 1_000
    frame = pl.DataFrame(
        {
            "p": rng.integers(0, 2, n), "k": rng.choice(list("abc"), n),
            "t": np.arange(n) - rng.integers(0, 9, n), "x": rng.normal(size=n),
        }
    )  # fmt: skip
    options = {
        "by": ["p", "k"], "time": "t", "length": [20, 90], "resolution": 5, "lateness": 10,
        "aggregates": {"x": list(NAMES)},
    }  # fmt: skip
    seen = []
    for rows in (frame, frame.sort("p", maintain_order=True)):
        made = stage("window", **options)
        made.bind(dict(frame.schema))
        done = made.apply(batch(rows)).frame.sort("p", maintain_order=True)
        seen.append(done.drop("_position"))
    assert seen[0].equals(seen[1])
    assert seen[0]["x_count_90"].max() > 10
