"""Names at a grid: in a margin of their own, at the middle of their row or column, readable whatever their length."""

import numpy as np
import pytest

from graftax.evaluate.labels import GROUND, captioned, class_columns, labelled, scale_of


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("columns", [False, True])
def test_names_stand_in_a_margin_and_the_grid_stays(channels, columns):
    grid = np.zeros((90, 90, channels), np.uint8)
    found = labelled(grid, ["a", "", "c"], columns=columns)
    assert np.array_equal(found[-90:, -90:], grid)
    margin = found[:-90] if columns else found[:, :-90]
    thirds = np.split(margin, 3, axis=1 if columns else 0)
    assert [(part > GROUND).any() for part in thirds] == [True, False, True]


def test_names_wider_than_their_column_are_written_upwards():
    grid = np.zeros((20, 80, 1), np.uint8)
    short, long = (labelled(grid, [name, name], columns=True) for name in ("bag", "ankle boots and more"))
    assert short.shape[0] < 20 + 30 < 20 + 80 < long.shape[0]


def test_small_images_are_magnified():
    assert [scale_of(side) for side in (8, 32, 96, 256)] == [12, 3, 1, 1]
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((6, 32, 32, 1), np.uint8)
    assert class_columns(images, ["0", "1"], rows=2)[-1, [0, -1], 0].tolist() == [2, 3]


def test_captions_stand_below_their_images_in_as_many_lines_as_they_need():
    images = [np.full((64, 64, 3), 10 * i, np.uint8) for i in range(3)]
    short = captioned(images, ["one", "two", "three"], columns=2)
    long = captioned(images, ["one", "two", "a caption of so many words that it takes three lines or more"], columns=2)
    assert short.shape[1] == long.shape[1] == 2 * 128 + 6
    assert short.shape[0] + 60 < long.shape[0]
    assert (short[:128, :128] == 0).all()
    assert (short[:128, -128:] == 10).all()
    assert (short[128 : 128 + 18, :128] > GROUND).any()
    tall = captioned([np.zeros((256, 256, 1), np.uint8)], ["x" * 99], columns=1)  # one word that does not fit is cut off
    assert tall.shape[1] == 256
