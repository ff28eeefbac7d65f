"""The kinds of ``[augment.NAME]`` in a pipeline file."""

from models.augment.augmentation import Augment, Augmentation, AugmentSettings, Context

AUGMENTS = {
    "jitter": "models.augment.tables:Jitter",
    "feature_dropout": "models.augment.tables:FeatureDropout",
    "mixup": "models.augment.mixing:Mixup",
    "cutmix": "models.augment.mixing:Cutmix",
    "token_dropout": "models.augment.tokens:TokenDropout",
    "token_swap": "models.augment.tokens:TokenSwap",
    "synonyms": "models.augment.tokens:Synonyms",
    "flip": "models.augment.images:Flip",
    "crop": "models.augment.images:Crop",
    "rotate": "models.augment.images:Rotate",
    "colour": "models.augment.images:Colour",
    "pixel_noise": "models.augment.images:PixelNoise",
}
"""Kind -> import string; a user's own is named by its import string."""

__all__ = ["AUGMENTS", "Augment", "AugmentSettings", "Augmentation", "Context"]
