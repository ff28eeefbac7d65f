"""Parquet files of every encoding, small and whole, and damage aimed at what their bytes mean: the
headers of pages, the first bytes of their bodies (levels, runs, widths, offsets), the footer.

Random damage hits a header of 30 bytes in a file of 3,000 once in a hundred, and the varint in it
that counts values once in a thousand.
"""

from __future__ import annotations

import io
import random
from datetime import datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.mutate import mutated

TAIL = 8
"""Bytes behind the footer: its size, and ``PAR1``."""
HEAD = 48
"""Bytes of a page that hold its header and how its body begins."""
EXTREMES = (
    0, 1, 2, 3, 5, 8, 23, 24, 25, 47, 48, 49, 64, 127, 128, 255, 2**15, 2**20, 2**27, 2**30,
    2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**60, 2**62, 2**63 - 1, 2**63, 2**64 - 1,
)  # fmt: skip
"""Numbers as varints have them: the odd ones are negative where they are read as zigzag."""


def seeds(rows: pl.DataFrame) -> dict[str, bytes]:
    """Whole files, by name."""
    table = _many_types(rows)
    flat = table.drop_columns(["list", "struct", "map"])
    ints, texts = ["n", "t", "small"], ["s", "same"]
    delta = dict.fromkeys(ints, "DELTA_BINARY_PACKED") | {
        "s": "DELTA_BYTE_ARRAY", "same": "DELTA_LENGTH_BYTE_ARRAY", "x": "BYTE_STREAM_SPLIT",
    }  # fmt: skip
    return {
        "plain.parquet": _by_polars(rows, compression="uncompressed"),
        "zstd.parquet": _by_polars(rows, row_group_size=7),
        "old.parquet": _by_polars(rows, use_pyarrow=True),
        "dictionary.parquet": _by_arrow(flat, compression="none"),
        "nested.parquet": _by_arrow(table, compression="none", use_dictionary=texts),
        "delta.parquet": _by_arrow(
            flat, compression="none", use_dictionary=False, column_encoding=delta
        ),
        "delta-2.parquet": _by_arrow(
            flat, compression="none", use_dictionary=False, column_encoding=delta,
            data_page_version="2.0",
        ),
        "version-2.parquet": _by_arrow(table, compression="snappy", data_page_version="2.0"),
        "pages.parquet": _by_arrow(
            flat, compression="none", use_dictionary=texts, data_page_size=1, write_batch_size=5,
            write_page_index=True, row_group_size=17, write_statistics=False,
        ),
        "gzip.parquet": _by_arrow(flat, compression="gzip", write_page_checksum=True),
        "lz4.parquet": _by_arrow(table, compression="lz4", use_dictionary=False),
        "brotli.parquet": _by_arrow(flat, compression="brotli"),
    }  # fmt: skip


def damaged(seed: bytes, number: int) -> bytes:
    """Mutation `number` of a file: random damage a third of the time, else damage that is aimed,
    once or several times."""
    rng = random.Random(~number)
    if rng.random() < 1 / 3:
        return mutated(seed, number)
    data = bytearray(seed)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.choice(_pages(seed)) if rng.random() < 0.7 else None
        if at is None:
            _in_footer(data, rng)
        elif rng.random() < 0.7:
            _varint(data, at + rng.randrange(HEAD), rng, same_size=True)
        else:
            data[at + rng.randrange(HEAD)] = rng.choice([0, 1, 2, 3, 8, 32, 127, 128, 255])
    return bytes(data)


def _in_footer(data: bytearray, rng: random.Random) -> None:
    """A varint of the footer, whose size is then right again."""
    size = int.from_bytes(data[-TAIL:-4], "little")
    start = len(data) - TAIL - size
    if size < 2 or start < 0:
        return
    _varint(data, start + rng.randrange(size), rng, same_size=False)
    data[-TAIL:-4] = (len(data) - TAIL - start).to_bytes(4, "little")


def _varint(data: bytearray, at: int, rng: random.Random, *, same_size: bool) -> None:
    """The varint at a place becomes an extreme one; where the size of all stays the same, bytes
    behind it go or come, so that the pages that follow stay where they were."""
    end = at
    while data[end] >= 0x80 and end < len(data) - TAIL - 1:
        end += 1
    before = len(data)
    data[at : end + 1] = _encoded(rng.choice(EXTREMES))
    if same_size:
        there, grown = at + HEAD, len(data) - before
        if grown > 0:
            del data[there : there + grown]
        else:
            data[there:there] = bytes(-grown)


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@cache
def _pages(seed: bytes) -> list[int]:
    """Where the first pages of all column chunks are."""
    metadata = pq.read_metadata(io.BytesIO(seed))
    chunks = [
        metadata.row_group(i).column(j)
        for i in range(metadata.num_row_groups)
        for j in range(metadata.num_columns)
    ]
    offsets = {c.data_page_offset for c in chunks} | {c.dictionary_page_offset for c in chunks}
    return sorted(offset for offset in offsets if offset is not None)


def _many_types(rows: pl.DataFrame) -> pa.Table:
    count = rows.height
    some = [i % 4 != 1 for i in range(count)]

    def column(values: list[Any], kind: pa.DataType) -> pa.Array:
        kept = [value if keep else None for value, keep in zip(values, some, strict=True)]
        return pa.array(kept, kind)

    numbers = list(range(count))
    moments = [datetime(2024, 1, 1) + timedelta(hours=i) for i in numbers]
    return pa.table(
        {
            "n": column([i * 1_000_003 % 977 for i in numbers], pa.int64()),
            "small": column(numbers, pa.int32()),
            "x": column([i / 3 for i in numbers], pa.float64()),
            "t": column(moments, pa.timestamp("us")),
            "s": rows["s"].to_arrow().cast(pa.string()),
            "same": column([f"c{i % 3}" for i in numbers], pa.string()),
            "yes": column([i % 3 == 0 for i in numbers], pa.bool_()),
            "raw": column([bytes([i % 256]) * 4 for i in numbers], pa.binary(4)),
            "money": column([Decimal(i) / 4 for i in numbers], pa.decimal128(20, 2)),
            "half": pa.array(np.arange(count, dtype=np.float16)),
            "list": column([[i, None][: i % 3] for i in numbers], pa.list_(pa.int64())),
            "struct": column(
                [{"a": i, "b": f"b{i}"} for i in numbers],
                pa.struct([("a", pa.int32()), ("b", pa.string())]),
            ),
            "map": column([[(f"k{i}", i)] for i in numbers], pa.map_(pa.string(), pa.int64())),
        }
    )


def _by_polars(rows: pl.DataFrame, **options: Any) -> bytes:
    out = io.BytesIO()
    rows.write_parquet(out, **options)
    return out.getvalue()


def _by_arrow(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


__all__ = ["damaged", "seeds"]
