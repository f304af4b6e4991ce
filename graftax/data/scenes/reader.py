"""Scenes drawn one by one when they are asked for: a sequence, and records that `graftax.data.pipeline.stream` batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from graftax.data.scenes.render import render_batch
from graftax.data.scenes.sample import scene
from graftax.data.scenes.split import check_split
from graftax.data.scenes.tokens import ids
from graftax.data.scenes.world import Scene
from graftax.errors import BadInput

Batch = dict[str, np.ndarray]


@dataclass(frozen=True)
class Scenes:
    """The first scenes of a split, drawn when they are read: a sequence of `Scene`, and a reader for `stream`.

    Attributes:
        count: scenes; there are as many as one asks for.
        split: "train" or "heldout".
        seed: of the stream of scenes.
    """

    count: int
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        check_split(self.split)
        if self.count < 1 or self.seed < 0:
            raise BadInput(f"scenes: count {self.count}, seed {self.seed}; expected at least 1 and 0")

    @property
    def name(self) -> str:
        """Seed and split."""
        return f"scenes of seed {self.seed}, {self.split}"

    @property
    def identity(self) -> dict[str, Any]:
        """What the batches depend on."""
        return {"data": self.name}

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        """The scene itself, with caption and truth. Raises `IndexError` beyond the last."""
        if not 0 <= index < self.count:
            raise IndexError(index)
        return scene(index, self.split, self.seed)

    def __iter__(self) -> Iterator[Scene]:
        return (self[i] for i in range(len(self)))

    def read(self, index: np.ndarray, epoch: np.ndarray | None = None, seed: int = 0) -> Batch:
        """{"image": (b, 64, 64, 3) float32 in [-1, 1], "text": (b, 16) int32} of the scenes `index` (b,).

        `text` is 0 where it is padding (`tokens.ids`). A scene is the same in every epoch and for every seed of a stream's
        order.
        """
        chosen = [self[int(i)] for i in index]
        return {"image": render_batch(chosen), "text": ids([str(each.caption) for each in chosen])}
