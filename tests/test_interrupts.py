"""Ctrl-C in real processes: it ends them at once, with what they had half written."""

import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.usefixtures("ctrl_c_is_heard")
WRITER = """
import sys, time
from pathlib import Path
from graftax import interrupts
interrupts.end_at_once()
from graftax.checkpoint.files import filling
from graftax.checkpoint.lock import holding
folder = Path(sys.argv[1])
with holding(folder, folder=True), filling(folder / "model") as fresh:
    (fresh / "half").write_text("half")
    print("ready", flush=True)
    BUSY
"""
ANSWERING = """
import time
from graftax import interrupts
interrupts.end_at_once()
from graftax.train.signals import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    while not stop.poll():
        time.sleep(0.01)
    print(stop.poll(), flush=True)
    time.sleep(60)
"""
WAITING = "time.sleep(60)"
CATCHING = """
    while True:
        try:
            time.sleep(60)
        except BaseException:
            print("caught")
"""


def start(code, *args):
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def interrupt(process, number=signal.SIGINT):
    """(exit code, stdout, stderr, seconds) after one signal."""
    begun = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.monotonic() - begun


@pytest.mark.parametrize(
    "busy", [pytest.param(WAITING, marks=pytest.mark.slow), CATCHING], ids=["waiting", "catching everything"]
)
def test_ctrl_c_ends_at_once_and_leaves_nothing(tmp_path, busy):
    process = start(WRITER.replace("BUSY", busy), tmp_path / "run")
    code, out, err, seconds = interrupt(process)
    assert (code, out, err) == (130, "", "graftax: interrupted\n")
    assert seconds < 2
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_sigterm_leaves_nothing_either(tmp_path):
    process = start(WRITER.replace("BUSY", WAITING), tmp_path / "run")
    assert interrupt(process, signal.SIGTERM)[:3] == (143, "", "graftax: terminated\n")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_first_one_is_answered_the_second_ends():
    process = start(ANSWERING)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "SIGINT\n"
    assert interrupt(process)[::2] == (130, "graftax: interrupted\n")


@pytest.mark.slow
def test_after_sigterm_ctrl_c_ends():
    process = start(ANSWERING)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    assert interrupt(process)[0] == 130
