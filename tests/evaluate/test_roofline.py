"""Counted costs: closed forms against XLA's own count at DiT-XL/2's size, bytes and bounds by hand, kept activations."""

import math

import jax
import jax.numpy as jnp
import pytest

from graftax.backbones.dit import variant
from graftax.backbones.pixart import variant as pixart
from graftax.evaluate.bench.timing import Timing
from graftax.evaluate.latency import latencies, seconds_per_image
from graftax.evaluate.roofline import WHOLE, distinct_operators, inputs_of, predicted_speedup, roofline, saved_bytes
from graftax.models import Model, forward, param_shapes
from graftax.models.cost import count_params, flops
from graftax.ops import OPERATORS, build, resolve
from graftax.ops.base import shapes_of
from graftax.ops.clear import Clear, visible_pairs
from graftax.ops.delta import CHUNK
from graftax.ops.joint_swa_2d import JointSWA2D
from graftax.ops.swa_2d_normed import SWA2DNormed
from graftax.ops.tiles import TILE, window_on
from graftax.ops.window_2d import SWA2D
from graftax.spec import Sizes, Step, op
from graftax.surgery import replace
from graftax.testing import random_params, tiny_spec
from graftax.train.chips import CHIPS, Chip

XL = variant("DiT-XL/2")


def counted_otherwise(kind):
    """What XLA counts beyond the definition, in closed form: whole tiles around each window; pairs outside of discs; three
    real FFTs of s points, at 8 log2 s for each point that goes in (s, s, s / 2 + 1), where the textbook has 2.5 s log2 s."""
    if kind in ("swa_2d", "swa_2d_normed", "natten", "natten_normed"):
        window = SWA2D.options()["window"]
        return 4 * XL.width * XL.tokens * ((TILE + 2 * window) ** 2 - (2 * window + 1) ** 2)
    if kind in ("clear", "clear_normed"):  # one dense matrix at this size
        hidden = XL.tokens**2 - visible_pairs(XL.sizes.grid, Clear.options()["radius"])
        return hidden * (4 * XL.width + 2 * XL.sizes.heads)
    if kind == "moe":  # CPUs run experts that are not asked, too
        operator = OPERATORS[kind](XL.sizes)
        return (operator.experts - operator.top) * 4 * XL.tokens * XL.width * operator.hidden
    if kind == "gated_delta":  # a loop over chunks counts once
        operator = OPERATORS[kind](XL.sizes)
        return -operator.core() * (1 - CHUNK / XL.tokens)
    if kind == "hyena_long":
        size = 2 * XL.tokens
        return XL.width * math.log2(size) * (8 * (2 * size + size // 2 + 1) - 3 * 2.5 * size)
    return 0


@pytest.mark.parametrize("kind", [kind for kind, cls in OPERATORS.items() if cls.role in ("mixer", "channel")])
def test_flops_of_every_operator_agree_with_xla(kind):
    slot = {"mixer": "mixer", "channel": "mlp"}[OPERATORS[kind].role]
    (at,) = (at for at in distinct_operators(replace(f"blocks[*].{slot}", kind).on(XL)) if at.slot == slot)
    inputs = at.inputs(1, jax.ShapeDtypeStruct)
    counted = jax.jit(at.run(None)).lower(shapes_of(at.operator(None)), inputs).cost_analysis()["flops"]
    assert (counted - counted_otherwise(kind)) / at.operator(None).cost().flops == pytest.approx(1, abs=0.02)


WITH_TEXT = Sizes(1152, 16, 72, (8, 32), text=64)  # one strip of tiles, as a loop counts once


@pytest.mark.parametrize("scion", [
    *(op(kind, text_out=answers) for kind in ("joint_hyena_2d", "joint_swa_2d") for answers in (True, False)),
    *map(op, ("hyena_2d", "swa_2d", "swa_2d_normed", "natten", "natten_normed", "joint_natten")),
], ids=str)  # fmt: skip
def test_flops_on_the_grid_behind_a_text_agree_with_xla(scion):
    operator = build(resolve(scion, OPERATORS[scion.kind].role, WITH_TEXT), WITH_TEXT)
    inputs, reads = operator.example()
    compute = jax.jit(lambda params, *inputs: operator.apply({"params": params}, *inputs, **reads))
    counted = compute.lower(shapes_of(operator), *inputs).cost_analysis()["flops"]
    if isinstance(operator, (SWA2D, SWA2DNormed, JointSWA2D)):  # tiles meet more than a query sees
        hidden = window_on(WITH_TEXT.grid, operator.window).met - (2 * operator.window + 1) ** 2
        counted -= WITH_TEXT.image * hidden * 4 * WITH_TEXT.width
    assert counted / operator.cost().flops == pytest.approx(1, abs=0.02)


def test_flops_of_dit_xl_2_agree_with_xla():
    x, t, cond = jax.eval_shape(lambda: inputs_of(XL, 1))
    run = jax.jit(lambda params, x, t, cond: forward(XL, params, x, t, cond, plan="unroll")[0])
    counted = run.lower(param_shapes(XL), x, t, cond).cost_analysis()["flops"]
    assert counted / flops(XL) == pytest.approx(1, abs=0.02)


def test_rows_add_up_and_follow_the_program():
    spec = tiny_spec()
    mixer, mlp, whole = roofline(spec, 2, jnp.float32)
    assert (mixer.name, mlp.name, whole.name) == ("mixer mha", "mlp mlp(ratio=4.0)", WHOLE)
    assert whole.params == count_params(spec)
    assert whole.flops == 2 * flops(spec)
    tokens = 2 * spec.tokens * spec.width
    assert mixer.least_bytes == 4 * (mixer.params + spec.depth * 2 * tokens)
    looped = roofline(spec.replace(program=(Step((0,), loops=3), Step((1,)))), 2, jnp.float32)[0]
    assert (looped.flops, looped.count) == (mixer.flops, 4)  # four runs, four blocks
    half = roofline(spec, 2, jnp.bfloat16)[0]
    assert half.least_bytes * 2 == mixer.least_bytes


@pytest.mark.slow
def test_the_roof_has_two_sides():
    work = roofline(tiny_spec(), 1)[0]
    wide = Chip("wide", (), 1e6, 0, 1e30)
    narrow = Chip("narrow", (), 1e30, 0, 1e6)
    assert (work.bound(wide), work.bound(narrow)) == ("compute", "memory")
    assert work.seconds(wide) == pytest.approx(work.flops / 1e6)
    assert work.seconds(narrow) == pytest.approx(work.least_bytes / 1e6)
    assert work.seconds(CHIPS["v5e"]) > 0


@pytest.mark.slow
def test_what_half_of_the_mixers_may_gain_at_16384_tokens():
    """The grafting paper's graft of PixArt-Sigma (layers 8, 10, ..., 20 to 27; 1.43 x, measured): all of it is bound by
    arithmetic, so FLOPs tell."""
    before = pixart("pixart-sigma-2048")
    after = replace("blocks[8,10,12,14,16,18,20:28].mixer", "hyena_x").on(before)
    for chip in ("v5e", "v6e", "h100"):
        assert 1.43 < predicted_speedup(before, after, CHIPS[chip]) < flops(before) / flops(after) * 1.01 < 1.6
    assert predicted_speedup(before, before, CHIPS["v5e"]) == 1


def test_kept_activations_are_those_of_the_definition():
    def fn(w, x):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    w, x = jax.ShapeDtypeStruct((6, 5), jnp.float32), jax.ShapeDtypeStruct((4, 6), jnp.float32)
    # tanh keeps one array and the square one factor of it, (4, 5) floats each; inputs and weights do not count.
    assert 4 * 5 * 4 <= saved_bytes(fn, w, x) <= 3 * 4 * 5 * 4
    assert saved_bytes(lambda w, x: x @ w, w, x) == 0


def test_latencies_time_every_kind_of_operator_and_block():
    spec = replace("blocks[1:].mixer", "hyena_x", kernel=4).on(tiny_spec(depth=3))
    times = latencies(Model(spec, random_params(spec, jax.random.key(0))), batch=2, rounds=3)
    assert list(times) == ["mixer mha", "mixer hyena_x(kernel=4)", "mlp mlp(ratio=4.0)", "block 0", "block 1,2", WHOLE]
    assert all(len(timing.seconds) == 3 and timing.best > 0 for timing in times.values())
    assert seconds_per_image(Timing((1.0, 2.0, 3.0)), batch=4, steps=50, guided=True) == 50.0
