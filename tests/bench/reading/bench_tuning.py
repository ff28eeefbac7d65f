"""Depth that tunes itself against the best depth fixed by hand, for three scripted consumers.

``python -m tests.bench tuning``

A producer makes an item of 256 KiB in 5 ms. The fast consumer takes 1 ms for each, the slow one 10
ms, the alternating one turns from 1 ms to 9 ms and back every second: with a deep queue it never
waits. The fourth begins alternating and then stays slow: its memory should come back. Sleeps stand
for the work, so all run at the same time, each with a queue of its own, and only the queues differ.
Rates are taken after the first ten seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from engine.loading.autotune import QueueDepth
from engine.loading.budget import Budget
from engine.loading.channel import Channel, Closed
from tests.bench.measure import report

ITEM = 256 << 10
LIMIT = 64 << 20
MAKING = 0.005
TURN = 1.0
START = 0.125
"""Part of the limit that the tuned queue begins with: less than the alternating consumer needs."""
DEPTHS = (2, 8, 32, 128, 256)
"""Items that the fixed queues hold."""


def fast(_: float) -> float:
    """Seconds for an item, so many seconds after the start."""
    return 0.001


def slow(_: float) -> float:
    """The same, of the slow consumer."""
    return 0.010


def alternating(now: float) -> float:
    """The same, of the one that takes turns."""
    return 0.001 if int(now / TURN) % 2 else 0.009


CONSUMERS: dict[str, Callable[[float], float]] = {
    "fast": fast,
    "slow": slow,
    "alternating": alternating,
}


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/tuning.json``."""
    settling, measured = (1.0, 1.0) if quick else (10.0, 20.0)
    with ThreadPoolExecutor(64) as pool:
        jobs = {
            (name, depth): pool.submit(rate, consumer, depth, settling, measured)
            for name, consumer in CONSUMERS.items()
            for depth in (None, *DEPTHS)
        }
        back = pool.submit(given_back, settling, 3 * measured)
        rates = {key: job.result() for key, job in jobs.items()}
    figures: dict[str, object] = {}
    for name in CONSUMERS:
        best = max(DEPTHS, key=lambda depth: rates[name, depth])
        figures[f"{name}: tuned, items/s"] = rates[name, None]
        for depth in DEPTHS:
            figures[f"{name}: {depth} items, items/s"] = rates[name, depth]
        figures[f"{name}: best fixed depth, items"] = best
        figures[f"{name}: tuned / best fixed"] = rates[name, None] / rates[name, best]
    figures |= back.result()
    report("tuning", figures, goal="0.95 of the best fixed depth within 10 s; memory comes back")


def rate(
    consumer: Callable[[float], float], items: int | None, settling: float, measured: float
) -> float:
    """Items a second after `settling` seconds; at a depth of so many items, or tuned."""
    depth = QueueDepth(LIMIT, fixed=None if items is None else items * ITEM, start=START)
    taken = 0
    for now, _ in run(consumer, depth, settling + measured):
        taken += now >= settling
    return taken / measured


def given_back(settling: float, measured: float) -> dict[str, object]:
    """MiB that the queue may hold and does hold, before and after a consumer has become slow."""
    depth, found = QueueDepth(LIMIT, start=START), {}

    def consumer(now: float) -> float:
        return alternating(now) if now < settling else slow(now)

    for now, held in run(consumer, depth, settling + measured):
        moment = "alternating" if now < settling else "slow at last"
        found[f"{moment}: depth, MiB"] = depth.bytes / (1 << 20)
        found[f"{moment}: held, MiB"] = held / (1 << 20)
    return dict(found)


def run(
    consumer: Callable[[float], float], depth: QueueDepth, seconds: float
) -> Iterator[tuple[float, int]]:
    """Each item's time since the start, and the bytes that wait then."""
    channel: Channel[int] = Channel("bench", Budget(LIMIT), lambda _: ITEM, depth=depth)
    thread = threading.Thread(target=partial(produce, channel))
    thread.start()
    start = time.perf_counter()
    while (now := time.perf_counter() - start) < seconds:
        channel.get()
        yield now, channel.nbytes
        time.sleep(consumer(now))
    channel.close()
    thread.join()


def produce(channel: Channel[int]) -> None:
    """An item every `MAKING` seconds, until the channel is closed."""
    try:
        while True:
            time.sleep(MAKING)
            channel.put(0)
    except Closed:
        return


if __name__ == "__main__":
    main()
