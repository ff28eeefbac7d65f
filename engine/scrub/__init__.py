"""Stages of scrubbing by the ``kind`` a pipeline file names."""

STAGES = {
    "split": "engine.scrub.split:Split",
    "missing": "engine.scrub.missing:Missing",
    "impute": "engine.scrub.impute:Impute",
    "duplicates": "engine.scrub.duplicates:Duplicates",
    "near_duplicates": "engine.scrub.similar:NearDuplicates",
    "near_duplicate_images": "engine.scrub.similar_images:NearDuplicateImages",
    "outliers": "engine.scrub.outliers:Outliers",
    "anomalies": "engine.scrub.anomalies:Anomalies",
    "standardize": "engine.scrub.scale:Standardize",
    "normalize": "engine.scrub.scale:Normalize",
    "standardize_by": "engine.scrub.keyed:StandardizeBy",
    "robust": "engine.scrub.scale:Robust",
    "power": "engine.scrub.power:Powers",
    "categories": "engine.scrub.categories:Categories",
    "drift": "engine.scrub.drift:Drift",
    "tokens": "engine.scrub.tokens:Tokens",
    "image": "engine.scrub.image:Images",
    "derive": "engine.scrub.derive:Derive",
    "unpivot": "engine.scrub.unpivot:Unpivot",
    "lag": "engine.scrub.lag:Lag",
}
"""Kind -> import string; a user's own stage is named by its import string."""

__all__ = ["STAGES"]
