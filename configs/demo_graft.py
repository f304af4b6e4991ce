"""The demo: half of the attention of the shipped DiT becomes Hyena-X, and then all of it.

    graftax demo                                      everything, with a report in runs/demo/report.html

Expect under 4 minutes on two quiet CPU cores, the teacher's class accuracy (93 %) within a point and 1.3 x its Fréchet
distance after both stages.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the demo."""
    return ConfigDict(
        {
            "workdir": "runs/demo",
            "teacher": "demo",
            "data": {"source": "fashion_mnist", "size": 32, "latents": "demo"},
            "graft": {"replace": ("blocks[50%].mixer=hyena_x(kernel=4)",), "seed": 0},
            "graft_all": {"replace": ("blocks[*].mixer=hyena_x(kernel=4)",), "seed": 0},
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
            "sample": {"sampler": "ddim", "steps": 25, "cfg_scale": 1.5, "cfg_channels": None, "batch_size": 100},
            "judged": 500,
            "shown": 6,
        }
    )  # fmt: skip
