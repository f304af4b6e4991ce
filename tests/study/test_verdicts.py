"""Verdicts on constructed numbers: the gap, its error from the pooled variance, and what they decide."""

import math

import numpy as np
import pytest
from scipy import stats

from graftax.evaluate.drawing import ACCURACY, FRECHET
from graftax.study.verdicts import HOLDS, OPEN, OPPOSITE, gap


def test_gap_is_that_of_the_t_test_with_pooled_variance():
    first, second = [1.0, 1.2, 1.7], [2.0, 2.9, 2.3, 2.2]
    found = gap(first, second, FRECHET)
    assert found.ahead == pytest.approx(np.mean(second) - np.mean(first))
    assert found.ahead / found.error == pytest.approx(stats.ttest_ind(second, first).statistic)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ((1.0, 1.1, 0.9), (2.0, 2.1, 1.9), HOLDS),  # less is better
        ((2.0, 2.1, 1.9), (1.0, 1.1, 0.9), OPPOSITE),
        ((1.0, 2.0, 1.5), (1.4, 2.4, 1.9), OPEN),
        ((1.0, 1.0), (1.0, 1.0), OPEN),
        ((1.0, 1.0), (1.1, 1.1), HOLDS),  # no spread at all
        ((1.0,), (9.0,), OPEN),  # one seed has no error
    ],
)
def test_differences_beyond_two_errors_decide(first, second, verdict):
    assert gap(first, second, FRECHET).verdict == verdict


def test_more_accuracy_is_ahead():
    assert gap((0.9, 0.91), (0.5, 0.51), ACCURACY).verdict == HOLDS


def test_errors_in_words():
    assert gap((1.0, 1.2), (2.0, 2.2), FRECHET).errors == "7.1 standard errors"
    assert gap((1.0,), (2.0,), FRECHET).errors.startswith("one seed")
    assert math.isinf(gap((1.0,), (2.0,), FRECHET).error)
    assert gap((1.0, 1.0), (2.0, 2.0), FRECHET).errors == "no spread"
