"""The scenes model: a small PixArt that draws what a caption says, with a text encoder that learns its words with it.

    graftax train --config configs/scenes.py

It sees latents of the shipped autoencoder (configs/scenes_autoencoder.py).
Shared modulation, a look at the caption in every block, 64 tokens on a grid of 8x8. Expect 24 steps a second on one H100
and a training loss of 0.055 after 5,000 of them; nobody has run it to its end.
"""

from common import SCENES, cosine, pretraining
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the shipped scenes model."""
    steps = 16_000
    return ConfigDict(
        {
            "task": "pixart",
            "workdir": "runs/scenes",
            "data": {**SCENES, "limit": 400_000, "latents": "scenes"},
            "model": {
                "input_size": 16, "patch_size": 2, "in_channels": 4, "hidden_size": 160, "depth": 10, "num_heads": 4,
                "words": 78, "vocabulary": "scenes", "text_width": 96, "text_tokens": 16, "text_blocks": 2, "text_heads": 4,
            },
            "training": {
                "loop": pretraining(steps),
                "batch_size": 1024,
                "optimiser": cosine(1.5e-3, 1000, steps),
                "ema_decay": 0.9995,
                "class_dropout": 0.1,
                "compute_dtype": "bfloat16",
            },
        }
    )  # fmt: skip
