"""What training does besides: tokens and blocks that are left out, losses on what is inside of the network.

Nothing here changes a model: policies are arguments of the training's passes, and heads of losses live in the training's
state, averaged and kept with its checkpoints, and stay behind when the model is shipped.
"""

from graftax.train.recipes.alignment import AlignmentTap, Features, Teacher, repa, sra
from graftax.train.recipes.dispersive import Dispersive
from graftax.train.recipes.recipe import NOTHING, Recipe

__all__ = ["NOTHING", "AlignmentTap", "Dispersive", "Features", "Recipe", "Teacher", "repa", "sra"]
