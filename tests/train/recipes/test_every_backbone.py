"""Every term of recipes in a training of every family: what it adds reaches the network before it, on routes too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.backbones.auraflow import auraflow_spec
from graftax.backbones.ddt import ddt_spec
from graftax.backbones.flux import flux_spec
from graftax.backbones.lightningdit import lightningdit_spec
from graftax.backbones.maskdit import maskdit_spec
from graftax.backbones.sd3 import sd3_spec
from graftax.models.backbone import find
from graftax.testing import random_params, tiny_spec, tiny_text_spec
from graftax.train import diffusion_loss, training_tree
from graftax.train.recipes import Recipe
from graftax.train.step import RUN

KEY, COUNT = jax.random.key(0), 4
JOINT = {"input_size": 8, "in_channels": 4, "hidden_size": 24, "num_heads": 2, "text_width": 6, "text_tokens": 5}
CLASSES = {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 16, "num_heads": 2, "num_classes": 10}
SPECS = {
    "dit": tiny_spec(depth=3, hidden_size=16, num_heads=2),
    "lightningdit": lightningdit_spec(**CLASSES, depth=3),
    "ddt": ddt_spec(**CLASSES, depth=3, encoder_blocks=1),
    "maskdit": maskdit_spec(**CLASSES, depth=3, decoder_width=8, decoder_depth=1, decoder_heads=2),
    "pixart": tiny_text_spec(depth=3, hidden_size=16, num_heads=2),
    "sd3": sd3_spec(**JOINT, pooled_width=4, depth=3, positions=4, qk_norm="rms"),
    "flux": flux_spec(**JOINT, pooled_width=4, double=2, single=1),
    "auraflow": auraflow_spec(**JOINT, joint=1, single=2, positions=16),
}
TERMS = {
    "repa": "tread(0, 1) + stochastic_depth(0.2) + repa(2, width=6, hidden=8)", "sra": "tread(0, 0) + sra(1, 2)",
    "dispersive": "stochastic_depth(0.5, mode=batch) + dispersive(2, group=2, tau=1.0)",
}  # fmt: skip


def traced(spec, text):
    """The gradient of what a term adds, as a function of parameters, and these."""
    recipe = Recipe.parse(text)
    loss = diffusion_loss(spec, class_dropout=0.0, recipe=recipe)
    params = training_tree(spec, random_params(spec, KEY), (), recipe)
    cond = {name: jnp.asarray(value) for name, value in find(spec).example(spec, COUNT).items()}
    batch = {"image": jax.random.normal(KEY, (COUNT, *spec.image_shape)), "label": jnp.arange(COUNT), **cond}
    drawn = loss.draw({**batch, "features": jax.random.normal(KEY, (COUNT, spec.tokens, 6))}, KEY)

    def added(params):
        own = {name: part for name, part in params.items() if name != RUN}
        tree = {**params, RUN: {"ema": jax.lax.stop_gradient(own), "step": jnp.zeros((), jnp.int32)}}
        return loss.given(tree, drawn)[1][recipe.names[0]]

    return jax.value_and_grad(added), params


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("family", SPECS)
def test_it_fits(family, term):
    run, params = traced(SPECS[family], TERMS[term])
    value, slopes = jax.eval_shape(run, params)
    assert value.shape == ()
    assert jax.tree.structure(slopes) == jax.tree.structure(params)


@pytest.mark.slow
@pytest.mark.parametrize("family", SPECS)
def test_what_it_adds_is_felt_before_it_and_not_behind(family):
    for text in TERMS.values():
        run, params = traced(SPECS[family], text)
        value, slopes = jax.jit(run)(params)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
        felt = {name: any(np.any(leaf) for leaf in jax.tree.leaves(part)) for name, part in slopes.items()}
        assert felt["x_embedder"] or felt["s_embedder"], text  # the encoder's of a DDT
        assert not felt["final"], text
