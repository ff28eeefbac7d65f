"""SIGKILL at random moments of a training run: the resumed runs end exactly where an uninterrupted
one does. Bounded here; ``make crash`` kills 25 times, on more rows."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.run import Run
from engine.running.late_labels.late_training import LateTraining
from engine.running.loop import Loop
from engine.running.saving.codec import names_beside
from engine.scrub.key_store import NO_ROWS
from engine.types import Batch
from tests.forks import Command
from tests.waiting import HANG, until

FULL = os.environ.get("HEADRACE_CRASH") == "full"
KILLS, ROWS = (25, 60_000) if FULL else (4, 6_000)
PART = 1 if FULL else 3
"""Of the rows that are mixed: one in so many."""
PIPELINE = """
name = "crash"
folder = "{folder}"
[source]
kind = "files"
path = "{data}"
[source.schema]
time = "int64"
key = "string"
a = "float64"
b = "float64"
y = "float64"
[loader]
batch_rows = 100
[scrub.duplicates]
by = ["time", "key"]
[scrub.lag]
column = "y"
by = ["key"]
time = "time"
every = 1
steps = [1, 3]
[scrub.missing]
columns = ["a", "b", "y_lag_*"]
strategy = "mean"
indicator = true
[scrub.outliers]
columns = ["a"]
method = "zscore"
threshold = 3.0
[scrub.standardize]
columns = ["a", "b", "y_lag_*"]
[scrub.categories]
columns = ["key"]
size = 8
[model]
target = "y"
numeric = ["a", "b", "y_lag_*", "a_missing"]
categories = ["key"]
layers = [16, 8]
dropout = 0.1
target_transform = "standard"
[train]
optimizer = "adam"
lr = 1e-3
ema_decay = 0.9
replay_rows = 2000
replay_steps = 1
replay_batch = 64
threads = 1
[evaluation]
window = 1000
[checkpoint]
interval_batches = 4
keep = 2
[export]
holdout = 0.1
compress = false
[sink]
kind = "files"
path = "{folder}/out"
columns = ["_position", "time", "key", "y"]
"""

MIXED = """
name = "mixed"
folder = "{folder}"
[source]
kind = "mix"
rows_per_turn = 64
[source.sources.much]
kind = "files"
path = "{data}/much-*.csv"
weight = 3
epochs = 2
shuffle_files = true
[source.sources.little]
kind = "files"
path = "{data}/little.csv"
epochs = 3
[source.schema]
time = "int64"
key = "string"
a = "float64"
b = "float64"
y = "float64"
[loader]
batch_rows = 100
shuffle_rows = 500
[scrub.split]
test = 0.1
[scrub.label]
kind = "derive"
columns.rare = "CASE WHEN y > 4 THEN 'yes' ELSE 'no' END"
[scrub.missing]
columns = ["a", "b"]
[scrub.outliers]
columns = ["a", "b"]
[scrub.standardize]
columns = ["a", "b"]
[model]
task = "binary"
target = "rare"
classes = ["no", "yes"]
numeric = ["a", "b"]
layers = [8]
[train]
optimizer = "adam"
replay_steps = 1
threads = 1
[train.sampling]
method = "hybrid"
smote_neighbors = 3
[augment.jitter]
columns = ["a", "b"]
[checkpoint]
interval_batches = 4
[sink]
kind = "files"
path = "{folder}/out"
columns = ["_partition", "_position"]
"""
"""All that draws by chance: mixed, read again, shuffled, split, sampled, augmented."""


LATE = """
name = "late"
folder = "{folder}"
[source]
kind = "files"
path = "{data}/rows.csv"
[labels]
by = ["id"]
time = "at"
horizon = 3000
{labels}
[labels.source]
kind = "files"
path = "{data}/labels.csv"
[loader]
batch_rows = 50
[scrub.standardize]
columns = ["x"]
[model]
target = "y"
numeric = ["x"]
layers = [4]
[train]
replay_steps = 1
threads = 1
[checkpoint]
interval_batches = 4
[dead_letters]
limit = 1.0
[sink]
kind = "files"
path = "{folder}/out"
"""
"""Labels that come later, some never, some twice, some too late."""


def write_data(path: Path, rows: int) -> None:
    """Dirty rows: missing values, outliers, repeated keys, missing labels, a torn type."""
    rng = np.random.default_rng(7)
    a = rng.normal(size=rows)
    frame = pl.DataFrame(
        {
            "time": np.arange(rows) // 4,
            "key": rng.choice(["n", "e", "s", "w", "x"], rows),
            "a": np.where(rng.random(rows) < 0.02, 1e6, a),
            "b": rng.normal(5, 2, rows),
            "y": 3 * a + rng.normal(size=rows),
        }
    ).with_columns(
        pl.when(pl.Series(rng.random(rows) < 0.05)).then(None).otherwise(pl.col("a")).alias("a"),
        pl.when(pl.Series(rng.random(rows) < 0.03)).then(None).otherwise(pl.col("y")).alias("y"),
    )
    frame.write_csv(path)


def start(file: Path) -> subprocess.Popen[bytes]:
    words = ["run", str(file), "--log-level", "warning"]
    return Command(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(file: Path) -> None:
    process = start(file)
    _, errors = process.communicate(timeout=HANG)
    assert process.returncode == 0, errors.decode()


def finish_through_kills(file: Path, checkpoints: Path) -> None:
    """Kill the run twice, each time when it has saved two more checkpoints; then let it finish."""
    for _ in range(2):
        seen = newest(checkpoints)
        process = start(file)
        until(lambda: newest(checkpoints) >= seen + 2, process=process)  # noqa: B023
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=HANG) == -signal.SIGKILL
        assert process.stderr is not None
        process.stderr.close()
    finish(file)


def finish_through_stops(file: Path, *batches: int) -> None:
    """Stop the run after each of these numbers of batches; then let it finish."""
    for after in batches:

        def watch(loop: Loop, _: Batch, after: int = after) -> None:
            if loop.totals.batches == after:
                loop.stop()

        assert Run(file, watch=watch).run().stopped
    Run(file).run()


def newest(folder: Path) -> int:
    numbers = [int(p.name.split("-")[1].split(".")[0]) for p in folder.glob("checkpoint-*[0-9].*")]
    return max(numbers, default=-1)


def state(file: Path) -> dict[str, Any]:
    run = Run(file)
    loaded = run.checkpoints.load(run.identity)
    assert loaded is not None
    totals = {key: value for key, value in loaded["totals"].items() if key != "batches"}
    return {**loaded, "totals": totals}  # empty batches come while a busy machine rests


def same(a: Any, b: Any, at: str = "") -> None:
    """Equal to the bit, NaN included."""
    assert type(a) is type(b), at
    if isinstance(a, dict):
        assert list(a) == list(b), at
        for key in a:
            same(a[key], b[key], f"{at}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), at
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{at}[{i}]")
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()), at
    elif isinstance(a, pl.DataFrame | pl.Series):
        assert a.equals(b), at
    elif isinstance(a, float):
        assert np.float64(a).tobytes() == np.float64(b).tobytes(), at
    else:
        assert a == b, at


def killed_and_whole(
    folder: Path, pipeline: str, data: Path, kills: int, **changes: str
) -> dict[str, Path]:
    """Runs a pipeline at once, and again with so many SIGKILLs; their files.

    `changes` are of the second one alone: key -> text, for a key that is "" in the first."""
    files = {}
    for name, own in (("whole", dict.fromkeys(changes, "")), ("killed", changes)):
        files[name] = folder / f"{name}.toml"
        files[name].write_text(pipeline.format(folder=folder / name, data=data, **own))
    finish(files["whole"])

    chance = random.Random(11)
    killed = 0
    while killed < kills:
        checkpoints = folder / "killed" / "checkpoints"
        seen, more = newest(checkpoints), chance.randint(0, 2)
        process = start(files["killed"])
        until(
            lambda: newest(checkpoints) >= seen + more,  # noqa: B023
            process=process,
            what="a checkpoint",
        )
        try:
            process.wait(timeout=chance.uniform(0, 0.05))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        code = process.wait(timeout=HANG)
        assert process.stderr is not None
        assert code == -signal.SIGKILL, process.stderr.read().decode()
        process.stderr.close()
        killed += 1
    finish(files["killed"])
    return files


@pytest.mark.slow
def test_killed_runs_end_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    write_data(data, ROWS)
    files = killed_and_whole(tmp_path, PIPELINE, data, KILLS)

    whole, resumed = (state(files[name]) for name in ("whole", "killed"))
    for part in ("positions", "stages", "totals", "work"):
        same(whole[part], resumed[part], part)
    outputs = [
        pl.read_parquet(tmp_path / name / "out" / "*.parquet") for name in ("whole", "killed")
    ]
    assert outputs[0].height > ROWS * 2 / 3
    assert not outputs[1]["_position"].is_duplicated().any()
    assert outputs[0].equals(outputs[1])
    letters = [
        pl.read_ndjson(tmp_path / name / "dead_letters" / "*.ndjson")
        for name in ("whole", "killed")
    ]
    assert letters[0].equals(letters[1])
    totals = whole["totals"]
    assert totals["read"] == ROWS == outputs[0].height + letters[0].height


@pytest.mark.full
@pytest.mark.slow
def test_what_draws_by_chance_draws_the_same_after_a_kill(tmp_path: Path) -> None:
    """Every row as often as it is read, in the same order, learned from as often."""
    sizes = {"much-0": 4_500, "much-1": 2_400, "much-2": 3_600, "little": 3_000}
    for name, rows in sizes.items():
        write_data(tmp_path / f"{name}.csv", rows // PART)
    files = killed_and_whole(tmp_path, MIXED, tmp_path, 8 if FULL else 2)
    whole, resumed = (state(files[name]) for name in ("whole", "killed"))
    for part in ("positions", "stages", "totals", "work"):
        same(whole[part], resumed[part], part)
    assert whole["totals"]["read"] == (2 * 10_500 + 3 * 3_000) // PART
    outputs = [
        pl.read_parquet(tmp_path / name / "out" / "*.parquet") for name in ("whole", "killed")
    ]
    assert outputs[0].equals(outputs[1])
    times = outputs[0].group_by("_partition", "_position").len()
    assert set(times["len"]) == {2, 3}


def waiting(file: Path, loaded: dict[str, Any]) -> dict[str, Any]:
    """Take what waits out of a checkpoint, wherever it lies; return it by side."""
    run = Run(file)
    assert run.restore()
    assert isinstance(run.parts.work, LateTraining)
    content = {}
    for name in ("rows", "labels"):
        side = getattr(run.parts.work.join, name)
        parts = [*side.stored, *side.held]
        numbers = [NO_ROWS, *(part.numbers[part.alive] for part in parts)]
        content[name] = (np.concatenate(numbers), side.gather(np.concatenate(numbers)))
        for place in ("stored", "held"):
            del loaded["work"]["labels"]["join"][name][place]
    return content


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("labels", ["", "memory = 1"], ids=["in memory", "on disk"])
def test_late_labels_are_joined_the_same_after_kills(labels: str, tmp_path: Path) -> None:
    """Delays of up to one and a half horizons; a tenth never comes, one in twenty comes twice."""
    n, rng = 30_000 if FULL else 1_500, np.random.default_rng(5)
    rows = pl.DataFrame({"id": np.arange(n), "at": 10 * np.arange(n), "x": rng.normal(size=n)})
    late = rows["at"] + rng.integers(0, 4_500, n)
    reported = rows.select("id", at=late, y=pl.col("x") * 2).filter(pl.col("id") % 10 > 0)
    reported = pl.concat([reported, reported.filter(pl.col("id") % 20 == 1)])
    rows.write_csv(tmp_path / "rows.csv")
    reported.sort("at", maintain_order=True).write_csv(tmp_path / "labels.csv")
    kills = 20 if FULL else 2
    files = killed_and_whole(tmp_path, LATE, tmp_path, kills, labels=labels)
    whole, resumed = (state(files[name]) for name in ("whole", "killed"))
    if labels:
        folder = tmp_path / "killed" / "checkpoints"
        named = set().union(*map(names_beside, folder.glob("checkpoint-*.hrc")))
        assert {path.name for path in folder.glob("*.arrows*")} == named != set()
    same(waiting(files["whole"], whole), waiting(files["killed"], resumed))
    for part in ("positions", "stages", "totals", "work"):
        same(whole[part], resumed[part], part)
    outputs = [
        pl.read_parquet(tmp_path / name / "out" / "*.parquet") for name in ("whole", "killed")
    ]
    assert outputs[0].equals(outputs[1])
    in_time = set(rows.filter((late - rows["at"] <= 3_000) & (rows["id"] % 10 > 0))["id"])
    assert set(outputs[0]["id"]) == in_time
    assert outputs[0].height == len(in_time)
