"""A latent set made by hand: random moments, labels 0, 1, 2, 0, .."""

import numpy as np

from graftax.checkpoint.files import sha256
from graftax.data.latents import MANIFEST, Manifest, Shard, write_shard

CLASSES = ("ant", "bee", "cat")


def moments(count, shape=(2, 3), channels=2):
    """Records (n, 2, h, w, 2c) float16 of means and log-variances."""
    rng = np.random.default_rng(1)
    mean = rng.standard_normal((count, 2, *shape, channels))
    log_variance = rng.uniform(-4, 1, mean.shape)
    return np.concatenate([mean, log_variance], axis=-1).astype(np.float16)


def write_latents(folder, count=25, shard_size=10, **fields):
    """Write a latent set as `graftax encode` would, with labels 0, 1, 2, 0, ..; returns its manifest."""
    folder.mkdir()
    plan = Manifest(
        **{
            "source": "toy", "records": "ab" * 32, "subset": None, "subset_seed": 0, "count": count, "class_names": CLASSES,
            "size": 16, "fit": "centred on black", "vae": "demo", "vae_sha256": "cd" * 32, "latent_shape": (2, 3, 2),
            "scale": 0.5, "shift": 0.25, "dtype": "float16", "shard_size": shard_size, **fields,
        }
    )  # fmt: skip
    records, shards = moments(count), []
    for i, name in enumerate(plan.files):
        write_shard(folder / name, records[plan.span(i)])
        labels = tuple(j % 3 for j in plan.span(i))
        shards.append(Shard(name, (folder / name).stat().st_size, sha256(folder / name), labels))
    manifest = Manifest(**{**vars(plan), "shards": tuple(shards)})
    (folder / MANIFEST).write_text(manifest.to_json())
    return manifest
