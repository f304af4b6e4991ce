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

from graftax.blocks import Taps, image_tokens
from graftax.data.source import AGAINST
from graftax.diffusion import PLAIN, Noising, Objective, Times, heldout_set
from graftax.errors import BadInput
from graftax.models import Cond, forward
from graftax.models.backbone import find
from graftax.models.collect import collect, spread
from graftax.models.policy import Draws
from graftax.models.prediction import as_called
from graftax.models.sizes import at_size
from graftax.ops.base import Params
from graftax.spec import ModelSpec
from graftax.train.config import DiffusionConfig
from graftax.train.loop import Batch, Metrics
from graftax.train.noising import noising_for
from graftax.train.recipes import NOTHING, Recipe
from graftax.train.recipes.base import HEADS, TOKENIZER
from graftax.train.recipes.joint import PART, parts
from graftax.train.recipes.masked import masked_losses
from graftax.train.recipes.recipe import array_of
from graftax.train.sharding import RULES, AxisRules, activations, place_batch
from graftax.train.state import split
from graftax.train.step import RUN

TIME, NOISE, DROP, RECIPE = range(4)  # streams of a step's key
FRESH_HEADS = 0x4EAD
"""Stream of a run's key that draws the heads of its losses, apart from the keys of the steps."""


def diffusion_loss(
    spec: ModelSpec, process: Noising | None = None, *, times: Times | None = None, objective: Objective = PLAIN,
    class_dropout: float = 0.1, dtype: DTypeLike | None = None, plan: str = "auto", remat: str = "auto",
    recipe: Recipe = NOTHING,
) -> DiffusionLoss:  # fmt: skip
    """`loss_fn(params, batch, key) -> (() loss, metrics)` of conditional diffusion training.

    The loss is `training_losses` of `process`, None: of what models like `spec` are trained with, under `objective`. A model
    of noise and variance has DiT's, with metrics {"mse", "vb"}, one of a flow or EDM the error of what it predicts, with
    {"mse"} and the objective's own terms.

    `params` plain or collected; batch: image (b, h, w, c) clean data and what the model is conditioned on, label (b,) int
    for classes. t is drawn from the process as `times` says, None: as such models are; the conditions become the
    unconditional ones with probability `class_dropout` (classifier-free guidance, arXiv 2207.12598; 0.1 in DiT, arXiv
    2212.09748). `dtype`, `plan`, `remat` as in `graftax.models.forward`. `recipe`: what passes leave out, and losses
    besides, whose values are metrics too; they take their heads from `params` (`Recipe.heads`), targets from the batch.

    Raises BadInput if `class_dropout` is no probability, or the model's times are steps and it does not predict noise and
    variance, or `process` or `objective` is not for it.
    """
    if not 0 <= class_dropout <= 1:
        raise BadInput(f"class_dropout: got {class_dropout!r}, expected a probability in [0, 1]")
    options = {"dtype": dtype, "plan": plan, "remat": remat}
    return DiffusionLoss(spec, _noising(spec, process), times, objective, class_dropout, options, recipe)


def configured_loss(spec: ModelSpec, config: DiffusionConfig, process: Noising | None = None) -> DiffusionLoss:
    """`diffusion_loss` as a config says. Raises BadInput where that does, and where the recipe does not fit."""
    recipe = Recipe.parse(config.recipe)
    recipe.check(spec, config.batch_size // config.accumulate)
    return diffusion_loss(
        spec, process, **config.objectives, class_dropout=config.class_dropout, dtype=jnp.dtype(config.compute_dtype),
        plan=config.plan, remat=config.remat, recipe=recipe,
    )  # fmt: skip


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
        recipe: what is done besides.
    """

    spec: ModelSpec
    process: Noising
    times: Times | None
    objective: Objective
    class_dropout: float
    options: Mapping[str, Any]
    recipe: Recipe = NOTHING

    @property
    def sees_run(self) -> bool:
        """Whether it needs the averaged model, or the number of the step (`graftax.train.step.RUN`)."""
        return self.recipe.sees_run

    def __call__(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return self.given(params, self.draw(batch, key))

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """{"image", "t" (b,), "noise" (b, h, w, c), "cond", "drop" (b,) bool: whose conditions are dropped, "recipe":
        `Recipe.draw`}, and with hard negatives "against", the wrong captions as "cond" has the right ones."""
        count = len(batch["image"])
        t = self.process.draw(jax.random.fold_in(key, TIME), count, self.times)
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), batch["image"].shape)
        drop = jax.random.bernoulli(jax.random.fold_in(key, DROP), self.class_dropout, (count,))
        cond = dict(find(self.spec).condition(batch))
        beside = self.recipe.draw(at_size(self.spec, batch["image"]), batch, jax.random.fold_in(key, RECIPE))
        drawn = {"image": batch["image"], "t": t, "noise": noise, "cond": cond, "drop": drop, "recipe": beside}
        if (term := self.recipe.negatives) is None:
            return drawn
        against = array_of(term, batch, AGAINST, term.arrays(self.spec)[AGAINST].shape)
        return {**drawn, AGAINST: dict(find(self.spec).condition({**batch, "text": against}))}

    def given(self, params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of a batch that `draw` made."""
        cond = self._dropped(params, batch["cond"], batch["drop"]) if self.class_dropout else batch["cond"]
        x0, t, noise, drawn = batch["image"], batch["t"], batch["noise"], batch["recipe"]
        options = {**self.options, "policy": self.recipe.policy, "key": drawn["policy"], "states": self.recipe.states}
        out, taps = on_noised(self.spec, self.process, params, x0, t, cond, noise, **options)
        losses = self._losses(out, x0, t, noise, drawn["policy"])
        found = {name: jnp.mean(value) for name, value in losses.items()}
        loss = found.pop("loss")
        if term := self.recipe.negatives:
            other, _ = on_noised(self.spec, self.process, params, x0, t, batch[AGAINST], noise, **{**options, "states": ()})
            wrong = self._losses(other, x0, t, noise, drawn["policy"])["mse"]
            found[AGAINST] = term.value(losses["mse"], wrong, batch["drop"])
            loss += term.weight * jax.lax.stop_gradient(loss) * found[AGAINST]
        if self.recipe.losses:
            values, more = self._besides(params, batch, cond, taps)
            found, loss = {**found, **values}, loss + more
        return loss, found

    def _losses(self, out: jax.Array, x0: jax.Array, t: jax.Array, noise: jax.Array, draws: Draws) -> dict[str, jax.Array]:
        """`training_losses` of all there is, or of the tokens that a mask leaves."""
        spec, policy = self.spec, self.recipe.policy
        if policy.mask and (kept := policy.kept(at_size(spec, x0), draws, 0)) is not None:
            side = spec.option("patch")
            return masked_losses(self.process, policy.mask, kept, side, out, x0, t, noise, self.objective)
        weight = self.recipe.features.weight if self.recipe.features else 1.0
        return _judged(spec, self.process, out, x0, t, noise, self.objective, weight)

    def _besides(self, params: Params, batch: Batch, cond: Cond, taps: Taps) -> tuple[Metrics, jax.Array | float]:
        """The recipe's losses, and what they add."""
        spec, run = at_size(self.spec, batch["image"]), params.get(RUN, {})
        self.recipe.check(spec, len(batch["image"]))

        def teacher(position: int, back: jax.Array) -> jax.Array:
            t = self.process.earlier(batch["t"], back)
            inputs = self.process, run["ema"], batch["image"], t, cond, batch["noise"]
            _, taps = on_noised(self.spec, *inputs, **self.options, states=(position,))
            return jax.lax.stop_gradient(image_tokens(spec, position, taps[f"state/{position}"]))

        return self.recipe.values(spec, params, taps, batch["recipe"], teacher, run.get("step", jnp.zeros((), jnp.int32)))

    def _dropped(self, params: Params, cond: Cond, drop: jax.Array) -> Cond:
        """`cond`, the unconditional one where `drop` (b,)."""

        def one(own: jax.Array, null: jax.Array) -> jax.Array:
            return jnp.where(drop.reshape(-1, *[1] * (own.ndim - 1)), null, own)

        return jax.tree.map(one, dict(cond), dict(find(self.spec).null(self.spec, params, cond)))


def training_tree(
    spec: ModelSpec, params: Params, frozen: Sequence[str] = (), recipe: Recipe = NOTHING, seed: int = 0
) -> Params:
    """`params` as a training state should hold them: blocks collected, unless `frozen` names leaves inside blocks, and the
    heads that a `recipe` needs, drawn from `seed`, beside them.

    Collected blocks keep the compiled step small (`graftax.models.collect`), but the leaves of one stack can only be
    trained or frozen together. `spread` gives the plain tree back. Raises BadInput where `split` does.
    """
    tree = params if "blocks" in split(params, frozen)[1] else collect(spec, params)
    return {**tree, **recipe.heads(spec, jax.random.fold_in(jax.random.key(seed), FRESH_HEADS))}


def model_tree(spec: ModelSpec, tree: Params) -> Params:
    """Inverse of `training_tree`: the model's own parameters, plain."""
    return spread(spec, {name: part for name, part in tree.items() if name not in (HEADS, TOKENIZER)})


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
            found = _losses(spec, process, params, *inputs, dtype=dtype, plan=plan, remat="none")
        return {name: jnp.mean(value) for name, value in found.items()}

    def evaluate(params: Params) -> dict[str, float]:
        found = [losses(params, b["image"], t, dict(backbone.condition(b)), noise) for b, t, noise in heldout.batches()]
        found = jax.device_get(found)
        return {name: float(np.mean([part[name] for part in found])) for name in found[0]}

    return evaluate


def _losses(
    spec: ModelSpec, process: Noising, params: Params, x0: jax.Array, t: jax.Array, cond: Cond, noise: jax.Array,
    **options: Any,
) -> dict[str, jax.Array]:  # fmt: skip
    out, _ = on_noised(spec, process, params, x0, t, cond, noise, **options)
    return _judged(spec, process, out, x0, t, noise, PLAIN)


def _judged(
    spec: ModelSpec, process: Noising, out: jax.Array, x0: jax.Array, t: jax.Array, noise: jax.Array, objective: Objective,
    weight: float = 1.0,
) -> dict[str, jax.Array]:  # fmt: skip
    """`training_losses`; of a model with features those of its latents, and theirs, which count `weight` times."""
    latents, features = zip(*(parts(spec, array) for array in (out, x0, noise)), strict=True)
    losses = process.training_losses(latents[0], latents[1], t, latents[2], objective)
    if features[0] is None:
        return losses
    other = process.training_losses(features[0], features[1], t, features[2])
    return {**losses, PART: other["mse"], "loss": losses["loss"] + weight * other["loss"]}


def on_noised(
    spec: ModelSpec, process: Noising, params: Params, x0: jax.Array, t: jax.Array, cond: Cond, noise: jax.Array,
    **options: Any,
) -> tuple[jax.Array, Taps]:  # fmt: skip
    """The network on noised images as `process` takes its output, and its taps."""
    taps: Taps = {}

    def network(x: jax.Array, t: jax.Array, cond: Cond) -> jax.Array:
        out, found = forward(spec, params, x, t, cond, **options)
        taps.update(found)
        return out

    out = as_called(spec.prediction, network)(process.q_sample(x0, t, noise), process.model_times(t), cond)
    return out, taps


def _noising(spec: ModelSpec, process: Noising | None) -> Noising:
    found = spec.prediction
    if found.time == "index" and (found.target, found.variance) != ("eps", True):
        raise BadInput(f"diffusion loss: {found}, expected noise and variance at times of a process, or a flow")
    return noising_for(spec, process)
