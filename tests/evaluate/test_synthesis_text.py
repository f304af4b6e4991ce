"""Models of texts draw and are trained on sets that name a text store: no text encoder runs."""

import functools

import jax
import numpy as np
import pytest
from stand_in import LENGTH, WIDTH, StandIn

from graftax import api, graft, replace
from graftax.backbones.pixart import pixart_spec
from graftax.data.config import DataConfig
from graftax.data.latents import open_latents
from graftax.data.pipeline import whole
from graftax.data.pixels import images
from graftax.data.text.encoding import encode_texts
from graftax.data.text.store import open_store
from graftax.diffusion import Process, image_keys
from graftax.distill import DistillConfig, distill
from graftax.errors import BadInput
from graftax.evaluate.drawing import SampleConfig
from graftax.evaluate.preview import preview
from graftax.evaluate.synthesis import open_prompts, synthesize
from graftax.models import Model, init
from graftax.testing import random_params
from graftax.train import DiffusionConfig, LoopConfig, finetune
from graftax.train.diffusion_task import diffusion_loss

CONFIG = SampleConfig(steps=3, cfg_scale=3.0, cfg_channels=None, seed=7, batch_size=4)
SIZES = {"shard_size": 6, "dtype": "float32", "preview": 0}
PROMPTS = ("a red cat", "two dogs", "a red cat", "five red cats and a dog", "nothing", "snow")


def spec_of(**changes):
    sizes = {"input_size": 8, "patch_size": 2, "hidden_size": 32, "depth": 1, "num_heads": 2, "null_tokens": LENGTH}
    return pixart_spec(**{**sizes, "text_width": WIDTH, "text_tokens": LENGTH, **changes})


@functools.cache
def model():
    return Model(spec_of(), random_params(spec_of(), jax.random.key(0)))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Path of a store of five distinct prompts and the empty one."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    encode_texts(folder / "prompts.txt", folder / "store", "stand-in", StandIn)
    return str(folder / "store")


@pytest.fixture(scope="module")
def drawn(store, tmp_path_factory):
    """Ten images, two of each prompt, guided away from the empty one."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    synthesize("tiny", model(), open_prompts(store, model().spec), folder, CONFIG, per_prompt=2, **SIZES)
    return folder


def close(found, expected):
    """Sums in another order: float32 rounds by 1e-7, and three guided steps amplify that."""
    return np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_images_are_of_their_captions(store, drawn):
    found, texts = open_latents(drawn), open_store(store)
    numbers = [number for shard in found.manifest.shards for number in shard.captions]
    assert numbers == [(i // 2,) for i in range(10)]
    batch = whole(found)
    assert set(batch) == {"image", "text", "text_mask"}
    np.testing.assert_array_equal(batch["text"], texts.read(np.arange(5).repeat(2))["text"])
    part, empty = slice(6, 10), texts.read(np.full(4, texts.empty))
    cond = {name: batch[name][part] for name in ("text", "text_mask")}
    expected = api.sample(
        model(), cond=cond, null_cond=empty, sampling=CONFIG.sampling, rng=image_keys(jax.random.key(7), 6, 4)
    )
    assert close(batch["image"][part], expected)
    other = api.sample(model(), cond=cond, sampling=CONFIG.sampling, rng=image_keys(jax.random.key(7), 6, 4))
    assert not close(other, expected)  # the model's own null is another


def test_the_models_own_null_does_as_well(store, drawn, tmp_path):
    prompts = open_prompts(store, model().spec)
    synthesize("tiny", model(), prompts, tmp_path / "set", CONFIG, per_prompt=2, null="model", **SIZES)
    batch = whole(open_latents(tmp_path / "set"))
    cond = {name: batch[name][6:] for name in ("text", "text_mask")}
    expected = api.sample(model(), cond=cond, sampling=CONFIG.sampling, rng=image_keys(jax.random.key(7), 6, 4))
    assert close(batch["image"][6:], expected)
    with pytest.raises(BadInput, match="a latent set of null model, expected empty"):
        synthesize("tiny", model(), prompts, tmp_path / "set", CONFIG, per_prompt=2, **SIZES)


def test_the_objective_reads_the_captions(drawn):
    data = images.load(DataConfig(source=str(drawn), latents="given"))
    batch, loss = next(data.batches(4, 0)), diffusion_loss(model().spec, Process(), class_dropout=0.0)
    value, key = jax.jit(loss), jax.random.key(1)
    seen = float(value(model().params, batch, key)[0])
    assert np.isfinite(seen)
    junk = np.where(batch["text_mask"][..., None], batch["text"], 9).astype(batch["text"].dtype)
    np.testing.assert_allclose(value(model().params, {**batch, "text": junk}, key)[0], seen, rtol=1e-5)  # padding is unseen
    turned = value(model().params, {**batch, "text": -batch["text"]}, key)[0]
    assert abs(float(turned) - seen) > 1e-4 * seen


def test_previews_are_of_the_datas_captions(drawn, monkeypatch):
    asked = []

    def sampled(model, cond, settings, *, null, show):
        asked.append((cond, null))
        return np.zeros((3, 8, 8, 4), np.float32)

    monkeypatch.setattr("graftax.evaluate.preview.draw_with", sampled)
    data = images.load(DataConfig(source=str(drawn), latents="given"))
    watch = preview(3, model().spec, data)
    assert watch is not None
    assert watch(model())["samples"].dtype == np.uint8
    (cond, null), texts = asked[0], open_store(data.store.folder)
    expected = next(data.batches(3, 0))
    for name in ("text", "text_mask"):
        np.testing.assert_array_equal(cond[name], expected[name])
        np.testing.assert_array_equal(null[name], texts.read(np.full(3, texts.empty))[name])


@pytest.mark.slow
def test_a_graft_is_distilled_on_it(drawn):
    data = images.load(DataConfig(source=str(drawn), latents="given", held_out=0.2))
    student = graft(model(), replace("blocks[0].mixer", "hyena_x", kernel=4), rng=jax.random.key(0))
    config = DistillConfig(steps=30, learning_rate=3e-3)
    loop = LoopConfig(30, eval_every=10, save_every=30)
    _, history = distill(model(), student, data.batches(4, 0), config, loop, None, data.heldout, show=False)
    errors = [line["error"] for line in history if line["split"] == "eval"]
    assert errors[-1] < errors[0]


@pytest.mark.slow
def test_a_student_is_trained_on_it_and_resumes_to_the_bit(drawn, tmp_path):
    data = images.load(DataConfig(source=str(drawn), latents="given", held_out=0.2))
    images.check_fit(data, model().spec)

    def trained(steps, folder):
        config = DiffusionConfig(loop=LoopConfig(steps, save_every=2, eval_every=2), batch_size=4, frozen=("null_caption",))
        stream = data.batches(4, config.loop.seed)
        return finetune(model(), stream, config, tmp_path / folder, data.heldout, show=False)

    expected, history = trained(4, "whole")
    losses = [line["loss"] for line in history if line["split"] == "eval"]
    assert np.isfinite(losses).all()
    assert len(losses) >= 2
    trained(2, "cut")
    again, _ = trained(4, "cut")
    jax.tree.map(np.testing.assert_array_equal, again.params, expected.params)
    assert (again.params["x_embedder"]["kernel"] != model().params["x_embedder"]["kernel"]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_width": 8}, "embeddings of width 4, the model takes 8"),
        ({"text_tokens": 5, "null_tokens": 5}, "texts of 6 tokens, the model takes up to 5"),
    ],
)
def test_other_texts_than_the_models_are_refused(store, drawn, changes, message):
    with pytest.raises(BadInput, match=message):
        open_prompts(store, spec_of(**changes))
    with pytest.raises(BadInput, match=message):
        images.check_fit(images.load(DataConfig(source=str(drawn), latents="given")), spec_of(**changes))


def test_token_ids_are_no_embeddings(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat")
    encode_texts(tmp_path / "prompts.txt", tmp_path / "ids", "words", lambda name: StandIn(name, ids=True))
    with pytest.raises(BadInput, match="holds token ids, the model takes embeddings"):
        open_prompts(str(tmp_path / "ids"), model().spec)


@pytest.mark.slow
def test_models_of_words_draw_from_token_ids(store, tmp_path):
    spec = spec_of(words=70_000, text_blocks=1, text_heads=2, null_tokens=0)
    with pytest.raises(BadInput, match="holds embeddings, the model takes token ids"):
        open_prompts(store, spec)
    (tmp_path / "prompts.txt").write_text("a cat\ntwo dogs")
    encode_texts(tmp_path / "prompts.txt", tmp_path / "ids", "words", lambda name: StandIn(name, ids=True))
    rng = np.random.default_rng(0)
    fresh = init(spec, jax.random.key(0))
    reader = Model(spec, jax.tree.map(lambda leaf: leaf + 0.1 * rng.standard_normal(leaf.shape, np.float32), fresh))
    synthesize("tiny", reader, open_prompts(str(tmp_path / "ids"), spec), tmp_path / "set", CONFIG, **SIZES)
    data = images.load(DataConfig(source=str(tmp_path / "set"), latents="given"))
    images.check_fit(data, spec)
    assert data.raw_train.manifest.protocol["null"] == "model"
    batch = whole(data.raw_train)
    assert {name: value.shape for name, value in batch.items()} == {"image": (2, 8, 8, 4), "text": (2, LENGTH)}
    keys = image_keys(jax.random.key(7), 0, 2)
    expected = api.sample(reader, cond={"text": batch["text"]}, sampling=CONFIG.sampling, rng=keys)
    assert close(batch["image"], expected)


def test_what_is_no_text_is_refused(tmp_path, latent_set_of_classes):
    (tmp_path / "labels.txt").write_text("1")
    with pytest.raises(BadInput, match=r"text store .*labels\.txt: no manifest\.json in it"):
        open_prompts(str(tmp_path / "labels.txt"), model().spec)
    with pytest.raises(BadInput, match="images without captions, expected some for a model that knows no classes"):
        images.check_fit(images.load(DataConfig(source=str(latent_set_of_classes), latents="given")), model().spec)


@pytest.fixture
def latent_set_of_classes(tmp_path):
    np.savez(tmp_path / "given.npz", latents=np.zeros((4, 8, 8, 4), np.float32), labels=np.zeros(4, np.int32))
    return tmp_path / "given.npz"
