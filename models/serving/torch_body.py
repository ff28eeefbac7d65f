"""Scores by a network that torch runs behind the graph of a model file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.types import Learner
from engine.user_code.calls import Calling
from models.export.front_tensors import FrontTensors
from models.export.onnx_inputs import Feed


class TorchBody:
    """A network behind a front.

    Args:
        session: of the front.
        learner: predicts with the network.
    """

    def __init__(self, session: Any, learner: Learner) -> None:
        self._front = FrontTensors(session, learner.features)
        self._learner = learner

    def scores(self, feed: Feed, n: int) -> NDArray[np.float32]:
        """Return the scores of n rows, shape (n,) or (n, k); NaN for those that training would
        reject."""
        tensors, bad = self._front.of(feed, n)
        with Calling("infer", self._learner, key="module"):
            scores = self._learner.predict(tensors).astype(np.float32)
        scores[bad] = np.nan
        return scores


__all__ = ["TorchBody"]
