"""A folder of versions: a reader sees a whole version or none, whatever ends the writer."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.system import atomic
from engine.types import UserError
from engine.versions.pointers import Pointer
from engine.versions.store import Versions
from engine.versions.version import Details, TornVersion

KILLS = 8
Model = Callable[[str], Path]


@pytest.fixture
def versions(tmp_path: Path) -> Versions:
    return Versions(tmp_path / "versions")


@pytest.fixture
def model(tmp_path: Path) -> Model:
    """Content -> a file of it."""

    def make(content: str) -> Path:
        path = tmp_path / "made.onnx"
        path.write_text(content)
        return path

    return make


def details(name: str) -> Details:
    return Details(model_version=name, rows=7, data_time=5.5, positions={"p": 3})


def published(versions: Versions, model: Model, count: int, keep: int = 9) -> None:
    for n in range(count):
        versions.publish(model(f"model {n}"), details(f"v{n}"), keep=keep)


def test_a_version_is_what_was_written(versions: Versions, model: Model) -> None:
    version = versions.publish(model("weights"), details("a1b2"), keep=3)
    assert versions.numbers() == [1]
    assert versions.pointer.read() == Pointer(number=1)
    assert versions.current() == versions.verified(1) == version
    assert versions.model(1).read_text() == "weights"
    assert (version.model_version, version.size, version.rows) == ("a1b2", 7, 7)
    assert (version.data_time, version.positions) == (5.5, {"p": 3})
    assert (versions.path(1) / "READY").read_text().strip() == version.digest
    assert sorted(path.name for path in versions.folder.iterdir()) == ["1", "current"]


def test_numbers_grow_and_the_oldest_go(versions: Versions, model: Model) -> None:
    published(versions, model, 5, keep=2)
    assert versions.numbers() == [4, 5]
    assert versions.current().model_version == "v4"
    versions.publish(model("one more"), details("w"), keep=1)
    assert versions.numbers() == [5, 6]  # the one before stays, for a way back


def test_who_goes_back_stays_there_until_the_newest_is_promoted(
    versions: Versions, model: Model
) -> None:
    published(versions, model, 3)
    assert versions.rollback().number == 2
    assert versions.pointer.read() == Pointer(number=2, held=True)
    versions.publish(model("later"), details("later"), keep=1)
    assert versions.pointer.read() == Pointer(number=2, held=True)
    assert versions.numbers() == [1, 2, 4]  # the one that serves, and the one before it
    assert versions.promote().number == 4
    assert versions.pointer.read() == Pointer(number=4)
    versions.publish(model("last"), details("last"), keep=9)
    assert versions.pointer.read() == Pointer(number=5)


def test_the_one_in_the_shadow_stays(versions: Versions, model: Model) -> None:
    published(versions, model, 2)
    assert versions.shadow.read() is None
    assert versions.put_into_shadow(1).model_version == "v0"
    for n in range(3):
        versions.publish(model(f"later {n}"), details("later"), keep=1)
    assert (versions.shadow.read(), versions.numbers()) == (Pointer(number=1), [1, 4, 5])
    with pytest.raises(UserError, match="there is no version 2; complete ones are 1, 4, 5"):
        versions.put_into_shadow(2)
    versions.shadow.delete()
    versions.shadow.delete()
    assert versions.shadow.read() is None
    versions.publish(model("last"), details("last"), keep=1)
    assert versions.numbers() == [5, 6]
    (versions.folder / "shadow").write_text("none")
    with pytest.raises(TornVersion, match="the pointer 'shadow' names no version"):
        versions.shadow.read()


def test_an_older_one_can_be_promoted(versions: Versions, model: Model) -> None:
    published(versions, model, 3)
    assert versions.promote(1).model_version == "v0"
    assert versions.pointer.read() == Pointer(number=1, held=True)
    with pytest.raises(UserError, match="no version before the one that serves"):
        versions.rollback()
    with pytest.raises(UserError, match="there is no version 9; complete ones are 1, 2, 3"):
        versions.promote(9)
    assert versions.pointer.read() == Pointer(number=1, held=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "model.onnx").write_text("other"), "does not have the digest"),
        (lambda folder: (folder / "model.onnx").unlink(), "cannot be read"),
        (lambda folder: (folder / "READY").unlink(), "is not complete: it has no READY"),
        (lambda folder: (folder / "READY").write_text("a1"), "does not have the digest"),
        (lambda folder: (folder / "version.json").write_text("{"), "version.json is damaged"),
        (lambda folder: (folder / "version.json").write_text("{}"), "version.json is damaged"),
        (
            lambda folder: (folder / "version.json").write_text("3"),
            "it lacks number, model_version,",
        ),
        (lambda folder: (folder / "version.json").unlink(), "version.json cannot be read"),
        (
            lambda folder: (folder / "version.json").write_text(
                (folder / "version.json").read_text().replace('"rows": 7', '"rows": "many"')
            ),
            "version.json is damaged (rows: ",
        ),
    ],
)
def test_a_torn_version_is_told(
    versions: Versions, model: Model, damage: Callable[[Path], object], said: str
) -> None:
    published(versions, model, 2)
    damage(versions.path(2))
    with pytest.raises(TornVersion, match=re.escape(said)):
        versions.verified(2)
    with pytest.raises(UserError, match=re.escape(said)):
        versions.current()
    with pytest.raises(UserError, match=f"{re.escape(said)}.*; complete ones are 1[.]$"):
        versions.promote(2)
    assert versions.whole() == [1]
    assert versions.verified(1).model_version == "v0"


@pytest.mark.parametrize("text", ["", "two", "-1", "1 2", "1 held more", "\xff"])
def test_a_pointer_that_is_none_is_told(versions: Versions, model: Model, text: str) -> None:
    published(versions, model, 1)
    (versions.folder / "current").write_bytes(text.encode("latin-1"))
    with pytest.raises(TornVersion, match="the pointer 'current'"):
        versions.pointer.read()
    with pytest.raises(UserError, match="cannot serve: the pointer"):
        versions.current()
    versions.publish(model("next"), details("next"), keep=5)
    assert versions.current().number == 2


def test_a_pointer_to_nothing(versions: Versions) -> None:
    with pytest.raises(UserError, match="has no version of a model yet"):
        versions.current()
    versions.folder.mkdir()
    (versions.folder / "current").write_text("3\n")
    with pytest.raises(UserError, match="there is no version 3"):
        versions.current()


def test_a_pointer_that_is_missing_is_told(versions: Versions, model: Model) -> None:
    published(versions, model, 2)
    (versions.folder / "current").unlink()
    with pytest.raises(UserError, match=r"'current' is missing.*--promote NUMBER' writes it"):
        versions.current()
    with pytest.raises(UserError, match="'current' is missing"):
        versions.rollback()
    (versions.folder / "current").write_text("two")
    with pytest.raises(UserError, match="names no version: 'two'; promote a version by its number"):
        versions.rollback()
    assert versions.promote(2) == versions.current()


def test_the_folder_of_a_copied_version_says_its_number(versions: Versions, model: Model) -> None:
    published(versions, model, 2)
    shutil.copytree(versions.path(1), versions.path(5))
    shutil.copytree(versions.path(1), versions.folder / "005")  # no version: it has no number
    assert versions.numbers() == [1, 2, 5]
    versions.promote(5)
    assert (versions.current().number, versions.verified(5).model_version) == (5, "v0")
    assert versions.rollback().number == 2
    assert versions.pointer.read() == Pointer(number=2, held=True)


def test_a_path_names_the_folder_or_its_pointer(versions: Versions, model: Model) -> None:
    assert Versions.named(versions.folder) is None
    published(versions, model, 1)
    for path in (versions.folder, versions.folder / "current"):
        named = Versions.named(path)
        assert named is not None
        assert named.folder == versions.folder
    assert Versions.named(versions.model(1)) is None


def test_a_number_that_another_has_taken_is_passed_over(
    versions: Versions, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two publishers, in the moment between a look at the numbers and the rename."""
    published(versions, model, 1)
    publish = atomic.publish

    def late(names: dict[Path, Path]) -> None:
        for path in names.values():
            if path.name == "2" and not path.exists():
                path.mkdir()
                (path / "model.onnx").write_text("the other's")
        publish(names)

    monkeypatch.setattr(atomic, "publish", late)
    assert versions.publish(model("ours"), details("ours"), keep=5).number == 3
    assert (versions.path(2) / "model.onnx").read_text() == "the other's"
    assert versions.current().model_version == "ours"


@pytest.mark.parametrize("full_at", ["model.onnx", "version.json", "READY", "current"])
def test_a_full_disk_leaves_the_pointer_and_no_rest(
    versions: Versions, model: Model, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    published(versions, model, 1)
    stage = atomic.stage

    def full(temporary: Path, *given: object, **named: object) -> None:
        if temporary.name.startswith(full_at):
            raise OSError(28, "No space left on device")
        stage(temporary, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(atomic, "stage", full)
    with pytest.raises(OSError, match="No space left"):
        versions.publish(model("second"), details("second"), keep=5)
    assert versions.pointer.read() == Pointer(number=1)
    assert not (versions.folder / ".next").exists()
    monkeypatch.undo()
    versions.publish(model("third"), details("third"), keep=5)
    assert versions.current().model_version == "third"


def test_a_kill_at_any_moment_leaves_a_version_that_serves(
    versions: Versions, model: Model
) -> None:
    """A process that publishes without an end is killed, again and again."""
    rng = random.Random(3)
    published(versions, model, 1)
    source, newest = model("weights " * 40_000), 1
    for _ in range(KILLS):
        if (child := os.fork()) == 0:
            try:
                while True:
                    versions.publish(source, details("killed"), keep=2)
            finally:
                os._exit(1)
        time.sleep(rng.random() / 20)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        current = versions.current()  # whole, by its digest
        assert current.number >= newest
        newest = current.number
        text = (versions.path(newest) / "version.json").read_text()
        assert json.loads(text)["digest"] == current.digest
    assert versions.publish(source, details("after"), keep=2).number > newest
    assert versions.current().model_version == "after"
    assert not (versions.folder / ".next").exists()


def test_the_way_back_leaves_out_what_never_served(versions: Versions, model: Model) -> None:
    published(versions, model, 1)
    worse = Details(model_version="worse", kept_back="its MAE is worse")
    assert versions.publish(model("worse"), worse, keep=9).number == 2
    assert versions.current().number == 1
    versions.publish(model("better"), details("better"), keep=1)
    assert versions.current().number == 3
    assert versions.numbers() == [1, 3]  # the way back stays
    assert versions.rollback().number == 1
    versions.publish(model("bad again"), worse, keep=9)
    assert versions.promote().number == 4  # by hand it serves
    assert versions.rollback().number == 3
