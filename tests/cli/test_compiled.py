"""Compiled programs are kept for the next command, in a folder that fits the processor."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from graftax.cli import compiled
from graftax.cli.main import main
from graftax.platforms import COMPILED, LEAST_SECONDS


def test_the_folder_is_the_users_and_the_processors(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = compiled.folder()
    assert found.parent == tmp_path / "graftax" / "compiled"
    assert len(found.name) == 8
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert compiled.folder() == tmp_path / "home" / ".cache" / "graftax" / "compiled" / found.name
    monkeypatch.setattr(Path, "read_text", lambda path: "flags : sse only\n")
    assert compiled.folder().name != found.name


@pytest.mark.parametrize(("given", "expected"), [(None, "ours"), ("mine", "mine"), ("", "")])
def test_what_the_user_has_set_stays(monkeypatch, given, expected):
    monkeypatch.setattr(compiled, "folder", lambda: Path("ours"))
    for name in (COMPILED, LEAST_SECONDS):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    if given is not None:
        monkeypatch.setenv(COMPILED, given)
    compiled.keep_compiled()
    assert os.environ[COMPILED] == expected


def test_a_measurement_compiles_anew(monkeypatch, capsys):
    for argv, kept in ((["bench", "list"], False), (["inspect", "demo"], True)):
        monkeypatch.setenv(COMPILED, "")
        monkeypatch.delenv(COMPILED)
        assert main(argv) == 0
        assert (COMPILED in os.environ) == kept
    assert "compile" in capsys.readouterr().out


@pytest.mark.slow
def test_a_command_leaves_its_programs_and_the_next_reads_them(teacher, tmp_path):
    home = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    home.pop(COMPILED, None)
    command = [sys.executable, "-m", "graftax.cli", "sample", teacher, "--steps=2", "--per-class=1", "--overwrite"]
    for _ in range(2):
        subprocess.run([*command, "--out", tmp_path / "x.npz"], env=home, check=True, capture_output=True)
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*-cache")}
        assert any(path.name.startswith("jit__all_finite-") for path in kept)  # one of 10 ms: they are many
    first = set(kept)
    assert first == set((tmp_path / "cache").rglob("*-cache"))


def test_trouble_with_the_folder_is_told_in_one_line_and_what_is_cut_off_goes(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(COMPILED, str(tmp_path))
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *where: shown.append(str(message)))
    compiled.watch()
    for name in ("jit_draw", "jit_other"):
        (tmp_path / f"{name}-0123-cache").touch()
    entry = "persistent compilation cache entry for 'jit_draw'"
    for text in (f"Error reading {entry}: error: truncated", "mind the gap", *2 * [f"Error writing {entry}: OSError: full"]):
        warnings.showwarning(UserWarning(text), UserWarning, "file", 1)
    assert shown == ["mind the gap"]
    assert capsys.readouterr().err == f"graftax: warning: {tmp_path}: compiled programs are not kept (OSError: full)\n"
    assert [path.name for path in tmp_path.iterdir()] == ["jit_other-0123-cache"]


@pytest.mark.slow
@pytest.mark.parametrize(("argv", "seconds"), [(["--help"], 1.0), (["inspect", "demo"], 2.0)])
def test_answers_are_quick(argv, seconds):
    """Processor time, which is the wall's on a free machine, since other tests run beside; of several tries the best."""
    command = [sys.executable, "-m", "graftax.cli", *argv]
    taken = []
    for _ in range(4):
        start = os.times()
        subprocess.run(command, check=True, capture_output=True)
        end = os.times()
        taken.append(end.children_user + end.children_system - start.children_user - start.children_system)
        if taken[-1] < seconds:
            return
    pytest.fail(f"{argv}: {min(taken):.2f} s at best, expected under {seconds} s")
