"""Reports: leaves, numbers, summaries, and two reports joined into one."""

import jax
import numpy as np

from graftax.backbones.dit import variant
from graftax.models import Model
from graftax.spec import op
from graftax.surgery import compose, diff, parallel, random_order, repeat, replace, resize, skip
from graftax.surgery.report import compare, program_text
from graftax.testing import random_params, tiny_spec

SPEC = tiny_spec()
PARAMS = random_params(SPEC, jax.random.key(0))
RNG = jax.random.key(7)
MHA = ("proj/bias", "proj/kernel", "qkv/bias", "qkv/kernel")
HYENA = ("in_proj/bias", "in_proj/kernel", "out_proj/bias", "out_proj/kernel", "short_filter/bias", "short_filter/kernel")
ALL = 12 + 4 * 10  # embedders, position table and final layer; four blocks of adaLN, mixer and MLP


def size(params):
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_a_replacement_lists_its_leaves():
    spec, params, report = replace("blocks[3].mixer", "hyena_x")(SPEC, PARAMS, RNG)
    assert report.new == tuple(f"blocks/03/mixer/{leaf}" for leaf in HYENA)
    assert report.dropped == tuple(f"blocks/03/mixer/{leaf}" for leaf in MHA)
    assert len(report.kept) == ALL - len(MHA)
    assert report.params == (size(PARAMS), size(params))
    assert (report.before, report.after) == (SPEC, spec)


def test_a_leaf_drawn_afresh_is_both_new_and_dropped():
    _, _, report = replace("blocks[3].mixer", "mha")(SPEC, PARAMS, RNG)
    assert report.new == report.dropped == tuple(f"blocks/03/mixer/{leaf}" for leaf in MHA)
    assert not set(report.kept) & set(report.new)


def test_joined_reports_equal_the_comparison_of_the_ends():
    """Replaced twice, put back, resized, reordered: what only lived in between must not show."""
    edits = [
        replace("blocks[1,3].mixer", "hyena_x"),
        replace("blocks[2].mixer", "swa", init="transplant"),
        resize("blocks[0].mlp", 3),
        replace("blocks[3].mixer", "mha"),
        replace("blocks[2].mixer", "mha", init="transplant"),
        skip(0, 1),
    ]
    spec, params, report = compose(*edits)(SPEC, PARAMS, RNG)
    assert report == compare((SPEC, PARAMS), (spec, params))
    assert [str(site) for site in report.sites] == ["blocks[0].mlp", "blocks[1].mixer", "blocks[3].mixer"]
    assert report.dropped == tuple(
        [f"blocks/00/mlp/{leaf}" for leaf in ("fc1/bias", "fc1/kernel", "fc2/bias", "fc2/kernel")]
        + [f"blocks/{i}/mixer/{leaf}" for i in ("01", "03") for leaf in MHA]
    )


def test_joining_is_associative():
    steps, spec, params = [], SPEC, PARAMS
    for edit in (replace("blocks[1].mixer", "hyena_x"), replace("blocks[1].mixer", "mha"), resize("blocks[1].mlp", 2)):
        spec, params, report = edit(spec, params, RNG)
        steps.append(report)
    first, second, third = steps
    assert first.then(second).then(third) == first.then(second.then(third))


def test_summary():
    edit = compose(
        replace("blocks[1::2].mixer", "hyena_x"), replace("blocks[0].mixer", "swa", init="transplant"), resize([0, 1], 3)
    )
    lines = str(edit(SPEC, PARAMS, RNG)[2]).splitlines()
    assert lines[-1] == "function            changed, needs distillation"
    assert lines[:-3] == [
        "blocks[0].mixer     mha -> swa(window=4), weights kept (1 site)",
        "blocks[0,1].mlp     mlp(ratio=4.0) -> mlp(ratio=3.0), new weights (2 sites)",
        "blocks[1,3].mixer   mha -> hyena_x(kernel=4), new weights (2 sites)",
        "leaves              36 kept, 20 new, 16 dropped",
    ]


def test_summary_of_a_real_size():
    before = variant("DiT-XL/2")
    blocks = tuple(
        block.with_op("mixer", op("hyena_x", kernel=4)) if i % 2 else block for i, block in enumerate(before.blocks)
    )
    assert str(diff(before, before.replace(blocks=blocks))).splitlines() == [
        "blocks[1:28:2].mixer mha -> hyena_x(kernel=4), new weights (14 sites)",
        "leaves              236 kept, 84 new, 56 dropped",
        "parameters          675,129,632 -> 675,371,552 (+0.04 %)",
        "FLOPs per image     237,301,563,392 -> 233,151,692,800 (-1.75 %)",
    ]


def test_summary_of_a_program():
    _, _, report = parallel(1, 3, loops=2, alpha=0.5)(SPEC, PARAMS, RNG)
    lines = str(report).splitlines()
    assert lines[:3] == [
        "operators           unchanged",
        "program             0:4 -> 0, mean(1,2) x2 alpha=0.5, 3",
        "leaves              52 kept, 0 new, 0 dropped",
    ]
    assert lines[3].endswith("(+0.00 %)")
    assert report.flops[1] > report.flops[0]


def test_program_text():
    spec = tiny_spec(depth=8)
    assert program_text(spec.program) == "0:8"
    assert program_text(parallel(3, 6).on(spec).program) == "0:3, mean(3:6), 6,7"
    assert program_text(repeat(2, 5).on(spec).program) == "0,1,4,4,4:8"
    shuffled = random_order(0, 8, 1).on(spec).program
    assert program_text(parallel(0, 8).on(spec.replace(program=shuffled)).program).startswith("mean(")


def test_diff_of_models_goes_by_value():
    model = Model(SPEC, PARAMS)
    copy = Model(SPEC, jax.tree.map(np.array, PARAMS))
    assert len(diff(model, copy).kept) == ALL
    changed = jax.tree.map(np.array, PARAMS)
    changed["blocks"]["02"]["mlp"]["fc1"]["bias"][5] += 1
    report = diff(model, Model(SPEC, changed))
    assert report.new == report.dropped == ("blocks/02/mlp/fc1/bias",)
    assert [str(site) for site in report.sites] == ["blocks[2].mlp"]


def test_diff_of_specs_goes_by_shape():
    spec, _, _ = replace("blocks[1].mixer", "hyena_x")(SPEC, PARAMS, RNG)
    report = diff(Model(SPEC, PARAMS), spec)
    assert report.new == tuple(f"blocks/01/mixer/{leaf}" for leaf in HYENA)
    assert report.dropped == tuple(f"blocks/01/mixer/{leaf}" for leaf in MHA)
    assert diff(SPEC, SPEC).sites == ()


def test_diff_of_different_depths():
    report = diff(SPEC, tiny_spec(depth=5))
    slots = [site.slot for site in report.sites if site.block == 4]
    assert slots == ["adaln", "norm1", "mixer", "norm2", "mlp"]
    assert len(report.sites) == 5
    assert "none -> mha" in str(report)
    assert len(diff(tiny_spec(depth=5), SPEC).dropped) == 10
