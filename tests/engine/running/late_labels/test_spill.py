"""What waits on disk: the same rows to the bit as from memory, or one sentence."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from engine.running.late_labels import side, stored_segment
from engine.running.late_labels.label_join import Arrivals, LabelJoin, Settled
from engine.running.saving.checkpoint import CheckpointFailed, Checkpoints
from engine.running.saving.codec import decode, encode
from engine.running.saving.segment_files import SegmentFiles
from engine.types import HeadraceError, UserError
from tests.size import examples

HORIZON, LATENESS = 40, 8
IDENTITY = {"pipeline": "p"}
Item = tuple[bool, int, int]
"""Whether it is a label, its key, and its time."""


def join_of(files: SegmentFiles | None, held: int = 0, **changes: Any) -> LabelJoin:
    options = {"horizon": HORIZON, "lateness": LATENESS, "most": 10**9, **changes}
    return LabelJoin(files=files, held=held, **options)


def arrivals(items: Sequence[Item], at: int, *, labels: bool) -> Arrivals:
    """Rows with text, nulls, NaN and lists, and a second frame whose columns have the same names;
    `at` numbers the first item of the stream."""
    turns = np.flatnonzero([item[0] == labels for item in items])
    own, n = turns + at, len(turns)
    keys, times = (np.array([items[t][i] for t in turns.tolist()], np.int64) for i in (1, 2))
    numbers = pl.Series(own, dtype=pl.Int64)
    kinds = pl.Enum(["even", "odd"])
    frame = pl.DataFrame(
        {
            "number": numbers,
            "text": pl.Series(
                [None if i % 5 == 0 else f"{i} " * (i % 9) for i in own], dtype=pl.String
            ),
            "x": pl.Series(np.where(own % 7, own / 3, np.nan)),
            "kind": pl.Series([("even", "odd")[i % 2] for i in own], dtype=kinds),
            "list": pl.Series([[1.0] * (i % 3) for i in own], dtype=pl.List(pl.Float64)),
        }
    )
    served = pl.DataFrame({"x": -numbers, "a/b": numbers.cast(pl.Float64)})
    frames = {"frame": frame} if labels else {"frame": frame, "served": served}
    assert n == len(frame)
    return Arrivals(keys=keys.astype(np.uint64), times=times, turns=turns, frames=frames)


def add(join: LabelJoin, items: Sequence[Item], at: int) -> None:
    join.add(arrivals(items, at, labels=False), arrivals(items, at, labels=True))


def restarted(join: LabelJoin, again: LabelJoin) -> LabelJoin:
    again.restore(decode(b"".join(map(bytes, encode({"join": join.snapshot()}, {})))).state["join"])
    return again


def require_same(one: Settled, other: Settled) -> None:
    for name in ("rows", "labels", "assumed", "expired", "unmatched"):
        a, b = getattr(one, name), getattr(other, name)
        assert list(a) == list(b), name
        for frame in a:
            assert_frame_equal(a[frame], b[frame])
    assert one.corrected.tolist() == other.corrected.tolist()


@settings(deadline=None, max_examples=examples(60))
@given(
    items=st.lists(
        st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 200)), min_size=1, max_size=60
    ),
    in_order=st.booleans(),
    sizes=st.lists(st.integers(1, 20), min_size=3, max_size=6),
    held=st.integers(0, 3_000),
    restart=st.integers(0, 6),
    corrections=st.sampled_from([None, 3 * HORIZON]),
    batch_bytes=st.sampled_from([1, 300, 1 << 15]),
)
def test_any_bound_of_memory_gives_the_same_rows(
    items: list[Item],
    in_order: bool,
    sizes: list[int],
    held: int,
    restart: int,
    corrections: int | None,
    batch_bytes: int,
) -> None:
    items = sorted(items, key=lambda item: item[2]) if in_order else items
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(stored_segment, "BATCH_BYTES", batch_bytes),
        mock.patch.object(side, "FILE_BYTES", max(batch_bytes, 200)),
    ):
        files = SegmentFiles(Path(folder))
        spilling = join_of(files, held, corrections=corrections)
        whole = join_of(None, corrections=corrections)
        at = 0
        for step, size in enumerate([*sizes, len(items)]):
            batch = items[at : at + size]
            for join in (spilling, whole):
                add(join, batch, at)
            require_same(spilling.settle(), whole.settle())
            assert (spilling.waiting, spilling.clock) == (whole.waiting, whole.clock)
            assert sum(s.held_bytes for s in (spilling.rows, spilling.labels)) <= held
            if step == restart:
                spilling = restarted(spilling, join_of(files, held, corrections=corrections))
            at += size


def many(start: int, rows: int) -> list[Item]:
    return [(False, start + i, (start + i) // 100) for i in range(rows)]


def test_a_row_on_disk_takes_little_memory(tmp_path: Path) -> None:
    join = join_of(SegmentFiles(tmp_path), 100_000, horizon=10**6)
    for at in range(0, 20_000, 1_000):
        add(join, many(at, 1_000), at)
        join.settle()
    assert join.rows.stored_rows > 15_000
    assert join.rows.stored_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert join.rows.nbytes < 100_000 + 32 * 20_000
    labels = [(True, key, 200) for key in range(20_000)]
    add(join, labels, 20_000)
    settled = join.settle()
    assert settled.rows["frame"]["number"].to_list() == list(range(20_000))
    assert (join.rows.stored, join.rows.stored_bytes, join.waiting) == ([], 0, 0)


def spilled(tmp_path: Path, **options: Any) -> tuple[LabelJoin, Checkpoints]:
    checkpoints = Checkpoints(Checkpoints.Settings(path=str(tmp_path), **options))
    join = join_of(checkpoints.segments)
    add(join, many(0, 10), 0)
    join.settle()
    checkpoints.save({"join": join.snapshot()}, IDENTITY)
    return join, checkpoints


def names(tmp_path: Path, pattern: str = "rows-*") -> list[str]:
    return sorted(path.name for path in tmp_path.glob(pattern))


def test_files_stay_as_long_as_a_checkpoint_names_them(tmp_path: Path) -> None:
    join, checkpoints = spilled(tmp_path, keep=2)
    (first,) = names(tmp_path)
    add(join, [(True, key, 0) for key in range(10)], 10)
    assert len(join.settle().corrected) == 10
    add(join, many(100, 10), 20)
    join.settle()
    checkpoints.save({"join": join.snapshot()}, IDENTITY)
    assert names(tmp_path) == [first, "rows-00000002.arrows"]
    checkpoints.save({"join": join.snapshot()}, IDENTITY)
    assert names(tmp_path) == ["rows-00000002.arrows"]


def test_files_that_no_checkpoint_names_are_removed(tmp_path: Path) -> None:
    join, _ = spilled(tmp_path)
    (named,) = names(tmp_path)
    add(join, many(100, 10), 10)
    join.settle()
    (tmp_path / "rows-00000003.arrows.tmp").write_bytes(b"torn")
    (tmp_path / "mine.arrows").write_bytes(b"of somebody else")
    assert len(names(tmp_path)) == 3
    checkpoints = Checkpoints(Checkpoints.Settings(path=str(tmp_path)))
    checkpoints.discard_unnamed()
    assert names(tmp_path) == [named]
    checkpoints.delete_all()
    assert names(tmp_path, "*") == ["mine.arrows"]


@pytest.mark.parametrize("cut", [None, 1, 0])
def test_a_missing_or_torn_file_is_one_sentence(tmp_path: Path, cut: int | None) -> None:
    _, checkpoints = spilled(tmp_path)
    path = tmp_path / names(tmp_path)[0]
    if cut is None:
        path.unlink()
        reason = "cannot be read: No such file or directory"
    else:
        path.write_bytes(path.read_bytes()[: -1 if cut else 0])
        reason = r"has [\d,]+ bytes and not [\d,]+"
    said = rf"is whole: checkpoint-00000001.hrc \({path.name} .*{reason}\); .*--fresh"
    with pytest.raises(UserError, match=said):
        checkpoints.load(IDENTITY)
    assert checkpoints.load(IDENTITY, alone=True) is not None


def test_the_checkpoint_before_serves_where_a_file_is_missing(tmp_path: Path) -> None:
    join, checkpoints = spilled(tmp_path)
    add(join, many(100, 10), 10)
    join.settle()
    checkpoints.save({"join": join.snapshot()}, IDENTITY)
    (tmp_path / "rows-00000002.arrows").unlink()
    state = checkpoints.load(IDENTITY)
    assert state is not None
    again = join_of(checkpoints.segments)
    again.restore(state["join"])
    assert (checkpoints.committed, again.waiting) == (1, 10)


def test_a_damaged_byte_is_found_where_it_is_read(tmp_path: Path) -> None:
    join, _ = spilled(tmp_path)
    path = tmp_path / names(tmp_path)[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    add(join, [(True, 3, 0)], 10)
    with pytest.raises(UserError, match=f"{path.name} .*damaged: its checksum differs; .*"):
        join.settle()


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(tmp_path: Path) -> None:
    join, checkpoints = spilled(tmp_path)
    before = names(tmp_path, "*")
    add(join, many(100, 10), 10)
    with (
        mock.patch.object(
            os, "fsync", side_effect=OSError(errno.ENOSPC, "No space left on device")
        ),
        pytest.raises(
            HeadraceError, match=r"rows that wait .*: No space left on device; free some"
        ),
    ):
        join.settle()
    assert names(tmp_path, "*") == before
    state = checkpoints.load(IDENTITY)
    assert state is not None


def test_no_checkpoint_names_what_was_taken_away(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    join, checkpoints = spilled(folder)
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointFailed, match=r"rows-00000001\.arrows .*cannot be read"):
        checkpoints.save({"join": join.snapshot()}, IDENTITY)


def test_files_are_private_where_checkpoints_are(tmp_path: Path) -> None:
    spilled(tmp_path, private=True)
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir()] == [0o600] * 2
