"""Files that are a row each, and lines of text; what is not as it should be costs its row."""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from connectors.dead_letters import FileDeadLetterSource
from connectors.files.source import FilesSource
from connectors.formats.kernels.rows import NOT_UTF8
from engine.running.dead_letters import dead_letter_frame
from engine.types import HeadraceError, Mark, Schema, Source, UserError
from tests.connectors.conftest import drain, files, sink_of, told

ALL: Schema = {"image": pl.Binary(), "path": pl.String(), "label": pl.String()}


def folder(root: Path, content: Mapping[str, bytes]) -> Path:
    for name, raw in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    return root


def read(source: Source, declared: Schema | None = None, **how: int) -> tuple[pl.DataFrame, Any]:
    """All rows, and the rejects as `told`."""
    schema = source.schema(declared or {})
    made = [source.format.decode(piece, schema) for piece in drain(source, **how)]
    rejects = told([r for _, more in made for r in more])
    return pl.concat([frame for frame, _ in made]).drop("_partition", "_position"), rejects


# ------------------------------------------------------------------------------------------ images


def test_images_of_a_folder_with_their_labels(tmp_path: Path) -> None:
    root = folder(tmp_path / "pets", {"dog/2.png": b"d2", "cat/10.jpg": b"c10", "cat/9.JPG": b"c9"})
    frame, rejects = read(files(root), ALL)
    assert rejects == []
    assert frame.rows() == [
        (b"c10", f"{root}/cat/10.jpg", "cat"),
        (b"c9", f"{root}/cat/9.JPG", "cat"),
        (b"d2", f"{root}/dog/2.png", "dog"),
    ]


def test_without_a_schema_images_are_bytes_and_path(tmp_path: Path) -> None:
    source = files(folder(tmp_path, {"a.jpg": b"\xff\xd8", "b.jpg": b""}))
    assert source.schema({}) == {"image": pl.Binary(), "path": pl.String()}
    assert source.schema({"*": pl.String()}) == ALL
    assert read(source)[0]["image"].to_list() == [b"\xff\xd8", b""]


def test_labels_may_be_numbers(tmp_path: Path) -> None:
    source = files(folder(tmp_path, {"7/a.png": b"", "x/b.png": b"", "0/c.png": b""}))
    frame, rejects = read(source, {"label": pl.Int64()})
    assert frame["label"].to_list() == [0, 7]
    assert [(reason, at) for reason, at, _, _ in rejects] == [("wrong_type", 2)]


def test_a_folder_with_a_mix(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = folder(
        tmp_path, {"a.jpg": b"a", "notes.txt": b"n", ".DS_Store": b"?", ".git/x.jpg": b"?"}
    )
    for format in (None, "images"):
        caplog.clear()
        frame, _ = read(files(root, format=format))
        assert frame["image"].to_list() == [b"a"]
        assert "1 of 2 files is left out" in caplog.text
    with pytest.raises(UserError, match="is a folder without files of format 'parquet'"):
        files(root, format="parquet")


def test_a_column_that_images_do_not_have(tmp_path: Path) -> None:
    source = files(folder(tmp_path, {"a.jpg": b"a"}))
    with pytest.raises(UserError, match=r"'labl', which images do not have.* mean 'label'"):
        source.schema({"labl": pl.String()})
    with pytest.raises(UserError, match="column 'image' of images is bytes, not a float32"):
        source.schema({"image": pl.Float32()})


# ----------------------------------------------------------------------------- the files' troubles


def test_a_large_file_and_a_lost_one_are_dead_letters(tmp_path: Path) -> None:
    root = folder(
        tmp_path, {"a.jpg": b"a", "b.jpg": b"b" * 101, "c.jpg": b"c", "d.jpg": b"d" * 100}
    )
    source = files(root, max_record_bytes=100)
    (root / "c.jpg").unlink()
    frame, rejects = read(source)
    assert frame["image"].to_list() == [b"a", b"d" * 100]
    (large, lost) = rejects
    assert large[:2] == ("too_large", 2)
    assert (
        large[2]
        == "Expected a file of at most 100 bytes, got 101: raise [source] max_record_bytes."
    )
    assert large[3] == str(root / "b.jpg")
    assert lost[:2] == ("unreadable", 104)
    assert "c.jpg cannot be read: No such file or directory." in lost[2]


def test_a_text_beyond_all_bounds_takes_no_memory(tmp_path: Path) -> None:
    """A gigabyte that is 1 MB on the disk, under a bound of 1 MB."""
    path = tmp_path / "bomb.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    (tmp_path / "good.txt").write_text("good")
    source = files(tmp_path, format="documents", max_record_bytes=1 << 20)
    pieces = drain(source)
    assert sum(piece.nbytes for piece in pieces) < 1_000
    frame, rejects = read(files(tmp_path, format="documents", max_record_bytes=1 << 20))
    assert frame["text"].to_list() == ["good"]
    assert [reason for reason, *_ in rejects] == ["too_large"]


def test_a_damaged_gzip_is_a_dead_letter(tmp_path: Path) -> None:
    raw = gzip.compress(os.urandom(10_000))
    root = folder(
        tmp_path, {"a.txt.gz": raw[:5_000], "b.txt.gz": gzip.compress(b"b"), "c.txt.gz": b""}
    )
    frame, rejects = read(files(root, format="documents"))
    assert frame["text"].to_list() == ["b", ""]
    ((reason, at, detail, _),) = rejects
    assert (reason, at) == ("unreadable", 0)
    assert "cut short or damaged" in detail


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe4.jpg")).write_bytes(b"x")
    frame, rejects = read(files(tmp_path))
    assert (frame["path"].to_list(), rejects) == ([f"{tmp_path}/\\xff\\xe4.jpg"], [])
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv")).write_bytes(b"x\n1\n")
    assert read(files(tmp_path, format="csv"))[0]["x"].to_list() == [1]


def test_positions_know_the_files_before_them(tmp_path: Path) -> None:
    root = folder(tmp_path, {f"{i}.jpg": bytes(i) for i in range(5)})
    source = files(root)
    piece = source.read(3, 1 << 20, 0.0)
    assert piece is not None
    assert piece.positions.tolist() == [0, 1, 3]
    mark = Mark(positions={piece.partition: piece.next})
    assert source.progress(mark) == 6 / 15
    folder(root, {"9.jpg": b"new"})  # behind: may come at any time
    again = files(root)
    again.seek(mark)
    assert [p.nbytes - 8 - len(f"{root}/3.jpg") for p in drain(again, 1)] == [3, 4, 3]
    folder(root, {"1b.jpg": b"new"})
    again = files(root)
    again.seek(mark)
    with pytest.raises(HeadraceError, match=r"are not those that were read before.*--fresh"):
        again.read(1, 1, 0.0)


# --------------------------------------------------------------------------------------- documents


def test_documents_and_their_encodings(tmp_path: Path) -> None:
    content = {
        "de/a.txt": "öß\n".encode(),
        "de/bom.txt": b"\xef\xbb\xbfx",
        "de/empty.md": b"",
        "de/latin.txt": "ö".encode("latin-1"),
        "de/utf16.txt": "ö".encode("utf-16"),
    }
    source = files(folder(tmp_path, content), format="documents")
    frame, rejects = read(source, {"label": pl.String(), "text": pl.String()})
    assert frame.rows() == [("de", "öß\n"), ("de", "x"), ("de", "")]
    assert [(reason, detail) for reason, _, detail, _ in rejects] == [
        ("bad_utf8", NOT_UTF8),
        ("bad_utf8", "Expected UTF-8, got UTF-16: convert it."),
    ]
    raw, none = read(files(tmp_path, format="documents"), {"text": pl.Binary()})
    assert (raw["text"].to_list(), none) == ([*content.values()], [])


def test_lines_of_text(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_bytes(b"one\r\n\ntwo\r\n\xff\nlast")
    frame, rejects = read(files(path, format="text"))
    assert frame.to_dict(as_series=False) == {"value": ["one", "two", "last"]}
    assert [(reason, at) for reason, at, _, _ in rejects] == [("bad_utf8", 11)]
    raw, _ = read(files(path, format="text"), {"value": pl.Binary()})
    assert raw["value"].to_list() == [b"one", b"two", b"\xff", b"last"]


def test_json_documents(tmp_path: Path) -> None:
    deep = b'{"n":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    content = {
        "a.json": b'{\n "n": 1,\n "user": {"city": "Wien"}\n}\n',
        "b.json": deep, "c.json": b"", "d.json": b'{"n": 2.5}', "e.json": b'{"n":3}{"n":4}',
    }  # fmt: skip
    root = folder(tmp_path, content)
    source = files(root, format="json", paths={"city": "user.city"})
    frame, rejects = read(source, {"n": pl.Float64(), "city": pl.String()})
    assert frame.rows() == [(1.0, "Wien"), (2.5, None)]
    assert [reason for reason, *_ in rejects] == ["broken"] * 3
    assert files(root, format="json").schema({})["n"] == pl.Float64()


def test_json_beyond_all_depth_is_no_sample_and_a_dead_letter(tmp_path: Path) -> None:
    deep = [b'{"n":' + b"[" * n + b"]" * n + b"}" for n in (100, 900, 100_000)]
    deep += [b'{"n":' * 100_000, b"[" * 100_000, b'{"n":' * 100_000 + b"1" + b"}" * 100_000]
    (tmp_path / "a.ndjson").write_bytes(b"\n".join([b'{"n":1}', *deep, b'{"n":2}']))
    frame, rejects = read(files(tmp_path / "a.ndjson"), {"n": pl.Int64()})
    assert frame["n"].to_list() == [1, 2]
    assert len(rejects) == len(deep)
    (tmp_path / "b.ndjson").write_bytes(b"\n".join([b'{"n":1}', *deep[2:], b'{"n":2}']))
    assert files(tmp_path / "b.ndjson").schema({}) == {"n": pl.Int64()}


# ------------------------------------------------------------------------------------ dead letters


def test_dead_letters_hold_the_file_and_come_back(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", {"5/a.png": b"\x89PNG\n", "x/b.png": b"\xff\n"})
    source = files(root)
    schema = source.schema({**ALL, "label": pl.Int64()})
    pieces = drain(source)
    (reject,) = source.format.decode(pieces[0], schema)[1]
    letter = dead_letter_frame(reject, pieces)
    assert letter.select("raw", "key").rows() == [(b"\xff\n", str(root / "x/b.png").encode())]
    sink = sink_of("ndjson", tmp_path)
    sink.write(letter)
    sink.flush()
    replay = FileDeadLetterSource(tmp_path / "out", source)
    (piece,) = drain(replay)
    frame, rejects = replay.format.decode(piece, replay.schema(ALL))
    assert (frame.row(0)[2:], rejects) == ((b"\xff\n", str(root / "x/b.png"), "x"), [])


def test_a_source_of_whole_files_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    root = folder(tmp_path, {f"{i:02}.jpg": bytes(np.full(1_000, i, np.uint8)) for i in range(20)})
    source: FilesSource = files(root)
    pieces = drain(source, 100, 3 * (1_000 + len(f"{root}/00.jpg")))
    assert [len(piece) for piece in pieces] == [3] * 6 + [2]
    assert [len(piece) for piece in drain(files(root), 100, 10)] == [1] * 20
