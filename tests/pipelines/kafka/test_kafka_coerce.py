"""Values of a topic that are written as another type than the declared one: the rule that files
have, with dead letters that say what was wrong with which record."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import fastavro
import polars as pl
import pytest

from tests.broker import shared_broker
from tests.pipelines.conftest import Headrace

PIPELINE = """
name = "small"
folder = "{folder}/run"
{source}
format = "{format}"
coerce = "{coerce}"
[source.schema]
n = "int64"
i = "int64"
f = "float64"
s = "string"
b = "bool"
t = "datetime"
[sink]
kind = "files"
path = "{folder}/out"
[dead_letters]
limit = 1.0
"""
TAKEN: dict[str, list[tuple[str, Any]]] = {
    "i": [("7", 7), ('"7"', 7), ("1.0", 1), ('"1.0"', 1), ("1e3", 1000), ("true", None)],
    "f": [("1", 1.0), ('"2.5"', 2.5), ('"1e3"', 1000.0), ("null", None)],
    "s": [('"a"', "a"), ("true", "true"), ("5", "5"), ("1.0", "1.0"), ('""', "")],
    "b": [("true", True), ('"true"', True), ('"FALSE"', False), ("1", True), ("0", False)],
    "t": [
        ('"2024-01-02T03:04:05Z"', datetime(2024, 1, 2, 3, 4, 5)),
        ('"2024-01-02"', datetime(2024, 1, 2)),
    ],
}
"""Column -> what stands in the value, and what it is; a bool is no number."""
REFUSED = [
    ("i", '"7.5"'),
    ("i", "1.5"),
    ("i", '"seven"'),
    ("i", "99999999999999999999"),
    ("i", "[7]"),
    ("f", '"x"'),
    ("f", "true"),
    ("b", '"yes"'),
    ("b", "2"),
    ("t", '"yesterday"'),
    ("t", "true"),
]
"""Neither lossless nor strict."""
Pipeline = Callable[..., Path]


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """Writes the pipeline's file, on a topic or on a file."""

    def write(place: str | Path, *, format: str = "ndjson", coerce: str = "lossless") -> Path:
        source = f'[source]\nkind = "files"\npath = "{place}"'
        if isinstance(place, str):
            bootstrap_servers = shared_broker().bootstrap_servers
            source = (
                f'[source]\nkind = "kafka"\nbootstrap_servers = "{bootstrap_servers}"\ntopics '
                f'= "{place}"'
            )
            source += '\nstop = "end"'
        file = tmp_path / "small.toml"
        file.write_text(
            PIPELINE.format(folder=tmp_path, source=source, format=format, coerce=coerce)
        )
        return file

    return write


def lines() -> list[bytes]:
    """Every case as a JSON record."""
    cases = [(c, text) for c, values in TAKEN.items() for text, _ in values] + REFUSED
    return [f'{{"n":{n},"{c}":{text}}}'.encode() for n, (c, text) in enumerate(cases)]


@pytest.mark.parametrize("coerce", ["lossless", "strict"])
def test_a_topic_has_the_rule_of_files(
    coerce: str, pipeline: Pipeline, headrace: Headrace, tmp_path: Path,
    results: Callable[[], pl.DataFrame], letters: Callable[[], pl.DataFrame],
) -> None:  # fmt: skip
    broker, values = shared_broker(), lines()
    topic = broker.topic()
    broker.produce(topic, list(values))
    code, out, err = headrace("run", pipeline(topic, coerce=coerce))
    assert code == 0, err
    taken, refused = results(), letters()
    assert taken.height + refused.height == len(values)
    assert f"{len(values)} read = {taken.height} cleaned + {refused.height} rejected" in " ".join(
        out.split()
    )
    # Each letter says where the record is, and is the record.
    for letter in refused.to_dicts():
        at = letter["_position"]
        assert letter["_partition"] == f"{topic}/0"
        assert letter["timestamp"] == 1_000 + at
        assert base64.b64decode(letter["key"]) == b"k"
        assert letter["value"].encode().strip() == values[at]
        column, value = list(json.loads(values[at]).items())[1]
        assert letter["detail"].startswith("Expected ")
        assert f" in column '{column}'" in letter["detail"]
        assert letter["reason"] == ("out_of_range" if value == 10**20 - 1 else "wrong_type")
    # The same lines as a file are the same rows and the same letters.
    (tmp_path / "data.ndjson").write_bytes(b"\n".join(values) + b"\n")
    again = headrace("run", pipeline(tmp_path / "data.ndjson", coerce=coerce), "--fresh")
    assert again[0] == code, again[2]
    own = ["n", "i", "f", "s", "b", "t"]
    assert results().select(own).equals(taken.select(own))
    why = ["reason", "stage", "detail"]
    assert letters().select(why).equals(refused.select(why))
    if coerce == "strict":
        return
    expected = [(c, value) for c, values in TAKEN.items() for _, value in values]
    wrong = [n for n, (c, value) in enumerate(expected) if (c, value) == ("i", None)]
    assert refused["_position"].to_list() == [*wrong, *range(len(expected), len(values))]
    for row in taken.to_dicts():
        column, value = expected[row["n"]]
        assert (row[column], type(row[column])) == (value, type(value)), row


@pytest.mark.parametrize("coerce", ["lossless", "strict"])
def test_csv_and_avro_of_a_topic(
    coerce: str, pipeline: Pipeline, headrace: Headrace, tmp_path: Path,
    results: Callable[[], pl.DataFrame], letters: Callable[[], pl.DataFrame],
) -> None:  # fmt: skip
    """Text in Avro, which has types of its own, is a number only where that is lossless; CSV writes
    everything as text."""
    broker = shared_broker()
    cells = [("0", "7", "1.5"), ("1", "1.0", "2"), ("2", "1.5", "3"), ("3", "x", "4")]
    topic = broker.topic()
    broker.produce(
        topic, [",".join((*cell, "true", "true", "2024-01-02")).encode() for cell in cells]
    )
    file = pipeline(topic, format="csv", coerce=coerce)
    file.write_text(
        file.read_text().replace("coerce =", 'columns = ["n", "i", "f", "s", "b", "t"]\ncoerce =')
    )
    code, _, err = headrace("run", file)
    assert code == 0, err
    lossless = coerce == "lossless"
    assert results()["i"].to_list() == ([7, 1] if lossless else [7])
    assert results()["s"].to_list() == ["true"] * (2 if lossless else 1)
    assert letters()["_position"].to_list() == ([2, 3] if lossless else [1, 2, 3])
    assert letters()["timestamp"].to_list() == (
        [1_002, 1_003] if lossless else [1_001, 1_002, 1_003]
    )

    names = [
        ("n", "long"),
        ("i", "string"),
        ("f", "long"),
        ("s", "boolean"),
        ("b", "string"),
        ("t", "string"),
    ]
    schema = {"type": "record", "name": "R", "fields": [{"name": n, "type": t} for n, t in names]}
    (tmp_path / "r.avsc").write_text(json.dumps(schema))
    values: list[bytes | None] = []
    for n, text in enumerate(("7", "1.0", "1.5", "x")):
        made = io.BytesIO()
        row = {"n": n, "i": text, "f": 2, "s": True, "b": "true", "t": "2024-01-02"}
        fastavro.schemaless_writer(made, fastavro.parse_schema(schema), row)
        values.append(made.getvalue())
    topic = broker.topic()
    broker.produce(topic, values)
    file = pipeline(topic, format="avro", coerce=coerce)
    file.write_text(
        file.read_text().replace("coerce =", f'schema_file = "{tmp_path}/r.avsc"\ncoerce =')
    )
    code, _, err = headrace("run", file, "--fresh")
    assert code == 0, err
    refused = letters()
    assert refused["_position"].to_list() == ([2, 3] if lossless else [0, 1, 2, 3])
    assert set(refused["reason"]) == {"wrong_type"}
    if lossless:
        assert results().select("n", "i", "f", "s", "b", "t").rows() == [
            (0, 7, 2.0, "true", True, datetime(2024, 1, 2)),
            (1, 1, 2.0, "true", True, datetime(2024, 1, 2)),
        ]
