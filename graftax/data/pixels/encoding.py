"""`graftax encode`: plan, encode the shards that are missing, seal the set.

Batches never cross shards and have one shape: machines alike write the same bytes, whichever of them and whenever; other
machines, or another number of devices, differ in last digits. See `graftax.data.shards` for what a kill may cost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from graftax.checkpoint.files import sha256
from graftax.checkpoint.hub import fetched
from graftax.checkpoint.shipped import is_shipped, shipped_path
from graftax.data import shards
from graftax.data.latents import Manifest, TextLink
from graftax.data.opening import open_records, part
from graftax.data.pipeline import Pixels, Reader, in_order, read_threads
from graftax.data.text.captions import open_captioned
from graftax.data.text.store import open_store
from graftax.errors import BadInput
from graftax.nets import autoencoder, small
from graftax.nets.convolving import compile_options
from graftax.nets.vae import PerChannel, encode_moments
from graftax.nets.vae_files import find_vae, read_vae
from graftax.progress import Progress, say

DETERMINISTIC = -30.0
"""Log-variance of latents that are not drawn: a standard deviation of 3e-7."""


@dataclass(frozen=True)
class Encoder:
    """What encodes images.

    Attributes:
        sha256: of the weights.
        channels: of the images.
        latent_shape: (h, w, c).
        scale: as in `Manifest`.
        shift: likewise.
        params: weights.
        moments: (params, images (b, size, size, channels) in [-1, 1]) -> (b, h, w, 2c).
    """

    sha256: str
    channels: int
    latent_shape: tuple[int, int, int]
    scale: PerChannel
    shift: PerChannel
    params: Any
    moments: Callable[[Any, jax.Array], jax.Array]


def encode(
    source: str, out: str | Path, vae: str, size: int = 256, *, subset: str | None = None, subset_seed: int = 0,
    dtype: str = "float16", batch_size: int = 64, shard_size: int = 4096, data_dir: str | None = None,
    captions: str | None = None, afresh: bool = False,
) -> None:  # fmt: skip
    """Write, continue or repair the latent set in the folder `out`; arguments are those of the command, `afresh` removes
    a set that is there already. With `captions`, a text store, the source is pictures with captions that all are in it.

    It may be stopped or killed at any time. Raises `BadInput` before any device work where source and VAE do not fit
    together or `out` holds something else, and on an image that cannot be read.
    """
    leads, share = jax.process_index() == 0, (jax.process_index(), jax.process_count())
    if shard_size < 1 or batch_size < 1 or batch_size % jax.local_device_count():
        least = jax.local_device_count()
        raise BadInput(f"batch-size {batch_size}, shard-size {shard_size}: expected a multiple of {least}, and 1 or more")
    store = None if captions is None else open_store(captions)
    records, line = part(open_records(source, data_dir) if store is None else open_captioned(source), subset, subset_seed)
    numbers = None if store is None else store.numbers(records.captions, source)
    encoder = open_encoder(vae, size)
    if records.channels != encoder.channels:
        raise BadInput(f"source {source!r}: images of {records.channels} channels, expected {encoder.channels} for {vae!r}")
    plan = Manifest(
        source=source, records=records.digest, subset=subset, subset_seed=subset_seed, count=len(records),
        class_names=records.class_names, size=size, fit=records.fit, vae=vae, vae_sha256=encoder.sha256,
        latent_shape=encoder.latent_shape, scale=encoder.scale, shift=encoder.shift, dtype=dtype, shard_size=shard_size,
        text=None if store is None else TextLink.to(store, Path(out)),
    )  # fmt: skip
    if leads:
        say(line)
    if afresh:
        shards.remove_set(Path(out), Manifest, leads)
    folder = shards.begin(Path(out), plan)
    write_missing(folder, plan, Pixels(records, size), encoder, batch_size, *share, captions=numbers)
    shards.together("all shards encoded")
    if leads:
        print(shards.seal(folder, plan))


def open_encoder(name: str, size: int) -> Encoder:
    """The VAE in a diffusers folder, or a small autoencoder ("demo", "scenes", or the path of one) with a posterior of no
    width.

    Raises `BadInput` where there is none, or it does not take images of `size`.
    """
    if not is_shipped(name, "autoencoder") and find_vae(name):
        spec, params, weights = read_vae(name)
        if size % spec.factor or size < 1:
            raise BadInput(f"size {size}: expected a positive multiple of {spec.factor} for the VAE {name!r}")
        side, c = size // spec.factor, spec.latent_channels
        moments = functools.partial(encode_moments, spec)
        scale, shift = spec.scaling_factor, spec.shift_factor
        return Encoder(weights.sha256, spec.in_channels, (side, side, c), scale, shift, params, moments)
    ours, params = small.load_autoencoder(name)
    if size != ours.image_size:
        raise BadInput(f"size {size}: the autoencoder {name!r} takes {ours.image_size}")

    def certain(params: Any, images: jax.Array) -> jax.Array:
        mean = autoencoder.encode(ours, params, images)
        return jnp.concatenate([mean, jnp.full_like(mean, DETERMINISTIC)], axis=-1)

    file = shipped_path(name, "autoencoder") if is_shipped(name, "autoencoder") else fetched(name)
    file = file / "autoencoder.safetensors" if file.is_dir() else file
    return Encoder(sha256(file), ours.image_channels, ours.latent_shape, 1.0, 0.0, params, certain)


def write_missing(
    folder: Path, plan: Manifest, reader: Reader, encoder: Encoder, batch_size: int, process_index: int, process_count: int,
    captions: Sequence[tuple[int, ...]] | None = None,
) -> None:  # fmt: skip
    """Write this process's shards that are not there, or not as described. `captions`: each record's, by number."""
    own, missing = shards.missing_shards(folder, plan, process_index, process_count)
    spans = [(lo, min(lo + batch_size, plan.span(i).stop)) for i in missing for lo in plan.span(i)[::batch_size]]
    total, left = sum(len(plan.span(i)) for i in own), sum(stop - start for start, stop in spans)
    images = in_order(reader, spans, read_threads())
    run = _compiled(encoder, np.dtype(plan.dtype), batch_size)
    with Progress(total, "encode", unit="image", initial=total - left) as progress:
        for i in missing:
            labels: list[int] = []

            def records(count: int = len(plan.span(i)), labels: list[int] = labels) -> Iterator[np.ndarray]:
                while len(labels) < count:
                    batch = next(images)
                    yield from run(batch["image"])
                    labels.extend(batch["label"].tolist())
                    progress.advance(len(batch["label"]))

            span = plan.span(i)
            facts = {"labels": labels} if captions is None else {"captions": captions[span.start : span.stop]}
            shards.write_described(folder, plan.files[i], records(), facts)


def _compiled(encoder: Encoder, dtype: np.dtype, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """From images (b, s, s, channels), b at most `batch_size`, to moments (b, 2, h, w, 2c) of them and their mirrors."""
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    params = jax.device_put(encoder.params, NamedSharding(mesh, PartitionSpec()))

    @functools.partial(jax.jit, compiler_options=compile_options())
    def both(params: Any, images: jax.Array) -> jax.Array:
        sides = images, images[:, :, ::-1]
        return jnp.stack([encoder.moments(params, side) for side in sides], axis=1)  # (b, 2, h, w, 2c)

    def run(images: np.ndarray) -> np.ndarray:
        padded = np.zeros((batch_size, *images.shape[1:]), images.dtype)
        padded[: len(images)] = images
        placed = jax.device_put(padded, NamedSharding(mesh, PartitionSpec("batch")))
        found = np.asarray(both(params, placed))[: len(images)]
        with np.errstate(over="ignore"):
            stored = found.astype(dtype)
        if not np.isfinite(stored).all():
            raise BadInput(f"moments: |value| up to {np.abs(found).max():.3g}, expected finite numbers within {dtype}")
        return stored

    return run
