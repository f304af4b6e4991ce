"""Grids hold every image where it belongs; charts are pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from graftax.errors import BadInput
from graftax.evaluate import pictures


def test_to_uint8_maps_ends_and_middle_and_cuts_off():
    assert pictures.to_uint8(np.array([-2.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]


def test_to_uint8_is_the_reference_codes():
    """DiT's sample_ddp.py, in its own library, at halves and on both sides of the ends."""
    drawn = np.random.default_rng(0).uniform(-1.2, 1.2, 9999)
    pixels = np.concatenate([np.arange(-300, 300) / 255, drawn]).astype(np.float32)
    expected = torch.clamp(127.5 * torch.tensor(pixels) + 128.0, 0, 255).to(dtype=torch.uint8)
    assert np.array_equal(pictures.to_uint8(pixels), expected.numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_images_row_by_row(channels):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, channels), np.uint8)
    found = pictures.grid(images, 2, gap=1, background=9)
    assert found.shape == (3 * 2 + 2, 2 * 3 + 1, channels)
    assert [found[3 * (i // 2), 4 * (i % 2), 0] for i in range(5)] == [0, 1, 2, 3, 4]
    assert (found[2] == 9).all(), "the gap between two rows"
    assert (found[6:, 4:] == 9).all(), "the place of the missing sixth"


def test_grid_magnifies_pixels():
    image = np.array([[[[1], [2]]]], np.uint8)
    assert pictures.grid(image, 1, scale=2)[..., 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


@pytest.mark.parametrize(
    "images", [np.zeros((2, 3, 3), np.uint8), np.zeros((2, 3, 3, 2), np.uint8), np.zeros((2, 3, 3, 1), np.float32)]
)
def test_grid_refuses_other_arrays(images):
    with pytest.raises(BadInput, match="grid"):
        pictures.grid(images, 1)


def test_png_comes_back(tmp_path):
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    pictures.save_png(tmp_path / "x.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), image[..., 0])


@pytest.mark.parametrize("draw", [pictures.curves, pictures.bars])
def test_charts_have_ink_on_transparent_ground(tmp_path, draw):
    draw(tmp_path / "x.png", {"a": [(0, 1.0), (1, 2.0)], "b": [(1, 3.0)]}, x="step", y="loss")
    alpha = np.asarray(Image.open(tmp_path / "x.png"))[..., 3]
    assert alpha.min() == 0
    assert 0.001 < (alpha > 0).mean() < 0.5


def ink(path):
    return int(np.asarray(Image.open(path))[..., 3].astype(int).sum())


def test_dots_and_points_have_a_bar_over_the_seeds(tmp_path):
    for name, seeds in {"one": [2.0], "same": [2.0, 2.0], "three": [1.0, 2.0, 3.0]}.items():
        pictures.dots(tmp_path / f"dots-{name}.png", {"a": {"x": seeds, "y": [1.0, 3.0]}}, x="score", mark=("teacher", 1.5))
        pictures.scatter(tmp_path / f"points-{name}.png", {"x": (1.0, seeds), "y": (2.0, [1.0, 3.0])}, x="cost", y="score")
    for kind in ("dots", "points"):
        one, same, three = (ink(tmp_path / f"{kind}-{name}.png") for name in ("one", "same", "three"))
        assert one == same < three


def frame(monkeypatch, draw, *args, **options):
    """The figure that `draw` finishes, laid out, with its only axes."""
    kept = []
    monkeypatch.setattr(pictures, "finish", lambda path, figure, legend: kept.append(figure))
    draw(None, *args, **options)
    kept[0].draw_without_rendering()
    return kept[0], kept[0].axes[0]


LONG = "relative error of the new operators, held out"


def test_no_label_is_cut_off(monkeypatch):
    for y in ("loss", LONG):
        figure, axes = frame(monkeypatch, pictures.curves, {"a": [(1, 0.9), (2, 0.5)]}, x="step", y=y)
        (text,) = (text for text in (axes.yaxis.label, axes._left_title) if text.get_text())
        box, whole = text.get_window_extent(), figure.bbox
        assert text.get_text() == y
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1


def test_two_points_stand_off_the_frame_and_their_names_beside_them(monkeypatch):
    points = {"teacher": (66.6, [0.2]), "half": (66.2, [0.21]), "quarter": (66.2, [0.21])}
    figure, axes = frame(monkeypatch, pictures.scatter, points, x="FLOPs", y="Fréchet")
    assert figure.get_figheight() >= 2.6
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    assert left < 66.2 < 66.6 < right
    assert low < 0.2 < 0.21 < high
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_log_scales_are_labelled_with_plain_numbers(monkeypatch):
    _, axes = frame(monkeypatch, pictures.roofline, {"a": (90, 30e12), "b": (120, 40e12)}, "v5e", 197e12, 819e9)
    shown = [text.get_text() for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels(which="both")]
    assert {"50", "100", "200"} <= set(shown)
    assert not any("10^" in text for text in shown)
