"""Edits of what a model answers: the interface graft. No weight changes.

A DiT trained on noise answers as a model of velocities, exactly and without training, so that every sampler and interval of
flows works on it (`interface`). Training such a model as a flow trains the network within, which still predicts noise at
DDPM's steps; `native` then takes the wrapper away, which changes the function, and a short training as a flow makes up
for it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from graftax.errors import BadInput
from graftax.models.prediction import STEPS
from graftax.ops.base import KEPT, Params
from graftax.spec import ModelSpec, Prediction
from graftax.surgery.edits import Edit

ANSWERS = ("velocity", "eps", "x0", "score")


@dataclass(frozen=True)
class Interface(Edit):
    """See `interface`.

    Attributes:
        target: what the model answers.
        time: what it is given for the time.
        path: on which x is.
    """

    target: str
    time: str
    path: str
    name = "interface"

    def on(self, spec: ModelSpec) -> ModelSpec:
        network = spec.prediction.network
        if network.time == "index" and network.target == "velocity":
            raise BadInput(f"{self}: the network predicts {network}, whose path has no slope, expected noise, x0 or a flow")
        answer = Prediction(self.target, self.time, False, path=self.path)
        if (network.target, network.time, network.path, network.scale) == (answer.target, answer.time, answer.path, 1.0):
            return spec.replace(prediction=network)
        return spec.replace(prediction=dataclasses.replace(answer, inner=network))

    def effect(self, spec: ModelSpec) -> str:
        return KEPT

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        return params

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (self.target,), {"time": self.time, **({"path": self.path} if self.path else {})}


@dataclass(frozen=True)
class Native(Edit):
    """See `native`."""

    name = "native"

    def on(self, spec: ModelSpec) -> ModelSpec:
        answer, network = spec.prediction, spec.prediction.inner
        if network is None:
            raise BadInput(f"{self}: got a model whose network itself predicts {answer}, expected one after interface(..)")
        scale = float(STEPS) if network.time == "index" and answer.is_flow else network.scale if answer.is_flow else 1.0
        return spec.replace(prediction=dataclasses.replace(answer, inner=None, variance=network.variance, scale=scale))

    def weights(self, spec: ModelSpec, after: ModelSpec, params: Params, rng: jax.Array | None) -> Params:
        return params

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (), {}


def interface(target: str = "velocity", time: str = "noise", path: str = "") -> Interface:
    """Let a model answer `target` ("velocity", "eps", "x0" or "score") at times and on a path of x of another kind, exactly.

        flow = graftax.graft(dit, graftax.interface("velocity"))
        graftax.sample(flow, labels, sampler="heun", steps=25)      # and flow(x, noise_fraction, labels) is noise - data

    `time` and `path` as in `graftax.spec.Prediction`. At every noise level x is scaled to the network's own path, the
    network is asked at the step of the same sigma / alpha (steps may lie between whole ones), and its answer is turned into
    the target: x0 = (x - sigma eps) / alpha, v = alpha' x0 + sigma' eps. Beyond the network's own noise levels the nearest
    counts; DiT's reach to the fraction 0.9937, where an error of the noise is one of the velocity 158 times as large. A
    model that is wrapped already gets another wrapper, not a second one; the network's own answer takes it away. Raises
    `BadInput` on unknown names, and on models whose answer tells nothing else.
    """
    if target not in ANSWERS:
        raise BadInput(f"interface: got {target!r}, expected one of {ANSWERS}")
    if time not in ("noise", "data") and (target, time) != ("eps", "index"):
        raise BadInput(f"interface: got {target!r} at time {time!r}, expected 'noise' or 'data', or 'eps' at 'index'")
    Prediction(target, time, False, path=path)
    return Interface(target, time, path)


def native() -> Native:
    """Take the wrapper of `interface` away: from now on the network itself is to predict what the model answered.

    Not what it predicts yet: the model must be trained for a short while (`graftax.train.finetune`), which starts from its
    weights. A network of DDPM's steps is given 1000 times the noise fraction for the time, and its variance channels
    are left unused. Raises `BadInput` on models without a wrapper.
    """
    return Native()


__all__ = ["Interface", "Native", "interface", "native"]
