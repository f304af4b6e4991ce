"""From a scene to its picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graftax.data.scenes.sprites import sprite
from graftax.data.scenes.world import SIDE, Scene


def render(scene: Scene) -> np.ndarray:
    """The picture (64, 64, 3) uint8. Things are pasted in their order, at whole pixels."""
    canvas = np.empty((SIDE, SIDE, 3), np.float32)
    canvas[:] = scene.ground
    for thing in scene.things:
        size = round(thing.size)
        left, top = round(thing.x - size / 2), round(thing.y - size / 2)
        pasted = sprite(thing.kind, thing.colour, size)
        part = canvas[top : top + size, left : left + size]
        part *= 1 - pasted.alpha
        part += pasted.colour
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def render_batch(scenes: Sequence[Scene]) -> np.ndarray:
    """Pictures (b, 64, 64, 3) float32 in [-1, 1], as models take them."""
    out = np.stack([render(scene) for scene in scenes]).astype(np.float32)
    out /= 127.5
    out -= 1
    return out
