"""Block kinds by name. To add one: write its file, then name its class in `_KINDS` (or `register` it from outside)."""

from __future__ import annotations

from collections.abc import Mapping

import jax
from jax.typing import DTypeLike

from graftax.blocks.auraflow import AuraJoint, AuraSingle
from graftax.blocks.base import BlockKind, Context, Run, Slot, State, Tap, Taps, alone, as_state, bind, part
from graftax.blocks.ddt import DDTDecoder, DDTEncoder
from graftax.blocks.dit import DiTBlock, DiTNoShift, DiTTokenBlock
from graftax.blocks.dit_norms import DiTNorms
from graftax.blocks.flux import DoubleBlock, SingleBlock
from graftax.blocks.pixart import PixArtBlock
from graftax.blocks.sd3 import SD3Block, SD3DualBlock, SD3LastBlock
from graftax.errors import BadInput, did_you_mean
from graftax.ops import Operator
from graftax.spec import BlockSpec, ModelSpec, OpSpec, Sizes

_KINDS: tuple[BlockKind, ...] = (
    DiTBlock(), PixArtBlock(), SD3Block(), SD3DualBlock(), SD3LastBlock(), DoubleBlock(), SingleBlock(), AuraJoint(),
    AuraSingle(), DiTNoShift(), DiTTokenBlock(), DiTNorms(), DDTEncoder(), DDTDecoder(),
)  # fmt: skip
BLOCKS: dict[str, BlockKind] = {kind.kind: kind for kind in _KINDS}

__all__ = [
    "BLOCKS", "BlockKind", "Context", "Run", "Slot", "State", "Tap", "Taps", "alone", "as_state", "bind", "block_kind",
    "build", "image_tokens", "part", "register", "resolve", "resolve_all", "slot_names", "slot_of", "streams",
    "tapped_slots",
]  # fmt: skip


def register(cls: type[BlockKind]) -> type[BlockKind]:
    """Make a block kind known by its `kind`; a decorator for kinds outside of this package.

    Raises `BadInput` where another one has this name.
    """
    known = BLOCKS.get(cls.kind)
    if known is not None and type(known) is not cls:
        raise BadInput(f"block kind {cls.kind!r}: registered already as {type(known).__name__}, expected a new name")
    BLOCKS[cls.kind] = cls()
    return cls


def block_kind(kind: str) -> BlockKind:
    """The block kind registered as `kind`; raises `BadInput` listing the known names."""
    if kind not in BLOCKS:
        raise BadInput(f"block kind {kind!r}: not known, expected one of {sorted(BLOCKS)}{did_you_mean(kind, BLOCKS)}")
    return BLOCKS[kind]


def slot_of(kind: str, name: str) -> Slot:
    """A slot of a block kind. Raises `BadInput` where it has none of that name."""
    slots = block_kind(kind).slots
    found = next((slot for slot in slots if slot.name == name), None)
    if found is None:
        names = tuple(slot.name for slot in slots)
        raise BadInput(f"block kind {kind!r}: no slot {name!r}, expected one of {names}{did_you_mean(name, names)}")
    return found


def slot_names(spec: ModelSpec, *roles: str) -> tuple[str, ...]:
    """Names of the slots that blocks of `spec` have, in order of appearance, each once; only those of `roles`, if given."""
    kinds = dict.fromkeys(block.kind for block in spec.blocks)
    slots = [slot for kind in kinds for slot in block_kind(kind).slots]
    return tuple(dict.fromkeys(slot.name for slot in slots if not roles or slot.role in roles))


def streams(spec: ModelSpec) -> tuple[str, ...]:
    """Streams that the blocks of `spec` pass on, in alphabetical order."""
    kinds = dict.fromkeys(block.kind for block in spec.blocks)
    return tuple(sorted({stream for kind in kinds for slot in block_kind(kind).slots for stream in slot.streams}))


def image_tokens(spec: ModelSpec, position: int, value: State | jax.Array) -> jax.Array:
    """Of the state behind a position of the program, as taps hold it, the image's tokens (b, n, d): the stream that the
    block there changes."""
    last = spec.blocks[spec.program[position].blocks[-1]]
    return as_state(value)[block_kind(last.kind).stream]


def tapped_slots(spec: ModelSpec) -> tuple[str, ...]:
    """Those of `slot_names` whose operators stage 1 can teach, in some block at least."""
    tapped = {name for block in spec.blocks for name in block_kind(block.kind).tapped}
    return tuple(name for name in slot_names(spec) if name in tapped)


def resolve(kind: str, sizes: Sizes, held: Mapping[str, OpSpec]) -> BlockSpec:
    """A block of `kind` with the operators `held` by slot, all options spelled out.

    Raises `BadInput` where a slot is missing or unknown, or an operator does not fit.
    """
    for name in held:
        slot_of(kind, name)
    if missing := [slot.name for slot in block_kind(kind).slots if slot.name not in held]:
        raise BadInput(f"block kind {kind!r}: no operator for the slot {missing[0]!r}")
    return BlockSpec(kind, tuple((slot.name, slot.resolve(held[slot.name], sizes)) for slot in block_kind(kind).slots))


def resolve_all(spec: ModelSpec) -> ModelSpec:
    """`spec` with every option of every operator spelled out and checked. Raises what `resolve` raises."""
    full = {block: resolve(block.kind, spec.sizes, dict(block.ops)) for block in dict.fromkeys(spec.blocks)}
    return spec.replace(blocks=tuple(full[block] for block in spec.blocks))


def build(spec: ModelSpec, kind: str, slot: str, op: OpSpec, dtype: DTypeLike | None = None) -> Operator:
    """The operator `op` in a slot of a block kind, built to the sizes of a model of `spec`."""
    return slot_of(kind, slot).build(op, spec.sizes, dtype)
