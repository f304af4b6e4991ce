"""What the user may say of a model that its file does not: checks that all families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graftax import ops
from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec, Option


def check_names(overrides: Mapping[str, Option], own: Sequence[str]) -> None:
    """Raise `BadInput` on an override that is neither one of the family's `own` nor an option of an operator."""
    known = {*own} | {name for cls in ops.OPERATORS.values() for name in cls.options()}
    unknown = sorted(overrides.keys() - known)
    if unknown:
        raise BadInput(
            f"override {unknown[0]!r}: not known, expected one of {sorted(known)}{did_you_mean(unknown[0], known)}"
        )


def refuse_contradictions(spec: ModelSpec, overrides: Mapping[str, Option]) -> None:
    """Raise `BadInput` on overrides of heads and operators' options that the file itself gives, and otherwise."""
    if overrides.get("num_heads", spec.sizes.heads) != spec.sizes.heads:
        raise BadInput(f"override num_heads={overrides['num_heads']!r}: the file says {spec.sizes.heads}")
    for i, block in enumerate(spec.blocks):
        for slot, held in block.ops:
            for name, value in held.options:
                if overrides.get(name, value) != value:
                    raise BadInput(f"override {name}={overrides[name]!r}: the file has {value!r} in blocks[{i}].{slot}")
