"""Hashes of texts against their definition, byte by byte."""

from __future__ import annotations

import random

import numpy as np
import polars as pl
import pytest

from engine.columnar.hashing import NULL, ZOBRIST, hashes, mix, spans, utf8_buffer

LENGTHS = (0, 1, 3, 7, 8, 9, 11, 12, 13, 15, 16, 17, 24, 63, 64, 65, 66, 90, 300)
MASK = (1 << 64) - 1


def zobrist(text: str) -> int:
    """A random number for each pair of byte and index, and the length, summed up and mixed."""
    data = text.encode()
    places = np.arange(len(data), dtype=np.uint64) * np.uint64(256)
    numbers = mix(places + np.frombuffer(data, np.uint8))
    assert (numbers[:64] == ZOBRIST[places[:64] + np.frombuffer(data, np.uint8)[:64]]).all()
    total = (len(data) + sum(int(number) for number in numbers)) & MASK
    return int(mix(np.array([total], np.uint64))[0])


def texts(n: int) -> list[str]:
    rng = random.Random(n)
    return ["".join(rng.choices("ab0é漢 ", k=rng.choice(LENGTHS))) for _ in range(n)]


def column(layout: str, values: list[str]) -> pl.Series:
    """The same texts, as they come from different places."""
    series = pl.Series("k", values, pl.String)
    match layout:
        case "from a list":
            return series
        case "a slice":
            return pl.concat([series, series]).rechunk().slice(len(values))
        case "gathered from several buffers":
            parts = [pl.Series("k", [value, "x" * 40], pl.String) for value in values]
            return pl.concat(parts).gather(np.arange(0, 2 * len(values), 2))
    return pl.concat([series.head(len(values) // 3), series.tail(-(len(values) // 3))])


LAYOUTS = ("from a list", "a slice", "gathered from several buffers", "two chunks")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_text_has_the_hash_of_its_bytes_wherever_it_lies(layout: str) -> None:
    values = texts(90)
    series = column(layout, values)
    assert series.to_list() == values
    expected = mix(np.array([zobrist(value) for value in values], np.uint64))
    np.testing.assert_array_equal(hashes(series.to_frame()), expected)
    np.testing.assert_array_equal(hashes(series.cast(pl.Binary).to_frame()), expected)
    text, ends = utf8_buffer(series)
    np.testing.assert_array_equal(spans(text, ends[:-1], ends[1:]), expected)


def test_null_has_a_hash_of_its_own_among_texts_of_every_length() -> None:
    values: list[str | None] = [*texts(60)]
    values[::3] = [None] * 20
    series = pl.Series("k", values, pl.String).gather(np.arange(59, -1, -1))
    hashed = hashes(series.to_frame())
    null = series.is_null().to_numpy()
    assert (hashed[null] == mix(np.array([NULL]))[0]).all()
    np.testing.assert_array_equal(hashed[~null], hashes(series.drop_nulls().to_frame()))
    np.testing.assert_array_equal(
        hashes(pl.DataFrame({"a": series, "b": series}), ["b"]), hashed, strict=True
    )
