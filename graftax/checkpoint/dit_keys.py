"""DiT in PyTorch's names and layouts, in both directions, and the structure of a model read from its tensors.

Keys of everything outside the operators are in the tables below (facebookresearch/DiT, `models.py`); each operator
brings its own keys and tells whether a set of tensors is its own (`graftax.ops.base.Operator`).
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from graftax import ops
from graftax.errors import BadInput
from graftax.ops.base import Operator, TorchKey, linear_keys
from graftax.spec import SLOTS, BlockSpec, ModelSpec, OpSpec, Option, block_key, sequential

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
BLOCK = linear_keys("adaln", "adaLN_modulation.1")
PREFIX = {"mixer": "attn.", "mlp": "mlp."}

_AS_WIDE_AS_THE_MODEL = (
    "x_embedder.proj.bias", "t_embedder.mlp.0.bias", "t_embedder.mlp.2.bias", "pos_embed", "final_layer.linear.weight"
)  # fmt: skip
_AXES = {"linear": (1, 0), "patch": (2, 3, 1, 0)}  # (d, c, p, p) -> (p, p, c, d)
_RANK = {"linear": 2, "conv": 3, "patch": 4}
_NAMED_AT_MOST = 5

Shape = tuple[int, ...]


def spec_from_tensors(tensors: Mapping[str, np.ndarray], **overrides: Option) -> ModelSpec:
    """The spec of the model whose PyTorch state dict this is, from names and shapes alone.

    `overrides` give what tensors cannot tell: `num_heads` (needed unless the width is a published one) and operator
    options such as `window`. Raises `BadInput` on unknown overrides, overrides that the tensors contradict, missing or
    unexpected tensors (naming them), and shapes that contradict each other.
    """
    _check_names(overrides)
    shapes = {name: tuple(array.shape) for name, array in tensors.items()}
    slots = _by_slot(shapes)
    d = _width(shapes)
    p, c, learn_sigma = _patches(shapes)
    grid = _grid(shapes)
    heads = overrides.get("num_heads", HEADS.get(d))
    if heads is None:
        raise BadInput(f"num_heads: not stored in tensors and width {d} is no published DiT's; give num_heads=...")
    frame = ModelSpec(
        input_size=grid * p, patch_size=p, in_channels=c, hidden_size=d, num_heads=heads,  # pyright: ignore[reportArgumentType]
        num_classes=_classes(shapes), learn_sigma=learn_sigma,
        blocks=(BlockSpec(OpSpec(""), OpSpec("")),) * len(slots),
    )  # fmt: skip
    blocks = tuple(
        BlockSpec(*(_recognise(frame, slot, f"blocks.{i}.{PREFIX[slot]}", found[slot], overrides) for slot in SLOTS))
        for i, found in enumerate(slots)
    )
    spec = frame.replace(blocks=blocks)
    check_overrides(spec, overrides)
    return spec


def check_overrides(spec: ModelSpec, overrides: Mapping[str, Option]) -> None:
    """Raise `BadInput` on overrides that are unknown or that contradict what a file says of its model."""
    _check_names(overrides)
    if overrides.get("num_heads", spec.num_heads) != spec.num_heads:
        raise BadInput(f"override num_heads={overrides['num_heads']!r}: the file says {spec.num_heads}")
    for i, block in enumerate(spec.blocks):
        for slot in SLOTS:
            for name, value in getattr(block, slot).options:
                if overrides.get(name, value) != value:
                    raise BadInput(f"override {name}={overrides[name]!r}: the file has {value!r} in blocks[{i}].{slot}")


def params_from_tensors(spec: ModelSpec, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameter tree of `spec`, float32, from a PyTorch state dict.

    Float32 tensors stay views of what is given (transposed where layouts differ); other float types are converted.
    Raises `BadInput` naming every missing, unexpected, mis-shaped or non-float tensor (five of them, then a count).
    """
    expected = torch_shapes(spec)
    _refuse("tensors missing", [name for name in expected if name not in tensors])
    _refuse("tensors unexpected", [name for name in tensors if name not in expected])
    _check_shapes(spec, {name: tuple(tensors[name].shape) for name in expected}, expected)
    ill_typed = [f"{name} {array.dtype}" for name, array in tensors.items() if not jnp.issubdtype(array.dtype, jnp.floating)]
    _refuse("tensors of no float type", ill_typed)
    leaves = {key.leaf: _to_ours(key.layout, np.asarray(tensors[key.name], np.float32)) for key in torch_keys(spec)}
    return unflatten_dict(leaves, sep="/")


def tensors_from_params(spec: ModelSpec, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The PyTorch state dict of a model, float32: inverse of `params_from_tensors`, bit for bit.

    Raises `BadInput` where the PyTorch layout cannot hold the model (a rewritten program, an operator without PyTorch
    names) or where `params` does not fit `spec`.
    """
    if spec.program != sequential(spec.depth):
        raise BadInput("export: PyTorch files hold no program, and this one is not 0..L-1 in order; save a graftax folder")
    if spec.adapters:
        raise BadInput(
            f"export: PyTorch files hold no adapters, and this model has {len(spec.adapters)}; merge_lora() first"
        )
    flat: dict[str, Any] = dict(flatten_dict(dict(params), sep="/"))
    keys = torch_keys(spec)
    ours = {key.leaf for key in keys}
    _refuse("parameters missing", sorted(ours - flat.keys()))
    _refuse("parameters without a PyTorch name", sorted(flat.keys() - ours))
    expected = torch_shapes(spec)
    wrong = [
        f"{key.leaf} {flat[key.leaf].shape} (expected {shape})"
        for key in keys
        if flat[key.leaf].shape != (shape := _shape_of(_to_ours, key.layout, expected[key.name]))
    ]
    _refuse("parameters mis-shaped", wrong)
    return {key.name: _to_torch(key.layout, np.asarray(flat[key.leaf], np.float32)) for key in keys}


def torch_keys(spec: ModelSpec) -> list[TorchKey]:
    """Every parameter of `spec`: path in our tree, PyTorch name, layout; in order of the blocks."""
    keys = list(STEM)
    for i, block in enumerate(spec.blocks):
        ours, theirs = f"blocks/{block_key(i)}/", f"blocks.{i}."
        keys += [TorchKey(ours + key.leaf, theirs + key.name, key.layout) for key in BLOCK]
        for slot, prefix in PREFIX.items():
            keys += [
                TorchKey(f"{ours}{slot}/{key.leaf}", theirs + prefix + key.name, key.layout)
                for key in ops.operator_class(getattr(block, slot).kind).torch_keys
            ]
    return keys


def torch_shapes(spec: ModelSpec) -> dict[str, Shape]:
    """The shape that every tensor of `spec` has in PyTorch."""
    d, p, c = spec.hidden_size, spec.patch_size, spec.in_channels
    shapes: dict[str, Shape] = {
        "x_embedder.proj.weight": (d, c, p, p), "x_embedder.proj.bias": (d,),
        "t_embedder.mlp.0.weight": (d, 256), "t_embedder.mlp.0.bias": (d,),
        "t_embedder.mlp.2.weight": (d, d), "t_embedder.mlp.2.bias": (d,),
        "y_embedder.embedding_table.weight": (spec.num_classes + 1, d), "pos_embed": (1, spec.tokens, d),
        "final_layer.adaLN_modulation.1.weight": (2 * d, d), "final_layer.adaLN_modulation.1.bias": (2 * d,),
        "final_layer.linear.weight": (p * p * spec.out_channels, d), "final_layer.linear.bias": (p * p * spec.out_channels,),
    }  # fmt: skip
    for i, block in enumerate(spec.blocks):
        shapes |= {f"blocks.{i}.adaLN_modulation.1.weight": (6 * d, d), f"blocks.{i}.adaLN_modulation.1.bias": (6 * d,)}
        for slot, prefix in PREFIX.items():
            inside = _operator_shapes(getattr(block, slot), spec.replace(blocks=(block,), program=()))
            shapes |= {f"blocks.{i}.{prefix}{name}": shape for name, shape in inside.items()}
    return shapes


@functools.lru_cache(maxsize=256)
def _operator_shapes(op: OpSpec, spec: ModelSpec) -> dict[str, Shape]:
    """PyTorch shapes of one operator's tensors, from its own initialiser (traced, not run)."""
    x = jax.ShapeDtypeStruct((1, spec.tokens, spec.hidden_size), jnp.float32)  # (b, n, d)
    variables = jax.eval_shape(ops.build(op, spec).init, jax.random.key(0), x)
    leaves: dict[str, Any] = dict(flatten_dict(variables.get("params", {}), sep="/"))
    keys = ops.operator_class(op.kind).torch_keys
    if leaves.keys() != {key.leaf for key in keys}:
        raise BadInput(f"operator {op}: has no complete table of PyTorch names")
    return {key.name: _shape_of(_to_torch, key.layout, leaves[key.leaf].shape) for key in keys}


def _to_ours(layout: str, array: np.ndarray) -> np.ndarray:
    if layout == "conv":
        return array[:, 0, :].T  # (c, 1, K) -> (K, c)
    return array.transpose(_AXES[layout]) if layout in _AXES else array


def _to_torch(layout: str, array: np.ndarray) -> np.ndarray:
    if layout == "conv":
        return array.T[:, None, :]  # (K, c) -> (c, 1, K)
    return array.transpose(np.argsort(_AXES[layout])) if layout in _AXES else array


def _shape_of(turn: Callable[[str, np.ndarray], np.ndarray], layout: str, shape: Shape) -> Shape:
    """The shape that `turn`, one of the two above, gives to an array of `shape`."""
    return turn(layout, np.broadcast_to(np.float32(0), shape)).shape


def _check_names(overrides: Mapping[str, Option]) -> None:
    known = {"num_heads"} | {name for cls in ops.OPERATORS.values() for name in cls.options()}
    unknown = sorted(overrides.keys() - known)
    if unknown:
        raise BadInput(f"override {unknown[0]!r}: not known, expected one of {sorted(known)}")


def _by_slot(shapes: Mapping[str, Shape]) -> list[dict[str, dict[str, Shape]]]:
    """Per block: slot -> shapes by name within the slot. Refuses missing and unexpected names outside the slots."""
    found: dict[int, dict[str, dict[str, Shape]]] = defaultdict(lambda: {slot: {} for slot in SLOTS})
    stem, block = {key.name for key in STEM}, {key.name for key in BLOCK}
    unexpected = []
    for name, shape in shapes.items():
        match = re.fullmatch(r"blocks\.(0|[1-9][0-9]{0,3})\.(.+)", name)
        slot = match and next((s for s, prefix in PREFIX.items() if match[2].startswith(prefix)), None)
        if match and slot:
            found[int(match[1])][slot][match[2].removeprefix(PREFIX[slot])] = shape
        elif match and match[2] in block:
            found[int(match[1])]  # the block exists, even if it should hold no operator with tensors
        elif name not in stem:
            unexpected.append(name)
    depth = 1 + max(found, default=0)
    needed = [*stem, *(f"blocks.{i}.{name}" for i in range(depth) for name in sorted(block))]
    _refuse("tensors missing", [name for name in needed if name not in shapes], unexpected)
    _refuse("tensors unexpected", unexpected)
    return [found[i] for i in range(depth)]


def _width(shapes: Mapping[str, Shape]) -> int:
    """The width that most tensors agree on, so that one wrong tensor is the one that gets named later."""
    found = [shapes[name][-1] for name in _AS_WIDE_AS_THE_MODEL if shapes[name]]
    return Counter(found or [0]).most_common(1)[0][0]


def _patches(shapes: Mapping[str, Shape]) -> tuple[int, int, bool]:
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


def _grid(shapes: Mapping[str, Shape]) -> int:
    """Patches along one side of the image."""
    shape = shapes["pos_embed"]
    if len(shape) != 3 or shape[0] != 1 or math.isqrt(shape[1]) ** 2 != shape[1] or shape[1] == 0:
        raise BadInput(f"pos_embed {shape}: expected (1, n, d) with a square number n of tokens")
    return math.isqrt(shape[1])


def _classes(shapes: Mapping[str, Shape]) -> int:
    """Rows of the label embedding without the null class."""
    shape = shapes["y_embedder.embedding_table.weight"]
    if len(shape) != 2 or shape[0] < 2:
        raise BadInput(f"y_embedder.embedding_table.weight {shape}: expected (classes + 1, d)")
    return shape[0] - 1


def _recognise(
    frame: ModelSpec, slot: str, prefix: str, shapes: Mapping[str, Shape], overrides: Mapping[str, Option]
) -> OpSpec:
    """The operator whose tensors these are, with its options. Raises `BadInput` naming what keeps it from any."""
    for kind, cls in ops.OPERATORS.items():
        if cls.slot != slot or not _ranks_fit(cls, shapes):
            continue
        options = cls.recognise(shapes, overrides)
        if options is not None:
            return _resolve(frame, slot, prefix, OpSpec(kind, tuple(options.items())), shapes)
    raise _unrecognised(slot, prefix, shapes)


def _resolve(frame: ModelSpec, slot: str, prefix: str, found: OpSpec, shapes: Mapping[str, Shape]) -> OpSpec:
    """`found` with all options, checked; where its options are impossible, so are the shapes they were read from."""
    try:
        return ops.resolve(found, slot, frame.hidden_size, frame.tokens, frame.num_heads)
    except BadInput as error:
        tensors = _listed([f"{prefix}{name} {shape}" for name, shape in shapes.items() if len(shape) > 1])
        raise BadInput(f"{prefix.rstrip('.')}: {error}; read from {tensors}") from None


def _ranks_fit(cls: type[Operator], shapes: Mapping[str, Shape]) -> bool:
    return not _wrong_rank(cls, shapes)


def _wrong_rank(cls: type[Operator], shapes: Mapping[str, Shape]) -> list[str]:
    """Tensors whose number of axes is not the operator's, or that are empty."""
    ranks = {key.name: _RANK[key.layout] for key in cls.torch_keys if key.layout in _RANK}
    return [n for n, rank in ranks.items() if n in shapes and (len(shapes[n]) != rank or min(shapes[n]) == 0)]


def _unrecognised(slot: str, prefix: str, shapes: Mapping[str, Shape]) -> BadInput:
    """Compare with the operator whose names are nearest."""

    def names(cls: type[Operator]) -> set[str]:
        return {key.name for key in cls.torch_keys}

    classes = [cls for cls in ops.OPERATORS.values() if cls.slot == slot]
    nearest = min(classes, key=lambda cls: len(names(cls) ^ shapes.keys()))
    missing = _listed([prefix + name for name in sorted(names(nearest) - shapes.keys())])
    extra = _listed([prefix + name for name in sorted(shapes.keys() - names(nearest))])
    suspects = _wrong_rank(nearest, shapes) or shapes
    ranks = _listed([f"{prefix}{name} {shapes[name]}" for name in suspects])
    reasons = [f"missing {missing}" * bool(missing), f"unexpected {extra}" * bool(extra)]
    found = "; ".join(filter(None, reasons)) or f"mis-shaped, one of {ranks}"
    return BadInput(f"{prefix.rstrip('.')}: no known operator has these tensors; nearest is {nearest.kind}: {found}")


def _check_shapes(spec: ModelSpec, found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Name mis-shaped tensors; within an operator also those that its options were read from."""
    wrong = [name for name, shape in expected.items() if found[name] != shape]
    reports = [f"{name} {found[name]} (expected {expected[name]})" for name in wrong]
    for i, block in enumerate(spec.blocks):
        for slot, prefix in PREFIX.items():
            start, op = f"blocks.{i}.{prefix}", getattr(block, slot)
            if op.options and any(name.startswith(start) for name in wrong):
                others = [name for name in expected if name.startswith(start) and name not in wrong and len(found[name]) > 1]
                reports += [f"{name} {found[name]} (read as {op})" for name in others]
    _refuse("tensors mis-shaped", reports)


def _refuse(what: str, names: list[str], also: list[str] | None = None) -> None:
    if names:
        rest = f"; unexpected: {_listed(also)}" if also else ""
        raise BadInput(f"{what}: {_listed(names)}{rest}")


def _listed(names: list[str]) -> str:
    left = len(names) - _NAMED_AT_MOST
    return ", ".join(ascii(name)[1:-1] for name in names[:_NAMED_AT_MOST]) + (f" and {left} more" if left > 0 else "")
