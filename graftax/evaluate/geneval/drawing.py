"""Drawing GenEval's pictures: any function from prompts and keys to pictures, all prompts that are not there yet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from graftax import api
from graftax.checkpoint.files import filling, sha256_of_arrays
from graftax.data.pixels.decoding import Decode
from graftax.errors import BadInput
from graftax.evaluate import pictures
from graftax.evaluate.drawing import require_finite
from graftax.evaluate.geneval.folder import (
    EACH,
    METADATA,
    SAMPLES,
    Drawn,
    begin,
    check_drawn,
    is_whole,
    picture,
    place,
    prompts_name,
)
from graftax.evaluate.geneval.prompts import Prompt
from graftax.evaluate.protocol import Protocol
from graftax.models import Model
from graftax.progress import Progress

# Where a model meets GenEval: `bound` makes a `Draw` of a model, a text encoder and a decoder; `draw_folder` takes any.

Draw = Callable[[Sequence[str], jax.Array], np.ndarray]
"""From prompts, b of them, and keys (b,) of their noise to pictures (b, h, w, 3) uint8."""

Encode = Callable[[Sequence[str]], Mapping[str, Any]]
"""From prompts, b of them, to a model's conditions (b, ...), as a text encoder gives them."""


def bound(model: Model, encode: Encode, decode: Decode, protocol: Protocol, null: Mapping[str, Any] | None = None) -> Draw:
    """A model with its text encoder and its decoder as one function that draws, as `protocol` says.

    `decode` turns the model's arrays (b, h, w, c) into pixels in [-1, 1]; `null`: conditions (1, ...) of the empty prompt,
    for guidance, None for the backbone's own. Raises `NonFinite` where a picture is not finite.
    """

    def draw(prompts: Sequence[str], keys: jax.Array) -> np.ndarray:
        drawn = api.sample(
            model, cond=encode(prompts), null_cond=null, sampling=protocol.sampling, rng=keys, dtype=protocol.dtype
        )
        return protocol.to_uint8(decode(require_finite(np.asarray(drawn), f"pictures of {prompts[0]!r} and others")))

    return draw


def drawn_by(name: str, model: Model, protocol: Protocol, prompts: Sequence[Prompt], file: str, each: int = EACH) -> Drawn:
    """What a folder of these prompts is noted to be drawn by; `file` is what they are called."""
    protocol = dataclasses.replace(protocol, count=len(prompts) * each, reference=prompts_name(prompts, file))
    return Drawn(name, sha256_of_arrays(model.params), model.spec, protocol, each)


def draw_folder(
    prompts: Sequence[Prompt], draw: Draw, folder: Path, drawn: Drawn, *, batch_size: int = 16, show: bool = True
) -> None:
    """Draw the pictures of all prompts that `folder` does not have yet; a prompt's appear all at once.

    Picture i of the whole, which is picture i % each of prompt i // each, has noise that depends on the protocol's seed and
    on i alone. `draw` is always given `batch_size` prompts. Hosts take prompts in turn, in a folder that all see. Raises
    `BadInput` where the folder holds other pictures or `draw` returns something else than (batch_size, h, w, 3) uint8.
    """
    if batch_size < 1:
        raise BadInput(f"batch_size: got {batch_size}, expected 1 or more")
    check_drawn(folder, drawn)
    if jax.process_index() == 0:
        begin(folder, drawn)
    multihost_utils.sync_global_devices("graftax: folder of GenEval")
    check_drawn(folder, drawn)
    missing = [number for number, prompt in enumerate(prompts) if not is_whole(folder, number, prompt, drawn.each)]
    multihost_utils.sync_global_devices("graftax: prompts shared out")  # before anybody adds to them
    mine = missing[jax.process_index() :: jax.process_count()]
    done, together = len(prompts) - len(missing), max(1, batch_size // drawn.each)
    with Progress(len(mine) + done, "GenEval", unit="prompt", initial=done, show=show) as progress:
        for i in range(0, len(mine), together):
            group = mine[i : i + together]
            images = _draw(draw, prompts, group, drawn, batch_size)
            for number, own in zip(group, np.split(images, len(group)), strict=True):
                _write(place(folder, number), prompts[number], own)
                progress.advance()
    multihost_utils.sync_global_devices("graftax: GenEval drawn")


def _draw(draw: Draw, prompts: Sequence[Prompt], group: Sequence[int], drawn: Drawn, size: int) -> np.ndarray:
    """Pictures (len(group) * each, h, w, 3) of some prompts, in calls of `size`."""
    texts = [prompts[number].text for number in group for _ in range(drawn.each)]
    keys = jnp.concatenate([drawn.protocol.keys(n * drawn.each, (n + 1) * drawn.each) for n in group])
    parts = []
    for i in range(0, len(texts), size):
        chosen = np.arange(i, i + size) % len(texts)  # whole batches: one compilation
        images = draw([texts[j] for j in chosen], keys[chosen])
        if images.dtype != np.uint8 or images.ndim != 4 or (len(images), images.shape[-1]) != (size, 3):
            raise BadInput(f"draw: {images.dtype}{images.shape}, expected uint8 ({size}, h, w, 3)")
        parts.append(images)
    return np.concatenate(parts)[: len(texts)]


def _write(folder: Path, prompt: Prompt, images: np.ndarray) -> None:
    """A prompt's folder, whole or not at all."""
    with filling(folder) as fresh:
        (fresh / METADATA).write_text(f"{prompt.line}\n", encoding="utf-8")
        (fresh / SAMPLES).mkdir()
        for i, image in enumerate(images):
            pictures.save_png(picture(fresh, i), image)
