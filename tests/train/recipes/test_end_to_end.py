"""REPA-E and VA-VAE: which gradient reaches what, and the losses by their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.nets import autoencoder, vae
from graftax.nets.autoencoder import AutoencoderSpec
from graftax.nets.vae import VAESpec
from graftax.spec import Prediction
from graftax.testing import random_params, tiny_spec
from graftax.train import OptimiserConfig, diffusion_loss, make_step, training_tree
from graftax.train.diffusion_task import model_tree
from graftax.train.recipes import Recipe
from graftax.train.recipes.end_to_end import (
    DIFFUSION,
    TOKENS,
    EndToEnd,
    normalised,
    small_tokenizer,
    statistics,
    vae_tokenizer,
)
from graftax.train.recipes.foundation import Foundation, foundation_loss
from graftax.train.state import create_state

KEY = jax.random.key(0)
FLOW = Prediction("velocity", "noise", variance=False)
SPEC = tiny_spec(depth=2, hidden_size=16, num_heads=2, learn_sigma=False).replace(prediction=FLOW)
SMALL = AutoencoderSpec(width=8)
RNG = np.random.default_rng(0)
BATCH = {
    "image": jnp.asarray(RNG.uniform(-1, 1, (4, 32, 32, 1)), jnp.float32), "label": jnp.arange(4),
    "features": jnp.asarray(RNG.standard_normal((4, 16, 6)), jnp.float32),
}  # fmt: skip
RECIPE = Recipe.parse("repa(1, width=6, hidden=8)")
LOSS = diffusion_loss(SPEC, class_dropout=0.0, recipe=RECIPE)


def params():
    """Everything random, so that nothing is silent."""
    fresh = jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(KEY, leaf.shape), autoencoder.init(SMALL, KEY))
    return {**training_tree(SPEC, random_params(SPEC, KEY), (), RECIPE), "tokenizer": fresh}


@pytest.mark.slow
def test_three_gradients_are_stopped():
    """The tokenizer's is that of its own loss and the alignment alone; the model's that of its loss on fixed latents."""
    both, tree = EndToEnd(LOSS, small_tokenizer(SMALL)), params()
    keys = [jax.random.fold_in(KEY, stream) for stream in (TOKENS, DIFFUSION)]
    model = {name: part for name, part in tree.items() if name != "tokenizer"}

    def of_tokenizer(tokenizer):
        raw, error, _ = small_tokenizer(SMALL)(tokenizer, BATCH["image"], keys[0])
        drawn = LOSS.draw({**BATCH, "image": normalised(raw)}, keys[1])
        return error + 1.5 * LOSS.given(model, drawn)[1]["repa"]

    def of_model(model):
        raw, _, _ = small_tokenizer(SMALL)(tree["tokenizer"], BATCH["image"], keys[0])
        return LOSS(model, {**BATCH, "image": normalised(raw)}, keys[1])[0]

    @jax.jit
    def run(tree, model):
        (loss, metrics), found = jax.value_and_grad(both, has_aux=True)(tree, BATCH, KEY)
        return loss, metrics, found, jax.grad(of_tokenizer)(tree["tokenizer"]), jax.grad(of_model)(model)

    loss, metrics, found, tokenizer, model = run(tree, model)
    assert np.isfinite(loss)
    assert {"mse", "repa", "tokenizer_l1", "tokenizer_psnr"} == set(metrics)
    for name, expected in {"tokenizer": tokenizer, **model}.items():
        for a, b in zip(*map(jax.tree.leaves, (found[name], expected)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(found["tokenizer"]["encoder"]))


def test_batches_are_normalised_and_statistics_stand_for_them():
    raw = jnp.asarray(RNG.normal(3, 2, (4, 5, 5, 3)), jnp.float32)
    latents = normalised(raw)
    np.testing.assert_allclose(latents.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(latents.std((0, 1, 2)), 1, atol=1e-3)
    mean, deviation = statistics(lambda x: x, [raw[:1], raw[1:]])
    np.testing.assert_allclose((raw - mean) / deviation, latents, atol=1e-4)


def test_a_recipe_without_alignment_is_refused():
    with pytest.raises(BadInput, match=r"end to end: recipe 'sra\(1.*expected a repa"):
        EndToEnd(diffusion_loss(SPEC, recipe=Recipe.parse("sra(1, 2)")), small_tokenizer(SMALL))


@pytest.mark.slow
def test_both_learn_in_one_step_and_the_model_comes_out_alone():
    tree, optimiser = params(), OptimiserConfig(learning_rate=1e-2, warmup_steps=0)
    state, step = create_state(tree, optimiser.build()), make_step(EndToEnd(LOSS, small_tokenizer(SMALL)), optimiser)
    losses = []
    for i in range(20):
        state, metrics = step(state, BATCH, jax.random.fold_in(KEY, i))
        losses.append([float(metrics[name]) for name in ("loss", "tokenizer_l1", "repa")])
    assert np.all(np.mean(losses[-3:], 0) < np.mean(losses[:3], 0))
    assert set(model_tree(SPEC, state.ema)) == set(random_params(SPEC, KEY))


@pytest.mark.slow
def test_the_large_autoencoder_as_tokenizer():
    spec = VAESpec(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4)
    images = jnp.asarray(RNG.uniform(-1, 1, (2, 16, 16, 3)), jnp.float32)
    tokenizer = vae_tokenizer(spec, perceptual=lambda a, b: jnp.mean((a - b) ** 2))
    run = jax.jit(jax.value_and_grad(lambda params: tokenizer(params, images, KEY)[1]))
    loss, grads = run(vae.init(spec, KEY))
    assert np.isfinite(loss)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(grads["encoder"]))
    raw, _, metrics = tokenizer(vae.init(spec, KEY), images, KEY)
    assert raw.shape == (2, 8, 8, 4)
    assert set(metrics) == {"l1", "kl", "perceptual"}


# --- VA-VAE --------------------------------------------------------------------------------------------------------------


def test_the_loss_of_foundation_models_by_its_formula():
    z, p, f = (RNG.standard_normal((2, 5, c)).astype(np.float32) for c in (3, 6, 6))

    def unit(x):
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    cosines = (unit(p) * unit(f)).sum(-1)
    apart = np.abs(unit(z) @ unit(z).swapaxes(1, 2) - unit(f) @ unit(f).swapaxes(1, 2))
    for margins in ((0, 0), (0.5, 0.25)):
        expected = np.maximum(1 - margins[0] - cosines, 0).mean() + np.maximum(apart - margins[1], 0).mean()
        np.testing.assert_allclose(foundation_loss(z, p, f, *margins), expected, rtol=1e-5)


@pytest.mark.slow
def test_an_autoencoder_is_aligned_as_strongly_as_it_reconstructs():
    aligned = Foundation(6, weight=0.5)
    batch = {**BATCH, "features": jnp.asarray(RNG.standard_normal((4, 64, 6)), jnp.float32)}
    tree = {**params()["tokenizer"], **aligned.head(SMALL, KEY)}

    @jax.jit
    def run(tree):
        (loss, metrics), grads = jax.value_and_grad(aligned.loss(SMALL), has_aux=True)(tree, batch, KEY)
        plain = jax.grad(lambda tree: autoencoder.autoencoder_loss(SMALL)(tree, batch, KEY)[0])(tree)
        return loss, metrics, grads, plain

    loss, metrics, grads, plain = run(tree)
    expected = metrics["l1"] + 4 / 10 ** (metrics["psnr"] / 10) + 0.5 * metrics["balance"] * metrics["foundation"]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    last, own = (tree["encoder"]["Dense_0"]["kernel"] for tree in (grads, plain))
    np.testing.assert_allclose(np.linalg.norm(last - own), 0.5 * np.linalg.norm(own), rtol=0.02)
    assert np.any(grads["heads"]["foundation"]["fc1"]["kernel"])
