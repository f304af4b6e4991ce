"""`graftax encode`, and runs on the sets it writes."""

import dataclasses
import os
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from graftax.checkpoint.shipped import shipped_path
from graftax.cli.main import main
from graftax.data.config import DataConfig
from graftax.data.latents import MANIFEST, open_latents, read_manifest
from graftax.data.opening import open_records, part
from graftax.data.pipeline import Pixels, coin, generator, whole
from graftax.data.pixels import encoding, images
from graftax.data.pixels.encoding import encode, open_encoder, write_missing
from graftax.data.shards import begin, seal
from graftax.data.source import prepare
from graftax.errors import BadInput
from graftax.nets import autoencoder, small, vae
from graftax.nets.vae import VAESpec
from graftax.testing import tiny_spec
from graftax.train import Job, LoopConfig, fit

DEMO = {"vae": "demo", "size": 32, "subset": "60", "shard_size": 16, "batch_size": 8}
"""Sixty images in shards of 16, 16, 16 and 12, in batches of 8."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Path of an .npz of 300 grey images of ten classes."""
    path = tmp_path_factory.mktemp("source") / "grey.npz"
    images = np.random.default_rng(0).integers(0, 256, (300, 28, 28), np.uint8)
    np.savez(path, images=images, labels=np.arange(300) % 10)
    return str(path)


@pytest.fixture(scope="module")
def encoded(source, tmp_path_factory):
    """An undisturbed run's folder."""
    folder = tmp_path_factory.mktemp("encoded") / "set"
    encode(source, folder, **DEMO)
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_moments_of_images_and_of_their_mirrors(source, tmp_path, capsys):
    encode(source, tmp_path / "set", **{**DEMO, "dtype": "float32"})
    assert "60 latents (8, 8, 4) in 4 shards" in capsys.readouterr().out
    data = images.load(DataConfig(source=str(tmp_path / "set"), latents="given"))
    spec, params = small.load_autoencoder("demo")
    pixels = part(open_records(source), "60", 0)[0]
    plain = prepare(pixels.images, 32)
    for side, shown in ((0, plain), (1, plain[:, :, ::-1])):
        expected = autoencoder.encode(spec, params, shown)
        rows = np.stack([np.frombuffer(row, "<f4").reshape(2, 8, 8, 8) for row in data.raw_train._rows])[:, side]
        np.testing.assert_allclose(rows[..., :4], expected, atol=1e-5)  # batches of another size
        np.testing.assert_array_equal(rows[..., 4:], -30)
    np.testing.assert_allclose(data.train, autoencoder.encode(spec, params, plain), atol=1e-5)
    np.testing.assert_array_equal(data.train_labels, pixels.labels)
    assert (data.shape, data.num_classes) == ((8, 8, 4), 10)


def test_the_manifest_says_where_the_set_comes_from(source, encoded):
    found = read_manifest(encoded)
    assert (found.source, found.subset, found.count, found.vae, found.dtype) == (source, "60", 60, "demo", "float16")
    assert found.vae_sha256 == encoding.sha256(shipped_path("demo", "autoencoder"))
    assert (found.size, found.fit, found.scale, found.shift) == (32, "centred on black", 1.0, 0.0)
    assert sorted(content(encoded)) == sorted([MANIFEST, *found.files])
    assert np.bincount([label for shard in found.shards for label in shard.labels]).tolist() == [6] * 10


KILLED = """
import os, signal, sys
from pathlib import Path
from graftax.data import shards
from graftax.data.pixels import encoding

write = shards.write_shard

def write_shard(path, records):
    if "00003" not in path.name:
        return write(path, records)
    next(records)
    path.write_bytes(b"half a shard")
    os.kill(os.getpid(), signal.SIGKILL)

shards.write_shard = write_shard
encoding.encode(sys.argv[1], sys.argv[2], "demo", 32, subset="60", shard_size=16, batch_size=8)
"""


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bytes(source, encoded, tmp_path):
    out = tmp_path / "set"
    process = subprocess.run([sys.executable, "-c", KILLED, source, str(out)], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL
    names = read_manifest(out).files
    kept = [(out / name).stat().st_mtime_ns for name in names[:3]]
    assert any(path.read_bytes() == b"half a shard" for path in out.rglob("*") if path.is_file())
    with pytest.raises(BadInput, match="3 of 4 shards, finish with the same"):
        open_latents(out)
    encode(source, out, **DEMO)
    assert content(out) == content(encoded)
    assert [(out / name).stat().st_mtime_ns for name in names[:3]] == kept


def test_hosts_write_their_shares_of_the_same_set(source, encoded, tmp_path):
    plan = dataclasses.replace(read_manifest(encoded), shards=None)
    records = part(open_records(source), "60", 0)[0]
    arguments = (plan, Pixels(records, 32), open_encoder("demo", 32), 8)
    folder = begin(tmp_path / "set", plan)
    write_missing(folder, *arguments, 1, 2)
    assert sorted(path.name for path in folder.glob("*.array_record")) == [plan.files[1], plan.files[3]]
    with pytest.raises(BadInput, match=f"{plan.files[0]}: missing"):
        seal(folder, plan)
    write_missing(folder, *arguments, 0, 2)
    seal(folder, plan)
    assert content(folder) == content(encoded)


HOST = """
import sys, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from graftax.data.pixels.encoding import encode
encode(sys.argv[3], sys.argv[4], "demo", 32, subset="60", shard_size=16, batch_size=8, dtype="float32")
"""


@pytest.mark.slow
def test_two_processes_of_four_devices_write_what_one_of_one_does(source, tmp_path):
    encode(source, tmp_path / "alone", **{**DEMO, "dtype": "float32"})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    argv = [[sys.executable, "-c", HOST, address, str(i), source, str(tmp_path / "set")] for i in range(2)]
    hosts = [subprocess.Popen(command, env=environment) for command in argv]
    assert [host.wait(200) for host in hosts] == [0, 0]
    found, alone = (open_latents(tmp_path / name) for name in ("set", "alone"))
    np.testing.assert_array_equal(found.labels, alone.labels)
    np.testing.assert_allclose(whole(found)["image"], whole(alone)["image"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("damage", ["byte", "gone"])
def test_the_same_command_repairs_a_finished_set(source, encoded, tmp_path, damage):
    encode(source, tmp_path / "set", **DEMO)
    path = tmp_path / "set" / read_manifest(encoded).files[2]
    data = bytearray(path.read_bytes())
    data[5000] ^= 4
    path.unlink() if damage == "gone" else path.write_bytes(data)
    encode(source, tmp_path / "set", **DEMO)
    assert content(tmp_path / "set") == content(encoded)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"subset": "50"}, "a latent set of subset 60, expected 50"),
        ({"dtype": "float32"}, "dtype float16, expected float32"),
    ],
)
def test_sets_of_other_settings_are_not_continued(source, encoded, more, message):
    before = content(encoded)
    with pytest.raises(BadInput, match=message):
        encode(source, encoded, **{**DEMO, **more})
    assert content(encoded) == before


def test_the_command_passes_its_options_on(source, encoded, capsys):
    options = {"vae": "demo", "size": 32, "shard-size": 16, "subset": 60, "subset-seed": 1}
    assert main(["encode", source, str(encoded), *(f"--{name}={value}" for name, value in options.items())]) == 2
    assert "a latent set of subset_seed 0, expected 1" in capsys.readouterr().err


def test_another_set_begins_afresh_where_that_is_asked_for(source, tmp_path):
    out = tmp_path / "set"
    encode(source, out, **{**DEMO, "subset": "6"})
    encode(source, out, **{**DEMO, "subset": "3", "shard_size": 2}, afresh=True)
    assert len(open_latents(out)) == 3
    assert sorted(path.name for path in out.glob("*.array_record")) == sorted(read_manifest(out).files)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vae": "demo", "size": 256}, "the autoencoder 'demo' takes 32"),
        ({"source": "pictures", "vae": "demo", "size": 32}, "3 channels, expected 1 for 'demo'"),
        ({"vae": "none", "size": 32}, "none': no such file, expected 'demo' or what"),
        ({"vae": "demo", "size": 32, "batch_size": 0}, "batch-size 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(source, tmp_path, pictures, fields, message):
    out = tmp_path / "out"
    with pytest.raises(BadInput, match=message):
        encode(**{"source": source, "out": out, **fields, **({"source": str(pictures)} if "source" in fields else {})})
    assert not out.exists()
    with pytest.raises(BadInput, match="holds something else"):
        encode(source, tmp_path, "demo", 32)


def test_a_damaged_picture_is_named(pictures, tmp_path, small_vae):
    with pytest.raises(BadInput, match="size 15: expected a positive multiple of 2"):
        encode(str(pictures), tmp_path / "out", "small", 15)
    (pictures / "bee" / "1.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"bee/1.png: cannot be read"):
        encode(str(pictures), tmp_path / "out", "small", 16)


@pytest.fixture
def pictures(tmp_path):
    """A folder of six 20x24 pictures of two classes."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (20, 24, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def small_vae(monkeypatch):
    """Name of a VAE that halves its images, with its spec and params."""
    spec = VAESpec(block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5, shift_factor=0.25)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(lambda: vae.init(spec, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
    monkeypatch.setattr(encoding, "find_vae", lambda name: name == "small")
    monkeypatch.setattr(encoding, "read_vae", lambda name: (spec, params, SimpleNamespace(sha256="ef" * 32)))
    return "small", spec, params


def test_latents_of_a_vae_are_drawn_scaled_and_shifted(pictures, tmp_path, small_vae):
    name, spec, params = small_vae
    encode(str(pictures), tmp_path / "set", name, 16, dtype="float32", batch_size=4)
    data = images.load(DataConfig(source=str(tmp_path / "set"), latents="given", transform="flip"))
    pixels = whole(Pixels(open_records(str(pictures)), 16))["image"]
    sides = [np.asarray(vae.encode_moments(spec, params, shown)) for shown in (pixels, pixels[:, :, ::-1])]
    batch = next(data.batches(6, seed=9))
    assert batch["image"].shape == (6, 8, 8, 4)
    candidates = {}
    for i in range(6):
        rng = generator(9, 0, i)
        mean, log_variance = np.split(sides[int(coin(rng))][i], 2, axis=-1)
        noise = rng.standard_normal(mean.shape, np.float32)
        candidates[i] = 0.5 * (mean + np.exp(log_variance / 2) * noise - 0.25)
    order = [min(candidates, key=lambda i: np.abs(candidates[i] - image).max()) for image in batch["image"]]
    assert sorted(order) == list(range(6))
    np.testing.assert_allclose(batch["image"], np.stack([candidates[i] for i in order]), atol=1e-5)
    np.testing.assert_array_equal(batch["label"], [i // 3 for i in order])


# --- Training on sources of every kind -----------------------------------------------------------------------------------


@jax.jit
def blend(state, batch, key):
    """One step of a training that remembers all it has seen, in order."""
    seen = batch["image"].mean(0) + batch["label"].mean() + jax.random.normal(key)
    return 0.5 * state + seen, {"loss": seen.mean(), "finite": jnp.isfinite(seen).all()}


def trained(data, steps, workdir):
    job = Job(init=lambda: jnp.zeros(data.shape), step=blend, metadata={})
    return np.asarray(fit(job, data.batches(8, 0), LoopConfig(steps, save_every=3), workdir, show=False))


@pytest.mark.slow
def test_a_run_on_latents_resumes_to_the_bit(encoded, tmp_path):
    given = {"latents": "given", "transform": "flip", "subset": "4 per class", "test": str(encoded)}
    data = images.load(DataConfig(source=str(encoded), **given))
    assert "40 of 60 images, subset '4 per class' of seed 0, SHA-256 " in data.note
    expected = trained(data, 9, tmp_path / "whole")
    trained(data, 6, tmp_path / "cut")
    np.testing.assert_array_equal(trained(data, 9, tmp_path / "cut"), expected)


def test_a_run_on_a_folder_of_pictures(pictures, tmp_path):
    data = images.load(DataConfig(source=str(pictures), size=8, transform="flip", held_out=0.34))
    images.check_fit(data, tiny_spec(in_channels=3))
    assert trained(data, 2, None).shape == data.test.shape[1:] == (8, 8, 3)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"latents": "none"}, "is a latent set, expected 'given'"),
        ({"latents": "demo"}, "is a latent set, expected 'given'"),
        ({"latents": "given", "test": "fashion_mnist"}, "another kind of set"),
        ({"latents": "given", "test": "{pictures}"}, "another kind of set"),
        ({"latents": "given", "source": "{pictures}"}, "no such file, expected an .npz or a folder that `graftax encode`"),
        ({"latents": "given", "source": "{npz}", "transform": "flip"}, "got 'flip' with latents"),
        ({"source": "{pictures}", "latents": "demo"}, "wants `graftax encode` first"),
        ({"source": "fashion_mnist", "subset": "2k per class"}, "subset '2k per class'"),
        ({"source": "fashion_mnist", "test": "fashion_mnist#test", "held_out": 0.1}, "held_out: got 0.1 beside test"),
    ],
)
def test_sources_that_do_not_fit_are_refused(source, encoded, pictures, data, message):
    paths = {"pictures": pictures, "npz": source}
    fields = {name: text.format(**paths) if isinstance(text, str) else text for name, text in data.items()}
    with pytest.raises(BadInput, match=re.escape(message)):
        images.load(DataConfig(**{"source": str(encoded), **fields}))


def test_each_host_gets_its_share_of_the_batches(encoded, pictures, monkeypatch):
    for fields in ({"source": str(encoded), "latents": "given"}, {"source": str(pictures), "size": 8}):
        data = images.load(DataConfig(transform="flip", **fields))
        alone = next(data.batches(8, seed=4))
        monkeypatch.setattr(jax, "process_index", lambda: 1)
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        share = next(data.batches(8, seed=4))
        monkeypatch.undo()
        for name in alone:
            np.testing.assert_array_equal(share[name], alone[name][1::2])


def test_splits_of_the_embedded_set_by_name():
    data = images.load(DataConfig(source="fashion_mnist#test", test="fashion_mnist", subset="5 per class", test_subset="20"))
    assert (len(data.raw_train), len(data.raw_test)) == (50, 20)
