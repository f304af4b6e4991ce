"""`graftax evaluate --samples`: the ADM suite from files to figures."""

import json

import jax
import numpy as np
import pytest

from graftax.checkpoint.tensors import write_safetensors
from graftax.evaluate import adm
from graftax.evaluate.inception_score import InceptionScore
from graftax.evaluate.precision_recall import precision_recall
from graftax.nets import inception

RNG = np.random.default_rng(0)


@pytest.fixture
def files(tmp_path):
    """Arguments that name samples, a reference and (for tests that do not read them) weights."""
    paths = {name: tmp_path / f"{name}.npz" for name in ("samples", "reference")} | {"inception": tmp_path / "w.safetensors"}
    for name in ("samples", "reference"):
        np.savez(paths[name], RNG.integers(0, 256, (12, 8, 8, 3), np.uint8))
    return {name: f"--{name}={path}" for name, path in paths.items()}


@pytest.mark.slow
def test_figures_are_those_of_the_features(run, files, tmp_path):
    """With the real network: 24 images, which is enough for what needs no covariance."""
    params = jax.jit(inception.init)(jax.random.key(0))
    write_safetensors(tmp_path / "w.safetensors", _torch_layout(params), {})
    code, out, err = run("evaluate", *files.values(), "--metrics=precision,recall,IS", "--json")
    assert code == 0, err
    found = {}
    for name in ("samples", "reference"):
        with np.load(tmp_path / f"{name}.npz") as stored:
            found[name] = jax.jit(inception.features)(params, stored["arr_0"])
    score = InceptionScore()
    score.add(np.asarray(found["samples"].logits))
    expected = precision_recall(*(np.asarray(found[name].pool) for name in ("reference", "samples")))
    record = json.loads(out)
    assert record["scores"] == pytest.approx(
        {"IS": score.result(), "precision": expected[0], "recall": expected[1]}, rel=1e-4
    )
    assert record["spaces"]["precision"] == "InceptionV3 2015-12-05, pool_3"


def _torch_layout(params):
    """The PyTorch port's tensors that give `params`: normalisation that changes nothing but adds the bias."""
    tensors = {"fc.weight": np.asarray(params["fc"]["kernel"]).T}
    for path, kernel in jax.tree_util.tree_leaves_with_path({k: v for k, v in params.items() if k != "fc"}):
        *names, leaf = (entry.key for entry in path)
        layer = ".".join(names)
        if leaf == "bias":
            tensors[f"{layer}.bn.bias"] = np.asarray(kernel)
            continue
        tensors[f"{layer}.conv.weight"] = np.asarray(kernel).transpose(3, 2, 0, 1)
        width = np.ones(kernel.shape[3], np.float32)
        tensors |= {f"{layer}.bn.weight": width, f"{layer}.bn.running_mean": 0 * width}
        tensors[f"{layer}.bn.running_var"] = width - np.float32(1e-3)
    return tensors


def test_half_a_question_is_refused(refused, files):
    cases = {
        (): "expected a model, or --samples",
        (files["samples"],): "--samples: --reference is missing, the images or moments to compare with, and --inception",
        (files["samples"], files["inception"]): "--samples: --reference is missing, the images or moments to compare with\n",
        ("demo", files["inception"]): "--inception: --reference is missing",
        ("demo", files["reference"]): "--reference: missing is --inception or --dino",
        ("demo", *files.values()): "got the model demo and --samples, expected one of them",
        ("demo", "--metrics=FID"): "--metrics: got 'FID' without --inception",
    }
    for argv, expected in cases.items():
        assert expected in refused("evaluate", *argv)


def test_bad_files_are_refused_with_their_names(refused, files, tmp_path, monkeypatch):
    assert "w.safetensors: no such file" in refused("evaluate", *files.values())
    monkeypatch.setattr(adm, "open_network", lambda path: adm.Network({"fc": {}}, "w", "0"))
    assert "samples.npz: 12 images, FID (InceptionV3 2015-12-05, pool_3) expects more than 2048" in refused(
        "evaluate", *files.values()
    )
    assert "metrics FIDs: expected some of IS, FID" in refused("evaluate", *files.values(), "--metrics=FIDs")
    np.savez(tmp_path / "samples.npz", np.zeros((12, 8, 8, 3), np.float32))
    assert "float32" in refused("evaluate", *files.values())
    np.savez(tmp_path / "samples.npz", mu=np.zeros(3))
    assert "samples.npz: no images" in refused("evaluate", *files.values())
    (tmp_path / "reference.npz").unlink()
    np.savez(tmp_path / "samples.npz", np.zeros((12, 8, 8, 3), np.uint8))
    assert "reference.npz': no such file" in refused("evaluate", *files.values())
