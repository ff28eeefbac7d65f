"""Tries a module on made rows before anything is read: what it does, and what is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from engine.types import Features, HeadraceError, Padded, Tensors, UserError
from models.carry import STATE
from models.learners.modules.flat import Behaviour, require_flat
from models.learners.modules.user_module import error_text
from models.learners.modules.weights import tell_once
from models.net_input import NetInput, tensors_of
from models.seeded import seeded

TOLERANCE = 1e-5
"""The difference of scores below which two modes are alike."""
UNKNOWN_IDS = 2
"""The number of ids in made rows where no stage says how many there are."""


class ModuleTrial:
    """Calls of a module with made rows.

    Args:
        module: on its device; lazy parameters get their sizes.
        who: how sentences name it.
        inputs, masks: what its forward gets.
        outputs: 1, or the number of classes.
    """

    def __init__(
        self,
        module: nn.Module,
        who: str,
        features: Features,
        inputs: Sequence[NetInput],
        masks: Sequence[str],
        *,
        device: str,
        seed: int,
    ) -> None:
        self._module = module
        self._who = who
        self._features = features
        self._inputs = inputs
        self._masks = masks
        self._device = device
        self._seed = seed

    def behaviour(self) -> Behaviour:
        """Return what the module does when it trains; it is as it was before, afterwards.

        Raises: UserError for a forward that raises, returns no finite raw scores of the right
            shape or none with a gradient, draws random numbers where it should not, or gives
            another answer to the same rows.
        """
        rows = made_rows(self._features, 3)
        one, two, other = (self._some(rows, *numbers) for numbers in ((0,), (0, 1), (0, 2)))
        self._scored(two, training=False)  # lazy parameters and caches are made now
        require_flat(self._module)
        buffers = self._buffers()
        scores = self._scored(two, training=False)
        if self._drawn:
            raise UserError(
                f"{self._who} draws random numbers in evaluation mode too, so its scores are "
                "random: use nn.Dropout, or give functional.dropout training=self.training."
            )
        self._require_repeated(scores, self._scored(two, training=False), "evaluation")
        self._require_finite(scores)
        self._scored(one, training=False)
        self._try_lengths(two)
        self._try_padding(self._some(rows, 2))
        before = self._buffers()
        trained = self._scored(two, training=True)
        draws = self._drawn
        keeps = not _equal(before, self._buffers())
        self._require_repeated(trained, self._scored(two, training=True), "training")
        full = self._scored(other, training=True)
        self._require_gradient(full)
        mixes = not _close(trained[:1], full[:1])
        if not mixes:
            self._scored(one, training=True)
        self._restore(buffers)
        return Behaviour(draws=draws, keeps=keeps, differs=not _close(trained, scores), mixes=mixes)

    def _scored(self, rows: Tensors, *, training: bool) -> torch.Tensor:
        """Return the module's raw scores, (n,) or (n, outputs)."""
        self._module.train(training)
        given = tensors_of(rows, self._inputs)
        tensors = {
            name: tensor
            for name, tensor in given.items()
            if not name.endswith("_mask") or name in self._masks or name in self._names
        }
        if (carried := self._features.state) is not None:
            tensors[STATE] = torch.full((len(rows), carried.width), 0.1, device=self._device)
        shapes = ", ".join(f"{name} {_shape(tensor)}" for name, tensor in tensors.items())
        kept = {name: tensor.clone() for name, tensor in tensors.items()}
        raw = self._called(lambda: self._module(**tensors), shapes, training=training)
        for name, tensor in tensors.items():
            if not torch.equal(tensor, kept[name]):
                raise UserError(
                    f"{self._who} changes its input '{name}' in place, and the row is used again: "
                    f"change a copy, {name}.clone()."
                )
        if carried is not None:
            raw = self._require_state(raw, (len(rows), carried.width))
        return self._require_scores(raw, len(rows), shapes)

    def _require_state(self, result: object, shape: tuple[int, int]) -> object:
        """Return the raw scores beside a state."""
        expected = f"return scores, {STATE}, with a float tensor of shape {shape} as the new state"
        if not (isinstance(result, tuple) and len(result) == 2):
            raise UserError(
                f"{self._who} returns a {type(result).__name__} from its forward, and with "
                f"[model.state] it is expected to {expected}."
            )
        raw, state = result
        if not isinstance(state, torch.Tensor) or not state.is_floating_point():
            raise UserError(
                f"{self._who} returns a state that is no float tensor, expected to {expected}."
            )
        if state.shape != shape:
            raise UserError(
                f"{self._who} returns a state of shape {tuple(state.shape)}, expected to "
                f"{expected}: make [model.state] width fit."
            )
        return raw

    def _called(self, call: Callable[[], object], shapes: str, *, training: bool) -> object:
        """Return what the call returns, with torch's random numbers seeded; note whether it drew
        any. Raises: UserError if it raises, or draws others."""
        others = _other_states()
        with seeded(self._seed, self._device), torch.set_grad_enabled(training):
            before = torch.get_rng_state(), _device_state(self._device)
            try:
                result = call()
            except HeadraceError:
                raise
            except (Exception, SystemExit) as error:
                raise UserError(
                    f"{self._who} raises {error_text(error)}, in {_mode(training)} mode, when its "
                    f"forward gets {shapes}."
                ) from error
            after = torch.get_rng_state(), _device_state(self._device)
        self._drawn = not all(map(torch.equal, before, after))
        if _other_states() != others:
            raise UserError(
                f"{self._who} draws Python's or numpy's global random numbers, so a run that "
                "resumes would go on otherwise: draw torch's."
            )
        return result

    def _require_scores(self, raw: object, rows: int, shapes: str) -> torch.Tensor:
        outputs = self._features.most_outputs
        shape = (rows,) if outputs == 1 else (rows, outputs)
        expected = f"a float tensor of shape {shape}: {self._returned}"
        if not isinstance(raw, torch.Tensor):
            raise UserError(
                f"{self._who} returns a {type(raw).__name__} from its forward, expected {expected}."
            )
        if not raw.is_floating_point():
            raise UserError(
                f"{self._who} returns numbers of type {str(raw.dtype).removeprefix('torch.')} from "
                f"its forward, expected {expected}."
            )
        if outputs == 1 and raw.ndim == 2 and raw.shape[1] == 1:
            raw = raw.squeeze(1)
        if raw.shape != shape:
            raise UserError(
                f"{self._who} returns scores of shape {tuple(raw.shape)} for {shapes}, expected "
                f"{expected}."
            )
        return raw.float()

    def _require_finite(self, scores: torch.Tensor) -> None:
        if not torch.isfinite(scores[0]).all():
            raise UserError(
                f"{self._who} returns NaN or infinity for finite inputs: look for a division by 0, "
                "a logarithm, or first weights that are too large."
            )
        if not torch.isfinite(scores[1]).all():
            names = ", ".join(i.name for i in self._inputs if i.form in ("ids", "array"))
            tell_once(
                f"{self._who} returns NaN or infinity for a row whose {names} is empty (its mask "
                "is all false): such rows will be rejected as not finite."
            )

    def _require_repeated(self, first: torch.Tensor, again: torch.Tensor, mode: str) -> None:
        if not _close(first.nan_to_num(), again.nan_to_num()):
            raise UserError(
                f"{self._who} gives another answer to the same rows the second time, in {mode} "
                "mode: it keeps a state between calls, which no checkpoint holds; keep it in a "
                "buffer that only training changes, or take it out."
            )

    def _require_gradient(self, scores: torch.Tensor) -> None:
        finite = scores[torch.isfinite(scores)].sum()
        if not finite.requires_grad:
            raise UserError(
                f"{self._who} returns scores without a gradient, so nothing can be learned: look "
                "for detach(), .data, no_grad() or a whole number on the way."
            )
        learn = {n: p for n, p in self._module.named_parameters() if p.requires_grad}
        if not learn:
            return
        gradients = self._called(
            lambda: torch.autograd.grad(finite, list(learn.values()), allow_unused=True),
            "the gradient of its scores",
            training=True,
        )
        assert isinstance(gradients, tuple)
        for name, gradient in zip(learn, gradients, strict=True):
            if gradient is not None and not torch.isfinite(_values(gradient)).all():
                raise UserError(
                    f"{self._who} has a gradient of NaN or infinity in '{name}': look for the root "
                    "or logarithm of 0, or the norm of a vector of zeros."
                )

    def _try_lengths(self, rows: Tensors) -> None:
        """Try lists at their shortest length. Raises: UserError if only the longest one works."""
        if not rows.padded:
            return
        shortest = min(self._features.buckets, default=1)
        try:
            self._scored(_cut(rows, shortest), training=False)
        except UserError as error:
            most = self._features.most_values
            raise UserError(
                f"{str(error).rstrip('.')}; lists of {most} work: lists are padded to lengths from "
                f"{shortest} to {most}; pad all to one length with [model] buckets = [{most}], or "
                "let forward take any."
            ) from error

    def _some(self, rows: Tensors, *numbers: int) -> Tensors:
        some = rows.take(np.array(numbers, np.int64))
        return some.map(lambda tensor: tensor.to(self._device))

    def _try_padding(self, rows: Tensors) -> None:
        """Warn of scores that depend on how far lists are padded, and so on the rest of a batch."""
        lengths = [int(part.mask.sum()) for part in rows.padded.values()]
        if not lengths or len(self._features.buckets) == 1:
            return
        whole, cut = (
            self._scored(each, training=False) for each in (rows, _cut(rows, max(lengths)))
        )
        if not _close(whole, cut):
            masks = " and ".join(f"{i.name}_mask" for i in self._inputs if i.form == "ids")
            tell_once(
                f"{self._who} gives other scores to a row whose lists are padded further, as "
                f"beside longer ones: let forward take {masks} and leave the padding out."
            )

    @property
    def _returned(self) -> str:
        """What it returns, in words."""
        features, outputs = self._features, self._features.most_outputs
        if features.vector_width:
            return f"a vector of each row, with [model] vector_width = {outputs} numbers"
        if outputs == 1:
            return "a raw score of each row"
        kind = "targets" if features.targets else "quantiles" if features.quantiles else "classes"
        return f"a raw score of each row for each of the {outputs} {kind}"

    @property
    def _names(self) -> set[str]:
        return {each.name for each in self._inputs}

    def _buffers(self) -> list[torch.Tensor]:
        return [buffer.clone() for buffer in self._module.buffers()]

    @torch.no_grad()
    def _restore(self, buffers: Sequence[torch.Tensor]) -> None:
        for buffer, before in zip(self._module.buffers(), buffers, strict=False):
            buffer.copy_(before)


def made_rows(features: Features, rows: int) -> Tensors:
    """Return rows that these features may have: of lists the first is as long as can be with the
    highest ids, the second empty."""
    rng = np.random.default_rng(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    def mask(length: int) -> torch.Tensor:
        lengths = np.resize([length, 0, (length + 1) // 2], rows)
        return torch.from_numpy(np.arange(length) < lengths[:, None])

    def ids(size: int) -> Padded:
        there = mask(features.most_values)
        values = torch.from_numpy(rng.integers(0, size or UNKNOWN_IDS, there.shape))
        values[0, 0] = (size or UNKNOWN_IDS) - 1
        return Padded(values=values * there, mask=there)

    def array(length: int, width: int) -> Padded:
        there = mask(length)
        return Padded(values=numbers(rows, length, width) * there.unsqueeze(-1), mask=there)

    sizes = list(features.categories.values())
    codes = np.stack([np.resize([n - 1, 0, 1 % n], rows) for n in sizes], 1) if sizes else None
    return Tensors(
        numeric=numbers(rows, len(features.numeric)),
        categories=torch.from_numpy(np.empty((rows, 0), np.int64) if codes is None else codes),
        images={
            name: torch.from_numpy(rng.integers(0, 256, (rows, *shape), np.uint8))
            for name, shape in features.images.items()
        },
        padded={name: ids(size) for name, size in features.padded.items()},
        arrays={name: array(*shape) for name, shape in features.arrays.items()},
    )


def _other_states() -> tuple[object, ...]:
    """Return the states of the global random numbers that are not torch's."""
    state = np.random.get_state(legacy=False)
    assert isinstance(state, dict)
    return random.getstate(), state["state"]["key"].tobytes(), state["state"]["pos"]


def _cut(rows: Tensors, length: int) -> Tensors:
    """Return rows whose lists keep so many values."""
    padded = {
        name: Padded(values=part.values[:, :length], mask=part.mask[:, :length])
        for name, part in rows.padded.items()
    }
    return replace(rows, padded=padded)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def _equal(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _device_state(device: str) -> torch.Tensor:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.empty(0)


def _mode(training: bool) -> str:
    return "training" if training else "evaluation"


def _shape(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


__all__ = ["ModuleTrial", "made_rows"]
