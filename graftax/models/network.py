"""Parameters of a model: their initialisation, their shapes, and the model as one Linen module."""

from __future__ import annotations

import functools
import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from graftax.blocks import Slot, block_kind
from graftax.models.backbone import find
from graftax.models.forward import forward
from graftax.models.lora import LORA, adapter_shapes, init_adapters
from graftax.models.merge import MERGES, Merges, mean_merge
from graftax.models.shared import SHARED, Shared, shared_parts, shared_shapes
from graftax.ops.base import Params, shapes_of
from graftax.spec import BlockSpec, ModelSpec, OpSpec, Sizes


class Network(nn.Module):
    """`init`, `apply` and `tabulate` on graftax's parameter tree, for those who keep their own Flax loop.

    `Network(spec).init(key)["params"]` is the tree that `forward` takes; `apply(variables, x, t, y=...)` goes through
    `forward`, so plans and taps are the same.

    Attributes:
        spec: what the model is.
        plan: as in `graftax.models.forward`.
        dtype: matmul type.
        init_style: "dit" is DiT's own initialisation, "torch" PyTorch's defaults.
    """

    spec: ModelSpec
    plan: str = "auto"
    dtype: DTypeLike | None = None
    init_style: str = "dit"

    @nn.compact
    def __call__(self, x: Any = None, t: Any = None, y: Any = None, **cond: Any) -> jax.Array | None:
        if not self.is_initializing():
            cond = cond if y is None else {"y": y, **cond}
            return forward(self.spec, dict(self.variables["params"]), x, t, cond, plan=self.plan, dtype=self.dtype)[0]
        find(self.spec).declare(self, self.spec)
        _Blocks(self.spec, self.init_style, name="blocks")()
        if shared_parts(self.spec):
            Shared(self.spec, name=SHARED)()
        if self.spec.merges:
            Merges(self.spec, name=MERGES)()
        if self.spec.adapters:  # last: they are made to the shapes of the kernels
            self.param(LORA, init_adapters, self.spec.adapters, self.variables["params"])
        return None


class _Blocks(nn.Module):
    spec: ModelSpec
    init_style: str

    @nn.compact
    def __call__(self) -> None:
        for i, block in enumerate(self.spec.blocks):
            held = tuple((slot.name, slot, block[slot.name]) for slot in block_kind(block.kind).slots)
            _Tree(self.spec.sizes, self.init_style, held, name=self.spec.block_key(i))()


class _Tree(nn.Module):
    """Operators at their paths below this module: ("mlp", ..) in it, ("img/mlp", ..) in a module "img" of it."""

    sizes: Sizes
    init_style: str
    held: tuple[tuple[str, Slot, OpSpec], ...]

    @nn.compact
    def __call__(self) -> None:
        nested: dict[str, list[tuple[str, Slot, OpSpec]]] = {}
        for path, slot, op in self.held:
            head, _, rest = path.partition("/")
            if rest:
                nested.setdefault(head, []).append((rest, slot, op))
            else:
                operator = slot.build(op, self.sizes, None, self.init_style, name=head)
                inputs, reads = operator.example()
                operator(*inputs, **reads)  # pyright: ignore[reportCallIssue]
        for head, inner in nested.items():
            _Tree(self.sizes, self.init_style, tuple(inner), name=head)()


def init(spec: ModelSpec, key: jax.Array) -> Params:
    """Fresh parameters in DiT's initialisation: Xavier linears, adaLN and output at zero, embeddings N(0, 0.02)."""
    return dict(Network(spec).init(key)["params"])


def random_params(spec: ModelSpec, key: jax.Array) -> Params:
    """Parameters of `spec` that are nowhere zero, gates and the output layer included, so that every path counts: for
    benches and tests.

    Kernels and filters N(0, 1 / fan-in), others N(0, 0.3^2), tables of positions as they are. A leaf's values depend on the
    key, its path and its shape alone: equal leaves of two specs get equal values.
    """
    shapes: dict[str, Any] = flatten_dict(param_shapes(spec), sep="/")
    leaves: dict[str, Any] = dict(_fixed(_frame_alone(spec)))
    for path, leaf in shapes.items():
        if path in leaves:
            continue
        fan_in = np.prod(leaf.shape[:-1]) if path.endswith("kernel") else 1 / 0.3**2
        rng = np.random.default_rng([*np.ravel(jax.random.key_data(key)), zlib.crc32(path.encode())])  # nothing to compile
        leaves[path] = jnp.asarray(rng.normal(scale=fan_in**-0.5, size=leaf.shape), jnp.float32)
    return unflatten_dict(leaves, sep="/")


def fixed_paths(spec: ModelSpec) -> tuple[str, ...]:
    """Paths of the parameters of a model that no training changes."""
    frame = flatten_dict(_frame_shapes(_frame_alone(spec)), sep="/")
    return tuple(path for path in find(spec).fixed if path in frame)


@functools.lru_cache(maxsize=256)
def _fixed(spec: ModelSpec) -> Params:
    """The leaves outside of the blocks that no training changes, by path."""
    paths = fixed_paths(spec)

    @jax.jit  # compiles nothing of what draws the other leaves
    def leaves(key: jax.Array) -> Params:
        frame: dict[str, Any] = flatten_dict(_Frame(spec).init(key)["params"], sep="/")
        return {path: frame[path] for path in paths}

    return leaves(jax.random.key(0)) if paths else {}


def _frame_alone(spec: ModelSpec) -> ModelSpec:
    """A spec of the same frame, alike for all models of it."""
    return spec.replace(blocks=spec.blocks[:1], program=(), adapters=())


def param_shapes(spec: ModelSpec) -> Params:
    """Shapes and dtypes of `spec`'s parameters (`jax.ShapeDtypeStruct` leaves), without allocating any.

    Equal blocks are traced once, so that this takes as long for 28 as for one.
    """
    shapes = {
        **_frame_shapes(_frame_alone(spec)),
        "blocks": {spec.block_key(i): _block_shapes(block, spec.sizes) for i, block in enumerate(spec.blocks)},
    }
    if shared := shared_shapes(spec):
        shapes[SHARED] = shared
    if spec.merges:
        merges = {spec.merge_key(ids): jax.eval_shape(functools.partial(mean_merge, spec, len(ids))) for ids in spec.merges}
        shapes[MERGES] = merges
    if spec.adapters:
        shapes[LORA] = adapter_shapes(spec.adapters, shapes)
    return shapes


class _Frame(nn.Module):
    spec: ModelSpec

    @nn.compact
    def __call__(self) -> None:
        find(self.spec).declare(self, self.spec)


@functools.lru_cache(maxsize=256)
def _frame_shapes(spec: ModelSpec) -> Params:
    return dict(jax.eval_shape(lambda key: _Frame(spec).init(key)["params"], jax.random.key(0)))


@functools.lru_cache(maxsize=1024)
def _block_shapes(block: BlockSpec, sizes: Sizes) -> Params:
    slots = {slot.name: slot for slot in block_kind(block.kind).slots}
    leaves: dict[str, Any] = {}
    for name, op in block.ops:
        inside: dict[str, Any] = flatten_dict(shapes_of(slots[name].build(op, sizes)), sep="/")
        leaves |= {f"{name}/{path}": leaf for path, leaf in inside.items()}
    return unflatten_dict(leaves, sep="/")
