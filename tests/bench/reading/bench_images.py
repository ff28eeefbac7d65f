"""JPEGs to batches of tensors: headrace against PyTorch's DataLoader and SPDL.

``python -m tests.bench images``

A folder of 4,000 photos in ten classes, of 224 x 224 and of 500 x 375, from the disk's cache, to
uint8 tensors of 64 x 3 x 224 x 224 with labels. The others (`decoders.py`) are measured
where they are installed (``pip install torchvision spdl``, and FFmpeg's libraries for SPDL's own
decoder). headrace checks every image, says where to resume, and rejects what is broken.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from engine.config import Pipeline
from engine.run import Run
from tests.bench.measure import interleave, median, report
from tests.bench.reading.decoders import BATCH, SIZE, installed
from tests.bench.reading.loaders import Peer, spent

KINDS = {"224 x 224": (224, 224), "500 x 375": (375, 500)}


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/images.json``."""
    count = 64 if quick else 4_000
    seconds: dict[str, list[float]] = {}
    figures: dict[str, Any] = {}
    for kind, (height, width) in list(KINDS.items())[: 1 if quick else None]:
        with TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            write(folder, count, height, width)
            peers = {
                peer: stack.enter_context(
                    closing(Peer(peer, folder, module="tests.bench.reading.decoders"))
                )
                for peer in installed("images", quick=quick)
            }
            runs: dict[str, Callable[[], object]] = {"headrace": partial(headrace, folder, count)}
            runs |= {peer: checked(made, count) for peer, made in peers.items()}
            taken = interleave(runs, rounds=3 if quick else 5)
            cpu = {"headrace": processor(runs["headrace"])}
            cpu |= {peer: median(made.cpu) for peer, made in peers.items()}
        seconds |= {f"{kind}: {run}": each for run, each in taken.items()}
        figures |= {f"{kind}: {run}, images/s": count / median(s) for run, s in taken.items()}
        figures |= {f"{kind}: {run}, CPU ms an image": s / count * 1e3 for run, s in cpu.items()}
        for peer in peers:
            figures[f"{kind}: headrace / {peer}"] = median(taken[peer]) / median(taken["headrace"])
    report("images", figures, seconds=seconds, goal="no slower than the best of the others")


def headrace(folder: Path, count: int) -> None:
    """All batches of a pipeline."""
    table: dict[str, Any] = {
        "name": "images",
        "source": {
            "kind": "files",
            "path": str(folder),
            "schema": {"image": "bytes", "label": "string"},
        },
        "loader": {"batch_rows": BATCH},
        "scrub": {"pixels": {"kind": "image", "columns": ["image"], "size": [SIZE, SIZE]}},
        "model": {
            "images": ["image"],
            "target": "label",
            "task": "multiclass",
            "classes": [str(i) for i in range(10)],
        },
    }
    with Run(Pipeline.of(table)).loader() as batches:
        rows = 0
        for batch in batches:
            assert batch.tensors is not None
            rows += len(batch.tensors.images["image"])
    assert rows == count


def checked(peer: Peer, count: int) -> Callable[[], None]:
    """A run that must give all images."""

    def run() -> None:
        assert peer.run() == count

    return run


def processor(run: Callable[[], object]) -> float:
    """CPU seconds of one run."""
    before = spent()
    run()
    return spent() - before


def write(folder: Path, count: int, height: int, width: int) -> None:
    """Photos in ten folders: smooth colours and grain, as cameras give."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(min(count, 100)):
        few = rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(few).resize((width, height), Image.Resampling.BICUBIC))
        grain = rng.normal(0, 6, (height, width, 3))
        file = io.BytesIO()
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(
            file, "JPEG", quality=90
        )
        made.append(file.getvalue())
    for i in range(count):
        path = folder / f"{i % 10}" / f"{i:06}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(made[i % len(made)])


if __name__ == "__main__":
    main()
