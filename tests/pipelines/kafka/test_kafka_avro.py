"""Avro from a real topic by a real registry: evolved in mid-stream, poisoned, and left alone."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastavro
import polars as pl
import pytest

from connectors.kafka.schema_registry import Registry
from engine.run import Run
from tests.broker import shared_broker
from tests.pipelines.conftest import Headrace
from tests.pipelines.kafka.test_kafka import until_learned
from tests.pipelines.runs.test_service import started
from tests.registry import SchemaRegistry, own_registry, shared_registry

PIPELINE = """
name = "avro"
folder = "{folder}/run"
[source]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = "{topic}"
format = "avro"
registry = "{registry}"
stop = "{stop}"
[loader]
batch_rows = 100
max_delay = 0.1
[sink]
kind = "files"
path = "{folder}/out"
[checkpoint]
interval = 1
"""
LEARNING = """
[source.schema]
a = "float64"
y = "float64"
[model]
target = "y"
numeric = ["a"]
layers = [8]
[train]
threads = 1
[service]
port = 0
"""


def record(*fields: tuple[Any, ...]) -> dict[str, Any]:
    made = [dict(zip(("name", "type", "default"), field, strict=False)) for field in fields]
    return {"type": "record", "name": "Payment", "fields": made}


OLD = record(("a", "int"), ("y", "float"), ("gone", "string"))
NEW = record(
    ("y", "double"), ("a", "long"), ("kind", ["null", "string"], None), ("level", "int", 7)
)


def values(registry: SchemaRegistry, topic: str, schema: Any, rows: list[Any]) -> list[bytes]:
    """In Confluent's wire format, by fastavro; the schema registered."""
    number = Registry(registry.url).register(topic, schema)
    made = []
    for row in rows:
        out = io.BytesIO(b"\0" + number.to_bytes(4, "big"))
        out.seek(0, io.SEEK_END)
        fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
        made.append(out.getvalue())
    return made


@pytest.fixture
def on_avro(tmp_path: Path) -> Callable[..., Path]:
    """Writes the pipeline's file."""

    def write(topic: str, registry: str, *, stop: str = "end", more: str = "") -> Path:
        file = tmp_path / "avro.toml"
        text = PIPELINE.format(
            folder=tmp_path, bootstrap_servers=shared_broker().bootstrap_servers, topic=topic,
            registry=registry,
            stop=stop,
        )  # fmt: skip
        file.write_text(text + more)
        return file

    return write


def test_a_schema_evolved_in_mid_stream_and_poison(
    on_avro: Callable[..., Path], headrace: Headrace, letters: Callable[[], pl.DataFrame],
    results: Callable[[], pl.DataFrame],
) -> None:  # fmt: skip
    """Nothing is declared: the columns are the newest schema's. Old and new writers take turns."""
    broker, registry = shared_broker(), shared_registry()
    topic = broker.topic()
    old = values(registry, topic, OLD, [{"a": i, "y": i / 4, "gone": "x"} for i in range(200)])
    new = values(
        registry, topic, NEW,
        [{"a": i * 10**10, "y": i / 3, "kind": "ab"[i % 2], "level": 1} for i in range(200)],
    )  # fmt: skip
    mixed: list[bytes | None] = [
        value for pair in zip(old, new, strict=True) for value in pair
    ]  # fmt: skip
    poison = {
        30: b"", 60: None, 90: b'{"a":1}', 120: b"\0\x7f\xff\xff\xff\x02", 150: old[75][:-1],
        180: new[90] + b"\0",
    }  # fmt: skip
    for at, bad in poison.items():
        mixed[at] = bad
    broker.produce(topic, mixed)
    code, out, err = headrace("run", on_avro(topic, registry.url))
    assert code == 0, err
    assert "400 read = 394 cleaned + 6 rejected" in out.replace("\n", " ")
    frame = results()
    assert frame["_position"].to_list() == [i for i in range(400) if i not in poison]
    expected = [
        {"y": i / 4, "a": i, "kind": None, "level": 7}
        if at % 2 == 0
        else {"y": i / 3, "a": i * 10**10, "kind": "ab"[i % 2], "level": 1}
        for at, i in ((at, at // 2) for at in range(400) if at not in poison)
    ]
    assert frame.select("y", "a", "kind", "level").to_dicts() == expected
    found = letters()
    assert found["_position"].to_list() == list(poison)
    assert found["reason"].to_list() == [
        "broken",
        "tombstone",
        "broken",
        "unknown_schema",
        *["broken"] * 2,
    ]


def test_a_registry_that_is_down_at_the_start(
    on_avro: Callable[..., Path], headrace: Headrace
) -> None:
    topic = shared_broker().topic()
    code, _, err = headrace("run", on_avro(topic, "http://127.0.0.1:1"))
    assert code == 1
    assert "Schema registry http://127.0.0.1:1 does not answer: " in err
    assert "is it up and its address right?" in err
    assert "Traceback" not in err


def test_plain_avro_by_a_schema_file(
    tmp_path: Path, on_avro: Callable[..., Path], headrace: Headrace,
    results: Callable[[], pl.DataFrame],
) -> None:  # fmt: skip
    broker = shared_broker()
    topic = broker.topic()
    (tmp_path / "payment.avsc").write_text(json.dumps(OLD))
    parts: list[bytes | None] = []
    for i in range(50):
        out = io.BytesIO()
        row = {"a": i, "y": i / 4, "gone": "x"}
        fastavro.schemaless_writer(out, fastavro.parse_schema(OLD), row)
        parts.append(out.getvalue())
    broker.produce(topic, parts)
    file = on_avro(topic, "")
    text = file.read_text().replace('registry = ""', f'schema_file = "{tmp_path}/payment.avsc"')
    file.write_text(text)
    code, _, err = headrace("run", file)
    assert code == 0, err
    assert results().select("a", "y", "gone").rows() == [(i, i / 4, "x") for i in range(50)]


@pytest.mark.full
@pytest.mark.slow
def test_an_engine_outlives_its_registry(tmp_path: Path, on_avro: Callable[..., Path]) -> None:
    """A record of a new schema comes while the registry is down: the run waits, says so, goes on
    when it is back, and loses nothing; and it stops in time while it waits."""
    (tmp_path / "registry").mkdir()
    broker = shared_broker()
    topic = broker.topic()
    with own_registry(tmp_path / "registry") as registry:
        old = values(registry, topic, OLD, [{"a": i, "y": i / 4, "gone": "x"} for i in range(300)])
        row = {"a": 1, "y": 0.5, "kind": "a", "level": 1}
        new = values(registry, topic, NEW, [row] * 300)
        newer = values(
            registry, topic, record(("a", "long"), ("y", "double")), [{"a": 1, "y": 0.5}]
        )
        broker.produce(topic, list(old))
        file = on_avro(topic, registry.url, stop="never", more=LEARNING)
        with started(file) as made:
            until_learned(made, 300)
            registry.stop()
            broker.produce(topic, [*old, *new])
            made.until("schema registry does not answer, asking again")
            registry.start()
            until_learned(made, 900)
            registry.stop()
            broker.produce(topic, list(newer))
            made.until("schema registry does not answer, asking again")
            made.stop(signal.SIGTERM)
            registry.start()
            run = Run(file)
            state = run.checkpoints.load(run.identity)
    assert state is not None
    assert state["positions"] == {f"{topic}/0": 900}
    assert state["totals"]["learned"] == state["totals"]["read"] == 900
