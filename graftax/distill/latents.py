"""A model's first and last layer for the latents of another autoencoder, by least squares: no gradient steps.

`graftax.patch(1, channels=32)` leaves both at zero; pictures that both autoencoders have encoded say what they should be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from graftax.data.feed import as_batches
from graftax.diffusion import Noising
from graftax.distill.normal_equations import RIDGE, Sums, accumulate, solve, zeros
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.arguments import as_key
from graftax.models.backbone import find
from graftax.models.forward import embed, prepare_params
from graftax.models.prediction import as_called, network_times
from graftax.models.routing import patches
from graftax.models.stack import run_stack
from graftax.progress import Progress
from graftax.surgery.patch import EMBEDDER, HEAD
from graftax.train.loop import Batch, Batches
from graftax.train.noising import noising_for

TIME, NOISE = range(2)  # streams of a step's key

TEACHER = "teacher"
"""Of a batch, the latents that the teacher knows."""

Step = Callable[[Sums, Batch, jax.Array], Sums]


def fit_latents(
    teacher: Model, student: Model, data: Any, steps: int, *, process: Noising | None = None,
    rng: jax.Array | None = None, ridge: float = RIDGE, show: bool = True,
) -> Model:  # fmt: skip
    """The student with its embedder and last layer fitted to latents that the teacher does not know.

    `data`: an iterable of batches, or what resumes (`graftax.data.feed.as_batches`), that hold of the same pictures the
    student's latents "image" (b, h, w, c), the teacher's "teacher" (b, h', w', c'), as many tokens, and "label" (b,) or what
    else the model is conditioned on. Of the next `steps` batches, twice:

    1. the embedder maps a token's new latents to what the teacher makes of the old ones, without their bias, so that it
       holds at every noise level; then
    2. the last layer maps what the student's blocks give at random times, on its own noised latents, to what its training
       wants of them (the noise, the velocity). Variances come out as 0, in the middle of their range.

    All other leaves are the same objects. Raises `BadInput` where the models have other tokens or widths, on batches without
    "teacher", and where the data end.
    """
    for name in ("backbone", "width", "tokens"):
        ours, theirs = getattr(student.spec, name), getattr(teacher.spec, name)
        if ours != theirs:
            raise BadInput(f"student {name}: {ours}, expected the teacher's {theirs}")
    batches, key = as_batches(data, 0), jax.random.key(0) if rng is None else as_key(rng)
    start = batches.state()
    old, new = (jnp.asarray(model.params[EMBEDDER]["kernel"]) for model in (teacher, student))

    def pairs(sums: Sums, batch: Batch, key: jax.Array) -> Sums:
        rows = batch[TEACHER], batch["image"]
        theirs, ours = (patches(x.astype(jnp.float32), len(kernel)) for x, kernel in zip(rows, (old, new), strict=True))
        return accumulate(sums, ours, theirs @ old.reshape(-1, old.shape[-1]))

    kernel, _ = _fitted(pairs, zeros(new[..., 0].size, old.shape[-1]), batches, steps, key, "embedder", ridge, show, False)
    embedder = {"kernel": jnp.asarray(kernel).reshape(new.shape), "bias": teacher.params[EMBEDDER]["bias"]}
    student = student.replace(params={**student.params, EMBEDDER: embedder})
    batches.restore(start)
    shape = student.params[HEAD[0]][HEAD[1]]["kernel"].shape
    step = _answers(student, noising_for(student.spec, process))
    kernel, bias = _fitted(step, zeros(*shape), batches, steps, key, "last layer", ridge, show, True)
    final = {**student.params[HEAD[0]], HEAD[1]: {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)}}
    return student.replace(params={**student.params, HEAD[0]: final})


def _fitted(
    step: Step, sums: Sums, batches: Batches, steps: int, key: jax.Array, label: str, ridge: float, show: bool,
    intercept: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The least-squares map of what `step` sums up over the next batches: kernel and bias."""
    step = jax.jit(step)
    with Progress(steps, label, unit="batch", show=show) as progress:
        for i in range(steps):
            batch = next(batches, None)
            if batch is None or TEACHER not in batch:
                found = "the data ended" if batch is None else f"a batch is {sorted(batch)}"
                raise BadInput(f"fit_latents: {found} at {i} of {steps}, expected image and {TEACHER} in every one")
            sums = step(sums, batch, jax.random.fold_in(key, i))
            progress.advance()
    return solve(sums, ridge, intercept)


def _answers(student: Model, process: Noising) -> Step:
    """A step that adds up what enters the last layer (b, n, d), and what should come out (b, n, p p c)."""
    spec, backbone = student.spec, find(student.spec)
    prepared = prepare_params(spec, student.params)

    def step(sums: Sums, batch: Batch, key: jax.Array) -> Sums:
        x0, cond = batch["image"], dict(backbone.condition(batch))
        t = process.draw(jax.random.fold_in(key, TIME), len(x0))
        noise = jax.random.normal(jax.random.fold_in(key, NOISE), x0.shape)
        x_t, times = process.q_sample(x0, t, noise), network_times(spec.prediction, process.model_times(t))
        state, context = embed(spec, prepared, x_t, times, cond)
        state, _ = run_stack(spec, prepared["blocks"], state, context)
        features: list[jax.Array] = []

        def error(answer: jax.Array) -> jax.Array:
            """Half the squared error where the last layer's output is `answer`."""

            def instead(call: Any, inputs: tuple[Any, ...], keywords: Any, context: nn.module.InterceptorContext) -> Any:
                if context.module.name != HEAD[1]:
                    return call(*inputs, **keywords)
                features[:] = inputs
                return answer

            with nn.intercept_methods(instead):
                out = backbone.head(spec, prepared, state, context, None)
            called = as_called(spec.prediction, lambda *_: out)(x_t, t, cond)
            return process.training_losses(called, x0, t, noise)["mse"].sum() * x0[0].size / 2

        silent = jnp.zeros((*state["img"].shape[:2], sums.total_y.shape[0]))
        wanted = -jax.grad(error)(silent)  # of a squared error, at zero
        return accumulate(sums, jax.lax.stop_gradient(features[0]), wanted)

    return step
