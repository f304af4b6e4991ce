"""Sets that models draw: image i of the seed and i alone, the same bytes whatever kills, batches of the right classes."""

import dataclasses
import functools
import json
import os
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from graftax import api
from graftax.data.config import DataConfig
from graftax.data.latents import DrawnManifest, open_latents, read_manifest
from graftax.data.pipeline import whole
from graftax.data.pixels import images
from graftax.diffusion import image_keys
from graftax.errors import BadInput, NonFinite
from graftax.evaluate import synthesis
from graftax.evaluate.drawing import SampleConfig
from graftax.evaluate.synthesis import open_prompts, synthesize
from graftax.models import Model
from graftax.testing import random_params, tiny_spec

CONFIG = SampleConfig(steps=3, cfg_scale=2.0, seed=7, batch_size=4)
SIZES = {"shard_size": 6, "dtype": "float32"}
LABELS = [3, 1, 4, 1, 5, 9, 2, 6]

ELSEWHERE = """
import os, signal, sys
import jax
from graftax.data import shards
from graftax.data.pixels import images
from graftax.evaluate.drawing import SampleConfig
from graftax.evaluate.synthesis import open_prompts, synthesize
from graftax.models import Model
from graftax.testing import random_params, tiny_spec

write = shards.write_shard

def write_shard(path, records):
    if "00001" not in path.name:
        return write(path, records)
    next(records)
    path.write_bytes(b"half a shard")
    os.kill(os.getpid(), signal.SIGKILL)

labels, out, killed, *host = sys.argv[1:]
if host:
    jax.distributed.initialize(f"127.0.0.1:{host[1]}", 2, int(host[0]))
if killed == "killed":
    shards.write_shard = write_shard
spec = tiny_spec(depth=1)
model = Model(spec, random_params(spec, jax.random.key(0)))
config = SampleConfig(steps=3, cfg_scale=2.0, seed=7, batch_size=4)
how = {"per_prompt": 2, "shard_size": 6, "dtype": "float32", "preview": 3, "decode": images.decoder("demo")}
synthesize("tiny", model, open_prompts(labels, spec), out, config, **how)
print(jax.local_device_count())
"""
"""LABELS OUT killed|whole [HOST PORT]: draws the set of these tests, or is killed in its second shard."""


@functools.cache
def model():
    spec = tiny_spec(depth=1)
    return Model(spec, random_params(spec, jax.random.key(0)))


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("\n".join(map(str, LABELS)))
    return str(path)


def draw(labels, out, config=CONFIG, **more):
    prompts = open_prompts(labels, model().spec)
    shown = {"preview": 3, "decode": images.decoder("demo")}
    synthesize("tiny", model(), prompts, out, config, **{"per_prompt": 2, **shown, **SIZES, **more})


@pytest.fixture(scope="module")
def drawn(labels, tmp_path_factory):
    """An undisturbed run's folder: 16 images in shards of 6, 6 and 4, in batches of 4."""
    folder = tmp_path_factory.mktemp("drawn") / "set"
    draw(labels, folder)
    return folder


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def elsewhere(labels, out, how, *host, devices=1):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, "-c", ELSEWHERE, labels, str(out), how, *map(str, host)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    """(exit code, last line of its output, stderr)."""
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, (out.splitlines() or [""])[-1], err


def test_images_are_what_sampling_gives_each(drawn):
    found = open_latents(drawn)
    assert found.labels.tolist() == np.repeat(LABELS, 2).tolist()
    part = slice(8, 12)
    keys = image_keys(jax.random.key(7), 8, 4)
    expected = api.sample(model(), found.labels[part], sampling=CONFIG.sampling, rng=keys)
    assert close(whole(found)["image"][part], expected)
    assert np.abs(np.diff(whole(found)["image"], axis=0)).mean((1, 2, 3)).min() > 0.1  # of one class too


def test_the_manifest_is_the_protocol(labels, drawn):
    found = read_manifest(drawn)
    assert isinstance(found, DrawnManifest)
    assert DrawnManifest.from_json(found.to_json()) == found
    assert (found.model, found.prompts, found.per_prompt, found.count, found.batch_size) == ("tiny", labels, 2, 16, 4)
    assert {**found.protocol, "steps": 3, "cfg_scale": 2.0, "seed": 7, "dtype": "float32"} == found.protocol
    assert found.prompts_sha256 != found.model_sha256
    assert [len(shard.labels) for shard in found.shards] == [6, 6, 4]


def test_the_first_images_can_be_looked_at(drawn):
    names = sorted(path.name for path in (drawn / "preview").iterdir())
    assert names == ["0000000.png", "0000001.png", "0000002.png"]
    shown = [np.asarray(Image.open(drawn / "preview" / name)) for name in names]
    assert shown[0].shape == (32, 32)
    assert (shown[0] != shown[1]).any()


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_bytes(labels, drawn, tmp_path):
    code, _, err = ended(elsewhere(labels, tmp_path / "set", "killed"))
    assert code == -signal.SIGKILL, err
    assert b"half a shard" in content(tmp_path / "set").values()
    with pytest.raises(BadInput, match="1 of 3 shards, finish with the same `graftax synthesize`"):
        open_latents(tmp_path / "set")
    kept = (tmp_path / "set" / read_manifest(drawn).files[0]).stat().st_mtime_ns
    draw(labels, tmp_path / "set")
    found = content(tmp_path / "set")
    assert found == content(drawn)
    assert (tmp_path / "set" / read_manifest(drawn).files[0]).stat().st_mtime_ns == kept


def close(found, expected):
    """Sums in another order: float32 rounds by 1e-7, and three guided steps amplify that."""
    return np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def images_of(folder):
    return whole(open_latents(folder))["image"]


def test_images_do_not_depend_on_batches_and_shards(labels, drawn, tmp_path):
    draw(labels, tmp_path / "set", dataclasses.replace(CONFIG, batch_size=8), shard_size=9)
    assert close(images_of(tmp_path / "set"), images_of(drawn))


@pytest.mark.slow
def test_images_do_not_depend_on_devices(labels, drawn, tmp_path):
    code, out, err = ended(elsewhere(labels, tmp_path / "set", "whole", devices=4))
    assert (code, out) == (0, "4"), err
    assert close(images_of(tmp_path / "set"), images_of(drawn))


@pytest.mark.slow
def test_two_hosts_draw_the_same_bytes(labels, drawn, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    hosts = [elsewhere(labels, tmp_path / "set", "whole", index, port) for index in range(2)]
    for code, out, err in map(ended, hosts):
        assert (code, out) == (0, "1"), err
    assert content(tmp_path / "set") == content(drawn)


@pytest.mark.parametrize("damage", ["byte", "preview"])
def test_the_same_command_repairs(labels, drawn, tmp_path, damage):
    before = content(drawn)
    path = drawn / ("preview/0000001.png" if damage == "preview" else read_manifest(drawn).files[1])
    path.unlink() if damage == "preview" else path.write_bytes(path.read_bytes()[:-100])
    draw(labels, drawn)
    assert content(drawn) == before


def test_hosts_draw_shards_in_turn(labels, drawn, tmp_path):
    from graftax.data import shards

    plan = DrawnManifest(**{**vars(read_manifest(drawn)), "shards": None})
    hands = synthesis.spread(model(), CONFIG.sampling, CONFIG.seed, CONFIG.batch_size, "float32")
    folder = shards.begin(tmp_path / "set", plan)
    for process in (1, 0):
        synthesis.write_missing(folder, plan, open_prompts(labels, model().spec), hands, process, 2)
        there = sorted(path.name for path in folder.glob("*.array_record"))
        assert there == list(plan.files[1:2] if process else plan.files)
    shards.seal(folder, plan)
    assert {name: data for name, data in content(drawn).items() if "preview" not in name} == content(folder)


def test_another_set_is_not_continued(labels, drawn, tmp_path):
    before = content(drawn)
    with pytest.raises(BadInput, match="a latent set of steps 3, expected 4, or another folder"):
        draw(labels, drawn, SampleConfig(steps=4, cfg_scale=2.0, seed=7, batch_size=4))
    with pytest.raises(BadInput, match="a latent set of per_prompt 2, expected 1"):
        draw(labels, drawn, per_prompt=1)
    (tmp_path / "labels.txt").write_text("1\n" * 8)
    with pytest.raises(BadInput, match="a latent set of prompts_sha256"):
        draw(str(tmp_path / "labels.txt"), drawn)
    other = model().replace(params=random_params(model().spec, jax.random.key(1)))
    with pytest.raises(BadInput, match="a latent set of model_sha256"):
        synthesize("x", other, open_prompts(labels, model().spec), drawn, CONFIG, per_prompt=2, **SIZES)
    assert content(drawn) == before
    draw(labels, tmp_path / "new", per_prompt=1)
    draw(labels, tmp_path / "new", afresh=True, preview=0)
    assert len(open_latents(tmp_path / "new")) == 16
    assert not (tmp_path / "new" / "preview").exists()


def test_training_takes_such_a_set(drawn):
    data = images.load(DataConfig(source=str(drawn), latents="given", held_out=0.25))
    images.check_fit(data, model().spec)
    stream = data.batches(4, 0)
    next(stream)
    again = data.batches(4, 0)
    again.restore(json.loads(json.dumps(stream.state())))
    batch, same = next(stream), next(again)
    np.testing.assert_array_equal(batch["image"], same["image"])
    assert set(batch["label"].tolist()) <= set(LABELS)
    with pytest.raises(BadInput, match=r"got 'flip' with latent set .*, expected 'none': it has no mirror images"):
        images.load(DataConfig(source=str(drawn), latents="given", transform="flip")).batches(4, 0)


def test_what_half_precision_cannot_hold_is_said(labels, tmp_path):
    huge = model().replace(params=jax.tree.map(lambda leaf: 1e3 * leaf, model().params))
    with pytest.raises(NonFinite, match=r"images 0 to 3: \|value\| up to .*, beyond float16"):
        synthesize("x", huge, open_prompts(labels, model().spec), tmp_path / "set", CONFIG)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"per_prompt": 0}, "per_prompt: got 0"), ({"null": "no"}, "null: got 'no'"), ({"preview": -1}, "preview: got -1"),
        ({"shard_size": 0}, "shard_size: got 0"), ({"dtype": "int8"}, "dtype: got 'int8'"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(labels, tmp_path, more, message):
    with pytest.raises(BadInput, match=message):
        draw(labels, tmp_path / "set", **more)
    assert not (tmp_path / "set").exists()


def test_classes_come_from_files(tmp_path, labels):
    with pytest.raises(BadInput, match="a folder, expected a file with a class a line"):
        open_prompts(str(tmp_path), model().spec)
    with pytest.raises(BadInput, match=r"line 5: got '5', expected a class 0\.\.4"):
        open_prompts(labels, tiny_spec(num_classes=5))
