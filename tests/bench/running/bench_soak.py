"""Forty million records through source, scrub, predict and sink of one engine process.

``python -m tests.bench soak``

Is memory flat, and the last tenth as fast as the first? The engine is a process of its own with a
memory budget of 64 MiB; its page is read ten times a second. The topic is filled beforehand. Broker
and engine share the machine.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import polars as pl
from prometheus_client.parser import text_string_to_metric_families

from connectors.kafka.sink import KafkaSink
from engine.run import Run
from tests.bench.measure import report
from tests.broker import Broker, shared_broker

PARTITIONS = 4
NUMBERS = [f"x{i}" for i in range(8)]
COMMON = """
name = "{name}"
folder = "{folder}/{name}"
[source.schema]
id = "int64"
kind = "string"
{schema}
[scrub.missing]
columns = ["x*"]
strategy = "mean"
[scrub.standardize]
columns = ["x*"]
"""
TRAIN = """
[source]
kind = "files"
path = "{folder}/rows.ndjson"
[model]
target = "x7"
numeric = ["x[0-6]"]
layers = [32]
[train]
threads = 1
"""
SERVE = """
[source]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topics = "{topic}"
group_id = "{topic}"
[loader]
batch_rows = 8192
memory_budget = "64MiB"
max_delay = 0.5
[infer]
model = "{folder}/model.onnx"
threads = 1
[sink]
kind = "kafka"
bootstrap_servers = "{bootstrap_servers}"
topic = "{sink}"
columns = ["id"]
[service]
port = 0
"""


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/soak.json``."""
    count = 20_000 if quick else 40_000_000
    broker = shared_broker()
    topic, sink = broker.topic(PARTITIONS), broker.topic(PARTITIONS)
    with tempfile.TemporaryDirectory(prefix="headrace-soak-") as name:
        folder = Path(name)
        values = rows()
        fill(broker, topic, values, count)
        file = pipeline(folder, broker, topic, sink, values)
        samples = watched(file, count)
    figures = figured(samples, count)
    report("soak", figures, goal="last tenth at 0.95 of the first; memory flat within the budget")


def rows() -> list[bytes]:
    """JSON of about 200 bytes, one value in twenty missing."""
    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=(10_000, len(NUMBERS))), 12).tolist()
    made = []
    for i, row in enumerate(x):
        values = dict(zip(NUMBERS, row, strict=True))
        if i % 20 == 0:
            values["x3"] = None
        made.append(json.dumps({"id": i, "kind": "abcd"[i % 4], **values}).encode())
    return made


def fill(broker: Broker, topic: str, values: list[bytes], count: int) -> None:
    """The rows over and over, to all partitions in turns."""
    settings = KafkaSink.Settings(
        bootstrap_servers=broker.bootstrap_servers, topic=topic, format="raw"
    )
    sink, frame = KafkaSink(settings), pl.DataFrame({"value": values})
    for _ in range(count // len(values)):
        sink.write(frame)
    sink.flush()
    sink.close()


def pipeline(folder: Path, broker: Broker, topic: str, sink: str, values: list[bytes]) -> Path:
    """Trains a small model on the rows, and writes the file of the engine that serves it."""
    schema = "\n".join(f'{column} = "float64"' for column in NUMBERS)
    (folder / "rows.ndjson").write_bytes(b"\n".join(values) + b"\n")
    keys = {
        "folder": folder,
        "bootstrap_servers": broker.bootstrap_servers,
        "topic": topic,
        "sink": sink,
    }
    made = {}
    for name, more in (("train", TRAIN), ("serve", SERVE)):
        made[name] = folder / f"{name}.toml"
        made[name].write_text((COMMON + more).format(name=name, schema=schema, **keys))
    run = Run(made["train"])
    run.run()
    run.export(folder / "model.onnx")
    return made["serve"]


def watched(file: Path, count: int) -> list[dict[str, float]]:
    """The engine's page, ten times a second, until it has done all: seconds, records, memory."""
    command = [
        sys.executable,
        "-m",
        "engine.commands.cli",
        "run",
        str(file),
        "--log-format",
        "json",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    url = ""
    samples: list[dict[str, float]] = []
    try:
        for line in process.stderr:
            if "service listens" in line:
                url = json.loads(line)["url"]
                break
        start = time.monotonic()
        while not samples or samples[-1]["records"] < count:
            assert process.poll() is None, "the engine ended"
            samples.append({"seconds": time.monotonic() - start, **page(url)})
            time.sleep(0.1)  # between two looks
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    return samples


def page(url: str) -> dict[str, float]:
    """Records done, bytes of the process and of the queues."""
    found = {"records": 0.0, "process": 0.0, "queues": 0.0}
    text = httpx.get(f"{url}/metrics", timeout=20, verify=False).text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "headrace_source_records_total":
                found["records"] = sample.value
            elif sample.name == "headrace_queue_bytes":
                found["queues"] += sample.value
            elif sample.name == "headrace_memory_bytes" and sample.labels["component"] == "process":
                found["process"] = sample.value
    return found


def figured(samples: list[dict[str, float]], count: int) -> dict[str, float]:
    """Rates of the tenths, and how memory went after the first of them."""
    done = np.array([s["records"] for s in samples])
    at = np.array([s["seconds"] for s in samples])
    process = np.array([s["process"] for s in samples])
    ends = np.interp(np.arange(1, 11) * count / 10, done, at)
    begin = float(np.interp(1, done, at))
    seconds = np.diff([begin, *ends])
    rates = count / 10 / np.maximum(seconds, 1e-9)
    warm = process[at >= ends[0]]
    return {
        **{f"tenth {i + 1}, records/s": float(rate) for i, rate in enumerate(rates)},
        "last tenth / first": float(rates[-1] / rates[0]),
        "last tenth / median tenth": float(rates[-1] / np.median(rates)),
        "process after the first tenth, MiB": float(warm[0] / 2**20) if len(warm) else 0.0,
        "process at the end, MiB": float(process[-1] / 2**20),
        "process at most, MiB": float(process.max() / 2**20),
        "queues at most, MiB": max(s["queues"] for s in samples) / 2**20,
    }
