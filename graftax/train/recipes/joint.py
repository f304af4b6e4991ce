"""What is denoised together with the latents (the frame's `features`), judged by itself: ReDi's features, REG's class token.

Sources: ReDi (arXiv 2504.16064), loss = mean over the latents + lambda times the mean over the features; REG (arXiv
2507.01467), likewise with 0.03 and the numbers of the class token.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax

from graftax.errors import BadInput
from graftax.spec import ModelSpec
from graftax.spec_checks import check_number

PART = "features"
"""What records call the features' error."""


@dataclass(frozen=True)
class FeatureWeight:
    """How much the error of a model's features counts beside that of its latents. Raises `BadInput` on negative numbers.

    Attributes:
        weight: 1 in ReDi, 0.03 in REG.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        check_number(self.weight, "features weight")
        if self.weight < 0:
            raise BadInput(f"features weight: got {self.weight}, expected 0 or more")

    def __str__(self) -> str:
        return f"features({self.weight})"


def parts(spec: ModelSpec, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Images, noise or predictions x (b, h, w, c) as latents (b, h, w, c') and features: of every place (b, h, w, f), or the
    numbers of a class token (b, 1, 1, k) without what fills its channels; None of a model that has none."""
    if not spec.option("features", 0):
        return x, None
    latents, rest = x[..., : spec.latent_channels], x[..., spec.latent_channels :]
    if token := spec.option("token", 0):
        rest = rest.reshape(len(x), 1, 1, -1)[..., :token]
    return latents, rest
