"""Layers of networks: torch's modules with one convention for masks and padding."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Tag

from models.layers.attention import AttentionSettings
from models.layers.convolution import ConvolutionSettings
from models.layers.dense import DenseSettings
from models.layers.embedding import EmbeddingSettings
from models.layers.experts import ExpertsSettings
from models.layers.pooling import PoolingSettings
from models.layers.recurrent import RecurrentSettings

LAYERS = (
    EmbeddingSettings,
    DenseSettings,
    ConvolutionSettings,
    PoolingSettings,
    RecurrentSettings,
    AttentionSettings,
    ExpertsSettings,
)
"""The settings of every kind of layer."""


def _kind(table: Any) -> str | None:
    # A function: pydantic takes no field with a validator, as all of `Settings` have, by its name.
    kind = table.get("kind") if isinstance(table, Mapping) else getattr(table, "kind", None)
    return None if kind is None else str(kind)


LayerTable: TypeAlias = Annotated[
    Annotated[EmbeddingSettings, Tag("embedding")]
    | Annotated[DenseSettings, Tag("dense")]
    | Annotated[ConvolutionSettings, Tag("convolution")]
    | Annotated[PoolingSettings, Tag("pooling")]
    | Annotated[RecurrentSettings, Tag("recurrent")]
    | Annotated[AttentionSettings, Tag("attention")]
    | Annotated[ExpertsSettings, Tag("experts")],
    Discriminator(_kind),
]
"""The type of a table of a list ``layers``: its `kind` says which settings it has."""

__all__ = ["LAYERS", "LayerTable"]
