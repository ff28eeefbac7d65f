"""Check that a saved state belongs to this model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.types import UserError


def require_same_model(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Compare what makes two models interchangeable; name the key of the pipeline file to
    change.

    Raises: UserError naming the first difference.
    """
    for key, value in here.items():
        if key not in saved or saved[key] != value:
            raise UserError(
                f"The saved model has {key} = {saved.get(key)}, this pipeline's has {value}: "
                "change it back, or start over with --fresh."
            )


__all__ = ["require_same_model"]
