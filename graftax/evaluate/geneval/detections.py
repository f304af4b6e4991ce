"""What a detector saw in pictures, as a JSON file that any program can write.

    {
      "detector": "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco, mmdet 2.28.2",
      "colors": "CLIP ViT-L-14 openai, open_clip 2.20.0",
      "classes": ["person", "bicycle", ...],
      "images": {
        "00000/samples/0000.png": [
          {"class": "bench", "box": [12.5, 80.0, 310.0, 400.5], "score": 0.97, "color": "red"},
          {"class": "bench", "box": [300.0, 90.0, 500.0, 390.0], "score": 0.41, "color": {"red": 0.2, "brown": 0.7}}
        ],
        "00000/samples/0001.png": []
      }
    }

`detector`: which one, and its version: scores of different detectors do not compare. `colors`: likewise what named the
colours; "" where none are given. `classes`: all that the detector knows, called as the prompts call them, so that a class
that is not there is told from one that was never looked for. `images`: for every picture, by its path in the folder, all
objects found with a score above 0.3, in any order: the class, the box [x0, y0, x1, y1] in pixels (x to the right, y down), the
score in [0, 1], and the color, one of `COLORS` or a probability for some of them, of which the largest counts; it may be left
out where no prompt asks for it.

The official evaluator's detector is Mask2Former (Swin-S) trained on COCO, without suppression of overlaps; it names colours by
CLIP ViT-L/14 from the box's crop, what is outside of the mask painted #999, over the prompts "a photo of a {color} {class}",
"a photo of a {color}-colored {class}" and "a photo of a {color} object".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftax.checkpoint.members import shown
from graftax.errors import BadInput, did_you_mean, naming
from graftax.evaluate.geneval.prompts import COLORS

FIELDS = {"detector": str, "colors": str, "classes": list, "images": dict}
_OBJECT = ("class", "box", "score", "color")


@dataclass(frozen=True)
class Detection:
    """One object in one picture.

    Attributes:
        name: its class.
        box: (x0, y0, x1, y1) in pixels, x0 <= x1 and y0 <= y1.
        score: the detector's confidence, 0 to 1.
        color: its likeliest colour; None where nobody looked.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float
    color: str | None = None


@dataclass(frozen=True)
class Detections:
    """What one detector saw in many pictures.

    Attributes:
        detector: its name and version.
        colors: that of what named the colours, "" for none.
        classes: all that it knows.
        images: the objects of each picture, by the picture's path in its folder.
    """

    detector: str
    colors: str
    classes: frozenset[str]
    images: dict[str, list[Detection]]


def read_detections(path: str | Path) -> Detections:
    """A file in the form above. Raises `BadInput` naming the picture, the object and the field of what is wrong."""
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: cannot be read ({error}), expected JSON of detections") from None
    with naming(path):
        return parse(record)


def parse(record: Any) -> Detections:
    """`read_detections` of what is in the file."""
    for field, kind in FIELDS.items():
        if not isinstance(record, Mapping) or not isinstance(record.get(field), kind):
            raise BadInput(f"{field}: missing or of another type, expected {kind.__name__} (see graftax geneval --help)")
    if not record["detector"].strip():
        raise BadInput("detector: empty, expected its name and version")
    classes = frozenset(name for name in record["classes"] if isinstance(name, str))
    images: dict[str, list[Detection]] = {}
    for image, objects in record["images"].items():
        if not isinstance(objects, list):
            raise BadInput(f"images {shown(image)}: got {_text(objects)}, expected a list of objects")
        with naming(f"images {shown(image)}"):
            images[image] = [_detection(f"object {i}", one, classes) for i, one in enumerate(objects)]
    if not record["colors"].strip() and any(one.color for objects in images.values() for one in objects):
        raise BadInput("colors: empty beside objects with a color, expected the name and version of what named them")
    return Detections(record["detector"], record["colors"], classes, images)


def _detection(what: str, one: Any, classes: frozenset[str]) -> Detection:
    if not isinstance(one, Mapping) or (missing := [name for name in _OBJECT[:3] if name not in one]):
        raise BadInput(f"{what}: {missing[0] if isinstance(one, Mapping) else _text(one)}, expected class, box and score")
    if extra := [name for name in one if name not in _OBJECT]:
        raise BadInput(f"{what}: unknown field {shown(extra[0])}{did_you_mean(extra[0], _OBJECT)}")
    name, box, score = one["class"], one["box"], one["score"]
    if name not in classes:
        raise BadInput(f"{what}: class {_text(name)} is not among classes{did_you_mean(name, classes)}")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)) or box[0] > box[2] or box[1] > box[3]:
        raise BadInput(f"{what}: box {_text(box)}, expected [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1")
    if not _is_number(score) or not 0 <= score <= 1:
        raise BadInput(f"{what}: score {_text(score)}, expected a number from 0 to 1")
    x0, y0, x1, y1 = map(float, box)
    return Detection(name, (x0, y0, x1, y1), float(score), _color(what, one.get("color")))


def _color(what: str, color: Any) -> str | None:
    """The colour itself, or the likeliest of several, of equal ones the first of `COLORS`."""
    if isinstance(color, Mapping):
        if color and all(name in COLORS and _is_number(value) for name, value in color.items()):
            return max((name for name in COLORS if name in color), key=lambda name: color[name])
    elif color is None or color in COLORS:
        return color
    raise BadInput(f"{what}: color {_text(color)}, expected one of {COLORS} or probabilities of them{did_you_mean(color, COLORS)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> str:
    """A value of a stranger's JSON, short."""
    return shown(json.dumps(value))
