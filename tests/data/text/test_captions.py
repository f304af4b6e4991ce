"""Pictures with captions in every form, and what is wrong with them said in one line."""

import json

import numpy as np
import pytest
from PIL import Image

from graftax.data.text.captions import open_captioned, read_labels, read_prompts
from graftax.errors import BadInput


def picture(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), (colour, 0, 0)).save(path)


@pytest.fixture
def sidecars(tmp_path):
    """A folder of four pictures, one of them in a sub-folder, with a caption each, and one with two."""
    for i, name in enumerate(("b.png", "a.jpg", "deep/c.png", "d.png")):
        picture(tmp_path / name, 40 * i)
        (tmp_path / name).with_suffix(".txt").write_text(f" caption of {name}\n\n" + "another\n" * (name == "d.png"))
    (tmp_path / "notes.md").write_text("passed over")
    picture(tmp_path / ".hidden" / "x.png")
    return tmp_path


def test_a_caption_lies_beside_each_picture(sidecars):
    found = open_captioned(sidecars)
    assert found.paths == ("a.jpg", "b.png", "d.png", "deep/c.png")
    assert found.captions[2:] == (("caption of d.png", "another"), ("caption of deep/c.png",))
    assert found.fetch(2)[0][0, 0, 0] == 120
    assert (found.num_classes, found.class_names, found.labels.tolist()) == (0, (), [0] * 4)
    part = found.take(np.array([3, 0]))
    assert (part.paths, part.captions) == (("deep/c.png", "a.jpg"), (found.captions[3], found.captions[0]))
    assert len({found.digest, part.digest}) == 2
    before = found.digest
    (sidecars / "a.txt").write_text("another one")
    assert open_captioned(sidecars).digest != before


def test_pictures_without_captions_are_counted_and_named(sidecars):
    (sidecars / "deep" / "c.txt").unlink()
    (sidecars / "b.txt").write_text(" \n")
    with pytest.raises(BadInput, match=r"2 of 4 pictures have none, the first wants b\.txt$"):
        open_captioned(sidecars)


LINES = {
    "hugging face": [{"file_name": "x.png", "text": "one"}, {"file_name": "s/y.png", "text": "two"}],
    "plain": [{"path": "x.png", "caption": "one"}, {"path": "s/y.png", "caption": "two", "seed": 4}],
    "several": [{"image": "x.png", "captions": ["one"]}, {"file_name": "s/y.png", "caption": ["two", "zwei"]}],
}


@pytest.mark.parametrize("form", LINES)
def test_json_lines_name_pictures(tmp_path, form):
    for name in ("x.png", "s/y.png"):
        picture(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, LINES[form])) + "\n\n")
    found = open_captioned(tmp_path)
    assert (found.paths, found.captions[0]) == (("x.png", "s/y.png"), ("one",))
    assert found.captions[1] == (("two", "zwei") if form == "several" else ("two",))
    (tmp_path / "metadata.jsonl").rename(tmp_path / "pairs.jsonl")
    picture(tmp_path / "nobody.png")  # a list may leave pictures out
    assert open_captioned(tmp_path / "pairs.jsonl").captions == found.captions


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"file_name": "x.png", "text": "a"}\n{"file_name":', "line 2: invalid JSON"),
        ('\n["x.png", "a"]', r"line 2: '\[\"x.png\", \"a\"\]', expected an object"),
        ('{"text": "a"}', r"line 1: keys \['text'\], expected a path as file_name"),
        ('{"file_name": "x.png"}', "line 1: caption is nothing, expected text as text"),
        ('{"file_name": "x.png", "text": " "}', "line 1: caption is ' ', expected"),
        ('{"file_name": "x.png", "text": ["a", 3]}', r"line 1: caption is \['a', 3\], expected"),
        ('{"file_name": "x.png", "text": "a"}\n{"file_name": "x.png", "text": "b"}', "line 2: x.png once more"),
        ('{"file_name": "x.png", "text": "a"}\n{"file_name": "z.png", "text": "b"}', "1 of 2 pictures are not there, .* z"),
        ('{"file_name": "x.png", "text": "a"}', "1 of 2 pictures have no line, the first y.png"),
        ("", "empty, expected a line for each picture"),
        ("[" * 100000, "line 1: invalid JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_lines_is_said(tmp_path, lines, message):
    picture(tmp_path / "x.png")
    picture(tmp_path / "y.png")
    (tmp_path / "metadata.jsonl").write_text(lines)
    with pytest.raises(BadInput, match=message) as caught:
        open_captioned(tmp_path)
    assert len(str(caught.value)) < 300


def test_what_holds_no_captions_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no pictures"):
        open_captioned(tmp_path)
    with pytest.raises(BadInput, match=r"no such folder or \.jsonl file"):
        open_captioned(tmp_path / "absent.jsonl")


def test_prompts_come_from_lines_objects_and_folders(sidecars, tmp_path_factory):
    place = tmp_path_factory.mktemp("prompts")
    (place / "p.txt").write_bytes("\ufeffa cat\r\n\r\n  ein Bär \r\na cat".encode())
    assert read_prompts(place / "p.txt") == ("a cat", "ein Bär", "a cat")
    (place / "p.jsonl").write_text('{"tag": "colors", "prompt": "a red dog"}\n{"file_name": "absent", "text": ["b", "c"]}')
    assert read_prompts(place / "p.jsonl") == ("a red dog", "b", "c")
    assert read_prompts(sidecars) == (
        "caption of a.jpg", "caption of b.png", "caption of d.png", "another", "caption of deep/c.png",
    )  # fmt: skip


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_prompt_file_is_refused(tmp_path, content):
    (tmp_path / "p.txt").write_text(content)
    with pytest.raises(BadInput, match=r"p\.txt: none in it"):
        read_prompts(tmp_path / "p.txt")


def test_what_is_no_text_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"absent\.txt': no such file"):
        read_prompts(tmp_path / "absent.txt")
    (tmp_path / "p.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="cannot be read"):
        read_prompts(tmp_path / "p.txt")


def test_labels_are_class_numbers_a_line(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("3\n\n0\n9\n")
    assert read_labels(path, 10).tolist() == [3, 0, 9]
    with pytest.raises(BadInput, match=r"line 4: got '9', expected a class 0\.\.8"):
        read_labels(path, 9)
    path.write_text("-1")
    with pytest.raises(BadInput, match="line 1: got '-1'"):
        read_labels(path, 9)
    path.write_text("")
    with pytest.raises(BadInput, match="none in it"):
        read_labels(path, 9)
