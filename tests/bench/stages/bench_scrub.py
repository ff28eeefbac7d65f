"""Stages of scrubbing against the same method in River, scikit-learn or datasketch, on one core.

``python -m tests.bench scrub``

headrace gets batches of 8,192 rows as the loader gives them, each transformed and then learned
from; the first 128 rows of a stream, which scaling stages learn bit by bit, are timed apart. River
gets its rows as the dicts it wants, one by one, in the same order of verbs. scikit-learn, which
knows no stream, gets all rows at once, to fit and then transform. The slower side of each pair runs
on fewer rows: what counts is rows a second.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import river
import river.anomaly
import river.drift
import river.preprocessing
from datasketch import MinHash, MinHashLSH
from PIL import Image
from scipy.fft import dct
from sklearn.experimental import enable_iterative_imputer
from sklearn.impute import IterativeImputer
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import PowerTransformer
from threadpoolctl import threadpool_limits

from engine.scrub import STAGES
from engine.scrub.base import COLD_ROWS, FittedStage
from engine.types import Batch, Mark, Snapshot, Stage
from tests.bench.measure import interleave, median, report

assert enable_iterative_imputer is not None
BATCH = 8_192
COLUMNS = [f"c{j}" for j in range(8)]
KEYS = 1_000
TEXT = 200
"""Letters of a text."""
LAG = {"column": "c0", "by": ["key"], "time": "at", "every": 1, "steps": [1, 2, 3]}


def main(*, quick: bool = False) -> None:
    """Measure, print, write ``runs/bench/scrub.json``."""
    rows, few = (BATCH // 4, 500) if quick else (32 * BATCH, 4_000)
    bench = Pairs(rows, few)
    with one_core():
        seconds = interleave(bench.runs(), rounds=3 if quick else 5)
    rates = {name: bench.rows[name] / median(seconds[name]) for name in seconds}
    figures: dict[str, float] = {}
    for name, rate in rates.items():
        ours, _, theirs = name.partition(" / ")
        figures[f"{name}, rows/s"] = rate
        if theirs:
            figures[f"{ours}: ratio to {theirs}"] = rates[ours] / rate
    for name, took in bench.first.items():
        figures[f"{name}: first {COLD_ROWS} rows, ms"] = 1e3 * took
    figures |= bench.quality()
    report("scrub", figures, seconds=seconds, goal="faster than River's loop by an order or more")


class Pairs:
    """The runs, each under the stage's name, or ``stage / rival``; and the rows each goes over."""

    def __init__(self, rows: int, few: int) -> None:
        rng = np.random.default_rng(0)
        x = rng.normal(0, 1, (rows, 8)) @ rng.normal(0, 1, (8, 8))
        x[:, 1] = np.exp(x[:, 1] / 2)
        self.strange = rng.random(rows) < 0.01
        x[self.strange] = rng.uniform(-12, 12, (self.strange.sum(), 8))
        self.x, self.few = x, few
        self.key = rng.integers(0, KEYS, rows)
        self.holed = np.where(rng.random(x.shape) < 0.1, np.nan, x)
        letters = np.array(list("abcdefghijklmnopqrst    "))
        self.texts = ["".join(row) for row in letters[rng.integers(0, 24, (rows // 16, TEXT))]]
        self.rows: dict[str, int] = {}
        self.first: dict[str, float] = {}
        self._runs: dict[str, Callable[[], object]] = {}
        self._folder = tempfile.TemporaryDirectory()

    def runs(self) -> dict[str, Callable[[], object]]:
        """All of them."""
        scaled = pl.DataFrame(self.x, schema=COLUMNS)
        keyed, holed = scaled.with_columns(key=self.key), pl.DataFrame(self.holed, schema=COLUMNS)
        narrow = pl.DataFrame({"c0": self.x[:, 0]})
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in self.x[: self.few].tolist()]
        scale: Any = river.preprocessing
        plain = scale.StandardScaler
        self._pair("standardize", scaled, {}, "river", lambda: scaling(plain(), rows))
        self._pair(
            "standardize",
            scaled,
            {"halflife": 1_000},
            "river",
            lambda: scaling(scale.AdaptiveStandardScaler(fading_factor=0.0007), rows),
            name="standardize, half-life",
        )
        self._pair("robust", scaled, {}, "river", lambda: scaling(scale.RobustScaler(), rows))
        self._pair("standardize_by", keyed, {"by": ["key"]}, "river", lambda: self._by_key(rows))
        self._pair("power", scaled, {}, "scikit-learn", self._power, rival_rows=len(self.x))
        self._pair("impute", holed, {}, "scikit-learn", self._imputed, rival_rows=4 * self.few)
        past = {"columns": COLUMNS[:4], "by": ["key"], "rows": 32}
        self._ours("history", keyed, past, "history, 32 rows of 4 columns")
        self._ours("lag", keyed.with_row_index("at"), LAG, "lag, 3 steps")
        self._table(rows=1_000_000 if len(self.x) > BATCH else 10_000)
        forest = {"n_trees": 10}
        self._pair("anomalies", scaled, forest, "river", lambda: self._forest(rows))
        for detector, theirs in (
            ("adwin", river.drift.ADWIN),
            ("page_hinkley", river.drift.PageHinkley),
        ):
            options = {"columns": ["c0"], "detector": detector, "warmup": 0, "log": False}
            self._pair(
                "drift",
                narrow,
                options,
                "river",
                partial(self._drift, theirs),
                name=f"drift, {detector}",
                rival_rows=10 * self.few,
            )
        self._ours("drift", narrow, {"detector": "psi", "log": False}, "drift, psi")
        texts = pl.DataFrame({"text": self.texts})
        few = self.few // 4
        self._pair(
            "near_duplicates",
            texts,
            {"column": "text"},
            "datasketch",
            lambda: self._sketched(self.texts[:few]),
            rival_rows=few,
        )
        images = [photo(seed) for seed in range(self.few // 8)]
        self._pair(
            "near_duplicate_images",
            pl.DataFrame({"image": images}),
            {"column": "image", "threads": 1},
            "imagehash",
            lambda: hashed(images),
            rival_rows=len(images),
        )
        return self._runs

    def _pair(
        self,
        kind: str,
        frame: pl.DataFrame,
        options: dict[str, Any],
        rival: str,
        run: Callable[[], object],
        *,
        name: str = "",
        rival_rows: int | None = None,
    ) -> None:
        name = name or kind
        self._ours(kind, frame, options, name)
        self._runs[f"{name} / {rival}"] = run
        self.rows[f"{name} / {rival}"] = rival_rows or self.few

    def _ours(self, kind: str, frame: pl.DataFrame, options: dict[str, Any], name: str) -> None:
        batches = list(cut(frame))
        if "column" not in options:
            numbers = [c for c in frame.columns if c != "key"]
            options = {"columns": numbers, **options}

        def run() -> None:
            stage = made(kind, options, frame)
            if learned is not None:
                stage.restore(learned)
            for batch in batches:
                stage.apply(batch)

        learned = self._first_rows(name, kind, options, frame)
        self._runs[name] = run
        self.rows[name] = frame.height

    def _first_rows(
        self, name: str, kind: str, options: dict[str, Any], frame: pl.DataFrame
    ) -> Snapshot:
        """Return the state of a scaling stage after the first rows of a stream, which it learns in
        small parts, and time them: a cost once a stream, no part of a rate. None of others."""
        stage = made(kind, options, frame)
        if not isinstance(stage, FittedStage):
            return None
        head = next(cut(frame.head(COLD_ROWS)))
        stage.apply(head)
        start = {name: lambda: made(kind, options, frame).apply(head)}
        self.first[name] = median(interleave(start, rounds=3)[name])
        return stage.snapshot()

    def _table(self, rows: int) -> None:
        """Two columns of a table by text keys, beside a join of each batch by polars."""
        keys = pl.Series("id", [f"key-{i:09d}" for i in range(rows)])
        values = np.random.default_rng(1).random(rows)
        table = pl.DataFrame({"id": keys, "a": values, "b": 1 - values})
        path = Path(self._folder.name) / "table.parquet"
        table.write_parquet(path)
        rng = np.random.default_rng(1)
        frame = pl.DataFrame({"id": keys[rng.integers(0, rows, len(self.x))].to_list()})
        few = frame.head(min(frame.height, 2 * BATCH))

        def joined() -> None:
            for batch in cut(few):
                batch.frame.join(table, on="id", how="left", maintain_order="left")

        stage = made("lookup", {"path": str(path), "by": ["id"]}, frame)
        batches = list(cut(frame))

        def looked_up() -> None:
            for batch in batches:
                stage.apply(batch)

        name = f"lookup, {rows:,} keys"
        self._runs[name] = looked_up
        self.rows[name] = frame.height
        self._runs[f"{name} / polars join"] = joined
        self.rows[f"{name} / polars join"] = few.height

    def _by_key(self, rows: list[dict[str, float]]) -> None:
        scalers: Any = defaultdict(river.preprocessing.StandardScaler)
        for key, row in zip(self.key.tolist(), rows, strict=False):
            scalers[key].transform_one(row)
            scalers[key].learn_one(row)

    def _power(self) -> None:
        PowerTransformer().fit_transform(self.x)

    def _imputed(self) -> None:
        IterativeImputer(random_state=0).fit_transform(self.holed[: 4 * self.few])

    def _forest(self, rows: list[dict[str, float]]) -> list[float]:
        model = river.preprocessing.MinMaxScaler() | river.anomaly.HalfSpaceTrees(seed=0)
        scores = []
        for row in rows:
            scores.append(model.score_one(row))
            model.learn_one(row)
        return scores

    def _drift(self, kind: Any) -> None:
        detector = kind()
        for value in self.x[: 10 * self.few, 0].tolist():
            detector.update(value)

    def _sketched(self, texts: list[str]) -> None:
        index = MinHashLSH(0.8, 128)
        for i, text in enumerate(texts):
            signature = MinHash(128)
            data = text.encode()
            signature.update_batch([data[k : k + 5] for k in range(len(data) - 4)])
            if not index.query(signature):
                index.insert(i, signature)

    def quality(self) -> dict[str, float]:
        """Area under the curve of the two forests of 10 trees, on the rows River went over."""
        few = self.x[: self.few]
        frame = pl.DataFrame(few, schema=COLUMNS)
        stage = made("anomalies", {"columns": COLUMNS, "n_trees": 10}, frame)
        ours = np.concatenate([stage.apply(b).frame["anomaly"].to_numpy() for b in cut(frame)])
        theirs = self._forest([dict(zip(COLUMNS, row, strict=True)) for row in few.tolist()])
        judged = slice(250, None)
        return {
            "anomalies: area under the curve": roc_auc_score(
                self.strange[: self.few][judged], ours[judged]
            ),
            "anomalies: area under the curve, river": roc_auc_score(
                self.strange[: self.few][judged], theirs[judged]
            ),
        }


def photo(seed: int) -> bytes:
    """A JPEG of 224 x 224 pixels."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((224, 224), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def hashed(images: list[bytes]) -> list[int]:
    """What imagehash's phash does, image by image, and looks up the nearest before."""
    seen = np.empty(len(images), np.uint64)
    near = []
    for i, encoded in enumerate(images):
        grey = Image.open(io.BytesIO(encoded)).convert("L").resize((32, 32))
        low = dct(dct(np.asarray(grey, np.float64), axis=0), axis=1)[:8, :8]
        seen[i] = np.packbits(low > np.median(low)).view(">u8")[0]
        near.append(int(np.bitwise_count(seen[:i] ^ seen[i]).min(initial=64)))
    return near


def scaling(scaler: Any, rows: list[dict[str, float]]) -> None:
    """River's loop: transform, then learn."""
    for row in rows:
        scaler.transform_one(row)
        scaler.learn_one(row)


def made(kind: str, options: dict[str, Any], frame: pl.DataFrame) -> Stage:
    """The stage, bound to the frame's columns."""
    module, _, name = STAGES[kind].partition(":")
    found = getattr(importlib.import_module(module), name)
    stage: Stage = found(kind, found.Settings(**options))
    stage.bind(dict(frame.schema))
    return stage


def cut(frame: pl.DataFrame) -> Iterator[Batch]:
    """Batches of the frame, with the columns the loader adds."""
    whole = frame.select(
        pl.lit("p").alias("_partition"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("_position"),
        pl.all(),
    )
    for at in range(0, frame.height, BATCH):
        part = whole[at : at + BATCH]
        yield Batch(frame=part, mark=Mark(), arrived=0.0, raw_rows=part.height)


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """All threads of this process on one core, where the system can do that, and one thread for
    linear algebra: more would wait for each other."""
    with threadpool_limits(1):
        if not hasattr(os, "sched_setaffinity"):
            yield
            return
        before = os.sched_getaffinity(0)
        try:
            _pin({min(before)})
            yield
        finally:
            _pin(before)


def _pin(cores: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has ended since
            os.sched_setaffinity(int(thread.name), cores)


if __name__ == "__main__":
    main()
