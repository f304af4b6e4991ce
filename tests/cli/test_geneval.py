"""`graftax geneval`: a folder of pictures and a file of detections in, scores with their protocol out."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import write_pipeline

from graftax.checkpoint.files import sha256
from graftax.evaluate.geneval import draw_folder, drawn_by, read_prompts
from graftax.evaluate.geneval.folder import INDEX
from graftax.evaluate.protocol import Protocol
from graftax.evaluate.result import find_results
from graftax.models import Meta, Model
from graftax.testing import random_params, tiny_spec

LINES = (
    {"tag": "single_object", "prompt": "a photo of a cow", "include": [{"class": "cow", "count": 1}]},
    {"tag": "colors", "prompt": "a photo of a red cat", "include": [{"class": "cat", "count": 1, "color": "red"}]},
)


@pytest.fixture
def pictures(tmp_path):
    """Two prompts of two pictures each, drawn by "tiny"."""
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    spec = tiny_spec(hidden_size=16, depth=1, num_heads=2)
    model = Model(spec, random_params(spec, jax.random.key(0)), Meta())
    prompts = read_prompts(tmp_path / "prompts.jsonl")
    drawn = drawn_by("tiny", model, Protocol(text="T5 12ab"), prompts, "prompts.jsonl", 2)
    folder = tmp_path / "pictures"
    draw_folder(prompts, lambda texts, keys: np.full((len(texts), 8, 8, 3), 90, np.uint8), folder, drawn, show=False)
    return folder


@pytest.fixture
def detections(tmp_path):
    """All right but for the second cat, which is blue."""

    def seen(name, color="red"):
        return [{"class": name, "box": [0, 0, 4, 4], "score": 0.8, "color": color}]

    images = {
        "00000/samples/0000.png": seen("cow"), "00000/samples/0001.png": seen("cow"),
        "00001/samples/0000.png": seen("cat"), "00001/samples/0001.png": seen("cat", "blue"),
    }  # fmt: skip
    path = tmp_path / "detections.json"
    path.write_text(json.dumps({"detector": "d 1", "colors": "c 2", "classes": ["cow", "cat"], "images": images}))
    return path


def test_scores_are_printed_and_kept(run, refused, pictures, detections):
    code, out, _ = run("geneval", pictures, "--detections", detections)
    assert code == 0
    lines = out.splitlines()
    assert [line.split() for line in lines[1:6]] == [
        ["single_object", "100.00%", "2", "2"], ["colors", "50.00%", "1", "2"], ["overall", "75.00%"],
        ["correct", "images", "75.00%", "3", "4"], ["correct", "prompts", "100.00%", "2", "2"],
    ]  # fmt: skip
    assert "Judge: GenEval by d 1, colors by c 2." in out
    assert "Pictures: tiny: 4 images of prompts read by T5 12ab, " in out
    (result,) = find_results(pictures).values()
    assert (result.name, result.scores["overall"], result.protocol.hash in out) == ("tiny", 0.75, True)
    verdicts = json.loads((pictures / "verdicts.json").read_text())
    assert verdicts["images"][3]["faults"] == ["expected 1 red cat, found 1 blue"]
    page = (pictures / "geneval.html").read_text()
    assert page.count("data:image/png;base64,") == 3  # a right one of each task, a wrong one of the second
    assert "wrong: expected 1 red cat, found 1 blue" in page
    before = sha256(pictures / "verdicts.json")
    assert "exists already, expected a new name or --overwrite" in refused("geneval", pictures, "--detections", detections)
    record = json.loads(run("geneval", pictures, "--detections", detections, "--overwrite", "--json")[1])
    assert (record["scores"], record["tasks"]) == (result.scores, {"single_object": [2, 2], "colors": [1, 2]})
    assert sha256(pictures / "verdicts.json") == before


@pytest.mark.slow
def test_a_pipeline_draws_them(run, refused, tmp_path, monkeypatch):
    """As `graftax sample` does; what is there is left alone, what is another's refused."""
    pipeline = write_pipeline(tmp_path / "pipeline")
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    argv = ["geneval", tmp_path / "out", "--model", pipeline, "--prompts", tmp_path / "prompts.jsonl", "--per-prompt=2"]
    argv += ["--steps=2", "--batch-size=4"]
    code, out, err = run(*argv)
    assert code == 0, err
    assert "4 images of prompts read by pipeline " in out
    assert ", DPM-Solver++ 2M, 2 steps, guidance 4.5 on all channels, seed 0, decoder VAE " in out
    texts = [flag for line in LINES for flag in ("--prompt", line["prompt"])]
    assert run("sample", pipeline, *texts, "--per-prompt=2", *argv[-2:], "--out", tmp_path / "x.npz")[0] == 0
    places = [tmp_path / "out" / f"0000{i // 2}" / "samples" / f"000{i % 2}.png" for i in range(4)]
    drawn = np.stack([np.asarray(Image.open(place)) for place in places])
    assert np.abs(drawn.astype(int) - np.load(tmp_path / "x.npz")["images"]).max() <= 1  # two programs round apart
    before = {place: place.stat().st_mtime_ns for place in places}
    places[3].unlink()
    assert run(*argv)[0] == 0
    assert [place.stat().st_mtime_ns == before[place] for place in places] == [True, True, False, False]
    np.testing.assert_array_equal(np.asarray(Image.open(places[3])), drawn[3])
    assert "steps: 2 (there), 3 (this run)" in refused(*argv, "--steps=3")
    assert "text: " in refused(*argv, "--text-dtype=bfloat16")  # the protocol names another reader


def test_drawing_and_judging_are_two_things(refused, tmp_path, pictures, detections):
    for argv, word in (
        ((), "expected --model, to draw the pictures, or --detections"),
        (("--model=demo", "--detections", detections), "expected --model, to draw"),
        (("--model=demo",), "--prompts is missing"),
        (("--detections", detections, "--steps=3"), "geneval --steps: belongs to drawing, expected --model"),
        (("--model=demo", "--prompts=p", "--overwrite"), "geneval --overwrite: belongs to scores"),
        (("--model=demo", "--prompts", tmp_path / "prompts.jsonl"), "model demo: takes one of 10 classes"),
        (("--model=demo", "--prompts", tmp_path / "prompts.jsonl", "--per-prompt=0"), "per-prompt: got 0"),
    ):
        assert word in refused("geneval", pictures, *argv)


def test_pictures_of_others_have_no_protocol(run, pictures, detections):
    (pictures / INDEX).unlink()
    code, out, _ = run("geneval", pictures, "--detections", detections)
    assert (code, "drawn by others, no protocol is known" in out) == (0, True)
    assert not (pictures / "scores").exists()


def test_a_damaged_picture_is_named(refused, pictures, detections):
    (pictures / "00001" / "samples" / "0001.png").write_bytes(b"no picture")
    assert "pictures/00001/samples/0001.png: " in refused("geneval", pictures, "--detections", detections)


def test_what_does_not_fit_is_refused_before_anything_is_written(refused, tmp_path, pictures, detections):
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "fewer.json").write_text(detections.read_text().replace("00001/samples/0001.png", "00001/samples/0002.png"))
    message = refused("geneval", pictures, "--detections", tmp_path / "fewer.json")
    assert "fewer.json: images: 00001/samples/0001.png is missing (1 such)" in message
    (tmp_path / "fewer.json").unlink()
    assert "no folders 00000" in refused("geneval", tmp_path, "--detections", detections)
    assert "cannot be read" in refused("geneval", pictures, "--detections", tmp_path / "none.json")
    assert sorted(tmp_path.rglob("*")) == before
