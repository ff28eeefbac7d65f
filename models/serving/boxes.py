"""Boxes around objects in images: what detectors give, filtered by score and by non-maximum
suppression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat

from engine.types import Name, Schema
from engine.types.arrays import Ints
from models.serving.answers import Answer, Arrays, ClassSettings, activated, in_lists, names
from models.serving.signature import GraphValue, Size, fits

Singles = NDArray[np.float32]

CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BoxCandidates:
    """Boxes before suppression, of all rows of a batch.

    Attributes:
        row: the row that each is of, shape (m,).
        box: x1, y1, x2, y2, shape (m, 4).
        score, label: shape (m,).
    """

    row: Ints
    box: Singles
    score: Singles
    label: Ints

    def take(self, chosen: NDArray[Any]) -> BoxCandidates:
        """Return those that a mask or numbers choose."""
        return BoxCandidates(
            row=self.row[chosen],
            box=self.box[chosen],
            score=self.score[chosen],
            label=self.label[chosen],
        )


NONE = BoxCandidates(
    row=np.empty(0, np.int64),
    box=np.empty((0, 4), np.float32),
    score=np.empty(0, np.float32),
    label=np.empty(0, np.int64),
)


class Boxes(Answer):
    """The boxes of each row, best first: a list of objects with ``x1``, ``y1``, ``x2``, ``y2`` in
    the graph's own unit (mostly pixels of its input), ``score`` and ``class``.

    ``corners``: x1, y1, x2, y2 of each box, n x boxes x 4, and ``scores``. ``center``: x, y, width,
    height of each box, and ``scores``. ``yolo``: x, y, width, height, maybe how likely it is a box,
    a score for each class, n x boxes x that, or n x that x boxes. ``heatmap``: how likely a cell is
    the center of each class, n x classes x height x width, with ``sizes`` and maybe ``offsets``.
    ``detections``: x1, y1, x2, y2, score, class number of each box, n x boxes x 6, as nets give
    that suppress boxes themselves.
    """

    class Settings(ClassSettings):
        """``[infer.outputs.NAME]`` with ``answer = "boxes"``

        Attributes:
            format: corners, center, yolo, heatmap or detections: what the output holds.
            order: ``xy`` or ``yx``: which coordinate comes first in it.
            scores: the output of the scores, n x boxes or n x boxes x classes.
            labels: the output of class numbers, n x boxes, where `scores` has one score per box.
            sizes: of a heatmap: the output of height and width, n x 2 x height x width, in `order`.
            offsets: of a heatmap: the output of what is added to a center, in cells, in `order`.
            log_sizes: of a heatmap: whether `sizes` are logarithms.
            center: of a heatmap: where in its cell a center lies; 0.5 is the middle.
            stride [pixels]: of a heatmap: pixels of the input per cell.
            background: number of a class of `scores` that is no object.
            min_score: boxes with a smaller score are left out.
            max_overlap [share]: of two boxes of a class that overlap more (intersection over
                union), the better one stays; 1 keeps all.
            top [boxes]: the most boxes of a row.
        """

        format: Literal["corners", "center", "yolo", "heatmap", "detections"] = "corners"
        order: Literal["xy", "yx"] = "xy"
        scores: Name | None = None
        labels: Name | None = None
        sizes: Name | None = None
        offsets: Name | None = None
        log_sizes: bool = False
        center: float = 0.5
        stride: PositiveFloat = 4.0
        background: int | None = Field(None, ge=0)
        min_score: float = 0.5
        max_overlap: float = Field(0.45, gt=0, le=1)
        top: int = Field(100, ge=1)

    def __init__(self, output: str, settings: Any) -> None:
        super().__init__(output, settings)
        self.settings: Boxes.Settings = settings
        self._classes = names(settings.classes, f"{self.where} classes")

    @property
    def reads(self) -> tuple[str, ...]:
        given = self.settings
        more = {
            "corners": (given.scores, given.labels),
            "center": (given.scores, given.labels),
            "yolo": (),
            "detections": (),
            "heatmap": (given.sizes, given.offsets),
        }[given.format]
        return (self.output, *(name for name in more if name is not None))

    def bind(self, outputs: Mapping[str, GraphValue]) -> Schema:
        check = {
            "yolo": self._bind_yolo,
            "heatmap": self._bind_heatmap,
            "detections": self._bind_detections,
        }
        check.get(self.settings.format, self._bind_corners)(outputs)
        suppressed(NONE, 0.5, 1)  # compiled before the first record
        label: pl.DataType = pl.String() if self._classes else pl.Int64()
        fields = {**dict.fromkeys((*CORNERS, "score"), pl.Float32()), "class": label}
        return {self.column: pl.List(pl.Struct(fields))}

    def columns(self, arrays: Arrays) -> list[pl.Series]:
        decode = {
            "yolo": self._from_yolo,
            "heatmap": self._from_heatmap,
            "detections": self._from_detections,
        }
        boxes = decode.get(self.settings.format, self._from_corners)(arrays)
        if self.settings.background is not None:
            boxes = boxes.take(boxes.label != self.settings.background)
        boxes = suppressed(boxes, self.settings.max_overlap, self.settings.top)
        return [self._listed(boxes, len(arrays[self.output]))]

    # ------------------------------------------------------------------------------------- checks

    def _bind_corners(self, outputs: Mapping[str, GraphValue]) -> None:
        boxes, given = outputs[self.output], self.settings
        if len(boxes.row) != 2 or not fits(boxes.row[1], 4) or not boxes.is_float:
            raise self.refuse("four numbers of each box, n x boxes x 4", boxes)
        if given.scores is None:
            raise self.refuse("the key 'scores', the output of the boxes' scores", "none")
        scores = outputs[given.scores]
        if len(scores.row) not in (1, 2) or not scores.is_float:
            raise self.refuse("scores of shape n x boxes or n x boxes x classes", scores)
        if given.labels is not None:
            labels = outputs[given.labels]
            if len(labels.row) != 1 or len(scores.row) != 1 or not labels.is_array:
                raise self.refuse("labels and scores of shape n x boxes", labels)
        elif len(scores.row) == 2:
            self._require_classes(scores.row[1], scores)

    def _bind_yolo(self, outputs: Mapping[str, GraphValue]) -> None:
        value = outputs[self.output]
        sizes = value.row
        if len(sizes) != 2 or not value.is_float:
            raise self.refuse("boxes and scores together, n x boxes x (4 + classes)", value)
        known = len(self._classes)
        wide = [
            s for s in sizes if isinstance(s, int) and (s - known in (4, 5) if known else s > 4)
        ]
        if not wide:
            raise self.refuse(f"4 or 5 numbers and {known or 'some'} scores of each box", value)
        width = min(wide)
        self._last = sizes[1] == width
        self._with_objectness = bool(known) and width == known + 5

    def _bind_heatmap(self, outputs: Mapping[str, GraphValue]) -> None:
        heat, given = outputs[self.output], self.settings
        if len(heat.row) != 3 or not heat.is_float:
            raise self.refuse("a heatmap, n x classes x height x width", heat)
        if given.sizes is None:
            raise self.refuse("the key 'sizes', the output of heights and widths", "none")
        for name in filter(None, (given.sizes, given.offsets)):
            if len(outputs[name].row) != 3 or outputs[name].row[0] not in (2, None):
                raise self.refuse(
                    "sizes and offsets of shape n x 2 x height x width", outputs[name]
                )
        self._require_classes(heat.row[0], heat)

    def _bind_detections(self, outputs: Mapping[str, GraphValue]) -> None:
        value = outputs[self.output]
        if len(value.row) != 2 or not fits(value.row[1], 6) or not value.is_float:
            raise self.refuse("six numbers of each box, n x boxes x 6", value)

    def _require_classes(self, width: Size, value: GraphValue) -> None:
        if self._classes and isinstance(width, int) and width != len(self._classes):
            raise self.refuse(f"{width} classes for {value}", len(self._classes))

    # ------------------------------------------------------------------------------------- decoding

    def _from_corners(self, arrays: Arrays) -> BoxCandidates:
        given = self.settings
        assert given.scores is not None
        boxes, scores = arrays[self.output], arrays[given.scores]
        if given.labels is not None:
            return self._chosen(boxes, scores, arrays[given.labels].astype(np.int64))
        scores = activated(scores, given.activation)
        return self._chosen_by_class(boxes, scores if scores.ndim == 3 else scores[..., None])

    def _from_yolo(self, arrays: Arrays) -> BoxCandidates:
        values = arrays[self.output]
        values = values if self._last else values.transpose(0, 2, 1)
        scores = values[..., 5:] * values[..., 4:5] if self._with_objectness else values[..., 4:]
        return self._chosen_by_class(values[..., :4], activated(scores, self.settings.activation))

    def _from_detections(self, arrays: Arrays) -> BoxCandidates:
        values = arrays[self.output]
        return self._chosen(values[..., :4], values[..., 4], values[..., 5].astype(np.int64))

    def _from_heatmap(self, arrays: Arrays) -> BoxCandidates:
        given = self.settings
        assert given.sizes is not None
        heat = activated_cells(arrays[self.output], given.activation)
        row, label, y, x = np.nonzero(heat >= given.min_score)
        sizes = arrays[given.sizes][row, :, y, x]
        sizes = np.exp(sizes) * given.stride if given.log_sizes else sizes * given.stride
        centers = np.stack([x, y] if given.order == "xy" else [y, x], axis=1) + given.center
        if given.offsets is not None:
            centers = centers + arrays[given.offsets][row, :, y, x]
        centers = centers * given.stride
        box = np.hstack([centers - sizes / 2, centers + sizes / 2])
        return BoxCandidates(
            row=row,
            box=self._turned(box),
            score=heat[row, label, y, x].astype(np.float32),
            label=label,
        )

    def _chosen_by_class(self, boxes: NDArray[Any], scores: NDArray[Any]) -> BoxCandidates:
        """Return a candidate for each box and class whose score is high enough."""
        row, at, label = np.nonzero(scores >= self.settings.min_score)
        return self._candidates(row, boxes[row, at], scores[row, at, label], label)

    def _chosen(self, boxes: NDArray[Any], scores: NDArray[Any], labels: Ints) -> BoxCandidates:
        row, at = np.nonzero(scores >= self.settings.min_score)
        return self._candidates(row, boxes[row, at], scores[row, at], labels[row, at])

    def _candidates(
        self, row: Ints, box: NDArray[Any], score: NDArray[Any], label: Ints
    ) -> BoxCandidates:
        if self.settings.format in ("center", "yolo"):
            centers, halves = box[:, :2], box[:, 2:] / 2
            box = np.hstack([centers - halves, centers + halves])
        return BoxCandidates(
            row=row, box=self._turned(box), score=score.astype(np.float32), label=label
        )

    def _turned(self, box: NDArray[Any]) -> Singles:
        box = box[:, [1, 0, 3, 2]] if self.settings.order == "yx" else box
        return box.astype(np.float32)

    # ------------------------------------------------------------------------------------- columns

    def _listed(self, boxes: BoxCandidates, rows: int) -> pl.Series:
        label = pl.Series(boxes.label)
        if self._classes:  # a number beyond them has no name
            label = label.replace_strict(
                range(len(self._classes)), self._classes, default=None, return_dtype=pl.String
            )
        frame = pl.DataFrame(
            {
                **{name: boxes.box[:, i] for i, name in enumerate(CORNERS)},
                "score": boxes.score,
                "class": label,
            }
        )
        bounds = np.searchsorted(boxes.row, np.arange(rows + 1))
        return in_lists(self.column, frame.to_struct(), bounds)


def activated_cells(heat: NDArray[Any], activation: Any) -> NDArray[Any]:
    """Return a heatmap's scores; softmax is over its classes."""
    return np.moveaxis(activated(np.moveaxis(heat, 1, -1), activation), -1, 1)


def suppressed(boxes: BoxCandidates, most: float, top: int) -> BoxCandidates:
    """Return the boxes without those that overlap a better one of their row and class by more than
    `most`, at most `top` of each row; ordered by row, the best first."""
    by_class = boxes.take(np.lexsort((-boxes.score, boxes.label, boxes.row)))
    kept = np.ones(len(by_class.row), np.bool_)
    if most < 1:
        _suppress(by_class.row, by_class.label, by_class.box, np.float32(most), kept)
    boxes = by_class.take(kept)
    boxes = boxes.take(np.lexsort((-boxes.score, boxes.row)))
    starts = np.searchsorted(boxes.row, boxes.row)
    return boxes.take(np.arange(len(boxes.row)) - starts < top)


@numba.njit(nogil=True, cache=True)
def _suppress(row, label, box, most, kept):  # type: ignore[no-untyped-def]
    """Mark what goes; boxes of one row and class stand together, the best first."""
    n = row.shape[0]
    for i in range(n):
        if not kept[i]:
            continue
        area = (box[i, 2] - box[i, 0]) * (box[i, 3] - box[i, 1])
        for j in range(i + 1, n):
            if row[j] != row[i] or label[j] != label[i]:
                break
            width = min(box[i, 2], box[j, 2]) - max(box[i, 0], box[j, 0])
            height = min(box[i, 3], box[j, 3]) - max(box[i, 1], box[j, 1])
            if not kept[j] or width <= 0 or height <= 0:
                continue
            shared = width * height
            other = (box[j, 2] - box[j, 0]) * (box[j, 3] - box[j, 1])
            if shared > most * (area + other - shared):
                kept[j] = False


__all__ = ["BoxCandidates", "Boxes", "suppressed"]
