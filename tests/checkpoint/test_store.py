"""Checkpoint folders: round trip, half precision, damage, saves that are cut off."""

import contextlib
import json
import os

import jax
import numpy as np
import pytest
from golden_checkpoints import golden

from graftax.checkpoint import files, open_checkpoint, save_model, store
from graftax.checkpoint.store import read_folder
from graftax.errors import BadInput
from graftax.spec import Step

META = {"source": "dit.pt", "sha256": "ab", "edits": ["x"], "sites": []}


@pytest.fixture
def model():
    spec, params, _ = open_checkpoint(golden("graft_mha_hyena_x_50p"), num_heads=4)
    return spec.replace(program=(Step((0, 1)), Step((3,), loops=2))), params


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))


def test_round_trip(model, tmp_path):
    spec, params = model
    save_model(tmp_path / "a" / "b", spec, jax.tree.map(jax.numpy.asarray, params), META)
    assert sorted(p.name for p in (tmp_path / "a" / "b").iterdir()) == ["README.md", "graftax.json", "model.safetensors"]
    found_spec, found, meta, digest = read_folder(tmp_path / "a" / "b")
    assert (found_spec, meta) == (spec, META)
    assert digest == files.sha256(tmp_path / "a" / "b" / "model.safetensors")
    assert_same(found, params)


def test_weights_file_alone_is_a_model(model, tmp_path):
    spec, params = model
    save_model(tmp_path, spec, params, {})
    found_spec, found, meta = open_checkpoint(tmp_path / "model.safetensors")
    assert found_spec == spec
    assert_same(found, params)
    assert meta["source"] == "model.safetensors"


def test_half_precision(model, tmp_path):
    spec, params = model
    save_model(tmp_path / "full", spec, params, {})
    save_model(tmp_path / "half", spec, params, {}, dtype="float16")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.6 * sizes[1]
    half = read_folder(tmp_path / "half")[1]
    jax.tree.map(np.testing.assert_array_equal, half, jax.tree.map(lambda x: x.astype("f2"), params))
    assert all(leaf.dtype == np.float16 for leaf in jax.tree.leaves(half))
    large = jax.tree.map(np.copy, params)
    large["blocks"]["02"]["adaln"]["bias"][3] = 1e5
    with pytest.raises(BadInput, match=r"blocks/02/adaln/bias: \|value\| 1e\+05 exceeds float16"):
        save_model(tmp_path / "half", spec, large, {}, dtype="float16")
    with pytest.raises(BadInput, match="int8"):
        save_model(tmp_path / "half", spec, params, {}, dtype="int8")


@pytest.mark.parametrize("calls", range(11))
def test_a_save_cut_off_anywhere_leaves_old_or_new(calls, model, tmp_path, monkeypatch):
    """The process dies at its n-th change of names; the folder must load either way, and take another save."""
    spec, params = model
    save_model(tmp_path, spec, params, {"version": "old"})
    new = jax.tree.map(lambda x: x + 1, params)
    left = [calls]

    class Death(BaseException):
        pass

    def mortal(action):
        def act(*args, **kwargs):
            if left[0] == 0:
                raise Death
            left[0] -= 1
            return action(*args, **kwargs)

        return act

    for owner, name in ((os, "replace"), (os, "rename"), (os, "unlink"), (os, "fsync")):
        monkeypatch.setattr(owner, name, mortal(getattr(owner, name)))
    with contextlib.suppress(Death):
        save_model(tmp_path, spec, new, {"version": "new"})
    monkeypatch.undo()
    _, found, meta, _ = read_folder(tmp_path)
    assert_same(found, {"old": params, "new": new}[meta["version"]])
    save_model(tmp_path, spec, params, {"version": "last"})
    assert read_folder(tmp_path)[2] == {"version": "last"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["README.md", "graftax.json", "model.safetensors"]


def test_damage_is_named(model, tmp_path):
    spec, params = model
    save_model(tmp_path, spec, params, {})
    weights, index = tmp_path / "model.safetensors", tmp_path / "graftax.json"
    whole, text = weights.read_bytes(), index.read_text()
    weights.write_bytes(whole[:-1] + b"x")
    with pytest.raises(BadInput, match=r"model.safetensors: SHA-256 .* damaged or replaced"):
        read_folder(tmp_path)
    weights.unlink()
    with pytest.raises(BadInput, match="no such file"):
        read_folder(tmp_path)
    for damaged in (text[:-9], "[]", "{}"):
        index.write_text(damaged)
        with pytest.raises(BadInput, match=r"graftax\.json: damaged"):
            read_folder(tmp_path)
    index.unlink()
    with pytest.raises(BadInput, match=r"no graftax\.json"):
        read_folder(tmp_path)


def test_metadata_is_checked(model, tmp_path):
    spec, _ = model
    fields = json.loads(spec.to_json())
    fields["blocks"][2]["ops"][2][1]["kind"] = "telepathy"
    flat = {"x": np.zeros(1, np.float32)}
    for texts, words in (
        ({"spec": json.dumps(fields), "meta": "{}"}, "telepathy"),
        ({"spec": "{", "meta": "{}"}, "model spec"),
        ({"spec": spec.to_json(), "meta": "3"}, "metadata"),
        ({"meta": "{}"}, "spec"),
    ):
        store.write_safetensors(tmp_path / "x.safetensors", flat, {"format": "graftax", **texts})
        with pytest.raises(BadInput, match=words) as caught:
            open_checkpoint(tmp_path / "x.safetensors")
        assert "x.safetensors" in str(caught.value)


def test_bad_arguments(model, tmp_path):
    spec, params = model
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="folder"):
        save_model(tmp_path / "file", spec, params, {})
    with pytest.raises(BadInput, match="meta"):
        save_model(tmp_path / "new", spec, params, {"when": object()})
    assert not (tmp_path / "new").exists()
