"""`TrainState`: everything a training run must keep, and the split of a parameter tree into trained and frozen."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax

from graftax.errors import BadInput
from graftax.ops.base import Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A training run's state.

    Attributes:
        step: () int32, updates done so far.
        trainable: parameters that are trained.
        frozen: the others, disjoint from them; together they are the model's tree (`params`).
        ema: averages, of the structure of `trainable`, in float32.
        opt_state: the optimiser's, of `trainable` alone.
    """

    step: jax.Array
    trainable: Params
    frozen: Params
    ema: Params
    opt_state: optax.OptState

    @property
    def params(self) -> Params:
        """The whole parameter tree as trained so far."""
        return merge(self.trainable, self.frozen)

    @property
    def ema_params(self) -> Params:
        """The whole parameter tree with averaged leaves where they are trained: what one evaluates and ships."""
        return merge(self.ema, self.frozen)


def create_state(params: Params, optimiser: optax.GradientTransformation, frozen: Sequence[str] = ()) -> TrainState:
    """Initial state for `params`, with the leaves that `frozen` (see `split`) names kept out of training.

    Trained leaves are copied, since training steps donate their state: the caller's arrays stay valid. Frozen leaves
    are the caller's own objects. The average starts at the parameters.
    """
    trainable, kept = split(params, frozen)
    trainable = jax.tree.map(lambda x: jnp.array(x, copy=True), trainable)
    ema = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), trainable)
    kept = jax.tree.map(jnp.asarray, kept)  # the same objects, unless they were numpy arrays
    return TrainState(jnp.zeros((), jnp.int32), trainable, kept, ema, optimiser.init(trainable))


def warmed_decay(decay: float, step: jax.Array) -> jax.Array:
    """min(decay, (1 + step) / (10 + step)), () float32, after `step` updates: an average that starts with a short memory,
    so that it has forgotten the first weights also where a run is short (as TensorFlow's ExponentialMovingAverage)."""
    return jnp.minimum(decay, (1 + step) / (10 + step))


def update_ema(ema: Params, params: Params, decay: float | jax.Array) -> Params:
    """decay * ema + (1 - decay) * params, leaf by leaf in float32."""
    return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p.astype(jnp.float32), ema, params)


def split(params: Params, frozen: Sequence[str]) -> tuple[Params, Params]:
    """(trained, frozen): two nested dicts that hold every leaf of `params` once; `merge` undoes it.

    A leaf is frozen if a pattern matches its path ("blocks/03/mixer/qkv/kernel") from the start to a "/" or the end:
    "pos_embed" names a leaf, r"blocks/0\\d/mixer" subtrees. Raises BadInput if a pattern matches nothing or is no
    regular expression, or if nothing is left to train.
    """
    patterns = {text: _compile(text) for text in frozen}
    paths = list(_paths(params))
    for text, pattern in patterns.items():
        if not any(pattern.fullmatch(path) for path in paths):
            raise BadInput(f"frozen: {text!r} matches no parameter, expected a path like {paths[-1]!r}")
    chosen = {path for path in paths if any(pattern.fullmatch(path) for pattern in patterns.values())}
    if len(chosen) == len(paths):
        raise BadInput(f"frozen: {tuple(frozen)} leaves nothing to train of {len(paths)} parameters")
    return _keep(params, set(paths) - chosen), _keep(params, chosen)


def merge(left: Params, right: Params) -> Params:
    """Union of two nested dicts without a leaf in common. Raises BadInput where both have one."""
    both = left.keys() & right.keys()
    clash = [key for key in both if not (isinstance(left[key], dict) and isinstance(right[key], dict))]
    if clash:
        raise BadInput(f"merge: both trees hold {sorted(clash)}, expected disjoint leaves")
    joined = {key: merge(left[key], right[key]) for key in both}
    # Sorted, because jax flattens dicts in sorted order anyway and people read them in this one.
    return dict(sorted((left | right | joined).items()))


def _compile(text: str) -> re.Pattern[str]:
    try:
        return re.compile(f"(?:{text})(?:/.*)?")
    except re.error as error:
        raise BadInput(f"frozen: {text!r} is not a regular expression ({error})") from None


def _paths(tree: Params, prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in tree.items():
        found += _paths(value, f"{prefix}{key}/") if isinstance(value, dict) else [f"{prefix}{key}"]
    return found


def _keep(tree: Params, wanted: set[str], prefix: str = "") -> Params:
    kept: Params = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            if inner := _keep(value, wanted, f"{prefix}{key}/"):
                kept[key] = inner
        elif f"{prefix}{key}" in wanted:
            kept[key] = value
    return kept
