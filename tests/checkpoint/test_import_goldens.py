"""Published layouts in: every golden by its tensors alone, with the reference's outputs; wrong and mixed files by name."""

import argparse
import shutil

import numpy as np
import pytest
from golden_checkpoints import golden, hollow, load, spec_of

from graftax.backbones.dit import dit_spec
from graftax.checkpoint import open_checkpoint
from graftax.checkpoint.tensors import read_tensors
from graftax.checkpoint.torch_writer import write_torch
from graftax.errors import BadInput
from graftax.models import Model

MHA, MLP = "mha", "mlp(ratio=4.0)"
MAMBA = "mamba2(d_conv=4, d_state=16, expand=2, headdim=8, scan=raster)"
OPERATORS = {
    "dit": [(MHA, MLP)] * 4,
    "graft_mha_hyena_se_50p": [(MHA, MLP), ("hyena_se(kernel=4)", MLP)] * 2,
    "graft_mha_hyena_x_50p": [(MHA, MLP), ("hyena_x(kernel=4)", MLP)] * 2,
    "graft_mha_hyena_y_50p": [(MHA, MLP), ("hyena_y(kernel=4)", MLP)] * 2,
    "graft_mha_swa_50p": [(MHA, MLP), ("swa(window=4)", MLP)] * 2,
    "graft_mha_mamba2_50p": [(MHA, MLP), (MAMBA, MLP)] * 2,
    "graft_mlp_mlp_50p": [(MHA, MLP), (MHA, "mlp(ratio=3.0)")] * 2,
    "graft_mlp_mlp_hyena_x_50p": [(MHA, MLP), (MHA, "mlp_hyena_x(kernel=4, ratio=2.0)")] * 2,
    "graft_mixed": [
        ("hyena_se(kernel=4)", MLP), (MAMBA, MLP), (MHA, "mlp_hyena_x(kernel=4, ratio=2.0)"), ("swa(window=4)", MLP)
    ],
}  # fmt: skip
ATTN, CHANNELS = "blocks.1.attn.", "blocks.1.mlp."


def tensors(name: str) -> dict[str, np.ndarray]:
    return dict(read_tensors(golden(name))[0])


def within(given: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in given.items() if name.startswith(prefix)}


def without(given: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in given.items() if not name.startswith(prefix)}


def refused(given: dict[str, np.ndarray]) -> str:
    """The message with which these tensors are refused, one line."""
    with pytest.raises(BadInput) as caught:
        load(given, num_heads=4)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", OPERATORS)
def test_goldens_compute_what_the_reference_does(name):
    spec, params, _ = open_checkpoint(golden(name), num_heads=4)
    assert [(str(block["mixer"]), str(block["mlp"])) for block in spec.blocks] == OPERATORS[name]
    expected = np.load(golden(name).with_suffix(".npz"))
    out = Model(spec, params)(expected["x"].transpose(0, 2, 3, 1), expected["t"], expected["y"])
    assert np.abs(np.asarray(out).transpose(0, 3, 1, 2) - expected["out"]).max() <= 2e-5


# --- Where weights lie in a file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [{}, {"args": argparse.Namespace(model="DiT-XL/2", lr=1e-4), "train_steps": 50_000}])
def test_averaged_weights_come_first_with_and_without_pickled_arguments(extra, tmp_path):
    torch = pytest.importorskip("torch")
    given = {name: torch.from_numpy(array.copy()) for name, array in tensors("graft_mixed").items()}
    last = {name: tensor + 1 for name, tensor in given.items()}
    torch.save({"model": last, "ema": given, **extra}, tmp_path / "x.pt")
    spec, params, meta = open_checkpoint(tmp_path / "x.pt", num_heads=4)
    assert meta["entry"] == "ema"
    np.testing.assert_equal((spec, params), open_checkpoint(golden("graft_mixed"), num_heads=4)[:2])


@pytest.mark.parametrize("entry", [None, "ema", "model", "state_dict"])
def test_flat_and_nested_files_give_the_same_model(entry, tmp_path):
    write_torch(tmp_path / "x.pt", tensors("graft_mixed"), key=entry)
    spec, params, meta = open_checkpoint(tmp_path / "x.pt", num_heads=4)
    expected = open_checkpoint(golden("graft_mixed"), num_heads=4)
    assert spec == expected[0]
    assert meta.get("entry") == entry
    np.testing.assert_equal(params, expected[1])


def test_attention_is_told_by_its_names():
    """The same weights are dense attention under timm's names, a window under flash-attention's."""
    given = tensors("graft_mha_swa_50p")
    names = {
        "Wqkv.weight": "qkv.weight",
        "Wqkv.bias": "qkv.bias",
        "out_proj.weight": "proj.weight",
        "out_proj.bias": "proj.bias",
    }
    renamed = without(given, ATTN) | {f"{ATTN}{new}": given[f"{ATTN}{old}"] for old, new in names.items()}
    (spec, a), (other, b) = (load(one, num_heads=4) for one in (given, renamed))
    assert [block["mixer"].kind for block in spec.blocks] == ["mha", "swa", "mha", "swa"]
    assert [block["mixer"].kind for block in other.blocks] == ["mha", "mha", "mha", "swa"]
    np.testing.assert_equal(a["blocks"]["01"]["mixer"], b["blocks"]["01"]["mixer"])
    half = without(given, f"{ATTN}out_proj") | {f"{ATTN}proj.weight": given[f"{ATTN}out_proj.weight"]}
    assert refused(half).startswith("blocks.1.attn: no known operator has these tensors")


@pytest.mark.parametrize(("input_size", "tokens"), [(32, 256), (64, 1024)])
def test_256_and_512_pixel_files_are_told_by_their_position_table(input_size, tokens):
    """The layout of the published base files (512 pixels: 64x64 latents), two narrow blocks of it."""
    spec = dit_spec(input_size=input_size, patch_size=2, hidden_size=384, depth=2, num_heads=6)
    assert hollow(spec)["pos_embed"].shape == (1, tokens, 384)
    assert spec_of(hollow(spec)) == spec


# --- Wrong and mixed files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scion", ["hyena_se", "hyena_x", "hyena_y", "mamba2", "swa"])
def test_two_operators_in_one_block_are_named(scion):
    message = refused(tensors(f"graft_mha_{scion}_50p") | within(tensors("dit"), ATTN))
    assert message.startswith("blocks.1.attn: no known operator has these tensors")
    assert f"unexpected {ATTN}" in message
    assert "blocks.3" not in message


def test_a_stray_tensor_of_another_operator_is_named():
    stray = f"{ATTN}short_filter.weight"
    assert refused(tensors("dit") | {stray: tensors("graft_mha_hyena_x_50p")[stray]}).endswith(
        f"nearest is mha: unexpected {stray}"
    )


def test_a_channel_mixer_in_the_place_of_attention_is_named():
    given = tensors("dit")
    moved = {ATTN + name.removeprefix(CHANNELS): array for name, array in within(given, CHANNELS).items()}
    assert f"unexpected {ATTN}fc1.bias" in refused(without(given, ATTN) | moved)


def test_filters_of_one_block_must_agree():
    given = tensors("graft_mha_hyena_se_50p")
    short, inner = f"{ATTN}short_filter.weight", f"{ATTN}inner_filter.weight"
    message = refused(given | {short: given[short][..., :3]})
    assert f"{inner} (48, 1, 4) (expected (48, 1, 3))" in message
    assert f"{short} (144, 1, 3) (read as hyena_se(kernel=3))" in message
    assert short in refused(given | {short: given[short][..., :0]})
    assert short in refused(given | {short: given[short].transpose(2, 1, 0)})


def test_filters_per_token_must_be_as_many_as_tokens():
    given = tensors("graft_mlp_mlp_hyena_x_50p")
    cut = {f"{CHANNELS}short_filter.{name}": given[f"{CHANNELS}short_filter.{name}"][:8] for name in ("weight", "bias")}
    message = refused(given | cut)
    assert "short_filter.weight (8, 1, 4) (expected (16, 1, 4))" in message
    assert "short_filter.bias (8,) (expected (16,))" in message


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("dit", f"{ATTN}qkv.weight"),
        ("dit", f"{CHANNELS}fc1.weight"),
        ("graft_mha_swa_50p", f"{ATTN}Wqkv.weight"),
        ("graft_mha_hyena_x_50p", f"{ATTN}in_proj.weight"),
        ("graft_mha_mamba2_50p", f"{ATTN}in_proj.weight"),
        ("graft_mha_mamba2_50p", f"{ATTN}out_proj.weight"),
        ("graft_mlp_mlp_hyena_x_50p", f"{CHANNELS}in_proj.weight"),
        ("graft_mlp_mlp_hyena_x_50p", f"{CHANNELS}out_proj.weight"),
    ],
)
def test_transposed_weights_are_named(name, tensor):
    given = tensors(name)
    assert f"{tensor} {given[tensor].T.shape}" in refused(given | {tensor: given[tensor].T})


@pytest.mark.parametrize("tensor", ["in_proj.weight", "conv1d.bias", "dt_bias", "A_log", "D", "norm.weight"])
def test_inconsistent_sizes_of_mamba_are_named(tensor):
    given = tensors("graft_mha_mamba2_50p")
    assert f"{ATTN}{tensor} (" in refused(given | {f"{ATTN}{tensor}": given[f"{ATTN}{tensor}"][:-1]})
    missing = refused(without(given, f"{ATTN}{tensor}"))
    assert missing.endswith(f"nearest is mamba2: missing {ATTN}{tensor}")


def test_sizes_that_no_mamba_has_are_named():
    """All tensors agree on eleven heads, which 96 channels cannot be split into."""
    given = tensors("graft_mha_mamba2_50p")
    cut = {name: given[f"{ATTN}{name}"][:-1] for name in ("in_proj.weight", "dt_bias", "A_log", "D")}
    message = refused(given | {f"{ATTN}{name}": array for name, array in cut.items()})
    assert all(f"{ATTN}{name}" in message for name in ("in_proj.weight", "dt_bias", "A_log", "D"))


def test_a_file_under_a_published_name_must_be_that_model(tmp_path):
    for name in ("dit-xl2-mha-hyena_se-75p-fid3.62/model.pt", "DiT-XL-2-256x256.pt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        shutil.copy(golden("graft_mha_hyena_se_50p"), path)
        with pytest.raises(BadInput, match=rf"{name}: named as a published model"):
            open_checkpoint(path, num_heads=4)
    open_checkpoint(shutil.copy(path, tmp_path / "model.pt"), num_heads=4)
    assert path.parent == tmp_path
