"""`GraftConfig`: edits as config files and the command line give them."""

from __future__ import annotations

from dataclasses import dataclass

from graftax.errors import BadInput
from graftax.surgery.edits import Edit, compose
from graftax.surgery.parse import parse


@dataclass(frozen=True, kw_only=True)
class GraftConfig:
    """One edit after the other, in the language of `graftax.surgery.grammar`. Raises `BadInput` on what does not read.

    Attributes:
        edits: "replace(blocks[50%].mixer, hyena_x(kernel=4))" or short "blocks[50%].mixer=hyena_x(kernel=4)",
            "blocks[*].mlp=3", "parallel_pairs()", "drop(3, 5)", "lora(blocks[*].mixer, rank=8)"; each speaks of the model as
            those before have left it.
        seed: draws the new weights.
        calibration: on how many batches of 64 training images neurons are weighed where transplanting makes an MLP
            narrower. Least squares belong to the next stage: `DistillConfig.calibration`.
    """

    edits: tuple[str, ...] = ()
    seed: int = 0
    calibration: int = 16

    def __post_init__(self) -> None:
        if self.calibration < 1:
            raise BadInput(f"calibration: got {self.calibration}, expected 1 or more")
        for text in self.edits:
            parse(text)

    @property
    def edit(self) -> Edit:
        """All of them as one. Raises `BadInput` where there are none."""
        if not self.edits:
            raise BadInput("graft: no edits, expected one like replace(blocks[50%].mixer, hyena_x(kernel=4))")
        return compose(*map(parse, self.edits))
