"""The helpers fail where they should."""

import jax
import numpy as np
import pytest

from graftax.surgery import check
from graftax.testing import assert_same_leaves, assert_trees_close, random_params, tiny_spec

SPEC = tiny_spec()
PARAMS = random_params(SPEC, jax.random.key(0))


def test_tiny_spec_has_the_geometry_of_the_goldens():
    assert (SPEC.tokens, SPEC.width, SPEC.depth, SPEC.sizes.heads, SPEC.out_channels) == (16, 48, 4, 4, 8)
    assert tiny_spec(depth=2, learn_sigma=False).out_channels == 4


def test_random_params_fit_and_are_nowhere_dead():
    check(SPEC, PARAMS)
    for path, leaf in jax.tree.leaves_with_path(PARAMS):
        if "pos_embed" not in jax.tree_util.keystr(path):
            assert np.all(np.asarray(leaf) != 0), path
    gates = PARAMS["blocks"]["01"]["adaln"]["bias"].reshape(2, 3, 48)[:, 2]
    assert float(abs(gates).mean()) > 0.1


def test_random_params_depend_on_key_and_path():
    deeper = random_params(tiny_spec(depth=5), jax.random.key(0))
    del deeper["blocks"]["04"]
    assert_trees_close(deeper, PARAMS, rtol=0, atol=0)
    other = random_params(SPEC, jax.random.key(1))
    block = PARAMS["blocks"]["00"]["mlp"]["fc1"]["kernel"]
    assert not np.array_equal(block, other["blocks"]["00"]["mlp"]["fc1"]["kernel"])
    assert not np.array_equal(block, PARAMS["blocks"]["01"]["mlp"]["fc1"]["kernel"])


def test_assert_same_leaves():
    copied = {**PARAMS, "final": jax.tree.map(lambda leaf: leaf + 0, PARAMS["final"])}
    assert_same_leaves(PARAMS, copied, ["final"])
    with pytest.raises(AssertionError, match="final/linear/kernel"):
        assert_same_leaves(PARAMS, copied)
    with pytest.raises(AssertionError, match="final/linear/kernel"):
        assert_same_leaves(PARAMS, copied, ["final/adaln"])
    with pytest.raises(AssertionError, match="pos_embed"):
        assert_same_leaves(PARAMS, {k: v for k, v in PARAMS.items() if k != "pos_embed"})
    with pytest.raises(AssertionError, match="no such leaf"):
        assert_same_leaves(PARAMS, PARAMS, ["final/lin"])


def test_assert_trees_close():
    assert_trees_close({"a": np.ones(2)}, {"a": np.ones(2) + 1e-6})
    with pytest.raises(AssertionError, match="'a'"):
        assert_trees_close({"a": np.ones(2)}, {"a": np.ones(2) + 1e-3})
    with pytest.raises(AssertionError, match="structure"):
        assert_trees_close({"a": np.ones(2)}, {"b": np.ones(2)})
