"""How local attention is: the share of its mass that lies within a band around the diagonal, for every width of band."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.analyze.inputs import Input, TimeBins, noise_fraction
from graftax.blocks import Taps, block_kind, build
from graftax.errors import BadInput
from graftax.models import Cond, Model
from graftax.models.collect import one_block
from graftax.models.forward import embed, prepare_params
from graftax.models.lora import materialise
from graftax.models.sizes import at_size
from graftax.models.stack import run_stack, runs, tap_runs
from graftax.ops.attention import MHA
from graftax.ops.base import Params
from graftax.progress import Progress
from graftax.spec import ModelSpec
from graftax.surgery.select import Site

ELEMENTS = 2**24
"""Attention weights that are in memory at once, at least one head's n x n."""


@dataclass(frozen=True, eq=False)
class Locality:
    """Where the attention of some blocks goes, by distance |i - j| in raster order.

    Attributes:
        blocks: (l,) names of the rows.
        profile: (l, n) float64, share of the mass at every distance; rows sum to 1.
        by_time: (bins, l, n) the same per bin of time, bin 0 the cleanest, NaN where no input was.
    """

    blocks: tuple[int, ...]
    profile: np.ndarray
    by_time: np.ndarray

    @property
    def tokens(self) -> int:
        """n, the number of distances."""
        return self.profile.shape[-1]

    def mass(self, k: int) -> np.ndarray:
        """L_k (l,): the share of the mass with |i - j| <= k (arXiv 2506.05340, Section on locality)."""
        return self.profile[:, : self._checked(k) + 1].sum(-1)

    def mass_by_time(self, k: int) -> np.ndarray:
        """L_k (bins, l) of every bin of time."""
        return self.by_time[:, :, : self._checked(k) + 1].sum(-1)

    def sweep(self) -> np.ndarray:
        """L_k (l, n) for all k = 0 .. n - 1."""
        return np.minimum(self.profile.cumsum(-1), 1.0)

    def _checked(self, k: int) -> int:
        if not 0 <= k < self.tokens:
            raise BadInput(f"locality k: got {k}, expected 0..{self.tokens - 1}")
        return k


def attention_locality(
    model: Model, inputs: Iterable[Input], *, bins: int = 10, dtype: DTypeLike | None = None, total: int = 0
) -> Locality:
    """Band-k mass of all attention among a model's image tokens, averaged over heads, times and samples.

    L_k = 1 / n sum_ij A_ij [|i - j| <= k] (grafting paper, arXiv 2506.05340, analysis of locality; 250 samples there, 50
    DDIM steps, guidance 1.5). `inputs`: batches (x_t, t, conditions), such as `graftax.analyze.trajectory` gives. One pass
    of the model captures what enters the attention; queries and keys are computed again, and the n x n weights of a few
    heads at a time are reduced to n numbers at once. Blocks whose mixer is not `mha` are left out; a block that runs several
    times counts with the mean of its runs. `total`: number of batches, to show progress (0: none shown). Raises `BadInput`
    where the model has no attention or there is no input.
    """
    spec = model.spec
    sites = _attention(spec)
    if not sites:
        held = sorted({op.kind for block in spec.blocks for op in (block[slot] for slot in _mixers(block.kind))})
        raise BadInput(f"locality: no block has a mixer 'mha', it has {held}")
    own = materialise(spec, model.params)
    prepared, capture = prepare_params(spec, model.params), jax.jit(partial(_mixer_inputs, spec, sites, dtype))
    rows = {site: np.flatnonzero(np.array(tap_runs(spec, f"{site.slot}/in")) == site.block) for site in sites}
    operators = {site: _operator(spec, site, dtype) for site in sites}
    weights = {site: one_block(spec, own["blocks"], site.block)[site.slot] for site in sites}
    found = TimeBins(bins, (len(sites), spec.tokens))
    seen = 0
    with Progress(total, "locality", unit="batch", show=total > 0) as progress:
        for x, t, cond in inputs:
            if at_size(spec, x) != spec:
                raise BadInput(f"locality: x {x.shape}, expected the model's own size {spec.image_shape}")
            taps = capture(prepared, x, t, cond)  # (runs, b, n, d) each
            parts = [
                np.mean([_profile(operators[site], weights[site], taps[f"{site.slot}/in"][r]) for r in rows[site]], 0)
                for site in sites
            ]
            found.add(noise_fraction(spec, t), np.stack(parts, 1))  # (b, l, n)
            seen += 1
            progress.advance()
    if not seen:
        raise BadInput("locality: no inputs, expected at least one batch")
    return Locality(tuple(site.block for site in sites), found.mean, found.by_time)


def top_local(found: Locality, k: int, share: float = 0.5) -> tuple[int, ...]:
    """The `share` of the blocks with the highest L_k, in ascending order, for `graftax.replace(list(...), "hyena_x")`.

    The grafting paper's "top-local" choice (arXiv 2506.05340, Figure 4b); the share of all blocks found, rounded, halves
    up. Raises `BadInput` where that is no block or more than there are.
    """
    return _ranked(found, -found.mass(k), share)


def low_local(found: Locality, k: int, share: float = 0.5) -> tuple[int, ...]:
    """The `share` of the blocks with the lowest L_k, in ascending order: the paper's "low-local" (see `top_local`)."""
    return _ranked(found, found.mass(k), share)


def default_k(tokens: int) -> int:
    """The paper's k = 32 of 256 tokens, in proportion."""
    return max(1, tokens // 8)


def uniform_mass(tokens: int, k: int) -> float:
    """L_k of attention that looks everywhere alike: the share of pairs in the band (256 tokens, k = 32: 0.2378)."""
    return ((2 * k + 1) * tokens - k * (k + 1)) / tokens**2


def _ranked(found: Locality, keys: np.ndarray, share: float) -> tuple[int, ...]:
    count = int(len(found.blocks) * share + 0.5)
    if not 1 <= count <= len(found.blocks):
        raise BadInput(f"share: got {share:g} of {len(found.blocks)} blocks, expected 1 to all of them")
    return tuple(sorted(found.blocks[i] for i in np.argsort(keys, kind="stable")[:count]))


def _mixers(kind: str) -> list[str]:
    """Slots of a block kind for mixers of image tokens alone, whose order is that of the raster."""
    return [slot.name for slot in block_kind(kind).slots if slot.role == "mixer" and slot.streams == ("img",)]


def _attention(spec: ModelSpec) -> tuple[Site, ...]:
    """The attention of every block that runs and has any, its first where there are several."""
    held = {i: [slot for slot in _mixers(spec.blocks[i].kind) if spec.blocks[i][slot].kind == MHA.kind] for i in runs(spec)}
    return tuple(Site(i, slots[0]) for i, slots in sorted(held.items()) if slots)


def _mixer_inputs(
    spec: ModelSpec, sites: tuple[Site, ...], dtype: DTypeLike | None, prepared: Params, x: jax.Array, t: jax.Array,
    cond: Cond,
) -> Taps:  # fmt: skip
    taps = tuple(dict.fromkeys(f"{site.slot}/in" for site in sites))
    state, context = embed(spec, prepared, x, t, cond, dtype)
    return run_stack(spec, prepared["blocks"], state, context, capture=taps, dtype=dtype)[1]


def _operator(spec: ModelSpec, site: Site, dtype: DTypeLike | None) -> MHA:
    operator = build(spec, spec.blocks[site.block].kind, site.slot, site.held(spec), dtype)
    assert isinstance(operator, MHA), "by its kind"
    return operator


@partial(jax.jit, static_argnums=0)
def _profile(operator: MHA, params: Params, u: jax.Array) -> jax.Array:
    """Mean over heads and queries of the attention at every distance: u (b, n, d) -> (b, n) float32.

    Compiled once for all blocks with equal operators.
    """
    q, k, _ = operator.bind({"params": params}).heads_of(u)  # (b, n, h, head dim) each
    b, n, h, _ = q.shape

    def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        q, k = pair
        logits = jnp.matmul(q * q.shape[-1] ** -0.5, k.T, preferred_element_type=jnp.float32)
        return by_distance(jax.nn.softmax(logits, axis=-1)) / n

    heads = tuple(part.swapaxes(1, 2).reshape(b * h, n, -1) for part in (q, k))
    profiles = jax.lax.map(one, heads, batch_size=max(1, min(b * h, ELEMENTS // n**2)))
    return profiles.reshape(b, h, n).mean(1)


def by_distance(a: jax.Array) -> jax.Array:
    """Sums of a matrix (n, n) over all entries with |i - j| = 0 .. n - 1: (n,).

    Rows padded to 2 n and read again as rows of 2 n + 1 put every diagonal into a column; no index is looked up.
    """
    n = a.shape[0]
    flat = jnp.pad(a, ((0, 0), (0, n))).reshape(-1)  # (i, j) is at 2 n i + j = (2 n + 1) i + (j - i)
    columns = jnp.pad(flat, (0, n)).reshape(n, 2 * n + 1).sum(0)  # column (j - i) mod (2 n + 1)
    return columns[:n].at[1:].add(columns[: n + 1 : -1])
