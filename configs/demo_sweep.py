"""Every operator at 50 % and 100 % of the shipped DiT's blocks, and its blocks in parallel pairs, under one small budget.

    graftax sweep --config configs/demo_sweep.py        table, pictures and samples in runs/sweep/report.html

Each variant gets 150 steps of distillation and 150 of fine-tuning, batches of 64, and is judged three times by 300
samples: a fixed budget to compare operators with, not the best that each can reach. The model has 10 blocks and a grid
of 4 x 4 tokens, hence the small windows and states.

Expect about a minute per variant on two quiet CPU cores, half an hour in all. Interrupted, the same command continues.
"""

from typing import Any

MIXERS = {
    "hyena_x": "hyena_x(kernel=4)",
    "hyena_se": "hyena_se(kernel=4)",
    "hyena_y": "hyena_y(kernel=4)",
    "hyena_long": "hyena_long(kernel=4)",
    "hyena_2d": "hyena_2d(kernel=3)",
    "mamba2": "mamba2(d_state=16, headdim=8)",
    "mamba2 cross": "mamba2(d_state=16, headdim=8, scan=cross)",
    "swa": "swa(window=2)",
    "swa_2d": "swa_2d(window=1)",
}
MLPS = {
    "mlp ratio 3": "mlp(ratio=3)",
    "mlp ratio 6": "mlp(ratio=6)",
    "mlp_hyena_x": "mlp_hyena_x(kernel=4)",
    "mlp_hyena_x_split": "mlp_hyena_x_split(kernel=4)",
}
SHARES = {"50 %": "50%", "100 %": "*"}


def get_config() -> dict[str, Any]:
    """Settings of the sweep; a plain dict, since a ConfigDict would sort the variants."""
    return {
            "workdir": "runs/sweep",
            "teacher": "demo",
            "data": {"source": "fashion_mnist", "size": 32, "latents": "demo"},
            "variants": variants(),
            "distill": distill(learning_rate=3e-3),
            "finetune": {
                "loop": {"steps": 150, "seed": 1, "log_every": 50, "save_every": 50},
                "batch_size": 64,
                "optimiser": {
                    "learning_rate": 5e-4, "warmup_steps": 20, "schedule": "cosine", "decay_steps": 150, "grad_clip": 1.0,
                },
                "ema_decay": 0.98,
            },
            "sample": {"sampler": "ddim", "steps": 25, "cfg_scale": 1.5, "cfg_channels": None, "batch_size": 100},
            "judged": 300,
            "shown": 2,
        }  # fmt: skip


def distill(**settings: Any) -> dict[str, Any]:
    """Stage 1 of the common length."""
    return {
        "settings": {"steps": 150, "schedule": "cosine", **settings}, "batch_size": 64, "log_every": 50, "save_every": 50,
    }  # fmt: skip


def variants() -> dict[str, dict[str, Any]]:
    """Names and edits: each operator at both shares, then the pairs, which start from trained weights and learn slowly."""
    operators = {
        **{name: ("mixer", text) for name, text in MIXERS.items()},
        **{name: ("mlp", text) for name, text in MLPS.items()},
    }
    grafts = {
        f"{name} {share}": {"replace": (f"blocks[{blocks}].{slot}={text}",)}
        for name, (slot, text) in operators.items()
        for share, blocks in SHARES.items()
    }
    pairs = {"restructure": ("parallel_pairs()",), "distill": distill(learning_rate=5e-4)}
    return {**grafts, "parallel pairs": pairs}
