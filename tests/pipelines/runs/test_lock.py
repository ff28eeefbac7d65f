"""Two engines where one may work: refused, whatever they share; a dead one holds nothing."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from engine.config import Pipeline
from engine.run import Run
from engine.running.loop import Loop
from engine.system.lock import locked
from engine.types import Batch, UserError
from tests.pipelines.conftest import Headrace, Rows, Small

HOLD = """
import sys
from pathlib import Path
from engine.system.lock import locked
with locked([Path(sys.argv[1])]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def file(rows: Rows, small: Small, tmp_path: Path) -> Path:
    rows(1_000).write_parquet(tmp_path / "data.parquet")
    return small(tmp_path / "data.parquet")


@pytest.mark.parametrize(
    ("command", "sets", "shared"),
    [
        (("run",), (), "run"),
        (("run", "--fresh"), (), "run"),
        (("replay",), (), "run"),
        (("run",), ("folder={}/other",), "out"),
        (("run",), ("folder={}/other", "sink.path={}/elsewhere", "dead_letters.path={}/run/../run"),
         "run"),
        (("run",), ("folder={}/other", "sink.path={}/run/checkpoints"), "run/checkpoints"),
    ],
)  # fmt: skip
def test_a_second_engine_is_refused_and_changes_nothing(
    file: Path, headrace: Headrace, results: Callable[[], pl.DataFrame], tmp_path: Path,
    command: tuple[str, ...], sets: tuple[str, ...], shared: str,
) -> None:  # fmt: skip
    said: list[tuple[int, str]] = []

    def second(loop: Loop, batch: Batch) -> None:
        if loop.totals.batches == 5 and not said:
            words = [w for text in sets for w in ("--set", text.format(tmp_path))]
            if command == ("replay",):
                (tmp_path / "run" / "dead_letters" / "part-00000000.ndjson").touch()
            code, _, err = headrace(command[0], file, *command[1:], *words)
            said.append((code, err))

    done = Run(file, watch=second).run()
    ((code, err),) = said
    assert code == 2
    assert f"Another engine works in {tmp_path / shared}: expected one at a time; stop" in err
    assert (done.totals.read, done.totals.learned) == (1_000, 1_000)
    assert results().height == 1_000
    code, _, err = headrace("run", file)  # the lock ended with the run
    assert code == 0, err


@pytest.mark.parametrize(
    "sets",
    [
        ("sink.path={}/new/results",),
        ("dead_letters.path={}/new", "dead_letters.verify_parts=true"),
        ("folder={}/new",),
        ("sink.path={}/new/results", "export.path={}/new/model/m.onnx"),
        ("source.schema.a=string", "export.path={}/new/model.onnx"),
    ],
)
def test_a_run_that_is_refused_leaves_no_folder(
    sets: tuple[str, ...], file: Path, headrace: Headrace, tmp_path: Path
) -> None:
    limit = ("--set", "dead_letters.limit=1")
    rows = pl.read_parquet(tmp_path / "data.parquet").head(100)
    some = pl.when(pl.col("n") < 50).then(pl.col("y"))
    rows.with_columns(y=some).write_parquet(tmp_path / "data.parquet")
    assert headrace("run", file, *limit)[0] == 0
    before = set(tmp_path.rglob("*"))
    words = [word for text in sets for word in ("--set", text.format(tmp_path))]
    code, out, err = headrace("run", file, *limit, *words)
    assert code == 2, out + err
    assert set(tmp_path.rglob("*")) == before


def test_folders_that_stay_empty_go_with_the_lock(tmp_path: Path) -> None:
    used, empty = tmp_path / "a" / "used", tmp_path / "a" / "b" / "empty"
    (tmp_path / "there").mkdir()
    with locked([used, empty, tmp_path / "there"], [tmp_path / "c" / "model.onnx"]):
        (used / "part").touch()
        assert empty.is_dir()
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert left == {"a", "a/used", "a/used/part", "there"}


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match="Another engine works in"), locked([tmp_path]):
        pass
    process.kill()
    process.communicate()
    with locked([tmp_path]):
        assert list(tmp_path.iterdir()) == []
    with locked([tmp_path]):
        pass


def test_where_nothing_can_be_locked_the_engine_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(lock: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)  # as a file system does that has none
    with locked([tmp_path], [tmp_path / "model.onnx"]):
        pass
    assert caplog.text.count("a second engine that writes there would not be noticed") == 2


def test_two_pipelines_with_one_model_file(file: Path, headrace: Headrace, tmp_path: Path) -> None:
    model = tmp_path / "models" / "m.onnx"
    file.write_text(file.read_text() + f'[export]\npath = "{model}"\n[export.compress]\n')
    elsewhere = (f'folder="{tmp_path}/b"', f'sink.path="{tmp_path}/c"')
    said: list[tuple[int, str]] = []

    def second(loop: Loop, batch: Batch) -> None:
        if loop.totals.batches == 5 and not said:
            words = [word for text in elsewhere for word in ("--set", text)]
            for command in (("check", file), ("run", file), ("export", file, "--to", model)):
                more = [] if command[0] == "export" else words
                code, out, err = headrace(*command, *more)
                said.append((code, out + err))

    pipeline = Pipeline.load(file, ["export.compress.candidates=[]"])
    assert Run(pipeline, watch=second).run().totals.read == 1_000
    (_, _), (code, err), (exported, _) = said
    assert code == 2
    assert f"Another engine writes {model}: expected one at a time; stop that one" in err
    assert not (tmp_path / "c").exists() or not list((tmp_path / "c").iterdir())
    assert exported == 0  # beside the engine that goes on learning
    assert {path.name for path in model.parent.iterdir()} == {"m.fp32.onnx", "m.onnx"}


def test_a_file_left_by_a_dead_engine_is_taken_over(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    script = HOLD.replace("[Path(sys.argv[1])]", "[], [Path(sys.argv[1])]")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(model)], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"Another engine writes {model}: "), locked([], [model]):
        pass
    process.kill()
    process.communicate()
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx.lock"]
    with locked([], [model]):
        pass
    assert list(tmp_path.iterdir()) == []
