"""A Flux of scenes: four blocks of two streams and eight of one, trained by flow matching on what configs/scenes.py sees.

    graftax train --config configs/scenes_flux.py
    graftax scenes runs/judged_flux --model runs/scenes_flux/model

64 tokens of image beside 16 of text, whose words are learnt with the pictures; 4,672,176 parameters. Noise fractions are
drawn as in SD3 (arXiv 2403.03206, Section 3.1), more of them in the middle, where it is decided what goes where.

Expect 8 minutes on one H100, going by the PixArt of scenes: nobody has trained it to its end.
"""

from common import scenes_pretraining
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the Flux of scenes."""
    sizes = {"hidden_size": 128, "double": 4, "single": 8, "num_heads": 4, "pooled_width": 0}
    return ConfigDict({"workdir": "runs/scenes_flux", **scenes_pretraining("flux", sizes, times="logit_normal(0, 1)")})
