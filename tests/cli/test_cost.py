"""`graftax cost`: counted figures need no weights, measured ones do."""

import json


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


def test_bad_input_is_one_line(refused):
    assert "expected one of v2, v3, v4" in refused("cost", "demo", "--chip", "v99")
    assert "without weights here" in refused("cost", "DiT-XL/2", "--measure")
    assert "batch: got 0" in refused("cost", "demo", "--batch", "0")
