"""`graftax scenes` writes what `graftax.data.scenes` draws."""

import numpy as np
from PIL import Image

from graftax.data.scenes import Scenes
from graftax.data.text.captions import open_captioned


def test_a_folder_of_scenes_and_a_grid(run, refused, tmp_path):
    out = tmp_path / "out"
    code, output = run("scenes", out, "--count=3", "--split=heldout", "--seed=2")[:2]
    assert code == 0
    assert output.startswith(f"{out}: 3 scenes of seed 2, heldout")
    assert open_captioned(out / "pictures").captions == tuple((str(each.caption),) for each in Scenes(3, "heldout", 2))
    assert np.asarray(Image.open(out / "grid.png")).shape[1] == 3 * 134 - 6
    assert "exists already" in refused("scenes", out, "--count=2")
    assert run("scenes", out, "--count=2", "--overwrite")[0] == 0
    assert len(open_captioned(out / "pictures")) == 2
    assert "--split" in refused("scenes", tmp_path / "new", "--split=test")
    assert "count 0" in refused("scenes", tmp_path / "new", "--count=0")
    assert not (tmp_path / "new").exists()
