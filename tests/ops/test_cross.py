"""Cross-attention: what is padding counts for nothing, exactly; a text of padding alone does no harm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from operator_checks import weights_of

from graftax.ops import LEAF_AXES, build, resolve
from graftax.ops import attention as attention_file
from graftax.spec import Sizes, op

SIZES = Sizes(24, 3, 8, (3, 4), context=5)
CROSS = build(resolve(op("cross_mha"), "cross", SIZES), SIZES)
WEIGHTS = weights_of(CROSS)
RNG = np.random.default_rng(0)
X, TEXT = RNG.standard_normal((3, 12, 24), np.float32), RNG.standard_normal((3, 5, 24), np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)


def run(text=TEXT, mask=MASK, x=X, weights=WEIGHTS):
    return np.asarray(CROSS.apply({"params": weights}, x, text=text, text_mask=mask))


def definition(x, text, bias):
    """One image in float64; `bias` (m,) is added to the logits of every query."""
    w = {path: np.asarray(leaf, np.float64) for path, leaf in flatten_dict(WEIGHTS, sep="/").items()}
    q = (x @ w["q/kernel"] + w["q/bias"]).reshape(-1, 3, 8)
    k, v = ((text @ w["kv/kernel"] + w["kv/bias"]).reshape(-1, 2, 3, 8)[:, i] for i in range(2))
    logits = np.einsum("nhk,mhk->hnm", q, k) / np.sqrt(8) + bias
    p = np.exp(logits - logits.max(-1, keepdims=True))
    out = np.einsum("hnm,mhk->nhk", p / p.sum(-1, keepdims=True), v).reshape(len(x), -1)
    return out @ w["proj/kernel"] + w["proj/bias"]


def test_only_real_tokens_are_looked_at():
    """As in the original, which cuts padding out, and as in diffusers, which adds -10000 to its logits."""
    out = run()
    for i, count in enumerate([5, 2]):
        cut = definition(X[i], TEXT[i, :count], 0)
        np.testing.assert_allclose(out[i], cut, rtol=2e-5, atol=2e-6)
        np.testing.assert_allclose(out[i], definition(X[i], TEXT[i], np.where(MASK[i], 0, -1e4)), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(run(mask=None)[0], out[0], rtol=1e-6, atol=1e-6)
    other = np.where(MASK[..., None], TEXT, 1e6).astype(np.float32)
    np.testing.assert_array_equal(run(text=other), out)


def test_a_text_without_a_real_token_gives_the_bias_and_finite_gradients():
    np.testing.assert_allclose(run()[2], np.broadcast_to(WEIGHTS["proj"]["bias"], (12, 24)), atol=1e-6)

    def loss(weights, x, text):
        return jnp.sum(jnp.sin(CROSS.apply({"params": weights}, x, text=text, text_mask=MASK)))

    found = jax.grad(loss, argnums=(0, 1, 2))(WEIGHTS, X, TEXT)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert not np.asarray(found[2])[~MASK].any()
    assert np.abs(found[2][0]).min(-1).max() > 0


def output_and_gradients(weights, x, text):
    def loss(weights, x, text):
        out = CROSS.apply({"params": weights}, x, text=text, text_mask=MASK)
        return jnp.sum(jnp.sin(out)), out

    found, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(weights, x, text)
    return out, found


def test_by_tiles_it_computes_the_same(monkeypatch):
    """Also for a text of padding alone, the third."""
    dense = output_and_gradients(WEIGHTS, X, TEXT)
    monkeypatch.setattr(attention_file, "DENSE_BELOW", {jax.default_backend(): 0})
    monkeypatch.setattr(attention_file, "attend", lambda *_: pytest.fail("the dense form"))
    tiles = output_and_gradients(WEIGHTS, X, TEXT)
    np.testing.assert_allclose(tiles[0][2], np.broadcast_to(WEIGHTS["proj"]["bias"], (12, 24)), atol=1e-6)
    for one, other in zip(jax.tree.leaves(tiles), jax.tree.leaves(dense), strict=True):
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


@pytest.mark.parametrize(("side", "dense"), [(32, True), (128, False)])
def test_large_pictures_make_no_matrix_of_image_and_text(side, dense):
    """PixArt-Sigma's 300 tokens of text at 512 and 2048 pixels."""
    sizes = Sizes(24, 3, 8, (side, side), context=300)
    cross = build(resolve(op("cross_mha"), "cross", sizes), sizes)
    x, text = (jax.ShapeDtypeStruct((1, count, 24), np.float32) for count in (side**2, 300))
    mask = jax.ShapeDtypeStruct((1, 300), np.int32)

    def loss(x, text, mask):
        return jnp.sum(cross.apply({"params": WEIGHTS}, x, text=text, text_mask=mask))

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(x, text, mask))
    assert (f"{side**2},300]" in jaxpr) == dense


def test_costs_are_those_of_its_products():
    cost = CROSS.cost()
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(WEIGHTS))
    d, n, m, h = 24, 12, 5, 3
    assert cost.op_flops == 4 * n * m * d + 2 * n * m * h
    assert cost.featurizer_flops == 2 * n * d * d * 2 + 2 * m * d * 2 * d


def test_from_scratch_it_starts_without_its_text():
    fresh = build(op("cross_mha"), SIZES, init_style="dit")
    params = fresh.init(jax.random.key(0), X, text=TEXT, text_mask=MASK)
    assert not np.asarray(fresh.apply(params, X, text=TEXT, text_mask=MASK)).any()
    assert np.asarray(params["params"]["q"]["kernel"]).any()


def test_it_has_names_axes_and_takes_over_its_like():
    assert {key.leaf for key in CROSS.torch_keys} == set(flatten_dict(WEIGHTS, sep="/"))
    assert {path: LEAF_AXES[path][1] for path in ("q/kernel", "kv/kernel", "proj/kernel")} == {
        "q/kernel": "hidden", "kv/kernel": "hidden", "proj/kernel": None
    }  # fmt: skip
    assert CROSS.transplant({}, CROSS, WEIGHTS) is WEIGHTS
    assert CROSS.transplant({}, build(op("mha"), SIZES), {}) is None


@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_compute_dtype(dtype):
    half = CROSS.with_dtype(dtype).apply({"params": WEIGHTS}, X, text=TEXT, text_mask=MASK)
    assert half.dtype == dtype
    assert np.abs(np.asarray(half, np.float32) - run()).max() < 0.03 * np.abs(run()).max()
