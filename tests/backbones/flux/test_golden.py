"""Flux against the reference modules: every tap that they give, both variants, both layouts, and rewritten programs."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.backbones.embedders import unpacked
from graftax.backbones.flux.frame import rope
from graftax.models.forward import embed
from graftax.models.library import Library
from graftax.models.sizes import at_size
from graftax.spec import Step
from graftax.surgery import looped_parallel, parallel, random_order, repeat, reverse, skip

GOLDENS = Path(__file__).parents[2] / "goldens" / "flux"
TOLERANCE = 2e-5  # relative to the largest value; float32 against float32
FILES = {"original.safetensors": {"rope_axes": (4, 6, 6)}, "diffusers": {}}
REWRITES = json.loads((GOLDENS / "schnell" / "rewrites.json").read_text())
DEPTH = {"transformer_blocks": range(5), "single_transformer_blocks": range(5, 10)}
"""Positions of the blocks of each kind in schnell's program."""


@functools.cache
def load(name, file):
    return graftax.load(GOLDENS / name / file, **FILES[file]), dict(np.load(GOLDENS / name / "io.npz"))


def inputs(golden):
    cond = {name: golden[name] for name in ("text", "pooled", "guidance") if name in golden}
    return golden["latent"].transpose(0, 2, 3, 1), golden["t"], cond


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert np.abs(np.asarray(found) - expected).max() <= TOLERANCE * np.abs(expected).max()


def pictures(golden, out):
    """Packed tokens of a golden as images."""
    _, _, h, w = golden["latent"].shape
    return unpacked(out, 2, (h // 2, w // 2))


@pytest.mark.parametrize("name", ["dev", "schnell"])
@pytest.mark.parametrize("file", FILES)
def test_outputs_and_taps(name, file):
    model, golden = load(name, file)
    x, t, cond = inputs(golden)
    out, taps = model.apply(x, t, capture=("block/in", "block/out"), **cond)
    assert_near(out, pictures(golden, golden["out"]))
    kinds = [block.kind for block in model.spec.blocks]
    for stream in ("img", "txt"):
        assert_near(taps["block/in"][stream][0], golden[f"embed.{stream}"])
        for i, kind in enumerate(kinds):
            assert_near(taps["block/out"][stream][i], golden[f"{kind}.{i - kinds.index(kind)}.{stream}"])


@pytest.mark.parametrize("name", ["dev", "schnell"])
def test_the_context(name):
    model, golden = load(name, "diffusers")
    x, t, cond = inputs(golden)
    spec = at_size(model.spec, x)
    _, context = embed(spec, model.params, jnp.asarray(x), jnp.asarray(t), jax.tree.map(jnp.asarray, cond))
    assert_near(context.vec, golden["cond"])
    for table, theirs in zip(rope(spec, cond["text"].shape[1]), ("rope_cos", "rope_sin"), strict=True):
        assert_near(np.repeat(table, 2, axis=1), golden[theirs])
    assert jax.tree.map(jnp.shape, context.rope) == jax.tree.map(jnp.shape, rope(spec, cond["text"].shape[1]))


# --- Other programs ------------------------------------------------------------------------------------------------------


def edit_of(positions, rewrite):
    """A rewrite of blocks of one kind as an edit of positions, where there is one."""
    if rewrite["op"] == "skip":
        return skip(positions[rewrite["blocks"][0]], positions[rewrite["blocks"][-1]] + 1)
    lo, hi = positions[rewrite["span"][0]], positions[rewrite["span"][1] - 1] + 1
    if rewrite["op"] == "parallel" and "alpha" in rewrite:
        return parallel(lo, hi, rewrite["loops"], rewrite["alpha"])
    if rewrite["op"] == "parallel":
        return looped_parallel(lo, hi, rewrite["loops"])
    order = [positions[i] for i in rewrite["order"]]
    if len(set(order)) == 1:
        return repeat(lo, hi, block=order[0])
    if order == list(range(lo, hi))[::-1]:
        return reverse(lo, hi)
    shuffles = (random_order(lo, hi, seed) for seed in range(30))
    return next((edit for edit in shuffles if order_of(edit.on(load("schnell", "diffusers")[0].spec))[lo:hi] == order), None)


def order_of(spec):
    return [step.blocks[0] for step in spec.program]


def rewritten(spec, name):
    for group in sorted(REWRITES[name]):  # single blocks first: they come last
        rewrite, positions = REWRITES[name][group], DEPTH[group]
        if (edit := edit_of(positions, rewrite)) is not None:
            spec = edit.on(spec)
        else:  # no edit runs a span twice
            assert name.endswith("repeat_span2")
            lo, hi = positions[rewrite["span"][0]], positions[rewrite["span"][1] - 1] + 1
            steps = tuple(Step((positions[i],)) for i in rewrite["order"])
            spec = spec.replace(program=spec.program[:lo] + steps + spec.program[hi:])
    return spec


@functools.cache
def as_data():
    """The model's function of a program, compiled once."""
    model, golden = load("schnell", "diffusers")
    x, t, cond = inputs(golden)
    library = Library((model.spec,))
    run, weights = jax.jit(library.forward), library.prepare(model.params)
    arrays = jnp.asarray(x), jnp.asarray(t), jax.tree.map(jnp.asarray, cond)
    return lambda spec: run(weights, library.encode(spec.program), *arrays)


@pytest.mark.parametrize("name", REWRITES)
def test_rewritten_programs(name):
    model, golden = load("schnell", "diffusers")
    expected = np.load(GOLDENS / "schnell" / "rewrites.npz")
    assert_near(as_data()(rewritten(model.spec, name)), pictures(golden, expected[name]))
    assert np.abs(expected[name] - expected["base"]).max() > 1e-3


def test_every_rewrite_is_there():
    names = set(np.load(GOLDENS / "schnell" / "rewrites.npz").files)
    assert names == {"base", *REWRITES}
    assert len(REWRITES) == 24


@pytest.mark.slow
@pytest.mark.parametrize("name", ["double.reverse+single.parallel", "double.loop2+single.skip_one"])
def test_compiled_programs(name):
    model, golden = load("schnell", "original.safetensors")
    x, t, cond = inputs(golden)
    found = model.replace(spec=rewritten(model.spec, name))(x, t, **cond)
    assert_near(found, pictures(golden, np.load(GOLDENS / "schnell" / "rewrites.npz")[name]))
