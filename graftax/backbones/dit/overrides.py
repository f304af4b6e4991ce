"""What the user may say of a DiT that its file does not: heads, windows, whose numerics."""

from __future__ import annotations

from collections.abc import Mapping

from graftax.backbones.dit.variants import with_compat
from graftax.backbones.overrides import check_names, refuse_contradictions
from graftax.spec import ModelSpec, Option

OWN = ("num_heads", "compat")
"""Overrides that are no option of an operator."""


def override(spec: ModelSpec, overrides: Mapping[str, Option]) -> ModelSpec:
    """`spec` as a file gives it, computed with the `compat` that is asked for.

    Raises `BadInput` on overrides that are unknown or that contradict the file.
    """
    check_names(overrides, OWN)
    refuse_contradictions(spec, overrides)
    return with_compat(spec, str(overrides["compat"])) if "compat" in overrides else spec
