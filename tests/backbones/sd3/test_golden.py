"""SD3 against the reference modules: every tap that they give, both variants, both layouts, rewritten programs."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import graftax
from graftax.models import forward
from graftax.models.forward import embed
from graftax.models.library import Library
from graftax.spec import Step
from graftax.surgery import graft, looped_parallel, parallel, random_order, repeat, reverse, skip

GOLDENS = Path(__file__).parents[2] / "goldens" / "sd3"
TOLERANCE = 2e-5  # relative to the largest value; float32 against float32
NAMES = ("sd3_medium", "sd35_medium")


@functools.cache
def load(name, file="original.safetensors"):
    told = {"input_size": 8, "num_heads": 2} if file == "original.safetensors" else {}
    return graftax.load(GOLDENS / name / file, **told)


@functools.cache
def golden(name, file="io"):
    return dict(np.load(GOLDENS / name / f"{file}.npz"))


def inputs(name, x="x"):
    found = golden(name)
    return (nhwc(found[x]), found["t"]), {"text": found["text"], "pooled": found["pooled"]}


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("file", ["original.safetensors", "diffusers"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_taps(name, file):
    model, expected, (given, cond) = load(name, file), golden(name), inputs(name)
    out, taps = model.apply(*given, capture=("block/in", "block/out"), **cond)
    assert relative(out, nhwc(expected["out"])) <= TOLERANCE
    for stream in ("img", "txt"):
        assert relative(taps["block/in"][stream][0], expected[f"embed.{stream}"]) <= TOLERANCE
    for i in range(model.spec.depth):
        for stream in ("img", "txt") if i < model.spec.depth - 1 else ("img",):
            assert relative(taps["block/out"][stream][i], expected[f"block.{i}.{stream}"]) <= TOLERANCE
    last = taps["block/out"]["txt"][-2:]
    np.testing.assert_array_equal(last[1], last[0])  # the last block leaves the text as it is


@pytest.mark.parametrize("name", NAMES)
def test_the_conditioning_vector(name):
    model, ((x, t), cond) = load(name), inputs(name)
    _, context = jax.jit(lambda params: embed(model.spec, params, x, t, cond))(model.params)
    assert relative(context.vec, golden(name)["cond"]) <= TOLERANCE


@pytest.mark.parametrize("name", [NAMES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_images_of_other_shapes(name):
    given, cond = inputs(name, "x_rect")
    assert relative(load(name)(*given, **cond), nhwc(golden(name)["out_rect"])) <= TOLERANCE


# --- Rewritten programs --------------------------------------------------------------------------------------------------


def edit_of(rewrite):
    """The rewrite of rewrites.json as one of ours; None where it is none of them by itself."""
    if rewrite["op"] == "skip":
        return skip(rewrite["blocks"][0], rewrite["blocks"][-1] + 1)
    lo, hi = rewrite["span"]
    if rewrite["op"] == "parallel":
        loops, alpha = rewrite["loops"], rewrite.get("alpha", 1)
        return looped_parallel(lo, hi, loops) if alpha == 1 else parallel(lo, hi, loops, alpha)
    span, order = list(range(lo, hi)), rewrite["order"]
    if order == span[::-1]:
        return reverse(lo, hi)
    return repeat(lo, hi, order[0]) if len(set(order)) == 1 else None


def rewritten(spec, rewrite):
    edit = edit_of(rewrite)
    if edit is not None:
        return edit.on(spec)
    (lo, hi), order = rewrite["span"], rewrite["order"]
    return spec.replace(program=(*spec.program[:lo], *(Step((i,)) for i in order), *spec.program[hi:]))


def programs(name):
    rewrites = json.loads((GOLDENS / name / "rewrites.json").read_text())
    found = {key: rewritten(load(name).spec, one["transformer_blocks"]) for key, one in rewrites.items()}
    return {"base": load(name).spec, **found}


@pytest.mark.parametrize("name", NAMES)
def test_rewritten_programs_as_data(name):
    """All programs of the reference by one compiled function."""
    model, ((x, t), cond) = load(name), inputs(name)
    library = Library((model.spec,))
    weights, run = library.prepare(model.params), jax.jit(library.forward)
    found = programs(name)
    assert set(found) == set(golden(name, "rewrites"))
    assert len(found) == 12
    for key, spec in found.items():
        out = run(weights, library.encode(spec.program), x, t, cond)
        assert relative(out, nhwc(golden(name, "rewrites")[key])) <= TOLERANCE, key


@pytest.mark.parametrize(
    ("name", "key"),
    [("sd35_medium", "joint.loop2"), *(pytest.param(name, key, marks=pytest.mark.slow) for name, key in (
        ("sd3_medium", "joint.reverse"), ("sd3_medium", "joint.sum_parallel"), ("sd35_medium", "joint.permute"),
        ("sd35_medium", "joint.repeat_span2"),
    ))],
)  # fmt: skip
def test_rewritten_programs_compiled(name, key):
    model, ((x, t), cond), spec = load(name), inputs(name), programs(name)[key]
    out, _ = jax.jit(lambda params: forward(spec, params, x, t, cond))(model.params)
    assert relative(out, nhwc(golden(name, "rewrites")[key])) <= TOLERANCE


def test_the_last_block_may_move_with_a_warning():
    model, (given, cond) = load("sd3_medium"), inputs("sd3_medium")
    with pytest.warns(UserWarning, match="moves block 5 from the end: it leaves the text as it is"):
        moved = graft(model, reverse(1, 6))
    assert np.isfinite(moved(*given, **cond)).all()
    graft(model, random_order(0, 5, seed=1))  # the others in any order, without one
