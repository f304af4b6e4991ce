"""GenEval's file of prompts: what a line means, and what is wrong with one."""

import json

import pytest

from graftax.errors import BadInput
from graftax.evaluate.geneval import Prompt, Wanted, read_prompts

LINE = {
    "tag": "position", "prompt": "a photo of a dog right of a teddy bear",
    "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}],
}  # fmt: skip
COUNTING = {
    "tag": "counting", "prompt": "a photo of two clocks", "include": [{"class": "clock", "count": 2}],
    "exclude": [{"class": "clock", "count": 3}],
}  # fmt: skip


def test_lines_are_read_in_order(tmp_path):
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text(f"{json.dumps(LINE)}\n{json.dumps(COUNTING)}\n\n")
    first, second = read_prompts(path)
    assert first == Prompt(
        "position", LINE["prompt"], (Wanted("teddy bear", 1), Wanted("dog", 1, position=("right of", 0))), (), json.dumps(LINE)
    )
    assert (second.include, second.exclude) == ((Wanted("clock", 2),), (Wanted("clock", 3),))


def changed(**fields):
    return {name: value for name, value in {**LINE, **fields}.items() if value is not None}


def wanted(**fields):
    return changed(include=[{"class": "cow", "count": 1}, {**LINE["include"][1], **fields}])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"not JSON"),
        ([], r"the line: got '\[\]', expected a JSON object"),
        (changed(prompt=None), "the line: prompt is missing, expected tag, prompt, include"),
        (changed(exlude=[]), "the line: unknown field 'exlude', .*did you mean 'exclude'"),
        (changed(tag="colour"), "tag: got '\"colour\"', expected one of .*; did you mean 'colors'"),
        (changed(prompt=" "), "prompt: got '\" \"', expected a text"),
        (changed(include=[]), "include: empty"),
        (changed(include={}), "include: got '{}', expected a list"),
        (changed(include=[{"class": "cow"}]), r"include\[0\]: count is missing"),
        (changed(exclude=[{"class": "cow", "count": 1, "color": "red"}]), "exclude: got a color or a position"),
        (wanted(**{"class": 3}), r"include\[1\]\.class: got '3'"),
        (wanted(count=0), r"include\[1\]\.count: got '0', expected a whole number from 1"),
        (wanted(count=True), r"include\[1\]\.count: got 'true'"),
        (wanted(color="grey"), r"include\[1\]\.color: got '\"grey\"', expected one of .*; did you mean 'green'"),
        (wanted(colour="green"), r"include\[1\]: unknown field 'colour', .*; did you mean 'color'"),
        (wanted(position=["near", 0]), r"include\[1\]\.position: got .*near.*, expected \[RELATION, INDEX\]"),
        (wanted(position=["above", 1]), r"include\[1\]\.position: .* to an entry before it"),
        (wanted(position=["above", False]), r"include\[1\]\.position"),
        (wanted(position="above"), r"include\[1\]\.position"),
    ],
)
def test_what_is_wrong_is_named_with_line_and_field(tmp_path, line, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f"{json.dumps(COUNTING)}\n{line if isinstance(line, str) else json.dumps(line)}\n")
    with pytest.raises(BadInput, match=rf"prompts\.jsonl:2: {message}") as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    for name, message in {"empty": "no lines", "bytes": "cannot be read", "absent": "cannot be read"}.items():
        with pytest.raises(BadInput, match=rf"{name}\.jsonl: {message}"):
            read_prompts(tmp_path / f"{name}.jsonl")
