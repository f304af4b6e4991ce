import json

import numpy as np
from PIL import Image

from graftax.data.scenes import Scene, Scenes, render
from graftax.data.scenes.folder import METADATA, remove_beyond, write_folder
from graftax.data.text.captions import open_captioned


def test_files_are_a_set_of_pictures_with_captions(tmp_path):
    scenes = Scenes(5, "heldout", seed=2)
    write_folder(scenes, tmp_path / "out")
    opened = open_captioned(tmp_path / "out")
    assert opened.captions == tuple((str(each.caption),) for each in scenes)
    for i, each in enumerate(scenes):
        np.testing.assert_array_equal(opened.fetch(i)[0], render(each))
    lines = (tmp_path / "out" / METADATA).read_text().splitlines()
    assert [Scene.from_dict(json.loads(line)["scene"]) for line in lines] == list(scenes)
    with Image.open(tmp_path / "out" / "000004.png") as picture:
        assert picture.size == (64, 64)


def test_what_a_larger_set_has_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "mine.png").write_bytes(b"")
    write_folder(Scenes(4), tmp_path)
    write_folder(Scenes(2), tmp_path)
    remove_beyond(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000.png", "000001.png", METADATA, "mine.png"]
