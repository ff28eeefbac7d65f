"""headrace's engine: streams in, clean batches out, models learned and served. See README.md beside
this file.

The names here are the Python face of everything a pipeline file can do. Importing them loads no
broker client and no ONNX Runtime; a pipeline loads what it names.
"""

from engine.collate import Collate
from engine.config import LoaderSettings, Pipeline
from engine.evaluation import Evaluation
from engine.loader import Loader
from engine.loop import Flood, Loop, Totals
from engine.metrics import Metrics
from engine.run import Run, Summary, run
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

__all__ = [
    "Batch",
    "Collate",
    "EndOfStream",
    "Evaluation",
    "Features",
    "Flood",
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
    "Totals",
    "UserError",
    "run",
]
