"""One suite that every stage passes, whatever it does."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.running.saving.checkpoint import Checkpoints
from engine.scrub import STAGES
from engine.types import PART, Affine, Batch, Clip, Codes, Fill, Power, Stage, Transform
from tests.size import examples

WORDS = str(Path(__file__).with_name("words.txt"))
TABLE = str(Path(__file__).with_name("table.csv"))
NUMBERS = ["x", "y", "f", "n", "void"]
LAG: dict[str, Any] = {"column": "x", "by": ["key"], "time": "time", "every": "1h"}
WINDOW: dict[str, Any] = {"by": ["key"], "time": "time", "lateness": "3h"}
EACH = ["count", "sum", "mean", "min", "max", "deviation", "last", "time_since", "rate", "ratio"]
EACH += ["distinct"]
FADING = [name for name in EACH if name not in ("min", "max", "distinct")]
EVENTS: dict[str, Any] = {"columns": ["y", "text"], "prefix": "of_"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "constant": ("missing", {"columns": NUMBERS, "strategy": "constant", "value": 7}),
    "fraction": ("missing", {"columns": NUMBERS, "strategy": "constant", "value": 0.5}),
    "unknown": ("missing", {"columns": ["text", "key"], "strategy": "constant", "value": "?"}),
    "mean": ("missing", {"columns": NUMBERS, "strategy": "mean", "indicator": True}),
    "median": ("missing", {"columns": NUMBERS, "strategy": "median", "value": -1}),
    "frequent": ("missing", {"columns": ["text", "n", "flag"], "strategy": "most_frequent"}),
    "last": (
        "missing",
        {"columns": ["x", "text", "flag"], "strategy": "last", "by": ["key"], "indicator": True},
    ),
    "last_of_all": ("missing", {"columns": ["x", "n"], "strategy": "last", "value": 0.5}),
    "drop": ("missing", {"columns": ["x", "text"], "strategy": "drop"}),
    "impute": ("impute", {"columns": ["x", "y", "n"], "min_rows": 10, "indicator": True}),
    "impute_given": (
        "impute",
        {"columns": ["f", "void"], "predictors": ["n", "y", "x"], "min_rows": 5, "alpha": 0.1},
    ),
    "duplicates": ("duplicates", {"by": ["key", "n"]}),
    "window": ("duplicates", {"by": ["text"], "window": 7}),
    "near": (
        "near_duplicates",
        {"column": "text", "shingle_size": 2, "window": 9, "num_hashes": 16},
    ),
    "near_images": ("near_duplicate_images", {"column": "image", "window": 9, "max_distance": 3}),
    "bounds": ("outliers", {"columns": NUMBERS, "method": "bounds", "low": -2, "high": 60}),
    "below": ("outliers", {"columns": NUMBERS, "method": "bounds", "high": 0.5}),
    "zscore": ("outliers", {"columns": NUMBERS, "method": "zscore", "min_rows": 20}),
    "iqr": ("outliers", {"columns": NUMBERS, "method": "iqr", "min_rows": 20, "factor": 1}),
    "reject": (
        "outliers",
        {"columns": NUMBERS, "method": "zscore", "min_rows": 5, "action": "reject"},
    ),
    "flag": ("outliers", {"columns": NUMBERS, "method": "iqr", "min_rows": 5, "action": "flag"}),
    "halfspace": ("anomalies", {"columns": NUMBERS, "window": 30, "n_trees": 5, "height": 4}),
    "halfspace_flag": (
        "anomalies",
        {
            "columns": ["x", "y"],
            "action": "flag",
            "window": 12,
            "contamination": 0.3,
            "freeze_after": 50,
        },
    ),
    "halfspace_reject": (
        "anomalies",
        {
            "columns": ["x", "n"],
            "action": "reject",
            "window": 12,
            "contamination": 0.2,
            "n_trees": 3,
        },
    ),
    "standardize": ("standardize", {"columns": NUMBERS}),
    "frozen": ("standardize", {"columns": ["x", "y"], "freeze_after": 45}),
    "fading": ("standardize", {"columns": NUMBERS, "halflife": 30}),
    "by_key": ("standardize_by", {"columns": NUMBERS, "by": ["key"], "min_rows": 5}),
    "by_keys": (
        "standardize_by",
        {"columns": ["x"], "by": ["key", "text"], "keys": 4, "min_rows": 1},
    ),
    "normalize": ("normalize", {"columns": NUMBERS, "low": -1}),
    "normalize_clipped": ("normalize", {"columns": NUMBERS, "clip": True, "from_high": 55.0}),
    "robust": ("robust", {"columns": NUMBERS}),
    "robust_wide": ("robust", {"columns": ["x", "n"], "low": 0.05, "high": 0.9}),
    "log": ("power", {"columns": NUMBERS, "method": "log"}),
    "yeo_johnson": ("power", {"columns": NUMBERS, "min_rows": 20}),
    "yeo_johnson_given": ("power", {"columns": NUMBERS, "exponent": 0.3, "standardize": True}),
    "split": ("split", {"test": 0.3, "stratify": "text", "values": 3}),
    "split_by_key": ("split", {"test": 0.3, "validation": 0.2, "by": ["key"]}),
    "split_in_turns": ("split", {"folds": 3, "fold": 1}),
    "vocabulary": ("categories", {"columns": ["text", "n", "flag"], "size": 4}),
    "vocabulary_counted": ("categories", {"columns": ["text", "n"], "size": 6, "min_count": 3}),
    "vocabulary_idle": (
        "categories",
        {"columns": ["text", "key", "n"], "size": 3, "min_count": 2, "idle": "6h", "time": "time"},
    ),
    "hash": ("categories", {"columns": ["text", "key"], "method": "hash", "size": 5}),
    "adwin": ("drift", {"columns": NUMBERS, "warmup": 20}),
    "page_hinkley": (
        "drift",
        {"columns": NUMBERS, "detector": "page_hinkley", "threshold": 3, "warmup": 0},
    ),
    "psi": ("drift", {"columns": NUMBERS, "detector": "psi", "window": 30, "bins": 4}),
    "tokens": ("tokens", {"columns": ["text", "key"], "split": "characters", "size": 50}),
    "tokens_known": ("tokens", {"columns": ["text"], "vocabulary": WORDS}),
    "image": ("image", {"columns": ["photo"], "size": [4, 3]}),
    "image_grey": (
        "image",
        {"columns": ["photo"], "size": [5, 5], "mode": "L", "resize": "stretch", "threads": 1},
    ),
    "derive": (
        "derive",
        {"columns": {"hour": "date_part('hour', time)", "z": "x * hour", "w": "ln(y)"}},
    ),
    "unpivot": (
        "unpivot",
        {"keep": ["key", "time"], "columns": ["x", "n", "f"], "variable": "name"},
    ),
    "lag": ("lag", {**LAG, "steps": [1, 2, 5]}),
    "lag_late": ("lag", {**LAG, "column": "n", "by": [], "steps": [3], "lateness": "2h"}),
    "lag_text": ("lag", {**LAG, "column": "text", "by": [], "steps": [2]}),
    "lag_flag": ("lag", {**LAG, "column": "flag", "by": ["key", "text"], "steps": [1]}),
    "history": ("history", {"columns": NUMBERS[:4], "by": ["key"], "rows": 3}),
    "history_few": (
        "history",
        {"columns": ["x", "flag"], "by": ["key", "text"], "rows": 2, "own": True, "keys": 3},
    ),
    "lookup": ("lookup", {"path": TABLE, "by": ["key"]}),
    "lookup_reject": (
        "lookup",
        {"path": TABLE, "by": {"key": "key"}, "prefix": "of_", "missing": "reject", "reload": "1h"},
    ),
    "join": (
        "join",
        {"source": {}, "by": ["key"], "time": "time", "within": "5h", **EVENTS},
    ),
    "join_reject": (
        "join",
        {
            "source": {},
            "by": {"key": "key", "flag": "flag"},
            "time": "time",
            "within": "0s",
            "wait": "9h",
            "lateness": "3h",
            "missing": "reject",
            **EVENTS,
        },
    ),
    "history_all": ("history", {"columns": ["n"], "rows": 5}),
    "window_sliding": (
        "window",
        {**WINDOW, "length": ["3h", "12h"], "resolution": "1h", "aggregates": {"x": EACH}},
    ),
    "window_few": (
        "window",
        {
            "time": "time",
            "by": ["key", "text"],
            "length": "6h",
            "keys": 5,
            "panes": 12,
            "own": True,
            "aggregates": {"f": ["mean"], "void": ["mean", "count"], "text": ["rate", "distinct"]},
        },
    ),
    "window_fading": (
        "window",
        {"time": "time", "shape": "fading", "halflife": "6h", "aggregates": {"x": FADING}},
    ),
}
ONE_BY_ONE = ("last", "lag", "history", "lookup", "join", "dup", "window", "split")
ROW_BY_ROW = [case for case in CASES if case.startswith(ONE_BY_ONE)]
ROW_BY_ROW += ["halfspace", "near", "near_images"]
SIZES = (40, 0, 25, 1, 60)

Build = Callable[[str], Stage]
Rows = Callable[[int, int], pl.DataFrame]
Cut = Callable[[pl.DataFrame, Sequence[int]], Sequence[Batch]]
Same = Callable[[Any, Any], bool]


@pytest.fixture(scope="session")
def build(stage: Callable[..., Stage], rows: Rows) -> Build:
    def make(case: str) -> Stage:
        kind, options = CASES[case]
        made = stage(kind, **options)
        made.bind(schema(rows(0, 0)))
        return made

    return make


@pytest.fixture(scope="session")
def stream(rows: Rows, pieces: Cut) -> Sequence[Batch]:
    return pieces(rows(200, 1), SIZES)


def schema(frame: pl.DataFrame) -> dict[str, pl.DataType]:
    return {c: k for c, k in frame.schema.items() if c == PART or not c.startswith("_")}


def outcome(batch: Batch) -> Any:
    """All that a stage may change of a batch, as a plain value."""
    rejects = [(r.stage, r.reason, r.rows) for r in batch.rejects]
    counts = {"/".join(key): n for key, n in batch.counts.items()}
    return (batch.frame, rejects, counts, batch.added)


every = pytest.mark.parametrize("case", CASES)


def test_every_kind_has_a_case() -> None:
    assert {kind for kind, _ in CASES.values()} == set(STAGES)


@every
def test_bind_tells_the_schema(case: str, build: Build, rows: Rows, stream: list[Batch]) -> None:
    stage = build(case)
    after = stage.bind(schema(rows(0, 0)))
    for batch in stream:
        frame = stage.apply(batch).frame
        assert schema(frame) == after
        assert list(schema(frame)) == list(after)
        assert frame.columns[:2] == ["_partition", "_position"]


@every
def test_input_is_not_changed(case: str, build: Build, stream: list[Batch], same: Same) -> None:
    stage = build(case)
    for batch in stream:
        before = outcome(batch)[0].clone(), dict(batch.counts)
        stage.apply(batch)
        assert same((batch.frame, dict(batch.counts)), before)


@every
def test_nothing_is_lost(case: str, build: Build, stream: list[Batch]) -> None:
    stage = build(case)
    for batch in stream:
        done = stage.apply(batch)
        assert done.raw_rows + done.added == len(done) + sum(len(r) for r in done.rejects)
        assert all(n >= 0 and who == "s" for (who, _), n in done.counts.items())
        assert {r.stage for r in done.rejects} <= {"s"}


@every
def test_empty_batch_teaches_nothing(
    case: str, build: Build, stream: list[Batch], same: Same
) -> None:
    stage = build(case)
    stage.apply(stream[0])
    before = copy.deepcopy(stage.snapshot())
    done = stage.apply(stream[1])
    assert len(stream[1]) == len(done) == 0
    assert same(stage.snapshot(), before)


@every
@pytest.mark.parametrize("at", [0, 3, len(SIZES)])
def test_restored_stage_goes_on_the_same(
    case: str, at: int, build: Build, stream: list[Batch], same: Same, tmp_path: Path
) -> None:
    stage = build(case)
    for batch in stream[:at]:
        stage.apply(batch)
    files = Checkpoints(Checkpoints.Settings(path=str(tmp_path)))
    files.save({"stage": stage.snapshot()}, {})
    state = files.load({})
    assert state is not None
    other = build(case)
    other.restore(state["stage"])
    for batch in stream[at:]:
        assert same(outcome(other.apply(batch)), outcome(stage.apply(batch)))
    assert same(other.snapshot(), stage.snapshot())


@every
def test_going_back_gives_the_same_again(
    case: str, build: Build, stream: list[Batch], same: Same
) -> None:
    stage = build(case)
    stage.apply(stream[0])
    snapshot = stage.snapshot()
    first = [outcome(stage.apply(batch)) for batch in stream[1:]]
    stage.restore(snapshot)
    assert same([outcome(stage.apply(batch)) for batch in stream[1:]], first)


@every
def test_snapshot_never_changes(case: str, build: Build, stream: list[Batch], same: Same) -> None:
    stage = build(case)
    stage.apply(stream[0])
    snapshot = stage.snapshot()
    copied = copy.deepcopy(snapshot)
    for batch in stream[1:]:
        stage.apply(batch)
    assert same(snapshot, copied)


@every
def test_later_batches_change_nothing(
    case: str, build: Build, rows: Rows, pieces: Cut, stream: list[Batch], same: Same
) -> None:
    frame = pl.concat((rows(200, 1).head(65), rows(200, 9).tail(135)))
    one, two = build(case), build(case)
    ours = [outcome(one.apply(batch)) for batch in stream]
    theirs = [outcome(two.apply(batch)) for batch in pieces(frame, SIZES)]
    assert same(ours[:3], theirs[:3])


@every
def test_a_batch_is_not_judged_by_itself(
    case: str, build: Build, rows: Rows, pieces: Cut, same: Same
) -> None:
    """Changing the later rows of a batch changes no earlier row of it."""
    head = rows(60, 3)
    frames = [pl.concat((head, rows(100, seed).tail(40))) for seed in (4, 5)]
    done = []
    for frame in frames:
        stage = build(case)
        first, second = (stage.apply(batch) for batch in pieces(frame, [20])[:2])
        rejected = pl.concat([r.rows for r in second.rejects]) if second.rejects else None
        done.append((first, second, rejected))
    early = pl.col("_position") < 60
    ours, theirs = (second.frame.filter(early) for _, second, _ in done)
    assert same(ours, theirs)
    gone = [None if r is None else r.filter(early).rows() for *_, r in done]
    assert (gone[0] or []) == (gone[1] or [])


@pytest.mark.parametrize("case", ROW_BY_ROW)
@settings(max_examples=examples(25), deadline=None)
@given(sizes=st.lists(st.integers(0, 50), max_size=8))
def test_cuts_do_not_matter(
    case: str, sizes: list[int], build: Build, rows: Rows, pieces: Cut, same: Same
) -> None:
    frame = rows(150, 2)
    whole = build(case).apply(pieces(frame, [])[0]).frame
    stage = build(case)
    assert same(pl.concat([stage.apply(b).frame for b in pieces(frame, sizes)]), whole)
    assert not stage.learns_by_batch or case.startswith("last")  # alone of the ways to fill


@pytest.mark.usefixtures("steady")
@every
def test_transforms_give_what_apply_gives(case: str, build: Build, stream: list[Batch]) -> None:
    stage = build(case)
    for batch in stream:
        transforms = stage.transforms()
        done = stage.apply(batch)
        if transforms is None:
            continue
        left = batch.frame.filter(pl.col("_position").is_in(done.frame["_position"].to_list()))
        for column, values in written(transforms, left).items():
            ours = done.frame[column].cast(pl.Float64 if values.dtype != object else pl.String)
            expected = pl.Series(column, values, ours.dtype, strict=False)
            if any(isinstance(t, Power) for t in transforms):  # numpy's logarithm is not the C one
                ours, expected = ours.round_sig_figs(12), expected.round_sig_figs(12)
            assert (
                ours.fill_nan(None).equals(expected.fill_nan(None))
                if (values.dtype != object)
                else ours.equals(expected)
            )


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("mean", 5),
        ("drop", 0),
        ("duplicates", 0),
        ("near", 0),
        ("near_images", 0),
        ("reject", 0),
        ("zscore", 5),
        ("standardize", 5),
        ("normalize_clipped", 10),
        ("robust", 5),
        ("fading", 5),
        ("halfspace", None),
        ("halfspace_reject", 0),
        ("impute", None),
        ("by_key", None),
        ("psi", 0),
        ("log", 5),
        ("yeo_johnson", 10),
        ("vocabulary", 3),
        ("last", None),
        ("hash", None),
        ("image", None),
        ("tokens", None),
        ("flag", None),
        ("derive", None),
        ("unpivot", None),
        ("lag", None),
        ("history", None),
        ("lookup", None),
        ("join", None),
        ("window_sliding", None),
    ],
)
def test_what_a_model_file_can_contain(case: str, expected: int | None, build: Build) -> None:
    transforms = build(case).transforms()
    assert (None if transforms is None else len(transforms)) == expected


def written(transforms: Sequence[Transform], frame: pl.DataFrame) -> dict[str, NDArray[Any]]:
    """The transforms as a model file does them: column by column, in numpy."""
    columns: dict[str, NDArray[Any]] = {}
    for t in transforms:
        values = columns[t.column] if t.column in columns else raw(frame[t.column], t)
        if isinstance(t, Fill):
            absent = values == None if isinstance(t.value, str) else np.isnan(values)  # noqa: E711
            columns[t.column] = np.where(absent, t.value, values)
            if t.indicator:
                columns[t.indicator] = absent.astype(float)
        elif isinstance(t, Clip):
            columns[t.column] = np.clip(values, t.low, t.high)
        elif isinstance(t, Affine):
            moved = values - t.shift
            with np.errstate(invalid="ignore"):  # infinity times 0
                made = moved * t.scale
            columns[t.column] = np.where(np.isinf(moved) & (t.scale == 0), moved, made)
        elif isinstance(t, Power):
            columns[t.column] = curve(values, t)
        else:
            codes = {value: i + 1 for i, value in enumerate(t.values)}
            columns[t.column] = np.array([float(codes.get(v, 0)) for v in values])
    return columns


def curve(x: NDArray[Any], t: Power) -> NDArray[Any]:
    p = np.where(x < 0, t.below, t.above)
    y = np.log1p(np.abs(x))
    with np.errstate(invalid="ignore", divide="ignore"):
        made: NDArray[Any] = np.where(p == 0, y, np.expm1(p * y) / p)
    return np.where(x < 0, -made, made)


def raw(column: pl.Series, transform: Transform) -> NDArray[Any]:
    text = isinstance(transform, Codes) or (
        isinstance(transform, Fill) and isinstance(transform.value, str)
    )
    if text:
        return np.array([*column.cast(pl.String).to_list(), None], dtype=object)[:-1]
    return np.array([math.nan if v is None else float(v) for v in column.to_list()])
