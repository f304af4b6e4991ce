"""Hard negatives: the loss by its formula, what it adds, and where it is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from graftax.backbones.pixart import pixart_spec
from graftax.errors import BadInput
from graftax.testing import random_params, tiny_text_spec
from graftax.train import diffusion_loss
from graftax.train.recipes import Recipe
from graftax.train.recipes.against import HardNegatives

SPEC = pixart_spec(
    input_size=8, patch_size=2, hidden_size=16, depth=2, num_heads=2, text_width=8, text_tokens=6, words=20, text_blocks=1,
    text_heads=2,
)  # fmt: skip
RNG = np.random.default_rng(0)
TEXT = jnp.array([[3, 5, 6, 2, 0, 0], [3, 6, 5, 2, 0, 0], [4, 7, 8, 9, 2, 0], [4, 9, 8, 7, 2, 0]])
BATCH = {"image": jnp.asarray(RNG.standard_normal((4, 8, 8, 4)), jnp.float32), "text": TEXT, "against": TEXT[::-1]}
KEY = jax.random.key(0)


def test_the_missing_share_of_the_margin():
    right, wrong = jnp.array([1.0, 2.0, 4.0, 1.0]), jnp.array([1.1, 4.0, 2.0, 1.0])
    dropped = jnp.array([False, False, False, True])
    term = HardNegatives(margin=0.3)
    np.testing.assert_allclose(term.value(right, wrong, dropped), (0.2 + 0 + 0.8) / 4, rtol=1e-6)
    slopes = jax.grad(lambda r, w: term.value(r, w, dropped), (0, 1))(right, wrong)
    np.testing.assert_allclose(slopes[0], [0.25, 0, 0.25 / 4, 0], rtol=1e-6)  # the error that it is a share of stands still
    np.testing.assert_allclose(slopes[1], -slopes[0])


def test_it_is_a_term_with_a_text():
    recipe = Recipe.parse("hard_negatives(0.2) + tread(0, 0)")
    assert recipe.negatives == HardNegatives(0.2)
    assert Recipe.parse(str(recipe)) == recipe
    assert (recipe.passes, Recipe.parse("").passes) == (2, 1)
    assert recipe.arrays(SPEC) == {"against": jax.ShapeDtypeStruct((6,), jnp.int32)}


def test_what_it_adds_to_the_loss():
    """Under its own caption every image misses the whole margin; the network is asked on the same noise and route."""
    params = random_params(SPEC, KEY)
    recipe = Recipe.parse("hard_negatives(0.3, weight=2.0) + tread(0, 0)")
    loss, plain = (diffusion_loss(SPEC, class_dropout=0.0, recipe=one) for one in (recipe, Recipe.parse("tread(0, 0)")))

    @jax.jit
    def run(batch):
        total, metrics = loss(params, batch, KEY)
        return total, metrics["against"], plain(params, batch, KEY)[0]

    total, missing, alone = map(float, run({**BATCH, "against": TEXT}))
    assert missing == pytest.approx(0.3, abs=1e-6)
    assert total == pytest.approx(1.6 * alone, rel=1e-5)
    assert float(run(BATCH)[1]) != pytest.approx(0.3, abs=1e-4)


def test_refusals():
    with pytest.raises(BadInput, match=r"hard_negatives\(margin=0, weight=1.0\): expected a margin above 0"):
        HardNegatives(0)
    with pytest.raises(BadInput, match="a pixart that reads no words"):
        Recipe.parse("hard_negatives()").check(tiny_text_spec(), 4)
    loss = diffusion_loss(SPEC, recipe=Recipe.parse("hard_negatives()"))
    with pytest.raises(BadInput, match=r"data: a batch is \['image', 'text'\], expected against \(b, 6\) for hard_neg"):
        loss.draw({"image": BATCH["image"], "text": TEXT}, KEY)
