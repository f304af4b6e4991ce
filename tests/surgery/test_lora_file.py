"""LoRA files as edits: the outputs that diffusers and the authors' code give with them, kept and merged."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest

import graftax
from graftax.backbones.embedders import unpacked
from graftax.errors import BadInput
from graftax.surgery import apply_edit, compose, graft, lora, lora_file, merge_lora, parse, replace, replay
from graftax.surgery.check import leaves_by_path
from graftax.testing import assert_same_leaves, assert_trees_close
from graftax.train import OptimiserConfig
from graftax.train.state import create_state

GOLDENS = Path(__file__).parents[1] / "goldens"
LORA = GOLDENS / "lora"
RNG = jax.random.key(0)
CASES = [
    ("flux", "flux_diffusers_noalpha", 1.0, "diffusers_noalpha"),
    ("flux", "flux_diffusers_noalpha", 0.6, "diffusers_noalpha_scale0.6"),
    ("flux", "flux_diffusers_alpha", 1.0, "diffusers_alpha"),
    ("flux", "flux_kohya", 1.0, "kohya"),
    ("sd3", "sd3_diffusers_noalpha", 1.0, "diffusers_noalpha"),
]


@functools.cache
def base(family):
    folder = GOLDENS / {"flux": "flux/schnell", "sd3": "sd3/sd3_medium"}[family]
    return graftax.load(folder / "diffusers"), dict(np.load(folder / "io.npz"))


def output(model, family):
    """(b, h, w, c)."""
    golden = base(family)[1]
    x = golden["latent" if family == "flux" else "x"].transpose(0, 2, 3, 1)
    return model(x, golden["t"], text=golden["text"], pooled=golden["pooled"])


def expected(family, name):
    out = np.load(LORA / f"{family}.npz")[name]
    if family == "sd3":
        return out.transpose(0, 2, 3, 1)
    _, _, h, w = base(family)[1]["latent"].shape
    return unpacked(out, 2, (h // 2, w // 2))


def distance(found, wanted):
    return np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()


def of(name, **options):
    return lora_file(LORA / f"{name}.safetensors", **options)


@pytest.mark.parametrize(("family", "name", "strength", "golden"), CASES)
@pytest.mark.parametrize("way", ["kept", "merged after", "merge"])
def test_outputs(family, name, strength, golden, way):
    model = graft(base(family)[0], of(name, strength=strength, merge=way == "merge"))
    model = graft(model, merge_lora()) if way == "merged after" else model
    assert bool(model.spec.adapters) == (way == "kept")
    out = output(model, family)
    assert distance(out, expected(family, golden)) < 1e-5
    assert distance(out, expected(family, "base")) > 0.02


def test_three_layers_on_one_kernel_add_up_their_ranks():
    ranks = {one.path: one.rank for one in graft(base("flux")[0], of("flux_diffusers_alpha")).spec.adapters}
    assert ranks["blocks/00/attn/img/qkv/kernel"] == 12
    assert ranks["blocks/00/attn/img/proj/kernel"] == 4
    shared = {one.path: one.rank for one in graft(base("flux")[0], of("flux_kohya")).spec.adapters}
    assert shared["blocks/05/mixer/qkv/kernel"] == shared["blocks/05/mlp/fc1/kernel"] == 6


def test_two_files_on_one_model_add_up():
    """As adapters of adapters, and where the first has a factor of its own."""
    model, files = base("flux")[0], (("flux_kohya", 0.5), ("flux_diffusers_alpha", -0.7))
    kept, merged = (
        graft(model, compose(*(of(name, strength=strength, merge=merge) for name, strength in files)))
        for merge in (False, True)
    )
    assert_trees_close(graft(kept, merge_lora()).params, merged.params, rtol=1e-5, atol=1e-6)
    trained = graft(model, lora("double[0].attn", rank=2, alpha=6), RNG)
    trained = trained.replace(params=jax.tree.map(lambda leaf: leaf + 0.1, trained.params))
    more = graft(trained, of("flux_kohya"))
    held = {adapter.path: adapter for adapter in more.spec.adapters}["blocks/00/attn/img/qkv/kernel"]
    assert (held.rank, held.alpha) == (8, 24)
    wanted = graft(graft(trained, merge_lora()), of("flux_kohya", merge=True))
    assert_trees_close(graft(more, merge_lora()).params, wanted.params, rtol=1e-5, atol=1e-6)


def test_texts_read_back_and_recipes_are_done_again():
    for edit in (of("flux_kohya"), lora_file("x.safetensors", strength=0.6), lora_file("a/b c", -1, merge=True)):
        assert parse(str(edit)) == edit
    assert str(lora_file("x.safetensors", strength=0.6)) == "lora_file('x.safetensors', strength=0.6)"
    model = base("flux")[0]
    student = graft(model, of("flux_kohya", strength=0.6))
    again = replay(student.meta, model)[0]
    assert again.spec == student.spec
    assert_same_leaves(model.params, again.params, ["lora"])
    for path, leaf in leaves_by_path(student.params).items():
        np.testing.assert_array_equal(leaf, leaves_by_path(again.params)[path])


def test_merging_a_file_leaves_other_adapters_and_refuses_theirs():
    held = graft(base("flux")[0], lora("t_embedder", rank=2), RNG)
    merged, report = apply_edit(held, of("flux_kohya", merge=True))
    assert merged.spec == held.spec
    assert merged.params["lora"] is held.params["lora"]
    assert "blocks/05/mixer/qkv/kernel" in report.new
    with pytest.raises(BadInput, match=r"changes blocks/00/attn/img/proj/kernel, which carries an adapter"):
        graft(graft(held, lora("double[0].attn", rank=2), RNG), of("flux_kohya", merge=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"strength": float("nan")}, "strength nan"), ({"strength": "1"}, "strength '1'"), ({"merge": 1}, "merge 1")],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(BadInput, match=message):
        lora_file("x.safetensors", **options)


@pytest.mark.parametrize(
    ("target", "paths"),
    [
        ("single[1,3].mlp", [f"blocks/0{i}/mlp/{name}" for i in (6, 8) for name in ("fc1", "fc2")]),
        ("double[-1].mlp", [f"blocks/04/{s}/mlp/{name}" for s in ("img", "txt") for name in ("fc1", "fc2")]),
        ("double[0].img/mlp", ["blocks/00/img/mlp/fc1", "blocks/00/img/mlp/fc2"]),
        ("double[0].attn", [f"blocks/00/attn/{s}/{name}" for s in ("img", "txt") for name in ("proj", "qkv")]),
        ("single[*].modulation", [f"blocks/0{i}/adaln" for i in range(5, 10)]),
    ],
)
def test_chosen_blocks_of_a_flux_are_trained_in_one_line(target, paths):
    edit = parse(f"lora({target}, rank=4)")
    assert edit == lora(target, rank=4)
    model = graft(base("flux")[0], edit, RNG)
    assert [adapter.path for adapter in model.spec.adapters] == [f"{path}/kernel" for path in paths]
    state = create_state(model.params, OptimiserConfig().build(), ("(?!lora/).*",))
    assert set(leaves_by_path(state.trainable)) == {f"lora/{path}/kernel/{side}" for path in paths for side in "ab"}


def test_adapters_of_a_file_learn():
    """Gradients reach both sides of every adapter of a file."""
    model = graft(base("sd3")[0], of("sd3_diffusers_noalpha"))
    golden = base("sd3")[1]

    def loss(adapters):
        changed = model.replace(params={**model.params, "lora": adapters})
        out = changed(golden["x"].transpose(0, 2, 3, 1), golden["t"], text=golden["text"], pooled=golden["pooled"])
        return (out**2).mean()

    gradients = leaves_by_path(jax.grad(loss)(model.params["lora"]))
    assert all(np.any(leaf) for leaf in gradients.values())


def test_a_graft_of_another_site_keeps_the_adapters():
    student = graft(base("flux")[0], compose(of("flux_kohya"), replace("single[1].mixer", "mha")), RNG)
    assert student.spec.adapters  # the file changes single 0, 2, 3 and 4 alone
