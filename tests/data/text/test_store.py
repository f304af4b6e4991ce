"""Text stores: each caption once, without padding; the same bytes whatever kills; nothing mixed up."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from stand_in import LENGTH, WIDTH, StandIn, expected, number

from graftax.data.shards import MANIFEST, begin, read_sharded, seal
from graftax.data.text.encoding import encode_texts, write_missing
from graftax.data.text.store import CAPTIONS, TextManifest, Texts, open_store
from graftax.errors import BadInput

PROMPTS = [f"{noun} number {i}" for i in range(12) for noun in ("cat", "dog")] + ["cat number 3", "a b c d e f g h i"]
SIZES = {"batch_size": 4, "shard_size": 10}
"""25 distinct prompts and the empty one in shards of 10, 10 and 6, in batches of 4."""


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture
def whole(prompts, tmp_path):
    """An undisturbed run's folder."""
    encode_texts(prompts, tmp_path / "whole", "stand-in", StandIn, **SIZES)
    return tmp_path / "whole"


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_every_caption_has_its_tokens_and_no_more(prompts, tmp_path, capsys):
    encode_texts(prompts, tmp_path / "set", "stand-in", StandIn, dtype="float32", **SIZES)
    assert "26 captions (<= 6, 4) in 3 shards" in capsys.readouterr().out
    store = open_store(tmp_path / "set")
    assert store.captions == (*dict.fromkeys(PROMPTS), "")
    assert (len(store), store.empty, store.shape) == (26, 25, (LENGTH, WIDTH))
    got = store.read(np.arange(26))
    for i, caption in enumerate(store.captions):
        rows = expected(caption)
        assert got["text_mask"][i].tolist() == [True] * len(rows) + [False] * (LENGTH - len(rows))
        np.testing.assert_array_equal(got["text"][i], np.pad(rows, ((0, LENGTH - len(rows)), (0, 0))))
    shards = [path for path in (tmp_path / "set").iterdir() if path.suffix == ".array_record"]
    assert sum(path.read_bytes().count(expected("").tobytes()) for path in shards) == 26  # the end of each


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_kept_as_such(prompts, tmp_path, dtype):
    encode_texts(prompts, tmp_path / "set", "stand-in", StandIn, dtype=dtype)
    text = open_store(tmp_path / "set").read(np.array([3, 25]))["text"]
    assert text.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(text[0, :4], expected("dog number 1").astype(dtype))


def test_token_ids_are_kept_as_integers(prompts, tmp_path):
    encode_texts(prompts, tmp_path / "set", "words", lambda name: StandIn(name, ids=True), **SIZES)
    got = open_store(tmp_path / "set").read(np.array([2]))
    assert got["text"].dtype == np.int32
    assert got["text"].tolist() == [[number("cat"), number("number"), number("1"), number("</s>"), 0, 0]]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[3])
from graftax.data import shards
from graftax.data.text.encoding import encode_texts
from stand_in import StandIn

write = shards.write_shard

def write_shard(path, records):
    if "00002" not in path.name:
        return write(path, records)
    next(records)
    path.write_bytes(b"half a shard")
    os.kill(os.getpid(), signal.SIGKILL)

shards.write_shard = write_shard
encode_texts(sys.argv[1], sys.argv[2], "stand-in", StandIn, batch_size=4, shard_size=10)
"""


def test_killed_and_run_again_gives_the_same_bytes(prompts, whole, tmp_path):
    out, here = tmp_path / "set", str(Path(__file__).parents[2])
    process = subprocess.run([sys.executable, "-c", KILLED, prompts, out, here], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert any(path.read_bytes() == b"half a shard" for path in out.rglob("*") if path.is_file())
    with pytest.raises(BadInput, match="2 of 3 shards, finish with the same `graftax encode`"):
        open_store(out)
    encoder = StandIn()
    encode_texts(prompts, out, "stand-in", lambda _: encoder, **SIZES)
    assert content(out) == content(whole)
    assert [len(call) for call in encoder.calls] == [1, 4, 4]  # to see the shape, then one shard of six


def test_hosts_write_their_shares(prompts, whole, tmp_path):
    plan = dataclasses.replace(read_sharded(whole, TextManifest), shards=None)
    folder = begin(tmp_path / "set", plan, {CAPTIONS: (whole / CAPTIONS).read_text()})
    captions = open_store(whole).captions
    write_missing(folder, plan, captions, StandIn(), 4, 1, 2)
    assert sorted(path.name for path in folder.glob("*.array_record")) == [plan.files[1]]
    write_missing(folder, plan, captions, StandIn(), 4, 0, 2)
    seal(folder, plan)
    assert content(folder) == content(whole)


@pytest.mark.parametrize("damage", ["shard", "captions"])
def test_the_same_command_repairs_a_store(prompts, whole, damage):
    before = content(whole)
    path = whole / (CAPTIONS if damage == "captions" else read_sharded(whole, TextManifest).files[1])
    path.write_bytes(path.read_bytes().replace(b"at", b"ut") if damage == "captions" else path.read_bytes()[:-9])
    with pytest.raises(BadInput, match=r"repair it|captions\.jsonl is missing or damaged"):
        _ = open_store(whole).captions
    encode_texts(prompts, whole, "stand-in", StandIn, **SIZES)
    assert content(whole) == before


def test_stores_of_other_texts_encoders_and_types_are_not_continued(prompts, whole, tmp_path):
    before = content(whole)
    with pytest.raises(BadInput, match="a text store of dtype bfloat16, expected float16"):
        encode_texts(prompts, whole, "stand-in", StandIn, dtype="float16", **SIZES)
    with pytest.raises(BadInput, match="a text store of encoder_sha256"):
        encode_texts(prompts, whole, "another", StandIn, **SIZES)
    (tmp_path / "other.txt").write_text("one more")
    with pytest.raises(BadInput, match="a text store of count 26, expected 2"):
        encode_texts(tmp_path / "other.txt", whole, "stand-in", StandIn, **SIZES)
    assert content(whole) == before
    encode_texts(tmp_path / "other.txt", whole, "stand-in", StandIn, afresh=True)
    assert open_store(whole).captions == ("one more", "")
    assert len(list(whole.glob("*.array_record"))) == 1
    with pytest.raises(BadInput, match="holds something else"):
        encode_texts(prompts, tmp_path, "stand-in", StandIn)


def shifted(found):
    """With padding before the tokens."""
    return {**found, "text_mask": found["text_mask"][:, ::-1]}


def huge(found):
    return {**found, "text": 1e30 * found["text"]}


@pytest.mark.parametrize(("fault", "message"), [(shifted, "tokens before padding"), (huge, "not finite, .* within float16")])
def test_what_an_encoder_must_not_do(prompts, tmp_path, fault, message):
    class Faulty(StandIn):
        def __call__(self, prompts):
            return fault(super().__call__(prompts))

    with pytest.raises(BadInput, match=message):
        encode_texts(prompts, tmp_path / "set", "x", Faulty, dtype="float16", **SIZES)
    assert not any(path.suffix == ".array_record" for path in tmp_path.rglob("*"))


def test_captions_are_found_by_number(whole):
    store = open_store(whole)
    numbers = store.numbers([("dog number 0",), ("cat number 3", "cat number 0")], "pictures")
    assert numbers == [(1,), (6, 0)]
    with pytest.raises(BadInput, match=r"pictures: 2 of 3 captions are not in text store .*, the first 'x'"):
        store.numbers([("x",), ("y", "cat number 3")], "pictures")
    texts, drawn = Texts(store, numbers), np.random.default_rng(0)
    assert {texts.choose(0, drawn) for _ in range(9)} == {1}
    assert {texts.choose(1, drawn) for _ in range(30)} == {6, 0}


def test_an_encoder_is_opened_after_texts_are_read(tmp_path):
    def never(folder):
        raise AssertionError(folder)

    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{')
    with pytest.raises(BadInput, match="line 2: invalid JSON"):
        encode_texts(tmp_path / "bad.jsonl", tmp_path / "set", "x", never)
    with pytest.raises(BadInput, match="batch-size 0"):
        encode_texts(tmp_path / "bad.jsonl", tmp_path / "set", "x", never, batch_size=0)
    assert os.listdir(tmp_path) == ["bad.jsonl"]


def test_a_store_that_is_none_is_refused(whole, latent_folder):
    with pytest.raises(BadInput, match=r"text store .*: no manifest\.json in it, expected a folder that `graftax encode`"):
        open_store(whole.parent)
    with pytest.raises(BadInput, match=r"text store .*: manifest.json is damaged .*expected the format 'graftax text 1'"):
        open_store(latent_folder)
    tree = json.loads((whole / MANIFEST).read_text())
    tree["length"] = 5
    (whole / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(BadInput, match="checksum does not fit"):
        open_store(whole)
