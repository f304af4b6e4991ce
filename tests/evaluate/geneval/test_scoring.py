"""GenEval's scores: shares over pictures, tasks and prompts, and what they carry."""

import json

import pytest

from graftax.errors import BadInput
from graftax.evaluate.geneval import Detection, Detections, Prompt, Wanted, score
from graftax.evaluate.geneval.folder import Drawn
from graftax.evaluate.protocol import Protocol
from graftax.evaluate.result import read_result
from graftax.testing import tiny_spec


def prompt(tag, name):
    return Prompt(tag, f"a photo of a {name}", (Wanted(name, 1),), (), f'{{"tag": "{tag}", "class": "{name}"}}')


def judged(right, tags, names=("cow", "cat", "dog", "owl", "fox")):
    """Scores of prompts with the tags `tags`, one for each string in `right`: its pictures, "x" wrong and "o" right."""
    prompts = [prompt(tag, name) for tag, name in zip(tags, names, strict=False)]
    images, seen = {}, {}
    for number, (asked, marks) in enumerate(zip(prompts, right, strict=True)):
        for i, mark in enumerate(marks):
            name = f"{number:05d}/samples/{i:04d}.png"
            images[name] = asked
            seen[name] = [Detection(asked.include[0].name, (0, 0, 1, 1), 0.95)] if mark == "o" else []
    return score(images, Detections("detector 1", "namer 2", frozenset(names), seen))


def test_overall_is_the_mean_of_tasks_not_of_pictures():
    found = judged(["oooo", "oxxx", "xxxx", "ooxx"], ["single_object", "colors", "colors", "position"])
    assert found.tasks == {"single_object": (4, 4), "colors": (1, 8), "position": (2, 4)}
    assert found.scores == {
        "overall": pytest.approx((1 + 1 / 8 + 1 / 2) / 3), "single_object": 1.0, "colors": 0.125, "position": 0.5,
        "correct images": 7 / 16, "correct prompts": 3 / 4,
    }  # fmt: skip


def test_lines_that_are_the_same_are_one_prompt():
    found = judged(["oxxx", "xxxx"], ["colors", "colors"], ["cow", "cow"])
    assert found.prompts == (1, 1)
    assert found.scores["correct images"] == 1 / 8


def test_records_name_every_picture_and_the_judge(tmp_path):
    found = judged(["ox"], ["colors"])
    record = json.loads(found.save(tmp_path / "pictures").read_text())
    assert record["judge"] == "GenEval by detector 1, colors by namer 2"
    assert record["images"][1] == {
        "image": "00000/samples/0001.png", "tag": "colors", "prompt": "a photo of a cow", "correct": False,
        "faults": ["expected 1 cow or more, found 0"],
    }  # fmt: skip
    assert record["tasks"] == {"colors": [1, 2]}


def test_results_carry_protocol_and_judge(tmp_path):
    protocol = Protocol(count=2, text="T5 12ab", reference="prompts.jsonl 34cd, 1 prompts")
    result = judged(["ox"], ["colors"]).result(Drawn("model", "abc", tiny_spec(), protocol, 2))
    again = read_result(result.save(tmp_path))
    assert again == result
    assert again.protocol.features == "GenEval by detector 1, colors by namer 2"
    assert again.scores["colors"] == 0.5
    assert str(again.protocol).startswith("2 images of prompts read by T5 12ab, ")


def test_detections_must_be_of_these_pictures():
    asked, name = prompt("colors", "cow"), "00000/samples/0000.png"

    def given(images, seen, classes=("cow",)):
        return score(images, Detections("d", "", frozenset(classes), seen))

    with pytest.raises(BadInput, match=rf"images: {name} is missing \(1 such\)"):
        given({name: asked}, {})
    with pytest.raises(BadInput, match=rf"images: {name} is not in the folder \(1 such\)"):
        given({}, {name: []})
    with pytest.raises(BadInput, match="images: none"):
        given({}, {})
    with pytest.raises(BadInput, match=r"classes: 'cow' is missing, which a prompt asks for \(1 such\)"):
        given({name: asked}, {name: []}, ("cat",))
    red = Prompt("colors", "a red cow", (Wanted("cow", 1, "red"),), (), "{}")
    with pytest.raises(BadInput, match=rf"images {name}: object cow of score 0\.5: no color"):
        given({name: red}, {name: [Detection("cow", (0, 0, 1, 1), 0.5)]})
