"""`Model`: a spec, its parameters, and where they came from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from graftax.errors import BadInput
from graftax.models.block import Taps
from graftax.models.dit import forward
from graftax.models.stack import Params
from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Meta:
    """Provenance: source file and its SHA-256, the edits applied since, and the sites that hold scions.

    A site is written as the selector that names it: "blocks[3].mixer".
    """

    source: str = ""
    sha256: str = ""
    edits: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Meta:
        """Inverse of `to_dict`; fields of other writers are left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k in known}
        return cls(**plain)


@dataclass(frozen=True, eq=False)
class Model:
    """What a model is (`spec`), what it knows (`params`), where it comes from (`meta`). Never mutated."""

    spec: ModelSpec
    params: Params
    meta: Meta = field(default_factory=Meta)

    def __call__(self, x: ArrayLike, t: ArrayLike, y: ArrayLike) -> jax.Array:
        """Predicted noise and variance channels: x (b, h, w, c), t (b,), y (b,) -> (b, h, w, out_channels)."""
        return self.apply(x, t, y)[0]

    def apply(
        self, x: ArrayLike, t: ArrayLike, y: ArrayLike, *, capture: Sequence[str] = (), plan: str = "unroll",
        dtype: DTypeLike | None = None,
    ) -> tuple[jax.Array, Taps]:  # fmt: skip
        """The output and taps[name] (l, b, n, d) for each name in `capture`, compiled once per shape.

        Raises `BadInput` where x, t or y do not fit the spec.
        """
        x, t, y = jnp.asarray(x), jnp.asarray(t), jnp.asarray(y)
        _check_inputs(self.spec, x, t, y)
        return _forward(self.spec, self.params, x, t, y, plan=plan, capture=tuple(capture), dtype=dtype)

    def replace(self, **changes: Any) -> Model:
        """A copy with some of spec, params, meta changed."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.params))
        return f"Model({self.spec.backbone}, {self.spec.depth} blocks, width {self.spec.hidden_size}, {count:,} parameters)"


@functools.partial(jax.jit, static_argnames=("spec", "plan", "capture", "dtype"))
def _forward(spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, y: jax.Array, **options: Any):
    return forward(spec, params, x, t, y, **options)


def _check_inputs(spec: ModelSpec, x: jax.Array, t: jax.Array, y: jax.Array) -> None:
    expected = (spec.input_size, spec.input_size, spec.in_channels)
    if x.ndim != 4 or x.shape[1:] != expected:
        raise BadInput(f"x: shape {x.shape}, expected (b, {', '.join(map(str, expected))})")
    if t.shape != x.shape[:1] or y.shape != x.shape[:1]:
        raise BadInput(f"t, y: shapes {t.shape}, {y.shape}, expected ({x.shape[0]},) each")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise BadInput(f"y: dtype {y.dtype}, expected class ids of integer type")
