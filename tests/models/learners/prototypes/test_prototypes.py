"""Prototypes against a plain computation, few-shot digits, and what an embedding must be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import polars as pl
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from engine.types import Batch, Features, GraphColumn, Mark, Tensors, UserError
from models.export.model_files import FORMAT
from models.export.onnx_graph import Graph
from models.learners.prototypes.learner import NEAREST, PrototypeLearner

COUNTS = (1, 5, 20)


def features(width: int, classes: tuple[str, ...], **more: Any) -> Features:
    names = tuple(f"x{i}" for i in range(width))
    inputs = {"numeric": names}
    return Features(
        numeric=names, inputs=inputs, target="y", task="multiclass", classes=classes, **more
    )


def learner_of(reads: Features, **settings: Any) -> PrototypeLearner:
    kind = PrototypeLearner
    return kind(kind.Settings(**settings), kind.Training(), reads)


def tensors(rows: NDArray[Any], labels: NDArray[Any] | None = None) -> Tensors:
    return Tensors(
        numeric=torch.from_numpy(rows.astype(np.float32)),
        categories=torch.empty((len(rows), 0), dtype=torch.int64),
        target=None if labels is None else torch.from_numpy(labels.astype(np.int64)),
    )


def learned(learner: PrototypeLearner, rows: NDArray[Any], labels: NDArray[Any]) -> Any:
    frame = pl.DataFrame({"y": labels})
    given = tensors(rows, labels)
    return learner.learn(Batch(frame=frame, mark=Mark(), arrived=0.0, tensors=given))


def points(n: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    places = np.array([[0, 0], [3, 0], [0, 3]])
    return (places[labels] + rng.normal(size=(n, 2))).astype(np.float32), labels


def test_scores_are_the_softmax_over_the_distances_to_the_means() -> None:
    rows, labels = points(50)
    learner = learner_of(features(2, ("a", "b", "c")), standardize=False, temperature=2.0)
    learned(learner, rows, labels)
    means = np.stack([rows[labels == c].mean(0) for c in range(3)])
    distances = ((rows[:, None].astype(float) - means) ** 2).sum(2)
    distances -= learner._table.corrections
    expected = np.exp(-distances / 2)
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose(learner.predict(tensors(rows)), expected, rtol=1e-5)
    within = np.mean([distances[i, c] for i, c in enumerate(labels)])
    assert learner._table.corrections[0] * (labels == 0).sum() == pytest.approx(within, rel=0.2)


def test_the_unit_of_a_number_makes_no_difference() -> None:
    rows, labels = points(60)
    one, other = (learner_of(features(2, ("a", "b", "c"))) for _ in range(2))
    scores = learned(one, rows, labels).scores
    np.testing.assert_allclose(learned(other, rows * [1000, 1], labels).scores, scores, atol=1e-4)


def test_it_depends_on_rows_and_not_on_how_they_were_cut() -> None:
    rows, labels = points(60)
    whole, parts = (learner_of(features(2, ("a", "b", "c"))) for _ in range(2))
    scores = learned(whole, rows, labels).scores
    cut = [learned(parts, rows[i : i + 7], labels[i : i + 7]).scores for i in range(0, 60, 7)]
    assert np.concatenate(cut).tobytes() == scores.tobytes()


def test_the_baseline_is_the_nearest_of_the_newest_examples() -> None:
    rows, labels = points(60)
    learner = learner_of(features(2, ("a", "b", "c")), standardize=False, neighbors=4)
    guesses = learned(learner, rows, labels).baselines[NEAREST]
    assert guesses[0] == -1
    for i in range(1, 60):
        kept = np.concatenate([np.flatnonzero(labels[:i] == c)[-4:] for c in range(3)])
        nearest = kept[((rows[kept] - rows[i]) ** 2).sum(1).argmin()]
        assert guesses[i] == labels[nearest]
    none = learner_of(features(2, ("a", "b", "c")), neighbors=0)
    assert (learned(none, rows, labels).baselines[NEAREST] == -1).all()


def test_a_class_that_left_and_comes_again_begins_anew() -> None:
    rows, labels = points(60)
    learner = learner_of(features(2, ("a", "b", "c"), max_classes=3))
    learned(learner, rows, labels)
    before = learner.predict(tensors(rows))
    learner.set_classes(("c", "a", "new"), [2, 0, -1])
    after = learner.predict(tensors(rows))
    assert learner.features.classes == ("c", "a", "new")
    assert (after[:, 2] == 0).all()
    both = before[:, [2, 0]]
    np.testing.assert_allclose(after[:, :2], both / both.sum(1, keepdims=True), rtol=1e-9)
    learned(learner, rows[:1] + 9, np.array([2]))
    assert (learner.predict(tensors(rows[:1] + 9)).argmax(1) == 2).all()


def test_five_digits_that_appear_are_told_apart() -> None:
    """scikit-learn's 8 x 8 digits: 0 to 4 first, then 5 to 9; `python -m tests.bench fewshot` does
    the same with mnist_5k, and in an embedding."""
    from sklearn.datasets import load_digits
    from sklearn.neighbors import KNeighborsClassifier

    digits = load_digits()
    pixels, labels = digits.data / 16, digits.target
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    of = [order[labels[order] == digit] for digit in range(10)]
    unseen = np.concatenate([of[digit][:60] for digit in range(5, 10)])
    learner = learner_of(features(64, (), max_classes=16), standardize=False)
    learner.set_classes([str(d) for d in range(5)], [-1] * 5)
    first = rng.permutation(np.concatenate([of[digit][60:160] for digit in range(5)]))
    learned(learner, pixels[first], labels[first])
    learner.set_classes([str(d) for d in range(10)], [*range(5), *[-1] * 5])
    known, accuracy, nearest = list(first), [], []
    for before, count in zip((0, *COUNTS), COUNTS, strict=False):
        more = np.concatenate([of[digit][60 + before : 60 + count] for digit in range(5, 10)])
        learned(learner, pixels[more], labels[more])
        known += list(more)
        said = learner.predict(tensors(pixels[unseen])).argmax(1)
        accuracy.append(float((said == labels[unseen]).mean()))
        model = KNeighborsClassifier(1).fit(pixels[known], labels[known])
        nearest.append(float((model.predict(pixels[unseen]) == labels[unseen]).mean()))
    assert accuracy[0] > 0.4
    assert accuracy[1] > 0.7
    assert accuracy[2] > 0.75
    assert accuracy[0] > nearest[0]


class Bad(nn.Module):
    """An embedder that is wrong in one way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, numeric: torch.Tensor) -> torch.Tensor:
        if self.how == "raises":
            raise ValueError("no\nway")
        if self.how == "mixes":
            return numeric - numeric.mean(0)
        if self.how == "draws":
            return numeric + torch.rand_like(numeric)
        if self.how == "nan":
            return numeric / 0 * 0
        return numeric.sum(1) if self.how == "flat" else cast(Any, numeric.long())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "fails on 3 made rows: ValueError: no"),
        ("mixes", "gives a row another vector alone than beside others"),
        ("draws", "gives a row another vector alone than beside others"),
        ("nan", "that are not all finite floats"),
        ("flat", r"returns \(3,\) for 3 rows"),
        ("integers", "returns int64 that are not all finite floats"),
    ],
)
def test_what_is_no_embedding_is_one_sentence(how: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        learner_of(features(2, ("a", "b")), module=Bad(how))


def test_prototypes_of_another_embedding_are_refused() -> None:
    def embedded(seed: int) -> PrototypeLearner:
        torch.manual_seed(seed)
        return learner_of(features(2, ("a", "b", "c")), module=Turned())

    one, same, other = embedded(0), embedded(0), embedded(1)
    learned(one, *points(20))
    same.load_state_dict(one.state_dict())
    with pytest.raises(UserError, match="saved model has digest of the embedding"):
        other.load_state_dict(one.state_dict())


class Turned(nn.Module):
    """Weights that do not learn."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, numeric: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.linear(numeric))


def test_a_row_whose_vector_is_not_finite_is_not_learned() -> None:
    class Logs(nn.Module):
        def forward(self, numeric: torch.Tensor) -> torch.Tensor:
            return numeric.clamp(min=-9).exp().log() / (numeric != 5)

    rows, labels = points(20)
    rows[3, 0] = 5
    learner = learner_of(features(2, ("a", "b", "c")), module=Logs())
    step = learned(learner, rows, labels)
    assert step.not_learned is not None
    assert np.flatnonzero(step.not_learned).tolist() == [3]
    assert np.isnan(step.scores[3]).all()
    assert step.steps == 19
    assert np.isfinite(learner.predict(tensors(rows[4:]))).all()


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        (Features(numeric=("x",), target="y"), "expects task binary or multiclass"),
        (
            Features(
                numeric=(), target="y", task="binary", classes=("a", "b"), padded={"words": 9},
                inputs={"words": ("words",)}, max_length=4,
            ),
            "lists of ids, whose mean says nothing",
        ),
        (Features(numeric=(), target="y", task="binary", classes=("a", "b")), "needs inputs"),
    ],
)  # fmt: skip
def test_what_it_cannot_read_is_refused(reads: Features, said: str) -> None:
    with pytest.raises(UserError, match=said):
        learner_of(reads)


def saved(folder: Path, element: int, shape: list[int | str], **metadata: str) -> Path:
    """Write a file that gives the numbers of its input `x`."""
    given = helper.make_tensor_value_info("x", element, ["n", *shape])
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["vector"]),
    ]
    made = [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", "width"])]
    graph = helper.make_graph(nodes, "embedding", [given], made)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, metadata)
    path = folder / "embedding.onnx"
    onnx.save(model, path)
    return path


def test_a_file_that_reads_bytes_gets_bytes(tmp_path: Path) -> None:
    """An image is 0 to 1 to a module; as a byte that was 0 or 1."""
    path = saved(tmp_path, TensorProto.UINT8, [1, 2, 2])
    photos = torch.randint(0, 256, (5, 1, 2, 2), dtype=torch.uint8)
    reads = Features(
        numeric=(), inputs={"x": ("photo",)}, images={"photo": (1, 2, 2)}, target="y",
        task="multiclass", classes=("a", "b", "c"),
    )  # fmt: skip
    learner = learner_of(reads, embedding=str(path))
    nothing = tensors(np.empty((5, 0)), np.array([0, 1, 2, 0, 1]))
    rows = replace(nothing, images={"photo": photos})
    vectors = learner._embedding.embed(rows)
    assert vectors.tolist() == photos.flatten(1).float().tolist()
    learner.learn(Batch(frame=pl.DataFrame({"y": [0] * 5}), mark=Mark(), arrived=0.0, tensors=rows))
    graph = Graph()
    image = graph.input("photo", TensorProto.UINT8, ["n", 1, 2, 2])
    graph.columns = {"photo": GraphColumn(values=image, mask="", dtype="uint8")}
    scores = learner.build(graph, "", "")
    model = graph.model({"scores": (scores, TensorProto.FLOAT, ["n", 3])}, {})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    got = session.run(None, {"photo": photos.numpy()})[0]
    np.testing.assert_allclose(got, learner.predict(rows), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("names", "kind", "said"),
    [
        (("y",), "double", r"reads x \(float64, n\), and \[model\] has no column of numbers of"),
        (("x", "y"), "double", "nothing reads the column 'y' of"),
        (("x",), "floats", "reads 'x', a column of lists or arrays"),
    ],
)
def test_a_model_file_that_reads_other_columns_is_refused(
    names: tuple[str, ...], kind: str, said: str, tmp_path: Path
) -> None:
    inputs = json.dumps({"x": kind})
    path = saved(tmp_path, TensorProto.DOUBLE, [], format=FORMAT, inputs=inputs)
    reads = Features(
        numeric=names, inputs={"numeric": names}, target="z", task="multiclass", classes=("a", "b")
    )
    with pytest.raises(UserError, match=said):
        learner_of(reads, embedding=str(path))
