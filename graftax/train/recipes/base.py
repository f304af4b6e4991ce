"""What losses on the inside of a network have in common: what they see, their heads, how their weight fades."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp

from graftax.blocks import State
from graftax.errors import BadInput
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.spec_checks import check_count, check_number

HEADS = "heads"
"""Where a training's tree of parameters keeps the heads of its losses, by the losses' names."""

TOKENIZER = "tokenizer"
"""Where it keeps what turns images into latents, if that is trained along (`graftax.train.recipes.end_to_end`)."""


@dataclass(frozen=True)
class Seen:
    """What a loss may look at in a training step.

    Attributes:
        tokens: position of the program -> the streams behind it, the image's tokens "img" (b, k, d) float32.
        kept: position -> which of the image's n tokens these are, (b, k); None: all.
        arrays: of the data, by name, (b, ...), and what `Loss.draw` drew.
        teacher: (position, u) -> tokens (b, n, d) of the averaged model there, on the same images with less noise: `u` (b,)
            is the share of the process that theirs is earlier. No gradient flows there.
        step: () updates done so far.
    """

    tokens: Mapping[int, State]
    kept: Callable[[int], jax.Array | None]
    arrays: Mapping[str, jax.Array]
    teacher: Callable[[int, jax.Array], jax.Array]
    step: jax.Array


class Loss(Protocol):
    """A loss on the inside of a network.

    Attributes:
        name: in records.
        block: after how many blocks of the program it looks.
        sees_run: whether it needs the averaged model, or the number of the step.
    """

    @property
    def name(self) -> str: ...
    @property
    def block(self) -> int: ...
    @property
    def sees_run(self) -> bool: ...

    def arrays(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        """Arrays of the data that it takes, with the shape of one image's."""
        ...

    def check(self, spec: ModelSpec, size: int) -> None:
        """Raise `BadInput` where it does not fit a model, or batches of `size` images."""
        ...

    def init(self, spec: ModelSpec, key: jax.Array) -> Params:
        """Its head, {} where it has none."""
        ...

    def draw(self, key: jax.Array, count: int) -> dict[str, jax.Array]:
        """Random numbers (b, ...) that it needs, by name."""
        ...

    def value(self, head: Params, seen: Seen) -> jax.Array:
        """The loss () float32."""
        ...

    def factor(self, step: jax.Array) -> jax.Array | float:
        """What it counts in the sum."""
        ...


def check_block(where: str, block: int, spec: ModelSpec) -> None:
    """Raise `BadInput` unless a model has so many blocks."""
    if block > len(spec.program):
        raise BadInput(f"{where}: block {block}, expected 1 to {len(spec.program)}, the blocks that the model runs")


def check_weight(where: str, weight: float, fade: tuple[int, int] | None) -> None:
    """Raise `BadInput` unless these are a weight and how it fades (`faded`)."""
    check_number(weight, f"{where} weight")
    if fade is not None:
        if not isinstance(fade, tuple) or len(fade) != 2:
            raise BadInput(f"{where} fade: got {fade!r}, expected (steps before, steps to a tenth)")
        check_count(fade[0], f"{where} fade, steps before", least=0)
        check_count(fade[1], f"{where} fade, steps to a tenth")


def faded(weight: float, fade: tuple[int, int] | None, step: jax.Array) -> jax.Array | float:
    """`weight`, from step fade[0] on falling to a tenth every fade[1] steps, as SRA's does."""
    if fade is None:
        return weight
    return weight * 10.0 ** (-jnp.maximum(step - fade[0], 0) / fade[1])


def init_head(key: jax.Array, widths: Sequence[int]) -> Params:
    """A network of dense layers between `widths`, SiLU between them: Xavier kernels, zero biases."""
    xavier = nn.initializers.xavier_uniform()
    return {
        f"fc{i + 1}": {
            "kernel": xavier(jax.random.fold_in(key, i), (fan_in, fan_out), jnp.float32), "bias": jnp.zeros(fan_out)
        }
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths))
    }  # fmt: skip


def run_head(head: Params, x: jax.Array) -> jax.Array:
    """Tokens (b, n, d) through the head: (b, n, c)."""
    layers: list[Any] = [head[name] for name in sorted(head)]
    for layer in layers[:-1]:
        x = nn.silu(x @ layer["kernel"] + layer["bias"])
    return x @ layers[-1]["kernel"] + layers[-1]["bias"]
