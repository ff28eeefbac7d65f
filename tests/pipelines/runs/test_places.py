"""Where a run writes: refused before anything is read where it cannot, missed where it goes in
mid-run, and never another pipeline's."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from engine.config import Pipeline
from engine.rules import require_sink_schema
from engine.run import Run
from engine.running.loop import Loop
from engine.system import atomic
from engine.types import Batch, HeadraceError, UserError
from tests.pipelines.conftest import Headrace, Rows, Small
from tests.waiting import HANG

PLACES = {
    "folder": ("folder", ""),
    "checkpoint.path": ("[checkpoint] path", ""),
    "dead_letters.path": ("[dead_letters] path", ""),
    "sink.path": ("[sink] path", ""),
    "export.path": ("[export] path", "[export]\n"),
}
"""A key that names a place -> what its sentence calls it; what the pipeline needs besides."""


@pytest.fixture
def file(rows: Rows, small: Small, tmp_path: Path) -> Path:
    rows(1_000).write_csv(tmp_path / "data.csv")
    return small(tmp_path / "data.csv")


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize("key", PLACES)
@pytest.mark.parametrize("below", ["", "/below"])
def test_a_place_that_is_a_file_is_refused_at_the_start(
    file: Path, headrace: Headrace, tmp_path: Path, command: str, key: str, below: str
) -> None:
    named, more = PLACES[key]
    file.write_text(file.read_text() + more)
    place = tmp_path / "taken"
    if key == "export.path" and not below:
        place.mkdir()
    else:
        place.touch()
    before = set(tmp_path.iterdir())
    code, _, err = headrace(command, file, "--set", f"{key}={json.dumps(str(place) + below)}")
    assert code == 2, err
    assert f"headrace: {named} '{place}{below}' " in err
    assert f"'{place}' is a f" in err
    assert len(err.splitlines()) == 1
    assert set(tmp_path.iterdir()) == before  # nothing was begun


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("run/report.json", "folder '{}' cannot be a file: "),
        ("run/checkpoints", "[checkpoint] path '{}' cannot be a folder"),
        ("run/dead_letters", "[dead_letters] path '{}' cannot be a folder"),
    ],
)
def test_what_lies_in_the_way_inside_the_folder(
    file: Path, headrace: Headrace, tmp_path: Path, command: str, name: str, named: str
) -> None:
    place = tmp_path / name
    place.parent.mkdir()
    place.mkdir() if place.suffix else place.touch()
    code, _, err = headrace(command, file)
    assert code == 2, err
    assert named.format(place) in err


@pytest.mark.parametrize("key", ["checkpoint.path", "sink.path"])
def test_a_place_without_permission(file: Path, tmp_path: Path, key: str) -> None:
    """In a process without root's right to write everywhere."""
    (tmp_path / "closed").mkdir(mode=0o555)
    drop = ["setpriv", "--bounding-set", "-dac_override", "--"] if os.geteuid() == 0 else []
    words = ["check", str(file), "--set", f"{key}={tmp_path}/closed/x"]
    done = subprocess.run(
        [*drop, sys.executable, "-m", "engine.commands.cli", *words],
        capture_output=True, text=True, timeout=HANG, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert f"cannot be written: no permission at '{tmp_path}/closed'" in done.stderr


@pytest.mark.parametrize("place", ["/proc", "/sys"])
@pytest.mark.parametrize("key", PLACES)
def test_a_place_where_the_system_makes_no_file(
    file: Path, headrace: Headrace, key: str, place: str
) -> None:
    """Whatever the permissions say: root's are all there."""
    named, more = PLACES[key]
    file.write_text(file.read_text() + more)
    code, _, err = headrace("check", file, "--set", f"{key}={place}/x/y")
    assert code == 2, err
    assert f"headrace: {named} '{place}/x/y' cannot be written: " in err
    assert f"'{place}'" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("path", ["/proc/x", "/sys/x", "/dev/full/x", "n" * 300, "n" * 253, "a\0b"])
@pytest.mark.parametrize("require", [atomic.require_file, atomic.require_folder])
def test_a_path_that_cannot_be_is_known_before(
    tmp_path: Path, path: str, require: Callable[[Path, str], None]
) -> None:
    place = tmp_path / path
    if len(path) == 253 and require is atomic.require_folder:
        require(place, "--to")  # a file is written under a longer name first
        return
    with pytest.raises(UserError, match=r"--to '.*' cannot be .*another path\.$"):
        require(place, "--to")
    assert list(tmp_path.iterdir()) == []


def test_a_full_device_is_a_sentence(file: Path, headrace: Headrace) -> None:
    for option in ("--json", "--html"):
        code, _, err = headrace("explore", file, option, "/dev/full")
        assert (code, err.splitlines()[-1].count("/dev/full")) == (1, 1)
        assert "No space left on device" in err
    assert Path("/dev/full").is_char_device()


def test_a_model_that_a_full_disk_does_not_take(
    file: Path, headrace: Headrace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`compress` writes the whole model, the smaller one and its figures: the disk fills up at
    each."""
    pl.read_csv(tmp_path / "data.csv").head(100).write_csv(tmp_path / "data.csv")
    file.write_text(file.read_text() + "[export]\n")
    assert headrace("run", file)[0] == 0
    names = ("model.fp32.onnx", "model.onnx", "compression.json")
    fsync = os.fsync
    for full in (*names, "exported"):
        left = [names.index(full) if full in names else 0]

        def sync(handle: int, left: list[int] = left) -> None:
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                left[0] -= 1
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
            fsync(handle)

        command = ("compress", file) if full in names else ("export", file)
        name = full if full in names else "model.fp32.onnx"
        kept = (tmp_path / "run" / name).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr("engine.system.atomic.os.fsync", sync)
            code, out, err = headrace(*command)
        assert code == 1, out
        assert f"'{tmp_path}/run/{name}' cannot be written: No space left on device; what" in err
        assert len(err.splitlines()) == 1
        assert (tmp_path / "run" / name).read_bytes() == kept
        assert "Traceback" not in err
    code, out, err = headrace("compress", file)
    assert code == 0, err
    assert "compression.json." in " ".join(out.split())


@pytest.mark.parametrize("path", ["a" * 300, "x/" + "b" * 300, "c\0d"])
@pytest.mark.parametrize("key", ["folder", "sink.path"])
def test_a_name_that_no_system_takes(
    file: Path, headrace: Headrace, tmp_path: Path, key: str, path: str
) -> None:
    code, _, err = headrace("check", file, "--set", f"{key}={json.dumps(f'{tmp_path}/{path}')}")
    assert code == 2, err
    assert ("text without a zero byte" if "\0" in path else "cannot be used: ") in err


def test_results_and_dead_letters_in_one_folder(
    file: Path, headrace: Headrace, tmp_path: Path
) -> None:
    one = f"dead_letters.path={tmp_path}/run/../out"
    for command in ("check", "run"):
        code, _, err = headrace(command, file, "--set", one, "--set", "sink.format=ndjson")
        assert code == 2, err
        assert f"both write to {tmp_path}/out: give each a path of its own" in err


@pytest.mark.parametrize("key", ["sink.path", "dead_letters.path"])
def test_checkpoints_lie_in_a_folder_of_their_own(
    file: Path, headrace: Headrace, tmp_path: Path, key: str
) -> None:
    code, _, err = headrace("check", file, "--set", f"{key}={tmp_path}/run/checkpoints")
    assert code == 2, err
    assert "[checkpoint] and [" in err
    assert f"both write to {tmp_path}/run/checkpoints: give each a path of its own" in err


@pytest.mark.parametrize("name", [".", "..", "a/b", ""])
def test_a_name_is_that_of_a_folder_below_runs(file: Path, headrace: Headrace, name: str) -> None:
    code, _, err = headrace("check", file, "--set", f"name={json.dumps(name)}")
    assert code == 2, err
    assert "for 'name', got" in err


@pytest.mark.parametrize("option", ["--html", "--json"])
def test_a_page_that_cannot_be_written_is_told_before_the_look(
    file: Path, headrace: Headrace, tmp_path: Path, option: str
) -> None:
    code, out, err = headrace("explore", file, option, tmp_path / "data.csv" / "page")
    assert (code, out) == (2, "")
    assert (
        f"{option} '{tmp_path}/data.csv/page' cannot be a file: '{tmp_path}/data.csv' is a file"
        in err
    )
    assert headrace("explore", file, option, tmp_path / "new" / "page")[0] == 0
    assert (tmp_path / "new" / "page").stat().st_size > 0


# -------------------------------------------------------------------------- gone while it runs


def dirty(file: Path, tmp_path: Path) -> None:
    """Two of three rows of the small pipeline are good."""
    frame = pl.read_csv(tmp_path / "data.csv").with_columns(pl.col("n").cast(pl.String))
    third = pl.int_range(pl.len()) % 3 == 2
    frame = frame.with_columns(n=pl.when(third).then(pl.lit("x")).otherwise("n"))
    frame.write_csv(tmp_path / "data.csv")
    file.write_text(file.read_text() + "[dead_letters]\nlimit = 1.0\n")


@pytest.mark.parametrize("how", ["removed", "moved", "replaced", "emptied"])
@pytest.mark.parametrize("place", ["out", "run/dead_letters"])
def test_results_that_go_while_the_engine_runs_are_missed(
    file: Path, tmp_path: Path, how: str, place: str, headrace: Headrace,
    results: Callable[[], pl.DataFrame], letters: Callable[[], pl.DataFrame],
) -> None:  # fmt: skip
    if (how, place) == ("emptied", "run/dead_letters"):
        pytest.skip("dead letters are cleared away by people")
    dirty(file, tmp_path)
    folder, kept = tmp_path / place, tmp_path / "kept"

    def take(loop: Loop, batch: Batch) -> None:
        if loop.totals.batches == 6:  # two after a checkpoint, two before the next
            shutil.copytree(folder, kept)
            for part in folder.iterdir():
                part.unlink()
            if how != "emptied":
                folder.rmdir()
            if how == "replaced":
                folder.mkdir()

    with pytest.raises(HeadraceError, match=f"path '{folder}' (was removed or|has lost part-0)"):
        Run(file, watch=take).run()
    if how != "moved":
        code, _, err = headrace("run", file)
        if place == "out":  # what is gone is counted on: nothing goes on without it
            assert (code, "no longer has the parts" in err) == (2, True), err
        else:
            assert code == 0, err
            return
    if folder.exists():
        shutil.rmtree(folder)
    kept.rename(folder)
    assert headrace("run", file)[0] == 0
    assert results()["n"].sort().to_list() == [n for n in range(1_000) if n % 3 < 2]
    assert letters()["_position"].n_unique() == letters().height == 333


def test_checkpoints_that_go_are_missed_and_what_was_learned_is_kept(
    file: Path, tmp_path: Path, headrace: Headrace, results: Callable[[], pl.DataFrame],
    totals: Callable[[Path], object],
) -> None:  # fmt: skip
    def take(loop: Loop, batch: Batch) -> None:
        if loop.totals.batches == 6:
            shutil.rmtree(tmp_path / "run" / "checkpoints")

    with pytest.raises(HeadraceError, match="a new checkpoint is saved there; start again to go o"):
        Run(file, watch=take).run()
    code, out, err = headrace("run", file)
    assert code == 0, err
    assert "1,000 read = 1,000 learned" in out
    assert "resumed" in out
    assert results()["n"].to_list() == list(range(1_000))


# ------------------------------------------------------------------------- another pipeline's


def test_results_of_another_pipeline_are_not_taken_away(
    file: Path, tmp_path: Path, headrace: Headrace, results: Callable[[], pl.DataFrame]
) -> None:
    """Another name is another folder without a checkpoint: it begins, where others have written."""
    assert headrace("run", file)[0] == 0
    before = results()
    other = ("--set", "name=other", "--set", f"folder={tmp_path}/other")
    for command in ("check", "run"):
        code, out, err = headrace(command, file, *other)
        assert code == 2, err
        assert f"{tmp_path}/out holds results already, and {tmp_path}/other/checkpoints has no" in (
            out.replace("\n", "") + err
        )
    assert results().equals(before)
    assert headrace("run", file, *other, "--fresh")[0] == 0
    assert results().height == 1_000


def test_a_run_without_a_checkpoint_takes_its_own_away(
    file: Path, tmp_path: Path, headrace: Headrace, results: Callable[[], pl.DataFrame]
) -> None:
    assert headrace("run", file)[0] == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert headrace("run", file)[0] == 0
    assert results()["n"].to_list() == list(range(1_000))


def test_a_key_that_a_stage_turns_into_codes_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = {"kind": "kafka", "topic": "t", "key": "country", "bootstrap_servers": "127.0.0.1:1"}
    table = {
        "name": "keyed", "folder": str(tmp_path / "run"),
        "source": {"kind": "memory", "items": [{"country": "NZ", "id": "a"}]},
        "scrub": {"categories": {"columns": ["country"], "size": 4}},
    }  # fmt: skip
    require_sink_schema(Run(Pipeline.of({**table, "sink": sink})).parts)
    assert "[sink] key 'country' is int64 after the stages of [scrub] and string" in caplog.text
    caplog.clear()
    require_sink_schema(Run(Pipeline.of({**table, "sink": {**sink, "key": "id"}})).parts)
    assert "[sink] key" not in caplog.text
