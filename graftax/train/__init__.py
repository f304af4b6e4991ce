"""Training: optimiser, state, sharding, one compiled step, one loop. Pretraining, fine-tuning and the small networks."""

from graftax.train.config import DiffusionConfig, TrainConfig
from graftax.train.diffusion_task import diffusion_loss, heldout_loss, training_tree
from graftax.train.finetune import finetune, latest_weights, train
from graftax.train.loop import Job, fit
from graftax.train.loop_config import LoopConfig
from graftax.train.optimiser import OptimiserConfig
from graftax.train.sharding import MeshConfig
from graftax.train.state import TrainState
from graftax.train.step import make_step, train_job

__all__ = [
    "DiffusionConfig", "Job", "LoopConfig", "MeshConfig", "OptimiserConfig", "TrainConfig", "TrainState", "diffusion_loss",
    "finetune", "fit", "heldout_loss", "latest_weights", "make_step", "train", "train_job", "training_tree",
]  # fmt: skip
