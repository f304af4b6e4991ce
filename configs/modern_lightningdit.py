"""LightningDiT (Yao et al., arXiv 2501.01423) on ImageNet at 256 pixels, at its true size and with its authors' settings.

    graftax train --config configs/modern_lightningdit.py:64,16
    graftax bench --aot v5e:2x4 --step 'train' --config configs/modern_lightningdit.py:64,8
    graftax bench --aot v6e:4x4 --step 'train' --config configs/modern_lightningdit.py:64,16

The argument is EPOCHS,CHIPS: 64 or 800, on so many chips. Data are latents of VA-VAE, 16 x 16 x 32, normalised channel by
channel, of images and of their mirror images, in the folder `latents/vavae`.

From the authors: LightningDiT-XL/1; 1,024 images a step; AdamW at 2e-4 without warm-up, betas 0.9 and 0.95, no weight decay;
bfloat16, averages at 0.9999, one label in ten dropped; times are logit-normal, and to the squared error of the velocity one
minus the cosine of its direction is added. 80,000 steps, or 1,000,000, of which they draw the times of the last 400,000
evenly: there run again with `--config.training.times=uniform`. Ours: gradients clipped at 1, pieces of 16 images a chip.

Hardware: v6e-16; theirs was 32 GPUs. Hours there are computed from our FLOP counts at 40 % of peak. Expect what the paper
reports, guided and without; not run here.

    argument  parameters   steps      hours on v6e-16  FID   without
    64,16     675,256,736     80,000             2.76  2.11     5.14
    800,16    675,256,736  1,000,000            34.47  1.35     2.17
"""

from common import imagenet
from ml_collections import ConfigDict

STEPS = {"64": 80_000, "800": 1_000_000}


def get_config(argument: str = "64,16") -> ConfigDict:
    """So many epochs on so many chips."""
    epochs, _, chips = argument.partition(",")
    if epochs not in STEPS or not chips.isdecimal() or int(chips) < 1:
        raise ValueError(f"got {argument!r}, expected EPOCHS,CHIPS like 64,16, with EPOCHS of {list(STEPS)}")
    optimiser = {"learning_rate": 2e-4, "warmup_steps": 0, "b2": 0.95, "grad_clip": 1.0}
    return ConfigDict(imagenet(
        "lightningdit", "LightningDiT-XL/1", "latents/vavae", int(chips), STEPS[epochs], 1024, optimiser=optimiser,
        times="logit_normal(0, 1)", objective="none + direction(1)",
    ))  # fmt: skip
