"""Learners, their export and compression, and the predictor."""

LEARNERS = {
    "tabular": "models.learners.tabular:TabularLearner",
    "linear": "models.learners.linear:LinearLearner",
    "module": "models.learners.modules.learner:ModuleLearner",
    "prototypes": "models.learners.prototypes.learner:PrototypeLearner",
    "trees": "models.learners.trees.learner:TreesLearner",
}
"""Kind of ``[model]`` -> import string. Nothing is imported before a pipeline names it."""
