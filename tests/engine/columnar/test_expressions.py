"""SQL expressions: what is more than one is refused."""

from __future__ import annotations

import pytest

from engine.columnar.expressions import expression
from engine.types import UserError


@pytest.mark.parametrize(
    ("sql", "name"), [("x DESC", "DESC"), ("CAST(x AS INT) DESC", "DESC"), ("x > 4 y", "y")]
)
def test_a_word_behind_an_expression_is_no_name(sql: str, name: str) -> None:
    with pytest.raises(UserError, match=f"expression alone, got '{name}' behind it"):
        expression(sql, "[scrub.more] column 'z'")


def test_descending_is_a_minus() -> None:
    with pytest.raises(UserError, match=r"behind it \(descending is -x\)\."):
        expression("x DESC", "[source] order_by")


@pytest.mark.parametrize(
    "sql", ["-x", "CAST(x AS INT)", "CASE WHEN x > 4 THEN 1 END", "a.b", "x IN (1, 2)", "upper(s)"]
)
def test_an_expression_alone_is_taken(sql: str) -> None:
    expression(sql, "[source] order_by")
