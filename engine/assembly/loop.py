"""Builds the loader and the loop from the parts, within one memory budget."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import polars as pl

from engine.assembly.identity import identity_of
from engine.assembly.parts import Parts
from engine.loading.loader import Loader
from engine.loading.nested_tensors import array_bytes
from engine.observing.metrics import Metrics
from engine.observing.timing import TimingSnapshot
from engine.observing.traces import Traces
from engine.running.bottleneck import Bottleneck, diagnose
from engine.running.late_labels.late_training import LateTraining
from engine.running.loop import Loop
from engine.running.reject_limit import RejectLimit
from engine.running.reporter import Reporter
from engine.running.saving.codec import Saved, size_of
from engine.running.saving.migration import migrate
from engine.running.saving.saver import Saver
from engine.running.warm_up import warm_up
from engine.scrub.side_source import SideSource, SideStage
from engine.system import environment
from engine.types import Batch, Buffered, Learner, Schema, Stage, UserError

if TYPE_CHECKING:
    from engine.versions.publishing import Publisher

MEMORY_SHARES = {"source": 0.25, "sink": 0.25, "dead letters": 0.0625, "table": 0.0625}
"""The share of the memory budget that a component may buffer itself."""


def make_loader(parts: Parts, schema: Schema, traces: Traces | None = None) -> Loader:
    """Build a loader of the pipeline's batches.

    Args:
        schema: the columns to decode.
        traces: None traces nothing.

    Raises: UserError if a batch would not fit into the budget.
    """
    require_batches_fit(parts)
    source, labelled = parts.endpoints.source, parts.endpoints.labelled
    loader = Loader(
        source,
        schema=schema,
        stages=parts.scrub.stages,
        collate=parts.collate,
        transfer=parts.transfer,
        settings=parts.pipeline.loader,
        metrics=parts.metrics,
        keep_raw_from=parts.keep_raw_from,
        keep_records=True,
        labels=None if labelled is None else labelled.label_schema,
        traces=traces,
    )
    _limit_memory(loader, "source", source, parts.metrics)
    for name, side in parts.scrub.sides.items():
        side.limit_memory(int(loader.budget.total * MEMORY_SHARES["table"]))
        loader.budget.watch(f"source of {name}", functools.partial(_client_bytes, side))
    return loader


def make_loop(parts: Parts, watch: Callable[[Loop, Batch], None] | None = None) -> Loop:
    """Build the loop, ready to resume and run.

    Args:
        watch: called after every batch.
    """
    endpoints, pipeline, metrics = parts.endpoints, parts.pipeline, parts.metrics
    loader = make_loader(parts, parts.scrub.read_schema, parts.traces)
    _limit_memory(loader, "sink", endpoints.sink, metrics)
    _limit_memory(loader, "dead letters", endpoints.dead_letters, metrics)
    if pipeline.trains:
        _limit_replay(loader, parts)
    if isinstance(parts.work, LateTraining):
        join = parts.work.join
        loader.budget.watch("late labels", lambda: join.nbytes)
    reporter = Reporter(
        metrics,
        source=endpoints.source,
        sink=endpoints.sink,
        timer=loader.timer,
        diagnose=functools.partial(_diagnose, parts, loader),
        notes=parts.notes,
        time_column=_time_column(parts),
    )
    return Loop(
        source=endpoints.source,
        loader=loader,
        work=parts.work,
        sink=endpoints.sink,
        chosen=parts.written_rows,
        dead_letters=endpoints.dead_letters,
        reporter=reporter,
        saver=_saver(parts, reporter),
        reject_limit=RejectLimit(pipeline.dead_letters, again=endpoints.replay),
        heartbeat=parts.heartbeat,
        publisher=_publisher(parts),
        watch=watch,
        traces=parts.traces,
    )


def _time_column(parts: Parts) -> str | None:
    """Return the column of times by which a stage knows the time of the data; None if none does."""
    schema = parts.scrub.source_schema
    names = (getattr(stage.settings, "time", None) for stage in parts.scrub.stages)
    times = (name for name in names if isinstance(name, str))
    return next((t for t in times if isinstance(schema.get(t), pl.Datetime | pl.Date)), None)


def _publisher(parts: Parts) -> Publisher | None:
    """Return what publishes versions while the run learns; None if nothing is to be."""
    pipeline, export = parts.pipeline, parts.pipeline.export
    if export is None or not pipeline.trains or parts.endpoints.replay:
        return None
    if export.every is None and export.every_rows is None:
        return None
    from engine.versions.publishing import Publisher, PublishJob
    from engine.versions.registry import job_of

    job = PublishJob(
        table=pipeline.table(),
        file=str(pipeline.file),
        module=parts.module,
        versions=str(pipeline.versions_path),
        keep=export.keep,
        registry=job_of(pipeline),
    )
    return Publisher(job, parts.metrics, every=export.every, every_rows=export.every_rows)


def _saver(parts: Parts, reporter: Reporter) -> Saver:
    endpoints = parts.endpoints
    return Saver(
        source=endpoints.source,
        sinks=endpoints.sinks,
        reporter=reporter,
        checkpoints=endpoints.checkpoints,
        identity=identity_of(parts),
        transaction=endpoints.transaction,
        keeps_state=parts.keeps_state,
        mend=functools.partial(_migrate, parts) if endpoints.replay else None,
    )


def require_batches_fit(parts: Parts) -> None:
    """Check that decoded batches fit into the budget: an image may become a hundred times its raw
    bytes.

    Raises: UserError
    """
    settings = parts.pipeline.loader
    row, half = array_bytes(parts.scrub.schema), int(settings.memory_budget) // 2
    if row * settings.batch_rows > half:
        raise UserError(
            f"[loader] batch_rows = {settings.batch_rows} in {parts.pipeline.file} makes batches "
            f"of {row * settings.batch_rows:,} bytes of arrays, and half of memory_budget is "
            f"{half:,}: set batch_rows = {max(1, half // row)} or less, or raise the budget."
        )


def rehearse(parts: Parts) -> None:
    """Compile what the first batch needs, with a second set of stages."""
    warm_up(parts.scrub.read_schema, parts.scrub.another_chain(read=False), parts.collate)


def watch_memory(parts: Parts, loader: Loader) -> None:
    """Register gauges of the memory of each part, of the budget, and of the served model."""
    metrics, model = parts.metrics, parts.model
    if parts.pipeline.trains:
        memory = model.learner.memory
        for name in memory():
            metrics.watch_memory(name, functools.partial(_held, memory, name))
        _watch_experts(metrics, model.learner)
    if parts.served.predictor is not None:
        metrics.model.labels(**parts.served.predictor.info()).set(1)
        memory = parts.served.predictor.memory
        for name in memory():
            metrics.watch_memory(name, functools.partial(_held, memory, name))
    for stage in parts.scrub.stages:
        metrics.watch_memory(f"stage {stage.name}", functools.partial(_state_bytes, stage))
        if isinstance(stage, SideStage):
            metrics.watch_memory(f"table {stage.name}", functools.partial(_table_bytes, stage))
        if isinstance(stage, SideStage) and stage.side is not None:
            rows, lag = functools.partial(_table_rows, stage), stage.side.lag
            metrics.watch(metrics.table_rows, rows, stage=stage.name)
            metrics.watch(metrics.table_lag_records, lag, stage=stage.name)
    if parts.pipeline.trains:
        from engine.loading.transfer import watch_devices

        watch_devices(metrics)
        evaluation = parts.judging.evaluation
        metrics.watch_memory("evaluation", lambda: evaluation.nbytes)
    budget = loader.budget
    metrics.watch_memory("loader", lambda: budget.used)
    metrics.memory_budget_bytes.set(budget.total)


def _watch_experts(metrics: Metrics, learner: Learner) -> None:
    """Register a gauge of the load of each expert."""
    for layer, loads in learner.expert_loads().items():
        for expert in range(len(loads)):
            load = functools.partial(_load, learner, layer, expert)
            metrics.watch(metrics.expert_load_ratio, load, layer=layer, expert=str(expert))


def _limit_memory(loader: Loader, name: str, part: object, metrics: Metrics) -> None:
    """Bound the memory of a component that buffers, and count it in the loader's budget."""
    if isinstance(part, Buffered):
        budget, buffered = loader.budget, part
        buffered.limit_memory(max(1, int(budget.total * MEMORY_SHARES[name])))
        budget.watch(name, lambda: buffered.nbytes)
        metrics.watch_memory(name, lambda: buffered.nbytes)


def _limit_replay(loader: Loader, parts: Parts) -> None:
    """Count the replay in the budget. Raises: UserError if it does not fit."""
    budget, learner = loader.budget, parts.model.learner
    if isinstance(learner, Buffered):
        learner.limit_memory(budget.total // 8)
    memory, full = learner.memory, learner.replay_bytes
    if full > budget.total // 2:
        raise UserError(
            f"[train] replay_rows take {full:,} bytes, and half of [loader] memory_budget is "
            f"{budget.total // 2:,}: lower replay_rows, or raise the budget."
        )
    if full:
        budget.watch("replay", lambda: memory()["replay"])


def _migrate(parts: Parts, saved: Saved) -> Saved:
    return migrate(saved, identity_of(parts), parts.bound_stages, parts.other_stages)


def _diagnose(parts: Parts, loader: Loader, timing: TimingSnapshot) -> Bottleneck | None:
    predictor, loading = parts.served.predictor, parts.pipeline.loader
    settings = {
        **loading.model_dump(include={"batch_rows", "read_rows"}),
        "decode_threads": loader.threads.count,
        "interval": parts.endpoints.checkpoints.settings.interval,
        "threads": _threads_key(parts),
        "costs": _batch_rows_caveat(parts),
    }
    trains = parts.pipeline.trains
    device = parts.model.learner.device if trains else "cpu"
    if predictor is not None and "CPU" not in predictor.info()["provider"]:
        device = "cuda"  # or TensorRT
    return diagnose(timing, settings=settings, device=device, cores=environment.cores())


def _threads_key(parts: Parts) -> str:
    """Return the setting of the model's threads if it uses several; else ""."""
    pipeline = parts.pipeline
    if pipeline.trains:
        import torch

        several = torch.get_num_threads() > 1  # the learner, built before, sets it
        return "train.threads" if several and parts.model.learner_class.sets_threads else ""
    several = pipeline.infer is not None and pipeline.infer.get("threads") != 1
    return "infer.threads" if several else ""


def _batch_rows_caveat(parts: Parts) -> str:
    """Describe what a change of `batch_rows` costs; "" if nothing."""
    if not parts.keeps_state:
        return ""
    changed = [stage.where for stage in parts.scrub.stateful if stage.learns_by_batch]
    if parts.pipeline.trains:
        changed += ["the model's steps"] * parts.model.learner_class.learns_by_batch
    caveat = "needs --fresh"
    return f"{caveat}; {', '.join(changed[:3])} learn by the batch" if changed else caveat


def _held(memory: Callable[[], Mapping[str, int]], name: str) -> int:
    return memory()[name]


def _load(learner: Learner, layer: str, expert: int) -> float:
    return learner.expert_loads()[layer][expert]


def _client_bytes(side: SideSource) -> int:
    return side.nbytes


def _table_bytes(stage: SideStage) -> int:
    return stage.nbytes


def _table_rows(stage: SideStage) -> int:
    return stage.rows


def _state_bytes(stage: Stage) -> int:
    return size_of(stage.snapshot())


__all__ = ["make_loader", "make_loop", "rehearse", "require_batches_fit", "watch_memory"]
