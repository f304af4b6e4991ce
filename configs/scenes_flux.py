"""A Flux of scenes: four blocks of two streams and eight of one, trained by flow matching on what configs/scenes.py sees.

    graftax train --config configs/scenes_flux.py
    graftax scenes runs/judged_flux --model runs/scenes_flux/model

64 tokens of image beside 16 of text, whose words are learnt with the pictures; 4,672,176 parameters. Noise fractions are
drawn as in SD3 (arXiv 2403.03206, Section 3.1), more of them in the middle, where it is decided what goes where.

Expect 8 minutes on one H100, going by the PixArt of scenes: nobody has trained it to its end.
"""

from common import SCENES, cosine, pretraining
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the Flux of scenes."""
    steps = 18_500
    return ConfigDict(
        {
            "task": "flux",
            "workdir": "runs/scenes_flux",
            "data": {**SCENES, "limit": 200_000, "latents": "scenes"},
            "model": {
                "input_size": 16, "patch_size": 2, "in_channels": 4, "hidden_size": 128, "double": 4, "single": 8,
                "num_heads": 4, "pooled_width": 0, "words": 78, "vocabulary": "scenes", "text_width": 96,
                "text_tokens": 16, "text_blocks": 2, "text_heads": 4,
            },
            "training": {
                "loop": pretraining(steps),
                "batch_size": 512,
                "optimiser": cosine(1e-3, 1000, steps),
                "ema_decay": 0.999,
                "ema_warmup": True,
                "class_dropout": 0.1,
                "times": "logit_normal(0, 1)",
                "compute_dtype": "bfloat16",
            },
        }
    )  # fmt: skip
