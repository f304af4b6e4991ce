from collections import Counter
from itertools import combinations as pairs

import pytest

from graftax.data.scenes.caption import Caption, Group, parse
from graftax.data.scenes.sample import prompts, scene
from graftax.data.scenes.split import combinations, is_held_out
from graftax.data.scenes.vocabulary import COLOURS, KINDS, NUMBERS, SHAPES, WORDS
from graftax.errors import BadInput


def test_combinations_are_those_of_the_words() -> None:
    assert combinations(parse("a cat")) == ()
    assert combinations(parse("three cats")) == (("count", "cat", "3"),)
    assert combinations(parse("a red star right of a blue circle")) == (
        ("colour", "star", "red"),
        ("colour", "circle", "blue"),
        ("pair", "circle", "star"),
        ("binding", "circle", "blue", "star", "red"),
        ("position", "left of", "circle", "star"),
    )


def test_the_same_picture_said_the_other_way_round_is_on_the_same_side() -> None:
    for first, second in pairs(KINDS[:20], 2):
        for there, back in (("left of", "right of"), ("above", "below")):
            a, b = Group(1, first), Group(1, second)
            assert is_held_out(Caption((a, b), there)) == is_held_out(Caption((b, a), back))


def test_training_never_sees_what_is_held_out_and_the_rest_has_some_of_it() -> None:
    train = {c for i in range(1500) for c in combinations(scene(i).caption)}
    for i in range(300):
        found = set(combinations(scene(i, "heldout").caption))
        assert is_held_out(scene(i, "heldout").caption)
        assert found - train
    assert not any(is_held_out(scene(i).caption) for i in range(1500))


def test_training_has_every_word_and_holds_out_no_colour_count_or_kind_as_such() -> None:
    seen = {word for i in range(3000) for word in str(scene(i).caption).split()}
    assert seen == set(WORDS[3:])
    single = Counter(is_held_out(Caption((Group(1, kind, colour),))) for kind in SHAPES for colour in COLOURS)
    assert single[True] == 12
    for colour in COLOURS:
        assert sum(is_held_out(Caption((Group(1, kind, colour),))) for kind in SHAPES) <= 3
    for kind in KINDS[:20]:
        assert sum(is_held_out(Caption((Group(n, kind),))) for n in NUMBERS.values()) <= 2


def test_prompts_are_of_their_category_and_split() -> None:
    for category in ("two_object", "counting", "colors", "position", "color_attr"):
        for split in ("train", "heldout"):
            found = prompts(category, 40, split, seed=3)
            assert {caption.category for caption in found} == {category}
            assert {is_held_out(caption) for caption in found} == {split == "heldout"}
            assert found == prompts(category, 50, split, seed=3)[:40] != prompts(category, 40, split, seed=4)
    assert len({str(caption) for caption in prompts("single_object", 20)}) == 20
    with pytest.raises(BadInput, match=r"category: got 'colours'.*did you mean 'colors'"):
        prompts("colours", 1)
    with pytest.raises(BadInput, match="split: got 'test'"):
        prompts("colors", 1, "test")
