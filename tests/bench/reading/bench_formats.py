"""Bytes to typed columns: clean records, poisoned ones, and what others do with them.

``python -m tests.bench formats``

100,000 records of about 200 bytes as JSON (100 as Avro) and 10 fields, in memory. Poisoned: every
hundredth is one of ten kinds of poison in turn. The same rows as an Avro file, by CPU time.
"""

from __future__ import annotations

import io
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import polars as pl

from connectors.files.readers.avro import AvroFile
from connectors.formats.avro import Avro, parsed
from connectors.formats.encode import AvroEncoder, derived
from connectors.formats.ndjson import Ndjson
from engine.types import Format, Records, Schema, Values
from tests.bench.measure import interleave, median, report

CODECS = ("null", "deflate", "snappy")
NUMBERS = [f"x{i}" for i in range(8)]
SCHEMA: Schema = {
    "id": pl.Int64(),
    "kind": pl.String(),
    **dict.fromkeys(NUMBERS, pl.Float64()),
}
POISON = [
    b"\n", b"{\n", b"[1]\n", b'"text"\n', b'{"x0":"x"}\n', b'{"id":1.5}\n', b"\xff\xfe\n",
    b'{"x1":1,}\n', b'{"id":99999999999999999999}\n', b'{"x5":[1]}\n',
]  # fmt: skip


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/formats.json``."""
    count = 1_000 if quick else 100_000
    frame = rows(count)
    lines = [json.dumps(row).encode() + b"\n" for row in frame.to_dicts()]
    schema = derived(dict(frame.schema), "bench")
    values = AvroEncoder(schema=schema).encode(frame)
    datums = [value for value in values.take(np.arange(count)) if value is not None]
    text = {"clean": records(lines), "poisoned": records(poisoned(lines, POISON))}
    avro = {"clean": records(datums), "poisoned": records(poisoned(datums, damaged(datums[0])))}
    plain = parsed(json.dumps({k: v for k, v in schema.items() if not k.startswith("__")}))
    runs = {f"ndjson, {kind}": reading(Ndjson(), made) for kind, made in text.items()}
    runs |= {f"avro, {kind}": reading(Avro(plain), made) for kind, made in avro.items()}
    runs["avro by fastavro"] = lambda: by_fastavro(schema, datums)
    runs["avro, encoded"] = lambda: AvroEncoder(schema=schema).encode(frame)
    seconds = interleave(runs, rounds=3 if quick else 9)
    figures = {f"{name}, records/s": count / median(taken) for name, taken in seconds.items()}
    for name, base in (
        ("ndjson, poisoned", "ndjson, clean"),
        ("avro, poisoned", "avro, clean"),
        ("avro, clean", "avro by fastavro"),
    ):
        figures[f"{name} / {base}"] = median(seconds[base]) / median(seconds[name])
    files = avro_files(schema, frame, rounds=3 if quick else 9)
    figures |= {f"{name}, records/CPU s": count / median(taken) for name, taken in files.items()}
    for codec in CODECS:
        own = median(files[f"avro file, {codec}"])
        for peer in ("polars", "fastavro"):
            ratio = median(files[f"avro file, {codec}, by {peer}"]) / own
            figures[f"avro file, {codec} / by {peer}"] = ratio
    seconds |= files
    report("formats", figures, seconds=seconds, goal="poisoned 0.5 of clean")


def avro_files(schema: Any, frame: pl.DataFrame, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of reading a file of the rows to a frame."""
    rows = frame.to_dicts()
    with tempfile.TemporaryDirectory() as folder:
        runs: dict[str, Callable[[], object]] = {}
        for codec in CODECS:
            path = Path(folder) / f"{codec}.avro"
            with path.open("wb") as file:
                fastavro.writer(file, schema, rows, codec=codec)
            runs[f"avro file, {codec}"] = partial(read_in_chunks, path)
            runs[f"avro file, {codec}, by polars"] = partial(by_polars, path)
            runs[f"avro file, {codec}, by fastavro"] = partial(file_by_fastavro, path)
        return interleave(runs, rounds, time.process_time)


def read_in_chunks(path: Path) -> None:
    """As the source reads it."""
    file = AvroFile(path, "p")
    while file.read(1 << 30, 1 << 30) is not None:
        pass


def by_polars(path: Path) -> pl.DataFrame:
    return pl.read_avro(path)


def file_by_fastavro(path: Path) -> pl.DataFrame:
    with path.open("rb") as file:
        return pl.DataFrame(list(fastavro.reader(file)))


def rows(count: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    numbers = np.round(rng.normal(size=(count, len(NUMBERS))), 12)
    return pl.DataFrame(
        {
            "id": np.arange(count),
            "kind": np.array(list("abcd"))[np.arange(count) % 4],
            **dict(zip(NUMBERS, numbers.T, strict=True)),
        }
    )


def poisoned(values: list[bytes], poison: list[bytes]) -> list[bytes]:
    """Every hundredth value is poison, in turn."""
    return [
        poison[i // 100 % len(poison)] if i % 100 == 50 else value for i, value in enumerate(values)
    ]


def damaged(datum: bytes) -> list[bytes]:
    return [b"", datum[:-3], datum + b"x", b"\xff" * 40, datum[:1], b"\x04" + datum[1:]]


def records(values: list[bytes]) -> Records:
    bounds = np.cumsum([0, *map(len, values)]).astype(np.int64)
    return Records(
        partition="p",
        positions=np.arange(len(values)),
        next=len(values),
        values=Values(data=np.frombuffer(b"".join(values), np.uint8), bounds=bounds),
        arrived=0.0,
    )


def reading(format: Format, made: Records) -> Any:
    """A run of one decode."""

    def run() -> None:
        frame, rejects = format.decode(made, SCHEMA)
        assert frame.height + sum(map(len, rejects)) == len(made)

    return run


def by_fastavro(schema: Any, datums: list[bytes]) -> pl.DataFrame:
    """Record by record, as its documentation shows it."""
    return pl.DataFrame([fastavro.schemaless_reader(io.BytesIO(d), schema, None) for d in datums])
