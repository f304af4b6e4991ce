"""`graftax cost`: counted figures need no weights, measured ones do."""

import json

import pytest


def test_published_names_are_counted(run):
    code, out, err = run("cost", "DiT-XL/2", "--batch", "1", "--chip", "v6e")
    assert code == 0, err
    assert "675,129,632" in out
    assert "237.3" in out
    assert "bound on v6e" in out


def test_measured_figures_are_printed_and_kept(run, teacher, tmp_path):
    code, out, err = run(
        "cost", teacher, "--batch", "2", "--measure", "--rounds", "2", "--steps", "10", "--out", tmp_path / "cost"
    )
    assert code == 0, err
    assert "s per image" in out
    record = json.loads((tmp_path / "cost" / "cost.json").read_text())
    assert {"mixer mha", "whole model"} <= record["measured_seconds"].keys() & record["counted"].keys()
    assert (tmp_path / "cost" / "roofline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_edits_are_counted_beside_the_model_and_said_to_gain(run, tmp_path):
    edit, flags = "replace(blocks[8:20:2,20:28].mixer, hyena_x)", ("--batch=1", "--chip=v6e", "--json")
    code, out, err = run("cost", "pixart-sigma-2048", "--edit", edit, *flags, "--out", tmp_path / "cost")
    assert code == 0, err
    record = json.loads(out)
    assert (record["counted"]["mixer mha"]["count"], record["edited"]["mixer hyena_x(kernel=4)"]["count"]) == (28, 14)
    assert 1.43 < record["predicted_speedup"] < 1.6  # the paper measured 1.43; all of it is bound by arithmetic
    assert json.loads((tmp_path / "cost" / "cost.json").read_text())["predicted_speedup"] == record["predicted_speedup"]
    code, out, err = run("cost", "DiT-S/2", "--edit", "drop(3, 5)", "--edit", "blocks[0].mlp=2")
    assert code == 0, err
    assert "after compose(drop(3, 5), resize(blocks[0].mlp, ratio=2.0" in out
    assert " x as fast. A prediction, not run there." in out


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("pixart-sgima-2048", "pixart-sigma-2048"), ("dit-xl/2", "DiT-XL/2"),
        ("dit-xl2-mha-swa-75p-fid3.90", "dit-xl2-mha-swa-75p-fid3.09"),
        ("PixArt-Sigma-XL-2-2K", "PixArt-Sigma-XL-2-2K-MS"),
    ],
)  # fmt: skip
def test_a_name_that_is_none_is_met_with_the_nearest_published_one(refused, name, meant):
    for verb in ("cost", "inspect"):
        assert refused(verb, name).endswith(f"; did you mean {meant!r}?\n")
    assert "did you mean" not in refused("cost", "runs/nothing/of/that/kind")


def test_bad_input_is_one_line(refused):
    assert "did you mean 'hyena_x'" in refused("cost", "DiT-S/2", "--edit", "blocks[0].mixer=hyena_xx")
    assert "--measure and --edit" in refused("cost", "demo", "--measure", "--edit", "drop(3)")
    assert "expected one of v2, v3, v4" in refused("cost", "demo", "--chip", "v99")
    assert "without weights here" in refused("cost", "DiT-XL/2", "--measure")
    assert "batch: got 0" in refused("cost", "demo", "--batch", "0")
