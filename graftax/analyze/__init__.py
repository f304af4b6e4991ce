"""What goes on inside a model, and what that says about where to edit it."""

from graftax.analyze.ablation import Ablated, objective_ablation, paper_blocks
from graftax.analyze.activations import Activations, Moments, activation_statistics
from graftax.analyze.cka import state_cka
from graftax.analyze.harm import Harm, flops_saved
from graftax.analyze.inputs import Input, noised_batches, trajectory
from graftax.analyze.locality import (
    Locality,
    attention_locality,
    default_k,
    low_local,
    top_local,
    uniform_mass,
)
from graftax.analyze.modulation import modulation_error
from graftax.analyze.painters import Deviation, OutputError, ProgramSampler
from graftax.analyze.similarity import contrast, segment, state_similarities, state_similarity
from graftax.analyze.spans import Span, least_spans, measure_spans
from graftax.analyze.strategies import (
    Strategy,
    Stretch,
    all_spans,
    centred_spans,
    loop_sweep,
    single_skips,
    strategies,
    stretches,
    switches,
)

__all__ = [
    "Ablated", "Activations", "Deviation", "Harm", "Input", "Locality", "Moments", "OutputError", "ProgramSampler",
    "Span", "Strategy", "Stretch", "activation_statistics", "all_spans", "attention_locality", "centred_spans", "contrast",
    "default_k", "flops_saved", "least_spans", "loop_sweep", "low_local", "measure_spans", "modulation_error",
    "noised_batches", "objective_ablation", "paper_blocks", "segment", "single_skips", "state_cka", "state_similarities",
    "state_similarity", "strategies", "stretches", "switches", "top_local", "trajectory", "uniform_mass",
]  # fmt: skip
