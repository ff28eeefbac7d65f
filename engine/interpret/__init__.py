"""``headrace interpret``: what a trained model relies on, and where it is wrong."""

from engine.interpret.figures import Interpretation
from engine.interpret.interpretation import interpret

__all__ = ["Interpretation", "interpret"]
