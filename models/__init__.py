"""Learners, their export and compression, and the predictor."""

LEARNERS = {
    "tabular": "models.learners.tabular:TabularLearner",
    "linear": "models.learners.linear:LinearLearner",
}
"""Kind of ``[model]`` -> import string. Nothing is imported before a pipeline names it."""
