"""Tokens inside of a network held to those of another: REPA's frozen encoder, SRA's averaged model.

Sources: REPA (Yu et al. 2024, arXiv 2410.06940); SRA (Jiang et al. 2025, arXiv 2505.02831).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from graftax.errors import BadInput, did_you_mean
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.spec_checks import check_count, check_number, check_text
from graftax.train.recipes.base import Seen, check_block, check_weight, faded, init_head, run_head

BETA = 0.05
"""Where `smooth_l1` turns from a square into a line."""


def cosine(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """- cos of tokens (b, n, c) over their channels, mean over all: () float32."""
    return -jnp.mean(jnp.sum(normalised(found) * normalised(wanted), axis=-1))


def normalised(x: jax.Array) -> jax.Array:
    """x (..., c) at length 1, float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x**2, axis=-1, keepdims=True), 1e-24))


def smooth_l1(found: jax.Array, wanted: jax.Array) -> jax.Array:
    """Mean of d^2 / (2 BETA) where |d| < BETA, else of |d| - BETA / 2."""
    d = jnp.abs(found - wanted)
    return jnp.mean(jnp.where(d < BETA, d**2 / (2 * BETA), d - BETA / 2))


METRICS = {
    "cosine": cosine,
    "smooth_l1": smooth_l1,
    "l1": lambda found, wanted: jnp.mean(jnp.abs(found - wanted)),
    "l2": lambda found, wanted: jnp.mean((found - wanted) ** 2),
}
"""How far tokens (b, n, c) are from those that are wanted, a number for all of them."""


@dataclass(frozen=True)
class Features:
    """Targets that come with the data, as of a frozen encoder. Raises `BadInput` on values that are none.

    Attributes:
        array: their name in a batch: (b, n, width), a row for every token of the image.
        width: channels of one.
        token: whether the first row is that of the class token that the model has before the image's (REG).
    """

    array: str = "features"
    width: int = 768
    token: bool = False

    def __post_init__(self) -> None:
        check_text(self.array, "features array")
        check_count(self.width, "features width")


@dataclass(frozen=True)
class Teacher:
    """Targets from the averaged model itself, deeper in and at less noise. Raises `BadInput` on values that are none.

    Attributes:
        block: after how many blocks.
        back: its noise is earlier by up to this share of the process, drawn evenly for every image.
    """

    block: int
    back: float = 0.2

    def __post_init__(self) -> None:
        check_count(self.block, "sra teacher block")
        check_number(self.back, "sra back")
        if not 0 <= self.back <= 1:
            raise BadInput(f"sra back: got {self.back}, expected a share 0..1 of the process")


@dataclass(frozen=True)
class AlignmentTap:
    """metric(head(tokens), target): the one loss behind REPA and its kin. Raises `BadInput` on values that are none.

    The head is a few dense layers with SiLU between them. On a route it sees the tokens that are there, and their targets.

    Attributes:
        block: tokens are those after so many blocks (REPA's "encoder depth" 8 is block 7's output).
        source: of the targets.
        hidden: widths inside of the head.
        metric: one of `METRICS`.
        weight: in the sum of losses.
        fade: how it falls off (`graftax.train.recipes.base.faded`); None: it does not.
    """

    block: int
    source: Features | Teacher
    hidden: tuple[int, ...]
    metric: str = "cosine"
    weight: float = 0.5
    fade: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_count(self.block, f"{self.name} block")
        for width in self.hidden:
            check_count(width, f"{self.name} hidden")
        check_weight(self.name, self.weight, self.fade)
        if self.metric not in METRICS:
            near = did_you_mean(str(self.metric), METRICS)
            raise BadInput(f"{self.name} metric: got {self.metric!r}, expected one of {tuple(METRICS)}{near}")

    @property
    def name(self) -> str:
        """ "repa" or "sra"."""
        return "repa" if isinstance(self.source, Features) else "sra"

    @property
    def sees_run(self) -> bool:
        """Whether it needs the averaged model, or the number of the step."""
        return isinstance(self.source, Teacher) or self.fade is not None

    def arrays(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        """The targets, where they come with the data."""
        source = self.source
        return {source.array: (spec.tokens + source.token, source.width)} if isinstance(source, Features) else {}

    def check(self, spec: ModelSpec, size: int) -> None:
        """Raise `BadInput` where the model has not as many blocks, or no class token."""
        if self._token and not spec.option("token", 0):
            raise BadInput(f"{self}: the model has no class token, expected token=false")
        for block in (self.block, *([self.source.block] if isinstance(self.source, Teacher) else [])):
            check_block(str(self), block, spec)

    def widths(self, spec: ModelSpec) -> tuple[int, ...]:
        """Of the head, from a token to its target. SRA's, of no width of its own, is twice the model's inside."""
        out = self.source.width if isinstance(self.source, Features) else spec.width
        return spec.width, *(self.hidden or (2 * spec.width,)), out

    def init(self, spec: ModelSpec, key: jax.Array) -> Params:
        """The head."""
        return init_head(key, self.widths(spec))

    def draw(self, key: jax.Array, count: int) -> dict[str, jax.Array]:
        """How much less noise the teacher gets."""
        return {"earlier": jax.random.uniform(key, (count,))} if isinstance(self.source, Teacher) else {}

    def value(self, head: Params, seen: Seen) -> jax.Array:
        """The loss (). Raises `BadInput` where targets do not fit the tokens."""
        at, wanted = self.block - 1, self._wanted(seen)
        state, first = seen.tokens[at], wanted[:, : self._token]
        if (kept := seen.kept(at)) is not None:
            wanted = jnp.concatenate([first, jnp.take_along_axis(wanted, self._token + kept[..., None], axis=1)], axis=1)
        tokens = jnp.concatenate([state["txt"], state["img"]], axis=1) if self._token else state["img"]
        return METRICS[self.metric](run_head(head, tokens).astype(jnp.float32), wanted)

    @property
    def _token(self) -> int:
        """Class tokens that are aligned."""
        return int(isinstance(self.source, Features) and self.source.token)

    def _wanted(self, seen: Seen) -> jax.Array:
        if isinstance(self.source, Teacher):
            return seen.teacher(self.source.block - 1, self.source.back * seen.arrays["earlier"])
        return jax.lax.stop_gradient(seen.arrays[self.source.array].astype(jnp.float32))

    def factor(self, step: jax.Array) -> jax.Array | float:
        """Its weight at a step."""
        return faded(self.weight, self.fade, step)

    def __str__(self) -> str:
        source, inside = self.source, ", ".join(map(str, self.hidden))
        first = f"{source.array}, width={source.width}" if isinstance(source, Features) else f"{source.block}"
        more = (", token=true" if source.token else "") if isinstance(source, Features) else f", back={source.back}"
        fade = "" if self.fade is None else f", fade={self.fade}"
        head = f"hidden=[{inside}], metric={self.metric}, weight={self.weight}"
        return f"{self.name}({self.block}, {first}{more}, {head}{fade})"


def repa(
    block: int = 8, features: str = "features", width: int = 768, hidden: int | list[int] = 2048, metric: str = "cosine",
    weight: float = 0.5, fade: tuple[int, int] | None = None, token: bool = False,
) -> AlignmentTap:  # fmt: skip
    """REPA: tokens after `block` blocks, through three dense layers, look like an encoder's of the clean image.

    `features` names the array of the data that holds these, (b, n, `width`); with `token`, as in REG, the class token's row
    first. One `hidden` width stands for both layers.
    """
    inside = (hidden, hidden) if isinstance(hidden, int) else tuple(hidden)
    return AlignmentTap(block, Features(features, width, token), inside, metric, weight, fade)


def sra(
    block: int = 8, teacher: int = 20, back: float = 0.2, hidden: list[int] | None = None, metric: str = "smooth_l1",
    weight: float = 0.2, fade: tuple[int, int] | None = None,
) -> AlignmentTap:  # fmt: skip
    """SRA: tokens after `block` blocks, through two dense layers, look like those after `teacher` blocks of the averaged
    model, which sees the same images with less noise. (The authors' `cos` runs over tokens, not channels, by mistake.)"""
    return AlignmentTap(block, Teacher(teacher, back), tuple(hidden or ()), metric, weight, fade)
