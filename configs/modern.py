"""What changed since DiT, at true size from scratch: SiT, REPA, SRA, TREAD, dispersive loss, LightningDiT; 256 pixels.

    graftax encode imagenet/train imagenet256_latents --vae sd-vae-ft-ema --size 256
    graftax train --config configs/modern.py:sit,400k
    graftax sample runs/modern/sit_400k/model --labels 207,360 --sampler euler_maruyama --steps 250 --out samples.npz
    graftax bench --aot v5e:2x4 --config configs/modern.py:repa_tread,400k
    graftax bench --aot v6e:4x4 --config configs/modern.py:repa_tread,400k

The argument is RECIPE,STEPS. Needs ImageNet's training and validation images as latent sets, which `graftax encode` makes;
`repa` the features of DINOv2-B too (`graftax.data.features.write_features`), which are of the images as they are, so that
none is mirrored; `lightningdit` latents of VA-VAE (16 x 16 x 32), a network that graftax does not have.

From the papers: 256 images a step (LightningDiT 1,024), AdamW at a constant 1e-4 (2e-4) without warm-up and decay, averages
at 0.9999, one label in ten dropped; gradients clipped at 1 by REPA and SRA; b2 0.95 by LightningDiT and the dispersive
loss. SiT (arXiv 2401.08740): the linear path, its velocity, uniform times. REPA (arXiv 2410.06940): block 8 looks like
DINOv2-B. SRA (arXiv 2505.02831): block 8 like block 20 of the averaged model at less noise; from epoch 149 on its weight
falls to a tenth every 1,000. Dispersive loss (arXiv 2506.09027): after 7 blocks, groups of 16, as its first release has
it. TREAD (arXiv 2501.04765): half of the tokens pass by blocks 2 to 24; EDM's objective, or SiT's. LightningDiT (arXiv
2501.01423): logit-normal times, and the direction of the velocity counts. Ours: bfloat16 products.

Hardware: v5e-8 or v6e-16, weights split over 8 chips (`--config.mesh.fsdp=1` for a single device). Hours there are computed
from our FLOP counts at 40 % of peak, SRA's second network with them, REPA's encoder not, since its features are there.
Expect what the papers report, of 50,000 samples, without guidance and with; not run here.

    argument           parameters  hours on v5e  hours on v6e   FID  guided
    sit,400k          675,129,632         32.12          3.45  17.2       -
    sit,7m            675,129,632        562.14         60.32   8.3    2.06
    repa,400k         675,111,184         32.12          3.45   7.9       -
    repa,4m           675,111,184        321.21         34.47   5.9    1.42
    sra,4m            675,111,184        397.68         42.67     -    1.58
    dispersive,400k   675,129,632         32.12          3.45     -    5.09
    tread,400k        675,111,184         18.72          2.01  7.38       -
    sit_tread,400k    675,129,632         18.72          2.01  4.89       -
    repa_tread,400k   675,111,184         18.72          2.01     -       -
    lightningdit,80k  675,256,736         25.70          2.76  5.14    2.11

Guided: SiT 1.5 by the SDE (2.15 by the ODE), REPA and SRA 1.8 up to a noise fraction of 0.7, the dispersive loss 1.5 (SiT
without it 6.02), LightningDiT 10 on 3 of its channels from a data fraction of 0.1. A public attempt at TREAD's figures
failed.
"""

from typing import Any

from ml_collections import ConfigDict

REPA = "repa(8, width=768, hidden=2048, weight=0.5)"
TREAD = "tread(2, 24, 0.5)"
EPOCH = 1_281_167 // 256

CLIPPED = {"grad_clip": 1.0}
RECIPES: dict[str, dict[str, Any]] = {
    "sit": {"variant": "SiT-XL/2"},
    "repa": {"variant": "REPA-XL/2", "recipe": REPA, "optimiser": CLIPPED},
    "sra": {"variant": "SRA-XL/2", "recipe": f"sra(8, 20, fade=({149 * EPOCH}, {1000 * EPOCH}))", "optimiser": CLIPPED},
    "dispersive": {
        "variant": "SiT-XL/2", "recipe": "dispersive(7, infonce_l2, tau=0.5, group=16, weight=0.5)",
        "optimiser": {"b2": 0.95},
    },
    "tread": {"variant": "TREAD-XL/2", "recipe": TREAD},
    "sit_tread": {"variant": "SiT-XL/2", "recipe": TREAD},
    "repa_tread": {"variant": "REPA-XL/2", "recipe": f"{TREAD} + {REPA}", "optimiser": CLIPPED},
    "lightningdit": {
        "variant": "LightningDiT-XL/1", "batch_size": 1024, "times": "logit_normal(0, 1)",
        "objective": "none + direction(1)", "optimiser": {"learning_rate": 2e-4, "b2": 0.95},
        "latents": "imagenet256_vavae",
    },
}  # fmt: skip
"""What each has of its own."""

STEPS = {"80k": 80_000, "400k": 400_000, "4m": 4_000_000, "7m": 7_000_000}


def get_config(argument: str = "sit,400k") -> ConfigDict:
    """One recipe for so many steps."""
    name, _, length = argument.partition(",")
    if name not in RECIPES or length not in STEPS:
        raise ValueError(f"got {argument!r}, expected RECIPE,STEPS with {list(RECIPES)} and {list(STEPS)}")
    own = dict(RECIPES[name])
    variant, latents = own.pop("variant"), own.pop("latents", "imagenet256_latents")
    optimiser = {"learning_rate": 1e-4, "warmup_steps": 0, "grad_clip": None, **own.pop("optimiser", {})}
    more = {"features": "imagenet256_dinov2b"} if "repa(" in own.get("recipe", "") else {"transform": "flip"}
    return ConfigDict(
        {
            "task": "dit",
            "workdir": f"runs/modern/{name}_{length}",
            "data": {"source": latents, "latents": "given", "test": f"{latents}_val", "test_subset": "8k", **more},
            "mesh": {"fsdp": 8},
            "model": {"variant": variant},
            "training": {
                "loop": {"steps": STEPS[length], "log_every": 100, "eval_every": 10_000, "save_every": 5_000},
                "batch_size": 256,
                "optimiser": optimiser,
                "ema_decay": 0.9999,
                "class_dropout": 0.1,
                "compute_dtype": "bfloat16",
                "remat": "dots",
                **own,
            },
        }
    )  # fmt: skip
