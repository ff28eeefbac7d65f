"""The module learner: any torch.nn.Module, or a network of layers that the pipeline file names."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from engine.columnar.event_time import bound_idle
from engine.types import (
    Features,
    GraphBuilder,
    KeyedState,
    Name,
    Names,
    Schema,
    Settings,
    UserError,
)
from models.layers import LayerTable
from models.layers.recurrent import Cell, state_width
from models.learners.modules.flat import Behaviour, FlatModule
from models.learners.modules.trial import ModuleTrial
from models.learners.modules.user_module import (
    asked_inputs,
    forward_of,
    make_module,
    matched_masks,
    named,
    require_source,
    require_state,
)
from models.learners.modules.weights import add_adapters, freeze, load_weights, lr_scales
from models.learners.online.learner import OnlineLearner
from models.learners.online.settings import OnlineSettings, OnlineTraining
from models.net_input import net_inputs

log = logging.getLogger("headrace.learner")

USUAL_VALUES = 64
"""Ids of a list that a row is taken to have in estimates of the work of a step: most texts are far
from the longest that may come."""


class NetInputSettings(Settings):
    """``[model.inputs.NAME]``: what a network reads, and its first layers.

    Attributes:
        columns: its columns, names or globs, all of one kind: numbers, codes of a ``categories``
            stage, ids of a ``tokens`` stage, images, or arrays of a ``history`` stage.
        layers: the layers they go through, tables of a `kind` and its keys; unless given, those
            that suit the kind of columns. A module of yours has its own.
    """

    columns: Names = Field(min_length=1)
    layers: tuple[LayerTable, ...] | None = None


class HeadSettings(Settings):
    """``[model.head]``: the layers after those of all inputs.

    Attributes:
        layers: tables of a `kind` and its keys; unless given, two dense ones.
    """

    layers: tuple[LayerTable, ...] | None = None


class StateSettings(Settings):
    """``[model.state]``: a recurrent state per key, which goes from each row to the next one of the
    same key, instead of a window of rows that is read again and again.

    Attributes:
        by: the key's columns, names or globs, as they are before the stages that a model file
            contains. Null is a key like others.
        cell: ``gru`` or ``lstm``, between the inputs and the head; the head reads what it makes and
            the inputs. A module of yours has its own.
        width: numbers of the cell; of a module of yours, the width of the ``state`` (rows, width)
            that its forward gets and returns: ``return scores, state``.
        keys: how many keys are remembered, those that came last; a key that returns starts anew.
        idle: a key that comes again so much later starts anew: a duration ("7d") after the newest
            time of its rows, or an integer where `time` is one; without `time`, a number of rows of
            the stream.
        time: a datetime, date or integer column, as it is before the stages that a model file
            contains. A row without a time is not too late.
    """

    by: Names = Field(min_length=1)
    cell: Cell = "gru"
    width: int = Field(64, ge=1, le=65_536)
    keys: int = Field(100_000, ge=1, le=1 << 28)
    idle: str | int | None = None
    time: Name | None = None


class ModuleSettings(OnlineSettings):
    """The learner's own keys of ``[model]``.

    Attributes:
        module: a class of yours that inherits ``torch.nn.Module``, or a function that returns one,
            ``package.module:Class``. Its forward gets a tensor for each of its parameters: an input
            of that name, ``[model] numeric`` or ``categories``, or the column of that name. It
            returns a raw score per row, or one for each of several classes. Unless given, the
            network is made of layers.
        arguments: what the class or function is called with.
        inputs: ``[model.inputs.NAME]``, the inputs by name.
        head: ``[model.head]``, the layers after those of all inputs.
        state: ``[model.state]``, a recurrent state per key.
        weights: a file of first weights, ``.safetensors`` or a state dict of torch.
        freeze: parameters that stay as they are, names or globs ("encoder.*").
        lora: names or globs of weights -> rank of a matrix that learns beside each, while the
            weight stays as it is.
    """

    module: Any = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, NetInputSettings] = Field(default_factory=dict)
    head: HeadSettings | None = None
    state: StateSettings | None = None
    weights: Name | None = None
    freeze: Names = ()
    lora: dict[str, PositiveInt] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_network(self) -> Self:
        layered = [f"[model.inputs.{name}]" for name, own in self.inputs.items() if own.layers]
        layered += ["[model.head]"] if self.head is not None else []
        if self.module is not None and layered:
            raise ValueError(
                f"expected no layers beside module, which has its own: take {layered[0]} layers out"
            )
        if (
            self.module is not None
            and self.state is not None
            and "cell" in (self.state.model_fields_set)
        ):
            raise ValueError(
                "expected no cell beside module, which has its own: take [model.state] cell out"
            )
        if self.module is None and self.arguments:
            raise ValueError("expected module beside arguments, which are the module's")
        require_source(self.module)
        return self


class ModuleTraining(OnlineTraining):
    """``[train]`` of the module learner.

    Attributes:
        lr_scale [share]: name or glob of parameters -> their step size as a share of `lr`; the
            first that matches counts.
    """

    lr_scale: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _above_0(self) -> Self:
        for pattern, share in self.lr_scale.items():
            if not 0 < share < math.inf:
                raise ValueError(
                    f"expected a number above 0 for lr_scale of '{pattern}', got {share}; "
                    "[model] freeze holds parameters still"
                )
        return self


class ModuleLearner(OnlineLearner[FlatModule]):
    """A module of the user's, or a network of the layers in the pipeline file; it learns as the
    tabular learner does.

    The module is tried with made rows before anything is read. Random numbers are torch's, seeded
    with the number of the step, so that a run that resumes draws the same ones. Parameters and
    buffers are in the state.

    Raises: UserError for a module that cannot be made or called, or whose scores are not as they
        should be; and for settings that do not fit the task, the features or each other.
    """

    kind = "module"
    replays_nested = True
    reads_inputs = True
    Settings = ModuleSettings
    Training = ModuleTraining
    settings: ModuleSettings
    training: ModuleTraining

    def __init__(
        self, settings: ModuleSettings, training: ModuleTraining, features: Features
    ) -> None:
        self.inputs = net_inputs(features)
        if not self.inputs:
            raise UserError(
                "[model] needs inputs: name columns in 'numeric' or 'categories', or in a table "
                "[model.inputs.NAME]."
            )
        self._tried: Behaviour | None = None
        super().__init__(settings, training, features)

    @classmethod
    def named_inputs(cls, settings: ModuleSettings) -> Mapping[str, Sequence[str] | None]:
        tables: dict[str, Sequence[str] | None] = {
            name: own.columns for name, own in settings.inputs.items()
        }
        if settings.module is None:
            return tables
        forward = forward_of(settings.module, settings.arguments)
        if settings.state is not None:
            forward = require_state(settings.module, forward)
        return {**tables, **dict.fromkeys(asked_inputs(forward, tuple(tables)))}

    @classmethod
    def named_state(cls, settings: ModuleSettings, schema: Schema) -> KeyedState | None:
        state = settings.state
        if state is None:
            return None
        width = state.width if settings.module else state_width(state.cell, state.width)
        _, idle = bound_idle(state.idle, state.time, schema, "[model.state]")
        return KeyedState(by=state.by, width=width, keys=state.keys, idle=idle, time=state.time)

    @property
    def module(self) -> nn.Module:
        """The module in training."""
        return self._scorer.network.module

    @property
    def mask_names(self) -> tuple[str, ...]:
        """The masks that its forward gets, ``NAME_mask``."""
        settings = self.settings
        if settings.module is None:
            return tuple(f"{i.name}_mask" for i in self.inputs if i.form in ("ids", "array"))
        forward = forward_of(settings.module, settings.arguments)
        if settings.state is not None:
            forward = require_state(settings.module, forward)
        return tuple(matched_masks(settings.module, forward, self.inputs))

    def make_network(self) -> FlatModule:
        settings, masks = self.settings, self.mask_names
        module = self._made().to(self.device)
        if self._tried is None or _is_lazy(module):
            self._tried = self._trial(module, masks).behaviour()
        if settings.weights is not None:
            load_weights(module, settings.weights)
        freeze(module, settings.freeze)
        add_adapters(module, settings.lora, seed=settings.seed)
        return FlatModule(
            module,
            self.inputs,
            masks=masks,
            outputs=self.features.most_outputs,
            behaviour=self._tried,
            lr_scales=lr_scales(module, self.training.lr_scale),
        )

    def build(self, graph: GraphBuilder, numeric: str, categories: str) -> str:
        """Write the computation of `predict` into an ONNX graph. torch converts the module.

        Raises: UserError if it cannot.
        """
        from models.export.body import write_module  # onnx, which learning does without

        scorer, source = self._scorer, self.settings.module
        raw = write_module(
            graph,
            scorer.scoring_network.module,
            (*(each.name for each in self.inputs), *self.mask_names),
            self.inputs,
            self.features,
            scorer.scaler.build(graph, numeric),
            categories,
            array_scales=scorer.array_scalers,
            state_width=0 if self.features.state is None else self.features.state.width,
            outputs=self.features.most_outputs,
            name="[model] network" if source is None else named(source),
        )
        return scorer.build_scores(graph, raw)

    def torch_body(self) -> Mapping[str, str] | None:
        """Return the network as properties of a model file; None for a module that has no import
        string, and for one with a state or of vectors."""
        from models.export.torch_body import pack

        source = self.settings.module
        features = self.features
        if not isinstance(source, str) or features.state is not None or features.vector_width:
            return None
        settings = self.settings.model_copy(update={"weights": None})
        return pack(
            source,
            settings.model_dump_json(exclude_defaults=True),
            self.training.model_dump_json(include={"loss"}),
            features,
            self.scoring_state(),
        )

    @property
    def row_work(self) -> float:
        features = self.features
        if features.images:
            return math.inf  # convolutions gain from every thread
        tables = {id(m.weight) for m in self.module.modules() if isinstance(m, nn.Embedding)}
        dense = sum(p.numel() for p in self.module.parameters() if id(p) not in tables)
        lengths = [length for length, _ in features.arrays.values()]
        lengths += [min(features.most_values, USUAL_VALUES)] if features.padded else []
        return dense * max(lengths, default=1)  # at most, if every layer sees every place

    def expert_loads(self) -> Mapping[str, Sequence[float]]:
        from models.network import expert_loads

        return expert_loads(self.module)

    def own_identity(self) -> dict[str, Any]:
        settings, source = self.settings, self.settings.module
        return {
            "[model] module": source if isinstance(source, str | None) else type(source).__name__,
            "[model] inputs": [
                [each.name, each.form, list(each.columns), list(each.sizes), list(each.shape)]
                for each in self.inputs
            ],
            "[model] freeze": list(settings.freeze),
            "[model] lora": dict(settings.lora),
            "[train] lr_scale": dict(self.training.lr_scale),
        } | ({} if settings.state is None else {"[model.state]": settings.state.model_dump_json()})

    def _made(self) -> nn.Module:
        """Return the module with its first weights."""
        settings = self.settings
        if settings.module is not None:
            return make_module(settings.module, settings.arguments, seed=settings.seed)
        from models.network import build_network

        layers = {n: own.layers for n, own in settings.inputs.items() if own.layers is not None}
        head = None if settings.head is None else settings.head.layers
        state = settings.state
        memory = None if state is None else (state.cell, state.width)
        return build_network(
            self.inputs, layers, head, self.features.most_outputs, memory=memory, seed=settings.seed
        )

    def _trial(self, module: nn.Module, masks: Sequence[str]) -> ModuleTrial:
        source = self.settings.module
        who = "[model] network" if source is None else named(source)
        return ModuleTrial(
            module, who, self.features, self.inputs, masks,
            device=self.device, seed=self.settings.seed,
        )  # fmt: skip


def _is_lazy(module: nn.Module) -> bool:
    lazy = torch.nn.parameter.UninitializedParameter
    return any(isinstance(parameter, lazy) for parameter in module.parameters())


__all__ = [
    "HeadSettings",
    "ModuleLearner",
    "ModuleSettings",
    "ModuleTraining",
    "NetInputSettings",
    "StateSettings",
]
