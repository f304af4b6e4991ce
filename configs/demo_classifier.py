"""The demo's judge: a small CNN that tells the ten classes of Fashion-MNIST apart.

    graftax train --config configs/demo_classifier.py

Expect about 91 % of the held-out images right after 6,000 steps, 12 minutes on one to two CPU cores.
"""

from common import cosine, pretraining
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the shipped classifier."""
    steps = 6_000
    return ConfigDict(
        {
            "task": "classifier",
            "workdir": "runs/demo_classifier",
            "data": {"source": "fashion_mnist", "size": 32},  # the loss mirrors and shifts by itself
            "model": {"widths": (32, 64, 96), "features": 64, "dropout": 0.1, "smoothing": 0.1, "shift": 2},
            "training": {
                "loop": pretraining(steps),
                "batch_size": 64,
                "optimiser": cosine(2e-3, 100, steps, weight_decay=0.05),
                "ema_decay": 0.998,
            },
        }
    )  # fmt: skip
