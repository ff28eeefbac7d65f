"""A model's versions: published by the engine that learns, served by the engine that follows."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from engine.run import Run
from engine.running.loop import Loop
from engine.system import limited_process
from engine.types import Batch
from engine.versions.pointers import Pointer
from engine.versions.registry import SYNC, URIS, RegistryJob
from engine.versions.store import Versions
from engine.versions.swapping import SwappingPredictor
from models.serving.predictor import OnnxPredictor
from tests.pipelines.conftest import Headrace, Rows, Small, rows_of, small_in
from tests.waiting import until

EXPORT = "[export]\ncompress = false\nholdout = 0.2\nholdout_rows = 500\n"
FAST = ('optimizer = "adam"', 'optimizer = "adam"\nlr = 0.03')
"""So that a few rows teach something."""
SERVE = """
base = "small.toml"
name = "serve"
folder = "{place}/serve"
[infer]
model = "{place}/run/versions"
poll_interval = "1ms"
threads = 1
[sink]
path = "{place}/answers"
columns = ["n"]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small pipeline's folder after two runs: two versions, the second of more rows."""
    folder = tmp_path_factory.mktemp("made")
    for n in (400, 800):
        rows_of(n).write_csv(folder / "data.csv")
        Run(small_in(folder, folder / "data.csv", FAST, more=EXPORT)).run(fresh=True)
    return folder


@pytest.fixture
def trained(tmp_path: Path, made: Path, small: Small) -> Versions:
    """The same in a folder of its own, with a pipeline that serves."""
    for part in ("data.csv", "run/versions", "run/model.onnx"):
        target = tmp_path / part
        target.parent.mkdir(exist_ok=True)
        copy = shutil.copytree if (made / part).is_dir() else shutil.copy
        copy(made / part, target)
    small(tmp_path / "data.csv", FAST, more=EXPORT)
    (tmp_path / "serve.toml").write_text(SERVE.format(place=tmp_path))
    return Versions(tmp_path / "run" / "versions")


def test_the_end_of_a_run_publishes_and_the_command_moves_the_pointer(
    trained: Versions, headrace: Headrace, tmp_path: Path
) -> None:
    assert trained.numbers() == [1, 2]
    newest = trained.current()
    assert newest.number == 2
    assert sum(newest.positions.values()) > 0
    assert trained.model(2).read_bytes() == (tmp_path / "run" / "model.onnx").read_bytes()
    for what in (tmp_path / "small.toml", tmp_path / "serve.toml", trained.folder):
        code, out, _ = headrace("versions", what)
        assert code == 0
        assert newest.model_version in out
    code, out, _ = headrace("versions", trained.folder, "--rollback")
    assert (code, trained.current().number) == (0, 1)
    assert "Version 1 serves and is held: newer ones do not serve." in out
    code, _, err = headrace("versions", trained.folder, "--promote", "7")
    assert code == 2
    assert "there is no version 7; complete ones are 1, 2" in err
    code, out, _ = headrace("versions", trained.folder, "--promote")
    assert (code, trained.current().number) == (0, 2)
    assert "Version 2 serves.\n" in out


def test_the_command_shows_what_is_damaged(trained: Versions, headrace: Headrace) -> None:
    model, pointer = trained.model(1), trained.folder / "current"
    model.write_bytes(model.read_bytes()[:-1])
    code, out, _ = headrace("versions", trained.folder)
    assert (code, out.count("damaged")) == (0, 1 + out.count("is damaged"))
    code, _, err = headrace("versions", trained.folder, "--rollback")
    assert code == 2
    assert "version 1 is damaged" in err
    assert "complete ones are 2." in err
    pointer.write_text("1\n")
    code, out, err = headrace("versions", trained.folder)
    assert (code, "serves, damaged" in out) == (2, True)
    assert "cannot serve: version 1 is damaged" in err
    pointer.unlink()
    code, out, err = headrace("versions", trained.folder)
    assert code == 2
    assert "the pointer 'current' is missing, so no version serves" in err
    code, out, _ = headrace("versions", trained.folder, "--promote", "2")
    assert (code, trained.current().number) == (0, 2)


@pytest.mark.parametrize(
    ("content", "shown"),
    [("1\n", "in the shadow"), ("9\n", "not there"), ("x\n", "pointer")],
)
def test_the_command_shows_a_shadow_that_is_none(
    trained: Versions, headrace: Headrace, content: str, shown: str
) -> None:
    """Nothing else says that its answers are not compared."""
    (trained.folder / "shadow").write_text(content)
    code, out, err = headrace("versions", trained.folder)
    assert (shown in out, out.count("in the shadow")) == (True, 1)
    assert code == (0 if content == "1\n" else 2)
    assert ("cannot answer" in err) == (code == 2)
    code, out, _ = headrace("versions", trained.folder, "--promote", "2")
    assert (code, "Version 2 serves." in out) == (0, True)
    code, out, _ = headrace("versions", trained.folder, "--shadow")
    assert (code, "No version is in the shadow." in out) == (0, True)


def test_a_version_says_until_when_its_data_are_by_the_time_that_a_stage_reads(
    tmp_path: Path, rows: Rows, small: Small
) -> None:
    at = pl.datetime(2026, 1, 1) + pl.duration(hours=pl.col("n"))
    rows(400).with_columns(at=at).write_csv(tmp_path / "data.csv")
    lag = '[scrub.past]\nkind = "lag"\ncolumn = "b"\ntime = "at"\nevery = "1h"\nsteps = [1]\n'
    Run(small(tmp_path / "data.csv", more=f"{lag}{EXPORT}")).run()
    newest = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=rows(400)["n"].to_list()[-1])
    version = Versions(tmp_path / "run" / "versions").current()
    assert version.data_time == newest.timestamp()


def test_a_time_that_no_calendar_has_is_shown(trained: Versions, headrace: Headrace) -> None:
    details = trained.path(2) / "version.json"
    details.write_text(json.dumps({**json.loads(details.read_text()), "data_time": 1e20}))
    code, out, _ = headrace("versions", trained.folder)
    assert code == 0
    assert "1e+20" in out


def test_an_engine_that_serves_speaks_of_no_export(
    trained: Versions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has the [export] of the pipeline that is its base."""
    assert trained.numbers()
    caplog.set_level(logging.INFO)
    summary = Run(tmp_path / "serve.toml", watch=lambda loop, _: loop.stop()).run()
    assert summary.stopped
    assert "No model is exported" not in caplog.text


def test_the_same_model_is_no_other_version(made: Path) -> None:
    """A run that finds nothing new publishes nothing."""
    before = Versions(made / "run" / "versions").numbers()
    Run(made / "small.toml").run()
    assert Versions(made / "run" / "versions").numbers() == before


def test_a_worse_model_is_added_and_does_not_serve(
    trained: Versions, headrace: Headrace, tmp_path: Path
) -> None:
    """A run that starts over and learns next to nothing replaces no model that has learned."""
    code, _, err = headrace(
        "run", "--fresh", tmp_path / "small.toml", "--set", "export.holdout=0.5",
        "--set", "train.lr=1e-9", "--set", "model.seed=5",
    )  # fmt: skip
    assert code == 0
    kept = [line for line in err.splitlines() if "does not serve" in line]
    assert len(kept) == 1, err
    assert (trained.numbers(), trained.current().number) == ([1, 2, 3], 2)


def served(run: Run) -> SwappingPredictor:
    predictor = run.parts.served.predictor
    assert isinstance(predictor, SwappingPredictor)
    return predictor


def test_rows_are_answered_by_the_version_that_was_current(
    trained: Versions, tmp_path: Path
) -> None:
    """The pointer moves in the middle of the file; a version that is torn changes nothing."""
    first, second = (trained.version(number) for number in (1, 2))
    trained.promote(1)
    swaps: list[int] = []

    def watch(loop: Loop, batch: Batch) -> None:
        swapped = run.metrics.model_swaps.labels(outcome="swapped")._value.get
        if loop.totals.batches == 3:
            trained.promote(2)
            until(lambda: predictor.pending is not None)
        if loop.totals.batches == 4:
            swaps.append(int(swapped()))
        if loop.totals.batches == 5:
            trained.model(1).write_bytes(b"half of it")
            (trained.folder / "current").write_text("1\n")
            torn = run.metrics.model_swaps.labels(outcome="torn")._value.get
            until(lambda: torn() == 1)

    run = Run(tmp_path / "serve.toml", watch=watch)
    predictor = served(run)
    done = run.run(fresh=True)
    assert (done.totals.predicted, done.totals.rejected) == (800, 0)
    assert swaps == [1]
    answered = pl.concat(map(pl.read_parquet, sorted((tmp_path / "answers").glob("*")))).sort("n")
    by = answered["model_version"].to_list()
    assert by == [first.model_version] * 300 + [second.model_version] * 500
    rows = pl.read_csv(tmp_path / "data.csv")
    model = OnnxPredictor(OnnxPredictor.Settings(model=str(trained.model(2)), threads=1))
    wanted = model.scores(rows[300:])
    assert answered["prediction"][300:].to_list() == pytest.approx(wanted.tolist(), rel=1e-6)


def test_a_model_that_is_there_already_is_not_said_to_be_published(
    tmp_path: Path, small: Small, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that resumes at its end makes the same file again."""
    rows_of(400).write_csv(tmp_path / "data.csv")
    file = small(tmp_path / "data.csv", FAST, more=EXPORT)
    caplog.set_level(logging.INFO, "headrace")
    published = []
    for _ in range(2):
        caplog.clear()
        assert "version 1" in Run(file).run().files
        published.append([said for said in caplog.messages if said.startswith("version 1 ")])
    assert published[0][0].startswith("version 1 published: ")
    assert published[1] == ["version 1 is this model already: no other is published"]


def test_an_engine_that_follows_goes_on_after_a_swap(trained: Versions, tmp_path: Path) -> None:
    """A stage with a state does not tie its checkpoint to a version."""
    file = tmp_path / "serve.toml"
    lag = '[scrub.past]\nkind = "lag"\ncolumn = "b"\ntime = "n"\nevery = 1\nsteps = [1]\n'
    file.write_text(file.read_text() + lag)
    trained.promote(1)
    Run(file).run(fresh=True)
    trained.promote(2)
    done = Run(file).run()
    assert done.resumed
    assert done.totals.predicted == 800


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "current").unlink(), "the pointer 'current' is missing"),
        (lambda folder: (folder / "2" / "model.onnx").write_text(""), "does not have the digest"),
        (lambda folder: (folder / "current").write_text("5"), "there is no version 5"),
    ],
)
def test_nothing_that_could_serve(
    trained: Versions, headrace: Headrace, tmp_path: Path, change: Callable[[Path], object],
    said: str,
) -> None:  # fmt: skip
    change(trained.folder)
    for command in ("check", "run"):
        code, _, err = headrace(command, tmp_path / "serve.toml")
        assert code == 2
        assert said in err
        assert len(err.splitlines()) == 1


def test_keys_of_a_folder_are_none_of_a_file(
    trained: Versions, headrace: Headrace, tmp_path: Path
) -> None:
    model = f'infer.model="{trained.model(1)}"'
    code, _, err = headrace("check", tmp_path / "serve.toml", "--set", model)
    assert code == 2
    assert "[infer] poll_interval is for a folder of versions" in err


def children() -> list[psutil.Process]:
    """The processes of this one that make a version."""
    processes = psutil.Process().children()
    return [process for process in processes if "engine.publication:publish" in process.cmdline()]


def test_a_canary_needs_the_columns_of_its_key(
    trained: Versions, headrace: Headrace, tmp_path: Path
) -> None:
    for keys, said in (
        (["infer.canary=0.1"], "expected both of canary and canary_by, or none"),
        (["infer.canary=0.1", 'infer.canary_by=["user"]'], "canary_by needs column 'user'"),
    ):
        words = [word for key in keys for word in ("--set", key)]
        code, _, err = headrace("check", tmp_path / "serve.toml", *words)
        assert code == 2
        assert said in err


@pytest.mark.slow(15)
def test_versions_are_published_while_the_run_learns(
    tmp_path: Path, rows: Rows, small: Small
) -> None:
    """In real processes: the first is killed, and the loop goes on; the next one publishes."""
    rows(1_200).write_csv(tmp_path / "data.csv")
    file = small(tmp_path / "data.csv", more=f"{EXPORT}every_rows = 250\n")
    versions = Versions(tmp_path / "run" / "versions")
    published: list[int] = []

    def outcomes() -> tuple[float, ...]:
        values = run.metrics.model_versions
        return tuple(values.labels(outcome=name)._value.get() for name in ("failed", "published"))

    def watch(loop: Loop, batch: Batch) -> None:
        publisher = loop._publisher
        assert publisher is not None
        if loop.totals.batches == 4:
            (child,) = until(children)
            child.kill()
            until(lambda: not publisher.is_busy, what="the end of the killed child")
            assert outcomes() == (1, 0)
            assert versions.pointer.read() is None
        if loop.totals.batches == 8:
            until(lambda: not publisher.is_busy, what="a version")
            assert outcomes() == (1, 1)
            published.append(versions.current().rows)

    run = Run(file, watch=watch)
    done = run.run()
    learned = published[0]
    assert 500 <= learned < done.totals.learned
    assert versions.numbers() == [1, 2]  # and the last at the end
    assert versions.version(2).rows == done.totals.learned
    assert versions.version(1).model_version != versions.version(2).model_version
    model = OnnxPredictor(OnnxPredictor.Settings(model=str(versions.model(1)), threads=1))
    assert model.scores(rows(100)).shape == (100,)
    assert not (tmp_path / "run" / "checkpoints" / "publishing").exists()


# ---------------------------------------------------------------------------------------- registry

REGISTRY = "export.registry=mlflow"


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> list[RegistryJob]:
    """A registry that is away, and what it was to follow."""
    jobs: list[RegistryJob] = []
    others = limited_process.call

    def call(function: str, job: Any, *arguments: Any, **keys: Any) -> Any:
        if function != SYNC:
            return others(function, job, *arguments, **keys)
        jobs.append(job)
        raise limited_process.ProcessFailed(f"nobody is at {os.environ['MLFLOW_TRACKING_URI']}")

    monkeypatch.setattr(limited_process, "call", call)
    monkeypatch.setattr("engine.versions.registry.find_spec", lambda _: object())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:Unspoken1@127.0.0.1:9")
    return jobs


def test_a_registry_that_is_away_stops_no_run(
    rows: Rows, small: Small, headrace: Headrace, tmp_path: Path, away: list[RegistryJob]
) -> None:
    rows(400).write_csv(tmp_path / "data.csv")
    run = Run(small(tmp_path / "data.csv", FAST, more=EXPORT), [REGISTRY])
    run.run()
    assert away == [RegistryJob(folder=str(tmp_path / "run" / "versions"), name="small")]
    assert run.metrics.registry_failures._value.get() == 1
    assert Versions(tmp_path / "run" / "versions").current().rows > 0


def test_a_registry_follows_the_pointer(
    trained: Versions, tmp_path: Path, headrace: Headrace, away: list[RegistryJob]
) -> None:
    file = tmp_path / "small.toml"
    code, _, err = headrace("versions", file, "--set", REGISTRY)
    assert (code, away) == (0, []), err
    code, _, err = headrace("versions", file, "--promote", "1", "--set", REGISTRY)
    assert code == 1
    assert "The pointer has moved, and MLflow's registry does not follow (nobody is at http" in err
    assert "Unspoken1" not in err
    assert trained.pointer.read() == Pointer(number=1, held=True)
    assert away == [RegistryJob(folder=str(trained.folder), name="small")]
    code, _, err = headrace("versions", tmp_path / "serve.toml", "--promote", "--set", REGISTRY)
    assert (code, len(away)) == (0, 1), err  # the pipeline that publishes has the name


@pytest.mark.parametrize(
    ("installed", "sentence"),
    [
        (False, "needs the package mlflow, which is not installed: pip install 'headrace[mlflow]'"),
        (True, "needs the address of a registry: set MLFLOW_TRACKING_URI"),
    ],
)
def test_what_a_registry_needs(
    rows: Rows, small: Small, headrace: Headrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    installed: bool, sentence: str,
) -> None:  # fmt: skip
    found = object() if installed else None
    monkeypatch.setattr("engine.versions.registry.find_spec", lambda _: found)
    for name in URIS:
        monkeypatch.delenv(name, raising=False)
    rows(400).write_csv(tmp_path / "data.csv")
    file = small(tmp_path / "data.csv", more=EXPORT)
    code, out, err = headrace("check", file, "--set", REGISTRY)
    assert code == 2
    assert f"[export] registry = 'mlflow' in {file} {sentence}" in " ".join((out + err).split())
