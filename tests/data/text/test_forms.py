"""Texts with pooled vectors, and those whose padding models read: in stores and in memory they come back as they were."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from stand_in import LENGTH, WIDTH, StandIn

import graftax
from graftax.backbones.pixart import pixart_spec
from graftax.data.text.encoding import encode_texts, encoded
from graftax.data.text.memory import ReadTexts
from graftax.data.text.store import check_text, open_store
from graftax.errors import BadInput

GOLDENS = Path(__file__).parents[2] / "goldens"
POOLED = 3
PROMPTS = ["a cat", "two dogs in the snow", "", "a cat"]
FORMS = {"flux": ("text", "pooled"), "auraflow": ("text",), "clip": ("text", "text_mask", "pooled")}


class Encoder(StandIn):
    """The stand-in with conditions of one of `FORMS`; AuraFlow's padding is zero."""

    def __init__(self, form):
        super().__init__(form)
        self.names, self.zero = FORMS[form], form == "auraflow"

    def __call__(self, prompts):
        found = super().__call__(prompts)
        text = found["text"] * found["text_mask"][..., None] if self.zero else found["text"]
        pooled = np.stack([np.full(POOLED, 1 + len(prompt), np.float32) for prompt in prompts])
        return {name: {**found, "text": text, "pooled": pooled}[name] for name in self.names}


def whole(form):
    """What the encoder gives for `PROMPTS`, zeros at padding that a mask says is none."""
    found = Encoder(form)(PROMPTS)
    return found if "text_mask" not in found else {**found, "text": found["text"] * found["text_mask"][..., None]}


def equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(np.asarray(found[name], np.float32), value)


@pytest.mark.parametrize("form", FORMS)
def test_in_a_store_and_in_memory(form, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    encode_texts(tmp_path / "prompts.txt", tmp_path / "store", form, Encoder, dtype="float32", batch_size=2, shard_size=2)
    store = open_store(tmp_path / "store")
    assert ("pooled (3,)" in capsys.readouterr().out) == ("pooled" in FORMS[form])
    equal(store.read(np.array([0, 1, store.empty, 0])), whole(form))
    equal(ReadTexts(Encoder(form), PROMPTS)(PROMPTS), whole(form))


def test_zeros_at_the_end_are_not_kept():
    assert [len(row.tokens) for row in encoded(Encoder("auraflow"), PROMPTS).rows] == [3, 6, 1, 3]
    assert [len(row.tokens) for row in encoded(Encoder("flux"), PROMPTS).rows] == [LENGTH] * 4


def test_half_precision_of_pooled_vectors(tmp_path):
    (tmp_path / "prompts.txt").write_text("a cat")
    encode_texts(tmp_path / "prompts.txt", tmp_path / "store", "flux", Encoder)
    found = open_store(tmp_path / "store").read(np.array([0]))
    assert {array.dtype for array in found.values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    "change",
    [
        lambda found: {"pooled": found["pooled"]}, lambda found: {**found, "hidden": found["text"]},
        lambda found: {**found, "pooled": found["pooled"][:1]}, lambda found: {**found, "pooled": found["text"]},
        lambda found: {"text": np.ones((4, 5), np.int32), "pooled": found["pooled"]},
    ],
    ids=["no text", "unknown", "too few", "no vectors", "ids"],
)  # fmt: skip
def test_arrays_that_are_none_of_these(change):
    class Other(Encoder):
        def __call__(self, prompts):
            return change(super().__call__(prompts))

    with pytest.raises(BadInput, match=r"text encoder: gives .* for 4 captions, expected text \(b, m, d\)"):
        encoded(Other("flux"), PROMPTS)


def test_which_models_take_a_store(tmp_path):
    """Widths, pooled vectors and masks must be the model's own."""
    (tmp_path / "prompts.txt").write_text("a cat")
    stores = {}
    for form in FORMS:
        encode_texts(tmp_path / "prompts.txt", tmp_path / form, form, Encoder)
        stores[form] = open_store(tmp_path / form)
    sizes = {"input_size": 4, "patch_size": 2, "depth": 1, "num_heads": 2, "hidden_size": 16}
    pixart = pixart_spec(**sizes, text_width=WIDTH, text_tokens=LENGTH)
    flux = graftax.load(GOLDENS / "flux" / "schnell" / "diffusers").spec
    aura = graftax.load(GOLDENS / "auraflow" / "diffusers").spec

    def of(spec, **frame):
        return spec.replace(frame=tuple(sorted({**dict(spec.frame), "text_width": WIDTH, **frame}.items())))

    check_text(stores["flux"], of(flux, pooled_width=POOLED))
    check_text(stores["auraflow"], of(aura))
    for form, spec, word in (
        ("flux", flux, "embeddings of width 4, the model takes 20"),
        ("flux", of(flux), r"pooled texts of width 3, the model takes 12"),
        ("auraflow", of(flux), r"pooled texts of width 0, the model takes 12"),
        ("flux", of(aura), r"pooled texts of width 3, the model takes 0 \(0: none\)"),
        ("auraflow", pixart, "embeddings that come with a mask: none, the model takes one"),
        ("clip", of(flux, pooled_width=POOLED), "embeddings that come with a mask: one, the model takes none"),
    ):
        with pytest.raises(BadInput, match=word):
            check_text(stores[form], spec)
