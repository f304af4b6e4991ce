"""How a model is drawn: settings that fit it, and all steps as one compiled function of arrays."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from graftax.diffusion import SAMPLERS, Sampling, SamplingFields, Steps, check_variance, guided, way_for
from graftax.diffusion.guidance import ModelFn, Weaker
from graftax.diffusion.names import ODES, SDES, STRAIGHT
from graftax.errors import BadInput
from graftax.models.backbone import Cond, find
from graftax.models.forward import forward_prepared, prepare_params
from graftax.models.model import Model
from graftax.models.prediction import as_called
from graftax.ops.base import Params
from graftax.spec import ModelSpec, Prediction


def sampling_for(spec: ModelSpec, sampling: Sampling | None = None, **settings: Unpack[SamplingFields]) -> Sampling:
    """How a model of `spec` is drawn: `sampling`, or what `settings` say, and where they are silent its family.

    Raises `BadInput` on settings out of range, on both given, and where such a model cannot be drawn so.
    """
    if sampling is not None and settings:
        raise BadInput(f"sampling and {sorted(settings)} given, expected one of the two")
    if sampling is None:
        return Sampling(**settings_for(spec, **settings))
    check_sampler(spec.prediction, sampling.sampler)
    check_skip(spec, sampling.skip)
    return sampling


def settings_for(spec: ModelSpec, **settings: Any) -> dict[str, Any]:
    """`settings`, and what they leave out where a model of `spec` is not drawn as in `Sampling`: flows by "euler", EDM by 40
    steps of its own, and as the family draws. Raises `BadInput` on a sampler that does not fit the model."""
    own = {"sampler": "euler"} if spec.prediction.is_flow else {}
    if spec.prediction.path == "edm":
        own = {"sampler": "edm_heun", "steps": 40}
    family = find(spec).sampling(spec)
    if (chosen := settings.get("sampler", family.get("sampler"))) != family.get("sampler"):
        of_its_own = () if chosen in STRAIGHT else ("spacing", "last") if chosen in SDES else ("spacing", "last", "shift")
        family = {name: value for name, value in family.items() if name not in of_its_own}
    fields = {**own, **family, **settings}
    check_sampler(spec.prediction, fields.get("sampler", Sampling.sampler))
    check_skip(spec, fields.get("skip", ()))
    return fields


def check_skip(spec: ModelSpec, positions: Sequence[int]) -> None:
    """Raise `BadInput` where the program of a model does not have `positions`, or nothing else."""
    if positions and not (max(positions) < len(spec.program) > len(set(positions))):
        last = len(spec.program) - 1
        raise BadInput(f"skip: got {tuple(positions)}, expected positions 0..{last} of the program, not all of them")


def weakened(spec: ModelSpec, positions: Sequence[int]) -> ModelSpec:
    """`spec` without some positions of its program."""
    return spec.replace(program=tuple(step for i, step in enumerate(spec.program) if i not in positions))


def check_sampler(prediction: Prediction, sampler: str) -> None:
    """Raise `BadInput` where `sampler` is not for what the network predicts; of names that are none `Sampling` tells."""
    if sampler in (*ODES, *SDES, "edm_heun"):
        if prediction.time == "index" and prediction.target not in ("eps", "x0"):
            raise BadInput(f"sampler {sampler!r}: {prediction}, expected noise (eps) or x0, or times that are no index")
    elif sampler in tuple(SAMPLERS):
        if (prediction.target, prediction.time) != ("eps", "index"):
            raise BadInput(f"sampler {sampler!r}: {prediction}, expected noise (eps) at the times (index) of DDPM")
        check_variance(sampler, prediction.variance)


def weak_of(spec: ModelSpec, sampling: Sampling, model: Model | None) -> tuple[ModelSpec, Params] | None:
    """The model that guidance leads away from, where one is given. Raises `BadInput` where it is not as `sampling` says."""
    if (model is None) == (sampling.weak == "model"):
        raise BadInput(
            f"weak_model: {'none' if model is None else 'one'} given with weak {sampling.weak!r}, expected both or neither"
        )
    if model is None:
        return None
    if model.spec.image_shape != spec.image_shape:
        raise BadInput(f"weak_model: of images {model.spec.image_shape}, expected {spec.image_shape}")
    return model.spec, model.params


@functools.partial(jax.jit, static_argnames=("spec", "sampling", "plan", "dtype", "mesh", "weak_spec"))
def draw(
    spec: ModelSpec, params: Params, x: jax.Array, cond: Cond, null: Cond | None, keys: jax.Array,
    step_noise: jax.Array | None, *, sampling: Sampling, plan: str = "unroll", dtype: DTypeLike | None = None,
    mesh: Mesh | None = None, weak_spec: ModelSpec | None = None, weak_params: Params | None = None,
) -> jax.Array:  # fmt: skip
    """`sample` as one compiled function of arrays: noise x (b, h, w, c) -> images. Nothing is checked. `mesh`: that the
    arrays lie on, None for one device. `weak_spec`, `weak_params`: of the weak model, where `sampling.weak` asks for one."""
    from graftax.train.sharding import kernels

    if sampling.skip:
        weak_spec, weak_params = weakened(spec, sampling.skip), params
    with kernels(mesh):
        weak = None if weak_spec is None else (weak_spec, prepare_params(weak_spec, weak_params or {}, plan))
        steps = sampler_steps(spec, prepare_params(spec, params, plan), sampling, null, dtype, weak)
        return steps.scan(x.astype(jnp.float32), cond, keys, step_noise)


def sampler_steps(
    spec: ModelSpec, prepared: Params, sampling: Sampling, null: Cond | None = None, dtype: DTypeLike | None = None,
    weak: tuple[ModelSpec, Params] | None = None,
) -> Steps:  # fmt: skip
    """The steps that `sample` takes, with guidance, on prepared parameters; to be called inside of `jit`.

    `weak`: the model that is led away from and its parameters, prepared; where `sampling.skip` says so, the same without
    these positions. Raises `BadInput` where it is needed and missing.
    """
    if (sampling.skip or sampling.weak != "null") and weak is None:
        raise BadInput(
            f"weak {sampling.weak!r}, skip {sampling.skip}: expected none here: steps one by one know no weaker pass"
        )
    way = way_for(spec.prediction, sampling)

    def network(spec: ModelSpec, prepared: Params) -> ModelFn:
        def raw(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
            return forward_prepared(spec, prepared, x, t, cond, dtype=dtype)[0]

        return as_called(spec.prediction, raw, way.target, way.path)

    def twin(cond: Any) -> Any:
        return find(spec).null(spec, prepared, cond) if null is None else null

    away = None if weak is None else network(*weak)
    weaker = None
    if away is not None and sampling.weak == "null":
        first, last = (float(sampling.timesteps[i]) for i in (sampling.skip_steps[0], sampling.skip_steps[-1]))
        weaker, away = Weaker(away, sampling.skip_scale, first, last), None
    own = network(spec, prepared)
    guide = guided(own, sampling.cfg_scale, twin, sampling.cfg_channels, weaker, away, varies=sampling.varies)
    return Steps(guide, sampling, way=way)
