"""The endpoints of a pipeline: source, sink, dead letters and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.assembly.components import Configured, configure
from engine.assembly.saved_schema import SavedSchema
from engine.assembly.served import LoadedModel
from engine.config import Pipeline, SourceTable, detached_source, key_location, paths_in
from engine.errors import MissingFile
from engine.loading.sources.labelled_source import SECTION, LabelledSource
from engine.loading.sources.mix import Mix, SourceGroup, sources_of
from engine.running.saving.checkpoint import Checkpoints
from engine.scrub.side_source import SideSource, SideStage, UnreadSource
from engine.types import Sink, Source, Transaction, UserError, parse_schema
from engine.user_code.calls import naming

MIXED = "source.sources."
"""The prefix of the sections of a mix's sources."""
SHARED_KEYS = ("group_id", "subscribe", "group_instance_id", "start", "stop")
"""The keys of a topic that say which part of it is read."""
COMMON_SINK_KEYS = ("columns", "where", "probabilities", "answer")
"""The keys of [sink] that every kind shares."""


class Endpoints:
    """Opens each endpoint on first use.

    Args:
        replay: whether to read the dead letters instead of the source.

    Attributes:
        fresh: whether the run starts over and ignores its checkpoints.
        configured: section -> its parsed table, for the sources and sinks built so far.
    """

    def __init__(self, pipeline: Pipeline, served: LoadedModel, *, replay: bool = False) -> None:
        self.replay = replay
        self.fresh = False
        self.configured: dict[str, Configured] = {}
        self._pipeline = pipeline
        self._served = served

    @cached_property
    def source(self) -> Source:
        """The source.

        Raises: UserError for a wrong setting or a missing file or topic.
        """
        return self._dead_letter_source() if self.replay else self.another_source()

    def another_source(self) -> Source:
        """Build a second source from [source], and [labels] if there are any, to read beside the
        run."""
        table = {k: v for k, v in self._pipeline.source.items() if k != "schema"}
        if self._pipeline.late_labels is not None:
            return self._labelled(table)
        return self._mix(table) if table.get("kind") == "mix" else self._source("source", table)

    @cached_property
    def labelled(self) -> LabelledSource | None:
        """The source of rows and late labels; None if each row has its label.

        Replaying dead letters, it is what they were read from.
        """
        if self._pipeline.late_labels is None:
            return None
        source = self.another_source() if self.replay else self.source
        assert isinstance(source, LabelledSource)
        return source

    def another_label_source(self) -> Source:
        """Build a second source of what the labels come from."""
        source = self.another_source()
        return source.labels if isinstance(source, LabelledSource) else source

    def side_source(self, section: str, stage: SideStage, *, read: bool = True) -> SideSource:
        """Return what a stage reads beside the stream.

        Args:
            read: False only knows its columns.

        Raises: UserError for a wrong setting.
        """
        pipeline, table = self._pipeline, stage.side_table or {}
        way = "whole, by every engine, and then followed"
        if stage.keeps_what_it_read:
            way = "by every engine, as far as its rows need it"
        for key in SHARED_KEYS:
            if key in table and not (key == "start" and stage.keeps_what_it_read):
                raise UserError(f"[{section}] in {pipeline.file} is read {way}: take '{key}' out.")
        declared = parse_schema(pipeline.settings(SourceTable, table, section).declared)
        own = {k: v for k, v in table.items() if k != "schema"}
        once = detached_source(own)
        if "follow" in once:
            once["follow"] = False

        def opened(whole: bool) -> Source:
            return self._source(section, once if whole else own)

        return (SideSource if read else UnreadSource)(section, opened, declared)

    @cached_property
    def sink(self) -> Sink | None:
        """The sink of results; None if the pipeline has none."""
        from connectors import SINKS

        given = self._pipeline.sink
        if given is None:
            return None
        table = {k: v for k, v in given.items() if k not in COMMON_SINK_KEYS}
        return self._sink("sink", table, SINKS)

    @cached_property
    def dead_letters(self) -> Sink:
        """The sink of rejected rows."""
        from connectors import DEAD_LETTER_SINKS

        settings = self._pipeline.dead_letters
        table: dict[str, Any] = {"kind": settings.kind, **(settings.model_extra or {})}
        if settings.kind == "files":
            table |= {"path": str(self._pipeline.dead_letters_path)}
        elif settings.path is not None:
            table["path"] = settings.path
        sink = self._sink("dead_letters", table, DEAD_LETTER_SINKS)
        sink.join_transaction(self.sink)
        return sink

    @property
    def sinks(self) -> dict[str, Sink]:
        """Section -> sink, for all sinks of the pipeline."""
        results = {} if self.sink is None else {"sink": self.sink}
        return {**results, "dead_letters": self.dead_letters}

    @cached_property
    def transaction(self) -> Transaction | None:
        """The transaction of results and positions; None if the source commits by itself.

        Raises: UserError if source and sink cannot share a transaction.
        """
        if self.sink is None or self.replay:
            return None
        return self.sink.transaction(self.source)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """The checkpoint folder."""
        own = self._pipeline.checkpoint
        path = own.get("path") or str(Path(self._pipeline.folder) / "checkpoints")
        table = {**own, "path": path}
        return Checkpoints(self._pipeline.settings(Checkpoints.Settings, table, "checkpoint"))

    @property
    def private(self) -> bool:
        """Whether files of the checkpoints, or of an endpoint built so far, are for their owner
        alone."""
        ends = [each.settings for each in self.configured.values()]
        all_settings = [self.checkpoints.settings, *ends]
        return any(each.model_dump(include={"private"}).get("private") for each in all_settings)

    @cached_property
    def saved_schema(self) -> SavedSchema:
        """The columns the last run started with, even if it saved no checkpoint."""
        return SavedSchema.read(Path(self._pipeline.folder))

    @cached_property
    def resumed_schema(self) -> SavedSchema:
        """The columns the resumed run started with; empty if none is resumed."""
        resumes = not self.fresh and self.checkpoints.exists()
        return self.saved_schema if resumes else SavedSchema()

    def _mix(self, table: Mapping[str, Any]) -> Mix:
        sources = {
            name: (self._source(f"{MIXED}{name}", own), weight)
            for name, (own, weight) in sources_of(table, self._pipeline.file).items()
        }
        own = {k: v for k, v in table.items() if k not in ("kind", "sources")}
        settings = self._pipeline.settings(Mix.Settings, own, "source")
        self.configured["source"] = Configured(kind="mix", settings=settings)
        return Mix(settings, sources)

    def _labelled(self, table: Mapping[str, Any]) -> LabelledSource:
        pipeline, settings = self._pipeline, self._pipeline.late_labels
        assert settings is not None
        for section, own in (("source", table), (SECTION, settings.source)):
            if own.get("subscribe") or own.get("kind") == "mix":
                raise UserError(
                    f"[{section}] in {pipeline.file} expects files or topics without 'subscribe', "
                    "as [labels] joins the two: what shares its partitions, or is a mix, has its "
                    "labels in its rows."
                )
        target = (pipeline.model or {}).get("target")
        if isinstance(target, list) and len(target) > 1:
            raise UserError(
                f"[labels] in {pipeline.file} joins one label, and [model] target names "
                f"{len(target)} columns: name one."
            )
        target = target[0] if isinstance(target, list) and target else target
        if not isinstance(target, str):
            raise UserError(
                f"{key_location(pipeline.file, 'model', 'target')} needs the key 'target', a "
                "column of [labels.source]."
            )
        labels = {k: v for k, v in settings.source.items() if k != "schema"}
        rows = self._source("source", table)
        with naming(SECTION):
            late = self._source(SECTION, labels)
        return LabelledSource(
            rows,
            late,
            settings,
            target=target,
            declared=settings.source.get("schema", {}),
        )

    def _source(self, section: str, table: Mapping[str, Any]) -> Source:
        from connectors import SOURCES

        source: Source
        pipeline = self._pipeline
        try:
            self.configured[section], source = configure(pipeline, section, table, SOURCES, Source)
        except MissingFile as error:
            named = paths_in(pipeline.table())  # it is none of the files that have their place
            files = (path for path in named if "\0" not in path)  # which no file's name has
            raise error.besides(Path(path).resolve() for path in files) from None
        source.keep_metadata()  # for the dead letters
        return source

    def _sink(self, section: str, table: Mapping[str, Any], known: Mapping[str, str]) -> Sink:
        sink: Sink
        self.configured[section], sink = configure(
            self._pipeline, section, table, known, Sink, provenance=self._served.provenance
        )
        return sink

    def _dead_letter_source(self) -> Source:
        """Build a source that reads the dead letters the way [source] reads its records.

        Raises: UserError if there are none, or their kind cannot be read back.
        """
        from connectors.dead_letters import FileDeadLetterSource, KafkaDeadLetterSource

        own: Any = self.another_source()
        letters: Any = self.dead_letters
        kind = self._pipeline.dead_letters.kind
        if kind == "files":
            parts = own.parts if isinstance(own, SourceGroup) else None
            return FileDeadLetterSource(self._pipeline.dead_letters_path, own, parts)
        if kind == "kafka" and "topics" in type(own.settings).model_fields:
            return KafkaDeadLetterSource(letters.settings.topic, own.settings)
        raise UserError(
            f"Dead letters of kind '{kind}' cannot be replayed into a source of kind "
            f"'{self._pipeline.source['kind']}': expected files, or topics on both sides."
        )


__all__ = ["MIXED", "Endpoints"]
