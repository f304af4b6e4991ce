"""The page is one file, escapes its text, and holds its pictures."""

import base64
import re
from html.parser import HTMLParser

import numpy as np

from graftax.evaluate import pictures
from graftax.evaluate.report import Figure, Report

VOID = {"meta", "img", "br"}


class Balanced(HTMLParser):
    """Fails on tags that are closed in another order than opened."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def written(tmp_path):
    image = tmp_path / "x.png"
    pictures.save_png(image, np.zeros((2, 2, 1), np.uint8))
    page = Report("A <title>", "lead & more")
    page.verdict("one < two", "three")
    page.section("Numbers", "first", "second")
    page.table(["", "a"], [["row <1>", "1"], ["row 2", "2"]], strong=[1])
    page.figures([Figure(image, "Picture", "of <nothing>", sharp=True)])
    page.text("pre & formatted")
    page.write(tmp_path / "page.html", "the end")
    return (tmp_path / "page.html").read_text(), image


def test_page_is_well_formed_and_self_contained(tmp_path):
    text, image = written(tmp_path)
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert re.findall(r'(?:src|href)="(?!data:)', text) == []
    data = re.search(r"data:image/png;base64,([^\"]+)", text)
    assert data is not None
    assert base64.b64decode(data[1]) == image.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["page.html", "x.png"]


def test_all_text_is_escaped(tmp_path):
    text, _ = written(tmp_path)
    for raw in ("A <title>", "one < two", "row <1>", "of <nothing>", "lead & more", "pre & formatted"):
        assert raw not in text
    for escaped in ("A &lt;title&gt;", "one &lt; two", "row &lt;1&gt;", "of &lt;nothing&gt;", "pre &amp; formatted"):
        assert escaped in text


def test_strong_rows_are_marked(tmp_path):
    text, _ = written(tmp_path)
    assert re.findall(r'<tr class="strong"><td>([^<]*)', text) == ["row 2"]
