"""What every kind of source promises as a stream: exact positions, disjoint shares of one order, refusal of other data."""

import json

import numpy as np
import pytest

from graftax.data.folder import open_folder
from graftax.data.latents import open_latents
from graftax.data.pipeline import Arrays, Pixels, stream, whole
from graftax.data.source import load_source, prepare
from graftax.data.tfds import open_tfds
from graftax.errors import BadInput

KINDS = ("arrays", "npz", "folder", "tfds", "latents")


@pytest.fixture
def reader(request, image_folder, tfds_dir, latent_folder, tmp_path):
    """A reader of one kind, all with flips."""
    rng = np.random.default_rng(2)
    labels = np.arange(24) % 3
    if request.param == "npz":
        np.savez(tmp_path / "set.npz", images=rng.integers(0, 256, (24, 5, 4, 3), np.uint8), labels=labels)
    opened = {
        "arrays": lambda: Arrays(
            {"image": rng.standard_normal((24, 4, 4, 2), np.float32), "label": labels.astype(np.int32)}, "flip"
        ),
        "npz": lambda: Pixels(load_source(tmp_path / "set.npz"), 6, "flip"),
        "folder": lambda: Pixels(open_folder(image_folder), 16, "flip"),
        "tfds": lambda: Pixels(open_tfds("tiny_set", tfds_dir), 16, "flip"),
        "latents": lambda: open_latents(latent_folder).take(np.arange(24)).transformed("flip"),
    }
    return opened[request.param]()


def assert_equal(got, expected):
    assert got.keys() == expected.keys() == {"image", "label"}
    for name in got:
        np.testing.assert_array_equal(got[name], expected[name])


@pytest.mark.parametrize("threads", [0, 3])
@pytest.mark.parametrize("reader", KINDS, indirect=True)
def test_the_position_comes_back_to_the_bit(reader, threads):
    data = stream(reader, 10, 3, threads=threads)
    for _ in range(4):  # into the second epoch
        next(data)
    state = json.loads(json.dumps(data.state()))
    expected = [next(data) for _ in range(3)]
    for other in (stream(reader, 10, 3, threads=threads), data, stream(reader, 10, 3, threads=2 - threads // 2)):
        other.restore(state)
        for batch in expected:
            assert_equal(next(other), batch)
        assert other.state() == {**state, "next_batch": 7}


@pytest.mark.parametrize("reader", KINDS, indirect=True)
def test_hosts_share_one_stream(reader):
    """Shares are disjoint and cover every global batch, whatever the number of hosts; so a run may change hosts."""
    alone = stream(reader, 8, 3)
    hosts = [stream(reader, 8, 3, i, 4, threads=2) for i in range(4)]
    seen = []
    for _ in range(6):
        expected, shares = next(alone), [next(host) for host in hosts]
        for i, share in enumerate(shares):
            assert_equal(share, {name: leaf[i::4] for name, leaf in expected.items()})
        seen.append(expected["label"])
    assert alone.state() == hosts[2].state()
    np.testing.assert_array_equal(np.bincount(np.concatenate(seen)), 2 * np.bincount(whole(reader)["label"]))


@pytest.mark.parametrize("reader", KINDS, indirect=True)
def test_what_is_drawn_changes_with_the_epoch_and_the_seed_alone(reader):
    index = np.arange(24)
    first = reader.read(index, 0 * index, 1)["image"]
    np.testing.assert_array_equal(first[::-1], reader.read(index[::-1], 0 * index, 1)["image"])
    assert (first != reader.read(index, 0 * index + 1, 1)["image"]).any()
    assert (first != reader.read(index, 0 * index, 2)["image"]).any()
    assert first.dtype == np.float32


@pytest.mark.parametrize("reader", ["folder", "tfds", "latents", "npz"], indirect=True)
def test_a_position_in_other_data_is_refused(reader, image_folder):
    state = stream(reader, 8, 0).state()
    part = Pixels(open_folder(image_folder).take(np.arange(24)[::-1]), 16, "flip")
    with pytest.raises(BadInput, match="data state: data"):
        stream(part, 8, 0).restore(state)


def test_pixels_of_a_set_in_memory_are_those_of_prepare(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 5, 4, 3), np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(7))
    np.testing.assert_array_equal(whole(Pixels(load_source(tmp_path / "set.npz"), 8), chunk=3)["image"], prepare(images, 8))


def test_a_damaged_image_is_named_from_a_reading_thread(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"no picture")
    with pytest.raises(BadInput, match=r"x\.png: cannot be read"):
        next(stream(Pixels(open_folder(tmp_path), 8), 2, 0, threads=2))
