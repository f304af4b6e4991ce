"""T5 encoders from transformers folders: the numbers of transformers itself, on random weights; true sizes."""

import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from graftax.nets import t5
from graftax.nets.t5_files import params_from_tensors, read_params, spec_from_config

GOLDEN = Path(__file__).parents[1] / "goldens" / "t5_v1_1"
SPEC = spec_from_config(json.loads((GOLDEN / "config.json").read_text()))
SIZES = {"vocab_size": 90, "d_model": 24, "d_kv": 10, "d_ff": 40, "num_layers": 2, "num_heads": 3}
"""Heads times their width are more than the width."""


def error(found, expected):
    return np.abs(found - expected).max() / np.abs(expected).max()


def filled(spec, value, dtype):
    shapes = jax.eval_shape(lambda: t5.init(spec, jax.random.key(0)))
    return jax.tree.map(lambda leaf: np.full(leaf.shape, value, dtype), shapes)


@pytest.fixture(scope="module", params=["safetensors", "bin"])
def params(request, tmp_path_factory):
    """The golden's, from either kind of file."""
    if request.param == "safetensors":
        return read_params(GOLDEN, SPEC)[0]
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("bin")
    tensors = {name: torch.tensor(array) for name, array in load_file(GOLDEN / "model.safetensors").items()}
    torch.save(tensors, folder / "pytorch_model.bin")
    return read_params(folder, SPEC)[0]


def test_golden(params):
    golden = np.load(GOLDEN / "io.npz")
    found = t5.encode(SPEC, params, golden["input_ids"], golden["attention_mask"], hidden=True)
    assert len(found["hidden"]) == SPEC.num_layers + 1
    for i, state in enumerate(found["hidden"]):
        assert error(state, golden[f"hidden.{i}"]) < 2e-5  # float32 over three blocks: 1.4e-6 here
    assert error(found["last"], golden["out_masked"]) < 2e-5
    assert error(t5.encode(SPEC, params, golden["input_ids"])["last"], golden["out_nomask"]) < 2e-5
    assert error(t5.encode(SPEC, params, golden["long_ids"])["last"], golden["out_long"]) < 2e-5


def test_golden_of_umt5():
    """Each block has its own position table: with the first one's in all of them outputs are 29% off."""
    folder = GOLDEN.parent / "umt5"
    golden, spec = np.load(folder / "io.npz"), spec_from_config(json.loads((folder / "config.json").read_text()))
    params, _ = read_params(folder, spec)
    found = t5.encode(spec, params, golden["input_ids"], golden["attention_mask"], hidden=True)
    assert len(found["hidden"]) == spec.num_layers + 1
    for i, state in enumerate(found["hidden"]):
        assert error(state, golden[f"hidden.{i}"]) < 2e-5
    assert error(found["last"], golden["out_masked"]) < 2e-5
    assert error(t5.encode(spec, params, golden["input_ids"])["last"], golden["out_nomask"]) < 2e-5
    assert error(t5.encode(spec, params, golden["long_ids"])["last"], golden["out_long"]) < 2e-5
    assert spec.summary == "UMT5 of 3 blocks, width 20"


def test_padding_is_not_seen(params):
    golden = np.load(GOLDEN / "io.npz")
    ids, mask = golden["input_ids"], golden["attention_mask"]
    other = np.where(mask == 1, ids, 77)
    found, again = (t5.encode(SPEC, params, given, mask)["last"] for given in (ids, other))
    np.testing.assert_allclose(found[mask == 1], again[mask == 1], atol=1e-6)
    assert error(again[mask == 0], found[mask == 0]) > 0.1


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types_keep_the_stream_in_float32(params, dtype):
    """Weights rounded to bfloat16 give the same in float32 products but for the products' rounding: 2^-9 of each input.
    float16 is computed in float32, so that only the weights' own rounding is left."""
    golden = np.load(GOLDEN / "io.npz")
    stored = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    widened = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), stored)
    given = golden["input_ids"], golden["attention_mask"]
    found, exact = (t5.encode(SPEC, tree, *given, hidden=True) for tree in (stored, widened))
    assert {state.dtype for state in found["hidden"]} == {jnp.dtype("float32")}
    limits = (1e-3, 0.03) if dtype == "bfloat16" else (0, 1e-6)
    assert limits[0] <= error(found["last"], exact["last"]) <= limits[1]
    assert error(found["last"], golden["out_masked"]) < (0.06 if dtype == "bfloat16" else 0.02)


def test_activations_beyond_float16():
    """A gate times a value of 3e4 each: nothing of it may pass through float16."""
    spec = t5.T5Spec(10, 8, 4, 8, 1, 2)
    params = filled(spec, 0.25, np.float16)
    params["blocks_0"] |= {name: {"kernel": np.full((8, 8), 1e4, np.float16)} for name in ("gate", "fc1")}
    found = t5.encode(spec, params, np.array([[1, 2, 3]]))["last"]
    assert np.isfinite(found).all()


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("small", 35_332_800), ("base", 109_628_544), ("large", 341_231_104), ("xl", 1_223_527_424), ("xxl", 4_762_310_656),
        ("pile-xl", 1_223_550_976),
    ],
)  # fmt: skip
def test_true_sizes(name, count):
    """As transformers counts T5EncoderModel's and UMT5EncoderModel's, whose embedding has two names."""
    tree = jax.eval_shape(lambda: t5.init(t5.VARIANTS[name], jax.random.key(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == count


def test_a_fresh_encoder_keeps_variances():
    spec = t5.T5Spec(50, 64, 16, 128, 1, 4)
    params = jax.jit(t5.init, static_argnums=0)(spec, jax.random.key(0))
    found = t5.encode(spec, params, np.arange(40)[None], hidden=True)
    assert all(0.5 < np.std(state) < 3 for state in found["hidden"])


def test_compiling_does_not_grow_with_blocks():
    before = t5._block._cache_size()
    for layers in (2, 5):
        spec = t5.T5Spec(20, 8, 4, 8, layers, 2)
        t5.encode(spec, filled(spec, 0.1, np.float32), np.arange(6)[None])
    assert t5._block._cache_size() - before == 2, "one program for each spec, whatever the number of blocks"


# --- Beside transformers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "furthest"), [(32, 128), (32, 100), (16, 20)])
def test_rows_of_the_position_table(count, furthest):
    torch, modeling = pytest.importorskip("torch"), pytest.importorskip("transformers.models.t5.modeling_t5")
    distances = np.arange(-1500, 1501)
    expected = modeling.T5Attention._relative_position_bucket(torch.tensor(distances), True, count, furthest)
    np.testing.assert_array_equal(t5.buckets(distances, count, furthest), expected.numpy())


def test_the_encoder_of_a_whole_t5_in_shards(tmp_path):
    """Another shape than the golden, both kinds of shards, a decoder beside it."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.T5Config(**SIZES, feed_forward_proj="gated-gelu", relative_attention_max_distance=40)
    theirs = transformers.T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weights in theirs.parameters():
            weights.normal_(std=weights[0].numel() ** -0.5) if weights.ndim > 1 else weights.uniform_(0.5, 1.5)
    theirs.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    index = json.loads((tmp_path / "a" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    ids = np.random.default_rng(0).integers(0, 90, (2, 50))
    mask = (np.arange(50) < np.array([[50], [7]])).astype(int)
    with torch.no_grad():
        expected = theirs.encoder(torch.tensor(ids), torch.tensor(mask)).last_hidden_state.numpy()
    spec = spec_from_config(config.to_dict())
    params, source = read_params(tmp_path / "a", spec)
    assert error(t5.encode(spec, params, ids, mask)["last"], expected) < 2e-5
    as_bin = shutil.copytree(tmp_path / "a", tmp_path / "b")
    placed = {}
    for i, shard in enumerate(sorted(as_bin.glob("*.safetensors"))):
        tensors = {name: torch.tensor(array) for name, array in load_file(shard).items()}
        torch.save(tensors, as_bin / f"pytorch_model-{i}.bin")
        placed |= dict.fromkeys(tensors, f"pytorch_model-{i}.bin")
        shard.unlink()
    (as_bin / "model.safetensors.index.json").unlink()
    (as_bin / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": placed}))
    found, other = read_params(as_bin, spec)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, params))
    assert source.sha256 != other.sha256


# --- Names of tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("shared.weight",), ("encoder.embed_tokens.weight",)])
def test_either_name_of_the_embedding(names):
    tensors = load_file(GOLDEN / "model.safetensors")
    expected = params_from_tensors(SPEC, tensors)
    both = {name for name in tensors if name.startswith(("shared", "encoder.embed"))}
    found = params_from_tensors(SPEC, {name: a for name, a in tensors.items() if name in names or name not in both})
    assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_weights_are_views_of_the_file(tmp_path):
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    tensors = load_file(GOLDEN / "model.safetensors")
    save_file({name: array.astype(jnp.bfloat16) for name, array in tensors.items()}, tmp_path / "model.safetensors")
    for leaf in jax.tree.leaves(read_params(tmp_path, SPEC)[0]):
        assert leaf.dtype == jnp.bfloat16
        while isinstance(leaf.base, np.ndarray):
            leaf = leaf.base
        assert isinstance(leaf, np.memmap)
