"""Compiling for TPUs that are not there: steps of a small model in this process, configs in children, the parser by hand."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from graftax import ops
from graftax.cli.experiments import aot
from graftax.cli.main import main
from graftax.distill import DistillConfig
from graftax.errors import BadInput
from graftax.evaluate.aot import REMATERIALISATION, Program, format_report, measure, parse_topology, require_libtpu
from graftax.evaluate.aot.hlo import Collective, collectives
from graftax.evaluate.aot.programs import sample_program, stage1_program, train_program
from graftax.evaluate.aot.topology import ENVIRONMENT
from graftax.models import dit_spec
from graftax.models.cost import count_params, flops
from graftax.spec import op
from graftax.surgery.select import select
from graftax.train import MeshConfig, OptimiserConfig
from graftax.train.sharding import batch_sharding, replicated

CONFIGS = Path(__file__).parents[3] / "configs"
SPEC = dit_spec(input_size=8, patch_size=2, hidden_size=64, depth=1, num_heads=2, num_classes=10)
HYENA = ops.resolve(op("hyena_x"), "mixer", 64, SPEC.tokens, 2)
STUDENT = SPEC.replace(blocks=(dataclasses.replace(SPEC.blocks[0], mixer=HYENA),))
SITES = select("blocks[0].mixer", STUDENT)
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


@pytest.fixture(scope="module")
def rows():
    """The three steps of a small hybrid, its weights over 8 chips."""
    pytest.importorskip("libtpu")
    topology, mesh = parse_topology("v5e:2x4"), MeshConfig(fsdp=8)
    programs = (
        stage1_program(SPEC, STUDENT, SITES, DistillConfig(dtype="bfloat16"), 16),
        train_program("stage 2", STUDENT, OptimiserConfig(), 16, frozen=("pos_embed",), dtype="bfloat16"),
        sample_program(STUDENT, 16, steps=5, dtype="bfloat16"),
    )
    return [{**measure(program, topology, mesh), "warnings": []} for program in programs]


def test_a_small_model_compiles_for_tpus(rows):
    for row in rows:
        assert row["fits"]
        assert 0 < row["argument_bytes"] <= row["peak_bytes"] < 2**30
        assert row["code_bytes"] > 0
        assert row["seconds"] == pytest.approx(row["flops"] / (8 * PEAK * 0.4))
    assert json.loads(json.dumps(rows)) == rows


def test_flops_are_those_of_the_model(rows):
    stage1, stage2, sampling = (row["flops"] for row in rows)
    assert stage2 == 16 * 3 * flops(STUDENT)
    assert sampling == 16 * 2 * 5 * flops(STUDENT)  # guidance runs the model twice
    assert 16 * flops(SPEC, head=False) < stage1 < 16 * 3 * flops(SPEC)


def test_weights_are_split_and_gathered(rows):
    stage1, stage2, sampling = rows
    whole = 4 * count_params(STUDENT)
    assert stage2["argument_bytes"] < 4 * whole / 2  # weights, averages, two moments; small leaves stay whole
    assert sampling["argument_bytes"] > whole
    for row in (stage1, stage2):
        assert row["collectives"]["all-gather"]["bytes"] > 0
        assert {"reduce-scatter", "all-reduce", "collective-permute"} & row["collectives"].keys()


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
    with pytest.raises(BadInput, match="train on v5e:2x4: batch size 4: does not divide over 8 devices"):
        measure(train_program("train", SPEC, OptimiserConfig(), 16, accumulate=4), parse_topology("v5e:2x4"), MeshConfig())


# --- The command ---------------------------------------------------------------------------------------------------------

TINY = """\
def get_config(argument="2"):
    sizes = {"input_size": 8, "patch_size": 2, "hidden_size": 64, "depth": int(argument), "num_heads": 2}
    mesh = {"fsdp": 2}
    return {"task": "dit", "workdir": "runs/none", "model": sizes, "loop": {"steps": 1}, "batch_size": 8, "mesh": mesh}
"""


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    return file


def test_a_config_compiles_in_a_child_without_complaints(tiny, capsys):
    """With a batch over two mesh axes and weights over one, whatever is not held in place makes the compiler complain."""
    pytest.importorskip("libtpu")
    command = ["bench", "--aot", "v5e:2x2", "--config", f"{tiny}:1", "--step", "train", "--json"]
    assert main([*command, "--config.batch_size=16"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["step"], row["chips"], row["batch"], row["fits"], row["warnings"]) == ("train", "v5e:2x2", 16, True, [])


def test_complaints_of_the_compiler_are_collected(tiny, monkeypatch):
    line = f"W1 spmd_partitioner.cc:654] [SPMD] {REMATERIALISATION}. The compiler cannot go from"

    def run(command, **options):
        assert options["env"]["TPU_STDERR_LOG_LEVEL"] == "1"  # else libtpu keeps them to itself
        return subprocess.CompletedProcess(command, 0, '{"step": "train"}\n', f"noise\n{line}\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert aot.compile_steps("v5e:2x4", str(tiny), [], ["train"]) == [{"step": "train", "warnings": [line]}]


def test_a_child_that_dies_shows_its_last_words(tiny, monkeypatch):
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, -6, "", "a\nLast words")
    )
    with pytest.raises(RuntimeError, match=r"train for v5e:2x4 ended with -6:\na\nLast words"):
        aot.compile_steps("v5e:2x4", str(tiny), [], ["train"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--aot", "v5e:9"], "bench --aot: expected --config FILE"),
        (["--aot", "v5e:9", "--config", "TINY"], "topology: got 'v5e:9', expected one like v5e:2x4"),
        (["--aot", "v5e:2x4", "--config", "TINY", "--step", "stage 1"], "step 'stage 1': expected some of train, sampling"),
        (["--aot", "v5e:2x4", "--config", "TINY", "--config.mesh.fsdp=3"], "do not multiply to the 8 devices"),
        (["--aot", "v5e:2x4", "--config", "TINY", "--config.mdoel.depth=3"], "config.mdoel: unknown key"),
        (["--aot", "v5e:2x4", "forward", "--config", "TINY"], "no name of a measurement"),
        (["--aot", "v5e:2x4", "--config", str(CONFIGS / "demo_sweep.py")], "expected one experiment"),
        (["forward", "--config", "TINY"], "belong to --aot"),
        ([], "expected the name of a measurement, list, or --aot"),
    ],
)
def test_misuse_is_one_line(arguments, message, tiny, capsys):
    assert main(["bench", *(str(tiny) if text == "TINY" else text for text in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_teachers_are_known_by_their_names():
    assert aot.teacher_spec("weights/DiT-XL-2-512x512.pt").tokens == 1024
    with pytest.raises(BadInput, match=r"teacher 'nobody.pt': no such file"):
        aot.teacher_spec("nobody.pt")


# --- Long ----------------------------------------------------------------------------------------------------------------


def shipped():
    """(slice, config, steps) of every `graftax bench --aot` that the docstring of a config names."""
    for file in sorted(CONFIGS.glob("*.py")):
        for line in re.findall(r"^    graftax bench --aot .*$", file.read_text(), re.MULTILINE):
            match = re.fullmatch(r"    graftax bench --aot (\S+)(?: --step '([^']+)')? --config (\S+)", line)
            yield match[1], str(CONFIGS.parent / match[3]), [match[2]] if match[2] else []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("topology", "config", "steps"), list(shipped()), ids=lambda value: Path(str(value)).name)
def test_every_shipped_config_fits_its_pod(topology, config, steps):
    pytest.importorskip("libtpu")
    for row in aot.compile_steps(topology, config, [], steps):
        assert row["fits"]
        assert row["warnings"] == []


@pytest.mark.slow
def test_the_compiler_complains_where_activations_are_not_held(tiny):
    """So the environment lets its warnings through, and the models need their constraints."""
    pytest.importorskip("libtpu")
    code = f"""
import sys
from contextlib import nullcontext
from graftax.cli.experiments import aot
from graftax.train import step
step.activations = lambda mesh, rules: nullcontext()
sys.exit(aot.main(["v5e:2x2", "train", "{tiny}:1"]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True)
    assert REMATERIALISATION in done.stderr
