"""``[augment.NAME]`` from a pipeline file to the end of a run."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from engine.commands.preflight import preflight
from engine.config import Pipeline
from engine.run import Run
from engine.running.saving.codec import encode
from engine.types import UserError
from tests.forks import Command
from tests.scrub.pictures import encoded
from tests.waiting import until

ALL: dict[str, Any] = {
    "jitter": {"columns": ["a", "b"], "scale": 0.2},
    "gaps": {"kind": "feature_dropout", "share": 0.1},
    "mixup": {"alpha": 0.4, "seed": 3},
}


def rows(folder: Path, n: int = 3_000, noise: int = 0) -> Path:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, n))
    yes = a + b * b + rng.normal(size=n) > 1
    key = rng.choice(["x", "y", "z"], n)
    more = {f"noise{i}": rng.normal(size=n) for i in range(noise)}
    path = folder / "rows.parquet"
    frame = pl.DataFrame({"a": a, "b": b, "key": key, **more, "y": np.where(yes, "yes", "no")})
    frame.write_parquet(path)
    return path


def table(folder: Path, augment: dict[str, Any], **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": "augmented",
        "folder": str(folder / "run"),
        "source": {"kind": "files", "path": str(folder / "rows.parquet")},
        "loader": {"batch_rows": 200},
        "scrub": {
            "standardize": {"columns": ["a", "b"]},
            "categories": {"columns": ["key"], "size": 4},
        },
        "model": {
            "task": "binary",
            "target": "y",
            "classes": ["no", "yes"],
            "numeric": ["a", "b"],
            "categories": ["key"],
            "layers": [16],
        },
        "train": {
            "optimizer": "adam",
            "lr": 1e-2,
            "threads": 1,
            "replay_rows": 1_000,
            "replay_steps": 2,
            "replay_batch": 100,
        },
        "augment": augment,
        "checkpoint": {"interval_batches": 4},
    }
    return {**made, **more}


def pipeline(folder: Path, augment: dict[str, Any], **more: Any) -> Pipeline:
    return Pipeline.of(table(folder, augment, **more))


def augmented(page: str, name: str) -> float:
    """How many rows were, by the metrics."""
    (line,) = re.findall(
        rf'^headrace_augmented_records_total{{augment="{name}"}} (.+)$', page, re.M
    )
    return float(line)


def test_all_is_learned_and_the_metrics_tell_it(tmp_path: Path) -> None:
    rows(tmp_path)
    run = Run(pipeline(tmp_path, ALL))
    totals = run.run().totals
    assert totals.balanced
    assert totals.learned == 3_000
    page = (tmp_path / "run" / "metrics.prom").read_text()
    jitter, mixup = (augmented(page, name) for name in ("jitter", "mixup"))
    assert jitter > 3_000  # each row, and kept ones after the steps
    assert 0.99 * jitter < mixup <= jitter  # a step of one row has nobody to be mixed with
    assert 'headrace_augmented_records_total{augment="gaps"}' in page


@pytest.mark.parametrize("kind", [pytest.param("tabular", marks=pytest.mark.full), "linear"])
def test_resumed_it_goes_on_to_the_bit(kind: str, tmp_path: Path) -> None:
    more: dict[str, Any] = {}
    if kind == "linear":
        model = {**table(tmp_path, {})["model"], "kind": "linear"}
        del model["layers"]
        more = {"model": model, "train": {"lr": 0.02}}
    (tmp_path / "b").mkdir()
    rows(tmp_path)
    rows(tmp_path / "b")
    whole = Run(pipeline(tmp_path, ALL, **more))
    whole.run()

    def halt(loop: Any, batch: Any) -> None:
        if loop.totals.batches == 9:
            loop.stop()

    first = Run(pipeline(tmp_path / "b", ALL, **more), watch=halt)
    assert first.run().stopped
    second = Run(pipeline(tmp_path / "b", ALL, **more))
    assert second.run().resumed
    expected, got = whole.learner.state_dict(), second.learner.state_dict()
    assert encode(got, {}) == encode(expected, {})
    (tmp_path / "c").mkdir()
    rows(tmp_path / "c")
    plain = Run(pipeline(tmp_path / "c", {}, **more))
    plain.run()
    assert encode(plain.learner.state_dict(), {}) != encode(expected, {})


@pytest.mark.full
def test_threads_and_depth_change_nothing(tmp_path: Path) -> None:
    rows(tmp_path)
    states = []
    for i, loader in enumerate(({"decode_threads": 1, "prefetch_bytes": "64KiB"}, {})):
        made = {"batch_rows": 200, "read_rows": 700, **loader}
        run = Run(pipeline(tmp_path, ALL, loader=made, name=f"run{i}"))
        run.run(fresh=True)
        states.append(encode(run.learner.state_dict(), {}))
    assert states[0] == states[1]


TOML = """
name = "augmented"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/rows.parquet"
[loader]
batch_rows = 100
[scrub.standardize]
columns = ["a", "b"]
[model]
task = "binary"
target = "y"
classes = ["no", "yes"]
numeric = ["a", "b"]
layers = [16]
[train]
lr = 1e-2
replay_rows = 500
threads = 1
[augment.jitter]
scale = 0.2
[augment.mixup]
[checkpoint]
interval_batches = 2
keep = 2
"""


@pytest.mark.full
@pytest.mark.slow
def test_killed_and_resumed_it_ends_where_an_uninterrupted_run_does(tmp_path: Path) -> None:
    """SIGKILL as soon as there is a checkpoint, twice."""
    ends = []
    for name, kills in (("whole", 0), ("killed", 2)):
        folder = tmp_path / name
        folder.mkdir()
        rows(folder, 5_000)
        file = folder / "pipeline.toml"
        file.write_text(TOML.replace("{folder}", str(folder)))
        for _ in range(kills):
            kill(file, folder / "run" / "checkpoints")
        run = Run(file)
        assert run.run().resumed == bool(kills)
        ends.append(encode(run.learner.state_dict(), {}))
    assert ends[0] == ends[1]


def kill(file: Path, checkpoints: Path) -> None:
    before = set(checkpoints.glob("*"))
    process = Command(["run", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: set(checkpoints.glob("*")) - before, process=process, what="a checkpoint")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.mark.full
def test_it_helps_where_rows_are_few_and_columns_many(tmp_path: Path) -> None:
    """150 rows learned over and over; the error on 3,000 others, by what is learned from."""
    losses = {}
    for name, augment in {
        "none": {},
        "jitter": {"jitter": {"scale": 0.5}},
        "mixup": {"mixup": {"alpha": 1.0}},
        "dropout": {"feature_dropout": {"share": 0.2}},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        rows(folder, 3_150, noise=20)
        frame = pl.read_parquet(folder / "rows.parquet")
        frame.head(150).write_parquet(folder / "rows.parquet")
        more = table(folder, augment)
        more["loader"] = {"batch_rows": 50}
        more["scrub"] = {}
        more["model"] |= {"numeric": ["a", "b", "noise*"], "categories": [], "layers": [64]}
        more["train"] = {"optimizer": "adam", "lr": 1e-2, "threads": 1, "replay_rows": 150}
        more["train"] |= {"replay_steps": 15, "replay_batch": 64}
        run = Run(Pipeline.of(more))
        run.run()
        assert run.parts.collate is not None
        losses[name] = log_loss(run, frame.tail(3_000))
    assert max(losses[name] for name in ("jitter", "mixup", "dropout")) < 0.9 * losses["none"]


def log_loss(run: Run, frame: pl.DataFrame) -> float:
    from engine.types import Batch, Mark

    reserved = pl.lit("p").alias("_partition"), pl.int_range(pl.len()).alias("_position")
    assert run.parts.collate is not None
    batch = run.parts.collate(Batch(frame=frame.with_columns(*reserved), mark=Mark(), arrived=0.0))
    assert batch.tensors is not None
    assert batch.tensors.target is not None
    yes = batch.tensors.target.numpy() == 1
    said = run.learner.predict(batch.tensors).clip(1e-7, 1 - 1e-7)
    return float(-np.log(np.where(yes, said, 1 - said)).mean())


def test_check_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows(tmp_path)
    assert preflight(Run(pipeline(tmp_path, {"jitter": {"probability": 1.0}})), rows=500)
    shown = " ".join(capsys.readouterr().out.split())
    assert "augment jitter │ 500 │ │ changed 500" in shown


@pytest.mark.parametrize(
    ("augment", "sentence"),
    [
        (
            {"jitter": {"probability": 1.5}},
            r"\[augment.jitter\] .* <= 1 for 'probability', got 1",
        ),
        ({"jitter": {"scale": -1}}, r"\[augment.jitter\] .* >= 0 for 'scale', got -1"),
        ({"gaps": {"kind": "feature_dropout", "share": 2}}, r"\[augment.gaps\] .*'share', got 2"),
        ({"jitter": {"scael": 1}}, r"\[augment.jitter\] .* no key 'scael'. Did you mean 'scale'"),
        ({"jiter": {}}, r"\[augment.jiter\] has no kind 'jiter'. Did you mean 'jitter'"),
        ({"mixup": {"alpha": 0}}, r"\[augment.mixup\] .* > 0 for 'alpha', got 0"),
        ({"jitter": {"columns": ["bb"]}}, r"\[augment.jitter\] columns: 'bb' matches no feature"),
        ({"jitter": {"columns": ["key"]}}, r"\[augment.jitter\] columns: 'key' matches no feature"),
        ({"jitter": 5}, r"expected a table for 'augment.jitter', got 5"),
    ],
)
def test_a_mistake_is_one_sentence(augment: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    rows(tmp_path)
    with pytest.raises(UserError, match=sentence) as caught:
        Run(pipeline(tmp_path, augment)).run()
    assert "\n" not in str(caught.value)


def test_without_a_model_there_is_nothing_to_augment(tmp_path: Path) -> None:
    made = table(tmp_path, ALL)
    del made["model"], made["train"]
    with pytest.raises(UserError, match=r"\[augment\] in .* needs a \[model\] that learns"):
        Run(Pipeline.of(made))


def pictures(folder: Path, n: int = 800) -> None:
    """Bars that lie or stand, with a text that says so more often than not, as encoded images."""
    rng = np.random.default_rng(0)
    standing = rng.random(n) < 0.5
    images = []
    for i in range(n):
        pixels = rng.integers(0, 120, (12, 12, 3), dtype=np.uint8)
        at = int(rng.integers(0, 10))
        place = (slice(None), slice(at, at + 2))
        pixels[place if standing[i] else place[::-1]] = 255
        images.append(encoded(pixels))
    words = np.where(standing, "Upright tall", "flat lying")
    said = np.where(rng.random(n) < 0.7, words, "some words more")
    label = np.where(standing, "yes", "no")
    frame = pl.DataFrame({"image": images, "text": said, "y": label})
    frame.write_parquet(folder / "rows.parquet")
    (folder / "likes.csv").write_text("word,like\nupright,vertical\nflat,horizontal\ntall,high\n")


SEEN: dict[str, Any] = {
    "flip": {"direction": "vertical"},
    "crop": {"area": 0.7},
    "rotate": {"degrees": 10},
    "colour": {},
    "pixel_noise": {"scale": 0.02},
    "token_dropout": {"share": 0.2},
    "token_swap": {"share": 0.8},
}


def seeing(folder: Path, augment: dict[str, Any], **model: Any) -> Pipeline:
    made = table(folder, augment)
    made["loader"] = {"batch_rows": 50}
    made["scrub"] = {
        "image": {"columns": ["image"], "size": [12, 12]},
        "tokens": {"columns": ["text"], "size": 500},
    }
    made["model"] = {
        "task": "binary",
        "target": "y",
        "classes": ["no", "yes"],
        "images": ["image"],
        "conv_channels": [8, 16],
        "layers": [16],
        **model,
    }
    made["train"] = {"optimizer": "adam", "lr": 5e-3, "threads": 1}
    return Pipeline.of(made)


@pytest.mark.full
def test_images_and_texts_are_augmented_and_resumed_to_the_bit(tmp_path: Path) -> None:
    augment = {**SEEN, "synonyms": {"table": str(tmp_path / "likes.csv"), "share": 0.5}}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pictures(tmp_path / name)
    pictures(tmp_path)
    whole = Run(seeing(tmp_path / "a", augment, ragged=["text"]))
    summary = whole.run()
    assert summary.totals.learned == 800
    assert summary.report["all"]["accuracy"] > 0.8
    page = (tmp_path / "a" / "run" / "metrics.prom").read_text()
    for name in augment:
        line = next(x for x in page.splitlines() if f'_total{{augment="{name}"}}' in x)
        assert 100 < float(line.split()[-1]) <= 800, line

    def halt(loop: Any, batch: Any) -> None:
        if loop.totals.batches == 11:
            loop.stop()

    assert Run(seeing(tmp_path / "b", augment, ragged=["text"]), watch=halt).run().stopped
    second = Run(seeing(tmp_path / "b", augment, ragged=["text"]))
    assert second.run().resumed
    assert encode(second.learner.state_dict(), {}) == encode(whole.learner.state_dict(), {})


@pytest.mark.parametrize(
    ("augment", "model", "sentence"),
    [
        ({"mixup": {}}, {"ragged": ["text"]}, r"\[augment.mixup\] kind mixes rows, and there is n"),
        ({"cutmix": {}}, {"images": [], "ragged": ["text"]}, r"\[augment.cutmix\] kind mixes rows"),
        ({"flip": {"columns": ["imag"]}}, {}, r"columns: 'imag' matches .* Did you mean 'image'\?"),
        (
            {"token_swap": {}},
            {},
            r"\[augment.token_swap\] columns: '\*' matches no feature of",
        ),
        ({"crop": {"area": 0}}, {}, r"\[augment.crop\] .* > 0 and <= 1 for 'area', got 0"),
        ({"rotate": {"degrees": 270}}, {}, r"\[augment.rotate\] .* 180 for 'degrees', got 270"),
        ({"synonyms": {}}, {"ragged": ["text"]}, r"\[augment.synonyms\] .* needs the key 'table'"),
    ],
)
def test_what_does_not_fit_images_and_texts_is_one_sentence(
    augment: dict[str, Any], model: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    pictures(tmp_path, 10)
    with pytest.raises(UserError, match=sentence) as caught:
        Run(seeing(tmp_path, augment, **model)).run()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_images_are_mixed(kind: str, tmp_path: Path) -> None:
    pictures(tmp_path)
    run = Run(seeing(tmp_path, {kind: {"alpha": 0.4}}))
    summary = run.run()
    assert summary.totals.learned == 800
    page = (tmp_path / "run" / "metrics.prom").read_text()
    assert augmented(page, kind) > 600  # but for rows whose step is not full yet
    assert summary.report["all"]["log_loss"] < 0.75  # labels of whole classes are what is scored
