"""PixArts of words: a text encoder among the model's own parameters, the empty caption as the null, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.backbones import words
from graftax.backbones.pixart import pixart_spec
from graftax.errors import BadInput
from graftax.models import Model, init
from graftax.models.cost import count_params
from graftax.nets import t5
from graftax.train import DiffusionConfig, LoopConfig, finetune

SPEC = pixart_spec(
    input_size=8, patch_size=2, hidden_size=32, depth=2, num_heads=2, text_width=16, text_tokens=6, words=20, text_blocks=1,
    text_heads=2,
)  # fmt: skip
TEXT = np.array([[5, 6, 2, 0, 0, 0], [2, 0, 0, 0, 0, 0]], np.int32)
X, T = np.ones((2, 8, 8, 4), np.float32), np.array([3, 700])


@pytest.fixture(scope="module")
def model():
    # From scratch the blocks' looks at the text and the output begin at zero; noise makes every part count.
    rng = np.random.default_rng(1)
    params = jax.device_get(jax.jit(lambda key: init(SPEC, key))(jax.random.key(0)))
    noisy = jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), params)
    return Model(SPEC, jax.device_put(noisy))


def test_parameters_are_counted_with_the_text_encoder(model):
    assert sum(leaf.size for leaf in jax.tree.leaves(model.params)) == count_params(SPEC)
    assert words.cost(SPEC)[0] == sum(leaf.size for leaf in jax.tree.leaves(model.params["words"]))


def test_texts_are_read_by_the_encoder_inside(model):
    text, mask = words.embedded(SPEC, model.params, jnp.asarray(TEXT))
    np.testing.assert_array_equal(mask, TEXT != 0)
    expected = t5.encode(words.encoder(SPEC), model.params["words"], jnp.asarray(TEXT), jnp.asarray(TEXT != 0))["last"]
    np.testing.assert_allclose(text, expected, atol=1e-6)
    out = model(X, T, text=TEXT)
    padded = np.concatenate([TEXT, np.zeros((2, 3), np.int32)], axis=1)  # padding is not seen
    np.testing.assert_allclose(model(X, T, text=padded), out, atol=2e-5 * float(jnp.abs(out).max()))
    other = model(X, T, text=np.where(TEXT == 5, 7, TEXT))
    assert float(jnp.abs(other[0] - out[0]).max()) > 1e-3 * float(jnp.abs(out).max())
    np.testing.assert_allclose(other[1], out[1], atol=2e-5 * float(jnp.abs(out).max()))


@pytest.mark.slow
def test_guidance_is_away_from_the_empty_caption(model):
    settings = {"sampler": "ddim", "steps": 2, "cfg_scale": 3.0, "rng": jax.random.key(2)}
    own = graftax.sample(model, cond={"text": TEXT}, **settings)
    given = graftax.sample(model, cond={"text": TEXT}, null_cond={"text": TEXT[1:]}, **settings)
    np.testing.assert_allclose(own, given, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_text_encoder_is_trained_saved_and_opened_with_the_model(model, tmp_path):
    data = {"image": np.random.default_rng(0).standard_normal((4, 8, 8, 4), np.float32), "text": np.tile(TEXT, (2, 1))}
    trained, _ = finetune(model, data, DiffusionConfig(loop=LoopConfig(1), batch_size=4, ema_decay=0.0), show=False)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), trained.params["words"], model.params["words"])
    assert min(jax.tree.leaves(moved["blocks_0"])) > 0
    graftax.save(trained, tmp_path / "m")
    back = graftax.load(tmp_path / "m")
    assert back.spec == SPEC
    jax.tree.map(np.testing.assert_array_equal, back.params, trained.params)
    with pytest.raises(BadInput, match=r"words/blocks_0"):
        graftax.export(trained, tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"text": TEXT + 18}, r"text: words 18..24, expected 0..19"),
        ({"text": TEXT.astype(np.float32)}, r"text: float32\(2, 6\), expected numbers of words of integer type \(2, m\)"),
        ({"text": TEXT[:1]}, r"text: int32\(1, 6\), expected numbers of words"),
        ({"text": TEXT, "text_mask": TEXT}, r"conditions: got \['text', 'text_mask'\], expected \['text'\]"),
    ],
)  # fmt: skip
def test_what_is_no_text_of_words_is_refused(model, cond, message):
    with pytest.raises(BadInput, match=message):
        model(X, T, **cond)


def test_sizes_that_do_not_go_together_are_refused():
    sizes = dict(input_size=8, patch_size=2, hidden_size=32, depth=1, num_heads=2, text_width=16, text_tokens=6)
    with pytest.raises(BadInput, match="text_heads: got 3, expected a divisor of text_width 16"):
        words.encoder(pixart_spec(**sizes, words=20, text_heads=3))
