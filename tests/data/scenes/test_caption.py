import pytest

from graftax.data.scenes.caption import CATEGORIES, MIXED, Caption, Group, parse
from graftax.data.scenes.sample import scene
from graftax.errors import BadInput

CAT, STAR = Group(1, "cat"), Group(1, "star", "blue")


@pytest.mark.parametrize(
    ("caption", "text", "category"),
    [
        (Caption((CAT,)), "a cat", "single_object"),
        (Caption((Group(1, "umbrella"),)), "an umbrella", "single_object"),
        (Caption((Group(1, "heart", "orange"),)), "an orange heart", "colors"),
        (Caption((Group(4, "cross", "red"),)), "four red crosses", "counting"),
        (Caption((CAT, Group(1, "dog"))), "a cat and a dog", "two_object"),
        (Caption((CAT, STAR)), "a cat and a blue star", "two_object"),
        (Caption((CAT, STAR), "left of"), "a cat left of a blue star", "position"),
        (Caption((Group(1, "circle", "red"), STAR)), "a red circle and a blue star", "color_attr"),
        (Caption((Group(2, "heart", "red"), CAT), "above"), "two red hearts above a cat", MIXED),
        (Caption((CAT, Group(3, "bell"))), "a cat and three bells", MIXED),
    ],
)
def test_captions_read_as_english_and_back(caption: Caption, text: str, category: str) -> None:
    assert str(caption) == text
    assert parse(text) == parse(f"  {text.upper()}") == caption
    assert caption.category == category


def test_every_drawn_caption_reads_back() -> None:
    drawn = [scene(i, split).caption for split in ("train", "heldout") for i in range(300)]
    assert all(parse(str(caption)) == caption for caption in drawn)
    assert {caption.category for caption in drawn} == {*CATEGORIES, MIXED}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the end, expected one of .'a', 'an', 'two'"),
        ("a frogg", "'frogg', expected a kind of thing; did you mean 'frog'"),
        ("two cat", "'cat', expected the plural"),
        ("a cats", "'cats', expected a kind of thing"),
        ("a star", "colour: got None for a star, expected one of"),
        ("a red cat", "'red' for a cat, expected none"),
        ("a cat beside a dog", "'beside', expected one of .'and', 'left of'"),
        ("a cat left a dog", "'left', expected"),
        ("a cat and", "the end, expected"),
        ("a cat and a dog and a pig", "'and', expected the end"),
        ("a cat and a cat", "one kind twice"),
        ("a red star and a red heart", "one colour twice"),
        ("three cats and two dogs", "5 things, expected at most 4"),
    ],
)
def test_what_is_no_caption_is_refused_by_its_word(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        parse(text)


def test_groups_and_relations_that_do_not_exist_are_refused() -> None:
    for make, message in (
        (lambda: Group(0, "cat"), "count: got 0"),
        (lambda: Group(1, "catt"), "kind: got 'catt'.*did you mean 'cat'"),
        (lambda: Group(1, "star", "bleu"), "colour: got 'bleu' for a star.*did you mean 'blue'"),
        (lambda: Caption(()), "groups: got 0"),
        (lambda: Caption((CAT,), "left of"), "relation: got 'left of', expected .* between two groups"),
        (lambda: Caption((CAT, STAR), "beside"), "relation: got 'beside'"),
    ):
        with pytest.raises(BadInput, match=message):
            make()
