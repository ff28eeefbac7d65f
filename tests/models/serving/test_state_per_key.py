"""A model file whose rows take the state of their key along."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from engine.columnar.hashing import hashes
from engine.types import PARTITION, POSITION, Batch, Features, Mark, Tensors, UserError
from engine.versions.store import Versions
from engine.versions.swapping import SwappingPredictor
from engine.versions.version import Details
from models.compress.gate import Compression, compress
from models.export.model import export
from models.export.model_files import annotate
from models.learners.modules.learner import ModuleLearner
from models.serving.predictor import OnnxPredictor
from tests.models.export.modules import in_this_process

ROWS, KEYS = 300, 9
Serve = Callable[..., OnnxPredictor]


def stream(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    """Keys of very different frequency."""
    rng = np.random.default_rng(seed)
    users = np.minimum(rng.geometric(0.25, rows), KEYS)
    numbers = rng.normal(size=(rows, 2))
    return pl.DataFrame(
        {"user": [f"u{user}" for user in users], "a": numbers[:, 0], "state": numbers[:, 1]}
    ).with_columns(y=pl.col("a").cum_sum().over("user"))


def batches(frame: pl.DataFrame, sizes: Sequence[int]) -> Iterator[Batch]:
    at = 0
    for size in sizes:
        rows = frame[at : at + size].with_columns(
            pl.lit("p").alias(PARTITION), pl.int_range(at, at + size).alias(POSITION)
        )
        yield Batch(frame=rows, mark=Mark(), arrived=0.0)
        at += size


def tensors(frame: pl.DataFrame) -> Tensors:
    return Tensors(
        numeric=torch.from_numpy(frame.select("a", "state").to_numpy().astype(np.float32)),
        categories=torch.empty((frame.height, 0), dtype=torch.int64),
        target=torch.from_numpy(frame["y"].to_numpy().astype(np.float32)),
        keys=torch.from_numpy(hashes(frame.select("user")).view(np.int64)),
    )


@pytest.fixture(scope="module")
def learner() -> ModuleLearner:
    state: Any = {"by": ["user"], "width": 8, "cell": "lstm"}
    settings = ModuleLearner.Settings(state=state)
    features = Features(
        numeric=("a", "state"),
        inputs={"numeric": ("a", "state")},
        target="y",
        state=ModuleLearner.named_state(settings, {}),
    )
    learner = ModuleLearner(settings, ModuleLearner.Training(replay_rows=0), features)
    frame = stream(seed=1)
    learner.learn(replace(next(batches(frame, [ROWS])), tensors=tensors(frame)))
    return learner


@pytest.fixture(scope="module")
def path(learner: ModuleLearner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        schema = {"user": pl.String(), "a": pl.Float64(), "state": pl.Float64()}
        columns = '{"user": "text", "a": "float64", "state": "float64"}'
        return export(
            tmp_path_factory.mktemp("model") / "model.onnx", learner, [], {"columns": columns},
            schema=schema, rows=stream(80, seed=2),
        )  # fmt: skip


@pytest.fixture(scope="module")
def expected(learner: ModuleLearner) -> Any:
    """What torch says of rows that follow one another, each key from its first row on."""
    rows = tensors(stream())
    assert rows.keys is not None
    return learner.predict(replace(rows, keys=torch.bitwise_xor(rows.keys, 1)))


@pytest.fixture
def serve(path: Path) -> Serve:
    def made() -> OnnxPredictor:
        predictor = OnnxPredictor(OnnxPredictor.Settings(model=str(path), threads=1))
        predictor.bind({"user": pl.String(), "a": pl.Float64(), "state": pl.Float64()})
        return predictor

    return made


def predictions(predictor: OnnxPredictor, parts: Iterator[Batch]) -> Any:
    return np.concatenate([predictor.predict(part).frame["prediction"] for part in parts])


@pytest.mark.parametrize(
    "sizes", [[ROWS], [1] * 40 + [260], [7] * 42 + [6]], ids=["one", "single rows", "parts"]
)
def test_it_says_what_torch_says(serve: Serve, expected: Any, sizes: list[int]) -> None:
    got = predictions(serve(), batches(stream(), sizes))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_it_goes_on_to_the_bit_where_a_checkpoint_was_taken(serve: Serve) -> None:
    first, second = serve(), serve()
    parts = list(batches(stream(), [100, 100, 100]))
    predictions(first, iter(parts[:1]))
    taken = first.snapshot()
    rest = predictions(first, iter(parts[1:]))
    second.restore(taken)
    assert predictions(second, iter(parts[1:])).tobytes() == rest.tobytes()
    assert first.memory() == second.memory()
    assert first.memory()["states"] > serve().memory()["states"] == 0


def test_a_row_without_a_score_leaves_the_state_as_it_was(serve: Serve) -> None:
    frame = stream(60)
    broken = pl.concat([frame[:30], frame[30:31].with_columns(a=None), frame[30:]])
    done = serve().predict(next(batches(broken, [61])))
    assert sum(map(len, done.rejects)) == 1
    plain = predictions(serve(), batches(frame, [60]))
    np.testing.assert_allclose(done.frame["prediction"], plain, rtol=1e-6, atol=1e-6)


def test_the_key_is_a_column_that_it_needs(serve: Serve) -> None:
    predictor = serve()
    assert predictor.columns_read({}) == ("a", "state", "user")
    with pytest.raises(UserError, match="needs column 'user', which is not there"):
        predictor.bind({"a": pl.Float64(), "state": pl.Float64()})


def test_rows_that_stand_alone_judge_no_candidate(path: Path, tmp_path: Path) -> None:
    rows = stream(500, seed=3)
    report = compress(path, rows, Compression(), path=tmp_path / "served.onnx")
    assert report.remark is not None
    assert "carries a state per key" in report.remark
    assert (tmp_path / "served.onnx").read_bytes() == path.read_bytes()


def test_the_next_version_goes_on_from_the_states_of_the_one_before(
    path: Path, tmp_path: Path, expected: Any
) -> None:
    """It is tried beside the stream, which changes no state; here it is the same model again."""
    versions = Versions(tmp_path / "versions")
    for number in range(2):
        details = Details(model_version=f"v{number}", rows=number, data_time=0.0)
        (again := tmp_path / f"{number}.onnx").write_bytes(path.read_bytes())
        annotate(again, {"version": f"v{number}"})
        versions.publish(again, details, keep=9)
        if number == 0:
            predictor = SwappingPredictor(versions, opened, poll=9.0, threads=1, max_slowdown=1e9)
            predictor.bind({"user": pl.String(), "a": pl.Float64(), "state": pl.Float64()})
    parts = list(batches(stream(), [200, 100]))
    first = predictor.predict(parts[0])
    assert predictor.carries_state
    predictor.look()
    assert predictor.pending is not None
    done = [first, predictor.predict(parts[1])]
    assert [part.frame["model_version"][0] for part in done] == ["v0", "v1"]
    got = np.concatenate([part.frame["prediction"] for part in done])
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def opened(path: Path, threads: int | None) -> OnnxPredictor:
    return OnnxPredictor(OnnxPredictor.Settings(model=str(path), threads=threads))
