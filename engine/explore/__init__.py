"""``headrace explore``: shows what is in a file, a topic or a pipeline's source, in one pass."""

from engine.explore.exploration import explore
from engine.explore.findings import Findings

__all__ = ["Findings", "explore"]
