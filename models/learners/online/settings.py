"""The settings of learners that take optimizer steps, and what follows from them and the features:
the scale of the target, and what a saved model must share with a learner."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field

from engine.types import Features, Settings, UserError
from engine.types.changes import Free
from models.challenge.challenger import ChallengeSettings
from models.learners.online.losses import LossSettings
from models.learners.online.optimizer import OptimizerSettings
from models.learners.online.replay.buffer import ReplaySettings
from models.learners.online.target_transform import (
    RATE,
    AnyTargetScale,
    TargetScale,
    TargetScales,
    TargetTransform,
)


class OnlineSettings(Settings):
    """The keys of ``[model]`` for scales and random numbers.

    Attributes:
        standardize: scale the numeric features by their mean and deviation so far, but for
            those that a stage has scaled.
        target_transform: what a regression learns in place of its target: none, log1p, sqrt,
            standard (mean and deviation so far; the default), or a warp and then standard:
            ["sqrt", "standard"].
        vector_width: numbers of the vector that [train] loss = "contrastive" learns.
        seed: of first weights, dropout and replay.
    """

    standardize: bool = True
    target_transform: TargetTransform | tuple[TargetTransform, ...] = "standard"
    vector_width: int = Field(64, ge=2, le=65_536)
    seed: int = Field(0, ge=0)


class OnlineTraining(LossSettings, OptimizerSettings, ReplaySettings, ChallengeSettings):
    """``[train]``: loss, optimizer, replay and change, the steps, and where the arithmetic is
    done.

    Attributes:
        step_rows [rows]: most rows of a step.
        accumulate [parts]: parts of a step, passed through the network one after the other, whose
            gradients are added before the weights move: a step of many rows in the memory of
            fewer. Batch normalization sees the rows of a part, and class_weights weigh them.
        device: ``auto`` is cuda where there is one.
        precision: bfloat16 computes the layers in it (autocast); weights stay float32.
        threads: of torch on the CPU, for the whole process. Unless given, 1 where a step is
            less than 100 million weights of layers times rows (`step_rows`) and reads no
            images, else torch's own number (``OMP_NUM_THREADS``, or the cores): threads that
            share a small step gain a quarter of its time on idle cores, and lose many times as
            much on busy ones. Another number may round weights otherwise.
    """

    step_rows: int = Field(1_024, ge=1)
    accumulate: int = Field(1, ge=1, le=4_096)
    device: Free[Literal["cpu", "cuda", "auto"]] = "cpu"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Free[int | None] = Field(None, ge=1, le=256)


def target_scale(
    settings: OnlineSettings, training: OnlineTraining, features: Features
) -> AnyTargetScale:
    """Return the scale of the target, or those of all targets, without rows.

    Raises: UserError for a transform that does not fit the task or the loss.
    """
    one = _target_scale(settings, training, features)
    return TargetScales(each=(one,) * len(features.targets)) if features.targets else one


def _target_scale(
    settings: OnlineSettings, training: OnlineTraining, features: Features
) -> TargetScale:
    if training.deviance_power is not None:
        if "target_transform" in settings.model_fields_set:
            raise UserError(
                "[model] target_transform does not go with [train] loss = "
                f"'{training.loss}', which learns the logarithm of the mean: take one of them out."
            )
        return TargetScale(transform=RATE, standard=True)
    steps = _target_steps(settings, features)
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


def lowest_label(settings: OnlineSettings, training: OnlineTraining) -> float:
    """Return the smallest target of a regression that can be learned."""
    asked = settings.target_transform
    steps = (asked,) if isinstance(asked, str) else asked
    bounded = training.deviance_power is not None or {"log1p", "sqrt"} & set(steps)
    return 0.0 if bounded else -math.inf


def require_vectors(settings: OnlineSettings, training: OnlineTraining, features: Features) -> None:
    """Raises: UserError for a width without vectors, and for vectors with a state per key."""
    if training.loss != "contrastive":
        if "vector_width" in settings.model_fields_set:
            raise UserError(
                "[model] vector_width is for [train] loss = 'contrastive', whose network returns a "
                "vector: name that loss, or take vector_width out."
            )
        return
    if features.state is not None:
        raise UserError(
            "[train] loss = 'contrastive' compares rows by themselves, and with [model.state] each "
            "follows others of its key: take one of them out."
        )


def standardized(settings: OnlineSettings, features: Features) -> list[bool]:
    """Return which numeric features the model scales."""
    return [settings.standardize and name not in features.scaled for name in features.numeric]


def identity(
    settings: OnlineSettings,
    training: OnlineTraining,
    features: Features,
    *,
    kind: str,
    replay_rows: int,
) -> dict[str, Any]:
    """Return what a saved state must share with any of these learners, by the key to change."""
    return {
        "[model] kind": kind,
        "[model] task": features.task,
        **({"[model] target": list(features.targets)} if features.targets else {}),
        "[model] numeric": list(features.numeric),
        "[model] categories": [list(pair) for pair in features.categories.items()],
        "[model] classes": list(features.classes),
        "[model] standardize": settings.standardize,
        "[model] target_transform": _target_identity(settings, training, features),
        **({"[train] quantiles": list(features.quantiles)} if features.quantiles else {}),
        "[train] loss": "contrastive" if features.vector_width else "another",
        **({"[model] vector_width": features.vector_width} if features.vector_width else {}),
        "[train] optimizer": training.optimizer,
        "[train] momentum": training.momentum,
        "[train] ema_decay": training.ema_decay > 0,
        "[train] replay_rows": replay_rows,
    }


def _target_identity(
    settings: OnlineSettings, training: OnlineTraining, features: Features
) -> list[str]:
    if training.deviance_power is not None:
        return [f"that of [train] loss = '{training.loss}'", str(training.deviance_power)]
    return list(_target_steps(settings, features))


def _target_steps(settings: OnlineSettings, features: Features) -> tuple[str, ...]:
    """Return the steps of the target's transform; by default none of classes."""
    asked = settings.target_transform
    if "target_transform" not in settings.model_fields_set and features.task != "regression":
        return ()
    steps = (asked,) if isinstance(asked, str) else asked
    return tuple(step for step in steps if step != "none")


__all__ = [
    "OnlineSettings",
    "OnlineTraining",
    "identity",
    "lowest_label",
    "require_vectors",
    "standardized",
    "target_scale",
]
