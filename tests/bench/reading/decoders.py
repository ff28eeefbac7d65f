"""Other loaders over a folder of JPEGs, and over lines of text: each as its documentation advises,
with two workers or threads where it takes a number.

Images: the short side resized to 224, the middle taken, batches of 64 as uint8 tensors with
their labels. Lines: lower case, split at whitespace, each token a number by a hash that is the same
everywhere, cut at 64 tokens, batches of 512 padded to a power of two, with a mask.

Each runs in a process of its own, see `loaders.py`.
"""

from __future__ import annotations

import importlib.util
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.bench.reading.loaders import WORKERS, serve

SIZE, BATCH = 224, 64
LINES, LONGEST, NUMBERS = 512, 64, 65_536


def files(folder: Path) -> list[tuple[str, int]]:
    """Paths and classes, in order."""
    names = sorted(place.name for place in folder.iterdir())
    return [(str(p), names.index(p.parent.name)) for p in sorted(folder.glob("*/*.jpg"))]


# ------------------------------------------------------------------------------------------- images


def pil(folder: Path, workers: int) -> Callable[[], Iterable[Any]]:
    """torchvision's ImageFolder with Pillow, transforms v2, DataLoader."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    transform = v2.Compose([v2.PILToTensor(), v2.Resize(SIZE, antialias=True), v2.CenterCrop(SIZE)])
    return dataloader(ImageFolder(str(folder), transform), workers)


def torchvision(folder: Path, workers: int) -> Callable[[], Iterable[Any]]:
    """The same with torchvision's own decoder."""
    from torchvision.datasets import ImageFolder

    return dataloader(ImageFolder(str(folder), loader=decoded), workers)


def dataloader(data: Any, workers: int) -> Callable[[], Iterable[Any]]:
    """Batches by workers that stay."""
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        data, batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda: (images for images, _ in loader)


def decoded(path: str) -> torch.Tensor:
    """An image by torchvision.io, (3, 224, 224)."""
    from torchvision.io import decode_image
    from torchvision.transforms.v2 import functional as F

    image = decode_image(path, mode="RGB")
    made: torch.Tensor = F.center_crop(F.resize(image, [SIZE], antialias=True), [SIZE, SIZE])
    return made


def spdl(folder: Path, batch: Callable[[list[str]], torch.Tensor]) -> Callable[[], Iterable[Any]]:
    """SPDL: batches of paths piped through threads."""
    from spdl.pipeline import PipelineBuilder

    paths = [path for path, _ in files(folder)]
    parts = [paths[i : i + BATCH] for i in range(0, len(paths), BATCH)]

    def made() -> Iterator[torch.Tensor]:
        torch.set_num_threads(1)
        pipeline = (
            PipelineBuilder()
            .add_source(parts)
            .pipe(batch, concurrency=WORKERS)
            .add_sink(4)
            .build(num_threads=WORKERS)
        )
        with pipeline.auto_stop():
            yield from pipeline

    return made


def stacked(paths: list[str]) -> torch.Tensor:
    """A batch by torchvision.io."""
    return torch.stack([decoded(path) for path in paths])


def ffmpeg(paths: list[str]) -> torch.Tensor:
    """A batch by SPDL's own decoder."""
    import spdl.io

    fitted = (
        f"scale={SIZE}:{SIZE}:force_original_aspect_ratio=increase:flags=bilinear,"
        f"crop={SIZE}:{SIZE},format=pix_fmts=rgb24"
    )
    frames = [
        spdl.io.decode_packets(spdl.io.demux_image(path), filter_desc=fitted) for path in paths
    ]
    made: torch.Tensor = spdl.io.to_torch(spdl.io.convert_frames(frames))
    return made


# -------------------------------------------------------------------------------------------- lines


def numbered(line: str) -> list[int]:
    """Its tokens' numbers."""
    tokens = line.lower().split()[:LONGEST]
    return [1 + zlib.crc32(token.encode()) % NUMBERS for token in tokens]


def padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Filled up to the next power of two, and the mask."""
    longest = max(1, *(len(row) for row in rows))
    width = min(1 << (longest - 1).bit_length(), LONGEST)
    made = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    made = torch.nn.functional.pad(made, (0, width - made.shape[1]))
    lengths = torch.tensor([len(row) for row in rows])
    return made, torch.arange(width) < lengths[:, None]


def collated(lines: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """DataLoader's collate_fn."""
    return padded([numbered(line) for line in lines])


class Lines(torch.utils.data.IterableDataset[str]):
    """The lines of a file, every so many-th for each worker."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[str]:
        worker = torch.utils.data.get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        with self.path.open(encoding="utf-8") as file:
            for i, line in enumerate(file):
                if i % step == first:
                    yield line


def collate(path: Path, workers: int) -> Callable[[], Iterable[Any]]:
    """DataLoader over lines with a collate_fn."""
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        Lines(path),
        batch_size=LINES,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collated,
    )
    return lambda: (values for values, _ in loader)


def datasets(path: Path) -> Callable[[], Iterable[Any]]:
    """Hugging Face datasets: a stream of batches of lines, mapped, then padded."""
    from datasets import load_dataset

    def tokens(part: dict[str, Any]) -> dict[str, Any]:
        return {"ids": [numbered(line) for line in part["text"]]}

    def made() -> Iterator[torch.Tensor]:
        data = load_dataset("text", data_files=str(path), split="train", streaming=True)
        mapped = data.map(tokens, batched=True, batch_size=LINES, remove_columns=["text"])
        for part in mapped.iter(batch_size=LINES):
            yield padded(part["ids"])[0]

    return made


Make = Callable[[Path], Callable[[], Iterable[Any]]]
PEERS: dict[str, dict[str, tuple[str, Make]]] = {
    "images": {
        "DataLoader, Pillow, 0 workers": ("torchvision", partial(pil, workers=0)),
        "DataLoader, Pillow, 2 workers": ("torchvision", partial(pil, workers=2)),
        "DataLoader, torchvision.io, 0 workers": ("torchvision", partial(torchvision, workers=0)),
        "DataLoader, torchvision.io, 2 workers": ("torchvision", partial(torchvision, workers=2)),
        "SPDL, torchvision.io": ("spdl", partial(spdl, batch=stacked)),
        "SPDL, FFmpeg": ("spdl.io", partial(spdl, batch=ffmpeg)),
    },
    "ragged": {
        "DataLoader, 0 workers": ("torch", partial(collate, workers=0)),
        "DataLoader, 2 workers": ("torch", partial(collate, workers=2)),
        "Hugging Face datasets": ("datasets", datasets),
    },
}
"""Benchmark -> name -> the module it needs, and what makes one."""


def installed(benchmark: str, *, quick: bool = False) -> list[str]:
    """Names of the loaders that are there, libraries they need included; quick, one of each."""
    there = {name: module for name, (module, _) in PEERS[benchmark].items() if _there(module)}
    return list({module: name for name, module in there.items()}.values()) if quick else [*there]


def _there(module: str) -> bool:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        return False
    if module != "spdl.io":
        return True
    from spdl.io.utils import get_ffmpeg_versions

    try:
        get_ffmpeg_versions()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    serve({**PEERS["images"], **PEERS["ragged"]}[sys.argv[1]][1](Path(sys.argv[2])))
