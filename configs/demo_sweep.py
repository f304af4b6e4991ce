"""The grafting paper's questions, asked of the shipped DiT; one part per argument, three seeds each.

    graftax sweep --config configs/demo_sweep.py            every operator at several shares, and parallel pairs
    graftax sweep --config configs/demo_sweep.py:choice     which half: interleaved, deep, local, or not local?
    graftax sweep --config configs/demo_sweep.py:ladder     self-grafting: how much data does it take?

Tables, pictures and samples are left in runs/sweep/PART/report.html. Each run gets 150 steps of distillation and 150 of
fine-tuning, batches of 64, and is judged three times by 300 samples: a fixed budget to compare with, not the best that
each can reach. The model has 10 blocks and a grid of 4 x 4 tokens, hence the small windows and states.

Expect half a minute to a minute per run on two quiet CPU cores: 31, 4 and 4 variants of three seeds. One seed for a
quick look: --config.seeds="(0,)". Interrupted, the same command continues.
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
SHARES = {"50 %": "50%", "70 %": "75%", "100 %": "*"}
"""All but every fourth block are seven of ten here."""

PAPER = ("hyena_x", "swa", "mamba2", "mlp ratio 3")
"""Operators of the grafting paper, at all three shares; the others at half and whole."""

CHOICES = {"interleaved": "50%", "deep": "deep:50%", "top-local": "1:5,8", "low-local": "0,5:8,9"}
"""The last two as `graftax analyze demo --what locality` ranks them, the same for bands of 1 to 4 tokens."""


def get_config(part: str = "operators") -> dict[str, Any]:
    """Settings of one part; a plain dict, since a ConfigDict would sort the variants."""
    if part not in PARTS:
        raise ValueError(f"part {part!r}: expected one of {', '.join(PARTS)}")
    return {
            "workdir": f"runs/sweep/{part}",
            "teacher": "demo",
            "data": {"source": "fashion_mnist", "size": 32, "latents": "demo"},
            "variants": PARTS[part](),
            "seeds": (0, 1, 2),
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


def operators() -> dict[str, dict[str, Any]]:
    """Each operator at its shares, then the pairs, which start from trained weights and learn slowly."""
    sites = {
        **{name: ("mixer", text) for name, text in MIXERS.items()},
        **{name: ("mlp", text) for name, text in MLPS.items()},
    }
    grafts = {
        f"{name} {share}": {"replace": (f"blocks[{blocks}].{slot}={text}",)}
        for name, (slot, text) in sites.items()
        for share, blocks in SHARES.items()
        if name in PAPER or share != "70 %"
    }
    pairs = {"restructure": ("parallel_pairs()",), "distill": distill(learning_rate=5e-4)}
    return {**grafts, "parallel pairs": pairs}


def choice() -> dict[str, dict[str, Any]]:
    """Hyena-X in five of ten mixers."""
    return {name: {"replace": (f"blocks[{blocks}].mixer=hyena_x(kernel=4)",)} for name, blocks in CHOICES.items()}


def ladder() -> dict[str, dict[str, Any]]:
    """All attention, then all MLPs, against fresh operators of the same kind; a tenth of the data, then all of it."""
    attention = {"replace": ("blocks[*].mixer=mha()",)}
    return {
        "attention, 10 % then 10 %": {**attention, "distill_subset": "10%", "finetune_subset": "10%"},
        "attention, 10 % then 50 %": {**attention, "distill_subset": "10%", "finetune_subset": "50%"},
        "attention, 10 % then all": {**attention, "distill_subset": "10%"},
        "MLPs, 10 % then all": {"replace": ("blocks[*].mlp=mlp(ratio=4)",), "distill_subset": "10%"},
    }


PARTS = {"operators": operators, "choice": choice, "ladder": ladder}
