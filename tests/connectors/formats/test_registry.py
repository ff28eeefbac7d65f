"""The one table of formats: files and topics read it, and a line is all that a new one needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from connectors.files import catalog as files
from connectors.files.source import FilesSource
from connectors.formats.options import FormatOptions
from connectors.formats.registry import (
    CUSTOM,
    EXTENSIONS,
    FILES,
    FORMATS,
    TOPICS,
    FormatSpec,
    imported,
    spec_of,
)
from connectors.formats.text import RawText
from connectors.kafka.reading import decoding
from connectors.kafka.source import KafkaSource
from engine.types import Format, Records, Rejects, Schema, UserError

NEEDS: dict[str, dict[str, Any]] = {
    "csv": {"columns": ("n",)}, "avro": {"registry": "http://localhost:1"},
}  # fmt: skip
"""Format -> settings without which a topic of it cannot be read."""


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_for_files_or_topics_and_can_be_made(name: str) -> None:
    spec = spec_of(name)
    assert (name in FILES, name in TOPICS) == (spec.layout is not None, spec.topics)
    assert spec.layout is not None or spec.topics
    assert callable(imported(spec.make))
    assert bool(spec.table) == (spec.layout == "table")
    assert {n for e, n in EXTENSIONS.items() if e in spec.extensions} <= {name}


@pytest.mark.parametrize("name", TOPICS)
def test_a_topic_of_each_format_has_its_decoder(name: str) -> None:
    settings = KafkaSource.Settings(topics=("t",), format=name, **NEEDS.get(name, {}))
    assert isinstance(KafkaSource(settings).format, Format)


@pytest.mark.parametrize("name", FILES)
def test_files_of_each_format_have_their_decoder(name: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{next(iter(spec_of(name).extensions), '.x')}"
    file.write_text("n\n1\n")
    source = FilesSource(FilesSource.Settings(path=str(file), format=name))
    assert isinstance(source.format, Format)


@pytest.mark.parametrize(
    ("option", "value", "format"),
    [
        (option, value, name)
        for option, value in {
            "delimiter": ";", "encoding": "latin-1", "paths": {"a": "b"}, "row": "a/b",
        }.items()
        for name in FILES
        if option not in spec_of(name).options
    ],
)  # fmt: skip
def test_a_setting_of_other_formats_is_refused(
    option: str, value: Any, format: str, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("n\n1\n")
    own: dict[str, Any] = {"path": str(tmp_path / "a"), "format": format, option: value}
    with pytest.raises(
        UserError, match=rf"^\[source\] {option} is for .*, and format is '{format}"
    ):
        FilesSource(FilesSource.Settings(**own))


class Lengths(Format):
    """How long each line is."""

    def schema(self, declared: Schema) -> Schema:
        return {"length": pl.UInt32()}

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        frame, rejects = RawText(lines=True).decode(records, {"value": pl.String()})
        length = pl.col("value").str.len_bytes().alias("length")
        return frame.select("_partition", "_position", length), rejects


def make_lengths(options: FormatOptions) -> Lengths:
    return Lengths()


def test_a_line_in_the_table_is_a_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FormatSpec(make=f"{__name__}:make_lengths", layout="lines", topics=True)
    monkeypatch.setitem(FORMATS, "lengths", spec)
    monkeypatch.setattr(files, "FILES", (*FILES, "lengths"))
    monkeypatch.setattr(decoding, "TOPICS", (*TOPICS, "lengths"))
    (tmp_path / "a.txt").write_text("one\nthree\n")
    settings = FilesSource.Settings(path=str(tmp_path / "a.txt"), format="lengths")
    source = FilesSource(settings)
    schema = source.schema({})
    records = source.read(10, 1 << 20, 0.0)
    assert records is not None
    assert source.format.decode(records, schema)[0]["length"].to_list() == [3, 5]
    topic = KafkaSource(KafkaSource.Settings(topics=("t",), format="lengths"))
    assert topic.schema({}) == schema


def test_a_class_of_the_users_is_lines() -> None:
    assert spec_of("my_package.formats:Pipes") is CUSTOM
