import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from toy_latents import moments, write_latents

from graftax.data.latents import MANIFEST, Manifest, is_latent_set, open_latents, read_manifest, write_shard
from graftax.data.pipeline import generator, stream, whole
from graftax.errors import BadInput


def test_a_batch_is_a_scaled_sample_of_the_posterior(latent_folder):
    data = open_latents(latent_folder)
    index, epoch = np.array([24, 3, 11]), np.array([0, 0, 7])
    batch = data.read(index, epoch, seed=5)
    np.testing.assert_array_equal(batch["label"], index % 3)
    for got, i, e in zip(batch["image"], index, epoch, strict=True):
        mean, log_variance = np.split(moments(25)[i, 0].astype(np.float32), 2, axis=-1)
        noise = generator(5, e, i).standard_normal(mean.shape, np.float32)
        np.testing.assert_allclose(got, 0.5 * (mean + np.sqrt(np.exp(log_variance)) * noise - 0.25), rtol=1e-5, atol=1e-6)


def test_channels_may_have_scales_of_their_own(tmp_path):
    plain, own = (
        write_latents(tmp_path / name, scale=scale, shift=shift)
        for name, scale, shift in (("plain", 1.0, 0.0), ("own", (0.5, 2.0), (0.25, -1.0)))
    )
    assert read_manifest(tmp_path / "own") == own
    raw, found = (one.seen(moments(1)[0], False, np.random.default_rng(0)) for one in (plain, own))
    np.testing.assert_allclose(found, (raw - [0.25, -1.0]) * [0.5, 2.0], rtol=1e-5)


def test_samples_follow_the_moments(latent_folder):
    data = open_latents(latent_folder)
    drawn = np.stack([data.read(np.array([4]), np.array([e]), 0)["image"][0] for e in range(2000)])
    mean, log_variance = np.split(moments(25)[4, 0].astype(np.float64), 2, axis=-1)
    deviation = 0.5 * np.exp(0.5 * log_variance)
    np.testing.assert_allclose(drawn.mean(0), 0.5 * (mean - 0.25), atol=5 * deviation.max() / 2000**0.5)
    np.testing.assert_allclose(drawn.std(0), deviation, rtol=5 / 4000**0.5)


def test_flip_takes_the_moments_of_the_mirror_image_half_of_the_time(latent_folder):
    data = open_latents(latent_folder).transformed("flip")
    image, mirror = (0.5 * (moments(25)[8, side, ..., :2].astype(np.float32) - 0.25) for side in (0, 1))
    drawn = [data.read(np.array([8]), np.array([e]), 0)["image"][0] for e in range(400)]
    assert 0.4 < np.mean([((d - mirror) ** 2).sum() < ((d - image) ** 2).sum() for d in drawn]) < 0.6


def test_a_part_draws_what_the_whole_draws(latent_folder):
    data = open_latents(latent_folder)
    part = data.take(np.array([20, 6]))
    index = np.arange(2)
    np.testing.assert_array_equal(part.read(index, index, 3)["image"], data.read(np.array([20, 6]), index, 3)["image"])
    assert part.labels.tolist() == [2, 0]
    assert part.digest != data.digest
    assert whole(part)["image"].shape == (2, 2, 3, 2)


def test_manifests_read_back_equal(latent_folder):
    manifest = read_manifest(latent_folder)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert [len(manifest.span(i)) for i in range(3)] == [10, 10, 5]
    assert is_latent_set(latent_folder)
    assert not is_latent_set(latent_folder.parent)


def test_an_unfinished_set_is_refused(latent_folder):
    plan = dataclasses.replace(read_manifest(latent_folder), shards=None)
    (latent_folder / MANIFEST).write_text(plan.to_json())
    (latent_folder / plan.files[1]).unlink()
    with pytest.raises(BadInput, match="2 of 3 shards, finish with the same `graftax encode`"):
        open_latents(latent_folder)


@pytest.mark.parametrize("damage", ["cut", "label", "other", "absent", "older"])
def test_a_damaged_manifest_is_refused(latent_folder, damage):
    path = latent_folder / MANIFEST
    text = path.read_text()
    tree = json.loads(text)
    tree["shards"][0]["labels"][4] = 2
    changed = {"cut": text[:300], "label": json.dumps(tree), "other": "[]", "older": text.replace("latents 1", "latents 0")}
    path.unlink() if damage == "absent" else path.write_text(changed[damage])
    with pytest.raises(BadInput, match=r"no manifest\.json" if damage == "absent" else r"manifest\.json is damaged"):
        open_latents(latent_folder)


def test_missing_and_cut_shards_are_refused(latent_folder):
    path = latent_folder / read_manifest(latent_folder).files[2]
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(BadInput, match=rf"{path.name} is {len(data) - 100} bytes, expected {len(data)}; repair it"):
        open_latents(latent_folder)
    path.unlink()
    with pytest.raises(BadInput, match=f"{path.name} is missing"):
        open_latents(latent_folder)


def test_a_changed_byte_is_found_when_its_record_is_read(tmp_path):
    write_latents(tmp_path / "set", count=40, shard_size=40)
    path = next((tmp_path / "set").glob("*.array_record"))
    data = bytearray(path.read_bytes())
    place = data.find(moments(40)[20].tobytes())
    data[place + 7] ^= 1
    path.write_bytes(data)
    opened = open_latents(tmp_path / "set")
    opened.read(np.array([3]), np.array([0]), 0)
    with pytest.raises(BadInput, match=r"cannot be read .*hash mismatch"):
        opened.read(np.array([20]), np.array([0]), 0)
    with pytest.raises(BadInput, match="cannot be read"):  # also from a reading thread
        next(stream(opened, 40, 0, threads=2))


def test_a_full_disk_is_said(tmp_path):
    with pytest.raises(BadInput, match=r"full: cannot be written \(no space left on device\)"):
        write_shard(Path("/dev/full"), moments(3))
    with pytest.raises(BadInput, match="cannot be written"):
        write_shard(tmp_path / "absent" / "x", moments(3))
