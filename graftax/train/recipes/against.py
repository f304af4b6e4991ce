"""Captions told apart: another caption of the same picture, wrong in nearly the same words, must predict it worse.

What a plain loss hardly feels, such as who is left of whom, decides this difference alone: picture and noise are the same on
both sides. After the hard negatives of Krojer et al. 2023 ("DiffusionITM", arXiv 2305.16397); the relative margin is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from graftax.data.source import AGAINST
from graftax.errors import BadInput
from graftax.spec import ModelSpec
from graftax.spec_checks import check_number


@dataclass(frozen=True)
class HardNegatives:
    """Holds the error under the wrong caption above that under the right one. Raises `BadInput` on values that are none.

    Attributes:
        margin: by so large a share of the right one's error.
        weight: of this beside the loss itself, in multiples of it.
    """

    margin: float = 0.3
    weight: float = 1.0

    name = AGAINST

    def __post_init__(self) -> None:
        for name in ("margin", "weight"):
            check_number(getattr(self, name), f"hard_negatives {name}")
        if self.margin <= 0 or self.weight < 0:
            raise BadInput(f"{self}: expected a margin above 0 and a weight of 0 or more")

    def arrays(self, spec: ModelSpec) -> dict[str, jax.ShapeDtypeStruct]:
        """The wrong captions of one image."""
        return {AGAINST: jax.ShapeDtypeStruct((spec.sizes.context or spec.sizes.text,), jnp.int32)}

    def check(self, spec: ModelSpec) -> None:
        """Raise `BadInput` where a model does not read captions word by word."""
        if not spec.option("words", 0):
            raise BadInput(f"{self}: a {spec.backbone} that reads no words, expected one with a text encoder of its own")

    def value(self, right: jax.Array, wrong: jax.Array, dropped: jax.Array) -> jax.Array:
        """The loss (): mean over images of how much of the margin is missing, errors (b,) under both captions; images whose
        caption was `dropped` (b,) have none."""
        ahead = (wrong - right) / jax.lax.stop_gradient(right)
        return jnp.mean(jnp.where(dropped, 0.0, jnp.maximum(self.margin - ahead, 0.0)))

    def __str__(self) -> str:
        return f"hard_negatives(margin={self.margin}, weight={self.weight})"
