"""64-bit hashes of rows that are the same in every process, version and machine.

polars' own hashes may change with its version, and a checkpoint must outlive that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray

from engine.columnar.intrinsics import byte_at, fetch, word_at
from engine.types.arrays import read_only

Hashes = NDArray[np.uint64]

NULL = np.uint64(0x9E3779B97F4A7C15)
SAMPLE = 64
"""The bytes, or elements, hashed from each end of a value longer than two of them."""
VIEW = 16
"""Bytes of Arrow's view of a text."""
AHEAD = 16
"""Texts that are fetched before they are read."""


def hashes(frame: pl.DataFrame, names: Iterable[str] | None = None) -> Hashes:
    """Return one hash per row over all columns, or those of these names, shape (n,). Two different
    rows are equal with probability 2**-64; null is a value, NaN one value, and -0.0 is 0.0. Lists,
    arrays and objects are hashed whole."""
    total = np.zeros(frame.height, np.uint64)
    for name in frame.columns if names is None else names:
        _chain(_column(frame.get_column(name)), total)
    return total


def content_hashes(frame: pl.DataFrame) -> Hashes:
    """Return one hash per row over the names and values of all columns, shape (n,), independent of
    the order of columns. Equal rows have equal hashes. For long texts, bytes and lists only the two
    ends and the length are hashed, so an image costs no more than a line of text, and two values
    that differ only in the middle are equal."""
    total = np.zeros(frame.height, np.uint64)
    for column in frame.get_columns():
        _fold(_words(column), _text_hash(column.name, 0), total)
    return mix(total)


def place_hashes(frame: pl.DataFrame, salt: int) -> Hashes:
    """Return one hash per row of its partition and position, shape (n,): the same for every column
    of a record, in every epoch and batch. Only the last part of a partition's name counts: a file
    in another folder has the same hashes."""
    partitions, positions = frame.get_column("_partition"), frame.get_column("_position")
    own: Hashes | np.uint64
    if len(partitions) and (partitions == partitions[0]).all():  # as nearly always
        own = _text_hash(partitions[0], salt)
    else:
        runs = partitions.rle().struct.unnest()
        each = [_text_hash(name, salt) for name in runs["value"]]
        own = np.repeat(np.array(each, np.uint64), runs["len"].to_numpy())
    return mix(own + mix(positions.to_numpy().view(np.uint64)))


@lru_cache(maxsize=65_536)
def _text_hash(text: str, salt: int) -> np.uint64:
    name = text.rpartition("/")[2]
    hashed: np.uint64 = hashes(pl.DataFrame({"text": [name]}))[0] ^ np.uint64(salt)
    return hashed


def mix(values: Hashes) -> Hashes:
    """Apply the finalizer of splitmix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom
    Number Generators", 2014): every bit of the result depends on every input bit."""
    z = values + NULL
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _column(column: pl.Series) -> Hashes:
    dtype = column.dtype
    if dtype.is_float():
        hashed = mix(_bits(column))
    elif dtype in (pl.String, pl.Binary) or isinstance(dtype, pl.Categorical | pl.Enum):
        plain = dtype in (pl.String, pl.Binary)  # a cast costs, even to the same type
        hashed = _texts(column if plain else column.cast(pl.String))
    elif isinstance(dtype, pl.Array):
        hashed = _whole_lists(column.arr.to_list())
    elif isinstance(dtype, pl.List):
        hashed = _whole_lists(column)
    elif isinstance(dtype, pl.Struct):
        hashed = hashes(column.struct.unnest())
    else:
        hashed = _wholes(column.to_physical())
    if not column.null_count():
        return hashed
    return np.where(column.is_null().to_numpy(), NULL, hashed)


def _words(column: pl.Series) -> Hashes:
    """Return 64 bits per value that identify it, shape (n,); not mixed."""
    dtype = column.dtype
    words: Hashes
    if column.null_count():
        present = column.is_not_null().to_numpy()
        words = np.full(len(column), NULL)
        words[present] = _words(column.drop_nulls())
    elif dtype.is_float():
        words = np.empty(len(column), np.uint64)
        numbers = read_only(column.to_numpy().astype(np.float64, copy=False))
        _plain(numbers, numbers.view(np.uint64), words)
    elif dtype in (pl.String, pl.Binary) or isinstance(dtype, pl.Categorical | pl.Enum):
        words = _ends(column if dtype == pl.Binary else column.cast(pl.String).cast(pl.Binary))
    elif isinstance(dtype, pl.Array):
        words = _lists(column.arr.to_list())
    elif isinstance(dtype, pl.List):
        words = _lists(column)
    elif isinstance(dtype, pl.Struct):
        words = content_hashes(column.struct.unnest())
    elif dtype in (pl.Int128, pl.UInt128) or dtype.is_decimal():
        words = _ends(column.cast(pl.String).cast(pl.Binary))
    else:
        whole = column.to_physical().to_numpy()
        wide = np.uint64 if whole.dtype == np.uint64 else np.int64
        words = whole.astype(wide, copy=False).view(np.uint64)
    return words


def _ends(column: pl.Series) -> Hashes:
    """Return the bytes to hash: all, or the two ends and the length."""
    sizes = column.bin.size().to_numpy().astype(np.uint64)
    if not len(sizes) or sizes.max() <= 2 * SAMPLE:
        return _texts(column)
    ends = [_texts(end) for end in (column.bin.head(SAMPLE), column.bin.tail(SAMPLE))]
    return mix(ends[0] + mix(ends[1] + sizes))


def _lists(column: pl.Series) -> Hashes:
    """Hash lists: the elements with their index, all or those at the two ends, and the length."""
    sizes = column.list.len().to_numpy().astype(np.uint64)
    head = column.list.head(SAMPLE)
    tail = column.list.tail(SAMPLE)
    return mix(_elements(head, _words) + mix(_elements(tail, _words) + sizes))


def _whole_lists(column: pl.Series) -> Hashes:
    """Hash lists: all elements with their index, and the length."""
    sizes = column.list.len().fill_null(0).to_numpy().astype(np.uint64)
    return mix(_elements(column, _column) + sizes)


def _elements(column: pl.Series, words: Callable[[pl.Series], Hashes]) -> Hashes:
    """Return the sum of the elements' words, each mixed with its index in its list, shape (n,)."""
    sizes = column.list.len().fill_null(0).to_numpy().astype(np.int64)
    bounds = np.append(0, np.cumsum(sizes))
    inner = column.explode(empty_as_null=False, keep_nulls=False)
    place = np.arange(len(inner)) - np.repeat(bounds[:-1], sizes)
    hashed = mix(words(inner) + mix(place.astype(np.uint64)))
    total = np.append(np.uint64(0), np.cumsum(hashed, dtype=np.uint64))
    own: Hashes = total[bounds[1:]] - total[bounds[:-1]]
    return own


@numba.njit(nogil=True, cache=True)
def _plain(numbers, bits, out):  # type: ignore[no-untyped-def]
    """Return the bits of each number, shape (n,), with a single zero and a single NaN."""
    for i in range(out.shape[0]):
        if numbers[i] != numbers[i]:
            out[i] = np.uint64(0x7FF8000000000000)
        elif numbers[i] == 0.0:
            out[i] = 0
        else:
            out[i] = bits[i]


@numba.njit(nogil=True, cache=True)
def _fold(words, seed, total):  # type: ignore[no-untyped-def]
    """Add each word, mixed with the column's seed, to `total`, shape (n,). Inlines `mix`."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    first, second = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
    for i in range(total.shape[0]):
        z = (words[i] ^ seed) + golden
        z = (z ^ (z >> np.uint64(30))) * first
        z = (z ^ (z >> np.uint64(27))) * second
        total[i] += z ^ (z >> np.uint64(31))


@numba.njit(nogil=True, cache=True)
def _chain(words, total):  # type: ignore[no-untyped-def]
    """Mix the words of one more column into `total`, shape (n,). Inlines `mix`."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    first, second = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
    for i in range(total.shape[0]):
        z = total[i] * np.uint64(31) + words[i] + golden
        z = (z ^ (z >> np.uint64(30))) * first
        z = (z ^ (z >> np.uint64(27))) * second
        total[i] = z ^ (z >> np.uint64(31))


def _wholes(column: pl.Series) -> Hashes:
    """Return integers by value, whatever their width; 128-bit integers and decimals by their
    digits."""
    if column.dtype in (pl.Int128, pl.UInt128) or column.dtype.is_decimal():
        return _texts(column.cast(pl.String))
    wide = pl.UInt64 if column.dtype == pl.UInt64 else pl.Int64
    return mix(column.cast(wide).fill_null(0).to_numpy().view(np.uint64))


def _bits(column: pl.Series) -> Hashes:
    words = np.empty(len(column), np.uint64)
    wide = column.cast(pl.Float64)
    numbers = read_only((wide.fill_null(0.0) if wide.null_count() else wide).to_numpy())
    _plain(numbers, numbers.view(np.uint64), words)
    return words


def utf8_buffer(column: pl.Series) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the texts' UTF-8 bytes back to back, and where each begins: text i is
    ``data[bounds[i]:bounds[i + 1]]``."""
    array = column.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    _, bounds, data = array.buffers()
    ends = np.frombuffer(bounds, np.int64)[array.offset :][: len(array) + 1]
    if not len(array) or ends[0] == ends[-1]:
        return np.empty(0, np.uint8), np.zeros(len(array) + 1, np.int64)
    return np.frombuffer(data, np.uint8)[ends[0] : ends[-1]], ends - ends[0]


def _texts(column: pl.Series) -> Hashes:
    """Return the sum of a random number for each pair of byte and index (Zobrist, 1970), mixed."""
    array = column.rechunk().to_arrow(compat_level=pl.CompatLevel.newest())
    _, views, *data = array.buffers()
    hashed = np.empty(len(array), np.uint64)
    if not len(array):
        return hashed
    words = np.frombuffer(views, np.uint32).reshape(-1, 4)[array.offset :][: len(array)]
    present = np.empty(0, np.bool_)
    if column.null_count():  # where there is none, its view may be anything
        present = column.is_not_null().to_numpy()
    places = np.array([buffer.address for buffer in data], np.uint64)
    begin = np.uint64(words.ctypes.data)
    _zobrist_of_views(words, begin, read_only(present), read_only(places), ZOBRIST, hashed)
    return hashed


def spans(text: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Hashes:
    """Return one hash per ``text[starts[i]:stops[i]]``, equal to that of `hashes` for a column of
    these texts."""
    return mix(_summed(text, starts, stops))


def _summed(text: NDArray[np.uint8], starts: NDArray[np.int64], stops: NDArray[np.int64]) -> Hashes:
    hashed = np.empty(len(starts), np.uint64)
    begin = np.uint64(text.ctypes.data)
    _zobrist(read_only(text), begin, read_only(starts), read_only(stops), ZOBRIST, hashed)
    return hashed


@numba.njit(nogil=True, cache=True)
def _zobrist(text, begin, starts, stops, table, out):  # type: ignore[no-untyped-def]
    """Write the hash of each text to `out`, shape (n,)."""
    for i in range(out.shape[0]):
        start = np.uint64(starts[i])
        out[i] = _hash(begin + start, np.uint64(stops[i]) - start, table)


@numba.njit(nogil=True, cache=True)
def _zobrist_of_views(words, begin, present, places, table, out):  # type: ignore[no-untyped-def]
    """The same for Arrow's views: the length, then a short text itself, or of a longer one the
    beginning, its buffer and where it begins there.

    Args:
        words: the views, shape (n, 4), and `begin`, where they are in memory.
        present: which texts there are; empty if all.
        places: where each buffer of long texts is in memory.
    """
    n, short = out.shape[0], np.uint32(VIEW - 4)
    for i in range(n):
        j = min(i + AHEAD, n - 1)
        if words[j, 0] > short and (present.shape[0] == 0 or present[j]):
            fetch(places[words[j, 2]] + np.uint64(words[j, 3]))
        length = np.uint64(words[i, 0])
        if present.shape[0] and not present[i]:
            out[i] = 0
        elif words[i, 0] > short:
            out[i] = _hash(places[words[i, 2]] + np.uint64(words[i, 3]), length, table)
        else:
            out[i] = _hash(begin + np.uint64(VIEW * i + 4), length, table)


@numba.njit(nogil=True, cache=True, forceinline=True)
def _hash(at, length, table):  # type: ignore[no-untyped-def]
    """Return the hash of a text at an address, read in words of eight bytes, the last of them up to
    its end. Inlines `mix`, also for what the table has not."""
    golden, one, word_size = np.uint64(0x9E3779B97F4A7C15), np.uint64(1), np.uint64(8)
    first, second = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
    step, low = np.uint64(256), np.uint64(255)
    total, known = length, min(length, np.uint64(table.shape[0]) // step)
    i, place = np.uint64(0), np.uint64(0)
    while i + word_size <= known:
        word = word_at(at + i)
        for k in range(np.uint64(8)):
            total += table[place + ((word >> (word_size * k)) & low)]
            place += step
        i += word_size
    if i < known and known >= word_size:
        word = word_at(at + known - word_size) >> (word_size * (word_size - (known - i)))
        while i < known:
            total += table[place + (word & low)]
            word >>= word_size
            place += step
            i += one
    while i < known:
        total += table[place + byte_at(at + i)]
        place += step
        i += one
    while i < length:
        z = place + byte_at(at + i) + golden
        z = (z ^ (z >> np.uint64(30))) * first
        z = (z ^ (z >> np.uint64(27))) * second
        total += z ^ (z >> np.uint64(31))
        place += step
        i += one
    z = total + golden
    z = (z ^ (z >> np.uint64(30))) * first
    z = (z ^ (z >> np.uint64(27))) * second
    return z ^ (z >> np.uint64(31))


ZOBRIST = mix(np.arange(64 * 256, dtype=np.uint64))
"""The random numbers of each byte at the first 64 places of a text: looked up, they cost a third of
what they cost computed."""

__all__ = ["Hashes", "content_hashes", "hashes", "mix", "place_hashes", "spans", "utf8_buffer"]
