"""A lookup whose table comes from a source of its own, in whole pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from engine.config import Pipeline
from engine.run import Run
from engine.types import UserError
from tests.pipelines.conftest import Headrace

Table = Callable[..., dict[str, Any]]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    """A pipeline that adds `x` to rows by `who`, from files of lines of which the newest counts."""

    def make(**source: Any) -> dict[str, Any]:
        files = {"kind": "files", "path": str(tmp_path / "table" / "*.ndjson")}
        schema = {"id": "string", "x": "int64"}
        own = {**(source or files), "schema": schema}
        return {
            "name": "t",
            "folder": str(tmp_path / "run"),
            "source": {"kind": "files", "path": str(tmp_path / "rows" / "*.ndjson")},
            "scrub": {"people": {"kind": "lookup", "by": {"who": "id"}, "source": own}},
            "sink": {"kind": "files", "path": str(tmp_path / "out")},
        }

    return make


def write(file: Path, *lines: dict[str, Any]) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def rows_in(folder: Path) -> list[tuple[str, int | None]]:
    frame = pl.read_parquet(folder / "out" / "part-*.parquet")
    return frame.select("who", "x").rows()


def test_a_run_that_resumes_goes_on_with_what_the_source_holds_by_then(
    tmp_path: Path, table: Table
) -> None:
    write(tmp_path / "table" / "1.ndjson", {"id": "a", "x": 1}, {"id": "b", "x": 2})
    write(tmp_path / "rows" / "1.ndjson", {"who": "a"}, {"who": "b"}, {"who": "c"})
    first = Run(Pipeline.of(table())).run()
    assert rows_in(tmp_path) == [("a", 1), ("b", 2), ("c", None)]
    write(tmp_path / "table" / "2.ndjson", {"id": "a", "x": 3}, {"id": "c", "x": 4})
    write(tmp_path / "rows" / "2.ndjson", {"who": "a"}, {"who": "b"}, {"who": "c"})
    second = Run(Pipeline.of(table())).run()
    assert (first.resumed, second.resumed, second.totals.read) == (False, True, 6)
    assert rows_in(tmp_path)[3:] == [("a", 3), ("b", 2), ("c", 4)]
    assert second.totals.counts["people", "unmatched"] == 1


def test_a_table_that_is_shorter_than_it_was_is_refused(tmp_path: Path, table: Table) -> None:
    write(tmp_path / "table" / "1.ndjson", {"id": "a", "x": 1}, {"id": "b", "x": 2})
    write(tmp_path / "rows" / "1.ndjson", {"who": "a"})
    Run(Pipeline.of(table())).run()
    write(tmp_path / "table" / "1.ndjson", {"id": "a", "x": 1})
    write(tmp_path / "rows" / "2.ndjson", {"who": "b"})
    with pytest.raises(UserError, match=r"\[scrub.people.source\]"):
        Run(Pipeline.of(table())).run()


def test_the_number_of_rows_that_are_kept_may_change(
    tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = table(), table()
    one["scrub"]["people"]["keys"] = 1
    two["scrub"]["people"]["keys"] = 2
    for given in (one, two):
        given["scrub"]["scaled"] = {"kind": "standardize", "columns": ["n"]}  # has a state
    write(tmp_path / "table" / "1.ndjson", {"id": "a", "x": 1}, {"id": "b", "x": 2})
    write(tmp_path / "rows" / "1.ndjson", {"who": "a", "n": 1.0}, {"who": "b", "n": 2.0})
    Run(Pipeline.of(one)).run()
    write(tmp_path / "rows" / "2.ndjson", {"who": "a", "n": 1.0}, {"who": "b", "n": 2.0})
    second = Run(Pipeline.of(two)).run()
    assert (second.resumed, second.totals.read) == (True, 4)
    assert "[scrub.people] keys has changed since the checkpoint in" in caplog.text
    assert rows_in(tmp_path) == [("a", None), ("b", 2), ("a", 1), ("b", 2)]


def test_check_names_what_cannot_be_read(tmp_path: Path, table: Table, headrace: Headrace) -> None:
    write(tmp_path / "table" / "1.ndjson", {"id": "a", "x": 1}, {"id": "b", "x": "two"})
    write(tmp_path / "rows" / "1.ndjson", {"who": "a"})
    file = tmp_path / "t.toml"
    file.write_text(toml(table()))
    code, out, _ = headrace("check", file)
    assert code == 2
    assert "[scrub.people.source] had 1 unreadable record" in out.replace("\n", " ")
    (tmp_path / "table" / "1.ndjson").unlink()
    code, _, err = headrace("check", file)
    assert code == 2
    assert "[scrub.people.source] path" in err


def test_nothing_secret_of_the_source_is_in_a_checkpoint(tmp_path: Path, table: Table) -> None:
    write(tmp_path / "rows" / "1.ndjson", {"who": "a"})
    secured = {
        "kind": "kafka", "topics": ["people"], "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN", "user": "headrace", "password": "open sesame",
    }  # fmt: skip
    run = Run(Pipeline.of(table(**secured)))
    identity = json.dumps(run.identity)
    assert "sesame" not in identity
    assert "[scrub.people.source] format" in identity
    assert not run.parts.keeps_state


@pytest.mark.parametrize("key", ["group_id", "subscribe", "start", "stop"])
def test_it_is_read_whole(tmp_path: Path, table: Table, key: str) -> None:
    write(tmp_path / "rows" / "1.ndjson", {"who": "a"})
    pipeline = Pipeline.of(table(kind="kafka", topics=["people"], **{key: "end"}))
    with pytest.raises(UserError) as refused:
        Run(pipeline).assemble()
    assert str(refused.value) == (
        "[scrub.people.source] in the pipeline is read whole, by every engine, and then followed: "
        f"take '{key}' out."
    )


def toml(table: dict[str, Any], path: str = "") -> str:
    """A table as a pipeline file has it."""
    values = {k: v for k, v in table.items() if not isinstance(v, dict)}
    lines = [f"[{path}]"] if path else []
    lines += [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            lines.append(toml(value, f"{path}.{key}" if path else key))
    return "\n".join(lines)
