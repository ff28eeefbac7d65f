"""Opens the file that [infer] names: one that headrace wrote, or any other ONNX file."""

from __future__ import annotations

from pathlib import Path

from engine.types import Predictor, UserError
from models.export import model_files
from models.serving.base import require_model
from models.serving.predictor import Network, OnnxPredictor
from models.serving.settings import InferSettings, Validate, validated


def open_model(
    settings: InferSettings,
    validate: Validate = validated,
    *,
    probabilities: bool = False,
    network: Network | None = None,
) -> Predictor:
    """Return the predictor of a file.

    Args:
        validate: makes settings of a table of the pipeline file.
        probabilities: as [sink] probabilities asks.
        network: see `OnnxPredictor`.

    Raises: UserError if the file cannot be served.
    """
    path = Path(settings.model)
    require_model(path)
    if not model_files.is_sealed(path):
        if settings.module is not None:
            raise UserError(
                f"[infer] module is for model files that headrace wrote, and '{path}' was made "
                "elsewhere: take module out."
            )
        from models.serving.graph_predictor import open_graph  # what a file of ours does without

        return open_graph(settings, validate, probabilities=probabilities)
    for key, given in (("inputs", settings.inputs), ("outputs", settings.outputs)):
        if given:
            raise UserError(
                f"[infer] model '{path}' was written by headrace and knows its inputs and "
                f"outputs: take [infer] {key} out."
            )
    return OnnxPredictor(settings, probabilities=probabilities, network=network)


__all__ = ["open_model"]
