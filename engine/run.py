"""From a pipeline file to a running pipeline: the one place that knows which class a word in the
file means."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from engine import calls
from engine.config import (
    ExportSettings,
    ModelSettings,
    Pipeline,
    SinkTable,
    detached_source,
    key_location,
    load_class,
    made_by,
    validate,
)
from engine.loading.collate import Collate
from engine.loading.loader import Loader
from engine.loading.mix import Mix, sources_of
from engine.loading.nested_tensors import array_bytes, nested_features
from engine.observing.metrics import Metrics
from engine.observing.service import Health, Heartbeat, Service
from engine.observing.timing import TimingSnapshot
from engine.projection import projected
from engine.quality.evaluation import Evaluation
from engine.quality.threshold import MIN_ROWS, Threshold, choose_threshold
from engine.running import error_plot, labels
from engine.running.bottleneck import Bottleneck, diagnose
from engine.running.checkpoint import (
    CheckpointFailed,
    Checkpoints,
    Saved,
    Tolerated,
    require_plain,
    size_of,
)
from engine.running.holdout import Holdout
from engine.running.loop import Loop, Work
from engine.running.migration import BoundStages, migrate
from engine.running.reject_limit import RejectLimit, TooManyRejects
from engine.running.totals import Totals
from engine.running.warm_up import warm_up
from engine.running.work import Cleaning, Serving, Training, report_quality, written
from engine.scrub import STAGES
from engine.scrub.base import restore, snapshots
from engine.scrub.columns import expand_columns
from engine.scrub.fusion import FILLED_BEFORE_LEARNING
from engine.system import atomic, environment
from engine.system.lock import locked
from engine.types import (
    DROPPED,
    PART,
    RESERVED,
    WILDCARD,
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
    Transaction,
    Transform,
    UserError,
    nearest,
    parse_schema,
    parse_type,
    require,
    require_names,
    type_name,
)
from engine.types.changes import compared_settings
from engine.types.contract_checks import require_contract
from engine.types.plural import counted

log = logging.getLogger("headrace.run")
SCHEMA_FILE = "schema.json"
"""File in the pipeline's folder: the columns that a run began with."""
OUTPUT_FILES = (SCHEMA_FILE, "report.json", *error_plot.FILES, "metrics.prom", "compression.json")
"""All files of that folder."""
MEMORY_SHARES = {"source": 0.25, "sink": 0.25, "dead letters": 0.0625}
"""Part of the memory budget that a component with a buffer of its own may fill."""
TRIED_BYTES, TRIED_SECONDS = 1 << 20, 1.0
"""Of one read, to try whether a source can go on where a checkpoint ends."""
PARTS = "source.sources."
"""Before the name of a source of a mix, in the name of its section."""
COMMON_SINK_KEYS = ("columns", "probabilities")
"""Keys of [sink] that say what is written, whatever its kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run came to.

    Attributes:
        totals: what became of every record, restarts included.
        seconds: of this run.
        resumed, stopped: whether it began at a checkpoint; whether a signal ended it.
        report: the evaluation's numbers, or {} without a model in training.
        compression: the compression gate's, or None.
        bottleneck: what has held the run, or None where nothing was done.
        remarks: of the source, see `engine.types.Source.remarks`.
        files: what it left: checkpoint, model, predictions, dead letters, picture, metrics.
    """

    totals: Totals
    seconds: float
    resumed: bool
    stopped: bool
    report: Mapping[str, Any] = field(default_factory=dict)
    compression: Any = None
    bottleneck: Bottleneck | None = None
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
        self._check_sections()

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
        if self.source.unbounded() or not self.source.can_be_reread():
            return False
        if any(kind != pl.String for kind in self.source_schema.values()):
            return False
        with contextlib.closing(self._source()) as source:
            source.schema({})
            return not source.sample(1, 1.0)

    def _assemble(self) -> None:
        _ = self.source
        self._check_outputs()
        self._check_feedback()
        self._check_shared()
        self._check_shuffle()
        self._check_epochs()
        self._check_batch_memory()
        _ = (self.evaluation, self.holdout) if self.trains else ()
        _ = self.work, self.collate, self.transfer, self.transaction, self.dead_letters
        _ = self.checkpoints, self._service_settings
        self._check_export()
        self._check_sink_schema()

    # ------------------------------------------------------------------------------------- parts

    @cached_property
    def source(self) -> Source:
        """Raises: UserError for a wrong setting or a place that is not there."""
        return self._dead_letter_source() if self._replay else self._source()

    def _source(self) -> Source:
        table = {k: v for k, v in self.pipeline.source.items() if k != "schema"}
        if table.get("kind") == "mix":
            return self._mixed(table)
        return self._build_source("source", table)

    def _mixed(self, table: dict[str, Any]) -> Mix:
        sources = {
            name: (self._build_source(f"{PARTS}{name}", own), weight)
            for name, (own, weight) in sources_of(table, self.pipeline.file).items()
        }
        own = {k: v for k, v in table.items() if k not in ("kind", "sources")}
        self._given["source"] = "mix", self.pipeline.settings(Mix.Settings, own, "source")
        return Mix(self._given["source"][1], sources)

    def _build_source(self, section: str, table: dict[str, Any]) -> Source:
        source: Source = self._component(section, table, _connectors().SOURCES)
        source.keep_metadata()  # for the dead letters
        return source

    def _dead_letter_source(self) -> Source:
        """The dead letters, to be read as the pipeline's own source reads.

        Raises: UserError where there are none, or they are of a kind that cannot be read back.
        """
        from connectors.dead_letters import FileDeadLetterSource, KafkaDeadLetterSource

        own: Any = self._source()
        letters: Any = self.dead_letters
        kind = self.pipeline.dead_letters.kind
        if kind == "files":
            return FileDeadLetterSource(
                self.dead_letters_path, own, own.parts if isinstance(own, Mix) else None
            )
        if kind == "kafka" and "topics" in type(own.settings).model_fields:
            return KafkaDeadLetterSource(letters.settings.topic, own.settings)
        raise UserError(
            f"Dead letters of kind '{kind}' cannot be replayed into a source of kind "
            f"'{self.pipeline.source['kind']}': expected files, or topics on both sides."
        )

    def _check_outputs(self) -> None:
        """Whether what the run leaves can be written; told before anything is read."""
        atomic.require_folder(self.folder, "folder")
        atomic.require_folder(self.checkpoints.folder, "[checkpoint] path")
        for name in OUTPUT_FILES:
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

    def _check_feedback(self) -> None:
        """Whether what is written comes back as input."""
        for table, sink in (("sink", self.sink), ("dead_letters", self.dead_letters)):
            key_location = (
                None if sink is None or self._replay else self.source.reads_output_of(sink)
            )
            if key_location is not None:
                raise UserError(
                    f"[{table}] in {self.pipeline.file} writes to {key_location}, and [source] "
                    f"reads it: "
                    "every row would come again, without an end. Give it another one."
                )
        for named, file in () if self._replay else self._written():
            if self.source.reads_file(file):
                raise UserError(
                    f"{named} in {self.pipeline.file} writes files such as '{file}', and [source] "
                    "path leads to them: they would be read as input. Write to another folder, or "
                    "let [source] path say more exactly what is read."
                )

    def _written(self) -> Iterator[tuple[str, Path]]:
        """Files that a run leaves, and what says so."""
        for name in OUTPUT_FILES:
            yield "folder", self.folder / name
        yield "[checkpoint] path", self.checkpoints.folder / "checkpoint-00000001.hrc"
        for table, sink in (("[sink]", self.sink), ("[dead_letters]", self.dead_letters)):
            for file in () if sink is None else sink.files():
                yield table, file
        if self.pipeline.export is not None:
            yield "[export] path", self.model_path
            yield "[export] path", self.model_path.with_suffix(".fp32.onnx")

    def _check_shared(self) -> None:
        source = self.source
        if (
            not isinstance(source, SharedSource)
            or not source.shares_partitions
            or source.tracks_owners
        ):
            return
        if self.keeps_state:
            raise UserError(
                f"{self.pipeline.file} keeps a state (it trains, or a stage learns) and shares its "
                "partitions: give this engine a name in the group that stays, [source] "
                "group_instance_id."
            )

    def _check_epochs(self) -> None:
        if self.source.epochs == 1:
            return
        for stage in self.stages:
            if stage.single_pass:
                raise UserError(
                    f"[source] epochs in {self.pipeline.file} reads every row again, and "
                    f"[scrub.{stage.name}] would take it for a copy or for late: write the cleaned "
                    "rows first, with a pipeline that has no model, or leave the stage out."
                )

    def _check_shuffle(self) -> None:
        if not self.pipeline.loader.shuffle_rows:
            return
        if not self.trains:
            raise UserError(
                f"[loader] shuffle_rows in {self.pipeline.file} is for training: expected a "
                "[train] section, or take it out; results keep the order of their rows."
            )
        if isinstance(self.source, SharedSource) and self.source.shares_partitions:
            raise UserError(
                f"[loader] shuffle_rows in {self.pipeline.file} needs partitions that stay, and "
                "[source] subscribe shares them: take one of the two out."
            )

    def _check_batch_memory(self) -> None:
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

    def _check_export(self) -> None:
        """What would fail at the end, hours later."""
        export = self.pipeline.export
        if export is None or not self.trains:
            return
        learner_class, _ = self._learner_class
        if learner_class.build is Learner.build:
            raise UserError(
                f"[export] in {self.pipeline.file} needs a learner that writes ONNX, and "
                f"{learner_class.__name__} has no method 'build': take [export] out."
            )
        if export.compress is not None:
            from models.compress.gate import Compression

            self.pipeline.settings(Compression, export.compress, "export.compress")

    def _check_sink_schema(self) -> None:
        """Whether the sink can hold the columns that it will get."""
        columns = (self.pipeline.sink or {}).get("columns")
        if self.sink is None:
            return
        mine = {**dict.fromkeys(RESERVED, pl.String()), **self.schema}
        added = self._model_columns
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
        all_columns = {**mine, **added}
        self.sink.bind({name: all_columns[name] for name in written(all_columns, columns, added)})

    @property
    def _model_columns(self) -> Schema:
        """Columns that the model adds for the sink."""
        if self._predictor is not None:
            return {**_model_columns(self._predictor.features), "model_version": pl.String()}
        return _model_columns(self.features) if self.trains else {}

    @cached_property
    def source_schema(self) -> Schema:
        """The columns that are decoded: in a run that is resumed, those of its beginning, whatever
        would be guessed now.

        Raises: UserError for a name that headrace itself adds.
        """
        schema = self._resolve_schema()
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

    def _resolve_schema(self) -> Schema:
        declared = parse_schema(self.pipeline.source.get("schema", {}))
        known = self._known_schema
        if not known:
            return self._model_schema(declared)
        self.source.restore_schema_state(self._saved_schema.get("findings", {}))
        try:
            return self.source.schema({**known, WILDCARD: DROPPED})
        except UserError as error:
            log.warning("The columns of the run so far do not hold any more: %s", error)
            self.source.restore_schema_state({})
            return self.source.schema(declared)

    def _model_schema(self, declared: Schema) -> Schema:
        """Columns that a model file reads as they come from the source, and that nobody declared,
        have the types that the model learned them in: a guess from other rows may differ. Cells are
        read as they were then."""
        if self._predictor is not None:
            self.source.use_parse_settings(self._predictor.parse_settings)
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
    def _saved_schema(self) -> Mapping[str, Any]:
        """What `_save_schema` wrote for the run that is resumed; empty where there is none."""
        return self._schema_file if not self._fresh and self.checkpoints.exists() else {}

    @cached_property
    def _schema_file(self) -> Mapping[str, Any]:
        """The same, also where no checkpoint came of it."""
        try:
            kept = json.loads((self.folder / SCHEMA_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    @property
    def _known_schema(self) -> Schema:
        """The columns kept for what is declared now."""
        kept = self._saved_schema
        try:
            if kept["declared"] != self.pipeline.source.get("schema", {}):
                return {}
            return {column: parse_type(name) for column, name in kept["columns"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}

    @property
    def _kept_classes(self) -> tuple[str, ...]:
        """The classes kept, in their order."""
        kept = self._saved_schema.get("classes", [])
        good = isinstance(kept, list) and all(isinstance(name, str) for name in kept)
        return tuple(kept) if good else ()

    def _save_schema(self) -> None:
        """Write down which columns this run has, and which classes where the file leaves them out,
        for the one that resumes it."""
        columns = {column: type_name(dtype) for column, dtype in self.source_schema.items()}
        kept: dict[str, Any] = {
            "declared": self.pipeline.source.get("schema", {}),
            "columns": columns,
            "findings": dict(self.source.schema_state()),
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
            atomic.write(self.folder / SCHEMA_FILE, text)
        except OSError as error:
            log.warning("%s cannot be written: %s", self.folder / SCHEMA_FILE, error.strerror)

    @cached_property
    def stages(self) -> list[Stage]:
        """Bound stages, in order; in serving, without those that the model file contains."""
        stages = self._build_stages()
        schemas = [self.source_schema]
        for stage in stages:
            schemas.append(calls.bind(stage, schemas[-1]))
            require_names(schemas[-1], f"[scrub.{stage.name}] in {self.pipeline.file}")
        self._schemas = schemas
        return stages

    def _build_stages(self) -> list[Stage]:
        export_from = self._predictor.stages if self._predictor is not None else ()
        return [
            _stage(name, table, self.pipeline)
            for name, table in self.pipeline.scrub.items()
            if name not in export_from
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
        vocabulary_sizes: dict[str, int] = {}
        for stage in self.stages:
            vocabulary_sizes |= stage.vocabulary_sizes()
        for column in model.categories:
            if column not in vocabulary_sizes:
                raise UserError(
                    f"[model] category '{column}' is encoded by no 'categories' stage of [scrub]."
                    f"{nearest(column, vocabulary_sizes)}"
                )
        task, classes = self._task, self._classes
        features = Features(
            numeric=expand_columns(model.numeric, self.schema, where="[model] numeric")
            if model.numeric
            else (),
            categories={column: vocabulary_sizes[column] for column in model.categories},
            target=model.target,
            task=task,
            classes=classes,
            scaled=tuple(c for s in self.stages for c in s.scaled),
            threshold=0.5
            if model.threshold_settings.value is None
            else model.threshold_settings.value,
            probabilities=self._probabilities,
            **nested_features(model, self.schema, vocabulary_sizes),
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
        dtype = self.schema[model.target]
        given, where = model.task, f"[model] task in {self.pipeline.file}"
        if given == "regression" and not dtype.is_numeric():
            raise UserError(
                f"{where} is 'regression', which expects numbers in target '{model.target}', "
                f"got {dtype}: for classes, set task to 'binary' or 'multiclass'."
            )
        if given != "regression" and (
            dtype.is_nested() or dtype.is_temporal() or dtype == pl.Binary
        ):
            raise UserError(
                f"{where} is '{given or 'binary'}', which expects text, numbers or true and false "
                f"in target '{model.target}', got {dtype}."
            )
        task = given or labels.task_of(dtype, len(model.classes or self._inferred_classes))
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
            return self._inferred_classes
        wanted = 2 if self._task == "binary" else len(classes)
        if len(classes) != wanted or len(set(classes)) < max(wanted, 2):
            raise UserError(
                f"[model] task in {self.pipeline.file} is '{self._task}', which expects "
                f"{'two' if self._task == 'binary' else 'two or more'} different [model] classes, "
                f"got {json.dumps(list(classes))}."
            )
        return classes

    @cached_property
    def _inferred_classes(self) -> tuple[str, ...]:
        """Classes that the file leaves out; none where the target's type asks for no classes.

        Raises: UserError where they cannot be known.
        """
        model = self._model_settings
        dtype, file = self.schema[model.target], self.pipeline.file
        if dtype == pl.Boolean:
            return labels.BOOLS
        if model.task is None and dtype.is_numeric():
            return ()
        kept = self._kept_classes
        if kept:
            return kept
        if not self.source.can_be_reread():
            raise UserError(
                f"[model] in {file} leaves out classes, and what the source gives can be read only "
                'once: name them, as in classes = ["no", "yes"].'
            )
        labels_found = self._sample_labels()
        if self.source.unbounded():
            raise UserError(
                f"[model] in {file} leaves out classes, and the source has no end, so other labels "
                f"may come: name them; {labels_found.words(model.target)}."
            )
        task = model.task or labels.task_of(dtype, len(labels_found.values))
        classes = labels.require_classes(labels_found, task, model.target, f"[model] in {file}")
        log.info(
            "[model] classes are %s: the labels of %s",
            json.dumps(list(classes)),
            labels_found.where,
        )
        return classes

    def _sample_labels(self, most: int = labels.ROWS, *, staged: bool = True) -> labels.Labels:
        """With a source and stages that nothing else uses, so that those of the run stay as they
        are."""
        if isinstance(self.source, SharedSource) and self.source.shares_partitions:
            return labels.Labels(values=(), rows=0, whole=False)  # a member more moves the group
        schema, stages = self.source_schema, self._build_stages() if staged else []
        for stage in stages:
            schema = calls.bind(stage, schema)
        target = self._model_settings.target
        read = self.read_schema if staged else {target: schema[target]}
        with contextlib.closing(self._source()) as source:
            source.restore_schema_state(
                self.source.schema_state()
            )  # what was guessed and told is not again
            source.schema({**self.source_schema, WILDCARD: DROPPED})
            return labels.look(source, read, stages, target, most)

    @cached_property
    def collate(self) -> Callable[[Batch], Batch] | None:
        """The last step before the model: tensors to train with, a feed to predict with."""
        if self._predictor is not None:
            apply: Callable[[Batch], Batch] = self._predictor.collate
            return apply
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

        transfer = transfer_to(self._learner_class[0].device_of(self._training))
        return None if transfer is None else transfer.apply

    @cached_property
    def learner(self) -> Learner:
        """Raises: UserError for a setting that does not fit."""
        learner_class, own = self._learner_class
        sampling = (self.pipeline.train or {}).get("sampling")
        settings = validate(learner_class.Settings, own, "model", self.pipeline.file)
        learner: Learner = calls.construct(
            "model", learner_class, Learner, settings, self._training, self.features
        )
        if self.augmentation is not None:
            encoders: dict[str, Any] = {}
            for stage in self.stages:
                encoders |= stage.encoders()
            self.augmentation.attach(learner, encoders)
        from models.challenge.challenger import (
            Challengeable,
            ChampionChallenger,
            require_challengeable,
        )
        from models.learners.sampling import ResampledLearner, SamplingSettings

        how = self._forgets_on
        if how != "never":
            require_challengeable(learner, how, [stage.name for stage in self.stages])
        if sampling is not None:
            drawn = validate(SamplingSettings, sampling, "train.sampling", self.pipeline.file)
            learner = ResampledLearner(learner, drawn)
        if how == "never":
            return learner
        assert isinstance(learner, Challengeable), "require_challengeable has looked"
        return ChampionChallenger(learner, how)

    @property
    def _forgets_on(self) -> str:
        """[train] forget_on, of a learner that has it."""
        from models.challenge.challenger import ChallengeSettings

        training = self._training
        return training.forget_on if isinstance(training, ChallengeSettings) else "never"

    @cached_property
    def _training(self) -> Any:
        """[train], as the learner has it."""
        table = {k: v for k, v in (self.pipeline.train or {}).items() if k != "sampling"}
        return validate(self._learner_class[0].Training, table, "train", self.pipeline.file)

    @cached_property
    def augmentation(self) -> Any:
        """What the learner learns from in place of the rows; None without a table [augment.NAME].

        Raises: UserError for a setting that does not fit.
        """
        if not self.pipeline.augment:
            return None
        from models.augment import AUGMENTS, Augment, Augmentation

        augments = []
        for name, table in self.pipeline.augment.items():
            own, section = dict(table), f"augment.{name}"
            augment_class = load_class(own.pop("kind", name), AUGMENTS, section, self.pipeline.file)
            require_contract(augment_class, Augment, section)
            settings = self.pipeline.settings(augment_class.Settings, own, section)
            augments.append(calls.construct(section, augment_class, Augment, name, settings))
        return Augmentation(augments)

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
        evaluation.bind({**self.schema, **self._schemas[self.export_from]})
        for stage in self.stages[: self.export_from]:
            scaled = stage.scaled
            for column in evaluation.needed:
                if column in scaled:
                    raise UserError(
                        f"[evaluation] in {self.pipeline.file} looks at column '{column}', which "
                        f"[scrub.{stage.name}] has put on another scale: put [scrub.{stage.name}] "
                        f"behind [scrub.{self.stages[self.export_from - 1].name}], or look at a "
                        f"copy "
                        "that a 'derive' stage makes before it."
                    )
        return evaluation

    @property
    def _keep_raw_from(self) -> int | None:
        """The stage before which rows are kept raw: to prove a compressed model with, and to
        evaluate on."""
        evaluates = self.trains and bool(self.evaluation.needed)
        return self.export_from if self.holdout is not None or evaluates else None

    @cached_property
    def sink(self) -> Sink | None:
        """Where results go."""
        if self.pipeline.sink is None:
            return None
        table = {k: v for k, v in self.pipeline.sink.items() if k not in COMMON_SINK_KEYS}
        sink: Sink = self._component("sink", table, _connectors().SINKS, self._provenance)
        return sink

    @property
    def _provenance(self) -> dict[str, str]:
        """Headers for every record of a sink that has headers."""
        headers = {"headrace.pipeline": self.pipeline.name}
        if self._predictor is not None:
            headers["headrace.model"] = self._predictor.info()["version"]
        return headers

    @cached_property
    def transaction(self) -> Transaction | None:
        """What commits results and positions together; None where the source commits by itself.

        Raises: UserError where source and sink have no transaction in common.
        """
        if self.sink is None or self._replay:
            return None
        return self.sink.transaction(self.source)

    @cached_property
    def dead_letters(self) -> Sink:
        """Where rejected rows go."""
        settings = self.pipeline.dead_letters
        table: dict[str, Any] = {"kind": settings.kind, **(settings.model_extra or {})}
        if settings.kind == "files":
            table |= {"path": str(self.dead_letters_path)}
        elif settings.path is not None:
            table["path"] = settings.path
        known = _connectors().DEAD_LETTER_SINKS
        sink: Sink = self._component("dead_letters", table, known, self._provenance)
        sink.join_transaction(self.sink)
        return sink

    @property
    def dead_letters_path(self) -> Path:
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
        columns = {name: str(dtype) for name, dtype in self.source_schema.items()}
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
            digest = stage.digest()
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
            for key, (act, value) in compared_settings(
                settings, found, learns=self.keeps_state
            ).items():
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
    def export_from(self) -> int:
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
            if not self._model_settings.threshold_settings.is_chosen:
                return None
            export = ExportSettings()
        before, unread = self.stages[: self.export_from], self._unread_columns
        learned = self.source_schema.keys() - unread
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
            ignored={*unread, *self.source.origin_columns()},
            by_content=not stateful,
            needed=[column for column in self._schemas[self.export_from] if column in learned],
        )

    @property
    def _unread_columns(self) -> set[str]:
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
        _require_output(columns, {**self.schema, **self._model_columns})
        if self._predictor is not None:
            return Serving(self._predictor, columns)
        if not self.trains:
            return Cleaning(columns)
        return Training(
            self.learner,
            self.evaluation,
            columns=columns,
            emit_predictions=self.sink is not None,
            holdout=self.holdout,
            threshold=self._threshold,
            metrics=self.metrics,
        )

    @cached_property
    def _threshold(self) -> Threshold:
        rows = 0 if self.holdout is None else self.holdout.rows
        return Threshold(self._model_settings.threshold_settings, rows)

    @property
    def _probabilities(self) -> bool:
        """Whether the sink is given every class's probability."""
        return bool((self.pipeline.sink or {}).get("probabilities"))

    def loader(self) -> Loader:
        """A loader of this pipeline's batches, for a loop of your own: with all columns."""
        return self._loader(self.source_schema)

    def _loader(self, schema: Schema) -> Loader:
        self._check_batch_memory()
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
        self._limit_memory(loader, "source", self.source)
        return loader

    @cached_property
    def loop(self) -> Loop:
        """The loop, ready to resume and run."""
        loader = self._loader(self.read_schema)
        self._limit_memory(loader, "sink", self.sink)
        self._limit_memory(loader, "dead letters", self.dead_letters)
        if self.trains:
            self._count_replay(loader)
        return Loop(
            source=self.source,
            loader=loader,
            work=self.work,
            sink=self.sink,
            dead_letters=self.dead_letters,
            reject_limit=RejectLimit(self.pipeline.dead_letters, again=self._replay),
            checkpoints=self.checkpoints,
            identity=self.identity,
            metrics=self.metrics,
            heartbeat=self.heartbeat,
            watch=self._watch,
            keeps_state=self.keeps_state,
            transaction=self.transaction,
            diagnose=functools.partial(self._diagnose, loader),
            mend=self._mended if self._replay else None,
        )

    def _mended(self, saved: Saved) -> Saved:
        return migrate(saved, self.identity, self._chain, self._earlier)

    @property
    def _chain(self) -> BoundStages:
        return BoundStages(stages=self.stages, features=self.features if self.trains else None)

    def _earlier(self, scrub: Mapping[str, Any]) -> BoundStages:
        """What stages of other tables would be, over the same columns."""
        run = Run(self.pipeline.model_copy(update={"scrub": scrub}))
        run.source, run.source_schema = self.source, self.source_schema
        if self.trains:
            run._inferred_classes = self._inferred_classes
        return run._chain

    def _diagnose(self, loader: Loader, timing: TimingSnapshot) -> Bottleneck | None:
        settings = {
            **self.pipeline.loader.model_dump(include={"batch_rows", "read_rows"}),
            "decode_threads": loader.threads.count,
            "interval": self.checkpoints.settings.interval,
            "threads": self._threads,
            "costs": self._batch_rows_caveat,
        }
        device = self.learner.device if self.trains else "cpu"
        if self._predictor is not None and "CPU" not in self._predictor.info()["provider"]:
            device = "cuda"  # or TensorRT
        cores = environment.cores()
        return diagnose(timing, settings=settings, device=device, cores=cores)

    @property
    def _threads(self) -> str:
        """The setting of the model's threads, where it has several; or ""."""
        section = "train" if self.trains else "infer"
        table = getattr(self.pipeline, section) or {}
        knows = not self.trains or self._learner_class[0].sets_threads
        if self.trains:
            import torch

            several = torch.get_num_threads() > 1  # the learner is made
        else:
            several = self._predictor is not None and table.get("threads") != 1
        return f"{section}.threads" if several and knows else ""

    @property
    def _batch_rows_caveat(self) -> str:
        """What another number of rows a batch costs, in words; or ""."""
        if not self.keeps_state:
            return ""
        by_batch = [stage.name for stage in self.stages if stage.snapshot() is not None]
        steps = self.trains and self._learner_class[0].learns_by_batch
        changed = [f"[scrub.{name}]" for name in by_batch] + ["the model's steps"] * steps
        caveat = "needs --fresh"
        return f"{caveat}; {', '.join(changed[:3])} learn by the batch" if changed else caveat

    @cached_property
    def heartbeat(self) -> Heartbeat:
        """What /livez looks at."""
        return Heartbeat(self._service_settings.stall_timeout, metrics=self.metrics)

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

        Raises: UserError, also where another engine works in a folder of this one; TooManyRejects,
            HeadraceError; what user code in stages or learners raises.
        """
        self._fresh = fresh
        self.assemble()  # what is wrong in the file is said before a folder is made
        loop = self.loop
        with self.exclusive():
            if fresh:
                self.delete_all()
            else:
                self.require_own_output()
            return self._run(loop)

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """For the block, nobody else writes where this run writes.

        Raises: UserError where somebody does.
        """
        files = [] if self.pipeline.export is None else [self.model_path]
        return locked(self._own_folders(), files)

    def require_own_output(self) -> None:
        """A run that begins takes away what an earlier one of its own wrote after no checkpoint,
        and nobody else's results.

        Raises: UserError where there are results of another.
        """
        if self.checkpoints.exists():
            return
        for sink in (self.sink, self.dead_letters):
            if sink is None or not sink.has_output():
                continue
            foreign = _resolved(sink.folders()) - set(
                map(Path, self._schema_file.get("writes", []))
            )
            if foreign:
                raise UserError(
                    f"{foreign.pop()} holds results already, and {self.checkpoints.folder} no "
                    "checkpoint that they belong to: name another folder, or replace them with "
                    "--fresh."
                )

    def _run(self, loop: Loop) -> Summary:
        start = time.perf_counter()
        self._register_gauges()
        if self.source.unbounded():
            self._warm_up()
        with self._serving(), self.heartbeat.watched():
            resumed = loop.resume()
            self._counts_before = dict(loop.totals.counts)
            if not resumed:
                self._save_schema()
                self._tell_task()
            failed: CheckpointFailed | TooManyRejects | None = None
            try:
                loop.run()
                self._require_learned(loop)
            except CheckpointFailed as error:  # what was done is left all the same
                failed = error
            except TooManyRejects as error:
                failed = TooManyRejects(f"{error}{self._letters_at()}")
            bottleneck = loop.bottleneck()
            too_many = isinstance(failed, TooManyRejects)
            files, compression = self._write_outputs(stopped=loop.stopped or too_many)
            if self.pipeline.export is not None and (too_many or (loop.stopped and not failed)):
                log.log(
                    logging.WARNING if too_many else logging.INFO,
                    "No model is exported of a run %s. Its checkpoint is saved: 'headrace export "
                    "%s' writes one.",
                    "with so many rejected rows" if too_many else "that is stopped",
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
            compression=compression,
            bottleneck=bottleneck,
            remarks=tuple(self.source.remarks()),
            files=files,
        )

    def _letters_at(self) -> str:
        """A sentence's end for whoever looks for the dead letters that it speaks of."""
        in_files = self.pipeline.dead_letters.kind == "files"
        return f" They are in {self.dead_letters_path}." if in_files else ""

    @property
    def leaves_task_to_type(self) -> bool:
        """Whether this is a regression because its target holds numbers, and the file says none."""
        return self.trains and not self._model_settings.task and self._task == "regression"

    def _tell_task(self) -> None:
        """Which task was chosen, where the file leaves it out and the labels may be classes."""
        if not self.leaves_task_to_type:
            return
        if self._replay or self.source.unbounded() or not self.source.can_be_reread():
            return
        try:  # no stage is asked: it may be anybody's code, and this is no more than a hint
            found = self._sample_labels(labels.READ_ROWS, staged=False)
        except (HeadraceError, OSError, KeyError):
            return  # the run itself will say it
        said = labels.few_numbers(found.values, self._model_settings.target, found.where)
        if said is not None:
            log.warning("%s", said)

    def _warm_up(self) -> None:
        """With stages that nothing else uses, so that those of the run stay as they are."""
        schema, stages = self.source_schema, self._build_stages()
        for stage in stages:
            schema = calls.bind(stage, schema)
        warm_up(self.read_schema, stages, self.collate)

    def _require_learned(self, loop: Loop) -> None:
        """Raises: TooManyRejects where a source has ended and no row of it all could be learned;
        also for reasons that are expected now and then, as a missing label."""
        totals = loop.totals
        allowed = self.pipeline.dead_letters.limit >= 1
        if not self.trains or loop.stopped or allowed or totals.learned + totals.predicted:
            return
        if totals.rejected:
            (stage, reason), n = max(totals.reasons.items(), key=lambda item: item[1])
            raise TooManyRejects(
                f"Ended: none of {counted(totals.read + totals.added, 'row')} could be learned "
                f"({stage}: {reason}, {n:,}): mend the input, the schema or [model]; the dead "
                "letters say what was wrong with each row."
            )

    def delete_all(self) -> None:
        """Delete this pipeline's checkpoints; its results go with the next start, which is at the
        source's own."""
        if isinstance(self.source, SharedSource):
            self.source.reset_offsets()
        self.checkpoints.delete_all()

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

        Raises: UserError, HeadraceError where a run would; see `require_own_output`, too.
        """
        self.require_own_output()
        state = self._load()
        if state is None:
            return
        for sink, name in ((self.sink, "sink"), (self.dead_letters, "dead_letters")):
            if sink is not None:
                sink.require(state[name])
        if isinstance(self.source, SharedSource) and self.source.shares_partitions:
            return  # its group says where to go on, to members alone
        source = detached_source(self.pipeline.source)
        other = Run(self.pipeline.model_copy(update={"source": source}))
        _ = other.source_schema
        with contextlib.closing(other.source) as tried, contextlib.suppress(EndOfStream):
            tried.match_identities(state["identities"])
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
        export_from = self.stages[self.export_from :]
        transforms: list[Transform] = []
        for stage in export_from:
            transforms += stage.transforms() or ()
        metadata = {
            "pipeline": self.pipeline.name,
            "version": self._version(),
            "stages": json.dumps([stage.name for stage in export_from]),
            "before": json.dumps(
                [s.name for s in self.stages[: self.export_from] if s.transforms() != ()]
            ),
            "columns": json.dumps(
                {c: type_name(t) for c, t in self._schemas[self.export_from].items()}
            ),
            "parse_settings": json.dumps(self.source.parse_settings()),
            "mark": json.dumps(dict(self._mark.positions)),
        }
        frame = None if self.holdout is None else self.holdout.frame()
        learner: Any = self.learner
        model_file = export(path, learner, transforms, metadata, ranges=_ranges(frame))
        if self._model_settings.threshold_settings.is_chosen:
            self._choose_threshold(model_file, frame)
        return model_file

    def _choose_threshold(self, model: Path, rows: pl.DataFrame | None) -> None:
        """Note the threshold in the model file that serves its aim best, on the held-out rows as
        the finished model scores them."""
        from models.export.model_files import annotate
        from models.serving.predictor import OnnxPredictor

        settings, threshold = self._model_settings.threshold_settings, None
        if rows is not None:
            label = pl.col(str(self.features.target)).cast(pl.String)
            rows = rows.filter(label.is_in(self.features.classes).fill_null(False))
            scores = OnnxPredictor(OnnxPredictor.Settings(model=str(model))).scores(rows)
            classes = pl.Enum(self.features.classes)
            target = (
                rows.select(label.cast(classes).to_physical().cast(pl.Int64)).to_series().to_numpy()
            )
            finite = np.isfinite(scores)
            threshold = choose_threshold(
                settings, target[finite], scores[finite].astype(np.float64)
            )
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
        predictor = OnnxPredictor(settings)
        predictor.features = replace(predictor.features, probabilities=self._probabilities)
        if missing := [
            f"[scrub.{name}]" for name in predictor.before if name not in self.pipeline.scrub
        ]:
            log.warning(
                "%s was trained behind %s, which no model file holds: its rows must come as those "
                "leave them, or be served by a pipeline that has them.",
                settings.model,
                " and ".join(filter(None, (", ".join(missing[:-1]), missing[-1]))),
            )
        return predictor

    @cached_property
    def _learner_class(self) -> tuple[type[Any], dict[str, Any]]:
        """The learner's class, and its own keys of [model]."""
        from models import LEARNERS

        table = dict(self.pipeline.model or {})
        learner_class = load_class(table.pop("kind", "tabular"), LEARNERS, "model")
        require_contract(learner_class, Learner, "model", ("Settings", "Training"))
        own = {key: value for key, value in table.items() if key not in ModelSettings.model_fields}
        return learner_class, own

    @cached_property
    def _model_settings(self) -> ModelSettings:
        table = self.pipeline.model or {}
        learner_class, own = self._learner_class
        for key in own:
            if key not in learner_class.Settings.model_fields:
                known = [*ModelSettings.model_fields, *learner_class.Settings.model_fields]
                raise UserError(
                    f"{key_location(self.pipeline.file, 'model', key)} has no key '{key}'."
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
        component_class = load_class(name, known, section)
        contract = Source if section.startswith("source") else Sink
        require_contract(component_class, contract, section)
        if provenance and "provenance" in component_class.Settings.model_fields:
            table["provenance"] = {**provenance, **table.get("provenance", {})}
        self._given[section] = (
            name,
            self.pipeline.settings(component_class.Settings, table, section),
        )
        return calls.construct(section, component_class, contract, self._given[section][1])

    def _check_sections(self) -> None:
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
            unavailable_reason = self.source.unavailable_reason()
            return health if unavailable_reason is None else Health(False, unavailable_reason)
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

    def _limit_memory(self, loader: Loader, name: str, part: object) -> None:
        """A component with a buffer of its own comes under the loader's budget."""
        if isinstance(part, Buffered):
            budget, held = loader.budget, part
            held.limit_memory(max(1, int(budget.total * MEMORY_SHARES[name])))
            budget.watch(name, lambda: held.nbytes)
            self.metrics.watch_memory(name, lambda: held.nbytes)

    def _count_replay(self, loader: Loader) -> None:
        """Raises: UserError where the replay will not fit into the budget."""
        if isinstance(self.learner, Buffered):
            self.learner.limit_memory(loader.budget.total // 8)
        memory, full = self.learner.memory, self.learner.replay_bytes
        if full > loader.budget.total // 2:
            raise UserError(
                f"[train] replay_rows come to {full:,} bytes, and half of [loader] memory_budget "
                f"is {loader.budget.total // 2:,}: lower replay_rows, or raise the budget."
            )
        if full:
            loader.budget.watch("replay", lambda: memory()["replay"])

    def _register_gauges(self) -> None:
        """Gauges that are known from the start, and callbacks for those that are asked."""
        memory: Callable[[], Mapping[str, int]] = self.learner.memory if self.trains else dict
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

    def _write_outputs(self, *, stopped: bool) -> tuple[dict[str, Path], Any]:
        """Write what a finished run leaves behind; a stopped one leaves its checkpoint and
        numbers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        files = {"checkpoints": Path(self.checkpoints.settings.path)}
        compression = None
        if (
            self.sink is not None
            and self.pipeline.sink is not None
            and "path" in self.pipeline.sink
        ):
            files["predictions" if self.pipeline.model else "rows"] = Path(
                self.pipeline.sink["path"]
            )
        if self.loop.totals.rejected and self.pipeline.dead_letters.kind == "files":
            files["dead letters"] = self.dead_letters_path
        remarking: list[Stage | Learner] = [*self.stages, *([self.learner] if self.trains else [])]
        for part in remarking if self.loop.totals.read else ():
            for remark in part.remarks():
                log.warning("%s", remark)
        for remark in self._early_fill_warnings():
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
                    compression = self.compress()
                    files["served model"] = self.model_path
                    files["verdict"] = self.folder / "compression.json"
                    compression.to_json(files["verdict"])
        files["metrics"] = self.folder / "metrics.prom"
        self.metrics.render_final(files["metrics"])
        return files, compression

    def _early_fill_warnings(self) -> Iterator[str]:
        """A sentence for each stage that, in this run, filled values it knew nothing of."""
        for (stage, name), n in self.loop.totals.counts.items():
            if name == FILLED_BEFORE_LEARNING and n > self._counts_before.get((stage, name), 0):
                yield (
                    f"[scrub.{stage}] filled {counted(n, 'value')} of columns that it had seen no "
                    "value of yet, with 0, \"\" or false: give a 'missing' stage the 'value' that "
                    "should stand there, or let the data begin with rows that are whole."
                )

    def _report(self) -> dict[str, Path]:
        report_out = self.evaluation.report()
        report_quality(self.metrics, report_out)
        counted: dict[str, dict[str, int]] = {}
        for (stage, name), n in self.loop.totals.counts.items():
            counted.setdefault(stage, {})[name] = n
        files = {"report": self.folder / "report.json"}
        report_out = {**report_out, "counted": counted}
        atomic.write(files["report"], json.dumps(report_out, indent=2, default=str))
        history = self.evaluation.history()
        if history.height > 1:
            files["picture"] = error_plot.write(history, self.folder, title=self.pipeline.name)
        return files


def _resolved(folders: Iterable[Path]) -> set[Path]:
    return {folder.resolve() for folder in folders}


def _part(memory: Callable[[], Mapping[str, int]], name: str) -> int:
    return memory()[name]


def _state_bytes(stage: Stage) -> int:
    return size_of(stage.snapshot())


def _connectors() -> Any:
    import connectors

    return connectors


def _stage(name: str, table: Mapping[str, Any], pipeline: Pipeline) -> Stage:
    own = dict(table)
    stage_class = load_class(own.pop("kind", name), STAGES, f"scrub.{name}", pipeline.file)
    require_contract(stage_class, Stage, f"scrub.{name}")
    settings = pipeline.settings(stage_class.Settings, own, f"scrub.{name}")
    stage: Stage = calls.construct(f"scrub.{name}", stage_class, Stage, name, settings)
    return stage


def _model_columns(features: Features) -> Schema:
    """Columns that a model of these features adds."""
    scores = np.empty((0, features.outputs) if features.task == "multiclass" else 0)
    return {column.name: column.dtype for column in features.prediction_columns(scores)}


def _require_output(columns: Sequence[str] | None, schema: Schema) -> None:
    known = {**schema, **dict.fromkeys(RESERVED, pl.String())}
    require(known, columns or (), where="[sink] columns")


def _ranges(frame: pl.DataFrame | None) -> dict[str, tuple[float, float]]:
    if frame is None:
        return {}
    numeric = [
        c for c, dtype in frame.schema.items() if dtype.is_numeric() and not c.startswith("_")
    ]
    ends = frame.with_columns(pl.selectors.decimal().cast(pl.Float64)).select(
        pl.col(numeric).min().name.prefix("a"), pl.col(numeric).max().name.prefix("b")
    )
    row = ends.row(0, named=True)
    return {c: (row["a" + c], row["b" + c]) for c in numeric if row["a" + c] is not None}


__all__ = ["Run", "Summary"]
