"""Where the learners of the tests compute."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``pytest --device cuda tests/models``: the same tests, with the learners on a GPU."""
    parser.addoption(
        "--device",
        default="cpu",
        choices=["cpu", "cuda"],
        help="of learners whose [train] names none (in this process)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Another default of ``[train] device``."""
    device = config.getoption("--device")
    if device == "cpu":
        return
    from models.learner import TabularLearner

    TabularLearner.Training.model_fields["device"].default = device
    TabularLearner.Training.model_rebuild(force=True)
