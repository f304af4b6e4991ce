"""What all operators share: registry, options, initialisation, cost formulas, compute dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from graftax import ops
from graftax.errors import BadInput
from graftax.ops import OPERATORS, build, resolve
from graftax.spec import op
from graftax.testing import assert_same_leaves, tiny_spec

SPEC = tiny_spec(hidden_size=24, num_heads=3)
MIXERS = [op("mha"), op("swa", window=2), op("hyena_x", kernel=4), op("hyena_x", kernel=3)]
ALL = [*MIXERS, op("mlp", ratio=4.0), op("mlp", ratio=1.7)]
by_name = pytest.mark.parametrize("spec_op", ALL, ids=str)


def made(spec_op, dtype=None, style="torch"):
    return build(resolve(spec_op, OPERATORS[spec_op.kind].role, SPEC.sizes), SPEC.sizes, dtype, style)


def inputs():
    return np.random.default_rng(0).standard_normal((2, SPEC.tokens, SPEC.width), np.float32)


def dot_flops(jaxpr):
    """2 x multiply-adds of all matrix products, those of inner functions included."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * int(np.prod([eqn.invars[0].aval.shape[i] for i in contracted]))
        total += sum(dot_flops(inner.jaxpr) for inner in eqn.params.values() if hasattr(inner, "jaxpr"))
    return total


@by_name
def test_cost_formula(spec_op):
    operator, x = made(spec_op), inputs()[:1]
    params = jax.eval_shape(operator.init, jax.random.key(0), x)
    cost = operator.cost()
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(params))
    flops = dot_flops(jax.make_jaxpr(operator.apply)(params, x).jaxpr)
    n, d, h = SPEC.tokens, SPEC.width, SPEC.sizes.heads
    if spec_op.kind == "swa":
        # The formula counts 2 w + 1 keys, the bands compute some more.
        assert cost.flops - 2 * n * 5 * h == 8 * n * d * d + 4 * n * 5 * d < flops
    else:
        # The rest is no matrix product: softmax 2 n^2 h, or taps and gates.
        taps = spec_op.option("kernel", 0)
        rest = {"mha": 2 * n * n * h, "mlp": 0, "hyena_x": 6 * taps * n * d + 2 * n * d}
        assert cost.flops - rest[spec_op.kind] == flops


@by_name
def test_compute_dtype(spec_op):
    operator, x = made(spec_op), inputs()
    params = operator.init(jax.random.key(0), x)
    expected = operator.apply(params, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    half = operator.with_dtype(jnp.bfloat16)
    out = half.apply(params, x)
    assert out.dtype == jnp.bfloat16
    assert jnp.abs(out.astype(jnp.float32) - expected).max() < 0.02 * jnp.abs(expected).max()


@by_name
def test_torch_keys_name_every_parameter(spec_op):
    operator = made(spec_op)
    leaves = flatten_dict(jax.eval_shape(operator.init, jax.random.key(0), inputs())["params"], sep="/")
    assert sorted(key.leaf for key in operator.torch_keys) == sorted(leaves)
    shapes = {}
    for key in operator.torch_keys:
        shape = leaves[key.leaf].shape
        turned = {"linear": shape[::-1], "conv": (*shape[:0:-1], 1, shape[0]), "same": shape}
        shapes[key.name] = turned[key.layout]
    wanted = dict(spec_op.options)
    found = operator.recognise(shapes, {"window": 2})
    assert found is not None
    again = resolve(op(spec_op.kind, **found), operator.role, SPEC.sizes)
    # A ratio comes back as hidden / width: 1.7 x 24 rounds to 41.
    assert {name: again.option(name) for name in wanted} == pytest.approx(wanted, rel=0.01)
    assert build(again, SPEC.sizes).cost() == operator.cost()
    assert operator.recognise({**shapes, "other.weight": (1,)}, {}) is None


@by_name
def test_initialisation(spec_op):
    x = inputs()
    inits = [made(spec_op, style=style).init for style in ("torch", "dit")]
    torch_style, dit_style = (flatten_dict(init(jax.random.key(0), x)["params"], sep="/") for init in inits)
    for path, leaf in torch_style.items():
        kernel = torch_style[path.replace("bias", "kernel")]
        bound = kernel.shape[0] ** -0.5  # fan-in: inputs of a linear layer, taps of a depthwise convolution
        assert bound * 0.8 < np.abs(leaf).max() <= bound
    for path, leaf in dit_style.items():
        if "short_filter" in path:
            continue
        if path.endswith("bias"):
            assert not leaf.any()
        else:
            bound = (6 / sum(leaf.shape)) ** 0.5  # Xavier uniform
            assert bound * 0.9 < np.abs(leaf).max() <= bound


def test_windowed_attention_takes_over_the_weights_of_the_dense_one():
    x = inputs()
    mha, swa, hyena = made(op("mha")), made(op("swa", window=SPEC.tokens)), made(op("hyena_x"))
    weights = mha.init(jax.random.key(0), x)["params"]
    assert_same_leaves(swa.transplant({}, mha, weights), weights)
    assert_same_leaves(mha.transplant({}, swa, weights), weights)
    assert swa.transplant({}, hyena, {}) is None
    np.testing.assert_allclose(swa.apply({"params": weights}, x), mha.apply({"params": weights}, x), atol=1e-6)


def test_mlp_takes_over_equal_widths_as_they_are():
    wide, narrow = made(op("mlp")), made(op("mlp", ratio=3.0))
    weights = wide.init(jax.random.key(0), inputs())["params"]
    assert wide.transplant({}, made(op("mlp", ratio=4.0)), weights) is weights
    assert (narrow.chooses(wide), wide.chooses(narrow), wide.chooses(wide)) == (True, False, False)
    with pytest.raises(BadInput, match=r"fewer neurons, and importance is none, expected \(96,\)"):
        narrow.transplant({}, wide, weights)


def test_hyena_x_equals_its_definition():
    x = inputs()
    operator = made(op("hyena_x", kernel=3))
    variables = operator.init(jax.random.key(0), x)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables["params"])
    u = x @ p["in_proj"]["kernel"] + p["in_proj"]["bias"]
    padded = np.pad(u, ((0, 0), (2, 0), (0, 0)))
    taps, bias = p["short_filter"]["kernel"], p["short_filter"]["bias"]
    q, k, v = np.split(bias + sum(padded[:, i : i + SPEC.tokens] * taps[i] for i in range(3)), 3, axis=-1)
    expected = (q * k * v) @ p["out_proj"]["kernel"] + p["out_proj"]["bias"]
    np.testing.assert_allclose(operator.apply(variables, x), expected, atol=1e-6)


def test_resolve_spells_out_defaults():
    sizes = SPEC.sizes
    assert resolve(op("mlp"), "channel", sizes) == resolve(op("mlp", ratio=4), "channel", sizes) == op("mlp", ratio=4.0)
    assert resolve(op("swa"), "mixer", sizes) == op("swa", window=4)


@pytest.mark.parametrize(
    ("wrong", "role", "message"),
    [
        (op("mamba9"), "mixer", r"'mamba9'.*'hyena_x'.*'mha'"),
        (op("mlp"), "mixer", "'mlp' has the role channel, expected one with the role mixer"),
        (op("mha", window=4), "mixer", "'window'"),
        (op("swa", window=2.5), "mixer", "window=2.5: expected int"),
        (op("swa", window=True), "mixer", "window=True: expected int"),
        (op("swa", window=0), "mixer", "window: got 0"),
        (op("hyena_x", kernel=0), "mixer", "kernel: got 0"),
        (op("mlp", ratio="4"), "channel", "ratio='4': expected float"),
        (op("mlp", ratio=0.0), "channel", "ratio: got 0.0"),
    ],
)
def test_resolve_refuses(wrong, role, message):
    with pytest.raises(BadInput, match=message):
        resolve(wrong, role, SPEC.sizes)


def test_registry_names():
    assert {"mha", "swa", "hyena_x", "mlp"} <= set(OPERATORS)
    assert all(cls.kind == kind for kind, cls in OPERATORS.items())
    assert ops.operator_class("swa") is OPERATORS["swa"]
