"""Pictures in GenEval's folder: its layout, whose noise is whose, and what an interrupted run leaves."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from graftax.diffusion import Sampling
from graftax.errors import BadInput
from graftax.evaluate.geneval import Prompt, Wanted, bound, draw_folder, drawn_by, read_folder
from graftax.evaluate.geneval.folder import INDEX, read_drawn
from graftax.evaluate.protocol import Protocol
from graftax.models import Meta, Model
from graftax.testing import random_params, tiny_spec


def prompt(i):
    record = {"tag": "colors", "prompt": f"prompt {i}", "include": [{"class": "cow", "count": 1, "color": "red"}]}
    return Prompt("colors", record["prompt"], (Wanted("cow", 1, "red"),), (), json.dumps(record))


PROMPTS = [prompt(i) for i in range(5)]


@pytest.fixture(scope="module")
def model():
    spec = tiny_spec(in_channels=3, hidden_size=16, depth=1, num_heads=2)
    return Model(spec, random_params(spec, jax.random.key(0)), Meta())


@pytest.fixture(scope="module")
def drawn(model):
    return drawn_by("model", model, Protocol(seed=3, text="T5 12ab"), PROMPTS, "prompts.jsonl")


def paint(prompts, keys):
    """Pictures of noise from the keys, the prompt's number in the first pixel."""
    noise = jax.vmap(lambda key: jax.random.bits(key, (4, 6, 3), np.uint8))(keys)
    images = np.array(noise)
    images[:, 0, 0, 0] = [int(text.removeprefix("prompt ")) for text in prompts]
    return images


def pixels(folder):
    return {path.relative_to(folder).as_posix(): np.array(Image.open(path)) for path in sorted(folder.rglob("*.png"))}


def test_the_layout_is_the_official_one(drawn, tmp_path):
    draw_folder(PROMPTS, paint, tmp_path / "new" / "out", drawn, show=False)
    images = pixels(tmp_path / "new" / "out")
    assert list(images) == [f"0000{n}/samples/000{i}.png" for n in range(5) for i in range(4)]
    for n, asked in enumerate(PROMPTS):
        assert json.loads((tmp_path / "new" / "out" / f"0000{n}" / "metadata.jsonl").read_text()) == json.loads(asked.line)
    assert {name: asked.text for name, asked in read_folder(tmp_path / "new" / "out").items()} == {
        name: f"prompt {int(name[:5])}" for name in images
    }
    kept = read_drawn(tmp_path / "new" / "out")
    assert kept == drawn
    assert (kept.protocol.count, kept.protocol.reference[:14]) == (20, "prompts.jsonl ")


@pytest.mark.slow
def test_noise_depends_on_seed_and_number_alone(drawn, tmp_path):
    """Whatever is drawn in one call, picture i is what `paint` makes of key i."""
    keys = drawn.protocol.keys(0, 20)
    expected = paint([PROMPTS[i // 4].text for i in range(20)], keys)
    sizes = []

    def counted(prompts, keys):
        sizes.append(len(prompts))
        return paint(prompts, keys)

    for size, calls in ((16, 2), (3, 10), (1, 20), (6, 5)):
        sizes.clear()
        draw_folder(PROMPTS, counted, tmp_path / str(size), drawn, batch_size=size, show=False)
        assert sizes == [size] * calls
        for image, found in zip(expected, pixels(tmp_path / str(size)).values(), strict=True):
            np.testing.assert_array_equal(found, image)


def test_what_is_whole_is_kept_and_the_rest_is_drawn(drawn, tmp_path):
    def failing(prompts, keys):
        if "prompt 2" in prompts:
            raise KeyboardInterrupt
        return paint(prompts, keys)

    with pytest.raises(KeyboardInterrupt):
        draw_folder(PROMPTS, failing, tmp_path, drawn, batch_size=4, show=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000", "00001", INDEX]
    (tmp_path / "00001" / "samples" / "0002.png").unlink()
    first = (tmp_path / "00000" / "samples" / "0000.png").stat().st_mtime_ns
    asked = []

    def counted(prompts, keys):
        asked.extend(dict.fromkeys(prompts))
        return paint(prompts, keys)

    draw_folder(PROMPTS, counted, tmp_path, drawn, batch_size=4, show=False)
    assert asked == ["prompt 1", "prompt 2", "prompt 3", "prompt 4"]
    assert (tmp_path / "00000" / "samples" / "0000.png").stat().st_mtime_ns == first
    draw_folder(PROMPTS, failing, tmp_path, drawn, show=False)  # nothing is left to draw
    whole = tmp_path.parent / "whole"
    draw_folder(PROMPTS, paint, whole, drawn, show=False)
    jax.tree.map(np.testing.assert_array_equal, pixels(tmp_path), pixels(whole))


def test_what_belongs_to_another_is_refused(model, drawn, tmp_path):
    draw_folder(PROMPTS[:1], paint, tmp_path, drawn, show=False)
    other = drawn_by("model", model, Protocol(seed=4, text="T5 12ab"), PROMPTS, "prompts.jsonl")
    fewer = drawn_by("model", model, Protocol(seed=3, text="T5 12ab"), PROMPTS[:1], "prompts.jsonl")
    better = model.replace(params=jax.tree.map(lambda leaf: leaf + 1, model.params))
    trained = drawn_by("model", better, Protocol(seed=3, text="T5 12ab"), PROMPTS, "prompts.jsonl")
    for one, message in ((other, "seed: 3 .*, 4 "), (fewer, "reference: "), (trained, "pictures of the model ")):
        with pytest.raises(BadInput, match=message):
            draw_folder(PROMPTS, paint, tmp_path, one, show=False)
    with pytest.raises(BadInput, match=r"metadata\.jsonl: another prompt than 'prompt 1'"):
        draw_folder(PROMPTS[1:], paint, tmp_path, drawn, show=False)
    (tmp_path / INDEX).unlink()
    with pytest.raises(BadInput, match=r"pictures without geneval\.json"):
        draw_folder(PROMPTS, paint, tmp_path, drawn, show=False)


@pytest.mark.parametrize("shape", [(4, 4, 3), (2, 4, 4, 3), (16, 4, 4, 1)])
def test_what_draws_must_draw_pictures(drawn, tmp_path, shape):
    with pytest.raises(BadInput, match=r"draw: uint8\(.*\), expected uint8 \(16, h, w, 3\)"):
        draw_folder(PROMPTS, lambda prompts, keys: np.zeros(shape, np.uint8), tmp_path, drawn, show=False)
    with pytest.raises(BadInput, match="batch_size: got 0"):
        draw_folder(PROMPTS, paint, tmp_path, drawn, batch_size=0)


def test_folders_that_are_not_whole_are_not_read(drawn, tmp_path):
    with pytest.raises(BadInput, match="no folders 00000"):
        read_folder(tmp_path)
    draw_folder(PROMPTS, paint, tmp_path, drawn, show=False)
    (tmp_path / "00003" / "samples" / "0003.png").unlink()
    with pytest.raises(BadInput, match=r"00003: 3 pictures in samples/, others have 4"):
        read_folder(tmp_path)
    (tmp_path / "00002" / "metadata.jsonl").unlink()
    with pytest.raises(BadInput, match=r"00002.metadata\.jsonl: cannot be read"):
        read_folder(tmp_path)


def test_a_model_is_bound_with_its_encoder_and_decoder(model):
    """The conditions are the encoder's, the noise the keys', the pixels the decoder's."""
    asked = []

    def encode(prompts):
        asked.append(list(prompts))
        return {"y": np.array([len(text) for text in prompts])}

    protocol = Protocol(sampling=Sampling(steps=2, cfg_channels=None))
    draw = bound(model, encode, lambda arrays: np.clip(arrays, -1, 1), protocol)
    keys = protocol.keys(0, 3)
    images = draw(["a", "bb", "ccc"], keys)
    assert (images.dtype, images.shape, asked) == (np.uint8, (3, 8, 8, 3), [["a", "bb", "ccc"]])
    again = draw(["bb", "a", "ccc"], keys[np.array([1, 0, 2])])
    assert np.abs(images[[1, 0, 2]].astype(int) - again).max() <= 1  # the rounding of a sum
    assert np.abs(images.astype(int) - draw(["ccc", "ccc", "ccc"], keys)).max() > 1


def test_guidance_is_away_from_the_empty_prompt(model):
    """Away from the very prompt it changes nothing; away from the backbone's own twin it does."""

    def encode(prompts):
        return {"y": np.array([len(text) for text in prompts])}

    def draw(scale, null=None):
        protocol = Protocol(sampling=Sampling(steps=2, cfg_scale=scale, cfg_channels=None))
        keys = protocol.keys(0, 3)
        return bound(model, encode, lambda arrays: np.clip(arrays, -1, 1), protocol, null)(["aa"] * 3, keys).astype(int)

    plain = draw(1.0)
    assert np.abs(draw(4.0, encode(["aa"])) - plain).max() <= 1  # the rounding of a sum
    assert np.abs(draw(4.0) - plain).max() > 1
