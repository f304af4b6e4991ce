"""Stage 1 of grafting: scions learn the input-output behaviour of the operators they replace."""

from graftax.distill.closed_form import calibrate, neuron_importance
from graftax.distill.config import PAPER_BATCH, PAPER_EPOCHS, PAPER_SAMPLES, DistillConfig
from graftax.distill.decoupled import fit_decoupled
from graftax.distill.latents import fit_latents
from graftax.distill.losses import huber, l1, l2
from graftax.distill.stage1 import distill, distill_job, install
from graftax.distill.update import DistillState, create_state, make_distill_step

__all__ = [
    "PAPER_BATCH", "PAPER_EPOCHS", "PAPER_SAMPLES", "DistillConfig", "DistillState", "calibrate",
    "create_state", "distill", "distill_job", "fit_decoupled", "fit_latents", "huber", "install", "l1", "l2",
    "make_distill_step", "neuron_importance",
]  # fmt: skip
