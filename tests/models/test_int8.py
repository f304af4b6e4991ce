"""Weights of eight bits: how far the answers move, what they weigh, and what such a model is not for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.api import place
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.int8 import quantised
from graftax.testing import random_params, tiny_spec
from graftax.train import finetune

pytest.importorskip("qwix")


@pytest.fixture(scope="module")
def model():
    return graftax.load("demo")


@pytest.fixture(scope="module")
def small(model):
    return quantised(model)


def output(model, **options):
    x = jax.random.normal(jax.random.key(0), (2, *model.spec.image_shape))
    return np.asarray(model.apply(x, jnp.full(2, 300.0), jnp.arange(2), **options)[0])


def test_a_kernel_is_the_nearest_of_255_levels_of_its_column(model, small):
    kernel = np.asarray(model.params["blocks"]["03"]["mlp"]["fc1"]["kernel"])
    step = np.abs(kernel).max(0) / 127
    found = small.params["blocks"]["03"]["mlp"]["fc1"]["kernel"]
    assert found.qvalue.dtype == jnp.int8
    np.testing.assert_allclose(found.scale[0], step, rtol=0.01)  # qwix leaves half a level of room
    assert (np.abs(np.asarray(found.qvalue) * np.asarray(found.scale) - kernel) <= 0.51 * np.asarray(found.scale)).all()


def test_answers_move_by_the_rounding_in_every_plan(model, small):
    """0.3 % on the demo's weights: rounding to 1/254 of a column's largest, averaged over 128 and more inputs."""
    exact = output(model)
    for plan in ("unroll", "kind_scan"):
        assert 1e-4 < np.linalg.norm(output(small, plan=plan) - exact) / np.linalg.norm(exact) < 0.01


def test_blocks_take_a_quarter(model, small):
    def size(model):
        return sum(leaf.nbytes for leaf in jax.tree.leaves(model.params["blocks"]))

    assert size(small) < 0.28 * size(model)


def test_it_samples_and_says_what_it_is_not_for(model, small, tmp_path):
    assert graftax.sample(small, [1], steps=2).shape == (1, *model.spec.image_shape)
    for refused in (
        lambda: graftax.save(small, tmp_path / "out"),
        lambda: graftax.export(small, tmp_path / "out.pt"),
        lambda: graftax.graft(small, graftax.drop(0)),
        lambda: finetune(small, None, None),
    ):
        with pytest.raises(BadInput, match="is a QArray"):
            refused()
    assert not list(tmp_path.iterdir())


def test_it_is_a_type_to_load(small):
    found = place(graftax.api.read("demo"), "int8")
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found.params, small.params))


def test_adapters_are_folded_in():
    model = Model(tiny_spec(), random_params(tiny_spec(), jax.random.key(0)))
    adapted = graftax.graft(model, graftax.lora("blocks[*].mixer", rank=2), rng=jax.random.key(0))
    assert adapted.spec.adapters
    assert not quantised(adapted).spec.adapters
