"""A LoRA on a few blocks of Flux-dev: does a style need more than the MLPs of single blocks 7 and 20?

    graftax encode --text prompts.txt --text-encoder FLUX.1-dev text
    graftax synthesize FLUX.1-dev text drawn_flux --batch-size 8 --compute-dtype bfloat16
    graftax graft    --config configs/flux_lora.py
    graftax finetune --config configs/flux_lora.py
    graftax convert runs/flux_lora/finetuned lora.safetensors --adapters
    graftax bench --aot v5p:2x2x2 --step 'stage 2' --config configs/flux_lora.py

The argument is what carries adapters, a selector: `configs/flux_lora.py:single[7,20].mlp` by default, `single[*].mixer` or
`double[*].img/mlp` as well; their rank is 16. Replace `drawn_flux` by latents of pictures in the style that is to be learnt:
`graftax encode FOLDER drawn_flux --vae FLUX.1-dev --text-encoder FLUX.1-dev`. Needs the pipeline's folder FLUX.1-dev.

1,000 steps of 8 images at a rate of 1e-4, guidance as a condition, no caption dropped, for the model is distilled from a
guided one. Hardware: v5p:2x2x2, weights split over 8 chips. Expect what the family's README tells of its memory and time;
not run here.
"""

from ml_collections import ConfigDict


def get_config(argument: str = "single[7,20].mlp") -> ConfigDict:
    """Adapters at one selector."""
    return ConfigDict({
        "workdir": "runs/flux_lora",
        "teacher": "FLUX.1-dev",
        "graft": {"edits": (f"lora({argument}, rank=16)",)},
        "data": {"source": "drawn_flux", "latents": "given", "held_out": 0.01},
        "mesh": {"fsdp": 8},
        "distill": {},
        "finetune": {
            "loop": {"steps": 1000, "eval_every": 250, "save_every": 250},
            "batch_size": 8,
            "optimiser": {"learning_rate": 1e-4, "warmup_steps": 100, "grad_clip": 1.0},
            "frozen": ("(?!lora/).*",),
            "ema_decay": 0.99,
            "class_dropout": 0.0,
            "compute_dtype": "bfloat16",
            "remat": "full",
        },
    })  # fmt: skip
