"""DiT (Peebles and Xie, arXiv 2212.09748): published variants, forward pass, initialisation, Flax facade."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from graftax import ops
from graftax.errors import BadInput
from graftax.models.block import STREAM, Block, Taps
from graftax.models.embed import FinalLayer, LabelEmbed, PatchEmbed, TimestepEmbed, call, sinusoidal_positions
from graftax.models.lora import LORA, init_adapters, materialise
from graftax.models.merge import Merges
from graftax.models.stack import Params, prepare, run_stack
from graftax.ops.placement import place
from graftax.spec import BlockSpec, ModelSpec, OpSpec, block_key, op

SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
"""Published sizes: depth, width, heads (DiT, Table 1)."""

PATCHES = (2, 4, 8)
RESOLUTIONS = (256, 512)


def dit_spec(
    *, input_size: int, patch_size: int, hidden_size: int, depth: int, num_heads: int, in_channels: int = 4,
    num_classes: int = 1000, learn_sigma: bool = True, mixer: OpSpec | None = None, mlp: OpSpec | None = None,
) -> ModelSpec:  # fmt: skip
    """Spec of a DiT with equal blocks: attention and a ratio-4 MLP unless given otherwise."""
    n = (input_size // patch_size) ** 2
    block = BlockSpec(
        ops.resolve(mixer or op("mha"), "mixer", hidden_size, n, num_heads),
        ops.resolve(mlp or op("mlp"), "mlp", hidden_size, n, num_heads),
    )
    return ModelSpec(
        input_size, patch_size, in_channels, hidden_size, num_heads, num_classes, (block,) * depth, learn_sigma=learn_sigma
    )


def variant(name: str, resolution: int = 256, num_classes: int = 1000) -> ModelSpec:
    """Spec of a published model by name, "DiT-XL/2" at 256 or 512 pixels (latents of resolution / 8).

    Raises `BadInput` on an unknown name or resolution.
    """
    size, _, patch = name.removeprefix("DiT-").partition("/")
    if size not in SIZES or patch not in map(str, PATCHES) or not name.startswith("DiT-"):
        raise BadInput(f"variant: got {name!r}, expected DiT-{{S,B,L,XL}}/{{2,4,8}}")
    if resolution not in RESOLUTIONS:
        raise BadInput(f"resolution: got {resolution}, expected one of {RESOLUTIONS}")
    depth, width, heads = SIZES[size]
    return dit_spec(
        input_size=resolution // 8, patch_size=int(patch), hidden_size=width, depth=depth, num_heads=heads,
        num_classes=num_classes,
    )  # fmt: skip


def forward(
    spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, y: jax.Array, *, plan: str = "auto",
    capture: Sequence[str] = (), dtype: DTypeLike | None = None, remat: str = "none",
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """One pass of the network.

    x (b, h, w, c) float, t (b,) int or float in [0, 1000), y (b,) int with `num_classes` the null class -> output
    (b, h, w, out_channels) float32, predicted noise first, then the variance channels; and taps[name] (l, b, n, d) for the
    names in `capture`. `dtype` is the matmul type (None: float32).
    """
    prepared = prepare_params(spec, params, plan)
    return forward_prepared(spec, prepared, x, t, y, plan=plan, capture=capture, dtype=dtype, remat=remat)


def prepare_params(spec: ModelSpec, params: Params, plan: str = "auto") -> Params:
    """`params` with adapters folded in and blocks arranged for `plan`; do this once where the weights serve many passes."""
    params = materialise(spec, params)
    return {**params, "blocks": prepare(spec, params["blocks"], plan, params.get("merges"))}


def forward_prepared(
    spec: ModelSpec, prepared: Params, x: jax.Array, t: jax.Array, y: jax.Array, *, plan: str = "auto",
    capture: Sequence[str] = (), dtype: DTypeLike | None = None, remat: str = "none",
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """`forward` on the result of `prepare_params` with the same plan."""
    x, c = embed(spec, prepared, x, t, y, dtype)
    x, taps = run_stack(spec, prepared["blocks"], x, c, plan=plan, capture=capture, dtype=dtype, remat=remat)
    out = call(FinalLayer(spec.patch_size, spec.out_channels, dtype), prepared["final"], x, c)
    return place(out, "batch", None, None, None), taps


def embed(
    spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, y: jax.Array, dtype: DTypeLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """What the blocks run on: tokens (b, n, d) of the images x (b, h, w, c) and the conditioning (b, d) of t and y."""
    d = spec.hidden_size
    x = call(PatchEmbed(d, spec.patch_size, dtype), params["x_embedder"], x.astype(jnp.float32))
    x = x.astype(jnp.float32) + params["pos_embed"]  # (b, n, d)
    c = call(TimestepEmbed(d, spec.compat), params["t_embedder"], t)  # (b, d)
    c = c + call(LabelEmbed(spec.num_classes, d), params["y_embedder"], y)
    # Going back, the gradient of c is split over the batch and meets weights split over the width. XLA makes it whole in
    # between, with a warning if it is not told to; it is small.
    c = place(c, None, None)
    return place(x, *STREAM), place(c, "batch", "width")


class DiT(nn.Module):
    """`init`, `apply` and `tabulate` on graftax's parameter tree, for those who keep their own Flax loop.

    `DiT(spec).init(key, x, t, y)["params"]` is the tree that `forward` takes; `apply` goes through `forward`, so plans and
    taps are the same. `init_style` "dit" is DiT's own initialisation.
    """

    spec: ModelSpec
    plan: str = "auto"
    dtype: DTypeLike | None = None
    init_style: str = "dit"

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        if not self.is_initializing():
            return forward(self.spec, dict(self.variables["params"]), x, t, y, plan=self.plan, dtype=self.dtype)[0]
        spec, d = self.spec, self.spec.hidden_size
        grid = spec.input_size // spec.patch_size
        tokens = PatchEmbed(d, spec.patch_size, name="x_embedder")(x)
        tokens = tokens + self.param("pos_embed", lambda _: jnp.asarray(sinusoidal_positions(d, grid)))
        c = TimestepEmbed(d, name="t_embedder")(t) + LabelEmbed(spec.num_classes, d, name="y_embedder")(y)
        _Blocks(spec, self.init_style, name="blocks")(tokens, c)
        if spec.merges:
            Merges(spec, name="merges")(tokens)
        out = FinalLayer(spec.patch_size, spec.out_channels, name="final")(tokens, c)
        if spec.adapters:  # last: they are made to the shapes of the kernels
            self.param(LORA, init_adapters, spec.adapters, self.variables["params"])
        return out


class _Blocks(nn.Module):
    spec: ModelSpec
    init_style: str

    @nn.compact
    def __call__(self, x: jax.Array, c: jax.Array) -> None:
        for i, block in enumerate(self.spec.blocks):
            Block(block, self.spec, init_style=self.init_style, name=block_key(i))(x, c)


def init(spec: ModelSpec, key: jax.Array) -> Params:
    """Fresh parameters in DiT's initialisation: Xavier linears, adaLN and output at zero, embeddings N(0, 0.02)."""
    x = jnp.zeros((1, spec.input_size, spec.input_size, spec.in_channels))
    return dict(DiT(spec).init(key, x, jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"])


def param_shapes(spec: ModelSpec) -> Params:
    """Shapes and dtypes of `spec`'s parameters (`jax.ShapeDtypeStruct` leaves), without allocating any."""
    return jax.eval_shape(lambda key: init(spec, key), jax.random.key(0))
