"""The settings of the tabular learner, and what they make of the features: the shape of its
network, the scale of its target, and what a saved model must share with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, PositiveInt

from engine.types import Features, Settings, UserError, nearest
from models.challenge.challenger import ChallengeSettings
from models.learners.losses import LossSettings
from models.learners.network import NetworkShape, embedding_width
from models.learners.optimizer import OptimizerSettings
from models.learners.replay import ReplaySettings
from models.learners.target_transform import TargetScale, TargetTransform


class TabularSettings(Settings):
    """The learner's own keys of ``[model]``.

    Attributes:
        layers: widths of the hidden layers.
        embedding_dim: width of the vectors of categories and ids, one for all or by column;
            unless given, by the number of codes (`models.learners.network.embedding_width`).
        conv_channels: widths of the layers that images go through
            (`models.learners.network.NetworkShape`).
        activation: function after each hidden layer.
        dropout [share]: share of hidden units silenced in a training step.
        sparse_embeddings: only the rows of a table that a batch uses get a gradient: for tables
            of many thousand codes. They get no l1 or weight_decay, and adam becomes SparseAdam.
        skip_connection: a linear path from the inputs to the output beside the layers.
        standardize: scale the numeric features by their mean and deviation so far, but for
            those that a stage has scaled.
        target_transform: what a regression learns in place of its target: none, log1p, sqrt,
            standard (mean and deviation so far; the default), or a warp and then standard:
            ["sqrt", "standard"].
        seed: of first weights, dropout and replay.
    """

    layers: tuple[PositiveInt, ...] = (128, 64)
    embedding_dim: PositiveInt | dict[str, PositiveInt] | None = None
    conv_channels: tuple[PositiveInt, ...] = Field((16, 32, 64), min_length=1)
    activation: Literal["relu", "silu", "gelu"] = "relu"
    dropout: float = Field(0.0, ge=0, lt=1)
    sparse_embeddings: bool = False
    skip_connection: bool = False
    standardize: bool = True
    target_transform: TargetTransform | tuple[TargetTransform, ...] = "standard"
    seed: int = Field(0, ge=0)


class TabularTraining(LossSettings, OptimizerSettings, ReplaySettings, ChallengeSettings):
    """``[train]``: loss, optimizer, replay and change, the steps, and where the arithmetic is
    done.

    Attributes:
        step_rows [rows]: most rows of a step.
        device: ``auto`` is cuda where there is one.
        precision: bfloat16 computes the layers in it (autocast); weights stay float32.
        threads: of torch on the CPU, for the whole process. Unless given, 1 where a step is
            less than 100 million weights of layers times rows (`step_rows`) and reads no
            images, else torch's own number (``OMP_NUM_THREADS``, or the cores): threads that
            share a small step gain a quarter of its time on idle cores, and lose many times as
            much on busy ones. Another number may round weights otherwise.
    """

    step_rows: int = Field(1_024, ge=1)
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: int | None = Field(None, ge=1, le=256)


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
        outputs=features.outputs,
        activation=settings.activation,
        skip_connection=settings.skip_connection,
        sparse=settings.sparse_embeddings and bool(sizes),
        bags=tuple(zip(lists.values(), widths[len(features.categories) :], strict=True)),
        images=tuple(channels for channels, _, _ in features.images.values()),
        conv_channels=settings.conv_channels if features.images else (),
    )


def target_scale(settings: TabularSettings, features: Features) -> TargetScale:
    """Return the scale of the target, without rows.

    Raises: UserError for a transform that does not fit the task.
    """
    steps = _steps(settings, features)
    if steps and features.task != "regression":
        raise UserError(
            f"[model] target_transform is for regression, and task is '{features.task}': "
            "take it out."
        )
    transforms = [step for step in steps if step != "standard"]
    if len(transforms) > 1 or len(steps) > 2 or (len(steps) == 2 and steps[1] != "standard"):
        raise UserError(
            "[model] target_transform expects one of none, log1p, sqrt and standard, or a warp and "
            f"then standard, got {list(steps)}."
        )
    return TargetScale(
        transform=transforms[0] if transforms else "none", standard="standard" in steps
    )


def standardized(settings: TabularSettings, features: Features) -> list[bool]:
    """Return which numeric features the model scales."""
    return [settings.standardize and name not in features.scaled for name in features.numeric]


def identity(
    settings: TabularSettings,
    training: TabularTraining,
    features: Features,
    shape: NetworkShape,
    replay_rows: int,
) -> dict[str, Any]:
    """Return what a saved state must share with a learner, by the key to change."""
    own: dict[str, Any] = {}
    if features.nested:
        lists = {**features.ragged, **features.sparse}
        own["[model] images"] = [[name, *shape] for name, shape in features.images.items()]
        own["[model] ragged"] = [list(pair) for pair in features.ragged.items()]
        own["[model] sparse"] = [list(pair) for pair in features.sparse.items()]
        own["[model] conv_channels"] = list(settings.conv_channels)
        own["[model] bags"] = [list(pair) for pair in shape.bags] if lists else []
    return {
        **own,
        "[model] kind": "tabular",
        "[model] task": features.task,
        "[model] numeric": list(features.numeric),
        "[model] categories": [list(pair) for pair in features.categories.items()],
        "[model] classes": list(features.classes),
        "[model] layers": list(settings.layers),
        "[model] embedding_dim": list(shape.embedding_dim),
        "[model] activation": settings.activation,
        "[model] skip_connection": settings.skip_connection,
        "[model] sparse_embeddings": settings.sparse_embeddings,
        "[model] standardize": settings.standardize,
        "[model] target_transform": list(_steps(settings, features)),
        "[train] optimizer": training.optimizer,
        "[train] momentum": training.momentum,
        "[train] ema_decay": training.ema_decay > 0,
        "[train] replay_rows": replay_rows,
    }


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


def _steps(settings: TabularSettings, features: Features) -> tuple[str, ...]:
    asked = settings.target_transform
    if "target_transform" not in settings.model_fields_set and features.task != "regression":
        return ()
    steps = (asked,) if isinstance(asked, str) else asked
    return tuple(step for step in steps if step != "none")


__all__ = [
    "TabularSettings",
    "TabularTraining",
    "identity",
    "network_shape",
    "standardized",
    "target_scale",
]
