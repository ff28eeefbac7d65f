"""The tabular learner: a feed-forward network over numbers, categories, lists of ids and images."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from engine.types import GraphBuilder
from models.learners.network import NetworkShape, TabularNetwork
from models.learners.online.learner import OnlineLearner
from models.learners.tabular_settings import (
    TabularSettings,
    TabularTraining,
    network_shape,
    own_identity,
)


class TabularLearner(OnlineLearner[TabularNetwork]):
    """A feed-forward network with embeddings for categories, bags of embeddings for lists of ids
    (ragged: the mean, sparse: the sum) and convolutions for images; regression, binary or
    multiclass.

    Raises: UserError for settings that do not fit the task, the features or each other.
    """

    kind = "tabular"
    Settings = TabularSettings
    Training = TabularTraining
    settings: TabularSettings
    training: TabularTraining

    def make_network(self) -> TabularNetwork:
        settings = self.settings
        return TabularNetwork(
            self._shape, seed=settings.seed, device=self.device, dropout=settings.dropout
        )

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the computation of `predict` into an ONNX graph.

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.

        Returns:
            The name of the scores, float32, (n,) or (n, classes).
        """
        features, scorer = self.features, self._scorer
        raw = scorer.scoring_network.build(
            graph,
            scorer.scaler.build(graph, numeric),
            categories,
            ragged=[graph.column(name) for name in features.ragged],
            sparse=[graph.column(name) for name in features.sparse],
            images=[graph.column(name) for name in features.images],
        )
        return scorer.build_scores(graph, raw)

    @property
    def row_work(self) -> float:
        if self.features.images:
            return math.inf  # convolutions gain from every thread
        return sum(map(math.prod, self._shape.dense().values()))  # a table is little work

    def own_identity(self) -> dict[str, Any]:
        return own_identity(self.settings, self.features, self._shape)

    @cached_property
    def _shape(self) -> NetworkShape:
        return network_shape(self.settings, self.features)


__all__ = ["TabularLearner"]
