"""What is put around a learner: augments before it, sampling and challenges outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.config import Pipeline, load_class, validate
from engine.types import Learner, UserError
from engine.user_code import calls
from engine.user_code.contract_checks import require_contract

if TYPE_CHECKING:
    from models.augment import Augmentation


def make_augmentation(pipeline: Pipeline) -> Augmentation | None:
    """Build the augments of [augment]; None without any.

    Raises: UserError for a wrong setting.
    """
    if not pipeline.augment:
        return None
    from models.augment import AUGMENTS, Augment, Augmentation

    augments = []
    for name, table in pipeline.augment.items():
        own, section = dict(table), f"augment.{name}"
        augment_class = load_class(own.pop("kind", name), AUGMENTS, section, pipeline.file)
        require_contract(augment_class, Augment, section)
        settings = pipeline.settings(augment_class.Settings, own, section)
        augments.append(calls.construct(section, augment_class, Augment, name, settings))
    return Augmentation(augments)


def wrapped(
    learner: Learner, pipeline: Pipeline, *, challenged: str, stages: Sequence[str], grows: bool
) -> Learner:
    """Wrap a learner for the sampling and the challenges of [train].

    Args:
        challenged: [train] forget_on.
        stages: the names of the stages before it.
        grows: whether classes appear while it learns.

    Raises: UserError for a wrong setting, and for a learner that cannot be wrapped so.
    """
    from models.challenge.challenger import (
        Challengeable,
        ChampionChallenger,
        require_challengeable,
    )
    from models.learners.sampling import ResampledLearner, SamplingSettings

    file, sampling = pipeline.file, (pipeline.train or {}).get("sampling")
    if challenged != "never":
        require_challengeable(learner, challenged, list(stages))
    if sampling is not None:
        if grows:
            raise UserError(
                f"[train.sampling] in {file} needs to know the classes: name them in [model] "
                "classes, or take it out."
            )
        settings = validate(SamplingSettings, sampling, "train.sampling", file)
        if learner.features.state is not None:
            raise UserError(
                f"[train.sampling] in {file} leaves rows out and repeats others, and "
                "[model.state] follows every row of a key once: take one of them out."
            )
        learner = ResampledLearner(learner, settings)
    if challenged == "never":
        return learner
    assert isinstance(learner, Challengeable), "require_challengeable checks this"
    return ChampionChallenger(learner, challenged)


__all__ = ["make_augmentation", "wrapped"]
