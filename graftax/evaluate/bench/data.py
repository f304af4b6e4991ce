"""The input pipeline by itself: how many images a second it hands to a training loop, and how many chips that feeds."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from graftax.checkpoint.files import scratch, sha256
from graftax.data.folder import open_folder
from graftax.data.latents import MANIFEST, LatentSet, Manifest, Shard, open_latents, write_shard
from graftax.data.pipeline import Pixels, Reader, read_threads, stream
from graftax.evaluate.bench.forward import published
from graftax.evaluate.bench.rows import Rows
from graftax.evaluate.bench.timing import interleaved, load
from graftax.models.cost import train_flops
from graftax.train.chips import find_chip

UTILISATION = 0.4
"""Share of its peak at which a chip is taken to train."""

PHOTO = 375, 500
"""Height and width of the pictures: a common size of ImageNet's."""


def bench_data(
    variant: str = "DiT-XL/2", chip: str = "v5e", batch: int = 256, batches: int = 4, records: int = 4096,
    pictures: int = 128, threads: int = 0, rounds: int = 5,
) -> Rows:  # fmt: skip
    """Batches of latents from ArrayRecord, and of JPEG files decoded and cropped, against what a chip needs to train.

    Both sets are random, made in a temporary folder, and soon in the system's cache: `records` latents of the sizes of
    `variant` at 256 pixels as float16 moments, with flips; `pictures` smooth JPEG pictures of 500x375. A round opens a
    stream and draws `batches` of `batch` from it, so what is read ahead at its end counts as time. `threads` 0: as in
    training. Columns: source, batch, threads, per_s (images, median round), needs_per_s (what one `chip` takes at 40 % of
    its peak, training `variant`), chips (how many of them per_s feeds), cpu_ms (processor time per image, all threads),
    spread, load.
    """
    spec = published(variant)
    needs = UTILISATION * find_chip(chip).flops / train_flops(spec)
    threads = threads or read_threads()
    with scratch() as folder:
        shape = spec.image_shape
        readers: dict[str, Reader] = {
            f"latents {'x'.join(map(str, shape))}, ArrayRecord": _latents(folder / "latents", records, shape),
            f"JPEG {PHOTO[1]}x{PHOTO[0]}, cropped to 256": _pictures(folder / "pictures", pictures),
        }
        draws = {name: functools.partial(_draw, reader, batch, batches, threads) for name, reader in readers.items()}
        before, times = load(), interleaved(draws, rounds)
        busy = {name: _processor_seconds(draw) for name, draw in draws.items()}
    count = batch * batches
    return [
        {
            "source": name, "batch": batch, "threads": threads, "per_s": count / timing.median, "needs_per_s": needs,
            "chips": count / timing.median / needs, "cpu_ms": 1e3 * busy[name] / count, "spread": timing.spread,
            "load": before,
        }
        for name, timing in times.items()
    ]  # fmt: skip


def _draw(reader: Reader, batch: int, batches: int, threads: int) -> None:
    data = stream(reader, batch, seed=0, threads=threads)
    for _ in range(batches):
        next(data)
    data.close()


def _processor_seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _latents(folder: Path, count: int, shape: tuple[int, int, int]) -> LatentSet:
    """A latent set of random moments."""
    folder.mkdir()
    h, w, c = shape
    plan = Manifest(
        source="random", subset=None, subset_seed=0, count=count, records="", class_names=("any",), size=8 * h,
        fit="adm centre crop", vae="none", vae_sha256="", latent_shape=shape, scale=0.18215, shift=0.0, dtype="float16",
        shard_size=1024,
    )  # fmt: skip
    rng, shards = np.random.default_rng(0), []
    for i, name in enumerate(plan.files):
        size = len(plan.span(i))
        write_shard(folder / name, rng.standard_normal((size, 2, h, w, 2 * c), np.float32).astype(np.float16))
        shards.append(Shard(name, (folder / name).stat().st_size, sha256(folder / name), (0,) * size))
    done = Manifest(**{**vars(plan), "shards": tuple(shards)})
    (folder / MANIFEST).write_text(done.to_json())
    return open_latents(folder).transformed("flip")


def _pictures(folder: Path, count: int) -> Pixels:
    """JPEG files of about 60 kB with detail at several scales, as photographs have."""
    (folder / "any").mkdir(parents=True)
    rng = np.random.default_rng(0)
    height, width = PHOTO
    for i in range(count):
        total = np.zeros((height, width, 3))
        for scale, weight in ((64, 60), (16, 25), (4, 12), (1, 5)):
            noise = rng.standard_normal((-(-height // scale), -(-width // scale), 3))
            total += weight * noise.repeat(scale, 0).repeat(scale, 1)[:height, :width]
        Image.fromarray(np.clip(total + 128, 0, 255).astype(np.uint8)).save(folder / "any" / f"{i}.jpg", quality=90)
    return Pixels(open_folder(folder), 256, "flip")
