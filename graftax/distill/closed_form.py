"""What of a scion is linear in its weights needs no gradient steps: one pass of the teacher over some batches fits it.

The regression pairs are those of stage 1 (arXiv 2506.05340, Eq. 2): the frozen teacher's on freshly noised images, times
uniform over the process, true classes. Sums over tokens are kept, activations are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from graftax.blocks import Context, block_kind, part
from graftax.data.feed import as_batches
from graftax.diffusion import Noising
from graftax.distill.config import PAPER_BATCH, DistillConfig
from graftax.distill.groups import Group, Units, group_sites, group_units, over_sites, stack_scions
from graftax.distill.normal_equations import Sums, accumulate, moments, solve, zeros
from graftax.distill.placing import constrain_stacked, sample_pairs, shard_stacked, shard_teacher, site_method
from graftax.distill.sites import check_pair, norm_sites
from graftax.distill.steps import StepGroup, has_units, regression_units, taken_out
from graftax.distill.teacher import Teacher
from graftax.errors import BadInput
from graftax.models import Model
from graftax.models.arguments import as_key
from graftax.ops.base import Params, apply_with_features
from graftax.ops.low_rank import reduced_rank, square_root
from graftax.progress import Progress
from graftax.spec import ModelSpec
from graftax.surgery.replace import put_sites
from graftax.surgery.select import Selector, Site, select
from graftax.train.loop import Batch, Batches
from graftax.train.sharding import RULES, AxisRules, activations, put_batch, to_host

T = TypeVar("T")
Add = Callable[..., T]
"""(group, context, one site's sums so far, its weights, the teacher's input and its output (b, n, d)) -> its sums."""


def calibrate(
    teacher: Model, student: Model, data: Any, steps: int, config: DistillConfig | None = None, *,
    batch_size: int = PAPER_BATCH, sites: Selector | None = None, process: Noising | None = None,
    mesh: Mesh | None = None, rules: AxisRules = RULES, rng: jax.Array | None = None, show: bool = True,
) -> Model:  # fmt: skip
    """The student with scales and last layer of every scion fitted to the teacher's output by linear least squares.

    The last layer is `Operator.readout`: a mixer's output projection, an MLP's second layer, all of an `affine`, whose
    factors become the best ones of their rank; of a merged step it is the projection, and `config.merge_target` says what
    it is fitted to. All other weights stay, the same objects, whatever they were initialised with. The fit is of a
    correction to the layer that is there: what the data do not determine is left alone, and a scion that already does what
    the teacher's operator does stays as it is.

    Scales (`Operator.gains`: of a norm, of the norms of queries and keys) are fitted first, channel by channel, so that
    what was normalised comes out as large as what it stands in for. What an RMSNorm lacks of a LayerNorm is more than a
    scale, the mean that the latter takes away: it is fitted as a constant and goes into the shift of the `adaln` behind it.

    One pass over the next `steps` batches of `data` (arrays, an iterable or a grain dataset, as `graftax.distill.distill`
    takes it; arrays in batches of `batch_size`) serves all sites, before it another one of the same batches where there are
    scales, for which an iterator, that cannot begin anew, will not do; a site of p features keeps p^2 sums meanwhile. The
    loss is the squared one, whatever `config` says of losses; matmul type and plan are its. `rng` draws times and noise. The
    rest as in `graftax.distill.distill_job`, which lists what raises BadInput; so do `steps` below 1.
    """
    chosen = _chosen(student, sites)
    check_pair(teacher, student, taken_out(chosen))
    config = config or DistillConfig()
    groups, batches = group_units(student.spec, chosen), as_batches(data, batch_size, 0, teacher.spec)

    def add(group: Group | StepGroup, context: Context, sums: Sums, scion: Params, x: jax.Array, wanted: jax.Array) -> Sums:
        features, missing = group.linear_part(config, scion, context, x, wanted)
        return accumulate(sums, features, missing)

    def summed(add: Add[Any], empty: Callable[[Any, Params], Any], units: Units, label: str) -> dict[str, Any]:
        """What `add` makes of all batches for some of the groups, from `empty` sums."""
        source = Teacher(teacher.spec, units, process, config)
        scions = shard_stacked(stack_scions(params, units), mesh, rules)
        sums = shard_stacked({name: empty(group, scions[name]) for name, group in units.items()}, mesh, rules)
        prepared = shard_teacher(source, teacher.params, mesh, rules)
        step = _summing_step(source, units, add, mesh, rules)
        for batch, key in keyed(batches, steps, rng, mesh, label, show):
            sums = step(sums, scions, prepared, batch, key)
        return sums

    params = student.params
    scaled = _scaled(groups, params)
    layered = {name: group for name, group in groups.items() if group.last_layer}
    if left := [group for name, group in groups.items() if name not in {**scaled, **layered}]:
        raise BadInput(f"calibration of {left[0].sites[0]}: it has no last layer and no scales, expected 0 batches")
    if scaled:
        start = batches.state()
        fitted = summed(partial(_add_gains, config), _no_gains, scaled, "scales")
        for name, group in scaled.items():
            for i, site in enumerate(group.sites):
                params = _with_gains(student.spec, params, site, to_host(jax.tree.map(itemgetter(i), fitted[name])))
        if not layered:
            return student.replace(params=params)
        batches.restore(start)
    sums = summed(add, lambda group, scions: _no_rows(group.readout(scions)), layered, "least squares")
    for name, group in layered.items():
        per_site = (to_host(jax.tree.map(itemgetter(i), sums[name])) for i in range(len(group.sites)))
        layers = [_corrected(group.readout(p), s, group.ridge) for p, s in zip(group.weights(params), per_site, strict=True)]
        params = group.install(params, map(group.with_readout, group.weights(params), layers))
    return student.replace(params=params)


def neuron_importance(
    teacher: Model, data: Any, steps: int, sites: Selector = "blocks[mlp].mlp", config: DistillConfig | None = None,
    *, batch_size: int = PAPER_BATCH, process: Noising | None = None, mesh: Mesh | None = None, rules: AxisRules = RULES,
    rng: jax.Array | None = None, show: bool = True,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What every hidden neuron of the selected MLPs contributes to the output: {"blocks[3].mlp": (m,) float32}.

    E[h^2] ||w||^2, with h the neuron's activation and w its output weights: the mean squared norm of its term in the
    output. For `init="transplant"` of `graftax.replace` and `resize` where the new MLP is narrower. Measured on the next
    `steps` batches of `data`; parameters as in `calibrate`. Raises BadInput where a site holds no MLP, and
    as `calibrate` does.
    """
    chosen = select(sites, teacher.spec)
    for site in chosen:
        held = site.held(teacher.spec)
        if held.kind != "mlp":
            raise BadInput(f"neuron importance at {site}: holds {held}, expected an mlp")
    config = config or DistillConfig()
    groups = group_sites(teacher.spec, chosen)
    source = Teacher(teacher.spec, groups, process, config)
    weights = shard_stacked(stack_scions(teacher.params, groups), mesh, rules)

    def add(group: Group, context: Context, power: jax.Array, mlp: Params, x: jax.Array, target: jax.Array) -> jax.Array:
        _, hidden = apply_with_features(group.operator(config), mlp, x)  # (b, n, m)
        return power + jnp.square(hidden.astype(jnp.float32)).mean((0, 1)) / steps

    power = {name: jnp.zeros(weights[name]["fc1"]["bias"].shape) for name in groups}  # (s, m)
    power = shard_stacked(power, mesh, rules)
    prepared = shard_teacher(source, teacher.params, mesh, rules)
    step = _summing_step(source, groups, add, mesh, rules)
    for batch, key in keyed(as_batches(data, batch_size, 0, teacher.spec), steps, rng, mesh, "neuron importance", show):
        power = step(power, weights, prepared, batch, key)
    norms = {name: jnp.square(weights[name]["fc2"]["kernel"]).sum(-1) for name in groups}  # (s, m)
    found = to_host({name: power[name] * norms[name] for name in groups})
    return {str(site): found[name][i] for name, group in groups.items() for i, site in enumerate(group.sites)}


# --- One pass of the teacher ------------------------------------------------------------------------------------------


def _summing_step(
    source: Teacher, groups: Units, add: Add[Any], mesh: Mesh | None, rules: AxisRules
) -> Callable[..., dict[str, Any]]:
    """The compiled (sums, weights, prepared teacher, batch, key) -> sums, both of the first by group, stacked over sites."""
    method = site_method(mesh, rules)

    @partial(jax.jit, donate_argnums=0)
    def step(sums: dict[str, Any], weights: Params, prepared: Params, batch: Batch, key: jax.Array) -> dict[str, Any]:
        pairs, context = sample_pairs(source, prepared, batch, key, mesh, rules)
        with activations(mesh, rules):
            added = {
                name: over_sites(partial(add, group, context), method)(sums[name], weights[name], *pairs[name])
                for name, group in groups.items()
            }
        return constrain_stacked(added, mesh, rules)

    return step


def keyed(
    batches: Batches, steps: int, rng: jax.Array | None, mesh: Mesh | None, label: str, show: bool
) -> Iterator[tuple[Batch, jax.Array]]:
    """The next `steps` batches on their devices, each with a key of its own."""
    if steps < 1:
        raise BadInput(f"calibration steps: got {steps}, expected 1 or more")
    root = jax.random.key(0) if rng is None else as_key(rng)
    with Progress(steps, label, unit="batch", show=show and jax.process_index() == 0) as progress:
        for i in range(steps):
            batch = next(batches, None)
            if batch is None:
                raise BadInput(f"data ended after {i} of {steps} calibration batches, expected more")
            yield put_batch(batch, mesh), jax.random.fold_in(root, i)
            progress.advance()


# --- Scales -----------------------------------------------------------------------------------------------------------


def _scaled(groups: Units, params: Params) -> dict[str, Group]:
    """Those groups whose operators have scales to fit."""
    operators = {name: group for name, group in groups.items() if isinstance(group, Group)}
    return {name: group for name, group in operators.items() if _gains_of(group, group.weights(params)[0])}


def _gains_of(group: Group, scion: Params) -> dict[str, Any]:
    """`Operator.gains` of a scion as shapes."""
    operator = group.operator(DistillConfig())
    (x, *_), _ = operator.example()
    return jax.eval_shape(operator.gains, scion, x, x)


def _no_gains(group: Group, scions: Params) -> dict[str, Any]:
    """Products of no rows for every scale of the scions, which are stacked: (s, c) each."""
    found = _gains_of(group, jax.tree.map(itemgetter(0), scions))
    shapes = {path: (len(group.sites), 5, a.shape[-1]) for path, (a, _) in found.items()}
    return {path: jnp.zeros(shape) for path, shape in shapes.items()}


def _add_gains(
    config: DistillConfig, group: Group, context: Context, sums: dict[str, Any], scion: Params, x: Any, wanted: Any
) -> dict[str, Any]:
    """`sums` with this batch's a b, a^2, a, b and 1 by channel: a is what a scale multiplies, b what it should give."""
    found = group.operator(config).gains(scion, x, wanted)

    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        rows = tuple(range(a.ndim - 1))
        return jnp.stack([part.sum(rows) for part in (a * b, a * a, a, b, jnp.ones_like(a))])  # (5, c)

    return {path: sums[path] + products(a, b) for path, (a, b) in found.items()}


def _with_gains(spec: ModelSpec, params: Params, site: Site, sums: dict[str, np.ndarray]) -> Params:
    """`params` with the least-squares scales at a site; a channel that was never anything keeps the one that it has."""
    block = spec.blocks[site.block]
    slot, shift, scale = block_kind(block.kind).shifted.get(site.slot, ("", 0, 0))
    moves = block[site.slot].kind == "rms_norm" and bool(slot) and block[slot].kind == "adaln"
    key = spec.block_key(site.block)
    leaves: dict[str, Any] = flatten_dict(part(params["blocks"][key], site.slot), sep="/")
    for path, own in sums.items():
        cross, power, a, b, rows = np.asarray(own, np.float64)
        mean_a, mean_b = moves * a / rows, moves * b / rows
        spread = power / rows - mean_a**2
        varies = spread > 1e-7 * power / rows
        fitted = (cross / rows - mean_a * mean_b) / np.where(varies, spread, 1)
        leaves[path] = jnp.asarray(np.where(varies, fitted, leaves[path]), jnp.float32)
        if moves:
            modulation = _shifted(part(params["blocks"][key], slot), mean_b - leaves[path] * mean_a, shift, scale)
            params = put_sites(spec, params, {Site(site.block, slot): modulation})
    return put_sites(spec, params, {site: unflatten_dict(leaves, sep="/")})


def _shifted(adaln: Params, constant: np.ndarray, shift: int, scale: int) -> Params:
    """The modulation that gives x what it gave x + `constant` (d,): constant (1 + scale) goes into the shift."""
    own, by = (slice(i * len(constant), (i + 1) * len(constant)) for i in (shift, scale))
    kernel, bias = (jnp.asarray(adaln[name]) for name in ("kernel", "bias"))
    kernel = kernel.at[:, own].add(constant * kernel[:, by])
    return {"kernel": kernel, "bias": bias.at[own].add(constant * (1 + bias[by]))}


def _chosen(student: Model, sites: Selector | None) -> tuple[Any, ...]:
    """What is fitted: what stage 1 trains of the sites, and norms with weights."""
    norms = norm_sites(student, sites)
    if not norms:
        return regression_units(student, sites)
    if sites is None:
        return (*(regression_units(student, None) if has_units(student) else ()), *norms)
    others = [site for site in select(sites, student.spec) if site not in norms]
    return (*(regression_units(student, others) if others else ()), *norms)


# --- The last layer -----------------------------------------------------------------------------------------------------


def _no_rows(layers: Params) -> Sums:
    """Sums of no rows for the sites whose last layers are stacked, of p features and q outputs each: leaves (s, ...)."""
    first, last = (layers["down"], layers["up"]) if "down" in layers else (layers, layers)
    count, features, outputs = *first["kernel"].shape[:2], last["kernel"].shape[-1]
    return jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape)), zeros(features, outputs))


def _corrected(layer: Params, sums: Sums, ridge: float) -> Params:
    """A linear layer with the least-squares correction added."""
    if "down" in layer:
        return _corrected_factors(layer, sums, ridge)
    kernel, bias = solve(sums, ridge, intercept="bias" in layer)
    correction = {"kernel": kernel, "bias": bias}
    return {name: leaf + jnp.asarray(correction[name]) for name, leaf in layer.items()}


def _corrected_factors(layer: Params, sums: Sums, ridge: float) -> Params:
    """The same of a `graftax.ops.low_rank.Factored`: the best map of its rank."""
    down, up = (np.asarray(layer[name]["kernel"], np.float64) for name in ("down", "up"))
    (kernel, offset), (mean, covariance) = solve(sums, ridge), moments(sums)
    whole = down @ up + kernel, layer["up"]["bias"] + offset
    down, up, bias = map(jnp.float32, reduced_rank(*whole, mean, square_root(covariance), down.shape[1]))
    return {"down": {"kernel": down}, "up": {"kernel": up, "bias": bias}}
