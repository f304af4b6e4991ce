"""The language of edits: every edit's text is read back to the edit, and what was done can be done again from it."""

import jax
import numpy as np
import pytest

from graftax.errors import BadInput
from graftax.models import Model
from graftax.spec import op
from graftax.surgery import (
    EDITS,
    Site,
    class_tokens,
    compose,
    decouple,
    drop,
    graft,
    hybrid,
    interface,
    inverse,
    looped_parallel,
    lora,
    lora_file,
    merge_lora,
    native,
    parallel,
    parallel_pairs,
    parse,
    patch,
    place_norms,
    random_order,
    repeat,
    replace,
    resize,
    reverse,
    rotary,
    skip,
    tie,
)
from graftax.testing import assert_trees_close, random_params, tiny_spec

SPEC = tiny_spec(depth=4, hidden_size=16, num_heads=2)
MODEL = Model(SPEC, random_params(SPEC, jax.random.key(0)))
RNG = jax.random.key(7)

FORMS = {
    "replace": [
        replace("blocks[1::2].mixer", "hyena_x", kernel=3),
        replace("blocks[*].mixer", "mha"),
        replace([3, -1], "swa", init="transplant", window=2),
        replace(["blocks[0,2].mixer", Site(1, "mixer"), 3], op("mamba2", scan="cross")),
        replace("blocks[deep:12.5%].modulation", "adaln_lowrank", rank=2),
        replace("dit[top:50%].norm", "rms_norm", affine=True, eps=1e-05),
        replace("joint[28:24:-1].img/mlp", "mlp", ratio=1 / 3),
        replace("blocks[ 6, 16 ].mixer", "hyena_long", bidirectional=False),
    ],
    "resize": [resize("blocks[75%].mlp", 3), resize([0, 1], 1e-3, init="transplant"), resize(2, 1e16)],
    "hybrid": [
        hybrid({"hyena_x": [1, 3], op("swa", window=8): 2, op("mlp", ratio=3.0): "75%"}),
        hybrid({"mlp": ["blocks[0].mlp", 2, "1::2"]}, init="transplant"),
        hybrid({"adaln_shared": "blocks[*].adaln"}),
    ],
    "compose": [
        compose(drop(3, 5), tie((7, 8))),
        compose(compose(replace(0, "mha"), skip(1, 2)), compose(resize(0, 2), hybrid({"swa": [1]}), merge_lora())),
    ],
    "inverse": [
        inverse(MODEL), inverse(MODEL, "blocks[hyena_x].mixer"), inverse(MODEL, ["blocks[0].mlp", 3], Site(1, "mixer"))
    ],
    "lora": [
        lora("blocks[50%].mixer", rank=4, alpha=8),
        lora("final", "true", "none", r"blocks/0\d/(mixer|mlp)/.*", 'it\'s "quoted"\\', "blocks/.*/adaln", alpha=0.5),
        lora(["a, b=c", "(d: e)", "[f]", "", " g "], rank=1),
    ],
    "lora_file": [
        lora_file("x.safetensors"), lora_file("hf://ORG/NAME@main/x y.safetensors", 0.6), lora_file("blocks[0].mixer", -1),
        lora_file(r"C:\loras\'a'.bin", strength=1e-3, merge=True), lora_file("none"), lora_file("a/b"),
    ],
    "merge_lora": [merge_lora()],
    "skip": [skip(1, 2)],
    "repeat": [repeat(1, 3), repeat(1, 3, block=0)],
    "reverse": [reverse(0, 4)],
    "random_order": [random_order(0, 3, seed=12345678901234567890), random_order(0, 3, 0)],
    "parallel": [parallel(0, 2), parallel(1, 4, loops=3, alpha=0.1), parallel(1, 4, alpha=1e-9), looped_parallel(0, 2)],
    "parallel_pairs": [parallel_pairs(), parallel_pairs(1), parallel_pairs(0, 4), parallel_pairs(2, 4)],
    "drop": [drop(3), drop(0, 1, 2)],
    "tie": [tie((7, 8)), tie((1, 3), (4, 5, 6)), tie([0, 2])],
    "interface": [interface(), interface("eps", time="index"), interface("score", time="data", path="gvp")],
    "native": [native()],
    "place_norms": [place_norms("blocks[*].norm", "sandwich"), place_norms([0], "post", norm="layer", soft=False)],
    "rotary": [rotary(), rotary("blocks[1].mixer")],
    "class_tokens": [class_tokens(), class_tokens("blocks[0].adaln", keep=False)],
    "patch": [patch(1), patch(4, channels=16)],
    "decouple": [decouple(3)],
}  # fmt: skip


def test_every_edit_is_here():
    assert FORMS.keys() == EDITS.keys()


@pytest.mark.parametrize("edit", [edit for forms in FORMS.values() for edit in forms], ids=str)
def test_texts_are_read_back(edit):
    text = str(edit)
    again = parse(text)
    assert again == edit
    assert hash(again) == hash(edit)
    assert str(again) == text
    if "'" not in text and "[ " not in text:  # spaces within quotes and selectors are theirs
        assert parse(f"  {text.replace(', ', ' ,  ').replace('(', '( ')} ") == edit
    assert "\n" not in text


@pytest.mark.parametrize(
    ("short", "edit"),
    [
        ("blocks[1::2].mixer=hyena_x(kernel=4)", replace("blocks[1::2].mixer", "hyena_x", kernel=4)),
        ("blocks[50%].mixer = swa", replace("blocks[50%].mixer", "swa")),
        ("blocks[*].mlp=3", resize("blocks[*].mlp", 3)),
        ("blocks[*].mlp=.5", resize("blocks[*].mlp", 0.5)),
        ("dit[*].adaln=adaln_shared", replace("dit[*].adaln", "adaln_shared")),
        ("blocks[0].norm=rms_norm(affine=true)", replace("blocks[0].norm", "rms_norm", affine=True)),
        ("replace(blocks[0].mixer, swa)", replace("blocks[0].mixer", "swa")),
        ('replace("blocks[0].mixer", "swa", window=2)', replace("blocks[0].mixer", "swa", window=2)),
        ("resize([blocks[0].mlp, 1], 3)", resize(["blocks[0].mlp", 1], 3)),
        ("lora(final, rank=2,)", lora("final", rank=2)),
        ("repeat(1, 2, block=None)", repeat(1, 2)),
        ("hybrid(swa: 1, hyena_x(kernel=3): [0, 2])", hybrid({"swa": 1, op("hyena_x", kernel=3): [0, 2]})),
    ],
)
def test_short_and_other_forms(short, edit):
    assert parse(short) == edit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it ends too early"),
        ("skip", "no call"),
        ("3", "no call"),
        ("[skip(1, 2)]", "no call"),
        ("blocks[1].mixer", "no call"),
        ("skip(1, 2", "it ends too early|brackets that do not close"),
        ("skip(1, ", "it ends too early"),
        ("skip(1 2)", "brackets that do not close"),
        ("skip(1,, 2)", "',' is out of place"),
        ("skip(1, 2))", "more than one edit"),
        ("skip(1, 2) skip(2, 3)", "more than one edit"),
        ("skip(lo=1, lo=2, hi=3)", "lo is given twice"),
        ("tie((1, 2)", "it ends too early|brackets that do not close"),
        ("tie([1 2])", "a list that does not end in ']'"),
        ("lora('final)", '"\'final\\)" is not understood'),
        ("skip(1; 2)", "'; 2\\)' is not understood"),
        ("skip(1a, 2)", "'1a, 2\\)' is not understood"),
        ("blocks[1].mixer=", "it ends too early"),
        ("blocks[1].mixer=true", "got True behind '=', expected an operator or a ratio"),
        ("blocks[1].mixer=[1]", "got \\[1\\] behind '='"),
        ("blocks[1].mixer=hyena_x(4)", "hyena_x\\(4, ..\\), expected options as name=value"),
        ("blocks[1].mixer=rwkv", "operator 'rwkv': not known, expected one of"),
        ("replace(blocks[1].mixer, rwkv(a=1))", "operator 'rwkv': not known"),
        ("replace(blocks[1].mixer, swa(window=[1]))", "'swa' option window: got \\[1\\]"),
        ("replace(blocks[1].mixer, swa, init=zeros)", "init: got 'zeros'"),
        ("replace(blocks[1].mixer)", "missing 1 required positional argument: 'kind'"),
        ("fold(1)", "'fold' is no edit, expected one of replace, resize"),
        ("skip(1)", "missing 1 required positional argument: 'hi'"),
        ("skip(1, 2, 3)", "skip\\(\\) takes 2 positional arguments"),
        ("drop(3, colour=red)", "unexpected keyword argument 'colour'"),
        ("compose()", "compose: got no edits"),
        ("compose(1)", "compose: got 1, expected edits"),
        ("inverse(blocks[0].mixer)", "inverse: got 'blocks\\[0\\].mixer', expected a model, or in a text the word original"),
        ("compose(" * 5000, "nested too deeply"),
    ],
)
def test_malformed_texts_are_refused(text, message):
    with pytest.raises(BadInput, match=message) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_what_is_no_text_is_refused():
    with pytest.raises(BadInput, match=r"edit None: expected text like replace\("):
        parse(None)  # pyright: ignore


# --- Doing it again ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edits",
    [
        [replace("blocks[1::2].mixer", "hyena_x"), resize("blocks[0].mlp", 6, init="transplant"), skip(3, 4)],
        [hybrid({"swa": [0], "mlp": "2"}), lora("blocks[0].mixer", "final", rank=2), merge_lora(), drop(1)],
        [compose(parallel_pairs(0, 2), replace("blocks[2:].adaln", "adaln_shared")), random_order(1, 3, seed=2)],
        [replace("blocks[*].norm", "rms_norm", affine=True), tie((0, 3)), parallel(1, 3, loops=2, alpha=0.5)],
    ],
    ids=lambda edits: " ".join(edit.name for edit in edits),
)
def test_the_texts_of_a_model_make_it_again(edits):
    student = MODEL
    for edit in edits:
        student = graft(student, edit, RNG)
    again = MODEL
    for text in student.meta.edits:
        again = graft(again, parse(text), RNG)
    assert again.spec == student.spec
    assert again.meta == student.meta
    assert_trees_close(again.params, student.params, rtol=0, atol=0)


def test_an_inverse_from_text_wants_to_be_told_the_original():
    student = graft(MODEL, replace([1], "hyena_x"), RNG)
    with pytest.raises(BadInput, match=r"inverse\(original\): read from a text, which does not hold the original"):
        graft(student, parse("inverse(original)"))
    assert np.all([leaf is other for leaf, other in zip(
        jax.tree.leaves(graft(student, inverse(MODEL)).params), jax.tree.leaves(MODEL.params), strict=True
    )])  # fmt: skip
