"""`graftax encode --text`, and the flags that belong to images or to texts."""

import json

import numpy as np
import pytest
from PIL import Image
from stand_in import StandIn

import graftax
from graftax.data.scenes.sample import scene
from graftax.data.scenes.tokens import ids
from graftax.data.text.store import open_store


@pytest.fixture
def prompts(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na cat\n")
    return tmp_path / "prompts.txt"


@pytest.fixture
def encoder(monkeypatch):
    monkeypatch.setattr(graftax, "text_encoder", StandIn, raising=False)
    return "stand-in"


def test_texts_are_encoded_and_continued(run, refused, prompts, encoder, tmp_path):
    out = tmp_path / "text"
    code, said, told = run("encode", "--text", prompts, "--text-encoder", encoder, out, "--dtype", "float32")
    assert (code, said) == (0, f"{out}: 3 captions (<= 6, 4) in 1 shards of 0.1 MB in all\n")
    assert "3 captions, 2 of them distinct" in told
    assert "encode 3/3 (100%)" in told
    assert open_store(out).captions == ("a cat", "a dog", "")
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run("encode", prompts, out, "--text", "--text-encoder", encoder, "--dtype=float32")[0] == 0
    assert {name: time for name, time in before.items() if "record" in name}.items() <= {
        path.name: path.stat().st_mtime_ns for path in out.iterdir()
    }.items()
    assert "dtype float32, expected bfloat16" in refused("encode", "--text", prompts, out, "--text-encoder", encoder)
    assert run("encode", "--text", prompts, out, "--text-encoder", encoder, "--overwrite")[0] == 0
    assert open_store(out).manifest.dtype == "bfloat16"


def test_pictures_and_their_captions(run, refused, encoder, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (32, 32), (80 * i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"shade {i}")
    assert run("encode", "--text", folder, tmp_path / "text", "--text-encoder", encoder)[0] == 0
    line = refused("encode", folder, tmp_path / "out", "--vae=demo", "--size=32", "--captions", tmp_path / "text")
    assert "images of 3 channels, expected 1 for 'demo'" in line  # captions were read and found
    (folder / "1.txt").unlink()
    for flags in (("--text", "--text-encoder", encoder), ("--vae=demo", "--captions", tmp_path / "text")):
        assert "1 of 3 pictures have none, the first wants 1.txt" in refused("encode", folder, tmp_path / "out", *flags)
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png"}))
    assert "metadata.jsonl line 1" in refused("encode", folder, tmp_path / "out", "--text", "--text-encoder", encoder)
    assert not (tmp_path / "out").exists()


def test_scenes_have_token_ids(run, refused, tmp_path):
    captions = [str(scene(i).caption) for i in range(5)]
    (tmp_path / "prompts.txt").write_text("\n".join(captions))
    command = ("encode", "--text", tmp_path / "prompts.txt", tmp_path / "text", "--text-encoder", "scenes")
    assert run(*command)[0] == 0
    store = open_store(tmp_path / "text")
    assert store.manifest.dtype == "int32"
    np.testing.assert_array_equal(store.read(np.arange(len(set(captions))))["text"], ids(list(dict.fromkeys(captions))))
    assert "expected none of --text-dtype, --max-length, --dtype" in refused(*command, "--max-length=4")
    (tmp_path / "prompts.txt").write_text("two unicorns")
    code, _, err = run(*command, "--overwrite")
    assert (code, "unknown word 'unicorns'" in err) == (2, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--vae is missing"),
        (("--text",), "--text-encoder is missing"),
        (("--text", "--text-encoder=x", "--vae=demo"), "--text: got --vae, which belongs to images"),
        (("--text", "--text-encoder=x", "--subset=4"), "--text: got --subset"),
        (("--vae=demo", "--text-encoder=x"), "--text-encoder: belongs to texts, expected --text"),
        (("--vae=demo", "--dtype=bfloat16"), "bfloat16: belongs to texts"),
        (("--vae=demo", "--max-length=4"), "--max-length: belongs to texts"),
        (("--vae=demo", "--text-dtype=bfloat16"), "--text-dtype: belongs to texts"),
        (("--vae=demo", "--captions=x", "--data-dir=y"), "--captions: got --data-dir"),
        (("--vae=demo", "--captions={t}"), "text store {t}: no manifest.json"),
    ],
)
def test_flags_that_do_not_go_together(refused, prompts, tmp_path, flags, message):
    out = tmp_path / "out"
    line = refused("encode", prompts, out, *(flag.format(t=tmp_path) for flag in flags))
    assert message.format(t=tmp_path) in line
    assert not out.exists()
