"""Which noising goes with which model."""

from __future__ import annotations

from graftax.diffusion import Flow, Noising, Process
from graftax.errors import BadInput
from graftax.spec import ModelSpec


def noising_for(spec: ModelSpec, process: Noising | None = None) -> Noising:
    """`process`, or what models like `spec` are trained with: the straight path where they predict its velocity, otherwise
    DiT's 1000 steps. Raises `BadInput` where the process is not for such a model."""
    kind = Flow if spec.prediction.is_flow else Process
    if process is not None and not isinstance(process, kind):
        raise BadInput(f"process: got {process}, expected a {kind.__name__} for {spec.prediction}")
    return process or kind()
