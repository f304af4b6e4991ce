"""Linear maps in place of operators: definition, cost, names, transplants. `tests/distill/test_closed_form.py` fits them."""

import jax
import numpy as np
import pytest
from operator_checks import assert_exports, made, weights_of

from graftax.errors import BadInput
from graftax.ops import OPERATORS
from graftax.ops.low_rank import reduced_rank, square_root
from graftax.spec import op
from graftax.testing import tiny_spec

SPEC = tiny_spec(hidden_size=24, num_heads=3)
KINDS = ["affine", "affine_mlp"]
by_kind = pytest.mark.parametrize("kind", KINDS)


@by_kind
@pytest.mark.parametrize("rank", [0, 5])
def test_equals_the_definition_at_its_cost(kind, rank):
    operator = made(op(kind, rank=rank), SPEC)
    x, weights = np.random.default_rng(0).standard_normal((2, 16, 24), np.float32), weights_of(operator)
    p = weights["affine"]
    kernel, bias = (p["down"]["kernel"] @ p["up"]["kernel"], p["up"]["bias"]) if rank else (p["kernel"], p["bias"])
    np.testing.assert_allclose(operator.apply({"params": weights}, x), x @ kernel + bias, atol=1e-5)
    assert operator.cost().params == sum(leaf.size for leaf in jax.tree.leaves(weights))
    assert operator.cost().flops == 2 * 16 * (2 * 24 * rank if rank else 24**2)


@pytest.mark.parametrize("rank", [0, 5])
def test_starts_with_pytorchs_defaults(rank):
    operator = made(op("affine", rank=rank), SPEC)
    fresh = operator.init(jax.random.key(0), np.zeros((1, 16, 24), np.float32))["params"]["affine"]
    fan_in = {"down": 24, "up": 5} if rank else {"kernel": 24, "bias": 24}
    for name, part in fresh.items():
        for leaf in jax.tree.leaves(part):
            assert 0.7 * fan_in[name] ** -0.5 < abs(leaf).max() <= fan_in[name] ** -0.5


@pytest.mark.parametrize("scion", [op(kind, rank=rank) for kind in KINDS for rank in (0, 5)], ids=str)
def test_recognised_from_its_tensors(scion):
    assert_exports(scion)


def test_transplants_within_a_rank_alone():
    full, low, lower = (made(op("affine", rank=rank), SPEC) for rank in (0, 5, 4))
    weights = weights_of(low)
    assert low.transplant({}, low, weights) is weights
    assert full.transplant({}, low, weights) is lower.transplant({}, low, weights) is None
    assert full.transplant({}, made(op("mha"), SPEC), {}) is None


def test_roles_and_losses():
    mixer, channel = (OPERATORS[kind] for kind in KINDS)
    assert (mixer.role, mixer.regression_loss) == ("mixer", "l1")
    assert (channel.role, channel.regression_loss) == ("channel", "l2")


@by_kind
@pytest.mark.parametrize("rank", [-1, 25])
def test_refuses(kind, rank):
    with pytest.raises(BadInput, match=rf"{kind} rank: got {rank}, expected 0 \(full\) to the width 24"):
        made(op(kind, rank=rank), SPEC)


def test_reduced_rank_is_the_best_of_its_rank():
    """No map of rank 3 is nearer on the data: as Eckart and Young have it for the values fitted on them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 8)) @ rng.standard_normal((8, 8)) + 3
    kernel, bias = rng.standard_normal((8, 6)), rng.standard_normal(6)
    down, up, own = reduced_rank(kernel, bias, x.mean(0), square_root(np.cov(x.T, bias=True)), 3)
    assert (down.shape, up.shape) == ((8, 3), (3, 6))
    error = x @ down @ up + own - (x @ kernel + bias)
    least = np.linalg.svd((x - x.mean(0)) @ kernel, compute_uv=False)[3:]
    assert np.square(error).sum() == pytest.approx(np.square(least).sum(), rel=1e-9)
