"""What surrounds the blocks: a backbone turns images, times and conditions into what blocks run on, and back.

A backbone is a module of `graftax.backbones` whose `BACKBONE` has the methods below. Nothing outside of that folder knows
one by name: `find(spec)` imports it when a model of its kind is first computed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from graftax.blocks import Context, State
from graftax.errors import BadInput, did_you_mean
from graftax.ops.base import Params
from graftax.spec import BACKBONES, ModelSpec, Option

Cond = Mapping[str, Any]
"""What a model is conditioned on beside the time, by name: {"y": (b,) classes} for a class model."""


@dataclass(frozen=True)
class FrameCost:
    """What lies outside the blocks.

    Attributes:
        trained: parameters that training changes.
        fixed: parameters that it does not, such as a table of positions.
        embed: forward FLOPs per image of all before the blocks.
        head: of all behind them.
    """

    trained: int
    fixed: int
    embed: int
    head: int


class Backbone(Protocol):
    """The part of a model that its family brings. `params` is a whole parameter tree; its blocks are not looked at. Where a
    family takes images of other sizes than a model's own, the spec that `embed` and `head` get has the grid of these.

    Attributes:
        fixed: paths of parameters that no training changes, such as tables of positions, where a model has them.
        fills_in: whether the head puts something in the places of tokens that no block saw (`Policy.mask`).
    """

    fixed: tuple[str, ...]
    fills_in: bool

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where `spec` is no model of this family: a frame option is unknown or impossible, say."""
        ...

    def declare(self, module: nn.Module, spec: ModelSpec) -> None:
        """Create the parameters outside the blocks inside `module`, whose compact method calls this."""
        ...

    def embed(
        self, spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, dtype: DTypeLike | None
    ) -> tuple[State, Context]:
        """What the blocks run on, of images x (b, h, w, c), times t (b,) as the network was trained with, and conditions."""
        ...

    def head(self, spec: ModelSpec, params: Params, state: State, context: Context, dtype: DTypeLike | None) -> jax.Array:
        """The output (b, h, w, out_channels) float32 from what the blocks have left."""
        ...

    def check_inputs(self, spec: ModelSpec, x: jax.Array, t: jax.Array, cond: Cond) -> None:
        """Raise `BadInput` where inputs do not fit: unknown or missing conditions, shapes, types, and, of values that are
        known already, times and classes out of range."""
        ...

    def condition(self, batch: Mapping[str, Any]) -> Cond:
        """The conditions in a batch of training data."""
        ...

    def null(self, spec: ModelSpec, params: Params, cond: Cond) -> Cond:
        """The unconditional twin of `cond`, of the same structure, for guidance and its training. Raises `BadInput` where
        the model brings none."""
        ...

    def example(self, spec: ModelSpec, count: int) -> Cond:
        """Conditions that any model of the family takes, for `count` images: to time it, to trace it."""
        ...

    def vectors(self, spec: ModelSpec, params: Params, count: int) -> jax.Array:
        """About `count` conditioning vectors (s, d) that cover times and conditions evenly, for fits without data."""
        ...

    def cost(self, spec: ModelSpec) -> FrameCost:
        """Parameters and FLOPs outside the blocks, in closed form."""
        ...

    def sampling(self, spec: ModelSpec) -> Mapping[str, Any]:
        """How the family's authors draw images: the fields of `graftax.diffusion.Sampling` that are not its defaults."""
        ...

    def override(self, spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
        """What a file's `spec` is with what the user adds to it. Raises `BadInput` where that contradicts the file."""
        ...


class Publication(Protocol):
    """What a family knows of a published model.

    Attributes:
        url: where it is to be had.
        licence: of its weights.
    """

    @property
    def url(self) -> str: ...
    @property
    def licence(self) -> str: ...


def module_of(name: str) -> ModuleType:
    """A family's module: it has its `BACKBONE`, its file formats `LAYOUTS`, and `published(name)`.

    Raises `BadInput` on a name that is not known.
    """
    if name not in BACKBONES:
        raise BadInput(f"backbone {name!r}: not known, expected one of {tuple(BACKBONES)}{did_you_mean(name, BACKBONES)}")
    return importlib.import_module(BACKBONES[name])


def modules() -> list[ModuleType]:
    """Those of all families."""
    return [module_of(name) for name in BACKBONES]


def published(name: str) -> Publication | None:
    """The published model that a name, or a file or folder called like it, speaks of; None where no family knows it."""
    return next((found for module in modules() if (found := module.published(name))), None)


def find(spec: ModelSpec) -> Backbone:
    """The backbone of a model."""
    return module_of(spec.backbone).BACKBONE
