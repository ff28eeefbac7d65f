"""The report of a run for people: tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from engine.quality.baselines import PREVIOUS_CLASS
from engine.quality.headline import best_baseline, figure
from engine.types.plural import counted, percent

HEADLINE_METRICS = (
    "mae",
    "rmse",
    "r2",
    "deviance",
    "pinball",
    "coverage",
    "accuracy",
    "f1",
    "log_loss",
    "auc",
)
"""Metrics with a column of their own, in order."""
RARE = 0.2
"""A class with a smaller share of the rows is rare (of more than two classes, one with less than
half of an equal share): accuracy says little about it."""
PARTS = ("validation", "test")
"""The parts of a split that are never learned."""
MAX_CONFUSION = 10
"""With more classes than this, the confusion matrix is in report.json only."""
MAX_ABSENT = 5
"""The classes without a row that a remark names."""
BLOCKS, JUDGED = 0.9, 100
"""Rows come in blocks of a class where so much of their agreement with the row before is beyond
chance (Cohen's kappa), over so many rows or more."""


def table(report: Mapping[str, Any]) -> Table:
    """Return the model against the baselines, over all rows and each slice; the best of each row
    is bold."""
    slices = report["slices"]
    groups = {name: own for name, own in slices.items() if own.get("rows") or name not in PARTS}
    groups = {"all": report["all"], **groups}  # a split may have no rows for one of its parts
    key, name = figure(report["all"])
    table_out = Table(
        title=f"test-then-train {name}: predicted before learned", title_justify="left"
    )
    table_out.add_column("rows of")
    names = ["learned", *report["all"].get("baselines", {})]
    for column in names:
        table_out.add_column(column, justify="right")
    for group, figures in groups.items():
        values = {"learned": figures.get(key)}
        values |= {b: f[key] for b, f in figures.get("baselines", {}).items()}
        present = [v for v in values.values() if v is not None]
        best = (min if key == "mae" else max)(present, default=None)
        table_out.add_row(group, *(_cell(values.get(column), best) for column in names))
    return table_out


def tables(report: Mapping[str, Any]) -> list[Table | str]:
    """Return what a terminal shows: model against baselines, the quantiles, the confusion matrix,
    figures of rare classes, and remarks."""
    parts: list[Table | str] = [table(report)]
    if "quantiles" in report["all"]:
        parts.append(_quantiles(report["all"], report["slices"]))
    if 0 < len(report["classes"]) <= MAX_CONFUSION and "confusion" in report["all"]:
        parts.append(_confusion(report))
    if rare_classes(report):
        parts.append(_rare(report))
    return [*parts, *remarks(report)]


def rare_classes(report: Mapping[str, Any]) -> list[str]:
    """Return the rare classes that occur."""
    counts = [sum(row) for row in report["all"].get("confusion", [])]
    few = min(RARE, 0.5 / max(1, len(counts))) * sum(counts)
    return [name for name, n in zip(report["classes"], counts, strict=False) if 0 < n < few]


def remarks(report: Mapping[str, Any]) -> list[str]:
    """Return what a reader of the figures should not miss."""
    return [*_no_better(report), *_absent(report), *_blocks(report["all"])]


def _absent(report: Mapping[str, Any]) -> list[str]:
    """Return a remark where no row is of some class; not of classes that come as rows do."""
    whole = report["all"]
    if not whole.get("rows") or "outside_confusion" in whole:
        return []
    counts = [sum(row) for row in whole.get("confusion", [])]
    absent = [name for name, n in zip(report["classes"], counts, strict=False) if not n]
    if not absent:
        return []
    named = ", ".join(f"'{name}'" for name in absent[:MAX_ABSENT])
    more = f" and {len(absent) - MAX_ABSENT:,} more" if len(absent) > MAX_ABSENT else ""
    return [
        f"No row has {len(absent):,} of the {len(counts):,} classes, {named}{more}: "
        "the figures do not say how well the model tells them apart."
    ]


def _blocks(whole: Mapping[str, Any]) -> list[str]:
    """Return a remark where rows of a class come together."""
    before = whole.get("baselines", {}).get(PREVIOUS_CLASS)
    counts = [sum(row) for row in whole.get("confusion", [])]
    rows = sum(counts)
    if before is None or rows < JUDGED:
        return []
    agreement, chance = before["accuracy"], sum((n / rows) ** 2 for n in counts)
    if chance == 1 or (agreement - chance) / (1 - chance) < BLOCKS:
        return []
    return [
        f"{agreement:.1%} of the rows have the class of the row before: a model that learns "
        "as rows come forgets the other classes meanwhile. Where that order means nothing, mix the "
        "rows before, or set [source] shuffle_files where each class has files of its own."
    ]


def _has_r2(report: Mapping[str, Any]) -> bool:
    """Return whether R2 compares the error with that of the target's mean: of several targets it is
    a mean of theirs, which the newest rows together have not."""
    whole = report["all"]
    return "r2" in whole and "r2" in report["window"] and "quantiles" not in whole


def _no_better(report: Mapping[str, Any]) -> list[str]:
    """Return a remark where a baseline, or the best constant, is as good as the model."""
    whole = report["all"]
    best = best_baseline(whole)
    if best is None:
        return []
    key, name = figure(whole)
    baseline = whole["baselines"][best]
    theirs = baseline[key]
    ours = baseline.get("model_mae", whole[key])  # over the rows where there is such a baseline
    share = whole.get("prior", {}).get("accuracy", 0.0)
    if ours >= theirs if key == "mae" else ours <= theirs:
        remark = (
            f"The baseline '{best}' is no worse than the model: {name} {theirs:.4g} against "
            f"{ours:.4g}, over {counted(baseline['rows'], 'row')}."
        )
    elif key == "accuracy" and ours <= share:
        remark = (
            f"The most frequent class is no worse than the model: it has {share:.4g} of all "
            f"{counted(whole['rows'], 'row')}, and the model's accuracy over them is {ours:.4g}."
        )
    elif _has_r2(report) and whole["r2"] <= 0:
        constant = whole["rmse"] / math.sqrt(1 - whole["r2"])
        remark = (
            f"The mean of the target is no worse than the model: RMSE {constant:.4g} against "
            f"{whole['rmse']:.4g}, over {counted(whole['rows'], 'row')}."
        )
    else:
        return []
    for rare in rare_classes(report):
        figures = whole["by_class"][rare]
        prior, reached = figures["rows"] / whole["rows"], figures.get("average_precision", 0.0)
        if reached > 2 * prior:
            second = report["classes"][1]
            remark += (
                f" Of a rare class accuracy says little: the average precision of '{rare}' is "
                f"{reached:.4g}, by chance {prior:.4g}; [model] threshold says where '{second}' "
                "begins."
            )
    return [remark]


def _quantiles(whole: Mapping[str, Any], slices: Mapping[str, Any]) -> Table:
    """Return what share of the targets lies below each quantile and inside their interval, beside
    what was asked for; the interval also over the rows that a split never learns."""
    table_out = Table(title="quantiles", title_justify="left")
    for column in ("", "asked", "targets", "pinball loss", "mean width"):
        table_out.add_column(column, justify="right" if column else "left")
    for name, own in whole["quantiles"].items():
        loss = _cell(own["pinball"], None)
        table_out.add_row(f"below {name}", percent(own["asked"]), f"{own['below']:.1%}", loss)
    lowest, *_, highest = whole["quantiles"]
    held_out = {f", {part}": slices[part] for part in PARTS if "coverage" in slices.get(part, {})}
    for rows, own in {"": whole, **held_out}.items():
        table_out.add_row(
            f"{lowest} to {highest}{rows}",
            percent(own["coverage_asked"]),
            f"{own['coverage']:.1%}",
            _cell(own["pinball"], None),
            _cell(own["width"], None),
        )
    return table_out


def _confusion(report: Mapping[str, Any]) -> Table:
    """Return the confusion matrix: true classes down, predicted ones across."""
    names = report["classes"]
    table_out = Table(title="confusion", title_justify="left")
    table_out.add_column("true")
    for name in (*names, "recall"):
        table_out.add_column(escape(name), justify="right")
    for at, (name, row) in enumerate(zip(names, report["all"]["confusion"], strict=True)):
        recall = f"{row[at] / sum(row):.4f}" if sum(row) else ""
        table_out.add_row(escape(name), *(f"{n:,}" for n in row), recall)
    return table_out


def _rare(report: Mapping[str, Any]) -> Table:
    """Return what accuracy does not say, beside a model that knows only the shares: of each rare
    class, and of the probabilities of all."""
    whole, prior = report["all"], report["all"]["prior"]
    names = rare_classes(report)
    table_out = Table(title=f"rare: {', '.join(map(escape, names))}", title_justify="left")
    for column in ("figure", "learned", "share alone"):
        table_out.add_column(column, justify="left" if column == "figure" else "right")
    at = f"at the threshold {report['threshold']:.4g}"
    at = at if len(report["classes"]) == 2 else "as predicted"
    rows = {
        "average_precision": "average precision",
        "recall_at_precision": f"recall at a precision of {report['at_precision']:g}",
        "precision": f"precision {at}",
        "recall": f"recall {at}",
    }
    for name in names:
        figures = whole["by_class"][name]
        for key, words in rows.items():
            if key in figures:
                share = figures["rows"] / whole["rows"] if key == "average_precision" else None
                table_out.add_row(
                    f"{escape(name)}: {words}", _cell(figures[key], None), _cell(share, None)
                )
    rest = {
        "auc": "AUC",
        "brier": "Brier score",
        "log_loss": "log loss",
        "calibration_error": "calibration error",
    }
    for key, words in rest.items():
        if key in whole:
            table_out.add_row(words, _cell(whole[key], None), _cell(prior.get(key), None))
    return table_out


def _cell(value: float | None, best: float | None) -> str:
    if value is None:
        return ""
    text = f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
    return f"[bold green]{text}[/]" if value == best else text
