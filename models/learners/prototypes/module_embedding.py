"""The embedding that a module of torch makes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import nn

from engine.types import Features, GraphBuilder, Tensors, UserError
from models.learners.modules.trial import made_rows
from models.learners.modules.user_module import (
    error_text,
    forward_of,
    make_module,
    matched_masks,
    named,
)
from models.learners.modules.weights import load_weights
from models.learners.prototypes.embedding import TOLERANCE, TRIED_ROWS, Embedding, Rows
from models.learners.prototypes.settings import PrototypeSettings
from models.net_input import NetInput, tensors_of
from models.seeded import seeded


class ModuleEmbedding(Embedding):
    """The vectors that a module of torch makes, in evaluation mode.

    Args:
        module: with its weights.
        source: as `models.learners.modules.user_module.named` takes it.
        masks: ``NAME_mask`` that its forward gets.

    Raises: UserError for a forward that raises, or returns no finite vector for each row.
    """

    def __init__(
        self,
        module: nn.Module,
        source: str | nn.Module,
        inputs: Sequence[NetInput],
        masks: Sequence[str],
        features: Features,
        *,
        seed: int,
    ) -> None:
        self._module = module.cpu().eval().requires_grad_(False)
        self._who = named(source)
        self._inputs = inputs
        self._names = (*(entry.name for entry in inputs), *masks)
        self._features = features
        self._seed = seed
        self.scaled = np.zeros(self._tried_width(), np.bool_)

    @classmethod
    def of(
        cls, settings: PrototypeSettings, inputs: Sequence[NetInput], features: Features
    ) -> Self:
        """Return the embedding by `settings.module`, which is made and gets its weights."""
        module = make_module(settings.module, settings.arguments, seed=settings.seed)
        if settings.weights is not None:
            load_weights(module, settings.weights)
        forward = forward_of(settings.module, settings.arguments)
        masks = matched_masks(settings.module, forward, inputs)
        return cls(module, settings.module, inputs, masks, features, seed=settings.seed)

    @cached_property
    def digest(self) -> str:
        seal = hashlib.sha256()
        for name, tensor in self._module.state_dict().items():
            seal.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            seal.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return seal.hexdigest()[:16]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._module.state_dict().values())

    def embed(self, rows: Tensors) -> Rows:
        if not len(rows):
            return np.empty((0, self.width), np.float32)
        vectors: Rows = self._called(rows).float().numpy()
        return np.ascontiguousarray(vectors)

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        from models.export.body import write_module

        return write_module(
            graph, self._module, self._names, self._inputs, self._features, numeric, categories,
            outputs=self.width, name=self._who,
        )  # fmt: skip

    def _called(self, rows: Tensors) -> torch.Tensor:
        tensors = tensors_of(rows, self._inputs)
        with torch.inference_mode():
            vectors: torch.Tensor = self._module(**{name: tensors[name] for name in self._names})
        return vectors

    def _tried_width(self) -> int:
        rows = made_rows(self._features, TRIED_ROWS)
        try:
            with seeded(self._seed):  # a module that draws is found by its two answers
                together = self._called(rows)
                alone = self._called(rows.take(np.array([0])))
        except Exception as error:
            raise UserError(
                f"{self._who} fails on {TRIED_ROWS} made rows: {error_text(error)}."
            ) from error
        shape = tuple(together.shape) if isinstance(together, torch.Tensor) else type(together)
        if not isinstance(together, torch.Tensor) or len(shape) != 2 or len(together) != TRIED_ROWS:
            raise UserError(
                f"{self._who} returns {shape} for {TRIED_ROWS} rows, and prototypes need a vector "
                f"for each, ({TRIED_ROWS}, width): pool or flatten what it makes."
            )
        if not together.is_floating_point() or not together.isfinite().all():
            raise UserError(
                f"{self._who} returns {str(together.dtype).removeprefix('torch.')} that are not "
                "all finite floats: prototypes are means of such numbers."
            )
        apart = (together[:1] - alone).abs().max() / together.abs().max().clamp(min=1e-12)
        if apart > TOLERANCE:
            raise UserError(
                f"{self._who} gives a row another vector alone than beside others: its prototypes "
                "would depend on the batch. Take out what mixes rows, or draws random numbers."
            )
        return int(together.shape[1])


__all__ = ["ModuleEmbedding"]
