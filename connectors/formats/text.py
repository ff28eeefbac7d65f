"""Values as they are: one column of text or bytes."""

from __future__ import annotations

import numpy as np
import polars as pl

from connectors.formats.rows import BAD_UTF8, NOT_UTF8, binary, is_utf8, placed, rejected, take
from engine.types import Records, Rejects, Schema, UserError, Values

COLUMN = "value"


class Text:
    """See `engine.types.Format`. The one column is called ``value``: ``string`` (UTF-8) or
    ``bytes``."""

    def schema(self, declared: Schema) -> Schema:
        """The column; text unless bytes are declared. Raises: UserError for any other."""
        schema = declared or {COLUMN: pl.String()}
        if list(schema) != [COLUMN] or schema[COLUMN] not in (pl.String, pl.Binary):
            raise UserError(
                '[source.schema] of format \'text\' has one column, value = "string" or "bytes"; '
                f"got {', '.join(schema)}."
            )
        return schema

    def decode(self, records: Records, schema: Schema) -> tuple[pl.DataFrame, list[Rejects]]:
        """Every value; what is not UTF-8 is rejected where text is asked for."""
        values = records.values
        assert isinstance(values, Values)
        if schema[COLUMN] == pl.Binary:
            return placed(binary(values).alias(COLUMN).to_frame(), records), []
        good = is_utf8(values)
        if good.all():
            return placed(_text(values), records), []
        bad = np.flatnonzero(~good)
        kept = np.flatnonzero(good)
        rejects = [rejected(records, bad, BAD_UTF8, NOT_UTF8)]
        return placed(_text(take(values, kept)), records, kept), rejects


def _text(values: Values) -> pl.DataFrame:
    return binary(values).cast(pl.String).alias(COLUMN).to_frame()


__all__ = ["COLUMN", "Text"]
