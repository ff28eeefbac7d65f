"""The stages that a pipeline file can name; see README.md beside this file."""

STAGES = {
    "missing": "engine.scrub.missing:Missing",
    "duplicates": "engine.scrub.duplicates:Duplicates",
    "outliers": "engine.scrub.outliers:Outliers",
    "standardize": "engine.scrub.scale:Standardize",
    "normalize": "engine.scrub.scale:Normalize",
    "categories": "engine.scrub.categories:Categories",
    "derive": "engine.scrub.derive:Derive",
    "unpivot": "engine.scrub.unpivot:Unpivot",
    "lag": "engine.scrub.lag:Lag",
}
"""``kind`` in ``[scrub.NAME]`` -> import string."""
