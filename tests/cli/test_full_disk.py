"""Every verb that writes, on a disk that is full: one line, exit code 2, nothing half made, what was there untouched.

On a small file system of its own (tmpfs), which only root may mount; elsewhere the limits on file sizes of
`tests/train/test_loop.py` and `tests/checkpoint/test_files.py` have to do.
"""

import json
import os
import subprocess
import sys
import zipfile

import jax
import pytest
from PIL import Image

from graftax.checkpoint import save_model
from graftax.checkpoint.tensors import read_safetensors
from graftax.testing import random_params, tiny_spec

SIZE = 8_000_000
ROOMS = (0, 8_192, 40_960, 131_072, 262_144)
"""Bytes that are left for a command."""

TRAIN = """
def get_config():
    return {{
        "task": "dit", "workdir": {workdir!r}, "data": {{"source": {data!r}, "size": 8, "held_out": 0.25}},
        "model": {{
            "input_size": 8, "in_channels": 1, "patch_size": 2, "hidden_size": 32, "depth": 2, "num_heads": 2,
            "num_classes": 3,
        }},
        "training": {{"loop": {{"steps": 4, "save_every": 2, "eval_every": 2}}, "batch_size": 8}},
    }}
"""
STUDY = """
def get_config():
    edits = {{"edits": ("blocks[50%].mixer=hyena_x(kernel=4)",)}}
    return {{
        "kind": {kind!r}, "workdir": {workdir!r}, "teacher": {teacher!r}, {named!r}: {{"one": edits}},
        "judging": {{"classifier": {judge!r}, "judged": 12, "shown": 1, "sample": {{"steps": 2, "batch_size": 12}}}},
        "data": {{"source": {data!r}, "size": 8, "held_out": 0.25}},
        "distill": {{"settings": {{"steps": 2}}, "batch_size": 8, "eval_every": 1, "save_every": 1}},
        "finetune": {{"loop": {{"steps": 2, "save_every": 1}}, "batch_size": 8}},
    }}
"""


@pytest.fixture
def disk(tmp_path):
    """A folder on a file system of `SIZE` bytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", folder], capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk, room):
    """Leave `room` bytes."""
    (disk / "ballast").unlink(missing_ok=True)
    free = os.statvfs(disk)
    (disk / "ballast").write_bytes(bytes(max(0, free.f_bavail * free.f_bsize - room)))


def contents(disk):
    files = [path for path in sorted(disk.rglob("*")) if path.name != "ballast"]
    return {path.relative_to(disk).as_posix(): path.read_bytes() if path.is_file() else None for path in files}


def assert_whole(disk):
    """No file is cut off, no folder is empty, nothing is temporary."""
    for path in disk.rglob("*"):
        assert not path.name.endswith((".tmp", ".lock")), path
        assert "orbax-checkpoint-tmp" not in path.name, path
        if "checkpoints" in path.parts or path.name in ("ballast", "work"):
            continue
        if path.is_dir():
            assert any(path.iterdir()), path
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npz":
            assert zipfile.ZipFile(path).testzip() is None
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.suffix == ".safetensors":
            read_safetensors(path)
        else:
            assert path.stat().st_size or path.name == "metrics.jsonl", path


def squeeze(run, disk, command, rooms=ROOMS, *, once, over=()):
    """Run a command with ever more room. `once`: it leaves nothing where it fails; `over`: arguments to replace a result."""
    failed = 0
    for room in rooms:
        fill(disk, room)
        before = contents(disk)
        code, out, err = run(*command)
        assert code in (0, 2), (room, out, err)
        if code == 2:
            failed += 1
            assert err.splitlines()[-1].startswith("graftax: error: "), err
            assert str(disk) in err.splitlines()[-1], err
            assert "Traceback" not in err, err
            assert ".tmp" not in err, err
            if once:
                assert contents(disk) == before, room
        assert_whole(disk)
        (disk / "ballast").unlink()
        if code == 0:
            break
    assert failed, "there was room enough"
    code, out, err = run(*command, *(over if code == 0 else ()))
    assert code == 0, (out, err)
    assert_whole(disk)
    if over:  # a second time, over the result
        before = contents(disk)
        fill(disk, 4096)
        code, _, err = run(*command, *over)
        assert code == 2, err
        assert contents(disk) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("graft", "{m}", "--edit", "blocks[1].mixer=swa", "--out", "{d}/student"),
        ("convert", "{m}", "{d}/x.pt"),
        ("convert", "{m}", "{d}/x.safetensors"),
        ("convert", "{m}", "{d}/folder"),
        ("convert", "{m}", "{d}/diffusers", "--diffusers", "--compat", "diffusers"),
        ("sample", "{m}", "--steps=2", "--latents=none", "--per-class=40", "--out", "{d}/x.npz"),
        ("sample", "{m}", "--steps=2", "--latents=none", "--out", "{d}/x.png"),
        ("scenes", "{d}/scenes", "--count=30"),
        ("analyze", "{m}", "--what", "locality", "--steps=2", "--samples=2", "--out", "{d}/analysis"),
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)  # fmt: skip
def test_outputs_that_are_replaced(run, disk, teacher, command):
    command = [text.format(m=teacher, d=disk) for text in command]
    squeeze(run, disk, command, once=True, over=["--overwrite"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pages(run, disk, teacher, tmp_path):
    squeeze(run, disk, ["cost", teacher, "--batch=1", "--out", disk / "cost"], once=True)
    score = ["evaluate", "demo", "--count=70", "--steps=2", "--cfg-channels=0"]
    squeeze(run, disk, [*score, "--out", disk / "evaluation" / "one"], once=False)
    squeeze(run, disk, [*score, "--json", disk / "scores.json"], once=True, rooms=(0, 262_144))
    squeeze(run, disk, ["compare", disk / "evaluation", "--out", disk / "compare"], once=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_trainings(run, disk, recipe, tmp_path, data):
    workdir = disk / "run"
    for verb in ("graft", "distill", "finetune"):
        squeeze(run, disk, [verb, "--config", recipe, "--workdir", workdir], once=False)
    squeeze(run, disk, ["report", workdir], once=True)
    everywhere = "--config.graft.edits=('blocks[*].mixer=hyena_x(kernel=4)',)"
    assert run("graft", "--config", recipe, everywhere, "--out", tmp_path / "everywhere")[0] == 0
    search = ["search", "--config", recipe, "--student", tmp_path / "everywhere", "--workdir", workdir, "--images=10"]
    squeeze(run, disk, search, once=False)
    config = tmp_path / "train.py"
    config.write_text(TRAIN.format(workdir=str(disk / "trained"), data=str(data)))
    squeeze(run, disk, ["train", "--config", config], once=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_training_says_no_more_than_its_progress_and_one_line(disk, teacher, recipe):
    """In a process with a stderr of its own, where orbax and tensorstore log by the page and complain of closed loops."""
    command = ["finetune", "--config", recipe, "--student", teacher, "--workdir", disk / "run"]
    for room in (98_304, 262_144, 524_288):
        fill(disk, room)
        done = subprocess.run([sys.executable, "-m", "graftax.cli", *command], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        *progress, last = done.stderr.splitlines()
        assert last.startswith(f"graftax: error: {disk}/run/finetune/checkpoints: step"), last
        assert all(line.startswith("stage 2 ") for line in progress), progress
        assert_whole(disk)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("kind", "named"), [("sweep", "variants"), ("inits", "starts")])
def test_studies(run, disk, tmp_path, data, judge, kind, named):
    spec = tiny_spec(depth=2, in_channels=1, num_classes=3, hidden_size=32)
    save_model(tmp_path / "teacher", spec, random_params(spec, jax.random.key(0)), {"source": "test"})
    paths = {"workdir": disk / kind, "teacher": tmp_path / "teacher", "judge": judge, "data": data}
    config = tmp_path / "study.py"
    config.write_text(STUDY.format(kind=kind, named=named, **{name: str(path) for name, path in paths.items()}))
    squeeze(run, disk, [kind, "--config", config], once=False)


@pytest.mark.slow
def test_latent_sets(run, disk):
    command = ["encode", "fashion_mnist", disk / "set", "--vae=demo", "--size=32", "--subset=8 per class", "--shard-size=40"]
    squeeze(run, disk, command, once=False)
