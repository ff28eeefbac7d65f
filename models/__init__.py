"""Columns in, columns out: learners, their export and compression, the predictor."""

LEARNERS = {
    "tabular": "models.learners.tabular:TabularLearner",
    "linear": "models.learners.linear:LinearLearner",
}
"""Kinds of ``[model]`` -> import string. Nothing is imported before a pipeline names it."""
