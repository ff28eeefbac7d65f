"""The failure kit on a pipeline of one's own; see README.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from connectors.kafka.sink import KafkaSink
from connectors.kafka.source import KafkaSource
from engine.run import Run
from tests.crash.kit import Disruption, Engine, account, caught_up, origin, records


def main() -> int:
    """The command; 0 where every record is accounted for."""
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("file", type=Path, help="a pipeline file, Kafka to Kafka")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--kills", type=int, default=10, help="SIGKILLs, each followed by a start")
    parser.add_argument("--rebalances", type=int, default=10, help="members that leave or join")
    parser.add_argument("--letters", help="the topic of dead letters")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds to catch up in")
    options = parser.parse_args()
    run = Run(options.file)
    source, sink = run.source, run.sink
    if not isinstance(source, KafkaSource) or not isinstance(sink, KafkaSink):
        parser.error(f"{options.file} is not from a Kafka source to a Kafka sink")
    settings = source.settings
    if settings.group_id is None or (options.engines > 1 and not settings.subscribe):
        parser.error("[source] group is needed, and subscribe = true for more engines than one")
    with tempfile.TemporaryDirectory(prefix="headrace-crash-") as name:
        folder = Path(name)
        engines = []
        for i in range(options.engines):
            own = [f"folder={folder}/engine{i}", "service.port=0"]
            own += [f"source.group_instance_id=engine{i}"] if settings.group_instance_id else []
            engines.append(Engine(options.file, own, folder / f"engine{i}.log"))
        disruption = Disruption(engines, seed=options.seed)
        try:
            for engine in engines:
                engine.start()
            disruption.kill(options.kills)
            disruption.rebalance(options.rebalances if options.engines > 1 else 0)
            for engine in engines:
                engine.start()
            caught_up(
                settings.bootstrap_servers, settings.group_id, settings.topics, options.timeout
            )
            for engine in engines:
                engine.stop()
        finally:
            for engine in engines:
                engine.kill()
    letters = records(settings.bootstrap_servers, options.letters) if options.letters else []
    found = account(
        settings.bootstrap_servers,
        settings.topics,
        sink.settings.topic,
        [origin(r) for r in letters],
    )
    print("\n".join(disruption.done), found, sep="\n")  # noqa: T201 - the answer
    kept = found.exactly_once if sink.settings.exactly_once else found.at_least_once
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
