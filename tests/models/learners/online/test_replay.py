"""The replay holds the newest rows, and gives nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.types import UserError
from models.learners.online.replay.buffer import Replay, ReplayRows, ReplaySettings
from tests.size import examples


def ring(**changes: Any) -> Replay:
    wanted = ReplaySettings(**({"replay_rows": 10, "replay_batch": 4} | changes))
    return Replay(wanted, numeric=2, categories=1, target=torch.float32)


def rows(start: int, stop: int) -> ReplayRows:
    """Rows that carry their number in every part."""
    number = torch.arange(start, stop)
    return torch.stack([number, -number], 1).float(), number[:, None].clone(), number.float()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(size=st.integers(1, 12), batches=st.lists(st.integers(0, 15), min_size=1, max_size=8))
@settings(max_examples=examples(60), deadline=None)
def test_it_holds_the_newest_rows(size: int, batches: list[int]) -> None:
    replay, seen = ring(replay_rows=size), 0
    for n in batches:
        replay.add(rows(seen, seen + n))
        seen += n
    kept = replay.state_dict()
    assert sorted(kept["target"]) == list(range(max(0, seen - size), seen))
    assert len(replay) == min(seen, size)
    assert (kept["numeric"][:, 0] == kept["target"]).all()
    assert (kept["categories"][:, 0] == kept["target"]).all()
    assert replay.nbytes == len(replay) * (2 * 4 + 8 + 4)


@pytest.mark.parametrize("sampling", ["uniform", "recent"])
def test_it_gives_only_rows_it_holds(sampling: str) -> None:
    replay = ring(replay_sampling=sampling)
    replay.add(rows(0, 7))
    replay.add(rows(7, 25))
    drawn = replay.sample(50, rng())
    assert [len(target) for _, _, target in drawn] == [4] * 50
    for numeric, categories, target in drawn:
        assert torch.equal(numeric, torch.stack([target, -target], 1))
        assert torch.equal(categories[:, 0].float(), target)
    every = torch.cat([target for _, _, target in drawn])
    assert set(every.tolist()) == set(range(15, 25))


def test_recent_rows_halve_with_age() -> None:
    replay = ring(replay_rows=40, replay_batch=40, replay_sampling="recent", replay_half_life=10.0)
    replay.add(rows(0, 33))  # a ring that has wrapped
    replay.add(rows(33, 73))
    every = torch.cat([target for _, _, target in replay.sample(2000, rng())])
    counts = torch.bincount(every.long(), minlength=73)[33:].float()
    by_decade = counts.view(4, 10).sum(1)
    expected = torch.tensor([1.0, 2, 4, 8]) / 15
    torch.testing.assert_close(by_decade / len(every), expected, atol=0.01, rtol=0)


def test_a_step_has_no_more_rows_than_are_kept() -> None:
    replay = ring(replay_batch=100)
    replay.add(rows(0, 3))
    assert [len(target) for _, _, target in replay.sample(2, rng())] == [3, 3]


def test_draws_go_by_the_generator_alone() -> None:
    replay = ring()
    replay.add(rows(0, 10))
    one, same, other = (replay.sample(5, rng(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a[2], b[2]) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a[2], b[2]) for a, b in zip(one, other, strict=True))


def test_rows_are_copied() -> None:
    replay = ring()
    given_rows = rows(0, 5)
    replay.add(given_rows)
    state = replay.state_dict()
    given_rows[2].fill_(-1)
    replay.add(rows(5, 12))
    assert state["target"].tolist() == [0, 1, 2, 3, 4]


def test_a_restored_ring_goes_on_where_it_was() -> None:
    one, other = ring(), ring()
    one.add(rows(0, 14))
    other.load_state_dict(one.state_dict())
    for replay in (one, other):
        replay.add(rows(14, 17))
    assert one.state_dict()["target"].tolist() == other.state_dict()["target"].tolist()
    assert sorted(other.state_dict()["target"]) == list(range(7, 17))


def test_more_rows_than_memory_holds_are_refused() -> None:
    with pytest.raises(UserError, match=r"replay_rows = 99,999,999,999,999 takes [\d,]+ bytes"):
        ring(replay_rows=99_999_999_999_999)
