"""What a model is, what it costs and how two models differ, as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftax import api
from graftax.backbones.dit.variants import variant
from graftax.backbones.zoo import names, spec_of
from graftax.blocks import block_kind
from graftax.checkpoint.hub import Absent, fetched
from graftax.checkpoint.hugging_face import CONFIG, PART, PIPELINE
from graftax.errors import BadInput, did_you_mean
from graftax.evaluate.costs import MISPRINT, cost_table
from graftax.models import Model, param_shapes
from graftax.models.backbone import find
from graftax.models.cost import block_cost, count_params, count_trainable, flops
from graftax.nets import text_encoder, vae_files
from graftax.spec import BlockSpec, ModelSpec, Prediction, members
from graftax.study.missing import require_model
from graftax.surgery import diff, select
from graftax.surgery.replay import is_training
from graftax.surgery.report import program_text
from graftax.surgery.select import compact
from graftax.train import MeshConfig
from graftax.train.overview import parameter_table
from graftax.train.sharding_report import sharding_report, state_shapes

PLAIN = ("adaln", "layer_norm")
"""Operators around the mixers that are not worth a word."""

Described = Model | ModelSpec
"""A model, or of a published name the spec alone."""


def open_described(name: str, overrides: Mapping[str, Any]) -> Described:
    """The model in a file or folder, on no device; the spec alone for a published name. Raises `BadInput` on others, naming
    the nearest of those."""
    spec = None if Path(name).exists() else spec_of(name)
    if spec is None:
        try:
            require_model(name)
        except BadInput as error:
            raise BadInput(f"{error}{did_you_mean(name, names())}") from None
    return api.read(name, **overrides) if spec is None else find(spec).override(spec, overrides)


def spec_and_meta(model: Described) -> tuple[ModelSpec, dict[str, Any]]:
    """What a model is, and where it comes from, {} where nothing is known of that."""
    return (model.spec, model.meta.to_dict()) if isinstance(model, Model) else (model, {})


def describe(spec: ModelSpec, meta: Mapping[str, Any]) -> str:
    """The model in a few lines of text, without a line end."""
    (h, w, c), sizes = spec.image_shape, spec.sizes
    known = [f"{h}x{w}x{c}, patch {spec.option('patch')}, {spec.tokens} tokens"]
    token, features = spec.option("token", 0), spec.option("features", 0)
    known += [f"a class token of {token} numbers"] if token else [f"{sizes.text} of text"] * bool(sizes.text)
    known += [f"{features} channels of features"] * bool(features and not token)
    known += [f"{spec.classes} classes"] * bool(spec.classes)
    known += [f"{sizes.context} of text looked at"] * bool(sizes.context)
    known += [f"{spec.option('words')} words of {spec.option('vocabulary', '') or 'its own'}"] * bool(spec.option("words"))
    known += _predicted(spec.prediction)
    lines = [
        f"{'backbone':<12}{spec.backbone}, {spec.depth} blocks, width {spec.width}, {sizes.heads} heads",
        f"{'input':<12}{', '.join(known)}",
        *_blocks(spec),
        f"{'program':<12}{program_text(spec.program)}",
        f"{'parameters':<12}{count_params(spec):,} ({count_trainable(spec):,} trainable)",
        f"{'FLOPs':<12}{flops(spec):,} per image and forward pass",
    ]
    if spec.option("compat", "dit") != "dit":
        lines.insert(1, f"{'numerics':<12}those of {spec.option('compat')}")
    if spec.adapters:
        ranks = ", ".join(map(str, sorted({adapter.rank for adapter in spec.adapters})))
        lines.append(f"{'adapters':<12}{len(spec.adapters)}, rank {ranks}")
    for name in ("source", "sha256", "edits", "sites"):
        if value := meta.get(name):
            lines.append(f"{name:<12}{', '.join(value) if isinstance(value, list) else value}")
    return "\n".join(lines)


PREDICTED = {"velocity": "a velocity", "eps": "the noise", "score": "the score", "x0": "the data", "edm": "EDM's kind"}
"""Targets in words."""


def _predicted(prediction: Prediction) -> list[str]:
    """What output and time mean, where that is not DiT's."""
    if prediction.target == "edm":
        return ["EDM's network, t = ln(sigma) / 4"]
    if not prediction.is_flow:
        return ["learned variance"] * prediction.variance
    ends = ("data", "noise") if prediction.time == "noise" else ("noise", "data")
    path = "" if prediction.path == "linear" else f" on the path {prediction.path}"
    within = "" if prediction.inner is None else f", by a network of {PREDICTED[prediction.inner.target]}"
    answer = f"predicts {PREDICTED[prediction.target]}{path}{within}"
    return [f"{answer}, t from 0 ({ends[0]}) to {prediction.scale:g} ({ends[1]})"]


def parts_of(name: str) -> dict[str, Any]:
    """Sizes of what stands beside the transformer in a pipeline's folder, also at an address hf://, by its configs, which
    are all that is fetched; {} where `name` is no such folder.

    "text_encoder", "text_encoder_2" and so on with "prompting", how prompts are treated, and "vae", those that are there.
    """
    try:
        root, found = fetched(name, *text_encoder.PARTS, vae_files.PART, PART, weights=False), dict[str, Any]()
    except Absent:
        return {}
    if not (root / PIPELINE).is_file():
        return found
    if any((root / part / CONFIG).is_file() for part in text_encoder.PARTS):
        texts, prompting = text_encoder.pipeline_texts(root)
        found |= {**texts, "prompting": prompting}
    if (root / vae_files.PART / CONFIG).is_file():
        found["vae"] = vae_files.vae_spec(root / vae_files.PART)
    return found


def describe_parts(parts: Mapping[str, Any]) -> list[str]:
    """A line for each of the parts that `parts_of` found."""
    lines = []
    if (prompting := parts.get("prompting")) is not None:
        lower = ", in lower case" * prompting.lower
        sizes = " + ".join(parts[name].summary for name in text_encoder.PARTS if name in parts)
        lines.append(f"{'texts':<12}{sizes}; prompts of {prompting.length} tokens{lower}")
    if (vae := parts.get("vae")) is not None:
        numbers = f"{vae.latent_channels} channels, {vae.factor}x{vae.factor} pixels to each"
        scale, shift = vae.scaling_factor, vae.shift_factor
        said = "scale and shift of each channel"
        if not isinstance(scale, tuple) and not isinstance(shift, tuple):
            said = f"scaling factor {scale:g}" + (f", shift {shift:g}" if shift else "")
        lines.append(f"{'VAE':<12}{numbers}, {said}")
    return lines


def parameters(model: Described) -> str:
    """Every parameter in a table, blocks that are alike in one line, without a line end."""
    if not isinstance(model, Model):
        return parameter_table(param_shapes(model))
    return parameter_table(model.params, scions_of(model))


def scions_of(model: Model) -> list[str]:
    """Paths of the operators that were grafted in."""
    return [site.path(model.spec) for site in select(model.meta.sites, model.spec)] if model.meta.sites else []


def _blocks(spec: ModelSpec) -> list[str]:
    """A table with a line for all blocks that are alike, and one for all that is not in blocks."""
    rows = [(compact(run), block_cost(spec, run), _operators(block)) for block, run in members(spec.blocks).items()]
    params, operations = (sum(column) for column in zip(*(cost for _, cost, _ in rows), strict=True))
    rows.append(("the rest", (count_params(spec) - params, flops(spec) - operations), "everything outside the blocks"))
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{'blocks':<{width}}  {'parameters':>13}  {'FLOPs':>17}  operators"]
    return lines + [f"{name:<{width}}  {cost[0]:13,}  {cost[1]:17,}  {text}" for name, cost, text in rows]


def _operators(block: BlockSpec) -> str:
    """A block's mixers, then what is unusual around them."""
    tapped = block_kind(block.kind).tapped
    around = dict.fromkeys(str(op) for slot, op in block.ops if slot not in tapped and op.kind not in PLAIN)
    return ", ".join([" + ".join(str(block[slot]) for slot in tapped), *around])


def difference(before: Described, after: Described) -> str:
    """How two models differ, without a line end: sizes first, then the report on operators, leaves and cost."""
    old, new = (_sizes(spec_and_meta(model)[0]) for model in (before, after))
    lines = [f"{name:<20}{old.get(name)} -> {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)]
    return "\n".join([*lines, diff(before, after).text(trained=_only_trained(before, after))])


def _only_trained(before: Described, after: Described) -> bool:
    """Whether the second model is the first one after trainings, by its provenance."""
    if not isinstance(before, Model) or not isinstance(after, Model) or before.spec != after.spec:
        return False
    first, whole = before.meta.edits, after.meta.edits
    later = whole[len(first) :]
    return whole[: len(first)] == first and bool(later) and all(map(is_training, later))


def _sizes(spec: ModelSpec) -> dict[str, Any]:
    """What is compared of two models, by what it is called."""
    sizes = {"backbone": spec.backbone, "input": "x".join(map(str, spec.image_shape)), "width": spec.width}
    return {**sizes, "heads": spec.sizes.heads, "blocks": spec.depth, **dict(spec.frame), **vars(spec.prediction)}


def on_mesh(spec: ModelSpec, text: str) -> str:
    """What stage 2 keeps of the model on a mesh, in all and on each device, and large leaves that are not split, without a
    line end."""
    config = MeshConfig.parse(text)
    config.check_heads(spec.sizes.heads)
    state, mesh = state_shapes(spec), config.abstract()
    parts = {"parameters": state.trainable, "averages": state.ema, "optimiser": state.opt_state, "together": state}
    lines = [f"{name:<12}{str(sharding_report(tree, mesh)).splitlines()[0]}" for name, tree in parts.items()]
    return "\n".join([f"stage 2 on the mesh {config}", *lines, *str(sharding_report(state, mesh)).splitlines()[1:]])


def costs(spec: ModelSpec) -> str:
    """The paper's cost table for this model, without a line end."""
    rows = cost_table(spec)
    width = max(len(str(row.operator)) for row in rows)
    lines = [f"{'change in percent':<{width}}  blocks  operator  featurizers  parameters  model FLOPs"]
    for row in rows:
        featurizers = "-" if row.featurizer_flops is None else f"{row.featurizer_flops:+.2f}"
        numbers = f"{row.op_flops:+8.2f}  {featurizers:>11}  {row.params:+10.2f}  {row.model_flops:+11.2f}"
        lines.append(f"{row.operator!s:<{width}}  {row.percent:4} %  {numbers}")
    return "\n".join([*lines, *([MISPRINT] if spec == variant("DiT-XL/2") else [])])
