"""Sites that hold the same operator form a group: their weights are stacked and train as one array program."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp

from graftax import ops
from graftax.blocks import Context, bind, part, slot_of
from graftax.distill.config import DistillConfig
from graftax.distill.losses import regression_loss
from graftax.distill.normal_equations import RIDGE
from graftax.distill.steps import StepGroup, StepSite, group_steps
from graftax.ops.base import Operator, Params, apply_with_features
from graftax.ops.target import target
from graftax.spec import ModelSpec, OpSpec, members
from graftax.surgery.replace import put_sites
from graftax.surgery.select import Site

METHODS = ("auto", "vmap", "map")


@dataclass(frozen=True)
class Group:
    """Sites of one slot that hold equal operators, in order of their blocks. Axis s counts them.

    Attributes:
        spec: of the student.
        kind: of their blocks.
        slot: in these blocks.
        op: that they hold.
        sites: in order.
    """

    spec: ModelSpec
    kind: str
    slot: str
    op: OpSpec
    sites: tuple[Site, ...]

    ridge = RIDGE

    @property
    def spans(self) -> tuple[tuple[int, ...], ...]:
        """The blocks whose input and output each site learns from: its own."""
        return tuple((site.block,) for site in self.sites)

    @property
    def input(self) -> str:
        """The tap of the teacher that the scions get."""
        return f"{self.slot}/in"

    @property
    def output(self) -> str:
        """The tap that they learn."""
        return f"{self.slot}/out"

    def operator(self, config: DistillConfig) -> Operator:
        """The scions' module."""
        return slot_of(self.kind, self.slot).build(self.op, self.spec.sizes, config.dtype)

    def loss_fn(self, config: DistillConfig) -> Callable[[Params, Context, Any, Any], jax.Array]:
        """Loss of one site: (scion, context, teacher's input (b, n, d), teacher's output (b, n, d)) -> () float32."""
        apply, role = self.apply_fn(config), slot_of(self.kind, self.slot).role
        name = config.loss_of(role) or self.operator(config).regression_loss

        def loss(scion: Params, context: Context, x: Any, wanted: Any) -> jax.Array:
            return regression_loss(name, apply(scion, context, x), wanted, config.huber_delta)

        return loss

    def apply_fn(self, config: DistillConfig) -> Callable[[Params, Context, Any], Any]:
        """One scion as a function: (its weights, context, x (b, n, d)) -> (b, n, d)."""
        operator = self.operator(config)
        return lambda scion, context, x: bind(operator, scion, context)(x)

    def linear_part(
        self, config: DistillConfig, scion: Params, context: Context, x: jax.Array, wanted: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """What enters the last layer of one scion (b, n, p), and what its output lacks (b, n, d) float32."""
        operator = self.operator(config)
        reads = {name: getattr(context, name) for name in operator.reads}
        out, features = apply_with_features(operator, scion, x, **reads)
        return features, wanted - out.astype(jnp.float32)

    @property
    def last_layer(self) -> str:
        """Name of the scions' last layer; "" where they have none."""
        return ops.operator_class(self.op.kind).readout

    def readout(self, scion: Params) -> Params:
        """The last layer of a scion, which `linear_part` feeds."""
        return scion[self.last_layer]

    def with_readout(self, scion: Params, layer: Params) -> Params:
        """The scion with another last layer."""
        return {**scion, self.last_layer: layer}

    def weights(self, params: Params) -> list[Params]:
        """The weights of every site."""
        return [part(params["blocks"][self.spec.block_key(site.block)], self.slot) for site in self.sites]

    def install(self, params: Params, scions: Iterable[Params]) -> Params:
        """`params` with the weights of every site in their places; inverse of `weights`."""
        return put_sites(self.spec, params, dict(zip(self.sites, scions, strict=True)))


Groups = dict[str, Group]
Units = Mapping[str, Group | StepGroup]
"""Groups of all that stage 1 trains: operators at their sites and whole steps."""


def group_sites(spec: ModelSpec, sites: Iterable[Site]) -> Groups:
    """Groups of `sites` in a student of `spec`, under names that say what they are: "0_mixer_hyena_x"."""
    ordered = sorted(sites)
    found = members((spec.blocks[site.block].kind, site.slot, site.held(spec)) for site in ordered)
    return {
        f"{i}_{slot.replace('/', '_')}_{op.kind}": Group(spec, kind, slot, op, tuple(ordered[k] for k in places))
        for i, ((kind, slot, op), places) in enumerate(found.items())
    }


def group_units(spec: ModelSpec, units: Iterable[Site | StepSite]) -> Units:
    """Groups of `units` in a student of `spec`: `group_sites` of the sites, then `group_steps` of the steps."""
    units = list(units)
    steps = group_steps(spec, (unit for unit in units if isinstance(unit, StepSite)))
    return {**group_sites(spec, (unit for unit in units if isinstance(unit, Site))), **steps}


def stack_scions(params: Params, groups: Units) -> Params:
    """{group: the weights at its sites, stacked: leaves (s, ...)}, copies all of them."""
    return {name: jax.tree.map(lambda *leaves: jnp.stack(leaves), *group.weights(params)) for name, group in groups.items()}


def install_scions(params: Params, groups: Units, scions: Params) -> Params:
    """`params` with the stacked `scions` back at their sites; all other leaves are the same objects."""
    for name, group in groups.items():
        params = group.install(params, [jax.tree.map(itemgetter(i), scions[name]) for i in range(len(group.sites))])
    return params


def over_sites(function: Callable[..., Any], method: str = "auto") -> Callable[..., Any]:
    """`function` of one site, mapped over the leading axis s of all its arguments and results.

    "vmap" batches the sites into wider operations, "map" runs them one by one in a compiled loop. "auto": map on CPU,
    where XLA's batched matmul is slower than a loop of plain ones (joint step 1.1 to 1.3 x at width 128 to 384), else vmap.
    """
    if method == "map" or (method == "auto" and target() == "cpu"):
        return lambda *stacks: jax.lax.map(lambda one: function(*one), stacks)
    return jax.vmap(function)
