import numpy as np
import pytest

from graftax.data.scenes import Caption, Scene, Thing, parse, render, scene
from graftax.data.scenes.caption import CATEGORIES
from graftax.errors import BadInput
from graftax.evaluate.protocol import Protocol
from graftax.evaluate.scenes import JUDGE, prompt_set, score

LEFT, RIGHT, TOP, BOTTOM = (14.0, 32.0), (50.0, 32.0), (32.0, 14.0), (32.0, 50.0)


def picture(*things: tuple[str, str | None, tuple[float, float]]) -> np.ndarray:
    placed = tuple(Thing(kind, colour, *place, 24.0) for kind, colour, place in things)
    return render(Scene(Caption(parse("a cat").groups), placed, (244, 244, 244)))


def test_real_scenes_are_right_and_exact() -> None:
    scenes = [scene(i, split) for split in ("train", "heldout") for i in range(30)]
    found = score(np.stack([render(each) for each in scenes]), [each.caption for each in scenes])
    assert found.scores["overall"] == found.scores["exact"] == 1
    assert set(found.tasks) == set(CATEGORIES)
    wrong = score(np.stack([render(each) for each in scenes[1:] + scenes[:1]]), [each.caption for each in scenes])
    assert wrong.scores["overall"] < 0.25
    assert wrong.scores["exact"] < 0.05


@pytest.mark.parametrize(
    ("caption", "things", "fault"),
    [
        ("a cat", [("dog", None, LEFT)], "expected 1 cat or more, found 0"),
        ("two cats", [("cat", None, LEFT)], "expected 2 cat or more, found 1"),
        ("two cats", [("cat", None, LEFT), ("cat", None, RIGHT), ("cat", None, TOP)], "expected fewer than 3 cat, found 3"),
        ("a red star", [("star", "blue", LEFT)], "expected 1 red star, found 1 blue"),
        ("two red stars", [("star", "red", LEFT), ("star", "blue", RIGHT)], "expected 2 red star, found 1 red, 1 blue"),
        ("a cat left of a dog", [("cat", None, RIGHT), ("dog", None, LEFT)], "cat left of"),
        ("a cat above a dog", [("cat", None, LEFT), ("dog", None, RIGHT)], "cat above"),
        ("a red star and a blue heart", [("star", "blue", LEFT), ("heart", "red", RIGHT)], "expected 1 red star"),
    ],
)
def test_what_is_not_there_is_a_fault(caption: str, things: list, fault: str) -> None:
    others = ("a cat", picture(("cat", None, LEFT)))
    found = score(np.stack([picture(*things), others[1]]), [caption, others[0]])
    assert any(fault in line for line in found.verdicts[0].faults), found.verdicts[0].faults
    assert not found.verdicts[1].faults
    assert found.exact == (False, True)


@pytest.mark.parametrize(
    ("caption", "things", "exact"),
    [
        ("a cat left of a dog", [("cat", None, LEFT), ("dog", None, RIGHT)], True),
        ("a dog right of a cat", [("cat", None, LEFT), ("dog", None, RIGHT)], True),
        ("a cat above a red star", [("cat", None, TOP), ("star", "red", BOTTOM)], True),
        ("a red star below a cat", [("cat", None, TOP), ("star", "red", BOTTOM)], True),
        ("a cat and a dog", [("cat", None, LEFT), ("dog", None, RIGHT), ("pig", None, TOP)], False),  # as in GenEval
        ("a cat", [("cat", None, LEFT), ("cat", None, RIGHT)], False),
    ],
)
def test_what_is_there_is_right_and_exact_where_nothing_else_is(caption: str, things: list, exact: bool) -> None:
    found = score(picture(*things)[None], [caption])
    assert not found.verdicts[0].faults
    assert found.exact == (exact,)


def test_overall_is_the_mean_of_tasks_and_mixed_captions_count_for_exactness_alone() -> None:
    cat, pair = picture(("cat", None, LEFT)), picture(("cat", None, LEFT), ("dog", None, RIGHT))
    captions = ["a cat", "a cat", "a dog", "a cat and a dog", "two cats left of a dog"]
    found = score(np.stack([cat, cat, cat, pair, pair]), captions)
    assert found.tasks == {"single_object": (2, 3), "two_object": (1, 1)}
    assert found.scores["overall"] == pytest.approx((2 / 3 + 1) / 2)
    assert found.scores["exact"] == pytest.approx(3 / 5)
    assert found.table().splitlines()[0].split() == ["single_object", "66.7", "%", "2/3"]
    with pytest.raises(BadInput, match="all of them mixed, as 'two cats left of a dog'"):
        score(pair[None], captions[-1:])


def test_a_score_names_its_judge_and_its_captions() -> None:
    cat = picture(("cat", None, LEFT))
    one, other = score(cat[None], ["a cat"]), score(cat[None], ["a dog"])
    protocol = one.protocol(Protocol(count=1))
    assert protocol.features == JUDGE
    assert protocol.reference == one.reference != other.reference
    assert protocol.hash != other.protocol(Protocol(count=1)).hash
    with pytest.raises(BadInput, match="1 with 2 captions"):
        score(cat[None], ["a cat", "a dog"])


def test_the_prompts_have_all_categories_in_equal_parts() -> None:
    captions = prompt_set(7)
    assert [caption.category for caption in captions] == [name for name in CATEGORIES for _ in range(7)]
