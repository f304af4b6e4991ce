"""Hugging Face diffusers' folder layout of a DiT (class DiTTransformer2DModel), in both directions.

A folder holds `config.json` and `diffusion_pytorch_model.safetensors` (older ones `.bin`), by itself or as `transformer/`
of a pipeline. Its names differ from DiT's (`dit_keys`) by the tables below, and in three ways more: attention's qkv is
three tensors, every block has a copy of the timestep and label embedders, and there is no position table (both codes
compute the same one). That code also deviates from DiT in its numbers: `ModelSpec.compat`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graftax.checkpoint.dit_keys import params_from_tensors, tensors_from_params, torch_shapes
from graftax.checkpoint.files import replacing
from graftax.checkpoint.hugging_face import CONFIG, read_config, read_weights
from graftax.checkpoint.members import shown
from graftax.checkpoint.tensors import Source, write_safetensors
from graftax.errors import BadInput, naming
from graftax.models.dit import dit_spec
from graftax.models.embed import MLP_NORM_EPS, sinusoidal_positions
from graftax.spec import ModelSpec

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
CLASSES = ("DiTTransformer2DModel", "Transformer2DModel")
"""Names of the class in `config.json`: today's, and that of releases before DiT had a class of its own."""

STEM = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
COPIED = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
"""Embedders, of which every block has a copy; names within its `norm1.emb`."""

BLOCK = {
    "adaLN_modulation.1": ("norm1.linear",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
POSITIONS = "pos_embed"
LARGEST_SIDE = 1024
"""Side of the (latent) image that is believed: no tensor tells it, and the position table grows with its square."""

FIXED = {
    "norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "attention_bias": True,
    "norm_elementwise_affine": False,
}  # fmt: skip
"""Settings under which that class is a DiT."""


def find_folder(path: Path) -> Path | None:
    """The folder with a transformer's `config.json`: `path`, or `path/transformer` of a pipeline; None if there is none."""
    return next((folder for folder in (path, path / "transformer") if (folder / CONFIG).is_file()), None)


def read_folder(folder: Path, compat: str = "dit") -> tuple[ModelSpec, dict[str, Any], Source]:
    """(spec, params float32 numpy, source of the weights) of a diffusers folder, to be computed with `compat`.

    Raises `BadInput` naming what is missing, unexpected or mis-shaped, settings that make it no DiT, an eps that
    `compat` "diffusers" does not have, and the first block whose embedders are not those of block 0.
    """
    config = read_config(folder, "diffusers", CLASSES)
    tensors, source = read_weights(folder, WEIGHTS)
    with naming(folder):
        spec = _spec(config, tensors, compat)
        return spec, params_from_tensors(spec, _to_dit(spec, tensors)), source


def write_folder(folder: Path, spec: ModelSpec, params: Mapping[str, Any]) -> None:
    """Write a model as a diffusers folder (made if need be) that `DiTTransformer2DModel.from_pretrained` reads.

    Raises `BadInput` where diffusers would compute something else: `compat` "dit", operators other than attention and
    ratio-4 MLPs, a rewritten program, adapters, a position table that is not DiT's.
    """
    plain = dit_spec(
        input_size=spec.input_size, patch_size=spec.patch_size, in_channels=spec.in_channels, hidden_size=spec.hidden_size,
        depth=spec.depth, num_heads=spec.num_heads, num_classes=spec.num_classes, learn_sigma=spec.learn_sigma,
    )  # fmt: skip
    if spec.compat != "diffusers":
        raise BadInput(
            f"export to diffusers: the model has compat {spec.compat!r}, and diffusers computes otherwise with its weights; "
            "load it with compat='diffusers' or set that in its spec"
        )
    if spec.replace(compat="dit") != plain:
        raise BadInput("export to diffusers: expected a plain DiT, blocks 0..L-1 of mha and mlp(ratio=4.0), no adapters")
    theirs = _to_diffusers(spec, tensors_from_params(spec, params))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot be made a folder ({error.strerror})") from None
    write_safetensors(folder / WEIGHTS[0], theirs, {"format": "pt"})
    with replacing(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(_config(spec), indent=2) + "\n")


# --- config.json ---------------------------------------------------------------------------------------------------------


def _spec(config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], compat: str) -> ModelSpec:
    """The spec that `config` describes; `tensors` bound the depth before anything is made of it."""
    for name, expected in FIXED.items():
        if config.get(name) != expected:
            raise BadInput(f"{CONFIG} {name}: {shown(str(config.get(name)))}, expected {expected}")
    eps = config.get("norm_eps", 1e-5)
    if compat == "diffusers" and eps != MLP_NORM_EPS[compat]:
        raise BadInput(
            f"{CONFIG} norm_eps: {shown(str(eps))}, expected {MLP_NORM_EPS[compat]:g}, the one of compat 'diffusers'"
        )
    channels, out = _size(config, "in_channels"), _size(config, "out_channels")
    if out not in (channels, 2 * channels):
        raise BadInput(f"{CONFIG} out_channels: {out}, expected {channels} or {2 * channels}")
    depth, heads = _size(config, "num_layers"), _size(config, "num_attention_heads")
    found = 1 + max((int(match[1]) for name in tensors if (match := _BLOCK.match(name))), default=-1)
    if depth != found:
        raise BadInput(f"{CONFIG} num_layers: {depth}, but the weights have {found} blocks")
    side = _size(config, "sample_size")
    if side > LARGEST_SIDE:
        raise BadInput(f"{CONFIG} sample_size: {side}, expected at most {LARGEST_SIDE}")
    return dit_spec(
        input_size=side, patch_size=_size(config, "patch_size"), in_channels=channels,
        hidden_size=heads * _size(config, "attention_head_dim"), depth=depth, num_heads=heads,
        num_classes=_size(config, "num_embeds_ada_norm"), learn_sigma=out == 2 * channels,
    ).replace(compat=compat)  # fmt: skip


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"{CONFIG} {name}: {shown(str(value))}, expected a positive integer")
    return value


def _config(spec: ModelSpec) -> dict[str, Any]:
    return {
        "_class_name": CLASSES[0], "num_attention_heads": spec.num_heads,
        "attention_head_dim": spec.hidden_size // spec.num_heads, "in_channels": spec.in_channels,
        "out_channels": spec.out_channels, "num_layers": spec.depth, "sample_size": spec.input_size,
        "patch_size": spec.patch_size, "num_embeds_ada_norm": spec.num_classes, "norm_eps": MLP_NORM_EPS[spec.compat],
        **FIXED,
    }  # fmt: skip


# --- Tensors -------------------------------------------------------------------------------------------------------------


_BLOCK = re.compile(r"transformer_blocks\.([0-9]{1,4})\.")
_DIT_BLOCK = re.compile(r"blocks\.([0-9]+)\.(.+)")


def diffusers_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The shape that every tensor of a plain DiT of `spec` has in diffusers."""
    shapes = torch_shapes(spec)
    return {part: _part_shape(name, shapes[name], parts) for name, parts in _parts(spec).items() for part in parts}


def _theirs(name: str, depth: int) -> list[str]:
    """The tensors that together hold DiT's tensor `name`: one, three to join, or a copy for every block."""
    layer, _, leaf = name.rpartition(".")
    if layer in COPIED:
        return [f"transformer_blocks.{i}.norm1.emb.{COPIED[layer]}.{leaf}" for i in range(depth)]
    if match := _DIT_BLOCK.fullmatch(layer):
        return [f"transformer_blocks.{match[1]}.{theirs}.{leaf}" for theirs in BLOCK[match[2]]]
    return [f"{STEM[layer]}.{leaf}"]


def _parts(spec: ModelSpec) -> dict[str, list[str]]:
    """`_theirs` of all tensors."""
    return {name: _theirs(name, spec.depth) for name in torch_shapes(spec) if name != POSITIONS}


def _is_copied(name: str) -> bool:
    return name.rpartition(".")[0] in COPIED


def _to_dit(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """DiT's state dict from diffusers' one."""
    parts = _parts(spec)
    _check_tensors(tensors, diffusers_shapes(spec))
    _check_copies(tensors, [names for name, names in parts.items() if _is_copied(name)])
    joined = {
        name: tensors[names[0]] if _is_copied(name) or len(names) == 1 else np.concatenate([tensors[part] for part in names])
        for name, names in parts.items()
    }
    return {**joined, POSITIONS: _positions(spec)}


def _to_diffusers(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """diffusers' state dict from DiT's one."""
    if not np.allclose(tensors[POSITIONS], _positions(spec), rtol=0, atol=1e-5):
        raise BadInput(f"export to diffusers: {POSITIONS} is not the sine-cosine table, and diffusers knows no other")
    out: dict[str, np.ndarray] = {}
    for name in tensors.keys() - {POSITIONS}:
        names = _theirs(name, spec.depth)
        pieces = [tensors[name]] * len(names) if _is_copied(name) else np.split(tensors[name], len(names))
        out.update(zip(names, pieces, strict=True))
    return dict(sorted(out.items()))


def _positions(spec: ModelSpec) -> np.ndarray:
    return sinusoidal_positions(spec.hidden_size, spec.input_size // spec.patch_size)


def _part_shape(name: str, shape: tuple[int, ...], parts: list[str]) -> tuple[int, ...]:
    """The shape of each of the `parts` that hold a tensor of `shape`; qkv is joined along its rows."""
    return shape if _is_copied(name) else (shape[0] // len(parts), *shape[1:])


def _check_tensors(tensors: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
    shared = [name for name in expected if name in tensors]
    wrong = [
        f"{name} {tensors[name].shape} (expected {expected[name]})"
        for name in shared
        if tensors[name].shape != expected[name]
    ]
    _refuse("missing", [name for name in expected if name not in tensors])
    _refuse("unexpected", [name for name in tensors if name not in expected])
    _refuse("mis-shaped", wrong)


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise BadInput(f"tensors {what}: {', '.join(ascii(name)[1:-1] for name in names[:5])}{more}")


def _check_copies(tensors: Mapping[str, np.ndarray], groups: list[list[str]]) -> None:
    """DiT has one embedder for all blocks: their copies must be equal, bit for bit."""
    firsts = [names[0] for names in groups]
    for block in zip(*groups, strict=True):
        for name, first in zip(block, firsts, strict=True):
            if not np.array_equal(tensors[name], tensors[first]):
                raise BadInput(f"{name} differs from {first}: expected one embedder for all blocks, as DiT has")
