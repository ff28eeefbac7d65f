"""The settings of the tabular learner, and what they make of the features: the shape of its
network, and what a saved model must share with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt

from engine.types import Features, UserError, nearest
from models.layers.embedding import embedding_width
from models.learners.network import NetworkShape
from models.learners.online.settings import OnlineSettings, OnlineTraining


class TabularSettings(OnlineSettings):
    """The learner's own keys of ``[model]``.

    Attributes:
        layers: widths of the hidden layers.
        embedding_dim: width of the vectors of categories and ids, one for all or by column;
            unless given, by the number of codes (`models.layers.embedding.embedding_width`).
        conv_channels: widths of the layers that images go through
            (`models.learners.network.NetworkShape`).
        activation: function after each hidden layer.
        dropout [share]: share of hidden units silenced in a training step.
        sparse_embeddings: only the rows of a table that a batch uses get a gradient: for tables
            of many thousand codes. They get no l1 or weight_decay, and adam becomes SparseAdam.
        skip_connection: a linear path from the inputs to the output beside the layers.
    """

    layers: tuple[PositiveInt, ...] = (128, 64)
    embedding_dim: PositiveInt | dict[str, PositiveInt] | None = None
    conv_channels: tuple[PositiveInt, ...] = Field((16, 32, 64), min_length=1)
    activation: Literal["relu", "silu", "gelu"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    sparse_embeddings: bool = False
    skip_connection: bool = False


class TabularTraining(OnlineTraining):
    """``[train]`` of the tabular learner."""


def network_shape(settings: TabularSettings, features: Features) -> NetworkShape:
    """Return the shape of the network for these features.

    Raises: UserError for features that it cannot read.
    """
    if not features.numeric and not features.categories and not features.nested:
        raise UserError("[model] needs features: name columns in 'numeric' or 'categories'.")
    if features.padded:
        raise UserError(
            "[model] padded is for a learner of your own, and kind = 'tabular' takes lists of any "
            f"length: name '{next(iter(features.padded))}' in 'ragged' or 'sparse'."
        )
    if features.arrays:
        raise UserError(
            "[model] arrays is for a network with inputs of its own, and kind = 'tabular' has "
            f"none: name '{next(iter(features.arrays))}' in [model.inputs.NAME] columns."
        )
    lists = {**features.ragged, **features.sparse}
    for name, ids in lists.items():
        if not ids:
            raise UserError(
                f"[model] ragged expects ids in column '{name}', and no stage says how many there "
                "are: make them with a 'tokens' stage."
            )
    sizes = {**features.categories, **lists}
    if len(sizes) < len(features.categories) + len(features.ragged) + len(features.sparse):
        raise UserError("[model] expects a column in one of 'categories', 'ragged' and 'sparse'.")
    widths = _embedding(settings.embedding_dim, sizes)
    return NetworkShape(
        numeric=len(features.numeric),
        categories=tuple(features.categories.values()),
        embedding_dim=widths[: len(features.categories)],
        layers=settings.layers,
        outputs=features.most_outputs,
        activation=settings.activation,
        skip_connection=settings.skip_connection,
        sparse=settings.sparse_embeddings and bool(sizes),
        bags=tuple(zip(lists.values(), widths[len(features.categories) :], strict=True)),
        images=tuple(channels for channels, _, _ in features.images.values()),
        conv_channels=settings.conv_channels if features.images else (),
    )


def own_identity(
    settings: TabularSettings, features: Features, shape: NetworkShape
) -> dict[str, Any]:
    """Return what a saved state must share with a tabular learner beside the rest, by the key to
    change."""
    own: dict[str, Any] = {
        "[model] layers": list(settings.layers),
        "[model] embedding_dim": list(shape.embedding_dim),
        "[model] activation": settings.activation,
        "[model] skip_connection": settings.skip_connection,
        "[model] sparse_embeddings": settings.sparse_embeddings,
    }
    if features.nested:
        lists = {**features.ragged, **features.sparse}
        own["[model] images"] = [[name, *shape] for name, shape in features.images.items()]
        own["[model] ragged"] = [list(pair) for pair in features.ragged.items()]
        own["[model] sparse"] = [list(pair) for pair in features.sparse.items()]
        own["[model] conv_channels"] = list(settings.conv_channels)
        own["[model] bags"] = [list(pair) for pair in shape.bags] if lists else []
    return own


def _embedding(asked: int | Mapping[str, int] | None, sizes: Mapping[str, int]) -> tuple[int, ...]:
    if isinstance(asked, int):
        return (asked,) * len(sizes)
    asked = asked or {}
    for name in asked:
        if name not in sizes:
            raise UserError(
                f"[model] embedding_dim names '{name}', which is none of the categories or lists."
                f"{nearest(name, sizes)}"
            )
    return tuple(asked.get(name, embedding_width(codes)) for name, codes in sizes.items())


__all__ = ["TabularSettings", "TabularTraining", "network_shape", "own_identity"]
