"""Nothing generic knows how many streams or kinds of blocks a model has: a toy of two of each goes through everything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.distill import DistillConfig
from graftax.distill.stage1 import distill
from graftax.errors import BadInput
from graftax.models import Model, Network, forward, param_shapes
from graftax.models.collect import collect, one_block, spread
from graftax.models.cost import count_params, flops
from graftax.models.library import Library
from graftax.models.plans import segments
from graftax.models.stack import tap_names, tap_runs
from graftax.spec import ModelSpec, op
from graftax.surgery import (
    compose,
    drop,
    graft,
    inverse,
    lora,
    parallel,
    parallel_pairs,
    random_order,
    replace,
    resize,
    reverse,
    select,
    skip,
)
from graftax.testing import assert_same_leaves, assert_trees_close, random_params
from graftax.testing.toy import ToySingle, toy_spec
from graftax.train import DiffusionConfig, LoopConfig, OptimiserConfig
from graftax.train.finetune import finetune

SPEC = toy_spec(joint=2, single=3)
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X, T, Y = RNG.standard_normal((2, 8, 8, 4), np.float32), np.array([3, 700]), np.array([1, 10])
DATA = {"image": RNG.standard_normal((8, 8, 8, 4), np.float32), "label": np.arange(8)}
TAPS = tap_names(SPEC)


@functools.cache
def model():
    return Model(SPEC, random_params(SPEC, KEY))


@functools.cache
def grafted():
    """Two other mixers in the single blocks, an image MLP of another width, new attention in the second block."""
    edit = compose(
        replace("toy_single[1:].mixer", "hyena_x"), resize("toy_joint[0].img/mlp", 3),
        replace("toy_joint[1].attn", "toy_joint_mha"),
    )  # fmt: skip
    return graft(model(), edit, KEY)


@functools.cache
def passed(spec, plan):
    params = (model() if spec == SPEC else grafted()).params
    return jax.jit(lambda params: forward(spec, params, X, T, {"y": Y}, plan=plan, capture=TAPS))(params)


def assert_near(found, expected, tolerance=1e-6):
    """Trees whose leaves differ by less than `tolerance` of their length."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), jax.tree_util.keystr(path)


# --- Plans and taps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [pytest.param("segments", marks=pytest.mark.slow), "kind_scan"])
def test_plans_agree(plan):
    modes = {"segments": ["unroll", "unroll", "unroll", "periodic"], "kind_scan": ["kinds", "kinds"]}
    assert [segment.mode for segment in segments(grafted().spec, plan)] == modes[plan]
    assert_near(passed(grafted().spec, plan), passed(grafted().spec, "unroll"))


@pytest.mark.slow
def test_long_models_are_scanned_without_being_told():
    """A pattern of two in six single blocks; joint blocks that are too few for a loop unless it is asked for."""
    spec = replace("toy_single[1::2].mixer", "hyena_x").on(toy_spec(joint=2, single=6))
    params = random_params(spec, KEY)
    run = jax.jit(lambda plan: forward(spec, params, X, T, {"y": Y}, plan=plan, capture=TAPS), static_argnums=0)
    cuts = {plan: [(s.mode, s.period) for s in segments(spec, plan)] for plan in ("auto", "superblock")}
    assert cuts == {"auto": [("unroll", 1), ("periodic", 2)], "superblock": [("periodic", 1), ("periodic", 2)]}
    for plan in cuts:
        assert_near(run(plan), run("unroll"))


@pytest.mark.slow
def test_scans_are_cut_where_the_kind_changes():
    assert [(s.mode, s.ids) for s in segments(SPEC, "scan")] == [("periodic", (0, 1)), ("periodic", (2, 3, 4))]
    mixed = reverse(1, 4).on(SPEC)
    assert [s.ids for s in segments(mixed, "scan")] == [(0,), (3, 2), (1,), (4,)]
    assert_near(passed(SPEC, "scan"), passed(SPEC, "unroll"))


def test_taps_are_arrays_or_dicts_of_streams_and_have_the_rows_of_their_kind():
    _, taps = passed(SPEC, "unroll")
    shapes = jax.tree.map(jnp.shape, taps)
    both = {"img": (16, 16), "txt": (5, 16)}
    assert shapes["attn/in"] == shapes["attn/out"] == {name: (2, 2, *shape) for name, shape in both.items()}
    assert shapes["block/in"] == shapes["block/out"] == {name: (5, 2, *shape) for name, shape in both.items()}
    assert (shapes["img/mlp/in"], shapes["txt/mlp/out"]) == ((2, 2, 16, 16), (2, 2, 5, 16))
    assert shapes["mixer/in"] == shapes["mlp/out"] == (3, 2, 21, 16)
    assert (tap_runs(SPEC, "attn/in"), tap_runs(SPEC, "mixer/in")) == ((0, 1), (2, 3, 4))
    assert tap_runs(skip(1, 3).on(SPEC), "mixer/in") == (3, 4)
    assert tap_runs(reverse(0, 5).on(SPEC), "block/out") == (4, 3, 2, 1, 0)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1:], b[:-1]), taps["block/in"], taps["block/out"])


def test_the_context_reaches_what_reads_it():
    """A joint attention whose gain does not listen to the vector computes something else."""
    blocks = dict(model().params["blocks"])
    attn = blocks["00"]["attn"]
    deaf = {**attn, "gain": {**attn["gain"], "kernel": jnp.zeros_like(attn["gain"]["kernel"])}}
    blocks["00"] = {**blocks["00"], "attn": deaf}
    other = model().replace(params={**model().params, "blocks": blocks})
    assert np.abs(other(X, T, Y) - passed(SPEC, "unroll")[0]).max() > 1e-3


# --- Programs across kinds ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_orders_across_kinds_compiled_and_as_data():
    edits = [random_order(0, 5, seed=1), compose(skip(2, 3), parallel(0, 3, loops=2, alpha=0.5))]
    specs = [grafted().spec, *(edit.on(grafted().spec) for edit in edits)]
    compiled = jax.jit(lambda params: [forward(spec, params, X, T, {"y": Y}, plan="unroll")[0] for spec in specs])
    library = Library((grafted().spec,))
    run, weights = jax.jit(library.forward), library.prepare(grafted().params)
    for spec, expected in zip(specs, compiled(grafted().params), strict=True):
        assert_near(run(weights, library.encode(spec.program), X, T, {"y": Y}), expected, 1e-5)
    assert run._cache_size() == 1


@pytest.mark.slow
def test_a_choice_of_operators_as_data():
    sites = frozenset({(1, "attn"), (0, "img/mlp"), (3, "mixer")})
    library = Library((SPEC, grafted().spec), sites)
    run, weights = jax.jit(library.forward), library.prepare(model().params, grafted().params)
    assert_near(run(weights, library.encode(), X, T, {"y": Y}), passed(SPEC, "unroll")[0], 1e-5)
    there = graft(grafted(), inverse(model(), "toy_single[2].mixer"))
    assert_near(run(weights, library.encode(choice=dict.fromkeys(sites, 1)), X, T, {"y": Y}), there(X, T, Y), 1e-5)


def test_pairs_have_a_projection_for_every_stream():
    pairs = graft(model(), parallel_pairs(1, 5))  # the first pair is of two kinds
    one = pairs.params["merges"]["01_02"]
    assert jax.tree.map(jnp.shape, one) == {name: {"kernel": (32, 16), "bias": (16,)} for name in ("img", "txt")}
    assert count_params(pairs.spec) - count_params(SPEC) == 2 * 2 * (32 * 16 + 16)
    assert flops(pairs.spec) - flops(SPEC) == 2 * 2 * 21 * 32 * 16
    mean = compose(parallel(1, 3), parallel(2, 4)).on(SPEC)
    both = jax.jit(lambda p: [forward(spec, p, X, T, {"y": Y}, plan="unroll")[0] for spec in (pairs.spec, mean)])
    assert_near(*both(pairs.params), 1e-5)
    lively = pairs.replace(params={**pairs.params, "merges": random_params(pairs.spec, KEY)["merges"]})
    library = Library((pairs.spec,))
    found = jax.jit(library.forward)(library.prepare(lively.params), library.encode(), X, T, {"y": Y})
    assert_near(found, lively(X, T, Y), 1e-5)


def test_a_block_that_belongs_at_the_end_may_move_with_a_warning(monkeypatch):
    monkeypatch.setattr(ToySingle, "pinned", "its text is thrown away")
    with pytest.warns(UserWarning, match="moves block 4 from the end: its text is thrown away"):
        reverse(3, 5).on(SPEC)
    assert reverse(0, 2).on(SPEC).program[-1] == SPEC.program[-1]
    assert skip(4, 5).on(SPEC).depth == 5


# --- Surgery -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "sites"),
    [
        ("toy_joint[0].img/mlp", ["blocks[0].img/mlp"]),
        ("toy_joint[*].mlp", [f"blocks[{i}].{s}/mlp" for i in (0, 1) for s in ("img", "txt")]),
        ("blocks[1:3].mlp", ["blocks[1].img/mlp", "blocks[1].txt/mlp", "blocks[2].mlp"]),
        ("toy_single[-1].mixer", ["blocks[4].mixer"]),
        ("toy_single[50%].channel", ["blocks[3].mlp"]),
        ("blocks[*].joint", [f"blocks[{i}].attn" for i in range(2)]),
        ("blocks[mha].mixer", [f"blocks[{i}].mixer" for i in range(2, 5)]),
        ("toy_joint[1].modulation", ["blocks[1].img/adaln", "blocks[1].txt/adaln"]),
    ],
)
def test_selectors(selector, sites):
    assert [str(site) for site in select(selector, SPEC)] == sites


def test_grafts_change_their_sites_alone():
    changed = ["blocks/00/img/mlp", "blocks/01/attn", "blocks/03/mixer", "blocks/04/mixer"]
    assert_same_leaves(model().params, grafted().params, changed)
    assert grafted().meta.sites == tuple(f"blocks[{s}" for s in ("0].img/mlp", "1].attn", "3].mixer", "4].mixer"))
    assert count_params(grafted().spec) == sum(leaf.size for leaf in jax.tree.leaves(grafted().params))
    back = graft(grafted(), inverse(model()))
    assert_same_leaves(model().params, back.params)
    fewer = graft(grafted(), drop(0, 3))
    assert fewer.meta.sites == ("blocks[0].attn", "blocks[2].mixer")


@pytest.mark.slow
def test_windows_and_hyenas_fit_the_joined_sequence_and_those_of_images_do_not():
    widest = ("swa", {"window": 21}), ("clear", {"radius": 9}), ("swa_2d", {"window": 3})
    for kind, reach in widest:  # over all 5 + 4 x 4 tokens: attention
        wide = replace("toy_single[*].mixer", kind, init="transplant", **reach)
        dense = graft(model(), compose(wide, replace("toy_single[0].mixer", "mha")), KEY)
        restored = graft(dense, inverse(model(), "blocks[2].mixer"))
        assert_near(restored(X, T, Y), passed(SPEC, "unroll")[0], 1e-5)
    linear = graft(model(), replace("toy_single[*].mixer", "linear", init="transplant"), KEY)
    assert np.isfinite(linear(X, T, Y)).all()
    with pytest.raises(BadInput, match="dico: works on the image's grid alone, got 5 tokens of text"):
        replace("toy_single[*].mixer", "dico").on(SPEC)
    with pytest.raises(BadInput, match="'mha' has the role mixer, expected one with the role joint"):
        replace("toy_joint[*].attn", "mha").on(SPEC)
    with pytest.raises(BadInput, match=r"no such slot; .* GROUP blocks or toy_joint or toy_single, SLOT of img/adaln"):
        select("toy_joint[*].mixer", SPEC)


@pytest.mark.slow
def test_modulations_of_both_streams_share_one_map():
    student = graft(model(), replace("toy_joint[*].adaln", "adaln_shared"), KEY)
    assert count_params(SPEC) - count_params(student.spec) == 3 * (6 * 16 * 16 + 6 * 16) - 4 * 6 * 16
    assert np.isfinite(student(X, T, Y)).all()
    with pytest.raises(BadInput, match="adaln_shared: slots of 96 and of 48 features"):
        replace("blocks[*].adaln", "adaln_shared").on(SPEC)


@pytest.mark.slow
def test_adapters_and_the_flax_facade():
    adapted = graft(model(), lora("toy_joint[*].mlp", "blocks/0[24]/mixer", rank=4), KEY)
    assert len(adapted.spec.adapters) == 8 + 4
    assert_near(adapted(X, T, Y), passed(SPEC, "unroll")[0], 1e-5)
    shapes = jax.eval_shape(Network(adapted.spec).init, KEY)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, param_shapes(adapted.spec))


# --- Training, files, sampling -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_distilled_with_the_joint_attention_among_the_scions():
    sites = ("blocks[1].attn", "blocks[4].mixer")
    student, history = distill(
        model(), grafted(), DATA, DistillConfig(steps=2, learning_rate=1e-3), LoopConfig(2, log_every=1),
        heldout=DATA, batch_size=4, sites=sites, show=False,
    )  # fmt: skip
    losses = [record["loss"] for record in history if "loss" in record]
    assert losses
    assert np.isfinite(losses).all()
    assert_same_leaves(grafted().params, student.params, ["blocks/01/attn", "blocks/04/mixer"])
    before, after = grafted().params["blocks"]["01"]["attn"], student.params["blocks"]["01"]["attn"]
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    assert student.meta.sites == grafted().meta.sites


@pytest.mark.slow
def test_one_step_of_fine_tuning():
    config = DiffusionConfig(
        loop=LoopConfig(1), batch_size=4, ema_decay=0.0, optimiser=OptimiserConfig(learning_rate=1e-3, warmup_steps=0)
    )
    spec = toy_spec(joint=1, single=1)
    start = graft(Model(spec, random_params(spec, KEY)), replace("toy_single[0].mixer", "hyena_x"), KEY)
    student, history = finetune(start, DATA, config, show=False)
    assert student.spec == start.spec
    assert np.isfinite(history[-1]["loss"])
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), start.params, student.params)
    still = {jax.tree_util.keystr(path) for path, changed in jax.tree.leaves_with_path(moved) if not changed}
    assert still == {"['pos_embed']"}


def test_saved_and_loaded(tmp_path):
    graftax.save(grafted(), tmp_path)
    again = graftax.load(tmp_path)
    assert again.spec == grafted().spec == ModelSpec.from_json(grafted().spec.to_json())
    assert again.meta.sites == grafted().meta.sites
    assert_trees_close(again.params, grafted().params, rtol=0, atol=0)
    with pytest.raises(BadInput, match="override 'num_heads': a toy takes none"):
        graftax.load(tmp_path, num_heads=2)
    with pytest.raises(BadInput, match=r"toy\.pt: a toy has no layout but graftax's own; save a folder"):
        graftax.export(grafted(), tmp_path / "toy.pt")


@pytest.mark.slow
def test_collect_and_spread():
    collected = collect(grafted().spec, grafted().params)
    held = collected["blocks"]
    assert set(held) == {"toy_joint", "toy_single"}
    assert set(held["toy_joint"]["img"]["mlp"]) == {"0_mlp", "1_mlp"}
    assert set(held["toy_single"]["mixer"]) == {"0_mha", "1_hyena_x"}
    assert held["toy_joint"]["attn"]["0_toy_joint_mha"]["txt"]["qkv"]["kernel"].shape == (2, 16, 48)
    assert_trees_close(spread(grafted().spec, collected), grafted().params, rtol=0, atol=0)
    two = one_block(grafted().spec, held, 1)
    assert_trees_close(two, one_block(grafted().spec, grafted().params["blocks"], 1), rtol=0, atol=0)
    run = jax.jit(lambda params: forward(grafted().spec, params, X, T, {"y": Y}, plan="kind_scan", capture=TAPS))
    assert_near(run(collected), passed(grafted().spec, "unroll"))


@pytest.mark.slow
def test_sampled():
    images = graftax.sample(grafted(), np.array([0, 3, 10]), sampler="ddim", steps=2, cfg_scale=2.0, rng=KEY)
    assert images.shape == (3, 8, 8, 4)
    assert np.isfinite(images).all()


@pytest.mark.slow
def test_half_precision_stays_near():
    half = model().apply(X, T, Y, dtype=jnp.bfloat16)[0]
    assert half.dtype == jnp.float32
    error = np.linalg.norm(half - passed(SPEC, "unroll")[0]) / np.linalg.norm(passed(SPEC, "unroll")[0])
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: toy_spec(width=15), "toy: width 15, heads 2"),
        (lambda: model()(X[:, :4], T, Y), r"x: shape \(2, 4, 8, 4\)"),
        (lambda: model()(X, T, Y, text=Y), r"conditions: got \['text', 'y'\], expected y alone"),
        (lambda: model()(X, T + 1000, Y), "expected times in"),
        (lambda: model()(X, T, Y + 1), r"y: \[2, 11\], expected classes 0\.\.9, or 10 for none"),
        (lambda: graft(Model(SPEC.with_frame(colour=1), model().params), skip(0, 1)), "frame colour: not known"),
        (lambda: graft(Model(toy_spec(2, 3, text=6), model().params), skip(0, 1)), r"words/embedding has shape \(11, 80\)"),
        (lambda: replace("blocks[0].img/mlp", op("mha")).on(SPEC), "role mixer, expected one with the role channel"),
    ],
)
def test_what_a_toy_refuses(make, message):
    with pytest.raises(BadInput, match=message):
        make()
