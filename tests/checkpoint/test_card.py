"""What a written model says of itself: its card, its spec in every format, and a spec that nobody has changed by hand."""

import json

import jax
import numpy as np
import pytest

import graftax
from graftax.backbones.dit import with_compat
from graftax.errors import BadInput
from graftax.testing import random_params, tiny_spec


@pytest.fixture(scope="module")
def model():
    spec = tiny_spec(depth=2)
    model = graftax.Model(spec, random_params(spec, jax.random.key(0)), graftax.models.Meta(source="DiT-XL-2-256x256.pt"))
    return graftax.graft(model, graftax.replace("blocks[1].mixer", "hyena_x", kernel=2), jax.random.key(1))


@pytest.fixture(scope="module")
def plain():
    spec = with_compat(tiny_spec(depth=2), "diffusers")
    return graftax.Model(spec, random_params(spec, jax.random.key(0)))


def same(one, other):
    assert one.spec == other.spec
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_the_card_of_a_folder(model, tmp_path):
    history = [{"split": "train", "loss": 2.0}, {"split": "eval", "loss": 0.25}]
    meta = graftax.models.Meta(**{**vars(model.meta), "data": ("finetune(steps=7): garments, 10 images",)})
    graftax.save(model.replace(meta=meta.after("finetune(steps=7)", history, "loss")), tmp_path / "student")
    text = (tmp_path / "student" / "README.md").read_text()
    for words in (
        "# student", "2 blocks of width", "hyena_x(kernel=2), in 1 of 2 blocks", "parameters", "GFLOPs", "DiT-XL-2-256",
        "- replace(blocks[1].mixer, hyena_x(kernel=2), init=random)", "- finetune(steps=7): garments, 10 images",
        "- finetune(steps=7): loss 0.25 on held-out data", "CC BY-NC",
    ):  # fmt: skip
        assert words in text


def test_what_is_not_known_is_said_to_be(plain, tmp_path):
    graftax.save(plain, tmp_path / "bare")
    text = (tmp_path / "bare" / "README.md").read_text()
    assert text.count("Nothing is recorded.") == 3
    assert "graftax adds none" in text


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.safetensors"])
def test_files_open_without_flags_and_have_a_card_beside_them(model, tmp_path, name):
    graftax.export(model, tmp_path / name)
    same(graftax.load(tmp_path / name), model)
    assert "hyena_x(kernel=2)" in (tmp_path / f"{name}.md").read_text()


def test_pytorch_reads_a_file_with_a_spec_as_any_other(model, tmp_path):
    torch = pytest.importorskip("torch")
    graftax.export(model, tmp_path / "m.pt")
    found = torch.load(tmp_path / "m.pt", weights_only=True)
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_folders_go_to_diffusers(plain, tmp_path, dtype):
    graftax.save(plain, tmp_path / "half", dtype=dtype)
    half = graftax.load(tmp_path / "half")
    graftax.export(half, tmp_path / "diffusers")
    back = graftax.load(tmp_path / "diffusers", compat="diffusers")
    assert back.spec == plain.spec
    np.testing.assert_array_equal(back.params["final"]["linear"]["kernel"], half.params["final"]["linear"]["kernel"])
    assert (tmp_path / "diffusers" / "README.md").exists()


def test_a_table_that_is_another_is_still_refused(plain, tmp_path):
    moved = plain.replace(params={**plain.params, "pos_embed": plain.params["pos_embed"] + 0.02})
    with pytest.raises(BadInput, match="not the one that everybody computes: pos_embed"):
        graftax.export(moved, tmp_path / "diffusers")


def test_a_spec_changed_by_hand_is_refused(plain, tmp_path):
    graftax.save(plain, tmp_path / "model")
    index = json.loads((tmp_path / "model" / "graftax.json").read_text())
    index["spec"]["sizes"]["heads"], index["spec"]["sizes"]["head_dim"] = 1, plain.spec.width
    (tmp_path / "model" / "graftax.json").write_text(json.dumps(index))
    with pytest.raises(BadInput, match=r"graftax.json: its spec is not that of the weights"):
        graftax.load(tmp_path / "model")
