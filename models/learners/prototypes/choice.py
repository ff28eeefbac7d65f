"""Chooses the embedding that ``[model]`` asks for."""

from __future__ import annotations

from collections.abc import Sequence

from engine.types import Features, UserError
from models.learners.prototypes.embedding import Embedding, RawFeatures
from models.learners.prototypes.settings import PrototypeSettings
from models.net_input import NetInput


def chosen_embedding(
    settings: PrototypeSettings,
    inputs: Sequence[NetInput],
    features: Features,
    *,
    raw: RawFeatures,
    threads: int,
) -> Embedding:
    """Return the embedding by a file or a module; `raw` where neither is named.

    Raises: UserError for one that cannot be used, for lists of ids without one, and for numbers on
        a scale that moves before one.
    """
    if settings.embedding is None and settings.module is None:
        _require_no_ids(inputs)
        return raw
    embedding: Embedding
    if settings.embedding is not None:
        from models.learners.prototypes.file_embedding import FileEmbedding  # onnxruntime

        path, output = settings.embedding, settings.embedding_output
        embedding = FileEmbedding(path, output, inputs, features, threads=threads)
    else:
        from models.learners.prototypes.module_embedding import ModuleEmbedding

        embedding = ModuleEmbedding.of(settings, inputs, features)
    _require_fixed_scale(settings, features)
    return embedding


def _require_no_ids(inputs: Sequence[NetInput]) -> None:
    ids = next((entry for entry in inputs if entry.form == "ids"), None)
    if ids is not None:
        raise UserError(
            f"[model] kind = 'prototypes' reads '{ids.columns[0]}', lists of ids, whose mean "
            "says nothing: name what makes vectors of them in [model] module or embedding."
        )


def _require_fixed_scale(settings: PrototypeSettings, features: Features) -> None:
    """Raises: UserError if an embedding reads numbers on a scale that moves: what it makes of them
    cannot be brought into another one."""
    moving = [name for name in features.numeric if name in features.moving]
    if moving:
        key = "embedding" if settings.module is None else "module"
        raise UserError(
            f"[model] {key} reads '{moving[0]}', which a [scrub] stage scales by what it learns"
            ", so prototypes of earlier rows would be of another scale: give the stage its "
            "numbers (a 'normalize' with from_low and from_high, or learn = false), or take it "
            "out."
        )


__all__ = ["chosen_embedding"]
