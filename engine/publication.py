"""Publishes a version of a model that still learns, from its checkpoint, in a child process."""

from __future__ import annotations

import tempfile
from pathlib import Path

from engine import artifacts
from engine.assembly import restoring
from engine.assembly.parts import Parts
from engine.config import Pipeline
from engine.observing.metrics import Metrics
from engine.types import HeadraceError
from engine.versions.publishing import PublishJob
from engine.versions.version import Version


def publish(job: PublishJob) -> Version:
    """Publish the checkpoint of a job. The function of a child process.

    Raises: HeadraceError, OSError if there is no version of it; the pointer stays then.
    """
    with tempfile.TemporaryDirectory(dir=job.checkpoints) as folder:
        parts = Parts(_pipeline(job, Path(folder)), Metrics(), module=job.module)
        restored = restoring.restore(parts)
        if restored is None:
            raise HeadraceError("there is no checkpoint to publish")
        artifacts.export(parts, restored.mark)
        if parts.judging.compression is not None:
            artifacts.compress(parts)
        return artifacts.add_version(parts, rows=job.rows, data_time=job.data_time)


def _pipeline(job: PublishJob, folder: Path) -> Pipeline:
    """Return the pipeline of a job, with a checkpoint folder and model files of its own."""
    pipeline = Pipeline.resolved(job.table, where=job.file)
    assert pipeline.export is not None
    own = {"path": str(folder / "model.onnx"), "versions": job.versions, "keep": job.keep}
    changes: dict[str, object] = {
        "checkpoint": {**pipeline.checkpoint, "path": job.checkpoints},
        "export": pipeline.export.model_copy(update=own),
    }
    if pipeline.train is not None and "device" in pipeline.train:  # the GPU is the run's
        changes["train"] = {**pipeline.train, "device": "cpu"}
    return pipeline.model_copy(update=changes)


__all__ = ["publish"]
