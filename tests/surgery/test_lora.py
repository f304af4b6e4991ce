"""Adapters as edits: where they go, that they change nothing at first, how they are trained, folded in, stored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.diffusion import Process
from graftax.errors import BadInput
from graftax.models import Model
from graftax.surgery import apply_edit, check, compose, diff, graft, inverse, lora, merge_lora, replace
from graftax.surgery.check import leaves_by_path
from graftax.testing import assert_same_leaves, assert_trees_close, random_params, tiny_spec
from graftax.train import OptimiserConfig, diffusion_loss, make_step
from graftax.train.state import create_state

SPEC = tiny_spec()
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
RNG = jax.random.key(7)
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
T = jnp.array([3.0, 700.0])
Y = jnp.array([1, 10])
ONLY_ADAPTERS = ("(?!lora/).*",)


def paths(*targets, rank=4, model=MODEL):
    return [adapter.path for adapter in graft(model, lora(targets, rank=rank), RNG).spec.adapters]


@functools.cache
def adapted():
    """A model whose adapters have learned something."""
    fresh = graft(MODEL, lora(["blocks[50%].mixer", "blocks/.*/mlp/fc1", "final"], rank=4, alpha=8), RNG)
    return fresh.replace(params={**fresh.params, "lora": random_params(fresh.spec, jax.random.key(3))["lora"]})


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("blocks[50%].mixer", [f"blocks/0{i}/mixer/{name}/kernel" for i in (1, 3) for name in ("proj", "qkv")]),
        ("blocks[0,2].mlp", [f"blocks/0{i}/mlp/{name}/kernel" for i in (0, 2) for name in ("fc1", "fc2")]),
        ("blocks/.*/adaln", [f"blocks/0{i}/adaln/kernel" for i in range(4)]),
        (r"blocks/0[13]/mixer/qkv", ["blocks/01/mixer/qkv/kernel", "blocks/03/mixer/qkv/kernel"]),
        ("final", ["final/adaln/kernel", "final/linear/kernel"]),
        ("final/adaln/kernel", ["final/adaln/kernel"]),
        ("t_embedder", ["t_embedder/fc1/kernel", "t_embedder/fc2/kernel"]),
    ],
)
def test_targets_are_selectors_or_patterns(target, expected):
    assert paths(target) == expected


def test_targets_are_united_and_each_kernel_adapted_once():
    assert paths("blocks[0].mixer", "blocks/00/mixer/qkv", "final/linear") == [
        "blocks/00/mixer/proj/kernel", "blocks/00/mixer/qkv/kernel", "final/linear/kernel"
    ]  # fmt: skip


def test_kernels_no_longer_than_the_rank_are_passed_over():
    grafted = graft(MODEL, replace("blocks[1].mixer", "hyena_x", kernel=4), RNG)  # its filter's kernel is (4, 144)
    assert paths("blocks[1].mixer", rank=8, model=grafted) == [
        "blocks/01/mixer/in_proj/kernel", "blocks/01/mixer/out_proj/kernel"
    ]  # fmt: skip
    assert paths("final", rank=32) == ["final/adaln/kernel"]  # final/linear is (48, 32)


def test_at_first_the_model_computes_the_same_and_shares_its_leaves():
    model, report = apply_edit(MODEL, lora("blocks[*].mixer", rank=4), RNG)
    np.testing.assert_array_equal(model(X, T, Y), MODEL(X, T, Y))
    assert_same_leaves(MODEL.params, model.params, ["lora"])
    assert report.sites == model.meta.sites == ()
    assert len(report.new) == 16
    assert not report.dropped
    assert "adapters            0 -> 8" in str(report)
    assert model.meta.edits == ("lora(blocks[*].mixer, rank=4, alpha=16.0)",)


def test_more_adapters_leave_the_first_as_they_are():
    more = graft(adapted(), lora("t_embedder", rank=2), RNG)
    assert_same_leaves(adapted().params, more.params, ["lora/t_embedder"])
    assert {adapter.rank for adapter in more.spec.adapters} == {2, 4}
    with pytest.raises(BadInput, match="final/adaln/kernel carries an adapter already"):
        graft(more, lora("final/adaln", rank=2), RNG)


def test_merging_keeps_the_function_and_is_no_graft():
    merged, report = apply_edit(adapted(), merge_lora(), RNG)
    assert merged.spec == SPEC
    before, after = adapted()(X, T, Y), merged(X, T, Y)
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)
    assert np.abs(before - MODEL(X, T, Y)).max() > 0.1
    assert report.sites == merged.meta.sites == ()
    assert set(report.new) == {adapter.path for adapter in adapted().spec.adapters}
    assert "adapters            10 -> 0" in str(report)


def test_adapters_on_scions_and_undo():
    """Grafts and adapters in one edit; without the adapters the graft is still there to be undone."""
    student = graft(MODEL, compose(replace("blocks[1].mixer", "hyena_x"), lora("blocks[1].mixer", rank=4)), RNG)
    assert student.meta.sites == ("blocks[1].mixer",)
    assert graft(student, merge_lora(), RNG).meta.sites == ("blocks[1].mixer",)
    assert_same_leaves(graft(student, inverse(MODEL), RNG).params, MODEL.params)


@pytest.mark.parametrize("kind", ["mha", "hyena_x"])
def test_what_carries_an_adapter_is_not_exchanged(kind):
    with pytest.raises(BadInput, match=r"blocks/01/mixer/proj/kernel, which carries an adapter; expected merge_lora\(\)"):
        graft(adapted(), replace("blocks[1].mixer", kind), RNG)
    assert graft(adapted(), replace("blocks[2].mixer", kind), RNG).spec.adapters == adapted().spec.adapters


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda: lora("nothing"), "'nothing' names no kernel with two axes longer than rank 8, like '"),
        (lambda: lora("blocks/.*/bias"), "names no kernel"),
        (lambda: lora("x_embedder"), "names no kernel"),  # four axes
        (lambda: lora("blocks[*].mixer", rank=48), "names no kernel with two axes longer than rank 48"),
        (lambda: lora("blocks[7].mixer"), r"selector 'blocks\[7\].mixer' on 4 blocks"),
        (lambda: lora("blocks/(", rank=2), "neither a selector nor a regular expression"),
        (lambda: lora([]), "got no targets"),
        (lambda: lora("final", rank=0), "rank 0, expected a positive integer"),
        (lambda: lora("final", alpha=float("nan")), "alpha nan, expected a positive number"),
        (merge_lora, "the model has no adapters"),
    ],
)
def test_impossible_adapters_are_refused(edit, message):
    with pytest.raises(BadInput, match=message):
        graft(MODEL, edit(), RNG)


def test_files_hold_adapters_and_exports_refuse_them(tmp_path):
    graftax.save(adapted(), tmp_path / "model")
    loaded = graftax.load(tmp_path / "model")
    assert loaded.spec == adapted().spec
    assert_trees_close(loaded.params, adapted().params, rtol=0, atol=0)
    assert not diff(adapted(), loaded).new
    for name in ("model.pt", "model.safetensors"):
        with pytest.raises(BadInput, match=r"hold no adapters, and this model has 10; merge_lora\(\) first"):
            graftax.export(adapted(), tmp_path / name)
    graftax.export(graft(adapted(), merge_lora(), RNG), tmp_path / "model.pt")


def test_the_check_names_missing_adapters():
    without = {name: tree for name, tree in adapted().params.items() if name != "lora"}
    with pytest.raises(BadInput, match="lora/blocks/00/mlp/fc1/kernel/a is missing"):
        check(adapted().spec, without)


@pytest.mark.slow
def test_stage_two_can_train_the_adapters_alone():
    model = graft(MODEL, lora("blocks[*].mixer", rank=4), RNG)
    optimiser = OptimiserConfig(learning_rate=1e-2, warmup_steps=0)
    start = create_state(model.params, optimiser.build(), ONLY_ADAPTERS)
    adapters = {path for path in leaves_by_path(model.params) if path.startswith("lora/")}
    assert set(leaves_by_path(start.trainable)) == set(leaves_by_path(start.ema)) == adapters
    size = sum(leaf.size for leaf in jax.tree.leaves(start.trainable))
    assert size == 8 * 4 * 48 + 4 * 4 * (144 + 48)
    moments = [leaf for leaf in jax.tree.leaves(start.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * size

    step = make_step(diffusion_loss(model.spec, Process()), optimiser, ema_decay=0.5)
    batch = {"image": np.random.default_rng(0).standard_normal((8, 8, 8, 4), np.float32), "label": np.arange(8)}
    state, losses = start, []
    for _ in range(5):
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.9 * losses[0]
    assert_same_leaves(MODEL.params, state.params, ["lora"])
    assert all(np.any(leaf) for path, leaf in leaves_by_path(state.ema).items() if path.endswith("/b"))
