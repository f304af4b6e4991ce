"""Images of another size than a model was made for: its operators are built to their grid."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import numpy as np

from graftax.blocks import build, slot_of
from graftax.errors import BadInput
from graftax.models.collect import places
from graftax.ops.base import shapes_of
from graftax.spec import ModelSpec


def at_size(spec: ModelSpec, x: jax.Array | np.ndarray) -> ModelSpec:
    """`spec` on the grid of images x (b, h, w, c)."""
    return _on_grid(spec, (x.shape[1] // spec.option("patch"), x.shape[2] // spec.option("patch")))


@functools.lru_cache(maxsize=64)
def _on_grid(spec: ModelSpec, grid: tuple[int, int]) -> ModelSpec:
    return spec if grid == spec.sizes.grid else spec.replace(sizes=replace(spec.sizes, grid=grid))


@functools.lru_cache(maxsize=64)
def check_size(spec: ModelSpec, sized: ModelSpec) -> None:
    """Raise `BadInput` where an operator of `spec` cannot work on the grid of `sized` with the weights that it has."""
    rows, columns = sized.sizes.grid
    for (kind, slot, op), holders in places(spec).items():
        where = f"x of {rows}x{columns} tokens: blocks[{holders[0]}].{slot} is {op}"
        try:
            slot_of(kind, slot).resolve(op, sized.sizes)
        except BadInput as error:
            raise BadInput(f"{where}, {error}") from None
        if shapes_of(build(spec, kind, slot, op)) != shapes_of(build(sized, kind, slot, op)):
            rows, columns = spec.sizes.grid
            raise BadInput(f"{where}, which has weights for {rows}x{columns} alone")
