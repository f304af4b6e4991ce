"""Two runs in one folder, of every verb that writes: the second is refused while the first lives, and gets it afterwards."""

import contextlib
import fcntl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graftax.checkpoint.lock import holding

CONFIGS = Path(__file__).parents[2] / "configs"
COMMANDS = {
    "graft": ("graft", "demo", "--edit=blocks[1].mixer=swa", "--out={}"),
    "convert": ("convert", "{teacher}", "{}"),
    "sample": ("sample", "demo", "--steps=2", "--out={}.npz"),
    "replay": ("replay", "{teacher}", "demo", "--out={}"),
}
"""Verbs that make one file or folder, which is not there yet."""

RUNS = {
    "demo": ("demo", "--workdir={}"),
    "graft": ("graft", "--config={recipe}", "--workdir={}"),
    "distill": ("distill", "--config={recipe}", "--workdir={}"),
    "finetune": ("finetune", "--config={recipe}", "--student=demo", "--workdir={}"),
    "train": ("train", f"--config={CONFIGS}/demo_dit.py", "--workdir={}"),
    "sweep": ("sweep", f"--config={CONFIGS}/demo_sweep.py", "--workdir={}"),
    "inits": ("inits", f"--config={CONFIGS}/demo_inits.py", "--workdir={}"),
    "encode": ("encode", "fashion_mnist", "{}", "--vae=demo", "--size=32"),
    "synthesize": ("synthesize", "demo", "labels.txt", "{}"),
    "evaluate": ("evaluate", "demo", "--count=70", "--out={}"),
    "analyze": ("analyze", "demo", "--out={}"),
    "search": ("search", "--config={recipe}", "--out={}"),
}
"""Verbs that work in a folder."""


@contextlib.contextmanager
def held_elsewhere(file):
    """The lock file as another process has it; to the system it is the open file that counts, not the process."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 1 on elsewhere\n")
        lock.flush()
        yield
    file.unlink()


def test_every_verb_that_writes_is_refused_what_another_process_holds(refused, recipe, teacher, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    with held_elsewhere(folder / ".lock"):
        for command in RUNS.values():
            argv = [text.format(folder, recipe=recipe) for text in command]
            assert f"{folder}: in use by process 1 on elsewhere" in refused(*argv), argv
        assert [path.name for path in folder.iterdir()] == [".lock"]
    with held_elsewhere(tmp_path / ".new.lock"), held_elsewhere(tmp_path / ".new.npz.lock"):
        for command in COMMANDS.values():
            argv = [text.format(tmp_path / "new", teacher=teacher) for text in command]
            assert "in use by process 1 on elsewhere" in refused(*argv), argv


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_of_two_real_runs_one_is_refused_and_succeeds_when_the_other_is_killed(recipe, tmp_path):
    def start():
        argv = ("distill", f"--config={recipe}", "--config.distill.settings.steps=4000", "--config.distill.eval_every=0")
        return subprocess.Popen([sys.executable, "-m", "graftax.cli", *argv], stderr=subprocess.PIPE, text=True)

    graft = [sys.executable, "-m", "graftax.cli", "graft", f"--config={recipe}"]
    assert subprocess.run(graft, capture_output=True).returncode == 0
    first = start()
    while not (tmp_path / "run" / "distill" / "checkpoints").exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    second = start()
    _, err = second.communicate(timeout=120)
    assert second.returncode == 2
    assert f"in use by process {first.pid} on " in err
    first.kill()
    first.wait()
    with holding(tmp_path / "run"):
        pass
    third = start()
    lock = tmp_path / "run" / ".lock"
    while not (lock.exists() and f"process {third.pid} on " in lock.read_text()):
        assert third.poll() is None, third.communicate()
        time.sleep(0.05)
    third.kill()
    third.wait()


@pytest.mark.slow
def test_two_grafts_to_one_output_end_with_one_model(tmp_path):
    command = ["graft", "demo", "--edit=blocks[*].mixer=hyena_x(kernel=4)", f"--out={tmp_path}/gg"]
    both = [
        subprocess.Popen([sys.executable, "-m", "graftax.cli", *command], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    assert any("in use by process" in err or "exists already" in err for err in errors)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gg"]
