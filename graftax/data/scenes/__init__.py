"""Scenes: a text-to-image world whose truth is known. Small pictures of emoji and plain shapes, with exact captions."""

from graftax.data.scenes.caption import Caption, Group, parse
from graftax.data.scenes.reader import Scenes
from graftax.data.scenes.render import render, render_batch
from graftax.data.scenes.sample import prompts, scene
from graftax.data.scenes.split import combinations, is_held_out
from graftax.data.scenes.tokens import ids
from graftax.data.scenes.world import Scene, Thing

__all__ = [
    "Caption", "Group", "Scene", "Scenes", "Thing", "combinations", "ids", "is_held_out", "parse", "prompts", "render",
    "render_batch", "scene",
]  # fmt: skip
