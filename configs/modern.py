"""Recipes since DiT, at true size: SiT, REPA, SRA, TREAD, MaskDiT, dispersive loss; ImageNet, 256 pixels.

    graftax encode imagenet/train latents/sd --vae sd-vae-ft-ema --size 256
    graftax train --config configs/modern.py:sit,400k,16
    graftax sample runs/modern/sit_400k/model --labels 207,360 --sampler euler_maruyama --steps 250 --out samples.npz
    graftax bench --aot v5e:2x4 --config configs/modern.py:repa_tread,400k,8
    graftax bench --aot v6e:4x4 --config configs/modern.py:repa_tread,400k,16

The argument is RECIPE,STEPS,CHIPS. Data are latents of Stable Diffusion's VAE, 32 x 32 x 4, of images and of their mirror
images, in the folder `latents/sd`. `repa` needs the features of a DINOv2-B too, `features/dinov2b`, as
`graftax.data.features.write_features` makes them: of the images as they are, so that none is mirrored.

From the papers: 256 images a step, AdamW at a constant 1e-4 without warm-up and decay, averages at 0.9999, one label in ten
dropped; gradients clipped at 1 by REPA and SRA; b2 0.95 by the dispersive loss. SiT (arXiv 2401.08740): the linear path,
its velocity, uniform times. REPA (arXiv 2410.06940): block 8 looks like DINOv2-B. SRA (arXiv 2505.02831): block 8 like
block 20 of the averaged model at less noise; from epoch 149 on its weight falls to a tenth every 1,000. Dispersive loss
(arXiv 2506.09027): after 7 blocks, groups of 16, as its first release has it. TREAD (arXiv 2501.04765): half of the tokens
pass by blocks 2 to 24; EDM's objective, or SiT's. MaskDiT (arXiv 2306.09305): half of the tokens are masked, EDM's
objective, 1,024 images a step; its last 100,000 steps, without a mask and at 5e-5, are a `finetune` of what this leaves.
Ours: bfloat16 products, pieces of 16 images a chip.

Hardware: v5e-8 or v6e-16. Hours there are computed from our FLOP counts at 40 % of peak, SRA's second network with them,
REPA's encoder not, since its features are there. Expect what the papers report, of 50,000 samples, without guidance and
with; not run here.

    argument            parameters  hours on v5e  hours on v6e   FID  guided
    sit,400k,16         675,129,632         32.12          3.45  17.2       -
    sit,7m,16           675,129,632        562.14         60.32   8.3    2.06
    repa,400k,16        675,111,184         32.12          3.45   7.9       -
    repa,4m,16          675,111,184        321.21         34.47   5.9    1.42
    sra,4m,16           675,111,184        397.68         42.67     -    1.58
    dispersive,400k,16  675,129,632         32.12          3.45     -    5.09
    tread,400k,16       675,111,184         18.72          2.01  7.38       -
    sit_tread,400k,16   675,129,632         18.72          2.01  4.89       -
    repa_tread,400k,16  675,111,184         18.72          2.01     -       -
    maskdit,2m,16       730,541,200        354.88         38.08  5.69    2.28

Guided: SiT 1.5 by the SDE (2.15 by the ODE), REPA and SRA 1.8 up to a noise fraction of 0.7, the dispersive loss 1.5 (SiT
without it 6.02), MaskDiT 1.5. A public attempt at TREAD's figures failed. LightningDiT and DDT have configs of their own.
"""

from typing import Any

from common import imagenet
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
    "maskdit": {"task": "maskdit", "variant": "MaskDiT-XL/2", "recipe": "mask(0.5)", "batch": 1024},
}  # fmt: skip
"""What each has of its own."""

STEPS = {"400k": 400_000, "2m": 2_000_000, "4m": 4_000_000, "7m": 7_000_000}


def get_config(argument: str = "sit,400k,16") -> ConfigDict:
    """One recipe for so many steps, on so many chips."""
    name, length, chips, *more = [*argument.split(","), "", ""]
    if name not in RECIPES or length not in STEPS or not chips.isdecimal() or not int(chips) or any(more):
        raise ValueError(f"got {argument!r}, expected RECIPE,STEPS,CHIPS of {list(RECIPES)} and {list(STEPS)}")
    own = dict(RECIPES[name])
    optimiser = {"learning_rate": 1e-4, "warmup_steps": 0, "grad_clip": None, **own.pop("optimiser", {})}
    config = imagenet(
        own.pop("task", "dit"), own.pop("variant"), "latents/sd", int(chips), STEPS[length], own.pop("batch", 256),
        optimiser=optimiser, **own,
    )  # fmt: skip
    config["workdir"] = f"runs/modern/{name}_{length}"
    if REPA in own.get("recipe", ""):
        config["data"] |= {"transform": "none", "features": "features/dinov2b"}
    return ConfigDict(config)
