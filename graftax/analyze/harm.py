"""How much harm scions do: the error of the whole model's output when only some sites hold them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax import ops
from graftax.analyze.mixture import Mixture
from graftax.diffusion import Process
from graftax.distill.sites import check_pair, scion_sites
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.cost import runs
from graftax.models.stack import Params
from graftax.spec import ModelSpec
from graftax.surgery.select import Site
from graftax.train.loop import Batch


class Harm:
    """`harm(sites)`: ||student's output - teacher's|| / ||teacher's output|| when only `sites` hold the student's scions.

    Norms are over predicted noise and variance on one fixed held-out set of (x0, t, noise): the times cover the process
    evenly, one per image in an order drawn from `seed`, as is the noise. 0 is the teacher; a single site gives that site's
    own harm, several their joint harm. One program is compiled for all of them, whatever the depth.

    `student` holds distilled scions at every candidate site, by default `meta.sites`, over the teacher's weights. heldout:
    image (n, h, w, c), label (n,); images beyond a multiple of `batch_size` (or of n, if smaller) are left out. `sites`:
    the candidates, in order. Raises `BadInput` where the two models or the held-out set do not fit together.
    """

    def __init__(
        self, teacher: Model, student: Model, heldout: Batch, *, process: Process | None = None, seed: int = 0,
        batch_size: int = 64, dtype: DTypeLike | None = None,
    ) -> None:  # fmt: skip
        check_pair(teacher, student)
        self.sites = scion_sites(student, None)
        batches = noised_batches(teacher.spec, heldout, process or Process(), seed, batch_size)
        mixture = Mixture(teacher, student, self.sites, dtype)

        def squares(weights: Params, table: jax.Array, target: jax.Array, *inputs: jax.Array) -> jax.Array:
            return jnp.square(mixture.forward(weights, table, *inputs) - target).sum()

        self._mixture, self._squares = mixture, jax.jit(squares)
        predict = jax.jit(mixture.forward)
        teachers = mixture.table(())
        self._batches = [(predict(mixture.weights, teachers, *inputs), *inputs) for inputs in batches]
        self._norm = root_sum([jnp.square(target).sum() for target, *_ in self._batches])

    def __call__(self, sites: Iterable[Site]) -> float:
        """The joint harm of `sites`. Raises `BadInput` on one that is no candidate."""
        chosen = set(sites)
        if unknown := sorted(chosen - set(self.sites)):
            raise BadInput(
                f"site {unknown[0]}: the student has no scion there, expected some of its {len(self.sites)} sites"
            )
        table = self._mixture.table(chosen)
        return root_sum([self._squares(self._mixture.weights, table, *batch) for batch in self._batches]) / self._norm


def noised_batches(
    spec: ModelSpec, heldout: Batch, process: Process, seed: int, batch_size: int
) -> list[tuple[jax.Array, Any, Any]]:
    """A fixed held-out set as a model takes it, in batches: x_t (b, h, w, c), t (b,), y (b,).

    The times cover the process evenly, one per image in an order drawn from `seed`, as is the noise. heldout: image
    (n, h, w, c), label (n,); images beyond a multiple of `batch_size` (or of n, if smaller) are left out. Raises `BadInput`
    where it does not fit `spec`.
    """
    x0, y = np.asarray(heldout["image"], np.float32), np.asarray(heldout["label"], np.int32)
    shape = (spec.input_size, spec.input_size, spec.in_channels)
    if x0.shape[1:] != shape or not len(x0) or y.shape != x0.shape[:1] or batch_size < 1:
        raise BadInput(
            f"held-out set: images {x0.shape}, labels {y.shape}, batches of {batch_size}, expected (n, *{shape}) and "
            "(n,), n >= 1, in batches of 1 or more"
        )
    size = min(batch_size, len(x0))
    count = len(x0) // size * size
    rng = np.random.default_rng(seed)
    t = rng.permutation(((np.arange(count) + 0.5) / count * len(process)).astype(np.int32))
    noise = jnp.asarray(rng.standard_normal(x0[:count].shape, np.float32))
    x_t, t = process.q_sample(jnp.asarray(x0[:count]), jnp.asarray(t), noise), process.timestep_map[t]
    return [(x_t[i : i + size], t[i : i + size], y[i : i + size]) for i in range(0, count, size)]


def flops_saved(teacher: ModelSpec, student: ModelSpec, sites: Iterable[Site]) -> dict[Site, int]:
    """FLOPs per image and forward pass that each site saves when the student's operator takes the teacher's place.

    From the operators' closed forms (`Operator.cost`), times the runs of the block; negative where the scion costs more.
    """
    order = runs(teacher)

    def saved(site: Site) -> int:
        old, new = (ops.build(getattr(spec.blocks[site.block], site.slot), spec).cost() for spec in (teacher, student))
        return order.count(site.block) * (old.flops - new.flops)

    return {site: saved(site) for site in sites}


def root_sum(squares: list[jax.Array]) -> float:
    """Square root of a sum of () arrays, added up in float64."""
    return float(np.sqrt(np.sum(jax.device_get(squares), dtype=np.float64)))
