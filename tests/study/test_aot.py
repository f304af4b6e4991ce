"""`graftax bench --aot`: what the steps of configs are, and their compilation in children."""

import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import graftax
from graftax.cli.main import main
from graftax.config import read
from graftax.errors import BadInput
from graftax.evaluate.aot import REMATERIALISATION
from graftax.evaluate.aot.topology import ENVIRONMENT
from graftax.models import Model
from graftax.study import aot
from graftax.surgery import parse
from graftax.testing import random_params, tiny_spec

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = """\
def get_config(argument="2"):
    sizes = {"input_size": 8, "patch_size": 2, "hidden_size": 64, "depth": int(argument), "num_heads": 2}
    mesh = {"fsdp": 2}
    training = {"loop": {"steps": 1}, "batch_size": 8}
    return {"task": "dit", "workdir": "runs/none", "model": sizes, "training": training, "mesh": mesh}
"""


@pytest.fixture
def tiny(tmp_path):
    file = tmp_path / "tiny.py"
    file.write_text(TINY)
    return file


@pytest.mark.slow
def test_a_config_compiles_in_a_child_without_complaints(tiny, capsys):
    """With a batch over two mesh axes and weights over one, whatever is not held in place makes the compiler complain."""
    pytest.importorskip("libtpu")
    kept = tiny.with_name("kept")
    command = ["bench", "--aot", "v5e:2x2", "--config", f"{tiny}:1", "--step", "train", "--json", "--keep", str(kept)]
    assert main([*command, "--config.training.batch_size=16"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert [name.name.partition("-")[0] for name in kept.glob("*-cache")] == ["jit_update"]
    assert (row["step"], row["chips"], row["batch"], row["fits"], row["warnings"]) == ("train", "v5e:2x2", 16, True, [])


def test_complaints_of_the_compiler_are_collected(tiny, monkeypatch):
    line = f"W1 spmd_partitioner.cc:654] [SPMD] {REMATERIALISATION}. The compiler cannot go from"

    def run(command, **options):
        assert options["env"]["TPU_STDERR_LOG_LEVEL"] == "1"  # else libtpu keeps them to itself
        return subprocess.CompletedProcess(command, 0, '{"step": "train"}\n', f"noise\n{line}\n")

    monkeypatch.setattr(subprocess, "run", run)
    assert aot.compile_steps("v5e:2x4", str(tiny), [], ["train"]) == [{"step": "train", "warnings": [line]}]


def test_programs_are_kept_where_they_are_asked_for_and_nowhere_else(tiny, tmp_path, monkeypatch, capsys):
    def run(command, **options):
        folder = options["env"]["JAX_COMPILATION_CACHE_DIR"]
        if folder:
            Path(folder).mkdir(exist_ok=True)
            (Path(folder) / "jit_update-1f-cache").write_bytes(bytes(2_500_000))
        return subprocess.CompletedProcess(command, 0, f'{{"step": "{folder}"}}\n', "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("graftax.evaluate.aot.format_report", lambda rows: rows[0]["step"])
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "the user's own")
    command = ["bench", "--aot", "v5e:2x4", "--config", str(tiny), "--step", "train"]
    assert main(command) == 0
    assert capsys.readouterr().out == "\n"
    kept = tmp_path / "kept"
    assert main([*command, "--keep", str(kept)]) == 0
    told = f"{kept}: 1 programs, 2.5 MB; on the slice: JAX_COMPILATION_CACHE_DIR={kept} graftax ..."
    assert capsys.readouterr().out == f"{kept}\n{told}\n"


def test_a_program_that_is_not_kept_is_said(tiny, tmp_path, monkeypatch):
    lost = "UserWarning: Error writing persistent compilation cache entry for 'jit_update': OSError: No space left"
    kept = tmp_path / "kept"

    def run(command, **_):
        (kept / "jit_update-2e-cache").write_bytes(b"cut o")
        return subprocess.CompletedProcess(command, 0, "{}", f"noise\n{lost}\n")

    monkeypatch.setattr(subprocess, "run", run)
    kept.mkdir()
    (kept / "jit_update-1f-cache").write_bytes(b"whole")
    with pytest.raises(BadInput, match=r"kept: train is not kept \(for 'jit_update': OSError: No space left\)"):
        aot.compile_steps("v5e:2x4", str(tiny), [], ["train"], kept)
    assert [entry.name for entry in kept.iterdir()] == ["jit_update-1f-cache"]
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"file/kept: cannot be made \(Not a directory\)"):
        aot.compile_steps("v5e:2x4", str(tiny), [], ["train"], tmp_path / "file" / "kept")


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
        (
            ["--aot", "v5e:2x4", "--config", str(CONFIGS / "demo_sweep.py")],
            "config.kind: got 'sweep', expected recipe or demo",
        ),
        (["forward", "--config", "TINY"], "belong to --aot"),
        (["forward", "--keep", "there"], "belong to --aot"),
        (["--aot", "v5e:2x4", "--config", "TINY", "--keep", "TINY"], "a file, expected a folder"),
        ([], "expected the name of a measurement, list, or --aot"),
    ],
)
def test_misuse_is_one_line(arguments, message, tiny, capsys):
    assert main(["bench", *(str(tiny) if text == "TINY" else text for text in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


EDITS = (
    "replace(blocks[0,2].mixer, hyena_x)", "replace(blocks[1].mixer, mha)", "resize(blocks[*].mlp, ratio=2)",
    "compose(replace(blocks[3].mixer, swa), drop(0), replace(blocks[0].mlp, mlp_hyena_x))", "parallel_pairs()",
    "compose(replace(blocks[1].mixer, swa), lora(blocks[*].mixer, rank=2), merge_lora())", "tie((1, 2))", "reverse(0, 3)",
    "replace(blocks[*].adaln, adaln_lowrank(rank=4))", "hybrid(rms_norm: blocks[1].norm2, hyena_y: blocks[2].mixer)",
)  # fmt: skip


@functools.cache
def teacher():
    return Model(tiny_spec(), random_params(tiny_spec(), jax.random.key(0)))


@pytest.mark.parametrize("text", EDITS)
def test_a_dry_run_finds_what_the_edit_does(text):
    grafted = graftax.graft(teacher(), parse(text), rng=jax.random.key(1))
    after, sites = aot.dry_run(parse(text), teacher().spec)
    assert (after, tuple(map(str, sorted(sites)))) == (grafted.spec, grafted.meta.sites)


def names(tree):
    programs, _ = aot.programs_of(tree)
    return [(program.name, program.images) for program in programs]


def test_a_recipe_is_two_stages_and_sampling():
    tree = read(str(CONFIGS / "grafting.py:hyena_x,50"))
    assert names(tree) == [("stage 1", 64), ("stage 2", 256), ("sampling", 256)]
    assert names(read(str(CONFIGS / "demo_graft.py")))[-1] == ("sampling", 100)
    modulations = {**tree, "graft": {"edits": ("replace(blocks[*].adaln, adaln_shared)",)}}
    assert [name for name, _ in names(modulations)] == ["stage 2", "sampling"]


@pytest.mark.parametrize(("argument", "images", "tensor"), [("flux-schnell,8", 1, 8), ("auraflow-0.3,8", 2, 4)])
def test_a_published_model_draws_on_chips_that_share_its_heads(argument, images, tensor):
    ((program,), mesh) = aot.programs_of(read(str(CONFIGS / f"drawing.py:{argument}")))
    assert (program.name, program.images, mesh.fsdp, mesh.tensor) == ("sampling", images, images, tensor)
    tree = read(str(CONFIGS / f"drawing.py:{argument}"))
    with pytest.raises(BadInput, match=r"tensor=5 does not divide the model's \d+ heads"):
        aot.programs_of({**tree, "mesh": {"tensor": 5}})
    with pytest.raises(BadInput, match="dtype: got 'int8', expected a float type"):
        aot.programs_of({**tree, "weights": "int8"})
    with pytest.raises(BadInput, match="model 'nobody': no such file"):
        aot.programs_of({**tree, "model": "nobody"})
    for wrong in ("flux-schnell", "flux-schnell,0", "flux-schnel,8"):
        with pytest.raises(BadInput, match=f"got '{wrong}', expected MODEL,CHIPS"):
            read(str(CONFIGS / f"drawing.py:{wrong}"))


def test_small_networks_have_no_such_steps():
    with pytest.raises(BadInput, match=r"config.task: got 'classifier', expected one of"):
        aot.programs_of(read(str(CONFIGS / "demo_classifier.py")))


def test_teachers_are_known_by_their_names():
    assert aot.named_spec("weights/DiT-XL-2-512x512.pt").tokens == 1024
    with pytest.raises(BadInput, match=r"teacher 'nobody.pt': no such file"):
        aot.named_spec("nobody.pt")


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
from graftax.study import aot
from graftax.train import step
step.activations = lambda mesh, rules: nullcontext()
sys.exit(aot.main(["v5e:2x2", "train", "{tiny}:1"]))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=True)
    assert REMATERIALISATION in done.stderr
