"""What an analysis is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from graftax.errors import BadInput
from graftax.evaluate.drawing import SampleConfig
from graftax.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an analysis is asked to do. Raises `BadInput` on numbers below 1.

    Attributes:
        sampling: how images are drawn, those whose trajectories are watched too.
        samples: how many trajectories are watched.
        painted: on how many the painters' strategies are measured.
        shown: images per strategy.
        orders: random orders.
        k: width of the band, None for an eighth of the tokens.
        share: of the blocks in a ranking.
    """

    sampling: SampleConfig
    samples: int = 50
    painted: int = 8
    shown: int = 10
    orders: int = 10
    k: int | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("samples", "painted", "shown", "orders"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name}: got {getattr(self, name)}, expected 1 or more")

    def labels(self, spec: ModelSpec, count: int) -> np.ndarray:
        """(count,) classes: all in turn, or, where there are fewer samples than classes, evenly spread ones. Raises
        `BadInput` where the model has none."""
        every, classes = np.arange(count), spec.classes
        if not classes:
            raise BadInput("model: takes texts, expected one of classes; `graftax painters` looks at the layers of any")
        return (every * classes // count if count < classes else every % classes).astype(np.int32)

    def trajectory(self) -> dict[str, Any]:
        """Arguments of `graftax.analyze.trajectory`."""
        how = self.sampling
        return {"sampling": how.sampling, "batch_size": how.batch_size, "rng": jax.random.key(how.seed)}

    def batches(self) -> int:
        """How many batches the trajectories of all samples come in."""
        return self.samples // min(self.sampling.batch_size, self.samples) * self.sampling.steps
