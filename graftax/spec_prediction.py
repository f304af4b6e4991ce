"""`Prediction`: what a network's output and time mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graftax.errors import BadInput
from graftax.spec_checks import check_number

TARGETS = ("eps", "velocity", "x0", "score", "edm")
TIMES = {"index": ("ddpm",), "noise": ("linear", "gvp", "vp"), "data": ("linear", "gvp", "vp"), "log_sigma": ("edm",)}
"""What networks are given for the time, and the paths from data to noise on which each is (`graftax.paths`)."""


@dataclass(frozen=True)
class Prediction:
    """What the network's output and time mean: a fact of the checkpoint. Raises `BadInput` on unknown names.

    Attributes:
        target: "eps" (the noise), "velocity", "x0", "score", the gradient of the log-density of x, or "edm", the network
            within EDM's preconditioner (arXiv 2206.00364, Table 1).
        time: "index" 0 .. 999 of a discrete process, "noise" fraction 0 .. 1 (0 is data), "data" fraction 0 .. 1, or
            "log_sigma", ln(sigma) / 4. A velocity is the change of x with this fraction.
        variance: whether the output layer has a second half, that places the learned variance (IDDPM, arXiv 2102.09672, Eq.
            15); models of a flow may have it without a use for it, as SiT, and do not return it then.
        scale: the network takes fractions times this: 1000 in SD3.
        path: from data to noise (`graftax.paths`): "linear", "gvp" or "vp" of fractions, "ddpm" of steps, "edm" of
            log_sigma; "" is the first that goes with `time`.
        inner: what the network itself predicts, where the model turns that into what the other fields say, exactly
            (`graftax.surgery.interface`); None: what they say.
    """

    target: str = "eps"
    time: str = "index"
    variance: bool = True
    scale: float = 1.0
    path: str = ""
    inner: Prediction | None = None

    def __post_init__(self) -> None:
        for name, choices in {"target": TARGETS, "time": tuple(TIMES), "variance": (True, False)}.items():
            if getattr(self, name) not in choices:
                raise BadInput(f"Prediction.{name}: got {getattr(self, name)!r}, expected one of {choices}")
        object.__setattr__(self, "path", self.path or TIMES[self.time][0])
        if self.path not in TIMES[self.time]:
            raise BadInput(f"Prediction.path: got {self.path!r} with time {self.time!r}, expected one of {TIMES[self.time]}")
        if (self.target == "edm") != (self.time == "log_sigma"):
            raise BadInput(f"Prediction.target: got {self.target!r} at {self.time!r}, expected 'edm' with 'log_sigma' alone")
        check_number(self.scale, "Prediction.scale")
        if self.scale <= 0 or (self.scale != 1 and self.time in ("index", "log_sigma")):
            raise BadInput(f"Prediction.scale: got {self.scale}, expected more than 0, and 1 for times by {self.time}")
        object.__setattr__(self, "scale", float(self.scale))
        if self.inner is not None and (self.inner.inner is not None or self.variance):
            raise BadInput(f"Prediction.inner: got {self.inner}, expected one without its own, of a model without variance")

    @property
    def is_flow(self) -> bool:
        """Whether data become noise along a path in continuous time (flow matching)."""
        return self.time in ("noise", "data")

    @property
    def network(self) -> Prediction:
        """What the network itself predicts."""
        return self.inner or self


def prediction_fields(prediction: Prediction) -> dict[str, Any]:
    """As JSON; fields younger than the first files, which read as before, only where they say something."""
    fields, usual = dataclasses.asdict(prediction), {"scale": 1.0, "path": TIMES[prediction.time][0], "inner": None}
    if prediction.inner is not None:
        fields["inner"] = prediction_fields(prediction.inner)
    return {name: value for name, value in fields.items() if name not in usual or value != usual[name]}


def prediction_of(fields: Mapping[str, Any]) -> Prediction:
    """Inverse of `prediction_fields`."""
    inner = fields.get("inner")
    return Prediction(**{**fields, "inner": None if inner is None else prediction_of(inner)})
