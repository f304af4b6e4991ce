"""Everything that can be pasted into a picture, at every size: emoji from the shipped sheet, and coloured shapes.

The emoji are of Noto Emoji, Apache-2.0 (`NOTICE`, `LICENSE-noto-emoji`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np
from PIL import Image

from graftax.data.scenes.shapes import coverage
from graftax.data.scenes.vocabulary import COLOURS, EMOJI

TILE, COLUMNS = 64, 5
"""Side of an emoji in the sheet, and emoji in a row of it."""


@dataclass(frozen=True)
class Sprite:
    """What is pasted: `ground * (1 - alpha) + colour`.

    Attributes:
        colour: (s, s, 3) float32 from 0 to 255, already multiplied by alpha.
        alpha: (s, s, 1) float32 in [0, 1].
    """

    colour: np.ndarray
    alpha: np.ndarray


@functools.cache
def sprite(kind: str, colour: str | None, size: int) -> Sprite:
    """A thing of the given side in pixels."""
    if colour is None:
        tile = _tiles()[kind]
        scaled = shrunk(tile, size)
        return Sprite(scaled[..., :3], scaled[..., 3:])
    alpha = coverage(kind, size)[..., None]
    return Sprite(alpha * np.array(COLOURS[colour], np.float32), alpha)


def shrunk(image: np.ndarray, side: int) -> np.ndarray:
    """A square image (s, s, c) averaged over areas to a smaller side: (side, side, c) float32."""
    edges = np.linspace(0, len(image), side + 1)  # of the new pixels, in old ones
    old = np.arange(len(image))
    weights = np.clip(np.minimum(edges[1:, None], old + 1) - np.maximum(edges[:-1, None], old), 0, None)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)  # (side, s)
    return np.einsum("ys,stc,xt->yxc", weights, image, weights, optimize=True).astype(np.float32)


@functools.cache
def _tiles() -> dict[str, np.ndarray]:
    """(64, 64, 4) float32 of every emoji: colour from 0 to 255 times alpha, and alpha in [0, 1]."""
    with resources.files("graftax.data.scenes").joinpath("emoji.png").open("rb") as file:
        sheet = np.asarray(Image.open(file).convert("RGBA"), np.float32)
    alpha = sheet[..., 3:] / 255
    sheet = np.concatenate([sheet[..., :3] * alpha, alpha], axis=-1)
    corners = {kind: (i // COLUMNS * TILE, i % COLUMNS * TILE) for i, kind in enumerate(EMOJI)}
    return {kind: sheet[top : top + TILE, left : left + TILE] for kind, (top, left) in corners.items()}
