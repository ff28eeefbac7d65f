"""What a reader of an interpretation should know, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from engine.interpret.calibration import CONFIDENCE
from engine.interpret.case import Case
from engine.interpret.figures import (
    Attribution,
    Calibration,
    Importance,
    QuantileCalibration,
    Slice,
)
from engine.interpret.judging import Judge
from engine.interpret.slices import MIN_ROWS
from engine.interpret.subject import ServedModel, Subject
from engine.types.plural import counted, percent, short_number

FEW_ROWS = 200
"""Fewer rows make wide intervals."""
MAX_REST = 0.1
"""The share of the scores' movement that integrated gradients may leave unexplained."""


def findings(
    case: Case,
    ranked: tuple[Importance, ...],
    groups: tuple[Calibration, ...],
    quantiles: tuple[QuantileCalibration, ...],
    worst: list[Slice],
) -> Iterator[str]:
    """Yield what a reader should know, the most important first."""
    if case.chosen.learned:
        yield (
            "The model has learned these rows, so every figure here flatters it: an [export] "
            "section or a 'split' stage holds rows out."
        )
    if len(case.judged) < FEW_ROWS:
        yield f"Only {counted(len(case.judged), 'row is', 'rows are')} judged: intervals are wide."
    if case.only_class is not None:
        yield f"All rows have the label '{case.only_class}': other classes are not judged."
    yield from _of_columns(ranked)
    yield from _of_calibration(case.judge, groups)
    yield from of_quantiles(quantiles)
    bad = [one for one in worst if one.worse]
    if bad:
        yield (
            f"The {case.judge.loss} is highest where {bad[0].name}: {short_number(bad[0].loss)} "
            f"over {counted(bad[0].rows, 'row')}."
        )


def _of_columns(ranked: tuple[Importance, ...]) -> Iterator[str]:
    idle = [each for each in ranked if not each.tells]
    if len(ranked) > 1 and ranked[0].tells:
        yield f"The model relies most on '{ranked[0].column}'."
    if not idle:
        return
    names = ", ".join(f"'{each.column}'" for each in idle[:6])
    more = f" and {len(idle) - 6:,} more" if len(idle) > 6 else ""
    yield (
        f"{len(idle):,} of {counted(len(ranked), 'column')} may tell the model nothing here: "
        f"{names}{more}."
    )


def _of_calibration(judge: Judge, groups: tuple[Calibration, ...]) -> Iterator[str]:
    off = [group for group in groups if not group.fits]
    if not _too_many(len(off), len(groups)):
        return
    high = sum(group.predicted > group.observed for group in off)
    way = "too high" if high == len(off) else "too low" if not high else "too high or too low"
    what = "Values" if judge.regression else "Probabilities"
    yield f"{what} are not calibrated: {len(off)} of {len(groups)} groups of rows are {way}."


def of_quantiles(quantiles: tuple[QuantileCalibration, ...]) -> Iterator[str]:
    """Yield which quantiles are not calibrated, over all rows or over too many groups of them."""
    for each in quantiles:
        whole = each.whole
        where = "inside" if " " in each.name else "below"
        if not whole.fits:
            yield (
                f"{each.name} is not calibrated: {whole.observed:.1%} of the targets lie {where} "
                f"it, and {percent(each.asked)} were asked for."
            )
        elif _too_many(each.off, len(each.groups), len(quantiles)):
            yield (
                f"{each.name} is not calibrated everywhere: the share of targets {where} it is off "
                f"in {each.off} of {len(each.groups)} groups of rows by prediction."
            )


def _too_many(off: int, groups: int, figures: int = 1) -> bool:
    """Return whether a calibrated model, of whose groups one of twenty is off by chance, hardly has
    so many of them: in one case of twenty, over all figures that are looked at together."""
    chance = 1 - CONFIDENCE
    tail = sum(
        math.comb(groups, n) * chance**n * CONFIDENCE ** (groups - n)
        for n in range(off, groups + 1)
    )
    return tail < chance / figures


def left_out(
    case: Case, lost: Mapping[str, int], lacking: list[str], uncut: list[str]
) -> Iterator[str]:
    """Yield what was not looked at, or not exactly."""
    if case.unlabelled:
        yield f"{counted(case.unlabelled, 'row has', 'rows have')} no label or no score."
    for column, n in lost.items():
        yield (
            f"With '{column}' permuted, {counted(n, 'row')} in all had no score and "
            f"{'counts' if n == 1 else 'count'} nowhere."
        )
    if not case.judge.regression and not case.judge.probabilistic:
        yield "The model gives no probabilities of classes: nothing is said about reliability."
    for name in lacking:
        yield f"[evaluation.slices] {name} reads columns that these rows do not have."
    if len(case.judged) < 2 * MIN_ROWS:
        yield f"Slices of columns need {MIN_ROWS} rows each."
    if uncut:
        names = ", ".join(f"'{name}'" for name in uncut)
        yield f"Columns whose type has no slices: {names}."


def without_gradients(
    subject: Subject, attributions: tuple[Attribution, ...], rest: float
) -> Iterator[str]:
    """Yield why integrated gradients are missing or incomplete."""
    if not attributions:
        why = (
            "a served model file has none"
            if isinstance(subject, ServedModel)
            else "this kind of model has none"
        )
        yield f"Integrated gradients need gradients, and {why}."
    elif rest > MAX_REST:
        yield (
            f"Integrated gradients leave {rest:.0%} of the scores' movement unexplained: part of "
            "the network has jumps, or reads features in a way that no gradient leads through."
        )


__all__ = ["findings", "left_out", "of_quantiles", "without_gradients"]
