"""What a pass may leave out: tokens that go around blocks or are masked, and blocks or branches that are dropped.

A `Policy` is an argument of a pass (`graftax.models.forward`), never part of a model: with other policies, or none, the same
weights serve. Training uses it (`graftax.train.recipes`), and guidance by a weakened pass can.

Sources: TREAD (Krause et al. 2025, arXiv 2501.04765) for routes; MaskDiT (Zheng et al. 2023, arXiv 2306.09305) for masks;
Huang et al. 2016 (arXiv 1603.09382) for stochastic depth, with the factor 1 / (1 - p) of survivors as in timm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from graftax.blocks import block_kind, build
from graftax.errors import BadInput
from graftax.models.backbone import find
from graftax.spec import ModelSpec
from graftax.spec_checks import check_count, check_number

Draws = Mapping[str, jax.Array]
"""What a policy has drawn for the images of a batch, by name, each (b, ...) (`Policy.draw`)."""

MODES = ("sample", "batch")
ROUTES, DEPTH = range(2)  # streams of a policy's key


@dataclass(frozen=True)
class Route:
    """Blocks that only some of the image's tokens go through; the others come back behind them as they were before.

    Which ones is drawn for every image. Tokens of a text all go through. Raises `BadInput` on values out of range.

    Attributes:
        first: position in the program of the first of these blocks: in a plain model the block's number.
        last: position of the last of them.
        rate: share of the tokens that goes around.
    """

    first: int
    last: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            check_count(getattr(self, name), f"tread {name}", least=0)
        check_number(self.rate, "tread rate")
        if self.first > self.last:
            raise BadInput(f"{self}: expected positions 0 <= first <= last")
        if not 0 <= self.rate < 1:
            raise BadInput(f"{self}: rate {self.rate!r}, expected a share 0 <= rate < 1")

    def kept(self, tokens: int) -> int:
        """How many of `tokens` go through the blocks."""
        return tokens - int(tokens * self.rate)

    def __str__(self) -> str:
        return f"tread({self.first}, {self.last}, {self.rate})"


@dataclass(frozen=True)
class Mask:
    """Tokens of the image that no block sees: a decoder behind the blocks puts one learned token in their places (MaskDiT).

    Which ones is drawn for every image. Raises `BadInput` on values out of range.

    Attributes:
        ratio: share of the tokens that is masked.
        weight: in training, of the error of what is put there (`graftax.train.recipes.masked`).
    """

    ratio: float = 0.5
    weight: float = 0.1

    def __post_init__(self) -> None:
        for name in ("ratio", "weight"):
            check_number(getattr(self, name), f"mask {name}")
        if not 0 <= self.ratio < 1 or self.weight < 0:
            raise BadInput(f"{self}: expected a share 0 <= ratio < 1 and a weight of 0 or more")

    def kept(self, tokens: int) -> int:
        """How many of `tokens` blocks see. Rounded down, as what goes around a `Route` is: each as its authors do."""
        return int(tokens * (1 - self.ratio))

    def __str__(self) -> str:
        return f"mask({self.ratio}, weight={self.weight})"


@dataclass(frozen=True)
class Depth:
    """Stochastic depth: at position l of L, what is drawn with probability rate l / (L - 1) is dropped.

    Raises `BadInput` on values out of range.

    Attributes:
        rate: the probability at the last position; at the first it is 0.
        mode: "sample" drops branches, the answers of mixers of tokens (not of a text that is looked at) and of channels,
            each for every image by itself; it saves nothing. "batch" drops whole blocks for all images at once, and their
            computation with them.
        rescale: whether branches that stay are divided by the probability that they do.
    """

    rate: float
    mode: str = "sample"
    rescale: bool = True

    def __post_init__(self) -> None:
        check_number(self.rate, "stochastic_depth rate")
        if not 0 <= self.rate < 1:
            raise BadInput(f"{self}: rate {self.rate!r}, expected a probability 0 <= rate < 1")
        if self.mode not in MODES:
            raise BadInput(f"{self}: mode {self.mode!r}, expected one of {MODES}")

    def rates(self, steps: int) -> jax.Array:
        """The probability at each of `steps` positions."""
        return jnp.linspace(0.0, self.rate, steps)

    def __str__(self) -> str:
        return f"stochastic_depth({self.rate}, mode={self.mode}, rescale={str(self.rescale).lower()})"


@dataclass(frozen=True)
class Policy:
    """What a pass leaves out. Raises `BadInput` where routes overlap, or tokens are masked beside.

    Attributes:
        routes: in the order of the program, none in another.
        depth: which blocks and branches are dropped; None: none.
        mask: which tokens no block sees, of models that can fill them in; None: none.
    """

    routes: tuple[Route, ...] = ()
    depth: Depth | None = None
    mask: Mask | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "routes", tuple(sorted(self.routes, key=lambda route: route.first)))
        for before, after in zip(self.routes, self.routes[1:], strict=False):
            if after.first <= before.last:
                raise BadInput(f"routes {before} and {after} overlap, expected each to begin behind the one before")
        if self.mask and self.routes:
            raise BadInput(f"{self.routes[0]} beside {self.mask}: expected routes or a mask")

    def __bool__(self) -> bool:
        """Whether it leaves anything out."""
        masked = bool(self.mask and self.mask.ratio)
        return masked or any(route.rate for route in self.routes) or bool(self.depth and self.depth.rate)

    @property
    def cuts(self) -> tuple[int, ...]:
        """Positions of the program before which a scan must end (`graftax.models.plans.segments`)."""
        return tuple(cut for route in self.routes for cut in (route.first, route.last + 1))

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where it does not fit a model: a route that ends with the last block or beyond, or over an
        operator that needs the image's whole grid; a mask that nothing fills in, or that leaves no token."""
        if self.mask:
            if not find(spec).fills_in:
                raise BadInput(f"{self.mask}: {spec.backbone} has no decoder that fills tokens in, expected a MaskDiT")
            if not self.mask.kept(spec.tokens):
                raise BadInput(f"{self.mask}: leaves none of {spec.tokens} tokens, expected a smaller ratio")
            for i in range(len(spec.blocks) if self.mask.ratio else 0):
                _check_block(spec, self.mask, i)
        for route in self.routes:
            if route.last >= len(spec.program) - 1:
                raise BadInput(
                    f"{route}: the program ends at position {len(spec.program) - 1}, expected a block behind the route, "
                    "or tokens that went around would come out as they went in"
                )
            for i in (i for step in spec.program[route.first : route.last + 1] for i in step.blocks):
                _check_block(spec, route, i)

    def at(self, position: int) -> Route | Mask | None:
        """The mask, or the route over a position; None where all tokens pass there."""
        return self.mask or next((route for route in self.routes if route.first <= position <= route.last), None)

    def ends(self, position: int) -> bool:
        """Whether tokens come back behind a position that went around it."""
        return any(route.last == position for route in self.routes)

    @property
    def _ways(self) -> tuple[Route | Mask, ...]:
        """What keeps tokens from blocks, each with its row of the draw."""
        return (self.mask,) if self.mask else self.routes

    def draw(self, spec: ModelSpec, key: jax.Array, count: int) -> Draws:
        """What it leaves out for `count` images of the size that `spec` is for.

        "routes" (b, routes, n) uniform: of every route, or the mask, the tokens with the smallest numbers are kept.
        "depth" bool, what is kept: (b, steps, branches) by sample, (b, steps) by batch, there all images alike.
        """
        found: dict[str, jax.Array] = {}
        if self._ways:
            shape = (count, len(self._ways), spec.tokens)
            found["routes"] = jax.random.uniform(jax.random.fold_in(key, ROUTES), shape)
        if self.depth:
            steps, key = len(spec.program), jax.random.fold_in(key, DEPTH)
            if self.depth.mode == "batch":
                kept = jax.random.uniform(key, (steps,)) >= self.depth.rates(steps)
                found["depth"] = jnp.broadcast_to(kept, (count, steps))
            else:
                most = max(len(block_kind(block.kind).branches) for block in spec.blocks)
                kept = jax.random.uniform(key, (count, steps, most)) >= self.depth.rates(steps)[:, None]
                found["depth"] = kept
        return found

    def kept(self, spec: ModelSpec, draws: Draws, position: int) -> jax.Array | None:
        """Which tokens (b, kept) int are at a position of the program, in their order; None: all."""
        route = self.at(position)
        if route is None or route.kept(spec.tokens) == spec.tokens:
            return None
        numbers = draws["routes"][:, self._ways.index(route)]  # (b, n)
        return jnp.sort(jnp.argsort(numbers, axis=1)[:, : route.kept(spec.tokens)], axis=1)

    def scales(self, draws: Draws, steps: int) -> jax.Array | None:
        """Factors of branches, 0 where they are dropped: (steps, branches, b) by sample, (steps,) by batch; None: all 1."""
        if not self.depth or not self.depth.rate:
            return None
        kept = draws["depth"][0] if self.depth.mode == "batch" else draws["depth"].transpose(1, 2, 0)
        chance = 1 - self.depth.rates(steps) if self.depth.rescale else jnp.ones(steps)
        return kept / chance.reshape(-1, *[1] * (kept.ndim - 1))

    def share(self, position: int, steps: int) -> float:
        """Share of passes that compute the block at a position of a program of `steps`."""
        skips = self.depth is not None and self.depth.mode == "batch"
        return 1 - self.depth.rate * position / max(steps - 1, 1) if skips and self.depth else 1.0

    def __str__(self) -> str:
        return " + ".join(map(str, (*self._ways, *((self.depth,) if self.depth else ()))))


PLAIN = Policy()
"""Leaves nothing out."""


def _check_block(spec: ModelSpec, route: Route | Mask, index: int) -> None:
    block = spec.blocks[index]
    for slot, op in block.ops:
        if build(spec, block.kind, slot, op).needs_grid:
            raise BadInput(
                f"{route}: blocks[{index}].{slot} is {op}, which works on the image's whole grid, expected an operator that "
                "takes any of its tokens"
            )


def drawn(spec: ModelSpec, policy: Policy, key: jax.Array | Draws | None, count: int) -> Draws:
    """What `policy` leaves out for `count` images: `key` itself where it is drawn already. Raises `BadInput` where there is
    neither a key nor a draw, or the policy does not fit the model."""
    policy.check(spec)
    if not policy or isinstance(key, Mapping):
        return dict(key) if isinstance(key, Mapping) else {}
    if key is None:
        raise BadInput(f"policy {policy}: no key, expected one to draw from")
    return policy.draw(spec, key, count)
