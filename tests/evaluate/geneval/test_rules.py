"""GenEval's rules, each on scenes made for it; what the official evaluator says of them follows from its definition."""

import pytest

from graftax.errors import BadInput
from graftax.evaluate.geneval import Detection, Prompt, Wanted, faults, kept, relations

UNIT = (0.0, 0.0, 1.0, 1.0)


def seen(name, score=0.95, box=UNIT, color=None):
    return Detection(name, box, score, color)


def prompt(*include, exclude=(), tag="single_object"):
    return Prompt(tag, "a photo", include, exclude, "{}")


def found(asked, *objects):
    """The faults of a picture with these objects."""
    return faults(asked, kept(objects, asked.tag))


def at(x, y, w=10.0, h=10.0):
    """A box by its centre."""
    return (x - w / 2, y - h / 2, x + w / 2, y + h / 2)


# --- Which objects count --------------------------------------------------------------------------------------------------


def test_objects_count_above_the_threshold_not_at_it():
    cow = prompt(Wanted("cow", 1))
    assert found(cow, seen("cow", 0.3)) == ["expected 1 cow or more, found 0"]
    assert found(cow, seen("cow", 0.3001)) == []
    counting = prompt(Wanted("cow", 1), tag="counting")
    assert found(counting, seen("cow", 0.9)) == ["expected 1 cow or more, found 0"]
    assert found(counting, seen("cow", 0.9001)) == []


def test_sixteen_of_a_class_are_kept_the_most_confident_first():
    many = [seen("cow", 0.4 + i / 100) for i in range(20)] + [seen("cat", 0.35)]
    objects = kept(many, "single_object")
    assert [round(one.score, 2) for one in objects["cow"]] == [round(0.59 - i / 100, 2) for i in range(16)]
    assert len(objects["cat"]) == 1
    cows = prompt(Wanted("cow", 16), exclude=(Wanted("cow", 17),))
    assert found(cows, *many) == []  # twenty are never told from sixteen


def test_of_equal_scores_the_last_comes_first():
    first, last = seen("cow", 0.5, color="red"), seen("cow", 0.5, color="blue")
    assert kept([first, last], "colors")["cow"] == [last, first]


# --- Counting -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (1, ["expected 2 cow or more, found 1"]),
        (2, []),
        (3, ["expected fewer than 3 cow, found 3"]),
        (0, ["expected 2 cow or more, found 0"]),
    ],
)
def test_counting_is_exact_by_include_and_exclude(count, expected):
    two = prompt(Wanted("cow", 2), exclude=(Wanted("cow", 3),), tag="counting")
    assert found(two, *[seen("cow")] * count, seen("dog")) == expected


def test_without_exclude_more_is_right():
    assert found(prompt(Wanted("cow", 1)), *[seen("cow")] * 5) == []


def test_two_objects_must_both_be_there_and_each_fault_is_told():
    both = prompt(Wanted("cow", 1), Wanted("cat", 1), tag="two_object")
    assert found(both, seen("cow"), seen("cat")) == []
    assert found(both, seen("cow")) == ["expected 1 cat or more, found 0"]
    assert len(found(both)) == 2


# --- Colours --------------------------------------------------------------------------------------------------------------


def test_colour_is_that_of_the_most_confident_alone():
    red = prompt(Wanted("cow", 1, "red"), tag="colors")
    assert found(red, seen("cow", 0.9, color="red"), seen("cow", 0.8, color="blue")) == []
    assert found(red, seen("cow", 0.9, color="blue"), seen("cow", 0.8, color="red")) == ["expected 1 red cow, found 1 blue"]


def test_colour_of_several_is_that_of_as_many_as_asked_for():
    two = prompt(Wanted("cow", 2, "red"), tag="colors")
    reds = [seen("cow", score, color="red") for score in (0.9, 0.8)]
    assert found(two, *reds, seen("cow", 0.7, color="blue")) == []
    assert found(two, *reds, seen("cow", 0.85, color="blue")) == ["expected 2 red cow, found 1 red, 1 blue"]


def test_colours_belong_to_their_objects():
    both = prompt(Wanted("cow", 1, "red"), Wanted("cat", 1, "blue"), tag="color_attr")
    assert found(both, seen("cow", color="red"), seen("cat", color="blue")) == []
    swapped = found(both, seen("cow", color="blue"), seen("cat", color="red"))
    assert swapped == ["expected 1 red cow, found 1 blue", "expected 1 blue cat, found 1 red"]


def test_a_colour_that_counts_and_was_not_looked_at():
    red = prompt(Wanted("cow", 1, "red"), tag="colors")
    assert found(red, seen("cow", 0.9, color="red"), seen("cow", 0.8)) == []  # the second is never asked
    with pytest.raises(BadInput, match=r"object cow of score 0\.9: no color, which the prompt asks for"):
        found(red, seen("cow", 0.9))


# --- Places ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dx", "dy", "expected"),
    [
        (-40, 0, {"left of"}), (40, 0, {"right of"}), (0, -40, {"above"}), (0, 40, {"below"}),
        (-40, -40, {"left of", "above"}),  # each axis has 0.67 of the distance after the slack
        (40, 15, {"right of"}), (0, 0, set()),
    ],
)  # fmt: skip
def test_directions(dx, dy, expected):
    assert relations(at(100 + dx, 100 + dy), at(100, 100)) == expected
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    assert relations(at(100, 100), at(100 + dx, 100 + dy)) == {opposite[name] for name in expected}


def test_the_slack_is_a_tenth_of_both_sizes_and_shortens_each_axis():
    # Widths 10 and 30: slack 4. The offset is 8 and 4 of it are left: 4 / 8 = 0.5, which must be exceeded.
    other = at(100, 100, w=30)
    assert relations(at(108, 100), other) == frozenset()
    assert relations(at(108.1, 100), other) == {"right of"}
    assert relations(at(104, 100), other) == frozenset()  # nothing is left
    assert relations(at(104.0005, 100), other) == frozenset()  # less than a thousandth of a pixel is
    # Heights do not matter to x: the same with a tall box.
    assert relations(at(108.1, 100, h=200), other) == {"right of"}


def test_the_length_is_that_of_the_whole_offset():
    # No sizes, no slack: the cosine of the angle. 60 degrees are the limit.
    def point(x, y):
        return at(x, y, 0, 0)

    assert relations(point(0.51, 0.8602), point(0, 0)) == {"right of", "below"}
    assert relations(point(0.49, 0.8717), point(0, 0)) == {"below"}
    # With slack 2 on both axes: (6 - 2) / |(6, 6)| = 0.471, where 4 / |(4, 4)| would be 0.707.
    assert relations(at(106, 106), at(100, 100)) == frozenset()


def place(relation):
    return prompt(Wanted("cat", 1), Wanted("cow", 1, position=(relation, 0)), tag="position")


def test_position_is_that_of_the_second_to_the_first():
    left = seen("cow", box=at(50, 100)), seen("cat", box=at(150, 100))
    assert found(place("left of"), *left) == []
    assert found(place("right of"), *left) == ["expected cow right of cat, found it left of"]
    assert found(place("above"), seen("cow", box=at(0, 0)), seen("cat", box=at(0, 0))) == [
        "expected cow above cat, found it neither beside nor above nor below"
    ]


def test_only_the_most_confident_stand_anywhere():
    cats = seen("cat", 0.9, at(100, 100)), seen("cat", 0.8, at(0, 100))
    assert found(place("left of"), *cats, seen("cow", 0.9, at(50, 100)), seen("cow", 0.5, at(200, 100))) == []
    assert found(place("left of"), *cats, seen("cow", 0.9, at(200, 100)), seen("cow", 0.5, at(50, 100))) != []


def test_with_several_all_pairs_must_stand_so():
    two = prompt(Wanted("cat", 2), Wanted("cow", 2, position=("left of", 0)), tag="position")
    cats = [seen("cat", box=at(x, 100)) for x in (200, 300)]
    assert found(two, *cats, *[seen("cow", box=at(x, 100)) for x in (50, 100)]) == []
    assert found(two, *cats, *[seen("cow", box=at(x, 100)) for x in (50, 250)]) != []


def test_without_what_it_is_relative_to_there_is_no_place():
    assert found(place("above"), seen("cow")) == [
        "expected 1 cat or more, found 0", "expected cow above what was not found"
    ]  # fmt: skip
    # A first object of another colour is none either, and a missing second one is told as missing alone.
    colored = prompt(Wanted("cat", 1, "red"), Wanted("cow", 1, position=("above", 0)))
    assert len(found(colored, seen("cat", color="blue"), seen("cow"))) == 2
    assert found(place("above"), seen("cat")) == ["expected 1 cow or more, found 0"]
