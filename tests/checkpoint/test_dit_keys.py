"""Structure read from tensors; names and layouts in both directions; what does not fit gets named."""

import ml_dtypes
import numpy as np
import pytest
from golden_checkpoints import NAMES, golden

from graftax.checkpoint.dit_keys import params_from_tensors, spec_from_tensors, tensors_from_params, torch_shapes
from graftax.checkpoint.tensors import read_tensors
from graftax.errors import BadInput
from graftax.models.dit import variant
from graftax.spec import Step, op


def tensors(name: str = "dit") -> dict[str, np.ndarray]:
    return dict(read_tensors(golden(name))[0])


def load(found: dict[str, np.ndarray], **overrides):
    spec = spec_from_tensors(found, num_heads=4, **overrides)
    return spec, params_from_tensors(spec, found)


def test_structure_of_the_goldens():
    kinds = {name: [(str(b.mixer), str(b.mlp)) for b in load(tensors(name))[0].blocks] for name in NAMES}
    plain = ("mha", "mlp(ratio=4.0)")
    assert kinds == {
        "dit": [plain] * 4,
        "graft_mha_hyena_x_50p": [plain, ("hyena_x(kernel=4)", plain[1])] * 2,
        "graft_mha_swa_50p": [plain, ("swa(window=4)", plain[1])] * 2,
        "graft_mlp_mlp_50p": [plain, ("mha", "mlp(ratio=3.0)")] * 2,
    }
    spec, _ = load(tensors())
    sizes = (spec.input_size, spec.patch_size, spec.in_channels, spec.hidden_size, spec.num_classes, spec.learn_sigma)
    assert sizes == (8, 2, 4, 48, 10, True)


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
    back = tensors_from_params(*load(given))
    assert back.keys() == given.keys()
    for key, array in given.items():
        assert back[key].dtype == np.float32
        assert np.array_equal(back[key].view(np.int32), array.view(np.int32))


@pytest.mark.parametrize(("name", "resolution"), [("DiT-XL/2", 256), ("DiT-S/8", 512), ("DiT-B/4", 256), ("DiT-L/2", 512)])
def test_published_models_are_recognised_without_overrides(name, resolution):
    spec = variant(name, resolution)
    hollow = {key: np.broadcast_to(np.float32(0), shape) for key, shape in torch_shapes(spec).items()}
    assert spec_from_tensors(hollow) == spec


def test_float32_is_not_copied_and_half_types_are_widened():
    given = tensors()
    _, params = load(given)
    assert np.shares_memory(params["blocks"]["00"]["mixer"]["qkv"]["kernel"], given["blocks.0.attn.qkv.weight"])
    for dtype in (np.float16, ml_dtypes.bfloat16):
        half = {key: array.astype(dtype) for key, array in given.items()}
        _, params = load(half)
        found = params["blocks"]["00"]["mixer"]["qkv"]["bias"]
        assert found.dtype == np.float32
        assert np.array_equal(found, half["blocks.0.attn.qkv.bias"].astype(np.float32))


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
    given = {key: array for key, array in tensors().items() if ".bias" not in key}
    with pytest.raises(BadInput, match=r"and \d+ more"):
        load(given)


def test_gap_between_blocks_is_named():
    given = {key: array for key, array in tensors().items() if not key.startswith("blocks.2.")}
    with pytest.raises(BadInput, match=r"blocks\.2\.adaLN_modulation"):
        load(given)


def test_integers_are_no_weights():
    with pytest.raises(BadInput, match=r"blocks\.0\.attn\.qkv\.bias int64"):
        load(tensors() | {"blocks.0.attn.qkv.bias": np.zeros(144, np.int64)})


def test_overrides():
    assert load(tensors("graft_mha_swa_50p"), window=2)[0].blocks[1].mixer == op("swa", window=2)
    assert load(tensors(), window=2)[0] == load(tensors())[0]  # nothing here has a window
    for overrides, words in (
        ({"num_head": 4}, "'num_head': not known"),
        ({"num_heads": 5}, "num_heads 5"),
        ({"num_heads": "4"}, "num_heads"),
        ({"num_heads": 4, "ratio": 2.0}, r"ratio=2.0: the file has 4.0 in blocks\[0\].mlp"),
        ({}, "give num_heads="),
    ):
        with pytest.raises(BadInput, match=words):
            spec_from_tensors(tensors(), **overrides)
    with pytest.raises(BadInput, match="window"):
        spec_from_tensors(tensors("graft_mha_swa_50p"), num_heads=4, window="wide")


def test_export_refuses_what_the_layout_cannot_hold():
    spec, params = load(tensors())
    with pytest.raises(BadInput, match="program"):
        tensors_from_params(spec.replace(program=(Step((0,)), Step((2, 1)), Step((3,)))), params)
    with pytest.raises(BadInput, match="missing: pos_embed"):
        tensors_from_params(spec, {key: leaf for key, leaf in params.items() if key != "pos_embed"})
    with pytest.raises(BadInput, match="without a PyTorch name: stray"):
        tensors_from_params(spec, params | {"stray": np.zeros(1)})
    with pytest.raises(BadInput, match=r"pos_embed \(1, 16\) \(expected \(1, 16, 48\)\)"):
        tensors_from_params(spec, params | {"pos_embed": np.zeros((1, 16))})
