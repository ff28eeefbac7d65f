"""Runs a pipeline: builds its parts (`engine.assembly`), checks the rules (`engine.rules`), runs
the loop and writes the artifacts (`engine.artifacts`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from engine import artifacts, rules
from engine.artifacts import Summary
from engine.assembly import restoring
from engine.assembly.identity import identity_of
from engine.assembly.loop import (
    make_loader,
    make_loop,
    rehearse,
    require_batches_fit,
    watch_memory,
)
from engine.assembly.parts import Parts
from engine.config import Pipeline
from engine.loading.loader import Loader
from engine.observing import compiling
from engine.observing.metrics import Metrics
from engine.quality.evaluation import Evaluation
from engine.running.loop import Loop
from engine.running.reject_limit import TooManyRejects
from engine.running.saving.checkpoint import CheckpointFailed, Checkpoints
from engine.system.lock import locked
from engine.types import (
    Batch,
    Features,
    Learner,
    Mark,
    Schema,
    SharedSource,
    Sink,
    Source,
    Stage,
    UserError,
)

if TYPE_CHECKING:
    import torch


class Run:
    """A pipeline, whose parts are built on first use; an unused part is never opened.

    Args:
        pipeline: a file as read, or its path.
        overrides: "a.b=c" texts, for a path.
        watch: called after every batch.
        replay: whether to read the dead letters instead of the source. The result is in the same
            checkpoint, so a letter is replayed once.
        module: a `torch.nn.Module` to train, in place of [model] module. It stays as it is: the
            run trains a copy, `learner.unwrapped.module`.

    Attributes:
        parts: all parts; the most used ones are also properties of the run.
    """

    def __init__(
        self,
        pipeline: Pipeline | str | Path,
        overrides: Iterable[str] = (),
        *,
        watch: Callable[[Loop, Batch], None] | None = None,
        replay: bool = False,
        module: torch.nn.Module | None = None,
    ) -> None:
        if not isinstance(pipeline, Pipeline):
            pipeline = Pipeline.load(pipeline, overrides)
        rules.require_sections(pipeline)
        self.pipeline = pipeline
        self.folder = Path(pipeline.folder)
        self.metrics = Metrics()
        self.parts = Parts(pipeline, self.metrics, replay=replay, module=module)
        self._watch = watch
        self._mark = Mark()

    # -------------------------------------------------------------------------------------- parts

    @property
    def source(self) -> Source:
        """The source."""
        return self.parts.endpoints.source

    @property
    def stages(self) -> list[Stage]:
        """The bound stages in order; for serving, without those inside the model file."""
        return self.parts.scrub.stages

    @property
    def schema(self) -> Schema:
        """The columns after the last stage."""
        return self.parts.scrub.schema

    @property
    def features(self) -> Features:
        """The features of the model in training, with the classes that it knows now."""
        return self.learner.features

    @property
    def learner(self) -> Learner:
        """The model in training."""
        return self.parts.model.learner

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation of the model in training."""
        return self.parts.judging.evaluation

    @property
    def sink(self) -> Sink | None:
        """The sink of results; None if the pipeline has none."""
        return self.parts.endpoints.sink

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoint folder."""
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
        """Return a loader of all columns, for a training loop of your own."""
        return make_loader(self.parts, self.parts.scrub.source_schema)

    @cached_property
    def loop(self) -> Loop:
        """The loop, ready to resume and run."""
        return make_loop(self.parts, self._watch)

    # -------------------------------------------------------------------------------------- actions

    def assemble(self) -> None:
        """Build every part and check the rules, so that what cannot work is refused before a row is
        read. Learns nothing and writes nothing.

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
            if not self.parts.scrub.is_untyped():
                raise
            raise UserError(
                f"The source of {self.pipeline.file} has no rows yet, so the types of its columns "
                "are not known: declare them in [source.schema], or start when there are rows. "
                f"With all of them taken for text: {error}"
            ) from error

    def run(self, *, fresh: bool = False) -> Summary:
        """Resume from the newest checkpoint, run to the end of the source or a signal, and report.

        Args:
            fresh: delete the checkpoints first, and start over.

        Raises: UserError, also if another engine works in a folder of this one; TooManyRejects,
            HeadraceError; what user code in stages or learners raises.
        """
        self.parts.endpoints.fresh = fresh
        with compiling.reported(self.parts.heartbeat):
            self.assemble()  # mistakes in the file are reported before a folder is made
            loop = self.loop
            with self.exclusive():
                if fresh:
                    self.delete_all()
                else:
                    rules.require_own_output(self.parts)
                return self._run(loop)

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Lock the output folders for a block.

        Raises: UserError if another engine holds one.
        """
        files = [self.pipeline.model_path] if self.pipeline.exports else []
        return locked(artifacts.output_folders(self.parts), files)

    def delete_all(self) -> None:
        """Delete the checkpoints of this pipeline. The next start begins at the source's own start
        and deletes the results."""
        if isinstance(self.source, SharedSource):
            self.source.reset_offsets()
        self.checkpoints.delete_all()

    def restore(self) -> bool:
        """Restore stages and learner from the newest checkpoint; return whether there is one."""
        return self._restored() is not None

    def require_learned(self) -> None:
        """Restore the newest checkpoint. Raises: UserError if there is none, or its model has
        learned nothing."""
        restored, place = self._restored(), self.checkpoints.settings.path
        if restored is None:
            raise UserError(
                f"There is no checkpoint in {place}: run 'headrace run {self.pipeline.file}' first."
            )
        if not artifacts.knows_something(self.parts, restored.learned):
            raise UserError(
                f"The model of the newest checkpoint in {place} has learned no row, so it knows "
                f"nothing: run 'headrace run {self.pipeline.file}' on rows with labels first."
            )

    def export(self, path: Path | None = None) -> Path:
        """Write the restored model, or the one the run left; see `engine.artifacts.export`."""
        file = artifacts.export(self.parts, self._mark, path)
        artifacts.log_outside(self.parts, file)
        return file

    # ------------------------------------------------------------------------------------- inside

    def _restored(self) -> restoring.Restored | None:
        restored = restoring.restore(self.parts)
        if restored is not None:
            self._mark = restored.mark
        return restored

    def _assemble(self) -> None:
        """Build and check from the source on: the first complaint is the one that is shown."""
        parts, endpoints = self.parts, self.parts.endpoints
        _ = endpoints.source
        rules.require_writable(parts)
        rules.require_no_feedback(parts)
        rules.require_free_names(parts)
        rules.require_static_member(parts)
        rules.require_late_labels(parts)
        rules.require_shufflable(parts)
        rules.require_repeatable(parts)
        require_batches_fit(parts)
        _ = (parts.judging.evaluation, parts.judging.holdout) if self.trains else ()
        _ = parts.work, parts.collate, parts.transfer, endpoints.transaction
        _ = endpoints.dead_letters, endpoints.checkpoints, parts.service_settings, parts.traces
        rules.require_exportable(parts)
        rules.require_sink_schema(parts)

    def _run(self, loop: Loop) -> Summary:
        start, parts = time.perf_counter(), self.parts
        watch_memory(parts, loop.loader)
        rules.log_uncalled_members(parts)
        if self.source.unbounded():
            rehearse(parts)
        with self._serving(), parts.heartbeat.watched(), parts.served.watched(self.metrics):
            resumed = loop.resume()
            before, read = dict(loop.totals.counts), loop.totals.read
            if not resumed:
                artifacts.write_schema(parts)
                parts.served.log_cold(parts.scrub.stateful)
                if self.trains:
                    parts.model.label.log_hint()
            with parts.traces.opened():
                failed = self._loop(loop)
            parts.heartbeat.rest()
            bottleneck = loop.reporter.bottleneck()
            files, compression = artifacts.leave(parts, loop, before, failed)
            if self.trains:
                self._mark = loop.mark
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
            remarks=(*self.source.remarks(), *artifacts.nothing_left(parts, loop, read)),
            files=files,
        )

    def _loop(self, loop: Loop) -> CheckpointFailed | TooManyRejects | None:
        """Run the loop; return an error after which the artifacts are written all the same."""
        try:
            loop.run()
            rules.require_learned(self.pipeline, loop)
        except CheckpointFailed as error:
            return error
        except TooManyRejects as error:
            in_files = self.pipeline.dead_letters.kind == "files" and loop.totals.rejected
            place = self.pipeline.dead_letters_path
            where = f" The rejected rows are in {place}." if in_files else ""
            return TooManyRejects(f"{error}{where}")
        return None

    @contextlib.contextmanager
    def _serving(self) -> Iterator[None]:
        self.metrics.up.set(1)
        if self.pipeline.service is None:
            yield
            return
        self.parts.service.start()
        try:
            yield
        finally:
            self.metrics.up.set(0)
            self.parts.service.stop()


__all__ = ["Run", "Summary"]
