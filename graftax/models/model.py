"""`Model`: a spec, its parameters, and where they came from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from graftax.blocks import Taps
from graftax.errors import BadInput
from graftax.models.arguments import as_float_type
from graftax.models.backbone import Cond, find
from graftax.models.forward import forward
from graftax.models.sizes import at_size, check_size
from graftax.ops.base import Params
from graftax.spec import ModelSpec


@dataclass(frozen=True)
class Meta:
    """Provenance.

    Attributes:
        source: file that the weights came from.
        sha256: of that file.
        edits: what was done since, in the language of `graftax.surgery.parse`; trainings too.
        sites: where scions are, each as the selector that names it: "blocks[3].mixer".
        data: what its trainings saw, where that is known.
        scores: what they came to on held-out data.
    """

    source: str = ""
    sha256: str = ""
    edits: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()

    def after(self, training: str, history: Sequence[Mapping[str, Any]], number: str) -> Meta:
        """With a training, and the last held-out `number` ("loss") among its records."""
        found = next((line[number] for line in reversed(history) if line["split"] == "eval" and number in line), None)
        score = () if found is None else (f"{training}: {number} {found:.4g} on held-out data",)
        return dataclasses.replace(self, edits=(*self.edits, training), scores=(*self.scores, *score))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Meta:
        """Inverse of `to_dict`; fields of other writers are left out."""
        known = {f.name for f in dataclasses.fields(cls)}
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items() if k in known}
        return cls(**plain)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["spec", "meta"])
@dataclass(frozen=True, eq=False)
class Model:
    """A model. Never mutated. To jax it is a tree of its parameters: `jax.jit(function)(model)` works.

    Attributes:
        spec: what it is.
        params: what it knows, a plain nested dict.
        meta: where it comes from.
    """

    spec: ModelSpec
    params: Params
    meta: Meta = field(default_factory=Meta)

    def __call__(self, x: ArrayLike, t: ArrayLike, y: ArrayLike | None = None, **cond: Any) -> jax.Array:
        """The network's prediction and variance channels: x (b, h, w, c), t (b,), y (b,) -> (b, h, w, out_channels)."""
        return self.apply(x, t, y, **cond)[0]

    def apply(
        self, x: ArrayLike, t: ArrayLike, y: ArrayLike | None = None, *, capture: str | Sequence[str] = (),
        plan: str = "unroll", dtype: DTypeLike | None = None, **cond: Any,
    ) -> tuple[jax.Array, Taps]:  # fmt: skip
        """The output and taps[name] (l, b, n, d) for each name in `capture` (or the one), compiled once per shape.

        `t` is what the network was trained with, `y` and `cond` what its backbone takes (`graftax.models.forward`). Raises
        `BadInput` where they do not fit the spec: shapes, types, conditions that it does not know, times and classes out of
        range, numbers in x or t that are not finite. Inside of a transformation values are not known and not looked at.
        """
        x, t = jnp.asarray(x), jnp.asarray(t)
        given = {name: jnp.asarray(value) for name, value in ({**cond, "y": y} if y is not None else cond).items()}
        check_inputs(self.spec, x, t, given)
        if not self.params.get("blocks"):
            raise BadInput(f"Model.params: keys {sorted(self.params)}, expected those of {self.spec.backbone} blocks")
        options = {"capture": (capture,) if isinstance(capture, str) else tuple(capture), "dtype": as_float_type(dtype)}
        return _forward(self.spec, self.params, x, t, given, plan=plan, **options)

    def replace(self, **changes: Any) -> Model:
        """A copy with some of spec, params, meta changed."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        leaves: dict[tuple[str, ...], Any] = flatten_dict(self.params)
        count = sum(int(np.prod(leaf.shape)) for leaf in leaves.values())
        return f"Model({self.spec.backbone}, {self.spec.depth} blocks, width {self.spec.width}, {count:,} parameters)"


@functools.partial(jax.jit, static_argnames=("spec", "plan", "capture", "dtype"))
def _forward(spec: ModelSpec, params: Params, x: jax.Array, t: jax.Array, cond: Cond, **options: Any):
    return forward(spec, params, x, t, cond, **options)


def given_conditions(labels: ArrayLike | None, cond: Mapping[str, ArrayLike] | None) -> dict[str, jax.Array]:
    """Classes `labels` (b,) and other conditions (b, ..) together. Raises `BadInput` where neither is given."""
    given = {name: jnp.asarray(value) for name, value in (cond or {}).items()}
    if labels is not None:
        given = {"y": jnp.asarray(labels), **given}
    if not given or any(not value.ndim for value in given.values()):
        raise BadInput("no labels and no cond, expected one entry for each image")
    return given


def null_conditions(cond: Cond, null: Mapping[str, ArrayLike]) -> dict[str, jax.Array]:
    """`null` as the unconditional twin of `cond`, of the same names and shapes; one entry may stand for all images.

    Raises `BadInput` where they do not go together.
    """
    if set(null) != set(cond):
        raise BadInput(f"null_cond: got {sorted(null)}, expected {sorted(cond)} as in cond")
    found = {name: jnp.asarray(value) for name, value in null.items()}
    for name, value in found.items():
        shape = cond[name].shape
        if value.shape not in (shape, (1, *shape[1:])):
            raise BadInput(f"null_cond {name}: shape {value.shape}, expected {shape} as in cond, or one entry for all")
    return {name: jnp.broadcast_to(value, cond[name].shape) for name, value in found.items()}


def check_inputs(spec: ModelSpec, x: jax.Array, t: jax.Array, cond: Cond) -> None:
    """Raise `BadInput` where inputs of a network do not fit `spec`; see `Model.apply`."""
    if x.ndim != 4 or not len(x) or not jnp.issubdtype(x.dtype, jnp.floating):
        raise BadInput(f"x: {x.dtype}{x.shape}, expected floats (b, h, w, c), b >= 1")
    if t.shape != x.shape[:1] or not jnp.issubdtype(t.dtype, jnp.number):
        raise BadInput(f"t: {t.dtype}{t.shape}, expected numbers ({x.shape[0]},)")
    find(spec).check_inputs(spec, x, t, cond)
    if (sized := at_size(spec, x)) != spec:
        check_size(spec, sized)
    if not all_known(x, jnp.isfinite):
        raise BadInput("x: holds NaN or infinite numbers, expected finite ones")


def all_known(array: jax.Array, condition: Callable[[jax.Array], jax.Array]) -> bool:
    """Whether `condition` holds of every number of an array; true where they cannot be looked at, as inside of `jit`."""
    if isinstance(array, Tracer):
        return True
    with jax.ensure_compile_time_eval():  # a known array inside of `jit`
        return bool(condition(array).all())
