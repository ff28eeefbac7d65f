"""The learner of prototypes: few-shot and one-shot classification."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from engine.columnar.numeric_scale import NumericScale
from engine.types import (
    Batch,
    Buffered,
    Features,
    GraphBuilder,
    Learner,
    Snapshot,
    Step,
    Tensors,
    UserError,
)
from engine.types.arrays import Bools, Floats, Ints
from models.learners.identity import require_same_model
from models.learners.labelled import labelled, target_of
from models.learners.modules.user_module import asked_inputs, forward_of
from models.learners.prototypes.choice import chosen_embedding
from models.learners.prototypes.embedding import Embedding, RawFeatures, Rows
from models.learners.prototypes.settings import PrototypeSettings, PrototypeTraining
from models.learners.prototypes.table import PrototypeTable
from models.net_input import net_inputs

log = logging.getLogger("headrace.learner")
NEAREST = "nearest neighbour"
"""The name of the baseline."""


class PrototypeLearner(Learner, Buffered):
    """Nearest class mean: a prototype per class, the mean of its rows in an embedding that does not
    learn. A class is told apart from its first example on.

    Source: Snell, Swersky and Zemel, "Prototypical networks for few-shot learning", 2017.

    Scores are the softmax over the negative distances to all prototypes, times a sharpness that
    follows the log loss. Each row is scored, then it moves the mean of its class, in one compiled
    call a batch: what is learned depends on the rows, in their order, and not on how they were cut
    into batches (of an embedding by a module or a file: to the rounding of float32).

    Numbers that stages scale are kept in the newest scale: as it moves, prototypes and examples
    move along.

    Beside it stands the nearest neighbour among the newest examples of each class, by raw features:
    an embedding can be worse than none.

    Args:
        settings: ``[model]``.
        training: ``[train]``.
        features: what it reads.

    Raises: UserError for a regression, features it cannot read, and an embedding that cannot be
        used.
    """

    learns_by_batch = False
    sets_threads = True
    reads_inputs = True
    grows = "always"
    baselines = (NEAREST,)

    Settings = PrototypeSettings
    Training = PrototypeTraining
    settings: PrototypeSettings
    training: PrototypeTraining

    def __init__(
        self, settings: PrototypeSettings, training: PrototypeTraining, features: Features
    ) -> None:
        if features.task == "regression":
            raise UserError(
                "[model] kind = 'prototypes' expects task binary or multiclass, got 'regression': "
                "use kind = 'tabular'."
            )
        self.settings = settings
        self.training = training
        self.features = features
        torch.set_num_threads(training.threads)
        self.inputs = net_inputs(features)
        if not self.inputs:
            raise UserError(
                "[model] needs inputs: name columns in 'numeric' or 'categories', or in a table "
                "[model.inputs.NAME]."
            )
        self._raw = RawFeatures(self.inputs, features, standardize=settings.standardize)
        self._embedding: Embedding = chosen_embedding(
            settings, self.inputs, features, raw=self._raw, threads=training.threads
        )
        self._scale = NumericScale.unknown(len(features.numeric))
        if not self._raw.width:
            log.info("No nearest neighbour stands beside the model: it reads only lists of ids.")
        self._table = self._new_table(settings.neighbors)
        self.set_classes(features.classes, [-1] * len(features.classes))
        self._warm_up()

    @classmethod
    def named_inputs(cls, settings: Any) -> Mapping[str, Sequence[str] | None]:
        tables: dict[str, Sequence[str] | None] = {
            name: own.columns for name, own in settings.inputs.items()
        }
        if settings.module is None:
            return tables
        forward = forward_of(settings.module, settings.arguments)
        return {**tables, **dict.fromkeys(asked_inputs(forward, tuple(tables)))}

    # -------------------------------------------------------------------------------------- actions

    def learn(self, batch: Batch) -> Step:
        """Score and learn row by row; `Step.steps` counts rows. Rows whose vector is not finite
        are not learned."""
        tensors, _ = labelled(batch)
        if not len(tensors):
            return Step.empty(self._shaped(np.empty((0, len(self.features.classes)))))
        parts = map(self._learn_part, tensors.even_parts())
        scores, guesses, finite, losses, scored = zip(*parts, strict=True)
        learned, wanted = np.concatenate(finite) & tensors.to_learn, tensors.to_learn
        return Step(
            scores=self._shaped(np.concatenate(scores)),
            loss=sum(losses) / sum(scored) if any(scored) else math.nan,
            steps=int(learned.sum()),
            not_learned=None if (learned == wanted).all() else wanted & ~learned,
            baselines={NEAREST: np.concatenate(guesses)},
        )

    def predict(self, tensors: Tensors) -> Floats:
        """Return scores like `Step.scores`."""
        parts = [self._predict_part(part) for part in tensors.even_parts()]
        return self._shaped(np.concatenate(parts))

    @property
    def scores_in_turn(self) -> bool:
        return True

    def set_classes(self, classes: Sequence[str], sources: Sequence[int]) -> None:
        self._table.set_classes(sources)
        self.features = replace(self.features, classes=tuple(classes))

    def limit_memory(self, nbytes: int) -> None:
        """Limit the bytes of kept examples, unless `neighbors` gives their number. Called once,
        before anything is learned."""
        each, asked = 4 * self._raw.width * self._most_classes, self.settings.neighbors
        if "neighbors" in self.settings.model_fields_set or nbytes >= asked * each:
            return
        fitting = nbytes // each
        log.info(
            "The nearest neighbour, a baseline, has %d examples of each of %d classes and not %d, "
            "which would take %d bytes: set [model] neighbors, or raise [loader] memory_budget.",
            fitting, self._most_classes, asked, asked * each,
        )  # fmt: skip
        self._table = self._new_table(fitting)
        self._table.set_classes([-1] * len(self.features.classes))

    def state_dict(self) -> dict[str, Snapshot]:
        """Return prototypes, examples, statistics and calibration. A copy."""
        return {
            "shape": self._identity(),
            "table": self._table.snapshot(),
            "scale": self._scale.snapshot(),
        }

    def load_state_dict(self, state: Mapping[str, Snapshot]) -> None:
        """Raises: UserError naming the first thing in which the saved model is another."""
        require_same_model(state["shape"], self._identity())
        self._table.restore(state["table"])
        self._scale = NumericScale.restored(state["scale"])

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the computation of `predict` into an ONNX graph; return the name of the scores,
        float32, (n,) or (n, classes).

        Args:
            numeric, categories: names of the float32 (n, d) and the int64 (n, c) input.

        Raises: UserError if the embedding cannot be part of a graph.
        """
        from models.learners.prototypes.nodes import write_scores

        if self._embedding is self._raw:
            numeric = self._scale.build(graph, numeric, self.features.numeric)
        vectors = self._embedding.build(graph, numeric, categories)
        scores = write_scores(graph, vectors, self._table)
        if self.features.task == "multiclass":
            return scores
        second = graph.constant(np.int64(1), "second")
        return graph.op("Gather", scores, second, axis=1)

    # -------------------------------------------------------------------------------------- sizes

    @property
    def parameters_count(self) -> int:
        """The numbers of all prototypes."""
        return self._table.prototypes.size

    @property
    def replay_bytes(self) -> int:
        """The bytes of the examples of as many classes as there may be."""
        return 4 * self._raw.width * self._table.kept * self._most_classes

    @property
    def nbytes(self) -> int:
        """The bytes of everything it keeps."""
        return sum(self.memory().values())

    def memory(self) -> dict[str, int]:
        """Return component -> bytes."""
        return self._table.nbytes

    # ------------------------------------------------------------------------------------ inside

    @property
    def _most_classes(self) -> int:
        return self.features.max_classes or len(self.features.classes)

    def _new_table(self, neighbors: int) -> PrototypeTable:
        settings = self.settings
        return PrototypeTable(
            self._embedding.scaled,
            self._raw.scaled,
            cosine=settings.distance == "cosine",
            temperature=settings.temperature,
            kept=neighbors if self._raw.width else 0,
        )

    def _learn_part(self, rows: Tensors) -> tuple[Floats, Ints, Bools, float, int]:
        """Score and learn rows of one scale; return scores, the classes of the nearest examples,
        which rows have a vector, the sum of the losses, and of how many rows it is."""
        self._follow(rows)
        labels = target_of(rows).numpy().astype(np.int64)
        vectors = self._vectors(rows)
        raw = vectors if self._embedding is self._raw else self._raw.embed(self._in_scale(rows))
        finite: Any = np.isfinite(vectors).all(axis=1)
        labels[~(finite & rows.to_learn)] = -1
        scores, guesses, losses, scored = self._table.learn(vectors, raw, labels)
        scores[~finite] = np.nan
        return scores, guesses, finite, losses, scored

    def _predict_part(self, rows: Tensors) -> Floats:
        vectors = self._vectors(rows)
        scores = self._table.predict(vectors)
        scores[~np.isfinite(vectors).all(axis=1)] = np.nan
        return scores

    def _vectors(self, rows: Tensors) -> Rows:
        """Return embedded rows."""
        own = self._embedding is self._raw
        return self._embedding.embed(self._in_scale(rows) if own else rows)

    def _follow(self, rows: Tensors) -> None:
        """Bring what is known into the scale of these rows."""
        if not self.features.scaled:
            return
        newest = NumericScale.of(self.features.numeric, rows.scales)
        before, self._scale = self._scale, self._scale.followed(newest)
        a, b = before.to(self._scale)
        line = self._raw.by_number(a, 1.0), self._raw.by_number(b, 0.0)
        self._table.move(line if self._embedding is self._raw else None, line)

    def _in_scale(self, rows: Tensors) -> Tensors:
        """Return rows with their numbers in the scale of what is known."""
        if not self.features.scaled:
            return rows
        a, b = NumericScale.of(self.features.numeric, rows.scales).to(self._scale)
        if (a == 1).all() and not b.any():
            return rows
        numbers = rows.numeric.numpy() * a + b
        return replace(rows, numeric=torch.from_numpy(numbers.astype(np.float32)))

    def _shaped(self, scores: Floats) -> Floats:
        """Return probabilities as the task has them: of two classes that of the second."""
        return scores if self.features.task == "multiclass" else np.ascontiguousarray(scores[:, 1])

    def _warm_up(self) -> None:
        """Compile now, so that the first batch does not wait."""
        width, raw = self._embedding.width, self._raw.width
        nothing = np.empty((0, width), np.float32)
        self._table.learn(nothing, np.empty((0, raw), np.float32), np.empty(0, np.int64))
        self._table.predict(nothing)

    def _identity(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "[model] kind": "prototypes",
            "[model] task": self.features.task,
            "[model] classes": list(self.features.classes),
            "[model] numeric": list(self.features.numeric),
            "[model] inputs": [
                [entry.name, entry.form, list(entry.columns), list(entry.sizes), list(entry.shape)]
                for entry in self.inputs
            ],
            "[model] distance": settings.distance,
            "[model] standardize": settings.standardize,
            "[model] temperature": settings.temperature,
            "[model] neighbors": settings.neighbors,
            "digest of the embedding": self._embedding.digest,
        }


__all__ = ["PrototypeLearner"]
