"""What is written reads back as it was."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.types.toml import toml_key, toml_value

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    TEXTS | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(TEXTS, VALUES)
def test_a_value_reads_back_as_it_was(key: str, value: object) -> None:
    assert repr(tomllib.loads(f"{toml_key(key)} = {toml_value(value)}")) == repr({key: value})


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("price-1_x", "price-1_x"),
        ("", '""'),
        ("a b", '"a b"'),
        ("Gr\u00f6\u00dfe", '"Gr\u00f6\u00dfe"'),
        ("\U0001f600", '"\U0001f600"'),
        ('"', '"\\""'),
        ("\x7f", '"\\u007f"'),
    ],
)
def test_a_key_is_quoted_where_it_must_be(name: str, written: str) -> None:
    assert toml_key(name) == written
