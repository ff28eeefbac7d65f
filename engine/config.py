"""The pipeline file: one TOML table per component, every key overridable, every mistake one
sentence.

A part's own settings live with the part (`Kind.Settings`); this module knows only the frame they
hang in. Order of precedence, first wins: ``--set a.b=c``, environment (``HEADRACE_A__B=c``), the
file, the file named by its ``base``. Each may take a table of those after it out: ``export=false``.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from engine.observing.logs import hide
from engine.quality.threshold import ThresholdSettings
from engine.settings_docs import expected, expected_in, field_of
from engine.types import Duration, Name, Names, Settings, UserError, nearest
from engine.types.changes import Fixed, Free, Learned, Warned
from engine.types.settings import Untyped, key_pairs
from engine.user_code.contract_checks import IMPORT_STRING
from engine.user_code.imports import imported

S = TypeVar("S", bound=Settings)
ENVIRONMENT = "HEADRACE_"
PATH_KEYS = ("path", "folder", "versions", "model", "vocabulary", "weights", "schema_file")
"""The keys that name files and folders, in tables of any depth."""
NO_FILE_PATH = re.compile(r"~$|~\w*/|[A-Za-z][A-Za-z0-9+.-]+://")
CODE_KEYS = ("kind", "format", "module", "loss")
"""Keys whose value may be an import string."""
MAX_VALUE_CHARS = 200
"""Characters of a wrong value that a sentence shows."""
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "learning_rate": ("lr",),
    "eta": ("lr",),
    "weight_decay": ("l2",),
    "batch_size": ("batch_rows", "replay_batch"),
    "batchsize": ("batch_rows",),
    "max_wait": ("max_delay",),
    "linger_ms": ("linger",),
    "brokers": ("bootstrap_servers",),
    "servers": ("bootstrap_servers",),
    "consumer_group": ("group_id",),
    "offset": ("start",),
    "username": ("user",),
    "sasl_username": ("user",),
    "sasl_password": ("password",),
    "schema_registry": ("registry",),
    "acks": ("exactly_once",),
    "file": ("path",),
    "files": ("path",),
    "filename": ("path",),
    "directory": ("path", "folder"),
    "dir": ("path", "folder"),
    "output": ("path",),
    "input": ("path",),
    "sep": ("delimiter",),
    "separator": ("delimiter",),
    "type": ("kind",),
    "label": ("target",),
    "labels": ("classes",),
    "y": ("target",),
    "features": ("numeric",),
    "categorical": ("categories",),
    "hidden": ("layers",),
    "hidden_layers": ("layers",),
    "hidden_size": ("layers", "width"),
    "units": ("width",),
    "dim": ("width",),
    "channels": ("width",),
    "filters": ("width",),
    "kernel_size": ("size",),
    "num_heads": ("heads",),
    "num_layers": ("blocks",),
    "num_experts": ("count",),
    "top_k": ("top",),
    "norm": ("normalization",),
    "objective": ("task",),
    "random_state": ("seed",),
    "random_seed": ("seed",),
    "num_epochs": ("epochs",),
    "n_epochs": ("epochs",),
    "num_threads": ("threads",),
    "n_jobs": ("threads",),
    "workers": ("threads", "decode_threads"),
    "num_workers": ("decode_threads",),
    "prefetch": ("prefetch_bytes",),
    "shuffle": ("shuffle_rows",),
    "buffer_size": ("shuffle_rows", "buffer_memory"),
    "grad_clip": ("max_grad_norm",),
    "clip_grad_norm": ("max_grad_norm",),
    "mixed_precision": ("precision",),
    "gpu": ("device",),
    "memory": ("memory_budget",),
    "model_path": ("model",),
    "address": ("host",),
    "bind": ("host",),
    "every_seconds": ("interval",),
    "every_batches": ("interval_batches",),
    "give_up": ("delivery_timeout",),
    "registry_patience": ("registry_retry_timeout",),
    "patience": ("rebalance_timeout",),
    "session": ("session_timeout",),
    "member": ("group_instance_id",),
    "lost": ("auto_offset_reset",),
    "bootstrap": ("bootstrap_servers",),
    "group": ("group_id",),
    "join": ("subscribe",),
    "isolation": ("isolation_level",),
    "security": ("security_protocol",),
    "sasl": ("sasl_mechanism",),
    "ca_file": ("ssl_cafile",),
    "cert_file": ("ssl_certfile",),
    "key_file": ("ssl_keyfile",),
    "fetch_bytes": ("fetch_max_bytes",),
    "buffer_bytes": ("buffer_memory",),
    "compression": ("compression_type",),
    "poll": ("poll_timeout",),
    "turn": ("rows_per_turn",),
    "stall_seconds": ("stall_timeout",),
    "share": ("contamination",),
    "trees": ("n_trees",),
    "given": ("predictors",),
    "hashes": ("num_hashes",),
    "piece": ("shingle_size",),
    "distance": ("max_distance",),
    "clip_norm": ("max_grad_norm",),
    "convolutions": ("conv_channels",),
    "ema": ("ema_decay",),
    "copies": ("max_copies",),
    "desired": ("desired_dist",),
    "rate": ("sampling_rate",),
    "smote": ("smote_neighbors",),
    "embedding": ("embedding_dim",),
    "skip": ("skip_connection",),
    "delta": ("huber_delta", "confidence"),
    "holdout_every": ("holdout",),
    "l2": ("weight_decay",),
    "warmup": ("warmup_steps",),
}
"""Key in other tools -> key here."""
OWNERS = {("train", "kind"): "Its kind is that of the model: [model] kind."}
"""Table and key that it does not have -> where the key is."""
OFF = object()
"""What false makes of a table below it, until all are merged."""
KEPT_FALSE = ("compress",)
"""Keys of tables that may be false themselves."""
BATCH_DELAY = 0.05
"""The most seconds that a record of an endless source waits for others, unless the file says
otherwise."""
BLOCK_DELAY = 10.0
"""The same with `shuffle_rows`: a half-empty block cannot be shuffled well."""


class LoaderSettings(Settings):
    """``[loader]``

    Attributes:
        batch_rows [records]: raw records per batch; the last batch of a bounded source may be
            smaller.
        batch_bytes: a batch is closed before its raw records are more than this ("8MiB"); an eighth
            of the budget unless given.
        max_delay: how long the oldest record of a batch may wait for the batch to fill; with 0 a
            batch takes what is there, and goes. Unless given, 50 ms for an endless source (10 s
            with `shuffle_rows`, or the value of `latency_objective` if set), and until the batch is
            full for a bounded one.
        latency_objective: the goal for 99 of 100 records, from a record's arrival to the end of
            its batch: a batch is closed early if waiting longer would miss it, judging by how long
            batches of its size have taken.
        memory_budget: bytes that all buffers of this process together may hold ("256MiB"): read
            ahead, batches, rows for the sink, replay.
        prefetch_bytes: depth of each of the loader's queues; unless given, it follows what both
            sides wait for.
        decode_threads: threads that decode one batch together; unless given, the number follows, up
            to the cores.
        shuffle_rows [records]: records of a block that is shuffled before it is cut into batches; 0
            keeps the order. A block is a quarter of the budget at most.
        shuffle_seed: of the order within the blocks of `shuffle_rows`.
        read_rows [records]: records asked of the source at a time.
        poll_timeout: how long one read may wait for data; also how soon an idle pipeline notices a
            stop.
    """

    batch_rows: Learned[int] = Field(1024, ge=1)
    batch_bytes: Free[ByteSize | None] = Field(None, ge=1)
    max_delay: Free[Duration | None] = Field(None, ge=0)
    latency_objective: Free[Duration | None] = Field(None, gt=0)
    memory_budget: Free[ByteSize] = Field(ByteSize(256 << 20), ge=1 << 16)
    prefetch_bytes: Free[ByteSize | None] = Field(None, ge=1)
    decode_threads: Free[int | None] = Field(None, ge=1, le=256)
    shuffle_rows: Learned[int] = Field(0, ge=0)
    shuffle_seed: Learned[int] = Field(0, ge=0)
    read_rows: Free[int] = Field(65_536, ge=1)
    poll_timeout: Free[Duration] = Field(0.1, gt=0, le=5)

    def of(self, *, unbounded: bool) -> Self:
        """Return the settings for an endless or a bounded source: in a bounded one no record
        waits forever."""
        if not unbounded or self.max_delay is not None:
            return self
        if self.shuffle_rows:
            return self.model_copy(update={"max_delay": BLOCK_DELAY})
        if self.latency_objective is not None:
            return self
        return self.model_copy(update={"max_delay": BATCH_DELAY})

    @property
    def answers_soon(self) -> bool:
        """Whether what arrives while the model is at work is to join the next batch, and not to
        wait behind many small ones that are closed already: with an objective, and where batches
        wait for less than by default."""
        soon = self.max_delay is not None and self.max_delay < BATCH_DELAY
        return soon or self.latency_objective is not None

    @property
    def batch_limit(self) -> int:
        """The raw bytes at which a batch is closed."""
        return int(self.batch_bytes or max(1, int(self.memory_budget) // 8))


class SourceTable(Settings):
    """``[source]``: what every kind has; its other keys are the kind's own.

    Attributes:
        kind: ``files``, ``kafka``, ``mix``, ``memory``, or a class of your own,
            ``package.module:Class``.
        schema: column -> type of what is decoded: ``[source.schema]``; ``"*"`` is any other
            column. Files say it themselves unless given. Types: bool, int8 to int64, uint8 to
            uint64, float32, float64, string, bytes, date, time, datetime (of no zone: UTC),
            duration, ``datetime[ms, Europe/Paris]``, ``decimal(12, 2)``, ``list[int64]``.
    """

    model_config = ConfigDict(extra="allow")

    kind: str
    declared: dict[str, Any] = Field(default_factory=dict, alias="schema")


class LabelSettings(Settings):
    """``[labels]``: labels that come after their rows, from a source of their own, which
    ``[labels.source]`` describes with the keys of ``[source]``. A row is scored when it is read,
    and learned when its label comes.

    Attributes:
        source: where the labels come from, with the keys of ``[source]``: ``[labels.source]``.
        by: the key columns, as they are after the stages; or column = "column of the labels" for
            each. A row or label whose key came less than a horizon before is a duplicate.
        time: event time of the rows: a datetime, date or integer column of ``[source]``.
        label_time: event time of the labels; the column is called as that of the rows unless given.
        horizon: how far apart a row and its label may be: a duration ("7d"), or an integer where
            time is one. A row without a label by then has expired.
        on_missing: the label of rows whose horizon passes without one, which are learned with it
            then: of payments nobody has reported, "no". Unless given, they are not learned.
        corrections: how much later than its row a label may still come and correct `on_missing`;
            same form as horizon, and longer. The row is kept until then, and learned once more with
            its label.
        lateness: how much older than the newest time a row or a label may come and still find the
            other; same form as horizon. An eighth of the horizon, or of corrections, unless given.
            The newest time is one that is at most a horizon after those before it, or of eight such
            in sequence: rows further apart than a horizon expire up to eight rows later.
        every_rows [records]: after so many more rows those that have their label are learned (and
            after 4,096 labels): a row is scored by a model that has learned all labels which came
            more than so many rows before it, whatever `[loader] batch_rows` is.
        memory: bytes of the rows and labels that wait in memory ("32MiB"), half of `[loader]
            memory_budget` at most and an eighth unless given. Beyond it those that came first go
            to files beside the checkpoints, which then name them instead of holding them. On disk
            each still takes about 30 bytes of memory; where these come to more than an eighth of
            the budget, the oldest expire early.
    """

    source: dict[str, Any]
    by: Fixed[Names | dict[str, str]] = Field(min_length=1)
    time: Fixed[Name]
    label_time: Fixed[Name | None] = None
    horizon: Free[str | int]
    on_missing: Free[str | bool | int | float | None] = None
    corrections: Free[str | int | None] = None
    lateness: Free[str | int | None] = None
    every_rows: Free[int] = Field(256, ge=1, le=65_536)
    memory: Free[ByteSize | None] = Field(None, ge=1)

    @property
    def key_columns(self) -> dict[str, str]:
        """Key column of the rows -> that of the labels."""
        return key_pairs(self.by)

    @property
    def time_of_labels(self) -> str:
        """The time column of the labels."""
        return self.label_time or self.time


class SinkTable(Settings):
    """``[sink]``: what every kind has; its other keys are the kind's own.

    Attributes:
        kind: ``files``, ``kafka``, ``memory``, or a class of your own, ``package.module:Class``.
        columns: the columns to write; all unless given. A model adds ``prediction`` (the value,
            or the class as text) and for classes ``probability`` (of the second of two classes,
            or of the predicted one if there are more); serving adds ``model_version``. If one of
            these is listed, only the listed ones are written.
            ``_partition`` and ``_position`` are the place a row was read from. Columns have the
            values after the stages; a served model's own stages leave them unchanged.
        where: an SQL condition on a row's own values of the columns that are written, such as
            ``prediction = 'yes'``: rows for which it does not hold are not written, and counted
            (``not_written``). A row on which it fails is a dead letter.
        probabilities: whether a model also adds ``probability_CLASS`` for every class.
        answer: when a run that trains writes the answer to a row: ``learned``, with the batch's
            steps taken, each row scored by all steps before it; or ``first``, before any step on
            its batch, all of its rows scored by the model as it is when they come. Then a row
            without a label is answered, too, in place of being rejected, and with ``[labels]``
            each row when it is read, in place of when its label comes. What is learned is the same.
    """

    model_config = ConfigDict(extra="allow")

    kind: str
    columns: Warned[Names | None] = None
    where: Warned[str | None] = None
    probabilities: Warned[bool] = False
    answer: Warned[Literal["learned", "first"]] = "learned"


class NamedTable(Settings):
    """``[scrub.NAME]``, ``[augment.NAME]``: what every kind has; its other keys are the kind's own.

    Attributes:
        kind: the name of a kind, or a class of your own, ``package.module:Class``; NAME unless
            given.
    """

    model_config = ConfigDict(extra="allow")

    kind: str | None = None


class DeadLetterSettings(Settings):
    """``[dead_letters]``: where rejected rows go, and when there are too many. Its other keys are
    the kind's own.

    Attributes:
        kind: ``files`` (a folder of NDJSON parts) or ``kafka`` (a topic).
        path: of files; ``<folder>/dead_letters`` unless given.
        limit [share]: share (0-1) of rejected rows within `window` above which the run stops.
        window [rows]: rows over which the share is taken; the limit applies once so many were
            seen, and at the end of the source however few were.
        expected: reasons the limit does not count (``duplicate``, ``missing_label``,
            ``tombstone``: expected in the data).
    """

    model_config = ConfigDict(extra="allow")

    kind: str = "files"
    path: Free[Name | None] = None
    limit: Free[float] = Field(0.2, gt=0, le=1)
    window: Free[int] = Field(10_000, ge=1)
    expected: Free[tuple[str, ...]] = ("duplicate", "missing_label", "tombstone")


class GrowSettings(Settings):
    """``[model.grow]``: when a label becomes a class, and when a class leaves, where classes appear
    as they come.

    Attributes:
        min_count [rows]: rows with a label until it is a class. Those before the last of them are
            predicted, neither learned nor judged, and counted as ``waiting_for_class``. At most
            `max_classes` labels wait, those seen last.
        idle: how far the stream's time moves on after the last row of a class until it leaves: a
            duration ("30d"), or an integer where time is one; rows without `time`. What was learned
            of it is forgotten, and it is counted as ``expired_classes``; its label has to come
            `min_count` times again. Never unless given.
        time: a datetime, date or integer column, for `idle`, as it is before the stages that a
            model file contains. The stream's time is the newest, except that times more than `idle`
            ahead of it count only once eight in sequence are; a row without one changes nothing.
    """

    min_count: int = Field(1, ge=1)
    idle: str | int | None = None
    time: Name | None = None


class ModelSettings(Settings):
    """``[model]``: what every learner needs; its other keys are the learner's own.

    Attributes:
        kind: ``tabular``, ``linear``, ``module``, ``trees``, ``prototypes`` or an import string
            ("package.module:Class"). Unless given, ``module`` where `module`, `inputs`, `head`
            or `state` is, else ``tabular``.
        task: regression, binary or multiclass; unless given, by the target's type: regression for
            numbers, one of the others for text and bools.
        target: the label's column; or several of a regression, ["a", "b"], predicted together as
            ``prediction_a`` and ``prediction_b`` (``tabular``, ``module``). A row may lack some of
            them.
        numeric: feature columns; globs are allowed ("count_lag_*").
        categories: category columns, encoded by a ``categories`` stage.
        classes: the label's values in class order; for binary, (negative, positive). Unless given,
            false and true for a bool target, else the values in the first 100,000 rows of a source
            that ends, sorted (numbers by value), at most 100. "grow": classes appear as they come
            (not ``linear``; ``prototypes`` does so unless they are given).
        max_classes: where classes appear as they come, the most that are kept: for one more, the
            one that was not seen for longest leaves. A network has so many outputs.
        grow: ``[model.grow]``, when such a class comes, and when it leaves.
        threshold: of two classes, the probability above which the second is predicted, 0.5 unless
            given; or a goal for which it is chosen on held-out rows: "f1", {precision = 0.9},
            {recall = 0.8} or {false_positive = 1, false_negative = 20}, the cost of such mistakes.
        images: columns of arrays of shape (height, width, channels), as an ``image`` stage makes
            them; globs are allowed, here and in the next four.
        ragged: columns of lists, as a ``tokens`` stage makes them: values and offsets.
        padded: columns of lists, padded with 0, and a mask.
        sparse: columns of lists of ids, as the count of each id.
        arrays: columns of arrays of shape (length, width), as a ``history`` stage makes them:
            values and a mask.
        max_length [values]: the most values of a list that are kept, from its start; needed for
            `padded` without `buckets`.
        buckets [values]: the lengths to which lists are padded; powers of two unless given.
    """

    kind: str = "tabular"
    task: str | None = None
    target: Name | Names
    numeric: Names = ()
    categories: Names = ()
    classes: Literal["grow"] | tuple[str, ...] = ()
    max_classes: int = Field(256, ge=2)
    grow: GrowSettings | None = None
    threshold: float | Literal["f1"] | ThresholdSettings | None = None
    images: Names = ()
    ragged: Names = ()
    padded: Names = ()
    sparse: Names = ()
    arrays: Names = ()
    max_length: int | None = Field(None, ge=1)
    buckets: tuple[PositiveInt, ...] = ()

    @field_validator(
        "classes", mode="before", json_schema_input_type=Literal["grow"] | list[str | bool | float]
    )
    @classmethod
    def _as_text(cls, classes: Any) -> Any:
        """Return labels as text: ``[0, 1]`` and ``[false, true]`` are the labels "0", "1" and
        "false", "true"."""
        if not isinstance(classes, list | tuple):
            return classes
        return tuple(json.dumps(c) if isinstance(c, bool | int | float) else c for c in classes)

    @field_validator("target", mode="before", json_schema_input_type=str | list[str])
    @classmethod
    def _different(cls, target: Any) -> Any:
        """Return the only column of a list of one."""
        if not isinstance(target, list | tuple):
            return target
        if not target or len(set(map(str, target))) < len(target):
            raise ValueError(f"expected different columns, got {json.dumps(target)}")
        return target[0] if len(target) == 1 else target

    @field_validator("task")
    @classmethod
    def _known(cls, task: str | None) -> str | None:
        known = ("regression", "binary", "multiclass")
        if task is not None and task not in known:
            raise ValueError(f"expected one of {', '.join(known)}")
        return task

    @field_validator("threshold", mode="before")
    @classmethod
    def _parse_threshold(cls, given: Any) -> ThresholdSettings | None:
        return None if given is None else ThresholdSettings.read(given)

    @model_validator(mode="after")
    def _two_classes(self) -> Self:
        if self.threshold is not None and self.task not in ("binary", None):
            raise ValueError(f"expected no threshold, which is for task binary, got '{self.task}'")
        return self

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns of the label."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def given_classes(self) -> tuple[str, ...]:
        """The classes that the file names; empty if it names none."""
        return () if self.classes == "grow" else self.classes

    @property
    def threshold_settings(self) -> ThresholdSettings:
        """Return the threshold as settings."""
        given = self.threshold
        return given if isinstance(given, ThresholdSettings) else ThresholdSettings(value=0.5)


class ExportSettings(Settings):
    """``[export]``: at the end of a training run, write the model, compress it and test it, and
    add it to the versions; while it runs, too, with `every` or `every_rows`.

    Attributes:
        path: the model file; ``<folder>/model.onnx`` unless given.
        every: publish a version while the run learns, at the first checkpoint after this time
            ("10m"), in a process of low priority beside it.
        every_rows [rows]: the same after so many learned rows.
        versions: the folder of versions, ``<folder>/versions`` unless given: one folder for each,
            and the pointer ``current`` to the one that serves. They stay with ``--fresh``, too.
        keep: how many of the newest versions stay, beside the one that serves, the one before it
            and the one in the shadow.
        registry: "mlflow" registers each version in MLflow's model registry, under the pipeline's
            name, and gives the one that serves the alias ``champion``. Needs ``pip install
            'headrace[mlflow]'`` and MLFLOW_TRACKING_URI.
        max_quality_loss: how much worse than the version that serves a new one may be, surely, on
            the newest held-out rows: percent of MAE and RMSE; for classes points of error and
            of log loss. One that is worse is added and does not serve.
        holdout [share]: share of the rows (0-1), chosen by a hash of their content, that is
            predicted and never learned, to calibrate and evaluate with.
        holdout_rows [rows]: newest held-out rows that are kept.
        compress: settings of the gate; false writes the float32 model to `path`.
    """

    path: Free[Name | None] = None
    every: Free[Duration | None] = Field(None, gt=0)
    every_rows: Free[int | None] = Field(None, ge=1)
    versions: Free[Name | None] = None
    keep: Free[int] = Field(5, ge=1)
    registry: Free[Literal["mlflow"] | None] = None
    max_quality_loss: Free[float] = Field(5.0, ge=0)
    holdout: Free[float] = Field(0.02, gt=0, lt=1)
    holdout_rows: Free[int] = Field(20_000, ge=100)
    compress: Free[dict[str, Any] | None] = Field(default_factory=dict)

    @field_validator("compress", mode="before")
    @classmethod
    def _off(cls, given: Any) -> Any:
        """Accept false: TOML has no null."""
        return None if given is False else given


SHARED: Mapping[str, type[Settings]] = {
    "source": SourceTable,
    "sink": SinkTable,
    "scrub.NAME": NamedTable,
    "augment.NAME": NamedTable,
    "dead_letters": DeadLetterSettings,
    "model": ModelSettings,
}
"""Table -> what all of its kinds have."""


class ConfigOrigin(str):
    """Where a pipeline comes from, for sentences: a file and its overrides."""

    __slots__ = ("own", "set_by")
    set_by: Mapping[tuple[str, ...], str]
    """Path of a key -> what set it: ``--set a.b``, or a variable. Without the value, which may
    be secret."""
    own: Mapping[str, Any]
    """The content of the file itself."""

    @classmethod
    def of(cls, where: str, overrides: Iterable[str], table: Mapping[str, Any]) -> ConfigOrigin:
        """Return the origin of a table with overrides and the environment applied."""
        origin = cls(where)
        origin.own = where.own if isinstance(where, ConfigOrigin) else table
        origin.set_by = {
            **(where.set_by if isinstance(where, ConfigOrigin) else {}),
            **{tuple(name.lower().split("__")): f"{ENVIRONMENT}{name}" for name in _variables()},
            **{tuple(key): f"--set {'.'.join(key)}" for key in map(_key, overrides)},
        }
        return origin

    def who_set(self, path: Sequence[str]) -> str | None:
        """Return what set this key, a key inside it, or a table around it; None for the file."""
        for key, who_set in self.set_by.items():
            n = min(len(key), len(path))
            if key[:n] == tuple(path[:n]):
                return who_set
        return None

    def maker(self, section: str) -> str | None:
        """Return what made a table that the file itself lacks; None if the file has it."""
        table: Any = self.own
        for part in (path := section.split(".")):
            table = table.get(part) if isinstance(table, Mapping) else None
        return self.who_set(path) if table is None else None


def made_by(where: str, section: str) -> str | None:
    """Return the beginning of a sentence about a table that only an override or a variable made."""
    maker = where.maker(section) if isinstance(where, ConfigOrigin) and section else None
    return None if maker is None else f"{maker} makes [{section}], which {where} does not have:"


def key_location(where: str, section: str, key: str) -> str:
    """Return how a sentence about a key begins: the table and the file, or the override of the
    key."""
    path = [*section.split("."), key] if section else [key]
    who_set = where.who_set(path) if isinstance(where, ConfigOrigin) else None
    if who_set is None and (maker := made_by(where, section)):
        return f"{maker} it"
    if who_set is not None:
        return f"{who_set}: {_bracketed(path[:-1])}" if section else f"{who_set}: a pipeline"
    return f"{_bracketed(path[:-1])} in {where}" if section else where


class Pipeline(BaseModel):
    """A validated pipeline file; parts named by ``kind`` are still tables, see `load_class`.

    Attributes:
        name: goes into model files, logs and the default folder.
        base: another pipeline file, by its path from this one, whose keys this one changes; a table
            that this one sets to false is left out.
        folder: where a run leaves its checkpoints, models and report; ``runs/<name>`` unless given.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: str = Field(pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    base: Name | None = None
    folder: Name = Field("", validate_default=False)
    _file: str = PrivateAttr("")
    source: dict[str, Any]
    scrub: dict[str, dict[str, Any]] = Field(default_factory=dict)
    loader: LoaderSettings = LoaderSettings()
    labels: LabelSettings | None = None
    model: dict[str, Any] | None = None
    train: dict[str, Any] | None = None
    augment: dict[str, dict[str, Any]] = Field(default_factory=dict)
    infer: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None
    sink: dict[str, Any] | None = None
    dead_letters: DeadLetterSettings = DeadLetterSettings()
    checkpoint: dict[str, Any] = Field(default_factory=dict)
    export: ExportSettings | None = None
    service: dict[str, Any] | None = None
    traces: dict[str, Any] | None = None

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = ()) -> Self:
        """Read a pipeline file. If it names classes of the user, its folder becomes the last of
        those that Python imports from.

        Args:
            path: the TOML file.
            overrides: "a.b=c" texts; the value is read as TOML, or as plain text where it is none.

        Raises: UserError, one sentence.
        """
        table = _with_base(Path(path))
        pipeline = cls.of(table, overrides, where=str(path))
        folder = str(Path(path).parent.resolve())
        if folder not in sys.path and _names_user_code(pipeline.table()):
            sys.path.append(folder)
        return pipeline

    @classmethod
    def of(
        cls, table: Mapping[str, Any], overrides: Iterable[str] = (), *, where: str = "the pipeline"
    ) -> Self:
        """Build the same from a table in memory."""
        overrides = list(overrides)
        origin = ConfigOrigin.of(where, overrides, table)
        # The file gives the order of tables.
        given = _merge(table, _environment(), by_kind=False)
        for override in overrides:  # one after the other: a later one acts on what is there by then
            given = _merge(given, _override(override), by_kind=False)
        return cls._validated(origin, _without_off(given, OPTIONAL))

    @classmethod
    def resolved(cls, table: Mapping[str, Any], *, where: str) -> Self:
        """Build it from its own `table`, in another process: overrides and environment are in it
        already."""
        return cls._validated(ConfigOrigin.of(where, (), table), table)

    @classmethod
    def _validated(cls, where: ConfigOrigin, given: Mapping[str, Any]) -> Self:
        try:
            pipeline = cls.model_validate(given)
        except ValidationError as error:
            raise UserError(_error_message(error, cls, "", where)) from None
        pipeline._check_tables(where)
        _require_file_paths(given, (), where)
        folder = pipeline.folder or f"runs/{pipeline.name}"
        result = pipeline.model_copy(update={"folder": folder})
        result._file = where
        return result

    @property
    def file(self) -> str:
        """The path it was read from, for error sentences; a `ConfigOrigin`."""
        return self._file

    @property
    def trains(self) -> bool:
        """Whether it learns."""
        return self.model is not None and self.infer is None

    @property
    def late_labels(self) -> LabelSettings | None:
        """The labels that come later; None if it does not learn, or each row has its label."""
        return self.labels if self.trains else None

    @property
    def exports(self) -> bool:
        """Whether its runs write a model."""
        return self.trains and self.export is not None

    @property
    def model_path(self) -> Path:
        """Where the served model goes."""
        given = None if self.export is None else self.export.path
        return Path(given or Path(self.folder) / "model.onnx")

    @property
    def float_model_path(self) -> Path:
        """Where the float32 model goes before it is compressed."""
        return self.model_path.with_suffix(".fp32.onnx")

    @property
    def versions_path(self) -> Path:
        """The folder of the versions that are published."""
        given = None if self.export is None else self.export.versions
        return Path(given or Path(self.folder) / "versions")

    @property
    def registry(self) -> str | None:
        """The model registry of its versions; None without one, or where it serves."""
        return self.export.registry if self.export is not None and self.infer is None else None

    @property
    def dead_letters_path(self) -> Path:
        """The folder of dead letters that are files."""
        return Path(self.dead_letters.path or Path(self.folder) / "dead_letters")

    @property
    def sink_columns(self) -> Sequence[str] | None:
        """Columns that go to the sink; None for all."""
        return (self.sink or {}).get("columns")

    @property
    def answers_first(self) -> bool:
        """Whether it learns a row after its answer is written."""
        return self.trains and (self.sink or {}).get("answer") == "first"

    @property
    def sink_where(self) -> str | None:
        """The condition on rows that go to the sink; None for all."""
        return (self.sink or {}).get("where")

    @property
    def writes_probabilities(self) -> bool:
        """Whether the sink is given every class's probability."""
        return bool((self.sink or {}).get("probabilities"))

    def _check_tables(self, where: str) -> None:
        """Check what tables of user-defined kinds have in common."""
        validate(SourceTable, self.source, "source", where)
        if self.labels is not None:
            validate(SourceTable, self.labels.source, "labels.source", where)
        if self.sink is not None:
            validate(SinkTable, self.sink, "sink", where)
        for section, tables in (("scrub", self.scrub), ("augment", self.augment)):
            for name, table in tables.items():
                validate(NamedTable, table, f"{section}.{name}", where)

    def table(self) -> dict[str, Any]:
        """The table it was built from, environment and overrides included."""
        table = self.model_dump(exclude_none=True, exclude={"base"})
        if self.export is not None and self.export.compress is None:
            table["export"]["compress"] = False
        return table

    def settings(self, settings_class: type[S], table: Mapping[str, Any], section: str) -> S:
        """Return a component's own settings from its table.

        Raises: UserError naming the key, the section and the file.
        """
        return validate(settings_class, table, section, self.file)


OPTIONAL = tuple(
    name
    for name, field in Pipeline.model_fields.items()
    if name in ("scrub", "augment") or (field.default is None and name != "base")
)
"""Tables that a pipeline may lack: `--set export=false` takes one out."""


def validate(settings_class: type[S], table: Mapping[str, Any], section: str, where: str) -> S:
    """Return `settings_class(**table)`; raise pydantic's complaint as one sentence. Its secrets
    are hidden from the log from here on.

    Raises: UserError
    """
    try:
        settings = settings_class(**table)
    except ValidationError as error:
        raise UserError(_error_message(error, settings_class, section, where)) from None
    for secret in settings.secrets():
        hide(secret)
    return settings


def load_class(name: Any, known: Mapping[str, str], section: str, where: str = "") -> type[Any]:
    """Return the class a ``kind`` names: one of `known`, or the user's own by import string.

    Args:
        where: the pipeline's file, a `ConfigOrigin` where something may have been set over it.

    Raises: UserError when there is no such kind, module or class.
    """
    if not isinstance(name, str):
        raise UserError(f"[{section}]: expected text for 'kind', got {_shown(name, None)}.")
    target = known.get(name, name)
    if ":" not in target:
        head = f"{maker} it" if (maker := made_by(where, section)) else f"[{section}]"
        raise UserError(f"{head} has no kind '{name}'.{suggested_kind(name, known, section)}")
    loaded = imported(target, f"[{section}] kind")
    if not isinstance(loaded, type):
        raise UserError(f"[{section}] kind '{name}' names {loaded!r}, expected a class.")
    return loaded


def _require_file_paths(
    table: Mapping[str, Any], above: tuple[str, ...], where: ConfigOrigin
) -> None:
    """Check that no path is one that only a shell or another program could follow. A class of the
    user's own may take any.

    Raises: UserError
    """
    if ":" in str(table.get("kind", "")):
        return
    for key, value in table.items():
        if isinstance(value, Mapping):
            _require_file_paths(value, (*above, key), where)
        elif key in PATH_KEYS:
            paths = value if isinstance(value, list | tuple) else [value]
            for odd in filter(None, map(NO_FILE_PATH.match, map(str, paths))):
                head = key_location(where, ".".join(above), key)
                raise UserError(
                    f"{head} has {key} = '{odd[0]}...', and headrace reads and writes files of "
                    f"this machine: {_instead(odd[0])}."
                )


def paths_in(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield every path that a table, or one in it, names."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from paths_in(value)
        elif key in PATH_KEYS:
            yield from map(str, value if isinstance(value, list | tuple) else [value])


def _instead(begins: str) -> str:
    if begins.startswith("~"):
        return "write the home folder out, as only a shell knows '~'"
    return "copy or mount what the URL names, and give its path"


def _names_user_code(table: Mapping[str, Any]) -> bool:
    """Return whether any table names a class by an import string."""
    return any(
        _names_user_code(value)
        if isinstance(value, Mapping)
        else key in CODE_KEYS and IMPORT_STRING.fullmatch(str(value)) is not None
        for key, value in table.items()
    )


def detached_source(source: Mapping[str, Any], *, whole: bool = True) -> dict[str, Any]:
    """Return a copy of the source that joins no consumer group and commits nothing, for inspection.

    Args:
        whole: of a topic, all records that there are now, and no more.
    """
    table = {
        key: value
        for key, value in source.items()
        if key not in ("group_id", "subscribe", "group_instance_id")
    }
    if whole and table.get("kind") == "kafka":
        table |= {"start": "earliest", "stop": "end"}
    if isinstance(table.get("sources"), dict):
        table["sources"] = {
            name: detached_source(own, whole=whole) if isinstance(own, dict) else own
            for name, own in table["sources"].items()
        }
    return table


def detached_tables(pipeline: Pipeline, *, whole: bool = True) -> dict[str, Any]:
    """Return the tables of a pipeline that read, changed as by `detached_source`."""
    tables: dict[str, Any] = {"source": detached_source(pipeline.source, whole=whole)}
    if pipeline.labels is not None:
        source = detached_source(pipeline.labels.source, whole=whole)
        tables["labels"] = pipeline.labels.model_copy(update={"source": source})
    return tables


def _with_base(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    table = _read(path)
    if "base" not in table:
        return table
    base = path.parent / str(table["base"])
    if base in seen:
        raise UserError(f"{path} and its base {base} name each other: take one 'base' away.")
    return _merge(_with_base(base, (*seen, path)), table)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.toml")])
        raise UserError(f"There is no pipeline file {path}.{near}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no pipeline file: expected TOML in UTF-8, got the byte "
            f"0x{error.object[error.start]:02x} at {error.start}.{_file_hint(path)}"
        ) from None
    except (OSError, ValueError) as error:
        if isinstance(error, tomllib.TOMLDecodeError):
            raise UserError(f"{path} is not valid TOML: {error}.{_file_hint(path)}") from None
        raise UserError(f"The pipeline file {path} cannot be read: {error}.") from None
    except RecursionError:
        raise UserError(f"{path} is not valid TOML: its values are nested too deep.") from None


def _file_hint(path: Path) -> str:
    """Suggest what to do with a file that is not a pipeline, by its name."""
    if path.suffix == ".toml":
        return ""
    if path.suffix == ".onnx":
        return f" To use a model: headrace predict {path} --input FILES --output FOLDER."
    return f" To look at data: headrace explore {path}."


def _merge(
    below: Mapping[str, Any], above: Mapping[str, Any], *, by_kind: bool = True
) -> dict[str, Any]:
    """Return the tables as one, key by key; the keys of `above` win, and false over a table takes
    it out, see `_without_off`.

    Args:
        by_kind: whether a table of another kind replaces the whole table below it.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        over_table = isinstance(old, dict) or old is OFF
        merged[key] = OFF if over_table and _is_false(value) else value
        if isinstance(old, dict) and isinstance(value, dict):
            whole = by_kind and _another_kind(old, value)
            merged[key] = value if whole else _merge(old, value, by_kind=by_kind)
    return merged


def _is_false(value: object) -> bool:
    return value is False or (isinstance(value, Untyped) and value.lower() == "false")


def _without_off(table: Mapping[str, Any], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Return merged tables without those that are taken out. Where a table is needed, or may be
    false itself, false stays.

    Args:
        optional: of the top level, the tables that a pipeline may lack; false is none, too.
    """
    kept: dict[str, Any] = {}
    for key, value in table.items():
        if value is OFF:
            if key in KEPT_FALSE or (optional and key not in optional):
                kept[key] = False
        elif isinstance(value, dict):
            kept[key] = _without_off(value)
        elif not (key in optional and _is_false(value)):
            kept[key] = value
    return kept


def _another_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "kind" in old and "kind" in new and old["kind"] != new["kind"]


def _override(text: str) -> dict[str, Any]:
    """Return the table that ``a.b=c`` makes. Raises: UserError"""
    *above, last = _key(text)
    table: dict[str, Any] = {last: _value(text.partition("=")[2].strip())}
    for part in reversed(above):
        table = {part: table}
    return table


def _key(text: str) -> list[str]:
    """Return the path of the key that ``a.b=c`` sets. Raises: UserError"""
    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"Expected --set key.path=value, got '{text}'.")
    return key.strip().split(".")


def _variables() -> list[str]:
    """Return the environment variables that set keys of tables, without their common prefix."""
    names = (name.upper() for name in os.environ)
    return [
        name.removeprefix(ENVIRONMENT)
        for name in names
        if name.startswith(ENVIRONMENT) and "__" in name.removeprefix(ENVIRONMENT)
    ]


def _value(text: str) -> Any:
    """Parse a text as one TOML value; other text does not say its type. Raises: UserError"""
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return Untyped(text)
    if len(table) > 1:
        raise UserError(
            f"Expected one value behind --set KEY=, got {text!r}: give every key a --set of its "
            "own."
        )
    return table["value"]


def _environment() -> dict[str, Any]:
    """Return the table that the environment sets. Raises: UserError"""
    _require_known_variables()
    if not any(name.upper().startswith(ENVIRONMENT) for name in os.environ):
        return {}
    from pydantic_settings import BaseSettings, EnvSettingsSource  # 30 ms of an engine's start
    from pydantic_settings.exceptions import SettingsError

    fields: dict[str, Any] = {
        name: (field.annotation, field) for name, field in Pipeline.model_fields.items()
    }
    asked = create_model("Variables", __base__=BaseSettings, **fields)
    try:
        source = EnvSettingsSource(asked, env_prefix=ENVIRONMENT, env_nested_delimiter="__")
        return {name: _untyped(value) for name, value in source().items()}
    except SettingsError as error:
        name = f"{ENVIRONMENT}{str(error).split(chr(34))[1].upper()}"
        raise UserError(
            f"{name} in the environment: expected a JSON object; a single key of the table is "
            f"set by {name}__KEY."
        ) from None


def _untyped(value: Any) -> Any:
    """Return what the environment sets with its texts marked as such."""
    if isinstance(value, dict):
        return {key: _untyped(own) for key, own in value.items()}
    return Untyped(value) if isinstance(value, str) else value


def _require_known_variables() -> None:
    """Raises: UserError for a variable that sets a table which is none. Others of the prefix are
    let be: Kubernetes sets HEADRACE_SERVICE_HOST where a service is called headrace."""
    for name in _variables():
        table = name.partition("__")[0].lower()
        field = Pipeline.model_fields.get(table)
        if field is None:
            raise UserError(
                f"The environment's {ENVIRONMENT}{name} names no table of a pipeline file: there "
                f"is no '{table}'.{nearest(table, Pipeline.model_fields)}"
            )
        if not _is_table(field.annotation):
            raise UserError(
                f"The environment's {ENVIRONMENT}{name} sets a key of '{table}', which is no table "
                f"but text: expected {ENVIRONMENT}{table.upper()}."
            )


def _error_message(
    error: ValidationError, settings: type[BaseModel], section: str, where: str
) -> str:
    """Return the first complaint of a validation: expected, got, where, what to do. An unknown
    key comes before a missing one: it is likely the same one, misspelt."""
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    inner, tables, rest = _located(settings, [str(part) for part in first["loc"]])
    tables = [*section.split("."), *tables] if section else tables
    if not rest:  # they do not fit together, and say so themselves; the input holds secrets
        complaint = first["msg"].removeprefix("Value error, ")
        return (
            f"{_bracketed(tables)} in {where}: {complaint}." if tables else f"{where}: {complaint}."
        )
    key, *inside = rest
    field = field_of(inner, key)
    if field is not None and _is_of_no_kind(first):
        table = key_location(where, ".".join([*tables, key, *map(_entry, inside)]), "kind")
        return _wrong_kind(table, first, _kinds_in(field.annotation))
    table = key_location(where, ".".join(tables), key)
    if first["type"] == "extra_forbidden":
        names = [field.alias or name for name, field in inner.model_fields.items()]
        shared = shared_keys(section) if tables == section.split(".") else []
        return f"{table} has no key '{key}'.{suggestion(key, [*names, *shared], section)}"
    if first["type"] == "missing":
        return f"{table} needs the key '{key}', which is not there."
    assert field is not None
    wanted = f"expected {expected(field)}"
    if inside and (value := expected_in(field)) is not None:
        wanted, key, inside = f"expected {value}", f"{key}.{inside[0]}", inside[1:]
    if first["type"] == "value_error":
        wanted = first["msg"].removeprefix("Value error, ")
        if not wanted.startswith("expected"):
            wanted = f"expected another value ({wanted})"
    got = _shown(first["input"], field)
    if isinstance(where, ConfigOrigin) and (who_set := where.who_set([*tables, key])):
        table = who_set
    return f"{table}: {wanted} for '{key}', got {got}{' in it' if inside else ''}."


def _located(
    settings: type[BaseModel], loc: list[str]
) -> tuple[type[BaseModel], list[str], list[str]]:
    """Locate a validation error: the Settings class, the tables on the way to it, and the rest:
    the key, and what is inside its value or pydantic's name for a member of a union."""
    tables: list[str] = []
    while True:
        field = field_of(settings, loc[0]) if loc else None
        found = None if field is None else _table_in(field.annotation, loc[1:])
        if found is None:
            return settings, tables, loc
        tables.append(loc[0])
        settings, entries, loc = found
        tables += entries


def _table_in(
    annotation: Any, loc: list[str]
) -> tuple[type[BaseModel], list[str], list[str]] | None:
    """Return the Settings class of the table in a value that a location leads to, the entries on
    the way to it, and the rest; None if it leads to no table."""
    if not loc:
        return None
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _table_in(inner[0], loc)
    if isinstance(origin, type) and issubclass(origin, Mapping | Sequence):
        found = _table_in(inner[-1] if issubclass(origin, Mapping) else inner[0], loc[1:])
        return None if found is None else (found[0], [_entry(loc[0]), *found[1]], found[2])
    tables = _tables_among(annotation, *inner)
    if len(tables) > 1:
        table = _by_kind(tables).get(loc[0])
        return None if table is None else (table, [], loc[1:])
    if tables:
        return tables[0], [], loc
    return next((found for kind in inner if (found := _table_in(kind, loc))), None)


def _entry(name: str) -> str:
    """Return an entry of a list or table as part of a path: the second of a list is ``#2``."""
    return f"#{int(name) + 1}" if name.isdecimal() else name


def _bracketed(path: Sequence[str]) -> str:
    """Return a table for a sentence: ``[model]``, ``[model.inputs.words] layer 2``."""
    *tables, entries, last = ["", *path]
    if not last.startswith("#"):
        return f"[{'.'.join(path)}]"
    return f"[{'.'.join(tables[1:])}] {entries.removesuffix('s')} {last[1:]}"


def _kinds_in(annotation: Any) -> Mapping[str, type[BaseModel]]:
    """Return kind -> Settings class of a value whose tables are of several kinds."""
    inner = get_args(annotation)
    tables = _tables_among(*inner)
    if len(tables) > 1:
        return _by_kind(tables)
    return next((kinds for part in inner if (kinds := _kinds_in(part))), {})


def _tables_among(*annotations: Any) -> list[type[BaseModel]]:
    plain = [get_args(k)[0] if get_origin(k) is Annotated else k for k in annotations]
    return [k for k in plain if isinstance(k, type) and issubclass(k, BaseModel)]


def _by_kind(tables: Iterable[type[BaseModel]]) -> Mapping[str, type[BaseModel]]:
    tagged = [table for table in tables if "kind" in table.model_fields]
    return {get_args(table.model_fields["kind"].annotation)[0]: table for table in tagged}


def _is_of_no_kind(complaint: Any) -> bool:
    untagged = complaint["type"] in ("union_tag_invalid", "union_tag_not_found")
    return untagged and isinstance(complaint["input"], Mapping)


def _wrong_kind(table: str, complaint: Any, kinds: Iterable[str]) -> str:
    """Return a sentence about a table of no kind, or of a kind that there is not."""
    if complaint["type"] == "union_tag_not_found":
        return f"{table} needs the key 'kind', which is not there.{nearest('', kinds)}"
    kind = complaint["ctx"]["tag"]
    return f"{table} has no kind '{kind}'.{nearest(kind, kinds)}"


def _is_table(annotation: Any) -> bool:
    """Return whether a key of the pipeline file is a table."""
    kinds = (annotation, *get_args(annotation))
    return _nested(annotation) is not None or any(get_origin(kind) is dict for kind in kinds)


def _nested(annotation: Any) -> type[BaseModel] | None:
    kinds = (annotation, *get_args(annotation))
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def shared_keys(section: str) -> list[str]:
    """Return the keys that a table of any kind has; none for tables without kinds."""
    table, dot, _ = section.partition(".")
    settings = SHARED.get(f"{table}.NAME" if dot else table)
    if settings is None:
        return []
    return [field.alias or name for name, field in settings.model_fields.items()]


def suggested_kind(kind: str, known: Iterable[str], section: str) -> str:
    """Suggest a known kind for an unknown one, or the format that it names; ends a sentence."""
    # On the way to an error only: it imports every kind.
    from engine.commands.reference import MIX, format_named

    if format := format_named(kind, section):
        return f' \'{format}\' is a [{section}] format: kind = "files", format = "{format}".'
    return nearest(kind, [*known, MIX] if section == "source" else known)


def suggestion(key: str, known: Iterable[str], section: str = "") -> str:
    """Suggest a known key for an unknown one, from this table, from other tools' names, or from
    other tables."""
    if (section, key) in OWNERS:
        return f" {OWNERS[section, key]}"
    names = list(known)
    meant = [name for name in SYNONYMS.get(key.lower(), ()) if name in names]
    if meant:
        return f" Did you mean '{meant[0]}'?"
    if difflib.get_close_matches(key, names, n=1, cutoff=0.8):
        return nearest(key, names)
    from engine.commands.reference import (
        tables_with,  # on the way to an error only: it imports every kind
    )

    elsewhere = tables_with((key, *SYNONYMS.get(key.lower(), ())))
    if elsewhere:
        return f" {elsewhere}"
    return nearest(key, names)


def _shown(value: object, field: Any) -> str:
    """Return a value as JSON, unless it is secret."""
    if field is not None and "SecretStr" in repr(field.annotation):
        return "a value that is not shown"
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= MAX_VALUE_CHARS else f"{text[:MAX_VALUE_CHARS]}..."
