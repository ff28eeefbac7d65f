"""XML, tars and folders of images to columns, and what others do with them.

``python -m tests.bench inputs``

100,000 elements of one XML document, of 6 values (15 MB), to typed columns; 5,000 samples of a
WebDataset shard (an image of 20 kB, a number, 60 bytes of JSON) to columns; the same images as
files of a folder. All from the disk's cache.
"""

from __future__ import annotations

import io
import json
import random
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
from lxml import etree

from connectors.files.source import FilesSource
from connectors.formats.xml import SAFE
from engine.types import EndOfStream, Schema
from tests.bench.measure import interleave, median, report

ORDER: Schema = {
    "id": pl.Int64(), "title": pl.String(), "price": pl.Float64(), "qty": pl.Int64(),
    "at": pl.Datetime("us"), "city": pl.String(),
}  # fmt: skip
SAMPLE: Schema = {"jpg": pl.Binary(), "cls": pl.Int64(), "w": pl.Int64()}
ROW = (
    "<order id='{i}'><title>Item {i}</title><price cur='EUR'>{i}.5</price><qty>{q}</qty>"
    "<at>2024-01-01T00:00:00</at><addr><city>Wien</city></addr></order>\n"
)


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/inputs.json``."""
    rows, samples = (2_000, 200) if quick else (100_000, 5_000)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        document, shard = _orders(folder, rows), _shard(folder, samples)
        xml = {"path": str(document), "row": "orders/order", "paths": {"city": "addr/city"}}
        tar = {"path": str(shard), "paths": {"w": "json.w"}}
        image: Schema = {"image": pl.Binary(), "label": pl.String()}
        runs = {
            "xml": reading(xml, ORDER, rows),
            "xml by pandas.read_xml": lambda: by_pandas(document, rows),
            "xml by lxml.iterparse": lambda: by_iterparse(document, rows),
            "webdataset": reading(tar, SAMPLE, samples),
            "webdataset by tarfile": lambda: by_tarfile(shard, samples),
            "images": reading({"path": str(folder / "photos")}, image, samples),
            "images by read_bytes": lambda: by_read_bytes(folder / "photos", samples),
        }
        seconds = interleave(runs, rounds=3 if quick else 5)
    figures = {
        f"{run}, rows/s": (rows if run.startswith("xml") else samples) / median(taken)
        for run, taken in seconds.items()
    }
    for run in list(runs):
        base, _, peer = run.partition(" by ")
        if peer:
            figures[f"{base} / {peer}"] = median(seconds[run]) / median(seconds[base])
    report("inputs", figures, seconds=seconds, goal="no slower than by hand")


def reading(where: dict[str, Any], schema: Schema, expected: int) -> Callable[[], None]:
    """A run over all files, decoded."""

    def run() -> None:
        source = FilesSource(FilesSource.Settings(**where))
        columns, rows = source.schema(schema), 0
        while True:
            try:
                records = source.read(8_192, 16 << 20, 0.0)
            except EndOfStream:
                break
            assert records is not None
            rows += source.format.decode(records, columns)[0].height
        assert rows == expected

    return run


def by_pandas(path: Path, expected: int) -> None:
    """In bounded memory, as its documentation advises for large files; with casts."""
    names = ["id", "title", "price", "qty", "at", "city"]
    frame = pd.read_xml(path, iterparse={"order": names}, parse_dates=["at"])
    assert len(frame) == expected


def by_iterparse(path: Path, expected: int) -> None:
    """By hand: lxml's iterparse with elements cleared behind it, to a frame; with casts."""
    rows = []
    for _, element in etree.iterparse(str(path), events=("end",), tag="order", **SAFE):
        rows.append(
            (
                element.get("id"), element.findtext("title"), element.findtext("price"),
                element.findtext("qty"), element.findtext("at"), element.findtext("addr/city"),
            )
        )  # fmt: skip
        element.clear()
        while element.getprevious() is not None:
            del element.getparent()[0]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(ORDER, pl.String()), orient="row")
    frame = frame.with_columns(pl.col("at").str.to_datetime("%Y-%m-%dT%H:%M:%S"))
    assert frame.cast(ORDER).height == expected  # type: ignore[arg-type]


def by_tarfile(path: Path, expected: int) -> None:
    """By hand: tarfile's stream, neighbours put together, decoded one by one."""
    samples: dict[str, dict[str, Any]] = {}
    with tarfile.open(path, "r|") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            samples.setdefault(key, {})[extension] = file.read()
    rows = [
        {"jpg": s["jpg"], "cls": int(s["cls"]), "w": json.loads(s["json"])["w"]}
        for s in samples.values()
    ]
    assert pl.DataFrame(rows, schema=SAMPLE).height == expected


def by_read_bytes(folder: Path, expected: int) -> None:
    """By hand: every file in order."""
    paths = sorted(folder.rglob("*.jpg"))
    columns = {"image": [p.read_bytes() for p in paths], "label": [p.parent.name for p in paths]}
    assert pl.DataFrame(columns).height == expected


def _orders(folder: Path, rows: int) -> Path:
    path = folder / "orders.xml"
    body = "".join(ROW.format(i=i, q=i % 7) for i in range(rows))
    path.write_text(f"<orders>{body}</orders>")
    return path


def _shard(folder: Path, samples: int) -> Path:
    """A tar, and its images as files."""
    path, rng = folder / "shard.tar", random.Random(0)
    with tarfile.open(path, "w") as tar:
        for i in range(samples):
            image = rng.randbytes(20_000)
            photo = folder / "photos" / f"{i % 10}" / f"{i:06}.jpg"
            photo.parent.mkdir(parents=True, exist_ok=True)
            photo.write_bytes(image)
            note = json.dumps({"w": i, "h": 224, "caption": "x" * 30}).encode()
            for extension, raw in (("jpg", image), ("cls", b"%d" % (i % 10)), ("json", note)):
                info = tarfile.TarInfo(f"{i:06}.{extension}")
                info.size = len(raw)
                tar.addfile(info, io.BytesIO(raw))
    return path
