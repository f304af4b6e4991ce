"""Folders of samples: the same images whatever interrupts, to a byte whatever batches or spreads them; nothing mixed up."""

import dataclasses
import functools
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from graftax.diffusion import Sampling
from graftax.errors import BadInput
from graftax.evaluate.protocol import Protocol
from graftax.evaluate.sample_set import draw_set, open_set, write_npz
from graftax.models import Model
from graftax.testing import random_params, tiny_spec

ELSEWHERE = """
import sys
from pathlib import Path

import jax
import numpy as np

folder, protocol, *host = sys.argv[1:]
if host:
    jax.distributed.initialize(f"127.0.0.1:{host[1]}", 2, int(host[0]))

from graftax.errors import BadInput
from graftax.evaluate.protocol import Protocol
from graftax.evaluate.sample_set import draw_set
from graftax.models import Model
from graftax.testing import random_params, tiny_spec

calls = []


def decode(latents):
    calls.append(len(latents))
    return np.tanh(latents[..., :3])


spec = tiny_spec(depth=1)
model = Model(spec, random_params(spec, jax.random.key(0)))
try:
    draw_set(model, Protocol.from_json(protocol), decode, Path(folder), identity="m", part=8, show=False)
except BadInput as error:
    sys.exit(str(error))
print(jax.local_device_count(), len(calls))
"""
"""FOLDER PROTOCOL [HOST PORT]: draws the set of these tests, and prints the devices and the parts that were drawn here."""

PROTOCOL = Protocol(sampling=Sampling(steps=4, cfg_scale=2.0), count=22, labels="balanced", seed=5)


@functools.cache
def model() -> Model:
    spec = tiny_spec(depth=1)
    return Model(spec, random_params(spec, jax.random.key(0)))


def decode(latents: np.ndarray) -> np.ndarray:
    return np.tanh(latents[..., :3])


def images_of(found) -> np.ndarray:
    return np.concatenate([images for images, _ in found])


def elsewhere(folder, *host, devices: int = 1) -> subprocess.Popen:
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", ELSEWHERE, str(folder), PROTOCOL.to_json(), *map(str, host)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """Exit code and the last lines of both outputs."""
    try:
        streams = process.communicate(timeout=240)
    finally:
        process.kill()
    out, err = ((text.splitlines() or [""])[-1] for text in streams)
    return process.returncode, out, err


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return draw_set(model(), PROTOCOL, decode, tmp_path_factory.mktemp("whole"), identity="m", part=8, show=False)


def test_a_set_holds_every_image_and_its_label(whole):
    assert images_of(whole).shape == (22, 8, 8, 3)
    assert images_of(whole).std() > 10
    assert np.concatenate([labels for _, labels in whole]).tolist() == [i % 10 for i in range(22)]


def test_an_interrupted_set_ends_as_an_undisturbed_one(whole, tmp_path):
    drawn = []

    def failing(latents: np.ndarray) -> np.ndarray:
        drawn.append(1)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return decode(latents)

    with pytest.raises(KeyboardInterrupt):
        draw_set(model(), PROTOCOL, failing, tmp_path, identity="m", part=8, show=False)
    assert len(open_set(tmp_path).missing()) == 2
    again = draw_set(model(), PROTOCOL, decode, tmp_path, identity="m", part=8, show=False)
    np.testing.assert_array_equal(images_of(again), images_of(whole))


def test_images_do_not_depend_on_the_part(whole, tmp_path):
    other = draw_set(model(), PROTOCOL, decode, tmp_path, identity="m", part=11, show=False)
    gap = np.abs(images_of(other).astype(int) - images_of(whole))
    assert gap.max() <= 1  # compiled for another shape: rounding of floats may tip a byte


@pytest.mark.slow
def test_images_do_not_depend_on_the_devices(whole, tmp_path):
    code, out, err = ended(elsewhere(tmp_path, devices=4))
    assert (code, out) == (0, "4 3"), err
    gap = np.abs(images_of(open_set(tmp_path)).astype(int) - images_of(whole))
    assert gap.max() <= 1
    assert np.mean(gap > 0) < 0.01  # two images in a device's batch in place of eight: as above


@pytest.mark.slow
def test_two_hosts_draw_each_its_share(whole, tmp_path):
    port = free_port()
    hosts = [elsewhere(tmp_path, index, port) for index in range(2)]
    assert [ended(host)[:2] for host in hosts] == [(0, "1 2"), (0, "1 1")]
    for first in whole.starts:
        assert open_set(tmp_path).file(first).read_bytes() == whole.file(first).read_bytes()


@pytest.mark.slow
def test_a_folder_that_hosts_do_not_share_is_refused(tmp_path):
    port = free_port()
    hosts = [elsewhere(tmp_path / str(index), index, port) for index in range(2)]
    for index, host in enumerate(hosts):
        code, _, err = ended(host)
        assert code == 1
        assert err.endswith(f"{index}: another one on host 1, expected a folder that all hosts share")


def test_the_file_is_what_adms_evaluator_reads(whole, tmp_path):
    with np.load(write_npz(whole, tmp_path / "samples.npz"), allow_pickle=False) as stored:
        assert stored.files == ["arr_0", "arr_1"]
        np.testing.assert_array_equal(stored["arr_0"], images_of(whole))
        assert stored["arr_1"].tolist() == [i % 10 for i in range(22)]


def test_other_models_protocols_and_parts_are_refused(whole):
    def draw(protocol=PROTOCOL, identity="m", part=8):
        return draw_set(model(), protocol, decode, whole.folder, identity=identity, part=part, show=False)

    before = {file: file.read_bytes() for file in whole.folder.rglob("*.npz")}
    with pytest.raises(BadInput, match="model m, expected n"):
        draw(identity="n")
    with pytest.raises(BadInput, match="steps: 4"):
        draw(dataclasses.replace(PROTOCOL, sampling=Sampling(steps=5, cfg_scale=2.0)))
    with pytest.raises(BadInput, match="8 images per part"):
        draw(part=11)
    draw(dataclasses.replace(PROTOCOL, reference="other"))  # only its scores would differ
    assert {file: file.read_bytes() for file in whole.folder.rglob("*.npz")} == before


def test_missing_parts_and_folders_are_named(whole, tmp_path):
    with pytest.raises(BadInput, match=r"no protocol\.json"):
        open_set(tmp_path)
    (tmp_path / "protocol.json").write_text((whole.folder / "protocol.json").read_text())
    with pytest.raises(BadInput, match="3 of 3 parts missing"):
        write_npz(open_set(tmp_path))
