"""Versions are swapped while rows are answered: each row by one version that was current, and a
version that cannot serve leaves the one before in place."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import logging
import re
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import psutil
import pytest
from numpy.typing import NDArray

from engine.observing.metrics import SWAP_OUTCOMES, Metrics
from engine.types import Batch, Mark, Predictor, Schema, UserError
from engine.versions.canary import Canary
from engine.versions.shadow import divergence
from engine.versions.store import Versions
from engine.versions.swapping import SwappingPredictor
from models.serving.opening import open_model
from models.serving.settings import InferSettings
from tests.models.serving.published import network, publish
from tests.waiting import until

SCHEMA: Schema = {"a": pl.Float64(), "b": pl.Float64(), "c": pl.Float64()}
SWAPS = 100
Add = Callable[..., int]


def batch_of(rows: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame({name: rng.normal(size=rows) for name in SCHEMA})
    places = pl.lit("p").alias("_partition"), pl.int_range(pl.len()).alias("_position")
    return Batch(frame=frame.select(*places, pl.all()), mark=Mark(), arrived=0.0, raw_rows=rows)


def opened(path: Path, threads: int | None) -> Predictor:
    return open_model(InferSettings(model=str(path), threads=threads))


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "versions")


@pytest.fixture
def add(tmp_path: Path, versions: Versions) -> Add:
    """(seed, columns=..., layers=..., change=...) -> publishes a network; its number."""
    return functools.partial(publish, versions, folder=tmp_path)


def not_a_number(model: Any) -> None:
    for weights in model.graph.initializer:
        if weights.data_type == onnx.TensorProto.FLOAT and len(weights.dims) == 2:
            nan = np.full(tuple(weights.dims), np.nan, np.float32)
            weights.CopyFrom(onnx.numpy_helper.from_array(nan, weights.name))


def claim(versions: Versions, number: int) -> None:
    """Say of a version that it has an exabyte."""
    path = versions.path(number) / "version.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": 10**18}))


def swapping(versions: Versions, schema: Schema = SCHEMA, **keys: Any) -> SwappingPredictor:
    settings = {"poll": 0.001, "threads": 1, "max_slowdown": 20.0, **keys}
    predictor = SwappingPredictor(versions, opened, **settings)
    predictor.bind(schema)
    return predictor


def answers(predictor: Predictor, batch: Batch) -> tuple[str, NDArray[np.float64]]:
    """The one version that has answered a batch, and its answers."""
    done = predictor.predict(predictor.collate(batch))
    (version,) = done.frame["model_version"].unique().to_list()
    return version, done.frame["prediction"].to_numpy()


def outcomes(metrics: Metrics) -> dict[str, float]:
    values = {
        outcome: metrics.model_swaps.labels(outcome=outcome)._value.get()
        for outcome in SWAP_OUTCOMES
    }
    return {outcome: n for outcome, n in values.items() if n}


def test_under_load_each_batch_is_answered_by_one_version_that_was_current(
    versions: Versions, add: Add
) -> None:
    """The pointer moves while batches of changing sizes are answered without a pause."""
    numbers = {f"v{seed}": add(seed) for seed in range(4)}
    versions.promote(1)
    batches = [batch_of(size, size) for size in (1, 3, 64, 200)]
    expected = {
        (name, len(batch)): answers(opened(versions.model(number), 1), batch)[1]
        for name, number in numbers.items()
        for batch in batches
    }
    predictor, metrics = swapping(versions), Metrics()
    seen = ["v0"]
    with predictor.watched(metrics):
        for name in ("v1", "v2", "v3", "v2", "v0"):
            versions.promote(numbers[name])

            def come(name: str = name) -> bool:
                for batch in batches:
                    by, got = answers(predictor, batch)
                    np.testing.assert_array_equal(got, expected[by, len(batch)])
                    if by != seen[-1]:
                        seen.append(by)
                return seen[-1] == name

            until(come, what=name)
    assert seen == ["v0", "v1", "v2", "v3", "v2", "v0"]
    assert outcomes(metrics) == {"swapped": 5}
    page = metrics.exposition()[0].decode()
    infos = [line for line in page.splitlines() if line.startswith("headrace_model_info{")]
    assert len(infos) == 1  # what served before is not on the page any more
    assert 'version="v0"' in infos[0]
    assert "headrace_model_event_timestamp_seconds 100.0" in page
    assert "headrace_model_freshness_seconds_count 5.0" in page


def test_a_version_is_not_slow_because_the_machine_was_busy(versions: Versions, add: Add) -> None:
    """Of two files of one speed, the second answers a hundred times as late at first."""
    add(0)

    def busy_at_first(path: Path, threads: int | None) -> Predictor:
        predictor = opened(path, threads)
        if path == versions.model(2):
            predict, calls = predictor.predict, itertools.count()

            def late(batch: Batch) -> Batch:
                end = time.thread_time() + 0.02 * (next(calls) < 8)
                while time.thread_time() < end:
                    pass
                return predict(batch)

            predictor.predict = late  # type: ignore[method-assign]
        return predictor

    predictor = SwappingPredictor(versions, busy_at_first, poll=1.0, threads=1, max_slowdown=20.0)
    predictor.bind(SCHEMA)
    metrics = predictor.succession.metrics = Metrics()
    assert answers(predictor, batch_of(1))[0] == "v0"
    add(1)
    predictor.look()
    assert answers(predictor, batch_of(1))[0] == "v1"
    assert outcomes(metrics) == {"swapped": 1}


def test_a_hundred_swaps_hold_no_more_than_three_models(versions: Versions, add: Add) -> None:
    for seed in range(8):
        add(seed)
    alive: weakref.WeakSet[Predictor] = weakref.WeakSet()

    def noted(path: Path, threads: int | None) -> Predictor:
        predictor = opened(path, threads)
        alive.add(predictor)
        return predictor

    predictor = SwappingPredictor(versions, noted, poll=1.0, threads=1, max_slowdown=1e9)
    predictor.bind(SCHEMA)
    batch, process, held = batch_of(64), psutil.Process(), 0
    answers(predictor, batch)
    for swap in range(SWAPS):
        number = 1 + swap % 8
        versions.promote(number)
        predictor.look()
        assert answers(predictor, batch)[0] == f"v{number - 1}"
        if swap == SWAPS // 5:
            held = process.memory_info().rss
    gc.collect()
    assert len(alive) <= 3
    assert process.memory_info().rss < 1.05 * held


@pytest.mark.parametrize(
    ("outcome", "bad", "said"),
    [
        (
            "non_finite",
            lambda add, _: add(1, change=not_a_number),
            "no finite answer to 64 of 64 rows",
        ),
        ("other_schema", lambda add, _: add(1, columns=("a", "c")), "has other inputs"),
        ("unreadable", lambda add, _: add(1, columns=("a", "gone")), "needs column 'gone'"),
        ("slow", lambda add, _: add(1, layers=(200_000,)), "[infer] max_slowdown is 20"),
        (
            "torn",
            lambda add, versions: versions.model(add(1)).write_bytes(b"half"),
            "does not have the digest",
        ),
        (
            "torn",
            lambda add, versions: (versions.path(add(1)) / "READY").unlink(),
            "is not complete",
        ),
        ("too_large", lambda add, versions: claim(versions, add(1)), "bytes of memory while"),
        (
            "missing",
            lambda add, versions: (versions.folder / "current").write_text("9\n"),
            "there is no version 9",
        ),
        (
            "missing",
            lambda add, versions: (versions.folder / "current").write_text("nine\n"),
            "the pointer 'current' names no version",
        ),
        (
            "missing",
            lambda add, versions: (versions.folder / "current").unlink(),
            "the pointer 'current' is missing",
        ),
    ],
)
def test_a_version_that_cannot_serve_leaves_the_one_before(
    versions: Versions, add: Add, outcome: str, bad: Callable[..., object], said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    add(0)
    predictor, metrics = swapping(versions), Metrics()
    predictor.succession.metrics = metrics
    batch = batch_of(64)
    before = answers(predictor, batch)
    bad(add, versions)
    for _ in range(3):  # it is refused once
        predictor.look()
        after = answers(predictor, batch)
        assert after[0] == before[0]
        np.testing.assert_array_equal(after[1], before[1])
    assert outcomes(metrics) == {outcome: 1}
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert said in record.getMessage()
    assert "version 1 serves on" in record.getMessage()
    add(2)
    predictor.look()
    assert answers(predictor, batch)[0] == "v2"
    assert outcomes(metrics) == {outcome: 1, "swapped": 1}


def test_a_version_that_is_mended_is_looked_at_again(versions: Versions, add: Add) -> None:
    add(0)
    predictor = swapping(versions)
    answers(predictor, batch_of(8))
    ready = versions.path(add(1)) / "READY"
    text = ready.read_text()
    ready.unlink()  # as while it is copied
    predictor.look()
    assert answers(predictor, batch_of(8))[0] == "v0"
    ready.write_text(text)
    predictor.look()
    assert answers(predictor, batch_of(8))[0] == "v1"


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:500])


def another_model(path: Path) -> None:
    """Another model stands where the one that serves was read."""
    network(path, 9, layers=(8,))


@pytest.mark.parametrize("threads", [1, None])
@pytest.mark.parametrize("damage", [truncated, another_model, Path.unlink])
def test_a_version_whose_file_is_damaged_is_left(
    versions: Versions, add: Add, threads: int | None, damage: Callable[[Path], object],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """What serves is in memory; the file that it came from holds nobody back."""
    for seed in range(2):
        add(seed)
    predictor, metrics, batch = swapping(versions, threads=threads), Metrics(), batch_of(64)
    predictor.succession.metrics = metrics
    assert answers(predictor, batch)[0] == "v1"
    damage(versions.model(2))
    predictor.look()
    assert answers(predictor, batch)[0] == "v1"
    caplog.clear()
    versions.rollback()
    predictor.look()
    assert answers(predictor, batch)[0] == "v0"
    assert outcomes(metrics) == {"torn": 1, "swapped": 1}
    damage(versions.model(1))
    versions.promote(add(2))
    predictor.look()
    assert answers(predictor, batch)[0] == "v2"
    assert outcomes(metrics) == {"torn": 1, "swapped": 2}
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    if threads == 1:  # both are in memory
        assert said == []
        return
    assert len(said) == 2
    for one, (new, old) in zip(said, [(1, 2), (3, 1)], strict=True):
        assert one.startswith(f"version {new} is not timed beside version {old}, which serves:")
        assert f"version {old} " in one.partition("serves:")[2]


def test_the_way_back_opens_nothing(versions: Versions, add: Add) -> None:
    for seed in range(2):
        add(seed)
    paths: list[Path] = []

    def noted(path: Path, threads: int | None) -> Predictor:
        paths.append(path)
        return opened(path, threads)

    predictor = SwappingPredictor(versions, noted, poll=1.0, threads=1, max_slowdown=1e9)
    predictor.bind(SCHEMA)
    batch = batch_of(8)
    said = [answers(predictor, batch)[0]]
    for move in (versions.rollback, versions.promote, versions.rollback):
        move()
        predictor.look()
        said.append(answers(predictor, batch)[0])
    assert said == ["v1", "v0", "v1", "v0"]
    assert paths == [versions.model(2), versions.model(1)]


def test_before_the_first_row_nothing_is_tried(versions: Versions, add: Add) -> None:
    add(0)
    predictor = swapping(versions)
    add(1)
    predictor.look()
    assert answers(predictor, batch_of(8))[0] == "v0"
    predictor.look()
    assert answers(predictor, batch_of(8))[0] == "v1"


def test_a_model_with_threads_of_its_own_is_made_with_them(versions: Versions, add: Add) -> None:
    for seed in range(2):
        add(seed)
    versions.promote(1)
    asked: list[int | None] = []

    def noted(path: Path, threads: int | None) -> Predictor:
        asked.append(threads)
        return opened(path, threads)

    predictor = SwappingPredictor(versions, noted, poll=1.0, threads=2, max_slowdown=1e9)
    predictor.bind(SCHEMA)
    answers(predictor, batch_of(8))
    versions.promote(2)
    predictor.look()
    assert answers(predictor, batch_of(8))[0] == "v1"
    assert asked[0] == asked[-1] == 2
    assert set(asked[1:-1]) == {1}  # tried with one, beside the one that serves


def test_an_empty_batch_may_bring_the_swap(versions: Versions, add: Add) -> None:
    add(0)
    predictor = swapping(versions)
    answers(predictor, batch_of(8))
    add(1)
    predictor.look()
    assert len(predictor.predict(batch_of(0))) == 0
    assert predictor.version.model_version == "v1"


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_a_version_in_the_shadow_answers_a_share_unseen(
    versions: Versions, add: Add, share: float
) -> None:
    add(0)
    versions.put_into_shadow(add(1))
    versions.promote(1)
    predictor, metrics, batch = swapping(versions, shadow=share), Metrics(), batch_of(40)
    expected = answers(opened(versions.model(1), 1), batch)[1]
    compared = metrics.shadow_records.labels(outcome="compared")._value.get

    def asked() -> bool:
        """One batch after the other, each when the shadow has done the one before."""
        before = compared()
        assert predictor._shadow is not None
        shadow = predictor._shadow.predictor  # before the batch: one that came later has no rows
        by, got = answers(predictor, batch)
        assert by == "v0"
        np.testing.assert_array_equal(got, expected)
        if shadow is None:
            return False
        until(lambda: compared() > before)
        assert abs(compared() - before - 40 * share) <= 1
        return bool(compared() >= 200 * share)

    with predictor.watched(metrics):
        until(asked, what="the shadow")
    theirs = answers(opened(versions.model(2), 1), batch)[1]
    page = metrics.exposition()[0].decode()
    (total,) = re.findall(r"^headrace_shadow_divergence_ratio_sum (\S+)", page, re.MULTILINE)
    (count,) = re.findall(r"^headrace_shadow_divergence_ratio_count (\S+)", page, re.MULTILINE)
    if share == 1:
        apart = np.abs(theirs - expected).mean() / np.abs(expected).mean()
        assert float(total) / float(count) == pytest.approx(apart, rel=1e-6)
    assert float(total) > 0
    assert outcomes(metrics) == {}


def test_a_shadow_that_fails_is_left_out_and_told_once(
    versions: Versions, add: Add, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headrace.versions")
    add(0)
    versions.put_into_shadow(add(1, columns=("a", "c")))
    versions.promote(1)
    predictor, metrics = swapping(versions, shadow=1.0), Metrics()
    predictor.succession.metrics = metrics
    answers(predictor, batch_of(8))
    for _ in range(3):
        predictor.look()
    assert outcomes(metrics) == {"other_schema": 1}
    assert "version 2 has other inputs" in caplog.text
    versions.put_into_shadow(add(2))
    versions.promote(1)
    predictor.look()
    versions.shadow.delete()
    predictor.look()
    assert answers(predictor, batch_of(8))[0] == "v0"
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert said == ["version 3 is in the shadow", "no version is in the shadow any more"]


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_canary_answers_some_keys_for_real(versions: Versions, add: Add, share: float) -> None:
    add(0)
    versions.put_into_shadow(add(1))
    versions.promote(1)
    canary, metrics = Canary(share, ["key"]), Metrics()
    with pytest.raises(UserError, match=r"\[infer\] canary_by needs column 'key'"):
        swapping(versions, canary=canary)
    predictor = swapping(versions, {**SCHEMA, "key": pl.Int64()}, canary=canary)
    predictor.succession.metrics = metrics
    keys = pl.Series("key", np.arange(400) % 100)
    batch = batch_of(400)
    batch = batch.with_frame(batch.frame.with_columns(keys))
    assert answers(predictor, batch)[0] == "v0"  # before it has looked
    predictor.look()
    done = predictor.predict(predictor.collate(batch)).frame
    assert done.drop("prediction", "model_version").equals(batch.frame)
    for name, number in (("v0", 1), ("v1", 2)):
        mine = (done["model_version"] == name).to_numpy()
        wanted = answers(opened(versions.model(number), 1), batch)[1]
        np.testing.assert_array_equal(done["prediction"].to_numpy()[mine], wanted[mine])
    by_key = done.group_by("key").agg(pl.col("model_version").n_unique())
    assert by_key["model_version"].to_list() == [1] * 100
    served = (done["model_version"] == "v1").sum()
    assert served == 400 if share == 1 else 60 <= served <= 180
    assert metrics.shadow_records.labels(outcome="served")._value.get() == served
    versions.shadow.delete()
    predictor.look()
    assert answers(predictor, batch)[0] == "v0"


def test_how_far_answers_are_apart() -> None:
    ours = pl.DataFrame({"n": [1.0, -3.0], "t": ["a", "b"], "model_version": ["x", "x"]})
    theirs = pl.DataFrame({"n": [1.5, -2.5], "t": ["a", "b"], "model_version": ["y", "y"]})
    assert divergence(ours, theirs, ["n", "t", "model_version"]) == pytest.approx(0.25)
    theirs = theirs.with_columns(t=pl.Series(["a", None]))
    assert divergence(ours, theirs, ["n", "t", "model_version"]) == pytest.approx(0.5)
    assert divergence(ours, ours, ["n", "t", "model_version"]) == 0
    assert divergence(ours.clear(), ours.clear(), []) == 0


def test_nothing_to_begin_with(versions: Versions) -> None:
    with pytest.raises(UserError, match="has no version of a model yet"):
        swapping(versions)
