"""The settings of kind = "prototypes"."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from engine.types import Name, Names, Settings
from engine.types.changes import Free
from models.learners.modules.user_module import require_source


class PrototypeInputSettings(Settings):
    """``[model.inputs.NAME]``: what an embedding reads.

    Attributes:
        columns: its columns, names or globs, all of one kind; see kind = "module".
    """

    columns: Names = Field(min_length=1)


class PrototypeSettings(Settings):
    """The learner's own keys of ``[model]``.

    Attributes:
        module: the embedding: a class of yours that inherits ``torch.nn.Module``, or a function
            that returns one, ``package.module:Class``. Its forward gets tensors as with kind =
            "module", numbers as the stages leave them, and returns a vector per row.
        arguments: what the class or function is called with.
        weights: a file of its weights, ``.safetensors`` or a state dict of torch.
        embedding: in place of a module an ONNX file, whose inputs are called like those of
            ``[model.inputs]``, or each like a column of numbers, as in headrace's own.
        embedding_output: which of its outputs is the vector; needed where it has several.
        inputs: ``[model.inputs.NAME]``, the inputs by name.
        distance: ``euclidean`` (squared), or ``cosine``.
        standardize: without an embedding, numbers that no stage has scaled are divided by their
            deviation.
        temperature: what distances are divided by before the softmax; learned unless given.
        neighbors [rows]: newest examples of each class that the baseline compares a row with; 0
            leaves it out.
        seed: of the module's first weights.
    """

    module: Any = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    weights: Name | None = None
    embedding: Name | None = None
    embedding_output: Name | None = None
    inputs: dict[str, PrototypeInputSettings] = Field(default_factory=dict)
    distance: Literal["euclidean", "cosine"] = "euclidean"
    standardize: bool = True
    temperature: float | None = Field(None, gt=0)
    neighbors: int = Field(20, ge=0, le=10_000)
    seed: int = Field(0, ge=0, lt=1 << 31)

    @model_validator(mode="after")
    def _one_embedding(self) -> Self:
        if self.module is not None and self.embedding is not None:
            raise ValueError("expected module or embedding, got both: take one out")
        for key, other in (
            ("arguments", "module"),
            ("weights", "module"),
            ("embedding_output", "embedding"),
        ):
            if getattr(self, key) and getattr(self, other) is None:
                raise ValueError(f"expected {other} beside {key}, which is of it")
        require_source(self.module)
        return self


class PrototypeTraining(Settings):
    """``[train]``.

    Attributes:
        threads: of the embedding.
    """

    threads: Free[int] = Field(1, ge=1, le=256)


__all__ = ["PrototypeInputSettings", "PrototypeSettings", "PrototypeTraining"]
