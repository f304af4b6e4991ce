"""What the tests of several operators need: an operator from its spec, weights, gradient and checkpoint checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from golden_checkpoints import LAYOUT, load

from graftax.checkpoint import open_checkpoint
from graftax.checkpoint.tensors import read_tensors
from graftax.models import Model
from graftax.models.layout import tensors_from
from graftax.ops import OPERATORS, Operator, build, resolve
from graftax.ops.base import shapes_of
from graftax.spec import ModelSpec, OpSpec
from graftax.testing import random_params, tiny_spec


def made(scion: OpSpec, spec: ModelSpec, **settings: Any) -> Operator:
    """The operator inside a model of `spec`'s sizes, options checked."""
    return build(resolve(scion, OPERATORS[scion.kind].role, spec.sizes), spec.sizes, **settings)


def weights_of(operator: Operator, seed: int = 0, scale: float = 0.5) -> dict[str, Any]:
    """Parameters that are nowhere zero: kernels N(0, 1 / fan-in), all else N(0, scale^2)."""
    rng = np.random.default_rng(seed)

    def leaf(path: Any, a: Any) -> jax.Array:
        fan_in = np.prod(a.shape[:-1]) if path[-1].key == "kernel" else scale**-2
        return jnp.asarray(rng.normal(scale=fan_in**-0.5, size=a.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes_of(operator))


def assert_gradients(
    operator: Operator, weights: dict[str, Any], x: np.ndarray, step: float = 0.2, rtol: float = 2e-3
) -> None:
    """Fail unless the gradient of every leaf and of the input has the slope that differences measure, along a random line.

    Two central differences, extrapolated: exact for polynomials of degree 4, so that the steps can be large and rounding
    does not matter. Slopes are compared on the scale of the gradient's length.
    """
    rng = np.random.default_rng(1)
    g = rng.standard_normal(x.shape, np.float32)
    run = jax.jit(lambda tree: operator.apply({"params": tree["weights"]}, tree["x"]))
    tree = {"weights": weights, "x": jnp.asarray(x)}
    flat, structure = jax.tree_util.tree_flatten_with_path(tree)
    gradients = jax.tree.leaves(jax.jit(jax.grad(lambda tree: jnp.sum(g * run(tree))))(tree))
    for place, ((path, leaf), gradient) in enumerate(zip(flat, gradients, strict=True)):
        line = rng.standard_normal(leaf.shape).astype(np.float32)
        line /= np.linalg.norm(line)

        def at(distance: float, place: int = place, line: np.ndarray = line) -> float:
            leaves = [a + distance * line if i == place else a for i, (_, a) in enumerate(flat)]
            out = run(jax.tree_util.tree_unflatten(structure, leaves))
            return float(np.sum(g * np.asarray(out, np.float64)))

        near, far = ((at(h) - at(-h)) / (2 * h) for h in (step, 2 * step))
        slope, expected = (4 * near - far) / 3, float(jnp.vdot(gradient, line))
        length = float(jnp.linalg.norm(gradient))
        assert length > 0, f"{jax.tree_util.keystr(path)}: no gradient at all"
        assert abs(slope - expected) <= rtol * length, f"{jax.tree_util.keystr(path)}: slope {slope}, gradient {expected}"


def assert_golden(stem: Path, tolerance: float) -> ModelSpec:
    """Open the golden checkpoint `stem`.pt, check its outputs against `stem`.npz and its export bit for bit; its spec."""
    file, golden = stem.with_suffix(".pt"), np.load(stem.with_suffix(".npz"))
    spec, params, _ = open_checkpoint(file, num_heads=4)
    out = Model(spec, params)(golden["x"].transpose(0, 2, 3, 1), golden["t"], golden["y"])
    assert np.abs(np.asarray(out).transpose(0, 3, 1, 2) - golden["out"]).max() <= tolerance
    assert_same_bits(tensors_from(LAYOUT, spec, params), dict(read_tensors(file)[0]))
    return spec


def assert_exports(scion: OpSpec) -> None:
    """Fail unless a model of such operators is recognised from the names and shapes of its tensors, and comes back whole."""
    spec = tiny_spec(**{{"channel": "mlp"}.get(role := OPERATORS[scion.kind].role, role): scion})
    params = random_params(spec, jax.random.key(0))
    tensors = tensors_from(LAYOUT, spec, params)
    again, back = load(tensors, num_heads=spec.sizes.heads)
    assert again == spec
    assert_same_bits(flatten_dict(back, sep="/"), flatten_dict(params, sep="/"))


def assert_same_bits(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    """Fail unless both have the same names and the same float32 bits there."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(np.asarray(actual[name]).view(np.int32), np.asarray(array).view(np.int32)), name
