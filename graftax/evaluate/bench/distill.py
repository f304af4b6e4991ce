"""Stage 1 for all sites in one step against one step per site, each with its own pass of the teacher."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from graftax.backbones.dit import dit_spec
from graftax.diffusion import Process
from graftax.distill import DistillConfig, create_state, make_distill_step
from graftax.distill.groups import group_sites
from graftax.distill.teacher import Teacher
from graftax.evaluate.bench.rows import Rows
from graftax.evaluate.bench.timing import interleaved, load
from graftax.models import Model, random_params
from graftax.surgery import Site, graft, replace, select
from graftax.train.loop import Metrics


class _Training:
    """Stage 1 at some sites; each call is one update, on the same batch and a new key. Keeps the loss of the last one."""

    def __init__(
        self, teacher: Model, student: Model, sites: Sequence[Site], batch: int, config: DistillConfig, method: str
    ) -> None:
        spec = teacher.spec
        self.state = create_state(student.spec, student.params, sites, config)
        self.prepared = Teacher(spec, group_sites(student.spec, sites), Process(), config).prepare(teacher.params)
        self.step = make_distill_step(spec, student.spec, sites, Process(), config, method=method)
        rng = np.random.default_rng(0)
        self.batch = {
            "image": rng.standard_normal((batch, *spec.image_shape), np.float32),
            "label": rng.integers(0, spec.classes, batch).astype(np.int32),
        }
        self.updates, self.loss = 0, 0.0

    def __call__(self) -> Metrics:
        key = jax.random.fold_in(jax.random.key(0), self.updates)
        self.state, metrics = self.step(self.state, self.prepared, self.batch, key)
        self.updates, self.loss = self.updates + 1, metrics["loss"]
        return metrics


def bench_distill(
    depth: int = 28, width: int = 256, heads: int = 4, grid: int = 8, batch: int = 16, selector: str = "blocks[1::2].mixer",
    kind: str = "hyena_x", plan: str = "unroll", methods: Sequence[str] = ("auto",), stopping: bool = True, rounds: int = 5,
) -> Rows:  # fmt: skip
    """One joint step of stage 1 against single-site steps, on a DiT of `depth` blocks with grid * grid tokens.

    The rivals run the same code on one site at a time. `ratio`: joint step over as many steps as there are sites, each
    with a whole pass of the teacher (the step of the last site, times the sites). `ratio_stopping` (None unless
    `stopping`): over the steps of all sites, each with a teacher that stops at its site; this needs one more compilation
    per site. `loss` and `loss_single`: mean over sites after the same number of updates, which must agree. `methods` are
    those of `graftax.distill.groups.over_sites`, one row each.

    Columns: plan, method, width, tokens, batch, sites, joint_ms, last_site_ms (medians), ratio, ratio_stopping, loss,
    loss_single, spread, load. Raises `BadInput` on operators and selectors that do not fit the model.
    """
    spec = dit_spec(input_size=2 * grid, patch_size=2, hidden_size=width, depth=depth, num_heads=heads, num_classes=10)
    teacher = Model(spec, random_params(spec, jax.random.key(0)))
    student = graft(teacher, replace(selector, kind), jax.random.key(1))
    sites, config = select(selector, spec), DistillConfig(plan=plan)

    def training(chosen: Sequence[Site], method: str = "auto") -> _Training:
        return _Training(teacher, student, chosen, batch, config, method)

    joint = {method: training(sites, method) for method in methods}
    last, single = training(sites[-1:]), [training([site]) for site in sites] if stopping else []
    candidates = {**joint, "last": last, "single": lambda: [step() for step in single]}
    before, times = load(), interleaved(candidates, rounds)
    return [
        {
            "plan": plan, "method": method, "width": width, "tokens": grid * grid, "batch": batch, "sites": len(sites),
            "joint_ms": 1e3 * times[method].median, "last_site_ms": 1e3 * times["last"].median,
            "ratio": times[method].over(times["last"]) / len(sites),
            "ratio_stopping": times[method].over(times["single"]) if single else None,
            "loss": float(joint[method].loss),
            "loss_single": float(np.mean([step.loss for step in single])) if single else None,
            "spread": times[method].spread, "load": before,
        }
        for method in methods
    ]  # fmt: skip
