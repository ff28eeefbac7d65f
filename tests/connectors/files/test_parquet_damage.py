"""Parquet whose footer or page headers say what cannot be: one sentence, before polars reads it."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connectors.files.readers.table import ParquetFile
from engine.types import HeadraceError
from tests.containers import varint

N = 24
"""Rows; a varint of one byte in every header that counts them."""


def plain(**options: object) -> bytes:
    out = io.BytesIO()
    table = pa.table({"a": [*range(N - 1), None], "b": [[i, None] for i in range(N)]})
    pq.write_table(table, out, compression="none", use_dictionary=["a"], **options)
    return out.getvalue()


def opened(raw: bytes, folder: Path, columns: list[str] | None = None) -> ParquetFile:
    path = folder / "a.parquet"
    path.write_bytes(raw)
    return ParquetFile(path, "p", columns)


def first_page(raw: bytes, column: int) -> int:
    """Where a column's first page of data begins."""
    metadata = pq.read_metadata(io.BytesIO(raw))
    return int(metadata.row_group(0).column(column).data_page_offset)


def with_values(raw: bytes, column: int, head: bytes, values: int, number: int) -> bytes:
    """The first page of a column says that it has a number of values; as many bytes as before."""
    at = raw.index(head + varint(values), first_page(raw, column)) + len(head)
    said = varint(number)
    return raw[:at] + said + raw[at + len(said) :]


HEADS = {"1.0": b"\x2c\x15", "2.0": b"\x5c\x15"}
"""How the struct of a page of data begins: its field, and that of the values' number."""


@pytest.mark.parametrize("version", HEADS)
@pytest.mark.parametrize("number", [-1, -(2**31), 2**31 - 1, 2**31, 2**60, 0, N - 1, N + 1])
def test_a_page_of_a_number_of_values_that_cannot_be(
    number: int, version: str, tmp_path: Path
) -> None:
    raw = with_values(plain(data_page_version=version), 0, HEADS[version], N, number)
    with pytest.raises(HeadraceError, match=r"column 'a' at byte \d+ cannot be") as error:
        opened(raw, tmp_path).whole()
    assert "\n" not in str(error.value)


def test_a_page_of_a_list_that_cannot_be(tmp_path: Path) -> None:
    """A column that nobody asks for is not looked at."""
    raw = with_values(plain(), 1, HEADS["1.0"], 2 * N, -5)
    with pytest.raises(HeadraceError, match=r"the page of column 'b\.list\.element' at byte"):
        opened(raw, tmp_path).whole()
    assert opened(raw, tmp_path, ["a"]).whole()["a"].to_list() == [*range(N - 1), None]


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (b"\x13", "a number of another type, which readers take for one of 32 bits"),
        (b"\x05\x02", "a number in the place of another"),
        (b"\x18", "bytes where a number is"),
        (b"\x00", "a struct that ends before it says anything"),
    ],
)
def test_a_header_of_another_shape(harm: bytes, why: str, tmp_path: Path) -> None:
    raw = bytearray(plain())
    at = raw.index(b"\x2c\x15" + varint(N), first_page(bytes(raw), 0)) + 1
    raw[at : at + len(harm)] = harm
    with pytest.raises(HeadraceError, match="the page of column 'a'"):
        opened(bytes(raw), tmp_path).whole()


@pytest.mark.parametrize("number", [-1, 0, N - 8, N + 8, 2**40])
def test_rows_of_the_file_that_its_row_groups_do_not_have(number: int, tmp_path: Path) -> None:
    """polars gives as many as the file says; positions are those of the row groups."""
    raw = plain()
    size = int.from_bytes(raw[-8:-4], "little")
    body, footer = raw[: -8 - size], raw[-8 - size : -8]
    # The file's rows are the field between its schema and its row groups.
    before, after = footer.split(b"\x16" + varint(N) + b"\x19", 1)
    footer = before + b"\x16" + varint(number) + b"\x19" + after
    raw = body + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    with pytest.raises(HeadraceError, match="cannot be read as parquet at row 0"):
        opened(raw, tmp_path)


def test_a_chunk_that_is_not_in_the_file(tmp_path: Path) -> None:
    """Footer and last bytes are whole, what is between them is not all there."""
    raw = plain()
    size = int.from_bytes(raw[-8:-4], "little")
    with pytest.raises(HeadraceError, match="the page of column 'a' at byte"):
        opened(raw[:4] + raw[-8 - size :], tmp_path).whole()


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path) -> None:
    out = io.BytesIO()
    pl.DataFrame({"x": np.arange(200_000)}).write_parquet(out, row_group_size=100_000)
    file = opened(out.getvalue(), tmp_path)
    assert file.read(10, 1 << 20) is not None
    os.truncate(tmp_path / "a.parquet", len(out.getvalue()) // 2)
    file.skip_to(150_000)
    with pytest.raises(HeadraceError, match="at row 150000: the page of column 'x' at byte"):
        file.read(10, 1 << 20)


def test_a_header_that_is_longer_than_most(tmp_path: Path) -> None:
    """Statistics hold the smallest and the largest value, however long."""
    texts = [letter * 3_000 for letter in "abc"]
    out = io.BytesIO()
    pq.write_table(pa.table({"s": texts}), out, use_dictionary=False, write_statistics=True)
    assert opened(out.getvalue(), tmp_path).whole()["s"].to_list() == texts


def test_every_page_of_every_row_group_is_walked(tmp_path: Path) -> None:
    """Small pages in many row groups; a harm in the last page of the last of them."""
    raw = plain(data_page_size=1, write_batch_size=5, row_group_size=10)
    assert opened(raw, tmp_path).whole()["a"].to_list() == [*range(N - 1), None]
    metadata = pq.read_metadata(io.BytesIO(raw))
    last = metadata.row_group(metadata.num_row_groups - 1).column(0)
    end = last.dictionary_page_offset + last.total_compressed_size
    at = raw.rindex(b"\x2c\x15", 0, end) + 2
    raw = raw[:at] + varint(-1) + raw[at + 1 :]
    file = opened(raw, tmp_path, ["a"])
    assert file.read(20, 1 << 20) is not None
    file.skip_to(20)
    with pytest.raises(HeadraceError, match="at row 20: the page of column 'a' at byte"):
        file.read(20, 1 << 20)
