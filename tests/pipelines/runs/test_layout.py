"""A checkpoint of another layout is one sentence, whatever part of it is another: every key of a
real one is taken out, renamed and doubled."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.run import Run
from engine.running.saving.checkpoint import Checkpoints
from engine.running.saving.codec import DIGEST_BYTES, LAYOUT, MAGIC, NAMED, decode, encode
from engine.types import UserError
from tests.pipelines.conftest import Headrace, Rows, Small
from tests.size import FULL

Keys = tuple[Any, ...]
Change = Callable[[dict[str, Any], str], None]
MORE = """
[export]
holdout = 0.2
[evaluation.slices]
north = "key = 'n'"
"""
STAGES = """
[scrub.duplicates]
by = ["n"]
[scrub.lag]
column = "b"
time = "n"
every = 1
steps = [1]
[scrub.drift]
columns = ["b"]
[scrub.missing]
columns = ["a"]
strategy = "median"
"""
GIVEN = {("positions",), ("identities",), ("stages", "_shuffle", "ends")}
"""Whose keys are partitions: these come and go."""


@pytest.fixture
def file(tmp_path: Path, small: Small, rows: Rows) -> Path:
    rows(400).write_csv(tmp_path / "data.csv")
    return small(
        tmp_path / "data.csv",
        ('[scrub.missing]\ncolumns = ["a"]\nstrategy = "mean"\n', STAGES),
        ("replay_rows = 0", "replay_rows = 100"),
        ("[loader]\n", "[loader]\nshuffle_rows = 150\n"),
        ("interval_batches = 4", "interval_batches = 1"),
        ("layers = [8]", "layers = [2]"),
        more=MORE,
    )


@pytest.fixture
def newest(tmp_path: Path, file: Path) -> Path:
    """The newest checkpoint of a run that was stopped within a block."""
    run = Run(file, watch=lambda loop, batch: loop.stop() if loop.totals.batches == 3 else None)
    assert run.run().stopped
    return max((tmp_path / "run" / "checkpoints").iterdir())


def paths(value: Any, at: Keys = ()) -> Iterator[Keys]:
    """Every key of a state."""
    if at in GIVEN:
        return
    if isinstance(value, Mapping):
        for key in value:
            yield (*at, key)
            yield from paths(value[key], (*at, key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value[:2]):
            yield from paths(item, (*at, i))


def changed(value: Any, at: Keys, change: Change) -> Any:
    """A copy, changed at a path."""
    if len(at) == 1:
        made = dict(value)
        change(made, at[0])
        return made
    if isinstance(value, Mapping):
        return {key: changed(v, at[1:], change) if key == at[0] else v for key, v in value.items()}
    return [changed(v, at[1:], change) if i == at[0] else v for i, v in enumerate(value)]


def without(keys: dict[str, Any], key: str) -> None:
    del keys[key]


def renamed(keys: dict[str, Any], key: str) -> None:
    keys[f"{key}2"] = keys.pop(key)


def doubled(keys: dict[str, Any], key: str) -> None:
    keys[f"{key}2"] = keys[key]


CHANGES: tuple[Change, ...] = (without, renamed, doubled)


def test_every_key_is_told_where_it_is_missing_renamed_or_too_many(
    newest: Path, file: Path
) -> None:
    saved = decode(newest.read_bytes())
    there = list(paths(saved.state))
    assert len(there) > 150
    silent = []
    for i, at in enumerate(there):
        if not FULL and i % 4:
            continue
        state = changed(saved.state, at, CHANGES[i % len(CHANGES)])
        newest.write_bytes(b"".join(encode(state, saved.identity)))
        try:
            Run(file).loop.resume()
        except UserError:
            continue
        silent.append(at)
    assert silent == []


SAID = {
    ("work",): "lacks 'work'",
    ("work", "learner", "weights"): "lacks 'work.learner.weights'",
    ("work", "evaluation", "history"): "lacks 'work.evaluation.history'",
    ("work", "holdout", "first"): "lacks 'work.holdout.first'",
    ("stages", "missing"): "lacks 'stages.missing'",
    ("identities",): "lacks 'identities'",
    ("sink", "next"): "lacks 'sink.next'",
}


def test_the_sentence_says_which_file_what_and_what_to_do(
    newest: Path, file: Path, headrace: Headrace
) -> None:
    saved = decode(newest.read_bytes())
    results = sorted(path.name for path in (file.parent / "out").iterdir())
    for at, said in SAID.items():
        newest.write_bytes(b"".join(encode(changed(saved.state, at, without), saved.identity)))
        of_model = at == ("work", "learner", "weights")
        for command in ("run", "export", "check") if of_model else ("run",):
            code, out, err = headrace(command, file)
            words = " ".join((out + err).split())
            assert code == 2, words
            for part in (newest.name, said, f"written by headrace {saved.version}", "--fresh"):
                assert part in words
    assert sorted(path.name for path in (file.parent / "out").iterdir()) == results


@pytest.mark.parametrize("layout", [LAYOUT - 1, LAYOUT + 1])
@pytest.mark.parametrize("header", [{"version": "9.8.7"}, {}])
def test_another_layout_says_who_wrote_it(
    tmp_path: Path, layout: int, header: dict[str, str]
) -> None:
    text = json.dumps({"identity": {}, "parts": [], **header}).encode()
    data = NAMED + f"{layout}\n".encode() + len(text).to_bytes(8, "little") + text
    path = tmp_path / "checkpoint-00000001.hrc"
    path.write_bytes(data + hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest())
    by = f"headrace {header['version']}" if header else "an earlier headrace"
    said = f"{path.name} was written by {by} in layout {layout}.*--fresh"
    with pytest.raises(UserError, match=said):
        Checkpoints(Checkpoints.Settings(path=str(tmp_path))).load({})


def test_a_file_that_is_damaged_is_not_of_another_layout(
    newest: Path, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest.write_bytes(newest.read_bytes().replace(MAGIC, NAMED + b"x\n"))
    assert Run(file).loop.resume()
    assert "the one before it is used" in caplog.text


def test_held_out_rows_of_other_columns_are_told(newest: Path, file: Path) -> None:
    saved = decode(newest.read_bytes())
    new = [[turn, frame.drop("y")] for turn, frame in saved.state["work"]["holdout"]["new"]]
    state = changed(
        saved.state, ("work", "holdout", "new"), lambda keys, key: keys.update({key: new})
    )
    newest.write_bytes(b"".join(encode(state, saved.identity)))
    with pytest.raises(UserError, match=r"held-out rows lack column 'y'.*--fresh"):
        Run(file).loop.resume()


def test_another_evaluation_is_told(newest: Path, file: Path) -> None:
    with pytest.raises(UserError, match=r"another \[evaluation\] every"):
        Run(file, ["evaluation.every=50"]).loop.resume()
    assert Run(file, ["evaluation.window=50"]).loop.resume()
