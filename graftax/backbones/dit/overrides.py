"""What the user may say of a model that its file does not: heads, windows, whose numerics."""

from __future__ import annotations

from collections.abc import Mapping

from graftax import ops
from graftax.backbones.dit.variants import with_compat
from graftax.errors import BadInput, did_you_mean
from graftax.spec import ModelSpec, Option

OWN = ("num_heads", "compat")


def check_names(overrides: Mapping[str, Option]) -> None:
    """Raise `BadInput` on an override that nothing has."""
    known = {*OWN} | {name for cls in ops.OPERATORS.values() for name in cls.options()}
    unknown = sorted(overrides.keys() - known)
    if unknown:
        raise BadInput(
            f"override {unknown[0]!r}: not known, expected one of {sorted(known)}"
            f"{did_you_mean(unknown[0], known)}"
        )


def override(spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
    """`spec` as a file gives it, computed with the `compat` that is asked for.

    Raises `BadInput` on overrides that are unknown or that contradict the file.
    """
    check_names(overrides)
    if overrides.get("num_heads", spec.sizes.heads) != spec.sizes.heads:
        raise BadInput(f"override num_heads={overrides['num_heads']!r}: the file says {spec.sizes.heads}")
    for i, block in enumerate(spec.blocks):
        for slot, held in block.ops:
            for name, value in held.options:
                if overrides.get(name, value) != value:
                    raise BadInput(f"override {name}={overrides[name]!r}: the file has {value!r} in blocks[{i}].{slot}")
    return with_compat(spec, str(overrides["compat"])) if "compat" in overrides else spec
