"""When a batch that is not full is closed, where the consumer says when it is ready."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np
import polars as pl

from engine.config import LoaderSettings
from engine.loading.budget import Budget
from engine.loading.channel import Channel
from engine.loading.deadline import Demand
from engine.loading.nodes import Node
from engine.loading.prefetch import PrefetchNode
from engine.loading.rebatch import RebatchNode
from engine.types import Records
from tests.waiting import HANG, until


class Given(Node[Records | None]):
    """Gives what is put into it, until None."""

    def __init__(self) -> None:
        super().__init__()
        self.given: SimpleQueue[Records | None] = SimpleQueue()

    def next(self) -> Records | None:
        if (records := self.given.get()) is None:
            raise StopIteration
        return records

    def get_state(self) -> None:
        return None


@contextmanager
def cutting(rows: int, demand: Demand) -> Iterator[tuple[Given, RebatchNode]]:
    given, budget = Given(), Budget(1 << 20)
    fetch = PrefetchNode(given, lambda: Channel("raw", budget, lambda _: 1), "fetch")
    settings = LoaderSettings(batch_rows=rows, max_delay=0)
    node = RebatchNode(fetch, settings, budget, demand=demand)
    node.idle = HANG
    try:
        yield given, node
    finally:
        given.given.put(None)
        node.halt()


def row(at: int) -> Records:
    values = pl.DataFrame({"a": [at]})
    return Records(partition="p", positions=np.array([at]), next=at + 1, values=values, arrived=0.0)


def busy() -> Demand:
    """Of a consumer that is at work."""
    demand = Demand()
    demand.due = math.inf
    return demand


def test_rows_join_the_batch_until_the_consumer_is_ready() -> None:
    demand = busy()
    with cutting(10, demand) as (given, node), ThreadPoolExecutor(1) as pool:
        batch = pool.submit(next, node)
        for at in range(3):
            given.given.put(row(at))
        until(lambda: node._left == 7)
        assert not batch.done()
        demand.ask()
        assert batch.result(HANG).rows == 3


def test_a_full_batch_does_not_wait_for_the_consumer() -> None:
    with cutting(2, busy()) as (given, node), ThreadPoolExecutor(1) as pool:
        for at in range(2):
            given.given.put(row(at))
        batch = pool.submit(next, node).result(HANG)
        assert (batch.rows, batch.reason) == (2, "full")


def test_the_end_does_not_wait_for_the_consumer() -> None:
    with cutting(10, busy()) as (given, node), ThreadPoolExecutor(1) as pool:
        given.given.put(row(0))
        given.given.put(None)
        batch = pool.submit(next, node).result(HANG)
        assert (batch.rows, batch.reason) == (1, "drain")


def test_a_consumer_that_waits_gets_a_row_at_once() -> None:
    demand = busy()
    demand.ask()
    with cutting(10, demand) as (given, node), ThreadPoolExecutor(1) as pool:
        batch = pool.submit(next, node)
        given.given.put(row(0))
        assert batch.result(HANG).rows == 1
