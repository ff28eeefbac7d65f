"""Decodes one JSON object per record."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from polars.exceptions import PolarsError

from connectors.formats.kernels.json_text import has_pair, join, mark_blank, quote_words
from connectors.formats.kernels.paths import JsonShape, parse_path, parsed_as
from connectors.formats.kernels.rows import (
    BAD_UTF8,
    BROKEN,
    NOT_UTF8,
    OUT_OF_RANGE,
    WRONG_TYPE,
    binary,
    decode_utf8,
    gather,
    make_rejects,
    parser_input,
    preview,
    take,
    with_position_columns,
)
from connectors.formats.options import FormatOptions
from connectors.formats.values.casts import (
    WHOLE_MOST,
    Coerce,
    cast,
    may_be_another,
    misfit,
    nothing,
    too_big,
    written_as,
)
from connectors.formats.walks import json_scan
from connectors.formats.walks.flat_json import FlatJson
from engine.types import (
    POSITION,
    Format,
    Records,
    Rejects,
    Schema,
    Values,
    element_type,
    field_types,
    type_name,
)
from engine.types.arrays import Ints, read_only

NEWLINE = 10
MOST_LEFT = 0.1
"""The share of records the compiled walk may leave to the parser; above it the data is another
kind of JSON, and all records go to the parser."""
NAN_WORDS = (b"NaN", b"Infinity")
DIGITS = re.compile(rb"\d{8}")
"""The digits of an integer that a float does not hold."""
TWICE = "Expected every key once, got one twice."
HALVED = "Expected Unicode text, got an escape that is half of a surrogate pair."
PIECES = 8
"""The pieces in which a large batch is parsed, so that poison is noticed early."""
PIECE_ROWS = 2_000
"""The least rows of a piece."""
MAY_BE_NESTED = (pl.first().str.starts_with("{") | pl.first().str.starts_with("[")).fill_null(False)
NULL, LIST, OBJECT, INTEGER = (
    json_scan.TOKENS.index(word) for word in ("null", "array", "object", "integer")
)
SIZED = tuple(json_scan.TOKENS.index(word) for word in ("integer", "float", "array"))
"""The tokens of what may be beyond its column's type."""
SIZED_IN_TEXT = (*SIZED, json_scan.TOKENS.index("string"))
REASONS = pl.Series([WRONG_TYPE, OUT_OF_RANGE])
STRINGS = tuple(json_scan.TOKENS.index(word) for word in ("nothing", "null", "string"))
TEXTS: tuple[pl.DataType, ...] = (pl.String(), pl.Binary())
FLOATS: tuple[pl.DataType, ...] = (pl.Float32(), pl.Float64())
Lines = tuple[NDArray[np.uint8], Ints]
"""Lines of JSON, and where each begins and the last ends."""
Made = TypeVar("Made")


class Ndjson(Format):
    """Decodes JSON objects. Flat objects of plain types are decoded by a compiled walk
    (`kernels/flat_json.py`). The rest is parsed in one call; if that fails, a compiled walk
    (`kernels/json_scan.py`) finds the bad lines, the others are parsed in one call, and the
    reasons of the bad ones are found together.

    A field that is absent is null, and so is one on whose way a step is absent; fields the schema
    does not name are ignored; a number or object in a ``string`` column is taken as its text. A
    blank record is ``broken``: it is no object; so is one that has a column's key twice, of which
    readers take the first or the last (keys below the top level: the first counts).

    A value of another type is taken as in all formats (`connectors.formats.values.casts`): "3.5" is
    a number, 9.0 an integer. NaN and Infinity, which JSON does not know, are what they say. Half of
    a surrogate pair, which is no character, is ``bad_utf8``.

    Args:
        paths: column -> where its value is, ``user.address.city`` or ``items[0].price``; a column
            that is not named is the key of its own name. What is no object (or list) where a step
            goes into one rejects the row, ``wrong_type``.
        coerce: see `connectors.formats.values.casts`.
    """

    def __init__(
        self, paths: Mapping[str, str] | None = None, *, coerce: Coerce = "lossless"
    ) -> None:
        """Raises: UserError for a text that is no path."""
        self._coerce: Coerce = coerce
        self._paths = dict(paths or {})
        for column, path in self._paths.items():
            parse_path(path, column)

    def schema(self, declared: Schema) -> Schema:
        """Return the columns, which must be declared. Raises: UserError if they do not match the
        paths."""
        if self._paths or declared:
            JsonShape.of(declared, self._paths)
        return declared

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Return one row or one reject per value, also if it holds line breaks or lacks one."""
        strict = self._coerce == "strict"
        flat = None if self._paths else _flat(tuple(schema.items()), strict)
        if flat is None or not len(records):
            return self._parsed(records, schema)
        assert isinstance(records.values, Values)
        frame, taken = flat.decode(records.values)
        if taken.all():
            return with_position_columns(frame, records), []
        left = np.flatnonzero(~taken)
        if len(left) > len(records) * MOST_LEFT:
            return self._parsed(records, schema)
        # Few are left to the parser: both parts together, in the records' order.
        rest = replace(
            records, positions=records.positions[left], values=take(records.values, left)
        )
        parsed, rejects = self._parsed(rest, schema)
        at = np.flatnonzero(taken)
        decoded = with_position_columns(frame[at], records, at)
        if not parsed.height:
            return decoded, rejects
        both = pl.concat([decoded, parsed])
        return both.sort(POSITION, maintain_order=True), rejects

    def _parsed(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Parse all records with the parser."""
        assert isinstance(records.values, Values)
        paths = tuple((c, path) for c, path in self._paths.items() if c in schema)
        parser = _parser(tuple(schema.items()), paths, self._coerce)
        data, bounds = _lines(records.values)
        n = len(records)
        refused = [
            (BROKEN, TWICE, json_scan.twice(data, bounds, parser.keys)),
            (BAD_UTF8, HALVED, json_scan.halved_pairs(data, bounds)),
        ]
        if any(found.any() for _, _, found in refused):
            return self._without(refused, records, schema)
        frames = [pl.DataFrame(schema=schema)]
        read, ends, quoted, quote = data, bounds, False, parser.decimals
        for start, stop in _pieces(n):
            try:
                lines = functools.partial(_between, data, bounds, start, stop)
                if not quote:
                    part = read[ends[start] : ends[stop]]
                    frame = parser.strict(part, stop - start, written=lines)
                    quote = not quoted and parser.may_be_numbers(frame)
                if quote:
                    if not parser.all_fit(data, bounds):
                        break
                    _, read, ends = parser.tree.scan_quoted(data, bounds)
                    quoted, quote = True, False
                    part = read[ends[start] : ends[stop]]
                    frame = parser.strict(part, stop - start, written=lines)
                frames.append(frame)
            except PolarsError:
                break
        else:
            return with_position_columns(_whole(frames), records), []
        # Where there is one poison record, there are more: all the rest is looked through at once.
        frame, bad = parser.sifted(data[bounds[start] :], bounds[start:] - bounds[start])
        bad = bad.with_columns(pl.col("row") + start)
        at = np.delete(np.arange(n), bad["row"].to_numpy())
        return with_position_columns(_whole([*frames, frame]), records, at), _rejects(records, bad)

    def _without(
        self,
        refused: list[tuple[str, str, NDArray[np.bool_]]],
        records: Records,
        schema: Schema,
    ) -> tuple[pl.DataFrame, list[Rejects]]:
        """Reject the refused records (reason, detail, index), parse the others."""
        assert isinstance(records.values, Values)
        left, rejects = np.ones(len(records), np.bool_), []
        for reason, detail, found in refused:
            if (found & left).any():
                rejects.append(make_rejects(records, np.flatnonzero(found & left), reason, detail))
                left &= ~found
        at = np.flatnonzero(left)
        if not len(at):
            return with_position_columns(pl.DataFrame(schema=schema), records, at), rejects
        rest = replace(records, positions=records.positions[at], values=take(records.values, at))
        frame, more = self._parsed(rest, schema)
        return frame, [*rejects, *more]


@dataclass(frozen=True, slots=True)
class _ShapeParser:
    """The parser's call for one shape, and what to do when it fails."""

    shape: JsonShape
    tree: json_scan.Tree
    types: Schema
    texts: Schema
    coerce: Coerce
    keys: tuple[str, ...]
    """The top-level keys on the way to a column."""
    columns_of_text: tuple[str, ...]
    """The columns of text, and of lists of text."""
    floats: tuple[str, ...]
    """The columns of floats, and of lists of floats: the parser may make numbers infinite, or
    change them."""
    decimals: bool
    """Whether a column has decimals, or lists of them: numbers that are not floats."""
    to_cast: tuple[str, ...]
    """The columns that the parser gives in another type."""

    def strict(
        self,
        part: NDArray[np.uint8],
        rows: int,
        *,
        walked: bool = False,
        written: Callable[[], NDArray[np.uint8]] | None = None,
    ) -> pl.DataFrame:
        """Return the columns. Raises: PolarsError if a line does not fit, or is blank.

        Args:
            walked: the walk has seen to it that floats hold their whole numbers.
            written: the lines as they are written, where those to parse have more quotes.
        """
        frame = self.shape.columns(_parse(part, rows, self.types, lenient=False))
        kinds = self.shape.schema
        for column in self.floats:
            for leaves in _leaves(frame.get_column(column), FLOATS):
                another = not walked and may_be_another(leaves) and DIGITS.search(part.data)
                if another or _overflown(leaves).any():
                    raise PolarsError("a number may be none of its column's")
        parsed = frame
        frame = self._as_it_stands(parsed, (lambda: part) if written is None else written)
        if any(frame[c].null_count() != parsed[c].null_count() for c in self.columns_of_text):
            raise PolarsError("a value inside a list or an object may be none of its type")
        if self.to_cast:
            frame = frame.with_columns(self._cast(frame.get_column(c)) for c in self.to_cast)
        return frame if frame.schema == kinds else frame.cast(kinds)  # type: ignore[arg-type]

    def _as_it_stands(
        self, frame: pl.DataFrame, written: Callable[[], NDArray[np.uint8]]
    ) -> pl.DataFrame:
        """Return objects and arrays in text columns as they are in the lines: the parser
        rewrites them, without the backslashes of their strings."""
        for c in self.columns_of_text:
            column = frame.get_column(c)
            rows = np.flatnonzero(_may_hold_nested(column))
            if not len(rows):
                continue
            part = written()
            ends = np.flatnonzero(part == NEWLINE) + 1
            data, bounds = _taken(part, np.concatenate([[0], ends]), rows)
            number = self.tree.number(self.shape.way(c)[-1])
            scan = self.tree.scan(data, bounds, tokens=True)
            starts, stops = scan.spans[:, number].T
            nested = np.isin(scan.tokens[:, number], (LIST, OBJECT)) & (stops > starts)
            at = np.flatnonzero(nested)
            raw = decode_utf8(binary(gather(data, starts[at], (stops - starts)[at])))
            where = np.zeros(len(column), np.bool_)
            where[rows[at]] = True
            if where.any():
                texts = cast(raw, column.dtype, written=True)
                frame = frame.with_columns(_with(column, where, texts))
        return frame

    def _cast(self, parsed: pl.Series) -> pl.Series:
        """Return a column in its own type. Raises: PolarsError if a value does not fit."""
        dtype = self.shape.schema[parsed.name]
        result = cast(parsed, dtype, written=True)
        if result.null_count() != parsed.null_count():
            raise PolarsError(f"a value of '{parsed.name}' is no {type_name(dtype)}")
        return result

    def may_be_numbers(self, frame: pl.DataFrame) -> bool:
        """Return whether a text column may hold what was not a string: if nothing looks like a
        number, the walk that would tell is skipped."""
        if self.coerce == "strict":
            return bool(self.columns_of_text)
        leaf = pl.first().cast(pl.Binary)
        like = ((leaf >= b"-") & (leaf < b":")).any()
        columns = (frame.get_column(c) for c in self.columns_of_text)
        leaves = (leaf.to_frame() for column in columns for leaf in _leaves(column, TEXTS))
        return any(bool(leaf.select(like).item()) for leaf in leaves)

    def all_fit(self, data: NDArray[np.uint8], bounds: Ints) -> bool:
        """Return whether text columns hold only strings, if they must, and decimal columns only
        numbers."""
        if self.coerce != "strict":
            return True
        return bool((self.tree.scan(data, bounds).verdicts == json_scan.FITS).all())

    def sifted(self, data: NDArray[np.uint8], bounds: Ints) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the rows that fit, and the others: row, reason, detail."""
        if self.coerce == "lossless" and _has_words(data):
            data, bounds = _with_words(data, bounds)
        raw, raw_bounds = data, bounds
        scanned, data, bounds = self.tree.scan_quoted(raw, raw_bounds)
        fits = scanned.verdicts == json_scan.FITS
        good: list[tuple[Ints, pl.DataFrame]] = []
        try:
            good.append(
                (
                    np.flatnonzero(fits),
                    self.strict(
                        _blanked(data, bounds, fits),
                        fits.sum(),
                        walked=True,
                        written=lambda: _blanked(raw, raw_bounds, fits),
                    ),
                )
            )
            kinder = False
        except PolarsError:  # the walk was kinder than the parser, or than a decimal
            kinder = True
            fits[:] = False
        odd = np.flatnonzero(~fits & (scanned.verdicts < json_scan.BROKEN))
        bad = [_broken(raw, raw_bounds, scanned)]
        careful = (scanned.verdicts[odd] == json_scan.SUSPECT) | (self.coerce == "strict")
        careful |= kinder and self.decimals
        plain = odd[~careful]
        kept, alone = _bisect(
            plain,
            lambda rows: self.strict(
                _taken(data, bounds, rows)[0],
                len(rows),
                walked=True,
                written=lambda: _taken(raw, raw_bounds, rows)[0],
            ),
        )
        good += kept
        unsure = np.array([row for row, _ in alone], np.int64)
        errors = {int(row): error for row, error in alone}
        suspect = np.union1d(odd[careful], unsure)
        looked, lost = _bisect(
            suspect,
            lambda rows: self._check_types(
                _taken(data, bounds, rows), _taken(raw, raw_bounds, rows), rows, errors
            ),
        )
        for rows, (frame, why) in looked:
            good.append((np.delete(rows, why["row"].to_numpy()), frame))
            bad.append(why.with_columns(row=pl.Series(rows).gather(why["row"])))
        bad.append(_lost(lost))
        good = [(rows, frame) for rows, frame in good if frame.height]
        whole = pl.concat([pl.DataFrame(schema=self.shape.schema), *(frame for _, frame in good)])
        if len(good) > 1:
            whole = whole[np.argsort(np.concatenate([rows for rows, _ in good]))]
        return whole, pl.concat(bad).sort("row")

    def _check_types(
        self, lines: Lines, written: Lines, rows: Ints, errors: Mapping[int, str]
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return the rows that fit after all, and why the others (row: index into `rows`) do
        not: values that are text where anything is allowed, and null where their type is
        required, do not fit.

        Args:
            lines, written: the rows to parse, and as they are written.
            errors: row -> what the parser said of it alone.

        Raises: PolarsError when one of the lines is no JSON.
        """
        n = len(rows)
        frame = self.shape.columns(_parse(lines[0], n, self.types, lenient=True))
        frame = self._as_it_stands(frame, lambda: written[0])
        text = self.shape.columns(_parse(lines[0], n, self.texts, lenient=True))
        # Asked for all columns at once: each question costs more than its answer.
        present, absent = text.select(pl.all().is_not_null()), frame.select(pl.all().is_null())
        scanned = self.tree.scan(*written, tokens=True)
        done, mended = np.zeros((2, n), np.bool_)
        problems = [NOTHING]
        for name, dtype in self.shape.schema.items():
            last = self.tree.number(self.shape.way(name)[-1])
            problems += self._blocked_on_the_way(name, scanned.tokens, done)
            raw = text.get_column(name)
            token = scanned.tokens[:, last]
            has = present.get_column(name).to_numpy()
            lost = has & absent.get_column(name).to_numpy() & ~done
            lost |= _overflown(frame.get_column(name)) & ~done
            lost |= _beyond(frame.get_column(name)) & (token == INTEGER) & ~done
            if dtype.is_nested():  # the parser makes null of what does not fit inside
                raw = _as_written(raw, written[0], scanned.spans[:, last], token)
            if dtype.is_nested() or parsed_as(dtype) != dtype:
                lost = has & ~done
                frame = frame.with_columns(nothing(raw, dtype))
            again = lost.copy()
            if self.coerce == "strict":
                again &= np.isin(token, written_as(dtype))
            if again.any():  # written otherwise; or a number that the parser does not read
                coerce: Coerce = "strict" if self.coerce == "strict" else "lossless"
                taken = cast(raw.filter(pl.Series(again)), dtype, coerce, written=True)
                column = frame.get_column(name).cast(dtype)
                frame = frame.with_columns(_with(column, again, taken))
                lost[np.flatnonzero(again)] = taken.is_null().to_numpy()
                mended |= again & ~lost
            if self.coerce == "strict" and dtype == pl.String:
                lost |= ~np.isin(token, STRINGS) & has & ~done
            if lost.any():
                at = np.flatnonzero(lost)
                problems.append(_misfits(at, raw.gather(at), token[at], name, dtype, self.coerce))
                done |= lost
        known = done | mended
        rest = [i for i, row in enumerate(rows.tolist()) if row in errors and not known[i]]
        problems.append(
            _found(rest, WRONG_TYPE, pl.Series([f"{errors[int(rows[i])]}." for i in rest]))
        )
        why = pl.concat(problems).sort("row")
        done[rest] = True
        return frame.filter(pl.Series(~done)).cast(self.shape.schema), why  # type: ignore[arg-type]

    def _blocked_on_the_way(
        self, name: str, tokens: NDArray[np.int8], done: NDArray[np.bool_]
    ) -> list[pl.DataFrame]:
        """Return why a column cannot be reached in some rows, and mark these as done: something
        else stands where the path to it needs an object or a list."""
        problems = []
        for node in self.shape.way(name)[:-1]:
            token = tokens[:, self.tree.number(node)]
            odd = (token != 0) & (token != NULL) & (token != (LIST if node.is_list else OBJECT))
            problems.append(_blocked(np.flatnonzero(odd & ~done), name, node.path, token))
            done |= odd
        return problems


@functools.lru_cache(maxsize=16)
def _flat(schema: tuple[tuple[str, pl.DataType], ...], strict: bool) -> FlatJson | None:
    return FlatJson.of(dict(schema), strict=strict)


@functools.lru_cache(maxsize=16)
def _parser(
    schema: tuple[tuple[str, pl.DataType], ...],
    paths: tuple[tuple[str, str], ...],
    coerce: Coerce,
) -> _ShapeParser:
    shape = JsonShape.of(dict(schema), dict(paths))
    types = shape.types(text=False)
    tree = json_scan.Tree(shape, strict=coerce == "strict")
    kinds = shape.schema.items()
    return _ShapeParser(
        shape,
        tree,
        types,
        shape.types(text=True),
        coerce,
        tuple(step for step in shape.root.below if isinstance(step, str)),
        columns_of_text=tuple(c for c, dtype in kinds if {*_leaf_types(dtype)} & {*TEXTS}),
        floats=tuple(c for c, dtype in kinds if {*_leaf_types(dtype)} & {*FLOATS}),
        decimals=any(t.is_decimal() for _, dtype in kinds for t in _leaf_types(dtype)),
        to_cast=tuple(c for c, dtype in kinds if parsed_as(dtype) != dtype),
    )


def _leaf_types(dtype: pl.DataType) -> Iterator[pl.DataType]:
    """Return the innermost types of lists and objects."""
    if isinstance(dtype, pl.List):
        yield from _leaf_types(element_type(dtype))
    elif isinstance(dtype, pl.Struct):
        for field in field_types(dtype).values():
            yield from _leaf_types(field)
    else:
        yield dtype


def _leaves(column: pl.Series, kinds: Sequence[pl.DataType]) -> Iterator[pl.Series]:
    """Return the innermost values of lists and objects with these types."""
    if isinstance(column.dtype, pl.List):
        yield from _leaves(column.explode(empty_as_null=False, keep_nulls=False), kinds)
    elif isinstance(column.dtype, pl.Struct):
        for field in column.struct.unnest().get_columns():
            yield from _leaves(field, kinds)
    elif column.dtype in kinds:
        yield column


def _may_hold_nested(column: pl.Series) -> NDArray[np.bool_]:
    """Return the rows in which text may be a list or an object, shape (n,)."""
    if column.dtype == pl.String:
        return column.to_frame().select(MAY_BE_NESTED).to_series().to_numpy()
    leaves = (leaf.to_frame() for leaf in _leaves(column, TEXTS))
    may_hold = any(leaf.select(MAY_BE_NESTED.any()).item() for leaf in leaves)
    return np.full(len(column), may_hold)


def _overflown(column: pl.Series) -> NDArray[np.bool_]:
    """Return which numbers the parser made infinite, because float32 does not hold them."""
    if column.dtype != pl.Float32:
        return np.zeros(len(column), np.bool_)
    return column.is_infinite().fill_null(False).to_numpy()


def _beyond(column: pl.Series) -> NDArray[np.bool_]:
    """Return which numbers may differ from the integers that were written."""
    if column.dtype not in WHOLE_MOST or not may_be_another(column):
        return np.zeros(len(column), np.bool_)
    return (column.abs() >= WHOLE_MOST[column.dtype]).fill_null(False).to_numpy()


def _with(column: pl.Series, where: NDArray[np.bool_], taken: pl.Series) -> pl.Series:
    """Return the column with other values in some places (scatter does not support lists)."""
    spread = taken.gather(np.maximum(np.cumsum(where) - 1, 0))
    return spread.zip_with(pl.Series(where), column).alias(column.name)


def _as_written(
    text: pl.Series, data: NDArray[np.uint8], spans: Ints, token: NDArray[np.int8]
) -> pl.Series:
    """Return texts of a column, its lists and objects as they are in the lines.

    Args:
        spans: where they do, shape (n, 2).
    """
    at = np.flatnonzero(np.isin(token, (LIST, OBJECT)) & (spans[:, 1] > spans[:, 0]))
    if not len(at):
        return text
    starts, stops = spans[at].T
    return text.scatter(at, decode_utf8(binary(gather(data, starts, stops - starts))))


def _whole(frames: list[pl.DataFrame]) -> pl.DataFrame:
    return frames[-1] if len(frames) == 2 else pl.concat(frames, rechunk=True)


def _pieces(rows: int) -> list[tuple[int, int]]:
    size = max(PIECE_ROWS, -(-rows // PIECES))
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def _lines(values: Values) -> tuple[NDArray[np.uint8], Ints]:
    """Return the values as lines, and the bounds of each; a file's values are lines already and
    are not copied."""
    bounds = values.bounds - values.bounds[0]
    part = values.data[values.bounds[0] : values.bounds[-1]]
    if (np.diff(bounds) > 0).all() and np.array_equal(
        np.flatnonzero(part == NEWLINE), bounds[1:] - 1
    ):
        return part, bounds
    out = np.empty(len(part) + len(values), np.uint8)
    join(values.data, values.bounds, out)
    return out, bounds + np.arange(len(bounds))


def _has_words(data: NDArray[np.uint8]) -> bool:
    """Return whether NaN or Infinity is anywhere in the lines."""
    words = (word for word in NAN_WORDS if has_pair(read_only(data), *word[:2]))
    return any(re.search(word, data.data) for word in words)


def _with_words(data: NDArray[np.uint8], bounds: Ints) -> tuple[NDArray[np.uint8], Ints]:
    """Return the lines with NaN and infinities as strings."""
    out, ends = np.empty(2 * len(data) + 2, np.uint8), np.zeros_like(bounds)
    return out[: quote_words(read_only(data), read_only(bounds), out, ends)], ends


def _parse(part: NDArray[np.uint8], rows: int, types: Schema, *, lenient: bool) -> pl.DataFrame:
    """Raises: PolarsError when one of the lines does not fit (lenient: is no JSON), or is blank."""
    data, _ = parser_input(part)  # the parser skips blank lines by itself
    frame = pl.read_ndjson(data, schema=types, ignore_errors=lenient)
    if frame.height != rows:
        raise PolarsError("the line is blank")
    return frame


def _blanked(data: NDArray[np.uint8], bounds: Ints, keep: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the lines, with blanks (which the parser skips) for those not to keep."""
    out = data.copy()
    mark_blank(out, read_only(bounds), keep)
    return out


def _between(data: NDArray[np.uint8], bounds: Ints, start: int, stop: int) -> NDArray[np.uint8]:
    """Return the lines from one to another."""
    return data[bounds[start] : bounds[stop]]


def _taken(data: NDArray[np.uint8], bounds: Ints, rows: Ints) -> Lines:
    """Return some of the lines."""
    gathered = gather(data, bounds[rows], np.diff(bounds)[rows])
    return gathered.data, gathered.bounds


def _bisect(
    rows: Ints, attempt: Callable[[Ints], Made]
) -> tuple[list[tuple[Ints, Made]], list[tuple[int, str]]]:
    """Apply `attempt` to rows in as large pieces as it accepts; return the results, and the rows
    it does not accept even alone, with its errors."""
    results, alone = [], []
    pieces = [rows] if len(rows) else []
    while pieces:
        piece = pieces.pop()
        try:
            results.append((piece, attempt(piece)))
        except PolarsError as error:
            if len(piece) == 1:
                alone.append((int(piece[0]), str(error).partition("\n")[0]))
            else:
                pieces += np.array_split(piece, 2)[::-1]
    return results, alone


def _found(
    rows: Sequence[int] | Ints, reason: str | pl.Series, detail: str | pl.Series
) -> pl.DataFrame:
    texts = {"reason": reason, "detail": detail}
    columns = [
        text.alias(c).cast(pl.String)
        if isinstance(text, pl.Series)
        else pl.Series(c, [text]).new_from_index(0, len(rows))
        for c, text in texts.items()
    ]
    return pl.DataFrame([pl.Series("row", rows, pl.Int64), *columns])


NOTHING = pl.DataFrame(schema={"row": pl.Int64, "reason": pl.String, "detail": pl.String})


def _broken(data: NDArray[np.uint8], bounds: Ints, scanned: json_scan.Scan) -> pl.DataFrame:
    """Return the lines that are not a JSON object."""
    utf8 = np.flatnonzero(scanned.verdicts == json_scan.NOT_UTF8)
    at = np.flatnonzero(
        (scanned.verdicts >= json_scan.BROKEN) & (scanned.verdicts != json_scan.NOT_UTF8)
    )
    words = json_scan.words(data, bounds[:-1], scanned, at)
    return pl.concat([_found(utf8, BAD_UTF8, NOT_UTF8), _found(at, BROKEN, words)])


def _lost(alone: list[tuple[int, str]]) -> pl.DataFrame:
    """Return the lines that only the parser knows to be broken."""
    rows = [row for row, _ in alone]
    utf8 = ["InvalidUtf8" in error or "utf-8" in error for _, error in alone]
    reason = pl.Series([BAD_UTF8 if u else BROKEN for u in utf8], dtype=pl.String)
    detail = [
        NOT_UTF8 if u else f"Expected a JSON object: {error}."
        for (_, error), u in zip(alone, utf8, strict=True)
    ]
    return _found(rows, reason, pl.Series(detail, dtype=pl.String))


def _blocked(at: Ints, column: str, path: str, token: NDArray[np.int8]) -> pl.DataFrame:
    """Return the lines with another value on the way to a column."""
    names = pl.Series(json_scan.TOKENS).gather(token[at])
    head = pl.lit(f"In column '{column}': expected more keys or elements at '{path}', got ")
    return _found(
        at, WRONG_TYPE, pl.select(pl.concat_str(head, pl.lit(names), pl.lit("."))).to_series()
    )


def _misfits(
    at: Ints,
    raw: pl.Series,
    token: NDArray[np.int8],
    column: str,
    dtype: pl.DataType,
    coerce: Coerce,
) -> pl.DataFrame:
    """Return the lines whose value in the column, `raw`, is not of its type."""
    written: str | pl.Series = ""
    if coerce == "strict":
        written = pl.select(
            pl.format(" ({})", pl.Series(json_scan.TOKENS).gather(token))
        ).to_series()
    in_text = coerce == "lossless" or dtype.is_temporal()
    sized = np.isin(token, SIZED_IN_TEXT if in_text else SIZED)
    big = sized & too_big(raw, dtype, misfits=coerce == "lossless").to_numpy()
    return _found(at, REASONS[big.astype(np.uint32)], misfit(raw, dtype, column, written))


def _rejects(records: Records, bad: pl.DataFrame) -> list[Rejects]:
    """Return bad records by reason, in their order."""
    assert isinstance(records.values, Values)
    # The values of all at once: each question costs more than its answer.
    bad = bad.with_columns(value=preview(binary(records.values)[bad["row"]]))
    return [
        make_rejects(
            records,
            group["row"].to_numpy(),
            str(group["reason"][0]),
            group["detail"],
            group["value"],
        )
        for group in bad.partition_by("reason", maintain_order=True)
    ]


def make(options: FormatOptions) -> Ndjson:
    """Return the format; called by `connectors.formats.registry`."""
    return Ndjson(options.paths, coerce=options.coerce)


__all__ = ["Ndjson"]
