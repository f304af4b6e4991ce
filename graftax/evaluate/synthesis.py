"""`graftax synthesize`: a model draws a training set: latents of its own for prompts, as a latent set.

The grafting paper trains PixArt-Sigma's grafts on 12,000 such pairs (arXiv 2506.05340, Section 6). Image i is of prompt
i // per_prompt, and its noise depends on the seed and on i alone. Batches never cross shards and have one shape: machines
alike write the same bytes, whichever of them and whenever. See `graftax.data.shards` for what a kill may cost.

    OUT/manifest.json                             the protocol, checksums
    OUT/latents-00000-of-00003.array_record       the latents
    OUT/preview/0000000.png                       the first images, decoded
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from graftax.checkpoint.files import made, sha256, sha256_of_arrays
from graftax.data import shards
from graftax.data.latents import DTYPES, DrawnManifest, LatentSet, TextLink, open_latents
from graftax.data.pixels import decoding
from graftax.data.text.captions import read_labels
from graftax.data.text.store import TextStore, check_text, open_store
from graftax.errors import BadInput, NonFinite
from graftax.evaluate.drawing import SampleConfig, guidance_of, whole_conditions
from graftax.evaluate.pictures import save_png, to_uint8
from graftax.evaluate.spread import Spread, spread
from graftax.models import Model
from graftax.models.backbone import find
from graftax.progress import Progress, say
from graftax.spec import ModelSpec

PREVIEW = "preview"
EMPTY, OWN = "empty", "model"
NULLS = (EMPTY, OWN)
"""What guidance leads away from: the encoded empty caption, or what the model was trained with in place of captions."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """What images are drawn of: classes, or the captions of a text store; the empty one, which it has too, is left out.

    Attributes:
        source: as given.
        sha256: of the file of labels, or the store's `digest`.
        labels: (n,) int32, or None.
        store: or None.
    """

    source: str
    sha256: str
    labels: np.ndarray | None
    store: TextStore | None

    def __len__(self) -> int:
        if self.labels is not None:
            return len(self.labels)
        return self.store.empty if self.store is not None else 0

    def conditions(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """The model's conditions (b, ...) of prompts `numbers` (b,)."""
        if self.labels is not None:
            return {"y": self.labels[numbers]}
        assert self.store is not None
        return self.store.read(numbers)

    def facts(self, numbers: np.ndarray) -> dict[str, list[Any]]:
        """What a shard's description says of images of prompts `numbers` (b,)."""
        if self.labels is not None:
            return {"labels": self.labels[numbers].tolist()}
        return {"captions": [(int(number),) for number in numbers]}


def open_prompts(source: str, spec: ModelSpec) -> Prompts:
    """The prompts for models of `spec`: a file with a class a line, or for models of texts a text store.

    Raises `BadInput` on others, and where texts are not what the model takes. No device is used.
    """
    if spec.classes:
        if Path(source).is_dir():
            raise BadInput(f"prompts {source}: a folder, expected a file with a class a line for a model of classes")
        labels = read_labels(source, spec.classes)
        return Prompts(source, sha256(Path(source)), labels, None)
    store = open_store(source)
    check_text(store, spec)
    if not store.empty:
        raise BadInput(f"prompts {source}: none but the empty one")
    return Prompts(source, store.digest, None, store)


def synthesize(
    name: str, model: Model, prompts: Prompts, out: str | Path, config: SampleConfig, *, per_prompt: int = 1,
    null: str | None = None, guidance: float | None = None, compute_dtype: str = "float32", dtype: str = "float16",
    shard_size: int = 512, preview: int = 16, decode: decoding.Decode | None = None, afresh: bool = False,
) -> None:  # fmt: skip
    """Write, continue or repair the drawn latent set in the folder `out`; arguments are those of the command.

    `config.batch_size` images a compiled call are spread over this host's devices; hosts take shards in turn. `null`: what
    guidance leads texts away from (`NULLS`; None: "empty" for embeddings, "model" for token ids); `guidance` as in
    `drawing.guidance_of`. The first `preview` images are decoded by `decode`, as of `decoding.decoder_for`; None: there is
    no way. It may be stopped or killed at any time. Raises `BadInput` where arguments do not fit together or `out` holds
    something else, `NonFinite` where an image is not finite.
    """
    share = jax.process_index(), jax.process_count()
    for what, number, least in (("per_prompt", per_prompt, 1), ("shard_size", shard_size, 1), ("preview", preview, 0)):
        if number < least:
            raise BadInput(f"{what}: got {number}, expected {least} or more")
    if null is None:
        null = EMPTY if prompts.store is not None and prompts.store.manifest.tail else OWN
    for what, choice, known in (("null", null, NULLS), ("dtype", dtype, DTYPES)):
        if choice not in known:
            raise BadInput(f"{what}: got {choice!r}, expected one of {known}")
    plan = _plan(name, model, prompts, Path(out), config, per_prompt, null, guidance, compute_dtype, dtype, shard_size)
    _check_conditions(model, prompts, plan)
    hands = spread(model, config.sampling, config.seed, config.batch_size, compute_dtype)
    leads = share[0] == 0
    if afresh:
        shards.remove_set(Path(out), DrawnManifest, leads)
    folder = shards.begin(Path(out), plan)
    if leads:
        say(f"{prompts.source}: {len(prompts):,} prompts, {plan.count:,} images; {config}")
    write_missing(folder, plan, prompts, hands, *share)
    shards.together("all images drawn")
    if leads:
        print(shards.seal(folder, plan))
        if decode is not None:
            write_previews(folder, open_latents(folder), decode, preview)
        elif preview:
            say(f"{folder}: no preview, these latents have no decoder here")


def _plan(
    name: str, model: Model, prompts: Prompts, out: Path, config: SampleConfig, per_prompt: int, null: str,
    guidance: float | None, compute_dtype: str, dtype: str, shard_size: int,
) -> DrawnManifest:  # fmt: skip
    spec = model.spec
    protocol = {**dataclasses.asdict(config.sampling), "seed": config.seed, "dtype": compute_dtype}
    protocol |= {} if prompts.store is None else {"null": null}
    protocol |= {} if (given := guidance_of(spec, guidance)) is None else {"guidance": given}
    names = decoding.class_names(spec, "auto", range(spec.classes))
    return DrawnManifest(
        model=name, model_sha256=sha256_of_arrays(model.params), prompts=prompts.source, prompts_sha256=prompts.sha256,
        per_prompt=per_prompt, protocol=shards.frozen(json.loads(json.dumps(protocol))), batch_size=config.batch_size,
        count=per_prompt * len(prompts), class_names=tuple(names), latent_shape=spec.image_shape, dtype=dtype,
        shard_size=shard_size, text=None if prompts.store is None else TextLink.to(prompts.store, out),
    )  # fmt: skip


def write_missing(
    folder: Path, plan: DrawnManifest, prompts: Prompts, hands: Spread, process_index: int, process_count: int
) -> None:
    """Write this process's shards that are not there, or not as they were described."""
    own, missing = shards.missing_shards(folder, plan, process_index, process_count)
    total, left = (sum(len(plan.span(i)) for i in some) for some in (own, missing))
    with Progress(total, "synthesize", unit="image", initial=total - left) as progress:
        for i in missing:

            def records(span: range = plan.span(i)) -> Iterator[np.ndarray]:
                for first in span[:: hands.part]:
                    numbers = np.arange(first, min(first + hands.part, span.stop)) // plan.per_prompt
                    yield from _draw(hands, prompts, plan, first, numbers)
                    progress.advance(len(numbers))

            facts = prompts.facts(np.asarray(plan.span(i)) // plan.per_prompt)
            shards.write_described(folder, plan.files[i], records(), facts)


def _draw(hands: Spread, prompts: Prompts, plan: DrawnManifest, first: int, numbers: np.ndarray) -> np.ndarray:
    """Images `first`, .. (n, h, w, c) of prompts `numbers` (n,), in the type that they are stored in."""
    drawn = hands.draw(first, *_conditions(hands.model.spec, prompts, plan, numbers))[: len(numbers)]
    with np.errstate(over="ignore"):
        stored = drawn.astype(plan.dtype)
    if not np.isfinite(stored).all():
        most = f"|value| up to {np.abs(drawn).max():.3g}, beyond {plan.dtype}"
        raise NonFinite(f"images {first} to {first + len(drawn) - 1}: {most}")
    return stored


def _conditions(
    spec: ModelSpec, prompts: Prompts, plan: DrawnManifest, numbers: np.ndarray
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """All conditions (n, ...) of prompts `numbers` (n,), and their unconditional twin, None for the model's own."""
    cond = whole_conditions(spec, prompts.conditions(numbers), guidance=plan.protocol.get("guidance"))
    if prompts.store is None or plan.protocol["null"] == OWN or plan.protocol["cfg_scale"] == 1:
        return cond, None
    return cond, {**cond, **prompts.conditions(np.full_like(numbers, prompts.store.empty))}


def _check_conditions(model: Model, prompts: Prompts, plan: DrawnManifest) -> None:
    """Raise `BadInput` where the model does not take the first prompt's conditions, or has no null caption of its own."""
    backbone, spec = find(model.spec), model.spec
    cond, null = _conditions(spec, prompts, plan, np.zeros(1, np.int64))
    given = {name: jnp.asarray(value) for name, value in cond.items()}
    backbone.check_inputs(spec, jnp.zeros((1, *spec.image_shape)), jnp.zeros(1), given)
    if null is None and plan.protocol["cfg_scale"] != 1:
        backbone.null(spec, model.params, given)


def write_previews(folder: Path, found: LatentSet, decode: decoding.Decode, count: int) -> None:
    """The first `count` images as FOLDER/preview/0000000.png and so on, those that are not there yet."""
    files = [folder / PREVIEW / f"{i:07d}.png" for i in range(min(count, len(found)))]
    if all(file.exists() for file in files):
        return
    index = np.arange(len(files))
    pixels = to_uint8(decode(found.read(index, np.zeros_like(index), 0)["image"]))
    with made(folder / PREVIEW):
        for file, image in zip(files, pixels, strict=True):
            save_png(file, image)
