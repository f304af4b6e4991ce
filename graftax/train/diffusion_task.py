"""The DiT objective as a loss for the training loop, and the same objective on held-out data, always in one way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike, DTypeLike

from graftax.diffusion import Process
from graftax.errors import BadInput
from graftax.models import forward
from graftax.models.collect import collect
from graftax.spec import ModelSpec
from graftax.train.loop import Batch, Metrics
from graftax.train.sharding import RULES, AxisRules, activations, place_batch
from graftax.train.state import Params, split

TIME, NOISE, DROP = range(3)  # streams of a step's key


def diffusion_loss(
    spec: ModelSpec, process: Process, *, class_dropout: float = 0.1, dtype: DTypeLike | None = None,
    plan: str = "auto", remat: str = "none",
) -> DiffusionLoss:  # fmt: skip
    """`loss_fn(params, batch, key) -> (() loss, {"mse", "vb"})` of class-conditional diffusion training.

    `params` plain or collected; batch: image (b, h, w, c) clean data, label (b,) int. t is uniform over the steps of
    `process`; a label becomes the null class with probability `class_dropout` (classifier-free guidance,
    arXiv 2207.12598; 0.1 in DiT, arXiv 2212.09748). `dtype`, `plan`, `remat` as in `graftax.models.forward`.

    Raises BadInput if `class_dropout` is no probability or the model does not learn its variance.
    """
    if not 0 <= class_dropout <= 1:
        raise BadInput(f"class_dropout: got {class_dropout!r}, expected a probability in [0, 1]")
    _require_sigma(spec)
    return DiffusionLoss(spec, process, class_dropout, {"dtype": dtype, "plan": plan, "remat": remat})


@dataclass(frozen=True)
class DiffusionLoss:
    """What `diffusion_loss` returns: the loss, in one call or with its random numbers drawn beforehand."""

    spec: ModelSpec
    process: Process
    class_dropout: float
    options: Mapping[str, Any]

    def __call__(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return self.given(params, self.draw(batch, key))

    def draw(self, batch: Batch, key: jax.Array) -> Batch:
        """The batch with t (b,) int, noise (b, h, w, c), and the null class where it is dropped."""
        label = batch["label"]
        t = jax.random.randint(jax.random.fold_in(key, TIME), label.shape, 0, len(self.process))
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), batch["image"].shape)
        drop = jax.random.bernoulli(jax.random.fold_in(key, DROP), self.class_dropout, label.shape)
        return {**batch, "t": t, "noise": noise, "label": jnp.where(drop, self.spec.num_classes, label)}

    def given(self, params: Params, batch: Batch) -> tuple[jax.Array, Metrics]:
        """Loss and metrics of a batch that `draw` made."""
        inputs = (batch[name] for name in ("image", "t", "label", "noise"))
        losses = _losses(self.spec, self.process, params, *inputs, **self.options)
        return jnp.mean(losses["loss"]), {name: jnp.mean(losses[name]) for name in ("mse", "vb")}


def training_tree(spec: ModelSpec, params: Params, frozen: Sequence[str] = ()) -> Params:
    """`params` as a training state should hold them: blocks collected, unless `frozen` names leaves inside blocks.

    Collected blocks keep the compiled step small (`graftax.models.collect`), but the leaves of one stack can only be
    trained or frozen together. `spread` gives the plain tree back. Raises BadInput where `split` does.
    """
    return params if "blocks" in split(params, frozen)[1] else collect(spec, params)


def heldout_loss(
    spec: ModelSpec, process: Process, images: ArrayLike, labels: ArrayLike, *, seed: int = 0, batch_size: int = 256,
    dtype: DTypeLike | None = None, plan: str = "auto", mesh: Mesh | None = None, rules: AxisRules = RULES,
) -> Callable[[Params], dict[str, float]]:  # fmt: skip
    """A function of parameters: {"loss", "mse", "vb"}, means over a fixed set of (x0, t, noise), nothing dropped.

    images (n, h, w, c) clean data and labels (n,). The times cover 0 .. len(process) - 1 evenly, one per image in an
    order drawn from `seed`, as is the noise: two parameter sets are compared on the same sum, with little variance
    from t. Images beyond a multiple of `batch_size` (or of n, if smaller) are left out. With a `mesh` the parameters lie on
    it, and images are split over it where their number divides.

    Raises BadInput if there are no images or labels do not fit them, or if the model does not learn its variance.
    """
    _require_sigma(spec)
    x0, y = np.asarray(images, np.float32), np.asarray(labels, np.int32)
    if x0.ndim != 4 or not len(x0) or y.shape != x0.shape[:1]:
        raise BadInput(f"held-out set: images {x0.shape}, labels {y.shape}, expected (n, h, w, c) and (n,), n >= 1")
    if batch_size < 1:
        raise BadInput(f"held-out set: batch_size {batch_size}, expected 1 or more")
    size = min(batch_size, len(x0))
    count = len(x0) // size * size
    rng = np.random.default_rng(seed)
    t = rng.permutation(((np.arange(count) + 0.5) / count * len(process)).astype(np.int32))
    noise = rng.standard_normal(x0[:count].shape, np.float32)

    @jax.jit
    def losses(params: Params, x0: jax.Array, t: jax.Array, y: jax.Array, noise: jax.Array) -> dict[str, jax.Array]:
        with activations(mesh, rules):
            inputs = place_batch((x0, t, y, noise), mesh)
            found = _losses(spec, process, params, *inputs, dtype=dtype, plan=plan, remat="none")
        return {name: jnp.mean(value) for name, value in found.items()}

    def evaluate(params: Params) -> dict[str, float]:
        parts = [slice(i, i + size) for i in range(0, count, size)]
        found = jax.device_get([losses(params, x0[p], t[p], y[p], noise[p]) for p in parts])
        return {name: float(np.mean([part[name] for part in found])) for name in found[0]}

    return evaluate


def _losses(
    spec: ModelSpec, process: Process, params: Params, x0: jax.Array, t: jax.Array, y: jax.Array, noise: jax.Array,
    **options: Any,
) -> dict[str, jax.Array]:  # fmt: skip
    x_t = process.q_sample(x0, t, noise)
    out, _ = forward(spec, params, x_t, jnp.asarray(process.timestep_map)[t], y, **options)
    return process.training_losses(out, x0, t, noise)


def _require_sigma(spec: ModelSpec) -> None:
    if not spec.learn_sigma:
        raise BadInput("diffusion loss: learn_sigma is False, expected a model that predicts noise and variance")
