"""Tensors that hold several leaves, and those whose halves stand in the other order, there and back."""

import jax
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import random_params
from graftax.models.layout import Key, Layout, params_from, tensor_shapes, tensors_from
from graftax.testing.toy import toy_spec

SPEC = toy_spec(0, 1)
BLOCK = "blocks/00"
D, TALL = SPEC.width, 2 * SPEC.width
FUSED = (
    # As in Flux's single blocks: rows of the first layers one below the other, columns of the last side by side.
    Key(f"{BLOCK}/mixer/qkv/kernel", ("in.weight",), "linear", part=(0, 0, 3 * D)),
    Key(f"{BLOCK}/mlp/fc1/kernel", ("in.weight",), "linear", part=(0, 3 * D, 3 * D + TALL)),
    Key(f"{BLOCK}/mixer/proj/kernel", ("out.weight",), "linear", part=(1, 0, D)),
    Key(f"{BLOCK}/mlp/fc2/kernel", ("out.weight",), "linear", part=(1, D, D + TALL)),
    Key("final/adaln/kernel", ("norm.weight",), "linear", swap=True),
)


class Fused(Layout):
    name = "fused"

    def fits(self, shapes, config):
        return True

    def spec(self, shapes, config, overrides):
        return SPEC

    def keys(self, spec):
        from flax.traverse_util import flatten_dict

        taken = {key.leaf for key in FUSED}
        rest = (path for path in flatten_dict(PARAMS, sep="/") if path not in taken)
        return [*FUSED, *(Key(path, (path,)) for path in rest)]

    def check(self, spec):
        pass


PARAMS = jax.tree.map(np.asarray, random_params(SPEC, jax.random.key(0)))


def test_there_and_back():
    tensors = tensors_from(Fused(), SPEC, PARAMS)
    assert tensors["in.weight"].shape == (3 * D + TALL, D)
    assert tensors["out.weight"].shape == (D, D + TALL)
    shift, scale = np.split(PARAMS["final"]["adaln"]["kernel"].T, 2)
    np.testing.assert_array_equal(tensors["norm.weight"], np.concatenate([scale, shift]))
    assert tensor_shapes(Fused(), SPEC) == {name: tensor.shape for name, tensor in tensors.items()}
    found = params_from(Fused(), SPEC, tensors)
    jax.tree.map(np.testing.assert_array_equal, found, PARAMS)
    fused = found["blocks"]["00"]["mixer"]["qkv"]["kernel"]
    assert np.shares_memory(fused, tensors["in.weight"])  # a view: nothing of a large file is copied


def test_a_fused_tensor_of_another_size_is_named():
    tensors = tensors_from(Fused(), SPEC, PARAMS)
    tensors["in.weight"] = tensors["in.weight"][:-1]
    with pytest.raises(BadInput, match=r"tensors mis-shaped: in\.weight .*expected \(80, 16\)"):
        params_from(Fused(), SPEC, tensors)


def test_tensors_under_a_prefix_stand_beside_others():
    class Prefixed(Fused):
        prefix = "model.net."

    layout = Prefixed()
    tensors = tensors_from(layout, SPEC, PARAMS)
    assert all(name.startswith("model.net.") for name in tensors)
    bare = {name.removeprefix("model.net."): tensor for name, tensor in tensors.items()}
    assert tensor_shapes(layout, SPEC).keys() == bare.keys()
    for file in (tensors, {**tensors, "vae.ids": np.zeros(3, int)}, bare):
        jax.tree.map(np.testing.assert_array_equal, params_from(layout, SPEC, file), PARAMS)
    with pytest.raises(BadInput, match="tensors unexpected: more"):
        params_from(layout, SPEC, {**tensors, "model.net.more": np.zeros(3)})
