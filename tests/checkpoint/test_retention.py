from types import SimpleNamespace

import pytest

from graftax.checkpoint.retention import Retention
from graftax.errors import BadInput

STEPS = (5, 10, 15, 20, 25, 30)
SCORES = {5: 0.1, 10: 0.5, 15: float("nan"), 20: 0.5, 30: 0.3}


def staying(**options) -> list[int]:
    flags = Retention(**options).should_preserve([SimpleNamespace(step=s) for s in STEPS], context=None)
    return [step for step, flag in zip(STEPS, flags, strict=True) if flag]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"keep": 1}, [30]),
        ({"keep": 9}, list(STEPS)),
        ({"keep": 2, "every": 10}, [10, 20, 25, 30]),
        ({"keep": 1, "best": "min", "scores": SCORES}, [5, 30]),
        ({"keep": 1, "best": "max", "scores": SCORES}, [20, 30]),  # the later one of equals
        ({"keep": 1, "best": "max", "scores": {}}, [30]),
        ({"keep": 1, "scores": SCORES}, [30]),  # scores do not count unless asked for
        ({"keep": 1, "every": 15, "best": "min", "scores": SCORES}, [5, 15, 30]),
    ],
)
def test_newest_every_and_best_stay(options: dict, wanted: list[int]) -> None:
    assert staying(**options) == wanted


def test_values_out_of_range_are_refused() -> None:
    for options in ({"keep": 0}, {"every": -1}, {"best": "median"}):
        with pytest.raises(BadInput, match=r"keep|best"):
            Retention(**options)
