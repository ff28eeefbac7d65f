"""Learning from some rows of a batch, while the others are only scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from engine.types import Batch, Learner, Step, tensor
from engine.user_code import calls


def learned_in_turn(learner: Learner, batch: Batch, train: NDArray[np.bool_]) -> Step:
    """Learn from some rows. The others are scored by the model as it is at their place: after all
    steps on rows before them. See `Learner.scores_in_turn`.

    Args:
        train: the rows to learn from, shape (n,).
    """
    assert batch.tensors is not None
    if learner.scores_in_turn:
        own = replace(batch.tensors, learned=tensor(train))
        step = calls.learn(learner, replace(batch, tensors=own))
        if step.skipped not in (None, "empty"):  # what is only scored has its answer
            return replace(step, skipped=None, not_learned=train)
        if step.not_learned is not None:
            return replace(step, skipped=None, not_learned=step.not_learned & train)
        return step
    turns = [0]
    if not learner.unwrapped.learns_by_batch:
        turns += (np.flatnonzero(train[:-1] & ~train[1:]) + 1).tolist()
    parts = []
    for start, stop in zip(turns, [*turns[1:], len(batch)], strict=True):
        frame, tensors = batch.frame[start:stop], batch.tensors.slice(start, stop)
        part = replace(batch, frame=frame, tensors=tensors)
        parts.append(learned_apart(learner, part, train[start:stop]))
    return Step.joined(parts)


def learned_apart(
    learner: Learner,
    batch: Batch,
    train: NDArray[np.bool_],
    given: NDArray[np.float64] | None = None,
) -> Step:
    """Learn from some rows; the others are scored before.

    Args:
        train: the rows to learn from, shape (n,).
        given: the scores of the others, where they have some, as in `Step.scores`.
    """
    assert batch.tensors is not None
    rest, learned = np.flatnonzero(~train), np.flatnonzero(train)
    predicted = calls.predict(learner, batch.tensors.take(rest)) if given is None else given[rest]
    own = batch.tensors.take(learned)
    step = calls.learn(learner, replace(batch, frame=batch.frame[learned], tensors=own))
    scores = np.empty((len(train), *predicted.shape[1:]))
    scores[rest], scores[train] = predicted, step.scores
    not_learned = None
    if step.not_learned is not None:
        not_learned = np.zeros(len(train), np.bool_)
        not_learned[train] = step.not_learned
    if step.skipped not in (None, "empty"):  # what is only scored has its answer
        not_learned = train
    baselines = {}
    for name, said in step.baselines.items():
        baselines[name] = np.full(len(train), -1)
        baselines[name][train] = said
    return replace(step, scores=scores, skipped=None, not_learned=not_learned, baselines=baselines)


__all__ = ["learned_apart", "learned_in_turn"]
