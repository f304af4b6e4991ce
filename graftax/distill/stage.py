"""`DistillStage`: stage 1 as config files give it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from graftax.distill.config import PAPER_BATCH, DistillConfig
from graftax.errors import BadInput
from graftax.train.loop_config import LoopConfig, LoopOptions


@dataclass(frozen=True, kw_only=True)
class DistillStage(LoopOptions):
    """Stage 1, whose length is `settings.steps`. Raises `BadInput` on values out of range.

    Attributes:
        settings: optimiser, losses, precision.
        batch_size: images per step.
    """

    settings: DistillConfig = field(default_factory=DistillConfig)
    batch_size: int = PAPER_BATCH

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size < 1:
            raise BadInput(f"batch_size: got {self.batch_size}, expected 1 or more")
        LoopConfig(self.settings.steps)  # refuses a length that no loop can have

    @property
    def loop(self) -> LoopConfig:
        """The loop that runs all of `settings.steps`."""
        return LoopConfig(self.settings.steps, **{f.name: getattr(self, f.name) for f in fields(LoopOptions)})
