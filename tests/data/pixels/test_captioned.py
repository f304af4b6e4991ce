"""Pictures with captions and their latents as batches: text of the right picture, exact positions, nothing mixed up."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from stand_in import LENGTH, WIDTH, StandIn, expected

from graftax.data.config import DataConfig
from graftax.data.latents import open_latents, read_manifest
from graftax.data.pipeline import stream
from graftax.data.pixels import images
from graftax.data.pixels.encoding import DETERMINISTIC, Encoder, encode
from graftax.data.text.encoding import encode_texts
from graftax.errors import BadInput
from graftax.testing import tiny_spec

COUNT = 11
DEMO = {"vae": "demo", "size": 32, "shard_size": 4, "batch_size": 4}


def captions_of(i):
    return ["a"] * (i + 1) if i < 3 else [f"shade {i}", f"also {i}"][: 1 + i % 2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures i = 0..10, each of one shade of 20 i, and metadata with one or two captions each."""
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for i in range(COUNT):
        Image.new("RGB", (40, 32), (20 * i,) * 3).save(folder / f"{i:02d}.png")
        lines.append({"file_name": f"{i:02d}.png", "text": captions_of(i)})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def store(pictures, tmp_path_factory):
    """A text store of their captions."""
    folder = tmp_path_factory.mktemp("text") / "store"
    encode_texts(pictures, folder, "stand-in", StandIn, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def latents(pictures, store, tmp_path_factory):
    """A latent set of the pictures, named by their shade: an encoder that gives means and no width."""
    folder = tmp_path_factory.mktemp("latents") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("graftax.data.pixels.encoding.open_encoder", shades)
        encode(str(pictures), folder, captions=str(store), **DEMO)
    return folder


def shades(name, size):
    """An encoder to latents (2, 2, 1): the mean of each quarter."""

    def moments(params, pixels):
        mean = pixels.reshape(len(pixels), 2, size // 2, 2, size // 2, 3).mean((2, 4, 5))[..., None]
        return jnp.concatenate([mean, jnp.full_like(mean, DETERMINISTIC)], axis=-1)

    return Encoder("ab" * 32, 3, (2, 2, 1), 1.0, 0.0, {}, moments)


def shade(image):
    """Which picture an image, or its latents, is of."""
    return round(float((image.mean() + 1) * 127.5) / 20)


def text_of(caption):
    rows = expected(caption)
    return np.pad(rows, ((0, LENGTH - len(rows)), (0, 0)))


def check(batch):
    """That each image has one of its captions; returns which."""
    assert set(batch) == {"image", "text", "text_mask"}
    assert batch["text"].shape[1:] == (LENGTH, WIDTH)
    chosen = []
    for image, text, mask in zip(*(batch[name] for name in ("image", "text", "text_mask")), strict=True):
        own = captions_of(shade(image))
        chosen += [caption for caption in dict.fromkeys(own) if np.array_equal(text, text_of(caption))]
        assert mask.sum() == len(expected(chosen[-1]))
    assert len(chosen) == len(batch["image"])
    return chosen


@pytest.fixture(params=["pictures", "latents"])
def config(request, pictures, store, latents):
    if request.param == "latents":
        return DataConfig(source=str(latents), latents="given")
    return DataConfig(source=str(pictures), text=str(store), size=8)


def test_batches_have_the_text_of_their_pictures(config):
    data = images.load(config)
    stream = data.batches(COUNT, seed=3)
    epochs = [check(next(stream)) for _ in range(12)]
    assert all(sorted(shade(image) for image in next(stream)["image"]) == list(range(COUNT)) for _ in range(2))
    drawn = {caption for epoch in epochs for caption in epoch}
    assert {"shade 7", "also 7", "shade 9", "also 9"} <= drawn  # another one of several each epoch
    assert data.num_classes == 0
    assert data.store.shape == (LENGTH, WIDTH)


def test_positions_are_exact(config):
    undisturbed = images.load(config).batches(4, seed=3)
    for _ in range(5):
        next(undisturbed)
    again = images.load(config).batches(4, seed=3)
    again.restore(json.loads(json.dumps(undisturbed.state())))
    for _ in range(4):
        for (name, a), b in zip(next(undisturbed).items(), next(again).values(), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_hosts_have_strides_of_the_same_batches(config):
    data = images.load(config)
    reader = data._reader(data.raw_train, "none")
    both, parts = next(stream(reader, 8, 1)), [next(stream(reader, 8, 1, i, 2)) for i in range(2)]
    for name, whole in both.items():
        np.testing.assert_array_equal(whole, np.stack([part[name] for part in parts], 1).reshape(whole.shape))


def test_parts_and_held_out_keep_their_captions(config):
    data = images.load(DataConfig(**{**vars(config), "held_out": 0.3, "subset": "5"}))
    check(next(data.batches(5, 0)))
    assert len(check(data.heldout)) == 3
    assert images.load(config).heldout is None


def test_pictures_mirror_and_latents_too(config):
    check(next(images.load(DataConfig(**{**vars(config), "transform": "flip"})).batches(8, 0)))


def test_models_take_what_they_are_conditioned_on(config):
    data = images.load(config)
    with pytest.raises(BadInput, match="knows 10 classes takes no captions"):
        images.check_fit(data, tiny_spec(in_channels=data.shape[2], input_size=data.shape[0]))


def test_a_latent_set_names_its_store(pictures, store, latents, tmp_path):
    found = read_manifest(latents)
    assert (latents / found.text.folder).resolve() == store.resolve()
    assert (found.class_names, found.shards[0].labels, found.shards[1].captions[1]) == ((), (), (4, 5))
    moved = tmp_path / "moved"
    shutil.copytree(latents, moved / "set")
    with pytest.raises(BadInput, match=r"text store .*: no manifest\.json"):
        open_latents(moved / "set")
    check(next(images.load(DataConfig(source=str(moved / "set"), latents="given", text=str(store))).batches(4, 0)))
    for encoder, dtype, message in (("another", "float32", "written by the encoder"), ("stand-in", "float16", "digest")):
        encode_texts(pictures, tmp_path / encoder, encoder, StandIn, dtype=dtype)
        with pytest.raises(BadInput, match=rf"text store .*{encoder}: {message} \w+, latent set .* expects \w+$"):
            open_latents(latents, str(tmp_path / encoder))


def test_killed_encodings_go_on_and_others_are_refused(pictures, store, latents, tmp_path, monkeypatch):
    monkeypatch.setattr("graftax.data.pixels.encoding.open_encoder", shades)
    out = tmp_path / "set"
    shutil.copytree(latents, out)
    path = out / read_manifest(out).files[1]
    path.unlink()
    encode(str(pictures), out, captions=str(store), **DEMO)
    assert path.read_bytes() == (latents / path.name).read_bytes()
    encode_texts(pictures, tmp_path / "other", "another", StandIn, dtype="float32")
    with pytest.raises(BadInput, match="a latent set of text"):
        encode(str(pictures), out, captions=str(tmp_path / "other"), **DEMO)


def test_captions_that_the_store_lacks_are_counted(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("graftax.data.pixels.encoding.open_encoder", shades)
    (tmp_path / "p.txt").write_text("a\nshade 4")
    encode_texts(tmp_path / "p.txt", tmp_path / "small", "stand-in", StandIn)
    with pytest.raises(BadInput, match="11 of 18 captions are not in text store"):
        encode(str(pictures), tmp_path / "set", captions=str(tmp_path / "small"), **DEMO)
    with pytest.raises(BadInput, match="11 of 18 captions"):
        images.load(DataConfig(source=str(pictures), text=str(tmp_path / "small"), size=8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "{pictures}/metadata.jsonl"}, "pictures with captions, expected a text store"),
        ({"source": "{latents}", "latents": "given", "test": "{classes}"}, "another kind of set"),
        ({"source": "{classes}", "latents": "given", "text": "{store}"}, "has classes and no captions, expected no text"),
        ({"source": "{latents}", "latents": "given", "test": "{longer}"}, "text of encoder_sha256"),
        ({"source": "{pictures}", "text": "{store}", "latents": "demo"}, "wants `graftax encode` first"),
        ({"source": "fashion_mnist", "text": "{store}"}, "captions 'fashion_mnist': no such folder"),
    ],
)
def test_what_does_not_go_together(pictures, store, latents, latent_folder, tmp_path, monkeypatch, fields, message):
    places = {"pictures": pictures, "store": store, "latents": latents, "classes": latent_folder}
    if "{longer}" in fields.values():
        places["longer"] = tmp_path / "longer"
        monkeypatch.setattr("graftax.data.pixels.encoding.open_encoder", shades)
        encode_texts(pictures, tmp_path / "other", "another", StandIn)
        encode(str(pictures), tmp_path / "longer", captions=str(tmp_path / "other"), **DEMO)
    with pytest.raises(BadInput, match=message):
        images.load(DataConfig(**{name: value.format(**places) for name, value in fields.items()}))
