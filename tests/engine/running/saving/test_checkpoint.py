"""Checkpoints are there whole or not at all, and say why they are refused."""

from __future__ import annotations

import logging
import math
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.running.saving.checkpoint import CheckpointFailed, Checkpoints
from engine.running.saving.codec import CorruptCheckpoint, decode, encode
from engine.types import UserError
from tests.size import examples

IDENTITY = {"pipeline": "p", "schema": '{"a": "Float64"}'}
STATE: dict[str, Any] = {
    "none": None,
    "truth": True,
    "big": 2**127 + 1,
    "float": 0.1 + 0.2,
    "text": "é\n\x00",
    "bytes": b"\x00\xff",
    "tuple": (1, (2.5, "x"), []),
    "nested": {"list": [1, {"deep": (None,)}]},
    "array": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "empty": np.empty((0, 4)),
    "flags": np.array([True, False]),
    "names": np.array(["a", "bcd"]),
    "frame": pl.DataFrame({"a": [1, None], "b": ["x", "y"]}),
    "series": pl.Series("s", [1.5, math.nan, None]),
}


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, pl.DataFrame | pl.Series):
        return a.equals(b)
    if isinstance(a, float):
        return np.float64(a).tobytes() == np.float64(b).tobytes()
    return bool(a == b)


def folder(path: Path, **options: Any) -> Checkpoints:
    return Checkpoints(Checkpoints.Settings(path=str(path), **options))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path / "new" / "folder")
    assert checkpoints.load(IDENTITY) is None
    path = checkpoints.save(STATE, IDENTITY)
    assert path.stat().st_size == checkpoints.nbytes
    assert same(checkpoints.load(IDENTITY), STATE)


scalar = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8"), max_size=5)
    | st.binary(max_size=5)
)
plain = st.recursive(
    scalar | st.lists(st.floats(), max_size=4).map(np.array),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=examples(100), deadline=None)
@given(plain)
def test_any_plain_value_comes_back_to_the_bit(value: Any) -> None:
    state, identity, _ = decode(b"".join(encode({"value": value}, IDENTITY)))
    assert same(state["value"], value)
    assert identity == IDENTITY


@settings(max_examples=examples(100), deadline=None)
@given(st.data())
def test_any_cut_or_changed_byte_is_found(data: st.DataObject) -> None:
    whole = b"".join(encode(STATE, IDENTITY))
    at = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CorruptCheckpoint):
        decode(whole[:at])
    flipped = bytearray(whole)
    flipped[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptCheckpoint):
        decode(bytes(flipped))


def test_the_newest_few_stay_and_numbers_go_on(tmp_path: Path) -> None:
    for n in range(5):
        folder(tmp_path, keep=2).save({"n": n}, IDENTITY)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint-00000004.hrc",
        "checkpoint-00000005.hrc",
    ]
    assert folder(tmp_path).load(IDENTITY) == {"n": 4}


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b + b"x"])
def test_a_torn_newest_falls_back_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save({"n": 1}, IDENTITY)
    newest = checkpoints.save({"n": 2}, IDENTITY)
    newest.write_bytes(damage(newest.read_bytes()))
    with caplog.at_level(logging.WARNING, "headrace.checkpoint"):
        assert checkpoints.load(IDENTITY) == {"n": 1}
    (record,) = caplog.records
    assert record.getMessage() == "checkpoint is not whole; the one before it is used"
    assert "checkpoint-00000002.hrc" in record.skipped  # type: ignore[attr-defined]
    assert record.used == "checkpoint-00000001.hrc"  # type: ignore[attr-defined]


def test_all_torn_never_means_from_the_start(tmp_path: Path) -> None:
    checkpoints = folder(tmp_path)
    for n in range(2):
        checkpoints.save({"n": n}, IDENTITY).write_bytes(b"torn")
    names = "checkpoint-00000002.hrc, checkpoint-00000001.hrc"
    with pytest.raises(UserError, match=rf"is whole: {names} \([^()]*\); put back .*--fresh"):
        checkpoints.load(IDENTITY)


@pytest.mark.parametrize(
    ("here", "sentence"),
    [
        ({"pipeline": "q"}, "written with another pipeline: 'q' now, 'p' when it was written;"),
        (
            {"schema": '{"a": "String"}'},
            'written with another schema: a = "String" now, a = "Float64" when it',
        ),
    ],
)
def test_anothers_checkpoint_is_refused(
    tmp_path: Path, here: dict[str, str], sentence: str
) -> None:
    checkpoints = folder(tmp_path)
    checkpoints.save(STATE, IDENTITY)
    with pytest.raises(UserError) as caught:
        checkpoints.load({**IDENTITY, **here})
    assert sentence in str(caught.value)
    assert "start over with --fresh" in str(caught.value)


def test_a_private_checkpoint_is_its_owners(tmp_path: Path) -> None:
    settings = Checkpoints.Settings(path=str(tmp_path), private=True)
    assert Checkpoints(settings).save(STATE, IDENTITY).stat().st_mode & 0o777 == 0o600


FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from engine.running.saving.checkpoint import CheckpointFailed, Checkpoints
checkpoints = Checkpoints(Checkpoints.Settings(path=sys.argv[1]))
checkpoints.save({"n": 1}, {})
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    checkpoints.save({"n": np.zeros(100_000)}, {})
except CheckpointFailed as error:
    print(error)
assert checkpoints.load({}) == {"n": 1}
print(sorted(p.name for p in Path(sys.argv[1]).iterdir()))
"""


def test_where_no_more_fits_the_last_good_one_stays(tmp_path: Path) -> None:
    assert resource.RLIMIT_FSIZE  # a file size limit fails a write as a full disk does
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert "cannot be written" in done.stdout
    assert "the last good one stays" in done.stdout
    assert done.stdout.endswith("['checkpoint-00000001.hrc']\n")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointFailed, match="cannot be written to"):
        folder(tmp_path / "file" / "folder").save(STATE, IDENTITY)


SAVING = """
import sys, itertools
import numpy as np
from engine.running.saving.checkpoint import Checkpoints
checkpoints = Checkpoints(Checkpoints.Settings(path=sys.argv[1], keep=2))
for n in itertools.count():
    checkpoints.save({"n": n, "array": np.full(200_000, n)}, {})
    print(n, flush=True)
"""


def test_sigkill_in_the_middle_of_saving_leaves_a_whole_one(tmp_path: Path) -> None:
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVING, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGKILL)
        said += [int(line) for line in process.stdout.read().splitlines()]
        process.wait()
        process.stdout.close()
        state = folder(tmp_path).load({})
        assert state is not None
        assert state["n"] >= said[-1]
        assert (state["array"] == state["n"]).all()
