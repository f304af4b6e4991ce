"""Ctrl-C at every verb, early and late, in real processes: a prompt end without traceback, and nothing half made."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from graftax.cli.parser import VERBS

pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.full_compiler, pytest.mark.usefixtures("ctrl_c_is_heard"),
]  # fmt: skip
PROGRAM = "import sys; from graftax.cli.program import program; sys.exit(program())"
DELAYS = (0.0, 0.4, 1.2, 3.0, 6.0, 10.0)
"""Seconds after the process has begun to listen for Ctrl-C."""

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPE = ("--config", f"{CONFIGS}/demo_graft.py")
COMMANDS = {
    "demo": ("demo", "--workdir", "{t}/demo"),
    "inspect": ("inspect", "demo"),
    "graft": ("graft", "demo", "--edit", "blocks[*].mixer=hyena_x(kernel=4)", "--out", "{t}/student"),
    "replay": ("replay", "{t}/given/grafted", "demo", "--out", "{t}/again"),
    "distill": ("distill", *RECIPE, "--student", "{t}/given/grafted", "--workdir", "{t}/run"),
    "finetune": ("finetune", *RECIPE, "--student", "demo", "--workdir", "{t}/run"),
    "sample": ("sample", "demo", "--per-class=300", "--out", "{t}/x.npz"),
    "evaluate": ("evaluate", "demo", "--count=3000", "--out", "{t}/evaluation"),
    "geneval": ("geneval", "{t}/given/pictures", "--detections", "{t}/given/detections.json", "--overwrite"),
    "compare": ("compare", "{t}/given/evaluation", "--out", "{t}/compared"),
    "report": ("report", "{t}/given"),
    "convert": ("convert", "{t}/given/grafted", "{t}/x.pt"),
    "encode": ("encode", "fashion_mnist", "{t}/set", "--vae=demo", "--size=32"),
    "synthesize": ("synthesize", "demo", "{t}/given/labels.txt", "{t}/drawn"),
    "scenes": ("scenes", "{t}/scenes", "--count=5000"),
    "train": ("train", "--config", f"{CONFIGS}/demo_dit.py", "--workdir", "{t}/run"),
    "analyze": ("analyze", "demo", "--out", "{t}/analysis"),
    "search": ("search", *RECIPE, "--student", "{t}/given/grafted", "--workdir", "{t}/run"),
    "sweep": ("sweep", "--config", f"{CONFIGS}/demo_sweep.py", "--workdir", "{t}/run"),
    "inits": ("inits", "--config", f"{CONFIGS}/demo_inits.py", "--workdir", "{t}/run"),
    "cost": ("cost", "demo", "--measure", "--out", "{t}/cost"),
    "bench": ("bench", "conv"),
    "zoo": ("zoo",),
    "doctor": ("doctor",),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with what some verbs start from: a graft, an evaluation, a picture of a prompt of GenEval's."""
    folder = tmp_path_factory.mktemp("commands")
    model, evaluation = folder / "given" / "grafted", folder / "given" / "evaluation" / "one"
    model.parent.mkdir()
    for command in (
        ("graft", "demo", "--edit", "blocks[50%].mixer=hyena_x(kernel=4)", "--out", model),
        ("evaluate", "demo", "--count=70", "--steps=2", "--out", evaluation),
    ):
        subprocess.run([sys.executable, "-c", PROGRAM, *command], check=True, capture_output=True)
    (folder / "given" / "labels.txt").write_text("\n".join(str(i % 10) for i in range(3000)))
    _write_pictures(folder / "given")
    return folder


def _write_pictures(folder):
    one = folder / "pictures" / "00000"
    (one / "samples").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(one / "samples" / "0000.png")
    record = {"tag": "single_object", "prompt": "a cow", "include": [{"class": "cow", "count": 1}]}
    (one / "metadata.jsonl").write_text(json.dumps(record))
    found = {"detector": "d", "colors": "", "classes": ["cow"], "images": {"00000/samples/0000.png": []}}
    (folder / "detections.json").write_text(json.dumps(found))


def start(command, folder):
    """The command's process, once it listens for Ctrl-C (it has a thread for that)."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *(word.format(t=folder) for word in command)], stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, cwd=folder,
    )  # fmt: skip
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None and int(re.search(r"Threads:\s+(\d+)", status.read_text())[1]) < 2:
        time.sleep(0.005)
    return process


def interrupt(process):
    """(exit code, stderr, seconds) after one Ctrl-C."""
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    return process.returncode, err, time.monotonic() - begun


def assert_nothing_half_made(folder):
    for path in folder.rglob("*"):
        assert not path.name.endswith((".tmp", ".lock")), path


def test_every_verb_has_a_command():
    assert set(COMMANDS) == set(VERBS)


@pytest.mark.parametrize("verb", COMMANDS)
def test_ctrl_c(given, verb):
    for delay in DELAYS:
        process = start(COMMANDS[verb], given)
        try:
            process.wait(delay)
            assert process.returncode == 0, process.communicate()[1]  # done before
            break
        except subprocess.TimeoutExpired:
            code, err, seconds = interrupt(process)
        print(f"{verb} after {delay} s: exit code {code} in {seconds:.2f} s")
        assert "Traceback" not in err, err
        if code == 0:  # it was about to end
            break
        last = err.splitlines()[-1]
        if code == 42:  # a training: the step is finished and saved
            assert "SIGINT: saved step" in last
        else:
            assert (code, last) == (130, "graftax: interrupted"), err
            assert seconds < 2
        assert_nothing_half_made(given)


@pytest.mark.parametrize("verb", ["distill", "finetune", "train"])
def test_the_second_ctrl_c_ends_a_training_at_once(given, verb):
    process = start(COMMANDS[verb], given)
    assert process.stderr
    time.sleep(12)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    if process.poll() is None:
        code, err, seconds = interrupt(process)
        assert (code, seconds < 2) in ((130, True), (42, True)), err
        assert "Traceback" not in err, err
