"""The grafting paper's questions asked of the shipped DiT, three seeds each; one part of the study per argument.

    graftax sweep --config configs/demo_study.py:ladder      self-grafting: how much data does it take?
    graftax sweep --config configs/demo_study.py:choice      which half: interleaved, deep, local, or not local?
    graftax sweep --config configs/demo_study.py:operators   four operators at 50, 70 and 100 %

Tables, pictures and samples are left in runs/study/PART. Each run gets 150 steps of distillation and 150 of fine-tuning,
batches of 64, and is judged three times by 300 samples. Expect half a minute per run on two quiet CPU cores: 4, 4 and 12
variants of three seeds. Interrupted, the same command continues.
"""

from typing import Any

SWAPS = {
    "hyena_x": "mixer=hyena_x(kernel=4)",
    "swa": "mixer=swa(window=2)",
    "mamba2": "mixer=mamba2(d_state=16, headdim=8)",
    "mlp ratio 3": "mlp=mlp(ratio=3)",
}
SHARES = {"50 %": "50%", "70 %": "75%", "100 %": "*"}
"""All but every fourth block are seven of ten here."""

CHOICES = {"interleaved": "50%", "deep": "deep:50%", "top-local": "1:5,8", "low-local": "0,5:8,9"}
"""The last two as `graftax analyze locality demo` ranks them, the same for bands of 1 to 4 tokens."""


def ladder() -> dict[str, Any]:
    """All attention, then all MLPs, against fresh operators of the same kind; a tenth of the data, then all of it."""
    attention = {"replace": ("blocks[*].mixer=mha()",)}
    return {
        "attention, 10 % then 10 %": {**attention, "distill_subset": "10%", "finetune_subset": "10%"},
        "attention, 10 % then 50 %": {**attention, "distill_subset": "10%", "finetune_subset": "50%"},
        "attention, 10 % then all": {**attention, "distill_subset": "10%"},
        "MLPs, 10 % then all": {"replace": ("blocks[*].mlp=mlp(ratio=4)",), "distill_subset": "10%"},
    }


def choice() -> dict[str, Any]:
    """Hyena-X in five of ten mixers."""
    return {name: {"replace": (f"blocks[{blocks}].mixer=hyena_x(kernel=4)",)} for name, blocks in CHOICES.items()}


def operators() -> dict[str, Any]:
    """Three mixers and a narrower MLP at three shares."""
    variants = {}
    for name, swap in SWAPS.items():
        slot, operator = swap.split("=", 1)
        for share, blocks in SHARES.items():
            variants[f"{name} {share}"] = {"replace": (f"blocks[{blocks}].{slot}={operator}",)}
    return variants


PARTS = {"ladder": ladder, "choice": choice, "operators": operators}


def get_config(part: str = "ladder") -> dict[str, Any]:
    """Settings of one part; a plain dict, since a ConfigDict would sort the variants."""
    if part not in PARTS:
        raise ValueError(f"part {part!r}: expected one of {', '.join(PARTS)}")
    return {
            "workdir": f"runs/study/{part}",
            "teacher": "demo",
            "data": {"source": "fashion_mnist", "size": 32, "latents": "demo"},
            "variants": PARTS[part](),
            "seeds": (0, 1, 2),
            "distill": {
                "settings": {"steps": 150, "schedule": "cosine", "learning_rate": 3e-3},
                "batch_size": 64, "log_every": 50, "save_every": 50,
            },
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
