"""Stable Diffusion 3 medium without a span of its 24 blocks, healed.

    graftax encode --text prompts.txt --text-encoder SD3 text
    graftax synthesize SD3 text drawn_sd3 --batch-size 8 --compute-dtype bfloat16
    graftax search   --config configs/sd3_depth.py --spans 6
    graftax graft    --config configs/sd3_depth.py
    graftax distill  --config configs/sd3_depth.py
    graftax finetune --config configs/sd3_depth.py
    graftax sample runs/sd3_depth/14_20/finetuned --text-encoder SD3 --latents SD3 --prompt "a red heart" --out a.png

The argument is LO,HI: blocks LO to HI - 1 go; the last, 23, is of a kind of its own and stays. `search --spans N` measures
which N in a row do least. Blocks from 14 on are our choice: those who left layers of SD3 out saw structure in the lower ones
and fine details in the upper. Stage 1 teaches the block before the span, under an L1 loss of text and image alike, to reach
from its own input what the span put out. Stage 2 trains the whole.

The teacher draws 12,200 pictures of prompts, any, one a line; 10,000 steps of 8 images at a rate of 1e-4 halved three times;
5,000 of 64 at 2e-5. Needs SD3, the folder of stable-diffusion-3-medium-diffusers, and beside it the authors' file,
sd3_medium.safetensors (or --config.teacher=SD3 in its place).

Hardware: v5e:2x4, weights split over 8 chips. Hours there, stage 1 + stage 2, are computed from our FLOP counts at 40 % of
peak. "faster": FLOPs of the teacher over those of the student.

    argument     parameters  faster        hours
    14,20     1,575,066,688    1.33  0.30 + 2.83
    9,12      1,830,008,896    1.14  0.20 + 3.30

Nobody has published such a model. Expect no number but the `eval` lines of stage 1; not run here: no weights.
"""

from common import healed_span
from ml_collections import ConfigDict


def get_config(argument: str = "14,20") -> ConfigDict:
    """One span of SD3-medium."""
    return ConfigDict(healed_span("sd3_depth", argument, "sd3_medium.safetensors", "drawn_sd3", 8))
