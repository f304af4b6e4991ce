"""`graftax evaluate MODEL`: samples and scores in a folder, the same whatever interrupts, compared where they may be."""

import contextlib
import io
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from graftax.checkpoint import save_model
from graftax.checkpoint.files import demo_path, sha256
from graftax.cli import main
from graftax.data.source import load_source
from graftax.evaluate import adm
from graftax.evaluate.result import find_results
from graftax.nets import dinov2
from graftax.nets.dinov2_files import load_dinov2
from graftax.testing import random_params, tiny_spec

COLOUR = ("--count", "20", "--steps", "2", "--batch-size", "10")


@pytest.fixture(scope="module")
def demo():
    return str(demo_path("dit"))


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """How the demo is judged: against a few garments, for the features of all 14,500 take seconds."""
    path, garments = tmp_path_factory.mktemp("garments") / "garments.npz", load_source("fashion_mnist", "train")
    np.savez(path, images=garments.images[:300], labels=garments.labels[:300])
    return ("--count", "72", "--steps", "2", "--batch-size", "24", "--cfg-channels", "0", "--source", path)


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A DINOv2 of six features, as transformers writes it."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=6, num_hidden_layers=1, num_attention_heads=2, patch_size=56, image_size=224, initializer_range=0.5
    )
    folder = tmp_path_factory.mktemp("weights") / "small"
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    """A model of 8x8 images in colour."""
    spec, folder = tiny_spec(in_channels=3, num_classes=3, hidden_size=32, depth=1), tmp_path_factory.mktemp("colour")
    save_model(folder / "model", spec, random_params(spec, jax.random.key(0)), {"source": "test"})
    return folder / "model"


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "real.npz"
    np.savez(path, np.random.default_rng(0).integers(0, 256, (15, 8, 8, 3), np.uint8))
    return path


@pytest.fixture(scope="module")
def pristine(demo, tmp_path_factory, flags):
    """A folder with an evaluation in eval/, and what was printed."""
    folder, out = tmp_path_factory.mktemp("pristine"), io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main.main(["evaluate", demo, *map(str, (*flags, "--out", folder / "eval"))]) == 0
    return folder, out.getvalue()


@pytest.fixture
def evaluated(pristine, tmp_path):
    """An evaluated model's folder, the test's own, and what was printed."""
    return shutil.copytree(pristine[0] / "eval", tmp_path / "eval"), pristine[1]


def test_scores_come_with_space_reference_and_protocol(evaluated):
    folder, out = evaluated
    (result,) = find_results(folder).values()
    assert set(result.scores) == {"class accuracy", "Fréchet"}
    assert result.protocol.features.startswith("classifier demo ")
    assert result.protocol.decoder.startswith("autoencoder demo ")
    assert result.protocol.count == 72
    assert result.protocol.hash in out
    assert f"{result.scores['Fréchet']:.6g}" in out
    assert result.environment["jax"]


@pytest.mark.slow
def test_a_repaired_folder_gives_the_same_numbers(evaluated, run, demo, flags):
    folder, _ = evaluated
    (before,) = find_results(folder).values()
    parts = sorted((folder / "parts").glob("*.npz"))
    kept = {part: dict(np.load(part)) for part in parts}
    parts[1].unlink()
    (folder / "parts" / ".0000048.npz.12345678.tmp").write_bytes(b"cut off")
    code, _, err = run("evaluate", demo, *flags, "--out", folder)
    assert code == 0, err
    (after,) = find_results(folder).values()
    assert after.scores == before.scores
    for part, arrays in kept.items():
        np.testing.assert_array_equal(np.load(part)["images"], arrays["images"])


def test_another_protocol_or_model_is_refused_and_nothing_is_lost(evaluated, refused, demo, teacher, flags):
    folder, _ = evaluated
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "steps: 2" in refused("evaluate", demo, *flags, "--steps", "3", "--out", folder)
    assert "24 images per part, expected 36" in refused("evaluate", demo, *flags, "--batch-size", "36", "--out", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_another_protocol_begins_afresh_where_that_is_asked_for(evaluated, run, demo, flags):
    folder, _ = evaluated
    (folder / "mine.txt").write_text("mine")
    code, _, err = run("evaluate", demo, *flags, "--batch-size", "36", "--out", folder, "--overwrite")
    assert code == 0, err
    assert sorted(path.name for path in (folder / "parts").iterdir()) == ["0000000.npz", "0000036.npz"]
    assert (folder / "mine.txt").read_text() == "mine"


@pytest.mark.slow
def test_two_models_compare(evaluated, run, tmp_path, demo, flags):
    folder, _ = evaluated
    assert run("graft", demo, "--edit", "blocks[0].mixer=hyena_x(kernel=4)", "--out", tmp_path / "student")[0] == 0
    assert run("evaluate", tmp_path / "student", *flags, "--out", tmp_path / "student-eval")[0] == 0
    code, out, err = run("compare", folder, tmp_path / "student-eval", "--out", tmp_path / "page")
    assert code == 0, err
    assert "student-eval" in out
    assert "class accuracy" in out


def test_json_holds_what_is_printed_and_nothing_is_drawn_again(evaluated, run, demo, flags):
    folder, out = evaluated
    code, found, err = run("evaluate", demo, *flags, "--out", folder, "--json")
    assert code == 0, err
    (result,) = json.loads(found)["results"]
    assert f"{result['scores']['class accuracy']:.6g}" in out


def test_bad_input_is_found_before_anything_is_drawn(refused, demo, tmp_path, flags):
    out = ("--out", tmp_path / "eval")
    assert "--reference: missing is --inception or --dino" in refused("evaluate", demo, *flags, "--reference", "r.npz", *out)
    assert "expected a model, or --samples" in refused("evaluate", *flags)
    assert "nowhere" in refused("evaluate", demo, *flags, "--source", "nowhere", *out)
    assert "more than that" in refused("evaluate", demo, *flags, "--count", "64", *out)
    assert "count 0" in refused("evaluate", demo, *flags, "--count", "0", *out)
    assert not (tmp_path / "eval").exists()


def images_of(path):
    with np.load(path) as stored:
        return stored["arr_0"]


def expected_distance(dino, *sets):
    """The Fréchet distance by its definition, with the root of a matrix that is not symmetric."""
    import scipy.linalg

    spec, params, _ = load_dinov2(dino)
    tokens = [np.asarray(jax.jit(dinov2.features, static_argnums=0)(spec, params, images), np.float64) for images in sets]
    (mean, covariance), (other, second) = [(rows.mean(0), np.cov(rows.T)) for rows in tokens]
    root = scipy.linalg.sqrtm(covariance @ second)
    return np.sum((mean - other) ** 2) + np.trace(covariance + second - 2 * np.real(root))


@pytest.mark.slow
def test_distance_in_dinov2s_features(run, colour, dino, reference, tmp_path):
    code, out, err = run("evaluate", colour, *COLOUR, "--dino", dino, "--reference", reference, "--out", tmp_path / "eval")
    assert code == 0, err
    (result,) = find_results(tmp_path / "eval").values()
    space = f"DINOv2 small {sha256(dino / 'model.safetensors')[:12]}"
    assert (result.protocol.features, result.protocol.decoder) == (space, "none")
    assert result.protocol.reference == f"real.npz {sha256(reference)[:12]}"
    samples = tmp_path / "eval" / "samples.npz"
    expected = expected_distance(dino, images_of(samples), images_of(reference))
    assert expected > 1e-3
    assert result.scores == pytest.approx({"FD": expected}, rel=1e-4)
    assert space in out
    assert f"{result.scores['FD']:.6g}" in out
    assert run("evaluate", colour, *COLOUR, "--dino", dino, "--reference", reference)[:2] == (0, out)  # without a folder

    flags = ("--samples", samples, "--dino", dino, "--reference", reference)
    assert "20 samples against real.npz, 15 images" in run("evaluate", *flags)[1]


@pytest.mark.slow
def test_dinov2_beside_the_suite(run, colour, dino, reference, tmp_path, monkeypatch):
    """The suite itself is a stand-in here: its network takes too long."""
    kept = {"IS": 2.5}
    monkeypatch.setattr(adm, "open_network", lambda path: adm.Network({"fc": {}}, "w", "0" * 64))
    monkeypatch.setattr(adm, "adm_scores", lambda *_, **__: adm.AdmScores(kept, dict(adm.SPACES), 20, "real.npz", "w", "0"))
    flags = ("--dino", dino, "--reference", reference, "--inception", "w", "--metrics", "IS")
    code, _, err = run("evaluate", colour, *COLOUR, *flags, "--out", tmp_path / "eval")
    assert code == 0, err
    found = {result.protocol.features.split()[0]: result.scores for result in find_results(tmp_path / "eval").values()}
    assert found["InceptionV3"] == kept
    assert list(found["DINOv2"]) == ["FD"]
    samples = tmp_path / "eval" / "samples.npz"
    code, out, err = run("evaluate", "--samples", samples, *flags, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert record["scores"] == pytest.approx(kept | found["DINOv2"], rel=1e-5)  # another size of batch
    assert record["spaces"]["FD"].startswith("DINOv2 small ")


@pytest.mark.slow
def test_what_dinov2_cannot_compare_is_refused_before_anything_is_drawn(refused, demo, colour, dino, reference, tmp_path):
    def against(images, model=colour, count="72", name="arr_0"):
        np.savez(tmp_path / "r.npz", **{name: images})
        flags = ("--dino", dino, "--reference", tmp_path / "r.npz", "--out", tmp_path / "eval")
        return refused("evaluate", model, *COLOUR, "--count", count, *flags)

    images, flags = images_of(reference), ("--dino", dino, "--reference", reference, "--out", tmp_path / "eval")
    assert "expect 3 channels" in against(images, demo)
    assert "r.npz: its images are (4, 8, 3), those of the samples (8, 8, 3)" in against(images[:, :4])
    assert "r.npz: 6 images, FD (DINOv2 small" in against(images[:6])
    assert "r.npz: no images (arr_0) in it" in against(np.zeros(2048), name="mu")
    assert "samples: 6 images, FD (DINOv2 small" in against(images, count="6")
    assert "not the config" in refused("evaluate", colour, *COLOUR, *flags, "--dino", tmp_path)
    assert "--metrics: got 'FID' without --inception" in refused("evaluate", colour, *COLOUR, *flags, "--metrics", "FID")
    assert "--dino: --reference is missing" in refused("evaluate", colour, *COLOUR, "--dino", dino)
    assert not (tmp_path / "eval").exists()


def test_files_that_dinov2_cannot_compare_are_refused(refused, dino, reference, tmp_path):
    images, flags = images_of(reference), ("--samples", tmp_path / "s.npz", "--dino", dino, "--reference", reference)
    grey, low = "expected uint8 (n >= 1, h, w, 3)", "those of the samples (4, 8, 3); expected one size"
    for found, words in ((images[..., :1], grey), (images[:, :4], low), (images[:6], "s.npz: 6 images, FD (DINOv2 small")):
        np.savez(tmp_path / "s.npz", found)
        assert words in refused("evaluate", *flags)


@pytest.mark.slow
def test_killed_anywhere_it_ends_as_an_undisturbed_run(run, demo, tmp_path):
    """Three processes are killed one after the other, each at a random moment while it draws or scores; the fourth ends."""
    flags = ("--count", "72", "--steps", "20", "--batch-size", "8", "--cfg-channels", "0")
    assert run("evaluate", demo, *flags, "--out", tmp_path / "whole")[0] == 0
    folder = tmp_path / "killed"
    for kill in range(3):
        until, wait = random.randint(3 * kill, 3 * kill + 2), random.uniform(0, 0.3)
        print(f"to be killed {wait:.3f} s after {until} parts")
        command = [sys.executable, "-m", "graftax.cli", "evaluate", demo, *flags, "--out", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(folder.glob("parts/0*.npz"))) < until:
            time.sleep(0.001)
        time.sleep(wait)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not (folder / "scores").exists()
    code, _, err = run("evaluate", demo, *flags, "--out", folder)
    assert code == 0, err
    parts = [
        {part.name: part.read_bytes() for part in (path / "parts").glob("0*.npz")} for path in (tmp_path / "whole", folder)
    ]
    assert len(parts[0]) == 9
    assert parts[0] == parts[1]
    (undisturbed,), (repaired,) = (find_results(path).values() for path in (tmp_path / "whole", folder))
    assert repaired.scores == undisturbed.scores


HOST = """
import sys
import jax

jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[1]))
from graftax.cli.main import main

sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.slow
def test_two_hosts_share_the_samples_and_the_first_scores(run, colour, dino, reference, tmp_path):
    flags = [str(flag) for flag in ("evaluate", colour, *COLOUR, "--dino", dino, "--reference", reference)]
    assert run(*flags, "--out", tmp_path / "alone")[0] == 0

    def together(*flags):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        hosts = [subprocess.Popen([sys.executable, "-c", HOST, str(index), port, *flags], **pipes) for index in range(2)]
        streams = [host.communicate(timeout=240) for host in hosts]
        return [(host.returncode, *texts) for host, texts in zip(hosts, streams, strict=True)]

    (code, out, err), (other_code, other_out, other_err) = together(*flags, "--out", str(tmp_path / "both"), "--json")
    assert (code, other_code) == (0, 0), err + other_err
    assert "FD" in out
    assert "FD" not in other_out
    (alone,), (both,) = (find_results(tmp_path / name).values() for name in ("alone", "both"))
    assert both.scores == alone.scores
    assert json.loads(out)["results"][0]["scores"] == both.scores
    for code, _, err in together(*flags):
        assert code == 2
        assert "expected --out and a folder that all of them see" in err
