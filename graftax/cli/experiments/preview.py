"""Samples that a training run draws at every evaluation, for its TensorBoard, W&B run or workdir/images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from graftax.cli.pixels.decoding import decoder_for
from graftax.cli.pixels.drawing import balanced_labels, draw
from graftax.cli.pixels.images import Images
from graftax.cli.schema import SampleConfig
from graftax.errors import BadInput
from graftax.evaluate.pictures import grid, to_uint8
from graftax.models import Meta, Model
from graftax.models.collect import spread
from graftax.spec import ModelSpec

STEPS, COLUMNS = 25, 10
Params = dict[str, Any]
Evaluate = Callable[[Params], Mapping[str, Any]]


def with_preview(evaluate: Evaluate | None, count: int, spec: ModelSpec, data: Images) -> Evaluate | None:
    """`evaluate`, with a grid "samples" (h, w, c) uint8 of `count` images beside its numbers; itself where `count` is 0.

    Classes come in turn, the noise is always the same: DDIM, 25 steps, guidance 1.5. Raises `BadInput` where there is no
    decoder for the model's latents, and in a run of several processes, none of which has the whole model.
    """
    if not count:
        return evaluate
    if jax.process_count() > 1:
        raise BadInput(f"preview: got {count} in a run of {jax.process_count()} processes, expected 0 there")
    latents = "auto" if data.config.latents == "given" else data.config.latents
    decode = decoder_for(spec, latents)
    if decode is None:
        raise BadInput(f"preview: no decoder for latents of {spec.input_size}x{spec.input_size}x{spec.in_channels}")
    labels = balanced_labels(count, spec.num_classes)
    settings = SampleConfig(steps=STEPS, batch_size=count, cfg_channels=None)

    def both(params: Params) -> dict[str, Any]:
        drawn = draw(Model(spec, spread(spec, params), Meta()), labels, settings, show=False)
        return {**(evaluate(params) if evaluate else {}), "samples": grid(to_uint8(decode(drawn)), min(count, COLUMNS))}

    return both
