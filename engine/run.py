"""A run of a pipeline: its parts are made (`engine.assembly`), held to the rules (`engine.rules`),
put to work by the loop, and leave their results (`engine.artifacts`)."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import polars as pl

from engine import artifacts, rules
from engine.artifacts import Summary
from engine.assembly.identity import identity_of
from engine.assembly.loop import (
    make_loader,
    make_loop,
    rehearse,
    require_batches_fit,
    watch_memory,
)
from engine.assembly.parts import Parts
from engine.config import Pipeline, detached_source
from engine.loading.loader import Loader
from engine.observing.metrics import Metrics
from engine.observing.service import Health, Heartbeat, Service
from engine.quality.evaluation import Evaluation
from engine.running.checkpoint import CheckpointFailed, Checkpoints, require_plain
from engine.running.loop import Loop
from engine.running.reject_limit import TooManyRejects
from engine.scrub.base import restore, snapshots
from engine.system.lock import locked
from engine.types import (
    Batch,
    EndOfStream,
    Features,
    Learner,
    Mark,
    Schema,
    SharedSource,
    Sink,
    Snapshot,
    Source,
    Stage,
    UserError,
)

log = logging.getLogger("headrace.run")
TRIED_BYTES, TRIED_SECONDS = 1 << 20, 1.0
"""Of one read, to try whether a source can go on where a checkpoint ends."""


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
        rules.require_sections(pipeline)
        self.pipeline = pipeline
        self.folder = Path(pipeline.folder)
        self.metrics = Metrics()
        self.parts = Parts(pipeline, self.metrics, replay=replay)
        self._watch = watch
        self._mark = Mark()

    # -------------------------------------------------------------------------------------- parts

    @property
    def source(self) -> Source:
        """Where records come from."""
        return self.parts.endpoints.source

    @property
    def stages(self) -> list[Stage]:
        """Bound stages, in order; in serving, without those that the model file contains."""
        return self.parts.scrub.stages

    @property
    def schema(self) -> Schema:
        """The columns after the last stage."""
        return self.parts.scrub.schema

    @property
    def features(self) -> Features:
        """What the model reads."""
        return self.parts.model.features

    @property
    def learner(self) -> Learner:
        """What learns."""
        return self.parts.model.learner

    @property
    def evaluation(self) -> Evaluation:
        """What judges the learner's answers."""
        return self.parts.model.evaluation

    @property
    def sink(self) -> Sink | None:
        """Where results go."""
        return self.parts.endpoints.sink

    @property
    def dead_letters(self) -> Sink:
        """Where rejected rows go."""
        return self.parts.endpoints.dead_letters

    @property
    def checkpoints(self) -> Checkpoints:
        """Where state is saved."""
        return self.parts.endpoints.checkpoints

    @property
    def trains(self) -> bool:
        """Whether this pipeline learns."""
        return self.pipeline.trains

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must have in common with this pipeline to be resumed from."""
        return identity_of(self.parts)

    def loader(self) -> Loader:
        """A loader of this pipeline's batches, for a loop of your own: with all columns."""
        return make_loader(self.parts, self.parts.scrub.source_schema)

    @cached_property
    def loop(self) -> Loop:
        """The loop, ready to resume and run."""
        return make_loop(self.parts, self.heartbeat, self._watch)

    @cached_property
    def heartbeat(self) -> Heartbeat:
        """What /livez looks at."""
        return Heartbeat(self.parts.service_settings.stall_timeout, metrics=self.metrics)

    @cached_property
    def service(self) -> Service:
        """The metrics page."""
        settings = self.parts.service_settings
        return Service(self.metrics, settings, live=self.heartbeat.health, ready=self._ready)

    # -------------------------------------------------------------------------------------- deeds

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
            if not self._is_untyped():
                raise
            raise UserError(
                f"The source of {self.pipeline.file} has no rows yet, so the types of its columns "
                "are not known: declare them in [source.schema], or start when there are rows. "
                f"With all of them taken for text: {error}"
            ) from error

    def run(self, *, fresh: bool = False) -> Summary:
        """Resume at the newest checkpoint, run to the end of the source (or a signal), report.

        Args:
            fresh: forget the checkpoints first, and start over.

        Raises: UserError, also where another engine works in a folder of this one; TooManyRejects,
            HeadraceError; what user code in stages or learners raises.
        """
        self.parts.endpoints.fresh = fresh
        self.assemble()  # what is wrong in the file is said before a folder is made
        loop = self.loop
        with self.exclusive():
            if fresh:
                self.delete_all()
            else:
                rules.require_own_output(self.parts)
            return self._run(loop)

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """For the block, nobody else writes where this run writes.

        Raises: UserError where somebody does.
        """
        files = [] if self.pipeline.export is None else [self.pipeline.model_path]
        return locked(artifacts.output_folders(self.parts), files)

    def delete_all(self) -> None:
        """Delete this pipeline's checkpoints; its results go with the next start, which is at the
        source's own."""
        if isinstance(self.source, SharedSource):
            self.source.reset_offsets()
        self.checkpoints.delete_all()

    def restore(self) -> bool:
        """Put the newest checkpoint's state into stages and learner, to export or look at; whether
        there was one."""
        return self._restore() is not None

    def try_resume(self) -> None:
        """Do of a resume all that can be done while nothing is written and no group is joined.

        Raises: UserError, HeadraceError where a run would.
        """
        rules.require_own_output(self.parts)
        state = self._restore()
        if state is None:
            return
        for name, sink in self.parts.endpoints.sinks.items():
            sink.require(state[name])
        if isinstance(self.source, SharedSource) and self.source.shares_partitions:
            return  # its group says where to go on, to members alone
        detached = {"source": detached_source(self.pipeline.source)}
        parts = Parts(self.pipeline.model_copy(update=detached), Metrics())
        _ = parts.scrub.source_schema
        with contextlib.closing(parts.endpoints.source) as tried, contextlib.suppress(EndOfStream):
            tried.match_identities(state["identities"])
            tried.seek(self._mark)
            tried.read(1, TRIED_BYTES, TRIED_SECONDS)

    def require_plain(self) -> None:
        """Raises: HeadraceError where a checkpoint cannot hold the state of stages or learner."""
        require_plain(self._state())

    def export(self, path: Path | None = None) -> Path:
        """Write the model as it was restored, or as the run left it; see
        `engine.artifacts.export`."""
        return artifacts.export(self.parts, self._mark, path)

    # ------------------------------------------------------------------------------------- inside

    def _assemble(self) -> None:
        """In this order, as the first complaint is the one that is shown: from the source on."""
        parts, endpoints = self.parts, self.parts.endpoints
        _ = endpoints.source
        rules.require_writable(parts)
        rules.require_no_feedback(parts)
        rules.require_static_member(parts)
        rules.require_shufflable(parts)
        rules.require_repeatable(parts)
        require_batches_fit(parts)
        _ = (parts.model.evaluation, parts.model.holdout) if self.trains else ()
        _ = parts.work, parts.collate, parts.transfer, endpoints.transaction
        _ = endpoints.dead_letters, endpoints.checkpoints, parts.service_settings
        rules.require_exportable(parts)
        rules.require_sink_schema(parts)

    def _is_untyped(self) -> bool:
        """Whether the columns have the types that a source without rows gives them."""
        if self.pipeline.source.get("schema"):
            return False
        if self.source.unbounded() or not self.source.can_be_reread():
            return False
        if any(dtype != pl.String for dtype in self.parts.scrub.source_schema.values()):
            return False
        with contextlib.closing(self.parts.endpoints.another_source()) as source:
            source.schema({})
            return not source.sample(1, 1.0)

    def _run(self, loop: Loop) -> Summary:
        start, parts = time.perf_counter(), self.parts
        watch_memory(parts, loop.loader)
        if self.source.unbounded():
            rehearse(parts)
        with self._serving(), self.heartbeat.watched():
            resumed = loop.resume()
            before = dict(loop.totals.counts)
            if not resumed:
                artifacts.write_schema(parts)
                self._log_hint()
            failed = self._loop(loop)
            bottleneck = loop.bottleneck()
            stopped = loop.stopped or isinstance(failed, TooManyRejects)
            files, compression = artifacts.leave(parts, loop, before, export_model=not stopped)
            if self.trains:
                self._mark = loop.mark
            self._log_no_export(loop, failed)
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

    def _loop(self, loop: Loop) -> CheckpointFailed | TooManyRejects | None:
        """Run the loop; an error after which what was done is left all the same."""
        try:
            loop.run()
            rules.require_learned(self.pipeline, loop)
        except CheckpointFailed as error:
            return error
        except TooManyRejects as error:
            in_files = self.pipeline.dead_letters.kind == "files"
            where = f" They are in {self.pipeline.dead_letters_path}." if in_files else ""
            return TooManyRejects(f"{error}{where}")
        return None

    def _log_hint(self) -> None:
        """Which task was chosen, where the labels may be classes."""
        hint = self.parts.model.target.hint() if self.trains else None
        if hint is not None:
            log.warning("%s", hint)

    def _log_no_export(self, loop: Loop, failed: Exception | None) -> None:
        """Why a run with an [export] leaves no model."""
        too_many = isinstance(failed, TooManyRejects)
        if self.pipeline.export is not None and (too_many or (loop.stopped and not failed)):
            log.log(
                logging.WARNING if too_many else logging.INFO,
                "No model is exported of a run %s. Its checkpoint is saved: 'headrace export %s' "
                "writes one.",
                "with so many rejected rows" if too_many else "that is stopped",
                self.pipeline.file,
            )

    def _restore(self) -> Mapping[str, Snapshot] | None:
        state = self.checkpoints.load(self.identity)
        if state is None:
            return None
        with self.checkpoints.restoring(state, lambda: {**dict.fromkeys(state), **self._state()}):
            restore(self.stages, state["stages"])
            self.parts.work.load_state_dict(state["work"])
        self._mark = Mark(positions=state["positions"], stages=state["stages"])
        return state

    def _state(self) -> dict[str, Snapshot]:
        """What `restore` restores."""
        return {"stages": snapshots(self.stages), "work": self.parts.work.state_dict()}

    def _ready(self) -> Health:
        health = self.heartbeat.health()
        if health.ok and isinstance(self.source, SharedSource):
            reason = self.source.unavailable_reason()
            return health if reason is None else Health(False, reason)
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


__all__ = ["Run", "Summary"]
