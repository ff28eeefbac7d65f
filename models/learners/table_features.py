"""The features of learners that read a table of numbers and categories, and nothing else."""

from __future__ import annotations

from engine.types import Features, UserError


def require_table(features: Features, kind: str) -> None:
    """Raises: UserError for features of other forms, or none at all."""
    if features.nested:
        raise UserError(
            f"[model] kind = '{kind}' expects numbers and categories, got "
            f"'{features.nested[0]}': use kind = 'tabular'."
        )
    if not features.numeric and not features.categories:
        raise UserError("[model] needs features: name columns in 'numeric' or 'categories'.")


__all__ = ["require_table"]
