"""The settings of trees, and LightGBM's parameters."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from engine.types import Settings
from engine.types.changes import Free
from models.challenge.challenger import ChallengeSettings
from models.learners.quantiles import QuantileSettings

MIN_TREE_ROWS = 16
"""Fewer rows are learned as constants."""
OBJECTIVES = {"mse": "regression", "mae": "regression_l1", "quantile": "quantile"}


class TreesSettings(Settings):
    """The learner's own keys of ``[model]``.

    Attributes:
        num_trees: trees of a training; of several classes or quantiles, of each of them.
        num_leaves: most leaves of a tree.
        seed: of `feature_share`.
    """

    num_trees: int = Field(50, ge=1, le=10_000)
    num_leaves: int = Field(31, ge=2, le=4_096)
    seed: int = Field(0, ge=0, lt=1 << 31)


class TreesTraining(QuantileSettings, ChallengeSettings):
    """``[train]``.

    Attributes:
        loss: of a regression; ``mae`` learns the median, ``quantile`` what `quantile` or
            `quantiles` says.
        lr: what a tree counts.
        l2: penalty on the values of leaves.
        min_data_in_leaf [rows]: fewest rows of a leaf; unless given, a thirtieth of the window,
            1 to 20.
        feature_share [share]: share of the columns, drawn anew, that a tree may use.
        window_rows [rows]: the newest rows that are learned; unless given, 20,000, or as many
            as 32 MiB hold.
        threads: of LightGBM, and of torch.
    """

    loss: Literal["mse", "mae", "quantile"] = "mse"
    lr: float = Field(0.2, gt=0)
    l2: float = Field(0.0, ge=0)
    min_data_in_leaf: int | None = Field(None, ge=1)
    feature_share: float = Field(1.0, gt=0, le=1)
    window_rows: int | None = Field(None, ge=MIN_TREE_ROWS, le=10_000_000)
    threads: Free[int] = Field(1, ge=1, le=256)


def lightgbm_params(
    settings: TreesSettings, training: TreesTraining, *, task: str, classes: int, rows: int
) -> dict[str, Any]:
    """Return LightGBM's parameters for a training on so many rows; of several quantiles each has
    an ``alpha`` of its own."""
    leaf = training.min_data_in_leaf or max(1, min(20, rows // 30))
    return {
        "objective": OBJECTIVES[training.loss] if task == "regression" else task,
        "num_class": classes,
        "alpha": training.quantile,
        "num_leaves": settings.num_leaves,
        "learning_rate": training.lr,
        "lambda_l2": training.l2,
        "min_data_in_leaf": leaf,
        "min_data_in_bin": min(3, leaf),
        "min_data_per_group": 5 * leaf,
        "feature_fraction": training.feature_share,
        "feature_pre_filter": False,
        "use_missing": False,
        "num_threads": training.threads,
        "seed": settings.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }


__all__ = ["MIN_TREE_ROWS", "TreesSettings", "TreesTraining", "lightgbm_params"]
