"""What the sink gets of rows, with their places; the others are counted or dead letters."""

from __future__ import annotations

import polars as pl

from engine.running.outputs import Outputs
from engine.running.work import WorkResult
from engine.running.written_rows import WrittenRows
from engine.types import Batch, Mark, Rejects, Sink


class Picky(Sink):
    """Takes rows but those of 4."""

    def __init__(self) -> None:
        super().__init__(None)
        self.taken: list[tuple[int, int]] = []

    def write(self, frame: pl.DataFrame, positions: pl.DataFrame | None = None) -> Rejects | None:
        assert positions is not None
        self.taken += zip(positions["_position"], frame["n"], strict=True)
        no = positions.filter(frame["n"] == 4).with_columns(detail=pl.lit("no"), value=pl.lit("4"))
        return Rejects(stage="sink", reason="too_large", rows=no) if no.height else None

    def flush(self) -> None:
        """Nothing waits."""


def test_places_belong_to_the_rows_that_are_written() -> None:
    frame = pl.DataFrame(
        {
            "_partition": ["p"] * 6,
            "_position": [10, 11, 12, 13, 14, 15],
            "n": [1, 2, 3, 4, 5, 6],
            "t": ["7", "no", "1", "8", None, "9"],
        }
    )
    batch = Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=6)
    rows = frame[["n", "t"]]
    chosen = WrittenRows("CAST(t AS INT) > 6", dict(rows.schema))
    sink = Picky()
    outputs = Outputs(sink, None, chosen)
    done = outputs.write(batch, WorkResult(batch=batch, rows=rows, cleaned=6))
    assert sink.taken == [(10, 1), (13, 4), (15, 6)]
    assert done.batch.counts == {("sink", "not_written"): 2}
    rejects = [(each.reason, each.rows["_position"].to_list()) for each in done.batch.rejects]
    assert rejects == [("invalid", [11]), ("too_large", [13])]
    assert '"t":"no"' in done.batch.rejects[0].rows["value"][0]
    assert done.cleaned == 4
    batch = Batch(frame=frame[:0], mark=Mark(), arrived=0.0)
    again = outputs.write(batch, WorkResult(batch=batch, rows=rows[:0]))
    assert again.batch.counts == {}


def test_a_condition_on_no_column_holds_for_all_rows_or_none() -> None:
    rows = pl.DataFrame({"n": [1, 2, 3]})
    for sql, kept in (("true", 3), ("1 > 2", 0)):
        chosen = WrittenRows(sql, dict(rows.schema)).choose(rows, rows)
        assert (chosen.rows.height, chosen.places.height, chosen.left) == (kept, kept, 3 - kept)
        assert WrittenRows(sql, dict(rows.schema)).choose(rows[:0], rows[:0]).rows.height == 0
