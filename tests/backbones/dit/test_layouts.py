"""Structure read from tensors; names and layouts in both directions; what does not fit gets named."""

import jax
import ml_dtypes
import numpy as np
import pytest
from golden_checkpoints import LAYOUT, NAMES, golden, hollow, spec_of
from golden_checkpoints import load as load_any

from graftax.backbones.dit import variant
from graftax.blocks import resolve_all
from graftax.checkpoint.tensors import read_tensors
from graftax.errors import BadInput
from graftax.models.layout import tensors_from
from graftax.spec import Step, op
from graftax.testing import random_params, tiny_spec


def tensors(name: str = "dit") -> dict[str, np.ndarray]:
    return dict(read_tensors(golden(name))[0])


def load(found: dict[str, np.ndarray], **overrides):
    return load_any(found, num_heads=4, **overrides)


def test_structure_of_the_goldens():
    kinds = {name: [(str(b["mixer"]), str(b["mlp"])) for b in load(tensors(name))[0].blocks] for name in NAMES}
    plain = ("mha", "mlp(ratio=4.0)")
    assert kinds == {
        "dit": [plain] * 4,
        "graft_mha_hyena_x_50p": [plain, ("hyena_x(kernel=4)", plain[1])] * 2,
        "graft_mha_swa_50p": [plain, ("swa(window=4)", plain[1])] * 2,
        "graft_mlp_mlp_50p": [plain, ("mha", "mlp(ratio=3.0)")] * 2,
    }
    spec, _ = load(tensors())
    assert (spec.image_shape, spec.option("patch"), spec.width) == ((8, 8, 4), 2, 48)
    assert (spec.classes, spec.prediction.variance) == (10, True)
    assert spec.blocks[0] == tiny_spec().blocks[0]


def test_layouts_of_a_golden():
    given = tensors("graft_mha_hyena_x_50p")
    _, params = load(given)
    mixer = params["blocks"]["01"]["mixer"]
    assert np.array_equal(mixer["in_proj"]["kernel"], given["blocks.1.attn.in_proj.weight"].T)
    assert np.array_equal(mixer["short_filter"]["kernel"], given["blocks.1.attn.short_filter.weight"][:, 0].T)
    weight = given["x_embedder.proj.weight"]  # (d, c, p, p)
    for row in range(2):
        for column in range(2):
            assert np.array_equal(params["x_embedder"]["kernel"][row, column], weight[:, :, row, column].T)


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back_bit_for_bit(name):
    given = tensors(name)
    back = tensors_from(LAYOUT, *load(given))
    assert back.keys() == given.keys()
    for key, array in given.items():
        assert back[key].dtype == np.float32
        assert np.array_equal(back[key].view(np.int32), array.view(np.int32))


@pytest.mark.parametrize(("name", "resolution"), [("DiT-XL/2", 256), ("DiT-S/8", 512), ("DiT-B/4", 256), ("DiT-L/2", 512)])
def test_published_models_are_recognised_without_overrides(name, resolution):
    spec = variant(name, resolution)
    assert spec_of(hollow(spec)) == spec


@pytest.mark.parametrize(
    ("slot", "new"),
    [
        ("adaln", op("adaln_shared")),
        ("adaln", op("adaln_lowrank", rank=5)),
        ("norm1", op("layer_norm", affine=True)),
        ("norm2", op("rms_norm", affine=True)),
    ],
)
def test_grafted_modulations_and_norms_have_names(slot, new):
    spec = tiny_spec()
    blocks = tuple(block.with_op(slot, new) if i % 2 else block for i, block in enumerate(spec.blocks))
    spec = resolve_all(spec.replace(blocks=blocks))
    given = tensors_from(LAYOUT, spec, random_params(spec, jax.random.key(0)))
    again, params = load(given)
    assert again == spec
    back = tensors_from(LAYOUT, again, params)
    assert back.keys() == given.keys()
    assert all(np.array_equal(back[key], array) for key, array in given.items())


def test_nothing_is_copied_whatever_type_it_is_stored_in():
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
        given = {key: array.astype(dtype) for key, array in tensors().items()}
        _, params = load(given)
        found = params["blocks"]["00"]["mixer"]["qkv"]
        assert np.shares_memory(found["kernel"], given["blocks.0.attn.qkv.weight"])
        assert found["bias"].dtype == dtype
        assert np.array_equal(found["bias"], given["blocks.0.attn.qkv.bias"])


@pytest.mark.parametrize("key", sorted(tensors("graft_mha_hyena_x_50p")))
def test_every_missing_tensor_is_named(key):
    given = tensors("graft_mha_hyena_x_50p")
    del given[key]
    with pytest.raises(BadInput, match=f"missing.*{key}"):
        load(given)


@pytest.mark.parametrize("key", sorted(tensors("graft_mha_hyena_x_50p")))
def test_every_misshaped_tensor_is_named(key):
    """One row more; one axis more."""
    given = tensors("graft_mha_hyena_x_50p")
    rows = np.concatenate([given[key], given[key][:1]])
    for wrong in (rows, given[key][None]):
        if key == "y_embedder.embedding_table.weight" and wrong is rows:
            continue  # a model of eleven classes
        with pytest.raises(BadInput, match=key.replace("0.", r"0\.")) as caught:
            load(given | {key: wrong})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["extra", "blocks.0.attn.q_norm.weight", "blocks.0.extra", "blocks.00.attn.qkv.bias", "blocks.x", "a\nb"]
)
def test_every_unexpected_tensor_is_named(key):
    with pytest.raises(BadInput, match="unexpected") as caught:
        load(tensors() | {key: np.ones(1, np.float32)})
    assert ascii(key)[1:-1] in str(caught.value)


def test_many_faults_are_counted():
    given = {key: array for key, array in tensors().items() if ".bias" not in key and "adaLN" not in key}
    with pytest.raises(BadInput, match=r"^tensors missing: x_embedder\.proj\.bias, .* and 9 more$"):
        load(given)


def test_gap_between_blocks_is_named():
    given = {key: array for key, array in tensors().items() if not key.startswith("blocks.2.")}
    with pytest.raises(BadInput, match=r"blocks\.2\.adaLN_modulation"):
        load(given)


def test_integers_are_no_weights():
    with pytest.raises(BadInput, match=r"blocks\.0\.attn\.qkv\.bias int64"):
        load(tensors() | {"blocks.0.attn.qkv.bias": np.zeros(144, np.int64)})


def test_overrides():
    assert load(tensors("graft_mha_swa_50p"), window=2)[0].blocks[1]["mixer"] == op("swa", window=2)
    assert load(tensors(), window=2)[0] == load(tensors())[0]  # nothing here has a window
    for overrides, words in (
        ({"num_head": 4}, "'num_head': not known"),
        ({"num_heads": 5}, "num_heads: 5 does not divide the width 48"),
        ({"num_heads": "4"}, "num_heads"),
        ({"num_heads": 4, "ratio": 2.0}, r"ratio=2.0: the file has 4.0 in blocks\[0\].mlp"),
        ({}, "give num_heads="),
    ):
        with pytest.raises(BadInput, match=words):
            spec_of(tensors(), **overrides)
    with pytest.raises(BadInput, match="window"):
        load(tensors("graft_mha_swa_50p"), window="wide")


def test_export_refuses_what_the_layout_cannot_hold():
    spec, params = load(tensors())
    with pytest.raises(BadInput, match="program"):
        tensors_from(LAYOUT, spec.replace(program=(Step((0,)), Step((2, 1)), Step((3,)))), params)
    with pytest.raises(BadInput, match="missing: pos_embed"):
        tensors_from(LAYOUT, spec, {key: leaf for key, leaf in params.items() if key != "pos_embed"})
    with pytest.raises(BadInput, match="without a name in the layout 'dit': stray"):
        tensors_from(LAYOUT, spec, params | {"stray": np.zeros(1)})
    with pytest.raises(BadInput, match=r"pos_embed \(1, 16\) \(expected \(1, 16, 48\)\)"):
        tensors_from(LAYOUT, spec, params | {"pos_embed": np.zeros((1, 16))})
