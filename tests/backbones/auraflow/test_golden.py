"""AuraFlow against the reference modules: every tap of both streams, all layouts, rewrites of the program."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import graftax
from graftax.models.library import Library
from graftax.spec import Step
from graftax.surgery import compose, parallel, repeat, reverse, skip

GOLDENS = Path(__file__).parents[2] / "goldens" / "auraflow"
TOLERANCE = 2e-5  # relative to the largest value; float32 against float32, times rounded as diffusers does
TOLD = {"original.safetensors": {"num_heads": 2}, "diffusers": {}}
JOINT, SINGLE = 3, 4
FIRST = {"joint_transformer_blocks": 0, "single_transformer_blocks": JOINT}
"""Position of the first block of a kind."""

IO, REWRITTEN = (dict(np.load(GOLDENS / f"{name}.npz")) for name in ("io", "rewrites"))
REWRITES = json.loads((GOLDENS / "rewrites.json").read_text())
assert len(REWRITES) == 24


def load(file):
    return graftax.load(GOLDENS / file, **TOLD[file])


def nhwc(array):
    return array.transpose(0, 2, 3, 1)


def relative(found, expected):
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


X, T, TEXT = nhwc(IO["x"]), IO["t"], IO["text"]


@pytest.mark.parametrize("file", [pytest.param("original.safetensors", marks=pytest.mark.slow), "diffusers"])
def test_outputs_and_taps(file):
    out, taps = load(file).apply(X, T, text=TEXT, capture=("block/in", "block/out"))
    assert relative(out, nhwc(IO["out"])) <= TOLERANCE
    for name in ("img", "txt"):
        assert relative(taps["block/in"][name][0], IO[f"embed.{name}"]) <= TOLERANCE
        for i in range(JOINT):
            assert relative(taps["block/out"][name][i], IO[f"joint.{i}.{name}"]) <= TOLERANCE
    for i in range(SINGLE):
        both = np.concatenate([taps["block/out"][name][JOINT + i] for name in ("txt", "img")], axis=1)
        assert relative(both, IO[f"single.{i}.cat"]) <= TOLERANCE


def test_other_shapes():
    """Of 3 rows the middle one stands in the middle of the table."""
    assert relative(load("original.safetensors")(nhwc(IO["x_rect"]), T, text=TEXT), nhwc(IO["out_rect"])) <= TOLERANCE


def test_the_conditioning_vector():
    model = load("diffusers")
    vec = graftax.models.backbone.find(model.spec).vec(model.spec, model.params, jnp.asarray(T))
    assert relative(vec, IO["cond"]) <= TOLERANCE


# --- Rewrites ------------------------------------------------------------------------------------------------------------


def rewritten(spec, rules):
    """`spec` with the program that `rules` say, the last positions first, so that the others stay where they are."""
    for group, rule in sorted(rules.items(), reverse=True):
        first = FIRST[group]
        if rule["op"] == "skip":
            lo, hi = rule["blocks"][0], rule["blocks"][-1] + 1
        else:
            lo, hi = rule["span"]
        spec = edited(spec, rule, first + lo, first + hi, [first + i for i in rule.get("order", ())])
    return spec


def edited(spec, rule, lo, hi, order):
    if rule["op"] == "skip":
        return skip(lo, hi).on(spec)
    if rule["op"] == "parallel":
        return parallel(lo, hi, loops=rule["loops"], alpha=float(rule.get("alpha", 1))).on(spec)
    if order == list(range(lo, hi))[::-1]:
        return reverse(lo, hi).on(spec)
    if len(set(order)) == 1 and len(order) == hi - lo:
        return repeat(lo, hi, order[0]).on(spec)
    return spec.replace(program=(*spec.program[:lo], *(Step((i,)) for i in order), *spec.program[hi:]))


def test_every_rewrite_as_data():
    """All programs in one compilation."""
    model = load("diffusers")
    library = Library((model.spec,))
    run, weights = jax.jit(library.forward), library.prepare(model.params)
    for name, rules in {"base": {}, **REWRITES}.items():
        program = library.encode(rewritten(model.spec, rules).program)
        out = run(weights, program, X, T, {"text": jnp.asarray(TEXT)})
        assert relative(out, nhwc(REWRITTEN[name])) <= TOLERANCE, name
        assert name == "base" or relative(out, nhwc(REWRITTEN["base"])) > 1e-3, name


COMPILED = ("single.reverse", "joint.sum_parallel", "single.repeat_span2")


@pytest.mark.parametrize(
    "name", ["joint.loop2+single.skip_one", *(pytest.param(name, marks=pytest.mark.slow) for name in COMPILED)]
)
def test_rewrites_compiled(name):
    model = load("diffusers")
    model = model.replace(spec=rewritten(model.spec, REWRITES[name]))
    assert relative(model(X, T, text=TEXT), nhwc(REWRITTEN[name])) <= TOLERANCE


def test_rewrites_compose():
    """By `graft`, as users do."""
    edit = compose(parallel(JOINT + 1, JOINT + 4), reverse(0, JOINT))
    student = graftax.graft(load("diffusers"), edit)
    assert student.spec.program == rewritten(load("diffusers").spec, REWRITES["joint.reverse+single.parallel"]).program
