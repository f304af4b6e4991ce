"""Work folders in a bucket, against an emulator of Google Cloud Storage on this machine."""

import contextlib
import os
import socket
import sys
import warnings
from pathlib import Path

import gcp_storage_emulator.server
import jax
import numpy as np
import pytest

from graftax.checkpoint import open_checkpoint, save_model
from graftax.checkpoint.files import storage_trouble
from graftax.checkpoint.manager import Checkpoints
from graftax.checkpoint.paths import append, checksum, files_below, is_remote, move, remove, work_path
from graftax.errors import BadInput
from graftax.testing import random_params, tiny_spec
from graftax.train import fit
from graftax.train.record import read_metrics

sys.path.append(str(Path(__file__).parents[1] / "train"))
from linear_job import CONFIG, Stream, linear_job


@pytest.fixture(scope="module")
def bucket():
    objects = gcp_storage_emulator.handlers.objects
    download = objects.download

    def with_generation(request, response, storage, *args, **kwargs):
        """The emulator forgets a header that tensorstore needs to replace an object that it has read."""
        name = request.params["bucket_name"], request.params["object_id"]
        with contextlib.suppress(gcp_storage_emulator.exceptions.NotFound):
            response["x-goog-generation"] = storage.get_file_obj(*name)["generation"]
        return download(request, response, storage, *args, **kwargs)

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = gcp_storage_emulator.server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "download", with_generation)
        patch.setitem(os.environ, "STORAGE_EMULATOR_HOST", address)  # of gcsfs and Google's own client
        patch.setitem(os.environ, "TENSORSTORE_GCS_HTTP_URL", address)
        patch.setitem(os.environ, "GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")  # of tensorstore
        patch.setitem(os.environ, "GOOGLE_CLOUD_PROJECT", "project")
        patch.setitem(os.environ, "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # would ask Google about the bucket
        yield "gs://bucket"
    server.stop()


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
    if request.param == "local":
        return work_path(tmp_path / "work")
    return work_path(f"{request.getfixturevalue('bucket')}/{tmp_path.name}")


def fill(folder):
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "one.txt").write_text("one")
    (folder / "a" / "b" / "two.bin").write_bytes(b"\x00two")


def test_the_same_calls_do_the_same(folder):
    fill(folder)
    names = [os.fspath(path.relative_to(folder)) for path in files_below(folder)]
    assert sorted(names) == ["a/b/two.bin", "a/one.txt"]
    before = checksum(folder / "a/one.txt")
    assert before[0] == 3
    append(folder / "a/one.txt", "+")
    append(folder / "log", "x\n")
    append(folder / "log", "y\n")
    assert (folder / "log").read_text() == "x\ny\n"
    assert checksum(folder / "a/one.txt") != before
    with pytest.raises(FileNotFoundError):
        checksum(folder / "none")
    fill(folder / "c/z")
    move(folder / "a", folder / "c/z")
    assert (folder / "c/z/b/two.bin").read_bytes() == b"\x00two"
    assert not (folder / "a").exists()
    assert not (folder / "c/z/a").exists()  # what had the name is gone
    remove(folder / "c")
    assert not files_below(folder / "c")
    assert not files_below(folder / "never")


def test_names(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert os.fspath(work_path("gs/x")) == f"{tmp_path}/gs/x"
    assert not is_remote(work_path("gs/x"))
    with pytest.raises(BadInput, match="taken for the address gs://x"):
        work_path("/gs/x")
    with pytest.raises(BadInput, match="s3://bucket"):
        work_path("s3://bucket/x")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"gs://bucket/x: needs the package gcsfs"):
        work_path(Path("gs://bucket/x"))


def test_troubles_are_found_below_other_errors():
    error = ValueError("cannot write")
    error.__cause__ = OSError(28, "No space left on device")
    assert storage_trouble(error) == "no space left on device"
    assert storage_trouble(ValueError("shape")) == ""


def test_models_go_to_a_bucket_and_back(bucket):
    spec = tiny_spec(depth=2)
    params = random_params(spec, jax.random.key(0))
    folder = f"{bucket}/models/student"
    save_model(folder, spec, params, {"source": "here"})
    assert sorted(path.name for path in work_path(folder).iterdir()) == ["README.md", "graftax.json", "model.safetensors"]
    found, weights, meta = open_checkpoint(Path(folder))  # one slash is lost
    assert (found, meta["source"]) == (spec, "here")
    jax.tree.map(np.testing.assert_array_equal, weights, jax.tree.map(np.asarray, params))
    with pytest.raises(BadInput, match="gs://bucket/models/none: no such file or folder"):
        open_checkpoint(f"{bucket}/models/none")


@pytest.mark.slow
def test_a_run_in_a_bucket_resumes_falls_back_and_cleans_up(bucket, tmp_path):
    def crash(position):
        if position == 15:
            raise RuntimeError("crash")

    whole = fit(linear_job(), Stream(), CONFIG, tmp_path / "whole", show=False)
    folder = work_path(f"{bucket}/run")
    with pytest.raises(RuntimeError, match="crash"):
        fit(linear_job(), Stream(crash), CONFIG, folder, show=False)
    checkpoints = folder / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["12", "6"]
    largest = max(files_below(checkpoints / "12/state"), key=lambda path: path.stat().length)
    largest.write_bytes(largest.read_bytes()[:-1])
    (checkpoints / "13/state").mkdir(parents=True)
    (checkpoints / "13/state/part").write_bytes(b"x")  # a save that was cut off, in a place without renaming
    with pytest.warns(UserWarning, match="checkpoint 12 .* damaged"):
        found = fit(linear_job(), Stream(), CONFIG, folder, show=False)
    jax.tree.map(np.testing.assert_array_equal, found, whole)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["18", "20", "damaged"]
    assert files_below(checkpoints / "damaged/12")
    assert [line["step"] for line in read_metrics(folder)] == [4, 8, 12, 16, 20]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        store = Checkpoints(checkpoints)
    assert store.latest() == 20
    store.close()
