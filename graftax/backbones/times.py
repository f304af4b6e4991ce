"""What all backbones say of the times that they are given."""

from __future__ import annotations

import jax
import numpy as np

from graftax.errors import BadInput
from graftax.models.model import all_known
from graftax.spec import ModelSpec

STEPS = 1000
"""Steps of the process whose numbers are times of the kind "index"."""


def check_times(spec: ModelSpec, t: jax.Array) -> None:
    """Raise `BadInput` where times t (b,), as far as they are known, are not such as the network was trained with."""
    last = STEPS if spec.prediction.time == "index" else 1
    if not all_known(t, lambda t: (t >= 0) & ((t < last) if last == STEPS else (t <= last))):
        raise BadInput(f"t: {some(t)}, expected times in [0, {last}{')' if last == STEPS else ']'}")


def some(values: jax.Array) -> str:
    """The first few values, for a message."""
    return f"{np.asarray(values)[:8].tolist()}{' ..' if len(values) > 8 else ''}"
