"""Flux-dev without a span of its blocks, healed: as Flux.1-lite was made, doubles 5 to 15 of 19 out, 12 B parameters to 8 B.

    graftax encode --text prompts.txt --text-encoder FLUX.1-dev text
    graftax synthesize FLUX.1-dev text drawn_flux --guidance 3.5 --batch-size 8 --compute-dtype bfloat16
    graftax search   --config configs/flux_depth.py --spans 11
    graftax graft    --config configs/flux_depth.py
    graftax distill  --config configs/flux_depth.py
    graftax finetune --config configs/flux_depth.py
    graftax sample runs/flux_depth/5_16/finetuned --text-encoder FLUX.1-dev --latents FLUX.1-dev --prompt heart --out a.png

The argument is LO,HI: blocks LO to HI - 1 go, doubles 0 to 18 or singles 19 to 56. `search --spans N` measures on held-out
images which N in a row do least (cosine and CKA of the state before and behind them, the output's error without them).
Stage 1 teaches the block before the span, under an L1 loss of text and image alike, to reach from its own input what the
span put out: Flux.1-lite's block 4 was to reach block 15's output. Stage 2 trains the whole.

Ours, since Flux.1-lite's training is told in outline only: the teacher draws 12,200 pictures of prompts, any, one a line;
10,000 steps of 8 images at a rate of 1e-4 halved three times; 5,000 of 64 at 2e-5. Guidance is a condition and no caption
dropped, for the model is distilled from a guided one. Needs the pipeline's folder FLUX.1-dev.

Hardware: v5p:2x2x2, weights split over 8 chips. Hours there, stage 1 + stage 2, are computed from our FLOP counts at 40 % of
peak. "faster": FLOPs of the teacher over those of the student.

    argument      parameters  faster         hours
    5,16       8,163,264,064    1.24  0.38 + 10.91
    27,38     10,343,898,432    1.24  0.81 + 10.91

Expect of the first what its authors report, 7 GB less in bfloat16 and 23 % faster; not run here: no weights.
"""

from common import healed_span
from ml_collections import ConfigDict


def get_config(argument: str = "5,16") -> ConfigDict:
    """One span of Flux-dev."""
    return ConfigDict(healed_span("flux_depth", argument, "FLUX.1-dev", "drawn_flux", 8))
