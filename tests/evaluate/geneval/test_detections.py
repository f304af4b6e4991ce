"""Files of detections: what they mean, and what is wrong with one."""

import copy
import json

import pytest

from graftax.errors import BadInput
from graftax.evaluate.geneval import Detection, read_detections

FILE = {
    "detector": "some detector 1.0", "colors": "some namer 2.0", "classes": ["cow", "cat"],
    "images": {
        "00000/samples/0000.png": [
            {"class": "cow", "box": [1, 2, 3.5, 4], "score": 0.5, "color": "red"},
            {"class": "cat", "box": [0, 0, 0, 0], "score": 1, "color": {"blue": 0.4, "green": 0.4, "pink": 0.1}},
            {"class": "cat", "box": [0, 0, 1, 1], "score": 0},
        ],
        "00000/samples/0001.png": [],
    },
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "detections.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_detections(path)

    return read


def test_files_are_read(read):
    found = read(FILE)
    assert (found.detector, found.colors, found.classes) == ("some detector 1.0", "some namer 2.0", {"cow", "cat"})
    assert found.images == {
        "00000/samples/0000.png": [
            Detection("cow", (1, 2, 3.5, 4), 0.5, "red"),
            Detection("cat", (0, 0, 0, 0), 1, "green"),  # of the likeliest the first in the list of colours
            Detection("cat", (0, 0, 1, 1), 0),
        ],
        "00000/samples/0001.png": [],
    }


def with_object(**fields):
    changed = copy.deepcopy(FILE)
    changed["images"]["00000/samples/0000.png"][1].update(fields)
    return changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "detector: missing or of another type, expected str"),
        ({**FILE, "detector": " "}, "detector: empty"),
        ({**FILE, "classes": {}}, "classes: missing or of another type, expected list"),
        ({**FILE, "images": {"a.png": {}}}, r"images 'a\.png': got '\{\}', expected a list of objects"),
        ({**FILE, "images": {"a.png": [3]}}, r"images 'a\.png': object 0: '3', expected class, box and score"),
        ({**FILE, "images": {"a.png": [{"class": "cow", "score": 1}]}}, r"images 'a\.png': object 0: box, expected class"),
        ({**FILE, "colors": ""}, "colors: empty beside objects with a color"),
        (with_object(**{"class": "caw"}), r"images '00000/samples/0000\.png': object 1: class '\"caw\"' is not .*mean 'cow'"),
        (with_object(box=[0, 0, 1]), r"object 1: box '\[0, 0, 1\]', expected \[x0, y0, x1, y1\]"),
        (with_object(box=[2, 0, 1, 1]), "object 1: box"),
        (with_object(box=[0, 0, 1, "1"]), "object 1: box"),
        (with_object(box=[0, 0, 1, float("nan")]), "object 1: box"),
        (with_object(score=1.1), r"object 1: score '1\.1', expected a number from 0 to 1"),
        (with_object(score=True), "object 1: score 'true'"),
        (with_object(color="gray"), r"object 1: color '\"gray\"', expected one of"),
        (with_object(color={"gray": 1.0}), "object 1: color"),
        (with_object(color={"red": "much"}), "object 1: color"),
        (with_object(color={}), "object 1: color"),
        (with_object(confidence=1), r"object 1: unknown field 'confidence'"),
    ],
)
def test_what_is_wrong_is_named(read, content, message):
    with pytest.raises(BadInput, match=rf"detections\.json: .*{message}") as caught:
        read(content)
    assert "\n" not in str(caught.value)
