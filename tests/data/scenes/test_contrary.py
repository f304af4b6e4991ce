"""Captions that are wrong in nearly the same words: what becomes of each category, and that training's stay its own."""

import numpy as np
import pytest

from graftax.data.scenes import parse, scene
from graftax.data.scenes.contrary import contrary
from graftax.data.scenes.memory import scenes_in_memory
from graftax.data.scenes.sample import contrary_of
from graftax.data.scenes.split import is_held_out
from graftax.data.scenes.tokens import ids


@pytest.mark.parametrize(
    ("caption", "wrong"),
    [
        ("a flower right of two pigs", {"two pigs right of a flower", "a flower left of two pigs"}),
        ("a blue star and a pink square", {"a pink star and a blue square"}),
        ("two orange circles and a pig", {"an orange circle and two pigs"}),
        ("two pizzas", {"three pizzas", "four pizzas"}),
    ],
)
def test_the_nearest_wrong_caption(caption, wrong):
    found = {str(contrary(parse(caption), np.random.default_rng(i))) for i in range(12)}
    assert found == {text for text in wrong if not is_held_out(parse(text))}
    assert found


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_caption_has_one_of_its_category_and_number_of_things(split):
    for i in range(300):
        caption = scene(i, split).caption
        other = contrary_of(caption, i, split)
        assert other != caption
        assert other.category == caption.category
        assert other.count == caption.count or caption.category == "counting"
        assert not is_held_out(other) or split == "heldout"
        assert contrary_of(caption, i, split) == other


def test_scenes_in_memory_bring_them():
    found = scenes_in_memory(3)
    wrong = ids([str(contrary_of(scene(i).caption, i)) for i in range(3)])
    np.testing.assert_array_equal(found.against, wrong)
    np.testing.assert_array_equal(found.take(np.array([2, 0])).against, wrong[[2, 0]])
