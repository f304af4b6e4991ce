"""Pictures: whole PNGs on transparent ground, whatever is missing from the values."""

import numpy as np
from PIL import Image

from graftax.analyze import pictures


def pixels(path):
    return np.asarray(Image.open(path).convert("RGBA"))


def test_heatmap_leaves_missing_values_empty(tmp_path):
    values = np.array([[np.nan, 0.5], [1.0, 0.0]])
    common = {"x": "a", "y": "b", "scale": "c", "rows": [0, 1], "columns": [0, 1]}
    pictures.heatmap(tmp_path / "holes.png", values, numbers=".1f", boxes=[(0, 1)], **common)
    pictures.heatmap(tmp_path / "full.png", np.nan_to_num(values), numbers=".1f", boxes=[(0, 1)], **common)
    holes, full = (pixels(tmp_path / name) for name in ("holes.png", "full.png"))
    assert holes.shape == full.shape
    assert (holes[0, 0, 3], full[0, 0, 3]) == (0, 0)
    assert 0.02 < ((full[..., 3] > 0) & (holes[..., 3] == 0)).mean() < 0.25  # one field of four


def test_lines(tmp_path):
    series = {"one": ([0, 1, 2], [1.0, 10.0, np.nan], [0.1, 0.2, 0.3]), "two": ([0, 1, 2], [3.0, 2.0, 1000.0], None)}
    pictures.lines(tmp_path / "lines.png", series, x="a", y="b", log=True, mark=("mark", 5))
    drawn = pixels(tmp_path / "lines.png")
    blue, orange = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in pictures.COLOURS[:2])
    for colour in (blue, orange):
        assert (abs(drawn[..., :3].astype(int) - colour).max(-1) < 8).any()
