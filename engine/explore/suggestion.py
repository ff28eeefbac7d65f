"""Suggests a ``[scrub]`` section for the findings, each stage with its reason."""

from __future__ import annotations

import re
from collections.abc import Iterator

from engine.explore.findings import ColumnProfile, Findings, classes
from engine.types.plural import counted
from engine.types.toml import toml_value

SPARSE = 0.6
"""The share of missing values above which a column is left out."""
SKEWED = 0.5
"""Bowley's skewness of the quartiles above which logarithms are suggested."""
FIELD = re.compile(r"Struct\(\{'([^']+)'")
LABELS = ("y", "label", "labels", "target", "class")
"""Names of columns to predict, if no pipeline names the target."""
COPIES = 0.5
"""The share of duplicates above which rows just have few values."""
UNIQUE_SHARE = 0.5
"""The share of distinct values above which a text identifies the row instead of a class."""


def suggestion(findings: Findings) -> str:
    """Return the section as TOML; empty without rows."""
    if not findings.rows:
        return ""
    return "\n".join(_lines(findings)).strip() + "\n"


def _lines(findings: Findings) -> Iterator[str]:
    if findings.found:
        yield f"# [source] as it was found: {findings.found}"
        yield ""
    left: dict[str, str] = {}
    numbers, texts = [], []
    time = findings.times.column.split(" + ") if findings.times is not None else []
    for column in findings.columns:
        why = _unfit(column, findings, time)
        if why:
            left[column.name] = why
        elif column.numeric:
            numbers.append(column)
        else:
            texts.append(column)
    for name, why in left.items():
        yield f"# left out: {toml_value(name)}, {why}"
    if left:
        yield ""
    if findings.target is None:
        yield "# What is to be predicted belongs in none of these lists: take it out, or let"
        yield "# headrace explore look at a pipeline with [model] target."
        yield ""
    yield from _duplicates(findings, time)
    yield from _missing(numbers, findings)
    yield from _outliers(numbers, findings)
    yield from _skewed(numbers)
    if numbers:
        yield "[scrub.standardize]"
        yield f"columns = {_names(numbers)}"
        yield ""
    yield from _categories(texts)
    yield from _balance(findings)


def _unfit(column: ColumnProfile, findings: Findings, time: list[str]) -> str | None:
    """Return why a column is not a feature."""
    rows = findings.rows
    if column.name == findings.target:
        return "the target"
    if findings.target is None and column.name.lower() in LABELS:
        return "by its name what is to be predicted"
    if column.name in time:
        return "the time"
    if column.missing >= SPARSE * rows:
        return f"missing in {column.missing / rows:.0%} of the rows"
    if column.exact and column.distinct <= 1:
        return "it does not vary"
    if column.exact and column.distinct == 2 and column.numeric:
        return "two values: a label, or ready as it is"
    if key := column.key(rows):
        return f'{key}; as a category, declare it "string" in [source.schema]'
    if column.too_large and column.mean is None:
        return "too large to learn from: divide it in a 'derive' stage"
    if column.numeric:
        return None
    if column.kind not in ("string", "bool") and not column.kind.startswith(("Enum", "Cat")):
        return _other(column)
    if column.decimal_comma and column in findings.commas:
        return f'numbers {column.special}{column.but}: [source] decimal = "," reads them'
    if column.special:
        return (
            f"numbers {column.special}{column.but}; a [scrub.derive] reads them: columns = "
            f"{{ {column.reader} }}"
        )
    if column.reads:
        return f'text that reads as numbers{column.but}: declare it "float64" in [source.schema]'
    if column.date_formats:
        return _dates(column)
    if kind := column.time_kind:
        return f'text that reads as {kind}{column.but}: declare it "{kind}" in [source.schema]'
    if column.distinct > UNIQUE_SHARE * rows:
        return "nearly every row has its own value"
    return None


def _dates(column: ColumnProfile) -> str:
    quoted = '"' + column.name.replace('"', '""') + '"'
    sql = toml_value(f"EXTRACT(month FROM STRPTIME({quoted}, '{column.date_formats[0]}'))")
    return (
        f"dates, written {' or '.join(column.date_formats)}: a [scrub.derive] makes numbers of "
        f"them, as in columns = {{ month = {sql} }}"
    )


def _other(column: ColumnProfile) -> str:
    """Return what makes features of a column that is neither number nor text."""
    dtype, name = column.kind, toml_value(column.name)
    if dtype.startswith("list[") and "[" not in (inner := dtype[5:-1]):
        if inner.startswith("float"):
            return f"lists of numbers: [model] ragged or padded = [{name}] reads them"
        if inner.startswith(("int", "uint", "string")):
            return (
                f"lists: a [scrub.tokens] with columns = [{name}], and then [model] sparse, ragged "
                "or padded, make features of them"
            )
    if field := FIELD.match(dtype):
        path = f"{column.name}.{field[1]}"
        return (
            "an object: [source.paths] makes columns of what is in it, as in "
            f"{toml_value(path.replace('.', '_'))} = "
            f"{toml_value(path)}"
        )
    if dtype == "bytes":
        return (
            f"bytes: where they are encoded images, a [scrub.image] and [model] images = [{name}]"
        )
    if dtype.startswith("Array"):
        return f"arrays: of shape (height, width, channels), [model] images = [{name}] reads them"
    if dtype.startswith(("date", "time")):
        part = "month" if dtype == "date" else "hour"
        return (
            f"a time: a [scrub.derive] makes numbers of it, as in columns = {{ {part} = "
            f"'EXTRACT({part} FROM {name})' }}"
        )
    return f"no stage makes features of {dtype}"


def _duplicates(findings: Findings, time: list[str]) -> Iterator[str]:
    times = findings.times
    # Rows of one time that differ are events of their own, which nobody wants to lose.
    copied = times is not None and findings.repeated >= 0.5 * times.repeated
    if times is not None and copied and 0 < times.repeated <= 0.1 * findings.rows:
        same = counted(times.repeated, "row has", "rows have")
        yield f"[scrub.duplicates] # {same} an earlier row's time"
        yield f"by = {toml_value(time)}"
        yield ""
    elif 0 < findings.repeated <= COPIES * findings.rows:
        names = [c.name for c in findings.columns if c.missing < findings.rows]
        copies = counted(findings.repeated, "row is a copy", "rows are copies")
        yield f"[scrub.duplicates] # {copies}"
        yield f"by = {toml_value(names)}"
        yield ""


def _missing(numbers: list[ColumnProfile], findings: Findings) -> Iterator[str]:
    lacking = [column for column in numbers if column.missing]
    if not lacking:
        return
    most = max(lacking, key=lambda column: column.missing)
    share = most.missing / findings.rows
    yield f"[scrub.missing] # up to {share:.2%} of the rows, in {toml_value(most.name)}"
    yield f"columns = {_names(lacking)}"
    yield 'strategy = "median"'
    if share > 0.05:
        yield "indicator = true # so much of it that being missing may mean something"
    yield ""


def _outliers(numbers: list[ColumnProfile], findings: Findings) -> Iterator[str]:
    far = [c for c in numbers if c.outliers > 0.001 * findings.rows or c.infinite or c.too_large]
    if far:
        n, most = max((max(c.outliers, c.infinite + c.too_large), c.name) for c in far)
        yield f"[scrub.outliers] # about {n:,} in {toml_value(most)}"
        yield f"columns = {_names(far)}"
        yield 'method = "iqr"'
        yield ""


def _skewed(numbers: list[ColumnProfile]) -> Iterator[str]:
    skewed = [column for column in numbers if _skew(column) > SKEWED]
    if skewed:
        yield "[scrub.power] # long tails to the right"
        yield f"columns = {_names(skewed)}"
        yield 'method = "log"'
        yield ""


def _skew(column: ColumnProfile) -> float:
    """Return Bowley's skewness: 0 for symmetric quartiles, 1 at most."""
    low, _, first, median, third, _, _ = column.quantiles
    return (first + third - 2 * median) / (third - first) if low >= 0 and third > first else 0.0


def _categories(texts: list[ColumnProfile]) -> Iterator[str]:
    if not texts:
        return
    most = max(column.distinct for column in texts)
    size = max(8, 1 << most.bit_length())
    yield f"[scrub.categories] # up to {counted(most, 'different value')}"
    yield f"columns = {_names(texts)}"
    if size > 1 << 16:
        yield 'method = "hash"'
    yield f"size = {min(size, 1 << 16)}"
    yield ""


def _balance(findings: Findings) -> Iterator[str]:
    for column in classes(findings):
        n, known = column.top[-1][1], findings.rows - column.missing
        if column.name == findings.target and n < 0.05 * known:
            yield f"# 1 row in {known / n:,.0f} is {column.top[-1][0]!r}; for training:"
            yield "# [train.sampling]"
            yield '# method = "hybrid"'


def _names(columns: list[ColumnProfile]) -> str:
    return toml_value([column.name for column in columns])


__all__ = ["suggestion"]
