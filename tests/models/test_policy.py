"""Tokens around blocks, branches and blocks left out: reference values, every backbone, every plan, what is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from relatives import golden, nhwc, opened
from two_streams import SPECS

from graftax.backbones.auraflow import auraflow_spec
from graftax.backbones.ddt import ddt_spec
from graftax.backbones.dit import variant
from graftax.blocks import as_state
from graftax.errors import BadInput
from graftax.models import forward, param_shapes
from graftax.models.backbone import find
from graftax.models.cost import flops
from graftax.models.forward import embed, forward_prepared, prepare_params
from graftax.models.policy import PLAIN, Depth, Policy, Route
from graftax.models.routing import fill, pick
from graftax.models.stack import apply_stack
from graftax.ops import OPERATORS, build, resolve
from graftax.spec import Sizes, op
from graftax.surgery import compose, parallel, replace
from graftax.testing import random_params, tiny_spec, tiny_text_spec

TREAD = golden("tread")
KEY = jax.random.key(0)
NAMES = [
    name.removeprefix("routes.") for name in TREAD
    if name.startswith("routes.") and not name.endswith("to_last_3_6_r0.5")
]  # fmt: skip


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


def policy_of(name):
    return Policy(tuple(Route(int(i), int(j), float(rate)) for i, j, rate in TREAD[f"routes.{name}"]))


@functools.cache
def treads():
    """Outputs by name of route, in one compilation."""
    tread, y = opened("tread")[0], np.where(TREAD["label_dropped"] > 0, 10, TREAD["y"])
    x, uniforms = nhwc(TREAD["x"]), np.stack([TREAD["uniforms_0"], TREAD["uniforms_1"]], 1)

    @jax.jit
    def run(params, t):
        run = functools.partial(forward, tread.spec, params, x, t, {"y": y}, plan="scan")
        plain = run()[0]
        policies = {name: policy_of(name) for name in NAMES}
        draws = {name: {"routes": uniforms[:, : len(policy.routes)]} for name, policy in policies.items()}
        outs = {name: run(policy=policies[name], key=draws[name])[0] for name in NAMES if name != "single_2_4_r0.5"}
        outs["single_2_4_r0.5"], states = run(
            policy=policies["single_2_4_r0.5"], key=draws["single_2_4_r0.5"], states=(1, 4, 5)
        )
        return plain, outs, states

    return run(tread.params, TREAD["t"])


@pytest.mark.parametrize("name", NAMES)
def test_routes_are_the_references(name):
    assert relative(treads()[1][name], nhwc(TREAD[f"out.{name}"])) < 1e-5


def test_tokens_on_and_behind_a_route():
    plain, outs, states = treads()
    guided = 1.5 * plain - 0.5 * outs["single_2_4_r0.75"]
    assert relative(plain, nhwc(TREAD["out_plain"])) < 1e-5
    np.testing.assert_array_equal(outs["rate0_2_4"], plain)  # a route that nothing goes around is no route
    order = np.argsort(TREAD["ids_keep.single_2_4_r0.5.0"], axis=1)
    kept = np.take_along_axis(TREAD["kept_tokens_out_block4"], order[..., None], axis=1)
    assert relative(states["state/1"], TREAD["tokens_before_route"]) < 1e-5
    assert relative(states["state/4"], kept) < 1e-5
    assert states["state/5"].shape == (3, 16, 24)
    assert relative(guided, nhwc(TREAD["routed_guidance_w1p5"])) < 1e-5


# --- Stochastic depth --------------------------------------------------------------------------------------------------


def test_stochastic_depth_is_the_references():
    known = golden("stochastic_depth")
    sit = opened("sit")[0]
    np.testing.assert_allclose(Depth(float(known["p_max"])).rates(4), known["rates"], rtol=1e-6)
    sample = {"depth": known["keep_sample"].transpose(2, 0, 1) > 0}  # (depth, branches, b) -> (b, depth, branches)
    batch = {"depth": np.broadcast_to(known["keep_batch"] > 0, (4, 4))}
    cases = {
        "none": (PLAIN, None), "sample": (Depth(0.4), sample), "batch": (Depth(0.4, "batch"), batch),
        "batch_noscale": (Depth(0.4, "batch", rescale=False), batch),
    }  # fmt: skip

    @jax.jit
    def run(params):
        inputs = nhwc(known["x"]), known["t"], {"y": known["y"]}
        policies = {name: depth if name == "none" else Policy((), depth) for name, (depth, _) in cases.items()}
        return {
            name: forward(sit.spec, params, *inputs, policy=policies[name], key=draws, plan="scan")[0]
            for name, (_, draws) in cases.items()
        }

    for name, out in run(sit.params).items():
        assert relative(out[..., :4], nhwc(known[f"out.{name}"])) < 1e-5, name


def test_draws_depend_on_images_and_positions():
    spec = tiny_spec(depth=3)
    policy = Policy((Route(0, 0), Route(1, 1, 0.25)), Depth(0.5))
    draws = jax.jit(lambda key: policy.draw(spec, key, 400))(KEY)
    kept = [policy.kept(spec, draws, i) for i in range(3)]
    assert (kept[0].shape, kept[1].shape, kept[2]) == ((400, 8), (400, 12), None)
    assert (np.diff(kept[0], axis=1) > 0).all()
    assert 100 < np.sum(kept[0] == 3) < 300  # every token has its turn
    dropped = 1 - draws["depth"].mean((0, 2))
    np.testing.assert_allclose(dropped, [0, 0.25, 0.5], atol=0.06)
    batch = Policy((), Depth(0.5, "batch")).draw(spec, KEY, 4)["depth"]
    assert (batch == batch[0]).all()


# --- Every backbone, every plan ----------------------------------------------------------------------------------------

AURA = auraflow_spec(
    input_size=8, in_channels=4, hidden_size=24, num_heads=2, text_width=6, text_tokens=5, joint=2, single=2, positions=16
)
DDT = ddt_spec(input_size=8, hidden_size=16, depth=3, num_heads=2, encoder_blocks=1, num_classes=10)
BACKBONES = {"ddt": DDT, "pixart": tiny_text_spec(hidden_size=16, num_heads=2), "aura": AURA, **SPECS}


def inputs_of(spec, count=2):
    x = jax.random.normal(KEY, (count, *spec.image_shape))
    return x, jnp.full(count, 0.3), find(spec).example(spec, count)


def on_tokens_alone(spec, params, state, context, order):
    """The first block on the tokens `order` (k,) of a state of one image, as on an image that has no others."""
    rows = np.concatenate([np.arange(spec.sizes.text), spec.sizes.text + order])
    rope = None if context.rope is None else tuple(table[rows] for table in context.rope)
    sized = spec.replace(sizes=dataclasses.replace(spec.sizes, grid=(1, len(order))), program=spec.program[:1])
    context = dataclasses.replace(context, rope=rope)
    kept = {name: x if name == "txt" else x[:, order] for name, x in state.items()}
    return apply_stack(sized, params["blocks"], kept, context)[0]


@pytest.mark.parametrize(
    "name", ["flux", "sd3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pixart", "aura", "ddt"))]
)
def test_on_a_route_a_block_computes_what_it_computes_on_those_tokens_alone(name):
    """Their rotary positions follow, and a text is whole."""
    spec = BACKBONES[name]
    params, (x, t, cond) = random_params(spec, KEY), inputs_of(spec)
    policy = Policy((Route(0, 0, 0.5),))
    draws = policy.draw(spec, KEY, 2)
    order = np.asarray(policy.kept(spec, draws, 0))

    @jax.jit
    def run(params):
        _, taps = forward(spec, params, x, t, cond, policy=policy, key=draws, states=(0,))
        alone = []
        for i in range(2):
            one = {name: value[i : i + 1] for name, value in cond.items()}
            alone.append(on_tokens_alone(spec, params, *embed(spec, params, x[i : i + 1], t[i : i + 1], one), order[i]))
        return as_state(taps["state/0"]), jax.tree.map(lambda *parts: jnp.concatenate(parts), *alone)

    found, expected = run(params)
    assert found["img"].shape == (2, 8, spec.width)
    assert set(found) == set(expected)
    for stream, tokens in found.items():
        assert relative(tokens, expected[stream]) < 1e-5, stream


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "sd3", "pixart", "aura", "ddt"])
def test_gradients_reach_every_parameter(name):
    spec = BACKBONES[name]
    params, (x, t, cond) = random_params(spec, KEY), inputs_of(spec, 4)
    policy = Policy((Route(0, 0, 0.5),), Depth(0.3))

    def loss(params, policy):
        return jnp.sum(forward(spec, params, x, t, cond, policy=policy, key=KEY)[0] ** 2)

    plain, routed = (jax.jit(jax.grad(loss), static_argnums=1)(params, given) for given in (PLAIN, policy))
    for (path, a), b in zip(jax.tree.leaves_with_path(routed), jax.tree.leaves(plain), strict=True):
        assert np.isfinite(a).all()
        assert np.any(a) == np.any(b), jax.tree_util.keystr(path)


@pytest.mark.slow
@pytest.mark.parametrize("plan", ["unroll", "superblock", "segments", "kind_scan"])
def test_plans_agree(plan):
    edits = compose(replace("blocks[1::2].mixer", "swa", init="transplant"), parallel(6, 8))
    spec = edits.on(tiny_spec(hidden_size=16, num_heads=2, depth=8))
    params, (x, t, cond) = random_params(spec, KEY), inputs_of(spec, 4)
    t = 100 * t
    for mode in ("sample", "batch"):
        policy = Policy((Route(1, 2), Route(3, 4, 0.25)), Depth(0.5, mode))
        run = jax.jit(lambda params, plan, policy=policy: forward(
            spec, params, x, t, cond, policy=policy, key=KEY, plan=plan, states=(0, 3, 5)
        ), static_argnums=1)  # fmt: skip
        (out, taps), (expected, known) = run(params, plan), run(params, "auto")
        assert relative(out, expected) < 1e-5
        assert {name: tap.shape for name, tap in taps.items()} == {name: tap.shape for name, tap in known.items()}


def test_weights_prepared_for_a_policy_serve_plain_passes_too():
    spec = tiny_spec(hidden_size=16, num_heads=2, depth=7)
    policy, (x, t, cond) = Policy((Route(1, 5),)), inputs_of(spec)
    params = random_params(spec, KEY)
    prepared = prepare_params(spec, params, "scan", policy.cuts)
    run = jax.jit(functools.partial(forward_prepared, spec), static_argnames="policy")
    out = run(prepared, x, t, cond, policy=policy, key=KEY)[0]
    assert np.isfinite(out).all()
    assert relative(out, run(prepared, x, t, cond)[0]) > 1e-3
    with pytest.raises(BadInput, match=r"weights: prepared in one piece over position 1, expected .*cuts=policy\.cuts"):
        run(prepare_params(spec, params, "scan"), x, t, cond, policy=policy, key=KEY)


# --- What is refused ---------------------------------------------------------------------------------------------------


def test_what_makes_no_sense_is_refused_in_a_line():
    spec = tiny_spec(hidden_size=16, num_heads=2)
    params, inputs = random_params(spec, KEY), inputs_of(spec)
    for policy, words in {
        Policy((Route(2, 3),)): r"tread\(2, 3, 0\.5\): the program ends at position 3, expected a block behind the route",
        Policy((Route(2, 30),)): "expected a block behind the route",
    }.items():
        with pytest.raises(BadInput, match=words):
            forward(spec, params, *inputs, policy=policy, key=KEY)
    windows = replace("blocks[1].mixer", "swa_2d").on(spec)
    with pytest.raises(BadInput, match=r"tread\(1, 1, 0\.5\): blocks\[1\]\.mixer is swa_2d.*whole grid"):
        Policy((Route(1, 1),)).check(windows)
    with pytest.raises(BadInput, match="no key, expected one to draw from"):
        forward(spec, params, *inputs, policy=Policy((Route(1, 1),)))
    with pytest.raises(BadInput, match=r"capture: got .* with the policy"):
        forward(spec, params, *inputs, policy=Policy((Route(1, 1),)), key=KEY, capture=("block/out",))
    with pytest.raises(BadInput, match=r"tread\(1, 3, 0\.5\) and tread\(3, 5, 0\.5\) overlap"):
        Policy((Route(3, 5), Route(1, 3)))
    for make in (lambda: Route(3, 2), lambda: Route(1, 2, 1.0), lambda: Depth(1.0), lambda: Depth(0.1, "batches")):
        with pytest.raises(BadInput, match="expected"):
            make()


SIZES = Sizes(16, 2, 8, (4, 4))
NARROW = {"mlp_low_rank": {"rank": 4}}
"""Options of operators whose default is too wide for these."""
TOKENS = [op(kind, **NARROW.get(kind, {})) for kind, cls in OPERATORS.items() if cls.role in ("mixer", "channel")]


@pytest.mark.slow
def test_operators_that_depend_on_the_grid_say_so():
    """Those that do not compute the same on another grid of as many tokens: any that is run on some tokens must not."""
    x = jax.random.normal(KEY, (1, 16, 16))
    for one in (*TOKENS, op("mamba2", scan="cross"), op("gated_delta", scan="cross", conv=False)):
        full = resolve(one, OPERATORS[one.kind].role, SIZES)
        here, there = (build(full, sizes) for sizes in (SIZES, dataclasses.replace(SIZES, grid=(1, 16))))
        reads = dict.fromkeys(here.reads)
        weights = here.init(KEY, x, **reads)
        try:
            alike = relative(there.apply(weights, x, **reads), here.apply(weights, x, **reads)) < 1e-6
        except Exception:  # its weights do not even fit
            alike = False
        assert alike or here.needs_grid, one


def test_parting_and_filling_are_transposes():
    order = jnp.array([[0, 2, 3], [1, 2, 4]])
    at = jnp.arange(5)
    places = order, (order[:, :, None] < at).sum(1).clip(0, 2), (order[:, :, None] == at).any(1)
    x, y = jax.random.normal(KEY, (2, 5, 4)), jax.random.normal(KEY, (2, 3, 4))
    np.testing.assert_array_equal(pick(x, places), jnp.take_along_axis(x, order[..., None], 1))
    np.testing.assert_array_equal(pick(fill(y, places), places), y)
    np.testing.assert_allclose(jnp.vdot(pick(x, places), y), jnp.vdot(x, fill(y, places)), rtol=1e-6)
    np.testing.assert_array_equal(jax.vjp(lambda x: pick(x, places), x)[1](y)[0], fill(y, places))
    np.testing.assert_array_equal(jax.vjp(lambda y: fill(y, places), y)[1](x)[0], pick(x, places))


# --- What it saves -----------------------------------------------------------------------------------------------------

TREAD_XL = Policy((Route(2, 24, 0.5),))


def test_what_is_left_out_is_not_counted():
    """TREAD's routes of DiT-XL/2 and DiT-B/2; blocks dropped with up to a half save a quarter."""
    xl, b = variant("DiT-XL/2"), variant("DiT-B/2")
    assert flops(xl, policy=TREAD_XL) / flops(xl) == pytest.approx(0.583, abs=5e-4)
    assert flops(b, policy=Policy((Route(2, 8, 0.5),))) / flops(b) == pytest.approx(0.701, abs=5e-4)
    assert flops(xl, policy=Policy((), Depth(0.5, "batch"))) / flops(xl) == pytest.approx(0.75, abs=1e-3)
    assert flops(xl, policy=Policy((), Depth(0.5))) == flops(xl)


def step_flops(spec, policy, count=2):
    """XLA's count of a training step, of shapes alone."""
    shapes = param_shapes(spec)
    x = jax.ShapeDtypeStruct((count, *spec.image_shape), jnp.float32)

    def loss(params, x, key):
        t, cond = jnp.full(count, 3), {"y": jnp.zeros(count, int)}
        return jnp.mean(forward(spec, params, x, t, cond, policy=policy, key=key, plan="unroll")[0] ** 2)

    lowered = jax.jit(jax.grad(loss)).lower(shapes, x, jax.eval_shape(lambda: KEY))
    return lowered.cost_analysis()["flops"] / count


@pytest.mark.parametrize(
    ("spec", "policy", "share"),
    [
        (tiny_spec(input_size=16, hidden_size=288, depth=7), Policy((Route(1, 5, 0.5),)), None),
        pytest.param(variant("DiT-XL/2"), TREAD_XL, 0.583, marks=pytest.mark.slow),
    ],
)
def test_the_compiler_counts_the_same_share(spec, policy, share):
    found = step_flops(spec, policy) / step_flops(spec, PLAIN)
    assert found == pytest.approx(share or flops(spec, policy=policy) / flops(spec), abs=5e-3)
