"""Compares two models on the same rows, with bootstrap confidence intervals.

Arrays in, figures out: nothing here knows files, sessions or processes. Every figure has a paired
bootstrap interval (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993): both models are
scored on the same resampled rows, so what is hard for both cancels out. For AUC, average precision
and recall, rows are resampled within each class, so that a rare one never vanishes. A share (of
wrong answers, of a class's rows that were found) has Wilson's interval (1927), which is right for
few rows and for shares near 0 too.

A candidate passes where the upper end of every interval is within what is allowed
(non-inferiority): too few rows make an interval wide, and then the answer is no. That every figure
must pass by itself keeps the risk of a false pass below that of a single one (intersection-union
test), so nothing is corrected for their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.types import pinball_losses
from engine.types.arrays import Floats, Ints

RESAMPLES = 500
CHUNK = 2_000_000
"""The resampled rows in memory at a time."""
TAIL_SHARE = 0.05
"""The share of rows with the largest errors that a regression is also judged on."""
RANGES = 5
"""The ranges of the target that a regression is also judged on."""
MIN_RANGE = 20
"""The least rows of such a range."""
MAX_RANKED = 50
"""With more classes, AUC and average precision are not computed."""
EPSILON = float(np.finfo(np.float32).eps)
"""The distance kept between probabilities and 0 or 1: scores are float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measure of one model, beside the float32 model's.

    Attributes:
        name: of the measure.
        value, low, high: on the judged rows, and its interval.
        loss, loss_low, loss_high: by how much it is worse than float32's, and that one's interval,
            in `unit`.
        allowed: the largest loss that passes.
        unit: ``pt`` (points of 100) or ``%`` (of float32's value).
    """

    name: str
    value: float
    low: float
    high: float
    loss: float
    loss_low: float
    loss_high: float
    allowed: float
    unit: str

    @property
    def refusal(self) -> str | None:
        """Return why the candidate fails this measure, or None."""
        if self.loss_high <= self.allowed:
            return None
        span = f"{self.loss_low:.2f} to {self.loss_high:.2f}"
        unit = "%" if self.unit == "%" else " pt"
        if not self.loss <= self.allowed:
            return f"{self.name} worse by {self.loss:.2f}{unit} ({span}), allowed {self.allowed:g}"
        return (
            f"{self.name} not surely within {self.allowed:g}{unit}: "
            f"{'better' if self.loss < 0 else 'worse'} by {abs(self.loss):.2f}{unit} "
            f"(worse by {span})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The tolerances and the confidence level of the comparison.

    Attributes:
        max_loss: of a measure over all rows, in its unit.
        max_slice_loss: of the worst slice: a class's recall, a range of the target, the largest
            errors.
        confidence: of the intervals.
        seed: of the resampling.
    """

    max_loss: float = 0.5
    max_slice_loss: float = 2.0
    confidence: float = 0.95
    seed: int = 0


def compare_regression(
    target: Floats, base: Floats, candidate: Floats, rules: Rules
) -> tuple[Figure, ...]:
    """Return MAE, RMSE, the largest errors, and the worst range of the target.

    Args:
        target, base, candidate: shape (n,); finite but for the candidate.
    """
    errors = np.abs(np.stack([base, candidate], axis=1) - target[:, None])
    largest = errors.max(axis=1)
    count = max(1, math.ceil(TAIL_SHARE * len(target)))
    worst = np.zeros(len(target), np.bool_)
    worst[np.argsort(-largest, kind="stable")[:count]] = True  # the same rows for both
    slices = {f"MAE of the largest {TAIL_SHARE:.0%}": worst, **_ranges(target)}
    sums = np.concatenate([m[:, None] * errors for m in slices.values()], axis=1)
    weighed = np.column_stack([errors, errors**2, sums, *slices.values()])
    total, drawn = _sums(weighed, np.zeros(len(target), np.int64), rules)
    figures = []

    def add(name: str, at: int, size: int | None, power: float, allowed: float) -> None:
        def mean(sums: Floats) -> Floats:
            n = len(target) if size is None else np.maximum(sums[..., size, None], 1)
            result: Floats = (sums[..., at : at + 2] / n) ** power
            return result

        figures.append(_figure(name, mean(total), mean(drawn), "%", allowed, rules))

    add("MAE", 0, None, 1.0, rules.max_loss)
    add("RMSE", 2, None, 0.5, rules.max_loss)
    sizes = 4 + 2 * len(slices)
    for number, name in enumerate(slices):
        add(name, 4 + 2 * number, sizes + number, 1.0, rules.max_slice_loss)
    # Of the ranges, the worst one stands for all: it passes where all do.
    tail, ranges = figures[2], figures[3:]
    worst_range = [max(ranges, key=_severity)] if ranges else []
    return (*figures[:2], tail, *worst_range)


def compare_quantiles(
    target: Floats, base: Floats, candidate: Floats, rules: Rules, quantiles: Sequence[float]
) -> tuple[Figure, ...]:
    """Return the mean pinball loss, the error of the coverage (how far the share of targets from
    the lowest quantile to the highest is from what was asked for), and the figures of
    `compare_regression` for the medians.

    Args:
        target: shape (n,).
        base, candidate: shape (n, quantiles); finite but for the candidate.
    """
    n, both = len(target), (base, candidate)
    losses = [pinball_losses(target, scores, quantiles).mean(axis=1) for scores in both]
    inside = [(scores[:, 0] <= target) & (target <= scores[:, -1]) for scores in both]
    total, drawn = _sums(np.column_stack([*losses, *inside]), np.zeros(n, np.int64), rules)
    asked, median = quantiles[-1] - quantiles[0], list(quantiles).index(0.5)

    def coverage_error(sums: Floats) -> Floats:
        error: Floats = np.abs(sums[..., 2:] / n - asked)
        return error

    own = total[:2] / n, drawn[:, :2] / n
    return (
        _figure("pinball loss", *own, "%", rules.max_loss, rules),
        _figure(
            "coverage error", coverage_error(total), coverage_error(drawn), "pt", rules.max_loss,
            rules,
        ),
        *compare_regression(target, base[:, median], candidate[:, median], rules),
    )  # fmt: skip


def compare_targets(
    target: Floats,
    base: Floats,
    candidate: Floats,
    rules: Rules,
    names: tuple[str, ...],
    most: int | None = None,
) -> tuple[Figure, ...]:
    """Return the figures of `compare_regression` for each of several targets.

    Args:
        target, base, candidate: shape (n, targets); a target is NaN where a row has none.
        most: figures of each; all unless given.
    """
    figures: list[Figure] = []
    for number, name in enumerate(names):
        there = np.isfinite(target[:, number])
        if there.any():
            own = compare_regression(
                target[there, number], base[there, number], candidate[there, number], rules
            )[:most]
            figures += [replace(figure, name=f"{figure.name} of {name}") for figure in own]
    return tuple(figures)


def compare_classes(
    target: Ints,
    base: Floats,
    candidate: Floats,
    rules: Rules,
    *,
    names: tuple[str, ...],
    threshold: float = 0.5,
) -> tuple[Figure, ...]:
    """Return error, log loss, AUC and average precision (mean over one class against the others,
    of those that occur), and the class whose recall suffers most.

    Args:
        target: class numbers, shape (n,).
        base, candidate: scores, shape (n,) of class 1, or (n, k); finite but for the candidate.
        names: of the classes.
        threshold: of class 1, where there are two.
    """
    class_probabilities = [_class_probabilities(scores) for scores in (base, candidate)]
    predicted = [_predicted_classes(scores, threshold) for scores in (base, candidate)]
    right = np.stack([s == target for s in predicted], axis=1).astype(np.float64)
    given = np.stack([c[np.arange(len(target)), target] for c in class_probabilities], axis=1)
    log_loss = -np.log(np.clip(given, EPSILON, 1 - EPSILON))
    class_counts = np.bincount(target, minlength=len(names))
    present = np.flatnonzero(class_counts)
    by_class = np.concatenate([(target == c)[:, None] * right for c in present], axis=1)
    n = len(target)
    total, drawn = _sums(np.column_stack([1 - right, log_loss]), np.zeros(n, np.int64), rules)
    class_hits, refound = _sums(by_class, target, rules)
    shares = class_counts[present] / n
    entropy = -float((shares * np.log(shares)).sum()) or math.log(2)
    figures: list[Figure] = []

    def add(name: str, value: Floats, draws: Floats, allowed: float, scale: float = 1.0) -> None:
        figures.append(_figure(name, value, draws, "pt", allowed, rules, scale))

    add("error", total[:2] / n, drawn[:, :2] / n, rules.max_loss)
    figures[0] = _share(figures[0], n, rules)
    add("log loss", total[2:] / n, drawn[:, 2:] / n, rules.max_loss, 1 / entropy)
    if len(present) > 1 and len(names) <= MAX_RANKED:
        ranked, redrawn = _ranks(target, class_probabilities, present, rules)
        for number, name in enumerate(("AUC", "average precision")):
            add(name, ranked[number], redrawn[:, number], rules.max_loss, -1.0)
    overall = len(figures)
    for at, c in enumerate(present):
        own = slice(2 * at, 2 * at + 2)
        name = f"recall of '{names[c]}'"
        add(
            name,
            class_hits[own] / class_counts[c],
            refound[:, own] / class_counts[c],
            rules.max_slice_loss,
            -1.0,
        )
        figures[-1] = _share(figures[-1], int(class_counts[c]), rules)
    worst = max(figures[overall:], key=_severity)
    return (*figures[:overall], worst)


def interval(draws: Floats, confidence: float) -> tuple[float, float]:
    """Return the central `confidence` of the draws; NaN if one is NaN."""
    if not np.isfinite(draws).all():
        return math.nan, math.nan
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def speed(base: Floats, candidate: Floats, rules: Rules) -> tuple[float, float, float]:
    """Return how many times faster the candidate is, and the interval: the median over pairs of
    successive runs.

    Args:
        base, candidate: seconds, shape (rounds,).
    """
    ratios = base / np.maximum(candidate, 1e-9)
    rng = np.random.default_rng(rules.seed)
    draws = np.median(ratios[rng.integers(0, len(ratios), (RESAMPLES, len(ratios)))], axis=1)
    low, high = interval(draws, rules.confidence)
    return float(np.median(ratios)), low, high


def _figure(
    name: str,
    value: Floats,
    draws: Floats,
    unit: str,
    allowed: float,
    rules: Rules,
    scale: float = 1.0,
) -> Figure:
    """Return the figure of (base, candidate) and their resampled values, shape (RESAMPLES, 2)."""
    low, high = interval(draws[:, 1], rules.confidence)
    if unit == "%":
        loss, losses = _relative(value), _relative(draws)
    else:
        loss, losses = (
            100 * scale * (value[1] - value[0]),
            100 * scale * (draws[:, 1] - draws[:, 0]),
        )
    loss_low, loss_high = interval(np.atleast_1d(losses), rules.confidence)
    return Figure(
        name=name,
        value=float(value[1]),
        low=low,
        high=high,
        loss=float(loss),
        loss_low=loss_low,
        loss_high=loss_high,
        allowed=allowed,
        unit=unit,
    )


def _share(figure: Figure, n: int, rules: Rules) -> Figure:
    """Return the same with Wilson's interval for a share of n rows."""
    z = NormalDist().inv_cdf((1 + rules.confidence) / 2)
    p, square = figure.value, z**2 / n
    middle = (p + square / 2) / (1 + square)
    half = z * math.sqrt(p * (1 - p) / n + square / (4 * n)) / (1 + square)
    return replace(figure, low=middle - half, high=middle + half)


def _relative(values: Floats) -> Any:
    """Return by how many percent the second exceeds the first; if the first is 0, all or
    nothing."""
    base, other = values[..., 0], values[..., 1]
    rise = np.where(other <= base, 0.0, np.inf)  # NaN rises too
    some = base > 0
    return np.where(some, 100 * (other - base) / np.where(some, base, 1.0), rise)


def _severity(figure: Figure) -> float:
    """Return the key by which the worst slice is found; NaN is the worst."""
    return math.inf if math.isnan(figure.loss_high) else figure.loss_high


def _resamples(strata: Ints, rules: Rules) -> Iterator[Floats]:
    """Yield how often each row is drawn, (reps, n) at a time: n rows with replacement, within
    strata."""
    n = len(strata)
    rng = np.random.default_rng(rules.seed)
    order = np.argsort(strata, kind="stable")
    counts = np.bincount(strata)
    sizes = counts[strata[order]]
    starts = (np.cumsum(counts) - counts)[strata[order]]
    step = max(1, CHUNK // n)
    for first in range(0, RESAMPLES, step):
        reps = min(step, RESAMPLES - first)
        drawn = order[starts + (rng.random((reps, n)) * sizes).astype(np.int64)]
        flat = (drawn + np.arange(reps)[:, None] * n).ravel()
        yield np.bincount(flat, minlength=reps * n).reshape(reps, n).astype(np.float64)


def _sums(columns: Floats, strata: Ints, rules: Rules) -> tuple[Floats, Floats]:
    """Return sums of (n, m) columns: over the rows, (m,), and over the resampled rows,
    (RESAMPLES, m)."""
    drawn = [weights @ columns for weights in _resamples(strata, rules)]
    return columns.sum(axis=0), np.concatenate(drawn)


def _ranks(
    target: Ints, class_probabilities: list[Floats], present: Ints, rules: Rules
) -> tuple[Floats, Floats]:
    """Return AUC and average precision of both models, (2, 2), and resampled, (RESAMPLES, 2, 2):
    the mean over the classes; of two classes only the rarer one, which would lose them."""
    rarer = np.bincount(target, minlength=2).argmin()
    chosen = present if class_probabilities[0].shape[1] > 2 else np.array([rarer])
    rankers = [
        [_ranker(target == c, class_probability[:, c]) for class_probability in class_probabilities]
        for c in chosen
    ]

    def all_of(weights: Floats) -> Floats:
        each = [np.stack([ranked(weights) for ranked in pair], axis=-1) for pair in rankers]
        mean: Floats = np.mean(each, axis=0)
        return mean

    value = all_of(np.ones((1, len(target))))[0]
    return value, np.concatenate([all_of(w) for w in _resamples(target, rules)])


def _ranker(positive: NDArray[np.bool_], score: Floats) -> Callable[[Floats], Floats]:
    """Return a function from row weights (reps, n) to AUC and average precision, (reps, 2);
    equal scores are ties."""
    order = np.argsort(-score, kind="stable")
    falling = score[order]
    firsts = np.flatnonzero(np.r_[True, falling[1:] != falling[:-1]])
    hit = positive[order].astype(np.float64)

    def ranked(weights: Floats) -> Floats:
        w = weights[:, order]
        yes, no = w * hit, w * (1 - hit)
        if len(firsts) < len(order):
            yes, no = (np.add.reduceat(each, firsts, axis=1) for each in (yes, no))
        true, false = np.cumsum(yes, axis=1), np.cumsum(no, axis=1)
        positives, negatives = true[:, -1], false[:, -1]
        auc = (yes * (negatives[:, None] - false + no / 2)).sum(axis=1) / (positives * negatives)
        precision = true / np.maximum(true + false, 1)
        return np.stack([auc, (yes * precision).sum(axis=1) / positives], axis=1)

    if not np.isfinite(score).all():
        return lambda weights: np.full((len(weights), 2), math.nan)
    return ranked


def _ranges(target: Floats) -> dict[str, NDArray[np.bool_]]:
    """Return name -> rows of a range of the target, each with about equally many rows."""
    edges = np.unique(np.quantile(target, np.linspace(0, 1, RANGES + 1)))
    at = np.clip(np.searchsorted(edges, target, side="right") - 1, 0, max(len(edges) - 2, 0))
    ranges = {}
    for number in range(len(edges) - 1):
        rows = at == number
        if rows.sum() >= MIN_RANGE:
            low, high = edges[number], edges[number + 1]
            ranges[f"MAE where the target is {low:.4g} to {high:.4g}"] = rows
    return ranges


def _class_probabilities(scores: Floats) -> Floats:
    return np.stack([1 - scores, scores], axis=1) if scores.ndim == 1 else scores


def _predicted_classes(scores: Floats, threshold: float) -> Ints:
    if scores.ndim == 1:
        return (scores > threshold).astype(np.int64)
    highest: Ints = scores.argmax(axis=1)
    return highest


__all__ = [
    "Figure",
    "Rules",
    "compare_classes",
    "compare_quantiles",
    "compare_regression",
    "compare_targets",
    "interval",
    "speed",
]
