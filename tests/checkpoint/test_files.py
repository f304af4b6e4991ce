"""Files and folders, whole or not at all."""

import errno
import hashlib
import os

import numpy as np
import pytest
from safetensors import SafetensorError

from graftax.checkpoint.files import existing_file, filling, remove_strays, replacing, sha256
from graftax.checkpoint.tensors import write_safetensors
from graftax.errors import BadInput


def test_replacing_swaps_at_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path):
    with replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        write_half(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_bad_targets_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "no" / "file", tmp_path / "folder"):
        with pytest.raises(BadInput), replacing(path) as temporary:
            temporary.write_text("x")
    with pytest.raises(BadInput, match="no such file"):
        existing_file(tmp_path / "absent")


def test_sha256_of_a_file(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 1_000_000)
    assert sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()


def write_folder(folder, error=None):
    with filling(folder) as fresh:
        (fresh / "sub").mkdir()
        (fresh / "sub" / "b").write_text("new b")
        with replacing(fresh / "a") as temporary:
            temporary.write_text("new a")
            if error:
                raise error


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_appears_whole_and_keeps_its_other_files(tmp_path):
    write_folder(tmp_path / "x" / "folder")
    assert contents(tmp_path) == {"x/folder/a": "new a", "x/folder/sub/b": "new b"}
    (tmp_path / "x" / "folder" / "a").write_text("mine")
    (tmp_path / "x" / "folder" / "c").write_text("mine")
    write_folder(tmp_path / "x" / "folder")
    assert contents(tmp_path / "x" / "folder") == {"a": "new a", "sub/b": "new b", "c": "mine"}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "no space left on device"),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space left"),
        (OSError(errno.EIO, os.strerror(errno.EIO), "some/file"), "input/output error"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_failing_disk_leaves_all_as_it_was_and_names_what_the_user_named(tmp_path, error, reason, there):
    folder = tmp_path / "x" / "folder"
    if there:
        write_folder(folder)
        (folder / "a").write_text("old")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput) as caught:
        write_folder(folder, error)
    assert str(caught.value).startswith(f"{folder}/a: cannot be written ({reason}")
    assert sorted(tmp_path.rglob("*")) == before
    assert not there or (folder / "a").read_text() == "old"


def test_another_error_stays_what_it_is(tmp_path):
    with pytest.raises(KeyError):
        write_folder(tmp_path / "folder", KeyError("a bug"))
    assert not list(tmp_path.iterdir())


def test_modes_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_safetensors(tmp_path / "x.safetensors", {"x": np.zeros(3, np.float32)}, {})
        write_folder(tmp_path / "folder")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "x.safetensors", *tmp_path.glob("folder/**"))}
    assert modes == {"x.safetensors": 0o640, "folder": 0o750, "sub": 0o750}
    assert (tmp_path / "folder" / "a").stat().st_mode & 0o777 == 0o640


def test_names_may_be_as_long_as_the_system_takes_them(tmp_path):
    with replacing(tmp_path / ("x" * 250)) as file:
        file.write_text("")
    with pytest.raises(BadInput, match="x: cannot be written"), replacing(tmp_path / ("x" * 300)) as file:
        file.write_text("")
    assert [len(path.name) for path in tmp_path.iterdir()] == [250]


def test_what_a_killed_writer_left_goes(tmp_path):
    folder = tmp_path / ".name [1].0123abcd.tmp"
    folder.mkdir()
    (folder / "half").touch()
    (tmp_path / ".name 1.0123abcd.tmp").touch()
    remove_strays(tmp_path / "name [1]")
    assert [path.name for path in tmp_path.iterdir()] == [".name 1.0123abcd.tmp"]
