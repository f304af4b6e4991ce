"""The autoencoder of scenes: pictures of 64x64 pixels to 16x16x4 latents and back.

    graftax train --config configs/scenes_autoencoder.py

Expect a PSNR of 30.4 dB on scenes of held-out combinations after 6,000 steps: 66 seconds on one H100. It ships, in float16,
as graftax/data/demo/scenes_autoencoder.safetensors, with its training record beside it.
"""

from common import SCENES, cosine, pretraining
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the shipped autoencoder."""
    steps = 6_000
    return ConfigDict(
        {
            "task": "autoencoder",
            "workdir": "runs/scenes_autoencoder",
            "data": {**SCENES, "limit": 40_000},
            "model": {
                "image_size": 64, "image_channels": 3, "latent_channels": 4, "width": 64, "res_blocks": 2, "noise": 0.1,
            },
            "training": {
                "loop": pretraining(steps),
                "batch_size": 128,
                "optimiser": cosine(2e-3, 200, steps, weight_decay=1e-4),
                "ema_decay": 0.995,
                "frozen": ("latent_stats",),  # measured after training, not trained
            },
        }
    )  # fmt: skip
