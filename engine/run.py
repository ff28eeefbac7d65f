"""From a pipeline file to a running pipeline: the one place that knows which class a word in the
file means."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from engine import calls
from engine.system import atomic
from engine.running import labels, report
from engine.calls import Calling
from engine.types.changes import watched
from engine.running.checkpoint import (
    CheckpointFailed,
    Checkpoints,
    Saved,
    Tolerated,
    require_plain,
    size_of,
)
from engine.loading.collate import Collate
from engine.config import (
    ExportSettings,
    ModelSettings,
    Pipeline,
    SinkTable,
    apart,
    component,
    made_by,
    place,
    validate,
)
from engine.types.contract import require_contract
from engine.quality.evaluation import Evaluation
from engine.running.holdout import Holdout
from engine.loading.loader import Loader
from engine.system.lock import locked
from engine.running.loop import Breaker, Flood, Loop, Totals, Work
from engine.running.migration import Chain, mended
from engine.observing.metrics import Metrics
from engine.loading.mix import Mix, sources_of
from engine.loading.nested_tensors import array_bytes, nested_features
from engine.projection import projected
from engine.running.warm_up import rehearse
from engine.scrub import STAGES
from engine.scrub.fusion import UNTAUGHT
from engine.scrub.columns import spread
from engine.scrub.base import Stateless, restore, snapshots
from engine.observing.service import Health, Heartbeat, Service
from engine.quality.threshold import MIN_ROWS, Threshold, chosen
from engine.observing.timing import Account
from engine.types import (
    DROPPED,
    PART,
    RESERVED,
    REST,
    Batch,
    Buffered,
    EndOfStream,
    Features,
    HeadraceError,
    Learner,
    Mark,
    Schema,
    SharedSource,
    Sink,
    Snapshot,
    Source,
    Stage,
    Transform,
    UserError,
    nearest,
    parse_schema,
    parse_type,
    require,
    require_names,
    type_name,
)
from engine.running.bottleneck import Verdict, judge
from engine.types.plural import counted
from engine.running.work import Cleaning, Serving, Training, tell_quality, written

log = logging.getLogger("headrace.run")
SCHEMA = "schema.json"
"""File in the pipeline's folder: the columns that a run began with."""
LEFT = (SCHEMA, "report.json", "error.png", "metrics.prom", "verdict.json")
"""All files of that folder."""
SHARES = {"source": 0.25, "sink": 0.25, "dead letters": 0.0625}
"""Part of the memory budget that a component with a buffer of its own may fill."""
TRIED_BYTES, TRIED_SECONDS = 1 << 20, 1.0
"""Of one read, to try whether a source can go on where a checkpoint ends."""
PARTS = "source.sources."
"""Before the name of a source of a mix, in the name of its section."""
OUTPUT = ("columns", "probabilities")
"""Keys of [sink] that say what is written, whatever its kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run came to.

    Attributes:
        totals: what became of every record, restarts included.
        seconds: of this run.
        resumed, stopped: whether it began at a checkpoint; whether a signal ended it.
        report: the evaluation's numbers, or {} without a model in training.
        verdict: the compression gate's, or None.
        bottleneck: what has held the run, or None where nothing was done.
        remarks: of the source, see `engine.types.Source.remarks`.
        files: what it left: checkpoint, model, predictions, dead letters, picture, metrics.
    """

    totals: Totals
    seconds: float
    resumed: bool
    stopped: bool
    report: Mapping[str, Any] = field(default_factory=dict)
    verdict: Any = None
    bottleneck: Verdict | None = None
    remarks: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)


class Run:
    """A pipeline, assembled on first use of each part: nothing is opened that is not asked for.

    Args:
        pipeline: a file as read, or its path.
        overrides: "a.b=c" texts, for a path.
        watch: called after every batch.
        replay: read the dead letters in place of the source. What they come to is in the same
            checkpoint, so a letter is replayed once.
    """

    def __init__(
        self,
        pipeline: Pipeline | str | Path,
        overrides: Iterable[str] = (),
        *,
        watch: Callable[[Loop, Batch], None] | None = None,
        replay: bool = False,
    ) -> None:
        if not isinstance(pipeline, Pipeline):
            pipeline = Pipeline.load(pipeline, overrides)
        self.pipeline = pipeline
        self.folder = Path(pipeline.folder)
        self.metrics = Metrics()
        self._given: dict[str, tuple[str, Any]] = {}
        """Kind and settings of each source, sink and place for dead letters, by its section."""
        self._watch = watch
        self._replay = replay
        self._modes()

    def assemble(self) -> None:
        """Make every part and try them against each other, so that what cannot work is refused
        before a row is read. Learns nothing, writes nothing.

        Raises: UserError
        """
        try:
            self._assemble()
        except OSError as error:  # a path that the system does not take
            raise UserError(
                f"{self.pipeline.file} names the path '{error.filename}', which cannot be used: "
                f"{error.strerror}: choose another."
            ) from error
        except UserError as error:
            if not self._untyped():
                raise
            raise UserError(
                f"The source of {self.pipeline.file} has no rows yet, so the types of its columns "
                "are not known: declare them in [source.schema], or start when there are rows. "
                f"With all of them taken for text: {error}"
            ) from error

    def _untyped(self) -> bool:
        """Whether the columns have the types that a source without rows gives them."""
        if self.pipeline.source.get("schema"):
            return False
        if self.source.endless() or not self.source.repeatable():
            return False
        if any(kind != pl.String for kind in self.source_schema.values()):
            return False
        with contextlib.closing(self._source()) as source:
            source.schema({})
            return not source.sample(1, 1.0)

    def _assemble(self) -> None:
        _ = self.source
        self._may_leave()
        self._may_return()
        self._may_share()
        self._may_shuffle()
        self._may_repeat()
        self._may_hold()
        _ = (self.evaluation, self.holdout) if self.trains else ()
        _ = self.work, self.collate, self.transfer, self.transaction, self.dead_letters
        _ = self.checkpoints, self._service_settings
        self._may_export()
        self._may_write()

    # ------------------------------------------------------------------------------------- parts

    @cached_property
    def source(self) -> Source:
        """Raises: UserError for a wrong setting or a place that is not there."""
        return self._replayed() if self._replay else self._source()

    def _source(self) -> Source:
        table = {k: v for k, v in self.pipeline.source.items() if k != "schema"}
        if table.get("kind") == "mix":
            return self._mixed(table)
        return self._one_source("source", table)

    def _mixed(self, table: dict[str, Any]) -> Mix:
        sources = {
            name: (self._one_source(f"{PARTS}{name}", own), weight)
            for name, (own, weight) in sources_of(table, self.pipeline.file).items()
        }
        own = {k: v for k, v in table.items() if k not in ("kind", "sources")}
        self._given["source"] = "mix", self.pipeline.settings(Mix.Settings, own, "source")
        return Mix(self._given["source"][1], sources)

    def _one_source(self, section: str, table: dict[str, Any]) -> Source:
        made: Source = self._component(section, table, _connectors().SOURCES)
        if hasattr(made, "whole"):
            made.whole = True  # dead letters hold records with their keys and headers
        return made

    def _replayed(self) -> Source:
        """The dead letters, to be read as the pipeline's own source reads.

        Raises: UserError where there are none, or they are of a kind that cannot be read back.
        """
        from connectors.dead_letters import FileLetters, TopicLetters

        own: Any = self._source()
        letters: Any = self.dead_letters
        kind = self.pipeline.dead_letters.kind
        if kind == "files":
            return FileLetters(self.letters_path, own, own.parts if isinstance(own, Mix) else None)
        if kind == "kafka" and "topics" in type(own.settings).model_fields:
            return TopicLetters(letters.settings.topic, own.settings)
        raise UserError(
            f"Dead letters of kind '{kind}' cannot be replayed into a source of kind "
            f"'{self.pipeline.source['kind']}': expected files, or topics on both sides."
        )

    def _may_leave(self) -> None:
        """Whether what the run leaves can be written; told before anything is read."""
        atomic.require_folder(self.folder, "folder")
        atomic.require_folder(self.checkpoints.folder, "[checkpoint] path")
        for name in LEFT:
            atomic.require_file(self.folder / name, "folder")
        if self.pipeline.export is not None:
            atomic.require_file(self.model_path, "[export] path")
        written = {"[checkpoint]": _resolved([self.checkpoints.folder])}
        for table, sink in (("[sink]", self.sink), ("[dead_letters]", self.dead_letters)):
            written[table] = set() if sink is None else _resolved(sink.folders())
        for one, other in combinations(written, 2):
            if both := written[one] & written[other]:
                raise UserError(
                    f"{one} and {other} in {self.pipeline.file} both write to {both.pop()}: give "
                    "each a path of its own."
                )

    def _may_return(self) -> None:
        """Whether what is written comes back as input."""
        for table, sink in (("sink", self.sink), ("dead_letters", self.dead_letters)):
            place = None if sink is None or self._replay else self.source.rereads(sink)
            if place is not None:
                raise UserError(
                    f"[{table}] in {self.pipeline.file} writes to {place}, and [source] reads it: "
                    "every row would come again, without an end. Give it another one."
                )
        for named, file in () if self._replay else self._written():
            if self.source.covers(file):
                raise UserError(
                    f"{named} in {self.pipeline.file} writes files such as '{file}', and [source] "
                    "path leads to them: they would be read as input. Write to another folder, or "
                    "let [source] path say more exactly what is read."
                )

    def _written(self) -> Iterator[tuple[str, Path]]:
        """Files that a run leaves, and what says so."""
        for name in LEFT:
            yield "folder", self.folder / name
        yield "[checkpoint] path", self.checkpoints.folder / "checkpoint-00000001.hrc"
        for table, sink in (("[sink]", self.sink), ("[dead_letters]", self.dead_letters)):
            for file in () if sink is None else sink.files():
                yield table, file
        if self.pipeline.export is not None:
            yield "[export] path", self.model_path
            yield "[export] path", self.model_path.with_suffix(".fp32.onnx")

    def _may_share(self) -> None:
        source = self.source
        if not isinstance(source, SharedSource) or not source.shares or source.remembers:
            return
        if self.keeps_state:
            raise UserError(
                f"{self.pipeline.file} keeps a state (it trains, or a stage learns) and shares its "
                "partitions: give this engine a name in the group that stays, [source] member."
            )

    def _may_repeat(self) -> None:
        of = self.source if isinstance(self.source, Mix) else getattr(self.source, "settings", None)
        if getattr(of, "epochs", 1) == 1:
            return
        for stage in self.stages:
            if getattr(stage, "once", False):
                raise UserError(
                    f"[source] epochs in {self.pipeline.file} reads every row again, and "
                    f"[scrub.{stage.name}] would take it for a copy or for late: write the cleaned "
                    "rows first, with a pipeline that has no model, or leave the stage out."
                )

    def _may_shuffle(self) -> None:
        if not self.pipeline.loader.shuffle_rows:
            return
        if not self.trains:
            raise UserError(
                f"[loader] shuffle_rows in {self.pipeline.file} is for training: expected a "
                "[train] section, or take it out; results keep the order of their rows."
            )
        if isinstance(self.source, SharedSource) and self.source.shares:
            raise UserError(
                f"[loader] shuffle_rows in {self.pipeline.file} needs partitions that stay, and "
                "[source] join shares them: take one of the two out."
            )

    def _may_hold(self) -> None:
        """A batch is cut while it is raw; what an image becomes may be a hundred times that."""
        settings = self.pipeline.loader
        row, half = array_bytes(self.schema), int(settings.memory_budget) // 2
        if row * settings.batch_rows > half:
            raise UserError(
                f"[loader] batch_rows = {settings.batch_rows} in {self.pipeline.file} makes "
                f"batches of {row * settings.batch_rows:,} bytes of arrays, and half of "
                f"memory_budget is {half:,}: set batch_rows = {max(1, half // row)} or less, or "
                "raise the budget."
            )

    def _may_export(self) -> None:
        """What would fail at the end, hours later."""
        export = self.pipeline.export
        if export is None or not self.trains:
            return
        kind, _ = self._learner_kind
        if not callable(getattr(kind, "build", None)):
            raise UserError(
                f"[export] in {self.pipeline.file} needs a learner that writes ONNX, and "
                f"{kind.__name__} has no method 'build': take [export] out."
            )
        if export.compress is not None:
            from models.compress.gate import Compression

            self.pipeline.settings(Compression, export.compress, "export.compress")

    def _may_write(self) -> None:
        """Whether the sink can hold the columns that it will get."""
        columns = (self.pipeline.sink or {}).get("columns")
        if self.sink is None:
            return
        mine = {**dict.fromkeys(RESERVED, pl.String()), **self.schema}
        added = self._answers
        for name in added:
            if name in mine and (columns is None or name in columns):
                raise UserError(
                    f"[sink] in {self.pipeline.file} gets a column '{name}' of the model, and the "
                    f"data has one of that name: rename yours in a 'derive' stage, or leave it out "
                    "of [source.schema] or [sink] columns."
                )
        key = str((self.pipeline.sink or {}).get("key"))
        was = self.source_schema.get(key)
        if was is not None and mine.get(key, was) != was:
            log.warning(
                "[sink] key '%s' is %s as the stages of [scrub] leave it, and %s as it is read: "
                "take a column that no stage changes.", key, type_name(mine[key]), type_name(was),
            )  # fmt: skip
        whole = {**mine, **added}
        self.sink.bind({name: whole[name] for name in written(whole, columns, added)})

    @property
    def _answers(self) -> Schema:
        """Columns that the model adds for the sink."""
        if self._predictor is not None:
            return {**_answers(self._predictor.features), "model_version": pl.String()}
        return _answers(self.features) if self.trains else {}

    @cached_property
    def source_schema(self) -> Schema:
        """The columns that are decoded: in a run that is resumed, those of its beginning, whatever
        would be guessed now.

        Raises: UserError for a name that headrace itself adds.
        """
        schema = self._found_schema()
        require_names(schema, f"[source] in {self.pipeline.file}")
        for column in (PART, *RESERVED):
            if column in schema:
                raise UserError(
                    f"[source] in {self.pipeline.file} has a column '{column}', a name that "
                    "headrace itself adds: rename it, or leave it out by declaring the others in "
                    "[source.schema]."
                )
        return schema

    @property
    def knows_columns(self) -> bool:
        """Whether `source_schema` was asked for, or given."""
        return "source_schema" in vars(self)

    def take_columns(self, schema: Schema) -> None:
        """These are the columns, as far as is known without a look at the source."""
        self.source_schema = schema

    def _found_schema(self) -> Schema:
        declared = parse_schema(self.pipeline.source.get("schema", {}))
        known = self._known_schema
        if not known:
            return self._typed_by_the_model(declared)
        self.source.recall(self._kept.get("findings", {}))
        try:
            return self.source.schema({**known, REST: DROPPED})
        except UserError as error:
            log.warning("The columns of the run so far do not hold any more: %s", error)
            self.source.recall({})
            return self.source.schema(declared)

    def _typed_by_the_model(self, declared: Schema) -> Schema:
        """Columns that a model file reads as they come from the source, and that nobody declared,
        have the types that the model learned them in: a guess from other rows may differ. Cells are
        read as they were then."""
        if self._predictor is not None:
            self.source.adopt(self._predictor.reading)
        schema = self.source.schema(declared)
        if self._predictor is None or set(self.pipeline.scrub) - set(self._predictor.stages):
            return schema
        types: Schema = {
            column: dtype
            for column, dtype in self._predictor.columns.items()
            if column in schema and column not in declared and schema[column] != dtype
        }
        return self.source.schema({**declared, **types}) if types else schema

    @cached_property
    def _kept(self) -> Mapping[str, Any]:
        """What `_keep_schema` wrote for the run that is resumed; empty where there is none."""
        return self._begun if not self._fresh and self.checkpoints.exist() else {}

    @cached_property
    def _begun(self) -> Mapping[str, Any]:
        """The same, also where no checkpoint came of it."""
        try:
            kept = json.loads((self.folder / SCHEMA).read_text())
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    @property
    def _known_schema(self) -> Schema:
        """The columns kept for what is declared now."""
        kept = self._kept
        try:
            if kept["declared"] != self.pipeline.source.get("schema", {}):
                return {}
            return {column: parse_type(name) for column, name in kept["columns"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}

    @property
    def _kept_classes(self) -> tuple[str, ...]:
        """The classes kept, in their order."""
        kept = self._kept.get("classes", [])
        good = isinstance(kept, list) and all(isinstance(name, str) for name in kept)
        return tuple(kept) if good else ()

    def _keep_schema(self) -> None:
        """Write down which columns this run has, and which classes where the file leaves them out,
        for the one that resumes it."""
        columns = {column: type_name(dtype) for column, dtype in self.source_schema.items()}
        kept: dict[str, Any] = {
            "declared": self.pipeline.source.get("schema", {}),
            "columns": columns,
            "findings": dict(self.source.findings()),
            "writes": sorted(
                str(folder)
                for sink in (self.sink, self.dead_letters)
                if sink is not None
                for folder in _resolved(sink.folders())
            ),
        }
        if self.trains and not self._model_settings.classes and self.features.classes:
            kept["classes"] = list(self.features.classes)
        text = json.dumps(kept, indent=2)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic.write(self.folder / SCHEMA, text)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.folder / SCHEMA, error.strerror)

    @cached_property
    def stages(self) -> list[Stage]:
        """Bound stages, in order; in serving, without those that the model file contains."""
        stages = self._made_stages()
        schemas = [self.source_schema]
        for stage in stages:
            schemas.append(calls.bind(stage, schemas[-1]))
            require_names(schemas[-1], f"[scrub.{stage.name}] in {self.pipeline.file}")
        self._schemas = schemas
        return stages

    def _made_stages(self) -> list[Stage]:
        inside = self._predictor.stages if self._predictor is not None else ()
        return [
            _stage(name, table, self.pipeline)
            for name, table in self.pipeline.scrub.items()
            if name not in inside
        ]

    @cached_property
    def read_schema(self) -> Schema:
        """The columns of the source that somebody reads: in a run, the others are not decoded."""
        more = () if self._predictor is None else self._predictor.requires
        return projected(self.pipeline, self.source_schema, self.stages, more)

    @property
    def schema(self) -> Schema:
        """The columns after the last stage."""
        _ = self.stages  # they make it
        return self._schemas[-1]

    @cached_property
    def features(self) -> Features:
        """What the model reads, with globs spread over the columns that there are.

        Raises: UserError for a column that is not there or cannot be a feature.
        """
        model = self._model_settings
        sizes: dict[str, int] = {}
        for stage in self.stages:
            sizes |= getattr(stage, "sizes", dict)()
        for column in model.categories:
            if column not in sizes:
                raise UserError(
                    f"[model] category '{column}' is encoded by no 'categories' stage of [scrub]."
                    f"{nearest(column, sizes)}"
                )
        task, classes = self._task, self._classes
        features = Features(
            numeric=spread(model.numeric, self.schema, where="[model] numeric")
            if model.numeric
            else (),
            categories={column: sizes[column] for column in model.categories},
            target=model.target,
            task=task,
            classes=classes,
            scaled=tuple(c for s in self.stages if isinstance(s, Stateless) for c in s.scaled),
            threshold=0.5 if model.aim.value is None else model.aim.value,
            probabilities=self._probabilities,
            **nested_features(model, self.schema, sizes),
        )
        read = (*features.numeric, *features.categories, *features.nested)
        if model.target in read:
            raise UserError(
                f"[model] in {self.pipeline.file} reads its target '{model.target}' as a feature: "
                "what is to be predicted is not known then; take it out of the features."
            )
        if features.nested and self.pipeline.export is not None:
            raise UserError(
                f"[export] in {self.pipeline.file} writes models of numbers and categories, and "
                f"[model] reads images or lists ('{features.nested[0]}'): take [export] out."
            )
        return features

    @cached_property
    def _task(self) -> str:
        """Given, or by the target's type.

        Raises: UserError where the target is nothing that the task predicts.
        """
        model = self._model_settings
        require(self.schema, [model.target], where="[model] target")
        kind = self.schema[model.target]
        given, where = model.task, f"[model] task in {self.pipeline.file}"
        if given == "regression" and not kind.is_numeric():
            raise UserError(
                f"{where} is 'regression', which expects numbers in target '{model.target}', "
                f"got {kind}: for classes, set task to 'binary' or 'multiclass'."
            )
        if given != "regression" and (kind.is_nested() or kind.is_temporal() or kind == pl.Binary):
            raise UserError(
                f"{where} is '{given or 'binary'}', which expects text, numbers or true and false "
                f"in target '{model.target}', got {kind}."
            )
        task = given or labels.task_of(kind, len(model.classes or self._found_classes))
        if task == "regression" and model.classes:
            raise UserError(
                f"{where} is 'regression', and [model] classes are given: set task to "
                "'binary' or 'multiclass', or take classes out."
            )
        if task != "binary" and model.threshold is not None:
            raise UserError(
                f"[model] threshold in {self.pipeline.file} is for task binary, got '{task}'."
            )
        return task

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        """Given, as the run that is resumed has them, or found.

        Raises: UserError where they do not fit the task.
        """
        if self._task == "regression":
            return ()
        classes = self._model_settings.classes
        if not classes:
            return self._found_classes
        wanted = 2 if self._task == "binary" else len(classes)
        if len(classes) != wanted or len(set(classes)) < max(wanted, 2):
            raise UserError(
                f"[model] task in {self.pipeline.file} is '{self._task}', which expects "
                f"{'two' if self._task == 'binary' else 'two or more'} different [model] classes, "
                f"got {json.dumps(list(classes))}."
            )
        return classes

    @cached_property
    def _found_classes(self) -> tuple[str, ...]:
        """Classes that the file leaves out; none where the target's type asks for no classes.

        Raises: UserError where they cannot be known.
        """
        model = self._model_settings
        kind, file = self.schema[model.target], self.pipeline.file
        if kind == pl.Boolean:
            return labels.BOOLS
        if model.task is None and kind.is_numeric():
            return ()
        kept = self._kept_classes
        if kept:
            return kept
        if not self.source.repeatable():
            raise UserError(
                f"[model] in {file} leaves out classes, and what the source gives can be read only "
                'once: name them, as in classes = ["no", "yes"].'
            )
        found = self._look_at_labels()
        if self.source.endless():
            raise UserError(
                f"[model] in {file} leaves out classes, and the source has no end, so other labels "
                f"may come: name them; {found.words(model.target)}."
            )
        task = model.task or labels.task_of(kind, len(found.values))
        classes = labels.require_classes(found, task, model.target, f"[model] in {file}")
        log.info("[model] classes are %s: the labels of %s", json.dumps(list(classes)), found.where)
        return classes

    def _look_at_labels(self, most: int = labels.ROWS, *, staged: bool = True) -> labels.Labels:
        """With a source and stages that nothing else uses, so that those of the run stay as they
        are."""
        if isinstance(self.source, SharedSource) and self.source.shares:
            return labels.Labels(values=(), rows=0, whole=False)  # a member more moves the group
        schema, stages = self.source_schema, self._made_stages() if staged else []
        for stage in stages:
            schema = calls.bind(stage, schema)
        target = self._model_settings.target
        read = self.read_schema if staged else {target: schema[target]}
        with contextlib.closing(self._source()) as source:
            source.recall(self.source.findings())  # what was guessed and told is not again
            source.schema({**self.source_schema, REST: DROPPED})
            return labels.look(source, read, stages, target, most)

    @cached_property
    def collate(self) -> Callable[[Batch], Batch] | None:
        """The last step before the model: tensors to train with, a feed to predict with."""
        if self._predictor is not None:
            made: Callable[[Batch], Batch] = self._predictor.collate
            return made
        if not self.trains:
            return None
        collate = Collate(self.features)
        collate.bind(self.schema)
        return collate

    @cached_property
    def transfer(self) -> Callable[[Batch], Batch] | None:
        """What copies tensors to the model's device, ``[train] device`` or the learner's own; None
        where that is this processor."""
        if not self.trains:
            return None
        from engine.loading.transfer import transfer_to

        own = getattr(self._learner_kind[0], "device", "cpu")
        made = transfer_to(str(getattr(self._training, "device", own)))
        return None if made is None else made.apply

    @cached_property
    def learner(self) -> Learner:
        """Raises: UserError for a setting that does not fit."""
        kind, own = self._learner_kind
        sampling = (self.pipeline.train or {}).get("sampling")
        settings = validate(kind.Settings, own, "model", self.pipeline.file)
        with Calling("model", kind):
            made: Any = kind(settings, self._training, self.features)
        if self.augmentation is not None:
            encoders: dict[str, Any] = {}
            for stage in self.stages:
                encoders |= getattr(stage, "encoders", dict)()
            self.augmentation.attach(made, encoders)
        from models.learners.sampling import Balanced, SamplingSettings
        from models.challenge.challenger import Renewed, require_renewable

        how = self._forgets_on
        if how != "never":
            require_renewable(made, how, [stage.name for stage in self.stages])
        if sampling is not None:
            drawn = validate(SamplingSettings, sampling, "train.sampling", self.pipeline.file)
            made = Balanced(made, drawn)
        return made if how == "never" else Renewed(made, how)

    @property
    def _forgets_on(self) -> str:
        """[train] forget_on, of a learner that has it."""
        return str(getattr(self._training, "forget_on", "never"))

    @cached_property
    def _training(self) -> Any:
        """[train], as the learner has it."""
        table = {k: v for k, v in (self.pipeline.train or {}).items() if k != "sampling"}
        return validate(self._learner_kind[0].Training, table, "train", self.pipeline.file)

    @cached_property
    def augmentation(self) -> Any:
        """What the learner learns from in place of the rows; None without a table [augment.NAME].

        Raises: UserError for a setting that does not fit.
        """
        if not self.pipeline.augment:
            return None
        from models.augment import AUGMENTS, Augment, Augmentation

        made = []
        for name, table in self.pipeline.augment.items():
            own, section = dict(table), f"augment.{name}"
            kind = component(own.pop("kind", name), AUGMENTS, section, self.pipeline.file)
            require_contract(kind, Augment, section)
            settings = self.pipeline.settings(kind.Settings, own, section)
            with Calling(section, kind):
                made.append(kind(name, settings))
        return Augmentation(made)

    @cached_property
    def evaluation(self) -> Evaluation:
        """Raises: UserError for a column that is not there."""
        table = dict(self.pipeline.evaluation or {})
        if PART in self.schema:  # what a 'split' stage keeps apart is reported on apart
            parts = {part: f"{PART} = '{part}'" for part in ("train", "validation", "test")}
            table["slices"] = {**parts, **table.get("slices", {})}
        settings = self.pipeline.settings(Evaluation.Settings, table, "evaluation")
        evaluation = Evaluation(settings, self.features)
        # Columns are looked at before the stages inside a model file: a scaled one says nothing.
        evaluation.bind({**self.schema, **self._schemas[self.inside]})
        for stage in self.stages[: self.inside]:
            scaled = stage.scaled if isinstance(stage, Stateless) else ()
            for column in evaluation.needed:
                if column in scaled:
                    raise UserError(
                        f"[evaluation] in {self.pipeline.file} looks at column '{column}', which "
                        f"[scrub.{stage.name}] has put on another scale: put [scrub.{stage.name}] "
                        f"behind [scrub.{self.stages[self.inside - 1].name}], or look at a copy "
                        "that a 'derive' stage makes before it."
                    )
        return evaluation

    @property
    def _keep_raw_from(self) -> int | None:
        """The stage before which rows are kept raw: to prove a compressed model with, and to
        evaluate on."""
        evaluates = self.trains and bool(self.evaluation.needed)
        return self.inside if self.holdout is not None or evaluates else None

    @cached_property
    def sink(self) -> Sink | None:
        """Where results go."""
        if self.pipeline.sink is None:
            return None
        table = {k: v for k, v in self.pipeline.sink.items() if k not in OUTPUT}
        made: Sink = self._component("sink", table, _connectors().SINKS, self._provenance)
        return made

    @property
    def _provenance(self) -> dict[str, str]:
        """Headers for every record of a sink that has headers."""
        made = {"headrace.pipeline": self.pipeline.name}
        if self._predictor is not None:
            made["headrace.model"] = self._predictor.info()["version"]
        return made

    @cached_property
    def transaction(self) -> Callable[[Mark], bool] | None:
        """What commits results and positions together; None where the source commits by itself.

        Raises: UserError where source and sink have no transaction in common.
        """
        sink: Any = self.sink
        if sink is None or self._replay or not getattr(sink.settings, "exactly_once", False):
            return None
        sink.follow(self.source)
        commit: Callable[[Mark], bool] = sink.commit
        return commit

    @property
    def commit_seconds(self) -> float | None:
        """How often the transaction is committed; None without one."""
        sink: Any = self.sink
        return None if self.transaction is None else float(sink.settings.commit_interval)

    @cached_property
    def dead_letters(self) -> Sink:
        """Where rejected rows go."""
        settings = self.pipeline.dead_letters
        table: dict[str, Any] = {"kind": settings.kind, **(settings.model_extra or {})}
        if settings.kind == "files":
            table |= {"path": str(self.letters_path)}
        elif settings.path is not None:
            table["path"] = settings.path
        known = _connectors().LETTERS
        made: Any = self._component("dead_letters", table, known, self._provenance)
        if hasattr(made, "follow"):
            made.follow(self.sink)
        return cast("Sink", made)

    @property
    def letters_path(self) -> Path:
        """The folder of dead letters that are files."""
        return Path(self.pipeline.dead_letters.path or self.folder / "dead_letters")

    @cached_property
    def checkpoints(self) -> Checkpoints:
        """Where state is saved."""
        own = self.pipeline.checkpoint
        table = own if own.get("path") else {**own, "path": str(self.folder / "checkpoints")}
        return Checkpoints(self.pipeline.settings(Checkpoints.Settings, table, "checkpoint"))

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this pipeline to be resumed from; what is
        `Tolerated` is told where it differs. Without a state only positions and counts are in it:
        those go on with another schema, or other stages."""
        columns = {name: str(kind) for name, kind in self.source_schema.items()}
        read = {
            "schema": json.dumps(columns, sort_keys=True),
            "scrub": json.dumps(self.pipeline.scrub),
        }
        settings = {"pipeline": self.pipeline.name, **dict(self._settings())}
        if self._predictor is not None:
            read["served model"] = self._predictor.info()["digest"]
        if not self.keeps_state:
            return {**settings, **{part: Tolerated(text) for part, text in read.items()}}
        identity = {**settings, **read}
        for stage in self.stages:  # a stage may read a file that the pipeline's own only names
            digest: str | None = getattr(stage, "digest", _none)()
            if digest is not None:
                identity[f"file for stage {stage.name}"] = digest
        if self.trains:
            learned = {k: v for k, v in (self.pipeline.model or {}).items() if k != "threshold"}
            identity["model"] = json.dumps(learned, sort_keys=True)
            # What is around the learner; what is in it, it says itself.
            drawn = "sampling" in (self.pipeline.train or {})
            identity["[train] sampling"] = json.dumps("given" if drawn else "none")
            identity["[train] forget_on"] = json.dumps(self._forgets_on)
            if not self._model_settings.classes and self.features.classes:
                identity["classes"] = json.dumps(self.features.classes)
        return identity

    def _settings(self) -> Iterator[tuple[str, str]]:
        """Settings whose change is told or refused: ``[table] key`` and the value, as JSON."""
        made = self.source, self.sink, self.dead_letters  # which notes what they are given
        for section, (kind, _) in {"sink": (None, None), **self._given}.items():
            yield f"[{section}] kind", json.dumps(kind)
        in_effect, loader = made[0].in_effect(), self.pipeline.loader
        tables = [(section, settings) for section, (_, settings) in self._given.items()]
        tables.append(("loader", loader))
        if self.pipeline.sink is not None:
            tables.append(("sink", SinkTable.model_validate(self.pipeline.sink)))
        if self.trains:
            tables.append(("evaluation", self.evaluation.settings))
        for section, settings in tables:
            inner = section.startswith(PARTS)
            found = in_effect.get(section.removeprefix(PARTS), {}) if inner else in_effect
            found = found if section.startswith("source") else {}
            for key, (act, value) in watched(settings, found, learns=self.keeps_state).items():
                text = json.dumps(value, sort_keys=True)
                yield f"[{section}] {key}", text if act == "refuse" else Tolerated(text)

    @property
    def trains(self) -> bool:
        """Whether this pipeline learns."""
        return self.pipeline.model is not None and self.pipeline.infer is None

    @property
    def keeps_state(self) -> bool:
        """Whether what was read is in a state that only this engine has."""
        return self.trains or any(stage.snapshot() is not None for stage in self.stages)

    @property
    def inside(self) -> int:
        """Index of the first stage that a model file contains: from there on, all can be written
        into one."""
        index = len(self.stages)
        while index and self.stages[index - 1].transforms() is not None:
            index -= 1
        return index

    @cached_property
    def holdout(self) -> Holdout | None:
        """Rows kept to prove the compressed model with, and to choose a threshold by."""
        export = self.pipeline.export
        if not self.trains:
            return None
        if export is None:
            if not self._model_settings.aim.aims:
                return None
            export = ExportSettings()
        before, unlearned = self.stages[: self.inside], self._unlearned
        learned = self.source_schema.keys() - unlearned
        stateful = [stage.name for stage in before if stage.snapshot() is not None]
        if stateful:
            log.info(
                "Rows are held out by partition and position, not by content: no model file can "
                "hold the state of [scrub.%s]. An equal row that comes again may be learned once "
                "and judged once.",
                "] and [scrub.".join(stateful),
            )
        return Holdout(
            export.holdout,
            export.holdout_rows,
            besides={*unlearned, *self.source.origins()},
            by_content=not stateful,
            needed=[column for column in self._schemas[self.inside] if column in learned],
        )

    @property
    def _unlearned(self) -> set[str]:
        """Columns of the source that neither stages nor model read. What else reads them may change
        from run to run, and with it whether they are there."""
        others: dict[str, Any] = dict.fromkeys(("train", "evaluation", "export"))
        alone = self.pipeline.model_copy(update=others | {"sink": {"columns": []}, "augment": {}})
        learned = projected(alone, self.source_schema, self.stages)
        return self.source_schema.keys() - learned.keys()

    @cached_property
    def work(self) -> Work:
        """What the loop does."""
        columns = (self.pipeline.sink or {}).get("columns")
        if self._predictor is not None:
            self._predictor.bind(self.schema)
        _require_output(columns, {**self.schema, **self._answers})
        if self._predictor is not None:
            return Serving(self._predictor, columns)
        if not self.trains:
            return Cleaning(columns)
        return Training(
            self.learner,
            self.evaluation,
            columns=columns,
            answers=self.sink is not None,
            holdout=self.holdout,
            threshold=self._threshold,
            metrics=self.metrics,
        )

    @cached_property
    def _threshold(self) -> Threshold:
        rows = 0 if self.holdout is None else self.holdout.rows
        return Threshold(self._model_settings.aim, rows)

    @property
    def _probabilities(self) -> bool:
        """Whether the sink is given every class's probability."""
        return bool((self.pipeline.sink or {}).get("probabilities"))

    def loader(self) -> Loader:
        """A loader of this pipeline's batches, for a loop of your own: with all columns."""
        return self._loader(self.source_schema)

    def _loader(self, schema: Schema) -> Loader:
        self._may_hold()
        loader = Loader(
            self.source,
            schema=schema,
            stages=self.stages,
            collate=self.collate,
            transfer=self.transfer,
            settings=self.pipeline.loader,
            metrics=self.metrics,
            keep_raw_from=self._keep_raw_from,
            keep_records=True,
        )
        self._bound(loader, "source", self.source)
        return loader

    @cached_property
    def loop(self) -> Loop:
        """The loop, ready to resume and run."""
        loader = self._loader(self.read_schema)
        self._bound(loader, "sink", self.sink)
        self._bound(loader, "dead letters", self.dead_letters)
        if self.trains:
            self._count_replay(loader)
        return Loop(
            source=self.source,
            loader=loader,
            work=self.work,
            sink=self.sink,
            dead_letters=self.dead_letters,
            breaker=Breaker(self.pipeline.dead_letters, again=self._replay),
            checkpoints=self.checkpoints,
            identity=self.identity,
            metrics=self.metrics,
            heartbeat=self.heartbeat,
            watch=self._watch,
            keeps_state=self.keeps_state,
            transaction=self.transaction,
            commit_seconds=self.commit_seconds,
            judge=functools.partial(self._judge, loader),
            mend=self._mended if self._replay else None,
        )

    def _mended(self, saved: Saved) -> Saved:
        return mended(saved, self.identity, self._chain, self._earlier)

    @property
    def _chain(self) -> Chain:
        return Chain(stages=self.stages, features=self.features if self.trains else None)

    def _earlier(self, scrub: Mapping[str, Any]) -> Chain:
        """What stages of other tables would be, over the same columns."""
        run = Run(self.pipeline.model_copy(update={"scrub": scrub}))
        run.source, run.source_schema = self.source, self.source_schema
        if self.trains:
            run._found_classes = self._found_classes
        return run._chain

    def _judge(self, loader: Loader, spent: Account) -> Verdict | None:
        settings = {
            **self.pipeline.loader.model_dump(include={"batch_rows", "read_rows"}),
            "decode_threads": loader.threads.count,
            "every_seconds": self.checkpoints.settings.every_seconds,
            "threads": self._threads,
            "costs": self._costs,
        }
        device = str(getattr(self.learner, "device", "cpu")) if self.trains else "cpu"
        if self._predictor is not None and "CPU" not in self._predictor.info()["provider"]:
            device = "cuda"  # or TensorRT
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        return judge(spent, settings=settings, device=device, cores=cores)

    @property
    def _threads(self) -> str:
        """The setting of the model's threads, where it has several; or ""."""
        section = "train" if self.trains else "infer"
        table = getattr(self.pipeline, section) or {}
        knows = not self.trains or "threads" in self._learner_kind[0].Training.model_fields
        if self.trains:
            import torch

            several = torch.get_num_threads() > 1  # the learner is made
        else:
            several = self._predictor is not None and table.get("threads") != 1
        return f"{section}.threads" if several and knows else ""

    @property
    def _costs(self) -> str:
        """What another number of rows a batch costs, in words; or ""."""
        if not self.keeps_state:
            return ""
        by_batch = [stage.name for stage in self.stages if stage.snapshot() is not None]
        steps = self.trains and "step_rows" not in getattr(
            self._learner_kind[0].Training, "model_fields", {}
        )
        changed = [f"[scrub.{name}]" for name in by_batch] + ["the model's steps"] * steps
        said = "needs --fresh"
        return f"{said}; {', '.join(changed[:3])} learn by the batch" if changed else said

    @cached_property
    def heartbeat(self) -> Heartbeat:
        """What /livez looks at."""
        return Heartbeat(self._service_settings.stall_seconds, metrics=self.metrics)

    @cached_property
    def service(self) -> Service:
        """The metrics page."""
        settings = self._service_settings
        return Service(self.metrics, settings, live=self.heartbeat.health, ready=self._ready)

    @cached_property
    def _service_settings(self) -> Service.Settings:
        table = self.pipeline.service or {}
        return self.pipeline.settings(Service.Settings, table, "service")

    # -------------------------------------------------------------------------------------- deeds

    def run(self, *, fresh: bool = False) -> Summary:
        """Resume at the newest checkpoint, run to the end of the source (or a signal), report.

        Args:
            fresh: forget the checkpoints first, and start over.

        Raises: UserError, also where another engine works in a folder of this one; Flood,
            HeadraceError; what user code in stages or learners raises.
        """
        self._fresh = fresh
        self.assemble()  # what is wrong in the file is said before a folder is made
        loop = self.loop
        with self.exclusive():
            if fresh:
                self.forget()
            else:
                self.require_own()
            return self._run(loop)

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """For the block, nobody else writes where this run writes.

        Raises: UserError where somebody does.
        """
        files = [] if self.pipeline.export is None else [self.model_path]
        return locked(self._own_folders(), files)

    def require_own(self) -> None:
        """A run that begins takes away what an earlier one of its own wrote after no checkpoint,
        and nobody else's results.

        Raises: UserError where there are results of another.
        """
        if self.checkpoints.exist():
            return
        for sink in (self.sink, self.dead_letters):
            if sink is None or not sink.holds():
                continue
            foreign = _resolved(sink.folders()) - set(map(Path, self._begun.get("writes", [])))
            if foreign:
                raise UserError(
                    f"{foreign.pop()} holds results already, and {self.checkpoints.folder} no "
                    "checkpoint that they belong to: name another folder, or replace them with "
                    "--fresh."
                )

    def _run(self, loop: Loop) -> Summary:
        start = time.perf_counter()
        self._tell()
        if self.source.endless():
            self._rehearse()
        with self._serving(), self.heartbeat.watched():
            resumed = loop.resume()
            self._counts_before = dict(loop.totals.counts)
            if not resumed:
                self._keep_schema()
                self._tell_task()
            failed: CheckpointFailed | Flood | None = None
            try:
                loop.run()
                self._must_have_learned(loop)
            except CheckpointFailed as error:  # what was done is left all the same
                failed = error
            except Flood as error:
                failed = Flood(f"{error}{self._letters_at()}")
            bottleneck = loop.verdict()
            flooded = isinstance(failed, Flood)
            files, verdict = self._leave(stopped=loop.stopped or flooded)
            if self.pipeline.export is not None and (flooded or (loop.stopped and not failed)):
                log.log(
                    logging.WARNING if flooded else logging.INFO,
                    "No model is exported of a run %s. Its checkpoint is saved: 'headrace export "
                    "%s' writes one.",
                    "with so many rejected rows" if flooded else "that is stopped",
                    self.pipeline.file,
                )
        if failed is not None:
            raise failed
        return Summary(
            totals=loop.totals,
            seconds=time.perf_counter() - start,
            resumed=resumed,
            stopped=loop.stopped,
            report=self.evaluation.report() if self.trains else {},
            verdict=verdict,
            bottleneck=bottleneck,
            remarks=tuple(self.source.remarks()),
            files=files,
        )

    def _letters_at(self) -> str:
        """A sentence's end for whoever looks for the dead letters that it speaks of."""
        in_files = self.pipeline.dead_letters.kind == "files"
        return f" They are in {self.letters_path}." if in_files else ""

    @property
    def leaves_task_to_type(self) -> bool:
        """Whether this is a regression because its target holds numbers, and the file says none."""
        return self.trains and not self._model_settings.task and self._task == "regression"

    def _tell_task(self) -> None:
        """Which task was chosen, where the file leaves it out and the labels may be classes."""
        if not self.leaves_task_to_type:
            return
        if self._replay or self.source.endless() or not self.source.repeatable():
            return
        try:  # no stage is asked: it may be anybody's code, and this is no more than a hint
            found = self._look_at_labels(labels.READ_ROWS, staged=False)
        except (HeadraceError, OSError, KeyError):
            return  # the run itself will say it
        said = labels.few_numbers(found.values, self._model_settings.target, found.where)
        if said is not None:
            log.warning("%s", said)

    def _rehearse(self) -> None:
        """With stages that nothing else uses, so that those of the run stay as they are."""
        schema, stages = self.source_schema, self._made_stages()
        for stage in stages:
            schema = calls.bind(stage, schema)
        rehearse(self.read_schema, stages, self.collate)

    def _must_have_learned(self, loop: Loop) -> None:
        """Raises: Flood where a source has ended and no row of it all could be learned; also for
        reasons that are expected now and then, as a missing label."""
        totals = loop.totals
        allowed = self.pipeline.dead_letters.limit >= 1
        if not self.trains or loop.stopped or allowed or totals.learned + totals.predicted:
            return
        if totals.rejected:
            (stage, reason), n = max(totals.reasons.items(), key=lambda item: item[1])
            raise Flood(
                f"Ended: none of {counted(totals.read + totals.grown, 'row')} could be learned "
                f"({stage}: {reason}, {n:,}): mend the input, the schema or [model]; the dead "
                "letters say what was wrong with each row."
            )

    def forget(self) -> None:
        """Delete this pipeline's checkpoints; its results go with the next start, which is at the
        source's own."""
        if isinstance(self.source, SharedSource):
            self.source.start_over()
        self.checkpoints.forget()

    def restore(self) -> bool:
        """Put the newest checkpoint's state into stages and learner, to export or look at; whether
        there was one."""
        return self._load() is not None

    def _load(self) -> Mapping[str, Snapshot] | None:
        state = self.checkpoints.load(self.identity)
        if state is None:
            return None
        with self.checkpoints.restoring(state, lambda: {**dict.fromkeys(state), **self._state()}):
            restore(self.stages, state["stages"])
            self.work.load_state_dict(state["work"])
        self._mark = Mark(positions=state["positions"], stages=state["stages"])
        return state

    def try_resume(self) -> None:
        """Do of a resume all that can be done while nothing is written and no group is joined.

        Raises: UserError, HeadraceError where a run would; see `require_own`, too.
        """
        self.require_own()
        state = self._load()
        if state is None:
            return
        for sink, name in ((self.sink, "sink"), (self.dead_letters, "dead_letters")):
            if sink is not None:
                sink.require(state[name])
        if isinstance(self.source, SharedSource) and self.source.shares:
            return  # its group says where to go on, to members alone
        source = apart(self.pipeline.source)
        other = Run(self.pipeline.model_copy(update={"source": source}))
        _ = other.source_schema
        with contextlib.closing(other.source) as tried, contextlib.suppress(EndOfStream):
            tried.recognise(state["identities"])
            tried.seek(self._mark)
            tried.read(1, TRIED_BYTES, TRIED_SECONDS)

    def require_plain(self) -> None:
        """Raises: HeadraceError where a checkpoint cannot hold the state of stages or learner."""
        require_plain(self._state())

    def _state(self) -> dict[str, Snapshot]:
        """What `restore` restores."""
        return {"stages": snapshots(self.stages), "work": self.work.state_dict()}

    def export(self, path: Path | None = None) -> Path:
        """Write the model, scrub stages inside, as float32 ONNX. The stages must stand where the
        learner stands.

        Raises: UserError when nothing is trained, or a stage stands where it cannot be written.
        """
        from models.export.model import export

        if not self.trains:
            raise UserError(f"{self.pipeline.file} has no [model]: there is nothing to export.")
        path = path or self.model_path.with_suffix(".fp32.onnx")
        path.parent.mkdir(parents=True, exist_ok=True)
        inside = self.stages[self.inside :]
        transforms: list[Transform] = []
        for stage in inside:
            transforms += stage.transforms() or ()
        metadata = {
            "pipeline": self.pipeline.name,
            "version": self._version(),
            "stages": json.dumps([stage.name for stage in inside]),
            "before": json.dumps(
                [s.name for s in self.stages[: self.inside] if s.transforms() != ()]
            ),
            "columns": json.dumps({c: type_name(t) for c, t in self._schemas[self.inside].items()}),
            "reading": json.dumps(self.source.reading()),
            "mark": json.dumps(dict(self._mark.positions)),
        }
        frame = None if self.holdout is None else self.holdout.frame()
        learner: Any = self.learner
        made = export(path, learner, transforms, metadata, ranges=_ranges(frame))
        if self._model_settings.aim.aims:
            self._choose_threshold(made, frame)
        return made

    def _choose_threshold(self, model: Path, rows: pl.DataFrame | None) -> None:
        """Note the threshold in the model file that serves its aim best, on the held-out rows as
        the finished model scores them."""
        from models.export.model_files import annotate
        from models.serving.predictor import OnnxPredictor

        settings, threshold = self._model_settings.aim, None
        if rows is not None:
            label = pl.col(str(self.features.target)).cast(pl.String)
            rows = rows.filter(label.is_in(self.features.classes).fill_null(False))
            scores = OnnxPredictor(OnnxPredictor.Settings(model=str(model))).scores(rows)
            kind = pl.Enum(self.features.classes)
            target = (
                rows.select(label.cast(kind).to_physical().cast(pl.Int64)).to_series().to_numpy()
            )
            there = np.isfinite(scores)
            threshold = chosen(settings, target[there], scores[there].astype(np.float64))
        if threshold is None:
            log.warning(
                "[model] threshold is chosen by %d held-out rows of each class at the least, and "
                "there are fewer: 0.5 serves. Train longer, or raise [export] holdout.",
                MIN_ROWS,
            )
        annotate(model, {"threshold": repr(0.5 if threshold is None else threshold)})

    def compress(self, model: Path | None = None) -> Any:
        """Compress the exported model where the gate allows; the verdict.

        Raises: UserError without an [export] section.
        """
        from models.compress.gate import Compression, compress

        if self.pipeline.export is None:
            raise UserError(
                f"{self.pipeline.file} holds out no rows to prove a compressed model with: add an "
                "[export] section and run it again."
            )
        rows = None if self.holdout is None else self.holdout.frame()
        table = self.pipeline.export.compress or {}
        settings = self.pipeline.settings(Compression, table, "export.compress")
        model = model or self.model_path.with_suffix(".fp32.onnx")
        return compress(model, rows, settings, path=self.model_path)

    @property
    def model_path(self) -> Path:
        """Where the served model goes."""
        export = self.pipeline.export
        given = None if export is None else export.path
        return Path(given or self.folder / "model.onnx")

    # ------------------------------------------------------------------------------------ inside

    _schemas: list[Schema]
    _mark = Mark()
    _counts_before: Mapping[tuple[str, str], int] = {}
    _fresh = False

    @cached_property
    def _predictor(self) -> Any:
        if self.pipeline.infer is None:
            return None
        from models.serving.predictor import OnnxPredictor

        settings = self.pipeline.settings(OnnxPredictor.Settings, self.pipeline.infer, "infer")
        made = OnnxPredictor(settings)
        made.features = replace(made.features, probabilities=self._probabilities)
        if missing := [
            f"[scrub.{name}]" for name in made.before if name not in self.pipeline.scrub
        ]:
            log.warning(
                "%s was trained behind %s, which no model file holds: its rows must come as those "
                "leave them, or be served by a pipeline that has them.",
                settings.model,
                " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1]))),
            )
        return made

    @cached_property
    def _learner_kind(self) -> tuple[type[Any], dict[str, Any]]:
        """The learner's class, and its own keys of [model]."""
        from models import LEARNERS

        table = dict(self.pipeline.model or {})
        kind = component(table.pop("kind", "tabular"), LEARNERS, "model")
        require_contract(kind, Learner, "model", ("Settings", "Training"))
        own = {key: value for key, value in table.items() if key not in ModelSettings.model_fields}
        return kind, own

    @cached_property
    def _model_settings(self) -> ModelSettings:
        table = self.pipeline.model or {}
        kind, own = self._learner_kind
        for key in own:
            if key not in kind.Settings.model_fields:
                known = [*ModelSettings.model_fields, *kind.Settings.model_fields]
                raise UserError(
                    f"{place(self.pipeline.file, 'model', key)} has no key '{key}'."
                    f"{nearest(key, known)}"
                )
        common = {key: value for key, value in table.items() if key not in own}
        return validate(ModelSettings, common, "model", self.pipeline.file)

    def _component(
        self,
        section: str,
        table: dict[str, Any],
        known: Mapping[str, str],
        provenance: Mapping[str, str] | None = None,
    ) -> Any:
        table = dict(table)
        name = table.pop("kind", None)
        if name is None:
            raise UserError(
                f"[{section}] in {self.pipeline.file} needs the key 'kind', which is not there."
                f"{nearest('', known)}"
            )
        kind = component(name, known, section)
        require_contract(kind, Source if section.startswith("source") else Sink, section)
        if provenance and "provenance" in kind.Settings.model_fields:
            table["provenance"] = {**provenance, **table.get("provenance", {})}
        self._given[section] = name, self.pipeline.settings(kind.Settings, table, section)
        with Calling(section, kind):
            return kind(self._given[section][1])

    def _modes(self) -> None:
        pipeline = self.pipeline
        for section in ("train", "evaluation", "export"):
            if getattr(pipeline, section) is not None and pipeline.model is None:
                raise UserError(f"{self._head(section)} needs a [model], which is not there.")
        if pipeline.augment and pipeline.model is None:
            raise UserError(
                f"{self._head('augment')} needs a [model] that learns, which is not there."
            )
        if pipeline.infer is not None and pipeline.train is not None and pipeline.base is None:
            maker = made_by(pipeline.file, "train") or made_by(pipeline.file, "infer")
            if maker is not None:
                raise UserError(f"{maker} a pipeline trains or serves; take it out.")
            raise UserError(
                f"{pipeline.file} has both [train] and [infer]: a pipeline trains or serves; put "
                "[infer] in a file of its own with base = this file."
            )

    def _head(self, section: str) -> str:
        """How a sentence about a table begins: the file, or who made the table over it."""
        made = made_by(self.pipeline.file, section)
        return f"[{section}] in {self.pipeline.file}" if made is None else f"{made} it"

    def _ready(self) -> Health:
        health = self.heartbeat.health()
        if health.ok and isinstance(self.source, SharedSource):
            trouble = self.source.trouble()
            return health if trouble is None else Health(False, trouble)
        return health

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        self.metrics.up.set(1)
        if self.pipeline.service is None:
            yield
            return
        self.service.start()
        try:
            yield
        finally:
            self.metrics.up.set(0)
            self.service.stop()

    def _bound(self, loader: Loader, name: str, part: object) -> None:
        """A component with a buffer of its own comes under the loader's budget."""
        if isinstance(part, Buffered):
            budget, held = loader.budget, part
            held.bound(max(1, int(budget.total * SHARES[name])))
            budget.watch(name, lambda: held.nbytes)
            self.metrics.watch_memory(name, lambda: held.nbytes)

    def _count_replay(self, loader: Loader) -> None:
        """Raises: UserError where the replay will not fit into the budget."""
        if isinstance(self.learner, Buffered):
            self.learner.bound(loader.budget.total // 8)
        memory: Callable[[], Mapping[str, int]] = getattr(self.learner, "memory", dict)
        full = getattr(self.learner, "replay_bytes", 0)
        if full > loader.budget.total // 2:
            raise UserError(
                f"[train] replay_rows come to {full:,} bytes, and half of [loader] memory_budget "
                f"is {loader.budget.total // 2:,}: lower replay_rows, or raise the budget."
            )
        if full:
            loader.budget.watch("replay", lambda: memory()["replay"])

    def _tell(self) -> None:
        """Gauges that are known from the start, and callbacks for those that are asked."""
        memory = getattr(self.learner, "memory", dict) if self.trains else dict
        for part in memory():
            self.metrics.watch_memory(part, functools.partial(_part, memory, part))
        if self._predictor is not None:
            self.metrics.model.labels(**self._predictor.info()).set(1)
        for stage in self.stages:
            watch = functools.partial(_state_bytes, stage)
            self.metrics.watch_memory(f"stage {stage.name}", watch)
        if self.trains:
            from engine.loading.transfer import watch_devices

            watch_devices(self.metrics)
            self.metrics.watch_memory("evaluation", lambda: self.evaluation.nbytes)
        budget = self.loop.loader.budget
        self.metrics.watch_memory("loader", lambda: budget.used)
        self.metrics.memory_budget_bytes.set(budget.total)

    def _own_folders(self) -> Iterator[Path]:
        """Where a run writes. What it takes away again (results after a checkpoint, old
        checkpoints) must not be another run's."""
        yield self.folder
        yield self.checkpoints.folder
        for sink in (self.sink, self.dead_letters):
            yield from () if sink is None else sink.folders()

    def _version(self) -> str:
        mark = json.dumps(dict(self._mark.positions), sort_keys=True)
        return hashlib.sha256(mark.encode()).hexdigest()[:8]

    def _leave(self, *, stopped: bool) -> tuple[dict[str, Path], Any]:
        """Write what a finished run leaves behind; a stopped one leaves its checkpoint and
        numbers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {"checkpoints": Path(self.checkpoints.settings.path)}
        verdict = None
        if (
            self.sink is not None
            and self.pipeline.sink is not None
            and "path" in self.pipeline.sink
        ):
            files["predictions" if self.pipeline.model else "rows"] = Path(
                self.pipeline.sink["path"]
            )
        if self.loop.totals.rejected and self.pipeline.dead_letters.kind == "files":
            files["dead letters"] = self.letters_path
        remarking: list[object] = [*self.stages, *([self.learner] if self.trains else [])]
        for part in remarking if self.loop.totals.read else ():
            for remark in getattr(part, "remarks", list)():
                log.warning("%s", remark)
        for remark in self._filled_early():
            log.warning("%s", remark)
        if self.trains:
            files |= self._report()
            self._mark = self.loop.mark
            for stage in self.stages:  # the prepare thread may have run ahead of the last batch
                if stage.name in self._mark.stages:
                    stage.restore(self._mark.stages[stage.name])
            if not stopped and self.pipeline.export is not None:
                files["model"] = self.export()
                if self.pipeline.export.compress is not None:
                    verdict = self.compress()
                    files["served model"] = self.model_path
                    files["verdict"] = self.folder / "verdict.json"
                    verdict.to_json(files["verdict"])
        files["metrics"] = self.folder / "metrics.prom"
        self.metrics.render_final(files["metrics"])
        return files, verdict

    def _filled_early(self) -> Iterator[str]:
        """A sentence for each stage that, in this run, filled values it knew nothing of."""
        for (stage, what), n in self.loop.totals.counts.items():
            if what == UNTAUGHT and n > self._counts_before.get((stage, what), 0):
                yield (
                    f"[scrub.{stage}] filled {counted(n, 'value')} of columns that it had seen no "
                    "value of yet, with 0, \"\" or false: give a 'missing' stage the 'value' that "
                    "should stand there, or let the data begin with rows that are whole."
                )

    def _report(self) -> dict[str, Path]:
        told = self.evaluation.report()
        tell_quality(self.metrics, told)
        counted: dict[str, dict[str, int]] = {}
        for (stage, what), n in self.loop.totals.counts.items():
            counted.setdefault(stage, {})[what] = n
        files = {"report": self.folder / "report.json"}
        told = {**told, "counted": counted}
        atomic.write(files["report"], json.dumps(told, indent=2, default=str))
        history = self.evaluation.history()
        if history.height > 1:
            files["picture"] = self.folder / "error.png"
            report.picture(history, files["picture"], title=self.pipeline.name)
        return files


def _resolved(folders: Iterable[Path]) -> set[Path]:
    return {folder.resolve() for folder in folders}


def _part(memory: Callable[[], Mapping[str, int]], name: str) -> int:
    return memory()[name]


def _state_bytes(stage: Stage) -> int:
    return size_of(stage.snapshot())


def _none() -> None:
    return None


def _connectors() -> Any:
    import connectors

    return connectors


def _stage(name: str, table: Mapping[str, Any], pipeline: Pipeline) -> Stage:
    own = dict(table)
    kind = component(own.pop("kind", name), STAGES, f"scrub.{name}", pipeline.file)
    require_contract(kind, Stage, f"scrub.{name}")
    settings = pipeline.settings(kind.Settings, own, f"scrub.{name}")
    with Calling(f"scrub.{name}", kind):
        made: Stage = kind(name, settings)
    return made


def _answers(features: Features) -> Schema:
    """Columns that a model of these features adds."""
    scores = np.empty((0, features.outputs) if features.task == "multiclass" else 0)
    return {column.name: column.dtype for column in features.answers(scores)}


def _require_output(columns: Sequence[str] | None, schema: Schema) -> None:
    known = {**schema, **dict.fromkeys(RESERVED, pl.String())}
    require(known, columns or (), where="[sink] columns")


def _ranges(frame: pl.DataFrame | None) -> dict[str, tuple[float, float]]:
    if frame is None:
        return {}
    numeric = [c for c, kind in frame.schema.items() if kind.is_numeric() and not c.startswith("_")]
    ends = frame.with_columns(pl.selectors.decimal().cast(pl.Float64)).select(
        pl.col(numeric).min().name.prefix("a"), pl.col(numeric).max().name.prefix("b")
    )
    row = ends.row(0, named=True)
    return {c: (row["a" + c], row["b" + c]) for c in numeric if row["a" + c] is not None}


__all__ = ["Run", "Summary"]
