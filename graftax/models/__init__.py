"""Models as functions over (spec, params): the executor of blocks, programs, costs. No backbone is known here by name."""

from graftax.models.backbone import Backbone, Cond
from graftax.models.forward import forward
from graftax.models.model import Meta, Model
from graftax.models.network import Network, init, param_shapes, random_params

__all__ = ["Backbone", "Cond", "Meta", "Model", "Network", "forward", "init", "param_shapes", "random_params"]
