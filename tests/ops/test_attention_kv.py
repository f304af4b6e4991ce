"""Attention with fewer keys than queries, against PyTorch's convolution and norms; the whole model's golden is PixArt's."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from operator_checks import assert_gradients, weights_of

from graftax.errors import BadInput
from graftax.ops import build, resolve
from graftax.ops.attention_kv import Shrink
from graftax.spec import Sizes, op
from graftax.surgery.check import leaves_by_path

SIZES = Sizes(24, 3, 8, (5, 6))
KINDS = [op("mha_kv", factor=factor, qk_norm=norm) for factor, norm in ((2, False), (2, True), (1, True), (3, True))]
X = np.random.default_rng(0).standard_normal((2, 30, 24), np.float32)


def made(kind, sizes=SIZES):
    return build(resolve(kind, "mixer", sizes), sizes)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_it_is_pytorchs_definition(kind):
    torch = pytest.importorskip("torch")
    operator, functional = made(kind), torch.nn.functional
    weights = weights_of(operator)
    w = {path: torch.from_numpy(np.array(leaf)) for path, leaf in flatten_dict(weights, sep="/").items()}
    q, k, v = (torch.from_numpy(X) @ w["qkv/kernel"] + w["qkv/bias"]).chunk(3, -1)
    if kind.option("qk_norm"):
        q, k = (functional.layer_norm(a, (24,), w[f"{n}/scale"], w[f"{n}/bias"]) for a, n in ((q, "q_norm"), (k, "k_norm")))
    if (f := kind.option("factor")) > 1:
        kernel = w["sr/kernel"].permute(3, 2, 0, 1)  # (f, f, 1, d) -> (d, 1, f, f)

        def shrunk(a):
            image = a.transpose(1, 2).reshape(2, 24, 5, 6)
            a = functional.conv2d(image, kernel, w["sr/bias"], stride=f, groups=24).flatten(2).transpose(1, 2)
            return functional.layer_norm(a, (24,), w["norm/scale"], w["norm/bias"])

        k, v = shrunk(k), shrunk(v)
    heads = (a.unflatten(-1, (3, 8)).transpose(1, 2) for a in (q, k, v))
    expected = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2) @ w["proj/kernel"] + w["proj/bias"]
    np.testing.assert_allclose(operator.apply({"params": weights}, X), expected.numpy(), rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_costs_names_and_recognition(kind):
    operator = made(kind)
    weights = weights_of(operator)
    cost, keys = operator.cost(), {(5 // f) * (6 // f) if (f := kind.option("factor")) > 1 else 30}
    assert cost.params == sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert cost.op_flops == keys.pop() * 30 * (4 * 24 + 2 * 3)
    shapes = {}
    for key in operator.torch_keys:
        if (leaf := leaves_by_path(weights).get(key.leaf)) is not None:
            shapes[key.name] = leaf.shape[::-1] if key.layout != "patch" else (24, 1, *leaf.shape[:2])
    assert set(leaves_by_path(weights)) <= {key.leaf for key in operator.torch_keys}
    assert op("mha_kv", **type(operator).recognise(shapes, {})) == resolve(kind, "mixer", SIZES)


def test_gradients():
    operator = made(op("mha_kv", qk_norm=True), Sizes(8, 2, 4, (2, 4)))
    assert_gradients(operator, weights_of(operator), X[:, :8, :8], step=0.05)


def test_it_starts_from_the_mean_of_every_square_and_takes_over_other_attention():
    shrink = Shrink(2, (4, 6))
    image = X[:, :24].reshape(2, 4, 6, 24)
    means = image.reshape(2, 2, 2, 3, 2, 24).mean((2, 4)).reshape(2, 6, 24)
    found = shrink.apply(shrink.init(jax.random.key(0), X[:, :24]), X[:, :24])
    np.testing.assert_allclose(found, means, atol=1e-6)
    small, large, plain = made(KINDS[1]), made(KINDS[3]), made(op("mha"))
    fresh, weights = weights_of(large, 1), weights_of(small, 2)
    taken = large.transplant(fresh, small, weights)  # its convolution has another size
    assert taken["qkv"] is weights["qkv"]
    assert taken["q_norm"] is weights["q_norm"]
    assert taken["sr"] is fresh["sr"]
    assert set(plain.transplant({}, small, weights)) == {"qkv", "proj"}


def test_what_it_cannot_be():
    for factor in (0, 6):
        with pytest.raises(BadInput, match=f"mha_kv factor: got {factor}, expected 1 to the 5 tokens"):
            made(op("mha_kv", factor=factor))
    with pytest.raises(BadInput, match="works on the image's grid alone"):
        made(op("mha_kv"), Sizes(24, 3, 8, (5, 6), text=4))
