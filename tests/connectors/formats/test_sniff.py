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

from connectors.files import inspection
from connectors.formats.inference.sniff import sniff_dialect
from engine.types import Mark, Schema, UserError
from tests.connectors.conftest import decoded, drain, files
from tests.size import examples

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
        ("a;b\n1.234;0,5\n802;1,5\n", COMMAS),
        ("a;b\n1.234.567;0,5\n", COMMAS),
        ("a;b\n0.234;2,5\n", SEMICOLONS),
        ("a;b\n1.2345;2,5\n", SEMICOLONS),
        ("a;b\n0,234;2\n", COMMAS),
        ("a;b\n1.234;2\n802;2\n", SEMICOLONS),
        ("a;b\n" + "1,5;2\n" * 20 + "broken;3\n", COMMAS),
        ("a;b\n1,5;2\nx;3\ny;3\n", SEMICOLONS),
        ("a;b\n" + "1.5;2,5\n" * 20 + "broken;0,5\n", SEMICOLONS),
        ("a|b\n1,5|2\n", {"delimiter": "|"}),
        ("sep=;\na;b\n1;2\n", {"sep_line": True, "delimiter": ";"}),
        ("\ufeffsep=;\r\na;b\r\n1,5;2\r\n", {"sep_line": True} | COMMAS),
        ('"sep=|"\na|b;c\n1|2\n', {"sep_line": True, "delimiter": "|"}),
        ("sep=,\na;b,c;d\n1,2\n", {"sep_line": True}),
        ("SEP=\t\na b\tc d\n1\t2\n", {"sep_line": True, "delimiter": "\t"}),
        ("sep=:\na:b\n1:2\n", {"sep_line": True, "delimiter": ":"}),
        ("sep=x;y\n1;2\n", SEMICOLONS),
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
        ({"null_values": ["x"]}, {"preamble": "#"} | COMMAS),
    ],
)
def test_what_is_declared_is_not_looked_for(given: dict[str, Any], found: dict[str, str]) -> None:
    text = b"# one\n# two, three, four\na;b\n1,5;2\n0,5;3\n"
    assert sniff_dialect(text, given) == found


NAMES = st.text(st.sampled_from("ab,;|\t\"'# \n"), min_size=1, max_size=5)
TABLES = st.integers(2, 4).flatmap(
    lambda n: st.lists(st.lists(NAMES, min_size=n, max_size=n), min_size=2, max_size=6)
)


@settings(max_examples=examples(80), deadline=None)
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


@pytest.mark.parametrize("start", ["sep=;\n", "\ufeffsep=;\r\n", '"sep=;"\n'])
def test_the_line_that_excel_writes_is_no_header(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, start: str
) -> None:
    """Also in only some of the files, where columns are declared, and where rows are sorted."""
    caplog.set_level("INFO")
    (tmp_path / "a.csv").write_text(start + "x;s\n1,5;a\n2,5;b\n")
    (tmp_path / "b.csv").write_text("x;s\n3,5;c\n")
    for order in ((), ("s",)):
        source = files(tmp_path / "*.csv", order_by=order)
        schema = source.schema({})
        assert schema == {"x": pl.Float64(), "s": pl.String()}
        made = decoded(source, drain(source), schema)
        assert made.rows() == [(1.5, "a"), (2.5, "b"), (3.5, "c")]
        assert "a first line that names the delimiter (sep=) left out" in source.found()
    assert "a first line that names the delimiter (sep=) left out" in caplog.text
    declared = files(tmp_path / "a.csv", delimiter=";", decimal=",")
    assert decoded(declared, drain(declared), schema).height == 2


def test_a_line_that_names_a_delimiter_leaves_positions_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sep=;\nx;s\n1;a\n2;b\n")
    source = files(path)
    schema = source.schema({})
    (piece,) = drain(source)
    assert piece.positions.tolist() == [10, 14]
    source.seek(Mark(positions={str(path): 14}))
    assert decoded(source, drain(source), schema).rows() == [(2, "b")]


def test_files_that_name_different_delimiters_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\nx;s\n1;a\n")
    (tmp_path / "b.csv").write_text("sep=|\nx|s\n1|a\n")
    with pytest.raises(
        UserError, match=r'b.csv names its delimiter "\|" .* have ";": expected one'
    ):
        files(tmp_path / "*.csv").schema({})


def test_a_file_of_nothing_but_the_line_that_excel_writes_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\n")
    with pytest.raises(UserError, match="is empty: expected a CSV header"):
        files(tmp_path / "a.csv").schema({})


def test_the_declared_wins_over_what_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id;x\n1;1,5\n2;NA\n")
    assert files(path, decimal=".").schema({})["x"] == pl.String()
    assert files(path, null_values=[]).schema({})["x"] == pl.String()
    assert files(path, null_values=["NA"]).schema({})["x"] == pl.Float64()


@pytest.mark.parametrize("point", [".", ","])
def test_a_word_among_numbers_is_the_same_with_points_and_with_commas(
    tmp_path: Path, point: str
) -> None:
    """The column is text until the word is declared to be missing; the others are numbers."""
    path = tmp_path / "a.csv"
    values = ["1.5;2.5\n"] * 30 + ["broken;3.5\n"]
    path.write_text("x;y\n" + "".join(values).replace(".", point))
    assert files(path).schema({}) == {"x": pl.String(), "y": pl.Float64()}
    source = files(path, null_values=["broken"])
    schema = source.schema({})
    assert schema == {"x": pl.Float64(), "y": pl.Float64()}
    assert decoded(source, drain(source), schema)["x"].to_list() == [1.5] * 30 + [None]


def test_points_between_thousands_are_no_decimal_points(tmp_path: Path) -> None:
    """Where another column has decimal commas: the column is text, and no value is another."""
    path = tmp_path / "a.csv"
    path.write_text("sum;price\n16.741;3,50\n802;7,5\n")
    source = files(path)
    schema = source.schema({})
    assert schema == {"sum": pl.String(), "price": pl.Float64()}
    assert decoded(source, drain(source), schema).rows() == [("16.741", 3.5), ("802", 7.5)]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_points_that_may_stand_between_thousands_are_told(
    tmp_path: Path, delimiter: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not where a value cannot be such a number, commas separate, or the type is declared."""
    path = tmp_path / "a.csv"
    rows = "sum;rate;n\n16.741;0.123;1\n802;1.234;2\n".replace(";", delimiter)
    path.write_text(rows)
    assert files(path).schema({})["sum"] == pl.Float64()
    (said,) = [line for line in caplog.messages if "thousands" in line]
    assert said == (
        "Column 'sum' is read with decimal points, as in 16.741, and all of them stand before "
        "three digits, as points between thousands do: where they are that, set [source] decimal "
        '= ","; where not, declare "sum" = "float64" in [source.schema].'
    )
    caplog.clear()
    files(path).schema({"sum": pl.Float64()})
    path.write_text(rows.replace(delimiter, ","))
    files(path).schema({})
    assert "thousands" not in caplog.text


def test_a_model_that_learned_with_decimal_commas_reads_no_thousands_as_decimals(
    tmp_path: Path,
) -> None:
    """A file that does not show its decimal point has that of the training; others their own."""
    types: Schema = {"x": pl.Float64(), "n": pl.Float64()}
    served = {"1.138;5": [], "1.5;5": [1.5], "1,5;5": [1.5], "7;5": [7.0]}
    (tmp_path / "a.csv").write_text("x;n\n1138,27;5\n")
    trained = files(tmp_path / "a.csv")
    trained.schema({})
    for row, expected in served.items():
        (tmp_path / "b.csv").write_text(f"x;n\n{row}\n")
        source = files(tmp_path / "b.csv")
        source.use_parse_settings(trained.parse_settings())
        schema = source.schema(types)
        frame, _ = source.format.decode(drain(source)[0], schema)
        assert frame["x"].to_list() == expected


@pytest.mark.parametrize(
    ("title", "header"),
    [
        ("Report 2024;;;\n;;;\n", "name;n;price;y"),
        ("Report 2024;;as of May;\n", "name;n;price;y"),
        ("Rapport \u00e9t\u00e9\n\n", "name;n;price;y"),
        ("Report 2024\n", "name;n;price;y"),
        ("Report 2024\n", "name,n,price,y"),
        ("Report 2024,,,\n", "name,n,price,y"),
    ],
)
def test_a_title_above_the_header_is_refused(tmp_path: Path, title: str, header: str) -> None:
    delimiter = header[4]
    rows = ["K1-4-5-yes\n".replace("-", delimiter), "K2-6-7-no\n".replace("-", delimiter)]
    path = tmp_path / "a.csv"
    path.write_text(f"{title}{header}\n{''.join(rows)}")
    first = title.partition("\n")[0]
    with pytest.raises(UserError) as raised:
        files(path).schema({})
    assert str(raised.value) == (
        f"{path} begins with '{first}', and the names of its columns seem to stand below that, in "
        f"'{header}': expected them in the first line; take the lines above out."
    )


@pytest.mark.parametrize(
    "text",
    [
        "text\nhello; you\nbye; all\n",
        "text\nhello you\n1\n",
        ",a,b\n0,1,2\n1,2,3\n",
        "a;b;\nx;1;\ny;2;\n",
        "name;;;\nx;1;2;3\ny;1;2;3\n",
        "id;note\nx;y\n1;2\n",
        "a\n1,5\n2,5\n",
    ],
)
def test_a_header_is_no_title(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    assert files(path).schema({})


def test_sorted_rows_are_read_as_unsorted_ones(tmp_path: Path) -> None:
    """With decimal commas, strictly typed; and one that does not fit costs its row."""
    path = tmp_path / "a.csv"
    path.write_text("x;s\n2,5;b\n1,5;a\nbroken;c\n")
    source = files(path, order_by=["s"], coerce="strict", decimal=",", delimiter=";")
    (piece,), schema = drain(source), source.schema({"x": pl.Float64(), "s": pl.String()})
    frame, rejects = source.format.decode(piece, schema)
    assert frame.select("x", "s").rows() == [(1.5, "a"), (2.5, "b")]
    assert [reject.rows["detail"].to_list() for reject in rejects] == [
        ["Expected float64, got 'broken' in column 'x'."]
    ]


def test_a_sorted_row_that_the_guessed_type_does_not_fit_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the types are a guess by the first rows."""
    monkeypatch.setattr(inspection, "INFERENCE_BYTES", 1)
    monkeypatch.setattr(inspection, "MIN_BYTES_PER_FILE", 1)
    path = tmp_path / "a.csv"
    path.write_text("x,s\n1,a\noops,b\n")
    source = files(path, order_by=["s"])
    schema = source.schema({})
    ((_, rejects),) = [source.format.decode(piece, schema) for piece in drain(source)]
    assert (schema["x"], sum(map(len, rejects))) == (pl.Int64(), 1)
    assert "and 'oops' is none" in source.remarks()[0]


def test_one_column_that_may_be_several_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a;b|c\n1;2|3\n")
    assert files(path).schema({}) == {"a;b|c": pl.String()}
    assert "where ';' stands between columns, set [source] delimiter" in caplog.text
