"""What the tests of joint operators share: two streams, weights, and the projections around every one of them in numpy."""

import jax
import numpy as np

from graftax import ops
from graftax.ops.base import shapes_of
from graftax.ops.rope import tables
from graftax.spec import Sizes, op

SIZES = Sizes(12, 2, 6, (2, 3), text=5)
RNG = np.random.default_rng(0)
TXT, IMG = (RNG.standard_normal((2, t, 12)).astype(np.float32) for t in (5, 6))
STREAMS = {"txt": TXT, "img": IMG}
PLACES = np.array([(0, 0)] * 5 + [(i, j) for i in range(2) for j in range(3)], float)
ROPE = tables(PLACES, (2, 4))


def built(kind, **options):
    spec = ops.resolve(op(kind, **options), ops.operator_class(kind).role, SIZES)
    operator = ops.build(spec, SIZES)
    keys = iter(jax.random.split(jax.random.key(1), 99))
    params = jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape) * 0.5, shapes_of(operator))
    return operator, jax.tree.map(np.asarray, params)


def normed(x, norm, scale=None, bias=None):
    if norm == "rms":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale
    if norm in ("layer", "layer_affine"):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * scale + bias if norm == "layer_affine" else x


def turned(x, places):
    """As complex numbers: channel pairs of the first axis, then of the second."""
    rates = [places[:, :1] * 1.0, places[:, 1:] * 10_000.0 ** (-np.arange(2) * 2 / 4)]
    turn = np.exp(1j * np.concatenate(rates, axis=1))[:, None]
    z = (x[..., ::2] + 1j * x[..., 1::2]) * turn
    return np.stack([z.real, z.imag], axis=-1).reshape(x.shape)


def heads_of(x, p, norm):
    layers = [p[name] for name in ("qkv", "q", "kv") if name in p]
    qkv = np.concatenate([x @ layer["kernel"] + layer.get("bias", 0) for layer in layers], axis=-1).astype(np.float64)
    shared = (qkv.shape[-1] - 12) // 2  # channels of keys: of both heads, or of one that both look at
    parts = (part.reshape(*x.shape[:2], -1, 6) for part in np.split(qkv, (12, 12 + shared), axis=-1))
    q, k, v = (np.repeat(part, 2 // part.shape[2], axis=2) for part in parts)
    norms = (p.get(f"{name}_norm", {}) for name in "qk")
    return *(normed(part, norm, **own) for part, own in zip((q, k), norms, strict=True)), v


def attention(q, k, v, mask=True):
    logits = np.where(mask, np.einsum("bqhk,bmhk->bhqm", q, k) / np.sqrt(6), -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = np.einsum("bhqm,bmhk->bqhk", weights / weights.sum(-1, keepdims=True), v)
    return mixed.reshape(*mixed.shape[:2], -1)


def in_disc(radius):
    return lambda down, across: down**2 + across**2 < radius**2


def in_square(window):
    return lambda down, across: max(abs(down), abs(across)) <= window


def in_any(down, across):
    return True  # all three columns, and both rows, are in every window of 3 x 3 that moves inwards


def visible(near):
    """(11, 11), pair by pair: the 5 tokens of text see and are seen by all, those of the image by what is `near`, rows and
    columns away."""
    places = [None] * 5 + [(i, j) for i in range(2) for j in range(3)]
    return np.array([[None in (a, b) or near(a[0] - b[0], a[1] - b[1]) for b in places] for a in places])


def gated_2d(u, words, image):
    """What a 2-D Hyena makes of q, k and v side by side, u (2, 11, 36): filters of a stream each, tap by tap, gates, and the
    mean of the other stream in between; (2, 11, 12)."""
    taps, side = words["kernel"], len(image["kernel"])
    past = np.concatenate([np.zeros((2, len(taps) - 1, 36)), u[:, :5]], axis=1)
    txt = words["bias"] + sum(past[:, i : i + 5] * tap for i, tap in enumerate(taps))
    around = np.zeros((2, 2 + side - 1, 3 + side - 1, 36))
    around[:, side // 2 : side // 2 + 2, side // 2 : side // 2 + 3] = u[:, 5:].reshape(2, 2, 3, 36)
    img = sum(around[:, i : i + 2, j : j + 3] * image["kernel"][i, j, 0] for i in range(side) for j in range(side))
    img = (image["bias"] + img).reshape(2, 6, 36)
    (q_t, k_t, v_t), (q_i, k_i, v_i) = np.split(txt, 3, axis=-1), np.split(img, 3, axis=-1)
    held_t, held_i = k_t * v_t, k_i * v_i
    to_t, to_i = held_i.mean(1, keepdims=True), held_t.mean(1, keepdims=True)
    return np.concatenate([q_t * (held_t + to_t), q_i * (held_i + to_i)], axis=1)


def definition(params, norm, mix):
    """What a joint operator computes of the two streams, `mix` (q, k, v: (2, 11, 2, 6) float64) -> (2, 11, 12) being its
    own part: {"txt": .., "img": ..}, only the latter where the text has no projection back."""
    parts = [heads_of(x, params[name], norm) for name, x in (("txt", TXT), ("img", IMG))]
    mixed = mix(*(np.concatenate(both, axis=1) for both in zip(*parts, strict=True)))
    back = {name: (rows, params[name]["proj"]) for name, rows in (("txt", slice(5)), ("img", slice(5, None)))
            if "proj" in params[name]}  # fmt: skip
    return {name: mixed[:, rows] @ proj["kernel"] + proj.get("bias", 0) for name, (rows, proj) in back.items()}


def assert_defined(operator, params, norm, mix, rope=None):
    """Fail unless the operator computes its `definition`, and nothing for a text that gets no answer."""
    reads = {"rope": rope} if "rope" in operator.reads else {}
    out = jax.jit(lambda params, streams: operator.apply({"params": params}, streams, **reads))(params, STREAMS)
    expected = definition(params, norm, mix)
    assert set(out) == {"txt", "img"}
    for name, stream in out.items():
        np.testing.assert_allclose(stream, expected.get(name, 0 * TXT), atol=1e-5, err_msg=name)


def assert_counted(operator, core_flops, featurizer_flops=0):
    """Fail unless the cost has every parameter, these FLOPs of the operator proper, and those beside the projections."""
    cost, (m, n, d) = operator.cost(), (5, 6, 12)
    asking = n + m * operator.text_out
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(shapes_of(operator)))
    assert cost.op_flops == core_flops
    assert cost.featurizer_flops == 2 * 3 * (m + n) * d * d + 2 * asking * d * d + featurizer_flops
