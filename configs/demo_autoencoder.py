"""The demo's autoencoder: Fashion-MNIST, padded to 32x32, to 8x8x4 latents and back.

    graftax train --config configs/demo_autoencoder.py

Expect a PSNR of about 27.3 dB on the held-out images after 5,000 steps, about 6 minutes on one CPU core.
"""

from common import cosine, pretraining
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the shipped autoencoder."""
    steps = 5_000
    return ConfigDict(
        {
            "task": "autoencoder",
            "workdir": "runs/demo_autoencoder",
            "data": {"source": "fashion_mnist", "size": 32, "transform": "flip"},
            "model": {"image_size": 32, "latent_channels": 4, "width": 64, "res_blocks": 1, "noise": 0.1},
            "training": {
                "loop": pretraining(steps),
                "batch_size": 64,
                "optimiser": cosine(3e-3, 100, steps, weight_decay=1e-4),
                "ema_decay": 0.995,
                "frozen": ("latent_stats",),  # measured after training, not trained
            },
        }
    )  # fmt: skip
