"""The scenes model: a small PixArt that draws what a caption says, with a text encoder that learns its words with it.

    graftax train --config configs/scenes.py
    graftax train --config configs/scenes.py:apart      the same, wrong captions told from right ones (hard negatives)

It sees latents of the shipped autoencoder (configs/scenes_autoencoder.py). Shared modulation, a look at the caption in every
block, 64 tokens on a grid of 8x8, 4,153,480 parameters.

Expect on one H100: 14 s to draw the scenes, 75 s to encode them and to compile, then 6 minutes at 27,500 images a second; a
loss of 0.044 in training and of 0.045 on held-out combinations of words. Of 300 held-out captions (`graftax scenes OUT
--model runs/scenes/model --cfg-scale 4`) 72 % are right: single_object 96, two_object 76, counting 58, colors 100,
position 48, color_attr 54. "Left of" and its like it has not learnt: half of that is chance. `apart` is to teach it that, at
twice the time; nobody has run it to its end.
"""

from common import scenes_pretraining
from ml_collections import ConfigDict

RECIPES: dict[str, dict[str, str]] = {"": {}, "apart": {"recipe": "hard_negatives(0.3)"}}
"""What the training has besides, by the argument."""


def get_config(recipe: str = "") -> ConfigDict:
    """Settings of the shipped scenes model, or of one that is trained with a recipe besides."""
    if recipe not in RECIPES:
        raise ValueError(f"got {recipe!r}, expected 'apart', or nothing")
    sizes = {"hidden_size": 168, "depth": 8, "num_heads": 3}
    workdir = "_".join(filter(None, ("runs/scenes", recipe)))
    return ConfigDict({"workdir": workdir, **scenes_pretraining("pixart", sizes, **RECIPES[recipe])})
