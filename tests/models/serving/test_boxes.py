"""Boxes from what detectors give: every format, suppressed as a plain loop does it."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine.types import UserError
from models.serving.boxes import BoxCandidates, Boxes, suppressed
from models.serving.signature import GraphValue

Arrays = dict[str, NDArray[Any]]
BOXES = np.array(
    [
        [[10, 10, 50, 50], [12, 12, 50, 50], [100, 100, 120, 140], [0, 0, 5, 5]],
        [[10, 10, 50, 50], [10, 10, 50, 50], [10, 10, 50, 50], [60, 60, 70, 80]],
    ],
    np.float32,
)
SCORES = np.array(
    [
        [[0.9, 0.1], [0.8, 0.1], [0.2, 0.7], [0.3, 0.3]],
        [[0.6, 0.7], [0.5, 0.2], [0.0, 0.1], [0.1, 0.95]],
    ],
    np.float32,
)
"""Of two classes."""
WANTED = [
    [(10, 10, 50, 50, 0.9, "cat"), (100, 100, 120, 140, 0.7, "dog")],
    [(60, 60, 70, 80, 0.95, "dog"), (10, 10, 50, 50, 0.7, "dog"), (10, 10, 50, 50, 0.6, "cat")],
]


def answer(output: str, arrays: Arrays, **keys: Any) -> list[list[tuple[Any, ...]]]:
    """The boxes of each row, as tuples."""
    boxes = Boxes(output, Boxes.Settings(answer="boxes", column="found", **keys))
    values = {
        name: GraphValue(name=name, type=array.dtype.name, shape=(None, *array.shape[1:]))
        for name, array in arrays.items()
    }
    schema = boxes.bind(values)
    assert set(boxes.reads) <= arrays.keys()
    (column,) = boxes.columns(arrays)
    assert {column.name: column.dtype} == schema
    return [
        [tuple(round(v, 4) if isinstance(v, float) else v for v in box.values()) for box in row]
        for row in column.to_list()
    ]


def test_corners() -> None:
    arrays = {"boxes": BOXES, "scores": SCORES}
    assert answer("boxes", arrays, scores="scores", classes=["cat", "dog"]) == WANTED


def test_centers_and_the_other_order() -> None:
    sizes = BOXES[..., 2:] - BOXES[..., :2]
    centers = np.concatenate([BOXES[..., :2] + sizes / 2, sizes], axis=2)[..., [1, 0, 3, 2]]
    arrays = {"boxes": centers, "scores": SCORES}
    keys = {"scores": "scores", "classes": ["cat", "dog"], "format": "center", "order": "yx"}
    assert answer("boxes", arrays, **keys) == WANTED


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("objectness", [False, True])
def test_yolo(turned: bool, objectness: bool) -> None:
    sizes = BOXES[..., 2:] - BOXES[..., :2]
    parts = [BOXES[..., :2] + sizes / 2, sizes]
    if objectness:
        parts += [np.full((*BOXES.shape[:2], 1), 0.5, np.float32), SCORES * 2]
    else:
        parts.append(SCORES)
    values = np.concatenate(parts, axis=2)
    arrays = {"out": values.transpose(0, 2, 1) if turned else values}
    assert answer("out", arrays, format="yolo", classes=["cat", "dog"]) == WANTED


def test_labels_of_one_score_each() -> None:
    arrays = {
        "boxes": BOXES[:1],
        "scores": np.array([[0.9, 0.8, 0.7, 0.1]], np.float32),
        "labels": np.array([[0, 1, 1, 0]]),
    }
    keys = {"scores": "scores", "labels": "labels"}
    made = answer("boxes", arrays, **keys)
    assert [(box[4], box[5]) for box in made[0]] == [(0.9, 0), (0.8, 1), (0.7, 1)]
    kept = answer("boxes", arrays, **keys, background=1, classes=["cat", "dog"])
    assert [(box[4], box[5]) for box in kept[0]] == [(0.9, "cat")]


def test_detections() -> None:
    """A box of each class, as a net gives that has suppressed them itself."""
    boxes = np.repeat(BOXES, 2, axis=1)
    labels = np.broadcast_to(np.arange(8) % 2, (2, 8))
    values = np.concatenate([boxes, SCORES.reshape(2, 8)[..., None], labels[..., None]], axis=2)
    arrays = {"out": values.astype(np.float32)}
    assert answer("out", arrays, format="detections", classes=["cat", "dog"]) == WANTED


def test_a_heatmap() -> None:
    heat = np.zeros((2, 1, 8, 8), np.float32)
    heat[0, 0, 2, 3], heat[1, 0, 7, 0] = 0.9, 0.6
    sizes = np.full((2, 2, 8, 8), np.log(2), np.float32)
    sizes[:, 1] = np.log(4)  # y first: 2 cells high, 4 wide
    offsets = np.full((2, 2, 8, 8), 0.25, np.float32)
    arrays = {"heat": heat, "sizes": sizes, "offsets": offsets}
    keys = {"format": "heatmap", "sizes": "sizes", "offsets": "offsets", "order": "yx"}
    made = answer("heat", arrays, **keys, log_sizes=True)
    assert made == [[(7.0, 7.0, 23.0, 15.0, 0.9, 0)], [(-5.0, 27.0, 11.0, 35.0, 0.6, 0)]]


def test_at_most_so_many_of_a_row() -> None:
    arrays = {"boxes": BOXES, "scores": SCORES}
    made = answer("boxes", arrays, scores="scores", classes=["cat", "dog"], top=1)
    assert made == [row[:1] for row in WANTED]


def test_no_boxes_and_no_rows() -> None:
    arrays = {"boxes": BOXES, "scores": SCORES}
    assert answer("boxes", arrays, scores="scores", min_score=0.99) == [[], []]
    none = {name: array[:0] for name, array in arrays.items()}
    assert answer("boxes", none, scores="scores") == []


@pytest.mark.parametrize(
    ("arrays", "keys", "wanted"),
    [
        ({"boxes": BOXES}, {}, "expects the key 'scores'"),
        ({"boxes": BOXES[..., :3], "s": SCORES}, {"scores": "s"}, "n x boxes x 4, got boxes"),
        ({"boxes": BOXES, "s": SCORES}, {"scores": "s", "classes": ["a"]}, "expects 2 classes"),
        ({"boxes": BOXES}, {"format": "yolo", "classes": ["a", "b"]}, "4 or 5 numbers and 2"),
        ({"boxes": BOXES}, {"format": "heatmap", "sizes": "boxes"}, "expects a heatmap"),
    ],
)
def test_what_is_no_boxes_is_a_sentence(arrays: Arrays, keys: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        answer("boxes", arrays, **keys)


NUMBERS = st.integers(0, 20)
CANDIDATES = st.lists(
    st.tuples(st.integers(0, 2), NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 1)),
    max_size=30,
)


@given(given=CANDIDATES, most=st.sampled_from([0.125, 0.5, 1.0]))
def test_suppression_is_the_plain_loop(given: list[tuple[int, ...]], most: float) -> None:
    """Scores are distinct and the bounds exact in float32, so that there is one right answer."""
    table = np.array(given, np.float32).reshape(-1, 7)
    score = (table[:, 5] + np.arange(len(table)) / 64).astype(np.float32)
    box = np.hstack([table[:, 1:3], table[:, 1:3] + table[:, 3:5]]).astype(np.float32)
    row, label = table[:, 0].astype(int), table[:, 6].astype(int)
    made = suppressed(BoxCandidates(row=row, box=box, score=score, label=label), most, 100)
    kept: list[int] = []
    for i in np.lexsort((-score, row)):
        same = [j for j in kept if row[j] == row[i] and label[j] == label[i]]
        if not any(overlap(box[i], box[j]) > most for j in same):
            kept.append(i)
    assert made.row.tolist() == row[kept].tolist()
    np.testing.assert_array_equal(made.score, score[kept])


def overlap(a: NDArray[Any], b: NDArray[Any]) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    together = sum(areas) - width * height
    return float(width * height / together) if width * height else 0.0


def test_columns_of_boxes_are_json(tmp_path: Any) -> None:
    boxes = Boxes("boxes", Boxes.Settings(answer="boxes", scores="scores"))
    arrays = {"boxes": BOXES, "scores": SCORES}
    boxes.bind(
        {
            n: GraphValue(name=n, type="float32", shape=(None, *a.shape[1:]))
            for n, a in arrays.items()
        }
    )
    frame = pl.DataFrame(boxes.columns(arrays))
    frame.write_ndjson(tmp_path / "boxes.ndjson")
    assert '"x1":10.0' in (tmp_path / "boxes.ndjson").read_text()
