"""WebDataset shards: samples as rows, and what a hostile archive holds."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from connectors.dead_letters import FileDeadLetterSource
from connectors.files.readers.tar import TarShard
from connectors.formats.webdataset import WebDatasetFormat
from engine.types import HeadraceError, Mark, Schema, UserError
from tests.connectors.conftest import drain, files, shard, sink_of
from tests.connectors.files.test_file_rows import read

PLAIN = [("a/1.jpg", b"\xff\xd8"), ("a/1.cls", b"3\n"), ("a/2.jpg", b"\xff"), ("a/2.cls", b"4")]


def test_columns_are_found_by_their_extensions(tmp_path: Path) -> None:
    more = [("a/2.seg.png", b"p"), ("a/2.txt", b"text"), ("b.JSON", b'{"x": {"y": 2}}')]
    path = shard(tmp_path / "s.tar", [*PLAIN, *more])
    source = files(path)
    assert source.schema({}) == {
        "__key__": pl.String(), "jpg": pl.Binary(), "cls": pl.Int64(), "seg.png": pl.Binary(),
        "txt": pl.String(), "json": pl.String(),
    }  # fmt: skip
    frame, rejects = read(source)
    assert rejects == []
    assert frame.rows() == [
        ("a/1", b"\xff\xd8", 3, None, None, None),
        ("a/2", b"\xff", 4, b"p", "text", None),
        ("b", None, None, None, None, '{"x": {"y": 2}}'),
    ]


def test_columns_by_path(tmp_path: Path) -> None:
    members = [
        ("1.png", b"p"), ("1.meta.json", b'{"size": {"w": 3}, "tags": ["a", "b"]}'),
        ("2.jpg", b"j"), ("2.meta.json", b'{"size": null}'), ("3.jpeg", b"k"),
    ]  # fmt: skip
    paths = {"image": "jpg;jpeg;png", "w": "meta.json.size.w", "tag": "meta.json.tags[1]"}
    schema: Schema = {"image": pl.Binary(), "w": pl.Int64(), "tag": pl.String()}
    source = files(shard(tmp_path / "s.tar", members), paths=paths)
    frame, rejects = read(source, schema)
    assert rejects == []
    assert frame.rows() == [(b"p", 3, "b"), (b"j", None, None), (b"k", None, None)]
    with pytest.raises(UserError, match=r"names column 'tag', which \[source.schema\] does not"):
        source.schema({"image": pl.Binary(), "w": pl.Int64()})
    for wrong in ("", "json.", "a..b", "json.a[x]"):
        with pytest.raises(UserError, match="is no path"):
            WebDatasetFormat({"c": wrong})


def test_values_that_do_not_fit_cost_their_sample(tmp_path: Path) -> None:
    members = [
        ("1.cls", b"1"), ("1.txt", b"ok"), ("2.cls", b"one"), ("2.txt", b""), ("3.txt", b"\xff"),
        ("4.json", b"{"), ("5.json", b'{"n":' * 100_000), ("6.json", b'{"n": 6}'),
        ("7.json", b'{"n": "x"}'),
    ]  # fmt: skip
    schema: Schema = {"cls": pl.Int64(), "txt": pl.String(), "n": pl.Int64()}
    source = files(shard(tmp_path / "s.tar", members), paths={"n": "json.n"})
    frame, rejects = read(source, schema)
    assert frame.rows() == [(1, "ok", None), (None, None, 6)]
    assert sorted(reason for reason, *_ in rejects) == [
        "bad_utf8", "broken", "broken", "wrong_type", "wrong_type",
    ]  # fmt: skip


# ----------------------------------------------------------------------------------------- hostile


def odd(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_what_is_no_sample_is_a_dead_letter_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w") as tar:

        def add(info: tarfile.TarInfo, raw: bytes = b"") -> None:
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))

        add(tarfile.TarInfo("0.jpg"), b"0")
        add(odd("folder.d", tarfile.DIRTYPE))
        add(tarfile.TarInfo("../../escaped.jpg"), b"x")
        add(tarfile.TarInfo("/tmp/escaped.jpg"), b"x")
        add(odd("1.jpg", tarfile.SYMTYPE, str(tmp_path / "secret.jpg")))
        add(tarfile.TarInfo("1.cls"), b"1")
        add(odd("2.jpg", tarfile.LNKTYPE, "0.jpg"))
        add(odd("3.jpg", tarfile.CHRTYPE))
        add(odd("4.jpg", tarfile.FIFOTYPE))
        add(tarfile.TarInfo("README"), b"x")
        add(tarfile.TarInfo(".DS_Store"), b"x")
        add(tarfile.TarInfo("5.jpg"), b"5")
        add(tarfile.TarInfo("5.JPG"), b"5")
        add(tarfile.TarInfo("6.jpg"), b"6" * 101)
        add(tarfile.TarInfo("7.jpg"), b"7" * 60)
        add(tarfile.TarInfo("7.png"), b"7" * 60)
        add(tarfile.TarInfo("8.jpg"), b"8")
    before = sorted(tmp_path.rglob("*"))
    source = files(path, max_record_bytes=100)
    frame, rejects = read(source, {"jpg": pl.Binary(), "png": pl.Binary()})
    assert frame["jpg"].to_list() == [b"0", b"8"]
    assert [reason for reason, *_ in rejects] == [
        "unsafe_name", "unsafe_name", "no_file", "no_file", "no_file", "no_file", "no_sample",
        "no_sample", "twice", "too_large", "too_large",
    ]  # fmt: skip
    assert "got a symbolic link, '1.jpg'" in rejects[2][2]
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/tmp/escaped.jpg").exists()
    # What is not asked for does not count: it is passed over.
    frame, rejects = read(files(path, max_record_bytes=100), {"png": pl.Binary()})
    assert "too_large" not in [reason for reason, *_ in rejects]


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst", ".tgz"])
@pytest.mark.parametrize("cut", [100, 512 + 10, 3 * 512 + 5, 4 * 512 + 40])
def test_an_archive_that_is_cut_gives_what_lies_before(
    tmp_path: Path, suffix: str, cut: int
) -> None:
    members = [(f"{i}.jpg", os.urandom(300)) for i in range(3)]
    raw = shard(tmp_path / "whole.tar", members).read_bytes()[:cut]
    if suffix != ".tar":
        import gzip

        raw = zstandard.compress(raw) if suffix == ".tar.zst" else gzip.compress(raw)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(raw)
    source = files(path, format="webdataset")
    source.schema({"jpg": pl.Binary()})
    whole = 0 if cut < 1024 else 1  # of the sample before, nobody knows whether it ends there
    last = 0
    for _ in range(whole):
        piece = source.read(1, 1 << 20, 0.0)
        assert piece is not None
        last = piece.next
    said = r"cut.* cannot be read on as a tar at offset \d+: it ends"
    with pytest.raises(HeadraceError, match=said):
        source.read(10, 1 << 20, 0.0)
    again = files(path, format="webdataset")
    again.schema({"jpg": pl.Binary()})
    again.seek(Mark(positions={str(path): last}))
    with pytest.raises(HeadraceError, match="cannot be read on"):
        again.read(10, 1 << 20, 0.0)


@pytest.mark.parametrize("size", [1_000, 2_560])
def test_a_tar_that_is_cut_while_it_is_read_says_so(tmp_path: Path, size: int) -> None:
    path = shard(tmp_path / "a.tar", [(f"{i}.jpg", b"x" * 1_000) for i in range(9)])
    source = files(path, format="webdataset")
    source.schema({"jpg": pl.Binary()})
    assert source.read(1, 1 << 20, 0.0) is not None
    os.truncate(path, size)
    with pytest.raises(HeadraceError, match="cannot be read on as a tar at offset"):
        drain(source, 10)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"x" * 2_000, "expected the header of a file, got none"),
        (b"x", "it ends within a file"),
        (b"\xff" * 512, "expected the header of a file, got none"),
    ],
)
def test_what_is_no_tar(tmp_path: Path, raw: bytes, said: str) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(raw)
    with pytest.raises(HeadraceError, match=f"s.tar cannot be read on as a tar at offset .*{said}"):
        files(path).schema({})


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "raw",
    [
        header("1.jpg", 1 << 60),
        header("1.jpg", -5),
        header("././@LongLink", 1 << 40, tarfile.GNUTYPE_LONGNAME),
        header("x", 1 << 40, tarfile.XHDTYPE),
    ],
)
def test_sizes_that_cannot_be(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(raw + bytes(2_000))
    source = files(path, max_record_bytes=1 << 62)
    source.schema({"jpg": pl.Binary()})
    with pytest.raises(HeadraceError, match="cannot be read on as a tar at offset"):
        drain(source)


def test_an_archive_without_members_and_two_in_a_row(tmp_path: Path) -> None:
    empty = shard(tmp_path / "empty.tar", [])
    assert drain(files(empty)) == []
    (tmp_path / "nothing.tar").write_bytes(b"")
    assert drain(files(tmp_path / "nothing.tar")) == []
    first, second = (shard(tmp_path / f"{i}.tar", [(f"{i}.jpg", b"x")]) for i in range(2))
    both = tmp_path / "both.tar"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    assert read(files(both))[0]["__key__"].to_list() == ["0", "1"]


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_as_each_kind_of_tar_has_them(tmp_path: Path, format: int) -> None:
    names = ["ö/é.jpg", "d" * 80 + "/" + "n" * 90 + ".jpg", "plain.jpg"]
    if format != tarfile.USTAR_FORMAT:
        names += ["n" * 300 + ".jpg", os.fsdecode(b"\xff.jpg")]
    path = tmp_path / "s.tar"
    with tarfile.open(path, "w", format=format) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    frame, rejects = read(files(path))
    shown = [os.fsencode(n).decode("utf-8", "backslashreplace").removesuffix(".jpg") for n in names]
    assert (frame["__key__"].to_list(), rejects) == (shown, [])


def test_samples_are_those_of_tarfile(tmp_path: Path) -> None:
    """Of a shard with large and small members, in pieces of any size."""
    members = [
        (f"{i // 7}/{i}.{extension}", os.urandom(size))
        for i in range(60)
        for extension, size in (("a", i * 37 % 3_000), ("b.c", 0), ("d", 512))
    ]
    path = shard(tmp_path / "s.tar", members)
    expected: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, extension = member.name.rpartition("/")[2].partition(".")
            file = tar.extractfile(member)
            assert file is not None
            expected.setdefault(key, {})[extension] = file.read()
    for rows, room in ((1, 1), (7, 1 << 20), (100, 5_000)):
        source = files(path)
        schema: Schema = dict.fromkeys(("a", "b.c", "d"), pl.Binary())
        source.schema(schema)
        made: Any = [source.format.decode(p, schema)[0] for p in drain(source, rows, room)]
        assert pl.concat(made).select("a", "b.c", "d").to_dicts() == list(expected.values())


def test_a_dead_letter_of_a_tar_is_not_replayed(tmp_path: Path) -> None:
    sink = sink_of("ndjson", tmp_path)
    sink.write(pl.DataFrame({"value": ["{}"]}))
    sink.flush()
    with pytest.raises(UserError, match="contain the place of a sample, not its content"):
        FileDeadLetterSource(tmp_path / "out", files(shard(tmp_path / "s.tar", PLAIN)))


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    members = [("1.jpg", bytes(1 << 20)), ("1.cls", b"1"), ("2.jpg", bytes(1 << 20))]
    file = TarShard(shard(tmp_path / "s.tar", members), "s", ["cls"], max_record=1_000)
    records = file.read(10, 1_000)
    assert records is not None
    assert isinstance(records.values, pl.DataFrame)
    assert records.values["cls"].to_list() == [b"1", None]
    assert records.nbytes < 1_000
    file.close()
