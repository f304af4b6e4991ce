"""The check names what does not fit."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.surgery.check import check, check_trainable, expected_leaves
from graftax.testing import random_params, tiny_spec

SPEC = tiny_spec()
PARAMS = random_params(SPEC, jax.random.key(0))


def broken():
    return copy.deepcopy(jax.tree.map(np.asarray, PARAMS))


def test_jax_and_numpy_trees_pass():
    check(SPEC, PARAMS)
    check(SPEC, broken())


def test_a_missing_leaf_is_named():
    params = broken()
    del params["blocks"]["02"]["mixer"]["qkv"]["bias"]
    with pytest.raises(BadInput, match=r"blocks/02/mixer/qkv/bias is missing$"):
        check(SPEC, params)


def test_an_extra_leaf_is_named():
    params = broken()
    params["blocks"]["04"] = {"mixer": {"gain": np.zeros(3, np.float32)}}
    with pytest.raises(BadInput, match=r"blocks/04/mixer/gain is not in the spec$"):
        check(SPEC, params)


def test_a_misshapen_leaf_is_named_with_both_shapes():
    params = broken()
    params["final"]["linear"]["kernel"] = np.zeros((48, 16), np.float32)
    with pytest.raises(BadInput, match=r"final/linear/kernel has shape \(48, 16\), expected \(48, 32\)$"):
        check(SPEC, params)


@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64])
def test_types_that_are_no_floats_are_named(dtype):
    params = broken()
    params["pos_embed"] = params["pos_embed"].astype(dtype)
    with pytest.raises(BadInput, match=rf"pos_embed has type {np.dtype(dtype).name}, expected a float type$"):
        check(SPEC, params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64])
def test_other_float_types_are_for_inference(dtype):
    params = broken()
    params["blocks"]["02"]["mlp"]["fc1"]["bias"] = params["blocks"]["02"]["mlp"]["fc1"]["bias"].astype(dtype)
    check(SPEC, params)
    check_trainable("model", PARAMS)
    message = rf"student: blocks/02/mlp/fc1/bias is {np.dtype(dtype).name}, expected float32; graftax\.load"
    with pytest.raises(BadInput, match=message):
        check_trainable("student", params)


def test_what_is_no_model_of_its_backbone_is_refused():
    with pytest.raises(BadInput, match="frame colour: not known"):
        check(SPEC.with_frame(colour=1), PARAMS)


def test_what_is_no_array_is_named():
    params = broken()
    params["pos_embed"] = 1.0
    with pytest.raises(BadInput, match=r"pos_embed is a float, expected an array$"):
        check(SPEC, params)


def test_many_faults_are_counted():
    params = broken()
    del params["blocks"]["01"]["mlp"]  # 4 leaves
    params["final"]["linear"]["bias"] = np.zeros(1, np.float32)
    params["extra"] = np.zeros(1, np.float32)
    params["pos_embed"] = None
    with pytest.raises(BadInput) as error:
        check(SPEC, params)
    assert "blocks/01/mlp/fc1/kernel is missing" in str(error.value)
    assert str(error.value).endswith("extra is not in the spec, and 2 more")


def test_expected_leaves_are_cached_by_value():
    assert expected_leaves(SPEC) is expected_leaves(tiny_spec())
    assert len(expected_leaves(SPEC)) == len(jax.tree.leaves(PARAMS))
