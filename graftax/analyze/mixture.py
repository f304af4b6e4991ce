"""Teacher and student as one network: which of the two operators runs at a site is data, not structure."""

from __future__ import annotations

from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.block import block_body
from graftax.models.collect import ADALN, Params, stacked
from graftax.models.cost import runs
from graftax.models.dit import embed
from graftax.models.embed import FinalLayer, call
from graftax.models.lora import materialise
from graftax.models.program_data import operator_at
from graftax.spec import SLOTS, ModelSpec, OpSpec
from graftax.surgery.report import is_plain
from graftax.surgery.select import Site

Place = tuple[int, int]
"""Where an operator's weights are: the number of its kind, and its row in the stack of that kind."""


class Mixture:
    """The teacher with some sites taken from the student, compiled once for every choice of sites.

    The weights of equal operators are stacked, those of both models together; a table says which row of which stack each
    block uses, and a scan over the blocks looks it up. All else is the teacher's. `weights` is what `forward` takes,
    copies of the operators' and adaLN weights included. Raises `BadInput` where the teacher runs blocks in parallel.
    """

    def __init__(self, teacher: Model, student: Model, sites: Iterable[Site], dtype: DTypeLike | None = None) -> None:
        shaped = [step for step in teacher.spec.program if not is_plain(step)]
        if shaped:
            raise BadInput(f"teacher: its program has {shaped[0]}, expected single blocks, one after the other")
        self._spec, self._dtype = teacher.spec, dtype
        self._order = runs(teacher.spec)
        self._places: dict[tuple[bool, Site], Place] = {}
        self._kinds: dict[str, tuple[OpSpec, ...]] = {}
        own, others = (materialise(model.spec, model.params) for model in (teacher, student))
        ends = {name: part for name, part in own.items() if name != "blocks"}
        self.weights: Params = {**ends, ADALN: stacked(teacher.spec, own["blocks"], ADALN, self._order)}
        for slot in SLOTS:
            holders = [(False, Site(i, slot)) for i in range(teacher.spec.depth)]
            holders += [(True, site) for site in sites if site.slot == slot]
            self.weights[slot] = self._stack(slot, holders, (teacher.spec, own["blocks"]), (student.spec, others["blocks"]))

    def _stack(self, slot: str, holders: list[tuple[bool, Site]], *models: tuple[ModelSpec, Params]) -> list[Params]:
        """One stack per kind of operator: the teacher's rows, then the student's. Notes every place."""
        found: dict[OpSpec, list[tuple[bool, Site]]] = {}
        for holder in holders:
            grafted, site = holder
            found.setdefault(getattr(models[grafted][0].blocks[site.block], slot), []).append(holder)
        self._kinds[slot] = tuple(found)
        stacks = []
        for kind, members in enumerate(found.values()):
            self._places |= {holder: (kind, row) for row, holder in enumerate(members)}
            ids = [[site.block for grafted, site in members if grafted == side] for side in (False, True)]
            parts = [stacked(spec, blocks, slot, some) for (spec, blocks), some in zip(models, ids, strict=True) if some]
            stacks.append(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))
        return stacks

    def table(self, chosen: Iterable[Site]) -> np.ndarray:
        """(blocks run, slots, 2) int32: the place of every operator when the `chosen` sites are the student's."""
        taken = set(chosen)
        sites = [[Site(i, slot) for slot in SLOTS] for i in self._order]
        return np.array([[self._places[site in taken, site] for site in row] for row in sites], np.int32)

    def forward(self, weights: Params, table: jax.Array, x: jax.Array, t: jax.Array, y: jax.Array) -> jax.Array:
        """`graftax.models.forward` of the mixed model: x (b, h, w, c), t (b,), y (b,) -> (b, h, w, out_channels)."""
        spec, dtype = self._spec, self._dtype
        x, c = embed(spec, weights, x, t, y, dtype)

        def block(x: jax.Array, one: tuple[Params, jax.Array]) -> tuple[jax.Array, None]:
            adaln, places = one
            modulation = call(nn.Dense(6 * spec.hidden_size, dtype=dtype), adaln, nn.silu(c))
            mixer, mlp = (
                operator_at(spec, self._kinds[slot], weights[slot], place, dtype)
                for slot, place in zip(SLOTS, places, strict=True)
            )
            return block_body(x, modulation, mixer, mlp, spec.compat)[0], None

        x, _ = jax.lax.scan(block, x, (weights[ADALN], table))
        return call(FinalLayer(spec.patch_size, spec.out_channels, dtype), weights["final"], x, c)
