"""Files are known by their content: moved, spelt otherwise, rotated, compressed, cut or replaced
between two runs, every row is read once, or one sentence says why not."""

from __future__ import annotations

import bz2
import gzip
import logging
import lzma
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from connectors.files.source import FilesSource
from engine.types import EndOfStream, Mark, Snapshot, UserError
from tests.connectors.conftest import decoded, drain, files

State = tuple[dict[str, int], dict[str, Snapshot]]
NOTHING: State = ({}, {})


def run(
    path: str | list[str], state: State = NOTHING, *, each: int = 2, **own: Any
) -> tuple[list[str], State]:
    """One run over all there is, so many rows at once: its values, and what its checkpoint
    knows."""
    where = tuple(path) if isinstance(path, list) else path
    source = FilesSource(FilesSource.Settings(path=where, **own))
    schema = source.schema({})
    source.match_identities(state[1])
    source.seek(Mark(positions=state[0]))
    positions, values = dict(state[0]), []
    while True:
        try:
            records = source.read(each, 1 << 20, 0.0)
        except EndOfStream:
            break
        assert records is not None
        positions |= records.end_positions
        frame, rejects = source.format.decode(records, schema)
        assert not rejects
        values += [str(v) for v in frame[next(iter(schema))]]
    return values, (positions, dict(source.identities(Mark(positions=positions))))


def lines(*numbers: int) -> str:
    """As NDJSON."""
    return "".join(f'{{"id": {n}}}\n' for n in numbers)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()


def three() -> None:
    for i in range(3):
        Path(f"d/{i}.ndjson").write_text(lines(2 * i, 2 * i + 1))


def linked() -> str:
    Path("l").symlink_to("d")
    return "l/*.ndjson"


def renamed() -> str:
    for path in list(Path("d").iterdir()):
        path.rename(f"{path}.{path.name}")
    return "d/*.ndjson"


SPELLINGS: dict[str, Callable[[], str]] = {
    "dot": lambda: "./d/*.ndjson",
    "dots": lambda: "././d//*.ndjson",
    "up and down": lambda: "d/../d/*.ndjson",
    "absolute": lambda: str(Path("d").resolve() / "*.ndjson"),
    "the folder": lambda: "d",
    "a link to the folder": linked,
    "moved": lambda: f"{Path('d').rename('e')}/*.ndjson",
    "copied": lambda: f"{shutil.copytree('d', 'e')}/*.ndjson",
    "moved and renamed": renamed,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_files_under_another_path_are_not_read_again(spelling: str) -> None:
    three()
    values, state = run("d/*.ndjson")
    assert values == [str(n) for n in range(6)]
    path = SPELLINGS[spelling]()
    assert run(path, state)[0] == []
    added = sorted(Path(path.removesuffix("/*.ndjson")).iterdir())[1]
    with added.open("a") as file:
        file.write(lines(6))
    assert run(path, state)[0] == ["6"]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("read", [1, 3, 5])
def test_a_run_that_was_cut_goes_on_under_another_path(spelling: str, read: int) -> None:
    three()
    source = FilesSource(FilesSource.Settings(path="d/*.ndjson"))
    positions: dict[str, int] = {}
    for _ in range(read):
        records = source.read(1, 1 << 20, 0.0)
        assert records is not None
        positions |= records.end_positions
    identities = dict(source.identities(Mark(positions=positions)))
    path = SPELLINGS[spelling]()
    assert run(path, (positions, identities))[0] == [str(n) for n in range(read, 6)]


def test_a_file_that_is_found_twice_is_read_once(caplog: pytest.LogCaptureFixture) -> None:
    three()
    os.link("d/0.ndjson", "d/3.ndjson")
    Path("d/4.ndjson").symlink_to("1.ndjson")
    values, _ = run(["d/*.ndjson", "./d", str(Path("d").resolve() / "*.ndjson")])
    assert values == [str(n) for n in range(6)]
    assert "each file is read once" in caplog.text


def test_files_of_equal_content_are_files_of_their_own() -> None:
    for name in "abc":
        Path(f"d/{name}.ndjson").write_text(lines(1, 2))
    values, state = run("d/*.ndjson")
    assert values == ["1", "2"] * 3
    assert run("./d/*.ndjson", state)[0] == []


# ------------------------------------------------------------------------------------- log rotation


def test_rotated_by_renaming() -> None:
    log = Path("d/log.ndjson")
    log.write_text(lines(1, 2))
    first, state = run("d/log*.ndjson")
    log.rename("d/log.1.ndjson")
    log.write_text(lines(3))
    second, state = run("d/log*.ndjson", state)
    Path("d/log.1.ndjson").rename("d/log.2.ndjson")
    with log.open("a") as file:
        file.write(lines(4))
    log.rename("d/log.1.ndjson")
    log.write_text(lines(5))
    third, state = run("d/log*.ndjson", state)
    assert (first, second, third) == (["1", "2"], ["3"], ["4", "5"])
    assert run("d/log*.ndjson", state)[0] == []


WRITERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "GZ": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_rotated_by_compressing(suffix: str) -> None:
    log = Path("d/log.ndjson")
    log.write_text(lines(*range(1_000)))
    _, state = run("d/log*")
    with log.open("a") as file:
        file.write(lines(1_000))  # after the run, before it is compressed
    Path(f"d/log.1.ndjson.{suffix}").write_bytes(WRITERS[suffix](log.read_bytes()))
    log.write_text(lines(1_001))
    values, state = run("d/log*", state)
    assert sorted(values) == ["1000", "1001"]
    assert run("d/log*", state)[0] == []


def test_rotated_by_copying_and_cutting() -> None:
    log = Path("d/log.ndjson")
    log.write_text(lines(1, 2))
    _, state = run("d/log*")
    with log.open("a") as file:
        file.write(lines(3))
    shutil.copy(log, "d/log.1.ndjson")
    os.truncate(log, 0)
    values, state = run("d/log*", state)
    assert values == ["3"]
    log.write_text(lines(4, 5, 6))
    assert run("d/log*", state)[0] == ["4", "5", "6"]


# ---------------------------------------------------------------------------- replaced, cut or gone


def csv(path: Path, *numbers: int) -> None:
    path.write_text("id\n" + "".join(f"{n}\n" for n in numbers))


def parquet(path: Path, *numbers: int) -> None:
    pl.DataFrame({"id": numbers}).write_parquet(path)


def arrow(path: Path, *numbers: int) -> None:
    pl.DataFrame({"id": numbers}).write_ipc(path)


def avro(path: Path, *numbers: int) -> None:
    pl.DataFrame({"id": numbers}).write_avro(path)


REPLACED: dict[str, Callable[..., None]] = {
    "csv": csv, "parquet": parquet, "arrow": arrow, "avro": avro,
}  # fmt: skip


@pytest.mark.parametrize("again", [(7, 8, 9), (7,), (7, 8)])
@pytest.mark.parametrize("kind", REPLACED)
def test_another_file_under_the_same_name(kind: str, again: tuple[int, ...]) -> None:
    path = Path(f"d/a.{kind}")
    REPLACED[kind](path, 1, 2)
    _, state = run(str(path))
    REPLACED[kind](path, *again)
    with pytest.raises(UserError, match=r"'d/a.\w+', .* has other content now.*on_replaced"):
        run(str(path), state)
    values, state = run(str(path), state, on_replaced="read")
    assert values == [str(n) for n in again]
    assert run(str(path), state)[0] == []


def test_a_link_to_another_file() -> None:
    three()
    Path("now.ndjson").symlink_to("d/0.ndjson")
    _, state = run("now.ndjson")
    Path("now.ndjson").unlink()
    Path("now.ndjson").symlink_to("d/2.ndjson")
    with pytest.raises(UserError, match="has other content now"):
        run("now.ndjson", state)
    assert run("now.ndjson", state, on_replaced="read")[0] == ["4", "5"]


def test_a_file_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    three()
    _, state = run("d/*.ndjson")
    Path("d/0.ndjson").unlink()
    assert run("d/*.ndjson", state)[0] == []
    assert "1 file that was read is gone, 'd/0.ndjson'" in caplog.text


def test_a_file_that_is_gone_before_its_end() -> None:
    three()
    source = FilesSource(FilesSource.Settings(path="d/*.ndjson"))
    records = source.read(1, 1 << 20, 0.0)
    assert records is not None
    state = records.end_positions, dict(source.identities(Mark(positions=records.end_positions)))
    Path("d/0.ndjson").unlink()
    with pytest.raises(UserError, match=r"'d/0.ndjson', .* is gone, and was not read to its end"):
        run("d/*.ndjson", state)
    values, state = run("d/*.ndjson", state, on_replaced="read")
    assert values == ["2", "3", "4", "5"]
    assert run("d/*.ndjson", state)[0] == []


def test_a_change_behind_a_long_common_beginning() -> None:
    path = Path("d/a.ndjson")
    path.write_text(lines(*[0] * 1_000, 1))
    _, state = run(str(path))
    path.write_text(lines(*[0] * 1_000, 2, 3))
    with pytest.raises(UserError, match="has other content now"):
        run(str(path), state)


@pytest.mark.parametrize("kind", ["csv", "ndjson"])
def test_files_sorted_together_must_be_the_same(kind: str) -> None:
    path = Path(f"d/a.{kind}")
    path.write_text("id\n3\n1\n" if kind == "csv" else lines(3, 1))
    values, state = run(str(path), order_by=("CAST(id AS INT)",))
    assert values == ["1", "3"]
    assert run(f"./{path}", state, order_by=("CAST(id AS INT)",))[0] == []
    with path.open("a") as file:
        file.write("2\n" if kind == "csv" else lines(2))
    with pytest.raises(UserError, match="order_by puts the rows of all files in one order"):
        run(str(path), state, order_by=("CAST(id AS INT)",))


# -------------------------------------------------------------------------------- unfinished lines

HALVES = {
    "text": ("alpha\nbra", "vo\ncharlie\n", ["bravo", "charlie"]),
    "csv": ("id,x\n1,1\n22", "2,3\n4,4\n", ["222", "4"]),
    "ndjson": (lines(1) + '{"id": 2', '2}\n{"id": 3}\n', ["22", "3"]),
}


@pytest.mark.parametrize("kind", HALVES)
def test_an_unfinished_line_waits_where_it_is_told_to(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    begun, rest, expected = HALVES[kind]
    path = Path("d/a.log")
    path.write_text(begun)
    values, state = run(str(path), format=kind, last_line="wait")
    assert len(values) == 1
    assert re.search(r"d/a.log ends in a line without a line end, at position \d+", caplog.text)
    with path.open("a") as file:
        file.write(rest)
    assert run(str(path), state, format=kind, last_line="wait")[0] == expected


@pytest.mark.parametrize(("age", "told"), [(0, 1), (3_600, 0)])
def test_an_unfinished_line_of_a_file_that_was_just_written_is_told(
    age: int, told: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path("d/a.csv")
    path.write_text("id,x\n1,1\n2,2")
    os.utime(path, (time.time() - age,) * 2)
    assert run(str(path))[0] == ["1", "2"]
    assert caplog.text.count("it is read as it stands; [source] last_line") == told


def test_a_file_that_is_deleted_while_its_unfinished_last_line_is_read() -> None:
    path = Path("d/a.csv")
    path.write_text("id,x\n1,1\n2,2")
    source = FilesSource(FilesSource.Settings(path=str(path)))
    source.schema({})
    source.seek(Mark())
    assert [len(source.read(2, 1 << 20, 0.0) or ()) for _ in range(2)] == [1, 1]
    path.unlink()
    with pytest.raises(EndOfStream):
        source.read(2, 1 << 20, 0.0)


def test_a_line_that_was_taken_unfinished_and_goes_on() -> None:
    path = Path("d/a.log")
    path.write_text("alpha\nbra")
    values, state = run(str(path), format="text")
    assert values == ["alpha", "bra"]
    assert run(str(path), state, format="text")[0] == []
    with path.open("a") as file:
        file.write("vo\ncharlie\n")
    with pytest.raises(UserError, match=r"continues its last line, at position 6.*last_line"):
        run(str(path), state, format="text")
    values, _ = run(str(path), state, format="text", on_replaced="read")
    assert values == ["bravo", "charlie"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_last_line_that_was_whole(end: str) -> None:
    path = Path("d/a.csv")
    path.write_text("id\n1\n2")
    values, state = run(str(path))
    assert values == ["1", "2"]
    with path.open("a", newline="") as file:
        file.write(f"{end}3{end}")
    assert run(str(path), state)[0] == ["3"]


# --------------------------------------------------------------------------------------- the paths


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("name", ["a.CSV", "a.csv", "a.Csv"])
def test_compressed_files_in_any_case(suffix: str, name: str) -> None:
    for i, spelt in enumerate((suffix, suffix.upper())):
        Path(f"d/{i}{name}.{spelt}").write_bytes(WRITERS[suffix](b"id\n1\n2\n"))
    assert run("d/*")[0] == ["1", "2"] * 2


def test_brackets_in_the_name_of_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("d[1]", "d1", "[x]/[y]"):
        Path(folder).mkdir(parents=True)
        Path(folder, "a.ndjson").write_text(lines(len(folder)))
    assert run("d[1]/*.ndjson")[0] == ["4"]
    assert run(str(Path("d[1]").resolve() / "a.*"))[0] == ["4"]
    assert run("[x]/**/*.ndjson")[0] == ["7"]
    assert run("d[0-9]/*.ndjson")[0] == ["2"]
    monkeypatch.chdir("[x]")
    assert run("**/*.ndjson")[0] == ["7"]


@pytest.mark.parametrize("path", ["d", "d/*", "d/**", "d/**/*"])
def test_notes_of_other_programs_are_no_data(path: str) -> None:
    Path("d/part-0.csv").write_text("id\n1\n")
    for name in ("_SUCCESS", "_metadata", ".hidden", ".part-0.csv.crc", "_temporary/0/p.csv"):
        Path("d", name).parent.mkdir(parents=True, exist_ok=True)
        Path("d", name).write_text("no data")
    assert run(path)[0] == ["1"]


def test_notes_that_are_asked_for() -> None:
    Path("d/_a.csv").write_text("id\n1\n")
    assert run("d/_*.csv")[0] == ["1"]
    assert run("d/_a.csv")[0] == ["1"]
    with pytest.raises(UserError, match="dot or an underscore do not count"):
        run("d/*.csv")
    with pytest.raises(UserError, match="dot or an underscore do not count"):
        run("d")


def test_marks_without_identities_go_by_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    three()
    _, (positions, _) = run("d/*.ndjson")
    assert run("./d/*.ndjson", (positions, {}))[0] == []


def test_a_copy_beside_its_original_is_read_again_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(8):
        (tmp_path / f"{i}.csv").write_text("a\n1\n2\n")
    (tmp_path / "other.csv").write_text("a\n1\n3\n")
    source = files(tmp_path)
    rows = decoded(source, drain(source), source.schema({}))
    assert rows["a"].to_list() == [1, 2] * 8 + [1, 3]
    told = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert [f"{tmp_path}/1.csv has the same size, beginning" in told[0], len(told)] == [True, 4]
    assert "More files may be copies" in told[-1]


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def copies(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The warnings about copies, up to their colon."""
    said = [record.getMessage().partition(":")[0] for record in caplog.records]
    caplog.clear()
    return [text for text in said if "same size, beginning and end" in text]


@pytest.mark.parametrize("rows", [1, 3_000])
@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("first", ["a", "z"])
def test_a_copy_beside_its_original_is_told(
    rows: int, suffix: str, first: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = lines(*range(rows)).encode()
    original, copy = f"d/{first}.ndjson", f"d/m.ndjson{suffix}"
    Path(original).write_bytes(text)
    values, state = run("d/*", each=500)
    assert (len(values), copies(caplog)) == (rows, [])
    Path(copy).write_bytes(COMPRESSORS[suffix](text))
    one, other = sorted((original, copy))
    expected = [f"{other} has the same size, beginning and end as {one}"]
    expected[0] += " once unpacked" if suffix else ""
    again, state = run("d/*", state, each=500)
    assert (len(again), copies(caplog)) == (rows, expected)
    assert run("d/*", state)[0] == []
    caplog.clear()
    assert len(run("d/*", each=500)[0]) == 2 * rows
    assert copies(caplog) == expected


def test_a_copy_of_a_moved_file_is_told_by_where_both_are(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path("d/a.ndjson").write_text(lines(1, 2, 3))
    _, state = run("d/*")
    Path("d/a.ndjson").rename("d/b.ndjson")
    Path("d/a.ndjson").write_text(lines(1, 2, 3))
    run("d/*", state)
    (told,) = copies(caplog)
    assert {word.strip("()") for word in told.split() if word.startswith("d/")} >= {
        "d/a.ndjson", "d/b.ndjson",
    }  # fmt: skip
    assert "(read as d/" in told


def test_compressed_copies_of_each_other_are_told(caplog: pytest.LogCaptureFixture) -> None:
    text = lines(*range(3_000)).encode()
    Path("d/a.ndjson.gz").write_bytes(gzip.compress(text, mtime=1))
    Path("d/b.ndjson.gz").write_bytes(gzip.compress(text, compresslevel=1, mtime=2))
    Path("d/c.ndjson.zst").write_bytes(zstandard.compress(text))
    run("d/*")
    assert copies(caplog) == [
        f"d/{name} has the same size, beginning and end as d/a.ndjson.gz once unpacked"
        for name in ("b.ndjson.gz", "c.ndjson.zst")
    ]


def test_a_copy_among_sorted_files_is_told(caplog: pytest.LogCaptureFixture) -> None:
    text = lines(3, 1, 2)
    Path("d/a.ndjson").write_text(text)
    Path("d/a.ndjson.gz").write_bytes(gzip.compress(text.encode()))
    assert run("d/*", order_by=["id"])[0] == ["1", "1", "2", "2", "3", "3"]
    assert copies(caplog) == [
        "d/a.ndjson.gz has the same size, beginning and end as d/a.ndjson once unpacked"
    ]


def test_files_that_begin_alike_are_no_copies(caplog: pytest.LogCaptureFixture) -> None:
    for name, last in (("a", 5), ("b", 6), ("c", 77)):
        text = lines(*range(3_000), last).encode()
        Path(f"d/{name}.ndjson").write_bytes(text)
        Path(f"d/{name}{name}.ndjson.gz").write_bytes(
            gzip.compress(lines(*range(2_999), last).encode())
        )
    Path("d/x.ndjson.gz").write_bytes(gzip.compress(b""))
    Path("d/y.ndjson").write_bytes(b"")
    run("d/*")
    assert copies(caplog) == []
