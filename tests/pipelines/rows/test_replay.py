"""A replay gives the columns of the first reading, wherever the dead letters were."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from kafka import KafkaProducer

from engine.run import Run, Summary
from engine.running.loop import Loop
from engine.running.totals import Totals
from engine.types import Batch
from tests.broker import Broker, shared_broker
from tests.connectors.conftest import drain, kafka_source

RECORD = (
    '{ k = "key", kb = "key bytes", at = "timestamp", t = "topic", p = "partition", '
    'o = "offset", h = "header id", own = "header headrace.topic" }'
)
SOURCE = """
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = "{topic}"
stop = "end"
record = """
PIPELINE = """
name = "replay"
folder = "{folder}/{name}"
{source}
[source.schema]
n = "{kind}"
[dead_letters]
limit = 1.0
{letters}
[sink]
kind = "files"
path = "{folder}/{name}/out"
"""
SENT: list[tuple[bytes | None, bytes | None, list[tuple[str, bytes]], int]] = [
    (b'{"n":0}', b"k0", [("id", b"x")], 1_000),
    (b'{"n":1.5}', b"k1", [("id", b"x"), ("headrace.topic", b"before")], 2_000),
    (b'{"n":2.5}', None, [], 3_000),
    (b'{"n":3.5}', b"\xff", [("id", b"\xff"), ("id", b"second")], -1),
    (b'{"n":4}', b"k4", [], 4_000),
    (b'{"n":5.5}', b"", [("id", b"")], 5_000),
    (None, b"k6", [("id", b"gone")], 6_000),
]
"""Value, key, headers, time; what has a broken number is a dead letter while n is a whole one."""
BROKEN = [1, 2, 3, 5]


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


@pytest.fixture
def topic(broker: Broker) -> str:
    return sent(broker, [value for value, *_ in SENT])


def sent(broker: Broker, values: list[bytes | None]) -> str:
    name = broker.topic(partitions=3)
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for value, (_, key, headers, time) in zip(values, SENT, strict=True):
        producer.send(name, value, key=key, headers=headers, partition=2, timestamp_ms=time)
    producer.flush()
    producer.close()
    return name


@pytest.fixture
def write(broker: Broker, tmp_path: Path) -> Callable[..., Path]:
    def make(source: str, kind: str, letters: str = 'kind = "files"', name: str = "a") -> Path:
        file = tmp_path / f"{name}.toml"
        file.write_text(
            PIPELINE.format(folder=tmp_path, source=source, kind=kind, letters=letters, name=name)
        )
        return file

    return make


def one(broker: Broker, topic: str) -> str:
    filled = SOURCE.format(bootstrap_servers=broker.bootstrap_servers, topic=topic) + RECORD
    return "[source]" + filled


def rows(tmp_path: Path, name: str) -> pl.DataFrame:
    parts = sorted((tmp_path / name / "out").glob("*.parquet"))
    frames = [pl.read_parquet(part) for part in parts]
    return pl.concat(frames, how="vertical_relaxed").sort("_partition", "_position")


def file_letters(tmp_path: Path) -> list[dict[str, Any]]:
    """But for the two that differ: what is only to be looked at."""
    parts = sorted((tmp_path / "a" / "dead_letters").glob("*.ndjson"))
    return pl.concat([pl.read_ndjson(part) for part in parts]).to_dicts()


NESTED = """
name = "nested"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/d.{format}"
paths = {{a = "u.a", b = "u.b"}}
[source.schema]
id = "int64"
x = "{kind}"
a = "int64"
b = "int64"
[dead_letters]
limit = 1.0
[sink]
kind = "files"
path = "{folder}/out"
"""


@pytest.mark.parametrize("format", ["ndjson", "arrow", "parquet"])
def test_a_replay_reads_nested_values(tmp_path: Path, format: str) -> None:
    """A dead letter holds the record as it was, so paths lead to its values again; of tables,
    which have the nested column too, as well. What is replayed is not left for another time."""
    frame = pl.DataFrame(
        {"id": [1, 2], "x": ["1.5", "oops"], "u": [{"a": 10, "b": 1}, {"a": 20, "b": 2}]}
    )
    write = {"arrow": "write_ipc"}.get(format, f"write_{format}")
    getattr(frame, write)(tmp_path / f"d.{format}")
    file = tmp_path / "nested.toml"
    file.write_text(NESTED.format(folder=tmp_path, format=format, kind="float64"))
    assert Run(file).run().totals.rejected == 1
    file.write_text(NESTED.format(folder=tmp_path, format=format, kind="string"))
    assert not Run(file, replay=True).run().remarks
    parts = [pl.read_parquet(part) for part in sorted((tmp_path / "out").iterdir())]
    assert [part.select("a", "b").rows() for part in parts] == [[(10, 1)], [(20, 2)]]
    assert ("u" in parts[1].columns) == (format != "ndjson")
    if "u" in parts[1].columns:
        assert parts[1]["u"].to_list() == [{"a": 20, "b": 2}]
    (said,) = Run(file, replay=True).run().remarks
    assert said.startswith("Nothing was left to replay")


ENCODED = """
name = "encoded"
folder = "{folder}/run"
[source]
kind = "files"
path = "{folder}/d.{format}"
{encoding}
[source.schema]
a = "{kind}"
b = "string"
[dead_letters]
limit = 1.0
[sink]
kind = "files"
path = "{folder}/out"
"""


@pytest.mark.parametrize(
    ("format", "lines"),
    [
        ("csv", [b"a,b", b"1,one", b"2,\xe9", b"oops,\xc3\xbc"]),
        ("ndjson", [b'{"a":1,"b":"one"}', b'{"a":2,"b":"\xe9"}', b'{"a":"oops","b":"\xc3\xbc"}']),
    ],
)
def test_a_replay_reads_the_encoding_that_was_set_since(
    tmp_path: Path, format: str, lines: list[bytes]
) -> None:
    """Letters that were UTF-8 before stay as they are."""
    (tmp_path / f"d.{format}").write_bytes(b"\n".join(lines))
    file = tmp_path / "encoded.toml"
    text = ENCODED.format(folder=tmp_path, format=format, kind="int64", encoding="")
    file.write_text(text)
    assert Run(file).run().totals.rejected == 2
    encoding = 'encoding = "latin-1"'
    text = ENCODED.format(folder=tmp_path, format=format, kind="string", encoding=encoding)
    file.write_text(text)
    assert Run(file, replay=True).run().totals.cleaned == 3
    parts = [pl.read_parquet(part) for part in sorted((tmp_path / "out").iterdir())]
    assert [part["b"].to_list() for part in parts] == [["one"], ["é", "ü"]]


@pytest.mark.parametrize("where", ["files", "topic"])
def test_a_replay_has_the_columns_of_the_first_reading(
    broker: Broker, topic: str, write: Callable[..., Path], tmp_path: Path, where: str
) -> None:
    letters, source = 'kind = "files"', one(broker, topic)
    if where == "topic":
        letters = (
            f'kind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"\ntopic = '
            f'"{broker.topic()}"'
        )
    whole = Run(write(source, "float64", name="whole")).run()
    assert (whole.totals.cleaned, whole.totals.rejected) == (6, 1)
    expected = rows(tmp_path, "whole").filter(pl.col("_position").is_in(BROKEN))
    assert expected["at"].to_list()[2] is None
    assert expected["own"].to_list() == ["before", None, None, None]

    first = Run(write(source, "int64", letters)).run()
    assert (first.totals.cleaned, first.totals.rejected) == (2, 5)
    again = Run(write(source, "int64", letters), replay=True).run()  # nothing is mended yet
    assert (again.totals.read, again.totals.rejected) == (12, 10)
    mended = Run(write(source, "float64", letters), replay=True).run()
    assert (mended.totals.read, mended.totals.cleaned, mended.totals.rejected) == (17, 6, 11)
    replayed = rows(tmp_path, "a").filter(pl.col("_position").is_in(BROKEN))
    assert replayed.equals(expected.select(replayed.columns))


def test_what_is_rejected_again_is_the_same_letter(
    broker: Broker, topic: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    file = write(one(broker, topic), "int64")
    Run(file).run()
    before = file_letters(tmp_path)
    assert [letter["timestamp"] for letter in before] == [6_000, 2_000, 3_000, None, 5_000]
    assert {letter["reason"] for letter in before} == {"tombstone", "wrong_type"}
    Run(file, replay=True).run()
    after = file_letters(tmp_path)
    assert len(after) == 10
    keys = ("_partition", "_position", "reason", "timestamp", "raw", "key", "headers")
    told = sorted(str([letter[key] for key in keys]) for letter in after)
    assert told == sorted(2 * [str([letter[key] for key in keys]) for letter in before])


def test_letters_in_a_topic_keep_where_they_come_from(
    broker: Broker, topic: str, write: Callable[..., Path]
) -> None:
    """Also a letter of a letter: whoever looks at the topic sees one place, the record's own."""
    to = broker.topic()
    letters = f'kind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"\ntopic = "{to}"'
    file = write(one(broker, topic), "int64", letters)
    Run(file).run()
    Run(file, replay=True).run()
    record = {name: f"header headrace.{name}" for name in ("partition", "offset", "timestamp")}
    source = kafka_source(broker, to, format="text", record=record)
    schema = source.schema({"value": pl.String()})
    frames = [source.format.decode(piece, schema) for piece in drain(source)]
    source.close()
    found = pl.concat([frame for frame, _ in frames])
    assert sorted(found["offset"]) == sorted(2 * [str(i) for i in BROKEN])
    assert set(found["partition"]) == {"2"}
    assert sorted(found["timestamp"].drop_nulls()) == sorted(2 * ["2000", "3000", "5000"])


def test_letters_of_a_mix_are_decoded_as_their_own_source_does(
    broker: Broker, topic: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    """One of JSON and one of CSV, whose files of letters are the same."""
    csv = sent(broker, [f"{i}.5".encode() for i in range(len(SENT))])
    source = '[source]\nkind = "mix"\n'
    for name, topic_, more in (("a", topic, ""), ("b", csv, 'format = "csv"\ncolumns = ["n"]\n')):
        table = one(broker, topic_).replace("[source]", f"[source.sources.{name}]\n{more}")
        source += table + "\n"
    whole = Run(write(source, "float64", name="whole")).run()
    assert (whole.totals.cleaned, whole.totals.rejected) == (13, 1)
    Run(write(source, "int64")).run()
    done = Run(write(source, "float64"), replay=True).run()
    assert (done.totals.read, done.totals.cleaned) == (14 + 12, 13)
    made, expected = rows(tmp_path, "a"), rows(tmp_path, "whole")
    assert made.equals(expected.select(made.columns))


def test_a_letters_raw_bytes_do_not_grow(
    broker: Broker, topic: str, write: Callable[..., Path], tmp_path: Path
) -> None:
    file = write(one(broker, topic), "int64")
    Run(file).run()
    for _ in range(2):
        Run(file, replay=True).run()
    raw = {base64.b64decode(letter["raw"]) for letter in file_letters(tmp_path) if letter["raw"]}
    assert raw == {SENT[i][0] for i in BROKEN}


def letters_to(broker: Broker) -> str:
    topic = broker.topic()
    return f'kind = "kafka"\nbootstrap_servers = "{broker.bootstrap_servers}"\ntopic = "{topic}"'


def stopped(file: Path, batches: int, *, replay: bool = False) -> Summary:
    """Run in batches of one row, and stop after so many of them."""

    def stop(loop: Loop, batch: Batch) -> None:
        if loop.totals.read - before >= batches:
            loop.stop()

    run = Run(file, ["loader.batch_rows=1"], replay=replay, watch=stop)
    state = run.checkpoints.load(run.identity)
    before = 0 if state is None else Totals.restore(state["totals"]).read
    return run.run()


@pytest.fixture
def crash(tmp_path: Path) -> Callable[[Callable[[], object]], None]:
    """Do something whose checkpoints are lost, as where an engine is killed before it saves one."""

    def lose(act: Callable[[], object]) -> None:
        folder, kept = tmp_path / "a" / "checkpoints", tmp_path / "kept"
        if folder.exists():
            shutil.copytree(folder, kept)
        act()
        shutil.rmtree(folder)
        if kept.exists():
            kept.rename(folder)
        else:
            shutil.rmtree(tmp_path / "a" / "out")

    return lose


def broken_rows(tmp_path: Path) -> list[int]:
    """The broken records that came out, by offset."""
    found = rows(tmp_path, "a")
    return found.filter(pl.col("_position").is_in(BROKEN))["_position"].to_list()


def test_a_letter_that_a_killed_engine_wrote_twice_counts_once(
    broker: Broker,
    topic: str,
    write: Callable[..., Path],
    tmp_path: Path,
    crash: Callable[..., None],
) -> None:
    """Also where the replay is stopped between the two, and a run goes on in between."""
    source, letters = one(broker, topic), letters_to(broker)
    file = write(source, "int64", letters)
    crash(Run(file).run)
    assert Run(file).run().totals.rejected == 5
    file = write(source, "float64", letters)
    first = stopped(file, 3, replay=True)
    assert (first.totals.read, first.stopped) == (10, True)
    Run(file).run()
    done = Run(file, replay=True).run()
    assert (done.totals.read, done.totals.cleaned) == (13, 6)  # the tombstone once more
    assert broken_rows(tmp_path) == BROKEN
    (remark,) = done.remarks
    assert "5 dead letters of topic" in remark
    assert "are of a record that has another one there: left out" in remark
    assert not Run(file, replay=True).run().remarks


def test_a_letter_of_a_record_that_is_read_again_is_left_out(
    broker: Broker,
    topic: str,
    write: Callable[..., Path],
    tmp_path: Path,
    crash: Callable[..., None],
) -> None:
    """A killed engine has written it: the next run reads its record, and would count it again."""
    source, letters = one(broker, topic), letters_to(broker)
    file = write(source, "int64", letters)
    assert stopped(file, 2).totals.rejected == 1
    crash(Run(file).run)
    file = write(source, "float64", letters)
    done = Run(file, replay=True).run()
    assert (done.totals.read, done.totals.cleaned) == (3, 2)
    assert "4 dead letters" in done.remarks[0]
    assert "after the checkpoint, which is read again" in done.remarks[0]
    assert Run(file).run().totals.cleaned == 6
    assert Run(file, replay=True).run().totals.read == 9
    assert broken_rows(tmp_path) == BROKEN


def test_what_a_killed_replay_rejected_again_counts_once(
    broker: Broker,
    topic: str,
    write: Callable[..., Path],
    tmp_path: Path,
    crash: Callable[..., None],
) -> None:
    source, letters = one(broker, topic), letters_to(broker)
    file = write(source, "int64", letters)
    Run(file).run()
    crash(Run(file, replay=True).run)
    again = Run(file, replay=True).run()
    assert (again.totals.read, again.totals.rejected) == (12, 10)
    assert "5 dead letters" in again.remarks[0]
    mended = Run(write(source, "float64", letters), replay=True).run()
    assert (mended.totals.read, mended.totals.cleaned) == (17, 6)
    assert broken_rows(tmp_path) == BROKEN
