"""What a new user met at the command line, each as it was found: names mistyped, outputs in the way, flags at odds."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from graftax import api, config, platforms
from graftax.checkpoint.tensors import read_tensors
from graftax.checkpoint.torch_writer import write_torch
from graftax.errors import BadInput
from graftax.testing import random_params


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("inspekt", "demo"), "did you mean 'inspect'?"),
        (("sample", "demo", "--lables", "1"), "did you mean '--labels'?"),
        (("sample", "demo", "--sampler", "dim", "--out", "x.png"), "did you mean 'ddim'?"),
        (("inspect", "a", "b", "c"), "got c beside what it takes"),
    ],
)
def test_usage_errors_name_what_was_meant_under_the_usage_of_the_verb(run, argv, expected):
    code, _, err = run(*argv)
    assert code == 2
    assert expected in err
    assert err.startswith("usage: graftax [-h]" if argv[0] == "inspekt" else f"usage: graftax {argv[0]}")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("graft", "{m}", "--edit=blocks[1].mixer=swaa", "--out={t}/x"), "did you mean 'swa'?"),
        (("graft", "{m}", "--edit=replace(blocks[1].mixre, swa)", "--out={t}/x"), "did you mean 'mixer'?"),
        (("graft", "{m}", "--edit=replce(blocks[1].mixer, swa)", "--out={t}/x"), "did you mean 'replace'?"),
        (("graft", "{m}", "--edit=blocks[1].mixer=swa(windw=2)", "--out={t}/x"), "did you mean 'window'?"),
        (("graft", "--config=configs/demo_grft.py"), "did you mean 'configs/demo_graft.py'?"),
        (("cost", "demo", "--chip=v5ee"), "did you mean 'v5e'?"),
        (("bench", "forwrd"), "did you mean 'forward'?"),
        (("analyze", "demo", "--what=localty"), "did you mean 'locality'?"),
        (("sample", "{t}/wd/grafted", "--out={t}/x.png"), "run `graftax graft --config ...` first"),
        (("inspect", "DiT-XL-2-256x256.pt"), "it is published at https://"),
        (("graft", "{m}", "--edit=blocks[1].mixer=swa", "--out=demo"), "demo: the name of the model that graftax brings"),
        (("convert", "{m}", "demo"), "demo: the name of the model that graftax brings"),
        (("convert", "{m}", "{t}/x.onnx"), "suffix '.onnx'"),
        (("graft", "{m}", "--edit=blocks[1].mixer=swa", "--out={t}/" + 300 * "a"), "too long"),
        (("sample", "{m}", "--out={t}/x.png", "--cfg-channels=9"), "--cfg-channels: got 9, expected at most the model's 1"),
        (("sample", "{m}", "--out={t}/x.png", "--cfg-scale=inf"), "guidance scale: inf"),
        (("graft", "{m}", "--edit=blocks[1].mixer=swa", "--edit=blocks[*].mixer=hyena_x", "--out={t}/x"), "already"),
        (("evaluate", "--samples={t}/images.npz"), "--reference is missing"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_do(refused, tmp_path, teacher, data, argv, expected):
    before = sorted(tmp_path.rglob("*"))
    assert expected in refused(*(text.format(m=teacher, t=tmp_path) for text in argv))
    assert sorted(tmp_path.rglob("*")) == before


def test_config_keys_and_contradictions(refused, recipe):
    graft = ("graft", "--config", recipe)
    assert "did you mean 'finetune'?" in refused(*graft, "--config.finetun.batch_size=3")
    assert "--config.workdir: got 'B' and 'A'" in refused(*graft, "--workdir=A", "--config.workdir=B")
    assert "--config.graft.seed: got '1' and '2'" in refused(*graft, "--config.graft.seed=1", "--config.graft.seed=2")


def test_sites_may_be_exchanged_again_where_blocks_got_other_numbers(run, tmp_path, teacher):
    edits = ("--edit=blocks[0].mixer=swa", "--edit=drop(0)", "--edit=blocks[0].mixer=hyena_x")
    assert run("graft", teacher, *edits, "--out", tmp_path / "x")[0] == 0


@pytest.mark.slow
def test_a_refused_resumption_names_folder_field_and_remedy(run, refused, recipe, tmp_path):
    run("graft", "--config", recipe)
    assert run("distill", "--config", recipe)[0] == 0
    said = refused("distill", "--config", recipe, "--config.distill.settings.steps=4")
    folder = tmp_path / "run" / "distill" / "checkpoints"
    assert f"{folder}: metadata.distill.steps: the checkpoint has 6, this run 4; give the same value to resume" in said
    _, out, _ = run("inspect", *(tmp_path / "run" / name for name in ("grafted", "distilled")))
    assert "blocks[1,3].mixer   hyena_x(kernel=4), retrained (2 sites)\n" in out, "no second graft"
    assert "new weights" not in out


def test_a_work_folder_that_cannot_be_made_is_refused(refused, recipe):
    assert "/proc/nothing: cannot be written" in refused("graft", "--config", recipe, "--workdir", "/proc/nothing")


def test_distill_before_graft_says_so(refused, recipe, tmp_path):
    said = refused("distill", "--config", recipe)
    assert f"model '{tmp_path}/run/grafted': no such folder; run `graftax graft --config ...` first" in said


@pytest.mark.parametrize("key", ["data.source", "data.latents"])
def test_a_picture_named_npz_is_called_what_it_is(refused, run, recipe, tmp_path, key):
    run("graft", "--config", recipe)
    (tmp_path / "p.npz").write_bytes(b"\x89PNG\r\n\x1a\n")
    given = ("--config.data.latents=given",) if key == "data.latents" else ()
    said = refused("distill", "--config", recipe, f"--config.data.source={tmp_path}/p.npz", *given)
    assert "p.npz: not an .npz file" in said
    assert "pickle" not in said


def test_a_model_of_nan_draws_nothing(run, tmp_path, spec):
    params = random_params(spec, jax.random.key(0))
    params["blocks"]["01"]["mixer"]["proj"]["bias"] = params["blocks"]["01"]["mixer"]["proj"]["bias"].at[0].set(np.nan)
    api.save(api.Model(spec, params), tmp_path / "nan")
    code, _, err = run("sample", tmp_path / "nan", "--steps=2", "--per-class=1", f"--out={tmp_path}/x.png")
    assert code == 3
    assert "weights blocks/01/mixer/proj/bias: NaN or infinite" in err
    assert not (tmp_path / "x.png").exists()
    assert run("cost", tmp_path / "nan", "--measure", "--rounds=1")[0] == 3


def test_the_demo_converts_and_parents_are_made(run, tmp_path):
    assert run("convert", "demo", tmp_path / "a" / "b" / "d.pt")[0] == 0
    assert run("inspect", tmp_path / "a" / "b" / "d.pt")[0] == 0
    write_torch(tmp_path / "foreign.pt", read_tensors(tmp_path / "a" / "b" / "d.pt")[0])  # as others write it
    code, _, err = run("inspect", tmp_path / "foreign.pt")
    assert code == 2
    assert "give --num-heads=..." in err


@pytest.mark.parametrize(
    ("argv", "output"),
    [
        (("graft", "{m}", "--edit=blocks[1].mixer=swa", "--out={t}/a/b/x"), "a/b/x/graftax.json"),
        (("sample", "{m}", "--steps=2", "--per-class=1", "--out={t}/a/b/x.npz"), "a/b/x.npz"),
        (("convert", "{m}", "{t}/a/b/x.safetensors"), "a/b/x.safetensors"),
        (("cost", "{m}", "--batch=1", "--out={t}/a/b/cost"), "a/b/cost/cost.json"),
    ],
    ids=lambda argv: argv[0] if isinstance(argv, tuple) else "",
)
def test_outputs_are_replaced_only_when_asked_to(run, refused, tmp_path, teacher, argv, output):
    argv = [text.format(m=teacher, t=tmp_path) for text in argv]
    code, _, err = run(*argv)
    assert (code, (tmp_path / output).exists()) == (0, True), err
    before = (tmp_path / output).stat().st_mtime_ns
    assert "exists already, expected a new name or --overwrite" in refused(*argv)
    assert (tmp_path / output).stat().st_mtime_ns == before
    assert run(*argv, "--overwrite")[0] == 0
    assert (tmp_path / output).stat().st_mtime_ns > before


def test_graft_by_config_replaces_only_when_asked_to(run, refused, recipe):
    assert run("graft", "--config", recipe)[0] == 0
    assert "exists already" in refused("graft", "--config", recipe)
    assert run("graft", "--config", recipe, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    "argv",
    [("inspect", "demo"), ("inspect", "demo", "DiT-S/8"), ("inspect", "DiT-S/8", "--cost", "--params", "--mesh=fsdp=2"),
     ("cost", "DiT-S/8", "--batch=1"), ("zoo",), ("zoo", "DiT-XL-2-256x256"), ("doctor",), ("bench", "list")],
    ids=" ".join,
)  # fmt: skip
def test_json_is_all_that_stdout_gets(run, argv):
    code, out, err = run(*argv, "--json")
    assert code == 0, err
    assert json.loads(out)


def test_quiet_leaves_results_alone(run, tmp_path, teacher):
    argv = ("sample", teacher, "--steps=2", "--per-class=1")
    code, out, err = run(*argv, f"--out={tmp_path}/x.npz")
    assert (code, err.startswith("sample 3/3"), out.startswith(str(tmp_path))) == (0, True, True)
    assert run(*argv, f"--out={tmp_path}/y.npz", "--quiet") == (0, out.replace("x.npz", "y.npz"), "")


def test_the_configs_of_the_readme_are_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.read("configs/demo_graft.py")["teacher"] == "demo"
    assert config.read("configs/grafting.py:swa,50")["graft"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo_graft.py").write_text("def get_config(): return {'teacher': 'mine'}")
    assert config.read("configs/demo_graft.py") == {"teacher": "mine"}, "one's own comes first"
    with pytest.raises(BadInput, match="no such file here, nor among those that graftax brings"):
        config.read("configs/nothing_like_it.py")


def test_an_absent_tpu_is_left_out_and_one_that_is_there_is_not(monkeypatch):
    monkeypatch.setattr(platforms.importlib.util, "find_spec", lambda name: True if name == "libtpu" else None)
    monkeypatch.setattr(platforms.importlib.metadata, "entry_points", lambda group: ())
    monkeypatch.setattr(platforms.glob, "glob", lambda pattern: [])
    for name in platforms.SIGNS:
        monkeypatch.delenv(name, raising=False)

    def chosen():
        monkeypatch.setenv(platforms.VARIABLE, "")
        platforms.leave_out_absent_tpus()
        return os.environ[platforms.VARIABLE]

    assert chosen() == "cpu"
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    assert chosen() == ""
    monkeypatch.delenv("TPU_WORKER_ID")
    monkeypatch.setattr(platforms.glob, "glob", lambda pattern: ["/dev/accel0"] * ("accel" in pattern))
    assert chosen() == ""


def test_without_jax_platforms_nobody_hears_of_tpus(teacher):
    environment = {key: value for key, value in os.environ.items() if key != platforms.VARIABLE}
    command = [sys.executable, "-m", "graftax.cli", "doctor", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
    assert "TPU" not in done.stderr
