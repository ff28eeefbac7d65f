"""How the engines of `demo.py` have lived: a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import polars as pl
from rich.table import Table

from engine.quality.error_plot import DARK, LIGHT
from engine.quality.error_plot import draw as error_plot
from engine.versions.store import Versions

BASELINES = {"last hour": 1, "same hour yesterday": 24, "same hour last week": 168}
"""What needs no model: the count so many hours before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lived:
    """What is left of both engines.

    Attributes:
        since: the first hour that came live.
        sent: until which time of theirs records were sent, and at which time of the clock, in
            seconds since the epoch.
        answers: what the predicting engine wrote, with the time at which it did (`answered`).
        learned: what the learning engine wrote.
        versions: that it has published.
        pages: the figures of each at the end, of the one that learns first.
    """

    since: datetime
    sent: Sequence[tuple[datetime, float]]
    answers: pl.DataFrame
    learned: pl.DataFrame
    versions: Versions
    pages: Mapping[str, Mapping[str, float]]

    def counted(self) -> pl.DataFrame:
        """The answers to what came live, each with its error and those of the baselines."""
        rows = self.answers
        past = rows.select("time", "sensor", "count").unique(["time", "sensor"])
        for name, hours in BASELINES.items():
            before = past.with_columns(pl.col("time").dt.offset_by(f"{hours}h"))
            before = before.rename({"count": name})
            rows = rows.join(before, on=["time", "sensor"], how="left", maintain_order="left")
        errors = [(pl.col(name) - pl.col("count")).abs().alias(name) for name in BASELINES]
        model = (pl.col("prediction") - pl.col("count")).abs().alias("model")
        return rows.with_columns(*errors, model).filter(pl.col("time") >= self.since)

    def first_answers(self) -> pl.DataFrame:
        """When each version answered first, by the newest time that it knows (`until`)."""
        first = self.answers.group_by("model_version").agg(
            pl.col("answered").min(), pl.col("time").min()
        )
        known = pl.DataFrame(
            [
                (version.model_version, version.data_time)
                for version in map(self.versions.version, self.versions.numbers())
            ],
            schema={"model_version": pl.String, "until": pl.Float64},
            orient="row",
        )
        return first.join(known, on="model_version").sort("until")

    def freshness(self) -> pl.Series:
        """Seconds from sending a label to the first answer of a version that has read it, for the
        labels that came live."""
        sent = pl.DataFrame(
            self.sent, schema={"at": pl.Datetime("us"), "sent": pl.Float64}, orient="row"
        )
        sent = sent.filter(pl.col("at") > self.since)
        until = (pl.col("at").dt.epoch("us") / 1e6 - 3_600.0).alias("until")
        found = sent.with_columns(until).join_asof(
            self.first_answers(), on="until", strategy="forward"
        )
        return (found["answered"] - found["sent"]).drop_nulls()


def table_of(lived: Lived) -> Table:
    """What came of it, in a few lines."""
    rows, (learned, served) = lived.counted(), lived.pages.values()
    delays = lived.learned.filter(pl.col("time") >= lived.since)["_delay"]
    fresh = lived.freshness()
    refused = learned["kept back"] + served["looked at"] - served["swaps"]
    lines = {
        "counts answered": f"{rows.height:,}",
        "counts learned": f"{lived.learned.height:,}",
        "versions published": f"{learned['published']:.0f}",
        "versions swapped in": f"{served['swaps']:.0f}",
        "versions refused": f"{refused:.0f}",
        "from a count to its label, p50": f"{_quantile(delays, 0.5) / 3600:.0f} h",
        "from a count to its label, p99": f"{_quantile(delays, 0.99) / 3600:.0f} h",
        "from a label to an answer that knows it, p50": f"{_quantile(fresh, 0.5):.1f} s",
        "from a label to an answer that knows it, p99": f"{_quantile(fresh, 0.99):.1f} s",
        "mean error of the answers": f"{_mean(rows['model']):.1f}",
        **{f"mean error of '{name}'": f"{_mean(rows[name]):.1f}" for name in BASELINES},
    }
    made = Table(title=f"live from {lived.since:%Y-%m-%d} on", show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(justify="right", no_wrap=True)
    for name, text in lines.items():
        made.add_row(name, text)
    return made


def draw(lived: Lived, folder: Path) -> Path:
    """Write the error of each week beside the baselines, and when versions were swapped in, for
    light and dark pages; return the light one's path."""
    names = ("model", *BASELINES)
    weeks = lived.counted().with_columns(pl.col("time").dt.truncate("1w"))
    history = weeks.group_by("time", maintain_order=True).agg(
        pl.len().alias("rows"), *(pl.col(name).mean() for name in names)
    )
    for name, theme in (("live.png", LIGHT), ("live-dark.png", DARK)):
        figure = error_plot(history, title="pedestrians, live", theme=theme)
        for swapped in lived.first_answers()["time"].drop_nulls():
            figure.axes[0].axvline(swapped, color=theme.ink, linewidth=0.8, linestyle=":", zorder=0)
        figure.savefig(folder / name)
    return folder / "live.png"


def _mean(values: pl.Series) -> float:
    return float(values.drop_nulls().to_numpy().mean())


def _quantile(values: pl.Series, q: float) -> float:
    return float(values.quantile(q) or math.nan)


__all__ = ["Lived", "draw", "table_of"]
