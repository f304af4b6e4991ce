"""Which noising goes with which model."""

from __future__ import annotations

from graftax.diffusion import Flow, Noising, Process
from graftax.errors import BadInput
from graftax.spec import ModelSpec


def noising_for(spec: ModelSpec, process: Noising | None = None) -> Noising:
    """`process`, or what models like `spec` are trained with: the path and target of flows and of EDM, otherwise DiT's 1000
    steps. Raises `BadInput` where the process is not for such a model."""
    own = Process() if spec.prediction.time == "index" else Flow.of(spec.prediction)
    if process is not None and process != own and not (isinstance(process, Process) and isinstance(own, Process)):
        raise BadInput(f"process: got {process}, expected {own} for {spec.prediction}")
    return process or own
