"""Compiling for TPUs that are not there: steps of a small model, the parser of their code by hand."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from graftax.backbones.dit import dit_spec
from graftax.diffusion import Sampling
from graftax.distill import DistillConfig
from graftax.errors import BadInput
from graftax.evaluate.aot import REMATERIALISATION, Program, format_report, measure, parse_topology, require_libtpu
from graftax.evaluate.aot.hlo import Collective, collectives
from graftax.evaluate.aot.programs import sample_program, stage1_program, train_program
from graftax.models.cost import count_params, flops
from graftax.surgery import replace, select
from graftax.train import DiffusionConfig, LoopConfig, MeshConfig
from graftax.train.sharding import batch_sharding, replicated

SPEC = dit_spec(input_size=8, patch_size=2, hidden_size=64, depth=1, num_heads=2, num_classes=10)
STUDENT = replace("blocks[0].mixer", "hyena_x").on(SPEC)
SITES = select("blocks[0].mixer", STUDENT)
STAGE_2 = DiffusionConfig(loop=LoopConfig(1), batch_size=16, compute_dtype="bfloat16")
PEAK = 197e12

HLO = """\
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%cut_a (p: f32[8,64]) -> f32[64,64] {
  ROOT %ag.1 = f32[64,64]{1,0:T(8,128)S(1)} all-gather(%p), channel_id=5, dimensions={0}
}

%cut_b (p: f32[8,64]) -> f32[64,64] {
  ROOT %ag.2 = f32[64,64]{1,0:T(8,128)} all-gather(%p), channel_id=5, dimensions={0}
}

%all-reduce-scatter.3 (p: bf16[64,32]) -> bf16[8,32] {
  %ar = bf16[64,32]{1,0} all-reduce(%p), channel_id=6, to_apply=%add
  ROOT %ds = bf16[8,32]{1,0} dynamic-slice(%ar, %i)
}

%inner (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %cp = (f32[64]{0}, f32[64]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%x), channel_id=7
  %cpd = f32[64]{0} collective-permute-done(%cp)
}

%inner_cond (p: (s32[], f32[64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %f.1 = f32[64,64]{1,0} fusion(%p), kind=kCustom, calls=%cut_a
  %f.2 = f32[64,64]{1,0} fusion(%p), kind=kCustom, calls=%cut_b
  %f.3 = bf16[8,32]{1,0} fusion(%q), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %w = (s32[], f32[64]) while(%p), condition=%inner_cond, body=%inner
}

%cond (p: (s32[], f32[64])) -> pred[] {
  %limit = s32[]{:T(128)} constant(14)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%left (p: f32[64]) -> f32[64] {
  ROOT %a2a.1 = s8[16]{0} all-to-all(%p), channel_id=8
}

%right (p: f32[64]) -> f32[64] {
  ROOT %a2a.2 = pred[16]{0} all-to-all(%p), channel_id=9
}

ENTRY %main.1 (p: f32[64]) -> f32[] {
  %w = (s32[], f32[64]) while(%t), condition=%cond, body=%body
  %c = f32[64] conditional(%i, %p, %p), branch_computations={%left, %right}
  ROOT %r = (f32[]{:T(128)}, f32[10]{0}) all-reduce(%x, %y), channel_id=10, to_apply=%add
}
"""


def test_collectives_by_hand():
    assert collectives(HLO) == {
        "all-gather": Collective(14, 14 * 64 * 64 * 4),  # in two pieces of one channel
        "all-reduce": Collective(1, 10 * 4),
        "reduce-scatter": Collective(14, 14 * 64 * 32 * 2),
        "all-to-all": Collective(2, 16 + 16),  # both branches
        "collective-permute": Collective(14 * 3, 14 * 3 * 64 * 4),
    }


def test_no_collectives():
    assert collectives("HloModule m\n\nENTRY %main (p: f32[2]) -> f32[2] {\n  ROOT %r = f32[2] copy(%p)\n}\n") == {}


@pytest.mark.parametrize(("name", "size"), [("v5e:2x4", 8), ("v5e:16x16", 256), ("v4:2x2x4", 16), ("v6e:4x4", 16)])
def test_topologies(name, size):
    topology = parse_topology(name)
    assert (str(topology), topology.size) == (name, size)


@pytest.mark.parametrize("name", ["v5e", "v5e:8", "v4:2x4", "v5e:2x2x2", "v9:2x4", "v5litepod-8", "v5e:0x4", "h100:2x4"])
def test_unknown_topologies_get_examples(name):
    with pytest.raises(BadInput, match=rf"topology: got '{name}', expected one like v5e:2x4"):
        parse_topology(name)


def test_missing_libtpu_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"libtpu is not installed, expected pip install graftax\[tpu\]"):
        require_libtpu()


PROGRAMS = {
    "stage 1": lambda: stage1_program(SPEC, STUDENT, SITES, DistillConfig(dtype="bfloat16"), 16),
    "stage 2": lambda: train_program("stage 2", STUDENT, STAGE_2),
    "sampling": lambda: sample_program(STUDENT, 16, Sampling(steps=5), dtype="bfloat16"),
}


@pytest.fixture(scope="module")
def compiled():
    """Rows of the steps of a small hybrid by their names, its weights over 8 chips."""
    pytest.importorskip("libtpu")
    topology, mesh = parse_topology("v5e:2x4"), MeshConfig(fsdp=8)
    return functools.cache(lambda name: {**measure(PROGRAMS[name](), topology, mesh), "warnings": []})


@pytest.fixture
def rows(compiled):
    return [compiled(name) for name in PROGRAMS]


def test_a_training_step_compiles_for_tpus(compiled):
    row = compiled("stage 2")
    assert row["fits"]
    assert 0 < row["argument_bytes"] <= row["peak_bytes"] < 2**30
    assert row["code_bytes"] > 0
    assert row["flops"] == 16 * 3 * flops(STUDENT)
    assert row["argument_bytes"] < 2 * 4 * count_params(STUDENT)
    assert row["collectives"]["all-gather"]["bytes"] > 0
    assert re.search(r"^stage 2 +all-gather +\d", format_report([row]), re.MULTILINE)


@pytest.mark.slow
def test_a_small_model_compiles_for_tpus(rows):
    for row in rows:
        assert row["fits"]
        assert 0 < row["argument_bytes"] <= row["peak_bytes"] < 2**30
        assert row["code_bytes"] > 0
        assert row["seconds"] == pytest.approx(row["flops"] / (8 * PEAK * 0.4))
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.slow
def test_flops_are_those_of_the_model(rows):
    stage1, stage2, sampling = (row["flops"] for row in rows)
    assert stage2 == 16 * 3 * flops(STUDENT)
    assert sampling == 16 * 2 * 5 * flops(STUDENT)  # guidance runs the model twice
    assert 16 * flops(SPEC, head=False) < stage1 < 16 * 3 * flops(SPEC)


@pytest.mark.slow
def test_weights_are_split_and_gathered(rows):
    stage1, stage2, sampling = rows
    whole = 4 * count_params(STUDENT)
    assert stage2["argument_bytes"] < 4 * whole / 2  # weights, averages, two moments; small leaves stay whole
    assert sampling["argument_bytes"] > whole
    for row in (stage1, stage2):
        assert row["collectives"]["all-gather"]["bytes"] > 0
        assert {"reduce-scatter", "all-reduce", "collective-permute"} & row["collectives"].keys()


def test_loaded_weights_are_of_their_type():
    program, mesh = sample_program(SPEC, 2, Sampling(steps=2), loaded="bfloat16"), MeshConfig().build(jax.devices()[:1])
    shapes = program.trace(mesh, MeshConfig().rules).jaxpr.in_avals
    assert sum(one.size for one in shapes if one.dtype == jnp.bfloat16) == count_params(SPEC)


@pytest.mark.slow
def test_loaded_weights_are_split():
    pytest.importorskip("libtpu")
    program = sample_program(SPEC, 4, Sampling(steps=2), dtype="bfloat16", loaded="bfloat16")
    row = measure(program, parse_topology("v5e:2x4"), MeshConfig(fsdp=4, tensor=2))
    assert row["argument_bytes"] < 2 * count_params(SPEC) / 2  # small leaves stay whole, and there are noise and keys
    assert row["collectives"].keys() & {"all-gather", "all-reduce"}


@pytest.mark.slow
def test_the_report_names_every_step_and_collective(rows):
    text = format_report([{**rows[0], "warnings": [f"W {REMATERIALISATION} of %x"]}, *rows[1:]])
    assert [line.split("  ")[0] for line in text.splitlines()[1:4]] == ["stage 1", "stage 2", "sampling"]
    assert re.search(r"^stage 2 +all-gather +\d", text, re.MULTILINE)
    assert "not run" in text
    assert f"stage 1: W {REMATERIALISATION} of %x" in text


def test_a_loop_of_sums_is_counted_as_it_runs():
    pytest.importorskip("libtpu")

    def trace(mesh, rules):
        def summed(x, _):
            return jax.lax.psum(jnp.sin(x), "fsdp"), None

        def local(x):
            return jax.lax.scan(summed, x, length=11)[0]

        run = jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
        return jax.jit(run).trace(jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=replicated(mesh)))

    row = measure(Program("sums", 8, 10, trace), parse_topology("v5e:2x4"), MeshConfig(fsdp=8))
    assert row["collectives"] == {"all-reduce": {"count": 11, "bytes": 11 * 64 * 1024 * 4}}


def test_what_does_not_fit_is_told_and_no_error():
    pytest.importorskip("libtpu")

    def trace(mesh, rules):
        huge = jax.ShapeDtypeStruct((8, 2**32), jnp.float32, sharding=batch_sharding(mesh))  # 16 GiB a chip, and a copy
        return jax.jit(lambda x: x + 1).trace(huge)

    row = measure(Program("huge", 8, 10, trace), parse_topology("v5e:2x4"), MeshConfig())
    assert not row["fits"]
    assert row["peak_bytes"] == 2 * 2**34
    assert row["collectives"] is row["temporary_bytes"] is None
    assert "no" in format_report([{**row, "warnings": []}]).splitlines()[1].split()


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(BadInput, match="sampling on v5e:2x4: batch size 12: does not divide over 8 devices"):
        measure(sample_program(SPEC, 12), parse_topology("v5e:2x4"), MeshConfig(fsdp=8))
    pieces = DiffusionConfig(loop=LoopConfig(1), batch_size=16, accumulate=4)
    with pytest.raises(BadInput, match="train on v5e:2x4: batch size 4: does not divide over 8 devices"):
        measure(train_program("train", SPEC, pieces), parse_topology("v5e:2x4"), MeshConfig())
