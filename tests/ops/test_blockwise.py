"""Full attention in its forms: tiles and kernels against float64, forward and gradients; memory; which form is taken."""

import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.ops import attention as attention_file
from graftax.ops.attention import attend, attention_form, full_attention
from graftax.ops.blockwise import blockwise_attention, default_block
from graftax.ops.kernels import cudnn_takes, splash_attention
from graftax.ops.target import compiling_for

LOGIT_SCALE = 3.0  # rows far from uniform, so that maxima move from block to block


def qkv(n, m=None, heads=2, width=8, batch=2, dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, n, heads, width)] + 2 * [(batch, m or n, heads, width)]
    q, k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    return LOGIT_SCALE * q, k, v


def definition(q, k, v, keys=None):
    """softmax(q k^T / sqrt(width)) v in float64, zero where there is no key, and its gradients along cos(position)."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    here = np.ones((len(k), k.shape[1]), bool) if keys is None else np.asarray(keys)
    logits = np.einsum("bqhk,bmhk->bhqm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True)) * here[:, None, None]
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)
    out = np.einsum("bhqm,bmhk->bqhk", weights, v)
    g = direction(out.shape)
    slope = np.einsum("bqhk,bmhk->bhqm", g, v)
    slope = weights * (slope - (weights * slope).sum(-1, keepdims=True)) / np.sqrt(q.shape[-1])
    dq, dk = np.einsum("bhqm,bmhk->bqhk", slope, k), np.einsum("bhqm,bqhk->bmhk", slope, q)
    return out, dq, dk, np.einsum("bhqm,bqhk->bmhk", weights, g)


def direction(shape):
    return np.cos(np.arange(np.prod(shape))).reshape(shape)


def with_gradients(form, q, k, v, **settings):
    """Result and gradients of q, k, v along `direction`."""

    def run(q, k, v, g):
        out, back = jax.vjp(lambda q, k, v: form(q, k, v, **settings), q, k, v)
        return out, *back(g)

    return jax.jit(run)(q, k, v, jnp.asarray(direction(q.shape), q.dtype))


def assert_close(actual, expected, tolerance):
    for name, a, e in zip(("out", "dq", "dk", "dv"), actual, expected, strict=True):
        error = np.abs(np.asarray(a, np.float64) - e).max()
        assert error <= tolerance * np.abs(e).max(), f"{name}: off by {error}"


@pytest.mark.parametrize(
    ("n", "m", "block"),
    [(16, 16, (8, 4)), (19, 19, (8, 6)), (5, 23, (4, 8)), (23, 3, (64, 64))],
)
@pytest.mark.parametrize("masked", [False, True])
def test_tiles_equal_the_definition(n, m, block, masked):
    args = qkv(n, m)
    keys = np.random.default_rng(1).random((2, m)) < 0.7 if masked else None
    if masked:
        keys[1] = False  # a picture without a single word
    found = with_gradients(blockwise_attention, *args, keys=keys, block=block)
    assert_close(found, definition(*args, keys), 1e-5)


def test_large_logits_stay_finite():
    q, k, v = qkv(24, width=4)
    found = with_gradients(blockwise_attention, 100 * q, k, v, block=(8, 8))
    assert_close(found, definition(100 * q, k, v), 2e-5)  # logits of some 500, known to 24 bits


@pytest.mark.parametrize("form", [attend, functools.partial(blockwise_attention, block=(8, 8))])
def test_bfloat16_keeps_the_softmax_in_float32(form):
    args = qkv(40, dtype=jnp.bfloat16)
    found = with_gradients(form, *args)
    assert {a.dtype for a in found} == {jnp.dtype("bfloat16")}
    assert_close(found, definition(*args), 0.02)


def test_dense_and_tiles_agree_about_missing_keys():
    args, keys = qkv(6, 9), np.zeros((2, 9), bool)
    keys[0, :4] = True
    assert_close(with_gradients(full_attention, *args, keys=keys), definition(*args, keys), 1e-5)


def test_tiles_under_vmap_scan_and_remat():
    """As stage 1, stacks of blocks and training use it."""
    q, k, v = qkv(12)
    form = functools.partial(blockwise_attention, block=(4, 8))
    both = jax.jit(jax.vmap(form))(*(jnp.stack([a, 2 * a]) for a in (q, k, v)))
    np.testing.assert_allclose(both[1], attend(2 * q, 2 * k, 2 * v), atol=1e-5)

    def deep(attention, q):
        step = jax.checkpoint(lambda x, _: (attention(x, x, x), None))
        return jnp.sum(jax.lax.scan(step, q, length=2)[0] ** 2)

    actual, expected = (jax.jit(jax.grad(functools.partial(deep, f)))(q) for f in (form, attend))
    np.testing.assert_allclose(actual, expected, atol=1e-5 * float(abs(expected).max()))


# --- Memory ------------------------------------------------------------------------------------------------------------


def temporaries(n, gradient):
    shape = jax.ShapeDtypeStruct((1, n, 2, 72), jnp.float32)

    def run(q, k, v):
        return jnp.sum(blockwise_attention(q, k, v))

    compiled = jax.jit(jax.grad(run, argnums=(0, 1, 2)) if gradient else run).lower(shape, shape, shape).compile()
    return compiled.memory_analysis().temp_size_in_bytes


RESIDENT = """
import resource, jax, jax.numpy as jnp
from graftax.ops.blockwise import blockwise_attention
q = jnp.ones((1, 8192, 4, 72))
run = jax.jit(jax.grad(lambda *qkv: blockwise_attention(*qkv).sum(), argnums=(0, 1, 2))).lower(q, q, q).compile()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
jax.block_until_ready(run(q, q, q))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts in KiB there")
def test_what_runs_holds_no_matrix_either():
    """XLA's own count leaves out what its fused products for CPUs allocate while they run."""
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 1024 * int(done.stdout) < 8192**2 * 4  # a single matrix, of the eight that the dense form holds


@pytest.mark.parametrize("gradient", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_memory_is_linear_in_tokens(gradient):
    sizes = [temporaries(n, gradient) for n in (2048, 4096, 8192, 16384)]
    assert all(b < 2.5 * a for a, b in itertools.pairwise(sizes)), sizes
    assert sizes[-1] < 16384**2  # a quarter of one head's matrix


# --- Choice ------------------------------------------------------------------------------------------------------------


def form_of(n, m=None, *, dtype=jnp.bfloat16, width=72, keys=None):
    q, k = (jax.ShapeDtypeStruct((1, count, 16, width), dtype) for count in (n, m or n))
    return attention_form(q, k, keys)


def test_form_by_size_and_target(monkeypatch):
    monkeypatch.setattr(attention_file, "gpu_capability", lambda: "9.0")
    for platform, large in (("cpu", "blockwise"), ("gpu", "cudnn"), ("tpu", "splash")):
        with compiling_for(platform):
            assert [form_of(n) for n in (256, 512, 2048, 16384)] == ["dense", "dense", large, large]
            assert form_of(256, 300) == "dense"
    with compiling_for("gpu"):
        assert form_of(16384, dtype=jnp.float32) == form_of(16384, width=76) == "blockwise"
        assert form_of(16384, 300, keys=True) == "blockwise"
        monkeypatch.setattr(attention_file, "gpu_capability", lambda: "7.0")
        assert form_of(16384) == "blockwise"
    with compiling_for("tpu"):
        assert default_block() != (256, 512)


def test_what_cudnn_takes():
    assert cudnn_takes(72, jnp.bfloat16, "8.0")
    assert cudnn_takes(256, jnp.float16, "9.0")
    for refused in ((76, "bfloat16", "9.0"), (256, "bfloat16", "8.0"), (64, "float32", "9.0"), (64, "bfloat16", "7.5")):
        assert not cudnn_takes(*refused)
    assert not cudnn_takes(64, jnp.bfloat16, "gfx90a")
    assert not cudnn_takes(64, jnp.bfloat16, "")


def test_large_inputs_go_by_tiles_here(monkeypatch):
    monkeypatch.setattr(attention_file, "DENSE_BELOW", {jax.default_backend(): 0})
    args = qkv(9, 7)
    jaxpr = str(jax.make_jaxpr(full_attention)(*args))
    assert "scan" in jaxpr
    np.testing.assert_allclose(full_attention(*args), attend(*args), atol=1e-5)


# --- The kernel for TPUs, by its interpreter; `tests/evaluate/aot/test_attention.py` compiles it -------------------------


@pytest.mark.parametrize(("n", "m", "masked"), [pytest.param(256, 256, False, marks=pytest.mark.slow), (130, 200, True)])
def test_splash_equals_the_definition(n, m, masked):
    args = qkv(n, m, width=72)
    keys = np.random.default_rng(1).random((2, m)) < 0.7 if masked else None
    if masked:
        keys[1] = False
    found = with_gradients(splash_attention, *args, keys=keys, block=128, interpret=True)
    assert_close(found, definition(*args, keys), 1e-5)


# --- Meshes --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_four_devices_attend_as_one_and_send_nothing():
    script = Path(__file__).parent / "attention_mesh_run.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    forms = json.loads(done.stdout.splitlines()[-1])
    assert forms.pop("mesh_of") == [True, True]
    assert list(forms) == ["tiles", "splash"]
    for form, found in forms.items():
        assert max(found["errors"]) < 1e-5, form
        assert found["shards"] == [1 / 4] * 4, form
        assert found["collectives"] == [], form
