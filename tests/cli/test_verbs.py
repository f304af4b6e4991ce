"""The verbs that need no training: convert, inspect, graft, doctor; and that nothing on disk is lost."""

import hashlib
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from graftax import api
from graftax.checkpoint import open_checkpoint
from graftax.surgery import diff
from graftax.testing import assert_trees_close

CONFIGS = Path(__file__).parents[2] / "configs"
DESCRIPTION = """\
backbone    dit, 4 blocks, width 32, 4 heads
input       8x8x1, patch 2, 16 tokens, 3 classes, learned variance
blocks       parameters              FLOPs  operators
0,2              37,824            880,640  mha + mlp(ratio=4.0)
1,3              38,784            837,632  hyena_x(kernel=4) + mlp(ratio=4.0)
the rest         12,456             34,816  everything outside the blocks
program     0:4
parameters  89,064 (88,552 trainable)
FLOPs       1,753,088 per image and forward pass
source      test
edits       replace(blocks[50%].mixer, hyena_x(kernel=4), init=random)
sites       blocks[1].mixer, blocks[3].mixer
"""


def contents(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("suffixes", [(".pt", ""), (".safetensors", ""), (".safetensors", ".pt", "")])
def test_convert_round_trip_is_bit_equal(run, tmp_path, teacher, suffixes):
    current, overrides = teacher, ()
    for i, suffix in enumerate(suffixes):
        output = tmp_path / f"step{i}{suffix}"
        assert run("convert", current, output, *overrides)[0] == 0
        current, overrides = output, ("--num-heads=4",) if suffix == ".pt" else ()
    before, after = open_checkpoint(teacher), open_checkpoint(current)
    assert after[0] == before[0]
    assert_trees_close(after[1], before[1], rtol=0, atol=0)


def test_convert_to_float16_halves_the_file(run, tmp_path, teacher):
    assert run("convert", teacher, tmp_path / "half", "--dtype=float16")[0] == 0
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (teacher, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]


def test_convert_overwrites_only_when_asked_and_only_when_it_can(run, refused, tmp_path, teacher):
    target = tmp_path / "target.safetensors"
    target.write_text("precious")
    refused("convert", teacher, target)
    refused("convert", tmp_path / "nowhere", target, "--overwrite")
    assert target.read_text() == "precious"
    assert run("convert", teacher, target, "--overwrite")[0] == 0
    assert open_checkpoint(target)[0] == open_checkpoint(teacher)[0]


def test_inspect_is_golden(run, recipe, tmp_path):
    assert run("graft", "--config", recipe)[0] == 0
    code, out, _ = run("inspect", tmp_path / "run" / "grafted")
    assert code == 0
    assert out == DESCRIPTION


def test_inspect_two_models_prints_their_difference(run, recipe, tmp_path, teacher):
    assert run("graft", "--config", recipe)[0] == 0
    student = tmp_path / "run" / "grafted"
    code, out, _ = run("inspect", teacher, student)
    assert code == 0
    assert out == f"{teacher} -> {student}\n{diff(api.load(teacher), api.load(student))}\n"


def test_graft_by_arguments_equals_graft_by_config(run, recipe, tmp_path, teacher):
    argv = ("graft", teacher, "--edit=blocks[50%].mixer=hyena_x(kernel=4)", "--out", tmp_path / "by_arguments")
    code, out, _ = run(*argv)
    assert code == 0
    assert "mha -> hyena_x(kernel=4)" in out
    assert run("graft", "--config", recipe)[0] == 0
    a, b = api.load(tmp_path / "by_arguments"), api.load(tmp_path / "run" / "grafted")
    assert a.spec == b.spec
    assert a.meta.sites == ("blocks[1].mixer", "blocks[3].mixer")
    assert_trees_close(a.params, b.params, rtol=0, atol=0)


@pytest.mark.slow
def test_the_demo_config_serves_the_single_verbs_too(run, tmp_path):
    assert run("graft", "--config", CONFIGS / "demo_graft.py", "--workdir", tmp_path / "demo")[0] == 0
    assert len(api.load(tmp_path / "demo" / "grafted").meta.sites) == 5


def test_graft_seeds_and_resizes(run, tmp_path, teacher):
    for seed in (0, 1):
        argv = ("--edit=blocks[0].mlp=3", "--edit=blocks[1].mixer=swa(window=2)", f"--seed={seed}")
        assert run("graft", teacher, *argv, "--out", tmp_path / f"seed{seed}")[0] == 0
    a, b = (api.load(tmp_path / f"seed{seed}") for seed in (0, 1))
    assert a.spec == b.spec
    assert a.spec.blocks[0]["mlp"].option("ratio") == 3.0
    assert a.spec.blocks[1]["mixer"].option("window") == 2
    changed = [np.any(x != y) for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True)]
    assert 0 < sum(changed) <= 8  # weights and biases of four linears


def test_refused_graft_keeps_what_was_there(run, refused, tmp_path, teacher):
    out = tmp_path / "out"
    assert run("graft", teacher, "--edit=blocks[1].mixer=swa", "--out", out)[0] == 0
    before = contents(out)
    refused("graft", teacher, "--edit=blocks[2].mixer=swa", "--out", out)
    refused("graft", teacher, "--edit=blocks[7].mixer=swa", "--out", out, "--overwrite")
    assert contents(out) == before
    assert run("graft", teacher, "--edit=blocks[2].mixer=swa", "--out", out, "--overwrite")[0] == 0
    assert contents(out) != before


def test_doctor_reports_every_package_and_device(run):
    code, out, _ = run("doctor")
    assert code == 0
    for word in ("jax", "safetensors", "device 0", "expected 6"):
        assert word in out
    assert "MISSING" not in out
    for kind in ("model", "autoencoder", "classifier"):
        assert re.search(rf"demo {kind} +there", out)


def test_bench_list_names_all_measurements(run):
    from graftax.evaluate.bench import BENCHES

    code, out, _ = run("bench", "list")
    assert code == 0
    assert all(name in out for name in BENCHES)
