"""Atomic replacement."""

import hashlib

import pytest

from graftax.checkpoint.files import existing_file, replacing, sha256
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
