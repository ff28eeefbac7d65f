"""The clock of a stream: it follows the times that are right, and no others, however it is cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.columnar.event_time import AGREE, NEVER, Clock, without_future
from tests.size import examples

AHEAD = 100
SOON = st.lists(st.integers(0, AHEAD), min_size=2 * AGREE, max_size=40)
"""Steps of a stream whose times are close to each other."""


def walk(times: Sequence[int], *, at_once: bool = False, clock: Clock | None = None) -> list[int]:
    """The clock with each time."""
    _, clocks, _ = (clock or Clock()).walk(np.array(times, np.int64), AHEAD, at_once=at_once)
    return [int(each) for each in clocks]


def far_ahead(times: Sequence[tuple[int, int]], ahead: int) -> int:
    """How many of these times, each with the clock, are far ahead of it."""
    return sum(NEVER not in (time, clock) and time - clock > ahead for time, clock in times)


def running(steps: Sequence[int], start: int = 1_000) -> list[int]:
    return [start + step for step in itertools.accumulate(steps)]


@settings(deadline=None, max_examples=examples(200))
@given(
    times=st.lists(
        st.just(NEVER) | st.integers(0, 300) | st.sampled_from([NEVER + 1, 10**6, -NEVER - 1]),
        max_size=60,
    ),
    cut=st.integers(0, 60),
    ahead=st.sampled_from([1, AHEAD, 1 << 60]),
    at_once=st.booleans(),
)
def test_the_cut_changes_nothing(times: list[int], cut: int, ahead: int, at_once: bool) -> None:
    """Whatever the times are."""
    given_times = np.array(times, np.int64)
    whole, clocks, far = Clock().walk(given_times, ahead, at_once=at_once)
    first, early_clocks, early_far = Clock().walk(given_times[:cut], ahead, at_once=at_once)
    again = Clock.restore(first.snapshot())
    last, late_clocks, late_far = again.walk(given_times[cut:], ahead, at_once=at_once)
    assert clocks.tolist() == [*early_clocks.tolist(), *late_clocks.tolist()]
    assert far == early_far + late_far
    assert whole.state.tolist() == last.state.tolist()
    assert set(clocks.tolist()) <= {NEVER, *times}
    begins = Clock().begins(given_times)
    assert first.begins(given_times[cut:]) == max(0, begins - min(cut, len(times)))
    assert whole.has_begun == (begins < len(times))
    later = [(time, clock) for time, clock in zip(times, clocks.tolist(), strict=True)][begins:]
    early = list(zip(times, clocks.tolist(), strict=True))[:begins]
    told = far_ahead(early, ahead)
    if later:
        told = max(told, far_ahead([(time, later[0][1]) for time, _ in [*early, later[0]]], ahead))
    assert far == told + far_ahead(later[1:], ahead)


@settings(deadline=None, max_examples=examples(200))
@given(steps=SOON, back=st.lists(st.integers(0, AHEAD), min_size=40, max_size=40))
def test_it_is_the_newest_of_times_that_are_near_each_other(
    steps: list[int], back: list[int]
) -> None:
    """Also where they are out of order. It begins with eight, or is guessed from the first on."""
    times = [time - late for time, late in zip(running(steps), back, strict=False)]
    newest = list(itertools.accumulate(times, max))
    spread = max(abs(b - a) for a, b in itertools.pairwise(newest))
    if max(abs(b - a) for a, b in itertools.pairwise(times)) <= AHEAD:
        assert walk(times, at_once=True) == newest
    assert walk(times)[: AGREE - 1] == [NEVER] * (AGREE - 1)
    if max(times[:AGREE]) - min(times[:AGREE]) <= AHEAD and spread <= AHEAD:
        assert walk(times)[AGREE - 1 :] == newest[AGREE - 1 :]


@settings(deadline=None, max_examples=examples(200))
@given(
    steps=SOON,
    wild=st.dictionaries(
        st.integers(AGREE, 40),
        st.lists(st.integers(10**5, -NEVER - 1), min_size=1, max_size=AGREE - 1),
    ),
    first=st.lists(st.tuples(st.integers(0, AGREE - 1), st.integers(10**5, 10**9)), max_size=4),
    at_once=st.booleans(),
)
def test_wrong_times_move_nothing(
    steps: list[int],
    wild: dict[int, list[int]],
    first: list[tuple[int, int]],
    at_once: bool,
) -> None:
    """Seven of the far future in sequence; and half of those that it begins with."""
    right = running(steps)
    times = list[tuple[int, bool]]()
    for place, time in enumerate(right):
        times += [(each, True) for each in wild.get(place, [])]
        times.append((time, False))
    for place, time in first:
        times.insert(place, (time, True))
    clocks = walk([time for time, _ in times], at_once=at_once)
    newest = NEVER
    for place, ((time, is_wrong), clock) in enumerate(zip(times, clocks, strict=True)):
        newest = newest if is_wrong else max(newest, time)
        if place >= AGREE - 1 or not at_once:
            assert clock <= newest
    assert clocks[-1] == right[-1]


@settings(deadline=None, max_examples=examples(200))
@given(
    unit=st.integers(AHEAD + 1, 10**6),
    shares=st.lists(st.floats(1, 3), min_size=2 * AGREE, max_size=40),
    wild=st.integers(AGREE, 40),
    at_once=st.booleans(),
)
def test_times_far_apart_do_not_make_it_lag(
    unit: int, shares: list[float], wild: int, at_once: bool
) -> None:
    """Each further than `ahead` after the one before: from the first eight on the clock is the
    newest; one wrong time among them changes nothing."""
    times = running([int(unit * share) for share in shares])
    begun = AGREE - 1
    assert walk(times, at_once=at_once)[begun:] == times[begun:]
    wild = min(max(wild, begun + 1), len(times))
    spoilt = [*times[:wild], 10**12, *times[wild:]]
    clocks = walk(spoilt, at_once=at_once)
    assert clocks.pop(wild) == times[wild - 1]
    assert clocks[begun:] == times[begun:]


@pytest.mark.parametrize("wrong", range(AGREE // 2 + 1))
def test_a_stream_that_begins_anew_is_followed(wrong: int) -> None:
    """After a long rest: with the eighth time; with up to half of the eight wrong, too."""
    times = [*range(1_000, 1_000 + AGREE), *range(90_000, 90_000 + AGREE)]
    for place in range(AGREE, AGREE + wrong):
        times[place] = 10**9
    clocks = walk(times)
    assert clocks[AGREE:-1] == [1_000 + AGREE - 1] * (AGREE - 1)
    assert clocks[-1] == 90_000 + AGREE - 1
    # And is near again: a time that was no surprise in the rest is one now.
    assert walk([*times, 170_000])[-1] == 90_000 + AGREE - 1


def test_a_stream_that_is_no_longer_sparse_takes_far_times_for_wrong_again() -> None:
    apart = [1_000 * n for n in range(2 * AGREE)]
    soon = [apart[-1] + n for n in range(1, 60)]
    assert walk([*apart, apart[-1] + 3_000])[-1] == apart[-1] + 3_000
    assert walk([*apart, *soon, soon[-1] + 3_000])[-1] == soon[-1]


@pytest.mark.parametrize(
    ("times", "guesses"),
    [
        ([5, 6, 7], [5, 6, 7]),
        ([9_999, 5, 6], [9_999, 5, 6]),  # of one and one the earlier
        ([-9_999, 5, 6], [-9_999, -9_999, 6]),  # of two and one the two
        ([5, 9_999, 4, 9_998, 90, 9_997], [5, 5, 5, 5, 90, 90]),
        ([5, 6, -9_999, -9_998, 7], [5, 6, 6, -9_998, 7]),
        ([NEVER, 9_999, NEVER, 5], [NEVER, 9_999, 9_999, 5]),
    ],
)
def test_before_it_has_begun_the_clock_is_guessed_at_once(
    times: list[int], guesses: list[int]
) -> None:
    """The newest of the most times that are near each other."""
    assert walk(times, at_once=True) == guesses
    assert walk(times) == [NEVER] * len(times)


def test_a_clock_that_has_begun_never_goes_back() -> None:
    """Dead letters of long ago, read again, are late."""
    known, *_ = Clock().walk(np.arange(AGREE), AHEAD, at_once=True)
    assert set(walk([-9_999] * 2 * AGREE, clock=known, at_once=True)) == {AGREE - 1}


def test_of_the_first_eight_those_far_ahead_are_counted_once_it_is_known() -> None:
    times, clock, told = [9_999, 1, 2, 3, 9_998, 4, 5, 6, 7, 9_997], Clock(), []
    for time in times:
        clock, _, far = clock.walk(np.array([time]), AHEAD, at_once=True)
        told.append(far)
    assert told == [0, 0, 0, 0, 1, 0, 0, 1, 0, 1]  # the first is known with the eighth


# ---------------------------------------------------------------------------- with what comes later


@settings(deadline=None, max_examples=examples(200))
@given(
    steps=st.lists(st.integers(0, AHEAD // 6), min_size=2 * AGREE, max_size=40),  # near over gaps
    gaps=st.lists(st.integers(1, 40), max_size=5),
    wild=st.dictionaries(st.integers(0, 40), st.integers(10**5, -NEVER - 1), max_size=4),
)
def test_without_future_takes_away_wrong_times_and_no_others(
    steps: list[int], gaps: list[int], wild: dict[int, int]
) -> None:
    """But for those that have not eight times after them. Rests and times of nothing are left."""
    right = [NEVER if place in gaps else time for place, time in enumerate(running(steps))]
    rest = [
        time + 50_000 if time > NEVER and place > 20 else time for place, time in enumerate(right)
    ]
    for times in (right, rest):
        spoilt = list[int]()
        for place, time in enumerate(times):
            spoilt += [wild[place]] if place in wild else []
            spoilt.append(time)
        left = without_future(np.array(spoilt, np.int64), AHEAD).tolist()
        after = [sum(each > NEVER for each in spoilt[at + 1 :]) for at in range(len(spoilt))]
        for was, now, followers in zip(spoilt, left, after, strict=True):
            is_wrong = was >= 10**5
            assert now == (NEVER if is_wrong and followers >= AGREE else was)
