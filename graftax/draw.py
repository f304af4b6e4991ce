"""How a model is drawn: settings that fit it, and all steps as one compiled function of arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike

from graftax.diffusion import (
    SAMPLERS,
    Sampling,
    SamplingFields,
    Steps,
    check_variance,
    guided,
    image_keys,
    schedule,
    way_for,
)
from graftax.diffusion import initial_noise as first_noise
from graftax.diffusion.guidance import ModelFn, Weaker, pairs
from graftax.diffusion.names import ODES, SDES, STRAIGHT
from graftax.diffusion.reuse import Table, parse_reuse
from graftax.diffusion.sharing import chosen_steps, similarities
from graftax.errors import BadInput
from graftax.models.arguments import as_key
from graftax.models.backbone import Cond, find
from graftax.models.forward import forward_prepared, prepare_params
from graftax.models.model import Model, check_inputs, given_conditions
from graftax.models.policy import PLAIN, Draws, Policy
from graftax.models.prediction import Interface, as_called
from graftax.models.stages import stages
from graftax.ops.base import Params
from graftax.reusing import reusing_steps
from graftax.spec import ModelSpec, Prediction

WEAK = 0x3EA4
"""Stream of an image's key that its weak passes draw from, apart from the noise of its steps."""


def sampling_for(spec: ModelSpec, sampling: Sampling | None = None, **settings: Unpack[SamplingFields]) -> Sampling:
    """How a model of `spec` is drawn: `sampling`, or what `settings` say, and where they are silent its family.

    Raises `BadInput` on settings out of range, on both given, and where such a model cannot be drawn so.
    """
    if sampling is not None and settings:
        raise BadInput(f"sampling and {sorted(settings)} given, expected one of the two")
    if sampling is None:
        sampling = Sampling(**settings_for(spec, **settings))
    check_sampler(spec.prediction, sampling.sampler)
    check_weak(spec, sampling.weak, sampling.skip)
    if sampling.refresh:
        stages(spec)  # refuses models of one
    check_reuse(spec, sampling.reuse)
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
    check_weak(spec, fields.get("weak", Sampling.weak), fields.get("skip", ()))
    check_reuse(spec, fields.get("reuse", ""))
    return fields


def check_weak(spec: ModelSpec, weak: str, positions: Sequence[int]) -> None:
    """Raise `BadInput` where the program of a model does not have the skipped `positions`, or nothing else, and where the
    features that `weak` is to leave out are none."""
    if weak == "representation" and not spec.option("features", 0):
        raise BadInput(f"weak: got {weak!r}, of a model that denoises nothing beside its latents, expected one that does")
    if positions and not (max(positions) < len(spec.program) > len(set(positions))):
        last = len(spec.program) - 1
        raise BadInput(f"skip: got {tuple(positions)}, expected positions 0..{last} of the program, not all of them")


def check_reuse(spec: ModelSpec, text: str) -> None:
    """Raise `BadInput` where a table is for a program of another length."""
    reuse = parse_reuse(text)
    if isinstance(reuse, Table) and len(reuse.computed[0]) != len(spec.program):
        raise BadInput(f"reuse: a table of {len(reuse.computed[0])} positions, expected the program's {len(spec.program)}")


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


class Weak(NamedTuple):
    """What guidance leads away from, where that is not the model without its conditions.

    Attributes:
        spec: of the weak model.
        params: its parameters; prepared, where its passes run.
        policy: that its passes have (`graftax.models.policy`).
    """

    spec: ModelSpec
    params: Params
    policy: Policy = PLAIN


def weak_of(model: Model, sampling: Sampling, other: Model | None, policy: Policy | None) -> Weak | None:
    """What `sampling` leads away from, of what is given. Raises `BadInput` where that does not go together."""
    for name, given, wanted in (("weak_model", other, "model"), ("weak_policy", policy, "policy")):
        if (given is None) == (sampling.weak == wanted):
            what = "none" if given is None else "one"
            raise BadInput(f"{name}: {what} given with weak {sampling.weak!r}, expected both or neither")
    if sampling.skip:
        return Weak(weakened(model.spec, sampling.skip), model.params)
    if policy is not None:
        policy.check(model.spec)
        if policy.depth is not None and policy.depth.mode == "batch":
            raise BadInput(f"weak_policy: {policy.depth}, expected mode 'sample': images are drawn each by itself")
        return Weak(model.spec, model.params, policy)
    if other is not None and other.spec.image_shape != model.spec.image_shape:
        raise BadInput(f"weak_model: of images {other.spec.image_shape}, expected {model.spec.image_shape}")
    return None if other is None else Weak(other.spec, other.params)


@functools.partial(jax.jit, static_argnames=("spec", "sampling", "plan", "dtype", "mesh", "weak_spec", "weak_policy"))
def draw(
    spec: ModelSpec, params: Params, x: jax.Array, cond: Cond, null: Cond | None, keys: jax.Array,
    step_noise: jax.Array | None, *, sampling: Sampling, plan: str = "unroll", dtype: DTypeLike | None = None,
    mesh: Mesh | None = None, weak_spec: ModelSpec | None = None, weak_params: Params | None = None,
    weak_policy: Policy = PLAIN,
) -> jax.Array:  # fmt: skip
    """`sample` as one compiled function of arrays: noise x (b, h, w, c) -> images. Nothing is checked. `mesh`: that the
    arrays lie on, None for one device. `weak_spec` and the like: the fields of `weak_of`, where that is something."""
    from graftax.train.sharding import kernels

    with kernels(mesh):
        if sampling.reuse:
            return reusing_steps(spec, params, sampling, null, dtype).scan(x.astype(jnp.float32), cond, keys, step_noise)
        if sampling.refresh:
            return refreshing_steps(spec, params, sampling, null, plan, dtype).scan(
                x.astype(jnp.float32), cond, keys, step_noise
            )
        weak = None
        if weak_spec is not None and weak_params is not None:
            weak = Weak(weak_spec, prepare_params(weak_spec, weak_params, plan, weak_policy.cuts), weak_policy)
        steps = sampler_steps(spec, prepare_params(spec, params, plan), sampling, null, dtype, weak, keys)
        return steps.scan(x.astype(jnp.float32), cond, keys, step_noise)


def sampler_steps(
    spec: ModelSpec, prepared: Params, sampling: Sampling, null: Cond | None = None, dtype: DTypeLike | None = None,
    weak: Weak | None = None, keys: jax.Array | Draws | None = None,
) -> Steps:  # fmt: skip
    """The steps that `sample` takes, with guidance, on prepared parameters; to be called inside of `jit`.

    `weak`: what is led away from, prepared; `keys` (b,): what its policy draws from, anew in every call, or what it has
    drawn for all of them (`Policy.draw`). Raises `BadInput` where it is needed and missing.
    """
    if (sampling.skip or sampling.weak not in ("null", "representation")) and weak is None:
        what = f"weak {sampling.weak!r}, skip {sampling.skip}"
        raise BadInput(f"{what}: expected none here: steps one by one know no weaker pass")
    if sampling.refresh or sampling.reuse:
        raise BadInput(f"refresh {sampling.refresh}, reuse {sampling.reuse!r}: expected none, steps one by one keep nothing")
    way = way_for(spec.prediction, sampling)

    def network(spec: ModelSpec, prepared: Params, policy: Policy = PLAIN, *, features: bool = True) -> ModelFn:
        def raw(x: jax.Array, t: jax.Array, cond: Any) -> jax.Array:
            draws = _drawn(policy, spec, keys, t) if policy else None
            x = x if features else x.at[..., spec.latent_channels :].set(0)
            return forward_prepared(spec, prepared, x, t, cond, dtype=dtype, policy=policy, key=draws)[0]

        return as_called(spec.prediction, raw, way.target, way.path)

    def twin(cond: Any) -> Any:
        return find(spec).null(spec, prepared, cond) if null is None else null

    away, weaker = None if weak is None else network(*weak), None
    if away is not None and sampling.weak == "null":
        times = schedule(sampling, way).timestep if sampling.flow else sampling.timesteps
        first, last = (times[i] for i in (sampling.skip_steps[0], sampling.skip_steps[-1]))
        weaker, away = Weaker(away, sampling.skip_scale, first, last), None
    if sampling.weak == "representation":
        away = network(spec, prepared, features=False)
    own = network(spec, prepared)
    guide = guided(own, sampling.cfg_scale, twin, sampling.cfg_channels, weaker, away, varies=sampling.varies)
    return Steps(guide, sampling, way=way)


def refreshing_steps(
    spec: ModelSpec, params: Params, sampling: Sampling, null: Cond | None = None, plan: str = "unroll",
    dtype: DTypeLike | None = None,
) -> Steps:  # fmt: skip
    """`sampler_steps` of a model of two stages, whose encoder runs in the steps `sampling.refresh`, for conditions and for
    their unconditional twin in one batch. Raises `BadInput` on models of one stage."""
    two, way = stages(spec), way_for(spec.prediction, sampling)
    encoder, decoder = two.prepare(params, plan)

    def encode(x: jax.Array, t: jax.Array, cond: Any) -> dict[str, jax.Array]:
        x, t = Interface(spec.prediction, way.target, way.path).enter(x, t)
        if sampling.cfg_scale == 1:
            return {"own": two.encode(encoder, x, t, cond, dtype)}
        twin = find(spec).null(spec, params, cond) if null is None else null
        both = jax.tree.map(pairs, dict(cond), dict(twin))
        kept = two.encode(encoder, pairs(x, x), pairs(t, t), both, dtype)  # (2b, n, d), each image's two in turn
        return {"own": kept[::2], "null": kept[1::2]}

    def decode(x: jax.Array, t: jax.Array, kept: Any) -> jax.Array:
        return two.decode(decoder, x, kept["own"], dtype)

    guide = guided(
        as_called(spec.prediction, decode, way.target, way.path), sampling.cfg_scale,
        lambda kept: {name: kept["null"] for name in kept}, sampling.cfg_channels, varies=sampling.varies,
    )  # fmt: skip
    return Steps(guide, sampling, way=way, encode=encode)


def refresh_steps(
    model: Model, labels: ArrayLike, count: int, *, rng: jax.Array | None = None, sampling: Sampling | None = None,
    **settings: Unpack[SamplingFields],
) -> tuple[int, ...]:  # fmt: skip
    """The `count` steps in which the encoder of a model of two stages had best run: `Sampling.refresh`.

    Of images of the classes `labels`, drawn with the encoder in every step, by how alike what it makes of the conditions is
    between steps (`graftax.diffusion.sharing.chosen_steps`). `rng`, `sampling` and `settings` as in `sample`; `BadInput` as
    there.
    """
    how = sampling_for(model.spec, sampling, **settings)
    how = dataclasses.replace(how, refresh=tuple(range(how.steps)))
    cond = given_conditions(labels, None)
    keys = image_keys(jax.random.key(0) if rng is None else as_key(rng), 0, len(cond["y"]))
    x = first_noise(keys, how.steps, model.spec.image_shape)
    check_inputs(model.spec, x, jnp.zeros(len(x)), cond)
    stages(model.spec)  # refuses models of one
    return chosen_steps(similarities(_encoded(model.spec, model.params, x, cond, keys, how)), count)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _encoded(spec: ModelSpec, params: Params, x: jax.Array, cond: Cond, keys: jax.Array, how: Sampling) -> jax.Array:
    return refreshing_steps(spec, params, how).kept(x, cond, keys, None)["own"]


def _drawn(policy: Policy, spec: ModelSpec, keys: jax.Array | Draws | None, t: jax.Array) -> Draws:
    """What a policy leaves out in a call at times t (b,), of each image by itself."""
    assert keys is not None, "images have keys where a policy is given"
    if isinstance(keys, Mapping):
        return keys
    number = jax.lax.bitcast_convert_type(t[0].astype(jnp.float32), jnp.int32)
    own = jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, WEAK), number))(keys)
    return {name: one[:, 0] for name, one in jax.vmap(lambda key: dict(policy.draw(spec, key, 1)))(own).items()}
