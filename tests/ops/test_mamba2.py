"""Mamba-2: the golden checkpoint, its definition in float64, the orders of its scan, its tensors in PyTorch's names."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from golden_checkpoints import LAYOUT, golden, hollow, spec_of
from golden_checkpoints import load as model_of
from operator_checks import made as operator_of

from graftax import ops
from graftax.backbones.dit import dit_spec, variant
from graftax.checkpoint import open_checkpoint
from graftax.checkpoint.tensors import read_tensors
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.layout import tensors_from
from graftax.ops.mamba2 import SCANS, reorder
from graftax.spec import Sizes, op
from graftax.surgery import graft, replace
from graftax.testing import tiny_spec

GOLDEN = golden("graft_mha_mamba2_50p")
GOLDEN_OP = op("mamba2", d_state=16, headdim=8, expand=2, d_conv=4, scan="raster")
SIZES = {"d_state": 5, "headdim": 4, "expand": 3, "d_conv": 3}
FRAME = tiny_spec(hidden_size=8, num_heads=2)  # 4 x 4 tokens
hardest_scan = pytest.mark.parametrize(
    "scan", ["cross", *(pytest.param(scan, marks=pytest.mark.slow) for scan in SCANS if scan != "cross")]
)


def made(scan="raster", dtype=None, style="torch"):
    return operator_of(op("mamba2", **SIZES, scan=scan), FRAME, dtype=dtype, init_style=style)


def inputs(seed=0):
    return np.random.default_rng(seed).standard_normal((2, FRAME.tokens, FRAME.width), np.float32)


@functools.cache
def compiled(scan="raster", dtype=None):
    return jax.jit(lambda p, x: made(scan, dtype).apply({"params": p}, x))


@functools.cache
def weights():
    """Parameters away from their initial ones and zeros."""
    params = jax.jit(made().init)(jax.random.key(0), inputs())["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: np.asarray(a) + 0.1 * rng.standard_normal(a.shape, np.float32), params)


def silu(a):
    return a / (1 + np.exp(-a))


def definition(p, x, scan="raster"):
    """The operator as its docstring has it, token by token in float64; orders by index."""
    p, x = jax.tree.map(lambda a: np.asarray(a, np.float64), (p, x))
    s, inner = SIZES["d_state"], SIZES["expand"] * FRAME.width
    z, mixed, dt = np.split(x @ p["in_proj"]["kernel"], (inner, 2 * inner + 2 * s), axis=-1)
    dt = np.log1p(np.exp(dt + p["dt_bias"]))
    n = np.arange(FRAME.tokens)
    columns = n.reshape(4, 4).T.ravel()
    orders = {"raster": [n], "bidirectional": [n, n[::-1]], "cross": [n, n[::-1], columns, columns[::-1]]}[scan]
    y = np.zeros_like(z)
    for order in orders:
        y[:, order] += one_pass(p, mixed[:, order], dt[:, order])
    y = y * silu(z)
    y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    return y @ p["out_proj"]["kernel"]


def one_pass(p, mixed, dt):
    taps = SIZES["d_conv"]
    padded = np.pad(mixed, ((0, 0), (taps - 1, 0), (0, 0)))
    terms = [padded[:, i : i + FRAME.tokens] * p["conv1d"]["kernel"][i] for i in range(taps)]
    mixed = silu(p["conv1d"]["bias"] + sum(terms))
    x, B, C = np.split(mixed, (mixed.shape[-1] - 2 * SIZES["d_state"], mixed.shape[-1] - SIZES["d_state"]), axis=-1)
    x = x.reshape(*x.shape[:2], -1, SIZES["headdim"])
    state, y = 0, np.zeros(x.shape)
    for t in range(FRAME.tokens):
        decay = np.exp(-np.exp(p["A_log"]) * dt[:, t])[..., None, None]
        state = decay * state + np.einsum("bh,bhk,bs->bhks", dt[:, t], x[:, t], B[:, t])
        y[:, t] = np.einsum("bhks,bs->bhk", state, C[:, t]) + p["D"][:, None] * x[:, t]
    return y.reshape(*y.shape[:2], -1)


def load():
    return dict(read_tensors(GOLDEN)[0])


def golden_model():
    spec, params, _ = open_checkpoint(GOLDEN, num_heads=4)
    return Model(spec, params)


def test_golden():
    model, golden = golden_model(), np.load(GOLDEN.with_suffix(".npz"))
    assert [str(block["mixer"]) for block in model.spec.blocks] == ["mha", str(GOLDEN_OP)] * 2
    x, t, y = golden["x"].transpose(0, 2, 3, 1), golden["t"], golden["y"]
    out, taps = model.apply(x, t, y, capture=("mixer/in", "mixer/out"))
    assert np.abs(np.asarray(out).transpose(0, 3, 1, 2) - golden["out"]).max() <= 2e-5
    for i in (1, 3):  # the operator alone
        mixer = model.params["blocks"][f"{i:02d}"]["mixer"]
        alone = jax.jit(ops.build(GOLDEN_OP, model.spec.sizes).apply)({"params": mixer}, taps["mixer/in"][i])
        np.testing.assert_allclose(alone, taps["mixer/out"][i], atol=2e-5)
    half, _ = model.apply(x, t, y, dtype=jnp.bfloat16)
    error = np.abs(np.asarray(half).transpose(0, 3, 1, 2) - golden["out"]).max() / np.abs(golden["out"]).max()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize("scan", SCANS)
def test_equals_the_definition(scan):
    out = compiled(scan)(weights(), inputs())
    np.testing.assert_allclose(out, definition(weights(), inputs(), scan), atol=2e-6)


@hardest_scan
def test_gradients_equal_finite_differences(scan):
    """Along one random direction per parameter, and one of the input."""
    p, x, g = weights(), inputs(), inputs(1)
    gradients = jax.jit(lambda p, x: jax.vjp(compiled(scan), p, x)[1](g))(p, x)
    leaves, treedef = jax.tree.flatten((p, x))
    for i, gradient in enumerate(jax.tree.leaves(gradients)):
        direction = np.random.default_rng(i).standard_normal(leaves[i].shape)
        ends = []
        for sign in (1, -1):
            moved = [*leaves[:i], leaves[i] + sign * 1e-5 * direction, *leaves[i + 1 :]]
            ends.append(np.sum(g * definition(*jax.tree.unflatten(treedef, moved), scan)))
        assert np.sum(gradient * direction) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-4)


@hardest_scan
def test_bfloat16_stays_near(scan):
    expected = np.asarray(compiled(scan)(weights(), inputs()))
    out = compiled(scan, jnp.bfloat16)(weights(), inputs())
    assert out.dtype == jnp.bfloat16
    assert 1e-4 < np.abs(np.asarray(out, np.float32) - expected).max() / np.abs(expected).max() < 0.02


@pytest.mark.parametrize("order", SCANS["cross"])
def test_orders_of_the_grid_and_back(order):
    x = jnp.asarray(inputs())
    np.testing.assert_array_equal(reorder(reorder(x, order, (4, 4)), order, (4, 4)), x)
    turned = reorder(x, order, (2, 8))
    np.testing.assert_array_equal(reorder(turned, order, (8, 2)), x)
    tokens = np.arange(16).reshape(2, 8)
    expected = (tokens.T if order[0] else tokens).ravel()[:: -1 if order[1] else 1]
    np.testing.assert_array_equal(turned, x[:, expected])


def test_symmetries():
    """A scan in several orders commutes with turning the grid in the same ways; the paper's does not."""

    def commutes(scan, order):
        run, x = compiled(scan), jnp.asarray(inputs())
        turned = reorder(run(weights(), x), order, (4, 4))
        return np.allclose(run(weights(), reorder(x, order, (4, 4))), turned, atol=1e-5)

    backwards, transposed = (False, True), (True, False)
    found = {scan: (commutes(scan, backwards), commutes(scan, transposed)) for scan in SCANS}
    assert found == {"raster": (False, False), "bidirectional": (True, False), "cross": (True, True)}


@pytest.mark.parametrize(("scan", "sees"), [("raster", False), ("bidirectional", True), ("cross", True)])
def test_only_the_raster_scan_is_causal(scan, sees):
    x = inputs()
    later = x.copy()
    later[:, 9:] += 1
    before, after = (np.asarray(compiled(scan)(weights(), a)) for a in (x, later))
    assert (np.abs(after - before)[:, :9].max() > 1e-3) == sees


def test_initialisation():
    spec = dit_spec(input_size=8, patch_size=2, hidden_size=384, depth=1, num_heads=6)
    x = jnp.zeros((1, spec.tokens, spec.width))
    inits = [operator_of(op("mamba2"), spec, init_style=style).init for style in ("torch", "dit")]
    torch, dit = (flatten_dict(jax.jit(init)(jax.random.key(0), x)["params"], sep="/") for init in inits)
    for found in (torch, dit):
        dt, A = np.log1p(np.exp(found["dt_bias"])), np.exp(found["A_log"])
        assert 0.9e-3 < dt.min() < 3e-3
        assert 0.03 < dt.max() < 0.101
        assert abs(np.log(dt).mean() - math.log(1e-2)) < 0.6  # log-uniform
        assert 1 <= A.min() < 4 < 13 < A.max() <= 16.001
        assert (found["D"] == 1).all()
        assert (found["norm/scale"] == 1).all()
        assert np.abs(found["conv1d/kernel"]).max() <= 0.5
    for name, fan_in, fan_out in (("in_proj/kernel", 384, 2 * 768 + 2 * 64 + 48), ("out_proj/kernel", 768, 384)):
        assert torch[name].shape == (fan_in, fan_out)
        assert 0.99 < np.abs(torch[name]).max() * fan_in**0.5 <= 1
        assert 0.99 < np.abs(dit[name]).max() / (6 / (fan_in + fan_out)) ** 0.5 <= 1


def test_cost_at_xl_is_the_papers():
    """Table 4; its featurizer column prints our ratio, 1.56, as a growth of 155.77 %."""
    spec = variant("DiT-XL/2")

    def cost(spec_op):
        return operator_of(spec_op, spec).cost()

    found, base = cost(op("mamba2")), cost(op("mha"))
    assert (found.params, found.op_flops) == (8_290_864, 75_497_472)
    assert f"{100 * (found.params / base.params - 1):.2f}" == "56.05"
    assert f"{100 * (found.op_flops / base.op_flops - 1):.2f}" == "-75.17"
    assert f"{found.featurizer_flops / base.featurizer_flops:.4f}" == "1.5609"
    assert cost(op("mamba2", scan="bidirectional")).op_flops == 2 * found.op_flops
    assert cost(op("mamba2", scan="cross")).op_flops == 4 * found.op_flops
    assert cost(op("mamba2", scan="cross")).params == found.params


@pytest.mark.parametrize("scan", SCANS)
def test_cost_counts_the_parameters_and_the_projections(scan):
    operator, p = made(scan), weights()
    cost = operator.cost()
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(p))
    projections = 2 * FRAME.tokens * (p["in_proj"]["kernel"].size + p["out_proj"]["kernel"].size)
    assert cost.featurizer_flops - projections == len(SCANS[scan]) * 2 * FRAME.tokens * p["conv1d"]["kernel"].size


def test_there_and_back_bit_for_bit():
    given = load()
    back = tensors_from(LAYOUT, *model_of(given, num_heads=4))
    assert back.keys() == given.keys()
    for key, array in given.items():
        assert np.array_equal(back[key].view(np.int32), array.view(np.int32))


@pytest.mark.parametrize(
    "options", [{}, {"d_state": 128, "headdim": 64}, {"expand": 1, "headdim": 72, "d_conv": 3}, {"d_state": 1, "headdim": 1}]
)
def test_sizes_are_read_from_the_tensors(options):
    spec = dit_spec(
        input_size=32, patch_size=2, hidden_size=1152, depth=1, num_heads=16, num_classes=1000, mixer=op("mamba2", **options)
    )
    shapes = {name: array.shape for name, array in hollow(spec).items()}
    if not options:
        assert shapes["blocks.0.attn.in_proj.weight"] == (4880, 1152)
        assert shapes["blocks.0.attn.conv1d.weight"] == (2432, 1, 4)
        assert shapes["blocks.0.attn.out_proj.weight"] == (1152, 2304)
        assert {shapes[f"blocks.0.attn.{name}"] for name in ("dt_bias", "A_log", "D")} == {(144,)}
    assert spec_of(hollow(spec)) == spec


def test_scan_is_an_override():
    spec = spec_of(load(), num_heads=4, scan="cross")
    assert [block["mixer"].option("scan") for block in spec.blocks] == [None, "cross"] * 2
    with pytest.raises(BadInput, match="scan: got 'spiral', expected one of"):
        spec_of(load(), num_heads=4, scan="spiral")
    with pytest.raises(BadInput, match="override d_state=8: the file has 16"):
        spec_of(load(), num_heads=4, d_state=8)


@pytest.mark.parametrize("key", [key for key in load() if key.startswith("blocks.1.attn.")])
def test_every_wrong_tensor_is_named(key):
    """Missing; one row more; one axis more; no axis."""
    given = load()
    wrong = [given[key][None], np.concatenate([given[key], given[key][:1]]), np.float32(1).reshape(())]
    for files in ({k: a for k, a in given.items() if k != key}, *(given | {key: array} for array in wrong)):
        # A tensor without the rank of its layout may be one of those that are counted, not listed.
        with pytest.raises(BadInput, match=rf"{re.escape(key)}|attn: .* mis-shaped, one of .* more$") as caught:
            model_of(files, num_heads=4)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 0}, "d_state: got 0"),
        ({"d_conv": 0}, "d_conv: got 0"),
        ({"expand": -1}, "expand: got -1"),
        ({"headdim": 0}, "headdim: got 0"),
        ({"headdim": 7}, "headdim: got 7, expected a divisor of expand . width = 48"),
        ({"scan": "spiral"}, "scan: got 'spiral'"),
        ({"scan": 2}, "scan=2: expected str"),
    ],
)
def test_impossible_options(options, message):
    with pytest.raises(BadInput, match=message):
        ops.resolve(op("mamba2", **options), "mixer", Sizes(24, 3, 8, (4, 4)))


def test_columns_need_an_image_alone():
    sizes = Sizes(24, 3, 8, (3, 5), text=2)
    assert ops.resolve(op("mamba2", scan="bidirectional"), "mixer", sizes)
    with pytest.raises(BadInput, match="mamba2 with scan 'cross': works on the image's grid alone, got 2 tokens of text"):
        ops.resolve(op("mamba2", scan="cross"), "mixer", sizes)


def test_graft():
    student = graft(golden_model(), replace("blocks[0].mixer", "mamba2", headdim=8, scan="cross"), jax.random.key(0))
    assert student.spec.blocks[0]["mixer"] == op("mamba2", d_conv=4, d_state=64, expand=2, headdim=8, scan="cross")
    given = student.params["blocks"]["00"]["mixer"]
    assert {name: leaf.shape for name, leaf in flatten_dict(given, sep="/").items()} == {
        "in_proj/kernel": (48, 332), "conv1d/kernel": (4, 224), "conv1d/bias": (224,), "dt_bias": (12,), "A_log": (12,),
        "D": (12,), "norm/scale": (96,), "out_proj/kernel": (96, 48),
    }  # fmt: skip
