"""Hyena-X distilled into every attention of the shipped DiT, to search for the best sites among them.

    graftax graft   --config configs/demo_search.py
    graftax distill --config configs/demo_search.py
    graftax search  --config configs/demo_search.py

Expect about two minutes on two CPU cores. The last lines name the best half of the sites, as edits.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of stage 1 at all sites; stage 2 fine-tunes whatever student it is given."""
    return ConfigDict(
        {
            "workdir": "runs/demo_search",
            "teacher": "demo",
            "data": {"source": "fashion_mnist", "size": 32, "latents": "demo"},
            "graft": {"replace": ("blocks[*].mixer=hyena_x(kernel=4)",), "seed": 0},
            "distill": {
                "settings": {"steps": 300, "learning_rate": 3e-3, "schedule": "cosine"},
                "batch_size": 64, "log_every": 20, "eval_every": 100,
            },
            "finetune": {
                "loop": {"steps": 300, "seed": 1, "log_every": 20, "eval_every": 100},
                "batch_size": 64,
                "optimiser": {
                    "learning_rate": 5e-4, "warmup_steps": 20, "schedule": "cosine", "decay_steps": 300, "grad_clip": 1.0,
                },
                "ema_decay": 0.98,
            },
        }
    )  # fmt: skip
