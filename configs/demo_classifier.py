"""The demo's judge: a small CNN that tells the ten classes of Fashion-MNIST apart.

    graftax train --config configs/demo_classifier.py

Expect about 91 % of the held-out images right after 6,000 steps, 12 minutes on one to two CPU cores.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the shipped classifier."""
    steps = 6_000
    return ConfigDict(
        {
            "task": "classifier",
            "workdir": "runs/demo_classifier",
            "data": {"source": "fashion_mnist", "size": 32},  # the loss mirrors and shifts by itself
            "batch_size": 64,
            "model": {"widths": (32, 64, 96), "features": 64, "dropout": 0.1, "smoothing": 0.1, "shift": 2},
            "optimiser": {
                "learning_rate": 2e-3, "warmup_steps": 100, "schedule": "cosine", "decay_steps": steps,
                "weight_decay": 0.05, "grad_clip": 1.0,
            },
            "ema_decay": 0.998,
            "loop": {"steps": steps, "seed": 0, "log_every": 100, "eval_every": 1000, "save_every": 1000},
        }
    )  # fmt: skip
