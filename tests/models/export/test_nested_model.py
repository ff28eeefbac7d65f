"""Files that read numbers, categories, lists, images and arrays, served as they were learned."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from engine.loading.collate import Collate
from engine.scrub.features.categories import Categories
from engine.scrub.values.missing import Missing
from engine.scrub.values.scale import Standardize
from engine.types import (
    Batch,
    Features,
    GraphBuilder,
    Learner,
    Mark,
    Schema,
    Snapshot,
    Stage,
    Step,
    Tensors,
    UserError,
    type_name,
)
from models.export.body import write_module
from models.export.model import export
from models.export.model_files import metadata
from models.export.onnx_graph import Graph, TensorProto
from models.net_input import NetInput
from models.serving.predictor import OnnxPredictor
from tests.models.export.modules import in_this_process

INPUTS = (
    NetInput(name="numbers", form="numbers", columns=("b", "a")),
    NetInput(name="kind", form="codes", columns=("k",), sizes=(5,)),
    NetInput(name="words", form="ids", columns=("words",), sizes=(30,)),
    NetInput(name="photo", form="image", columns=("photo",), shape=(3, 6, 5)),
    NetInput(name="past", form="array", columns=("past",), shape=(4, 2)),
)
FEATURES = Features(
    numeric=("a", "b"),
    categories={"k": 5},
    padded={"words": 30},
    images={"photo": (3, 6, 5)},
    arrays={"past": (4, 2)},
    target="y",
    task="binary",
    classes=("no", "yes"),
    max_length=8,
)


class Everything(nn.Module):
    """Reads all that a file can read."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds, self.table = nn.Embedding(5, 3), nn.Embedding(30, 4)
        self.cells = nn.GRU(4, 5, batch_first=True)
        self.filters = nn.Conv2d(3, 2, 3)
        self.head = nn.Linear(2 + 3 + 5 + 2 + 2, 1)

    def forward(
        self,
        numbers: torch.Tensor,
        kind: torch.Tensor,
        words: torch.Tensor,
        words_mask: torch.Tensor,
        photo: torch.Tensor,
        past: torch.Tensor,
        past_mask: torch.Tensor,
    ) -> torch.Tensor:
        there = words_mask.unsqueeze(2)
        read = (self.cells(self.table(words))[0] * there).sum(1)
        seen = self.filters(photo).amax((2, 3))
        before = past.sum(1) / past_mask.sum(1, keepdim=True).clamp(min=1)
        parts = [numbers, self.kinds(kind[:, 0]), read, seen, before]
        scores: torch.Tensor = self.head(torch.cat(parts, 1))
        return scores.squeeze(1)


class Fixed(Learner):
    """A network that scores and learns nothing."""

    def __init__(self) -> None:
        super().__init__(None, None, FEATURES)
        torch.manual_seed(1)
        self.module = Everything().eval()

    def learn(self, batch: Batch) -> Step:
        raise NotImplementedError

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        words, past = tensors.padded["words"], tensors.arrays["past"]
        with torch.no_grad():
            raw: torch.Tensor = self.module(
                numbers=tensors.numeric[:, [1, 0]],
                kind=tensors.categories,
                words=words.values,
                words_mask=words.mask,
                photo=tensors.images["photo"].float() / 255,
                past=past.values,
                past_mask=past.mask,
            )
        return raw.sigmoid().double().numpy()

    def state_dict(self) -> dict[str, Snapshot]:
        return {}

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None: ...

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        names = (*(entry.name for entry in INPUTS), "words_mask", "past_mask")
        raw = write_module(graph, self.module, names, INPUTS, FEATURES, numeric, categories)
        return graph.op("Sigmoid", graph.op("Squeeze", raw, graph.constant(np.array([1]))))


def rows(n: int, seed: int, *, unseen: bool = False) -> pl.DataFrame:
    """Nulls in numbers and texts, empty lists, and arrays with rows that are not there yet."""
    rng = np.random.default_rng(seed)
    kinds = ["n", "e", None, *(["elsewhere"] if unseen else ["s"])]
    words = [rng.integers(0, 30, rng.integers(0, 12)).tolist() for _ in range(n)]
    past = [
        [None if rng.random() < 0.3 else rng.normal(size=2).tolist() for _ in range(4)]
        for _ in range(n)
    ]
    frame = pl.DataFrame(
        {
            "a": pl.Series([None if x < -1 else x for x in rng.normal(5, 3, n)], dtype=pl.Float64),
            "b": rng.normal(size=n).astype(np.float32),
            "k": [kinds[i] for i in rng.integers(0, 4, n)],
            "words": pl.Series(words, dtype=pl.List(pl.Int64)),
            "photo": rng.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8),
            "past": pl.Series(past, dtype=pl.Array(pl.Array(pl.Float32, 2), 4)),
        }
    )
    places = {"_partition": ["p"] * n, "_position": np.arange(n)}
    return pl.DataFrame(places).hstack(frame)


class Served:
    """A network behind three stages, and its file."""

    def __init__(self, folder: Path) -> None:
        known = rows(300, 0)
        self.learner = Fixed()
        self.stages: list[Stage] = [
            Missing("gap", Missing.Settings(columns=("a",), strategy="mean")),
            Standardize("scale", Standardize.Settings(columns=("a", "b"))),
            Categories("coded", Categories.Settings(columns=("k",), size=4)),
        ]
        self.schema: Schema = dict(known.drop("_partition", "_position").schema)
        after = self.schema
        for stage in self.stages:
            after = stage.bind(after)
        self.scrubbed(known)
        self.path = folder / "model.onnx"
        transforms = [t for stage in self.stages for t in stage.transforms() or ()]
        export(self.path, self.learner, transforms, {}, schema=self.schema, rows=rows(90, 3))
        self.predictor = OnnxPredictor(OnnxPredictor.Settings(model=str(self.path)))
        self.predictor.bind(self.schema)

    def scrubbed(self, frame: pl.DataFrame) -> Batch:
        batch = Batch(frame=frame, mark=Mark(), arrived=0.0, raw_rows=frame.height)
        for stage in self.stages:
            batch = stage.apply(batch)
        return batch

    def expected(self, frame: pl.DataFrame) -> tuple[NDArray[Any], list[int]]:
        """The learner's scores, and the positions that have one."""
        without_target = Features(
            **{name: getattr(FEATURES, name) for name in FEATURES.__slots__} | {"target": None}
        )
        known = [stage.snapshot() for stage in self.stages]
        batch = Collate(without_target).apply(self.scrubbed(frame))
        for stage, state in zip(self.stages, known, strict=True):
            stage.restore(state)  # the file holds what they knew
        assert batch.tensors is not None
        return self.learner.predict(batch.tensors), batch.frame["_position"].to_list()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    with pytest.MonkeyPatch.context() as patch:
        in_this_process(patch)
        return Served(tmp_path_factory.mktemp("served"))


@pytest.mark.parametrize("n", [1, 2, 3, 64, 1_000])
def test_a_file_scores_as_the_learner(served: Served, n: int) -> None:
    frame = rows(n, n, unseen=True)
    wanted, positions = served.expected(frame)
    assert positions == list(range(n))
    scores = served.predictor.scores(frame)
    assert np.abs(scores - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert n < 64 or np.ptp(scores) > 0.1


def test_no_rows(served: Served) -> None:
    """ONNX Runtime ends the process for a GRU of no rows."""
    frame = rows(2, 0).head(0)
    assert served.predictor.scores(frame).shape == (0,)
    batch = served.predictor.collate(Batch(frame=frame, mark=Mark(), arrived=0.0))
    assert served.predictor.predict(batch).frame.height == 0


def test_a_row_that_training_would_reject_has_no_score(served: Served) -> None:
    """And costs no other row its own: an id outside its table would end the batch."""
    good = rows(12, 5)
    lists = good["words"].to_list()
    lists[1], lists[3], lists[5], lists[6] = None, [1, 30], [-1], [2, None]
    pasts = good["past"].to_list()
    pasts[8], pasts[9] = None, [[1.0, None], None, [1.0, 2.0], None]
    pasts[10] = [[float("inf"), 1.0], None, None, None]
    pixels = good["photo"].to_list()
    pixels[11] = None
    bad = good.with_columns(
        words=pl.Series(lists, dtype=good["words"].dtype),
        past=pl.Series(pasts, dtype=good["past"].dtype),
        photo=pl.Series(pixels, dtype=good["photo"].dtype),
    )
    wanted, positions = served.expected(bad)
    assert positions == [0, 2, 4, 7]
    scores = served.predictor.scores(bad)
    assert np.isnan(np.delete(scores, positions)).all()
    assert np.abs(scores[positions] - wanted).max() <= 1e-5
    batch = served.predictor.predict(Batch(frame=bad, mark=Mark(), arrived=0.0, raw_rows=12))
    assert batch.frame["_position"].to_list() == positions
    assert {reject.reason for reject in batch.rejects} == {"non_finite"}


def test_what_is_cut_off_is_counted(served: Served) -> None:
    frame = rows(50, 6)
    batch = served.predictor.collate(Batch(frame=frame, mark=Mark(), arrived=0.0))
    beyond = sum(max(len(words) - 8, 0) for words in frame["words"].to_list())
    assert beyond > 0
    assert batch.counts == {("predict", "truncated"): beyond}


@pytest.mark.parametrize(
    ("column", "dtype", "expected"),
    [
        ("words", pl.List(pl.Float64), "lists of whole numbers"),
        ("words", pl.Int64(), "lists of whole numbers"),
        ("photo", pl.Binary(), "decoded images"),
        ("past", pl.String(), "arrays or lists of floats"),
        ("a", pl.String(), "numbers"),
    ],
    ids=str,
)
def test_columns_of_another_type(
    served: Served, column: str, dtype: pl.DataType, expected: str
) -> None:
    with pytest.raises(UserError) as error:
        served.predictor.bind({**served.schema, column: dtype})
    assert str(error.value).startswith(f"The model needs {expected}")
    assert f"in column '{column}', got {type_name(dtype)}." in str(error.value)


def test_what_the_file_says_of_itself(served: Served) -> None:
    properties = metadata(served.path)
    assert json.loads(properties["inputs"]) == {
        "a": "double",
        "b": "double",
        "k": "string",
        "words": "ids",
        "photo": "image",
        "past": "array",
    }
    assert json.loads(properties["lengths"]) == {"words": 8, "past": 4}
    model = onnx.load(served.path)
    onnx.checker.check_model(model, full_check=True)
    assert {opset.domain for opset in model.opset_import} == {"", "ai.onnx.ml"}
    assert not any(
        node.metadata_props for node in model.graph.node
    )  # it names no place of the code


class Converted(Fixed):
    """A learner whose file holds a whole model, and scores otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.features = Features(numeric=("a", "b"))

    def predict(self, tensors: Tensors) -> NDArray[np.float64]:
        scores: NDArray[np.float64] = tensors.numeric.sum(1).double().numpy()
        return scores + (len(scores) == 3)

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        own = Graph()
        x = own.input("x", TensorProto.FLOAT, ["n", 2])
        total = own.op("ReduceSum", x, own.constant(np.array([1])), keepdims=0)
        model = own.model({"y": (total, TensorProto.FLOAT, ["n"])}, {})
        return graph.append(model, {"x": numeric})[0]


def test_a_file_that_would_score_otherwise_is_not_written(tmp_path: Path) -> None:
    """Here for three rows alone."""
    path = tmp_path / "m.onnx"
    with pytest.raises(UserError, match="of 3 rows at a time, the ONNX file scores one"):
        export(path, Converted(), [], {}, rows=rows(5, 1))
    assert not path.exists()
    export(path, Converted(), [], {}, rows=rows(5, 1).head(0))  # nothing to compare
    assert path.exists()
