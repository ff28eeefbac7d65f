"""Lines of text to padded batches of token numbers: headrace against PyTorch's DataLoader and
Hugging Face datasets.

``python -m tests.bench ragged``

400,000 lines of 5 to 60 words (66 MB), from the disk's cache: lower case, split at whitespace, each
word a number by a stable hash, cut at 64, batches of 512 padded to a power of two, with a mask. The
others (`decoders.py`) are measured where they are installed (``pip install datasets``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from connectors.files.source import FilesSource
from engine.config import LoaderSettings
from engine.loading.collate import Collate
from engine.loading.loader import Loader
from engine.scrub.features.tokens import Tokens
from engine.types import Features, Schema, parse_schema
from tests.bench.measure import interleave, median, report
from tests.bench.reading.bench_images import checked, processor
from tests.bench.reading.decoders import LINES, LONGEST, NUMBERS, installed
from tests.bench.reading.loaders import Peer


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/ragged.json``."""
    count = 2_000 if quick else 400_000
    with TemporaryDirectory() as name, ExitStack() as stack:
        path = Path(name) / "lines.txt"
        write(path, count)
        peers = {
            peer: stack.enter_context(
                closing(Peer(peer, path, module="tests.bench.reading.decoders"))
            )
            for peer in installed("ragged", quick=quick)
        }
        runs: dict[str, Callable[[], object]] = {
            "headrace": lambda: headrace(path, count, LINES),
            "headrace, batches of 8,192": lambda: headrace(path, count, 8_192),
        }
        runs |= {peer: checked(made, count) for peer, made in peers.items()}
        seconds = interleave(runs, rounds=3 if quick else 5)
        cpu = {"headrace": processor(runs["headrace"])}
        cpu |= {peer: median(made.cpu) for peer, made in peers.items()}
    figures = {f"{run}, lines/s": count / median(taken) for run, taken in seconds.items()}
    figures |= {f"{run}, CPU s per million lines": s / count * 1e6 for run, s in cpu.items()}
    for peer in peers:
        figures[f"headrace / {peer}"] = median(seconds[peer]) / median(seconds["headrace"])
    report("ragged", figures, seconds=seconds, goal="5 x the best of the others")


def headrace(path: Path, count: int, rows: int) -> None:
    """All batches of a loader."""
    source = FilesSource(FilesSource.Settings(path=str(path), format="text"))
    schema: Schema = source.schema(parse_schema({"value": "string"}))
    tokens = Tokens("tokens", Tokens.Settings(columns=("value",), size=NUMBERS))
    collate = Collate(Features(numeric=(), padded={"value": NUMBERS + 1}, max_length=LONGEST))
    collate.bind(tokens.bind(schema))
    loader = Loader(
        source, schema=schema, stages=[tokens], collate=collate.apply,
        settings=LoaderSettings(batch_rows=rows),
    )  # fmt: skip
    with loader as batches:
        seen = 0
        for batch in batches:
            assert batch.tensors is not None
            seen += len(batch.tensors.padded["value"].values)
    assert seen == count


def write(path: Path, count: int) -> None:
    """Lines of words, the frequent ones far more often."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i:x}" for i in range(50_000)])
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            picked = rng.zipf(1.3, rng.integers(5, 61)) % len(words)
            file.write(" ".join(words[picked]) + "\n")


if __name__ == "__main__":
    main()
