"""Recipes as texts, in trainings of both kinds, with adapters, pieces of batches, meshes and checkpoints."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.backbones.maskdit import maskdit_spec
from graftax.errors import BadInput
from graftax.evaluate.aot import train_program
from graftax.models import Model
from graftax.models.policy import Depth, Mask, Policy, Route
from graftax.spec import Prediction
from graftax.surgery import lora
from graftax.testing import random_params, tiny_spec
from graftax.train import DiffusionConfig, LoopConfig, MeshConfig, OptimiserConfig, finetune, latest_weights, train
from graftax.train.diffusion_task import configured_loss, training_tree
from graftax.train.recipes import Dispersive, Recipe, repa, sra
from graftax.train.step import RUN

FLOW = Prediction("velocity", "noise", variance=False)
SPEC = tiny_spec(depth=3, hidden_size=16, num_heads=2, learn_sigma=False).replace(prediction=FLOW)
RNG = np.random.default_rng(0)
DATA = {
    "image": RNG.standard_normal((16, 8, 8, 4), np.float32), "label": np.arange(16) % 10,
    "features": RNG.standard_normal((16, 16, 6), np.float32),
}  # fmt: skip
ALL = (
    "tread(1, 1, 0.5) + stochastic_depth(0.2) + repa(2, features, width=6, hidden=8) + sra(1, 3, fade=(1, 2)) + "
    "dispersive(3, group=4, tau=1.0)"
)
KEY = jax.random.key(0)


def config(recipe, **changes):
    return DiffusionConfig(**{
        "loop": LoopConfig(4, seed=3, log_every=1, save_every=2), "batch_size": 8, "ema_decay": 0.5, "recipe": recipe,
        "optimiser": OptimiserConfig(learning_rate=1e-3, warmup_steps=0), **changes,
    })  # fmt: skip


@functools.cache
def student():
    teacher = Model(SPEC, random_params(SPEC, jax.random.key(0)))
    return graftax.graft(teacher, graftax.replace("blocks[0].mixer", "swa"), rng=jax.random.key(1))


# --- Texts ---------------------------------------------------------------------------------------------------------------


def test_a_text_is_a_recipe_and_a_recipe_a_text():
    recipe = Recipe.parse(ALL)
    assert recipe.policy == Policy((Route(1, 1, 0.5),), Depth(0.2))
    assert recipe.losses == (
        repa(2, "features", 6, 8), sra(1, 3, fade=(1, 2)), Dispersive(3, group=4, tau=1.0)
    )  # fmt: skip
    assert Recipe.parse(str(recipe)) == recipe
    masked = Recipe.parse("mask(0.5) + repa(1)")
    assert masked.policy == Policy(mask=Mask(0.5, 0.1))
    assert Recipe.parse(str(masked)) == masked
    features = {"features": jax.ShapeDtypeStruct((16, 6), jnp.float32)}
    assert (recipe.states, recipe.sees_run, recipe.arrays(SPEC)) == ((0, 1, 2), True, features)
    assert Recipe.parse("repa(1) + sra(2) + repa(3)").names == ("repa", "sra", "repa2")
    assert not Recipe.parse("")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tred(1, 2)", "'tred' is no term, expected some of tread, .*did you mean 'tread'"),
        ("tread(1, 2) + ", "it ends too early"),
        ("repa", "no call; expected something like tread"),
        ("tread(1, 2, rat=0.5)", "unexpected keyword argument 'rat'"),
        ("tread(1, 2.5)", "tread last: got 2.5, expected an integer"),
        ("tread(1, 2) + tread(2, 3)", "overlap"),
        ("mask(1.0)", r"mask\(1.0, weight=0.1\): expected a share 0 <= ratio < 1"),
        ("mask(0.5) + tread(1, 2)", r"tread\(1, 2, 0.5\) beside mask\(0.5, .*: expected routes or a mask"),
        ("stochastic_depth(0.1) + stochastic_depth(0.2)", r"stochastic_depth\(0.2.*the second of its kind"),
        ("features(-1)", "features weight: got -1, expected 0 or more"),
        ("repa(0)", "repa block: got 0"),
        ("repa(1, metric=cosin)", "repa metric: got 'cosin', expected one of .*did you mean 'cosine'"),
        ("sra(1, 2, fade=3)", r"sra fade: got 3, expected \(steps before, steps to a tenth\)"),
        ("dispersive(1, group=1)", "dispersive group: got 1"),
        ("dispersive(1, l2)", "dispersive form: got 'l2', expected one of"),
    ],
)
def test_wrong_texts_are_refused_in_a_line(text, words):
    with pytest.raises(BadInput, match=words) as caught:
        config(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tread(1, 2)", "the program ends at position 2, expected a block behind the route"),
        ("mask(0.5)", r"mask\(0.5, .*: dit has no decoder that fills tokens in, expected a MaskDiT"),
        ("repa(4, width=6)", r"repa\(4.*: block 4, expected 1 to 3"),
        ("sra(1, 5)", "block 5, expected 1 to 3"),
        ("features(0.03)", "the model denoises nothing beside its latents"),
        ("repa(1, token=true)", "the model has no class token"),
        ("dispersive(1, group=3)", "groups of 3 do not divide 8 images"),
        ("dispersive(2, group=4) + tread(1, 1)", r"block 2 is on the route tread\(1, 1, 0.5\), expected one where all"),
    ],
)
def test_what_does_not_fit_a_model_is_refused(text, words):
    with pytest.raises(BadInput, match=words):
        configured_loss(SPEC, config(text))


def masked():
    """A MaskDiT."""
    return maskdit_spec(
        input_size=8, patch_size=2, hidden_size=16, depth=2, num_heads=2, decoder_width=8, decoder_depth=1, decoder_heads=2,
        num_classes=10,
    )  # fmt: skip


def test_a_mask_needs_predictions_of_clean_images():
    with pytest.raises(BadInput, match=r"mask\(0.5, weight=0.1\): .*velocity.*, expected EDM's"):
        configured_loss(masked().replace(prediction=FLOW), config("mask(0.5)"))
    with pytest.raises(BadInput, match=r"mask\(0.95, .*: leaves none of 16 tokens"):
        configured_loss(masked(), config("mask(0.95)"))


def test_data_must_bring_what_is_aligned_to():
    with pytest.raises(BadInput, match=r"data: arrays .*expected .*'dino'"):
        finetune(student(), DATA, config("repa(1, dino)"), show=False)
    with pytest.raises(BadInput, match=r"data features: shape \(8, 16, 6\), expected \(b, 16, 7\) for repa\(1, features"):
        configured_loss(SPEC, config("repa(1, width=7)")).draw({name: array[:8] for name, array in DATA.items()}, KEY)
    with pytest.raises(BadInput, match=r"data: a batch is \['image'\], expected features \(b, 16, 7\) for repa"):
        configured_loss(SPEC, config("repa(1, width=7)")).recipe.draw(SPEC, {"image": DATA["image"]}, KEY)


# --- What flows where ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_step():
    """The loss of a step with everything, its metrics, and by name the gradients of two of these, of parameters and data."""
    spec, stage = student().spec, config(ALL)
    loss = configured_loss(spec, stage)
    tree = training_tree(spec, student().params, (), loss.recipe)
    drawn = loss.draw({name: jnp.asarray(array[:8]) for name, array in DATA.items()}, KEY)

    @jax.jit
    def run(params, drawn):
        def of(params, drawn, name):
            total, metrics = loss.given(params, drawn)
            return metrics[name], (total, metrics)

        slopes = {name: jax.grad(of, (0, 1), True, allow_int=True)(params, drawn, name) for name in ("repa", "sra")}
        return {name: slope for name, (slope, _) in slopes.items()}, slopes["repa"][1]

    return run({**tree, RUN: {"ema": tree, "step": jnp.zeros((), int)}}, drawn)


def moved(tree):
    """Whether anything in a tree is not zero."""
    return any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating))


@pytest.mark.parametrize(("name", "block"), [("repa", 2), ("sra", 1)])
def test_gradients_stop_where_they_should(one_step, name, block):
    """At blocks behind the tap, at the other loss's head, at targets and at the averaged model."""
    params, drawn = one_step[0][name]
    mlp = params["blocks"]["dit"]["mlp"]["0_mlp"]["fc1"]["kernel"]
    assert [bool(np.any(leaf)) for leaf in mlp] == [i < block for i in range(3)]
    assert {head: moved(part) for head, part in params["heads"].items()} == {"repa": name == "repa", "sra": name == "sra"}
    assert not moved(params["final"])
    assert not moved(params[RUN]["ema"])
    assert not moved(drawn["recipe"]["arrays"])


def test_losses_add_up_by_weight(one_step):
    total, metrics = one_step[1]
    weights = {"mse": 1, "repa": 0.5, "sra": 0.2, "dispersive": 0.5}
    assert set(metrics) == set(weights)
    np.testing.assert_allclose(sum(weight * metrics[name] for name, weight in weights.items()), total, rtol=1e-5)


def test_a_dry_run_traces_it():
    stage = config(ALL + " + repa(1, dino, width=5)")
    traced = train_program("stage 2", SPEC, stage).trace(MeshConfig().build(jax.devices()[:1]), MeshConfig().rules)
    (_, _, batch, _), _ = traced.in_avals
    assert batch["dino"].shape == (8, 16, 5)
    assert {"repa", "repa2", "sra", "dispersive"} <= set(traced.out_info[1])


# --- Whole trainings -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_at_once_resumes_to_the_bit(tmp_path):
    """Stage 2 of a graft in files, in two goes and in one; heads stay behind; another recipe does not resume it."""
    half = config(ALL, loop=LoopConfig(2, seed=3, log_every=1, save_every=2))
    finetune(student(), DATA, half, tmp_path, show=False)
    resumed, history = finetune(student(), DATA, config(ALL), tmp_path, show=False)
    whole, lines = finetune(student(), DATA, config(ALL), show=False)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    names = ("loss", "mse", "repa", "sra", "dispersive")
    known = [{name: line[name] for name in names} for line in lines]
    assert [{name: line[name] for name in names} for line in history] == known
    assert all(np.isfinite(list(line.values())).all() for line in known)
    assert set(resumed.params) == set(latest_weights(student(), config(ALL), tmp_path).params) == set(student().params)
    assert "heads/repa/fc1/kernel" in (tmp_path / "parameters.txt").read_text()
    with pytest.raises(BadInput, match="recipe: the checkpoint has 'tread"):
        finetune(student(), DATA, config("repa(2, features, width=6, hidden=8)"), tmp_path, show=False)


@pytest.mark.slow
def test_adapters_alone_are_trained_under_a_recipe():
    adapted = graftax.graft(student(), lora("blocks[*].mlp", rank=2), KEY)
    frozen = ("blocks", "final", "x_embedder", "t_embedder", "y_embedder")
    tuned, history = finetune(adapted, DATA, config(ALL, frozen=frozen, loop=LoopConfig(2, log_every=1)), show=False)
    assert np.isfinite(history[-1]["loss"])
    before, after = adapted.params, tuned.params
    jax.tree.map(np.testing.assert_array_equal, before["blocks"], after["blocks"])
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before["lora"], after["lora"])), strict=True))


@pytest.mark.slow
def test_pieces_of_a_batch_give_what_the_whole_gives():
    recipe = "tread(1, 1, 0.5) + stochastic_depth(0.3, mode=batch) + repa(2, features, width=6, hidden=8) + sra(1, 3)"
    runs = [finetune(student(), DATA, config(recipe, accumulate=pieces), show=False)[1] for pieces in (1, 4)]
    for one, other in zip(*runs, strict=True):
        for name in ("loss", "repa", "sra", "grad_norm"):
            np.testing.assert_allclose(one[name], other[name], rtol=2e-5)


@pytest.mark.slow
def test_a_masked_model_learns_what_stands_for_tokens():
    """In pieces of a batch as in one, with a head that sees the tokens that are there. (Later steps are left out: Adam makes
    whole steps of what is rounding alone at first.)"""
    spec = masked()
    how = {"recipe": "mask(0.5) + repa(1, width=6, hidden=8)", "loop": LoopConfig(2, log_every=1)}
    runs = [train(spec, DATA, config(**how, accumulate=pieces), show=False) for pieces in (1, 2)]
    (trained, one), (_, other) = runs
    before = train(spec, DATA, config(**{**how, "loop": LoopConfig(1)}), show=False)[0]
    token = [model.params["decoder"]["mask_token"] for model in (before, trained)]
    assert np.any(token[0] != token[1])
    for name in ("loss", "mse", "reconstruction", "repa", "grad_norm"):
        np.testing.assert_allclose(one[0][name], other[0][name], rtol=2e-5)


@pytest.mark.slow
def test_a_model_of_steps_and_noise_from_scratch():
    """A DiT as published: SRA's teacher is earlier by whole steps; blocks are dropped for a batch at once."""
    spec = tiny_spec(depth=3, hidden_size=16, num_heads=2)
    recipe = "sra(1, 2) + tread(1, 1) + stochastic_depth(0.5, mode=batch) + repa(1, width=6)"
    trained, history = train(spec, DATA, config(recipe), show=False)
    assert np.isfinite(history[-1]["sra"])
    assert "heads" not in trained.params
