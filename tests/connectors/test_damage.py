"""Files of every kind with bytes flipped, cut out, doubled or put in between: rows, dead letters or
one sentence; the same however they are read, and wherever reading goes on."""

from __future__ import annotations

import contextlib
import gzip
import random
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.types import EndOfStream, HeadraceError, Mark, Schema
from tests.connectors.conftest import files
from tests.containers import container, record

XML = "".join(
    f"<row n='{i}' o:m='1'><s>t{i}<b>&amp;</b></s><![CDATA[x]]><c><d e='1'>5</d></c></row>"
    for i in range(50)
)


def tar(format: int) -> bytes:
    rng, out = random.Random(0), BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as file:
        for i in range(20):
            for extension, raw in (
                ("jpg", rng.randbytes(i * 60)), ("json", b'{"n": %d}' % i), ("cls", b"1"),
            ):  # fmt: skip
                info = tarfile.TarInfo(f"{'d' * (120 if i % 3 == 0 else 1)}/{i}.{extension}")
                info.size = len(raw)
                file.addfile(info, BytesIO(raw))
    return out.getvalue()


AVRO_ROWS = [{"n": i, "s": f"text {i}"} for i in range(50)]
SAMPLE: Schema = {"n": pl.Int64(), "jpg": pl.Binary(), "cls": pl.Int64(), "__key__": pl.String()}
KINDS: dict[str, tuple[bytes, dict[str, Any], Schema]] = {
    "rows.xml": (
        b"<!DOCTYPE rows [<!ATTLIST row a CDATA 'x'>]><rows xmlns:o='u'>%s</rows>" % XML.encode(),
        {"row": "rows/row", "paths": {"n": "@n", "d": "c/d/@e"}},
        {"n": pl.Int64(), "s": pl.String(), "d": pl.Int32()},
    ),
    "rows.avro": (
        container(record(n="long", s="string"), AVRO_ROWS, "snappy", each=9), {},
        {"n": pl.Int64(), "s": pl.String()},
    ),
    "one.xml": (b'<row n="1"><s>a</s></row>', {}, {"n": pl.Int64(), "s": pl.String()}),
    "pax.tar": (tar(tarfile.PAX_FORMAT), {"paths": {"n": "json.n"}}, SAMPLE),
    "gnu.tar": (tar(tarfile.GNU_FORMAT), {"paths": {"n": "json.n"}}, SAMPLE),
    "gnu.tgz": (gzip.compress(tar(tarfile.GNU_FORMAT)), {"paths": {"n": "json.n"}}, SAMPLE),
    "one.json": (
        b'{"n": 1, "s": {"a": [1, 2]}}',
        {"format": "json", "paths": {"a": "s.a[1]"}},
        {"n": pl.Int64(), "a": pl.Int64()},
    ),
    "one.txt": (
        "öäü text".encode(), {"format": "documents"}, {"text": pl.String(), "label": pl.String()}
    ),
    "lines.txt": (
        "öäü\ntext\n".encode() * 9,
        {"format": "text", "max_record_bytes": 40},
        {"value": pl.String()},
    ),
    "lines.ndjson": (b'{"n": 1}\n' * 30, {"max_record_bytes": 60}, {"n": pl.Int64()}),
}  # fmt: skip


def damaged(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at, size = rng.randrange(len(data) or 1), rng.randrange(1, 600)
        harm = rng.randrange(6)
        if harm == 0 and data:
            data[at] ^= 1 << rng.randrange(8)
        elif harm == 1:
            del data[at : at + size]
        elif harm == 2:
            data[at:at] = rng.randbytes(size)
        elif harm == 3:
            data[at:at] = data[at : at + size]
        elif harm == 4:
            data[at : at + 9] = b"999999999"
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def outcome(
    path: Path, name: str, rows: int, room: int, mark: Mark | None = None
) -> tuple[list[tuple[str, int, int]], str | None]:
    """After each read: partition, next position, rows and rejects so far; and the error."""
    _, how, declared = KINDS[name]
    source = files(path, **how)
    after: list[tuple[str, int, int]] = []
    count = 0
    try:
        schema = source.schema(declared)
        if mark is not None:
            source.seek(mark)
        while True:
            piece = source.read(rows, room, 0.0)
            assert piece is not None
            frame, rejects = source.format.decode(piece, schema)
            assert frame.schema == {"_partition": pl.String(), "_position": pl.Int64(), **schema}
            assert frame.height + sum(map(len, rejects)) == len(piece)
            count += len(piece)
            after.append((piece.partition, piece.next, count))
    except EndOfStream:
        return after, None
    except HeadraceError as error:
        return after, str(error)
    finally:
        source.close()


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_rows_letters_or_one_sentence(name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    path = tmp_path / name
    for _ in range(25):
        path.write_bytes(damaged(KINDS[name][0], rng))
        after, error = outcome(path, name, 7, 1 << 20)
        again, same = outcome(path, name, 1_000, 10)
        assert error is None or "\n" not in error
        total = after[-1][2] if after else 0
        assert (total, error) == (again[-1][2] if again else 0, same)
        if after:
            partition, position, done = rng.choice(after)
            rest, end = outcome(path, name, 5, 500, Mark(positions={partition: position}))
            assert (rest[-1][2] if rest else 0) == total - done
            assert (end is None) == (error is None)
        with contextlib.suppress(HeadraceError):  # and nothing else
            files(path, **KINDS[name][1]).schema({})
