"""Some tokens of an image go through blocks, the others around them: how a state is parted and put together again.

`pick` and `fill` are each other's transposes and say so, so that both directions of both passes gather: a scatter is what
accelerators are slowest at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from graftax.blocks import Context, State
from graftax.blocks.base import STREAM
from graftax.ops.placement import place
from graftax.spec import ModelSpec

Places = tuple[jax.Array, jax.Array, jax.Array]
"""Of tokens that are kept: `order` (b, k), their places in the image, growing; `rank` (b, n), how many of them stand before
a place; `here` (b, n) bool, whether one stands there."""


@dataclass(frozen=True)
class Detour:
    """What is needed on a route and behind it.

    Attributes:
        spec: of the model on the kept tokens.
        context: what blocks read, of the kept tokens.
        places: where these belong.
        before: streams of all image tokens (b, n, d) as they were before the route.
    """

    spec: ModelSpec
    context: Context
    places: Places
    before: State


def on_tokens(spec: ModelSpec, count: int) -> ModelSpec:
    """A model on `count` tokens of an image, in a row."""
    return spec.replace(sizes=replace(spec.sizes, grid=(1, count)))


def enter(spec: ModelSpec, order: jax.Array, state: State, context: Context) -> tuple[Detour, State]:
    """The state with the image tokens `order` (b, k) alone, in every stream of the image; that of a text is whole."""
    tokens = state["img"].shape[1]
    places = places_of(order, tokens)
    there = replace(
        context,
        vec=_of_tokens(context.vec, places),
        shared={kind: _of_tokens(value, places) for kind, value in context.shared.items()},
        rope=None if context.rope is None else tuple(_rows(table, order, tokens) for table in context.rope),
    )
    before = {name: x for name, x in state.items() if name != "txt"}
    kept = {name: place(pick(x, places), *STREAM) for name, x in before.items()}
    return Detour(on_tokens(spec, order.shape[1]), there, places, before), {**state, **kept}


def places_of(order: jax.Array, tokens: int) -> Places:
    """Where the kept ones `order` (b, k) of so many tokens belong."""
    at = jnp.arange(tokens)
    rank = (order[:, :, None] < at).sum(1)  # (b, k, n) -> (b, n)
    return order, jnp.minimum(rank, order.shape[1] - 1), (order[:, :, None] == at).any(1)


def leave(detour: Detour, state: State) -> State:
    """The state behind the route: the tokens that went around it as they were before."""
    here = detour.places[2][..., None]
    whole = {name: fill(state[name], detour.places) + jnp.where(here, 0, x) for name, x in detour.before.items()}
    return {**state, **{name: place(x, *STREAM) for name, x in whole.items()}}


def patches(x: jax.Array, side: int) -> jax.Array:
    """What the tokens of images (b, h, w, c) stand for: (b, n, p p c), numbers in the order [row, column, channel]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, side * side * c)


@jax.custom_vjp
def pick(x: jax.Array, places: Places) -> jax.Array:
    """The kept ones of x (b, n, ...): (b, k, ...)."""
    return _take(x, places[0])


@jax.custom_vjp
def fill(x: jax.Array, places: Places) -> jax.Array:
    """Kept ones x (b, k, ...) in their places, zeros in the others: (b, n, ...)."""
    _, rank, here = places
    return jnp.where(_wide(here, x), _take(x, rank), 0)


pick.defvjp(lambda x, places: (pick(x, places), places), lambda places, g: (fill(g, places), None))
fill.defvjp(lambda x, places: (fill(x, places), places), lambda places, g: (pick(g, places), None))


def _take(x: jax.Array, where: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, _wide(where, x), axis=1, mode="clip")


def _wide(where: jax.Array, like: jax.Array) -> jax.Array:
    """(b, k) -> (b, k, 1, ...) of as many axes as `like`."""
    return where.reshape(*where.shape, *[1] * (like.ndim - 2))


def _of_tokens(value: jax.Array, places: Places) -> jax.Array:
    """What every token has for itself (b, n, d), of the kept ones; what an image has as a whole (b, d) as it is."""
    return value if value.ndim == 2 else pick(value, places)


def _rows(table: jax.Array, order: jax.Array, tokens: int) -> jax.Array:
    """Rows (t, c) or (b, t, c) of all tokens, text before image, of those on the route: (b, m + k, c)."""
    table = jnp.broadcast_to(table, (order.shape[0], *table.shape[-2:]))
    text = table.shape[1] - tokens
    return jnp.concatenate([table[:, :text], _take(table[:, text:], order)], axis=1)
