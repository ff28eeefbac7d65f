"""Augmentation by the ``kind`` that a table ``[augment.NAME]`` of a pipeline file names."""

from models.augment.augmentation import Augment, Augmentation, AugmentSettings

AUGMENTS = {
    "jitter": "models.augment.tables:Jitter",
    "mixup": "models.augment.mixing:Mixup",
    "feature_dropout": "models.augment.tables:FeatureDropout",
}
"""Kind -> import string; a user's own is named by its import string."""

__all__ = ["AUGMENTS", "Augment", "AugmentSettings", "Augmentation"]
