"""File formats of DiTs: Facebook's own, of one file, and the folders of Hugging Face diffusers.

Facebook's names (facebookresearch/DiT, `models.py`) stand in the tables below; each operator brings its own keys and tells
whether a set of tensors is its own (`graftax.ops.base.Operator`). diffusers' (class DiTTransformer2DModel) differ by tables
too, and in three ways more: attention's qkv is three tensors, every block has a copy of the timestep and label embedders,
and there is no position table (both codes compute the same one). That code also deviates from DiT in its numbers
(`graftax.backbones.dit.variants.with_compat`).
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from graftax import ops
from graftax.backbones.dit.frame import compat_of, sinusoidal_positions
from graftax.backbones.dit.overrides import check_names
from graftax.backbones.dit.variants import NORM_EPS, dit_spec
from graftax.backbones.dit.zoo import check_published
from graftax.blocks import slot_of
from graftax.errors import BadInput
from graftax.models.layout import Config, Key, Layout, Shape, Shapes, listing, refuse, tensor_shapes
from graftax.models.shared import SHARED, shared_parts
from graftax.ops.base import Operator, Params, TorchKey, linear_keys, shapes_of
from graftax.spec import BlockSpec, ModelSpec, OpSpec, Option, Prediction, Sizes, sequential

HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
"""Width -> heads of the published models (arXiv 2212.09748, Table 1): no tensor tells the number of heads."""

STEM = (
    TorchKey("x_embedder/kernel", "x_embedder.proj.weight", "patch"),
    TorchKey("x_embedder/bias", "x_embedder.proj.bias", "same"),
    *linear_keys("t_embedder/fc1", "t_embedder.mlp.0"),
    *linear_keys("t_embedder/fc2", "t_embedder.mlp.2"),
    TorchKey("y_embedder/embedding", "y_embedder.embedding_table.weight", "same"),
    TorchKey("pos_embed", "pos_embed", "same"),
    *linear_keys("final/adaln", "final_layer.adaLN_modulation.1"),
    *linear_keys("final/linear", "final_layer.linear"),
)
PREFIX = {
    "adaln": "adaLN_modulation.", "norm1": "norm1.", "mixer": "attn.", "norm2": "norm2.", "mlp": "mlp.",
}  # fmt: skip
"""Slot -> how its tensors' names begin within a block."""

SHARED_PREFIX = "adaLN_shared."
"""Of what blocks with `adaln_shared` share; no published DiT has it."""

_AS_WIDE_AS_THE_MODEL = (
    "x_embedder.proj.bias", "t_embedder.mlp.0.bias", "t_embedder.mlp.2.bias", "pos_embed", "final_layer.linear.weight"
)  # fmt: skip
_RANK = {"linear": 2, "conv": 3, "patch": 4}
_BLOCK = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.(.+)")


class DiTFile(Layout):
    """Facebook's state dict, flat or as the "ema" of a training checkpoint, with grafted operators where a model has
    them."""

    name = "dit"

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return not config and "x_embedder.proj.weight" in shapes and any(name.startswith("blocks.0.") for name in shapes)

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides)
        slots = _by_slot(shapes)
        d = _width(shapes)
        p, c, learn_sigma = _patches(shapes)
        heads = overrides.get("num_heads", HEADS.get(d))
        if not isinstance(heads, int):
            raise BadInput(f"num_heads: not stored in tensors and width {d} is no published DiT's; give num_heads=...")
        if d % heads:
            raise BadInput(f"num_heads: {heads} does not divide the width {d}")
        sizes = Sizes(d, heads, d // heads, _grid(shapes))
        blocks = tuple(
            BlockSpec("dit", tuple(
                (slot, _recognise(sizes, slot, f"blocks.{i}.{PREFIX[slot]}", found[slot], overrides)) for slot in PREFIX
            ))
            for i, found in enumerate(slots)
        )  # fmt: skip
        frame = (("patch", p), ("channels", c), ("classes", _classes(shapes)), ("compat", "dit"))
        spec = ModelSpec("dit", sizes, frame, Prediction(variance=learn_sigma), blocks)
        _check_operators(spec, shapes)
        return spec

    def keys(self, spec: ModelSpec) -> list[Key]:
        found = [Key.of(key) for key in STEM]
        for kind in shared_parts(spec):
            found += [Key.of(key, f"{SHARED}/{kind}/", SHARED_PREFIX) for key in linear_keys("", "1")]
        for i, block in enumerate(spec.blocks):
            for slot, prefix in PREFIX.items():
                ours, theirs = f"blocks/{spec.block_key(i)}/{slot}/", f"blocks.{i}.{prefix}"
                found += [Key.of(key, ours, theirs) for key in _torch_keys(spec, block.kind, slot, block[slot])]
        return found

    def check(self, spec: ModelSpec) -> None:
        if others := sorted({block.kind for block in spec.blocks} - {"dit"}):
            raise BadInput(f"export: blocks of the kind {others[0]!r}, but DiT files hold 'dit' alone; save a folder")
        if spec.program != sequential(spec.depth):
            raise BadInput("export: PyTorch files hold no program, and this is not 0..L-1 in order; save a graftax folder")
        if spec.adapters:
            raise BadInput(
                f"export: PyTorch files hold no adapters, and this model has {len(spec.adapters)}; merge_lora() first"
            )
        if compat_of(spec) != "dit":
            raise BadInput(f"export: the model has compat {compat_of(spec)!r}, with which DiT's code computes otherwise")

    def vet(self, path: Path, spec: ModelSpec) -> None:
        check_published(path, spec)


class DiffusersDiT(Layout):
    """A folder of diffusers' DiTTransformer2DModel, or its pipeline's `transformer/`."""

    name = "diffusers-dit"
    folder = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
    classes = ("DiTTransformer2DModel", "Transformer2DModel")  # today's, and that of releases before DiT had its own

    def fits(self, shapes: Shapes, config: Config) -> bool:
        return config.get("_class_name") in self.classes and "transformer_blocks.0.norm1.linear.weight" in shapes

    def spec(self, shapes: Shapes, config: Config, overrides: Mapping[str, Option]) -> ModelSpec:
        check_names(overrides)
        eps, expected = config.get("norm_eps", 1e-5), NORM_EPS["norm2"]["diffusers"]
        if overrides.get("compat") == "diffusers" and eps != expected:
            raise BadInput(f"config.json norm_eps: {_shown(eps)}, expected {expected:g}, the one of compat 'diffusers'")
        return _spec_of_config(config, shapes)

    def keys(self, spec: ModelSpec) -> list[Key]:
        ours = [key for key in DiTFile().keys(spec) if key.leaf != "pos_embed"]
        return [_renamed(key, spec.depth) for key in ours]

    def computed(self, spec: ModelSpec) -> Params:
        return {"pos_embed": sinusoidal_positions(spec.width, spec.sizes.grid)}

    def check(self, spec: ModelSpec) -> None:
        if compat_of(spec) != "diffusers":
            raise BadInput(
                f"export to diffusers: the model has compat {compat_of(spec)!r}, and diffusers computes otherwise with its "
                "weights; load it with compat='diffusers' or set that in its spec"
            )
        plain = dit_spec(
            input_size=spec.image_shape[0], patch_size=spec.option("patch"), in_channels=spec.option("channels"),
            hidden_size=spec.width, depth=spec.depth, num_heads=spec.sizes.heads, num_classes=spec.classes,
            learn_sigma=spec.prediction.variance, compat="diffusers",
        )  # fmt: skip
        if spec != plain:
            raise BadInput("export to diffusers: expected a plain DiT, blocks 0..L-1 of mha and mlp(ratio=4.0), no adapters")

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        return {
            "_class_name": self.classes[0], "num_attention_heads": spec.sizes.heads,
            "attention_head_dim": spec.sizes.head_dim, "in_channels": spec.option("channels"),
            "out_channels": spec.out_channels, "num_layers": spec.depth, "sample_size": spec.image_shape[0],
            "patch_size": spec.option("patch"), "num_embeds_ada_norm": spec.classes,
            "norm_eps": NORM_EPS["norm2"]["diffusers"], **FIXED,
        }  # fmt: skip


LAYOUTS: tuple[Layout, ...] = (DiTFile(), DiffusersDiT())


# --- Facebook's tensors ------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _torch_keys(spec: ModelSpec, kind: str, slot: str, op: OpSpec) -> tuple[TorchKey, ...]:
    """The keys of the leaves that an operator has. Raises `BadInput` where it has not named them all."""
    operator = slot_of(kind, slot).build(op, spec.sizes)
    leaves = {key.leaf for key in operator.torch_keys}
    present = set(flatten_dict(shapes_of(operator), sep="/"))
    if not present <= leaves:
        raise BadInput(f"operator {op}: has no complete table of PyTorch names")
    return tuple(key for key in operator.torch_keys if key.leaf in present)


def _by_slot(shapes: Shapes) -> list[dict[str, dict[str, Shape]]]:
    """Per block: slot -> shapes by name within the slot. Refuses missing and unexpected names outside the slots."""
    found: dict[int, dict[str, dict[str, Shape]]] = defaultdict(lambda: {slot: {} for slot in PREFIX})
    stem = tuple(key.name for key in STEM)
    unexpected = []
    for name, shape in shapes.items():
        match = _BLOCK.fullmatch(name)
        slot = match and next((s for s, prefix in PREFIX.items() if match[2].startswith(prefix)), None)
        if match and slot:
            found[int(match[1])][slot][match[2].removeprefix(PREFIX[slot])] = shape
        elif name not in stem and not name.startswith(SHARED_PREFIX):
            unexpected.append(name)
    depth = 1 + max(found, default=0)
    needed = [*stem, *(f"blocks.{i}.{PREFIX['adaln']}{name}" for i in range(depth) for name in _needed(found[i]["adaln"]))]
    refuse("tensors missing", [name for name in needed if name not in shapes], unexpected)
    refuse("tensors unexpected", unexpected)
    return [found[i] for i in range(depth)]


def _needed(modulation: Mapping[str, Shape]) -> tuple[str, ...]:
    """The tensors of a plain modulation where there are none at all, so that they are named as missing."""
    return () if modulation else ("1.bias", "1.weight")


def _width(shapes: Shapes) -> int:
    """The width that most tensors agree on, so that one wrong tensor is the one that gets named later."""
    found = [shapes[name][-1] for name in _AS_WIDE_AS_THE_MODEL if shapes[name]]
    return Counter(found or [0]).most_common(1)[0][0]


def _patches(shapes: Shapes) -> tuple[int, int, bool]:
    """Patch size, channels, and whether the variance is learned."""
    weight, rows = shapes["x_embedder.proj.weight"], shapes["final_layer.linear.weight"][:1]
    if len(weight) == 4 and weight[2] == weight[3] and min(weight) > 0:
        numbers = weight[1] * weight[2] * weight[3]
        if rows in ((numbers,), (2 * numbers,)):
            return weight[2], weight[1], rows == (2 * numbers,)
    raise BadInput(
        f"x_embedder.proj.weight {weight} and final_layer.linear.weight {shapes['final_layer.linear.weight']}: "
        "expected (d, c, p, p) and (p * p * c, d) or (2 * p * p * c, d)"
    )


def _grid(shapes: Shapes) -> tuple[int, int]:
    """Rows and columns of patches; files of DiTs hold square ones alone."""
    shape = shapes["pos_embed"]
    if len(shape) != 3 or shape[0] != 1 or math.isqrt(shape[1]) ** 2 != shape[1] or shape[1] == 0:
        raise BadInput(f"pos_embed {shape}: expected (1, n, d) with a square number n of tokens")
    return math.isqrt(shape[1]), math.isqrt(shape[1])


def _classes(shapes: Shapes) -> int:
    """Rows of the label embedding without the null class."""
    shape = shapes["y_embedder.embedding_table.weight"]
    if len(shape) != 2 or shape[0] < 2:
        raise BadInput(f"y_embedder.embedding_table.weight {shape}: expected (classes + 1, d)")
    return shape[0] - 1


def _recognise(
    sizes: Sizes, slot: str, prefix: str, shapes: Mapping[str, Shape], overrides: Mapping[str, Option]
) -> OpSpec:
    """The operator whose tensors these are, with its options. Raises `BadInput` naming what keeps it from any."""
    place = slot_of("dit", slot)
    for kind, cls in ops.OPERATORS.items():
        if cls.role != place.role or _wrong_rank(cls, shapes):
            continue
        options = cls.recognise(shapes, overrides)
        if options is not None:
            return _resolve(sizes, slot, prefix, OpSpec(kind, tuple(options.items())), shapes)
    raise _unrecognised(place.role, prefix, shapes)


def _resolve(sizes: Sizes, slot: str, prefix: str, found: OpSpec, shapes: Mapping[str, Shape]) -> OpSpec:
    """`found` with all options, checked; where its options are impossible, so are the shapes they were read from."""
    try:
        return slot_of("dit", slot).resolve(found, sizes)
    except BadInput as error:
        tensors = listing([f"{prefix}{name} {shape}" for name, shape in shapes.items() if len(shape) > 1])
        raise BadInput(f"{prefix.rstrip('.')}: {error}; read from {tensors}") from None


def _wrong_rank(cls: type[Operator], shapes: Mapping[str, Shape]) -> list[str]:
    """Tensors whose number of axes is not the operator's, or that are empty."""
    ranks = {key.name: _RANK[key.layout] for key in cls.torch_keys if key.layout in _RANK}
    return [n for n, rank in ranks.items() if n in shapes and (len(shapes[n]) != rank or min(shapes[n]) == 0)]


def _unrecognised(role: str, prefix: str, shapes: Mapping[str, Shape]) -> BadInput:
    """Compare with the operator whose names are nearest."""

    def names(cls: type[Operator]) -> set[str]:
        return {key.name for key in cls.torch_keys}

    classes = [cls for cls in ops.OPERATORS.values() if cls.role == role]
    nearest = min(classes, key=lambda cls: len(names(cls) ^ shapes.keys()))
    missing = listing([prefix + name for name in sorted(names(nearest) - shapes.keys())])
    extra = listing([prefix + name for name in sorted(shapes.keys() - names(nearest))])
    suspects = _wrong_rank(nearest, shapes) or list(shapes)
    ranks = listing([f"{prefix}{name} {shapes[name]}" for name in suspects])
    reasons = [f"missing {missing}" * bool(missing), f"unexpected {extra}" * bool(extra)]
    found = "; ".join(filter(None, reasons)) or f"mis-shaped, one of {ranks}"
    return BadInput(f"{prefix.rstrip('.')}: no known operator has these tensors; nearest is {nearest.kind}: {found}")


def _check_operators(spec: ModelSpec, shapes: Shapes) -> None:
    """Where a tensor of an operator is mis-shaped, name also those that the operator's options were read from."""
    expected = tensor_shapes(DiTFile(), spec)
    wrong = [name for name, shape in expected.items() if name in shapes and shapes[name] != shape]
    reports = [f"{name} {shapes[name]} (expected {expected[name]})" for name in wrong]
    for i, block in enumerate(spec.blocks):
        for slot, prefix in PREFIX.items():
            start = f"blocks.{i}.{prefix}"
            if block[slot].options and any(name.startswith(start) for name in wrong):
                others = [n for n in expected if n.startswith(start) and n not in wrong and len(shapes.get(n, ())) > 1]
                reports += [f"{name} {shapes[name]} (read as {block[slot]})" for name in others]
    refuse("tensors mis-shaped", reports)


# --- diffusers -----------------------------------------------------------------------------------------------------------


_STEM = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
_COPIED = {
    "t_embedder.mlp.0": "timestep_embedder.linear_1",
    "t_embedder.mlp.2": "timestep_embedder.linear_2",
    "y_embedder.embedding_table": "class_embedder.embedding_table",
}
"""Embedders, of which every block has a copy; names within its `norm1.emb`."""

_IN_BLOCK = {
    "adaLN_modulation.1": ("norm1.linear",),
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}
LARGEST_SIDE = 1024
"""Side of the (latent) image that is believed: no tensor tells it, and the position table grows with its square."""

FIXED = {
    "norm_type": "ada_norm_zero", "activation_fn": "gelu-approximate", "attention_bias": True,
    "norm_elementwise_affine": False,
}  # fmt: skip
"""Settings under which that class is a DiT."""

_THEIR_BLOCK = re.compile(r"transformer_blocks\.([0-9]{1,4})\.")


def _renamed(key: Key, depth: int) -> Key:
    """A key of Facebook's file as one of diffusers': one tensor, three to join, or a copy for every block."""
    layer, _, leaf = key.names[0].rpartition(".")
    if layer in _COPIED:
        names = tuple(f"transformer_blocks.{i}.norm1.emb.{_COPIED[layer]}.{leaf}" for i in range(depth))
        return Key(key.leaf, names, key.turn, "copies")
    if match := _BLOCK.fullmatch(layer):
        return Key(key.leaf, tuple(f"transformer_blocks.{match[1]}.{name}.{leaf}" for name in _IN_BLOCK[match[2]]), key.turn)
    return Key(key.leaf, (f"{_STEM[layer]}.{leaf}",), key.turn)


def _spec_of_config(config: Config, shapes: Shapes) -> ModelSpec:
    """The spec that `config.json` describes; tensors bound the depth before anything is made of it."""
    for name, expected in FIXED.items():
        if config.get(name) != expected:
            raise BadInput(f"config.json {name}: {_shown(config.get(name))}, expected {expected}")
    channels, out = _size(config, "in_channels"), _size(config, "out_channels")
    if out not in (channels, 2 * channels):
        raise BadInput(f"config.json out_channels: {out}, expected {channels} or {2 * channels}")
    depth, heads = _size(config, "num_layers"), _size(config, "num_attention_heads")
    found = 1 + max((int(match[1]) for name in shapes if (match := _THEIR_BLOCK.match(name))), default=-1)
    if depth != found:
        raise BadInput(f"config.json num_layers: {depth}, but the weights have {found} blocks")
    side = _size(config, "sample_size")
    if side > LARGEST_SIDE:
        raise BadInput(f"config.json sample_size: {side}, expected at most {LARGEST_SIDE}")
    return dit_spec(
        input_size=side, patch_size=_size(config, "patch_size"), in_channels=channels,
        hidden_size=heads * _size(config, "attention_head_dim"), depth=depth, num_heads=heads,
        num_classes=_size(config, "num_embeds_ada_norm"), learn_sigma=out == 2 * channels,
    )  # fmt: skip


def _size(config: Config, name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadInput(f"config.json {name}: {_shown(value)}, expected a positive integer")
    return value


def _shown(value: Any) -> str:
    """A value from a foreign file, for a message: plain characters, not many of them."""
    text = ascii(str(value))[1:-1]
    return f"{text[:80]}..." if len(text) > 80 else text
