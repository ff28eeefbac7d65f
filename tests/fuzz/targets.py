"""What is damaged, and what reads it: a target takes a file's bytes and gives every byte of text
that came out of them. Whatever it raises but `HeadraceError` is a finding.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import signal
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import polars as pl
import zstandard
from PIL import Image as Picture

from connectors.files.source import FilesSource
from connectors.formats.avro import Avro, parsed
from engine.types import EndOfStream, HeadraceError, Records, Schema, Values
from tests.fuzz import avro_files, parquet
from tests.fuzz.mutate import harmed, mutated

Read = Callable[[bytes, Path], Iterator[bytes]]
ROWS = pl.DataFrame(
    {
        "n": range(24),
        "x": [i / 3 if i % 5 else None for i in range(24)],
        "s": [f"text {i} äö" if i % 7 else None for i in range(24)],
        "t": [f"2024-01-{i + 1:02} 03:04:05" for i in range(24)],
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A kind of input.

    Attributes:
        seeds: whole inputs, by the name of the file that they would be in.
        read: gives the bytes that came out; raises HeadraceError for an input that it refuses.
        harm: the damage: a whole input and a number to a damaged input.
    """

    seeds: dict[str, bytes]
    read: Read
    harm: Callable[[bytes, int], bytes] = mutated


def _file(declared: Schema | None = None, **settings: Any) -> Read:
    """The files source: declared columns, and guessed ones."""

    def read(_: bytes, path: Path) -> Iterator[bytes]:
        for columns in [declared] if declared is not None else [{}]:
            source = FilesSource(FilesSource.Settings(path=str(path), **settings))
            with contextlib.closing(source):
                yield from _rows(source, source.schema(dict(columns)))

    return read


def _rows(source: FilesSource, schema: Schema) -> Iterator[bytes]:
    with contextlib.suppress(EndOfStream):
        while True:
            piece = source.read(1_000, 1 << 20, 0.0)
            assert piece is not None
            frame, rejects = source.format.decode(piece, schema)
            assert frame.height + sum(map(len, rejects)) == len(piece), "a row is lost or doubled"
            yield from _texts(frame)


def _texts(frame: pl.DataFrame) -> Iterator[bytes]:
    """All that a frame holds, as bytes: whoever looks at every value finds what is broken."""
    for column in frame.get_columns():
        if column.dtype == pl.String:
            yield "".join(column.drop_nulls().to_list()).encode()
        elif column.dtype == pl.Binary:
            yield b"".join(column.drop_nulls().to_list())
        else:  # Python has no year 10,000
            yield repr(column.to_physical().to_list()).encode()


def _image(data: bytes, _: Path) -> Iterator[bytes]:
    """The stage ``image`` on one value."""
    from engine.scrub.features.image import Images
    from engine.types import Batch, Mark

    frame = _placed(pl.DataFrame({"photo": [data]}))
    stage = Images("image", Images.Settings(columns=("photo",), size=(8, 8)))
    stage.bind({"photo": pl.Binary()})
    done = stage.apply(Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=1))
    yield from _texts(done.frame.drop("_partition", "_position"))


def _placed(frame: pl.DataFrame) -> pl.DataFrame:
    from engine.types import RESERVED

    place = pl.DataFrame({"_partition": ["p"], "_position": [0]})
    return pl.concat([place, frame], how="horizontal").select([*RESERVED, *frame.columns])


def _avro(data: bytes, _: Path) -> Iterator[bytes]:
    """A datum as a record of a topic has it."""
    schema = {"n": pl.Int64(), "s": pl.String(), "many": pl.List(pl.Int64()), "e": pl.String()}
    frame, _rejects = Avro(parsed(AVRO)).decode(_record(data), schema)
    yield from _texts(frame)


def _record(data: bytes) -> Records:
    return Records(
        partition="p",
        positions=np.zeros(1, np.int64),
        next=1,
        values=Values(data=np.frombuffer(data, np.uint8), bounds=np.array([0, len(data)])),
        arrived=0.0,
    )


def _pipeline(data: bytes, path: Path) -> Iterator[bytes]:
    """A pipeline file: read, and everything named in it made."""
    from engine.run import Run

    del data
    run = Run(path)
    source_schema = run.parts.scrub.source_schema
    parts = source_schema, run.stages, run.schema, run.checkpoints, run.pipeline.dead_letters
    yield repr(len(parts)).encode()


def _checkpoint(data: bytes, path: Path) -> Iterator[bytes]:
    from engine.running.saving.checkpoint import Checkpoints

    del data
    state = Checkpoints(Checkpoints.Settings(path=str(path.parent))).load({"pipeline": "fuzz"})
    yield b"" if state is None else repr(sorted(state)).encode()


def _model(data: bytes, path: Path) -> Iterator[bytes]:
    from models.serving.predictor import OnnxPredictor

    del data
    predictor = OnnxPredictor(OnnxPredictor.Settings(model=str(path), threads=1))
    predictor.bind({"x0": pl.Float64(), "x1": pl.Float64(), "color": pl.String()})
    frame = pl.DataFrame({"x0": [1.0, None], "x1": [0.0, 2.0], "color": ["red", None]})
    yield repr(predictor.scores(frame).tolist()).encode()


# ------------------------------------------------------------------------------------------- seeds

AVRO = json.dumps(
    {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "n", "type": "long"},
            {"name": "s", "type": ["null", "string"]},
            {"name": "many", "type": {"type": "array", "items": "long"}},
            {"name": "e", "type": {"type": "enum", "name": "E", "symbols": ["A", "B"]}},
        ],
    }
)
PIPELINE = """\
name = "fuzz"
folder = "FOLDER/run"
[source]
kind = "files"
path = "FOLDER/rows.csv"
max_record_bytes = 1048576
[source.schema]
n = "int64"
x = "float64"
s = "string"
[loader]
batch_rows = 100
max_delay = "250ms"
memory_budget = "64MiB"
[scrub.missing]
columns = ["x"]
strategy = "median"
indicator = true
[scrub.outliers]
columns = ["x"]
method = "iqr"
threshold = 3
[scrub.standardize]
columns = ["n", "x"]
[scrub.categories]
columns = ["s"]
size = 20
[sink]
kind = "files"
path = "FOLDER/out"
format = "parquet"
[dead_letters]
limit = 0.5
[service]
port = 0
"""


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    out = io.BytesIO()
    write(out)
    return out.getvalue()


def _picture(kind: str) -> bytes:
    colors = np.arange(20 * 16 * 3, dtype=np.uint8).reshape(16, 20, 3)
    return _written(lambda out: Picture.fromarray(colors).save(out, kind))


def _tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for i in range(4):
            for extension, raw in (("json", b'{"n": %d}' % i), ("txt", b"text"), ("cls", b"1")):
                info = tarfile.TarInfo(f"{i}.{extension}")
                info.size = len(raw)
                file.addfile(info, io.BytesIO(raw))
    return out.getvalue()


def _arrow(compression: Any, *, stream: bool = False) -> bytes:
    frame = ROWS.with_columns(
        many=pl.Series([[i, None] for i in range(24)]),
        some=pl.Series(["a", "b", None] * 8, dtype=pl.Categorical),
        raw=pl.Series([bytes([i] * i) for i in range(24)]),
    )
    level: Any = pl.CompatLevel.oldest()
    if stream:
        return _written(lambda out: frame.write_ipc_stream(out, compat_level=level))
    write = frame.write_ipc
    return _written(lambda out: write(out, compression=compression, compat_level=level))


def _checkpoint_bytes() -> bytes:
    import tempfile

    from engine.running.saving.checkpoint import Checkpoints

    state = {"positions": {"a": 1}, "work": {"weights": np.arange(9.0)}, "totals": {"read": 1}}
    with tempfile.TemporaryDirectory() as folder:
        path = Checkpoints(Checkpoints.Settings(path=folder)).save(state, {"pipeline": "fuzz"})
        return path.read_bytes()


def _model_bytes() -> bytes:
    import tempfile

    from engine.types import Codes, Features, Fill, Transform
    from models.export.model import export
    from models.learners.tabular import TabularLearner

    features = Features(
        numeric=("x0", "x1"), categories={"color": 4}, target="y", task="binary",
        classes=("no", "yes"),
    )  # fmt: skip
    own = TabularLearner.Settings(layers=(4,))
    learner = TabularLearner(own, TabularLearner.Training(), features)
    stages: list[Transform] = [
        Fill(column="x0", value=0.5, indicator=None),
        Codes(column="color", values=("red", "blue", "green")),
    ]
    with tempfile.TemporaryDirectory() as folder:
        return export(Path(folder) / "m.onnx", learner, stages, {"version": "1"}).read_bytes()


CSV, LINES = ROWS.write_csv().encode(), ROWS.write_ndjson().encode()
XML = b"<rows>%s</rows>" % b"".join(
    b"<row n='%d'><s>t%d<b>&amp;</b></s></row>" % (i, i) for i in range(20)
)
DECLARED: Schema = {"n": pl.Int64(), "x": pl.Float64(), "s": pl.String()}


TEXT = {"rows.csv": CSV, "rows.ndjson": LINES}
PACKED = {
    "rows.csv.gz": gzip.compress(CSV), "rows.ndjson.zst": zstandard.compress(LINES),
    "rows.csv.bz2": bz2.compress(CSV), "rows.ndjson.xz": lzma.compress(LINES),
}  # fmt: skip


def _arrows() -> dict[str, bytes]:
    return {
        "plain.arrow": _arrow("uncompressed"), "zstd.arrow": _arrow("zstd"),
        "lz4.arrow": _arrow("lz4"), "stream.arrow": _arrow(None, stream=True),
    }  # fmt: skip


def _datum() -> bytes:
    row = {"n": 5, "s": "text", "many": [1, 2, 3], "e": "B"}
    schema = fastavro.parse_schema(json.loads(AVRO))
    return _written(lambda out: fastavro.schemaless_writer(out, schema, row))


def _itself(data: bytes, _: Path) -> Iterator[bytes]:
    """What the kit looks for, done on purpose, by the number of the seed."""
    what = data[:1]
    if what == b"1":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == b"2":
        raise ValueError("a traceback")
    if what == b"3":
        yield b"...FOREIGN-MEMORY-..."
    if what == b"4":
        raise HeadraceError("two\nlines")
    if what == b"5":
        yield bytes(np.ones(1 << 30, np.uint8)[:1])
        signal.pause()
    if what == b"6":
        while True:
            pass
    if what == b"7":
        raise HeadraceError("one sentence")


TARGETS: dict[str, Callable[[], Target]] = {
    "text, guessed": lambda: Target(seeds=TEXT | PACKED, read=_file()),
    "text, declared": lambda: Target(seeds=TEXT | PACKED, read=_file(DECLARED)),
    "parquet": lambda: Target(seeds=parquet.seeds(ROWS), read=_file(), harm=parquet.damaged),
    "arrow": lambda: Target(seeds=_arrows(), read=_file()),
    "avro files": lambda: Target(
        seeds=avro_files.seeds(ROWS), read=_file(), harm=avro_files.damaged
    ),
    "xml": lambda: Target(
        seeds={"rows.xml": XML},
        read=_file({"n": pl.Int64(), "s": pl.String()}, row="rows/row", paths={"n": "@n"}),
    ),
    "tar": lambda: Target(seeds={"rows.tar": _tar()}, read=_file()),
    "avro": lambda: Target(seeds={"datum": _datum()}, read=_avro),
    "image": lambda: Target(
        seeds={kind: _picture(kind) for kind in ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")},
        read=_image,
    ),
    "pipeline": lambda: Target(seeds={"fuzz.toml": PIPELINE.encode()}, read=_pipeline, harm=harmed),
    "checkpoint": lambda: Target(
        seeds={"checkpoint-00000001.hrc": _checkpoint_bytes()}, read=_checkpoint
    ),
    "model": lambda: Target(seeds={"model.onnx": _model_bytes()}, read=_model),
}
"""Every kind of input, by its name."""
ITSELF = Target(
    seeds={f"{n}": f"{n}".encode() for n in range(8)}, read=_itself, harm=lambda seed, _: seed
)


@cache
def target(name: str) -> Target:
    """One of `TARGETS`; "itself" is for the kit's own test."""
    return ITSELF if name == "itself" else TARGETS[name]()


__all__ = ["TARGETS", "Target", "target"]
