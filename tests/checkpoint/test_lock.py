"""One folder, one run."""

import os
import subprocess
import sys

import pytest

from graftax.checkpoint.lock import holding
from graftax.errors import BadInput

HOLDER = """
import sys, time
from graftax.checkpoint.lock import holding
with holding(sys.argv[1], folder=True):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_another_process_is_refused_and_told_by_whom(tmp_path, holder):
    owner = f"run: in use by process {holder.pid} on {os.uname().nodename}"
    with pytest.raises(BadInput, match=owner), holding(tmp_path / "run"):
        pass
    with holding(tmp_path / "other"):
        pass


def test_a_killed_process_leaves_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / ".lock").exists()
    with holding(tmp_path / "run"):
        pass
    assert not list((tmp_path / "run").iterdir())


def test_the_same_process_may_hold_a_folder_again(tmp_path):
    with holding(tmp_path / "run", folder=True), holding(tmp_path / "run" / "." / "part", folder=True):
        with holding(str(tmp_path / "run")):
            pass
        assert (tmp_path / "run" / ".lock").read_text().startswith(f"process {os.getpid()} ")


def test_nothing_is_left_but_what_the_block_wrote(tmp_path):
    with holding(tmp_path / "a" / "b", folder=True), holding(tmp_path / "file.npz"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".file.npz.lock", "a"]
    assert not list(tmp_path.iterdir())
    with holding(tmp_path / "a", folder=True):
        (tmp_path / "a" / "mine").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine"]


@pytest.mark.parametrize("path", ["/proc/x", "{}/file/x", "{}/" + 300 * "x"])
def test_impossible_places_are_refused(tmp_path, path):
    (tmp_path / "file").touch()
    for folder in (True, False):
        with pytest.raises(BadInput, match="cannot be written"), holding(path.format(tmp_path), folder=folder):
            pass


def test_in_a_bucket_nothing_is_locked():
    with holding("gs://bucket/run", folder=True):
        pass
