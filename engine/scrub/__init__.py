"""Stages of scrubbing by the ``kind`` a pipeline file names."""

STAGES = {
    "split": "engine.scrub.rows.split:Split",
    "missing": "engine.scrub.values.missing:Missing",
    "impute": "engine.scrub.values.impute:Impute",
    "duplicates": "engine.scrub.rows.duplicates:Duplicates",
    "near_duplicates": "engine.scrub.rows.near_duplicates:NearDuplicates",
    "near_duplicate_images": "engine.scrub.rows.near_duplicate_images:NearDuplicateImages",
    "outliers": "engine.scrub.values.outliers:Outliers",
    "anomalies": "engine.scrub.watching.anomalies:Anomalies",
    "standardize": "engine.scrub.values.scale:Standardize",
    "normalize": "engine.scrub.values.scale:Normalize",
    "standardize_by": "engine.scrub.standardize_by:StandardizeBy",
    "robust": "engine.scrub.values.scale:Robust",
    "power": "engine.scrub.values.power:Powers",
    "categories": "engine.scrub.features.categories:Categories",
    "drift": "engine.scrub.watching.drift:Drift",
    "tokens": "engine.scrub.features.tokens:Tokens",
    "image": "engine.scrub.features.image:Images",
    "derive": "engine.scrub.features.derive:Derive",
    "unpivot": "engine.scrub.features.unpivot:Unpivot",
    "lag": "engine.scrub.features.lag:Lag",
    "window": "engine.scrub.windows.stage:Window",
    "history": "engine.scrub.features.history:History",
    "lookup": "engine.scrub.features.lookup:Lookup",
    "join": "engine.scrub.joining.stage:Join",
}
"""Kind -> import string; a user's own stage is named by its import string."""

__all__ = ["STAGES"]
