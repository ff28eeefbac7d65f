"""Columns in, columns out: learners, their export and compression, the predictor."""

LEARNERS = {
    "tabular": "models.learner:TabularLearner",
    "linear": "models.linear:LinearLearner",
}
"""Kinds of ``[model]`` -> import string. Nothing is imported before a pipeline names it."""
