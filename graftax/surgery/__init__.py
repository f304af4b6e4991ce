"""Surgery: edits of a model as frozen values and pure functions on (spec, params). Nothing is ever mutated."""

from graftax.surgery.check import check, check_trainable
from graftax.surgery.class_tokens import class_tokens
from graftax.surgery.decouple import decouple
from graftax.surgery.edits import Edit, compose
from graftax.surgery.graft import apply_edit, graft
from graftax.surgery.hybrid import hybrid
from graftax.surgery.interface import interface, native
from graftax.surgery.inverse import inverse
from graftax.surgery.lora import lora, merge_lora
from graftax.surgery.lora_file import lora_file
from graftax.surgery.parse import EDITS, parse
from graftax.surgery.patch import patch
from graftax.surgery.place_norms import place_norms
from graftax.surgery.program import (
    Rewrite,
    looped_parallel,
    painters_span,
    parallel,
    random_order,
    repeat,
    reverse,
    skip,
)
from graftax.surgery.replace import replace, resize
from graftax.surgery.replay import replay
from graftax.surgery.report import Report, diff
from graftax.surgery.restructure import drop, parallel_pairs, tie
from graftax.surgery.rotary import rotary
from graftax.surgery.select import Site, all_sites, select

__all__ = [
    "EDITS", "Edit", "Report", "Rewrite", "Site", "all_sites", "apply_edit", "check", "check_trainable",
    "class_tokens", "compose", "decouple", "diff", "drop", "graft", "hybrid", "interface", "inverse", "looped_parallel",
    "lora", "lora_file", "merge_lora", "native", "painters_span", "parallel", "parallel_pairs", "parse", "patch",
    "place_norms",
    "random_order", "repeat", "replace", "replay", "resize", "reverse", "rotary", "select", "skip", "tie",
]  # fmt: skip
