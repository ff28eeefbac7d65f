"""How a CSV is written is found where it is certain, and never wrongly."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.formats.inference.sniff import sniff_dialect
from tests.connectors.conftest import decoded, drain, files

SEMICOLONS = {"delimiter": ";"}
COMMAS = {"delimiter": ";", "decimal": ","}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a,b\n1,2\n", {}),
        ("a;b\n1;2\n", SEMICOLONS),
        ("a\tb\r\n1\tx\r\n", {"delimiter": "\t"}),
        ("a|b\n1|2\n", {"delimiter": "|"}),
        ("\ufeffa;b\n1;2\n", SEMICOLONS),
        ("a;b\n", SEMICOLONS),
        ('"a,b";c\n"1;2";3\n', SEMICOLONS),
        ('"a\nb";c\n1;2\n', SEMICOLONS),
        ("a;b,c\n1;2,3\n", {}),
        ("a;b|c\n1;2|3\n", {}),
        ("note; or not\none\ntwo; three; four\n", {}),
        ("a;b\n" + "1;2\n" * 20 + "7\n", SEMICOLONS),
        ("a;b\n1,5;2\n0,25;NA\n;3\n", COMMAS),
        ("a\tb\n1,5\tx\n", {"delimiter": "\t", "decimal": ","}),
        ("a;b\n1,5;2.5\n", SEMICOLONS),
        ("a;b\n1,234;2\n12,345,678;3\n", SEMICOLONS),
        ("a;b\n1,234;2\n", SEMICOLONS),
        ("a;b\n1,234;0,5\n", COMMAS),
        ("a|b\n1,5|2\n", {"delimiter": "|"}),
        ("# made\n# by hand\na,b\n1,2\n", {"preamble": "#"}),
        ("# a, b and c\na;b\n1;2\n", {"preamble": "#", "delimiter": ";"}),
        ("#a,b\n1,2\n", {}),
        ("a,b\n#1,2\n", {}),
        ("#tag\n#x\n#y\n", {}),
        ("'a';'b'\n'x;y';1\n", {"quote": "'", "delimiter": ";"}),
        ("'a','b'\n'x,y',1\n", {"quote": "'"}),
        ("a,b\n'x','y'\n", {}),
        ("'a','b'\nit's,1,2\n", {}),
        ("", {}),
        ("\n", {}),
        ("a", {}),
    ],
)  # fmt: skip
def test_what_is_found(text: str, found: dict[str, str]) -> None:
    assert sniff_dialect(text.encode(), {}) == found


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"delimiter": ","}, {}),
        ({"decimal": "."}, {"preamble": "#", "delimiter": ";"}),
        ({"comment": None}, {}),
        ({"comment": "#"}, COMMAS),
        ({"quote": ""}, {"preamble": "#"} | COMMAS),
    ],
)
def test_what_is_declared_is_not_looked_for(given: dict[str, Any], found: dict[str, str]) -> None:
    text = b"# one\n# two, three, four\na;b\n1,5;2\n0,5;3\n"
    assert sniff_dialect(text, given) == found


NAMES = st.text(st.sampled_from("ab,;|\t\"'# \n"), min_size=1, max_size=5)
TABLES = st.integers(2, 4).flatmap(
    lambda n: st.lists(st.lists(NAMES, min_size=n, max_size=n), min_size=2, max_size=6)
)


@settings(max_examples=80, deadline=None)
@given(TABLES, st.sampled_from(",;\t|"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_no_delimiter_is_found_that_is_none(
    table: list[list[str]], delimiter: str, quoting: Any
) -> None:
    """A file with commas keeps them; of the others their own is found, or nothing."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows(table)
    found = sniff_dialect(text.getvalue().encode(), {"comment": None})
    assert found.get("delimiter", ",") in (delimiter, ",")
    if delimiter == ",":
        lines = io.StringIO(text.getvalue(), newline="")
        names = next(csv.reader(lines, quotechar=found.get("quote", '"')))
        assert len(names) == len(table[0])


def test_numbers_are_read_and_the_log_says_how(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "a.csv"
    path.write_text('# of "today\nid;x;s\n1;1,5;#a\n#2;0,5;b\n3;NA;c\n')
    source = files(path)
    schema = source.schema({})
    made = decoded(source, drain(source), schema)
    assert made.rows() == [("1", 1.5, "#a"), ("#2", 0.5, "b"), ("3", None, "c")]
    assert schema == {"id": pl.String(), "x": pl.Float64(), "s": pl.String()}
    assert 'is read with delimiter = ";", decimal = ","' in caplog.text
    assert 'lines that begin with "#" before its header left out' in caplog.text
    plain = files(path, delimiter=",", comment="#")
    assert plain.schema({}) == {"id;x;s": pl.String()}


def test_the_declared_wins_over_what_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id;x\n1;1,5\n2;NA\n")
    assert files(path, decimal=".").schema({})["x"] == pl.String()
    assert files(path, null_values=[]).schema({})["x"] == pl.String()
    assert files(path, null_values=["NA"]).schema({})["x"] == pl.Float64()


def test_one_column_that_may_be_several_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a;b|c\n1;2|3\n")
    assert files(path).schema({}) == {"a;b|c": pl.String()}
    assert "where ';' stands between columns, set [source] delimiter" in caplog.text
