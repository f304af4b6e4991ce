"""A whole model with its published operators and with grafted ones, on random weights of its true size."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from graftax.backbones.zoo import spec_of
from graftax.errors import BadInput, did_you_mean
from graftax.evaluate.bench.rows import Row, Rows
from graftax.evaluate.bench.timing import interleaved, load, temp_mb
from graftax.evaluate.roofline import inputs_of
from graftax.models import Model, random_params
from graftax.models.arguments import as_float_type
from graftax.models.cost import count_params, flops
from graftax.models.forward import forward_prepared, prepare_params
from graftax.surgery import graft, parse

HALF = "blocks[8:20:2,20:28].mixer"
"""The paper's choice of PixArt-Sigma's blocks (arXiv 2506.05340, Section 6)."""


def bench_model(
    model: str = "pixart-sigma-2048", edits: tuple[str, ...] = (f"{HALF}=hyena_x(kernel=4)",), batch: int = 1,
    rounds: int = 1, dtype: str = "float32",
) -> Rows:  # fmt: skip
    """One forward pass of a published model, then of what each of `edits` makes of it, on random weights.

    Columns: model, parameters, tflop (of the pass), forward_s (median), faster (the published model's time over its own,
    median over rounds), flops_ratio (likewise of FLOPs), temp_mb (temporaries of the compiled pass), spread, load. Raises
    `BadInput` on unknown names and on edits that do not fit.
    """
    spec = spec_of(model)
    if spec is None:
        from graftax.backbones.zoo import names

        raise BadInput(f"bench model {model!r}: not known, expected a published model{did_you_mean(model, names())}")
    kind = as_float_type(dtype)
    teacher = Model(spec, random_params(spec, jax.random.key(0)))
    students = {edit: graft(teacher, parse(edit), jax.random.key(1)) for edit in edits}
    runs, rows = {}, list[Row]()
    for name, one in {"as published": teacher, **students}.items():
        x, t, cond = inputs_of(one.spec, batch)
        prepared = prepare_params(one.spec, one.params, "unroll")
        run = jax.jit(functools.partial(forward_prepared, one.spec, dtype=kind)).lower(prepared, x, t, cond).compile()
        runs[name] = functools.partial(run, prepared, x, jnp.asarray(t), cond)
        counts = {"parameters": count_params(one.spec), "tflop": batch * flops(one.spec) / 1e12}
        rows.append({"model": name, **counts, "flops_ratio": flops(spec) / flops(one.spec), "temp_mb": temp_mb(run)})
    before, times = load(), interleaved(runs, rounds, 0 if rounds == 1 else 1)
    first = times["as published"]
    for row in rows:
        time = times[row["model"]]
        row |= {"forward_s": time.median, "faster": time.over(first), "spread": time.spread, "load": before}
    return [{key: row[key] for key in _COLUMNS} for row in rows]


_COLUMNS = ("model", "parameters", "tflop", "forward_s", "faster", "flops_ratio", "temp_mb", "spread", "load")
