"""SQL expressions in a pipeline file: row-wise only, compiled to polars.

An expression that asks the clock would make a resumed run another one; one that selects could read
files; one of thousands of terms ends the process, for polars walks it by recursion.
"""

from __future__ import annotations

import re

import polars as pl
from polars.exceptions import PanicException, PolarsError

from engine.types import UserError

MAX_TERMS = 2_000
"""The most tokens of an expression; polars overflows the stack at three times as many."""
TERM = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\w+|[^\s\w]")
CLOCK = ("current_date", "current_time", "current_timestamp")
CLOCK_CALLS = ("now", "today", "localtime", "localtimestamp")


def expression(sql: str, where: str) -> pl.Expr:
    """Return the polars expression for a SQL text.

    Args:
        where: begins the sentence of an error, e.g. ``[scrub.spend] column 'rate'``.

    Raises: UserError for what is no expression, or none over a row's own values.
    """
    _may(sql, where)
    try:
        read = pl.sql_expr(sql)
    except (PolarsError, PanicException) as error:
        raise UserError(f'{where} = "{shown(sql)}" is no SQL expression: {first(error)}.') from None
    if not read.meta.undo_aliases().meta.eq(read):
        hint = " (descending is -x)" if where.endswith("order_by") else ""
        raise UserError(
            f'{where} = "{shown(sql)}" is an expression with a name: expected the expression '
            f"alone, got '{read.meta.output_name()}' behind it{hint}."
        )
    return read


def _may(sql: str, where: str) -> None:
    terms = TERM.findall(sql)
    if not terms:
        raise UserError(f"{where} is empty: expected a SQL expression, or take it out.")
    if len(terms) > MAX_TERMS:
        raise UserError(
            f"{where} has {len(terms):,} words and signs, and {MAX_TERMS:,} are the most that one "
            "expression may have: split it into several columns."
        )
    words = [term.lower() for term in terms]
    if "select" in words:
        raise UserError(
            f'{where} = "{shown(sql)}" selects from elsewhere: an expression may only use values '
            "of its own row."
        )
    for word, after in zip(words, [*words[1:], ""], strict=True):
        if word in CLOCK or (word in CLOCK_CALLS and after == "("):
            raise UserError(
                f'{where} = "{shown(sql)}" asks the clock ({word}), so that a run that is resumed '
                "would go on otherwise: use a time of the record, which [source.record] makes a "
                "column."
            )


def shown(sql: str) -> str:
    """Return a text for a sentence, shortened if it is long."""
    return sql if len(sql) <= 200 else f"{sql[:200]}..."


def first(error: BaseException) -> str:
    """Return the first line of a polars error, without its full stop."""
    return str(error).split("\n", 1)[0].strip().rstrip(".")


__all__ = ["expression", "first", "shown"]
