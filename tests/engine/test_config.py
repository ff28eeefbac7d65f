"""The pipeline file: order of tables, overrides, and the sentence for every mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from connectors.kafka.dead_letters import KafkaDeadLetterSink
from connectors.kafka.sink import KafkaSink
from connectors.kafka.source import KafkaSource
from engine.config import OPTIONAL, LoaderSettings, Pipeline, load_class, validate
from engine.observing.service import Service
from engine.run import Run
from engine.running.saving.checkpoint import Checkpoints
from engine.types import Settings, UserError
from models.layers import LayerTable

MINIMAL = """
name = "minimal"
[source]
kind = "files"
[scrub.later]
kind = "derive"
[scrub.earlier]
factor = 3
[loader]
batch_rows = 64
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL)
    return path


def test_tables_keep_the_order_of_the_file(file: Path) -> None:
    pipeline = Pipeline.load(file, ["scrub.earlier.factor=4"])
    assert list(pipeline.scrub) == ["later", "earlier"]


def test_set_beats_environment_beats_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Pipeline.load(file).loader.batch_rows == 64
    monkeypatch.setenv("HEADRACE_LOADER__BATCH_ROWS", "128")
    monkeypatch.setenv("HEADRACE_SCRUB__EARLIER__FACTOR", "7")
    assert Pipeline.load(file).loader.batch_rows == 128
    assert Pipeline.load(file, ["loader.batch_rows=256"]).loader.batch_rows == 256
    assert Pipeline.load(file).scrub["earlier"]["factor"] == "7"


def test_a_pipeline_is_the_same_again_in_another_process(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built from its own table, whatever the environment there says: --set was above it."""
    monkeypatch.setenv("HEADRACE_LOADER__BATCH_ROWS", "128")
    monkeypatch.setenv("HEADRACE_SCRUB__EARLIER__FACTOR", "7")
    sets = ["loader.batch_rows=256", "export.compress=false", "export.every=10m"]
    pipeline = Pipeline.load(file, sets)
    again = Pipeline.resolved(pipeline.table(), where=pipeline.file)
    assert again.table() == pipeline.table()
    assert list(again.scrub) == ["later", "earlier"]
    assert (again.loader.batch_rows, again.folder) == (256, pipeline.folder)
    assert again.export is not None
    assert (again.export.compress, again.export.every) == (None, 600.0)


def test_a_base_is_overridden_key_by_key(file: Path) -> None:
    child = file.parent / "child.toml"
    child.write_text('base = "minimal.toml"\nname = "child"\n[loader]\nmax_delay = 0.5\n')
    pipeline = Pipeline.load(child)
    assert (pipeline.name, pipeline.loader.batch_rows, pipeline.loader.max_delay) == (
        "child",
        64,
        0.5,
    )
    assert pipeline.folder == "runs/child"


@pytest.mark.parametrize("by", ["--set", "variable", "base"])
@pytest.mark.parametrize("section", [*OPTIONAL, "scrub.later", "augment.noise"])
def test_false_takes_out_a_table_that_a_pipeline_may_lack(
    section: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {
        "name": "p", "source": {"kind": "memory"}, "labels": {"source": {"kind": "memory"},
        "by": ["id"], "time": "at", "horizon": 1}, "export": {"compress": {"rounds": 3}},
        "scrub": {"later": {"kind": "derive"}, "earlier": {"factor": 3}},
        "augment": {"noise": {}}, "sink": {"kind": "memory"},
        **{name: {} for name in ("model", "train", "infer", "evaluation", "service", "traces")},
    }  # fmt: skip
    table, _, name = section.partition(".")
    sets = []
    if by == "--set":
        sets = [f"{section}=false"]
    elif by == "variable":
        monkeypatch.setenv(f"HEADRACE_{section.upper().replace('.', '__')}", "false")
    base = tmp_path / "base.toml"
    child = tmp_path / "child.toml"
    base.write_text("\n".join(_toml(whole)))
    child.write_text(f'base = "base.toml"\n{section} = false\n')
    expected = Pipeline.load(base).table()
    if by != "variable":
        assert (expected[table][name] if name else expected[table]) is not None
    pipeline = Pipeline.load(child if by == "base" else base, sets)
    if not name:
        gone = pipeline.table().get(table)
        assert gone in (None, {})
    else:
        assert name not in pipeline.table()[table]
        expected[table].pop(name, None)
    others = {key: own for key, own in pipeline.table().items() if key != table or name}
    assert others == {key: expected[key] for key in others}
    assert Pipeline.resolved(pipeline.table(), where="p").table() == pipeline.table()


@pytest.mark.parametrize(
    ("overrides", "left"),
    [
        (["export=false", "export.keep=3"], {"keep": 3}),
        (["export.keep=3", "export=false"], None),
        (["export=false", "export={keep=3}", "export.every=60"], {"keep": 3, "every": 60.0}),
        (["export.keep=3", "export.every=60"], {"keep": 3, "every": 60.0, "holdout_rows": 700}),
    ],
)
def test_a_key_of_a_table_that_was_taken_out_begins_it_anew(
    overrides: list[str], left: dict[str, Any] | None
) -> None:
    table = {
        "name": "p",
        "source": {"kind": "memory"},
        "export": {"keep": 9, "holdout_rows": 700},
    }
    export = Pipeline.of(table, overrides).export
    given = None if export is None else {k: getattr(export, k) for k in export.model_fields_set}
    assert given == left


def _toml(table: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in table.items():
        if not isinstance(value, dict):
            yield f"{key} = {json.dumps(value)}"
    for key, value in table.items():
        if isinstance(value, dict):
            yield f"[{path}{key}]"
            yield from _toml(value, f"{path}{key}.")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("loader=false", "--set loader: expected a table for 'loader', got false."),
        ("source=false", "--set source: expected a table for 'source', got false."),
        ("scrub.latter=false", "expected a table for 'scrub.latter', got false."),
        ("exprt=false", "has no key 'exprt'. Did you mean 'export'?"),
        ("loader.batch_row=7", "has no key 'batch_row'. Did you mean 'batch_rows'?"),
        ("lodaer.batch_rows=7", "has no key 'lodaer'. Did you mean 'loader'?"),
        ("loader.batch_rows=many", "expected a whole number >= 1 for 'batch_rows', got \"many\"."),
        (
            "loader.batch_rows=0",
            "expected a whole number >= 1 for 'batch_rows', got 0.",
        ),
        ("loader.memory_budget=lots", "for 'memory_budget', got \"lots\"."),
        ("source=3", "expected a table for 'source', got 3."),
        ("export.holdout_row=3", "has no key 'holdout_row'. Did you mean 'holdout_rows'?"),
        ("dead_letters.limit=2", "expected a number > 0 and <= 1 for 'limit', got 2."),
        ("name=two words", "for 'name', got \"two words\"."),
        ("loader", "Expected --set key.path=value, got 'loader'."),
        ("name=1\n[x]", "Expected one value behind --set KEY=, got '1\\n[x]'"),
        ("folder=", "--set folder: expected text that is not empty for 'folder', got \"\"."),
        ("export.path=", "expected text that is not empty for 'path', got \"\"."),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(file: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Pipeline.load(file, [override])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["NAME", "BASE", "FOLDER"])
def test_a_variable_that_sets_a_key_of_what_is_no_table_is_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv(f"HEADRACE_{key}__X", "1")
    with pytest.raises(UserError, match=f"which is no table but text: expected HEADRACE_{key}"):
        Pipeline.load(file)


@pytest.mark.parametrize("table", [n for n in Pipeline.model_fields if n not in (
    "name", "base", "folder"
)])  # fmt: skip
def test_a_variable_sets_keys_of_every_table(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"HEADRACE_{table.upper()}__NONE", "1")
    refusal = ""
    try:
        Pipeline.of({"name": "a", "source": {"kind": "memory"}})
    except UserError as error:  # of a table whose keys are known by now
        refusal = str(error)
    assert "no table" not in refusal


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0.25", 0.25), ("3", 3.0), ('"250ms"', 0.25), ('"1s"', 1.0), ('"1.5 s"', 1.5),
        ('"5m"', 300.0), ('"2h"', 7_200.0), ('"7d"', 604_800.0), ('"1h30m"', 5_400.0),
        ('"0.5"', 0.5),
    ],
)  # fmt: skip
def test_a_duration_is_a_number_of_seconds_or_has_units(
    file: Path, text: str, seconds: float
) -> None:
    assert Pipeline.load(file, [f"loader.max_delay={text}"]).loader.max_delay == seconds


def test_every_setting_that_is_a_time_takes_durations() -> None:
    """Whatever a docstring calls a time: so that a new setting is not forgotten."""
    times = {
        key
        for kind in (
            LoaderSettings, Checkpoints.Settings, Service.Settings, KafkaSource.Settings,
            KafkaSink.Settings, KafkaDeadLetterSink.Settings,
        )
        for key, field in kind.model_fields.items()
        if "float" in str(field.annotation)
    }  # fmt: skip
    for key in times:
        kinds = (LoaderSettings, Checkpoints.Settings, Service.Settings, KafkaSource.Settings,
                 KafkaSink.Settings)  # fmt: skip
        kind = next(kind for kind in kinds if key in kind.model_fields)
        needed = {"path": "x", "topics": "x", "topic": "x"}
        table = {k: v for k, v in needed.items() if k in kind.model_fields}
        assert getattr(validate(kind, {**table, key: "900ms"}, "s", "f"), key) == 0.9


@pytest.mark.parametrize("wrong", ["soon", "1 fortnight", "5 minutes", "s", "", "1s ago", "nan"])
def test_a_duration_that_is_none_is_one_sentence(file: Path, wrong: str) -> None:
    with pytest.raises(UserError) as caught:
        Pipeline.load(file, [f'loader.max_delay="{wrong}"'])
    assert str(caught.value) == (
        f'--set loader.max_delay: expected seconds or a duration like "250ms", "1s", "5m", '
        f'"2h" or "7d" for \'max_delay\', got "{wrong}".'
    )


def test_a_missing_file_names_its_neighbour(file: Path) -> None:
    with pytest.raises(
        UserError, match=r"There is no pipeline file .*Did you mean 'minimal.toml'\?"
    ):
        Pipeline.load(file.parent / "minimum.toml")


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('name = "x"\n')
    with pytest.raises(UserError, match=r"needs the key 'source', which is not there"):
        Pipeline.load(path)


def test_broken_toml_says_where(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('name = "x"\n[source\n')
    with pytest.raises(UserError, match=r"is not valid TOML: .*line 2"):
        Pipeline.load(path)


def test_a_byte_order_mark_is_no_part_of_the_toml(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text('name = "x"\n[source]\nkind = "files"\npath = "a.csv"\n', encoding="utf-8-sig")
    assert Pipeline.load(path).name == "x"


def test_bases_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(UserError, match="name each other"):
        Pipeline.load(tmp_path / "a.toml")


class _Own(Settings):
    size: int = Field(1, ge=1)
    kind: str = "x"


def test_a_components_own_settings_complain_in_its_section() -> None:
    with pytest.raises(
        UserError, match=r"\[scrub.a\] in f.toml has no key 'sizes'. Did you mean 'size'"
    ):
        validate(_Own, {"sizes": 2}, "scrub.a", "f.toml")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("filse", r"\[source\] has no kind 'filse'. Did you mean 'files'\?"),
        (
            "no.such:Thing",
            r"\[source\] kind 'no.such:Thing' cannot be imported: .*package.module:Class",
        ),
        ("json:nothing", r"cannot be imported"),
        ("json:dumps", r"expected a class"),
    ],
)
def test_a_kind_that_is_none(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load_class(name, {"files": "json:JSONDecoder"}, "source")


def test_a_kind_may_be_the_users_own() -> None:
    import json

    assert load_class("json:JSONDecoder", {}, "source") is json.JSONDecoder


@pytest.mark.parametrize(
    ("section", "key", "value", "rest"),
    [
        ("train", "threads", "1", "it needs a [model], which is not there."),
        ("evaluation", "window", "5", "it needs a [model], which is not there."),
        ("export", "holdout", "0.1", "it needs a [model], which is not there."),
        ("sink", "password", "secret", "it needs the key 'kind', which is not there."),
    ],
)
@pytest.mark.parametrize("by", ["variable", "--set"])
def test_who_makes_a_table_is_named_not_the_file_that_lacks_it(
    section: str, key: str, value: str, rest: str, by: str,
    file: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    file.write_text('name = "minimal"\n[source]\nkind = "memory"\nitems = []\n')
    sets, who = [f"{section}.{key}={value}"], f"--set {section}.{key}"
    if by == "variable":
        who = f"HEADRACE_{section.upper()}__{key.upper()}"
        sets = []
        monkeypatch.setenv(who, value)
    with pytest.raises(UserError) as caught:
        Run(Pipeline.load(file, sets))
    assert str(caught.value) == f"{who} makes [{section}], which {file} does not have: {rest}"
    assert "secret" not in str(caught.value)


def test_a_stage_that_only_an_override_makes_is_the_overrides(file: Path) -> None:
    file.write_text('name = "minimal"\n[source]\nkind = "memory"\nitems = []\n')
    with pytest.raises(UserError, match=r"^--set scrub\.mising\.columns makes \[scrub\.mising\]"):
        _ = Run(Pipeline.load(file, ["scrub.mising.columns=['a']"])).stages


def test_a_table_that_the_file_has_is_the_files_fault(file: Path) -> None:
    file.write_text('name = "minimal"\n[source]\nkind = "memory"\nitems = []\n[train]\nlr = 1\n')
    with pytest.raises(UserError, match=r"^\[train\] in .*minimal.toml needs a \[model\]"):
        Run(Pipeline.load(file, ["train.threads=1"]))


class _Layers(Settings):
    layers: tuple[LayerTable, ...] = ()


class _Inputs(Settings):
    inputs: dict[str, _Layers] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        ({"kind": "dense", "widht": 3}, " has no key 'widht'. Did you mean 'width'?"),
        ({"kind": "dense", "units": 3}, " has no key 'units'. Did you mean 'width'?"),
        ({"kind": "dense"}, " needs the key 'width', which is not there."),
        ({"kind": "dense", "width": 0}, ": expected a whole number > 0 for 'width', got 0."),
        (
            {"kind": "convolution", "width": 3, "size": 4},
            ": expected an odd number, so that a window has a middle, for 'size', got 4.",
        ),
        (
            {"kind": "experts", "count": 2, "top": 3},
            ": expected top <= count, got top = 3, count = 2.",
        ),
        ({"kind": "embeding"}, " has no kind 'embeding'. Did you mean 'embedding'?"),
        ({"width": 3}, " needs the key 'kind', which is not there. Known: attention, convolution,"),
    ],
)
def test_a_table_of_a_list_is_named_by_its_number(second: Any, sentence: str) -> None:
    table = {"layers": [{"kind": "dense", "width": 3}, second]}
    expected = f"[model.inputs.words] layer 2 in f.toml{sentence}"
    with pytest.raises(UserError) as caught:
        validate(_Layers, table, "model.inputs.words", "f.toml")
    assert str(caught.value).startswith(expected)
    with pytest.raises(UserError) as caught:
        validate(_Inputs, {"inputs": {"words": table}}, "model", "f.toml")
    assert str(caught.value).startswith(expected)


def test_what_is_no_table_of_a_list_is_named_by_the_list() -> None:
    expected = re.escape("[model.head] in f.toml: expected a list of tables for 'layers', got 3")
    with pytest.raises(UserError, match=expected):
        validate(_Layers, {"layers": [3]}, "model.head", "f.toml")
    with pytest.raises(UserError, match=expected):
        validate(_Layers, {"layers": 3}, "model.head", "f.toml")
