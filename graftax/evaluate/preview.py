"""Samples that a training run draws at every evaluation, for its TensorBoard, W&B run or workdir/images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from graftax.data.pixels.decoding import decoder_for
from graftax.data.pixels.images import Images
from graftax.errors import BadInput
from graftax.evaluate.drawing import SampleConfig, balanced_labels, draw_with
from graftax.evaluate.pictures import grid, to_uint8
from graftax.models import Model
from graftax.models.backbone import find
from graftax.spec import ModelSpec

STEPS, COLUMNS = 25, 10


def preview(count: int, spec: ModelSpec, data: Images) -> Callable[[Model], Mapping[str, Any]] | None:
    """A function of a model: a grid "samples" (h, w, c) uint8 of `count` of its images; None where `count` is 0.

    Classes come in turn, captions from the data, the noise is always the same: 25 steps, for a DiT of DDIM with guidance
    1.5, otherwise as the model's family draws. Raises `BadInput` where there is no decoder for the model's latents, and in
    a run of several processes, none of which has the whole model.
    """
    if not count:
        return None
    if jax.process_count() > 1:
        raise BadInput(f"preview: got {count} in a run of {jax.process_count()} processes, expected 0 there")
    latents = "auto" if data.config.latents == "given" else data.config.latents
    decode = decoder_for(spec, latents)
    if decode is None:
        raise BadInput(f"preview: no decoder for latents of {'x'.join(map(str, spec.image_shape))}")
    cond, null = _conditions(count, spec, data)
    settings = SampleConfig.of(spec, steps=STEPS, batch_size=count, cfg_channels=None)

    def watch(model: Model) -> Mapping[str, Any]:
        drawn = draw_with(model, cond, settings, null=null, show=False)
        return {"samples": grid(to_uint8(decode(drawn)), min(count, COLUMNS))}

    return watch


def _conditions(count: int, spec: ModelSpec, data: Images) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    """Conditions (count, ...), and what guidance leads away from: of embedded texts the empty one; None: the model's own."""
    if spec.classes:
        return {"y": balanced_labels(count, spec.classes)}, None
    stream = data.batches(count, seed=0)
    cond = find(spec).condition(next(stream))
    stream.close()
    if data.store is None or not data.store.manifest.tail:
        return cond, None
    return cond, {**cond, **data.store.read(np.full(count, data.store.empty))}
