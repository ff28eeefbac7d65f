"""One pass over a source: the survey, and the effect of a pipeline's stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl

from engine.config import LoaderSettings, Pipeline, detached_source
from engine.explore.findings import Findings, column_profiles, left_out, related, sentences, times
from engine.explore.notation import decimal_of, reads_null_values
from engine.explore.suggestion import suggestion
from engine.explore.survey import Survey
from engine.loading.loader import Loader
from engine.run import Run
from engine.types import Batch

BATCH = 65_536

Stages = dict[str, dict[str, int]]


def explore(
    target: str | Path | Pipeline,
    overrides: Iterable[str] = (),
    *,
    rows: int | None = None,
    time: str | None = None,
    watch: Callable[[Batch, float | None], None] | None = None,
) -> Findings:
    """Survey a source in one pass, in memory that does not grow with the rows.

    Args:
        target: a file, folder or glob that the files source reads, or a pipeline: its source is
            read from the start to where it ends now, its stages are tried, nothing is written and
            no group is joined.
        overrides: "a.b=c" texts, e.g. "source.delimiter=;", for a file or a pipeline's path.
        rows: to look at, the first ones; all unless given.
        time: a SQL expression for the time of a row, where its columns do not tell.
        watch: called after every batch, with the share of the source that is done (None: unknown).

    Raises: UserError for what is not there or cannot be read; HeadraceError for a source that
    fails.
    """
    pipeline = target if isinstance(target, Pipeline) else _pipeline(Path(target), overrides)
    run = Run(_source_and_stages(pipeline))
    survey = Survey(
        run.parts.scrub.source_schema,
        null_values=reads_null_values(run.source),
        decimal=decimal_of(run.source),
    )
    stages: Stages = {stage.name: {} for stage in run.stages}
    for side in run.parts.scrub.sides.values():
        side.is_trial = True
    rejected: dict[str, int] = {}
    details: dict[str, str] = {}
    read, waiting = 0, list[pl.DataFrame]()
    with _loader(run, pipeline) as loader:
        for batch in loader:
            assert batch.raw is not None
            left = None if rows is None else rows - read
            waiting.append(batch.raw if left is None else batch.raw.head(left))
            read += waiting[-1].height
            if sum(frame.height for frame in waiting) >= BATCH:
                survey.update(pl.concat(waiting), time=time)
                waiting = []
            _count(batch, stages, rejected, details)
            if watch is not None:
                done = run.source.progress(batch.mark)
                watch(batch, done if rows is None else max(done or 0, read / rows))
            if rows is not None and read >= rows:
                break
    if waiting:
        survey.update(pl.concat(waiting), time=time)
    survey.close()
    return _findings(pipeline, survey, stages, rejected, details, rows, run.source.found())


def _pipeline(path: Path, overrides: Iterable[str]) -> Pipeline:
    if path.suffix == ".toml":
        return Pipeline.load(path, overrides)
    table = {"name": "explore", "source": {"kind": "files", "path": str(path)}}
    pipeline = Pipeline.of(table, overrides, where="the command line")
    return pipeline.model_copy(update={"name": path.name})


def _loader(run: Run, pipeline: Pipeline) -> Loader:
    return Loader(
        run.source,
        schema=run.parts.scrub.source_schema,
        stages=run.stages,
        collate=None,
        settings=LoaderSettings(
            # Stages see batches as they will in a run: what they know of a batch are those before.
            batch_rows=pipeline.loader.batch_rows if run.stages else BATCH,
            memory_budget=pipeline.loader.memory_budget,
        ),
        keep_raw_from=0,
    )


def _source_and_stages(pipeline: Pipeline) -> Pipeline:
    """Return source and stages alone; a topic is read without its group, to its end."""
    table = pipeline.table()
    table_out = {
        "name": "explore",
        "source": detached_source(table["source"]),
        "scrub": table.get("scrub", {}),
    }
    return Pipeline.of(table_out, where=pipeline.file)


def _count(batch: Batch, stages: Stages, rejected: dict[str, int], details: dict[str, str]) -> None:
    for (stage, name), n in batch.counts.items():
        counts = stages.setdefault(stage, {})
        counts[name] = counts.get(name, 0) + n
    for rejects in batch.rejects:
        counts = stages.get(rejects.stage, rejected)
        key = rejects.reason if counts is rejected else f"rejected: {rejects.reason}"
        counts[key] = counts.get(key, 0) + len(rejects)
        if counts is rejected and len(rejects):
            details.setdefault(key, rejects.rows["detail"][0] or "")


def _findings(
    pipeline: Pipeline,
    survey: Survey,
    stages: Stages,
    rejected: dict[str, int],
    details: dict[str, str],
    rows: int | None,
    found: str,
) -> Findings:
    letters = pipeline.dead_letters
    bad = sum(n for reason, n in rejected.items() if reason not in letters.expected)
    findings = Findings(
        name=pipeline.name,
        found=found,
        rows=survey.rows,
        columns=column_profiles(survey),
        repeated=survey.seen.repeated,
        times=times(survey),
        related=related(survey),
        target=_target(pipeline),
        stages=stages,
        rejected=rejected,
        details=details,
        unreadable=bad > letters.limit * (survey.rows + sum(rejected.values())),
        left_out=tuple(left_out(survey, rows)),
    )
    return dataclasses.replace(
        findings, sentences=tuple(sentences(findings)), suggestion=suggestion(findings)
    )


def _target(pipeline: Pipeline) -> str | None:
    """Return the column of the label, if there is one."""
    target = (pipeline.model or {}).get("target")
    return target if isinstance(target, str) else None


__all__ = ["explore"]
