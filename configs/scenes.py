"""The scenes model: a small PixArt that draws what a caption says, with a text encoder that learns its words with it.

    graftax train --config configs/scenes.py

It sees latents of the shipped autoencoder (configs/scenes_autoencoder.py). Shared modulation, a look at the caption in every
block, 64 tokens on a grid of 8x8, 4,153,480 parameters.

Expect on one H100: 14 s to draw the scenes, 75 s to encode them and to compile, then 6 minutes at 27,500 images a second; a
loss of 0.044 in training and of 0.045 on held-out combinations of words. Of 300 held-out captions (`graftax scenes OUT
--model runs/scenes/model --cfg-scale 4`) 72 % are right: single_object 96, two_object 76, counting 58, colors 100,
position 48, color_attr 54. "Left of" and its like it has hardly learnt: half of that is chance.
"""

from common import scenes_pretraining
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Settings of the shipped scenes model."""
    sizes = {"hidden_size": 168, "depth": 8, "num_heads": 3}
    return ConfigDict({"workdir": "runs/scenes", **scenes_pretraining("pixart", sizes)})
