"""SwiGLU against its definition; its names in files; whose weights it takes."""

import jax
import numpy as np
import pytest
from operator_checks import weights_of

from graftax import ops
from graftax.errors import BadInput
from graftax.ops.base import call, shapes_of
from graftax.spec import Sizes, op

SIZES = Sizes(12, 2, 6, (2, 3), text=5)
X = np.random.default_rng(0).standard_normal((2, 11, 12)).astype(np.float32)


def built(**options):
    operator = ops.build(ops.resolve(op("swiglu", **options), "channel", SIZES), SIZES)
    return operator, weights_of(operator)


@pytest.mark.parametrize("bias", [True, False])
def test_its_definition(bias):
    operator, params = built(ratio=2.5, bias=bias)
    layers = {name: (np.float64(layer["kernel"]), layer.get("bias", 0)) for name, layer in params.items()}
    first, second = (X @ kernel + b for kernel, b in (layers["w1"], layers["w2"]))
    kernel, b = layers["out"]
    expected = first / (1 + np.exp(-first)) * second @ kernel + b
    np.testing.assert_allclose(call(operator, params, X), expected, atol=1e-5)
    assert (kernel.shape, "bias" in params["w1"]) == ((30, 12), bias)
    assert operator.cost().params == sum(leaf.size for leaf in jax.tree.leaves(shapes_of(operator)))
    assert operator.cost().flops == 2 * 11 * 3 * 12 * 30 + 11 * 30


def test_as_many_parameters_as_an_mlp_by_default():
    sizes = Sizes(48, 2, 24, (2, 2))
    costs = [ops.build(ops.resolve(op(kind), "channel", sizes), sizes).cost() for kind in ("swiglu", "mlp")]
    assert costs[0].params == 3 * 48 * 128 == costs[1].params - 5 * 48


@pytest.mark.parametrize("bias", [True, False])
def test_it_is_recognised_by_its_tensors(bias):
    operator, params = built(ratio=2.5, bias=bias)
    shapes = {f"{layer}.weight": params[layer]["kernel"].shape[::-1] for layer in params}
    shapes |= {f"{layer}.bias": params[layer]["bias"].shape for layer in params if bias}
    assert type(operator).recognise(shapes, {}) == {"ratio": 2.5, "bias": bias}
    assert type(operator).recognise({"w1.weight": (30, 12)}, {}) is None
    assert ops.operator_class("mlp").recognise(shapes, {}) is None


def test_it_takes_over_its_own_kind():
    (plain, weights), (biased, fresh) = built(ratio=2.5), built(ratio=2.5, bias=True)
    taken = biased.transplant(fresh, plain, weights)
    np.testing.assert_array_equal(call(biased, taken, X), call(plain, weights, X))
    assert plain.transplant(weights, biased, fresh) is None  # its biases have nowhere to go
    assert built(ratio=3.0)[0].transplant({}, plain, weights) is None
    assert plain.transplant(weights, ops.build(op("mlp", ratio=2.5), SIZES), {}) is None


def test_a_width_of_none_is_refused():
    with pytest.raises(BadInput, match=r"swiglu ratio: got 0\.0, expected a hidden width of at least 1 at width 12"):
        built(ratio=0.0)
