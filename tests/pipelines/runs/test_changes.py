"""A pipeline file that changes between two runs of one folder: every setting has its say, and what
is not refused goes on with every row once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import connectors
from engine.commands.preflight import preflight
from engine.config import DeadLetterSettings, ExportSettings, LoaderSettings, SinkTable, load_class
from engine.loading.sources.mix import Mix
from engine.quality.evaluation import Evaluation
from engine.run import Run
from engine.running.saving.checkpoint import Checkpoints
from engine.types import UserError
from engine.types.changes import Change, change_of, compared_settings
from tests.pipelines.conftest import Headrace, Rows, Small

ROWS = 60
STATELESS = """
name = "plain"
folder = "run"
[source]
kind = "files"
path = "data.csv"
[source.schema]
a = "int64"
k = "string"
[loader]
batch_rows = 10
[checkpoint]
interval_batches = 1
[sink]
kind = "files"
path = "out"
format = "ndjson"
"""
Sets = tuple[str, ...]
Tried = Callable[[Sets, Sets], str]


def tables() -> Iterator[type[BaseModel]]:
    for known in (connectors.SOURCES, connectors.SINKS, connectors.DEAD_LETTER_SINKS):
        for name in known:
            yield load_class(name, known, "source").Settings
    yield from (Mix.Settings, LoaderSettings, Checkpoints.Settings, Evaluation.Settings)
    yield from (ExportSettings, DeadLetterSettings, SinkTable)


@pytest.mark.parametrize("settings", list(tables()), ids=lambda kind: kind.__qualname__)
def test_every_key_says_what_a_change_of_it_comes_to(settings: type[BaseModel]) -> None:
    """`kind` is of every table, and always refused."""
    assert not [k for k in settings.model_fields if k != "kind" and change_of(settings, k) is None]


def test_what_is_watched_depends_on_whether_rows_were_learned() -> None:
    settings = LoaderSettings(batch_rows=7)
    assert compared_settings(settings, {}, learns=False) == {}
    assert compared_settings(settings, {}, learns=True)["batch_rows"] == ("refuse", 7)
    assert [c.act(learns=True) for c in Change] == ["refuse", "refuse", "refuse", "tell", "go on"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.toml").write_text(STATELESS)
    rows = [f"{(i * 7) % ROWS},{'uv'[i % 2]}\n" for i in range(ROWS)]
    (tmp_path / "data.csv").write_text("a,k\n" + "".join(rows))
    return tmp_path


def stopped(sets: Sets, file: str = "p.toml") -> None:
    """A run that ends after three batches, with a checkpoint behind each."""
    run = Run(
        file, sets, watch=lambda loop, batch: loop.stop() if loop.totals.batches == 3 else None
    )
    assert run.run().stopped


def out(path: str = "out") -> list[dict[str, Any]]:
    files = sorted(Path(path).glob("part-*.ndjson"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def refused(sets: Sets, file: str = "p.toml") -> str:
    """What `run` says, which `check` says too, and neither takes anything away."""
    before = {path: path.read_bytes() for path in Path().rglob("*.ndjson")}
    with pytest.raises(UserError) as error:
        Run(file, sets).run()
    assert not preflight(Run(file, sets))
    assert {path: path.read_bytes() for path in Path().rglob("*.ndjson")} == before
    return str(error.value)


REFUSED: Mapping[str, tuple[Sets, Sets]] = {
    "[source] order_by": (("source.order_by=['a']",), ("source.order_by=['k']",)),
    "[source] order_by: [] now": (("source.order_by=['a']",), ()),
    '[source] order_by: ["a"] now': ((), ("source.order_by=['a']",)),
    "[source] format": ((), ("source.format=text",)),
    "[source] delimiter": ((), ("source.delimiter=;",)),
    "[source] quote": ((), ("source.quote='",)),
    "[source] comment": ((), ("source.comment=%",)),
    "[source] shard": (("source.shards=2",), ("source.shards=2", "source.shard=1")),
    "[source] shards": ((), ("source.shards=1",)),
    "[sink] format": ((), ("sink.format=csv",)),
    "[sink] path": ((), ("sink.path=elsewhere",)),
    "[sink] kind": ((), ()),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_positions_and_parts_depend_on_is_refused(said: str, folder: Path) -> None:
    before, after = REFUSED[said]
    file, schema = folder / "p.toml", '[source.schema]\na = "int64"\nk = "string"\n'
    file.write_text(STATELESS.replace(schema, ""))
    stopped(before)
    if said == "[sink] kind":
        file.write_text(STATELESS[: STATELESS.index("[sink]")].replace(schema, ""))
    sentence = refused(after)
    assert f"written with another {said}" in sentence
    assert "--fresh" in sentence


WARNED: Mapping[str, Sets] = {
    "[source] decimal": ("source.decimal=,",),
    "[source] null_values": ("source.null_values=['u']",),
    "[source] encoding": ("source.encoding=latin-1",),
    "[source] coerce": ("source.coerce=strict",),
    "[sink] columns": ("sink.columns=['a']",),
    "schema": ("source.schema.a=string",),
    "scrub": ("scrub.keep={kind='derive', columns={b='a + 1'}}",),
}


@pytest.mark.parametrize("said", WARNED)
def test_what_only_later_rows_are_of_is_told_in_one_line(
    said: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(())
    with caplog.at_level(logging.WARNING):
        Run("p.toml", WARNED[said]).run()
    lines = [r.message for r in caplog.records if "has changed since the checkpoint" in r.message]
    assert len(lines) == 1
    assert lines[0].startswith(said)
    assert sorted(int(row["a"]) for row in out()) == list(range(ROWS))


FREE: Mapping[str, Sets] = {
    "the same, said": ("source.format=csv", "source.delimiter=,", "sink.format=ndjson"),
    "paths spelt otherwise": ("source.path=./data.csv", "sink.path=run/../out"),
    "how it is loaded": ("loader.batch_rows=7", "loader.read_rows=5", "checkpoint.keep=9"),
    "how it is followed": ("source.on_replaced=read", "source.last_line=wait"),
    "a limit": ("dead_letters.limit=1.0", "source.max_record_bytes=1MiB"),
}


@pytest.mark.parametrize("what", FREE)
def test_what_changes_no_row_goes_on_without_a_word(
    what: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(())
    with caplog.at_level(logging.WARNING):
        assert preflight(Run("p.toml", FREE[what]))
        assert Run("p.toml", FREE[what]).run().resumed
    assert not [r.message for r in caplog.records if "changed" in r.message]
    assert sorted(row["a"] for row in out()) == list(range(ROWS))


def test_a_folder_that_moved_with_its_parts_is_the_same(folder: Path) -> None:
    stopped(())
    Path("out").rename("moved")
    sets = ("sink.path=moved",)
    assert preflight(Run("p.toml", sets))
    Run("p.toml", sets).run()
    assert sorted(row["a"] for row in out("moved")) == list(range(ROWS))


def test_parts_of_another_are_not_taken_away_where_parts_are_not_verified(folder: Path) -> None:
    stopped(("sink.verify_parts=false",))
    Path("theirs").mkdir()
    Path("theirs/part-00000009.ndjson").write_text("{}\n")
    assert "holds results already" in refused(("sink.verify_parts=false", "sink.path=theirs"))


def test_dead_letters_go_to_another_folder_from_here_on_with_a_word(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(())
    with caplog.at_level(logging.WARNING):
        Run("p.toml", ["dead_letters.path=letters"]).run()
    (line,) = [r.message for r in caplog.records if "path has changed" in r.message]
    assert line.startswith("[dead_letters]")
    assert sorted(row["a"] for row in out()) == list(range(ROWS))


def test_parts_that_are_gone_are_told_by_check_too(folder: Path) -> None:
    stopped(())
    next(Path("out").iterdir()).unlink()
    assert "no longer has the parts" in refused(())


def test_a_file_that_is_gone_before_its_end_is_told_by_check_too(folder: Path) -> None:
    Path("more.csv").write_text("a,k\n1,u\n")
    sets = ('source.path=["data.csv", "more.csv"]',)
    stopped(sets)
    Path("data.csv").unlink()
    assert "is gone, and was not read to its end" in refused(("source.path=more.csv",))


def test_a_source_of_a_mix_may_come_and_its_settings_are_watched(folder: Path) -> None:
    def file(*parts: str) -> str:
        text = STATELESS.replace('kind = "files"\npath = "data.csv"', 'kind = "mix"', 1)
        Path("mix.toml").write_text(text + "".join(parts))
        return "mix.toml"

    def part(name: str, more: str = "") -> str:
        return f'[source.sources.{name}]\nkind = "files"\npath = "data.csv"\nweight = 1\n{more}\n'

    stopped((), file(part("one")))
    sentence = refused((), file(part("one", "order_by = ['a']")))
    assert "[source.sources.one] order_by" in sentence
    Run(file(part("one"), part("two"))).run()
    assert sorted(row["a"] for row in out()) == sorted([*range(ROWS)] * 2)


# ------------------------------------------------------------------------------------- with a state


@pytest.fixture
def learned(tmp_path: Path, small: Small, rows: Rows) -> Path:
    rows(400).write_csv(tmp_path / "data.csv")
    slices = "[evaluation.slices]\nnorth = \"key = 'n'\"\neast = \"key = 'e'\"\n"
    file = small(
        tmp_path / "data.csv", ("interval_batches = 4", "interval_batches = 1"), more=slices
    )
    run = Run(file, watch=lambda loop, batch: loop.stop() if loop.totals.batches == 2 else None)
    assert run.run().stopped
    return file


@pytest.mark.parametrize(
    ("said", "sets"),
    {
        "[source] coerce": "source.coerce=strict",
        "[source] null_values": "source.null_values=['n']",
        "[loader] batch_rows": "loader.batch_rows=50",
        "[evaluation] every": "evaluation.every=50",
        "[train] forget_on": "train.forget_on=never",
    }.items(),
)
def test_with_a_state_what_rows_mean_is_refused(said: str, sets: str, learned: Path) -> None:
    assert f"written with another {said}" in refused((sets,), str(learned))


def test_slices_go_on_begin_anew_come_and_go(
    learned: Path, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    text = learned.read_text()
    changed = text.replace("east = \"key = 'e'\"", 'east = "key = \'w\'"\nodd = "n % 2 = 1"')
    learned.write_text(changed)
    with caplog.at_level(logging.WARNING):
        report = Run(learned).run().report
    key = rows(400)["key"]
    found = {name: group["rows"] for name, group in report["slices"].items()}
    assert report["rows"] == 400
    assert found == {
        "north": int((key == "n").sum()),
        "east": int((key[200:] == "w").sum()),
        "odd": 100,
    }
    lines = [r.message for r in caplog.records if "[evaluation.slices]" in r.message]
    assert [line.split()[1:3] for line in lines] == [["east", "has"], ["odd", "is"]]


def test_slices_that_are_taken_out_end(learned: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = learned.read_text()
    learned.write_text(text[: text.index("[evaluation.slices]")])
    with caplog.at_level(logging.WARNING):
        report = Run(learned).run().report
    assert report["slices"] == {}
    assert report["rows"] == 400
    assert sum("its figures end" in r.message for r in caplog.records) == 2


def test_a_slice_of_the_name_of_all_rows_is_refused(learned: Path) -> None:
    learned.write_text(learned.read_text() + "all = \"key = 'n'\"\n")
    with pytest.raises(UserError, match="expected another name"):
        Run(learned).assemble()


def test_a_changed_setting_after_the_end_applies_to_what_comes_and_nothing_came(
    small: Small, rows: Rows, tmp_path: Path, headrace: Headrace
) -> None:
    rows(200).write_csv(tmp_path / "rows.csv")
    file = small(tmp_path / "rows.csv")
    code, out, _ = headrace("run", file)
    assert (code, "Nothing was left" in out) == (0, False)
    code, out, err = headrace("run", file, "--set", "train.lr=0.5", "--set", "train.threads=2")
    assert code == 0
    assert "[train] lr has changed since the checkpoint" in err
    assert "it holds for what comes from here on" in err
    assert "threads" not in err
    (said,) = [line for line in out.splitlines() if line.startswith("Nothing was left to read")]
    assert "no record after the checkpoint, so what has changed since ([train] lr)" in said
    assert "applied to none" in said
    assert "no effect" not in said
    assert "--fresh" in said
    code, out, _ = headrace("run", file)
    (said,) = [line for line in out.splitlines() if line.startswith("Nothing was left to read")]
    assert "[train] lr" not in said


def test_changed_columns_of_the_sink_are_told_by_those_that_write(
    small: Small, rows: Rows, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows(100).write_csv(tmp_path / "rows.csv")
    file = small(tmp_path / "rows.csv", ("[sink]\n", '[sink]\ncolumns = ["y", "prediction"]\n'))
    Run(file).run()
    file.write_text(file.read_text().replace('columns = ["y", "prediction"]\n', ""))
    assert Run(file).restore()
    assert "[sink] columns" not in caplog.text
    Run(file).run()
    assert "[sink] columns has changed since the checkpoint" in caplog.text
    assert 'written: not set now, ["y", "prediction"] before' in caplog.text


def test_another_file_of_a_lookup_is_refused_by_what_learned_and_told_by_others(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = "scrub.name={kind='lookup', path='names.csv', by=['k']}"
    learns = "scrub.outliers.columns=['a']"
    for sets in ((table,), (table, learns)):
        Path("names.csv").write_text("k,name\nu,one\nv,two\n")
        Run("p.toml", sets).run(fresh=True)
        Path("names.csv").write_text("k,name\nu,three\nv,two\n")
        if learns in sets:
            assert "written with another file for stage name" in refused(sets)
            continue
        with caplog.at_level(logging.WARNING):
            Run("p.toml", sets).run()
        assert "file for stage name has changed since the checkpoint" in caplog.text
