"""DDT (Wang et al., arXiv 2504.05741) on ImageNet at 256 pixels, at its true size and with its authors' settings.

    graftax train --config configs/modern_ddt.py:XL,80,16
    graftax bench --aot v5e:2x4 --step 'train' --config configs/modern_ddt.py:XL,80,8
    graftax bench --aot v6e:4x4 --step 'train' --config configs/modern_ddt.py:XL,80,16

The argument is SIZE,EPOCHS,CHIPS: XL, L or B, any number of epochs, on so many chips. Data are latents of Stable Diffusion's
VAE, 32 x 32 x 4, of images and of their mirror images, in the folder `latents/sd`, with the features of a DINOv2-B beside
them, a row of 768 numbers for each of the 256 tokens.

From the authors: 22 encoder and 6 decoder blocks in XL, 20 and 4 in L, 8 and 4 in B; 256 images a step; AdamW at 1e-4
without warm-up, betas 0.9 and 0.95, no weight decay; bfloat16, averages at 0.9999, one label in ten dropped; times are
logit-normal; tokens behind block 8 look like DINOv2's, through a head 1,152 wide (REPA, weight 0.5). 400,000 steps are 80
epochs. Ours: gradients clipped at 1, pieces of 16 images a chip; modulations of blocks start at zero.

Hardware: v6e-16. Hours there are computed from our FLOP counts at 40 % of peak, without the encoder of the features and its
head. Expect what the paper reports, guided; not run here.

    argument   parameters   steps      hours on v6e-16  FID
    XL,80,16   674,646,352    400,000             3.82  1.52
    XL,256,16  674,646,352  1,280,000            12.23  1.31
    XL,400,16  674,646,352  2,000,000            19.10  1.26
    L,80,16    457,648,144    400,000             2.55  1.64
"""

from common import imagenet
from ml_collections import ConfigDict

SIZES = ("XL", "L", "B")


def get_config(argument: str = "XL,80,16") -> ConfigDict:
    """A size, so many epochs, on so many chips."""
    size, _, rest = argument.partition(",")
    epochs, _, chips = rest.partition(",")
    if size not in SIZES or not epochs.isdecimal() or not chips.isdecimal() or not int(epochs) * int(chips):
        raise ValueError(f"got {argument!r}, expected SIZE,EPOCHS,CHIPS like XL,80,16, with SIZE of {SIZES}")
    optimiser = {"learning_rate": 1e-4, "warmup_steps": 0, "b2": 0.95, "grad_clip": 1.0}
    made = imagenet(
        "ddt", f"DDT-{size}/2", "latents/sd", int(chips), 5000 * int(epochs), 256, optimiser=optimiser,
        times="logit_normal(0, 1)", recipe="repa(8, width=768, hidden=1152)",
    )  # fmt: skip
    made["data"]["features"] = "features/dinov2b"
    return ConfigDict(made)
