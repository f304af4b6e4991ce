"""The grafting paper's main experiment (arXiv 2506.05340, Table 4): DiT-XL/2 with half of its attention as Hyena-X.

    graftax graft    --config configs/xl2_hyena_x_50.py
    graftax distill  --config configs/xl2_hyena_x_50.py --config.data.limit=8000
    graftax finetune --config configs/xl2_hyena_x_50.py
    graftax sample runs/xl2_hyena_x_50/finetuned --labels 207,360 --sampler ddpm --steps 250 --out samples.npz

Needs the published `DiT-XL-2-256x256.pt`, an accelerator, and `imagenet256_latents.npz`: `latents` (n, 32, 32, 4) float16
of shuffled training images as the model takes them (Stable Diffusion's autoencoder, times 0.18215), and `labels` (n,).
Stage 1 is the paper's 200 epochs over 8,000 images in batches of 64, stage 2 its 50,000 steps of 256 images over 10 % of
ImageNet, under a day on eight H100 by its own account. Expect what it reports: FID 2.74 on 50,000 samples, against 2.27
of the teacher. This repository has not run it at that size.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The paper's recipe for both stages."""
    return ConfigDict(
        {
            "workdir": "runs/xl2_hyena_x_50",
            "teacher": "DiT-XL-2-256x256.pt",
            "data": {"source": "imagenet256_latents.npz", "latents": "given", "held_out": 0.01},
            "graft": {"replace": ("blocks[50%].mixer=hyena_x(kernel=4)",)},
            "distill": {
                "settings": {
                    "steps": 25_000, "learning_rate": 1e-4, "schedule": "paper", "grad_clip": 10.0, "dtype": "bfloat16",
                },
                "batch_size": 64, "eval_every": 2500, "save_every": 2500,
            },
            "finetune": {
                "loop": {"steps": 50_000, "eval_every": 2500, "save_every": 2500},
                "batch_size": 256,
                "optimiser": {"learning_rate": 1e-4, "warmup_steps": 1000, "grad_clip": 10.0},
                "ema_decay": 0.9999,
                "class_dropout": 0.1,
                "compute_dtype": "bfloat16",
                "remat": "dots",
            },
        }
    )  # fmt: skip
