"""A model's objective, DiT's or a flow's, as a loss for the training loop, and on held-out data, always in one way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from graftax.diffusion import PLAIN, Noising, Objective, Times, heldout_set
from graftax.errors import BadInput
from graftax.models import Cond, forward
from graftax.models.backbone import find
from graftax.models.collect import collect
from graftax.models.prediction import as_called
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.train.loop import Batch, Metrics
from graftax.train.noising import noising_for
from graftax.train.sharding import RULES, AxisRules, activations, place_batch
from graftax.train.state import split

TIME, NOISE, DROP = range(3)  # streams of a step's key


def diffusion_loss(
    spec: ModelSpec, process: Noising | None = None, *, times: Times | None = None, objective: Objective = PLAIN,
    class_dropout: float = 0.1, dtype: DTypeLike | None = None, plan: str = "auto", remat: str = "auto",
) -> DiffusionLoss:  # fmt: skip
    """`loss_fn(params, batch, key) -> (() loss, metrics)` of conditional diffusion training.

    The loss is `training_losses` of `process`, None: of what models like `spec` are trained with, under `objective`. A model
    of noise and variance has DiT's, with metrics {"mse", "vb"}, one of a flow or EDM the error of what it predicts, with
    {"mse"} and the objective's own terms.

    `params` plain or collected; batch: image (b, h, w, c) clean data and what the model is conditioned on, label (b,) int
    for classes. t is drawn from the process as `times` says, None: as such models are; the conditions become the unconditional ones with probability
    `class_dropout` (classifier-free guidance, arXiv 2207.12598; 0.1 in DiT, arXiv 2212.09748). `dtype`, `plan`, `remat` as
    in `graftax.models.forward`.

    Raises BadInput if `class_dropout` is no probability, or the model's times are steps and it does not predict noise and
    variance, or `process` or `objective` is not for it.
    """
    if not 0 <= class_dropout <= 1:
        raise BadInput(f"class_dropout: got {class_dropout!r}, expected a probability in [0, 1]")
    options = {"dtype": dtype, "plan": plan, "remat": remat}
    return DiffusionLoss(spec, _noising(spec, process), times, objective, class_dropout, options)


@dataclass(frozen=True, eq=False)
class DiffusionLoss:
    """What `diffusion_loss` returns: the loss, in one call or with its random numbers drawn beforehand.

    Attributes:
        spec: of the model.
        process: that noises.
        times: at which; None: as the process' own.
        objective: that judges.
        class_dropout: share of images that are trained without their conditions.
        options: of `graftax.models.forward`.
    """

    spec: ModelSpec
    process: Noising
    times: Times | None
    objective: Objective
    class_dropout: float
    options: Mapping[str, Any]

    def __call__(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return self.given(params, self.draw(batch, key))

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """{"image", "t" (b,), "noise" (b, h, w, c), "cond", "drop" (b,) bool: whose conditions are dropped}."""
        count = len(batch["image"])
        t = self.process.draw(jax.random.fold_in(key, TIME), count, self.times)
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), batch["image"].shape)
        drop = jax.random.bernoulli(jax.random.fold_in(key, DROP), self.class_dropout, (count,))
        cond = dict(find(self.spec).condition(batch))
        return {"image": batch["image"], "t": t, "noise": noise, "cond": cond, "drop": drop}

    def given(self, params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of a batch that `draw` made."""
        cond = self._dropped(params, batch["cond"], batch["drop"]) if self.class_dropout else batch["cond"]
        inputs = batch["image"], batch["t"], cond, batch["noise"]
        losses = _losses(self.spec, self.process, self.objective, params, *inputs, **self.options)
        return jnp.mean(losses["loss"]), {name: jnp.mean(losses[name]) for name in losses if name != "loss"}

    def _dropped(self, params: Params, cond: Cond, drop: jax.Array) -> Cond:
        """`cond`, the unconditional one where `drop` (b,)."""

        def one(own: jax.Array, null: jax.Array) -> jax.Array:
            return jnp.where(drop.reshape(-1, *[1] * (own.ndim - 1)), null, own)

        return jax.tree.map(one, dict(cond), dict(find(self.spec).null(self.spec, params, cond)))


def training_tree(spec: ModelSpec, params: Params, frozen: Sequence[str] = ()) -> Params:
    """`params` as a training state should hold them: blocks collected, unless `frozen` names leaves inside blocks.

    Collected blocks keep the compiled step small (`graftax.models.collect`), but the leaves of one stack can only be
    trained or frozen together. `spread` gives the plain tree back. Raises BadInput where `split` does.
    """
    return params if "blocks" in split(params, frozen)[1] else collect(spec, params)


def heldout_loss(
    spec: ModelSpec, process: Noising | None, data: Mapping[str, Any], *, seed: int = 0, batch_size: int = 256,
    dtype: DTypeLike | None = None, plan: str = "auto", mesh: Mesh | None = None, rules: AxisRules = RULES,
) -> Callable[[Params], dict[str, float]]:  # fmt: skip
    """A function of parameters: loss and metrics of `diffusion_loss`, means over a fixed set of (x0, t, noise), nothing
    dropped, t evenly over the process whatever the times of training.

    `data`: image (n, h, w, c) clean, and what the model is conditioned on, label (n,); see `heldout_set`. With a `mesh` the
    parameters lie on it, and images are split over it where their number divides.

    Raises BadInput where `heldout_set` does, and as `diffusion_loss` of model and process.
    """
    process = _noising(spec, process)
    heldout = heldout_set(data, process, seed=seed, batch_size=batch_size)
    backbone = find(spec)

    @jax.jit
    def losses(params: Params, x0: jax.Array, t: jax.Array, cond: Cond, noise: jax.Array) -> dict[str, jax.Array]:
        with activations(mesh, rules):
            inputs = place_batch((x0, t, cond, noise), mesh)
            found = _losses(spec, process, PLAIN, params, *inputs, dtype=dtype, plan=plan, remat="none")
        return {name: jnp.mean(value) for name, value in found.items()}

    def evaluate(params: Params) -> dict[str, float]:
        found = [losses(params, b["image"], t, dict(backbone.condition(b)), noise) for b, t, noise in heldout.batches()]
        found = jax.device_get(found)
        return {name: float(np.mean([part[name] for part in found])) for name in found[0]}

    return evaluate


def _losses(
    spec: ModelSpec, process: Noising, objective: Objective, params: Params, x0: jax.Array, t: jax.Array, cond: Cond,
    noise: jax.Array, **options: Any,
) -> dict[str, jax.Array]:  # fmt: skip
    def network(x: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        return forward(spec, params, x, t, cond, **options)[0]

    out = as_called(spec.prediction, network)(process.q_sample(x0, t, noise), process.model_times(t), cond)
    return process.training_losses(out, x0, t, noise, objective)


def _noising(spec: ModelSpec, process: Noising | None) -> Noising:
    found = spec.prediction
    if found.time == "index" and (found.target, found.variance) != ("eps", True):
        raise BadInput(f"diffusion loss: {found}, expected noise and variance at times of a process, or a flow")
    return noising_for(spec, process)
