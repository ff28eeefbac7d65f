"""When a version is due, and what a version that cannot be made leaves behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.observing.metrics import Metrics
from engine.system.limited_process import Limits, ProcessFailed
from engine.versions.publishing import PUBLISH, Publisher, PublishJob
from engine.versions.registry import SYNC, RegistryJob
from engine.versions.store import Versions
from engine.versions.version import Details, Version
from tests.waiting import HANG

HOUR = 3600.0
Make = Callable[..., Publisher]


class Child:
    """What a child process does, in this one: copies the checkpoint as a version.

    Attributes:
        jobs: what it was given.
        go: it waits for that.
        error: what it raises.
        worse: why the version does not serve.
    """

    def __init__(self) -> None:
        self.jobs: list[PublishJob] = []
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None
        self.worse = ""

    def __call__(
        self, function: str, job: PublishJob, limits: Limits, *, stopped: Callable[[], bool]
    ) -> Version:
        assert function == PUBLISH
        self.jobs.append(job)
        while not self.go.wait(0.001):
            if stopped():
                raise ProcessFailed("was stopped")
        if self.error is not None:
            raise self.error
        (checkpoint,) = Path(job.checkpoints).glob("checkpoint-*.hrc")
        details = Details(model_version=checkpoint.read_text(), rows=job.rows, kept_back=self.worse)
        return Versions(Path(job.versions)).publish(checkpoint, details, keep=job.keep)


@pytest.fixture
def child() -> Child:
    return Child()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def make(tmp_path: Path, child: Child, metrics: Metrics) -> Iterator[Make]:
    """(every=..., every_rows=...) -> a publisher that has begun at 0 rows."""
    made: list[Publisher] = []

    def build(**keys: Any) -> Publisher:
        job = PublishJob(table={}, file="p.toml", versions=str(tmp_path / "versions"), keep=3)
        publisher = Publisher(job, metrics, call=child, **keys)
        publisher.begin(0)
        made.append(publisher)
        return publisher

    yield build
    for publisher in made:
        publisher.close()


def checkpoint(folder: Path, number: int) -> Path:
    """A checkpoint file that says its number."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    path = folder / "checkpoints" / f"checkpoint-{number:08d}.hrc"
    path.write_text(f"state {number}")
    return path


def counted(metrics: Metrics, outcome: str) -> float:
    return float(metrics.model_versions.labels(outcome=outcome)._value.get())


def test_after_so_many_rows(make: Make, child: Child, metrics: Metrics, tmp_path: Path) -> None:
    publisher = make(every_rows=100)
    for number, rows in enumerate((50, 99, 100, 150, 220, 230)):
        publisher.saved(checkpoint(tmp_path, number), rows, 7.0 + number)
        publisher.wait()
    assert [(job.rows, job.data_time) for job in child.jobs] == [(100, 9.0), (220, 11.0)]
    versions = Versions(tmp_path / "versions")
    assert versions.current().model_version == "state 4"
    assert counted(metrics, "published") == 2
    assert not (tmp_path / "checkpoints" / "publishing").exists()


@pytest.mark.parametrize(("every", "published"), [(1e-9, [3, 5]), (HOUR, [])])
def test_after_a_time_if_something_was_learned(
    make: Make, child: Child, tmp_path: Path, every: float, published: list[int]
) -> None:
    publisher = make(every=every)
    for number, rows in enumerate((0, 3, 3, 5)):
        publisher.saved(checkpoint(tmp_path, number), rows, None)
        publisher.wait()
    assert [job.rows for job in child.jobs] == published


def test_what_was_learned_before_a_restart_is_not_published_again(
    make: Make, child: Child, tmp_path: Path
) -> None:
    publisher = make(every_rows=10)
    publisher.begin(1_000)
    for number, rows in enumerate((1_000, 1_009, 1_010)):
        publisher.saved(checkpoint(tmp_path, number), rows, None)
    publisher.wait()
    assert [job.rows for job in child.jobs] == [1_010]


def test_one_at_a_time_from_a_checkpoint_that_the_run_has_deleted(
    make: Make, child: Child, tmp_path: Path
) -> None:
    child.go.clear()
    publisher = make(every_rows=1)
    first = checkpoint(tmp_path, 1)
    publisher.saved(first, 1, None)
    first.unlink()
    publisher.saved(checkpoint(tmp_path, 2), 2, None)  # it is being made
    child.go.set()
    publisher.wait()
    assert Versions(tmp_path / "versions").current().model_version == "state 1"
    publisher.saved(checkpoint(tmp_path, 3), 3, None)
    publisher.wait()
    assert [job.rows for job in child.jobs] == [1, 3]


@pytest.mark.parametrize(
    "error", [ProcessFailed("crashed with SIGSEGV"), OSError(28, "No space left on device")]
)
def test_a_failure_is_counted_and_told_and_the_pointer_stays(
    make: Make, child: Child, metrics: Metrics, tmp_path: Path, error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    publisher = make(every_rows=1)
    for number, failure in enumerate((None, error, None), 1):
        child.error = failure
        publisher.saved(checkpoint(tmp_path, number), number, None)
        publisher.wait()
        current = Versions(tmp_path / "versions").current().model_version
        assert current == ("state 1" if number < 3 else "state 3")
    assert (counted(metrics, "published"), counted(metrics, "failed")) == (2, 1)
    (said,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert str(error) in said.getMessage()
    assert "the one before serves on" in said.getMessage()


def test_a_version_that_is_worse_is_kept_back_and_told(
    make: Make, child: Child, metrics: Metrics, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher, versions = make(every_rows=1), Versions(tmp_path / "versions")
    for number, worse in enumerate(("", "its MAE is worse", ""), 1):
        child.worse = worse
        publisher.saved(checkpoint(tmp_path, number), number, None)
        publisher.wait()
        current = versions.current().model_version
        assert current == ("state 1" if number < 3 else "state 3")
    assert (counted(metrics, "published"), counted(metrics, "kept_back")) == (2, 1)
    assert versions.numbers() == [1, 2, 3]
    assert caplog.text.count("version 2 is published and does not serve: its MAE is worse") == 1


def test_the_end_of_a_run_waits_for_none(
    make: Make, child: Child, metrics: Metrics, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    child.go.clear()
    publisher = make(every_rows=1)
    publisher.saved(checkpoint(tmp_path, 1), 1, None)
    ended = threading.Thread(target=publisher.close)
    ended.start()
    ended.join(HANG)
    assert not ended.is_alive()
    assert not publisher.is_busy
    assert (counted(metrics, "published"), counted(metrics, "failed")) == (0, 0)
    assert not caplog.records
    publisher.saved(checkpoint(tmp_path, 2), 2, None)
    assert len(child.jobs) == 1


def test_a_pointer_that_is_held_is_told_once(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publisher, versions = make(every_rows=1), Versions(tmp_path / "versions")
    for number in range(1, 5):
        publisher.saved(checkpoint(tmp_path, number), number, None)
        publisher.wait()
        if number == 2:
            versions.rollback()
    assert versions.current().model_version == "state 1"
    assert caplog.text.count("version 1 serves, held by hand") == 1


@pytest.mark.parametrize(
    ("limits", "rows", "said"),
    [
        (
            {"every_rows": 1_000},
            400,
            "it learned 400 rows in 0 s, and [export] has every_rows = 1,000",
        ),
        ({"every": HOUR, "every_rows": 900}, 400, "has every_rows = 900 and every = 3600 s"),
        ({"every_rows": 300}, 400, "it ended before a version was made"),
        ({"every_rows": 1_000}, 0, ""),
    ],
)
def test_a_run_that_publishes_none_while_it_learns_says_so(
    make: Make, child: Child, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    limits: dict[str, Any], rows: int, said: str,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO)
    child.go.clear()
    publisher = make(**limits)
    publisher.saved(checkpoint(tmp_path, 1), rows, None)
    publisher.close()
    publisher.close()
    assert caplog.text.count("no version was published while this run learned") == bool(said)
    assert said in caplog.text


def test_a_run_that_has_published_says_nothing_at_its_end(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    publisher = make(every_rows=100)
    publisher.saved(checkpoint(tmp_path, 1), 100, None)
    publisher.wait()
    publisher.saved(checkpoint(tmp_path, 2), 150, None)
    publisher.close()
    assert "no version was published" not in caplog.text


def test_a_registry_that_fails_takes_nothing_from_the_version(
    tmp_path: Path, child: Child, metrics: Metrics
) -> None:
    registry = RegistryJob(folder=str(tmp_path / "versions"), name="p")
    asked: list[RegistryJob] = []

    def call(function: str, job: Any, limits: Limits, *, stopped: Callable[[], bool]) -> Any:
        if function != SYNC:
            return child(function, job, limits, stopped=stopped)
        asked.append(job)
        raise ProcessFailed("raised: nobody is there")

    job = PublishJob(table={}, file="p.toml", versions=registry.folder, keep=3, registry=registry)
    publisher = Publisher(job, metrics, call=call, every_rows=100)
    publisher.begin(0)
    publisher.saved(checkpoint(tmp_path, 1), 100, None)
    publisher.wait()
    publisher.close()
    assert asked == [registry]
    assert (counted(metrics, "published"), counted(metrics, "failed")) == (1, 0)
    assert metrics.registry_failures._value.get() == 1
    assert Versions(tmp_path / "versions").current().model_version == "state 1"
