"""Hyena-X and sparse attention at true size compiled for TPUs that are not there, by kernels and in the plain form."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding

from graftax.evaluate.aot import Program, measure, parse_topology
from graftax.ops import build, resolve
from graftax.ops.base import call
from graftax.ops.kernels import HEADS
from graftax.ops.placement import place
from graftax.ops.sla import sparse_attention
from graftax.ops.target import KERNELS
from graftax.spec import Sizes, op
from graftax.train import MeshConfig
from graftax.train.sharding import activation_spec, activations

TOKENS, NUMBERS = ("batch", None, None), ("batch", "heads", None, None)
SIZES = {"DiT-XL/2, 256 pixels": (32, 16, 1), "PixArt, 2048 pixels": (1, 128, 51)}
"""Images of a chip, tokens along a side, and blocks of 64 keys that a block of queries attends to: a share of 0.2."""


def hyena(images, side):
    """The mixer as a function, its arguments with their axes."""
    sizes = Sizes(width=1152, heads=16, head_dim=72, grid=(side, side))
    mixer = build(resolve(op("hyena_x"), "mixer", sizes), sizes)
    params = jax.eval_shape(mixer.init, jax.random.key(0), jnp.zeros((1, side**2, 1152)))["params"]
    leaves, tree = jax.tree.flatten(params)

    def run(dtype, x, *leaves):
        return call(mixer.with_dtype(dtype), jax.tree.unflatten(tree, leaves), x)

    weights = [((None,) * leaf.ndim, leaf.shape, jnp.float32) for leaf in leaves]
    return run, [(TOKENS, (images, side**2, 1152), None), *weights]


def sparse(images, side, count):
    def run(dtype, q, k, v, chosen):
        return sparse_attention(q, k, v, chosen, 64)

    numbers = (NUMBERS, (images, 16, side**2 // 64, count), jnp.int32)
    return run, [(HEADS, (images, side**2, 16, 72), None)] * 3 + [numbers]


def program(form, arguments, dtype, backward):
    """`form` on a mesh over images; with `backward` its gradients, of all arguments that have any."""

    def trace(mesh, rules):
        def shaped(names, shape, kind):
            spec = activation_spec(names, shape, mesh, rules)
            return jax.ShapeDtypeStruct(shape, kind or dtype, sharding=NamedSharding(mesh, spec))

        def run(g, *args):
            with activations(mesh, rules):
                floats = [i for i, a in enumerate(args) if a.dtype != jnp.int32]

                def some(*those):
                    given = dict(zip(floats, those, strict=True))
                    return form(dtype, *(given.get(i, a) for i, a in enumerate(args)))

                if not backward:
                    return place(some(*(args[i] for i in floats)), *arguments[0][0])
                return jax.vjp(some, *(args[i] for i in floats))[1](g)

        shapes = [shaped(*one) for one in arguments]
        return jax.jit(run).trace(shapes[0], *shapes)

    return Program("kernel", arguments[0][1][0], 1, trace)


def compiled(monkeypatch, forms, name, dtype, backward, chips, switch):
    monkeypatch.setenv(KERNELS, switch)
    row = measure(program(*forms[name], jnp.dtype(dtype), backward), parse_topology(chips), MeshConfig(data=4))
    assert row["fits"]
    return row


@pytest.mark.slow
@pytest.mark.parametrize("chips", ["v5e:2x2", "v6e:2x2"])
@pytest.mark.parametrize("size", SIZES)
def test_kernels_compile_and_need_little(monkeypatch, size, chips):
    pytest.importorskip("libtpu")
    images, side, count = SIZES[size]
    forms = {"hyena_x": hyena(4 * images, side), "sla": sparse(4 * images, side, count)}
    for name in forms:
        for backward in (False, True):
            rows = [compiled(monkeypatch, forms, name, "bfloat16", backward, chips, switch) for switch in ("off", "on")]
            before, after = (row["temporary_bytes"] for row in rows)
            way = "forward and back" if backward else "forward"
            print(f"{name}, {size}, {chips}, {way}: temporary {before / 1e6:.0f} -> {after / 1e6:.0f} MB")
            assert rows[1]["collectives"].keys() <= rows[0]["collectives"].keys()
            # Back, sparse attention keeps queries, keys and values head by head in both forms.
            assert after < 1.25 * before
        compiled(monkeypatch, forms, name, "float32", True, chips, "on")
