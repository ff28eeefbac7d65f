"""Where records come from and where everything goes: source, sink, dead letters, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.assembly.components import Configured, configure
from engine.assembly.saved_schema import SavedSchema
from engine.assembly.served import Served
from engine.config import Pipeline
from engine.loading.mix import Mix, sources_of
from engine.running.checkpoint import Checkpoints
from engine.types import Sink, Source, Transaction, UserError

MIXED = "source.sources."
"""Before the name of a source of a mix, in the name of its section."""
COMMON_SINK_KEYS = ("columns", "probabilities")
"""Keys of [sink] that say what is written, whatever its kind."""


class Endpoints:
    """The places of a pipeline, each opened when it is first asked for.

    Args:
        replay: read the dead letters in place of the source.

    Attributes:
        fresh: whether the run begins anew, and its checkpoints do not count.
        configured: kind and settings of the sources and sinks made so far, by section.
    """

    def __init__(self, pipeline: Pipeline, served: Served, *, replay: bool = False) -> None:
        self.replay = replay
        self.fresh = False
        self.configured: dict[str, Configured] = {}
        self._pipeline = pipeline
        self._served = served

    @cached_property
    def source(self) -> Source:
        """Raises: UserError for a wrong setting or a place that is not there."""
        return self._dead_letter_source() if self.replay else self.another_source()

    def another_source(self) -> Source:
        """Make one more source of [source], for whoever looks at rows beside the run."""
        table = {k: v for k, v in self._pipeline.source.items() if k != "schema"}
        return self._mix(table) if table.get("kind") == "mix" else self._source("source", table)

    @cached_property
    def sink(self) -> Sink | None:
        """Where results go."""
        from connectors import SINKS

        given = self._pipeline.sink
        if given is None:
            return None
        table = {k: v for k, v in given.items() if k not in COMMON_SINK_KEYS}
        return self._sink("sink", table, SINKS)

    @cached_property
    def dead_letters(self) -> Sink:
        """Where rejected rows go."""
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
        """Table of the pipeline file -> what it writes to: results, where they go anywhere, and
        dead letters."""
        results = {} if self.sink is None else {"sink": self.sink}
        return {**results, "dead_letters": self.dead_letters}

    @cached_property
    def transaction(self) -> Transaction | None:
        """What commits results and positions together; None where the source commits by itself.

        Raises: UserError where source and sink have no transaction in common.
        """
        if self.sink is None or self.replay:
            return None
        return self.sink.transaction(self.source)

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Where state is saved."""
        own = self._pipeline.checkpoint
        path = own.get("path") or str(Path(self._pipeline.folder) / "checkpoints")
        table = {**own, "path": path}
        return Checkpoints(self._pipeline.settings(Checkpoints.Settings, table, "checkpoint"))

    @cached_property
    def saved_schema(self) -> SavedSchema:
        """The columns that the newest run began with, also where no checkpoint came of it."""
        return SavedSchema.read(Path(self._pipeline.folder))

    @cached_property
    def resumed_schema(self) -> SavedSchema:
        """The same of the run that is resumed; nothing where none is."""
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

    def _source(self, section: str, table: Mapping[str, Any]) -> Source:
        from connectors import SOURCES

        source: Source
        self.configured[section], source = configure(
            self._pipeline, section, table, SOURCES, Source
        )
        source.keep_metadata()  # for the dead letters
        return source

    def _sink(self, section: str, table: Mapping[str, Any], known: Mapping[str, str]) -> Sink:
        sink: Sink
        self.configured[section], sink = configure(
            self._pipeline, section, table, known, Sink, provenance=self._served.provenance
        )
        return sink

    def _dead_letter_source(self) -> Source:
        """The dead letters, to be read as the pipeline's own source reads.

        Raises: UserError where there are none, or they are of a kind that cannot be read back.
        """
        from connectors.dead_letters import FileDeadLetterSource, KafkaDeadLetterSource

        own: Any = self.another_source()
        letters: Any = self.dead_letters
        kind = self._pipeline.dead_letters.kind
        if kind == "files":
            parts = own.parts if isinstance(own, Mix) else None
            return FileDeadLetterSource(self._pipeline.dead_letters_path, own, parts)
        if kind == "kafka" and "topics" in type(own.settings).model_fields:
            return KafkaDeadLetterSource(letters.settings.topic, own.settings)
        raise UserError(
            f"Dead letters of kind '{kind}' cannot be replayed into a source of kind "
            f"'{self._pipeline.source['kind']}': expected files, or topics on both sides."
        )


__all__ = ["MIXED", "Endpoints"]
