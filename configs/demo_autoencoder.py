"""The demo's autoencoder: Fashion-MNIST, padded to 32x32, to 8x8x4 latents and back.

    graftax train --config configs/demo_autoencoder.py

Expect a PSNR of about 27.3 dB on the held-out images after 5,000 steps, about 6 minutes on one CPU core.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the shipped autoencoder."""
    steps = 5_000
    return ConfigDict(
        {
            "task": "autoencoder",
            "workdir": "runs/demo_autoencoder",
            "data": {"source": "fashion_mnist", "size": 32, "transform": "flip"},
            "batch_size": 64,
            "model": {"image_size": 32, "latent_channels": 4, "width": 64, "res_blocks": 1, "noise": 0.1},
            "frozen": ("latent_stats",),  # measured after training, not trained
            "optimiser": {
                "learning_rate": 3e-3, "warmup_steps": 100, "schedule": "cosine", "decay_steps": steps,
                "weight_decay": 1e-4, "grad_clip": 1.0,
            },
            "ema_decay": 0.995,
            "loop": {"steps": steps, "seed": 0, "log_every": 100, "eval_every": 1000, "save_every": 1000},
        }
    )  # fmt: skip
