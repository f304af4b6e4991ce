"""`graftax encode`: plan, encode the shards that are missing, seal the set.

Shard i belongs to process i modulo the number of processes. A shard, then the JSON file that describes it, are written
whole or not at all, so a kill costs one shard at most. Batches never cross shards and have one shape: machines alike write
the same bytes, whichever of them and whenever; other machines, or another number of devices, differ in last digits.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from graftax.checkpoint.files import made, remove_strays, replacing, sha256
from graftax.data.latents import MANIFEST, Manifest, Shard, is_latent_set, read_manifest, shard_from_tree, write_shard
from graftax.data.opening import open_records, part
from graftax.data.pipeline import Pixels, Reader, in_order, read_threads
from graftax.errors import BadInput
from graftax.nets import autoencoder, small
from graftax.nets.vae import encode_moments
from graftax.nets.vae_files import find_vae, read_vae
from graftax.progress import Progress, say

DETERMINISTIC = -30.0
"""Log-variance of latents that are not drawn: a standard deviation of 3e-7."""

_NAMES = ("source", "vae", "shards")
"""Fields in which a set may differ from the command that continues it: contents count, not what they are called."""


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
    scale: float
    shift: float
    params: Any
    moments: Callable[[Any, jax.Array], jax.Array]


def encode(
    source: str, out: str | Path, vae: str, size: int = 256, *, subset: str | None = None, subset_seed: int = 0,
    dtype: str = "float16", batch_size: int = 64, shard_size: int = 4096, data_dir: str | None = None,
    afresh: bool = False,
) -> None:  # fmt: skip
    """Write, continue or repair the latent set in the folder `out`; arguments are those of the command, `afresh` removes
    a set that is there already.

    It may be stopped or killed at any time. Raises `BadInput` before any device work where source and VAE do not fit
    together or `out` holds something else, and on an image that cannot be read.
    """
    leads, share = jax.process_index() == 0, (jax.process_index(), jax.process_count())
    if shard_size < 1 or batch_size < 1 or batch_size % jax.local_device_count():
        least = jax.local_device_count()
        raise BadInput(f"batch-size {batch_size}, shard-size {shard_size}: expected a multiple of {least}, and 1 or more")
    records, line = part(open_records(source, data_dir), subset, subset_seed)
    encoder = open_encoder(vae, size)
    if records.channels != encoder.channels:
        raise BadInput(f"source {source!r}: images of {records.channels} channels, expected {encoder.channels} for {vae!r}")
    plan = Manifest(
        source=source, records=records.digest, subset=subset, subset_seed=subset_seed, count=len(records),
        class_names=records.class_names, size=size, fit=records.fit, vae=vae, vae_sha256=encoder.sha256,
        latent_shape=encoder.latent_shape, scale=encoder.scale, shift=encoder.shift, dtype=dtype, shard_size=shard_size,
    )  # fmt: skip
    if leads:
        say(line)
    if afresh:
        remove_set(Path(out), leads)
    folder = begin(Path(out), plan)
    write_missing(folder, plan, Pixels(records, size), encoder, batch_size, *share)
    if share[1] > 1:
        multihost_utils.sync_global_devices("graftax: all shards encoded")
    if leads:
        print(seal(folder, plan))


def open_encoder(name: str, size: int) -> Encoder:
    """The VAE in a diffusers folder, or the demo's autoencoder ("demo", or the path of one) with a posterior of no width.

    Raises `BadInput` where there is none, or it does not take images of `size`.
    """
    if name != "demo" and find_vae(name):
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

    file = small.demo_path("autoencoder.safetensors") if name == "demo" else Path(name)
    file = file / "autoencoder.safetensors" if file.is_dir() else file
    return Encoder(sha256(file), ours.image_channels, ours.latent_shape, 1.0, 0.0, params, certain)


def remove_set(folder: Path, leads: bool = True) -> None:
    """Remove the latent set in a folder, if one is there, and nothing else. All processes call it, one `leads`."""
    if leads and is_latent_set(folder):
        for path in folder.iterdir():
            if not _is_foreign(path.name):
                path.unlink()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("graftax: old set removed")


def begin(folder: Path, plan: Manifest) -> Path:
    """`folder`, holding this plan or a set made by it. Raises `BadInput` where it holds something else."""
    if is_latent_set(folder):
        found = read_manifest(folder)
        for field in dataclasses.fields(plan):
            ours, theirs = getattr(plan, field.name), getattr(found, field.name)
            if field.name not in _NAMES and ours != theirs:
                there, here = (str(value)[:80] for value in (theirs, ours))
                raise BadInput(f"{folder}: a latent set of {field.name} {there}, expected {here}, or another folder")
        return folder
    # Other processes may be at this very point, so what they write here does not count.
    if folder.is_file() or (folder.is_dir() and any(_is_foreign(path.name) for path in folder.iterdir())):
        raise BadInput(f"{folder}: holds something else, expected a new folder, an empty one or a latent set")
    with made(folder), replacing(folder / MANIFEST) as temporary:
        temporary.write_text(plan.to_json())
    return folder


def write_missing(
    folder: Path, plan: Manifest, reader: Reader, encoder: Encoder, batch_size: int, process_index: int, process_count: int
) -> None:
    """Write this process's shards that are not there, or not as they were described."""
    own = range(process_index, len(plan.files), process_count)
    missing = [i for i in own if not is_sound(folder, described(folder, plan, i))]
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

            write_described(folder, plan.files[i], records(), labels)


def write_described(folder: Path, name: str, records: Iterator[np.ndarray], labels: Sequence[int]) -> None:
    """Write one shard, then the file that describes it. `labels` are complete once `records` is at its end."""
    remove_strays(folder / name)
    with replacing(folder / name) as temporary:
        write_shard(temporary, records)
        shard = Shard(name, temporary.stat().st_size, sha256(temporary), tuple(labels))
    with replacing(_description(folder, name)) as temporary:
        temporary.write_text(json.dumps(dataclasses.asdict(shard)))


def described(folder: Path, plan: Manifest, i: int) -> Shard | None:
    """What is known of shard `i`: by its own description, else by the finished manifest."""
    try:
        return shard_from_tree(json.loads(_description(folder, plan.files[i]).read_text()))
    except FileNotFoundError:
        shards = read_manifest(folder).shards
        return shards[i] if shards else None
    except (ValueError, TypeError, KeyError):
        return None


def is_sound(folder: Path, shard: Shard | None) -> bool:
    """Whether a shard is there and as it was described."""
    return shard is not None and (folder / shard.file).is_file() and sha256(folder / shard.file) == shard.sha256


def seal(folder: Path, plan: Manifest) -> str:
    """Write the final manifest, now that all shards are there; returns a line that says what the set holds.

    Raises `BadInput` naming a shard that is not there.
    """
    shards = [described(folder, plan, i) for i in range(len(plan.files))]
    if None in shards:
        name = plan.files[shards.index(None)]
        raise BadInput(f"{folder / name}: missing, expected all processes to write into one folder")
    done = dataclasses.replace(plan, shards=tuple(shard for shard in shards if shard))
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(done.to_json())
    for name in plan.files:
        _description(folder, name).unlink(missing_ok=True)
    size = sum(shard.bytes for shard in done.shards or ())
    return f"{folder}: {done.count:,} latents {done.latent_shape} in {len(done.files)} shards of {size / 1e6:,.1f} MB in all"


def _is_foreign(name: str) -> bool:
    return not name.startswith((".", "latents-", MANIFEST))


def _description(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _compiled(encoder: Encoder, dtype: np.dtype, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """From images (b, s, s, channels), b at most `batch_size`, to moments (b, 2, h, w, 2c) of them and their mirrors."""
    mesh = Mesh(np.array(jax.local_devices()), ("batch",))
    params = jax.device_put(encoder.params, NamedSharding(mesh, PartitionSpec()))

    @jax.jit
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
