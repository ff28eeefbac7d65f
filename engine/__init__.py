"""headrace's engine: streams in, clean batches out, models trained and served. See README.md beside
this file.

The names here are the Python face of everything a pipeline file can do. Each is imported when it is
first asked for: `import engine` alone loads no library, and a pipeline loads what it names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from engine.system import environment

if TYPE_CHECKING:
    from engine.artifacts import Summary
    from engine.config import LoaderSettings, Pipeline
    from engine.loading.collate import Collate
    from engine.loading.loader import Loader
    from engine.observing.metrics import Metrics
    from engine.quality.evaluation import Evaluation
    from engine.run import Run
    from engine.running.loop import Loop
    from engine.running.reject_limit import TooManyRejects
    from engine.running.totals import Totals
    from engine.types import (
        Batch,
        EndOfStream,
        Features,
        Format,
        HeadraceError,
        Learner,
        Mark,
        Predictor,
        Records,
        Rejects,
        Settings,
        Sink,
        Source,
        Stage,
        Step,
        Tensors,
        UserError,
    )

_ELSEWHERE = {
    "Collate": "loading.collate",
    "Evaluation": "quality.evaluation",
    "TooManyRejects": "running.reject_limit",
    "Loader": "loading.loader",
    "LoaderSettings": "config",
    "Loop": "running.loop",
    "Metrics": "observing.metrics",
    "Pipeline": "config",
    "Run": "run",
    "Summary": "artifacts",
    "Totals": "running.totals",
}
"""Name -> its module, for names outside `engine.types`."""

__all__ = [
    "Batch",
    "Collate",
    "EndOfStream",
    "Evaluation",
    "Features",
    "Format",
    "HeadraceError",
    "Learner",
    "Loader",
    "LoaderSettings",
    "Loop",
    "Mark",
    "Metrics",
    "Pipeline",
    "Predictor",
    "Records",
    "Rejects",
    "Run",
    "Settings",
    "Sink",
    "Source",
    "Stage",
    "Step",
    "Summary",
    "Tensors",
    "TooManyRejects",
    "Totals",
    "UserError",
]

environment.prepare()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"engine.{_ELSEWHERE.get(name, 'types')}"), name)
