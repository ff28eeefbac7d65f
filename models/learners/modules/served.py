"""The network of a model file that torch runs."""

from __future__ import annotations

from collections.abc import Mapping

from engine.types import Learner, UserError
from models.export.torch_body import features_of, state_of
from models.learners.modules.learner import ModuleLearner, ModuleSettings, ModuleTraining


def network_of(module: str, properties: Mapping[str, str]) -> Learner:
    """Return the learner of a model file, to predict with. No code is run but that of `module`,
    whatever the file names.

    Args:
        module: import string of the class that the user trusts.
        properties: of the file.

    Raises: UserError if the file holds a network of another class, or it cannot be made.
    """
    if properties["module"] != module:
        raise UserError(
            f"[infer] module is '{module}', and the network of the model file is of "
            f"'{properties['module']}': name that, if you trust its code."
        )
    settings = ModuleSettings.model_validate_json(properties["settings"])
    settings = settings.model_copy(update={"module": module, "weights": None})
    learned = ModuleTraining.model_validate_json(properties["training"])
    training = ModuleTraining(replay_rows=0, forget_on="never")
    if learned.deviance_power is not None:  # what makes a score a mean
        training = training.model_copy(update={"loss": learned.loss})
    learner = ModuleLearner(settings, training, features_of(properties))
    learner.restore_scoring(state_of(properties))
    return learner


__all__ = ["network_of"]
