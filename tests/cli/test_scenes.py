"""`graftax scenes` writes what `graftax.data.scenes` draws."""

import json

import jax
import numpy as np
from PIL import Image

from graftax.backbones.pixart import pixart_spec
from graftax.checkpoint import save_model
from graftax.data.scenes import Scenes, render
from graftax.data.scenes.caption import CATEGORIES
from graftax.data.text.captions import open_captioned
from graftax.evaluate.result import find_results
from graftax.evaluate.scenes import as_prompt, score_folder
from graftax.testing import random_params

SPEC = pixart_spec(
    input_size=16, patch_size=4, hidden_size=32, depth=1, num_heads=2, words=78, vocabulary="scenes", text_width=16,
    text_tokens=16, text_blocks=1, text_heads=2,
)  # fmt: skip


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
    assert "scenes --steps: belongs to drawing, expected --model" in refused("scenes", tmp_path / "new", "--steps=5")
    assert not (tmp_path / "new").exists()


def test_a_models_pictures_are_judged_and_kept(run, refused, tmp_path):
    model, out = tmp_path / "model", tmp_path / "out"
    save_model(model, SPEC, random_params(SPEC, jax.random.key(0)), {})
    told = ("scenes", out, f"--model={model}", "--steps=2", "--batch-size=6")
    code, output = run(*told, "--count=2")[:2]
    assert code == 0
    assert [line.split()[-1] for line in output.splitlines() if line.startswith(("counting", "position"))] == ["2", "2"]
    verdicts = json.loads((out / "verdicts.json").read_text())
    assert [len(verdicts["images"]), verdicts["judge"]] == [12, "scenes judge 1"]
    assert {path.name for path in out.iterdir()} >= {"geneval.html", "judged.png", "scores", "00011"}
    (result,) = find_results(out).values()
    assert result.scores == verdicts["scores"]
    assert result.protocol.reference.startswith("scenes, heldout")
    # The same command draws nothing anew, and may not replace scores unasked; other captions are refused.
    assert "--overwrite" in refused(*told, "--count=2")
    assert run(*told, "--count=2", "--overwrite")[0] == 0
    code, _, complaint = run(*told, "--count=3", "--overwrite")
    assert code == 2
    assert "protocols differ in count: 12 (there), 18 (this run)" in complaint
    assert "--count" in refused("scenes", tmp_path / "new", f"--model={model}", "--count=0")
    assert "--text-dtype: got bfloat16" in refused("scenes", tmp_path / "new", f"--model={model}", "--text-dtype=bfloat16")
    # Neither kind of output takes the other's file.
    assert run("scenes", out, "--count=1")[0] == 0
    assert (out / "judged.png").exists()


def test_real_pictures_in_such_a_folder_are_right(tmp_path):
    scenes = [each for each in Scenes(100, "heldout") if each.caption.category in CATEGORIES]
    firsts = {each.caption.category: each for each in scenes}
    for number, scene in enumerate(firsts.values()):
        place = tmp_path / f"{number:05d}"
        (place / "samples").mkdir(parents=True)
        (place / "metadata.jsonl").write_text(as_prompt(scene.caption).line + "\n")
        Image.fromarray(render(scene)).save(place / "samples" / "0000.png")
    found = score_folder(tmp_path)
    assert len(found.tasks) >= 5
    assert found.scores["overall"] == found.scores["exact"] == 1.0
    assert found.verdicts[0].image == "00000/samples/0000.png"
