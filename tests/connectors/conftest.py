"""The same rows through every source, every sink under the same contract."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zstandard

from connectors.files.readers import text, xml
from connectors.files.sink import FilesSink
from connectors.files.source import FilesSource
from connectors.kafka.sink import KafkaSink
from connectors.kafka.source import KafkaSource
from connectors.memory import MemorySink, MemorySource
from engine.types import EndOfStream, Records, Sink, Source, Values
from tests.broker import Broker, shared_broker
from tests.containers import container, record

N = 53
ROWS = pl.DataFrame(
    {
        "x": [None if i % 7 == 3 else i / 4 for i in range(N)],
        "n": [i * 10**15 for i in range(N)],
        "s": [f'a,"{i}"\nb' if i % 5 == 0 else f"öß{i}" for i in range(N)],
    }
)
SCHEMA = dict(ROWS.schema)
Make = Callable[[Path], Source]


def files(path: Path | str | list[str], **settings: Any) -> FilesSource:
    where = tuple(map(str, path)) if isinstance(path, list) else str(path)
    return FilesSource(FilesSource.Settings(path=where, **settings))


def _text(suffix: str, wrap: Callable[[bytes], bytes] = bytes) -> Make:
    def make(folder: Path) -> Source:
        raw = ROWS.write_csv() if "csv" in suffix else ROWS.write_ndjson()
        (folder / f"rows{suffix}").write_bytes(wrap(raw.encode()))
        return files(folder / f"rows{suffix}")

    return make


def _parquet(folder: Path) -> Source:
    ROWS.write_parquet(folder / "rows.parquet", row_group_size=20)
    return files(folder / "rows.parquet")


def _arrow(folder: Path) -> Source:
    ROWS.write_ipc(folder / "rows.arrow", record_batch_size=20)
    return files(folder / "rows.arrow")


def _avro(folder: Path) -> Source:
    schema = record(x=["null", "double"], n="long", s="string")
    (folder / "rows.avro").write_bytes(container(schema, ROWS.to_dicts(), "deflate", each=20))
    return files(folder / "rows.avro")


def _several(folder: Path) -> Source:
    for i, start in enumerate(range(0, N, 20)):
        ROWS.slice(start, 20).write_csv(folder / f"part{i}.csv")
    return files(folder / "part*.csv")


def _sorted(folder: Path) -> Source:
    shuffled = ROWS.sample(fraction=1.0, shuffle=True, seed=0)
    shuffled.write_csv(folder / "rows.csv")
    return files(folder / "rows.csv", order_by=("CAST(n AS BIGINT)",))


def _whole(folder: Path) -> Source:
    """A file a row, in several folders."""
    for i, line in enumerate(ROWS.write_ndjson().splitlines()):
        path = folder / "rows" / f"{i // 20}" / f"{i:02}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line)
    (folder / "rows" / ".hidden").touch()
    return files(folder / "rows", format="json")


def _xml(folder: Path) -> Source:
    """Rows among other elements, some of them in a namespace."""
    parts = ["<?xml version='1.0'?>\n<rows xmlns:o='urn:o'><head><row n='7'/></head>"]
    for i, row in enumerate(ROWS.to_dicts()):
        x = "" if row["x"] is None else f"<x>{row['x']}</x>"
        tag = "o:row" if i % 3 else "row"
        parts.append(f"<{tag} n='{row['n']}'>{x}<s><![CDATA[{row['s']}]]></s></{tag}><!-- -->")
    (folder / "rows.xml").write_text("".join([*parts, "<tail>1</tail></rows>"]))
    return files(folder / "rows.xml", row="rows/row", paths={"n": "@n"})


def shard(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar of these files."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, raw in members:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def _tar(suffix: str, mode: str) -> Make:
    """Samples of three members: a number, a text, and JSON."""

    def make(folder: Path) -> Source:
        members = []
        for i, row in enumerate(ROWS.to_dicts()):
            name = f"{'long' * 30}/{i:03}" if i % 4 == 0 else f"{i:03}"
            members.append((f"{name}.cls", f"{row['n']}\n".encode()))
            members.append((f"{name}.json", json.dumps({"a": [{"x": row["x"]}]}).encode()))
            members.append((f"{name}.txt", row["s"].encode()))
        shard(folder / f"rows{suffix}", members, mode)
        paths = {"x": "json.a[0].x", "n": "cls", "s": "txt"}
        return files(folder / f"rows{suffix}", paths=paths)

    return make


def _kafka(folder: Path) -> Source:
    broker, note = shared_broker(), folder / "topic"
    if not note.exists():
        note.write_text(broker.topic())
        # Batches of a few records each, so that reads end within one and go over several.
        values = [line.encode() for line in ROWS.write_ndjson().splitlines()]
        broker.produce(note.read_text(), values, each=20)
    return kafka_source(broker, note.read_text())


def kafka_source(broker: Broker, topic: str, **settings: Any) -> KafkaSource:
    """What is in the topic now."""
    made = {
        "bootstrap_servers": broker.bootstrap_servers,
        "topics": (topic,),
        "stop": "end",
        **settings,
    }
    return KafkaSource(KafkaSource.Settings(**made))


def _memory(folder: Path) -> Source:
    return MemorySource.of([ROWS.slice(start, 20) for start in range(0, N, 20)])


SOURCES: dict[str, Make] = {
    "csv": _text(".csv"),
    "csv.gz": _text(".csv.gz", gzip.compress),
    "ndjson": _text(".ndjson"),
    "ndjson.zst": _text(".ndjson.zst", zstandard.compress),
    "parquet": _parquet,
    "arrow": _arrow,
    "avro": _avro,
    "several": _several,
    "sorted": _sorted,
    "whole": _whole,
    "xml": _xml,
    "tar": _tar(".tar", "w"),
    "tar.gz": _tar(".tar.gz", "w:gz"),
    "memory": _memory,
    "kafka": _kafka,
}
SINKS = ("memory", "parquet", "ndjson", "csv", "arrow", "kafka")


def sink_of(kind: str, folder: Path) -> Sink:
    """A sink of this kind at ``folder/out``."""
    if kind == "memory":
        return MemorySink()
    if kind == "kafka":
        return _transactions(folder)
    return FilesSink(FilesSink.Settings(path=str(folder / "out"), format=kind))


def _transactions(folder: Path) -> KafkaSink:
    """Exactly once, behind a source: what another process of that name left open is aborted."""
    broker, note = shared_broker(), folder / "topics"
    if not note.exists():
        note.write_text(f"{broker.topic()} {broker.topic()}")
    topic, read = note.read_text().split()
    settings = KafkaSink.Settings(
        bootstrap_servers=broker.bootstrap_servers, topic=topic, exactly_once=True
    )
    sink = KafkaSink(settings)
    sink.transaction(kafka_source(broker, read, group_id=read))
    return sink


@pytest.fixture(params=SOURCES)
def make_source(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], Source]]:
    """A fresh source over `ROWS`; text in blocks so small that rows cross them."""
    monkeypatch.setattr(text, "BLOCK", 64)
    monkeypatch.setattr(xml, "BLOCK", 100)
    made: list[Source] = []

    def make() -> Source:
        made.append(SOURCES[request.param](tmp_path))
        return made[-1]

    yield make
    for source in made:
        source.close()


@pytest.fixture(params=SINKS)
def make_sink(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Sink]]:
    """A sink; called again, the same place opened again (but for memory, which has no place)."""
    made: list[Sink] = []

    def make() -> Sink:
        if request.param == "memory" and made:
            return made[0]
        made.append(sink_of(request.param, tmp_path))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


def drain(source: Source, max_rows: int = 1_000, max_bytes: int = 1 << 20) -> list[Records]:
    """All records there are."""
    pieces: list[Records] = []
    while True:
        try:
            pieces.append(take(source, max_rows, max_bytes))
        except EndOfStream:
            return pieces


def take(source: Source, max_rows: int, max_bytes: int) -> Records:
    """The next records, however often a source that has to ask others says "nothing yet"."""
    for _ in range(200):
        if (records := source.read(max_rows, max_bytes, 0.1)) is not None:
            return records
    raise AssertionError("nothing within 20 s")


def decoded(source: Source, pieces: list[Records], schema: Any = None) -> pl.DataFrame:
    """Pieces as one frame of the pipeline's columns; none may be rejected."""
    made = [source.format.decode(piece, schema or SCHEMA) for piece in pieces]
    assert not [reject for _, rejects in made for reject in rejects]
    frames = [frame for frame, _ in made]
    return pl.concat(frames).drop("_partition", "_position") if frames else ROWS.clear()


def records(*rows: bytes, partition: str = "p") -> Records:
    """Raw rows, at positions 0, 10, 20, ..."""
    bounds = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return Records(
        partition=partition,
        positions=np.arange(len(rows)) * 10,
        next=len(rows) * 10,
        values=Values(data=np.frombuffer(b"".join(rows), np.uint8), bounds=bounds),
        arrived=0.0,
    )


def told(rejects: Any) -> list[tuple[str, int, str, str]]:
    """Rejects as (reason, position, detail, value), by position."""
    rows = [
        (r.reason, *row)
        for r in rejects
        for row in r.rows.select("_position", "detail", "value").iter_rows()
    ]
    return sorted(rows, key=lambda row: row[1])
