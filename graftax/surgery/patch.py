"""Tokens of another size, and latents of another shape, as an edit of what stands before and behind the blocks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from graftax.errors import BadInput
from graftax.ops.base import CHANGED, KEPT, Params
from graftax.spec import ModelSpec
from graftax.surgery.edits import Edit, integer

EMBEDDER, HEAD, TABLE = "x_embedder", ("final", "linear"), "pos_embed"
"""Where a parameter tree keeps what this edit speaks of."""


@dataclass(frozen=True)
class Patch(Edit):
    """See `patch`.

    Attributes:
        size: side of a token in pixels of the latents.
        channels: of the latents; None: as before.
    """

    size: int
    channels: int | None = None
    name = "patch"

    def on(self, spec: ModelSpec) -> ModelSpec:
        size, channels = self.size, spec.option("channels") if self.channels is None else self.channels
        after = spec.with_frame(patch=size, channels=channels)
        if channels == spec.option("channels"):
            rows, columns, _ = spec.image_shape
            if max(size, spec.option("patch")) % min(size, spec.option("patch")) or rows % size or columns % size:
                old, side = spec.option("patch"), f"{rows}x{columns}"
                raise BadInput(f"{self}: expected a divisor or a multiple of {old} that divides latents of {side}")
            grid = rows // size, columns // size
            after = after.replace(sizes=dataclasses.replace(spec.sizes, grid=grid))
        return after

    def effect(self, spec: ModelSpec) -> str:
        same = self.size == spec.option("patch") and self.channels in (None, spec.option("channels"))
        return KEPT if same or self._rearranges(spec) else CHANGED

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        embedder, head = params.get(EMBEDDER, {}), params.get(HEAD[0], {}).get(HEAD[1], {})
        if jnp.ndim(embedder.get("kernel", 0)) != 4 or "kernel" not in head:
            raise BadInput(f"{self}: a {spec.backbone} has no {EMBEDDER}/kernel (p, p, c, d) with {'/'.join(HEAD)}")
        if embedder["kernel"].shape[2] != spec.option("channels") or spec.sizes.text:
            raise BadInput(f"{self}: the model sees more than the {spec.option('channels')} channels of latents")
        kernel = self._kernel(spec, after, jnp.asarray(embedder["kernel"]))
        linear = {name: self._answer(spec, after, jnp.asarray(leaf)) for name, leaf in head.items()}
        changed: Params = {EMBEDDER: {**embedder, "kernel": kernel}, HEAD[0]: {**params[HEAD[0]], HEAD[1]: linear}}
        if TABLE in params and spec.sizes.grid != after.sizes.grid:
            changed[TABLE] = _resized(jnp.asarray(params[TABLE]), spec.sizes.grid, after.sizes.grid)
        return {**params, **changed}

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.size,), {} if self.channels is None else {"channels": self.channels}

    def _rearranges(self, spec: ModelSpec) -> bool:
        """Whether a token holds the same numbers, in more channels of fewer pixels."""
        factor, rest = divmod(spec.option("patch"), self.size)
        return not rest and factor > 1 and self.channels == spec.option("channels") * factor**2

    def _kernel(self, spec: ModelSpec, after: ModelSpec, kernel: jax.Array) -> jax.Array:
        """The embedder's kernel (p, p, c, d) for patches of side q."""
        p, _, c, d = kernel.shape
        q = self.size
        if self._rearranges(spec):
            return kernel.reshape(q, p // q, q, p // q, c, d).swapaxes(1, 2).reshape(q, q, -1, d)
        if after.option("channels") != c:
            return jnp.zeros((q, q, after.option("channels"), d), kernel.dtype)
        if q <= p:
            return kernel.reshape(q, p // q, q, p // q, c, d).sum((1, 3))
        return jnp.repeat(jnp.repeat(kernel, q // p, 0), q // p, 1) / (q // p) ** 2

    def _answer(self, spec: ModelSpec, after: ModelSpec, leaf: jax.Array) -> jax.Array:
        """Kernel (d, p p c) or bias (p p c) of the last layer for patches of side q."""
        lead, p, q, c = leaf.shape[:-1], spec.option("patch"), self.size, spec.option("channels")
        if self._rearranges(spec):
            parts = leaf.reshape(*lead, q, p // q, q, p // q, -1, c)  # the prediction, then the variance
            return jnp.moveaxis(parts, (-6, -4, -2, -5, -3, -1), range(-6, 0)).reshape(*lead, -1)
        if after.option("channels") != c:
            return jnp.zeros((*lead, q * q * after.option("channels") * leaf.shape[-1] // (p * p * c)), leaf.dtype)
        if q <= p:
            return leaf.reshape(*lead, q, p // q, q, p // q, -1).mean((-4, -2)).reshape(*lead, -1)
        square = leaf.reshape(*lead, p, p, -1)
        return jnp.repeat(jnp.repeat(square, q // p, -3), q // p, -2).reshape(*lead, -1)


def patch(size: int, channels: int | None = None) -> Patch:
    """Cut a model's latents into tokens of another size, or give it other latents: `patch(1)`, `patch(1, channels=16)`.

    Of weights alone three starts are made, by what is asked for:

    - the latents as they are: each token sees its patch resized to the old side, by copying pixels or averaging them, and
      answers in the same way (the resampling of FlexiViT, arXiv 2212.08013, Section 3.4, with which the old embedder of an
      enlarged image gives the new one's tokens); the table of positions is resized. The blocks meet more tokens, or
      fewer, than they were trained with: distil or fine-tune.
    - `channels` such that a token holds the same numbers (2x2x4 -> 1x1x16): the weights are rearranged, and the function is
      kept, of latents whose f x f squares of pixels lie in the channels, [row, column, channel].
    - other `channels` (another autoencoder's), of as many tokens: embedder and last layer are zero, for
      `graftax.distill.fit_latents` to fit by least squares on pictures that both autoencoders have encoded.

    Raises `BadInput` on sizes below 1 and, when it runs, on sizes that do not divide and on families without these layers.
    """
    for what, value in (("size", size), ("channels", 1 if channels is None else channels)):
        if integer("patch", value) < 1:
            raise BadInput(f"patch {what}: got {value}, expected 1 or more")
    return Patch(integer("patch", size), None if channels is None else integer("patch", channels))


def _resized(table: jax.Array, before: tuple[int, int], after: tuple[int, int]) -> jax.Array:
    """A table of positions (1, n, d) on another grid, bilinearly."""
    d = table.shape[-1]
    return jax.image.resize(table.reshape(*before, d), (*after, d), "bilinear").reshape(1, -1, d)
