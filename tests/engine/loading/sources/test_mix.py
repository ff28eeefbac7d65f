"""Sources mixed by weight: every row once, in shares, in an order that a restart goes on with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors.files.source import FilesSource
from connectors.memory import Fault, MemorySource, Pause
from engine.config import Pipeline
from engine.loading.sources.mix import Mix, sources_of
from engine.run import Run
from engine.types import EndOfStream, HeadraceError, Mark, Schema, UserError
from tests.size import examples

SCHEMA: Schema = {"who": pl.String(), "n": pl.Int64()}


def rows(who: str, n: int) -> pl.DataFrame:
    return pl.DataFrame({"who": [who] * n, "n": range(n)}, schema=SCHEMA)


def mix(parts: dict[str, tuple[Any, float]], **own: Any) -> Mix:
    sources = {
        name: (MemorySource.of(items if isinstance(items, list) else [rows(name, items)]), weight)
        for name, (items, weight) in parts.items()
    }
    made = Mix(Mix.Settings(**own), sources)
    made.schema(SCHEMA)
    return made


def take(made: Mix, mark: Mark, most: int | None = None) -> tuple[list[tuple[str, int]], Mark]:
    made.seek(mark)
    positions, found = dict(mark.positions), list[tuple[str, int]]()
    while most is None or len(found) < most:
        try:
            records = made.read(7 if most is None else min(7, most - len(found)), 1 << 20, 0.0)
        except EndOfStream:
            break
        if records is None:
            continue
        frame, rejects = made.format.decode(records, SCHEMA)
        assert not rejects
        assert frame["_partition"].unique().to_list() == [records.partition]
        found += frame.select("who", "n").rows()
        positions |= records.end_positions
    return found, Mark(positions=positions)


sizes = st.integers(0, 90)
weights = st.sampled_from([0.5, 1.0, 2.0, 7.0])


@settings(deadline=None, max_examples=examples(60))
@given(
    st.tuples(sizes, sizes, sizes),
    st.tuples(weights, weights, weights),
    st.integers(1, 20),
    st.integers(0, 200),
    st.sampled_from(["all", "first"]),
)
def test_a_restart_goes_on_with_the_same_rows(
    n: tuple[int, ...], w: tuple[float, ...], turn: int, done: int, stop: str
) -> None:
    parts = {name: (size, weight) for name, size, weight in zip("abc", n, w, strict=True)}
    whole, _ = take(mix(parts, rows_per_turn=turn, stop=stop), Mark())
    first, mark = take(mix(parts, rows_per_turn=turn, stop=stop), Mark(), done)
    rest, _ = take(mix(parts, rows_per_turn=turn, stop=stop), mark)
    assert first + rest == whole
    if stop == "all":
        assert Counter(whole) == Counter(
            (a, i) for a, size in zip("abc", n, strict=True) for i in range(size)
        )
    for name in "abc":  # each source in its own order
        own = [i for a, i in whole if a == name]
        assert own == list(range(len(own)))


@settings(deadline=None, max_examples=examples(6))
@given(st.lists(st.floats(0.05, 10), min_size=2, max_size=4))
def test_shares_are_the_weights_within_a_percent(given_weights: list[float]) -> None:
    parts = {f"s{i}": (20_000, w) for i, w in enumerate(given_weights)}
    found, _ = take(mix(parts, rows_per_turn=50, stop="first"), Mark(), 10_000)
    counts = Counter(who for who, _ in found)
    for i, weight in enumerate(given_weights):
        assert abs(counts[f"s{i}"] / 10_000 - weight / sum(given_weights)) < 0.01


def test_who_has_nothing_for_now_lets_the_others_go_on() -> None:
    parts = {"a": ([Pause(), Pause(), rows("a", 3)], 1.0), "b": (5, 1.0)}
    made = mix(parts, rows_per_turn=2)
    found, _ = take(made, Mark())
    assert Counter(who for who, _ in found) == {"a": 3, "b": 5}
    assert found[0][0] == "b"


def test_an_error_of_one_is_an_error() -> None:
    made = mix(
        {"a": ([rows("a", 2), Fault(HeadraceError("the disk is gone"))], 1.0), "b": (9, 1.0)}
    )
    with pytest.raises(HeadraceError, match="the disk is gone"):
        take(made, Mark())


def test_zero_gives_nothing() -> None:
    found, _ = take(mix({"a": (5, 0.0), "b": (3, 2.0)}), Mark())
    assert Counter(who for who, _ in found) == {"b": 3}


def test_progress_and_lag_name_the_source() -> None:
    made = mix({"a": (4, 1.0), "b": (4, 3.0)})
    found, mark = take(made, Mark())
    assert len(found) == 8
    assert made.progress(mark) == 1.0
    assert set(mark.positions) > {"a:", "b:"}
    assert {name.partition(":")[0] for name in made.lag(Mark())} == {"a", "b"}
    assert set(made.lag(mark).values()) == {0}


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "no sources": ({}, r"expects its sources as tables \[source.sources.NAME\]"),
    "no kind": ({"a": {"weight": 1}}, r"\[source.sources.a\].*needs the key 'kind'"),
    "a text": (
        {"a": {"kind": "files", "path": "{rows}", "weight": "much"}},
        "expected a number >= 0 for 'weight', got \"much\"",
    ),
    "negative": (
        {"a": {"kind": "files", "path": "{rows}", "weight": -1}},
        "expected a number >= 0 for 'weight', got -1",
    ),
    "nobody": ({"a": {"kind": "files", "path": "{rows}", "weight": 0}}, "weights are all 0"),
    "a colon": ({"a:b": {"kind": "files", "path": "{rows}"}}, "letters, digits"),
    "within": ({"a": {"kind": "mix"}}, "cannot be mixed"),
    "a wrong key": ({"a": {"kind": "files", "path": "{rows}", "pth": 1}}, "has no key 'pth'"),
    "other columns": (
        {"a": {"kind": "files", "path": "{rows}"}, "b": {"kind": "files", "path": "{others}"}},
        "'n'",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_cannot_be_mixed_is_one_sentence(tmp_path: Path, case: str) -> None:
    rows("a", 3).write_parquet(tmp_path / "rows.parquet")
    rows("a", 3).select("who").write_parquet(tmp_path / "others.parquet")
    sources, sentence = MISFITS[case]
    places = {"rows": tmp_path / "rows.parquet", "others": tmp_path / "others.parquet"}
    table = {
        name: {k: v.format(**places) if isinstance(v, str) else v for k, v in part.items()}
        for name, part in sources.items()
    }
    pipeline = Pipeline.of({"name": "mixed", "source": {"kind": "mix", "sources": table}})
    with pytest.raises(UserError, match=sentence):
        _ = Run(pipeline).parts.scrub.source_schema


def test_a_pipeline_over_a_mix(tmp_path: Path) -> None:
    """Rows of two formats, one of them poisoned; the dead letter names its source."""
    rows("a", 30).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.ndjson").write_text('{"who": "b", "n": 1}\n{"who": "b", "n": "x"}\n')
    table = {
        "name": "mixed",
        "folder": str(tmp_path / "run"),
        "source": {
            "kind": "mix",
            "sources": {
                "table": {"kind": "files", "path": str(tmp_path / "a.parquet"), "weight": 3},
                "lines": {"kind": "files", "path": str(tmp_path / "b.ndjson")},
            },
            "schema": {"who": "string", "n": "int64"},
        },
        "sink": {"kind": "files", "path": str(tmp_path / "out")},
    }
    summary = Run(Pipeline.of(table)).run()
    assert summary.totals.balanced
    assert (summary.totals.read, summary.totals.cleaned, summary.totals.rejected) == (32, 31, 1)
    (letter,) = (tmp_path / "run" / "dead_letters").glob("*.ndjson")
    assert pl.read_ndjson(letter)["_partition"].item().startswith("lines:")


def test_a_table_of_sources_is_taken_apart() -> None:
    assert sources_of(
        {"sources": {"a": {"kind": "files", "weight": 2}, "b": {"kind": "kafka"}}}
    ) == {
        "a": ({"kind": "files"}, 2.0),
        "b": ({"kind": "kafka"}, 1.0),
    }


def test_cells_are_read_as_all_sources_say_alike(tmp_path: Path) -> None:
    """What a model file keeps of a mix, and what a mix takes from a model file."""
    sources = {}
    for name, words in {"a": ["NA", "-"], "b": ["NA"]}.items():
        (tmp_path / f"{name}.csv").write_text("x\n1.5\n")
        own = {"path": str(tmp_path / f"{name}.csv"), "null_values": words, "coerce": "strict"}
        sources[name] = (FilesSource(FilesSource.Settings(**own)), 1.0)
    made = Mix(Mix.Settings(), sources)
    made.schema({})
    said = made.parse_settings()
    assert said["coerce"] == "strict"
    assert "null_values" not in said
    (tmp_path / "c.csv").write_text("x\n-\n1.5\n")
    plain = FilesSource(FilesSource.Settings(path=str(tmp_path / "c.csv")))
    Mix(Mix.Settings(), {"c": (plain, 1.0)}).use_parse_settings({"null_values": ["-"]})
    assert plain.settings.null_values == ("-",)
