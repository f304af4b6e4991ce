import hashlib
import json

import numpy as np
import pytest

from graftax.data.pipeline import stream
from graftax.data.scenes import Scene, Scenes, ids, render, render_batch, scene
from graftax.data.scenes.shapes import INSIDE, coverage
from graftax.data.scenes.sprites import shrunk, sprite
from graftax.data.scenes.vocabulary import COLOURS, EMOJI, RELATIONS
from graftax.data.scenes.world import SIDE, SIZES
from graftax.errors import BadInput


def test_one_number_is_one_scene() -> None:
    assert scene(7) == scene(7)
    assert len({json.dumps(scene(i, split, seed).to_dict()) for i in range(20) for split in ("train", "heldout")
                for seed in (0, 1)}) == 80  # fmt: skip
    with pytest.raises(BadInput, match="scene -1 of seed 0"):
        scene(-1)
    with pytest.raises(BadInput, match="split: got 'valid'"):
        scene(0, "valid")


def test_the_stream_of_scenes_stays_what_it_is() -> None:
    """A model's record names its data by seed: other scenes under the same seed would be another data set."""
    text = json.dumps([scene(i, split).to_dict() for split in ("train", "heldout") for i in range(50)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "eadf68f28f4e3af9"


def test_scenes_are_what_their_captions_say() -> None:
    for i in range(400):
        drawn = scene(i)
        named = [(group.kind, group.colour) for group in drawn.caption.groups for _ in range(group.count)]
        assert [(thing.kind, thing.colour) for thing in drawn.things] == named
        for thing in drawn.things:
            assert thing.size in SIZES
            assert thing.size / 2 <= min(thing.x, thing.y)
            assert max(thing.x, thing.y) <= SIDE - thing.size / 2
        for k, one in enumerate(drawn.things):
            for other in drawn.things[:k]:
                assert max(abs(one.x - other.x), abs(one.y - other.y)) >= (one.size + other.size) / 2 - 1
        if drawn.caption.relation:
            along = np.array(RELATIONS[drawn.caption.relation])
            count = drawn.caption.groups[0].count
            for one in drawn.things[:count]:
                for other in drawn.things[count:]:
                    offset = np.array([one.x - other.x, one.y - other.y])
                    assert offset @ along > 0.75 * np.linalg.norm(offset)


def test_scenes_are_json() -> None:
    drawn = scene(3, "heldout")
    assert Scene.from_dict(json.loads(json.dumps(drawn.to_dict()))) == drawn
    with pytest.raises(BadInput, match="scene: 'things'"):
        Scene.from_dict({})


def test_pictures_show_things_where_they_are_and_ground_elsewhere() -> None:
    for i in range(60):
        drawn, covered = scene(i), np.zeros((SIDE, SIDE), bool)
        picture = render(drawn)
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.dtype == np.uint8
        for thing in drawn.things:
            left, top, side = int(thing.x - thing.size / 2), int(thing.y - thing.size / 2), int(thing.size)
            covered[top : top + side, left : left + side] = True
        assert (picture[~covered] == drawn.ground).all()
        if (thing := drawn.things[0]).kind in ("circle", "square", "heart", "star"):
            found = picture[int(thing.y), int(thing.x)].astype(int)
            assert np.abs(found - COLOURS[thing.colour or ""]).max() <= 1


def test_shapes_are_covered_by_the_area_that_geometry_gives() -> None:
    areas = {
        "circle": np.pi * 0.95**2 / 4, "square": 0.85**2, "diamond": 0.72 / 2,
        "ring": np.pi * (0.95**2 - 0.5**2) / 4, "cross": 2 * 0.92 * 0.3 - 0.3**2,
        "triangle": (1.72 * 0.56) * 1.72 / 4,
    }  # fmt: skip
    for kind in INSIDE:
        mask = coverage(kind, 24)
        assert mask.shape == (24, 24)
        np.testing.assert_allclose(mask, mask[:, ::-1], atol=1e-6)  # all of them are symmetric
        assert mask.mean() == pytest.approx(areas.get(kind, mask.mean()), rel=0.02)
        assert 0.2 < mask.mean() < 0.8


def test_emoji_fill_their_square_at_every_size() -> None:
    for kind in EMOJI:
        whole = sprite(kind, None, 32).alpha.mean()
        for size in SIZES:
            found = sprite(kind, None, size)
            assert found.colour.shape == (size, size, 3)
            assert found.alpha.mean() == pytest.approx(whole, rel=1e-3)
            assert max(found.alpha[:, :, 0].any(0).mean(), found.alpha[:, :, 0].any(1).mean()) == 1
            assert (found.colour <= 255 * found.alpha + 1e-3).all()


def test_shrinking_keeps_means_and_is_a_block_mean_where_sizes_divide() -> None:
    image = np.random.default_rng(0).random((12, 12, 2)).astype(np.float32)
    np.testing.assert_allclose(shrunk(image, 4), image.reshape(4, 3, 4, 3, 2).mean((1, 3)), rtol=1e-5)
    np.testing.assert_allclose(shrunk(image, 5).mean((0, 1)), image.mean((0, 1)), rtol=1e-5)


def test_batches_are_pictures_and_ids() -> None:
    data = Scenes(10, "heldout", seed=2)
    batch = next(stream(data, 4, seed=0))
    assert batch["image"].shape == (4, SIDE, SIDE, 3)
    assert batch["image"].dtype == np.float32
    assert -1 <= batch["image"].min() < batch["image"].max() <= 1
    everything = data.read(np.arange(10))
    np.testing.assert_array_equal(everything["text"], ids([str(each.caption) for each in data]))
    np.testing.assert_array_equal(everything["image"], render_batch([scene(i, "heldout", 2) for i in range(10)]))
    for image, text in zip(batch["image"], batch["text"], strict=True):
        matches = (everything["image"] == image).all((1, 2, 3)) & (everything["text"] == text).all(1)
        assert matches.sum() == 1


def test_a_set_of_no_scenes_is_refused() -> None:
    with pytest.raises(BadInput, match="count 0, seed 0"):
        Scenes(0)
    with pytest.raises(BadInput, match="split: got 'both'"):
        Scenes(1, "both")
