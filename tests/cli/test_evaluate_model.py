"""`graftax evaluate MODEL`: samples and scores in a folder, the same whatever interrupts, compared where they may be."""

import json

import numpy as np
import pytest

from graftax.cli import nets
from graftax.evaluate.result import find_results

FLAGS = ("--count", "72", "--steps", "2", "--batch-size", "24", "--cfg-channels", "0")


@pytest.fixture(scope="module")
def demo():
    return str(nets.demo_path("dit"))


@pytest.fixture
def evaluated(run, demo, tmp_path):
    code, out, err = run("evaluate", demo, *FLAGS, "--out", tmp_path / "eval")
    assert code == 0, err
    return tmp_path / "eval", out


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


def test_a_repaired_folder_gives_the_same_numbers(evaluated, run, demo):
    folder, _ = evaluated
    (before,) = find_results(folder).values()
    parts = sorted((folder / "parts").glob("*.npz"))
    kept = {part: dict(np.load(part)) for part in parts}
    parts[1].unlink()
    (folder / "parts" / ".0000048.npz.12345678.tmp").write_bytes(b"cut off")
    code, _, err = run("evaluate", demo, *FLAGS, "--out", folder)
    assert code == 0, err
    (after,) = find_results(folder).values()
    assert after.scores == before.scores
    for part, arrays in kept.items():
        np.testing.assert_array_equal(np.load(part)["images"], arrays["images"])


def test_another_protocol_or_model_is_refused_and_nothing_is_lost(evaluated, refused, demo, teacher):
    folder, _ = evaluated
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "steps: 2" in refused("evaluate", demo, *FLAGS, "--steps", "3", "--out", folder)
    assert "24 images per part, expected 36" in refused("evaluate", demo, *FLAGS, "--batch-size", "36", "--out", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_two_models_compare(evaluated, run, tmp_path, demo):
    folder, _ = evaluated
    assert run("graft", demo, "--replace", "blocks[0].mixer=hyena_x(kernel=4)", "--out", tmp_path / "student")[0] == 0
    assert run("evaluate", tmp_path / "student", *FLAGS, "--out", tmp_path / "student-eval")[0] == 0
    code, out, err = run("compare", folder, tmp_path / "student-eval", "--out", tmp_path / "page")
    assert code == 0, err
    assert "student-eval" in out
    assert "class accuracy" in out


def test_json_holds_what_was_printed(run, demo, tmp_path):
    code, out, err = run("evaluate", demo, *FLAGS, "--json", tmp_path / "scores.json")
    assert code == 0, err
    (result,) = json.loads((tmp_path / "scores.json").read_text())["results"]
    assert f"{result['scores']['class accuracy']:.6g}" in out


def test_bad_input_is_found_before_anything_is_drawn(refused, demo, tmp_path):
    out = ("--out", tmp_path / "eval")
    assert "together" in refused("evaluate", demo, *FLAGS, "--reference", "r.npz", *out)
    assert "expected either" in refused("evaluate", *FLAGS)
    assert "nowhere" in refused("evaluate", demo, *FLAGS, "--source", "nowhere", *out)
    assert "more than that" in refused("evaluate", demo, *FLAGS, "--count", "64", *out)
    assert "count 0" in refused("evaluate", demo, *FLAGS, "--count", "0", *out)
    assert not (tmp_path / "eval").exists()
