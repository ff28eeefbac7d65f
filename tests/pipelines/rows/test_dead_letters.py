"""Dead letters: what they hold, where they go, and that mended ones come back."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from kafka import KafkaProducer

from connectors.files.csv_dialects import Headers
from engine.run import Run
from engine.running.totals import Totals
from engine.types import UserError
from tests.broker import Broker, shared_broker
from tests.crash.kit import account, origin, records
from tests.pipelines.conftest import Headrace, Rows, Small

PIPELINE = """
name = "letters"
folder = "{folder}"
[source]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = "{topic}"
group_id = "{topic}"
stop = "end"
[source.schema]
n = "int64"
a = "{kind}"
[loader]
batch_rows = 100
[scrub.derive.columns]
a = "a"  # so that it is read, and must be of its type
[sink]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topic = "{sink}"
columns = ["n"]
max_record_bytes = 20_000
exactly_once = {exactly_once}
[dead_letters]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topic = "{letters}"
limit = 0.5
window = 200
"""
POISON: list[bytes | None] = [
    b"", b"{", b"[1]", b'"text"', b'{"a":"x","n":1}', b'{"n":1.5}', b"\xff\xfe", None,
    b'{"n":100000000000000000000}', b'{"n":1,"a":[1]}',
]  # fmt: skip


@pytest.fixture
def broker() -> Broker:
    return shared_broker()


@pytest.fixture
def topics(broker: Broker) -> dict[str, str]:
    return {"topic": broker.topic(), "sink": broker.topic(), "letters": broker.topic()}


@pytest.fixture
def pipeline(tmp_path: Path, broker: Broker, topics: dict[str, str]) -> Callable[..., Path]:
    """A cleaning pipeline from topic to topic, with a topic of dead letters."""

    def write(exactly_once: str = "false", kind: str = "float64") -> Path:
        file = tmp_path / "letters.toml"
        text = PIPELINE.format(
            folder=tmp_path / "run", bootstrap_servers=broker.bootstrap_servers, kind=kind,
            exactly_once=exactly_once, **topics,
        )  # fmt: skip
        file.write_text(text)
        return file

    return write


def send(broker: Broker, topic: str, values: list[bytes | None]) -> None:
    """With keys and headers of their own."""
    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers)
    for i, value in enumerate(values):
        producer.send(
            topic,
            value,
            key=f"k{i}".encode() if i % 2 else None,
            timestamp_ms=1_000 + i,
            headers=[("trace", f"t{i}".encode()), ("empty", b"")],
        ) if value is not None or i % 2 else producer.send(
            topic, None, key=b"", timestamp_ms=1_000 + i
        )
    producer.flush()
    producer.close()


def mixed(n: int = 1_000) -> list[bytes | None]:
    """One record in a hundred broken, each in another way."""
    values: list[bytes | None] = [json.dumps({"n": i, "a": i / 2}).encode() for i in range(n)]
    for i, bad in enumerate(POISON):
        values[51 + i * 100] = bad
    return values


@pytest.mark.parametrize("exactly_once", ["false", "true"])
def test_a_letter_is_the_record_and_why(
    exactly_once: str, broker: Broker, topics: dict[str, str], pipeline: Callable[..., Path],
    headrace: Headrace,
) -> None:  # fmt: skip
    """All of the broken ones are there, with reason and position, and none anywhere else."""
    send(broker, topics["topic"], mixed())
    code, out, err = headrace("run", pipeline(exactly_once))
    assert code == 0, err
    assert "990 cleaned + 10 rejected" in out.replace("\n", " ")
    letters = records(broker.bootstrap_servers, topics["letters"])
    assert [record.value for record in letters] == POISON
    for i, record in enumerate(letters):
        at = 51 + i * 100
        headers = dict(record.headers)
        assert record.key == f"k{at}".encode()
        assert headers.pop("trace") == f"t{at}".encode()
        assert headers.pop("empty") == b""
        assert origin(record) == (topics["topic"], 0, at)
        assert headers["headrace.stage"] == b"decode"
        assert headers["headrace.reason"] in (
            b"broken",
            b"wrong_type",
            b"byte_order_mark",
            b"out_of_range",
            b"tombstone",
        )
        assert headers["headrace.detail"]
        assert headers["headrace.timestamp"] == str(1_000 + at).encode()
        assert headers["headrace.pipeline"] == b"letters"
    found = account(
        broker.bootstrap_servers, [topics["topic"]], topics["sink"], [origin(r) for r in letters]
    )
    assert found.exactly_once, str(found)


def test_a_flood_stops_the_pipeline_and_loses_nothing(
    broker: Broker, topics: dict[str, str], pipeline: Callable[..., Path], headrace: Headrace
) -> None:
    send(broker, topics["topic"], [b"{"] * 1_001)
    code, _, err = headrace("run", pipeline("true"))
    assert code == 3
    assert "were rejected (decode: broken), and [dead_letters] limit allows 50.0%" in err
    letters = records(broker.bootstrap_servers, topics["letters"])
    assert 200 <= len(letters) < 1_001
    # Mended upstream of the rest: with a higher limit the pipeline goes on where it stopped.
    code, _, err = headrace("run", pipeline("true"), "--set", "dead_letters.limit=1.0")
    assert code == 0, err
    letters = records(broker.bootstrap_servers, topics["letters"])
    assert [r.value for r in letters] == [b"{"] * 1_001
    assert [origin(r)[2] for r in letters] == list(range(1_001))


def test_mended_letters_come_back_from_a_topic(
    broker: Broker, topics: dict[str, str], pipeline: Callable[..., Path], headrace: Headrace
) -> None:
    """What was too strict in the file lets a record through now; what is still broken is a new
    letter; and no letter is replayed twice."""
    send(broker, topics["topic"], mixed())
    code, _, err = headrace("run", pipeline())
    assert code == 0, err
    file = pipeline()
    file.write_text(file.read_text().replace('n = "int64"', 'n = "float64"'))
    assert len(records(broker.bootstrap_servers, topics["sink"])) == 990
    code, out, err = headrace("replay", file)
    assert code == 0, err
    assert "1,010 read = 992 cleaned + 18 rejected" in out.replace("\n", " ")
    back = [
        json.loads(r.value)["n"] for r in records(broker.bootstrap_servers, topics["sink"])[990:]
    ]
    assert back == [1.5, 1e20]
    assert len(records(broker.bootstrap_servers, topics["letters"])) == 18
    code, out, err = headrace("replay", file)
    assert code == 0, err
    assert "1,018 read" in out.replace("\n", " ")


def test_mended_letters_come_back_from_files(
    small: Small, rows: Rows, tmp_path: Path, headrace: Headrace,
    letters: Callable[[], pl.DataFrame], totals: Callable[[Path], Totals],
) -> None:  # fmt: skip
    """The bytes as they were, whatever they were; and the learner learns what was mended."""
    data = tmp_path / "data.ndjson"
    lines = rows(500).write_ndjson().splitlines()
    lines[10] = '{"a": "1,5"}'
    lines[20] = "{"
    data.write_bytes(b"\n".join(line.encode() for line in lines) + b"\n\xff\xfe\n")
    file = small(data, ("interval_batches = 4", "interval_batches = 400"))
    code, _, err = headrace("run", file)
    assert code == 0, err
    assert totals(file).rejected == 3
    found = letters()
    raw = [base64.b64decode(text) for text in found["raw"]]
    assert raw == [b'{"a": "1,5"}\n', b"{\n", b"\xff\xfe\n"]
    mend(tmp_path / "run" / "dead_letters")
    code, _, err = headrace("replay", file)
    assert code == 0, err
    after = totals(file)
    assert (after.read, after.learned, after.rejected) == (504, 499, 5)
    assert after.balanced


def mend(folder: Path) -> None:
    """An operator's hand: the second letter's record is made whole."""
    (part,) = folder.glob("*.ndjson")
    whole = base64.b64encode(b'{"a":1.0,"b":2.0,"n":20,"key":"n","y":1.0}\n').decode()
    lines = [json.loads(line) for line in part.read_text().splitlines()]
    lines[1]["raw"] = whole
    part.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_letters_of_other_formats_come_back(
    suffix: str, small: Small, rows: Rows, tmp_path: Path, headrace: Headrace,
    totals: Callable[[Path], Totals],
) -> None:  # fmt: skip
    """Rows without a label are dead letters; given one, they are learned."""
    frame = rows(300).with_columns(
        y=pl.when(pl.int_range(pl.len()) % 100 == 5).then(None).otherwise("y")
    )
    data = tmp_path / f"data{suffix}"
    (frame.write_csv if suffix == ".csv" else frame.write_parquet)(data)
    file = small(data)
    code, _, err = headrace("run", file)
    assert code == 0, err
    before = totals(file)
    assert (before.learned, before.rejected) == (297, 3)
    code, _, err = headrace("replay", file)
    assert code == 0, err
    after = totals(file)
    assert (after.read, after.learned, after.rejected) == (303, 297, 6)


def test_nothing_to_replay(small: Small, rows: Rows, tmp_path: Path, headrace: Headrace) -> None:
    data = tmp_path / "data.ndjson"
    rows(100).write_ndjson(data)
    file = small(data)
    assert headrace("run", file)[0] == 0
    code, _, err = headrace("replay", file)
    assert code == 2
    assert "There are no dead letters in" in err


def test_dead_letters_of_an_unknown_kind(
    small: Small, rows: Rows, tmp_path: Path, headrace: Headrace
) -> None:
    data = tmp_path / "data.ndjson"
    rows(100).write_ndjson(data)
    file = small(data, more='[dead_letters]\nkind = "kafak"\n')
    code, _, err = headrace("run", file)
    assert code == 2
    assert "[dead_letters] has no kind 'kafak'. Did you mean 'kafka'?" in err


def test_a_row_too_large_for_its_topic_is_a_letter(
    broker: Broker, topics: dict[str, str], pipeline: Callable[..., Path], headrace: Headrace,
    tmp_path: Path,
) -> None:  # fmt: skip
    values: list[Any] = [
        json.dumps({"n": i, "a": "x" * (30_000 if i == 3 else 3)}) for i in range(9)
    ]
    broker.produce(topics["topic"], [value.encode() for value in values])
    file = pipeline(kind="string")
    file.write_text(file.read_text().replace('columns = ["n"]', 'columns = ["n", "a"]'))
    code, out, err = headrace("run", file)
    assert code == 0, err
    assert "9 read = 8 cleaned + 1 rejected" in out.replace("\n", " ")
    (letter,) = records(broker.bootstrap_servers, topics["letters"])
    assert letter.value == values[3].encode()
    assert dict(letter.headers)["headrace.reason"] == b"too_large"
    run = Run(file)
    state = run.checkpoints.load(run.identity)
    assert state is not None
    assert Totals.restore(state["totals"]).balanced


CLEANING = """
name = "letters"
folder = "run"
[source]
kind = "files"
path = "in"
[source.schema]
a = "int64"
b = "string"
[dead_letters]
limit = 1.0
[sink]
kind = "files"
path = "out"
format = "ndjson"
"""


def test_letters_of_files_whose_columns_are_in_other_orders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headrace: Headrace
) -> None:
    """Each is read by the header of its own file; a normal run then warns of nothing."""
    monkeypatch.chdir(tmp_path)
    file, folder = tmp_path / "p.toml", tmp_path / "in" / "day=1"
    file.write_text(CLEANING)
    folder.mkdir(parents=True)
    (folder / "1.csv").write_text("a,b\n1,x\n1.5,y\n")
    (folder / "2.csv").write_text("b,a\nz,2\nw,2.5\n")
    assert headrace("run", file)[0] == 0
    file.write_text(CLEANING.replace('"int64"', '"float64"'))
    code, _, err = headrace("replay", file)
    assert code == 0, err
    parts = sorted((tmp_path / "out").glob("*.ndjson"))
    written = pl.concat([pl.read_ndjson(part) for part in parts], how="diagonal_relaxed")
    got = written.select("a", "b", "day").sort("a").rows()
    assert got == [(1.0, "x", 1), (1.5, "y", 1), (2.0, "z", 1), (2.5, "w", 1)]
    for command in ("run", "replay", "run"):
        code, _, err = headrace(command, file)
        assert (code, "are gone" in err) == (0, False), err
    assert Headers({"in/1.csv": ["a"]})["in/9.csv"] == ["a"]
    with pytest.raises(UserError, match="A dead letter comes from 'in/9"):
        Headers({"in/1.csv": ["a", "b"], "in/2.csv": ["b", "a"]})["in/9.csv"]
